r"""The exact tiers of the categorical cross-entropy: float64, and balls.

From logits, with class indices, float64 computes the softmax without a shift: it holds \(e^z\) for
\(|z| \le 300\), and then the argument of exp is exact. With S the sum of all \(e^{z_j}\) except the
label's, nothing cancels:

$$\ell = \log(1 + S / e^{z_y}), \qquad p_y - 1 = -\frac{S}{S + e^{z_y}}.$$

Dense or smoothed targets, and rows outside that range, subtract the largest logit m. A float32
(or narrower) z loses digits in z - m only where \(|z| < 2^{-28} |m|\), so the argument of exp errs
by at most u |m|.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact import counts
from unifiedloss.exact.balls import Ball, U, exp_in_two, two_sum
from unifiedloss.exact.call import HostCall
from unifiedloss.exact.fast import EXP, LOG1P, Carry, between, height, indices
from unifiedloss.exact.formulas import ONE, ZERO, one_minus, read_probabilities, sign_is_known
from unifiedloss.exact.rounding import decide, stored
from unifiedloss.exact.scale import Scale
from unifiedloss.exact.tiers import decided
from unifiedloss.plan import Plan

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_LARGEST_RATIO = 2.0**800
"""The largest factor of exponentials whose absolute error may be 2^-1022."""


# -------------------------------------------------------------------------------------- in float64


def float64(call: HostCall, rows: int) -> Carry | None:
    """The function that computes positions in float64; None if float64 cannot.

    Args:
        call: the call.
        rows: the most positions of one block.
    """
    plan = call.plan
    if not plan.from_logits:
        return None
    if plan.kind == "index" and not plan.label_smoothing:
        return partial(_index, _Buffers(rows, call.rows.shape[1]), call)
    return None if plan.class_weighting == "position" else partial(_dense, call)


class _Buffers:
    """Memory for a block of rows, reused because fresh pages cost as much as an exponential."""

    def __init__(self, rows: int, size: int) -> None:
        self.exp = np.empty((rows, size))
        self.upper = np.empty((rows, size), np.float32)
        self.differ = np.empty((rows, size), bool)


def _index(
    buffers: _Buffers,
    call: HostCall,
    some: Any,
    losses: Any,
    slopes: Any,
    scale: Scale | None,
    dtype: str,
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
    sum_error = (height(size) + 3) * U
    loss = np.log1p(others / at_label) * weight
    error = sum_error + EXP + LOG1P + 8 * U
    rounded, undecided = between(loss * (1 - error), loss * (1 + error), dtype)
    losses[some] = rounded
    undecided |= ~fits
    if undecided.any():
        where = np.flatnonzero(undecided)
        left = indices(some)[where]
        losses[left], undecided[where] = _saturated(call, left, dtype)
    if slopes is None or scale is None:
        return undecided
    ratio = scale.float64(some) * call.own_class_weight(labels) / total
    fits &= np.abs(ratio) < _LARGEST_RATIO
    error = sum_error + EXP + 12 * U
    form = call.plan.predictions_dtype
    label_slope = -others * ratio
    at_label_rounded, label_undecided = between(
        label_slope * (1 - error), label_slope * (1 + error), form
    )
    differ = _scaled_into(buffers, n, ratio, error, slopes, some, form)
    slopes[indices(some), labels] = stored(at_label_rounded, form)
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
                round_elements(call, indices(some)[row], columns, slopes, scale)
    return undecided


def _scaled_into(
    buffers: _Buffers, n: int, ratio: Floats, error: float, slopes: Any, some: Any, form: str
) -> Bools:
    """Round e_c r into `slopes` and return which elements are undecided.

    This overwrites the exponentials.
    """
    exp, upper = buffers.exp[:n], buffers.upper[:n]
    if form != "float32":
        rounded, undecided = between(
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
    shift_error = _error_of_shift(rows)
    call.exp(rows, out=rows)
    rows[each, top] = 0.0
    others = rows.sum(1)
    rest = np.log1p(others)
    error = (height(rows.shape[1]) + 3) * U + shift_error + EXP + LOG1P
    gap, lost = two_sum(largest, -own)
    weights = [] if call.plan.class_weights is None else [call.own_class_weight(labels)]
    if call.weight is not None:
        weights.append(call.weight[chosen])
    loss = Ball(gap, lost) + Ball(rest, 0.0, rest * error + rows.shape[1] * 1e-300)
    for weight in weights:
        loss = loss * Ball(weight)
    high, low, radius = (np.array(np.broadcast_to(x, gap.shape)) for x in loss)
    return decide(high, low, radius, dtype)


def _error_of_shift(shifted: Floats) -> Floats:
    """The relative error that rounding z - m causes in the exponentials of each row.

    A difference beyond 800 needs no bound, because its exponential is 0.
    """
    error: Floats = np.minimum(-shifted.min(1), 800.0) * U
    return error


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
    shift_error = _error_of_shift(shifted)
    sum_error = (height(size) + 3) * U
    apart = -np.where(tau != 0, tau * shifted, 0.0).sum(1)
    call.exp(shifted, out=shifted)
    shifted[each, top] = 0.0
    others = shifted.sum(1)
    weight = tau.sum(1)
    sample = 1.0 if call.weight is None else call.weight[some]
    loss = (apart + weight * np.log1p(others)) * sample
    error = 2 * sum_error + tau_error + EXP + shift_error + LOG1P + 8 * U
    rounded, undecided = between(loss * (1 - error), loss * (1 + error), dtype)
    losses[some] = rounded
    undecided |= ~np.isfinite(largest)
    if slopes is None or scale is None:
        return undecided
    factor = np.broadcast_to(scale.float64(some), (n,))
    total = 1.0 + others
    error = 3 * sum_error + 2 * tau_error + EXP + shift_error + 16 * U
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
    rounded, differ = between(middle - width, middle + width, form)
    slopes[some] = stored(rounded, form)
    undecided[np.flatnonzero(differ.any(1))] = True
    return undecided


def round_elements(call: HostCall, i: int, columns: Any, slopes: Any, scale: Scale) -> None:
    """Compute some gradient elements of one row of logits with a class index."""
    counts.undecided["elements"] += len(columns)
    logits = call.rows[i].astype(np.float64)
    label, top = int(call.targets[i]), int(logits.argmax())
    others = _partition(logits, top)
    total = Ball(np.float64(1.0)) + others
    own = Ball(np.float64(call.own_class_weight(label)))
    form = call.plan.predictions_dtype
    for c in columns:
        gap = Ball(*two_sum(logits[c], -logits[top]))
        at_top = c == top
        if at_top and c == label:
            # p - 1 of the largest logit is minus the share of the others, which cancels nothing.
            slope = -(others / total)
        else:
            share = (Ball(np.float64(1.0)) if at_top else gap.exp()) / total
            slope = share - Ball(np.float64(1.0)) if c == label else share
        rounded, doubtful = decided(scale.times(slope * own, np.array([i])), (1, 1), form)
        value = call.oracle_slope(i, int(c), scale) if doubtful[0, 0] else rounded[0, 0]
        slopes[i, c] = stored(np.array([value]), form)[0]


# ---------------------------------------------------------------------------------------- in balls


def balls(call: HostCall, chosen: Any) -> tuple[Ball, Ball]:
    """The losses of some positions, and the derivatives by the predictions that they read."""
    plan = call.plan
    rows = call.read[chosen].astype(np.float64)
    if call.of_labels:
        tau = call.label_weights(chosen)
    else:
        tau = _weighted_targets(plan, call.of_classes(chosen))
    if plan.log_probabilities:
        return _of_log_probabilities(rows, tau)
    if plan.from_logits:
        return _of_logits(rows, tau)
    return (_of_shares if plan.renormalize else _of_probabilities)(plan, rows, tau)


def _weighted_targets(plan: Plan, targets: Floats) -> Ball:
    r"""\(\tau_c = w_c t'_c\) of dense targets (n, K).

    Where class weights multiply positions, \(\tau_c = W t'_c\) with \(W = \sum_c w_c t_c\).
    """
    tau = Ball(targets)
    if plan.label_smoothing:
        assert plan.classes is not None
        smoothing = np.float64(plan.label_smoothing)
        tau = one_minus(smoothing) * tau + Ball(smoothing) / Ball(np.float64(plan.classes))
    if plan.class_weights is None:
        return tau
    weights = Ball(np.asarray(plan.class_weights))
    if plan.class_weighting == "position":
        return (weights * Ball(targets)).sum() * tau
    return weights * tau


def _of_logits(logits: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (m - z_c) + T \log(1 + s)\) and its slope \(T p_c - \tau_c\).

    m is the largest logit and s the sum of the other \(e^{z_j - m}\). Every part of the loss is
    positive. At the largest logit p is next to 1, so the slope is computed as
    \((T - \tau_c) - T s / (1 + s)\).
    """
    top = np.expand_dims(logits.argmax(-1), -1)
    other = np.ones(logits.shape, bool)
    np.put_along_axis(other, top, values=False, axis=-1)
    largest = np.take_along_axis(logits, top, -1)
    finite = logits > -np.inf
    gap = Ball(*two_sum(largest, -np.where(finite, logits, largest)))
    exp = (-gap).exp().where(finite, ZERO)
    others = exp.where(other, ZERO).sum()
    total = ONE + others
    weight = tau.sum()
    loss = (tau * gap).sum() + weight * others.log1p()
    slope = weight * (exp / total) - tau
    at_top = tau.where(other, ZERO).sum() - weight * (others / total)
    return loss, slope.where(other, at_top)


def _partition(logits: Floats, top: int) -> Ball:
    r"""\(\sum_{c \ne m} e^{z_c - z_m}\) of one row, to a relative error of 2^-60.

    This decides nearly all elements that float64 leaves undecided.
    """
    shifted, lost = two_sum(logits, -logits[top])
    high, low = exp_in_two(shifted, lost)
    high[top] = low[top] = 0.0
    numbers = high.tolist()
    total = math.fsum(numbers)
    rest = math.fsum([*numbers, -total]) + float(low.sum())
    return Ball(
        *two_sum(np.float64(total), np.float64(rest)),
        np.float64(total * 2.0**-60 + len(numbers) * 2.0**-990),
    )


def _of_probabilities(plan: Plan, probabilities: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-\log p_c)\) and its slope \(-\tau_c / p_c\).

    \(p_c\) is not read where \(\tau_c = 0\).
    """
    has_weight = ~tau.is_0()
    p, q, unclipped = read_probabilities(plan, probabilities, has_weight)
    cost = p.negative_log(q)
    loss = (tau * cost.where(has_weight, ZERO)).sum()
    return loss, (-(tau / p)).where(has_weight & unclipped, ZERO)


def _of_log_probabilities(logarithms: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-x_c)\) and its slope \(-\tau_c\)."""
    return (tau * Ball(-logarithms)).sum(), -tau


def _of_shares(plan: Plan, numbers: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-\log q_c)\) and its slope \(T / S - \tau_c / p_c\).

    For "before_clip", \(q = \mathrm{clip}(p / S)\) and S is the sum of p. T is the sum of
    \(\tau_c\) over the unclipped classes, and only they have the term \(\tau_c / p_c\).
    For "after_clip", \(q = \mathrm{clip}(p) / S\) and S is the sum of \(\mathrm{clip}(p)\). T is
    the sum of all \(\tau_c\), and the slope of a clipped class is 0.
    """
    read = Ball(np.where(np.abs(numbers) < plan.tiny, 0.0, numbers))
    if plan.renormalize == "before_clip":
        total = read.sum()
        others = total - read
        q, rest, unclipped, known = _clip(plan, read / total, others / total)
        weight = tau.where(unclipped, ZERO).sum()
        own = tau / read.where(unclipped & (read.high != 0), ONE)
        slope = weight / total - own.where(unclipped, ZERO)
    else:
        clipped, _, unclipped, known = _clip(plan, read, ONE - read)
        total = clipped.sum()
        q, rest = clipped / total, (total - clipped) / total
        slope = (tau.sum() / total - tau / clipped).where(unclipped, ZERO)
    # For q near 1 the high part of 1 - q may be negative, although 1 - q >= 0. Replace it by 0 and
    # keep the radius: 1 - q is known to be small and no more, and so is -log q.
    zeroed = Ball(np.maximum(rest.high, 0.0), np.where(rest.high < 0, 0.0, rest.low), rest.radius)
    cost = q.negative_log(zeroed)
    unknown = np.where(known.all(-1, keepdims=True), 0.0, np.inf)
    loss = (tau * cost).sum()
    loss = Ball(loss.high, loss.low, loss.radius + unknown)
    return loss, Ball(slope.high, slope.low, slope.radius + unknown)


def _clip(plan: Plan, x: Ball, complement: Ball) -> tuple[Ball, Ball, Any, Any]:
    """Clip a ball to the bounds.

    Returns:
        The clipped ball, 1 minus it, where nothing was clipped, and where these are known.
    """
    assert plan.bounds is not None  # every spec that divides by the sum clips too
    low, gap = (Ball(np.float64(bound)) for bound in plan.bounds)
    below, above = x - low, complement - gap
    known = sign_is_known(below) & sign_is_known(above)
    under, over = below.high < 0, above.high < 0
    clipped = low.where(under, (ONE - gap).where(over, x))
    rest = (ONE - low).where(under, gap.where(over, complement))
    return clipped, rest, ~(under | over), known
