"""What the formulas of the losses share in balls, inside a compiled program.

The module `graph` of each loss has its formulas.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unifiedloss.exact import balls
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.form import Block, Form, read
from unifiedloss.exact.graph.ops import Array, Field, GraphOps
from unifiedloss.exact.graph.rounding import power_of_two


class Parts(NamedTuple):
    """Losses and slopes as summands that are still to be added.

    The first summand is exact and often a tie. The second is small and decides the tie. The weights
    multiply each summand separately, because a product with the sum would lose the second one.

    Attributes:
        losses: summands of the loss of each position.
        slopes: summands of each gradient element.
        infinite: where the loss is infinite, regardless of `losses`, which then are finite.
        steep: the signs of infinite slopes, float64, and 0 where `slopes` holds the slope.
    """

    losses: tuple[GraphBall, ...]
    slopes: tuple[GraphBall, ...]
    infinite: Array | None = None
    steep: Array | None = None


def error(form: Form, c: Block) -> tuple[GraphBall, Array]:
    """The error p - t, exactly, and the signs of infinite errors, where the ball is 0."""
    xp, f = form.xp, form.field
    p, t = read(xp, c.x, form.dtype), read(xp, c.t, form.plan.targets_dtype)
    rough = f.add(p, -t)
    infinite = xp.equal(abs(rough), float("inf"))
    signs = xp.where(infinite, xp.where(rough < 0, -1.0, 1.0), 0.0)
    p, t = xp.where(infinite, 0.0, p), xp.where(infinite, 0.0, t)
    return GraphBall(f, *f.two_sum(p, -t)), signs


def scaled_loss(form: Form, c: Block, parts: tuple[GraphBall, ...]) -> GraphBall:
    """The losses times their sample weights: the sum of the parts."""
    if c.weight is None:
        return _sum(parts)
    weight, power = _normalized(form.xp, c.weight)
    return _sum(tuple(x * GraphBall(form.field, weight) for x in parts)).shifted(power)


def scaled_slope(form: Form, c: Block, parts: tuple[GraphBall, ...]) -> GraphBall:
    """The slopes times u s_i / D: the sum of the parts."""
    f = form.field
    assert c.upstream is not None
    factor, power = _normalized(form.xp, c.upstream)
    scale = GraphBall(f, factor)
    if c.weight is not None:
        factor, more = _normalized(form.xp, c.weight)
        scale, power = scale * GraphBall(f, factor), power + more
    parts = tuple(x * scale for x in parts)
    if c.divisor is not None:
        divisor = GraphBall(f, c.divisor, c.divisor_low, c.divisor_radius)
        least = _exponent(form.xp, c.divisor)
        parts = tuple(x / divisor.shifted(-least) for x in parts)
        power = power - least
    return _sum(parts).shifted(power)


def _sum(parts: tuple[GraphBall, ...]) -> GraphBall:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _exponent(xp: GraphOps, x: Array) -> Array:
    """The exponent e of numbers from 2^e to 2^(e + 1) in size, int64; 0 for the number 0."""
    field = xp.right(xp.bits(abs(x)), 52)
    return xp.where(xp.equal(field, 0), field, field - 1023)


def _normalized(xp: GraphOps, x: Array) -> tuple[Array, Array]:
    """Numbers from 1 to 2 in size and exponents, whose product x is. 0 stays 0.

    Otherwise a product with very large or small float64 weights would leave float64's range.
    """
    power = _exponent(xp, x)
    half = xp.right(power, 1)
    return x * power_of_two(xp, -half) * power_of_two(xp, half - power), power


def one_minus(f: Field, x: Any) -> GraphBall:
    """1 - x, exactly."""
    return GraphBall(f, *f.two_sum(1.0 + 0.0 * x, -x))


def smoothing_constants(f: Field, smoothing: float, shared_by: int) -> tuple[GraphBall, GraphBall]:
    """1 - a and a / K for the label smoothing a, exact or to 2^-106."""
    keep = balls.Ball(*balls.two_sum(1.0, -np.float64(smoothing)))
    share = balls.Ball(np.float64(smoothing)) / balls.Ball(np.float64(shared_by))
    first, second = (GraphBall(f, *map(float, (x.high, x.low, x.radius))) for x in (keep, share))
    return first, second
