r"""The formulas of the losses and their slopes in balls, one row per position.

`unifiedloss.exact.tiers` multiplies the results by their weights and rounds them. Each function
takes float64 arrays that hold the inputs exactly. It returns \(\ell_i\), shape (n, 1), and its
derivatives with respect to the predictions, shape (n, K), without sample weight, divisor and
upstream gradient. Callers keep special inputs (infinite, NaN, bad) away. Where two nearly equal
numbers are subtracted, the formula is arranged so that the part that cancels is exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, exp_in_two, two_sum
from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.plan import Plan

Floats = NDArray[np.float64]
_ZERO, _ONE = Ball(0.0), Ball(1.0)


def _one_minus(x: Any) -> Ball:
    return Ball(*two_sum(1.0, -x))


def weighted_targets(plan: Plan, targets: Floats) -> Ball:
    r"""\(\tau_c = w_c t'_c\) of dense targets (n, K).

    Where class weights multiply positions, \(\tau_c = W t'_c\) with \(W = \sum_c w_c t_c\).
    """
    tau = Ball(targets)
    if plan.label_smoothing:
        assert plan.classes is not None
        smoothing = np.float64(plan.label_smoothing)
        tau = _one_minus(smoothing) * tau + Ball(smoothing) / Ball(np.float64(plan.classes))
    if plan.class_weights is None:
        return tau
    weights = Ball(np.asarray(plan.class_weights))
    if plan.class_weighting == "position":
        return (weights * Ball(targets)).sum() * tau
    return weights * tau


def cross_entropy(logits: Floats, tau: Ball) -> tuple[Ball, Ball]:
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
    exp = (-gap).exp().where(finite, _ZERO)
    others = exp.where(other, _ZERO).sum()
    total = _ONE + others
    weight = tau.sum()
    loss = (tau * gap).sum() + weight * others.log1p()
    slope = weight * (exp / total) - tau
    at_top = tau.where(other, _ZERO).sum() - weight * (others / total)
    return loss, slope.where(other, at_top)


def partition(logits: Floats, top: int) -> Ball:
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


def cross_entropy_of_probabilities(
    plan: Plan, probabilities: Floats, tau: Ball
) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-\log p_c)\) and its slope \(-\tau_c / p_c\).

    \(p_c\) is not read where \(\tau_c = 0\).
    """
    has_weight = ~tau.is_0()
    p, q, unclipped = _read(plan, probabilities, has_weight)
    cost = p.negative_log(q)
    loss = (tau * cost.where(has_weight, _ZERO)).sum()
    return loss, (-(tau / p)).where(has_weight & unclipped, _ZERO)


def negative_log_likelihood(logarithms: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-x_c)\) and its slope \(-\tau_c\)."""
    return (tau * Ball(-logarithms)).sum(), -tau


def binary_targets(plan: Plan, targets: Floats, pos_weight: Floats | None) -> tuple[Ball, Ball]:
    r"""\(q t'\) and \(1 - t'\), the latter from \(1 - t\), so that nothing cancels near t = 1."""
    yes, no = Ball(targets), _one_minus(targets)
    if plan.label_smoothing:
        smoothing = np.float64(plan.label_smoothing)
        keep, share = _one_minus(smoothing), Ball(smoothing / 2)
        yes, no = keep * yes + share, keep * no + share
    return (yes if pos_weight is None else Ball(pos_weight) * yes), no


def binary_cross_entropy(logits: Floats, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \max(-z, 0) + (1 - t') \max(z, 0) + (q t' + 1 - t') \log(1 + e^{-|z|})\).

    The slope is \((1 - t') \sigma(z) - q t' \sigma(-z)\).
    """
    exp = Ball(-np.abs(logits)).exp()
    loss = yes * Ball(np.maximum(-logits, 0.0)) + no * Ball(np.maximum(logits, 0.0))
    loss = loss + (yes + no) * exp.log1p()
    total = _ONE + exp
    larger, smaller = _ONE / total, exp / total
    positive = logits >= 0
    return loss, no * larger.where(positive, smaller) - yes * smaller.where(positive, larger)


def binary_cross_entropy_of_probabilities(
    plan: Plan, probabilities: Floats, yes: Ball, no: Ball
) -> tuple[Ball, Ball]:
    r"""\(\ell = -q t' \log p - (1 - t') \log(1 - p)\) and its slope.

    The slope is \((1 - t') / (1 - p) - q t' / p\).
    """
    everywhere = np.ones(probabilities.shape, bool)
    p, q, unclipped = _read(plan, probabilities, everywhere)
    if plan.clamped:
        return _clamped(p, q, yes, no)
    if plan.epsilon_added:
        p, q = p + Ball(plan.epsilon_added), q + Ball(plan.epsilon_added)
        return yes * _cost(p) + no * _cost(q), no / q - yes / p
    # Replace p by 1 where q t' = 0, and 1 - p by 1 where 1 - t' = 0, because they may be 0 there
    # and 0 * log(0) counts as 0.
    has_yes, has_no = ~yes.is_0(), ~no.is_0()
    p, q = p.where(has_yes, _ONE), q.where(has_no, _ONE)
    one_minus_p, one_minus_q = _complement_of(q, p, has_no), _complement_of(p, q, has_yes)
    positive = (yes * p.negative_log(one_minus_p)).where(has_yes, _ZERO)
    negative = (no * q.negative_log(one_minus_q)).where(has_no, _ZERO)
    slope = (no / q).where(has_no, _ZERO) - (yes / p).where(has_yes, _ZERO)
    return positive + negative, slope.where(unclipped, _ZERO)


def _cost(x: Ball) -> Ball:
    """-log x for x > 0, where x may exceed 1."""
    beyond = x - _ONE
    above = beyond.high > 0
    below = x.where(~above, _ONE).negative_log((-beyond).where(~above, _ZERO))
    return below.where(~above, -beyond.where(above, _ZERO).log1p())


def _clamped(p: Ball, q: Ball, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \min(-\log p, 100) + (1 - t') \min(-\log(1 - p), 100)\) and its slope.

    The slope is \((p (1 - t') - (1 - p) q t') / \max(p (1 - p), 10^{-12})\), which for q = 1
    is \((p - t') / \max(p (1 - p), 10^{-12})\).
    """
    costs = []
    for x, complement in ((p, q), (q, p)):
        zero = x.is_0()
        cost = x.where(~zero, _ONE).negative_log(complement.where(~zero, _ZERO))
        costs.append(_extremum(cost, Ball(100.0), sign=-1.0).where(~zero, Ball(100.0)))
    loss = yes * costs[0] + no * costs[1]
    return loss, (p * no - q * yes) / _extremum(p * q, Ball(TORCH_LEAST_SPREAD), sign=1.0)


def _extremum(x: Ball, bound: Ball, *, sign: float) -> Ball:
    """The maximum of x and an exact bound for the sign 1, the minimum for the sign -1.

    The radius is infinite where the comparison is undecided.
    """
    apart = x - bound
    chosen = x.where(sign * apart.high > 0, bound)
    return Ball(chosen.high, chosen.low, np.where(_sign_is_known(apart), chosen.radius, np.inf))


def _sign_is_known(x: Ball) -> Any:
    """Where all numbers of the ball have the sign of its high part."""
    return (x.radius == 0) | (np.abs(x.high) * (1 - 2.0**-50) > x.radius)


def cross_entropy_of_shares(plan: Plan, numbers: Floats, tau: Ball) -> tuple[Ball, Ball]:
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
        weight = tau.where(unclipped, _ZERO).sum()
        own = tau / read.where(unclipped & (read.high != 0), _ONE)
        slope = weight / total - own.where(unclipped, _ZERO)
    else:
        clipped, _, unclipped, known = _clip(plan, read, _ONE - read)
        total = clipped.sum()
        q, rest = clipped / total, (total - clipped) / total
        slope = (tau.sum() / total - tau / clipped).where(unclipped, _ZERO)
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
    known = _sign_is_known(below) & _sign_is_known(above)
    under, over = below.high < 0, above.high < 0
    clipped = low.where(under, (_ONE - gap).where(over, x))
    rest = (_ONE - low).where(under, gap.where(over, complement))
    return clipped, rest, ~(under | over), known


def _complement_of(other: Ball, own: Ball, other_is_read: Any) -> Ball:
    """1 - own: the other probability where it is read, else computed."""
    return other.where(other_is_read, _ONE - own)


def squared_error(predictions: Floats, targets: Floats) -> tuple[Ball, Ball]:
    r"""\(\ell = (p - t)^2\) and its slope \(2 (p - t)\)."""
    difference = Ball(*two_sum(predictions, -targets))
    return difference * difference, difference.scaled(2.0)


def _read(plan: Plan, p: Floats, wanted: Any) -> tuple[Ball, Ball, Any]:
    """Read and clip probabilities.

    Returns:
        The clipped probabilities (1 where not wanted), 1 minus them, and where nothing was clipped.
    """
    read = np.where(wanted, np.where(np.abs(p) < plan.tiny, 0.0, np.minimum(p, 1.0)), 1.0)
    if plan.bounds is None:
        return Ball(read), _one_minus(read), np.ones(p.shape, bool)
    low, gap = map(np.float64, plan.bounds)
    high = _one_minus(gap)
    below, above = read < low, (read > high.high) | ((read == high.high) & (high.low < 0))
    clipped = Ball(low).where(below, high.where(above, Ball(read)))
    rest = _one_minus(low).where(below, Ball(gap).where(above, _one_minus(read)))
    return clipped, rest, ~(below | above)
