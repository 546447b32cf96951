"""The squared error of each element."""

from __future__ import annotations

from unifiedloss.evaluator import Evaluator, Positions, Selection
from unifiedloss.ops import Array


def positions(e: Evaluator, predictions: Array, targets: Array, selection: Selection) -> Positions:
    """The losses of all elements."""
    predictions, targets, bad = e.real_numbers(predictions, targets, selection)
    return Positions(e.kernels.squared_error(predictions, targets), None, bad)
