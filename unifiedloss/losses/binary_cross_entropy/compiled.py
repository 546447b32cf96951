"""The compiled loop of the binary cross-entropy: logits, without smoothing."""

from __future__ import annotations

from unifiedloss import compiled
from unifiedloss.compiled import Array, Total, Work
from unifiedloss.plan import Plan

DTYPES = ("float32",)
"""The dtypes of predictions that the loop takes."""


def takes(plan: Plan) -> bool:
    """Whether the loop computes the losses of a plan."""
    one_weight = plan.pos_weight is None or isinstance(plan.pos_weight, float)
    return plan.from_logits and not plan.label_smoothing and one_weight


def parameter(plan: Plan) -> float:
    """The number that the loops take: pos_weight."""
    return plan.pos_weight if isinstance(plan.pos_weight, float) else 1.0


def read(targets: Array) -> Array | None:
    """The targets as the loop reads them, or None if it does not."""
    return compiled.as_float32(targets)


def room(n: int) -> Array | None:  # noqa: ARG001 - the same for all losses
    """An array for n losses; None where the loop needs none to add them."""
    return None


def run(plan: Plan, work: Work) -> tuple[Total, int]:
    """Run the loop."""
    return compiled.elementwise("binary_cross_entropy", work, parameter(plan))
