"""The squared error inside a compiled program: float64, and balls."""

from __future__ import annotations

from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import round64
from unifiedloss.exact.graph.form import Block, Form, Found, read
from unifiedloss.exact.graph.formulas import Parts, error


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
    f = form.field
    difference, signs = error(form, c)
    high, low = GraphBall(f, difference.high), GraphBall(f, difference.low)
    return Parts(
        (high * high, (high.scaled(2.0) + low) * low),
        (high.scaled(2.0), low.scaled(2.0)),
        form.xp.differs(signs, 0),
        signs,
    )
