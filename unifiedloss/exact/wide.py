"""The first tier of float64 predictions: the compiled loops in pairs of float64.

Without them, and where they leave a position undecided, balls compute the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss import compiled, losses
from unifiedloss.compiled import threads as own_threads
from unifiedloss.compiled import wide
from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.loops import constants
from unifiedloss.exact.scale import Scale
from unifiedloss.losses import has_part
from unifiedloss.plan import Plan


def takes(plan: Plan) -> bool:
    """Whether a loop computes the losses of a plan."""
    name = plan.spec.name
    if plan.predictions_dtype != "float64" or not has_part(name, "compiled"):
        return False
    known = plan.kind == "real" or (plan.kind in ("index", "binary") and plan.from_logits)
    one_weight = plan.pos_weight is None or isinstance(plan.pos_weight, float)
    return known and one_weight and not plan.label_smoothing and compiled.is_available()


def carry_out(
    call: HostCall,
    todo: Bools,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
) -> Bools | None:
    """Compute and round the positions that a compiled loop decides.

    The arguments are those of `fast.carry_out`.

    Returns:
        The positions that are left undecided, or None if no loop computes this call.
    """
    plan = call.plan
    if not takes(plan) or not call.rows.size:
        return None
    labels = plan.kind == "index"
    left = np.zeros(len(call.rows), bool)
    factors: dict[str, Any] = {}
    if scale is not None:
        ball = scale.divisor
        high = float(ball.high)
        factors["upstream"] = (
            np.ascontiguousarray(scale.upstream) if scale.upstream.ndim else float(scale.upstream)
        )
        factors["divisor"] = (high, float(ball.low), float(ball.radius) / abs(high))
    if plan.class_weights is not None:
        factors["own"] = np.ascontiguousarray(call.own_class_weight(call.labels))
    if call.weight is not None:
        factors["weight"] = np.ascontiguousarray(call.weight, np.float64)
    wide.run(
        plan.spec.name,
        _readable(call.rows),
        np.require(call.targets, None if labels else np.float64, ("C", "A")),
        constants(),
        losses=results,
        left=left,
        slopes=slopes,
        todo=None if todo.all() else todo,
        parameter=losses.part(plan.spec.name, "compiled").parameter(plan),
        threads=call.threads or own_threads.number(),
        **factors,
    )
    return left


def _readable(rows: Array) -> Array:
    """The rows as an array that the loops read: aligned, the classes side by side."""
    ordered = rows.strides[-1] == 8 and rows.strides[0] % 8 == 0 and rows.flags.aligned
    if ordered and (rows.shape[1] > 1 or rows.strides[0] == 8):
        return rows
    return np.array(rows, np.float64, order="C")
