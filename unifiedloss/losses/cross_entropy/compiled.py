"""The compiled loop of the cross-entropy: logits with class indices, without smoothing."""

from __future__ import annotations

import numpy as np

from unifiedloss import compiled
from unifiedloss.compiled import Array, Total, Work
from unifiedloss.plan import Plan

DTYPES = compiled.FORMS
"""The dtypes of predictions that the loop takes."""


def takes(plan: Plan) -> bool:
    """Whether the loop computes the losses of a plan."""
    return plan.from_logits and plan.kind == "index" and not plan.label_smoothing


def parameter(plan: Plan) -> float:  # noqa: ARG001 - the same for all losses
    """The number that the loops take; they ignore it."""
    return 1.0


def read(targets: Array) -> Array | None:
    """The targets as the loop reads them, or None if it does not."""
    return targets if targets.dtype.kind in "iu" and targets.dtype.isnative else None


def room(n: int) -> Array | None:
    """An array for n losses; None where the loop needs none to add them."""
    return np.empty(n, np.float32)


def run(plan: Plan, work: Work) -> tuple[Total, int]:  # noqa: ARG001 - the same for all losses
    """Run the loop."""
    return compiled.cross_entropy(work)
