"""The compiled loops of native mode, for float32 predictions; see native.h."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray

from unifiedloss import compiled, losses
from unifiedloss.compiled import threads
from unifiedloss.plan import Plan

Array = NDArray[Any]


class Loop(NamedTuple):
    """The loop of a plan: its number in module.c, and the number that it takes."""

    number: int
    parameter: float


def loop_of(plan: Plan) -> Loop | None:
    """The loop that computes a plan, or None."""
    if plan.average_last_axis and plan.spec.reduction != "mean":
        return None  # only the divisor of a mean counts elements
    return _known(plan) if compiled.is_available() else None


@lru_cache(4096)
def _known(plan: Plan) -> Loop | None:
    if (
        plan.exact
        or (plan.predictions_dtype, plan.compute_dtype) != ("float32", "float32")
        or getattr(plan.spec, "dtype", None) is not None
        or not plan.fast_paths
        or plan.scale != 1.0
        or plan.element_weights is not None
        or not plan.count
        or not losses.has_part(plan.spec.name, "compiled")
    ):
        return None
    module = losses.part(plan.spec.name, "compiled")
    if not module.takes(plan) or (plan.classes is not None and module.is_soft(plan)):
        return None
    return Loop(compiled.LOSSES.index(plan.spec.name), module.parameter(plan))


def run(
    plan: Plan,
    loop: Loop,
    predictions: Array,
    targets: Array,
    *,
    todo: Array | None = None,
    factor: Array | float = 1.0,
    losses: Array | None = None,
    slopes: Array | None = None,
    divisor: float = 1.0,
    quotient: Array | None = None,
) -> tuple[int, float]:
    """Compute losses and slopes of positions.

    All arrays are in C order, aligned, and in native byte order.

    Args:
        plan: the plan of the call.
        loop: its loop.
        predictions: float32, with the classes in the last axis.
        targets: labels of any integer type, or float32 numbers.
        todo: bool, the positions that count, or None for all. The others have loss and slopes 0.
        factor: the factor of the slopes, one number, or float64 and one for each position.
        losses: float32, receives the losses, or None.
        slopes: float32, receives the slopes, or None.
        divisor: what the sum of the losses is divided by.
        quotient: one float32, receives the quotient, or None.

    Returns:
        How many positions the loop does not know, and the sum of the losses.
    """
    dtype = targets.dtype
    one = isinstance(factor, float)
    return compiled.run_native(
        threads.number(),
        loop.number,
        plan.classes or 1,
        dtype.itemsize,
        dtype.kind == "i",
        factor if one else 1.0,
        loop.parameter,
        divisor,
        predictions,
        targets,
        todo,
        None if one else factor,
        losses,
        slopes,
        quotient,
    )
