"""The closed-form gradient of the cross-entropy and the negative log-likelihood, for NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.evaluator import Evaluator
from unifiedloss.gradients import read_probabilities, read_targets
from unifiedloss.plan import Plan

Array = NDArray[Any]

SLOPE_UNIT = 1.0
"""The unit of `slopes`."""


def slopes(e: Evaluator, predictions: Array, targets: Array) -> Array:
    """p T - tau from logits, -tau / p from probabilities, -tau from log-probabilities.

    tau are the smoothed and weighted targets, and T is their sum over the classes.
    """
    plan = e.plan
    assert plan.axis is not None
    if plan.kind == "index":
        dense = np.zeros(predictions.shape, predictions.dtype)
        np.put_along_axis(dense, np.expand_dims(targets, plan.axis), 1, plan.axis)
    else:
        dense = read_targets(e, targets)
    weights = None
    if plan.class_weights is not None:
        weights = e.ops.along(
            e.ops.constant(plan.class_weights, plan.compute_dtype, predictions),
            predictions,
            plan.axis,
        )
        if plan.class_weighting == "position":
            weights = e.product(dense, weights).sum(plan.axis, keepdims=True)
    if plan.label_smoothing:
        dense = dense * (1 - plan.label_smoothing) + plan.label_smoothing / plan.shared_by
    tau = dense if weights is None else e.product(dense, weights)
    if plan.from_logits:
        p = e.kernels.softmax(predictions, plan.axis)
        slope: Array = p * tau.sum(plan.axis, keepdims=True) - tau
        return slope
    poisoned = np.isnan(dense).any(plan.axis, keepdims=True)
    if plan.log_probabilities:
        return np.where(poisoned, np.nan, np.where(tau != 0, -tau, 0))
    if plan.renormalize is not None:
        return np.where(poisoned, np.nan, _renormalized(plan, predictions, tau))
    p, inside = read_probabilities(plan, predictions)
    sloped = inside & (tau != 0) | (dense != 0) & np.isnan(p)
    return np.where(poisoned, np.nan, np.where(sloped, -tau / p, 0))


def _renormalized(plan: Plan, predictions: Array, tau: Array) -> Array:
    r"""The gradient where each row of probabilities is divided by its sum.

    Before the clip, with the sum s, q = p / s, and g = dl / dq: (g_c - \sum_j g_j q_j) / s. After
    the clip: T / s - tau_c / p_c, where p_c is not clipped.
    """
    assert plan.axis is not None
    assert plan.clip is not None
    p = np.where(predictions < plan.tiny, 0, predictions)
    if plan.renormalize == "after_clip":
        inside = (p >= plan.clip.low) & (p <= plan.clip.high)
        total = np.clip(p, plan.clip.low, plan.clip.high).sum(plan.axis, keepdims=True)
        slope = tau.sum(plan.axis, keepdims=True) / total - tau / np.where(inside, p, 1)
        return np.where(inside | np.isnan(p), slope, 0)
    total = p.sum(plan.axis, keepdims=True)
    q = p / total
    inside = (q >= plan.clip.low) & (q <= plan.clip.high)
    slope = np.where(inside, -tau / np.where(inside, q, 1), 0)
    return np.where(
        np.isnan(q), np.nan, (slope - (slope * q).sum(plan.axis, keepdims=True)) / total
    )
