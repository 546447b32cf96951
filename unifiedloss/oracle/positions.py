"""Single positions of a call, and the rules by which losses read their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from unifiedloss import losses
from unifiedloss.floats import INTEGER_TYPES
from unifiedloss.oracle.extended import (
    NAN,
    Extended,
    Value,
    combined,
    negative_log,
    scaled,
)
from unifiedloss.oracle.reals import ONE, ZERO, NegativeLog, Partition, Real
from unifiedloss.oracle.rounding import INFINITY
from unifiedloss.plan import MAX_INTEGER_TARGET, Plan


class Position(NamedTuple):
    """One position, before its sample weight.

    Attributes:
        loss: l_i.
        predictions: the derivatives of l_i by the position's predictions, in the order of the
            class axis.
        targets: the derivatives of l_i by the targets; empty for index targets.
        weight: W_i without the sample weight.
        bad: whether the position holds a bad value, so that all its numbers are NaN.
    """

    loss: Value
    predictions: list[Value]
    targets: list[Value]
    weight: Extended
    bad: bool = False


def poisoned(size: int, weight: Extended = NAN, *, bad: bool = True) -> Position:
    """A position whose loss and derivatives are NaN."""
    return Position(NAN, [NAN] * size, [NAN] * size, weight, bad)


class PositionRules:
    """Computes single positions of a plan, and caches what positions share.

    The module `oracle` of each loss computes its positions with these rules. Exact mode uses them
    for the positions that its other tiers cannot decide.

    Attributes:
        plan: the plan of the call.
        smoothing: the amount of smoothing.
        kept_target: 1 minus it.
        spread: the share of each answer in smoothing.
        class_weights: w_c, or None.
        added: what is added to probabilities inside the logarithms.
        tiny_target: the smallest magnitude of targets that do not count as 0.
        partitions: the softmax sums of the rows computed so far.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._module = losses.part(plan.spec.name, "oracle")
        self.smoothing = Fraction(plan.label_smoothing)
        self.kept_target = 1 - self.smoothing
        self.spread = self.smoothing / plan.shared_by if plan.kind != "real" else ZERO
        self.class_weights = (
            None if plan.class_weights is None else [Fraction(w) for w in plan.class_weights]
        )
        low, gap = plan.bounds or (0.0, 0.0)
        self.lowest, self.highest = Fraction(low), 1 - Fraction(gap)
        self.added = Fraction(plan.epsilon_added)
        self.tiny = plan.tiny
        self.tiny_target = plan.tiny_target
        self.partitions: dict[Any, Partition] = {}
        self._logs: dict[Fraction, Real] = {}

    def is_bad_probability(self, p: float) -> bool:
        """Whether a number is a bad value, because it lies outside the range of probabilities."""
        return p <= -self.tiny or p > self.plan.probability_limit

    def share(self, p: float) -> Fraction:
        """Read a prediction that is neither bad nor NaN; below `tiny` it counts as 0."""
        return ZERO if abs(p) < self.tiny else Fraction(p)

    def clipped(self, p: Fraction) -> tuple[Fraction, bool]:
        """Clip a probability to the bounds, and return whether that changed it."""
        clipped = min(max(p, self.lowest), self.highest)
        return clipped, clipped != p

    def probability(self, p: float) -> tuple[Fraction, bool]:
        """Read and clip a prediction that is neither bad nor NaN.

        Returns:
            The probability, and whether `epsilon` clipped it.
        """
        return self.clipped(min(self.share(p), ONE))

    def is_bad_number(self, t: float) -> bool:
        """Whether the target of a loss of any numbers is an integer that float64 may not hold."""
        return self.plan.targets_dtype in INTEGER_TYPES and abs(t) > MAX_INTEGER_TARGET

    def target(self, t: float) -> Fraction:
        """Read a target that is neither bad nor NaN; below `tiny_target` it counts as 0."""
        return ZERO if t < self.tiny_target else Fraction(t)

    def log(self, p: Fraction) -> Value:
        """-log p for p >= 0."""
        if not p:
            return INFINITY
        if p not in self._logs:
            if p <= 1:
                self._logs[p] = negative_log(p)
            else:
                self._logs[p] = Real(ZERO, ((-ONE, NegativeLog(1 / p)),))
        return self._logs[p]

    def position(
        self, predictions: Sequence[float], targets: Sequence[float], pos_weight: Fraction = ONE
    ) -> Position:
        """One row of predictions, or one element.

        Args:
            predictions: the entries of the row.
            targets: a class index, or a number for each prediction.
            pos_weight: the factor of the positive term, for losses that have one.
        """
        found: Position = self._module.position(self, predictions, targets, pos_weight)
        return found


def averaged(elements: Sequence[Position]) -> Position:
    r"""The mean of the elements of a position, $\frac1m \sum_e \ell_e$."""
    if len(elements) == 1:
        return elements[0]
    share = Fraction(1, len(elements))
    loss = combined((share, element.loss) for element in elements)
    by_predictions = [scaled(share, element.predictions[0]) for element in elements]
    return Position(loss, by_predictions, [], ONE, any(element.bad for element in elements))
