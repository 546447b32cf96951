"""The second tier of exact mode: double-double balls, and the oracle where they do not decide."""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss import losses
from unifiedloss.exact import counts
from unifiedloss.exact.balls import Ball
from unifiedloss.exact.call import Array, Bools, Floats, HostCall
from unifiedloss.exact.rounding import decide, stored
from unifiedloss.exact.scale import Scale


def round_positions(
    call: HostCall,
    chosen: Any,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> None:
    """Compute some positions in balls, and by the oracle where balls leave them undecided."""
    counts.undecided["rows"] += len(chosen)
    form = call.plan.predictions_dtype
    loss, slope = losses.part(call.plan.spec.name, "exact").balls(call, chosen)
    if call.plan.average_last_axis:
        count = Ball(np.float64(call.rows.shape[1]))
        loss, slope = loss.sum() / count, slope / count
    if call.weight is not None:
        loss = loss * Ball(call.weight[chosen][:, None])
    if call.element_weight is not None:
        loss = loss * Ball(call.element_weight[chosen][:, None])
    if call.plan.scale != 1.0:
        loss = loss * Ball(np.float64(call.plan.scale))
    rounded, doubtful = decided(loss, (len(chosen), 1), dtype)
    results[chosen] = rounded[:, 0]
    for i in chosen[doubtful[:, 0]]:
        results[i] = call.oracle_loss(i, dtype)
    if slopes is None or scale is None:
        return
    rounded, doubtful = decided(scale.times(slope, chosen), (len(chosen), call.read.shape[1]), form)
    labels = call.labels[chosen] if call.of_labels else None
    for row, c in np.argwhere(doubtful):
        rounded[row, c] = call.oracle_slope(
            chosen[row], c if labels is None else labels[row], scale
        )
    if labels is None:
        slopes[chosen] = stored(rounded, form)
    else:
        slopes[chosen] = 0
        slopes[chosen, labels] = stored(rounded[:, 0], form)


def decided(ball: Ball, shape: tuple[int, ...], dtype: str) -> tuple[Floats, Bools]:
    """Round a ball broadcast to a shape; return the numbers and where they are undecided."""
    if "balls" in counts.skipped_tiers:
        return np.zeros(shape), np.ones(shape, bool)
    high, low, radius = (np.array(np.broadcast_to(x, shape), np.float64) for x in ball)
    return decide(high, low, radius, dtype)
