"""The first tier inside a compiled program: float64 with error bounds, for each kind of loss.

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
from unifiedloss.exact.graph.form import Block, Form, Found, numbers, read
from unifiedloss.exact.graph.ops import Array, GraphOps
from unifiedloss.exact.graph.rounding import between, to_bits, to_odd
from unifiedloss.exact.graph.sums import height, tree_sum

_EXP = 3 * U
_LOG1P = 10 * U
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


def _scale64(c: Block) -> Array:
    """The factor u s_i / D to a relative error of 4 u."""
    scale = c.upstream if c.weight is None else c.upstream * c.weight
    return scale if c.divisor is None else scale / c.divisor


def _scale_is_exact(form: Form, c: Block, scale: Array) -> Array:
    """Whether `_scale64` is exact because its factors are powers of two."""
    xp = form.xp
    exact = xp.constant(True, "bool")  # noqa: FBT003
    for x in (c.upstream, c.weight, c.divisor):
        if x is not None:
            exact = exact & ((xp.bits(x) & ((1 << 52) - 1)) == 0)
    if c.divisor_low is not None:
        exact = exact & (c.divisor_low == 0) & (c.divisor_radius == 0)
    return exact & (abs(scale) < 1e100)


def _in_order(x: Array) -> Array:
    """Whether a scale is so moderate that underflow and the clip of `exp64` do not matter."""
    return (abs(x) < 1e30) & ((abs(x) > 1e-100) | (x == 0))


def index64(form: Form, c: Block) -> Found:
    """The cross-entropy of class indices: log(1 + S / e^z_y), without a shift.

    S is the sum of the other exponentials.
    """
    xp, k = form.xp, form.width
    exp = xp.barrier(exp64(xp, xp.float64(c.x)))
    own = xp.reshape(xp.arange(k), (1, k)) == c.label
    at_label = exp64(xp, c.at_label)
    others = tree_sum(xp, xp.where(own, 0.0, exp), k)
    total = others + at_label
    decided = (total > 1e-130) & (total < 1e130) & (at_label > 1e-130)
    weight = 1.0 if c.own_weight is None else c.own_weight
    own_scale = weight if c.weight is None else weight * c.weight
    sum_error = (height(k) + 1) * U + _EXP
    loss = xp.log1p(others / at_label) * own_scale
    error = sum_error + _EXP + _LOG1P + 10 * U
    terms, differ = between(xp, loss * (1 - error), loss * (1 + error), form.term_dtype)
    undecided = differ | ~decided
    if not isinstance(own_scale, float):
        undecided = undecided | ~_in_order(own_scale)
    if not form.gradient:
        return Found(terms, None, undecided)
    scale = _scale64(c) * weight
    error = sum_error + _EXP + 14 * U
    ratio = scale / total
    label_slope = -others * ratio
    at, differ = between(xp, label_slope * (1 - error), label_slope * (1 + error), form.dtype)
    undecided = undecided | differ | ~_in_order(scale)
    # Exclude the label's element from the comparison. Otherwise the compiler would compute the
    # label's slope for every element.
    low, high = (xp.barrier(ratio * factor) for factor in (1 - error, 1 + error))
    slopes = to_bits(xp, exp * low, form.dtype)
    differ = (to_bits(xp, exp * high, form.dtype) != slopes) & ~own
    slopes = xp.where(own, xp.barrier(at), slopes)
    return Found(terms, slopes, undecided | xp.any(differ))


def _tau64(form: Form, c: Block) -> tuple[Array, float]:
    """The weighted, smoothed targets and their relative error."""
    xp, plan = form.xp, form.plan
    if plan.kind == "index":
        tau = xp.where(xp.reshape(xp.arange(form.width), (1, form.width)) == c.label, 1.0, 0.0)
    else:
        tau = numbers(form, c)
    error = 0.0
    if plan.label_smoothing:
        tau = (1.0 - plan.label_smoothing) * tau + plan.label_smoothing / plan.shared_by
        error += 4 * U
    if c.class_weights is not None:
        tau = tau * c.class_weights
        error += U
    return tau, error


def dense64(form: Form, c: Block) -> Found:
    """The cross-entropy of dense targets: sum_j tau_j (m - z_j) + T log(sum_j e^(z_j - m)).

    m is the largest logit.
    """
    xp, k = form.xp, form.width
    x = xp.float64(c.x)
    largest = xp.max(x)
    columns = xp.reshape(xp.arange(k), (1, k))
    top = columns == -xp.max(xp.where(x == largest, -columns, -k))
    shifted = x - largest
    exp = xp.barrier(exp64(xp, shifted))
    tau, tau_error = _tau64(form, c)
    tau = xp.barrier(tau)
    sum_error = (height(k) + 1) * U
    # Where z - m is inexact, |z| < 2^-28 |m|.
    shift_error = xp.minimum(abs(largest), 800.0) * U
    others = tree_sum(xp, xp.where(top, 0.0, exp), k)
    apart = tree_sum(xp, xp.where(tau != 0, tau * -shifted, 0.0), k)
    weight = tree_sum(xp, tau, k)
    loss = apart + weight * xp.log1p(others)
    loss = loss if c.weight is None else loss * c.weight
    error = 2 * sum_error + tau_error + _EXP + shift_error + _LOG1P + 10 * U
    terms, undecided = between(xp, loss * (1 - error), loss * (1 + error), form.term_dtype)
    undecided = undecided | ~(abs(largest) < 1e300) | ~(abs(loss) < 1e300)
    if c.weight is not None:
        undecided = undecided | ~_in_order(c.weight)
    if not form.gradient:
        return Found(terms, None, undecided)
    scale = _scale64(c)
    total = 1.0 + others
    error = 3 * sum_error + 2 * tau_error + _EXP + shift_error + 18 * U
    # At the largest logit p is next to 1, so use (T - tau) - T s / (1 + s).
    rest = tree_sum(xp, xp.where(top, 0.0, tau), k)
    positive = xp.where(top, rest * scale, exp * (weight * scale / total))
    negative = xp.where(top, weight * scale * (others / total), tau * scale)
    middle = positive - negative
    spread = error * (abs(positive) + abs(negative))
    slopes, differ = between(xp, middle - spread, middle + spread, form.dtype)
    return Found(terms, slopes, undecided | ~_in_order(scale) | xp.any(differ))


def _decided(form: Form, high: Array, low: Array, radius: Array, dtype: str) -> tuple[Array, Array]:
    """Round high + low, known to within the radius, where low is less than high.

    Returns:
        The bits, and where the two ends of the interval do not round to the same bits.
    """
    field, xp = form.field, form.xp
    first = to_bits(xp, to_odd(field, high, low - radius), dtype)
    last = to_bits(xp, to_odd(field, high, low + radius), dtype)
    return first, first != last


def _binary_targets64(form: Form, c: Block) -> tuple[Array, Array, float, Array]:
    """q t' and 1 - t' of binary targets, their relative error, and where they are exact."""
    xp, plan = form.xp, form.plan
    t = numbers(form, c)
    yes, no, error = t, 1.0 - t, U
    exact = (t == 0) | (t == 1)
    if plan.label_smoothing:
        keep, share = 1.0 - plan.label_smoothing, plan.label_smoothing / 2
        yes, no, error = keep * yes + share, keep * no + share, 5 * U
        exact = exact & False
    if c.pos_weight is not None:
        yes, error = yes * c.pos_weight, error + U
        exact = exact & (t == 0)
    return xp.barrier(yes), xp.barrier(no), error, exact


def binary64(form: Form, c: Block) -> Found:
    """The binary cross-entropy: v |z| + (q t' + 1 - t') log(1 + e^-|z|).

    v is 1 - t' for z >= 0 and q t' for z < 0.
    """
    xp, field = form.xp, form.field
    z = xp.float64(c.x)
    yes, no, target_error, exact = _binary_targets64(form, c)
    exp = xp.barrier(exp64(xp, -abs(z)))
    rest = field.opaque((yes + no) * xp.log1p(exp))
    apart = field.opaque(xp.where(z >= 0, no, yes) * abs(z))
    # `apart` is exact where the target is 0 or 1, and often a tie, which the tiny `rest` decides.
    spread = rest * (target_error + _EXP + _LOG1P + 8 * U)
    spread = spread + xp.where(exact, 0.0, apart * (target_error + 6 * U))
    if c.weight is not None:
        # A product of so small a `rest` may underflow to 0 and then breaks no tie.
        lost = (rest < 1e-290) & (apart != 0)
        rest, apart = field.opaque(rest * c.weight), field.opaque(apart * c.weight)
        spread = abs(spread * c.weight) + 2 * U * abs(apart)
    high, low = field.two_sum(apart, rest)
    radius = spread * (1 + 2.0**-40) + 4 * U * abs(low)
    terms, undecided = _decided(form, high, low, radius, form.term_dtype)
    undecided = undecided | ~(abs(z) < 1e300) | ~(abs(high) < 1e300)
    if c.weight is not None:
        undecided = undecided | lost | ~_in_order(c.weight)
    if not form.gradient:
        return Found(terms, None, xp.any(undecided))
    scale = _scale64(c)
    total = 1.0 + exp
    larger, smaller = 1.0 / total, exp / total
    positive = xp.where(z >= 0, larger, smaller) * no * scale
    negative = xp.where(z >= 0, smaller, larger) * yes * scale
    middle = positive - negative
    spread = (target_error + _EXP + 16 * U) * (abs(positive) + abs(negative))
    slopes, differ = between(xp, middle - spread, middle + spread, form.dtype)
    return Found(terms, slopes, xp.any(undecided | differ | ~_in_order(scale)))


def regression64(form: Form, c: Block) -> Found:
    """The squared error, decided where the difference is exact in float64."""
    xp, field = form.xp, form.field
    p = read(xp, c.x, form.dtype)
    t = read(xp, c.t, form.plan.targets_dtype)
    difference, lost = field.two_sum(p, -t)
    tiny = (difference != 0) & (abs(difference) < 1e-100)
    undecided = (lost != 0) | ~(abs(difference) < 1e150) | tiny
    high, low = field.two_prod(difference, difference)
    if c.weight is None:
        spread = abs(high) * 0.0
    else:
        high, low = field.mul(high, c.weight), abs(high) * 0.0
        spread = 4 * U * abs(high)
        undecided = undecided | ~_in_order(c.weight)
    terms, differ = _decided(form, high, low, spread, form.term_dtype)
    undecided = undecided | differ
    if not form.gradient:
        return Found(terms, None, xp.any(undecided))
    scale = _scale64(c)
    high, low = field.two_prod(2.0 * difference, scale)
    spread = xp.where(_scale_is_exact(form, c, scale), 0.0, 8 * U * abs(high))
    slopes, differ = _decided(form, high, low, spread, form.dtype)
    return Found(terms, slopes, xp.any(undecided | differ | ~_in_order(scale)))


def quotient64(form: Form, total: GraphBall, divisor: GraphBall | None) -> tuple[Array, Array]:
    """Divide a sum by a divisor and round.

    Returns:
        The bits of the quotient, and where they are undecided. The quotient is exact where all
        errors are 0.
    """
    xp, f = form.xp, form.field
    quotient, exact = total.high, (total.low == 0) & (total.radius == 0)
    error = (abs(total.low) + total.radius) / xp.maximum(abs(total.high), 2.0**-900) + 4 * U
    if divisor is not None:
        quotient = f.opaque(total.high / divisor.high)
        product, lost = f.two_prod(quotient, divisor.high)
        exact = exact & (divisor.low == 0) & (divisor.radius == 0)
        exact = exact & (product == total.high) & (lost == 0)
        error = error + (abs(divisor.low) + divisor.radius) / abs(divisor.high) + 4 * U
    error = xp.where(exact, 0.0, error * (1 + 2.0**-20))
    return between(xp, quotient * (1 - error), quotient * (1 + error), form.plan.result_dtype)
