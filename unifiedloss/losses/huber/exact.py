"""The exact tiers of the Huber loss: float64, and balls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, U, two_sum
from unifiedloss.exact.call import HostCall
from unifiedloss.exact.fast import Carry, between, round_slopes
from unifiedloss.exact.rounding import to_format
from unifiedloss.exact.scale import Scale

Bools = NDArray[np.bool_]


def float64(call: HostCall, rows: int) -> Carry | None:  # noqa: ARG001 - it needs no buffers
    """See `unifiedloss.losses.cross_entropy.exact.float64`."""
    return partial(_elements, call)


def _elements(
    call: HostCall, some: Any, losses: Any, slopes: Any, scale: Scale | None, dtype: str
) -> Bools:
    spec: Any = call.plan.spec
    delta: float = spec.delta
    p = call.rows[some][:, 0].astype(np.float64)
    error, lost = two_sum(p, -call.targets[some][:, 0].astype(np.float64))
    slope = np.minimum(np.maximum(error, -delta), delta)
    # Both formulas are slope * (error - slope / 2).
    loss = slope * (error - 0.5 * slope)
    if call.weight is not None:
        loss *= call.weight[some]
    rounded, undecided = between(loss * (1 - 6 * U), loss * (1 + 6 * U), dtype)
    if call.weight is None and np.frexp(delta)[0] == 0.5:
        # The product with a power of two is exact, and so often is the difference. Half of these
        # are ties, which no interval decides.
        left = np.flatnonzero(undecided)
        rest, below = two_sum(error[left], -0.5 * slope[left])
        exactly = (np.abs(slope[left]) == delta) & (below == 0)
        ties = left[exactly]
        rounded[ties] = to_format(slope[ties] * rest[exactly], dtype)
        undecided[ties] = False
    undecided |= lost != 0
    losses[some] = rounded
    if slopes is None or scale is None:
        return undecided
    return undecided | round_slopes(call, some, slope, scale, slopes)


def balls(call: HostCall, chosen: Any) -> tuple[Ball, Ball]:
    """The losses of some positions, and the derivatives by their predictions."""
    spec: Any = call.plan.spec
    delta = np.float64(spec.delta)
    predictions = call.read[chosen].astype(np.float64)
    error = Ball(*two_sum(predictions, -call.targets[chosen].astype(np.float64)))
    negative = error.high < 0
    size = (-error).where(negative, error)
    # The error is exact, so this comparison is.
    outside = (size.high > delta) | ((size.high == delta) & (size.low > 0))
    far = Ball(delta) * (size - Ball(0.5 * delta))
    loss = far.where(outside, (error * error).scaled(0.5))
    return loss, Ball(np.where(negative, -delta, delta)).where(outside, error)
