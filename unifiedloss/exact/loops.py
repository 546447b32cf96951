"""Runs the compiled loops as the first tier of exact mode.

A loop takes the rows of a `HostCall`. A call without masks and weights needs no `HostCall`, whose
preparation costs more than the loop, so there the loop takes the arrays of the call (`ready`). In
both cases the next tiers compute what the loop leaves undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import compiled, losses
from unifiedloss.compiled import Left, Total, Work
from unifiedloss.compiled import threads as own_threads
from unifiedloss.exact import clips, counts, limbs
from unifiedloss.exact.balls import Ball, log_2_over, step_parts, table_of_powers
from unifiedloss.exact.call import Array, Bools, Divisor, HostCall
from unifiedloss.exact.factors import are_powers_of_two, is_in_reach, is_power_of_two
from unifiedloss.exact.rounding import from_bits, stored
from unifiedloss.exact.scale import Scale
from unifiedloss.floats import FORMATS
from unifiedloss.losses import has_part
from unifiedloss.oracle.rounding import nearest
from unifiedloss.plan import MAX_INTEGER_TARGET, Plan

_EXACT_DIVISORS = 1 << 28
"""The loops decide ties of slopes over integers below this one, whose products are exact."""

_MOST_ROWS = 1 << 31

FEW = 32
"""Elements that balls compute one by one. For more, full rows are quicker."""

_UNIT = 2.0**-53

_STEPS = 256
"""STEPS in pairs.h."""


def loop_of(plan: Plan) -> Any:
    """The module with the compiled loop of a plan, or None."""
    name = plan.spec.name
    if not has_part(name, "compiled"):
        return None
    module = losses.part(name, "compiled")
    taken = plan.predictions_dtype in module.DTYPES and module.takes(plan)
    return module if taken and compiled.is_available() else None


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
    if plan.average_last_axis or call.element_weight is not None:
        return None
    module: Any = loop_of(plan) if dtype in compiled.FORMS else None
    targets = None if module is None else module.read(call.targets)
    if targets is None:
        return None
    weight: Any = call.weight
    factor, exactly, divisor = _factor(scale)
    soft = clips.soft_of(module, plan, targets, factor_is_exact=_has_no_error(call, scale))
    if plan.class_weights is not None and (soft is None or soft.class_weights is None):
        weight = call.class_weight_of(slice(None), call.labels)
        factor = factor * call.own_class_weight(call.labels)
    if plan.scale != 1.0:
        scaled = clips.scaled(plan, soft, weight, len(call.rows))
        if scaled is None or not is_in_reach(plan.scale):
            return None
        soft, weight = scaled
        factor = factor if plan.log_probabilities else factor * plan.scale
    if plan.axis is None and (weight is not None or np.ndim(factor)):
        return None  # `mixed` takes it
    work = Work(
        predictions=_readable(call.rows),
        targets=np.require(targets, requirements=("C", "A")),
        todo=None if todo.all() else todo,
        weight=None if weight is None else np.require(weight, np.float64, ("C", "A")),
        factor=np.require(factor, np.float64, ("C", "A")) if np.ndim(factor) else float(factor),
        factor_is_exact=exactly,
        divisor=divisor,
        losses=results,
        slopes=slopes,
        left=np.zeros(len(call.rows), bool),
        elements=np.empty(len(results) + FEW, np.int64),
        threads=call.threads or own_threads.number(),
        loss_dtype=dtype,
        slope_dtype=plan.predictions_dtype,
        soft=soft,
    )
    found = _run(module, plan, work)
    if soft is not None:
        found = found.without_losses()
    if len(found.rows):
        factors = _Factors(1.0, call.weight, None, Ball(1.0))
        if scale is not None:
            factors = factors._replace(upstream=scale.upstream, divisor=scale.divisor)
        if plan.class_weights is not None and (soft is None or soft.class_weights is None):
            factors = factors._replace(own=np.asarray(call.own_class_weight(call.labels)))
        found = _second(found, factors)
        finish_elements(call, found, slopes, scale)
    return work.left


def _has_no_error(call: HostCall, scale: Scale | None) -> bool:
    """Whether float64 holds the factors of the slopes: only one of their parts has many bits."""
    if scale is None:
        return True
    ball = scale.divisor
    divides = call.divides and not (
        ball.low == 0 and ball.radius == 0 and is_power_of_two(float(ball.high))
    )
    several = call.weight is not None and not are_powers_of_two(scale.upstream)
    scaled = not (call.plan.log_probabilities or is_power_of_two(call.plan.scale))
    return not (divides or several or scaled)


def _readable(rows: Array) -> Array:
    """The rows as an array that the loops read: aligned, the classes side by side."""
    size = rows.itemsize
    ordered = rows.strides[-1] == size and rows.strides[0] % size == 0
    if ordered and rows.flags.aligned and rows.dtype.isnative:
        return rows
    return np.array(rows, rows.dtype.newbyteorder("="), order="C")


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

    def without_losses(self) -> Found:
        """The slopes alone, of rows whose losses are known. The other rows are flagged."""
        left = self.work.left
        left[self.rows[self.columns < 0]] = True
        chosen = ~left[self.rows]
        return self._replace(rows=self.rows[chosen], columns=self.columns[chosen])


def _run(module: Any, plan: Plan, work: Work) -> Found:
    """Run a loop, again if its list of undecided elements was too short."""
    total, found = module.run(plan, work)
    if found > len(work.elements):
        work.elements = np.empty(found, np.int64)
        total, found = module.run(plan, work)
    return _listed(work, total, work.elements[:found])


def _listed(work: Work, total: Total, listed: Array) -> Found:
    """What a loop found, from its list of single results."""
    if not len(listed):
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
    logits, places, soft = work.predictions, rows, work.soft
    labels = work.targets[rows].astype(np.int64) if work.targets.ndim == 1 else places
    if logits.dtype != np.float32 or soft is not None:
        chosen, places = np.unique(rows, return_inverse=True)
        logits = _single(logits[chosen])
        if soft is not None and soft.targets is not None:
            soft = soft._replace(targets=_single(soft.targets[chosen]))
    rounded, left = compiled.second_tier(
        logits,
        (places, labels, columns),
        each,
        np.array(parts, np.float64),
        constants(),
        (work.loss_dtype, work.slope_dtype),
        soft,
    )
    losses, of_slopes = ~left & is_loss, ~left & ~is_loss
    if work.slopes is not None:
        found_slopes = stored(rounded[of_slopes], work.slope_dtype)
        work.slopes[rows[of_slopes], columns[of_slopes]] = found_slopes
    assert work.losses is not None
    work.losses[rows[losses]] = rounded[losses]
    total = found.total.plus(rounded[losses].tolist()) if losses.any() else found.total
    return Found(work, total, rows[left], columns[left])


def bits(x: Array) -> Array:
    """The array, or its bits where its dtype is bfloat16, which has no buffer."""
    return x if x.dtype.kind in "iuf" else x.view(np.uint16)


def _single(x: Array) -> Array:
    return from_bits(x).astype(np.float32, copy=False)


def _at(x: Any, rows: Array) -> Any:
    return x[rows] if np.ndim(x) else x


@cache
def constants() -> Array:
    """The numbers that the loops in pairs of float64 need; see pairs.h."""
    step = log_2_over(_STEPS)
    powers = np.transpose(table_of_powers(_STEPS)).ravel()
    return np.array([*step_parts(_STEPS), step.high, step.low, *powers])


def whole(module: Any, plan: Plan, work: Work, upstream: Array, divisor: Ball) -> Total | None:
    """Run a loop of rows and the second tier.

    Args:
        module: the module of the loop.
        plan: the plan of a call without weights and masks.
        work: all positions of the call.
        upstream: the upstream gradient, a number or one for each row.
        divisor: the divisor of the slopes.

    Returns:
        What the loop found, or None if something is undecided still.
    """
    found = _run(module, plan, work)
    if found.total.left or (work.soft is not None and (found.columns < 0).any()):
        return None
    if len(found.rows):
        found = _second(found, _Factors(upstream, None, None, divisor))
    return None if len(found.rows) else found.total


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
    if len(rows) > FEW or found.work.soft is not None:
        left[rows] = True
        return
    module = losses.part(call.plan.spec.name, "exact")
    for row in np.unique(rows):
        module.round_elements(call, int(row), columns[rows == row], slopes, scale)


# ------------------------------------------------------------------------- arrays as they are given


_FORM = 5
"""The place of the form of the predictions in `Ready.fixed`."""


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

    def widened(self) -> Ready:
        """The same call with predictions of bfloat16 that are widened to float32."""
        first, last = self.fixed[:_FORM], self.fixed[_FORM + 1 :]
        return self._replace(fixed=(*first, compiled.FORMS.index("float32"), *last))

    def over(self, divisor: int) -> Ready:
        """The same call with another divisor."""
        return self._replace(divisor=divisor, fixed=(*self.fixed[:-1], float(divisor)))


def ready(plan: Plan) -> Ready | None:
    """The call of a plan for a compiled loop, or None if none computes it from its arrays."""
    known = _ready(plan)
    if known is None or not compiled.is_available() or "fast" in counts.skipped_tiers:
        return None
    return known


def ready_for(plan: Plan, predictions: Array, targets: Array) -> Ready | None:
    """The call of a plan for a compiled loop, or None if none computes it from these arrays."""
    known = ready(plan)
    if known is None or targets.dtype != known.targets:
        return None
    given, held = predictions.dtype, plan.predictions_dtype
    if given.name != held or not given.isnative:
        if given != np.float32 or held != "bfloat16":
            return None
        known = known.widened()
    return known if compiled.can_read(predictions) and compiled.can_read(targets) else None


@lru_cache(4096)
def _ready(plan: Plan) -> Ready | None:
    name = plan.spec.name
    if not has_part(name, "compiled") or plan.result_dtype != "float32":
        return None
    if not is_plain(plan) or plan.spec.reduction == "none":
        return None
    targets = np.dtype(plan.targets_dtype) if plan.targets_dtype in np.sctypeDict else None
    module = losses.part(name, "compiled")
    if targets is None or plan.predictions_dtype not in module.DTYPES or not module.takes(plan):
        return None
    read = module.read(np.empty(0, targets))
    if read is None or read.dtype != targets:
        return None
    if plan.classes is not None and module.is_soft(plan):
        return None
    parameter = module.parameter(plan)
    if parameter and not is_in_reach(parameter):
        return None
    assert plan.count is not None
    rows = (plan.count, plan.classes or 1)
    divisor = plan.count if plan.spec.reduction == "mean" else 1
    number = compiled.LOSSES.index(name)
    label = (targets.itemsize, targets.kind == "i")
    form = compiled.FORMS.index(plan.predictions_dtype)
    fixed = (number, *rows, *label, form, form, parameter, float(divisor))
    return Ready(plan, rows, divisor, fixed, targets)


def is_whole(plan: Plan) -> bool:
    """Whether a loop takes the calls of a plan from their arrays, whatever their sizes are."""
    classes = plan.classes if plan.classes is None else max(1, plan.classes)
    return _ready(replace(plan, count=plan.count or 1, classes=classes)) is not None


def is_plain(plan: Plan) -> bool:
    """Whether a call has no more than predictions in rows, targets, and the number of its rows."""
    if plan.scale != 1.0 or not plan.plain or plan.casts:
        return False
    if plan.ignored_labels or plan.class_weights is not None or plan.element_weights is not None:
        return False
    if plan.average_last_axis or plan.oracle_only:
        return False
    if plan.shape is None or not plan.count or plan.classes == 0:
        return False
    return plan.axis is None or plan.axis == len(plan.shape) - 1


def integer(divisor: Divisor) -> int | None:
    """A given divisor as the loops take it: an integer that can be a number of rows, or None."""
    if not isinstance(divisor, tuple):
        return None
    ball = divisor[0]
    high = float(ball.high)
    known = ball.low == 0 and ball.radius == 0 and high.is_integer() and 0 < high < _MOST_ROWS
    return int(high) if known else None


def upstream_of(upstream: Any) -> float | None:
    """A scalar upstream gradient as the loops take it, or None if they do not."""
    if upstream is None:
        return 1.0
    u = float(upstream)
    if not is_in_reach(u):
        return None
    if abs(u) >= MAX_INTEGER_TARGET and int(u) != int(upstream):
        return None  # an integer that float64 does not hold
    return u


def second_tier(
    ready: Ready,
    left: Left,
    predictions: Array,
    targets: Array,
    upstream: float,
    slopes: Array | None,
) -> Found:
    """Compute in the compiled second tier what a loop left of a call.

    Args:
        ready: the call.
        left: from `compiled.call`.
        predictions: the predictions as rows.
        targets: the targets of the rows.
        upstream: the upstream gradient.
        slopes: the gradient as rows, which receives what is computed.

    Returns:
        What is still undecided.
    """
    work = Work(
        predictions=bits(predictions),
        targets=targets,
        todo=None,
        weight=None,
        factor=upstream / ready.divisor,
        factor_is_exact=False,
        divisor=0.0,
        losses=np.empty(len(predictions), np.float32),
        slopes=slopes,
        left=left.positions.copy(),
        elements=left.elements,
        slope_dtype=ready.plan.predictions_dtype,
    )
    found = _listed(work, left.total, left.elements)
    if len(found.rows):
        found = _second(found, _Factors(upstream, None, None, Ball(float(ready.divisor))))
    return found


def exact_sum(ready: Ready, predictions: Array, targets: Array) -> limbs.Sum | None:
    """The exact sum of the losses of a call, or None if the loop leaves one of them undecided."""
    threads = own_threads.number()
    n = ready.rows[0]
    plan = ready.plan
    module = losses.part(plan.spec.name, "compiled")
    if plan.classes is None:
        arrays = predictions.reshape(n), targets.reshape(n)
        summed = compiled.sum_of_losses(plan.spec.name, *arrays, module.parameter(plan), threads)
        return None if summed is None else limbs.sum_in(summed)
    terms = np.empty(n, np.float32)
    work = Work(
        predictions=bits(predictions).reshape(ready.rows),
        targets=targets.reshape(n),
        todo=None,
        weight=None,
        factor=1.0,
        factor_is_exact=True,
        divisor=0.0,
        losses=terms,
        slopes=None,
        left=np.zeros(n, bool),
        elements=np.empty(n, np.int64),
        threads=threads,
    )
    found = _run(module, plan, work)
    if len(found.rows):
        found = _second(found, _Factors(1.0, None, None, Ball(1.0)))
    return None if found.total.left or len(found.rows) else limbs.sum_of(terms)


# ------------------------------------------------------------------------------------ small calls

_SMALL = 20_000
"""The most predictions of `small`, which computes in vain where it has to give up."""


def small(
    plan: Plan, predictions: Array, targets: Array, upstream: float | None
) -> tuple[Array, Array | None] | None:
    """Compute a small call of NumPy's arrays that were not checked, with the least around it.

    The gradient is computed too, unless `upstream` is None.

    Returns:
        The loss and the gradient. None if another way must compute them: there is no such loop, or
        it leaves something undecided, as it does with every bad value.
    """
    known = ready_for(plan, predictions, targets)
    if known is None or math.prod(known.rows) > _SMALL:
        return None
    u = 1.0 if upstream is None else upstream
    if not is_in_reach(u):
        return None
    value = np.empty((), np.float32)
    slopes = None if upstream is None else np.empty(predictions.shape, predictions.dtype)
    to = 0 if slopes is None else bits(slopes)
    left = compiled.call(known.fixed, u, bits(predictions), targets, to, value)
    return (value[()], slopes) if left is None else None


def rounded(
    total: Total, divisor: int, exactly: Callable[[], limbs.Sum | None] = lambda: None
) -> np.float32 | None:
    """The sum of a total over an integer, rounded to float32.

    Args:
        total: the sum, with a bound of its error.
        divisor: the integer.
        exactly: computes the exact sum where the bound is too wide. That is most often so where the
            mean of a few terms is half way between two numbers; of 8 rows one call in 17 is.

    Returns:
        None if the exact sum is not known either.
    """
    if not math.isfinite(total.high):
        return np.float32(total.high)
    mean = (total.high + total.low) / divisor
    # The sum of both parts, the quotient and the ends of the interval are rounded.
    width = total.error / divisor + 6 * _UNIT * abs(mean)
    first, last = np.float32(mean - width), np.float32(mean + width)
    if first == last:
        return first + np.float32(0)
    summed = exactly()
    if summed is None or summed.special() is not None:
        return None
    size: Any = limbs.quotient(
        summed._replace(units=abs(summed.units)),
        "float32",
        limbs.units_of_divisor(Fraction(divisor)),
    )
    value = nearest(size, FORMATS["float32"])
    return np.float32(value if summed.units >= 0 else 0.0 - value)
