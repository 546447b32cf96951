"""The exact tiers of the binary cross-entropy: float64, and balls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.balls import Ball, U, two_sum
from unifiedloss.exact.call import HostCall
from unifiedloss.exact.fast import EXP, LOG1P, SMALL, Carry, between
from unifiedloss.exact.formulas import ONE, ZERO, one_minus, read_probabilities, sign_is_known
from unifiedloss.exact.rounding import decide, stored
from unifiedloss.exact.scale import Scale
from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.plan import Plan

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def float64(call: HostCall, rows: int) -> Carry | None:  # noqa: ARG001 - it needs no buffers
    """See `unifiedloss.losses.cross_entropy.exact.float64`."""
    return partial(_from_logits, call) if call.plan.from_logits else None


def _from_logits(
    call: HostCall, some: Any, losses: Any, slopes: Any, scale: Scale | None, dtype: str
) -> Bools:
    z = call.rows[some][:, 0].astype(np.float64)
    yes, no, target_error = call.binary_targets(some)
    exp = -np.abs(z)
    call.exp(exp, out=exp)
    rest = (yes + no) * np.log1p(exp)
    apart = np.where(z >= 0, no, yes) * np.abs(z)
    sample = 1.0 if call.weight is None else call.weight[some]
    error = target_error + EXP + LOG1P + 10 * U
    loss = (apart + rest) * sample
    rounded, undecided = between(loss * (1 - error), loss * (1 + error), dtype)
    if undecided.any() and call.hard and call.weight is None:
        # `apart` is exact and often a tie, which the tiny `rest` decides.
        where = np.flatnonzero(undecided)
        high, low = two_sum(apart[where], rest[where])
        rounded[where], undecided[where] = decide(high, low, rest[where] * error + SMALL, dtype)
    losses[some] = rounded
    if slopes is None or scale is None:
        return undecided
    factor = scale.float64(some)
    total = 1.0 + exp
    larger, smaller = 1.0 / total, exp / total
    positive = np.where(z >= 0, larger, smaller) * no * factor
    negative = np.where(z >= 0, smaller, larger) * yes * factor
    error = target_error + EXP + 14 * U
    middle = positive - negative
    width = error * (np.abs(positive) + np.abs(negative))
    form = call.plan.predictions_dtype
    rounded, differ = between(middle - width, middle + width, form)
    slopes[some, 0] = stored(rounded, form)
    return undecided | differ


def balls(call: HostCall, chosen: Any) -> tuple[Ball, Ball]:
    """The losses of some positions, and the derivatives by their predictions."""
    plan = call.plan
    rows = call.read[chosen].astype(np.float64)
    pos_weight = None if call.pos_weight is None else call.pos_weight[chosen]
    yes, no = _targets(plan, call.numbers(chosen), pos_weight)
    if plan.from_logits:
        return _of_logits(rows, yes, no)
    return _of_probabilities(plan, rows, yes, no)


def _targets(plan: Plan, targets: Floats, pos_weight: Floats | None) -> tuple[Ball, Ball]:
    r"""\(q t'\) and \(1 - t'\), the latter from \(1 - t\), so that nothing cancels near t = 1."""
    yes, no = Ball(targets), one_minus(targets)
    if plan.label_smoothing:
        smoothing = np.float64(plan.label_smoothing)
        keep, share = one_minus(smoothing), Ball(smoothing / 2)
        yes, no = keep * yes + share, keep * no + share
    return (yes if pos_weight is None else Ball(pos_weight) * yes), no


def _of_logits(logits: Floats, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \max(-z, 0) + (1 - t') \max(z, 0) + (q t' + 1 - t') \log(1 + e^{-|z|})\).

    The slope is \((1 - t') \sigma(z) - q t' \sigma(-z)\).
    """
    exp = Ball(-np.abs(logits)).exp()
    loss = yes * Ball(np.maximum(-logits, 0.0)) + no * Ball(np.maximum(logits, 0.0))
    loss = loss + (yes + no) * exp.log1p()
    total = ONE + exp
    larger, smaller = ONE / total, exp / total
    positive = logits >= 0
    return loss, no * larger.where(positive, smaller) - yes * smaller.where(positive, larger)


def _of_probabilities(plan: Plan, probabilities: Floats, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = -q t' \log p - (1 - t') \log(1 - p)\) and its slope.

    The slope is \((1 - t') / (1 - p) - q t' / p\).
    """
    everywhere = np.ones(probabilities.shape, bool)
    p, q, unclipped = read_probabilities(plan, probabilities, everywhere)
    if plan.clamped:
        return _clamped(p, q, yes, no)
    if plan.epsilon_added:
        p, q = p + Ball(plan.epsilon_added), q + Ball(plan.epsilon_added)
        return yes * _cost(p) + no * _cost(q), no / q - yes / p
    # Replace p by 1 where q t' = 0, and 1 - p by 1 where 1 - t' = 0, because they may be 0 there
    # and 0 * log(0) counts as 0.
    has_yes, has_no = ~yes.is_0(), ~no.is_0()
    p, q = p.where(has_yes, ONE), q.where(has_no, ONE)
    one_minus_p, one_minus_q = _complement_of(q, p, has_no), _complement_of(p, q, has_yes)
    positive = (yes * p.negative_log(one_minus_p)).where(has_yes, ZERO)
    negative = (no * q.negative_log(one_minus_q)).where(has_no, ZERO)
    slope = (no / q).where(has_no, ZERO) - (yes / p).where(has_yes, ZERO)
    return positive + negative, slope.where(unclipped, ZERO)


def _cost(x: Ball) -> Ball:
    """-log x for x > 0, where x may exceed 1."""
    beyond = x - ONE
    above = beyond.high > 0
    below = x.where(~above, ONE).negative_log((-beyond).where(~above, ZERO))
    return below.where(~above, -beyond.where(above, ZERO).log1p())


def _clamped(p: Ball, q: Ball, yes: Ball, no: Ball) -> tuple[Ball, Ball]:
    r"""\(\ell = q t' \min(-\log p, 100) + (1 - t') \min(-\log(1 - p), 100)\) and its slope.

    The slope is \((p (1 - t') - (1 - p) q t') / \max(p (1 - p), 10^{-12})\), which for q = 1
    is \((p - t') / \max(p (1 - p), 10^{-12})\).
    """
    costs = []
    for x, complement in ((p, q), (q, p)):
        zero = x.is_0()
        cost = x.where(~zero, ONE).negative_log(complement.where(~zero, ZERO))
        costs.append(_extremum(cost, Ball(100.0), sign=-1.0).where(~zero, Ball(100.0)))
    loss = yes * costs[0] + no * costs[1]
    return loss, (p * no - q * yes) / _extremum(p * q, Ball(TORCH_LEAST_SPREAD), sign=1.0)


def _extremum(x: Ball, bound: Ball, *, sign: float) -> Ball:
    """The maximum of x and an exact bound for the sign 1, the minimum for the sign -1.

    The radius is infinite where the comparison is undecided.
    """
    apart = x - bound
    chosen = x.where(sign * apart.high > 0, bound)
    return Ball(chosen.high, chosen.low, np.where(sign_is_known(apart), chosen.radius, np.inf))


def _complement_of(other: Ball, own: Ball, other_is_read: Any) -> Ball:
    """1 - own: the other probability where it is read, else computed."""
    return other.where(other_is_read, ONE - own)
