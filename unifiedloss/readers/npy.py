"""Files of ``numpy.save``, and the headers of their arrays.

A header of a few bytes can claim an array of any size, so it is compared with the size of the file
before memory is taken.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from unifiedloss.readers.column import Array, Column, Reader, damaged, unreadable
from unifiedloss.readers.raw import RawColumn
from unifiedloss.text import shortened

LONGEST_HEADER = 10_000
"""NumPy reads no longer header either."""

NOT_NPY = (
    "cannot be read: it is damaged, or is no .npy file, or holds Python objects and not numbers; "
    "save it with numpy.save(file, array)"
)


class Header(NamedTuple):
    """What the header of an ``.npy`` file says.

    Attributes:
        shape: the extents of the array.
        dtype: its dtype, which holds no Python objects.
        column_major: whether its first axis runs fastest (Fortran's order).
        offset: the place where its numbers begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    column_major: bool
    offset: int

    @property
    def size(self) -> int:
        """The number of bytes that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(opened: IO[bytes]) -> Header:
    """The header of an ``.npy`` file that is opened at its beginning.

    Raises:
        ValueError: the file is no ``.npy`` file, holds Python objects, or claims an impossible
            shape.
    """
    # At most this much is read, because the header says itself how long it is.
    start = io.BytesIO(opened.read(LONGEST_HEADER + 16))
    version = np.lib.format.read_magic(start)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version, np.lib.format.read_array_header_2_0)
    shape, column_major, dtype = read(start, max_header_size=LONGEST_HEADER)
    if dtype.hasobject or not all(type(extent) is int and extent >= 0 for extent in shape):
        msg = f"an array of dtype {dtype} and shape {shortened(str(shape))} is not read"
        raise ValueError(msg)
    # NumPy writes False for an array that is in both orders.
    return Header(shape, dtype, bool(column_major) and len(shape) > 1, start.tell())


class NpyReader(Reader):
    """An ``.npy`` file, which holds one array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as opened:
                header = read_header(opened)
                size = opened.seek(0, io.SEEK_END)
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # whatever damaged bytes make NumPy raise
            raise damaged(path, "", NOT_NPY) from error
        if size != header.offset + header.size:
            raise damaged(path, "", NOT_NPY)
        if header.column_major:
            self.columns = {"": _ColumnMajor(path, header)}
        else:
            self.columns = {"": RawColumn(path, "", header.shape, header.dtype, header.offset)}


class _ColumnMajor(Column):
    """An array whose rows are spread over the whole file, so it is mapped for each block."""

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__("", header.shape, header.dtype.newbyteorder("="))
        self._path, self._header = path, header

    def read(self, start: int, stop: int) -> Array:
        header = self._header
        try:
            mapped = np.memmap(
                self._path, header.dtype, "r", header.offset, header.shape, order="F"
            )
        except (OSError, ValueError) as error:
            raise unreadable(self._path, error) from error
        return np.array(mapped[start:stop], self.dtype, order="C")
