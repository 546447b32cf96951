"""The Huber loss of one element, in exact numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from unifiedloss.oracle.positions import Position, PositionRules, poisoned
from unifiedloss.oracle.reals import ONE, Real
from unifiedloss.oracle.rounding import INFINITY


def position(
    rules: PositionRules,
    predictions: Sequence[float],
    targets: Sequence[float],
    pos_weight: Fraction,  # noqa: ARG001 - only the binary cross-entropy has one
) -> Position:
    r"""One element: $\frac12 e^2$ or $\delta (|e| - \frac12 \delta)$; slope $e$ or $\pm\delta$.

    An infinite error costs infinitely much, and its slope is still $\pm\delta$.
    """
    (prediction,), (target,) = predictions, targets
    if rules.is_bad_number(target):
        return poisoned(1)
    spec: Any = rules.plan.spec
    delta = Fraction(spec.delta)
    if not math.isfinite(prediction) or not math.isfinite(target):
        difference = prediction - target
        if math.isnan(difference):
            return poisoned(1, ONE, bad=False)
        sign = 1 if difference > 0 else -1
        return Position(INFINITY, [Real(sign * delta)], [Real(-sign * delta)], ONE)
    error = Fraction(prediction) - Fraction(target)
    if abs(error) <= delta:
        return Position(Real(error * error / 2), [Real(error)], [Real(-error)], ONE)
    slope = delta if error > 0 else -delta
    return Position(Real(delta * (abs(error) - delta / 2)), [Real(slope)], [Real(-slope)], ONE)
