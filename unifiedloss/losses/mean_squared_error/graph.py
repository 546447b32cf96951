"""The squared error inside a compiled program: float64, and balls."""

from __future__ import annotations

from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import round64
from unifiedloss.exact.graph.form import Block, Form, Found, read
from unifiedloss.exact.graph.formulas import Parts


def float64(form: Form, c: Block) -> Found:
    """The squared error, decided where the difference is exact in float64."""
    xp, field = form.xp, form.field
    p = read(xp, c.x, form.dtype)
    t = read(xp, c.t, form.plan.targets_dtype)
    difference, lost = field.two_sum(p, -t)
    tiny = xp.differs(difference, 0) & (abs(difference) < 1e-100)
    undecided = xp.differs(lost, 0) | ~(abs(difference) < 1e150) | tiny
    high, low = field.two_prod(difference, difference)
    loss = high, low, abs(high) * 0.0
    return round64(form, c, loss, 2.0 * difference, undecided)


def balls(form: Form, c: Block) -> Parts:
    """The squared error."""
    xp, f = form.xp, form.field
    p, t = read(xp, c.x, form.dtype), read(xp, c.t, form.plan.targets_dtype)
    difference = GraphBall(f, *f.two_sum(p, -t))
    return Parts((difference * difference,), (difference.scaled(2.0),))
