"""Exact sums of float64 numbers, and the mean of them, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, U, two_prod
from unifiedloss.exact.rounding import decide, to_format
from unifiedloss.floats import FORMATS
from unifiedloss.reference import nearest

Floats = NDArray[np.float64]


_BLOCK = 1 << 17
_HEIGHT = 26 + 10
"""NumPy adds a contiguous block in pairs down to 128 terms, and those eight at a time."""


_LARGEST = 2.0**1000
_UNDERFLOW = 2.0**-1060
_UNKNOWN = Ball(np.float64(0.0), np.float64(0.0), np.float64(np.inf))


class Sum:
    """The exact sum of finite numbers: a ball around it at once, the rational itself when it is asked for."""

    def __init__(self, numbers: Floats) -> None:
        self._numbers = numbers

    def rough(self) -> tuple[float, float]:
        """The sum, and a bound of what it is off by, for no more than adding costs."""
        sums, sizes = [], []
        for start in range(0, len(self._numbers), _BLOCK):
            part = self._numbers[start : start + _BLOCK].astype(np.float64)
            sums.append(float(part.sum()))
            np.abs(part, out=part)
            sizes.append(float(part.sum()))
        if not sum(sizes) < _LARGEST:
            return 0.0, math.inf
        # A term passes through _HEIGHT additions of NumPy's, and one rounding here.
        return math.fsum(sums), math.fsum(sizes) * (_HEIGHT + 4) * U

    def ball(self) -> Ball:
        """A ball around the sum, of a relative 2^-106 or so, and of none at all where two float64 hold it."""
        numbers = self._numbers.tolist()
        try:
            # math.fsum is one rounding of the exact sum. What that lost is summed again, and so is what that lost.
            high = math.fsum(numbers)
            low = math.fsum([*numbers, -high])
            lost = math.fsum([*numbers, -high, -low]) if low else 0.0
        except OverflowError:  # in between; the sum itself may be finite
            return _UNKNOWN
        return Ball(np.float64(high), np.float64(low), np.float64(2 * abs(lost)))

    def fraction(self) -> Fraction:
        """The sum."""
        # Equal exponents first: integers add faster than fractions.
        total: dict[int, int] = {}
        mantissas, exponents = np.frexp(self._numbers.astype(np.float64))
        whole = np.ldexp(mantissas, 53).astype(np.int64)
        for exponent in np.unique(exponents):
            total[int(exponent)] = sum(whole[exponents == exponent].tolist())
        return sum((Fraction(n) * Fraction(2) ** (e - 53) for e, n in total.items()), Fraction(0))


def quotient(total: Sum, divisor: Ball, exactly: Callable[[], Fraction], dtype: str) -> float:
    """The exact total over the divisor, rounded once to a dtype.

    Args:
        total: the sum of the terms.
        divisor: a ball around the divisor.
        exactly: gives the divisor itself, where the ball does not decide.
        dtype: the dtype's name.
    """
    with np.errstate(over="ignore"):
        about, off = total.rough()
    mean = about / float(divisor.high)
    of_divisor = float((divisor.radius + abs(divisor.low)) / abs(divisor.high))
    # Twice what the bound, the divisor and the quotient's own rounding may do; more than any of them is where it underflows.
    width = 2 * (off / abs(float(divisor.high)) + abs(mean) * (of_divisor + 2 * U))
    if about or off:
        width += _UNDERFLOW
    first, last = to_format(np.array([mean - width, mean + width]), dtype).tolist()
    if first == last:
        return float(first)
    with np.errstate(all="ignore"):
        slow = total.ball() / divisor
    high, low, radius = (np.atleast_1d(np.asarray(x, np.float64)) for x in slow)
    rounded, undecided = decide(high, low, radius, dtype)
    if not undecided[0]:
        return float(rounded[0])
    return nearest(total.fraction() / exactly(), FORMATS[dtype])


def products(*factors: Any) -> Floats | None:
    """Float64 numbers whose exact sum is that of the factors' products, element by element; None where one may not be representable."""
    parts = [np.asarray(factors[0], np.float64)]
    for factor in factors[1:]:
        other = np.asarray(factor, np.float64)
        nothing = (parts[0] == 0) | (other == 0)
        parts = [half for part in parts for half in two_prod(part, other)]
        size = np.abs(parts[0])
        if not (nothing | (size >= 2.0**-800) & (size <= 2.0**900)).all():
            return None
    if not all(np.isfinite(part).all() for part in parts):
        return None
    # Products with 1 leave nothing over, and adding costs.
    parts = parts[:1] + [part for part in parts[1:] if part.any()]
    return np.concatenate([np.ravel(part) for part in parts])
