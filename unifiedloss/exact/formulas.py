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
from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.plan import Plan

Floats = NDArray[np.float64]
_ZERO, _ONE = Ball(0.0), Ball(1.0)


def _one_minus(x: Any) -> Ball:
    return Ball(*two_sum(1.0, -x))


def weighted_targets(plan: Plan, targets: Floats) -> Ball:
    r"""\(\tau_c = w_c t'_c\) of dense targets (n, K), or \(W t'_c\) with \(W = \sum_c w_c t_c\) where positions are weighted."""
    tau = Ball(targets)
    if plan.label_smoothing:
        assert plan.classes is not None
        tau = _one_minus(np.float64(plan.label_smoothing)) * tau + Ball(
            np.float64(plan.label_smoothing)
        ) / Ball(np.float64(plan.classes))
    if plan.class_weights is None:
        return tau
    weights = Ball(np.asarray(plan.class_weights))
    return (
        (weights * Ball(targets)).sum() * tau
        if plan.class_weighting == "position"
        else weights * tau
    )


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
    return Ball(
        *two_sum(np.float64(total), np.float64(rest)),
        np.float64(total * 2.0**-60 + len(numbers) * 2.0**-990),
    )


def cross_entropy_of_probabilities(
    plan: Plan, probabilities: Floats, tau: Ball
) -> tuple[Ball, Ball]:
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
    if plan.label_smoothing:
        keep, share = (
            _one_minus(np.float64(plan.label_smoothing)),
            Ball(np.float64(plan.label_smoothing) / 2),
        )
        yes, no = keep * yes + share, keep * no + share
    return (yes if pos_weight is None else Ball(pos_weight) * yes), no


def binary_cross_entropy(logits: Floats, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \max(-z, 0) + (1 - t') \max(z, 0) + (q t' + 1 - t') \log(1 + e^{-|z|})\) and its slope.

    The slope is \((1 - t') \sigma(z) - q t' \sigma(-z)\).
    """
    exp = Ball(-np.abs(logits)).exp()
    loss = (
        yes * Ball(np.maximum(-logits, 0.0))
        + no * Ball(np.maximum(logits, 0.0))
        + (yes + no) * exp.log1p()
    )
    total = _ONE + exp
    larger, smaller = _ONE / total, exp / total
    positive = logits >= 0
    return loss, no * larger.where(positive, smaller) - yes * smaller.where(positive, larger)


def binary_cross_entropy_of_probabilities(
    plan: Plan, probabilities: Floats, yes: Ball, no: Ball
) -> tuple[Ball, Ball]:
    r"""\(\ell = -q t' \log p - (1 - t') \log(1 - p)\) and \((1 - t') / (1 - p) - q t' / p\)."""
    everywhere = np.ones(probabilities.shape, bool)
    p, q, slope_kept = _read(plan, probabilities, everywhere)
    if plan.clamped:
        return _clamped(p, q, yes, no)
    if plan.epsilon_added:
        p, q = p + Ball(plan.epsilon_added), q + Ball(plan.epsilon_added)
        return yes * _cost(p) + no * _cost(q), no / q - yes / p
    # A side without weight may be 0, and is not read.
    has_yes, has_no = ~yes.is_0(), ~no.is_0()
    p, q = p.where(has_yes, _ONE), q.where(has_no, _ONE)
    whole_p, whole_q = _complement_of(q, p, has_no), _complement_of(p, q, has_yes)
    loss = (yes * p.negative_log(whole_p)).where(has_yes, _ZERO) + (
        no * q.negative_log(whole_q)
    ).where(has_no, _ZERO)
    slope = (no / q).where(has_no, _ZERO) - (yes / p).where(has_yes, _ZERO)
    return loss, slope.where(slope_kept, _ZERO)


def _cost(x: Ball) -> Ball:
    """-log x for x > 0, which may be more than 1."""
    beyond = x - _ONE
    above = beyond.high > 0
    below = x.where(~above, _ONE).negative_log((-beyond).where(~above, _ZERO))
    return below.where(~above, -beyond.where(above, _ZERO).log1p())


def _clamped(p: Ball, q: Ball, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \min(-\log p, 100) + (1 - t') \min(-\log(1 - p), 100)\) and \((p - t') / \max(p (1 - p), 10^{-12})\)."""
    costs = []
    for x, complement in ((p, q), (q, p)):
        none = x.is_0()
        cost = x.where(~none, _ONE).negative_log(complement.where(~none, _ZERO))
        costs.append(_greatest(cost, Ball(100.0), sign=-1.0).where(~none, Ball(100.0)))
    loss = yes * costs[0] + no * costs[1]
    return loss, (p * no - q * yes) / _greatest(p * q, Ball(TORCH_LEAST_SPREAD), sign=1.0)


def _greatest(x: Ball, bound: Ball, *, sign: float) -> Ball:
    """The greater of x and an exact bound, or the lesser for the sign -1; of infinite radius where that is not known."""
    apart = x - bound
    chosen = x.where(sign * apart.high > 0, bound)
    return Ball(chosen.high, chosen.low, np.where(_sign_is_known(apart), chosen.radius, np.inf))


def _sign_is_known(x: Ball) -> Any:
    """Where all numbers of a ball have the sign of its high part."""
    return (x.radius == 0) | (np.abs(x.high) * (1 - 2.0**-50) > x.radius)


def cross_entropy_of_shares(plan: Plan, numbers: Floats, tau: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = \sum_c \tau_c (-\log q_c)\) with \(q = \mathrm{clip}(p / S)\) or \(\mathrm{clip}(p) / S\), and \(T / S - \tau_c / p_c\).

    S is the sum of what is divided by it. "before_clip", T counts what is not clipped, and the second part is there for that alone.
    "after_clip", what is clipped has the slope 0.
    """
    read = Ball(np.where(np.abs(numbers) < plan.tiny, 0.0, numbers))
    if plan.renormalize == "before_clip":
        total = read.sum()
        others = total - read
        q, rest, moving, known = _clip(plan, read / total, others / total)
        weight = tau.where(moving, _ZERO).sum()
        slope = weight / total - (tau / read.where(moving & (read.high != 0), _ONE)).where(
            moving, _ZERO
        )
    else:
        clipped, _, moving, known = _clip(plan, read, _ONE - read)
        total = clipped.sum()
        q, rest = clipped / total, (total - clipped) / total
        slope = (tau.sum() / total - tau / clipped).where(moving, _ZERO)
    # Of a share near 1 what is left may be known to be small and no more; then so is its logarithm.
    cost = q.negative_log(
        Ball(np.maximum(rest.high, 0.0), np.where(rest.high < 0, 0.0, rest.low), rest.radius)
    )
    unknown = np.where(known.all(-1, keepdims=True), 0.0, np.inf)
    loss = (tau * cost).sum()
    return Ball(loss.high, loss.low, loss.radius + unknown), Ball(
        slope.high, slope.low, slope.radius + unknown
    )


def _clip(plan: Plan, x: Ball, complement: Ball) -> tuple[Ball, Ball, Any, Any]:
    """A ball between the bounds, 1 minus it, where the clip does not cut the slope off, and where all of that is known."""
    assert plan.bounds is not None  # a spec that divides by the sum clips
    low, gap = (Ball(np.float64(bound)) for bound in plan.bounds)
    below, above = x - low, complement - gap
    known = _sign_is_known(below) & _sign_is_known(above)
    under, over = below.high < 0, above.high < 0
    clipped = low.where(under, (_ONE - gap).where(over, x))
    rest = (_ONE - low).where(under, gap.where(over, complement))
    return clipped, rest, ~(under | over), known


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
