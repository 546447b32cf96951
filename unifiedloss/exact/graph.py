r"""Exact mode inside a compiled program: the tiers of `unifiedloss.exact.kernel` as array operations, for JAX and for XLA in TensorFlow.

A call is a matrix: a row is a position and its classes, or, of losses without classes, as many elements as make the matrix handy. All
rows go through float64 with bounds as in `unifiedloss.exact.fast`, in blocks, so that no float64 copy of the whole is ever made. Rows in
which something is left undecided are done again, few at a time: by the host, where the caller has a way to it, or in balls, and what these
leave undecided is NaN.

docs/exactness.md derives the bounds. They hold whatever the compiler contracts: no result depends on whether a product is rounded before it
is added, but where `Field` is used. Of sums, the order is fixed down to `_FOLDED` numbers, and any order of these is allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from unifiedloss.exact import balls
from unifiedloss.exact.balls import U
from unifiedloss.exact.graph_balls import Ball
from unifiedloss.exact.graph_ops import Array, Field, Ops, hidden_zero
from unifiedloss.exact.graph_rounding import between, from_bits, power_of_two, to_bits, to_odd
from unifiedloss.floats import FORMATS
from unifiedloss.spec import Plan

BLOCK = 1 << 15
"""Elements of a block in float64: what a processor's second cache holds beside the block's results."""

AGAIN = 1 << 15
"""Elements that are done again in balls at a time."""

_FOLDED = 16
"""Numbers that are left to be summed in any order, once slices have been added to slices."""

_EXP = 3 * U
_LOG1P = 10 * U
"""Of the framework's own log1p, which only a number per position goes through."""

skipped_tiers: set[str] = set()
"""For tests: "float64" and "balls" leave everything undecided. Read when a program is traced."""


class Found(NamedTuple):
    """What is known of the rows.

    Attributes:
        terms: bits of the rounded losses, int32 (n, 1), or (n, k) without classes.
        slopes: the gradient, (n, k), or None.
        left: which rows hold something undecided, (n, 1); what is undecided is not in `terms` and `slopes`.
    """

    terms: Array
    slopes: Array | None
    left: Array


class Block(NamedTuple):
    """Rows of a call. All but `x`, `t`, class weights (1, k) and a weight per element are (n, 1); what is not given is None."""

    x: Array
    kept: Array
    bad: Array
    label: Array | None = None
    at_label: Array | None = None
    t: Array | None = None
    own_weight: Array | None = None
    weight: Array | None = None
    pos_weight: Array | None = None
    class_weights: Array | None = None
    upstream: Array | None = None
    divisor: Array | None = None
    divisor_low: Array | None = None
    divisor_radius: Array | None = None
    empty: Array | None = None


@dataclass(frozen=True)
class Form:
    """What is fixed when the program is made."""

    plan: Plan
    field: Field
    width: int
    term_dtype: str
    gradient: bool

    @property
    def xp(self) -> Ops:
        """The array operations."""
        return self.field.xp

    @property
    def elementwise(self) -> bool:
        """Whether each element of a row is a position."""
        return self.plan.axis is None

    @property
    def dtype(self) -> str:
        """The predictions' dtype, and the gradient's."""
        return self.plan.predictions_dtype

    @property
    def mean(self) -> bool:
        """Whether there is a divisor."""
        return self.plan.spec.reduction == "mean"


# ------------------------------------------------------------------------------------------------------------- what there is a form of


def why_not(plan: Plan) -> str | None:
    """What of a plan has no form inside a compiled program, in words, or None."""
    if plan.unchecked or plan.shape is None or any(extent is None for extent in plan.shape):
        return "shapes that are unknown when it is traced"
    if plan.predictions_dtype == "float64":
        return "float64 predictions"
    if plan.log_probabilities:
        return "log-probabilities"
    if plan.kind != "regression" and not plan.from_logits:
        return "probabilities"
    along = isinstance(plan.pos_weight, tuple) and plan.pos_weight_axis != -1
    for rule, used in (
        ("scale", plan.scale != 1.0),
        ("element_weights", plan.element_weights is not None),
        ("average_last_axis", plan.averaged),
        ("class_weighting", plan.by_position),
        ("axis of pos_weight", along),
    ):
        if used:
            return f"the rule {rule}"
    if plan.targets_dtype == "uint64" or (plan.kind == "regression" and plan.targets_dtype == "int64"):
        return f"{plan.targets_dtype} targets"
    weighs = plan.spec.reduction == "mean" and plan.divisor in ("weights", "nonzero")
    if plan.kind == "dense" and plan.class_weights is not None and weighs:
        return "a mean over the class weights of dense targets"
    return None


def fits(sample_weight_dtype: str | None) -> bool:
    """Whether float64 holds all sample weights of a dtype."""
    return sample_weight_dtype not in ("int64", "uint64")


# ------------------------------------------------------------------------------------------------------------------------ float64


def exp64(xp: Ops, x: Array) -> Array:
    """e^x to 3 u for x from -708 to 709, as at these ends beyond them; NaN stays NaN."""
    x = xp.minimum(xp.maximum(x, -708.0), 709.0)
    k = xp.rint(x * 1.4426950408889634)
    r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    # 1 + (r + r^2 q): what q is off by hardly matters, so it may be summed in the shortest way.
    square = r * r
    terms, power = [1.0 / math.factorial(n) for n in range(2, 14)], r
    while len(terms) > 1:
        terms = [a if b is None else a + b * power for a, b in zip_longest(terms[::2], terms[1::2])]
        power = power * power
    total = 1.0 + (r + square * terms[0])
    # k stands in the last bits of k + 1.5 2^52; the shift drops all others.
    return total * xp.of_bits(xp.left(xp.bits(k + 1.5 * 2.0**52) + 1023, 52), "float64")


def height(k: int) -> int:
    """How many additions a term passes through in `tree_sum`, at most."""
    found = 0
    while k > _FOLDED and k >= 32:
        found += 5
        k = k // 32 + k % 32
    return found + max(k - 1, 0)


def tree_sum(xp: Ops, x: Array, k: int) -> Array:
    """The sum along the last axis, of length k, which stays with length 1: 32 slices added in pairs, and again until few are left."""
    while k > _FOLDED and k >= 32:
        size = k // 32
        parts = [x[..., i * size : (i + 1) * size] for i in range(32)]
        rest = x[..., 32 * size :]
        while len(parts) > 1:
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        x = xp.concatenate([parts[0], rest]) if k % 32 else parts[0]
        k = size + k % 32
    return xp.sum(x)


def exact_sum(field: Field, x: Array, n: int) -> Ball:
    """The sum along the last axis, of length n, as a ball (..., 1): of radius 0 where two parts of it hold all digits.

    Each part is a multiple of a unit so large that sums of it are exact in any order.
    """
    xp = field.xp
    largest = xp.max(abs(x))
    inside = (largest < 2.0**900) & (largest > 2.0**-700)
    exponent = xp.where(inside, xp.right(xp.bits(largest), 52) - 1023, 0)
    bits = math.ceil(math.log2(max(n, 2))) + 2
    sums = []
    for _ in range(2):
        exponent = exponent + bits
        offset = 1.5 * power_of_two(xp, exponent)
        part = field.add(field.add(x, offset), -offset)
        sums.append(xp.sum(part))
        x = field.add(x, -part)
        exponent = exponent - 53
    unit = power_of_two(xp, exponent)
    radius = xp.where(xp.any(x != 0), n * unit, 0.0)
    return Ball(field, *field.two_sum(*sums), xp.where(inside | (largest == 0), radius, float("inf")))


def _scale64(c: Block) -> Array:
    """u s_i / D to 4 u."""
    scale = c.upstream if c.weight is None else c.upstream * c.weight
    return scale if c.divisor is None else scale / c.divisor


def _scale_is_exact(form: Form, c: Block, scale: Array) -> Array:
    """Whether `_scale64` has no error: its factors are powers of two."""
    xp = form.xp
    exact = xp.constant(True, "bool")  # noqa: FBT003
    for x in (c.upstream, c.weight, c.divisor):
        if x is not None:
            exact = exact & ((xp.bits(x) & ((1 << 52) - 1)) == 0)
    if c.divisor_low is not None:
        exact = exact & (c.divisor_low == 0) & (c.divisor_radius == 0)
    return exact & (abs(scale) < 1e100)


def _in_order(x: Array) -> Array:
    """Whether a scale is such that what exp64 does below -708 does not matter, nor does underflow."""
    return (abs(x) < 1e30) & ((abs(x) > 1e-100) | (x == 0))


def _index64(form: Form, c: Block) -> Found:
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
    # The label's number is no part of the test's loop, which would compute it for every element.
    low, high = (xp.barrier(ratio * side) for side in (1 - error, 1 + error))
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
        tau = _numbers(form, c)
    error = 0.0
    if plan.smoothing:
        tau = (1.0 - plan.smoothing) * tau + plan.smoothing / plan.shared_by
        error += 4 * U
    if c.class_weights is not None:
        tau = tau * c.class_weights
        error += U
    return tau, error


def _numbers(form: Form, c: Block) -> Array:
    """Targets of a cross-entropy that are numbers; what is too small counts as 0."""
    t = _read(form.xp, c.t, form.plan.targets_dtype)
    return form.xp.where(t < form.plan.tiny_target, 0.0, t)


def _dense64(form: Form, c: Block) -> Found:
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
    # At the largest logit p is next to 1: (T - tau) - T s / (1 + s).
    rest = tree_sum(xp, xp.where(top, 0.0, tau), k)
    positive = xp.where(top, rest * scale, exp * (weight * scale / total))
    negative = xp.where(top, weight * scale * (others / total), tau * scale)
    middle = positive - negative
    spread = error * (abs(positive) + abs(negative))
    slopes, differ = between(xp, middle - spread, middle + spread, form.dtype)
    return Found(terms, slopes, undecided | ~_in_order(scale) | xp.any(differ))


def _decided(form: Form, high: Array, low: Array, radius: Array, dtype: str) -> tuple[Array, Array]:
    """The bits of high + low, to within the radius, and where that does not tell them. low is less than high."""
    field, xp = form.field, form.xp
    first = to_bits(xp, to_odd(field, high, low - radius), dtype)
    last = to_bits(xp, to_odd(field, high, low + radius), dtype)
    return first, first != last


def _sides(form: Form, c: Block) -> tuple[Array, Array, float, Array]:
    """q t' and 1 - t' of binary targets, their relative error, and where they have none."""
    xp, plan = form.xp, form.plan
    t = _numbers(form, c)
    yes, no, error = t, 1.0 - t, U
    exact = (t == 0) | (t == 1)
    if plan.smoothing:
        keep, share = 1.0 - plan.smoothing, plan.smoothing / 2
        yes, no, error = keep * yes + share, keep * no + share, 5 * U
        exact = exact & False
    if c.pos_weight is not None:
        yes, error = yes * c.pos_weight, error + U
        exact = exact & (t == 0)
    return xp.barrier(yes), xp.barrier(no), error, exact


def _binary64(form: Form, c: Block) -> Found:
    xp, field = form.xp, form.field
    z = xp.float64(c.x)
    yes, no, target_error, exact = _sides(form, c)
    exp = xp.barrier(exp64(xp, -abs(z)))
    rest = field.opaque((yes + no) * xp.log1p(exp))
    apart = field.opaque(xp.where(z >= 0, no, yes) * abs(z))
    # `apart` is exact where the target is 0 or 1, and often a tie that the tiny rest decides.
    spread = rest * (target_error + _EXP + _LOG1P + 8 * U)
    spread = spread + xp.where(exact, 0.0, apart * (target_error + 6 * U))
    if c.weight is not None:
        lost = (rest < 1e-290) & (apart != 0)  # then the product may be 0, and no tie be broken
        rest, apart = field.opaque(rest * c.weight), field.opaque(apart * c.weight)
        spread = abs(spread * c.weight) + 2 * U * abs(apart)
    high, low = field.two_sum(apart, rest)
    terms, undecided = _decided(form, high, low, spread * (1 + 2.0**-40) + 4 * U * abs(low), form.term_dtype)
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


def _regression64(form: Form, c: Block) -> Found:
    xp, field = form.xp, form.field
    p = _read(xp, c.x, form.dtype)
    t = _read(xp, c.t, form.plan.targets_dtype)
    difference, lost = field.two_sum(p, -t)
    undecided = (lost != 0) | ~(abs(difference) < 1e150) | ((difference != 0) & (abs(difference) < 1e-100))
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


def _quotient64(form: Form, total: Ball, divisor: Ball | None) -> tuple[Array, Array]:
    """The bits of a sum over a divisor, and where they are undecided. It is known exactly where all that was lost is 0."""
    xp, f = form.xp, form.field
    quotient, exact = total.high, (total.low == 0) & (total.radius == 0)
    error = (abs(total.low) + total.radius) / xp.maximum(abs(total.high), 2.0**-900) + 4 * U
    if divisor is not None:
        quotient = f.opaque(total.high / divisor.high)
        product, lost = f.two_prod(quotient, divisor.high)
        exact = exact & (divisor.low == 0) & (divisor.radius == 0) & (product == total.high) & (lost == 0)
        error = error + (abs(divisor.low) + divisor.radius) / abs(divisor.high) + 4 * U
    error = xp.where(exact, 0.0, error * (1 + 2.0**-20))
    return between(xp, quotient * (1 - error), quotient * (1 + error), form.plan.result_dtype)


# -------------------------------------------------------------------------------------------------------------------------- balls


class Parts(NamedTuple):
    """Numbers to be added: first what is exact, and often a tie, then what decides it. A product with both at once would lose the latter.

    Attributes:
        losses: of each position.
        slopes: of each element of the gradient.
        endless: where the loss is infinite, whatever `losses` says: the target wants a class that the logits rule out.
    """

    losses: tuple[Ball, ...]
    slopes: tuple[Ball, ...]
    endless: Array | None = None


def _scaled_loss(form: Form, c: Block, parts: tuple[Ball, ...]) -> Ball:
    if c.weight is not None:
        weight = Ball(form.field, c.weight)
        parts = tuple(x * weight for x in parts)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _scaled_slope(form: Form, c: Block, parts: tuple[Ball, ...]) -> Ball:
    f = form.field
    assert c.upstream is not None
    scale = Ball(f, c.upstream)
    if c.weight is not None:
        scale = scale * Ball(f, c.weight)
    parts = tuple(x * scale for x in parts)
    if c.divisor is not None:
        divisor = Ball(f, c.divisor, c.divisor_low, c.divisor_radius)
        parts = tuple(x / divisor for x in parts)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _read(xp: Ops, x: Array, dtype: str) -> Array:
    """Numbers in float64, subnormal ones as they are."""
    return from_bits(xp, xp.int32(xp.bits(x)), dtype) if dtype in FORMATS and dtype != "float64" else xp.float64(x)


def _softmax(form: Form, c: Block) -> tuple[Ball, Array, Ball, Ball]:
    """e^(z - m), where m is, the sum of the others, and z - m."""
    xp, f, k = form.xp, form.field, form.width
    z = _read(xp, c.x, form.dtype)
    largest = xp.max(z)
    columns = xp.reshape(xp.arange(k), (1, k))
    top = columns == -xp.max(xp.where(z == largest, -columns, -k))
    finite = z != -float("inf")
    gap = Ball(f, *f.two_sum(xp.where(finite, z, largest), -largest))
    exp = gap.exp(z.shape).where(finite, 0.0).kept(z.shape)
    others = exp.where(~top, 0.0).sum(z.shape)
    # No class at all, or one that is infinitely likely: nothing is known.
    odd = ~(abs(largest) < float("inf"))
    others = Ball(f, others.high, others.low, xp.where(odd, float("inf"), others.radius))
    return exp, top, others, gap


def _index_balls(form: Form, c: Block) -> Parts:
    xp, f = form.xp, form.field
    exp, top, others, gap = _softmax(form, c)
    own = xp.reshape(xp.arange(form.width), (1, form.width)) == c.label
    # The numbers of one column, with zeros elsewhere: any sum of them is exact.
    apart = (-gap).where(own, 0.0).apply(xp.sum)
    # A label that the logits rule out: the loss is infinite, which balls are not.
    endless = xp.any(own & (_read(xp, c.x, form.dtype) == -float("inf")))
    total = Ball(f, 1.0) + others
    share = others.where(own & top, exp) / total
    one = Ball(f, xp.where(own & ~top, -1.0, 0.0))
    losses, slopes = (apart, others.log1p(others.high.shape)), (one, (-share).where(own & top, share))
    if c.own_weight is None:
        return Parts(losses, slopes, endless)
    weight = Ball(f, c.own_weight)
    return Parts(tuple(x * weight for x in losses), tuple(x * weight for x in slopes), endless)


def _one_minus(f: Field, x: Any) -> Ball:
    return Ball(f, *f.two_sum(1.0 + 0.0 * x, -x))


def _dense_balls(form: Form, c: Block) -> Parts:
    xp, f, plan = form.xp, form.field, form.plan
    exp, top, others, gap = _softmax(form, c)
    shape = exp.high.shape
    if plan.kind == "index":
        t = xp.where(xp.reshape(xp.arange(form.width), (1, form.width)) == c.label, 1.0, 0.0)
    else:
        t = _numbers(form, c)
    tau = Ball(f, t)
    if plan.smoothing:
        keep, share = _constants(f, plan.smoothing, plan.shared_by)
        tau = keep * tau + share
    if c.class_weights is not None:
        tau = Ball(f, c.class_weights) * tau
    finite = _read(xp, c.x, form.dtype) != -float("inf")
    weight = tau.sum(shape)
    apart = (tau * -gap).sum(shape)
    # A class that the logits rule out and the target wants.
    endless = xp.any(~finite & (tau.high != 0))
    total = Ball(f, 1.0) + others
    exact = tau.where(~top, 0.0).sum(shape).where(top, -tau)
    rest = weight * ((-others).where(top, exp) / total)
    return Parts((apart, weight * others.log1p(others.high.shape)), (exact, rest), endless)


def _constants(f: Field, smoothing: float, shared_by: int) -> tuple[Ball, Ball]:
    """1 - a and a / K, exact or to 2^-106."""
    keep = balls.Ball(*balls.two_sum(1.0, -np.float64(smoothing)))
    share = balls.Ball(np.float64(smoothing)) / balls.Ball(np.float64(shared_by))
    first, second = (Ball(f, *map(float, (x.high, x.low, x.radius))) for x in (keep, share))
    return first, second


def _binary_balls(form: Form, c: Block) -> Parts:
    xp, f, plan = form.xp, form.field, form.plan
    z = _read(xp, c.x, form.dtype)
    t = _numbers(form, c)
    yes, no = Ball(f, t), _one_minus(f, t)
    if plan.smoothing:
        keep, share = _constants(f, plan.smoothing, 2)
        yes, no = keep * yes + share, keep * no + share
    if c.pos_weight is not None:
        yes = Ball(f, c.pos_weight) * yes
    exp = Ball(f, -abs(z)).exp(z.shape)
    apart = yes * Ball(f, xp.maximum(-z, 0.0)) + no * Ball(f, xp.maximum(z, 0.0))
    both = yes + no
    # What is nearly 1 - t' or -q t' differs from it by as much.
    positive = z >= 0
    rest = both * (exp / (Ball(f, 1.0) + exp))
    return Parts((apart, both * exp.log1p(z.shape)), (no.where(positive, -yes), (-rest).where(positive, rest)))


def _regression_balls(form: Form, c: Block) -> Parts:
    xp, f = form.xp, form.field
    p, t = _read(xp, c.x, form.dtype), _read(xp, c.t, form.plan.targets_dtype)
    difference = Ball(f, *f.two_sum(p, -t))
    return Parts((difference * difference,), (difference.scaled(2.0),))


# -------------------------------------------------------------------------------------------------------------------- the two tiers


class Kind(NamedTuple):
    """The two forms of a kind of loss."""

    float64: Callable[[Form, Block], Found]
    balls: Callable[[Form, Block], Parts]


def kind_of(plan: Plan) -> Kind:
    """The forms of a plan."""
    if plan.kind == "index" and not plan.smoothing:
        return Kind(_index64, _index_balls)
    if plan.kind in ("index", "dense"):
        return Kind(_dense64, _dense_balls)
    return Kind(_binary64, _binary_balls) if plan.kind == "binary" else Kind(_regression64, _regression_balls)


def _settled(form: Form, c: Block, found: Found) -> Found:
    """Zeros where nothing is kept or there is nothing to divide by; bad positions are left."""
    xp = form.xp
    left = found.left | (c.bad if not form.elementwise else xp.any(c.bad))
    terms = xp.where(c.kept, found.terms, 0)
    if not form.elementwise:
        left = left & c.kept
    slopes = found.slopes
    if slopes is not None:
        wanted = c.kept if c.empty is None else c.kept & ~c.empty
        slopes = xp.where(wanted, slopes, 0)
    return Found(terms, slopes, left)


def float64_tier(form: Form, c: Block) -> Found:
    """Rows in float64."""
    found = _settled(form, c, kind_of(form.plan).float64(form, c))
    slopes = None if found.slopes is None else form.xp.of_bits(found.slopes, form.dtype)
    left = found.left
    if "float64" in skipped_tiers:
        left = left | (c.kept if not form.elementwise else form.xp.any(c.kept))
    return Found(found.terms, slopes, left)


def balls_tier(form: Form, c: Block) -> Found:
    """Rows in balls. What is undecided becomes NaN, and its row stays left."""
    xp = form.xp
    losses, slopes_of, endless = kind_of(form.plan).balls(form, c)
    wide = c.x.shape[0], form.width if form.elementwise else 1
    terms, undecided = _scaled_loss(form, c, losses).kept(wide).rounded(form.term_dtype)
    shape = c.x.shape
    if endless is not None:
        weight = 1.0 if c.weight is None else c.weight
        weight = weight if c.own_weight is None else weight * c.own_weight
        # Other numbers of the row may still be NaN, and 0 times infinity is for nobody to say here.
        told = (losses[1].radius < float("inf")) & (xp.constant(weight, "float64") > 0)
        terms = xp.where(endless, to_bits(xp, xp.constant(float("inf"), "float64"), form.term_dtype), terms)
        undecided = xp.where(endless, ~told, undecided)
    if "balls" in skipped_tiers:
        undecided = undecided | True
    undecided = undecided | c.bad
    terms = xp.where(undecided, _nan(form.term_dtype), terms)
    undecided = undecided & c.kept
    left = xp.any(undecided) if form.elementwise else undecided
    slopes = None
    if form.gradient:
        slopes, doubtful = _scaled_slope(form, c, slopes_of).kept(shape).rounded(form.dtype)
        if "balls" in skipped_tiers:
            doubtful = doubtful | True
        doubtful = xp.broadcast(doubtful | c.bad, shape)
        slopes = xp.where(doubtful, _nan(form.dtype), slopes)
        left = left | xp.any(doubtful & (c.kept if c.empty is None else c.kept & ~c.empty))
    found = _settled(form, c, Found(terms, slopes, left))
    slopes = None if found.slopes is None else xp.of_bits(found.slopes, form.dtype)
    return Found(xp.broadcast(found.terms, (shape[0], terms.shape[1])), slopes, left)


def _nan(dtype: str) -> int:
    form = FORMATS[dtype]
    width = 32 if form.precision == 24 else 16
    return ((1 << (width - form.precision)) - 1) << (form.precision - 1) | 1 << (form.precision - 2)


def in_blocks(form: Form, c: Block) -> Found:
    """All rows through float64, a block at a time."""
    xp = form.xp
    n, k = c.x.shape
    count = min(n, max(1, BLOCK // k))
    if count == n:
        return float64_tier(form, c)
    wide = k if form.elementwise else 1
    start = [xp.broadcast(xp.constant(0, "int32"), (n, wide)), xp.broadcast(xp.constant(False, "bool"), (n, 1))]  # noqa: FBT003
    if form.gradient:
        start.append(xp.empty((n, k), form.dtype))

    def step(i: Array, terms: Array, left: Array, *slopes: Array) -> tuple[Array, ...]:
        first = xp.minimum(i * count, n - count)  # the last block may do some rows again
        found = float64_tier(form, Block(*(x if x is None or x.shape[0] == 1 else xp.rows(x, first, count) for x in c)))
        written = xp.with_rows(terms, found.terms, first), xp.with_rows(left, found.left, first)
        return (i + 1, *written, *(xp.with_rows(x, found.slopes, first) for x in slopes))

    blocks = -(-n // count)
    _, terms, left, *slopes = xp.loop(lambda i, *_: i < blocks, step, (xp.constant(0, "int32"), *start))
    return Found(terms, slopes[0] if slopes else None, left)


def windows(form: Form, found: Found, count: int, again: Callable[[Array, Array], Found]) -> Found:
    """Do the rows that are left again, in windows of as many rows that begin at the first of them, and keep what was not left.

    Args:
        form: of the call.
        found: all rows.
        count: the rows of a window.
        again: finds the rows of a window, of its first row and of which of its rows are left.
    """
    xp = form.xp
    n = found.left.shape[0]
    wide = found.terms.shape[1], form.width

    def step(todo: Array, left: Array, *results: Array) -> tuple[Array, ...]:
        start = xp.minimum(_first(xp, todo, n), n - count)
        which = xp.rows(todo, start, count)
        part = again(start, which)
        todo = xp.with_rows(todo, which & False, start)
        left = xp.with_rows(left, (which & part.left) | xp.rows(left, start, count), start)
        written = []
        for x, new, k in zip(results, (part.terms, part.slopes), wide, strict=False):
            kept = xp.where(xp.broadcast(which, (count, k)), new, xp.rows(x, start, count))
            written.append(xp.with_rows(x, kept, start))
        return todo, left, *written

    state = (found.left, found.left & False, found.terms, *(() if found.slopes is None else (found.slopes,)))
    done = xp.loop(lambda todo, *_: xp.any(xp.reshape(todo, (n,))), step, state)
    return Found(done[2], done[3] if len(done) > 3 else None, done[1])


def _first(xp: Ops, flags: Array, n: int) -> Array:
    """The first row whose flag is set, an int32 without axes; n or less if none is."""
    return xp.reshape(-xp.max(xp.where(xp.reshape(flags, (n,)), -xp.arange(n), -n)), ())


def mended(form: Form, c: Block, found: Found) -> Found:
    """The undecided rows once more in balls, few at a time; what is undecided even then is NaN."""
    xp = form.xp
    n, k = c.x.shape
    count = min(n, max(1, AGAIN // k))

    def again(start: Array, _: Array) -> Found:
        part = Block(*(x if x is None or x.shape[0] == 1 else xp.rows(x, start, count) for x in c))
        return balls_tier(form, part)

    return windows(form, found, count, again)


# ---------------------------------------------------------------------------------------------------------------- a whole call


class Given(NamedTuple):
    """The arrays of a call, each with an axis of examples in front, of which each is reduced by itself; what is not given is None.

    The weights of a spec are among them, the same for every example: to JAX they are no constants, as it would map over these.
    """

    predictions: Array
    targets: Array
    sample_weight: Array | None
    mask: Array | None
    upstream: Array | None
    class_weights: Array | None
    pos_weight: Array | None


class Call:
    """A call inside a program: its arrays as rows, and its rows as results.

    Args:
        xp: the framework's operations.
        plan: what is to be computed of each example; `why_not` has nothing to say to it.
        given: the arrays.
        gradient: whether the gradient is wanted.
    """

    def __init__(self, xp: Ops, plan: Plan, given: Given, *, gradient: bool) -> None:
        self.xp, self.plan, self.given = xp, plan, given
        self.examples: int = given.predictions.shape[0]
        assert plan.shape is not None
        assert plan.positions is not None
        self.count = math.prod(plan.positions)  # type: ignore[arg-type]
        width = _width(self.count) if plan.axis is None else plan.shape[plan.axis]
        assert width is not None
        field = Field(xp, hidden_zero(xp, given.predictions, given.targets))
        term_dtype = plan.result_dtype if plan.spec.reduction == "none" else "float32"
        self.form = Form(plan, field, width, term_dtype, gradient)
        self.rows = self.examples * math.prod(plan.shape) // width  # type: ignore[arg-type]
        self.divisor: Ball | None = None
        self.block = self._block()

    def _positions(self, x: Array) -> Array:
        """What covers the leading axes of the positions, as (examples, positions)."""
        xp, plan = self.xp, self.plan
        shape = (self.examples, *plan.positions)  # type: ignore[misc]
        x = xp.reshape(x, (*x.shape, *[1] * (len(shape) - len(x.shape))))
        return xp.reshape(xp.broadcast(x, (self.examples, *shape[1:])), (self.examples, self.count))

    def _per_row(self, x: Array) -> Array:
        """(examples, positions), (examples, 1) or (1, 1) as rows."""
        xp = self.xp
        if tuple(x.shape) == (1, 1):
            return x
        if x.shape[1] == self.count and self.form.elementwise:
            return xp.reshape(x, (self.rows, self.form.width))
        each = self.rows // self.examples
        return xp.reshape(xp.broadcast(x, (self.examples, each)), (self.rows, 1))

    def _matrix(self, x: Array) -> Array:
        """(examples, *shape) as rows, the classes along them."""
        axis = self.plan.axis
        if axis is not None and axis != len(self.plan.shape) - 1:  # type: ignore[arg-type]
            x = self.xp.moved(x, axis + 1, len(x.shape) - 1)
        return self.xp.reshape(x, (self.rows, self.form.width))

    def _block(self) -> Block:
        xp, plan, given, form = self.xp, self.plan, self.given, self.form
        x = self._matrix(given.predictions)
        label = t = at_label = own_weight = weight = pos_weight = None
        yes = xp.broadcast(xp.constant(True, "bool"), (self.examples, self.count))  # noqa: FBT003
        present = yes if given.mask is None else self._positions(given.mask)
        bad = ~yes
        if plan.kind == "index":
            labels = xp.int64(self._positions(given.targets))
            for ignored in plan.ignored_labels:
                present = present & (labels != ignored)
            bad = (labels < 0) | (labels >= form.width)
            safe = xp.int32(xp.where(bad, 0, labels))
            label = xp.reshape(safe, (self.rows, 1))
            at_label = xp.float64(xp.along(x, label))
            if given.class_weights is not None:
                own_weight = xp.take(given.class_weights[0], safe)
        else:
            t = self._matrix(given.targets)
            bad = self._bad_targets(t, bad)
        kept = present
        if given.sample_weight is not None:
            weight = self._positions(xp.float64(given.sample_weight))
            size = abs(weight)
            # Told in the compute dtype, to which what is half a step below its smallest number is rounded.
            least = plan.tiny_weight * (1 - 2.0**-24 if plan.compute_dtype == "float32" else 1)
            kept = present & ~(size < least)
            bad = bad | ~(size < float("inf"))
            if form.mean and plan.divisor == "weights":
                bad = bad | (weight < 0)
            weight = xp.where(kept, weight, 0.0)
        bad = bad & kept
        divisor = self._divisor(present, kept, bad, own_weight, weight) if form.mean else None
        parts: dict[str, Array] = {}
        if divisor is not None:
            empty = divisor.high == 0
            self.divisor, self.empty = divisor, empty
            high, low, radius = divisor.high, divisor.low, divisor.radius
            parts = {
                "empty": self._per_row(empty),
                "divisor": self._per_row(xp.where(empty, 1.0, high)),
                "divisor_low": self._per_row(low),
                "divisor_radius": self._per_row(radius),
            }
        if given.pos_weight is not None:
            wide = xp.broadcast(given.pos_weight[0], (self.examples, *plan.positions))  # type: ignore[misc]
            pos_weight = self._per_row(xp.reshape(wide, (self.examples, self.count)))
        return Block(
            x=x,
            kept=self._per_row(kept),
            bad=self._per_row(bad),
            label=label,
            at_label=at_label,
            t=t,
            own_weight=None if own_weight is None else self._per_row(own_weight),
            weight=None if weight is None else self._per_row(weight),
            pos_weight=pos_weight,
            class_weights=None if given.class_weights is None else given.class_weights[:1],
            upstream=self._upstream() if form.gradient else None,
            **parts,
        )

    def _upstream(self) -> Array:
        u = self.given.upstream
        if u is None:
            return self.xp.constant([[1.0]], "float64")
        u = _read(self.xp, u, u.dtype.name)
        if self.plan.spec.reduction == "none":
            return self._per_row(self._positions(u))
        return self._per_row(self.xp.reshape(u, (self.examples, 1)))

    def _bad_targets(self, t: Array, bad: Array) -> Array:
        xp, plan = self.xp, self.plan
        t = xp.float64(t)
        if plan.kind == "regression":
            # Numbers that are not finite, and such as can only be told from 0 where subnormal numbers can.
            tiny = (xp.left(xp.bits(t), 1) != 0) & (abs(t) < 1e-290)
            found = (
                tiny
                | ~(abs(t) < float("inf"))
                | ~(abs(xp.float64(self._matrix(self.given.predictions))) < float("inf"))
            )
        else:
            found = (t <= -plan.tiny_target) | ~(abs(t) < float("inf"))
        if plan.kind == "dense":
            found = xp.any(found)
        elif plan.kind == "binary":
            found = found | (t > 1)
        return bad | xp.reshape(found, (self.examples, self.count))

    def _divisor(self, present: Array, kept: Array, bad: Array, own_weight: Array | None, weight: Array | None) -> Ball:
        xp, plan, f = self.xp, self.plan, self.form.field
        rule = plan.divisor
        if rule == "all":
            return Ball(
                f,
                xp.constant([[float(self.count)]], "float64"),
                xp.constant([[0.0]], "float64"),
                xp.constant([[0.0]], "float64"),
            )
        if rule == "present" or (weight is None and own_weight is None):
            return self._counted(present)
        if rule == "nonzero":
            return self._counted(kept if own_weight is None else kept & (bad | (own_weight != 0)))
        one = xp.constant(1.0, "float64")
        first = xp.where(kept & ~bad, one if own_weight is None else own_weight, 0.0)
        if weight is None:
            found = exact_sum(f, first, self.count)
        elif own_weight is None:
            found = exact_sum(f, xp.where(bad, 0.0, weight), self.count)
        else:
            product, error = f.two_prod(first, xp.where(bad, 0.0, weight))
            # Where an error may be too small to be told, none of this holds.
            lost = xp.any((product != 0) & (abs(product) < 2.0**-800))
            found = exact_sum(f, xp.concatenate([product, error]), 2 * self.count)
            found = found.where(~lost, float("nan"))
        known = found.radius <= abs(found.high) * 2.0**-60
        return found.where(~xp.any(bad) & known, float("nan"))

    def _counted(self, which: Array) -> Ball:
        xp = self.xp
        count = xp.sum(xp.float64(xp.where(which, 1.0, 0.0)))
        return Ball(self.form.field, count, 0.0 * count, 0.0 * count)

    def found(self) -> Found:
        """The rows in float64."""
        return in_blocks(self.form, self.block)

    def mended(self, found: Found) -> Found:
        """What float64 left undecided, in balls."""
        return mended(self.form, self.block, found)

    def loss(self, terms: Array, *, careful: bool) -> tuple[Array, Array | None]:
        """The loss of rounded terms, (examples, ...), and of which examples it is undecided; of single positions none is.

        Careful is with balls, and otherwise float64 has to do, which tells ties as well.
        """
        xp, plan, form = self.xp, self.plan, self.form
        if plan.spec.reduction == "none":
            bits = xp.reshape(terms, (self.examples, *plan.positions))  # type: ignore[misc]
            return xp.of_bits(bits, plan.result_dtype), None
        values = from_bits(xp, xp.reshape(terms, (self.examples, self.count)), form.term_dtype)
        rough = xp.sum(values)
        finite = abs(rough) < float("inf")
        total = exact_sum(form.field, xp.where(finite, values, 0.0), self.count)
        divisor = None if self.divisor is None else self.divisor.where(~self.empty, 1.0)
        if careful:
            bits, undecided = (
                (total if divisor is None else total / divisor).kept((self.examples, 1)).rounded(plan.result_dtype)
            )
        else:
            bits, undecided = _quotient64(form, total, divisor)
        # Infinities and NaN among the terms: what float64 makes of them. The sign of a NaN is nobody's.
        special = xp.where(xp.isnan(rough), _nan(plan.result_dtype), to_bits(xp, rough, plan.result_dtype))
        bits = xp.where(finite, bits, special)
        undecided = undecided & finite
        if self.divisor is not None:
            undecided = undecided | ~(self.divisor.high >= 0)
            bits = xp.where(self.empty, 0 if plan.spec.on_empty == "zero" else _nan(plan.result_dtype), bits)
            undecided = undecided & ~self.empty
        return xp.of_bits(xp.reshape(bits, (self.examples,)), plan.result_dtype), xp.reshape(
            undecided, (self.examples,)
        )

    def gradient(self, slopes: Array) -> Array:
        """The gradient, (examples, *shape)."""
        xp, plan = self.xp, self.plan
        assert plan.shape is not None
        if plan.axis is None or plan.axis == len(plan.shape) - 1:
            return xp.reshape(slopes, (self.examples, *plan.shape))  # type: ignore[arg-type]
        assert plan.positions is not None
        moved = xp.reshape(slopes, (self.examples, *plan.positions, self.form.width))  # type: ignore[arg-type]
        return xp.moved(moved, len(plan.shape), plan.axis + 1)


def _width(count: int) -> int:
    """How many elements make a row: as many as divide the call evenly, about a thousand at most."""
    return next(
        (w for w in range(min(count, 1024), 31, -1) if count % w == 0), min(count, 1024) if count <= 1024 else 1
    )
