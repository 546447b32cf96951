"""Runs the compiled loops as the first tier of exact mode.

A loop takes the rows of a `HostCall`. A call without masks and weights needs no `HostCall`, whose
preparation costs more than the loop, so there the loop takes the arrays of the call (`ready`). In
both cases the next tiers compute what the loop leaves undecided.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import compiled, losses
from unifiedloss.compiled import Total, Work
from unifiedloss.exact import counts
from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.scale import Scale
from unifiedloss.losses import has_part
from unifiedloss.plan import MAX_INTEGER_TARGET, Plan

_EXACT_DIVISORS = 1 << 28
"""The loops decide ties of slopes over integers below this one, whose products are exact."""

_FEW = 32
"""Undecided elements that are computed one by one. For more, full rows are quicker."""

_UNIT = 2.0**-53


def loop_of(plan: Plan) -> Any:
    """The module with the compiled loop of a plan, or None."""
    name = plan.spec.name
    if plan.predictions_dtype != "float32" or not has_part(name, "compiled"):
        return None
    module = losses.part(name, "compiled")
    return module if module.takes(plan) and compiled.is_available() else None


# ------------------------------------------------------------------------------ rows of a host call


def carry_out(
    call: HostCall,
    todo: Bools,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> Bools | None:
    """Compute and round the positions that a compiled loop decides.

    The arguments are those of `fast.carry_out`.

    Returns:
        The positions that are left undecided, or None if no loop computes this call.
    """
    plan = call.plan
    module = None if dtype != "float32" else loop_of(plan)
    if module is None:
        return None
    weight: Any = call.weight
    factor, exactly, divisor = _factor(scale)
    if plan.class_weights is not None:
        weight = call.class_weight_of(slice(None), call.labels)
        factor = factor * call.own_class_weight(call.labels)
    work = Work(
        predictions=_readable(call.rows),
        targets=np.ascontiguousarray(call.targets),
        todo=None if todo.all() else todo,
        weight=None if weight is None else np.ascontiguousarray(weight, np.float64),
        factor=np.ascontiguousarray(factor, np.float64) if np.ndim(factor) else float(factor),
        factor_is_exact=exactly,
        divisor=divisor,
        losses=results,
        slopes=slopes,
        left=np.zeros(len(call.rows), bool),
        elements=np.empty(_FEW, np.int64),
    )
    if not module.reads(work.targets):
        return None
    found = _run(module, plan, work)
    if slopes is not None and found.elements:
        finish_elements(call, work.elements[: found.elements], slopes, work.left, scale)
    return work.left


def _readable(rows: Array) -> Array:
    """The rows as an array that the loops read: float32, aligned, the classes side by side."""
    ordered = rows.strides[-1] == 4 and rows.strides[0] % 4 == 0
    if ordered and rows.dtype == np.float32 and rows.flags.aligned and rows.dtype.isnative:
        return rows
    return np.array(rows, np.float32, order="C")


def _factor(scale: Scale | None) -> tuple[Any, bool, float]:
    """The factor of the slopes, whether it is a power of two, and the integer it is the inverse of.

    The integer is 0 where there is none.
    """
    if scale is None:
        return 1.0, True, 0.0
    factor: Any = scale.float64(slice(None))
    if factor.ndim:
        return factor, False, 0.0
    divisor = scale.divisor
    known = divisor.low == 0 and divisor.radius == 0
    whole = float(divisor.high) if known and scale.upstream == 1 else 0.0
    return factor, scale.power_of_two, _inverse_of(whole)


def _inverse_of(divisor: float) -> float:
    return divisor if 1 < divisor < _EXACT_DIVISORS and divisor.is_integer() else 0.0


class Found(NamedTuple):
    """What a loop found: its work with the results, the total, and the undecided elements."""

    work: Work
    total: Total
    elements: int


def _run(module: Any, plan: Plan, work: Work) -> Found:
    """Run a loop, again if its list of undecided elements was too short."""
    total, found = module.run(plan, work)
    if found > len(work.elements):
        work.elements = np.empty(found, np.int64)
        total, found = module.run(plan, work)
    return Found(work, total, found)


def finish_elements(
    call: HostCall, elements: Array, slopes: Array, left: Bools, scale: Scale | None
) -> None:
    """Compute the elements that a loop left undecided; of many, flag their rows as undecided."""
    if scale is None:
        return
    rows, columns = np.divmod(elements, slopes.shape[1])
    if len(elements) > _FEW:
        left[rows] = True
        return
    module = losses.part(call.plan.spec.name, "exact")
    for row in np.unique(rows):
        module.round_elements(call, int(row), columns[rows == row], slopes, scale)


# ------------------------------------------------------------------------- arrays as they are given


class Ready(NamedTuple):
    """A call without masks and weights as the loops take it: what its plan says.

    Attributes:
        plan: the plan.
        rows: (n, K).
        divisor: what the sum of the losses is divided by.
        fixed: see `compiled.call`.
        targets: the dtype of the targets.
    """

    plan: Plan
    rows: tuple[int, int]
    divisor: int
    fixed: tuple[float, ...]
    targets: np.dtype[Any]


def ready(plan: Plan) -> Ready | None:
    """The call of a plan for a compiled loop, or None if none computes it from its arrays."""
    known = _ready(plan)
    if known is None or not compiled.is_available() or "fast" in counts.skipped_tiers:
        return None
    return known


@lru_cache(4096)
def _ready(plan: Plan) -> Ready | None:
    name = plan.spec.name
    if plan.predictions_dtype != "float32" or plan.result_dtype != "float32":
        return None
    if plan.spec.reduction == "none" or plan.scale != 1.0 or not has_part(name, "compiled"):
        return None
    if not plan.plain or plan.ignored_labels or plan.class_weights is not None:
        return None
    if plan.element_weights is not None or plan.average_last_axis or plan.oracle_only:
        return None
    if plan.shape is None or not plan.count or plan.classes == 0:
        return None
    if plan.axis is not None and plan.axis != len(plan.shape) - 1:
        return None
    targets = np.dtype(plan.targets_dtype) if plan.targets_dtype in np.sctypeDict else None
    module = losses.part(name, "compiled")
    if targets is None or not module.takes(plan) or not module.reads(np.empty(0, targets)):
        return None
    rows = (plan.count, plan.classes or 1)
    divisor = plan.count if plan.spec.reduction == "mean" else 1
    number, parameter = compiled.LOSSES.index(name), module.parameter(plan)
    label = (targets.itemsize, targets.kind == "i")
    return Ready(plan, rows, divisor, (number, *rows, *label, parameter, float(divisor)), targets)


def upstream_of(upstream: Any) -> float | None:
    """A scalar upstream gradient as the loops take it, or None if they do not."""
    if upstream is None:
        return 1.0
    u = float(upstream)
    if not 2.0**-150 <= abs(u) <= 2.0**150:
        return None
    if abs(u) >= MAX_INTEGER_TARGET and int(u) != int(upstream):
        return None  # an integer that float64 does not hold
    return u


def rounded(total: Total, divisor: int) -> np.float32 | None:
    """The sum of a total over an integer, rounded to float32, or None if its bound is too wide."""
    if not math.isfinite(total.high):
        return np.float32(total.high)
    mean = (total.high + total.low) / divisor
    # The sum of both parts, the quotient and the ends of the interval are rounded.
    width = total.error / divisor + 6 * _UNIT * abs(mean)
    first, last = np.float32(mean - width), np.float32(mean + width)
    return first + np.float32(0) if first == last else None
