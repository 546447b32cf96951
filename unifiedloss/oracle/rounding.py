"""Round rational numbers and float64 numbers to a floating-point format."""

from __future__ import annotations

import math
from fractions import Fraction

from unifiedloss.floats import Format

INFINITY = math.inf


def nearest(value: Fraction, form: Format, sticky: int = 0) -> float:
    """Round a rational to the nearest number of a format, ties to even.

    Overflow gives an infinity, and every zero is +0.

    Args:
        value: the rational.
        form: the format to round to.
        sticky: -1 or 1 if the true number lies below or above `value` by less than the distance to
            any other number or midpoint of the format, so that it matters only at a tie.
    """
    numerator, denominator = value.numerator, value.denominator
    if numerator < 0:
        return 0.0 - nearest(-value, form, -sticky)
    if numerator == 0:
        return 0.0
    exponent = numerator.bit_length() - denominator.bit_length()
    if (numerator << max(-exponent, 0)) < (denominator << max(exponent, 0)):
        exponent -= 1
    shift = form.precision - 1 - max(exponent, form.min_exponent)
    quotient, remainder = divmod(numerator << max(shift, 0), denominator << max(-shift, 0))
    twice = 2 * remainder - (denominator << max(-shift, 0))
    if twice > 0 or (twice == 0 and (sticky > 0 or (sticky == 0 and quotient % 2 == 1))):
        quotient += 1
    if quotient.bit_length() - shift > form.max_exponent + 1:
        return INFINITY
    return math.ldexp(quotient, -shift)


def narrow(value: float, form: Format) -> float:
    """Round a float64 to one of the formats, ties to even."""
    if value == 0.0 or math.isinf(value) or form.precision == 53:
        return value + 0.0
    if abs(value) > 2 * form.largest:  # the scaling below could overflow float64
        return math.copysign(INFINITY, value)
    exponent = math.frexp(value)[1] - 1
    shift = form.precision - 1 - max(exponent, form.min_exponent)
    rounded = math.ldexp(round(math.ldexp(value, shift)), -shift)
    return rounded + 0.0 if abs(rounded) <= form.largest else math.copysign(INFINITY, value)
