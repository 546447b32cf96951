"""Arrays that a library slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unifiedloss.readers.column import Array, Column, damaged


class IndexedColumn(Column):
    """An array of a library, whose slices are NumPy arrays."""

    def __init__(self, path: Path, name: str, array: Any) -> None:
        super().__init__(name, tuple(array.shape), np.dtype(array.dtype))
        self._path, self._array = path, array

    def read(self, start: int, stop: int) -> Array:
        try:
            array: Array = np.asarray(self._array[start:stop] if self.shape else self._array[()])
        except Exception as error:  # whatever damaged bytes make the codecs raise
            raise damaged(self._path, self.name, "is damaged") from error
        return array
