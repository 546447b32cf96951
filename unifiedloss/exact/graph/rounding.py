"""Rounds float64 numbers and pairs once to the bits of a result, inside a compiled program.

Results are int32 that hold the bits of a float32, or of a half type in their lower half. The only
cast in use is that of normal numbers from float64 to float32, because the other casts round twice
or flush subnormal numbers.
"""

from __future__ import annotations

from unifiedloss.exact.graph.ops import Array, Field, GraphOps
from unifiedloss.floats import FORMATS, Format

_INTEGERS = 1.5 * 2.0**52
"""Adding this constant rounds to an integer, ties to even, and leaves it in the last bits.

The reason is that float64 numbers of this size have the spacing 1.
"""

_SIGN32 = -(2**31)


def to_bits(xp: GraphOps, x: Array, dtype: str) -> Array:
    """Round numbers to float32 or a half type and return their bits, int32.

    Every zero is +0, and NaN becomes an infinity or a NaN.
    """
    if dtype == "float32":
        return _to_float32(xp, x)
    form = FORMATS[dtype]
    p, least = form.precision, form.min_exponent
    size = abs(x)
    exponent = xp.maximum(xp.int32(xp.right(xp.bits(size), 52)) - 1023, least)
    exponent = xp.minimum(exponent, form.max_exponent + 1)
    scaled = size * power_of_two(xp, p - 1 - exponent)
    mantissa = xp.int32(xp.bits(scaled + _INTEGERS))
    # The leading bit of a normal number's mantissa adds 1 to the exponent field.
    bits = xp.left(exponent - least, p - 1) + mantissa
    infinity = _infinity(form)
    bits = xp.where(size < 2.0 ** (form.max_exponent + 1), xp.minimum(bits, infinity), infinity)
    sign = 1 << (_width(form) - 1)
    return xp.where((x < 0) & xp.differs(bits, 0), bits | sign, bits)


def _to_float32(xp: GraphOps, x: Array) -> Array:
    normal = xp.bits(xp.float32(x))
    # A subnormal result is an integer multiple of the smallest float32.
    steps = xp.int32(xp.bits(x * 2.0**149 + _INTEGERS))
    subnormal = xp.where(steps < 0, _SIGN32 - steps, steps)
    return xp.where(abs(x) < 2.0**-126, subnormal, normal)


def from_bits(xp: GraphOps, bits: Array, dtype: str) -> Array:
    """Convert the bits of a dtype to float64, subnormal numbers included."""
    form = FORMATS[dtype]
    p = form.precision
    if p == 53:
        return xp.of_bits(bits, "float64")
    field = xp.right(bits, p - 1) & ((1 << (_width(form) - p)) - 1)
    fraction = bits & ((1 << (p - 1)) - 1)
    mantissa = xp.where(xp.equal(field, 0), fraction, fraction | (1 << (p - 1)))
    exponent = xp.maximum(field, 1) - 1 + form.min_exponent - (p - 1)
    # The largest exponent field means infinity or NaN.
    not_finite = xp.equal(field, (1 << (_width(form) - p)) - 1)
    size = xp.float64(mantissa) * power_of_two(xp, exponent)
    value = xp.where(xp.differs(xp.right(bits, _width(form) - 1) & 1, 0), -size, size)
    infinity = xp.where(value < 0, -float("inf"), float("inf"))
    special = xp.where(xp.equal(fraction, 0), infinity, float("nan"))
    return xp.where(not_finite, special, value)


def power_of_two(xp: GraphOps, exponent: Array) -> Array:
    """The power 2^e, for e from -1022 to 1023."""
    return xp.of_bits(xp.left(xp.int64(exponent + 1023), 52), "float64")


def _width(form: Format) -> int:
    return 16 if form.precision < 24 else 32


def _infinity(form: Format) -> int:
    return (form.max_exponent - form.min_exponent + 2) << (form.precision - 1)


def between(xp: GraphOps, low: Array, high: Array, dtype: str) -> tuple[Array, Array]:
    """Round both ends of intervals. Return the bits of the low end and where the ends differ."""
    first, last = to_bits(xp, low, dtype), to_bits(xp, high, dtype)
    return first, xp.differs(first, last)


def to_odd(field: Field, high: Array, low: Array) -> Array:
    """Round high + low to odd, so that a second rounding to a narrower dtype is correct.

    If float64 cannot hold the sum, the result is the neighbour whose last bit is set.
    """
    xp = field.xp
    total, error = field.two_sum(high, low)
    bits = xp.bits(total)
    step = xp.where(xp.equal(error > 0, total > 0), 1, -1)
    inexact = xp.differs(error, 0) & xp.equal(bits & 1, 0)
    return xp.of_bits(xp.where(inexact, bits + xp.int64(step), bits), "float64")


def nan_bits(dtype: str) -> int:
    """The bits of a NaN."""
    form = FORMATS[dtype]
    width = 32 if form.precision == 24 else 16
    return ((1 << (width - form.precision)) - 1) << (form.precision - 1) | 1 << (form.precision - 2)
