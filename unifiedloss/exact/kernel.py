"""The host kernel of exact mode: computes one call on NumPy arrays, correctly rounded.

It follows Ziv's strategy in three tiers:

1. `fast` computes the most used kinds of loss in float64 with hand-derived error bounds.
2. Double-double `balls`, which carry their error bounds along, compute every other kind and what
   `fast` leaves undecided.
3. The oracle computes what the balls leave undecided (mostly exact ties that look irrational). It
   raises its precision until the rounding is known.

Each tier rounds only what it can prove. For a plan with a rule that the first two tiers do not
support, the oracle computes the full call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from unifiedloss import compiled, host
from unifiedloss.compiled import threads as own_threads
from unifiedloss.exact import (
    by_oracle,
    casts,
    counts,
    fast,
    limbs,
    loops,
    mixed,
    rows,
    two_weights,
    wide,
)
from unifiedloss.exact.balls import Ball
from unifiedloss.exact.call import (
    Array,
    Bools,
    HostCall,
    call_of_rows,
    exact_number,
    known_divisor,
    plain,
)
from unifiedloss.exact.request import Request
from unifiedloss.exact.rooms import aligned
from unifiedloss.exact.rounding import bits_of, stored
from unifiedloss.exact.scale import Scale
from unifiedloss.exact.sums import Sum, quotient
from unifiedloss.exact.tiers import round_positions
from unifiedloss.losses import has_part
from unifiedloss.plan import Plan, as_read

_BLOCK = 1 << 13
"""Elements per block of the balls tier, so that their temporaries stay in the processor's cache."""


def evaluate(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | float | None = None,
    divisor: Array | None = None,
    *,
    gradient: bool,
    exp: Callable[..., Any] = np.exp,
    out: Array | None = None,
    threads: int | None = None,
) -> tuple[Array, Array | None]:
    """Compute the loss of a plan and, on request, its gradient with respect to the predictions.

    It may be called in any thread, but this module must have been imported in one that keeps
    subnormal numbers. Bad values do not raise an error: those positions are NaN. An empty mean
    under ``on_empty="error"`` is NaN too.

    Args:
        plan: from `unifiedloss.plan.resolve`, with every extent known.
        predictions: in the plan's dtype; bfloat16 as an array of ml_dtypes' type, or widened to
            float32.
        targets: labels or numbers; bfloat16 numbers in the same way.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the upstream gradient: a number, or under "none" an array shaped like the loss.
            Default: ones.
        divisor: divides the sum, of a plan with the reduction "sum": a number, or the vector of
            `unifiedloss.exact.limbs`. One that is negative or no such vector counts as NaN.
        gradient: whether to compute the gradient.
        exp: the exponential of the first tier, ``exp(x, out=x)`` on float64, for adapters that have
            a faster one than NumPy. It may err by 2 u, as NumPy's may.
        out: array that receives the gradient: shaped like the predictions, in C order. None
            allocates one.
        threads: the most threads that the compiled loops may use. Default: what
            `unifiedloss.compiled.threads` says.

    Returns:
        The loss in the result dtype and the gradient in `Plan.gradient_dtype`, in C order; bfloat16
        as its bits in uint16.
    """
    if plan.casts and not plan.oracle_only:
        p, t, w = casts.read(plan, predictions, targets, sample_weight)
        more: Any = {"gradient": gradient, "exp": exp, "threads": threads}
        value, slopes = evaluate(as_read(plan), p, t, w, mask, upstream, divisor, **more)
        return value, None if slopes is None else casts.returned(plan, slopes, out)
    arrays = predictions, targets, sample_weight, mask, upstream, divisor
    request = Request(*arrays, gradient, out, threads or own_threads.number())
    found = _at_once(plan, request)
    return host.run(_by_tiers, plan, request, exp) if found is None else found


def _at_once(plan: Plan, request: Request) -> tuple[Array, Array | None] | None:
    """Compute the results of `evaluate` from the arrays as they are given.

    Returns:
        The results, or None if no loop computes this call, or its sum is undecided.
    """
    if request.sample_weight is None and request.mask is None:
        found = _by_loop(plan, request)
        return mixed.at_once(plan, request, some_rows) if found is None else found
    if request.sample_weight is None or request.divisor is not None:
        return None
    return two_weights.at_once(plan, request, some_rows)


def _by_tiers(plan: Plan, request: Request, exp: Callable[..., Any]) -> tuple[Array, Array | None]:
    """Compute the results of `evaluate` in a thread that keeps subnormal numbers."""
    gradient, out = request.gradient, request.out
    if plan.oracle_only or not has_part(plan.spec.name, "exact"):
        value, slope = by_oracle.evaluate(plan, *request.arrays, gradient=gradient)
        if slope is not None and out is not None:
            slope = _written(out, slope)
        return value, slope
    predictions, targets, sample_weight, mask, upstream, divisor = request.arrays
    with np.errstate(all="ignore"):
        given = None if divisor is None else known_divisor(exact_number(divisor))
        call = HostCall(
            plan, predictions, targets, sample_weight, mask, exp, request.threads, given
        )
        return _carry_out(call, upstream, out, gradient=gradient)


def sum_of_terms(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
) -> tuple[limbs.Sum, str]:
    """Compute the exact sum of the terms of a reduction, and the dtype of the terms.

    The arguments are those of `evaluate`.
    """
    if sample_weight is None and mask is None and not plan.casts:
        ready = loops.ready_for(plan, predictions, targets)
        if ready is not None:
            found = host.run(loops.exact_sum, ready, predictions, targets)
            if found is not None:
                return found, "float32"
    terms = rounded_terms(plan, predictions, targets, sample_weight, mask)
    return limbs.sum_of(terms), terms.dtype.name


def rounded_terms(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    *,
    exp: Callable[..., Any] = np.exp,
) -> Array:
    """Compute the terms of a reduction, one per position: float32, or float64 for float64.

    The arguments are those of `evaluate`.
    """
    if plan.casts and not plan.oracle_only:
        p, t, w = casts.read(plan, predictions, targets, sample_weight)
        return rounded_terms(as_read(plan), p, t, w, mask, exp=exp)
    given = targets, sample_weight, mask
    if plan.oracle_only or not has_part(plan.spec.name, "exact"):
        dtype = "float64" if plan.predictions_dtype == "float64" else "float32"
        return np.array(by_oracle.reduction(plan, predictions, *given).terms(dtype), dtype)
    with np.errstate(all="ignore"):
        call = HostCall(plan, predictions, *given, exp)
        terms = _new_losses(call)
        _positions_into(call, terms, None, None, _term_dtype(call))
        return terms


def evaluate_some(
    plan: Plan,
    positions: Array,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | float | None = None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """Compute some positions of a call, for programs that computed the others themselves.

    Args:
        plan: as for `evaluate`, like the arrays.
        positions: flat indices of the positions, over all axes of the unreduced loss.
        predictions: all predictions of the call.
        targets: all targets of the call.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the upstream gradient.
        gradient: whether to compute the gradient.

    Returns:
        The rounded losses of the positions, before any reduction, and their rows of the gradient,
        (positions, K), bfloat16 as its bits.
    """
    with np.errstate(all="ignore"):
        call = HostCall(plan, predictions, targets, sample_weight, mask)
        return _carry_out_some(call, positions, upstream, gradient=gradient)


def reduce_terms(
    plan: Plan,
    losses: Array,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
) -> Array:
    """Reduce the known rounded losses of a call, one per position."""
    with np.errstate(all="ignore"):
        call = HostCall(plan, predictions, targets, sample_weight, mask)
        divisor = call.divisor_of_mean()
        return stored(np.asarray(_reduced(call, losses.reshape(-1), divisor)), plan.result_dtype)


def _written(out: Array, x: Array) -> Array:
    """Write x to `out`, whose dtype may be bfloat16 where x holds its bits."""
    out = out.view(x.dtype)
    out[...] = x
    return out


def _by_loop(plan: Plan, request: Request) -> tuple[Array, Array | None] | None:
    """`_at_once` by a loop of whole rows, or of float32 or float64 numbers."""
    predictions, targets, upstream = request.predictions, request.targets, request.upstream
    count = None
    if request.divisor is not None:
        count = loops.integer(known_divisor(host.run(exact_number, request.divisor)))
        if count is None:
            return None
    ready = loops.ready_for(plan, predictions, targets)
    if ready is None and not rows.takes(plan):
        return wide.at_once(plan, request, some_rows) if count is None else None
    if ready is None:
        slopes = request.room(bits_of(plan.predictions_dtype))
        arrays = predictions, targets, upstream, count, slopes, request.threads, some_rows
        found = host.run(rows.at_once, plan, *arrays)
        return None if found is None else (found, slopes)
    if count is not None:
        ready = ready.over(count)
    u = loops.upstream_of(upstream)
    if u is None:
        return None
    slopes = request.room(bits_of(plan.predictions_dtype))
    value = np.empty((), np.float32)
    left = compiled.call(
        ready.fixed,
        u,
        loops.bits(predictions),
        targets,
        0 if slopes is None else slopes,
        value,
        request.threads,
    )
    if left is not None:
        finished = host.run(finish, ready, left, predictions, targets, u, slopes)
        if finished is None:
            return None
        value[...] = finished
    return value, slopes


def finish(
    ready: loops.Ready,
    left: compiled.Left,
    predictions: Array,
    targets: Array,
    upstream: float,
    slopes: Array | None,
) -> np.float32 | None:
    """Compute what a loop left undecided of a call.

    Args:
        ready: the call.
        left: from `compiled.call`.
        predictions: the predictions.
        targets: the targets.
        upstream: the upstream gradient.
        slopes: the gradient, which receives the missing numbers.

    Returns:
        The loss, or None if its sum is undecided.
    """
    with np.errstate(all="ignore"):
        total = left.total
        if total.left or len(left.elements):
            rows = None if slopes is None else slopes.reshape(ready.rows)
            of_rows = predictions.reshape(ready.rows), targets.reshape(ready.rows[0])
            total = _finished(ready, left, *of_rows, upstream, rows)
        exactly = partial(loops.exact_sum, ready, predictions, targets)
        return loops.rounded(total, ready.divisor, exactly)


def _finished(
    ready: loops.Ready,
    left: compiled.Left,
    predictions: Array,
    targets: Array,
    upstream: float,
    slopes: Array | None,
) -> compiled.Total:
    """Compute the rows that a loop left undecided, as a call of their own, and add their losses."""
    found = loops.second_tier(ready, left, predictions, targets, upstream, slopes)
    plan = ready.plan
    chosen = np.union1d(np.flatnonzero(left.positions), found.rows)
    if not len(chosen):
        return found.total
    divisor = (Ball(np.float64(ready.divisor)), lambda: Fraction(ready.divisor))
    call = call_of_rows(plan, predictions[chosen], targets[chosen], divisor)
    losses = np.zeros(len(chosen), np.float32)
    some = None if slopes is None else slopes[chosen]
    scale = None if some is None else _scale(call, upstream, divisor)
    # A row that only its slopes left undecided has its loss in the total already.
    missing = left.positions.copy()
    missing[found.rows[found.columns < 0]] = True
    own = dataclasses.replace(found.work, left=left.positions[chosen])
    single = found._replace(work=own, rows=np.searchsorted(chosen, found.rows))
    loops.finish_elements(call, single, some, scale)
    _positions_into(call, losses, some, scale, "float32", own.left)
    if slopes is not None:
        slopes[chosen] = some
    return found.total.plus(losses[missing[chosen]].tolist())


def some_rows(
    plan: Plan,
    rows: Array,
    targets: Array,
    divisor: Any,
    upstream: Any,
    weight: Array | None = None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """Compute some rows of a call: their losses, and their rows of the gradient."""
    with np.errstate(all="ignore"):
        call = call_of_rows(plan, rows, targets, divisor, weight)
        return _carry_out_some(call, np.arange(len(rows)), upstream, gradient=gradient)


def _carry_out(
    call: HostCall, upstream: Any, out: Array | None, *, gradient: bool
) -> tuple[Array, Array | None]:
    """Compute the results of `evaluate` by the tiers."""
    plan = call.plan
    divisor = call.divisor_of_mean()
    losses = _new_losses(call)
    form = bits_of(call.plan.predictions_dtype)
    out = None if out is None else out.view(form)
    slopes = _slopes_in(call, form, out) if gradient else None
    scale = _scale(call, upstream, divisor) if gradient else None
    _positions_into(call, losses, slopes, scale, _term_dtype(call))
    reduced: Any
    if plan.spec.reduction == "none":
        reduced = losses.reshape(call.positions).astype(np.float64, copy=False)
    else:
        reduced = _reduced(call, losses, divisor)
    return stored(np.asarray(reduced), plan.result_dtype), _back(call, slopes, out)


def _carry_out_some(
    call: HostCall, positions: Array, upstream: Any, *, gradient: bool
) -> tuple[Array, Array | None]:
    """Compute the results of `evaluate_some`."""
    divisor = call.divisor_of_mean()
    losses = _new_losses(call)
    # Allocate all rows, because zeroed memory that is never touched costs nothing.
    slopes = np.zeros(call.rows.shape, bits_of(call.plan.predictions_dtype)) if gradient else None
    only = np.zeros(len(call.rows), bool)
    only[positions] = True
    scale = _scale(call, upstream, divisor) if gradient else None
    _positions_into(call, losses, slopes, scale, _term_dtype(call), only)
    return losses[positions], None if slopes is None else slopes[positions]


def _term_dtype(call: HostCall) -> str:
    if call.plan.spec.reduction == "none":
        return call.plan.result_dtype
    return "float64" if call.plan.predictions_dtype == "float64" else "float32"


def _new_losses(call: HostCall) -> Array:
    # float32 also holds losses that are rounded to narrower dtypes.
    return np.zeros(len(call.rows), np.float64 if _term_dtype(call) == "float64" else np.float32)


def _scale(call: HostCall, upstream: Any, divisor: Any) -> Scale:
    u = plain(np.asarray(1.0 if upstream is None else upstream))
    return Scale(call, u.reshape(-1) if u.ndim else u, divisor)


def _slopes_in(call: HostCall, dtype: np.dtype[Any], out: Array | None) -> Array:
    """The array that receives the gradient row by row, with 0 in rows that are not computed."""
    if out is None or not _classes_last(call):
        return aligned(call.rows.shape, dtype, zeros=True)
    rows = out.reshape(call.rows.shape)
    if not call.kept.all():
        rows[~call.kept] = 0
    return rows


def _classes_last(call: HostCall) -> bool:
    return call.plan.axis in (None, len(call.shape) - 1)


def _back(call: HostCall, slopes: Array | None, out: Array | None) -> Array | None:
    """The gradient in the shape of the predictions, in `out` if given."""
    if slopes is None or _classes_last(call):
        return None if slopes is None else slopes.reshape(call.shape)
    axis = call.plan.axis
    assert axis is not None
    moved = np.moveaxis(slopes.reshape(*call.positions, call.rows.shape[1]), -1, axis)
    if out is None:
        return np.ascontiguousarray(moved)
    out[...] = moved
    return out


def _reduced(call: HostCall, losses: Array, divisor: Any) -> float:
    """The sum or the mean of rounded losses."""
    if call.divides and isinstance(divisor, float) and divisor == 0.0:
        return 0.0 if call.plan.spec.on_empty == "zero" else np.nan
    if not np.isfinite(losses).all():
        total = float(np.sum(losses[~np.isfinite(losses)]))
        # A finite divisor is a count or a sum of weights that are not negative, so it is positive.
        return total / divisor if isinstance(divisor, float) else total
    if isinstance(divisor, float):
        return 0.0 if np.isinf(divisor) else np.nan
    ball, exactly = divisor
    return quotient(Sum(losses), ball, exactly, call.plan.result_dtype)


def _positions_into(
    call: HostCall,
    losses: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
    only: Bools | None = None,
) -> None:
    """Compute all positions, or only the flagged ones, into `losses` and `slopes`."""
    plan = call.plan
    form = plan.predictions_dtype
    if scale is not None and scale.nothing:
        if slopes is not None:
            slopes[...] = 0
        scale = slopes = None
    _poison(call, call.nan, losses, slopes)
    todo = call.kept & ~call.nan & ~call.special
    special = call.special.copy()
    if only is not None:
        todo, special = todo & only, special & only
    if scale is not None and scale.special:
        nan, others = scale.not_finite(len(todo))
        special |= todo & others
        # A NaN factor makes every slope NaN. Write NaN here rather than ask the oracle, because
        # a training that has diverged has a NaN factor at every position.
        poisoned = todo & nan
        _finite_into(call, poisoned, special, losses, None, None, dtype)
        if slopes is not None:
            slopes[poisoned] = stored(np.full(1, np.nan), form)
        todo &= ~(nan | others)
    _finite_into(call, todo, special, losses, slopes, scale, dtype)
    for i in np.flatnonzero(special).tolist():
        losses[i] = call.oracle_loss(i, dtype)
        if slopes is not None and scale is not None:
            row = [call.oracle_slope(i, c, scale) for c in range(slopes.shape[1])]
            slopes[i] = stored(np.array(row), form)


def _finite_into(
    call: HostCall,
    todo: Bools,
    special: Bools,
    losses: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> None:
    """Compute positions whose scale is finite, or whose slopes are not wanted.

    Positions that need the oracle are flagged in `special`.
    """
    left = todo
    if "fast" not in counts.skipped_tiers:
        left = fast.carry_out(call, todo, losses, slopes, scale, dtype)
    chosen = np.flatnonzero(left)
    if not len(chosen):
        return
    nan, infinite = call.odd_logits(chosen)
    _poison(call, chosen[nan], losses, slopes)
    special[chosen[infinite]] = True
    chosen = chosen[~(nan | infinite)]
    step = max(1, _BLOCK // max(1, call.read.shape[1]))
    for start in range(0, len(chosen), step):
        round_positions(call, chosen[start : start + step], losses, slopes, scale, dtype)


def _poison(call: HostCall, which: Any, losses: Array, slopes: Array | None) -> None:
    losses[which] = np.nan
    if slopes is not None:
        slopes[which] = stored(np.full(1, np.nan), call.plan.predictions_dtype)
