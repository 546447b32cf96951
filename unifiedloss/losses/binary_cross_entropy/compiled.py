"""The compiled loop of the binary cross-entropy: logits, without smoothing."""

from __future__ import annotations

import numpy as np

from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.loops import elementwise
from unifiedloss.exact.scale import Scale


def carry_out(
    call: HostCall,
    todo: Bools | None,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
) -> Bools | None:
    """See `unifiedloss.exact.loops.carry_out`."""
    plan = call.plan
    if not plan.from_logits or plan.label_smoothing or np.ndim(plan.pos_weight):
        return None
    weight = 1.0 if plan.pos_weight is None else float(plan.pos_weight)
    return elementwise(call, todo, results, slopes, scale, weight)
