"""The closed-form gradient of the binary cross-entropy, for NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.evaluator import Evaluator
from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.gradients import read_probabilities, read_targets, sigmoid

Array = NDArray[Any]

SLOPE_UNIT = 1.0
"""The unit of `slopes`."""


def slopes(e: Evaluator, predictions: Array, targets: Array) -> Array:
    """(1 - t') sigma(z) - q t' sigma(-z) from logits, (1 - t') / (1 - p) - q t' / p from p."""
    plan = e.plan
    targets = read_targets(e, targets)
    complement = 1 - targets
    if plan.label_smoothing:
        complement = complement * (1 - plan.label_smoothing) + plan.label_smoothing / 2
        targets = targets * (1 - plan.label_smoothing) + plan.label_smoothing / 2
    positive = targets
    if plan.pos_weight is not None:
        weight = e.ops.constant(plan.pos_weight, plan.compute_dtype, predictions)
        if weight.ndim:
            weight = e.ops.along(weight, predictions, plan.pos_weight_axis)
        positive = e.product(targets, weight)
    slope: Array
    if plan.from_logits:
        slope = complement * sigmoid(predictions) - positive * sigmoid(-predictions)
        return slope
    p, inside = read_probabilities(plan, predictions)
    if plan.clamped:
        slope = (p - targets) / np.maximum(p * (1 - p), TORCH_LEAST_SPREAD).astype(p.dtype)
        return slope
    if plan.epsilon_added:
        slope = complement / (1 - p + plan.epsilon_added) - positive / (p + plan.epsilon_added)
        return np.where(np.isnan(p), p, slope)
    slope = np.where(complement == 0, 0, complement / (1 - p)) - np.where(
        positive == 0, 0, positive / p
    )
    return np.where(np.isnan(p), p, np.where(inside, slope, 0))
