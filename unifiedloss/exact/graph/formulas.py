"""The formulas of the losses and their slopes in balls, inside a compiled program.

`unifiedloss.exact.formulas` has the same formulas for the host.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unifiedloss.exact import balls
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.form import Block, Form, numbers, read
from unifiedloss.exact.graph.ops import Array, Field


class Parts(NamedTuple):
    """Losses and slopes as summands that are still to be added.

    The first summand is exact and often a tie. The second is small and decides the tie. The weights
    multiply each summand separately, because a product with the sum would lose the second one.

    Attributes:
        losses: summands of the loss of each position.
        slopes: summands of each gradient element.
        infinite: where the loss is infinite, regardless of `losses`: the target contains a class
            whose logit is -inf.
    """

    losses: tuple[GraphBall, ...]
    slopes: tuple[GraphBall, ...]
    infinite: Array | None = None


def scaled_loss(form: Form, c: Block, parts: tuple[GraphBall, ...]) -> GraphBall:
    """The losses times their sample weights: the sum of the parts."""
    if c.weight is not None:
        weight = GraphBall(form.field, c.weight)
        parts = tuple(x * weight for x in parts)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def scaled_slope(form: Form, c: Block, parts: tuple[GraphBall, ...]) -> GraphBall:
    """The slopes times u s_i / D: the sum of the parts."""
    f = form.field
    assert c.upstream is not None
    scale = GraphBall(f, c.upstream)
    if c.weight is not None:
        scale = scale * GraphBall(f, c.weight)
    parts = tuple(x * scale for x in parts)
    if c.divisor is not None:
        divisor = GraphBall(f, c.divisor, c.divisor_low, c.divisor_radius)
        parts = tuple(x / divisor for x in parts)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _softmax(form: Form, c: Block) -> tuple[GraphBall, Array, GraphBall, GraphBall]:
    """e^(z - m), the position of the largest logit m, the sum of the others, and z - m."""
    xp, f, k = form.xp, form.field, form.width
    z = read(xp, c.x, form.dtype)
    largest = xp.max(z)
    columns = xp.reshape(xp.arange(k), (1, k))
    top = columns == -xp.max(xp.where(z == largest, -columns, -k))
    finite = z != -float("inf")
    gap = GraphBall(f, *f.two_sum(xp.where(finite, z, largest), -largest))
    exp = gap.exp(z.shape).where(finite, 0.0).kept(z.shape)
    others = exp.where(~top, 0.0).sum(z.shape)
    # If the largest logit is not finite, leave the row undecided.
    undecided = ~(abs(largest) < float("inf"))
    radius = xp.where(undecided, float("inf"), others.radius)
    others = GraphBall(f, others.high, others.low, radius)
    return exp, top, others, gap


def index_balls(form: Form, c: Block) -> Parts:
    """The cross-entropy of class indices."""
    xp, f = form.xp, form.field
    exp, top, others, gap = _softmax(form, c)
    own = xp.reshape(xp.arange(form.width), (1, form.width)) == c.label
    # Only one column is not 0, so the sum is exact in any order.
    apart = (-gap).where(own, 0.0).apply(xp.sum)
    # The loss is infinite where the label's logit is -inf. Balls cannot represent infinity.
    infinite = xp.any(own & (read(xp, c.x, form.dtype) == -float("inf")))
    total = GraphBall(f, 1.0) + others
    share = others.where(own & top, exp) / total
    one = GraphBall(f, xp.where(own & ~top, -1.0, 0.0))
    losses, slopes = (
        (apart, others.log1p(others.high.shape)),
        (one, (-share).where(own & top, share)),
    )
    if c.own_weight is None:
        return Parts(losses, slopes, infinite)
    weight = GraphBall(f, c.own_weight)
    return Parts(tuple(x * weight for x in losses), tuple(x * weight for x in slopes), infinite)


def _one_minus(f: Field, x: Any) -> GraphBall:
    return GraphBall(f, *f.two_sum(1.0 + 0.0 * x, -x))


def dense_balls(form: Form, c: Block) -> Parts:
    """The cross-entropy of targets for each class."""
    xp, f, plan = form.xp, form.field, form.plan
    exp, top, others, gap = _softmax(form, c)
    shape = exp.high.shape
    if plan.kind == "index":
        t = xp.where(xp.reshape(xp.arange(form.width), (1, form.width)) == c.label, 1.0, 0.0)
    else:
        t = numbers(form, c)
    tau = GraphBall(f, t)
    if plan.label_smoothing:
        keep, share = _constants(f, plan.label_smoothing, plan.shared_by)
        tau = keep * tau + share
    if c.class_weights is not None:
        tau = GraphBall(f, c.class_weights) * tau
    finite = read(xp, c.x, form.dtype) != -float("inf")
    weight = tau.sum(shape)
    apart = (tau * -gap).sum(shape)
    # The loss is infinite where the target contains a class whose logit is -inf.
    infinite = xp.any(~finite & (tau.high != 0))
    total = GraphBall(f, 1.0) + others
    exact = tau.where(~top, 0.0).sum(shape).where(top, -tau)
    rest = weight * ((-others).where(top, exp) / total)
    return Parts((apart, weight * others.log1p(others.high.shape)), (exact, rest), infinite)


def _constants(f: Field, smoothing: float, shared_by: int) -> tuple[GraphBall, GraphBall]:
    """1 - a and a / K for the label smoothing a, exact or to 2^-106."""
    keep = balls.Ball(*balls.two_sum(1.0, -np.float64(smoothing)))
    share = balls.Ball(np.float64(smoothing)) / balls.Ball(np.float64(shared_by))
    first, second = (GraphBall(f, *map(float, (x.high, x.low, x.radius))) for x in (keep, share))
    return first, second


def binary_balls(form: Form, c: Block) -> Parts:
    """The binary cross-entropy."""
    xp, f, plan = form.xp, form.field, form.plan
    z = read(xp, c.x, form.dtype)
    t = numbers(form, c)
    yes, no = GraphBall(f, t), _one_minus(f, t)
    if plan.label_smoothing:
        keep, share = _constants(f, plan.label_smoothing, 2)
        yes, no = keep * yes + share, keep * no + share
    if c.pos_weight is not None:
        yes = GraphBall(f, c.pos_weight) * yes
    exp = GraphBall(f, -abs(z)).exp(z.shape)
    apart = yes * GraphBall(f, xp.maximum(-z, 0.0)) + no * GraphBall(f, xp.maximum(z, 0.0))
    both = yes + no
    # The slope is near 1 - t' for z >= 0 and near -q t' for z < 0. `rest` is the difference.
    positive = z >= 0
    rest = both * (exp / (GraphBall(f, 1.0) + exp))
    return Parts(
        (apart, both * exp.log1p(z.shape)),
        (no.where(positive, -yes), (-rest).where(positive, rest)),
    )


def regression_balls(form: Form, c: Block) -> Parts:
    """The squared error."""
    xp, f = form.xp, form.field
    p, t = read(xp, c.x, form.dtype), read(xp, c.t, form.plan.targets_dtype)
    difference = GraphBall(f, *f.two_sum(p, -t))
    return Parts((difference * difference,), (difference.scaled(2.0),))
