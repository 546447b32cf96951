"""The magnitudes of the categorical cross-entropy and of log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.magnitudes import (
    Parts,
    class_weights,
    clip,
    cost_of,
    divide_no_nan,
    flush_and_cap,
    labels,
    multiply_no_nan,
    softmax_and_cost,
)
from unifiedloss.plan import Plan

Array = NDArray[np.float64]


def parts(plan: Plan, predictions: NDArray[Any], targets: NDArray[Any]) -> Parts:
    """The magnitudes of each position.

    Args:
        plan: the plan of the call.
        predictions: values.
        targets: values.
    """
    x, t = predictions.astype(np.float64), targets.astype(np.float64)
    t = np.where(t < plan.tiny_target, 0.0, t)
    assert plan.axis is not None
    axis = plan.axis
    if plan.kind == "index":
        t = np.zeros(x.shape)
        np.put_along_axis(t, np.expand_dims(labels(plan, targets), axis), 1.0, axis)
    w = class_weights(plan)
    keep = 1 - plan.label_smoothing
    smoothed = keep * t + plan.label_smoothing / plan.shared_by
    position = (w * t).sum(axis, keepdims=True)
    tau = (position if plan.class_weighting == "position" else w) * smoothed
    if plan.log_probabilities:
        cost, slope = np.abs(x), tau
    elif plan.from_logits:
        p, cost = softmax_and_cost(x, axis, plan.shared_by)
        slope = p * np.where(p > 0, cost, 0) * tau.sum(axis, keepdims=True) + tau
    elif plan.renormalize is not None:
        cost, slope = _renormalized(plan, flush_and_cap(plan, x), tau)
    else:
        p, _, passes = clip(plan, flush_and_cap(plan, x))
        cost = cost_of(plan, p)
        slope = np.where(passes, divide_no_nan(tau, p), 0.0)
    finite_cost = np.where(np.isfinite(cost), cost, 0.0)
    by_targets = w * keep * finite_cost
    if plan.class_weighting == "position":
        by_targets = (
            w * (smoothed * finite_cost).sum(axis, keepdims=True) + position * keep * finite_cost
        )
    return Parts(multiply_no_nan(tau, cost).sum(axis), slope, by_targets)


def _renormalized(plan: Plan, p: Array, tau: Array) -> tuple[Array, Array]:
    """The costs and slopes of probabilities that are divided by their sum."""
    assert plan.axis is not None
    clipped, _, passes = clip(plan, p)
    if plan.renormalize == "after_clip":
        total = clipped.sum(plan.axis, keepdims=True)
        slope = tau.sum(plan.axis, keepdims=True) / total + divide_no_nan(tau, clipped)
        slope = np.where(passes, slope, 0.0)
        return cost_of(plan, clipped) + np.abs(np.log(total)), slope
    total = p.sum(plan.axis, keepdims=True)
    quotient, _, passes = clip(plan, p / total)
    moving = np.where(passes, tau, 0.0)
    slope = moving.sum(plan.axis, keepdims=True) / total + divide_no_nan(moving, p)
    return cost_of(plan, quotient), slope
