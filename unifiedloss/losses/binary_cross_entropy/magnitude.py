"""The magnitudes of the binary cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.magnitudes import (
    Parts,
    clip,
    cost_of,
    divide_no_nan,
    flush_and_cap,
    multiply_no_nan,
)
from unifiedloss.plan import Plan

Array = NDArray[np.float64]


def parts(plan: Plan, predictions: NDArray[Any], targets: NDArray[Any]) -> Parts:
    """See `unifiedloss.losses.cross_entropy.magnitude.parts`."""
    x, t = predictions.astype(np.float64), targets.astype(np.float64)
    t = np.where(t < plan.tiny_target, 0.0, t)
    q: Any = plan.pos_weight
    q = 1.0 if q is None else np.asarray(q)
    if np.ndim(q):
        q = np.reshape(q, [-1 if i == plan.pos_weight_axis % x.ndim else 1 for i in range(x.ndim)])
    keep = 1 - plan.label_smoothing
    positive = q * (keep * t + plan.label_smoothing / 2)
    negative = keep * (1 - t) + plan.label_smoothing / 2
    if plan.from_logits:
        size = np.abs(x) + 1
        return Parts((positive + negative) * size, positive + negative, keep * (q + 1) * size)
    p, rest, passes = clip(plan, flush_and_cap(plan, x))
    cost, complement = cost_of(plan, p), cost_of(plan, rest)
    if plan.clamped:
        slope = (p * negative + rest * positive) / np.maximum(p * rest, 1e-12)
    else:
        slope = divide_no_nan(positive, p + plan.epsilon_added)
        slope = slope + divide_no_nan(negative, rest + plan.epsilon_added)
        slope = np.where(passes, slope, 0.0)
    loss = multiply_no_nan(positive, cost) + multiply_no_nan(negative, complement)
    by_targets = np.where(np.isinf(cost), 0, q * cost)
    by_targets = by_targets + np.where(np.isinf(complement), 0, complement)
    return Parts(loss, slope, keep * by_targets)
