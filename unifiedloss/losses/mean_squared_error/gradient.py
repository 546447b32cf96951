"""The closed-form gradient of the squared error, for NumPy."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from unifiedloss.evaluator import Evaluator

Array = NDArray[Any]

SLOPE_UNIT = 2.0
"""`slopes` is half the derivative, because 2 (p - t) may overflow where its product with a small
factor, such as that of a mean, does not."""


def slopes(e: Evaluator, predictions: Array, targets: Array) -> Array:
    """p - t, half the derivative of (p - t)^2."""
    difference: Array = predictions - e.ops.cast(targets, e.plan.compute_dtype)
    return difference
