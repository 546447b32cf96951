"""Derive the polynomials of unifiedloss/compiled, and prove what they leave out.

Each interpolates its function at Chebyshev points, and its coefficients are rounded to float64 (for
vectors.h) or float32 (for native.c).
What such a polynomial leaves out is a smooth function. Its Chebyshev coefficients are computed to
60 digits, and the sum of their sizes bounds it everywhere, because no Chebyshev polynomial exceeds
1.
``python -m tools.coefficients`` prints the polynomials and the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import numpy as np

Number = Any
Function = Callable[[Number], Number]

DIGITS = 60
_TERMS = 60
"""Terms of the Chebyshev series of what a polynomial leaves out. The later ones are below 1e-50."""


class Polynomial(NamedTuple):
    """A polynomial and the largest error it makes, relative to the function that it is used for.

    Attributes:
        coefficients: from the constant on.
        left_out: the bound of the error, in units of 2^-53, or of 2^-24 for float32.
    """

    coefficients: list[float]
    left_out: float


def exponential(*, single: bool = False) -> Polynomial:
    """Q in e^r = 1 + r + r^2 q(r), for |r| up to log(2) / 2 and a little more."""
    with mpmath.workdps(DIGITS):
        half = mpmath.log(2) / 2 * (1 + mpmath.mpf(2) ** -20)

        def q(r: Number) -> Number:
            return mpmath.fsum(r**n / mpmath.factorial(n + 2) for n in range(45))

        coefficients = _rounded(_interpolated(q, -half, half, 4 if single else 9), single=single)
        absolute = _left_out(q, coefficients, -half, half) * half**2
        return Polynomial(coefficients, float(absolute * mpmath.exp(half) * _unit(single=single)))


def logarithm(*, single: bool = False) -> Polynomial:
    """A in log(1 + e) = 2 w (1 + v A(v)), with w = e / (2 + e) and v = w^2 up to 1 / 9."""
    with mpmath.workdps(DIGITS):
        end = mpmath.mpf(1) / 9 * (1 + mpmath.mpf(2) ** -20)

        def a(v: Number) -> Number:
            return mpmath.fsum(v**n / (2 * n + 3) for n in range(80))

        degree = 3 if single else 9
        coefficients = _rounded(_interpolated(a, mpmath.mpf(0), end, degree), single=single)
        left_out = _left_out(a, coefficients, mpmath.mpf(0), end) * end
        return Polynomial(coefficients, float(left_out * _unit(single=single)))


def _unit(*, single: bool) -> int:
    return 2**24 if single else 2**53


def _rounded(coefficients: list[float], *, single: bool) -> list[float]:
    return [float(np.float32(x)) for x in coefficients] if single else coefficients


def _series(function: Function, low: Number, high: Number, degree: int) -> list[Number]:
    """The coefficients of the interpolant in Chebyshev polynomials of an interval."""
    middle, half, count = (low + high) / 2, (high - low) / 2, degree + 1
    angles = [mpmath.pi * (2 * k + 1) / (2 * count) for k in range(count)]
    values = [function(middle + half * mpmath.cos(angle)) for angle in angles]
    return [
        (2 if j else 1)
        * mpmath.fsum(v * mpmath.cos(j * angle) for v, angle in zip(values, angles, strict=True))
        / count
        for j in range(count)
    ]


def _interpolated(function: Function, low: Number, high: Number, degree: int) -> list[float]:
    """The coefficients of the interpolant in powers of its argument, rounded to float64."""
    middle, half = (low + high) / 2, (high - low) / 2
    chebyshev = [[mpmath.mpf(1)], [mpmath.mpf(0), mpmath.mpf(1)]]
    for j in range(2, degree + 1):
        twice = [mpmath.mpf(0)] + [2 * x for x in chebyshev[j - 1]]
        before = chebyshev[j - 2] + [mpmath.mpf(0)] * 2
        chebyshev.append([x - y for x, y in zip(twice, before, strict=True)])
    scaled = [mpmath.mpf(0)] * (degree + 1)
    for own, polynomial in zip(_series(function, low, high, degree), chebyshev, strict=True):
        for i, x in enumerate(polynomial):
            scaled[i] += own * x
    powers = [mpmath.mpf(0)] * (degree + 1)
    for i, x in enumerate(scaled):  # the powers of (v - middle) / half
        for k in range(i + 1):
            powers[k] += x / half**i * mpmath.binomial(i, k) * (-middle) ** (i - k)
    return [float(x) for x in powers]


def _left_out(function: Function, coefficients: list[float], low: Number, high: Number) -> Number:
    """A bound of the difference between a function and a polynomial on an interval."""

    def difference(x: Number) -> Number:
        return function(x) - mpmath.polyval(coefficients[::-1], x)

    return mpmath.fsum(abs(x) for x in _series(difference, low, high, _TERMS))


def main() -> None:
    """Print the polynomials, as C writes them, with what they leave out."""
    for name, of in (("EXP_Q", exponential), ("LOG_A", logarithm)):
        for single in (False, True):
            polynomial = of(single=single)
            suffix, unit = ("_SINGLE", "half an epsilon") if single else ("", "U")
            print(f"{name}{suffix}: leaves out less than {polynomial.left_out:.3f} {unit}")
            print(", ".join(x.hex() for x in polynomial.coefficients))


if __name__ == "__main__":
    main()
