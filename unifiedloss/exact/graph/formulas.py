"""What the formulas of the losses share in balls, inside a compiled program.

The module `graph` of each loss has its formulas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unifiedloss.exact import balls
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.form import Block, Form
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


def one_minus(f: Field, x: Any) -> GraphBall:
    """1 - x, exactly."""
    return GraphBall(f, *f.two_sum(1.0 + 0.0 * x, -x))


def smoothing_constants(f: Field, smoothing: float, shared_by: int) -> tuple[GraphBall, GraphBall]:
    """1 - a and a / K for the label smoothing a, exact or to 2^-106."""
    keep = balls.Ball(*balls.two_sum(1.0, -np.float64(smoothing)))
    share = balls.Ball(np.float64(smoothing)) / balls.Ball(np.float64(shared_by))
    first, second = (GraphBall(f, *map(float, (x.high, x.low, x.radius))) for x in (keep, share))
    return first, second
