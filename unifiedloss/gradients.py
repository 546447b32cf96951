"""What the closed-form gradients of the losses share. NumPy needs them: it cannot differentiate.

The module `gradient` of each loss gives the derivative of a position's loss with respect to the
predictions, without the factor upstream gradient * sample weight / divisor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.evaluator import Evaluator
from unifiedloss.plan import Plan

Array = NDArray[Any]


def read_targets(e: Evaluator, targets: Array) -> Array:
    """Targets in the compute dtype, with 0 for those below the smallest normal number."""
    targets = e.ops.cast(targets, e.plan.compute_dtype)
    return np.where(targets < e.plan.tiny_target, 0, targets)


def read_probabilities(plan: Plan, p: Array) -> tuple[Array, Array]:
    """Probabilities as the rules read them, and where the clip lets the gradient pass."""
    read = np.where(p < plan.tiny, 0, np.where(p > 1, 1, p))
    if plan.clip is None:
        return read, np.ones(p.shape, bool)
    return read, (read >= plan.clip.low) & (read <= plan.clip.high)


def sigmoid(logits: Array) -> Array:
    """1 / (1 + e^-z), without overflow for large or small z."""
    e = np.exp(-np.abs(logits))
    result: Array = np.where(logits >= 0, 1, e) / (1 + e)
    return result
