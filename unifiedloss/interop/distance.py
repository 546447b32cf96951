"""The distance between two outcomes, in units in the last place, and what counts as rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.interop.sides import Array, Outcome

_ROUNDING_ULPS = 64
"""Largest distance between the kernels of two frameworks in a mean of many terms.

Its unit is the ulp of the largest term, or of 1.
"""

_ROUNDING_HALF_ULPS = 4
"""The same for half types.

Most kernels round to a half type only once or twice, and 64 ulps would be 6% in float16 and 50% in
bfloat16.
"""


@dataclass(frozen=True, eq=False)
class Gap:
    """The distance between two outcomes.

    Values and gradients are counted in ulps of one dtype, the coarsest of theirs, because a loss
    that is computed in float32 has no more digits where it is returned in float64. The ulp is that
    of the largest number, or of 1 if the largest number lies between 2**-6 and 1. A distance is
    infinite if one outcome is an error, if a number is NaN or infinite in one outcome only, or if
    the sizes differ.

    Attributes:
        value: the largest distance of values.
        gradient: the same for gradients; None if they cannot be compared.
        limit: the largest distance of values that counts as rounding.
        gradient_limit: the largest distance of gradients that counts as rounding.
        dtype: the name of the dtype whose ulps are counted; None if nothing was compared.
        sizes: the numbers of values of the two outcomes, or None.
    """

    value: float
    gradient: float | None
    limit: int = _ROUNDING_ULPS
    gradient_limit: int = _ROUNDING_ULPS
    dtype: str | None = None
    sizes: tuple[int, int] | None = None

    @property
    def closed(self) -> bool:
        """Whether the outcomes differ by rounding at most."""
        return self.value <= self.limit and (
            self.gradient is None or self.gradient <= self.gradient_limit
        )

    def __str__(self) -> str:
        unit = "ulps" if self.dtype is None else f"ulps of {self.dtype}"
        if np.isfinite(self.value):
            value = f"values differ by {self.value:.3g} {unit}"
        elif self.sizes is None:
            return "one of them is an error"
        elif self.sizes[0] != self.sizes[1]:
            value = "one has {} and the other {}".format(*map(_count, self.sizes))
        else:
            value = f"{'a value' if self.sizes[0] > 1 else 'the value'} of one alone is finite"
        if self.gradient is None:
            return value
        if np.isfinite(self.gradient):
            differ = "" if np.isfinite(self.value) else "differ "
            return f"{value}, gradients {differ}by {self.gradient:.3g} {unit}"
        return f"{value}, and an element of the gradient of one alone is finite"


def _count(values: int) -> str:
    return "1 value" if values == 1 else f"{values or 'no'} values"


def gap_of(a: Outcome, b: Outcome) -> Gap:
    """Measure the distance between two outcomes."""
    if a.value is None or b.value is None:
        return Gap(0.0 if a.value is None and b.value is None else float("inf"), None)
    numbers, gradient = [a.value, b.value], None
    if a.gradient is not None and b.gradient is not None:
        numbers += [a.gradient, b.gradient]
    unit, limit = coarsest(*numbers), rounding_limit(*numbers)
    if a.gradient is not None and b.gradient is not None:
        gradient = _ulps(a.gradient, b.gradient, unit)
    sizes = a.value.size, b.value.size
    return Gap(_ulps(a.value, b.value, unit), gradient, limit, limit, unit, sizes)


def rounding_limit(*arrays: Array) -> int:
    """Return how many ulps of the coarsest dtype count as rounding."""
    return _ROUNDING_HALF_ULPS if coarsest(*arrays) in HALF_TYPES else _ROUNDING_ULPS


def coarsest(*arrays: Array) -> str:
    """Return the name of the coarsest dtype; numbers that are not floating count as float64."""
    names = [x.dtype.name for x in arrays if x.dtype.name in FORMATS]
    return max(names, key=lambda name: FORMATS[name].epsilon, default="float64")


def _ulps(a: Array, b: Array, dtype: str) -> float:
    """Return the largest distance; infinite if the sizes differ."""
    if a.size != b.size:
        return float("inf")
    return float(np.max(distances(a.ravel(), b.ravel(), dtype), initial=0.0))


def distances(a: Array, b: Array, dtype: str) -> Array:
    """Return the distance of each element, in ulps of a dtype at `_scale(x, y)`, in float64.

    All elements share this ulp, because the error of a row grows with the largest of its terms, and
    the error of a mean with the largest of its rows. A distance is infinite if one number alone is
    finite, or if both are not and differ.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    found = np.where(same, 0.0, np.inf)
    p, q = x[finite], y[finite]
    if p.size:
        found[finite] = np.abs(p - q) / (FORMATS[dtype].epsilon * _scale(p, q))
    return found


def _scale(x: Array, y: Array) -> float:
    """Return the number whose ulp is the unit of the distance: the largest number, or 1.

    A loss below 1 is the difference of numbers near 1, so its errors are ulps of 1. Numbers that
    are all below `_SMALL` are taken for the gradient of a mean over many rows.
    """
    largest = float(max(np.max(np.abs(x)), np.max(np.abs(y))))
    return largest if 0.0 < largest < _SMALL or largest > 1.0 else 1.0


_SMALL = 2.0**-6
