"""Read arrays from files in blocks of rows.

Each module reads one format and imports its library. `unifiedloss.readers.files` finds the arrays
of a loss among several files.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import NamedTuple

from unifiedloss.errors import FileError, MissingBackendError
from unifiedloss.readers.column import Column, Reader
from unifiedloss.text import shortened, shortened_path

__all__ = ["FORMATS", "Column", "FileError", "Reader", "open_reader"]


class Format(NamedTuple):
    """A format of files.

    Attributes:
        module: its module in this package.
        reader: the class of that module.
    """

    module: str
    reader: str


FORMATS = {
    ".npy": Format("npy", "NpyReader"),
    ".npz": Format("npz", "NpzReader"),
    ".safetensors": Format("safetensors", "SafetensorsReader"),
    ".parquet": Format("parquet", "ParquetReader"),
    ".zarr": Format("zarr", "ZarrReader"),
    ".h5": Format("hdf5", "Hdf5Reader"),
    ".hdf5": Format("hdf5", "Hdf5Reader"),
}
"""The formats by the suffix of a file."""


def open_reader(path: Path) -> Reader:
    """Open a file of arrays by its suffix.

    Raises:
        FileError: the file is missing, is damaged, or is of no known format.
        MissingBackendError: the library that reads the format is not installed.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        msg = (
            f"{shortened_path(path)} has the suffix {shortened(path.suffix)!r}; files are read "
            f"with {', '.join(FORMATS)}."
        )
        raise FileError(msg)
    if not path.exists():
        msg = f"there is no file {shortened_path(path)}."
        raise FileError(msg)
    module = importlib.import_module(f"unifiedloss.readers.{found.module}")
    try:
        reader: Reader = getattr(module, found.reader)(path)
    except ModuleNotFoundError as error:
        msg = (
            f"{path.suffix} files need the module {error.name!r}, which is not installed; install "
            "it with: pip install 'unifiedloss[files]'."
        )
        raise MissingBackendError(msg) from error
    return reader
