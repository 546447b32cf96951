"""The binary cross-entropy inside a compiled program: float64, and balls."""

from __future__ import annotations

from unifiedloss.exact.balls import U
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import EXP, LOG1P, decided64, exp64, in_order, scale64
from unifiedloss.exact.graph.form import Block, Form, Found, numbers, read
from unifiedloss.exact.graph.formulas import Parts, one_minus, smoothing_constants
from unifiedloss.exact.graph.ops import Array
from unifiedloss.exact.graph.rounding import between


def float64(form: Form, c: Block) -> Found:
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
    spread = rest * (target_error + EXP + LOG1P + 8 * U)
    spread = spread + xp.where(exact, 0.0, apart * (target_error + 6 * U))
    if c.weight is not None:
        # A product of so small a `rest` may underflow to 0 and then breaks no tie.
        lost = (rest < 1e-290) & xp.differs(apart, 0)
        rest, apart = field.opaque(rest * c.weight), field.opaque(apart * c.weight)
        spread = abs(spread * c.weight) + 2 * U * abs(apart)
    high, low = field.two_sum(apart, rest)
    radius = spread * (1 + 2.0**-40) + 4 * U * abs(low)
    terms, undecided = decided64(form, high, low, radius, form.term_dtype)
    undecided = undecided | ~(abs(z) < 1e300) | ~(abs(high) < 1e300)
    if c.weight is not None:
        undecided = undecided | lost | ~in_order(xp, c.weight)
    if not form.gradient:
        return Found(terms, None, xp.any(undecided))
    scale = scale64(c)
    total = 1.0 + exp
    larger, smaller = 1.0 / total, exp / total
    positive = xp.where(z >= 0, larger, smaller) * no * scale
    negative = xp.where(z >= 0, smaller, larger) * yes * scale
    middle = positive - negative
    spread = (target_error + EXP + 16 * U) * (abs(positive) + abs(negative))
    slopes, differ = between(xp, middle - spread, middle + spread, form.dtype)
    return Found(terms, slopes, xp.any(undecided | differ | ~in_order(xp, scale)))


def _binary_targets64(form: Form, c: Block) -> tuple[Array, Array, float, Array]:
    """q t' and 1 - t' of binary targets, their relative error, and where they are exact."""
    xp, plan = form.xp, form.plan
    t = numbers(form, c)
    yes, no, error = t, 1.0 - t, U
    exact = xp.equal(t, 0) | xp.equal(t, 1)
    if plan.label_smoothing:
        keep, share = 1.0 - plan.label_smoothing, plan.label_smoothing / 2
        yes, no, error = keep * yes + share, keep * no + share, 5 * U
        exact = exact & False
    if c.pos_weight is not None:
        yes, error = yes * c.pos_weight, error + U
        exact = exact & xp.equal(t, 0)
    return xp.barrier(yes), xp.barrier(no), error, exact


def balls(form: Form, c: Block) -> Parts:
    """The binary cross-entropy."""
    xp, f, plan = form.xp, form.field, form.plan
    z = read(xp, c.x, form.dtype)
    t = numbers(form, c)
    yes, no = GraphBall(f, t), one_minus(f, t)
    apart = no - yes
    if plan.label_smoothing:
        keep, share = smoothing_constants(f, plan.label_smoothing, 2)
        yes, no, apart = keep * yes + share, keep * no + share, keep * apart
    if c.pos_weight is not None:
        yes = GraphBall(f, c.pos_weight) * yes
        apart = no - yes
    # Balls cannot represent infinity. There the loss is infinite or 0, and the slope rational.
    finite = xp.differs(abs(z), float("inf"))
    size = xp.where(finite, abs(z), 0.0)
    positive = z >= 0
    costly = no.where(positive, yes)
    exp = GraphBall(f, -size).exp(z.shape)
    both = yes + no
    # The slope is near 1 - t' for z >= 0 and near -q t' for z < 0. `rest` is the difference.
    rest = (both * (exp / (GraphBall(f, 1.0) + exp))).where(finite, 0.0)
    # Near 0 the slope is (1 - t' - q t') / 2 + (q t' + 1 - t') (z / 4 - z^3 / 48 + ...), because
    # the two terms above cancel where 1 - t' = q t'. The next term is z^5 / 480.
    small = abs(z) < 2.0**-26
    cube = z * z * z
    tilt = GraphBall(f, 0.25 * z, f.mul(cube, -1 / 48), abs(cube) * 2.0**-40)
    return Parts(
        (costly * GraphBall(f, size), (both * exp.log1p(z.shape)).where(finite, 0.0)),
        (
            apart.scaled(0.5).where(small, no.where(positive, -yes)),
            (both * tilt).where(small, (-rest).where(positive, rest)),
        ),
        ~finite & xp.differs(costly.high, 0),
    )
