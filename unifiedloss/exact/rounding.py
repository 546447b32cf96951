"""Rounds to the dtypes of results: once, to nearest, ties to even, also subnormals and overflow.

Most casts from float64 to a half type go through float32 and round twice. This module rounds in
float64 itself, or by NumPy's own casts to float32 and float16, which are correct.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.floats import FORMATS

Array = NDArray[Any]
Floats = NDArray[np.float64]

_SLACK = 1.0 + 2.0**-40
"""Bounds are computed in float64 too. This factor covers their own rounding errors."""

_NUMPY_HAS = {"float16": np.float16, "float32": np.float32}


def to_format(x: Floats, dtype: str) -> Floats:
    """Round float64 numbers to a dtype and return them as float64; every zero is +0."""
    if dtype == "float64":
        return x + 0.0
    if dtype in _NUMPY_HAS:
        with np.errstate(over="ignore", under="ignore"):
            narrow: Floats = x.astype(_NUMPY_HAS[dtype]).astype(np.float64)
        return narrow + 0.0
    form = FORMATS[dtype]
    _, exponents = np.frexp(x)
    shift = form.precision - np.maximum(exponents, form.min_exponent + 1)
    with np.errstate(all="ignore"):
        rounded: Floats = np.ldexp(np.rint(np.ldexp(x, shift)), -shift)
    rounded = np.where(np.isfinite(x), rounded, x)
    return np.where(np.abs(rounded) > form.largest, np.copysign(np.inf, rounded), rounded) + 0.0


def _to_odd(high: Floats, low: Floats) -> Floats:
    """Round high + low to odd, so that a second rounding to a narrower dtype is correct.

    If float64 cannot hold the sum, the result is the neighbour whose last bit is set.
    """
    total = high + low
    back = total - high
    error = (high - (total - back)) + (low - back)
    bits = np.ascontiguousarray(total).view(np.int64)
    even = (bits & 1) == 0
    # Step in the direction of the error: away from zero where it has the sign of the total.
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where((error != 0) & even & np.isfinite(total), (bits + step).view(np.float64), total)


def decide(
    high: Floats, low: Floats, radius: Floats, dtype: str
) -> tuple[Floats, NDArray[np.bool_]]:
    """Round numbers known to lie within `radius` of high + low, where that decides the rounding.

    Returns:
        The rounded numbers, as float64, and which of them are undecided: the two ends of the
        interval do not round to the same number, or one of them is not finite.
    """
    with np.errstate(all="ignore"):
        wide = radius * _SLACK
        below, above = low - wide, low + wide
        inexact = wide != 0  # one step outwards covers the rounding of low - wide and low + wide
        below = np.where(inexact, np.nextafter(below, -np.inf), low)
        above = np.where(inexact, np.nextafter(above, np.inf), low)
        if dtype == "float64":
            first, last = high + below, high + above
        else:
            first, last = (
                to_format(_to_odd(high, below), dtype),
                to_format(_to_odd(high, above), dtype),
            )
        known = (first == last) & np.isfinite(high) & np.isfinite(radius)
    return first + 0.0, ~known


def stored(x: Array, dtype: str) -> Array:
    """Store numbers that the dtype holds exactly in that dtype; bfloat16 as its bits in uint16."""
    if dtype == "bfloat16":
        bits: Array = (np.asarray(x.astype(np.float32)).view(np.uint32) >> 16).astype(np.uint16)
        return bits
    with np.errstate(over="ignore"):
        return x.astype(dtype, copy=False)


def bits_of(dtype: str) -> np.dtype[Any]:
    """The dtype in which `stored` holds numbers."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def from_bits(x: Array) -> Array:
    """Read bfloat16 numbers from their bits in uint16; other numbers stay as they are."""
    if x.dtype != np.uint16:
        return x
    return (x.astype(np.uint32) << 16).view(np.float32)
