"""The binary cross-entropy of one element, in exact numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.oracle.extended import NOTHING, Value, combined, scaled
from unifiedloss.oracle.positions import Position, PositionRules, poisoned
from unifiedloss.oracle.reals import ONE, ZERO, Real
from unifiedloss.oracle.rounding import INFINITY
from unifiedloss.oracle.softmax import SoftmaxRow

# The constants of epsilon="torch", from torch.nn.BCELoss: ATen/native/Loss.cpp
_LARGEST_COST = Fraction(100)
_LEAST_SPREAD = Fraction(TORCH_LEAST_SPREAD)


def position(
    rules: PositionRules,
    predictions: Sequence[float],
    targets: Sequence[float],
    pos_weight: Fraction,
) -> Position:
    r"""One element, with a = -log p and b = -log(1 - p).

    $$\ell = q t' a + (1 - t') b, \qquad
    \frac{\partial \ell}{\partial z} = (1 - t') \sigma(z) - q t' \sigma(-z), \qquad
    \frac{\partial \ell}{\partial p} = \frac{1 - t'}{1 - p} - \frac{q t'}{p}, \qquad
    \frac{\partial \ell}{\partial t} = (1 - \epsilon_s)(q a - b)$$
    """
    (prediction,), (target,) = predictions, map(float, targets)
    if target <= -rules.tiny_target or target > 1:
        return poisoned(1)
    if math.isnan(target):
        return poisoned(1, ONE, bad=False)
    smoothed = rules.kept_target * rules.target(target) + rules.spread
    yes, no = pos_weight * smoothed, 1 - smoothed
    if rules.plan.from_logits:
        if math.isnan(prediction):
            return poisoned(1, ONE, bad=False)
        a, b, gradient = _binary_logit(rules, prediction, yes, no)
    else:
        if rules.is_bad_probability(prediction):
            return poisoned(1)
        if math.isnan(prediction):
            return poisoned(1, ONE, bad=False)
        a, b, gradient = _binary_probability(rules, prediction, yes, no)
    # Drop an infinite logarithm whose coefficient is 0, because 0 log 0 = 0.
    a = NOTHING if a == INFINITY and not yes else a
    b = NOTHING if b == INFINITY and not no else b
    loss = combined([(yes, a), (no, b)])
    by_target = combined([(pos_weight, a), (-ONE, b)]) if rules.kept_target else NOTHING
    return Position(loss, [gradient], [scaled(rules.kept_target, by_target)], ONE)


def _binary_probability(
    rules: PositionRules, prediction: float, yes: Fraction, no: Fraction
) -> tuple[Value, Value, Value]:
    """-log p, -log(1 - p) and the derivative of the loss by p, under the rule of `epsilon`."""
    p, clipped = rules.probability(prediction)
    if rules.plan.clamped:
        slope = (p * no - (1 - p) * yes) / max(p * (1 - p), _LEAST_SPREAD)
        return _clamped(rules.log(p)), _clamped(rules.log(1 - p)), Real(slope)
    p, rest = p + rules.added, 1 - p + rules.added
    a, b = rules.log(p), rules.log(rest)
    if clipped:
        return a, b, NOTHING
    if not p and yes:
        return a, b, -INFINITY
    if not rest and no:
        return a, b, INFINITY
    return a, b, Real((no / rest if no else ZERO) - (yes / p if yes else ZERO))


def _clamped(cost: Value) -> Value:
    """min(cost, 100) for a cost -log p."""
    # -log p has no rational part, so -100 can take its place.
    if isinstance(cost, Real) and Real(-_LARGEST_COST, cost.terms).sign() < 0:
        return cost
    return Real(_LARGEST_COST)


def _binary_logit(
    rules: PositionRules, z: float, yes: Fraction, no: Fraction
) -> tuple[Value, Value, Value]:
    """softplus(-z), softplus(z) and the derivative of the loss by the logit z."""
    if math.isinf(z):
        return (NOTHING, INFINITY, Real(no)) if z > 0 else (INFINITY, NOTHING, Real(-yes))
    row = SoftmaxRow((z, 0.0), rules.partitions)  # sigma(z) and sigma(-z) are a softmax
    a = Real(row.gap(0), row.log_sum.terms)
    b = Real(row.gap(1), row.log_sum.terms)
    return a, b, combined([(no, row.probabilities[0]), (-yes, row.probabilities[1])])
