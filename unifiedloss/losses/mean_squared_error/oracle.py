"""The squared error of one element, in exact numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from unifiedloss.oracle.positions import Position, PositionRules, poisoned
from unifiedloss.oracle.reals import ONE, Real


def position(
    rules: PositionRules,
    predictions: Sequence[float],
    targets: Sequence[float],
    pos_weight: Fraction,  # noqa: ARG001 - only the binary cross-entropy has one
) -> Position:
    r"""One element: $\ell = (p - t)^2$, with the derivatives $2(p - t)$ and $-2(p - t)$.

    Infinities follow the rules of IEEE 754.
    """
    (prediction,), (target,) = predictions, targets
    if rules.is_bad_number(target):
        return poisoned(1)
    if not math.isfinite(prediction) or not math.isfinite(target):
        difference = prediction - target
        return Position(difference * difference, [difference], [-difference], ONE)
    exact = Fraction(prediction) - Fraction(target)
    return Position(Real(exact * exact), [Real(2 * exact)], [Real(-2 * exact)], ONE)
