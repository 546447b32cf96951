"""Rounding float64 numbers to the dtypes of results, once and to nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def stored(x: NDArray[np.float64], dtype: str) -> Array:
    """Numbers that the dtype holds exactly, as an array of it; bfloat16, which NumPy has not, as its bits."""
    if dtype == "bfloat16":
        bits: Array = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits
    return x.astype(dtype)
