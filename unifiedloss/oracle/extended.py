"""Sums and products of numbers that may be irrational, infinite or NaN.

Finite numbers are a Fraction or a Real. Infinities and NaN are floats and follow IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from unifiedloss.floats import Format
from unifiedloss.oracle.reals import ONE, ZERO, NegativeLog, Real
from unifiedloss.oracle.rounding import INFINITY

NAN = math.nan


Extended = Fraction | float
Value = Real | float

NOTHING = Real(ZERO)


def extended(value: float) -> Extended:
    """Convert a float or an integer to a Fraction if it is finite, else keep it."""
    return Fraction(value) if math.isfinite(value) else float(value)


def _sign(x: Extended | Value) -> float:
    """The sign as a float: NaN for NaN."""
    if isinstance(x, Real):
        return float(x.sign())
    if isinstance(x, float) and math.isnan(x):
        return x
    return float((x > 0) - (x < 0))


def times(x: Extended, y: Extended) -> Extended:
    """The product."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * y
    return _sign(x) * _sign(y) * INFINITY


def over(x: Extended, y: Extended) -> Extended:
    """The quotient; the divisor must not be 0."""
    if isinstance(y, Fraction):
        return times(x, 1 / y)
    if isinstance(x, Fraction):
        return ZERO if math.isinf(y) else NAN
    return NAN


def scaled(factor: Extended, x: Value) -> Value:
    """The product with a number that may be irrational."""
    if isinstance(factor, Fraction) and isinstance(x, Real):
        if factor == 1:
            return x
        if not factor:
            return NOTHING
        if len(x.terms) > 4:
            return Real(ZERO, ((factor, x),))
        return Real(factor * x.rational, tuple((factor * b, node) for b, node in x.terms))
    return _sign(factor) * _sign(x) * INFINITY


def combined(parts: Iterable[tuple[Extended, Value]]) -> Value:
    """The sum of factor times number over all parts."""
    rational, special = ZERO, 0.0
    # Merge equal numbers, because the total of a batch is long and may occur in every part.
    factors: dict[Real, Fraction] = {}
    for factor, x in parts:
        if not isinstance(factor, Fraction) or not isinstance(x, Real):
            # One of the two is a float, and so is the product.
            special += float(scaled(factor, x))  # type: ignore[arg-type]
        elif not x.terms:
            rational += factor * x.rational
        elif factor:
            factors[x] = factors[x] + factor if x in factors else factor
    if special != 0.0:
        return special
    return Real(rational, tuple((b, x) for x, b in factors.items() if b))


def round_value(x: Value, form: Format) -> float:
    """Round to the nearest number of a format."""
    return x.round(form) if isinstance(x, Real) else x


def as_value(x: Extended) -> Value:
    """Convert a number that is rational if it is finite."""
    return Real(x) if isinstance(x, Fraction) else x


def negative_log(ratio: Fraction) -> Real:
    """-log r for 0 < r <= 1."""
    return Real(ZERO, ((ONE, NegativeLog(ratio)),)) if ratio != 1 else NOTHING
