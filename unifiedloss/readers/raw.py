"""Arrays whose numbers lie in a file one after another, uncompressed.

The rows are read and not mapped, for two reasons. A mapped file that is cut while it is read ends
the process by a signal. And the pages of a mapped file count as memory of the process.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from unifiedloss.readers.column import Array, Column, damaged, unreadable


class RawColumn(Column):
    """An array in row-major order.

    Attributes:
        path: the file.
        offset: the bytes before its first number.
    """

    def __init__(
        self, path: Path, name: str, shape: tuple[int, ...], stored: np.dtype[Any], offset: int
    ) -> None:
        super().__init__(name, shape, stored.newbyteorder("="))
        self.path, self.offset, self._stored = path, offset, stored

    def read(self, start: int, stop: int) -> Array:
        rest = self.shape[1:]
        shape = (stop - start, *rest) if self.shape else ()
        row = math.prod(rest) * self._stored.itemsize
        array = np.empty(shape, self._stored)
        try:
            with self.path.open("rb", buffering=0) as opened:
                opened.seek(self.offset + start * row)
                fill(opened, bytes_of(array))
        except EOFError as error:
            raise damaged(self.path, self.name, "ends before its last row: it was cut") from error
        except OSError as error:
            raise unreadable(self.path, error) from error
        return array.astype(self.dtype, copy=False)


def bytes_of(array: Array) -> memoryview:
    """The memory of an array."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def fill(opened: Any, into: memoryview) -> None:
    """Fill a buffer. One call of the system reads 2 GiB at most.

    Raises:
        EOFError: the file ends before.
    """
    done = 0
    while done < len(into):
        count = opened.readinto(into[done:])
        if not count:
            raise EOFError
        done += count
