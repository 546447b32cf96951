r"""The first tier of exact mode: float64 with hand-derived error bounds.

It covers the losses from logits and the squared error. With \(u = 2^{-53}\), it assumes these
bounds of NumPy, which tests check:

- exp errs by at most 2 u, and so does an adapter's replacement;
- log1p errs by at most 4 u;
- the sum over a contiguous row of K float64 errs by at most `_height(K)` u times the sum of the
  magnitudes. NumPy adds in pairs above blocks of 128, and eight terms at a time within a block.

A result v with relative error E is decided where v (1 - E) and v (1 + E) round to the same number.

Cross-entropy with class indices computes the softmax without a shift: float64 holds \(e^z\) for
\(|z| \le 300\), and then the argument of exp is exact. With S the sum of all \(e^{z_j}\) except the
label's, nothing cancels:

$$\ell = \log(1 + S / e^{z_y}), \qquad p_y - 1 = -\frac{S}{S + e^{z_y}}.$$

Dense or smoothed targets, and rows outside that range, subtract the largest logit m. A float32
(or narrower) z loses digits in z - m only where \(|z| < 2^{-28} |m|\), so the argument of exp errs
by at most u |m|.

float64 loses at most \(2^{-1022}\) to underflow, also where exp returns 0. `_in_reach` and a bound
on the factor of a row's exponentials keep that loss negligible under every weight: it stays below
\(2^{-200}\), and thus below u times every result that is not rounded to 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, U, two_sum
from unifiedloss.exact.call import HostCall
from unifiedloss.exact.rounding import decide, stored, to_format
from unifiedloss.exact.scale import Scale
from unifiedloss.exact.tiers import round_elements
from unifiedloss.plan import Plan

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_BLOCK = 1 << 17
"""Elements per block. Larger blocks exceed the caches; smaller ones cost more calls per element."""

_ELEMENTS = 1 << 14
"""Elements per block of elementwise losses: their many temporaries fit the cache together."""

_EXP = 2 * U
_LOG1P = 4 * U
_SMALL = 2.0**-990
"""An upper bound of the absolute error of exp by underflow."""

_REACH = 2.0**150
"""This tier takes weights, upstream gradients and divisors from 1 / _REACH to _REACH.

The range includes all float32 numbers, subnormal ones too.
"""

_LARGEST_RATIO = 2.0**800
"""The largest factor of exponentials whose absolute error may be 2^-1022."""


def _height(k: int) -> int:
    """The most additions that a term passes through in NumPy's sum of k terms."""
    return min(k, 26 + max(0, math.ceil(math.log2(max(k, 1) / 128))))


def carry_out(
    call: HostCall,
    todo: Bools,
    losses: NDArray[Any],
    slopes: NDArray[Any] | None,
    scale: Scale | None,
    dtype: str,
) -> Bools:
    """Compute and round the positions that float64 decides.

    Args:
        call: the call.
        todo: the positions to compute.
        losses: receives the losses.
        slopes: receives the gradients, or None.
        scale: the factor of the slopes, or None.
        dtype: the dtype that losses are rounded to.

    Returns:
        The positions that are left undecided.
    """
    plan = call.plan
    if plan.predictions_dtype == "float64" or (plan.kind != "real" and not plan.from_logits):
        return todo
    if (
        plan.scale != 1.0
        or plan.average_last_axis
        or (plan.class_weighting == "position" and (plan.kind == "dense" or plan.label_smoothing))
    ):
        return todo
    if not _is_in_reach(plan, scale):
        return todo
    if plan.kind == "index" and not plan.label_smoothing:
        carry: Any = _index
    elif plan.kind in ("index", "dense"):
        carry = _dense
    else:
        carry = _binary if plan.kind == "binary" else _regression
    left = np.zeros(len(todo), bool)
    step = _ELEMENTS if plan.axis is None else max(1, _BLOCK // call.rows.shape[1])
    buffers: list[_Buffers] = []
    if carry is _index:
        buffers.append(_Buffers(min(step, len(todo)), call.rows.shape[1]))
    chosen = np.flatnonzero(todo)
    all_chosen = len(chosen) == len(todo)
    for start in range(0, len(chosen), step):
        stop = min(start + step, len(chosen))
        # Use a slice where every position is chosen, because an index array copies.
        some: Any = slice(start, stop) if all_chosen else chosen[start:stop]
        if not _are_in_reach(call, some, scale):
            left[some] = True
            continue
        left[some] = carry(call, some, losses, slopes, scale, dtype, *buffers)
    return left


def _in_reach(x: Any) -> bool:
    """Whether every number is 0 or has a size from 1 / _REACH to _REACH."""
    size = np.abs(np.asarray(x, np.float64))
    return bool(((size == 0) | (size >= 1 / _REACH) & (size <= _REACH)).all())


def _is_in_reach(plan: Plan, scale: Scale | None) -> bool:
    """Whether the numbers that all positions share are in the range of `_REACH`."""
    shared: list[Any] = [x for x in (plan.class_weights, plan.pos_weight) if x is not None]
    if scale is not None:
        shared.append(scale.divisor.high)
        if not scale.upstream.ndim:
            shared.append(scale.upstream)
        if not np.isfinite(scale.divisor.radius):
            return False
    return all(map(_in_reach, shared))


def _are_in_reach(call: HostCall, some: Any, scale: Scale | None) -> bool:
    """Whether the own weights, targets and upstream gradients of some positions are in range."""
    if call.weight is not None and not _in_reach(call.weight[some]):
        return False
    wide_targets = call.plan.kind == "dense" and call.plan.targets_dtype == "float64"
    if wide_targets and not _in_reach(call.targets[some]):
        return False
    return scale is None or not scale.upstream.ndim or _in_reach(scale.upstream[some])


class _Buffers:
    """Memory for a block of rows, reused because fresh pages cost as much as an exponential."""

    def __init__(self, rows: int, size: int) -> None:
        self.exp = np.empty((rows, size))
        self.upper = np.empty((rows, size), np.float32)
        self.differ = np.empty((rows, size), bool)


def _indices(some: Any) -> Any:
    return np.arange(some.start, some.stop) if isinstance(some, slice) else some


def _between(low: Floats, high: Floats, dtype: str) -> tuple[NDArray[Any], Bools]:
    """Round both ends of intervals. Return the rounded low ends and where the ends differ."""
    first: NDArray[Any]
    last: NDArray[Any]
    if dtype == "float32":
        first, last = low.astype(np.float32), high.astype(np.float32)
        np.add(first, np.float32(0.0), out=first)  # no -0
    else:
        first, last = to_format(low, dtype), to_format(high, dtype)
    return first, ~(first == last)


# ------------------------------------------------------------------------------------ cross-entropy


def _index(
    call: HostCall,
    some: Any,
    losses: Any,
    slopes: Any,
    scale: Scale | None,
    dtype: str,
    buffers: _Buffers,
) -> Bools:
    rows = call.rows[some]
    n, size = rows.shape
    labels = call.targets[some].astype(np.intp)
    each = np.arange(n)
    exp = buffers.exp[:n]
    np.copyto(exp, rows)
    call.exp(exp, out=exp)
    at_label = exp[each, labels]
    exp[each, labels] = 0.0
    others = exp.sum(1)
    total = others + at_label
    fits = (total > 1e-130) & (total < 1e130) & (at_label > 1e-130)
    weight = call.class_weight_of(some, labels)
    sum_error = (_height(size) + 3) * U
    loss = np.log1p(others / at_label) * weight
    error = sum_error + _EXP + _LOG1P + 8 * U
    rounded, undecided = _between(loss * (1 - error), loss * (1 + error), dtype)
    losses[some] = rounded
    undecided |= ~fits
    if undecided.any():
        where = np.flatnonzero(undecided)
        indices = _indices(some)[where]
        losses[indices], undecided[where] = _saturated(call, indices, dtype)
    if slopes is None or scale is None:
        return undecided
    ratio = scale.float64(some) * call.own_class_weight(labels) / total
    fits &= np.abs(ratio) < _LARGEST_RATIO
    error = sum_error + _EXP + 12 * U
    form = call.plan.predictions_dtype
    label_slope = -others * ratio
    at_label_rounded, label_undecided = _between(
        label_slope * (1 - error), label_slope * (1 + error), form
    )
    differ = _scaled_into(buffers, n, ratio, error, slopes, some, form)
    slopes[_indices(some), labels] = stored(at_label_rounded, form)
    # Leave rows that do not fit even if both ends agree: an infinite total makes both ends 0.
    undecided |= ~fits
    if not differ.any() and not label_undecided.any():
        return undecided
    doubtful = np.flatnonzero(differ.any(1) | label_undecided)
    if len(doubtful) > 32:  # for many rows, the next tier is faster on full rows
        undecided[doubtful] = True
    else:
        for row in doubtful:
            columns = np.flatnonzero(differ[row])
            if label_undecided[row]:
                columns = np.append(columns, labels[row])
            if fits[row]:
                round_elements(call, _indices(some)[row], columns, slopes, scale)
    return undecided


def _scaled_into(
    buffers: _Buffers, n: int, ratio: Floats, error: float, slopes: Any, some: Any, form: str
) -> Bools:
    """Round e_c r into `slopes` and return which elements are undecided.

    This overwrites the exponentials.
    """
    exp, upper = buffers.exp[:n], buffers.upper[:n]
    if form != "float32":
        rounded, undecided = _between(
            exp * (ratio * (1 - error))[:, None], exp * (ratio * (1 + error))[:, None], form
        )
        slopes[some] = stored(rounded, form)
        return undecided
    lower = slopes[some] if isinstance(some, slice) else np.empty(exp.shape, np.float32)
    # NumPy broadcasts the factor of a row through its buffer. Make the buffer no longer than a row,
    # because only then is it filled once per row.
    before = np.setbufsize(min(8192, max(512, exp.shape[1] // 16 * 16)))
    np.multiply(exp, (ratio * (1 - error))[:, None], out=exp)
    np.setbufsize(before)
    np.copyto(lower, exp, casting="same_kind")
    np.multiply(exp, (1 + error) / (1 - error) * (1 + 4 * U), out=exp)
    np.copyto(upper, exp, casting="same_kind")
    differ: Bools = np.not_equal(lower, upper, out=buffers.differ[:n])
    if np.signbit(ratio).any():
        lower += np.float32(0.0)  # no -0
    if not isinstance(some, slice):
        slopes[some] = lower
    return differ


def _saturated(call: HostCall, chosen: Any, dtype: str) -> tuple[Floats, Bools]:
    r"""Losses \(A + \log(1 + s)\) of rows, with the exact part \(A = m - z_y\) kept separate.

    A is often a tie, which a tiny s decides.
    """
    rows = call.rows[chosen].astype(np.float64)
    labels = call.targets[chosen].astype(np.intp)
    each = np.arange(len(rows))
    top = rows.argmax(1)
    largest = rows[each, top]
    own = rows[each, labels]
    np.subtract(rows, largest[:, None], out=rows)
    call.exp(rows, out=rows)
    rows[each, top] = 0.0
    others = rows.sum(1)
    rest = np.log1p(others)
    error = (_height(rows.shape[1]) + 3 + np.minimum(np.abs(largest), 800.0)) * U + _EXP + _LOG1P
    gap, lost = two_sum(largest, -own)
    weights = [] if call.plan.class_weights is None else [call.own_class_weight(labels)]
    if call.weight is not None:
        weights.append(call.weight[chosen])
    loss = Ball(gap, lost) + Ball(rest, 0.0, rest * error + rows.shape[1] * 1e-300)
    for weight in weights:
        loss = loss * Ball(weight)
    high, low, radius = (np.array(np.broadcast_to(x, gap.shape)) for x in loss)
    return decide(high, low, radius, dtype)


def _dense(
    call: HostCall, some: Any, losses: Any, slopes: Any, scale: Scale | None, dtype: str
) -> Bools:
    plan = call.plan
    shifted = call.rows[some].astype(np.float64)
    n, size = shifted.shape
    tau, tau_error = call.tau(some)
    each = np.arange(n)
    top = shifted.argmax(1)
    largest = shifted[each, top]
    np.subtract(shifted, largest[:, None], out=shifted)
    shift_error = np.minimum(np.abs(largest), 800.0) * U
    sum_error = (_height(size) + 3) * U
    apart = -np.where(tau != 0, tau * shifted, 0.0).sum(1)
    call.exp(shifted, out=shifted)
    shifted[each, top] = 0.0
    others = shifted.sum(1)
    weight = tau.sum(1)
    sample = 1.0 if call.weight is None else call.weight[some]
    loss = (apart + weight * np.log1p(others)) * sample
    error = 2 * sum_error + tau_error + _EXP + shift_error + _LOG1P + 8 * U
    rounded, undecided = _between(loss * (1 - error), loss * (1 + error), dtype)
    losses[some] = rounded
    undecided |= ~np.isfinite(largest)
    if slopes is None or scale is None:
        return undecided
    factor = np.broadcast_to(scale.float64(some), (n,))
    total = 1.0 + others
    error = 3 * sum_error + 2 * tau_error + _EXP + shift_error + 16 * U
    negative = tau * factor[:, None]
    positive = shifted
    positive *= (weight * factor / total)[:, None]
    # At the largest logit p is next to 1, so use (T - tau) - T s / (1 + s).
    tau = tau.copy()
    tau[each, top] = 0.0
    positive[each, top] = tau.sum(1) * factor
    negative[each, top] = weight * factor * (others / total)
    middle = positive - negative
    width = error[:, None] * (np.abs(positive) + np.abs(negative))
    form = plan.predictions_dtype
    rounded, differ = _between(middle - width, middle + width, form)
    slopes[some] = stored(rounded, form)
    undecided[np.flatnonzero(differ.any(1))] = True
    return undecided


# -------------------------------------------------------------------------------------- elementwise


def _binary(
    call: HostCall, some: Any, losses: Any, slopes: Any, scale: Scale | None, dtype: str
) -> Bools:
    z = call.rows[some][:, 0].astype(np.float64)
    yes, no, target_error = call.binary_targets(some)
    exp = -np.abs(z)
    call.exp(exp, out=exp)
    rest = (yes + no) * np.log1p(exp)
    apart = np.where(z >= 0, no, yes) * np.abs(z)
    sample = 1.0 if call.weight is None else call.weight[some]
    error = target_error + _EXP + _LOG1P + 10 * U
    loss = (apart + rest) * sample
    rounded, undecided = _between(loss * (1 - error), loss * (1 + error), dtype)
    if undecided.any() and call.hard and call.weight is None:
        # `apart` is exact and often a tie, which the tiny `rest` decides.
        where = np.flatnonzero(undecided)
        high, low = two_sum(apart[where], rest[where])
        rounded[where], undecided[where] = decide(high, low, rest[where] * error + _SMALL, dtype)
    losses[some] = rounded
    if slopes is None or scale is None:
        return undecided
    factor = scale.float64(some)
    total = 1.0 + exp
    larger, smaller = 1.0 / total, exp / total
    positive = np.where(z >= 0, larger, smaller) * no * factor
    negative = np.where(z >= 0, smaller, larger) * yes * factor
    error = target_error + _EXP + 14 * U
    middle = positive - negative
    width = error * (np.abs(positive) + np.abs(negative))
    form = call.plan.predictions_dtype
    rounded, differ = _between(middle - width, middle + width, form)
    slopes[some, 0] = stored(rounded, form)
    return undecided | differ


def _regression(
    call: HostCall, some: Any, losses: Any, slopes: Any, scale: Scale | None, dtype: str
) -> Bools:
    p = call.rows[some][:, 0].astype(np.float64)
    difference, lost = two_sum(p, -call.targets[some][:, 0].astype(np.float64))
    sample = 1.0 if call.weight is None else call.weight[some]
    loss = difference * difference * sample
    error = 6 * U
    rounded, undecided = _between(loss * (1 - error), loss * (1 + error), dtype)
    undecided |= lost != 0
    losses[some] = rounded
    if slopes is None or scale is None:
        return undecided
    slope = 2.0 * difference * scale.float64(some)
    form = call.plan.predictions_dtype
    if scale.power_of_two:
        # The product is exact. Half of these are ties, which no interval decides.
        rounded, differ = to_format(slope, form), np.zeros(len(p), bool)
    else:
        error = 8 * U
        rounded, differ = _between(slope * (1 - error), slope * (1 + error), form)
    slopes[some, 0] = stored(rounded, form)
    return undecided | differ
