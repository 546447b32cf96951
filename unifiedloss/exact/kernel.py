"""The host kernel of exact mode: one call on NumPy arrays, from the plan to correctly rounded numbers.

Ziv's strategy, in three tiers. `fast` computes in float64 with a bound derived by hand, for the kinds of loss that are used most. What that
leaves undecided, and every other kind, is computed in double-double `balls`, which carry their bound along. What they leave undecided
(exact ties of irrational appearance, mostly) goes to the oracle, which raises its precision until the rounding is known. Each
tier rounds only what it can prove. Plans with a rule that the tiers do not know are the oracle's as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unifiedloss import reference
from unifiedloss.exact import counts, fast
from unifiedloss.exact.call import Array, Bools, HostCall, plain
from unifiedloss.exact.rounding import stored
from unifiedloss.exact.scale import Scale
from unifiedloss.exact.sums import Sum, quotient
from unifiedloss.exact.tiers import round_positions
from unifiedloss.plan import Plan

_BLOCK = 1 << 13
"""Elements that go through the balls at a time: their temporaries stay in the processor's cache."""


def evaluate(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | float | None = None,
    *,
    gradient: bool,
    exp: Callable[..., Any] = np.exp,
    out: Array | None = None,
) -> tuple[Array, Array | None]:
    """The loss of a plan and, where asked for, its gradient with respect to the predictions.

    Bad values are not raised: those positions are NaN. So is an empty mean under ``on_empty="error"``.

    Args:
        plan: from `unifiedloss.spec.resolve`, every extent known.
        predictions: in the plan's dtype; bfloat16 as an array of ml_dtypes' type, or widened to float32. So are floating targets.
        targets: labels or numbers.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the gradient that arrives from above: a number, or under "none" an array shaped like the loss. Default: ones.
        gradient: whether the gradient is wanted.
        exp: the exponential of the first tier, ``exp(x, out=x)`` on float64, where an adapter has a faster one than NumPy's. It may err by
            2 u as NumPy's may.
        room: memory for the gradient, if it is to be written there: an array like the predictions, in C order.

    Returns:
        The loss in the result dtype and the gradient in the predictions' dtype, in C order; bfloat16 as its bits in uint16.
    """
    if plan.oracle_only:
        value, slope = _by_oracle(
            plan, predictions, targets, sample_weight, mask, upstream, gradient=gradient
        )
        return value, slope if slope is None or out is None else _written(out, slope)
    with np.errstate(all="ignore"):
        call = HostCall(plan, predictions, targets, sample_weight, mask, exp)
        return _carry_out(call, upstream, out, gradient=gradient)


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
    """What `evaluate` finds of some positions of a call, for programs that have found the others themselves.

    Args:
        plan: see `evaluate`, and so are the arrays.
        positions: which positions, counted over all of the loss's axes.
        predictions: all of them.
        targets: all of them.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the gradient that arrives from above.
        gradient: whether the gradient is wanted.

    Returns:
        The rounded losses of the positions, before any reduction, and the rows of the gradient, (positions, K), bfloat16 as its bits.
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
    """The reduced loss of a call whose rounded losses, one per position, are known."""
    with np.errstate(all="ignore"):
        call = HostCall(plan, predictions, targets, sample_weight, mask)
        divisor = call.divisor_of_mean()
        return stored(np.asarray(_reduced(call, losses.reshape(-1), divisor)), plan.result_dtype)


def _by_oracle(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Array | float | None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """What `evaluate` returns, by the oracle alone."""
    spec = plan.spec.replace(on_empty="nan") if plan.spec.on_empty == "error" else plan.spec
    above: Any = None
    if upstream is not None:
        each = np.asarray(upstream, np.float64)
        above = each.ravel().tolist() if plan.spec.reduction == "none" else each.item()
    found = reference.evaluate(
        spec,
        _tensor(predictions, plan.predictions_dtype),
        _tensor(targets, plan.targets_dtype),
        None if sample_weight is None else _tensor(sample_weight),
        None if mask is None else _tensor(mask),
        terms="rounded",
        upstream=above,
        gradients="predictions" if gradient else False,
    )
    shape: Any = plan.positions if plan.spec.reduction == "none" else ()
    loss = stored(np.asarray(found.loss, np.float64).reshape(shape), plan.result_dtype)
    if found.grad_predictions is None:
        return loss, None
    return loss, stored(
        np.reshape(found.grad_predictions, predictions.shape), plan.predictions_dtype
    )


def _written(out: Array, x: Array) -> Array:
    """An array in memory that was given for it, whose dtype may be that of which x holds the bits."""
    out = out.view(x.dtype)
    out[...] = x
    return out


def _tensor(x: Array, dtype: str | None = None) -> reference.Tensor:
    """An array as the oracle takes it; without a dtype named, in that of its numbers as NumPy knows them."""
    x = plain(x)
    return reference.Tensor(x.ravel().tolist(), x.shape, x.dtype.name if dtype is None else dtype)


def _carry_out(
    call: HostCall, upstream: Any, out: Array | None, *, gradient: bool
) -> tuple[Array, Array | None]:
    """What `evaluate` returns."""
    plan = call.plan
    none = plan.spec.reduction == "none"
    divisor = call.divisor_of_mean()
    losses = _new_losses(call)
    form = _slope_form(call)
    out = None if out is None else out.view(form)
    slopes = _slopes_in(call, form, out) if gradient else None
    _positions_into(
        call,
        losses,
        slopes,
        _scale(call, upstream, divisor) if gradient else None,
        _term_dtype(call),
    )
    reduced = (
        losses.reshape(call.positions).astype(np.float64, copy=False)
        if none
        else _reduced(call, losses, divisor)
    )
    return stored(np.asarray(reduced), plan.result_dtype), _back(call, slopes, out)


def _carry_out_some(
    call: HostCall, positions: Array, upstream: Any, *, gradient: bool
) -> tuple[Array, Array | None]:
    """What `evaluate_some` returns."""
    divisor = call.divisor_of_mean()
    losses = _new_losses(call)
    slopes = (
        np.zeros(call.rows.shape, _slope_form(call)) if gradient else None
    )  # memory that is not touched costs nothing
    only = np.zeros(len(call.rows), bool)
    only[positions] = True
    _positions_into(
        call,
        losses,
        slopes,
        _scale(call, upstream, divisor) if gradient else None,
        _term_dtype(call),
        only,
    )
    return losses[positions], None if slopes is None else slopes[positions]


def _term_dtype(call: HostCall) -> str:
    if call.plan.spec.reduction == "none":
        return call.plan.result_dtype
    return "float64" if call.plan.predictions_dtype == "float64" else "float32"


def _slope_form(call: HostCall) -> np.dtype[Any]:
    return np.dtype(
        "uint16" if call.plan.predictions_dtype == "bfloat16" else call.plan.predictions_dtype
    )


def _new_losses(call: HostCall) -> Array:
    # float32 holds what is rounded to it, and to narrower types.
    return np.zeros(len(call.rows), np.float64 if _term_dtype(call) == "float64" else np.float32)


def _scale(call: HostCall, upstream: Any, divisor: Any) -> Scale:
    u = np.asarray(1.0 if upstream is None else upstream, np.float64)
    return Scale(call, u.reshape(-1) if u.ndim else u, divisor)


def _slopes_in(call: HostCall, dtype: np.dtype[Any], out: Array | None) -> Array:
    """Where the gradient is made, row by row; 0 where nothing will be written."""
    if out is None or not _classes_last(call):
        return _aligned_zeros(call.rows.shape, dtype)
    rows = out.reshape(call.rows.shape)
    if not call.kept.all():
        rows[~call.kept] = 0
    return rows


def _classes_last(call: HostCall) -> bool:
    return call.plan.axis in (None, len(call.shape) - 1)


def _back(call: HostCall, slopes: Array | None, out: Array | None) -> Array | None:
    if slopes is None or _classes_last(call):
        return None if slopes is None else slopes.reshape(call.shape)
    moved = np.moveaxis(slopes.reshape(*call.positions, call.rows.shape[1]), -1, call.plan.axis)  # type: ignore[arg-type]
    if out is None:
        return np.ascontiguousarray(moved)
    out[...] = moved
    return out


def _reduced(call: HostCall, losses: Array, divisor: Any) -> float:
    """The sum or the mean of rounded losses."""
    mean = call.plan.spec.reduction == "mean"
    if mean and isinstance(divisor, float) and divisor == 0.0:
        return 0.0 if call.plan.spec.on_empty == "zero" else np.nan
    if not np.isfinite(losses).all():
        total = float(np.sum(losses[~np.isfinite(losses)]))
        if not isinstance(divisor, float):
            return total * float(np.sign(divisor[0].high))
        return total / divisor
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
    plan = call.plan
    form = plan.predictions_dtype
    nothing = scale is not None and scale.nothing
    if nothing:
        if slopes is not None:
            slopes[...] = 0
        scale = slopes = None
    _poison(call, call.nan, losses, slopes)
    todo = call.kept & ~call.nan & ~call.special
    special = call.special.copy()
    if only is not None:
        todo, special = todo & only, special & only
    if scale is not None and scale.special:
        nan, endless = scale.not_finite(len(todo))
        special |= todo & endless
        # Where the factor is NaN so is every slope, in a training that has diverged all of them: no work for the oracle.
        lost = todo & nan
        _finite_into(call, lost, special, losses, None, None, dtype)
        if slopes is not None:
            slopes[lost] = stored(np.full(1, np.nan), form)
        todo &= ~(nan | endless)
    _finite_into(call, todo, special, losses, slopes, scale, dtype)
    for i in np.flatnonzero(special).tolist():
        losses[i] = call.oracle_loss(i, dtype)
        if slopes is not None and scale is not None:
            slopes[i] = stored(
                np.array([call.oracle_slope(i, c, scale) for c in range(slopes.shape[1])]), form
            )


def _finite_into(
    call: HostCall,
    todo: Bools,
    special: Bools,
    losses: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> None:
    """Positions whose scale is finite, or whose slopes are not wanted. What is for the oracle is noted in `special`."""
    left = (
        todo
        if "fast" in counts.skipped_tiers
        else fast.carry_out(call, todo, losses, slopes, scale, dtype)
    )
    chosen = np.flatnonzero(left)
    if not len(chosen):
        return
    nan, odd = call.odd_logits(chosen)
    _poison(call, chosen[nan], losses, slopes)
    special[chosen[odd]] = True
    chosen = chosen[~(nan | odd)]
    step = max(1, _BLOCK // max(1, call.read.shape[1]))
    for start in range(0, len(chosen), step):
        round_positions(call, chosen[start : start + step], losses, slopes, scale, dtype)


def _poison(call: HostCall, which: Any, losses: Array, slopes: Array | None) -> None:
    losses[which] = np.nan
    if slopes is not None:
        slopes[which] = stored(np.full(1, np.nan), call.plan.predictions_dtype)


def _aligned_zeros(shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Zeros that begin at a multiple of 64 bytes: such memory TensorFlow and JAX take over as it is, and other memory they copy."""
    size = shape[0] * shape[1] * dtype.itemsize
    out = np.zeros(size + 64, np.uint8)
    start = -out.ctypes.data % 64
    zeros: Array = out[start : start + size].view(dtype).reshape(shape)
    return zeros
