"""The squared error inside a compiled program: float64, and balls."""

from __future__ import annotations

from unifiedloss.exact.balls import U
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import decided64, in_order, scale64, scale_is_exact
from unifiedloss.exact.graph.form import Block, Form, Found, read
from unifiedloss.exact.graph.formulas import Parts


def float64(form: Form, c: Block) -> Found:
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
        undecided = undecided | ~in_order(c.weight)
    terms, differ = decided64(form, high, low, spread, form.term_dtype)
    undecided = undecided | differ
    if not form.gradient:
        return Found(terms, None, xp.any(undecided))
    scale = scale64(c)
    high, low = field.two_prod(2.0 * difference, scale)
    spread = xp.where(scale_is_exact(form, c, scale), 0.0, 8 * U * abs(high))
    slopes, differ = decided64(form, high, low, spread, form.dtype)
    return Found(terms, slopes, xp.any(undecided | differ | ~in_order(scale)))


def balls(form: Form, c: Block) -> Parts:
    """The squared error."""
    xp, f = form.xp, form.field
    p, t = read(xp, c.x, form.dtype), read(xp, c.t, form.plan.targets_dtype)
    difference = GraphBall(f, *f.two_sum(p, -t))
    return Parts((difference * difference,), (difference.scaled(2.0),))
