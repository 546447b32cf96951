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

    Attributes:
        value: the largest distance of values, in ulps of the coarser dtype. The ulp is that of the
            largest number, or of 1 if the largest number lies between 2**-6 and 1. The distance is
            infinite if one outcome is an error, if a value is NaN or infinite in one outcome only,
            or if the sizes differ.
        gradient: the same for gradients; None if they cannot be compared.
        limit: the largest distance of values that counts as rounding.
        gradient_limit: the largest distance of gradients that counts as rounding.
    """

    value: float
    gradient: float | None
    limit: int = _ROUNDING_ULPS
    gradient_limit: int = _ROUNDING_ULPS

    @property
    def closed(self) -> bool:
        """Whether the outcomes differ by rounding at most."""
        return self.value <= self.limit and (
            self.gradient is None or self.gradient <= self.gradient_limit
        )

    def __str__(self) -> str:
        gradient = "" if self.gradient is None else f", gradients by {self.gradient:.3g} ulps"
        return f"values differ by {self.value:.3g} ulps{gradient}"


def gap_of(a: Outcome, b: Outcome) -> Gap:
    """Measure the distance between two outcomes."""
    if a.value is None or b.value is None:
        return Gap(0.0 if a.value is None and b.value is None else float("inf"), None)
    gradient, limit = None, _ROUNDING_ULPS
    if a.gradient is not None and b.gradient is not None:
        gradient, limit = _ulps(a.gradient, b.gradient), rounding_limit(a.gradient, b.gradient)
    return Gap(_ulps(a.value, b.value), gradient, rounding_limit(a.value, b.value), limit)


def rounding_limit(a: Array, b: Array) -> int:
    """Return how many ulps of the coarser dtype count as rounding."""
    return _ROUNDING_HALF_ULPS if {a.dtype.name, b.dtype.name} & {*HALF_TYPES} else _ROUNDING_ULPS


def _ulps(a: Array, b: Array) -> float:
    """Return the largest distance, in ulps of the coarser dtype at `_scale(x, y)`.

    All elements share this ulp, because the error of a row grows with the largest of its terms, and
    the error of a mean with the largest of its rows.
    """
    if a.size != b.size:
        return float("inf")
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    special = ~(np.isfinite(x) & np.isfinite(y))
    if not np.all((x == y) | ~special | (np.isnan(x) & np.isnan(y))):
        return float("inf")
    x, y = x[~special], y[~special]
    if not x.size:
        return 0.0
    return float(np.max(np.abs(x - y)) / (coarser_epsilon(a, b) * _scale(x, y)))


def coarser_epsilon(a: Array, b: Array) -> float:
    """Return the epsilon of the coarser of two dtypes."""
    return max(FORMATS[x.dtype.name].epsilon for x in (a, b) if x.dtype.name in FORMATS)


def _scale(x: Array, y: Array) -> float:
    """Return the number whose ulp is the unit of the distance: the largest number, or 1.

    A loss below 1 is the difference of numbers near 1, so its errors are ulps of 1. Numbers that
    are all below `_SMALL` are taken for the gradient of a mean over many rows.
    """
    largest = float(max(np.max(np.abs(x)), np.max(np.abs(y))))
    return largest if 0.0 < largest < _SMALL or largest > 1.0 else 1.0


_SMALL = 2.0**-6
