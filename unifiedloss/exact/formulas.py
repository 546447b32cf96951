"""What the losses of probabilities share in balls: complements, clips, and signs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, two_sum
from unifiedloss.plan import Plan

Floats = NDArray[np.float64]
ZERO, ONE = Ball(0.0), Ball(1.0)


def one_minus(x: Any) -> Ball:
    """1 - x, exactly."""
    return Ball(*two_sum(1.0, -x))


def sign_is_known(x: Ball) -> Any:
    """Where all numbers of the ball have the sign of its high part."""
    return (x.radius == 0) | (np.abs(x.high) * (1 - 2.0**-50) > x.radius)


def read_probabilities(plan: Plan, p: Floats, wanted: Any) -> tuple[Ball, Ball, Any]:
    """Read and clip probabilities.

    Returns:
        The clipped probabilities (1 where not wanted), 1 minus them, and where nothing was clipped.
    """
    read = np.where(wanted, np.where(np.abs(p) < plan.tiny, 0.0, np.minimum(p, 1.0)), 1.0)
    if plan.bounds is None:
        return Ball(read), one_minus(read), np.ones(p.shape, bool)
    low, gap = map(np.float64, plan.bounds)
    high = one_minus(gap)
    below, above = read < low, (read > high.high) | ((read == high.high) & (high.low < 0))
    clipped = Ball(low).where(below, high.where(above, Ball(read)))
    rest = one_minus(low).where(below, Ball(gap).where(above, one_minus(read)))
    return clipped, rest, ~(below | above)
