"""The magnitudes of the Huber loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.floats import INTEGER_TYPES
from unifiedloss.magnitudes import Parts
from unifiedloss.plan import Plan

Array = NDArray[Any]


def parts(plan: Plan, predictions: Array, targets: Array) -> Parts:
    r"""The magnitudes $\frac12 e^2$ and $\delta (|e| + \frac12 \delta)$, and those of the slopes.

    See `unifiedloss.losses.cross_entropy.magnitude.parts`.
    """
    spec: Any = plan.spec
    x, t = predictions.astype(np.float64), targets.astype(np.float64)
    size = np.abs(x - t)
    slope = np.minimum(size, spec.delta)
    loss = np.where(size <= spec.delta, 0.5 * size**2, spec.delta * (size + 0.5 * spec.delta))
    # Integer targets are rounded to the compute dtype, which changes the error.
    rounded = np.abs(t) if plan.targets_dtype in INTEGER_TYPES else 0.0
    return Parts(loss + slope * rounded, np.minimum(size + rounded, spec.delta), slope)
