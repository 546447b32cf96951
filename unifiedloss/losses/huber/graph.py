"""The Huber loss inside a compiled program: float64, and balls."""

from __future__ import annotations

from typing import Any

from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import round64
from unifiedloss.exact.graph.form import Block, Form, Found, read
from unifiedloss.exact.graph.formulas import Parts, error


def float64(form: Form, c: Block) -> Found:
    """The Huber loss, decided where the error is exact in float64."""
    xp, field = form.xp, form.field
    spec: Any = form.plan.spec
    delta = xp.constant(spec.delta, "float64")
    p = read(xp, c.x, form.dtype)
    t = read(xp, c.t, form.plan.targets_dtype)
    difference, lost = field.two_sum(p, -t)
    size = abs(difference)
    outside = size > delta
    undecided = (
        xp.differs(lost, 0) | ~(size < 1e150) | (xp.differs(difference, 0) & (size < 1e-100))
    )
    near, near_low = field.two_prod(0.5 * difference, difference)
    above, above_low = field.two_sum(size, -0.5 * delta + 0.0 * size)
    far, far_low = field.two_prod(above, delta + 0.0 * size)
    high = xp.where(outside, far, near)
    low = xp.where(outside, far_low + delta * above_low, near_low)
    # The rest of the product is rounded; it is at most 2^-52 of the product.
    spread = xp.where(outside, abs(high) * 2.0**-100, 0.0 * high)
    slope = xp.where(outside, xp.where(difference < 0, -delta, delta), difference)
    return round64(form, c, (high, low, spread), slope, undecided)


def balls(form: Form, c: Block) -> Parts:
    """The Huber loss."""
    xp, f = form.xp, form.field
    spec: Any = form.plan.spec
    delta = xp.constant(spec.delta, "float64")
    difference, signs = error(form, c)
    infinite = xp.differs(signs, 0)
    negative = (difference.high < 0) | (signs < 0)
    size = (-difference).where(negative, difference)
    # The error is exact, so this comparison is.
    outside = (size.high > delta) | (xp.equal(size.high, delta) & (size.low > 0))
    high, low = GraphBall(f, difference.high), GraphBall(f, difference.low)
    # Each loss is a large part and the rest, as is the slope.
    near = (high * high).scaled(0.5), (high + low.scaled(0.5)) * low
    steepness = GraphBall(f, delta)
    far = (
        GraphBall(f, size.high) * steepness,
        (GraphBall(f, size.low) - steepness.scaled(0.5)) * steepness,
    )
    steepest = GraphBall(f, xp.where(negative, -delta, delta))
    return Parts(
        tuple(x.where(outside, y) for x, y in zip(far, near, strict=True)),
        (steepest.where(outside | infinite, high), low.where(~(outside | infinite), 0.0)),
        infinite,
    )
