"""The compiled loops of the cross-entropy of logits and of probabilities."""

from __future__ import annotations

import numpy as np

from unifiedloss import compiled
from unifiedloss.compiled import Array, Soft, Total, Work
from unifiedloss.plan import Plan

DTYPES = compiled.FORMS
"""The dtypes of predictions that the loop takes."""

_SMALLEST_SHARE = 2.0**-200
"""The loop takes an infinite distance of logits for one of 2^1000, times a share of smoothing."""


_BOUNDS = (2.0**-100, 0.25)
"""The loop takes a clip whose lower bound is in this range, and the gap above its upper bound."""


def takes(plan: Plan) -> bool:
    """Whether the loop computes the losses of a plan."""
    k = plan.classes
    if plan.label_smoothing and (k is None or plan.label_smoothing / k <= _SMALLEST_SHARE):
        return False
    if plan.log_probabilities:
        return plan.kind == "index"
    low, gap = (_BOUNDS[0], 0.0) if plan.bounds is None else plan.bounds
    return plan.from_logits or (_BOUNDS[0] <= low <= _BOUNDS[1] and gap <= _BOUNDS[1])


def is_soft(plan: Plan) -> bool:
    """Whether the targets of a plan are not single classes of logits."""
    return plan.kind != "index" or bool(plan.label_smoothing) or not plan.from_logits


def soft(plan: Plan, targets: Array) -> Soft | None:
    """The targets of a plan where they are not single classes of logits; without the clip."""
    if not is_soft(plan):
        return None
    is_index = plan.kind == "index"
    by_position = plan.class_weighting == "position" and plan.class_weights is not None
    weights = None
    # Of a label alone both kinds of class weights are the same.
    several = plan.from_logits or plan.reads_all
    if plan.class_weights is not None and not (is_index and by_position and several):
        weights = np.array(plan.class_weights, np.float64)
    return Soft(
        None if is_index else np.require(targets, requirements=("C", "A")),
        plan.tiny_target,
        plan.label_smoothing,
        weights,
        by_position and not is_index,
    )


def parameter(plan: Plan) -> float:  # noqa: ARG001 - the same for all losses
    """The number that the loops take; they ignore it."""
    return 1.0


def read(targets: Array) -> Array | None:
    """The targets as the loop reads them, or None if it does not."""
    if targets.dtype.kind in "iu" or targets.dtype == np.float16:
        return targets if targets.dtype.isnative else None
    return compiled.as_float32(targets)


def room(n: int) -> Array | None:
    """An array for n losses; None where the loop needs none to add them."""
    return np.empty(n, np.float32)


def run(plan: Plan, work: Work) -> tuple[Total, int]:  # noqa: ARG001 - the same for all losses
    """Run the loop."""
    return compiled.cross_entropy(work)
