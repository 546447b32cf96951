"""Runs the compiled loops as the first tier of exact mode.

A loop takes the rows of a `HostCall`. A call without masks and weights needs no `HostCall`, whose
preparation costs more than the loop, so there the loop takes the arrays of the call (`whole`). In
both cases the next tiers compute what the loop leaves undecided.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import compiled, losses
from unifiedloss.compiled import Total, Work
from unifiedloss.compiled import threads as own_threads
from unifiedloss.exact import counts
from unifiedloss.exact.balls import Ball, step_parts, table_of_powers
from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.scale import Scale
from unifiedloss.losses import has_part
from unifiedloss.plan import MAX_INTEGER_TARGET, Plan

_EXACT_DIVISORS = 1 << 28
"""The loops decide ties of slopes over integers below this one, whose products are exact."""

_FEW = 32
"""Elements that balls compute one by one. For more, full rows are quicker."""

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
    targets = None if module is None else module.read(call.targets)
    if targets is None:
        return None
    weight: Any = call.weight
    factor, exactly, divisor = _factor(scale)
    if plan.class_weights is not None:
        weight = call.class_weight_of(slice(None), call.labels)
        factor = factor * call.own_class_weight(call.labels)
    work = Work(
        predictions=_readable(call.rows),
        targets=np.require(targets, requirements=("C", "A")),
        todo=None if todo.all() else todo,
        weight=None if weight is None else np.ascontiguousarray(weight, np.float64),
        factor=np.ascontiguousarray(factor, np.float64) if np.ndim(factor) else float(factor),
        factor_is_exact=exactly,
        divisor=divisor,
        losses=results,
        slopes=slopes,
        left=np.zeros(len(call.rows), bool),
        elements=np.empty(len(results) + _FEW, np.int64),
        threads=call.threads or own_threads.number(),
    )
    found = _run(module, plan, work)
    if len(found.rows):
        factors = _Factors(1.0, call.weight, None, Ball(1.0))
        if scale is not None:
            factors = factors._replace(upstream=scale.upstream, divisor=scale.divisor)
        if plan.class_weights is not None:
            factors = factors._replace(own=np.asarray(call.own_class_weight(call.labels)))
        found = _second(found, factors)
        finish_elements(call, found, slopes, scale)
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
    """What a loop found.

    Attributes:
        work: the work with the results.
        total: the sum of the losses that are decided.
        rows: the rows of the single results that are undecided.
        columns: their columns; -1 for the loss of a row.
    """

    work: Work
    total: Total
    rows: Array
    columns: Array


def _run(module: Any, plan: Plan, work: Work) -> Found:
    """Run a loop, again if its list of undecided elements was too short."""
    total, found = module.run(plan, work)
    if found > len(work.elements):
        work.elements = np.empty(found, np.int64)
        total, found = module.run(plan, work)
    listed = work.elements[:found]
    if not found:
        return Found(work, total, listed, listed)
    rows, columns = np.divmod(listed, work.predictions.shape[1])
    return Found(
        work, total, np.where(listed < 0, ~listed, rows), np.where(listed < 0, -1, columns)
    )


class _Factors(NamedTuple):
    """The exact factors of the results: the slopes have all, and the losses both weights.

    Attributes:
        upstream: the upstream gradient, a number or one for each row.
        weight: the sample weights of all rows, or None.
        own: the class weights of the labels of all rows, or None.
        divisor: the divisor of the slopes.
    """

    upstream: Any
    weight: Array | None
    own: Array | None
    divisor: Ball


def _second(found: Found, factors: _Factors) -> Found:
    """Compute the single results in the compiled second tier.

    Returns:
        What is still undecided, with the losses in the total that are not.
    """
    work, rows, columns = found.work, found.rows, found.columns
    counts.undecided["elements"] += len(rows)
    is_loss = columns < 0
    each = np.ones((3, len(rows)))
    each[0] = np.where(is_loss, 1.0, _at(factors.upstream, rows))
    for row, weights in enumerate((factors.weight, factors.own), 1):
        if weights is not None:
            each[row] = weights[rows]
    divisor = factors.divisor
    parts = [divisor.high, divisor.low, divisor.radius / abs(divisor.high)]
    rounded, left = compiled.second_tier(
        work.predictions,
        (rows, work.targets[rows].astype(np.int64), columns),
        each,
        np.array(parts, np.float64),
        _constants(),
    )
    losses, of_slopes = ~left & is_loss, ~left & ~is_loss
    if work.slopes is not None:
        work.slopes[rows[of_slopes], columns[of_slopes]] = rounded[of_slopes]
    assert work.losses is not None
    work.losses[rows[losses]] = rounded[losses]
    total = found.total.plus(rounded[losses].tolist()) if losses.any() else found.total
    return Found(work, total, rows[left], columns[left])


def _at(x: Any, rows: Array) -> Any:
    return x[rows] if np.ndim(x) else x


@cache
def _constants() -> tuple[Array, Array]:
    """The numbers that the compiled second tier shares with the balls."""
    return np.array(step_parts()), np.array(table_of_powers())


def finish_elements(
    call: HostCall, found: Found, slopes: Array | None, scale: Scale | None
) -> None:
    """Compute slopes that the second tier left undecided; flag the rows of losses.

    Of many slopes, flag the rows too.
    """
    rows, columns, left = found.rows, found.columns, found.work.left
    left[rows[columns < 0]] = True
    if slopes is None or scale is None:
        return
    rows, columns = rows[columns >= 0], columns[columns >= 0]
    if len(rows) > _FEW:
        left[rows] = True
        return
    module = losses.part(call.plan.spec.name, "exact")
    for row in np.unique(rows):
        module.round_elements(call, int(row), columns[rows == row], slopes, scale)


# ------------------------------------------------------------------------- arrays as they are given


def whole(
    plan: Plan,
    predictions: Array,
    targets: Array,
    upstream: Any,
    out: Array | None,
    threads: int | None = None,
    *,
    gradient: bool,
) -> Found | None:
    """Compute a call without masks and weights from its arrays, without a `HostCall`.

    Returns:
        What the loop found, or None if no loop computes this call.
    """
    module = loop_of(plan)
    if module is None or plan.result_dtype != "float32" or plan.spec.reduction == "none":
        return None
    if plan.class_weights is not None or plan.ignored_labels or plan.element_weights is not None:
        return None
    if not (predictions.flags.carray and predictions.dtype == np.float32 and predictions.size):
        return None
    if plan.axis is not None and plan.axis != predictions.ndim - 1:
        return None
    read = module.read(targets) if targets.flags.carray else None
    if read is None:
        return None
    u = 1.0 if upstream is None else float(upstream)
    if not 2.0**-150 <= abs(u) <= 2.0**150:
        return None
    if upstream is not None and abs(u) >= MAX_INTEGER_TARGET and int(u) != int(upstream):
        return None  # an integer that float64 does not hold
    rows = predictions.reshape(-1, 1 if plan.axis is None else predictions.shape[-1])
    count = len(rows) if plan.spec.reduction == "mean" else 1
    slopes = None
    if gradient:
        slopes = np.empty(rows.shape, np.float32) if out is None else out.reshape(rows.shape)
    work = Work(
        predictions=rows,
        targets=read.reshape(-1),
        todo=None,
        weight=None,
        factor=u / count,
        factor_is_exact=count & (count - 1) == 0 and abs(math.frexp(u)[0]) == 0.5,
        divisor=_inverse_of(float(count)) if u == 1 else 0.0,
        losses=module.room(len(rows)),
        slopes=slopes,
        left=np.empty(len(rows), bool),
        elements=np.empty(len(rows) + _FEW, np.int64),
        threads=threads or own_threads.number(),
    )
    found = _run(module, plan, work)
    if len(found.rows):
        return _second(found, _Factors(u, None, None, Ball(float(count))))
    return found


# ------------------------------------------------------------------------------------ small calls

SMALL = 20_000
"""Predictions up to which `small` is quicker than `whole`, though it may have to give up."""


@lru_cache(4096)
def _small_loop(plan: Plan) -> tuple[int, float] | None:
    """The number of a plan's loop in module.c, and the number that it takes; or None."""
    name = plan.spec.name
    last = plan.axis is None or plan.axis == len(plan.shape or ()) - 1
    if (
        not (plan.exact and plan.plain and plan.fast_paths and last)
        or (plan.predictions_dtype, plan.result_dtype) != ("float32", "float32")
        or getattr(plan.spec, "dtype", None) is not None
        or plan.spec.reduction == "none"
        or plan.scale != 1.0
        or not plan.count
        or plan.count * (plan.classes or 1) > SMALL
        or not has_part(name, "compiled")
    ):
        return None
    module = losses.part(name, "compiled")
    return (module.LOOP, module.parameter(plan)) if module.takes(plan) else None


def small(
    plan: Plan, predictions: Array, targets: Array, upstream: float | None
) -> tuple[Array, Array | None] | None:
    """Compute a small call of NumPy's arrays that were not checked, with the least around it.

    The gradient is computed too, unless `upstream` is None.

    Returns:
        The loss and the gradient. None if another way must compute them: there is no such loop, or
        it leaves something undecided, as it does with every bad value.
    """
    loop = _small_loop(plan)
    if loop is None or not compiled.is_available() or counts.skipped_tiers:
        return None
    read = targets.dtype.kind in "iu" if plan.kind == "index" else plan.targets_dtype == "float32"
    for x in (predictions, targets):
        flags = x.flags
        if not (read and flags.c_contiguous and flags.aligned and x.dtype.isnative):
            return None
    u = 1.0 if upstream is None else upstream
    if not 2.0**-150 <= abs(u) <= 2.0**150:
        return None
    count = plan.count if plan.spec.reduction == "mean" else 1
    assert count is not None
    value = np.empty((), np.float32)
    slopes = None if upstream is None else np.empty(predictions.shape, np.float32)
    decided = compiled.run_exact(
        loop[0],
        plan.classes or 1,
        targets.dtype.itemsize,
        targets.dtype.kind == "i",
        u / count,
        count & (count - 1) == 0 and abs(math.frexp(u)[0]) == 0.5,
        _inverse_of(float(count)) if u == 1 else 0.0,
        loop[1],
        count,
        predictions,
        targets,
        slopes,
        value,
    )
    return (value[()], slopes) if decided else None


def rounded(total: Total, count: int) -> np.float32 | None:
    """The sum of a total over an integer, rounded to float32, or None if its bound is too wide."""
    if not math.isfinite(total.high):
        return np.float32(total.high)
    mean = (total.high + total.low) / count
    # The sum of both parts, the quotient and the ends of the interval are rounded.
    width = total.error / count + 6 * _UNIT * abs(mean)
    first, last = np.float32(mean - width), np.float32(mean + width)
    return first + np.float32(0) if first == last else None
