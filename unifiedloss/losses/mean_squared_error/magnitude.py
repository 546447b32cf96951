"""The magnitudes of the squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.floats import INTEGER_TYPES
from unifiedloss.magnitudes import Parts
from unifiedloss.plan import Plan

Array = NDArray[Any]


def parts(plan: Plan, predictions: Array, targets: Array) -> Parts:
    """See `unifiedloss.losses.cross_entropy.magnitude.parts`."""
    x, t = predictions.astype(np.float64), targets.astype(np.float64)
    difference = np.abs(x - t)
    # Integer targets are rounded to the compute dtype.
    rounded = np.abs(t) if plan.targets_dtype in INTEGER_TYPES else 0.0
    return Parts(
        difference**2 + 2 * difference * rounded, 2 * (difference + rounded), 2 * difference
    )
