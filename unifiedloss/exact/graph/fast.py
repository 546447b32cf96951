"""The first tier inside a compiled program: float64 with error bounds.

The module `graph` of each loss computes its positions with these functions.

The bounds follow `unifiedloss.exact.fast`, and docs/exactness.md derives them. They hold for every
contraction of the compiler: outside of `Field` no bound depends on whether a product is rounded
before it is added. The order of sums is fixed except for the last few numbers, and the bounds allow
any order of those.
"""

from __future__ import annotations

import math
from itertools import zip_longest

from unifiedloss.exact.balls import U
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.form import Block, Form, Found
from unifiedloss.exact.graph.ops import Array, GraphOps
from unifiedloss.exact.graph.rounding import between, to_bits, to_odd

EXP = 3 * U
LOG1P = 10 * U
"""Bound of the framework's own log1p, which runs once per position only."""


def exp64(xp: GraphOps, x: Array) -> Array:
    """e^x to 3 u for x from -708 to 709; other x are clipped to that range, and NaN stays NaN."""
    x = xp.minimum(xp.maximum(x, -708.0), 709.0)
    k = xp.rint(x * 1.4426950408889634)
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    # 1 + (r + r^2 q): the error of q hardly matters, so sum its terms in the fastest order.
    square = r * r
    terms, power = [1.0 / math.factorial(n) for n in range(2, 14)], r
    while len(terms) > 1:
        terms = [a if b is None else a + b * power for a, b in zip_longest(terms[::2], terms[1::2])]
        power = power * power
    total = 1.0 + (r + square * terms[0])
    # The last bits of k + 1.5 2^52 are k. The shift drops all other bits.
    return total * xp.of_bits(xp.left(xp.bits(k + 1.5 * 2.0**52) + 1023, 52), "float64")


def scale64(c: Block) -> Array:
    """The factor u s_i / D to a relative error of 4 u."""
    scale = c.upstream if c.weight is None else c.upstream * c.weight
    return scale if c.divisor is None else scale / c.divisor


def scale_is_exact(form: Form, c: Block, scale: Array) -> Array:
    """Whether `scale64` is exact because its factors are powers of two."""
    xp = form.xp
    exact = xp.constant(True, "bool")  # noqa: FBT003
    for x in (c.upstream, c.weight, c.divisor):
        if x is not None:
            exact = exact & xp.equal(xp.bits(x) & ((1 << 52) - 1), 0)
    if c.divisor_low is not None:
        exact = exact & xp.equal(c.divisor_low, 0) & xp.equal(c.divisor_radius, 0)
    return exact & (abs(scale) < 1e100)


def in_order(xp: GraphOps, x: Array) -> Array:
    """Whether a scale is so moderate that underflow and the clip of `exp64` do not matter."""
    return (abs(x) < 1e30) & ((abs(x) > 1e-100) | xp.equal(x, 0))


def decided64(
    form: Form, high: Array, low: Array, radius: Array, dtype: str
) -> tuple[Array, Array]:
    """Round high + low, known to within the radius, where low is less than high.

    Returns:
        The bits, and where the two ends of the interval do not round to the same bits.
    """
    field, xp = form.field, form.xp
    first = to_bits(xp, to_odd(field, high, low - radius), dtype)
    last = to_bits(xp, to_odd(field, high, low + radius), dtype)
    return first, xp.differs(first, last)


def quotient64(form: Form, total: GraphBall, divisor: GraphBall | None) -> tuple[Array, Array]:
    """Divide a sum by a divisor and round.

    Returns:
        The bits of the quotient, and where they are undecided. The quotient is exact where all
        errors are 0.
    """
    xp, f = form.xp, form.field
    quotient, exact = total.high, xp.equal(total.low, 0) & xp.equal(total.radius, 0)
    error = (abs(total.low) + total.radius) / xp.maximum(abs(total.high), 2.0**-900) + 4 * U
    if divisor is not None:
        quotient = f.opaque(total.high / divisor.high)
        product, lost = f.two_prod(quotient, divisor.high)
        exact = exact & xp.equal(divisor.low, 0) & xp.equal(divisor.radius, 0)
        exact = exact & xp.equal(product, total.high) & xp.equal(lost, 0)
        error = error + (abs(divisor.low) + divisor.radius) / abs(divisor.high) + 4 * U
    error = xp.where(exact, 0.0, error * (1 + 2.0**-20))
    return between(xp, quotient * (1 - error), quotient * (1 + error), form.plan.result_dtype)


def round64(
    form: Form, c: Block, loss: tuple[Array, Array, Array], slope: Array, undecided: Array
) -> Found:
    """Multiply losses and exact slopes of elements by their weights and scales, and round them.

    Args:
        form: the settings of the call.
        c: the rows.
        loss: the high and the low part of the losses, and their absolute error.
        slope: the derivatives by the predictions.
        undecided: the elements that float64 cannot decide.
    """
    xp, field = form.xp, form.field
    high, low, spread = loss
    if c.weight is not None:
        high, low = field.mul(high, c.weight), abs(high) * 0.0
        spread = 4 * U * abs(high)
        undecided = undecided | ~in_order(xp, c.weight)
    terms, differ = decided64(form, high, low, spread, form.term_dtype)
    undecided = undecided | differ
    if not form.gradient:
        return Found(terms, None, xp.any(undecided))
    scale = scale64(c)
    high, low = field.two_prod(slope, scale)
    spread = xp.where(scale_is_exact(form, c, scale), 0.0, 8 * U * abs(high))
    slopes, differ = decided64(form, high, low, spread, form.dtype)
    return Found(terms, slopes, xp.any(undecided | differ | ~in_order(xp, scale)))
