"""The Huber loss inside a compiled program: float64, and balls."""

from __future__ import annotations

from typing import Any

from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import round64
from unifiedloss.exact.graph.form import Block, Form, Found, read
from unifiedloss.exact.graph.formulas import Parts


def float64(form: Form, c: Block) -> Found:
    """The Huber loss, decided where the error is exact in float64."""
    xp, field = form.xp, form.field
    spec: Any = form.plan.spec
    delta = xp.constant(spec.delta, "float64")
    p = read(xp, c.x, form.dtype)
    t = read(xp, c.t, form.plan.targets_dtype)
    error, lost = field.two_sum(p, -t)
    size = abs(error)
    outside = size > delta
    undecided = xp.differs(lost, 0) | ~(size < 1e150) | (xp.differs(error, 0) & (size < 1e-100))
    near, near_low = field.two_prod(0.5 * error, error)
    above, above_low = field.two_sum(size, -0.5 * delta + 0.0 * size)
    far, far_low = field.two_prod(above, delta + 0.0 * size)
    high = xp.where(outside, far, near)
    low = xp.where(outside, far_low + delta * above_low, near_low)
    # The rest of the product is rounded; it is at most 2^-52 of the product.
    spread = xp.where(outside, abs(high) * 2.0**-100, 0.0 * high)
    slope = xp.where(outside, xp.where(error < 0, -delta, delta), error)
    return round64(form, c, (high, low, spread), slope, undecided)


def balls(form: Form, c: Block) -> Parts:
    """The Huber loss."""
    xp, f = form.xp, form.field
    spec: Any = form.plan.spec
    delta = xp.constant(spec.delta, "float64")
    p, t = read(xp, c.x, form.dtype), read(xp, c.t, form.plan.targets_dtype)
    error = GraphBall(f, *f.two_sum(p, -t))
    negative = error.high < 0
    size = (-error).where(negative, error)
    # The error is exact, so this comparison is.
    outside = (size.high > delta) | (xp.equal(size.high, delta) & (size.low > 0))
    far = (size - GraphBall(f, 0.5 * delta)) * GraphBall(f, delta)
    loss = far.where(outside, (error * error).scaled(0.5))
    slope = GraphBall(f, xp.where(negative, -delta, delta)).where(outside, error)
    return Parts((loss,), (slope,))
