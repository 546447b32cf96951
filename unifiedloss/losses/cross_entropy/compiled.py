"""The compiled loop of the cross-entropy: logits with class indices, without smoothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss import compiled
from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.loops import contiguous
from unifiedloss.exact.scale import Scale
from unifiedloss.losses.cross_entropy.exact import round_elements

_FEW = 32
"""Undecided elements that are computed one by one. For more, full rows are quicker."""


def carry_out(
    call: HostCall,
    todo: Bools | None,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
) -> Bools | None:
    """See `unifiedloss.exact.loops.carry_out`."""
    plan = call.plan
    if not plan.from_logits or plan.kind != "index" or plan.label_smoothing:
        return None
    rows = call.rows if call.rows.strides[1] == 4 else np.ascontiguousarray(call.rows)
    if not compiled.takes(rows) or rows.strides[0] % 4:
        rows = np.array(rows, np.float32, order="C")
    left = np.zeros(len(rows), bool)
    elements = np.empty(_FEW, np.int64)
    weight: Any = None
    if plan.class_weights is not None or call.weight is not None:
        weight = contiguous(call.class_weight_of(slice(None), call.labels))
    factor: Any = 1.0
    if scale is not None:
        own = 1.0 if plan.class_weights is None else call.own_class_weight(call.labels)
        factor = scale.float64(slice(None)) * own
        factor = contiguous(factor) if factor.ndim else float(factor)
    labels = np.ascontiguousarray(call.targets)
    _, found = compiled.cross_entropy(
        rows, labels, todo, weight, factor, results, slopes, left, elements
    )
    if found > _FEW:
        elements = np.empty(found, np.int64)
        compiled.cross_entropy(rows, labels, todo, weight, factor, results, slopes, left, elements)
        left[elements // rows.shape[1]] = True
    elif found and slopes is not None and scale is not None:
        which, columns = np.divmod(elements[:found], rows.shape[1])
        for row in np.unique(which):
            round_elements(call, int(row), columns[which == row], slopes, scale)
    return left
