r"""The losses and their slopes, position by position, in balls: what `unifiedloss.exact.kernel` rounds.

Each function takes float64 arrays that hold the inputs exactly and gives \(\ell_i\), shape (n, 1), and its derivatives by the
predictions, shape (n, K), without sample weight, divisor and upstream gradient. Inputs that are special (infinite, NaN, bad) are not for
here. Wherever two numbers that nearly cancel are subtracted, they are written so that what cancels is exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, exp_in_two, two_sum
from unifiedloss.spec import Plan

Floats = NDArray[np.float64]
_ZERO, _ONE = Ball(0.0), Ball(1.0)


def _one_minus(x: Any) -> Ball:
    return Ball(*two_sum(1.0, -x))


def weighted_targets(plan: Plan, targets: Floats) -> Ball:
    r"""\(\tau_c = w_c t'_c\) of dense targets (n, K)."""
    tau = Ball(targets)
    if plan.smoothing:
        assert plan.classes is not None
        tau = _one_minus(np.float64(plan.smoothing)) * tau + Ball(np.float64(plan.smoothing)) / Ball(
            np.float64(plan.classes)
        )
    return tau if plan.class_weights is None else Ball(np.asarray(plan.class_weights)) * tau


def cross_entropy(logits: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (m - z_c) + T \log(1 + s)\) and \(T p_c - \tau_c\), m the largest logit, s the sum of other \(e^{z_j - m}\).

    Every part of the loss is positive. At the largest logit the slope is \((T - \tau_c) - T s / (1 + s)\), as p is next to 1 there.
    """
    top = np.expand_dims(logits.argmax(-1), -1)
    other = np.ones(logits.shape, bool)
    np.put_along_axis(other, top, values=False, axis=-1)
    largest = np.take_along_axis(logits, top, -1)
    finite = logits > -np.inf
    gap = Ball(*two_sum(largest, -np.where(finite, logits, largest)))
    exp = (-gap).exp().where(finite, _ZERO)
    others = exp.where(other, _ZERO).sum()
    total = _ONE + others
    weight = tau.sum()
    loss = (tau * gap).sum() + weight * others.log1p()
    slope = weight * (exp / total) - tau
    at_top = tau.where(other, _ZERO).sum() - weight * (others / total)
    return loss, slope.where(other, at_top)


def partition(logits: Floats, top: int) -> Ball:
    r"""\(\sum_{c \ne m} e^{z_c - z_m}\) of one row, to a relative 2^-60: enough for nearly all that float64 leaves in doubt."""
    shifted, lost = two_sum(logits, -logits[top])
    high, low = exp_in_two(shifted, lost)
    high[top] = low[top] = 0.0
    numbers = high.tolist()
    total = math.fsum(numbers)
    rest = math.fsum([*numbers, -total]) + float(low.sum())
    return Ball(*two_sum(np.float64(total), np.float64(rest)), np.float64(total * 2.0**-60 + len(numbers) * 2.0**-990))


def cross_entropy_of_probabilities(plan: Plan, probabilities: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-\log p_c)\) and \(-\tau_c / p_c\); where \(\tau_c = 0\) nothing is read."""
    weighs = ~tau.is_0()
    p, q, slope_kept = _read(plan, probabilities, weighs)
    cost = p.negative_log(q)
    loss = (tau * cost.where(weighs, _ZERO)).sum()
    return loss, (-(tau / p)).where(weighs & slope_kept, _ZERO)


def negative_log_likelihood(logarithms: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-x_c)\) and \(-\tau_c\)."""
    return (tau * Ball(-logarithms)).sum(), -tau


def binary_targets(plan: Plan, targets: Floats, pos_weight: Floats | None) -> tuple[Ball, Ball]:
    r"""\(q t'\) and \(1 - t'\), the latter from \(1 - t\): near t = 1 nothing cancels."""
    yes, no = Ball(targets), _one_minus(targets)
    if plan.smoothing:
        keep, share = _one_minus(np.float64(plan.smoothing)), Ball(np.float64(plan.smoothing) / 2)
        yes, no = keep * yes + share, keep * no + share
    return (yes if pos_weight is None else Ball(pos_weight) * yes), no


def binary_cross_entropy(logits: Floats, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \max(-z, 0) + (1 - t') \max(z, 0) + (q t' + 1 - t') \log(1 + e^{-|z|})\) and its slope.

    The slope is \((1 - t') \sigma(z) - q t' \sigma(-z)\).
    """
    exp = Ball(-np.abs(logits)).exp()
    loss = yes * Ball(np.maximum(-logits, 0.0)) + no * Ball(np.maximum(logits, 0.0)) + (yes + no) * exp.log1p()
    total = _ONE + exp
    larger, smaller = _ONE / total, exp / total
    positive = logits >= 0
    return loss, no * larger.where(positive, smaller) - yes * smaller.where(positive, larger)


def binary_cross_entropy_of_probabilities(plan: Plan, probabilities: Floats, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = -q t' \log p - (1 - t') \log(1 - p)\) and \((1 - t') / (1 - p) - q t' / p\)."""
    everywhere = np.ones(probabilities.shape, bool)
    p, q, slope_kept = _read(plan, probabilities, everywhere)
    # A side without weight may be 0, and is not read.
    has_yes, has_no = ~yes.is_0(), ~no.is_0()
    p, q = p.where(has_yes, _ONE), q.where(has_no, _ONE)
    whole_p, whole_q = _complement_of(q, p, has_no), _complement_of(p, q, has_yes)
    loss = (yes * p.negative_log(whole_p)).where(has_yes, _ZERO) + (no * q.negative_log(whole_q)).where(has_no, _ZERO)
    slope = (no / q).where(has_no, _ZERO) - (yes / p).where(has_yes, _ZERO)
    return loss, slope.where(slope_kept, _ZERO)


def _complement_of(other: Ball, own: Ball, other_is_read: Any) -> Ball:
    return other.where(other_is_read, _ONE - own)


def squared_error(predictions: Floats, targets: Floats) -> tuple[Ball, Ball]:
    r"""\((p - t)^2\) and \(2 (p - t)\)."""
    difference = Ball(*two_sum(predictions, -targets))
    return difference * difference, difference.scaled(2.0)


def _read(plan: Plan, p: Floats, wanted: Any) -> tuple[Ball, Ball, Any]:
    """Probabilities as they are read and clipped, 1 where none is wanted; 1 minus them; and where the clip does not cut the slope off."""
    read = np.where(wanted, np.where(np.abs(p) < plan.tiny, 0.0, np.minimum(p, 1.0)), 1.0)
    if plan.bounds is None:
        return Ball(read), _one_minus(read), np.ones(p.shape, bool)
    low, gap = map(np.float64, plan.bounds)
    high = _one_minus(gap)
    below, above = read < low, (read > high.high) | ((read == high.high) & (high.low < 0))
    clipped = Ball(low).where(below, high.where(above, Ball(read)))
    rest = _one_minus(low).where(below, Ball(gap).where(above, _one_minus(read)))
    return clipped, rest, ~(below | above)
