"""Memory for results that every framework takes over without a copy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALIGNMENT = 64
"""Bytes. TensorFlow and JAX copy arrays that are not aligned so."""


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], *, zeros: bool = False) -> NDArray[Any]:
    """An array in C order whose memory is aligned, of any contents unless `zeros`."""
    size = math.prod(shape) * dtype.itemsize
    room = (np.zeros if zeros else np.empty)(size + _ALIGNMENT, np.uint8)
    start = -room.__array_interface__["data"][0] % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)
