"""The Huber loss inside a compiled program: float64, and balls."""

from __future__ import annotations

from typing import Any

from unifiedloss.exact.balls import U
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import decided64, in_order, scale64, scale_is_exact
from unifiedloss.exact.graph.form import Block, Form, Found, read
from unifiedloss.exact.graph.formulas import Parts


def float64(form: Form, c: Block) -> Found:
    """The Huber loss, decided where the error is exact in float64."""
    xp, field, spec = form.xp, form.field, _spec(form)
    delta = xp.constant(spec.delta, "float64")
    p = read(xp, c.x, form.dtype)
    t = read(xp, c.t, form.plan.targets_dtype)
    error, lost = field.two_sum(p, -t)
    size = abs(error)
    outside = size > delta
    undecided = (lost != 0) | ~(size < 1e150) | ((error != 0) & (size < 1e-100))
    near, near_low = field.two_prod(0.5 * error, error)
    above, above_low = field.two_sum(size, -0.5 * delta + 0.0 * size)
    far, far_low = field.two_prod(above, delta + 0.0 * size)
    high = xp.where(outside, far, near)
    low = xp.where(outside, far_low + delta * above_low, near_low)
    # The rest of the product is rounded; it is at most 2^-52 of the product.
    spread = xp.where(outside, abs(high) * 2.0**-100, 0.0 * high)
    if c.weight is not None:
        high, low = field.mul(high, c.weight), abs(high) * 0.0
        spread = 4 * U * abs(high)
        undecided = undecided | ~in_order(c.weight)
    terms, differ = decided64(form, high, low, spread, form.term_dtype)
    undecided = undecided | differ
    if not form.gradient:
        return Found(terms, None, xp.any(undecided))
    scale = scale64(c)
    slope = xp.where(outside, xp.where(error < 0, -delta, delta), error)
    high, low = field.two_prod(slope, scale)
    spread = xp.where(scale_is_exact(form, c, scale), 0.0, 8 * U * abs(high))
    slopes, differ = decided64(form, high, low, spread, form.dtype)
    return Found(terms, slopes, xp.any(undecided | differ | ~in_order(scale)))


def balls(form: Form, c: Block) -> Parts:
    """The Huber loss."""
    xp, f, spec = form.xp, form.field, _spec(form)
    delta = xp.constant(spec.delta, "float64")
    p, t = read(xp, c.x, form.dtype), read(xp, c.t, form.plan.targets_dtype)
    error = GraphBall(f, *f.two_sum(p, -t))
    negative = error.high < 0
    size = (-error).where(negative, error)
    # The error is exact, so this comparison is.
    outside = (size.high > delta) | ((size.high == delta) & (size.low > 0))
    far = (size - GraphBall(f, 0.5 * delta)) * GraphBall(f, delta)
    loss = far.where(outside, (error * error).scaled(0.5))
    slope = GraphBall(f, xp.where(negative, -delta, delta)).where(outside, error)
    return Parts((loss,), (slope,))


def _spec(form: Form) -> Any:
    return form.plan.spec
