"""Arrays in files, which several processes read without a copy each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Mapped:
    """An array in a file; `open` maps it, so only the pages that are read take memory.

    Attributes:
        path: the file.
        dtype: the dtype of the array.
        shape: its shape.
        offset: the bytes before its first number.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, array: Array, path: Path) -> Mapped:
        """Write an array to `path`, unless it is mapped from a file already."""
        if isinstance(array, np.memmap) and array.flags.c_contiguous and array.filename:
            at = int(array.offset)
            return cls(Path(array.filename), array.dtype, array.shape, at)
        np.ascontiguousarray(array).tofile(path)
        return cls(path, array.dtype, array.shape)

    def open(self) -> Array:
        """The array, for reading."""
        if not np.prod(self.shape):  # there is nothing to map
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
