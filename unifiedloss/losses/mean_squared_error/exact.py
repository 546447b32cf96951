"""The exact tiers of the squared error: float64, and balls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, U, two_sum
from unifiedloss.exact.call import HostCall
from unifiedloss.exact.fast import Carry, between, round_slopes
from unifiedloss.exact.scale import Scale

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def float64(call: HostCall, rows: int) -> Carry | None:  # noqa: ARG001 - it needs no buffers
    """See `unifiedloss.losses.cross_entropy.exact.float64`."""
    return partial(_squares, call)


def _squares(
    call: HostCall, some: Any, losses: Any, slopes: Any, scale: Scale | None, dtype: str
) -> Bools:
    p = call.rows[some][:, 0].astype(np.float64)
    difference, lost = two_sum(p, -call.targets[some][:, 0].astype(np.float64))
    sample = 1.0 if call.weight is None else call.weight[some]
    loss = difference * difference * sample
    error = 6 * U
    rounded, undecided = between(loss * (1 - error), loss * (1 + error), dtype)
    undecided |= lost != 0
    losses[some] = rounded
    if slopes is None or scale is None:
        return undecided
    return undecided | round_slopes(call, some, 2.0 * difference, scale, slopes)


def balls(call: HostCall, chosen: Any) -> tuple[Ball, Ball]:
    r"""\(\ell = (p - t)^2\) of some positions, and its slope \(2 (p - t)\)."""
    predictions = call.read[chosen].astype(np.float64)
    difference = Ball(*two_sum(predictions, -call.targets[chosen].astype(np.float64)))
    return difference * difference, difference.scaled(2.0)
