"""Files of safetensors, which the Hugging Face libraries write.

The library checks the file. The rows are read as `unifiedloss.readers.raw` does, because the
library maps the file.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from unifiedloss.errors import DTypeError, FileError
from unifiedloss.readers.column import Column, Reader, unreadable
from unifiedloss.readers.raw import RawColumn
from unifiedloss.text import shortened, shortened_path

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

_LENGTH = struct.Struct("<Q")
"""A file begins with the length of its header, and the numbers follow the header."""


class SafetensorsReader(Reader):
    """A ``.safetensors`` file."""

    def __init__(self, path: Path) -> None:
        import safetensors

        self.path = path
        try:
            with safetensors.safe_open(path, "np"), path.open("rb") as start:
                (length,) = _LENGTH.unpack(start.read(_LENGTH.size))
                header = json.loads(start.read(length))
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # SafetensorError derives from Exception alone
            msg = (
                f"{shortened_path(path)} is no .safetensors file, or is damaged: "
                f"{shortened(str(error))}."
            )
            raise FileError(msg) from error
        self.columns: dict[str, Column] = {}
        for name, each in header.items():
            dtype = None if name == "__metadata__" else _dtype(each["dtype"], name)
            if dtype is not None:
                offset = _LENGTH.size + length + each["data_offsets"][0]
                self.columns[name] = RawColumn(path, name, tuple(each["shape"]), dtype, offset)


def _dtype(stored: str, name: str) -> np.dtype[Any] | None:
    """The dtype of an array; None for one that no loss reads, such as an 8-bit float."""
    known = _DTYPES.get(stored)
    if known != "bfloat16":
        return None if known is None else np.dtype(known)
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        msg = (
            f"the array {shortened(name)!r} is bfloat16, which NumPy has from ml_dtypes; install "
            "it with: pip install ml_dtypes."
        )
        raise DTypeError(msg) from None
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
