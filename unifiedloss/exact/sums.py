"""Exact sums of float64 numbers, and their means, rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import compiled
from unifiedloss.exact.balls import Ball, U, two_prod
from unifiedloss.exact.rounding import decide, to_format
from unifiedloss.floats import FORMATS
from unifiedloss.oracle.rounding import nearest

Floats = NDArray[np.float64]

_BLOCK = 1 << 17
_HEIGHT = 26 + 10
"""Most additions that a term of a block passes through in NumPy's sum.

NumPy adds a contiguous block in pairs down to 128 terms, and those eight at a time.
"""

_LARGEST = 2.0**1000
_UNDERFLOW = 2.0**-1060
_UNKNOWN = Ball(np.float64(0.0), np.float64(0.0), np.float64(np.inf))


class Sum:
    """The exact sum of finite numbers: a cheap bound, a ball around it, or the exact rational."""

    def __init__(self, numbers: Floats) -> None:
        self._numbers = numbers

    def pair(self) -> Ball | None:
        """A ball around the sum from the compiled loops, if they have one for these numbers.

        The radius is 0 if two float64 hold all partial sums, and else about 2^-100 of the sizes.
        """
        numbers = self._numbers
        if numbers.dtype != np.float64 or not compiled.is_available():
            return None
        high, low, error = compiled.sum_in_pairs(np.require(numbers, requirements=("C", "A")))
        known = math.isfinite(high) and math.isfinite(error)
        return Ball(np.float64(high), np.float64(low), np.float64(error)) if known else None

    def rough(self) -> tuple[float, float]:
        """The sum in float64 and a bound of its error, at the cost of two float64 sums."""
        sums, sizes = [], []
        for start in range(0, len(self._numbers), _BLOCK):
            part = self._numbers[start : start + _BLOCK].astype(np.float64)
            sums.append(float(part.sum()))
            np.abs(part, out=part)
            sizes.append(float(part.sum()))
        if not sum(sizes) < _LARGEST:
            return 0.0, math.inf
        # A term passes through _HEIGHT additions in NumPy and one rounding here.
        return math.fsum(sums), math.fsum(sizes) * (_HEIGHT + 4) * U

    def ball(self) -> Ball:
        """A ball around the sum: relative radius about 2^-106, or 0 if two float64 hold the sum."""
        pair = self.pair()
        if pair is not None and pair.radius <= abs(pair.high) * 2.0**-100:
            return pair
        numbers = self._numbers.tolist()
        try:
            # math.fsum rounds the exact sum once. Sum that error the same way, and the next error.
            high = math.fsum(numbers)
            low = math.fsum([*numbers, -high])
            lost = math.fsum([*numbers, -high, -low]) if low else 0.0
        except OverflowError:  # a partial sum overflowed; the sum itself may be finite
            return _UNKNOWN
        return Ball(np.float64(high), np.float64(low), np.float64(2 * abs(lost)))

    def fraction(self) -> Fraction:
        """The exact sum."""
        # Add numbers of equal exponent first, because integers add faster than fractions.
        total: dict[int, int] = {}
        mantissas, exponents = np.frexp(self._numbers.astype(np.float64))
        integers = np.ldexp(mantissas, 53).astype(np.int64)
        for exponent in np.unique(exponents):
            total[int(exponent)] = sum(integers[exponents == exponent].tolist())
        return sum((Fraction(n) * Fraction(2) ** (e - 53) for e, n in total.items()), Fraction(0))


def quotient(total: Sum, divisor: Ball, exactly: Callable[[], Fraction], dtype: str) -> float:
    """The exact total over the divisor, rounded once to a dtype.

    Args:
        total: the sum of the terms.
        divisor: a ball around the divisor.
        exactly: computes the divisor itself, for the case that the ball does not decide.
        dtype: the dtype's name.
    """
    quick = total.pair()
    if quick is not None:
        with np.errstate(all="ignore"):
            value, known = rounded(quick / divisor, dtype)
        if known:
            return value
    with np.errstate(over="ignore"):
        about, error = total.rough()
    mean = about / float(divisor.high)
    divisor_error = float((divisor.radius + abs(divisor.low)) / abs(divisor.high))
    # Twice the errors of the sum, the divisor and the quotient's own rounding. _UNDERFLOW is more
    # than any of them where they underflow.
    width = 2 * (error / abs(float(divisor.high)) + abs(mean) * (divisor_error + 2 * U))
    if about or error:
        width += _UNDERFLOW
    first, last = to_format(np.array([mean - width, mean + width]), dtype).tolist()
    if first == last:
        return float(first)
    with np.errstate(all="ignore"):
        slow = total.ball() / divisor
    value, known = rounded(slow, dtype)
    if known:
        return value
    return nearest(total.fraction() / exactly(), FORMATS[dtype])


def rounded(ball: Ball, dtype: str) -> tuple[float, bool]:
    """A ball rounded to a dtype, and whether that is known to be right."""
    high, low, radius = (np.atleast_1d(np.asarray(x, np.float64)) for x in ball)
    rounded, undecided = decide(high, low, radius, dtype)
    return float(rounded[0]), not undecided[0]


def products(*factors: Any) -> Floats | None:
    """Split the factors' elementwise products into float64 numbers with the same exact sum.

    Returns:
        The numbers in one flat array, or None if one of them may not be representable.
    """
    parts = [np.asarray(factors[0], np.float64)]
    for factor in factors[1:]:
        other = np.asarray(factor, np.float64)
        zero = (parts[0] == 0) | (other == 0)
        parts = [half for part in parts for half in two_prod(part, other)]
        size = np.abs(parts[0])
        if not (zero | (size >= 2.0**-800) & (size <= 2.0**900)).all():
            return None
    if not all(np.isfinite(part).all() for part in parts):
        return None
    # Drop low parts that are all 0 (a product with 1), because each part costs an addition.
    parts = parts[:1] + [part for part in parts[1:] if part.any()]
    return np.concatenate([np.ravel(part) for part in parts])
