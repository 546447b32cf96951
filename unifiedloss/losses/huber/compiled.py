"""The compiled loop of the Huber loss."""

from __future__ import annotations

from typing import Any

from unifiedloss import compiled
from unifiedloss.compiled import Array, Total, Work
from unifiedloss.plan import Plan

DTYPES = ("float32",)
"""The dtypes of predictions that the loop takes."""


def takes(plan: Plan) -> bool:
    """Whether the loop computes the losses of a plan."""
    return not plan.average_last_axis


def parameter(plan: Plan) -> float:
    """The number that the loops take: delta."""
    spec: Any = plan.spec
    delta: float = spec.delta
    return delta


def read(targets: Array) -> Array | None:
    """The targets as the loop reads them, or None if it does not."""
    return compiled.as_float32(targets)


def room(n: int) -> Array | None:  # noqa: ARG001 - the same for all losses
    """An array for n losses; None where the loop needs none to add them."""
    return None


def run(plan: Plan, work: Work) -> tuple[Total, int]:
    """Run the loop."""
    return compiled.elementwise("huber", work, parameter(plan))
