"""The closed-form gradient of the Huber loss, for NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.evaluator import Evaluator

Array = NDArray[Any]

SLOPE_UNIT = 1.0
"""The unit of `slopes`."""


def slopes(e: Evaluator, predictions: Array, targets: Array) -> Array:
    """p - t, clipped to [-delta, delta]."""
    spec: Any = e.plan.spec
    clipped: Array = np.clip(
        predictions - e.ops.cast(targets, e.plan.compute_dtype), -spec.delta, spec.delta
    )
    return clipped
