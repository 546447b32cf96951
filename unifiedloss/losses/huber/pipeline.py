"""The Huber loss of each element."""

from __future__ import annotations

from typing import Any

from unifiedloss.evaluator import Evaluator, Positions, Selection
from unifiedloss.ops import Array


def positions(e: Evaluator, predictions: Array, targets: Array, selection: Selection) -> Positions:
    """The losses of all elements."""
    ops = e.ops
    spec: Any = e.plan.spec
    delta: float = spec.delta
    predictions, targets, bad = e.real_numbers(predictions, targets, selection)
    # Half the error, because the error may overflow where the loss does not.
    half = 0.5 * predictions - 0.5 * targets
    size = ops.where(half < 0, -half, half)
    # NaN is not outside, so that its gradient is NaN, too.
    outside = size > 0.5 * delta
    error = ops.where(~outside, predictions - targets, 0.0)
    far = (2.0 * delta) * (size - 0.25 * delta)
    return Positions(ops.where(outside, far, (0.5 * error) * error), None, bad)
