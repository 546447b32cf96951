"""Closed-form gradients, because NumPy cannot differentiate.

Each is the derivative of a position's loss with respect to the predictions, without the factor
upstream gradient * sample weight / divisor. For the squared error it is half the derivative,
because 2 * (p - t) may overflow where the gradient of the mean does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.numpy import kernels, ops
from unifiedloss.evaluator import Evaluator
from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.plan import Plan

Array = NDArray[Any]

# Any, because type checkers do not see that a module fills a protocol.
_OPS: Any = ops
_KERNELS: Any = kernels


def unscaled(plan: Plan, predictions: Array, targets: Array) -> Array:
    """d l_i / d prediction, or half of it for the squared error.

    The predictions have the compute dtype. Every position that does not count must already hold a
    harmless value.
    """
    if plan.kind == "real":
        slope = predictions - ops.cast(targets, plan.compute_dtype)
    elif plan.kind == "binary":
        slope = _binary_cross_entropy(plan, predictions, _normal(plan, targets))
    else:
        slope = _cross_entropy(plan, predictions, targets)
    return slope if plan.scale == 1.0 else slope * plan.scale


def _cross_entropy(plan: Plan, predictions: Array, targets: Array) -> Array:
    """p T - tau from logits, -tau / p from probabilities, -tau from log-probabilities.

    tau are the smoothed and weighted targets, and T is their sum over the classes.
    """
    assert plan.axis is not None
    if plan.kind == "index":
        dense = np.zeros(predictions.shape, predictions.dtype)
        np.put_along_axis(dense, np.expand_dims(targets, plan.axis), 1, plan.axis)
    else:
        dense = _normal(plan, targets)
    weights = None
    if plan.class_weights is not None:
        weights = ops.along(
            ops.constant(plan.class_weights, plan.compute_dtype, predictions),
            predictions,
            plan.axis,
        )
        if plan.class_weighting == "position":
            weights = _evaluator(plan).product(dense, weights).sum(plan.axis, keepdims=True)
    if plan.label_smoothing:
        dense = dense * (1 - plan.label_smoothing) + plan.label_smoothing / plan.shared_by
    tau = dense if weights is None else _evaluator(plan).product(dense, weights)
    if plan.from_logits:
        return kernels.softmax(predictions, plan.axis) * tau.sum(plan.axis, keepdims=True) - tau
    poisoned = np.isnan(dense).any(plan.axis, keepdims=True)
    if plan.log_probabilities:
        return np.where(poisoned, np.nan, np.where(tau != 0, -tau, 0))
    if plan.renormalize is not None:
        return np.where(poisoned, np.nan, _renormalized(plan, predictions, tau))
    p, inside = _read(plan, predictions)
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


def _binary_cross_entropy(plan: Plan, predictions: Array, targets: Array) -> Array:
    """(1 - t') sigma(z) - q t' sigma(-z) from logits, (1 - t') / (1 - p) - q t' / p from p."""
    complement = 1 - targets
    if plan.label_smoothing:
        complement = complement * (1 - plan.label_smoothing) + plan.label_smoothing / 2
        targets = targets * (1 - plan.label_smoothing) + plan.label_smoothing / 2
    positive = targets
    if plan.pos_weight is not None:
        weight = ops.constant(plan.pos_weight, plan.compute_dtype, predictions)
        if weight.ndim:
            weight = ops.along(weight, predictions, plan.pos_weight_axis)
        positive = _evaluator(plan).product(targets, weight)
    if plan.from_logits:
        return complement * kernels.sigmoid(predictions) - positive * kernels.sigmoid(-predictions)
    p, inside = _read(plan, predictions)
    if plan.clamped:
        return (p - targets) / np.maximum(p * (1 - p), TORCH_LEAST_SPREAD).astype(p.dtype)
    if plan.epsilon_added:
        slope = complement / (1 - p + plan.epsilon_added) - positive / (p + plan.epsilon_added)
        return np.where(np.isnan(p), p, slope)
    slope = np.where(complement == 0, 0, complement / (1 - p)) - np.where(
        positive == 0, 0, positive / p
    )
    return np.where(np.isnan(p), p, np.where(inside, slope, 0))


def _normal(plan: Plan, targets: Array) -> Array:
    """Targets in the compute dtype, with 0 for those below the smallest normal number."""
    targets = ops.cast(targets, plan.compute_dtype)
    return np.where(targets < plan.tiny_target, 0, targets)


def _read(plan: Plan, p: Array) -> tuple[Array, Array]:
    """Probabilities as the rules read them, and where the clip lets the gradient pass."""
    read = np.where(p < plan.tiny, 0, np.where(p > 1, 1, p))
    if plan.clip is None:
        return read, np.ones(p.shape, bool)
    return read, (read >= plan.clip.low) & (read <= plan.clip.high)


def _evaluator(plan: Plan) -> Evaluator:
    return Evaluator(_OPS, _KERNELS, plan)
