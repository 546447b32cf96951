"""TensorFlow's own loss kernels, one per loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf

from unifiedloss.adapters.tensorflow import shapes
from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan

Tensor = Any

raw = tf.raw_ops
"""The bare kernels: on a small batch, the public functions around them cost several times more."""


def cross_entropy(logits: Tensor, labels: Tensor, axis: int) -> Tensor:
    """log sum exp z - z_y per position."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.reshape(labels, [-1]), logits=shapes.rows(logits, axis)
    )
    return tf.reshape(losses, tf.shape(labels))


def log_softmax(logits: Tensor, axis: int) -> Tensor:
    return shapes.classes_back(tf.nn.log_softmax(shapes.classes_last(logits, axis)), axis)


def softmax(logits: Tensor, axis: int) -> Tensor:
    # Not tf.nn.softmax, which outside XLA gives 0 for float32 results below 2^-125. That is twice
    # the smallest normal number.
    e = tf.exp(logits - tf.stop_gradient(tf.reduce_max(logits, axis, keepdims=True)))
    return e / tf.reduce_sum(e, axis, keepdims=True)


def binary_cross_entropy(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element.

    Without a weight, the result has the same bits as tf.nn.sigmoid_cross_entropy_with_logits, at a
    third of its cost on a small batch. It computes -|z| as z - 2 max(z, 0), because the slope of
    that at 0 also makes the gradient right there. tf.nn.weighted_cross_entropy_with_logits is not
    used: its gradient at 0 is 1 - t, and at -20 its loss has no correct digit.
    """
    positive = raw.Relu(features=logits)
    tail = raw.Log1p(x=raw.Exp(x=raw.Sub(x=logits, y=raw.AddV2(x=positive, y=positive))))
    if pos_weight is None:
        return raw.AddV2(x=raw.Sub(x=positive, y=raw.Mul(x=logits, y=targets)), y=tail)
    return targets * pos_weight * (positive - logits + tail) + (1.0 - targets) * (positive + tail)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return tf.math.squared_difference(predictions, targets)


# ------------------------------------------------------- fused losses, where all weights are equal
# Where every position counts once, all four divisors are the number of positions, by which
# tf.reduce_mean divides too. Nothing else here uses a native mean.


def checked_loss(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor:
    """The reduced loss of an eager call whose targets are known to be valid.

    It is not finite where a logit is infinite.
    """
    if plan.kind == "index":
        assert plan.axis is not None
        labels = targets if len(targets.shape) == 1 else tf.reshape(targets, [-1])
        rows = shapes.rows(predictions, plan.axis)
        losses, _ = raw.SparseSoftmaxCrossEntropyWithLogits(features=rows, labels=labels)
    elif plan.kind == "dense":
        assert plan.axis is not None
        # Not tf.nn.softmax_cross_entropy_with_logits, whose gradient assumes that the targets of a
        # position sum to 1 (tensorflow#60314).
        losses = raw.Mul(x=targets, y=-log_softmax(predictions, plan.axis))
    elif plan.kind == "binary":
        losses = binary_cross_entropy(predictions, targets, None)
    else:
        losses = raw.SquaredDifference(x=predictions, y=targets)
    axes = _axes(len(losses.shape))
    if plan.spec.reduction == "mean" and plan.kind != "dense":
        return raw.Mean(input=losses, axis=axes)
    return _over_count(plan, raw.Sum(input=losses, axis=axes))


@cache
def _axes(rank: int) -> Tensor:
    """All axes of a tensor, cached because creating this tensor costs as much as reducing."""
    return tf.range(rank)


def unchecked_loss(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor:
    """The reduced loss of a call whose values cannot be read.

    Bad values give NaN. All other values give the right loss, infinite logits included. The result
    is the same as `unifiedloss.pipeline` gives, with a third of the passes over memory: each
    operation of a tf.function is one pass.
    """
    if plan.kind == "index":
        assert plan.axis is not None
        rows, labels = shapes.rows(predictions, plan.axis), tf.reshape(targets, [-1])
        inside = tf.clip_by_value(labels, 0, plan.shared_by - 1)
        losses, _ = raw.SparseSoftmaxCrossEntropyWithLogits(features=rows, labels=inside)
        losses *= _nan_where(tf.not_equal(labels, inside), losses)
    elif plan.kind == "dense":
        assert plan.axis is not None
        logits, targets = (
            shapes.classes_last(predictions, plan.axis),
            shapes.classes_last(targets, plan.axis),
        )
        bad = (tf.reduce_min(targets, -1) <= -plan.tiny) | tf.equal(
            tf.reduce_max(targets, -1), math.inf
        )
        losses = _kernel(_dense_cross_entropy, logits.dtype)(logits, targets)
        losses *= _nan_where(bad, losses)
    elif plan.kind == "binary":
        losses = _kernel(_binary_cross_entropy, predictions.dtype)(predictions, targets)
    else:
        losses = squared_error(predictions, targets)
    return _over_count(plan, tf.reduce_sum(losses))


def _over_count(plan: Plan, total: Tensor) -> Tensor:
    assert plan.count
    return total if plan.spec.reduction == "sum" else total / plan.count


def _nan_where(bad: Tensor, losses: Tensor) -> Tensor:
    """A factor per position: NaN, which poisons loss and gradient, where it is bad, else 1."""
    return tf.where(bad, tf.constant(math.nan, losses.dtype), tf.constant(1.0, losses.dtype))


@cache
def _kernel(function: Callable[..., Any], dtype: Any) -> Callable[..., Tensor]:
    return shapes.traced_once(tf.custom_gradient(function), dtype, dtype)


def _binary_cross_entropy(
    logits: Tensor, targets: Tensor
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """(1 - t) softplus(z) + t softplus(-z), with 0 * inf = 0; NaN at targets outside [0, 1]."""
    bad = (targets <= -FORMATS[targets.dtype.name].tiny) | (targets > 1.0)
    nan = tf.constant(math.nan, targets.dtype)
    targets = tf.where(bad, nan, targets)
    negative_part = tf.math.multiply_no_nan(tf.nn.relu(logits), 1.0 - targets)
    positive_part = tf.math.multiply_no_nan(tf.nn.relu(-logits), targets)
    # Not -|z|: its slope of 0 at 0 would make the second derivative 0 there.
    tail = tf.exp(tf.minimum(logits, -logits))
    losses = negative_part + positive_part + tf.math.log1p(tail)

    def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
        certain = tf.math.is_inf(logits) & tf.equal(targets, tf.cast(logits > 0.0, targets.dtype))
        by_targets = tf.where(bad, nan, tf.where(certain, tf.zeros_like(logits), -logits))
        # The sigmoid from the exponential above, because XLA's own sigmoid costs more than all the
        # rest.
        sigmoid = tf.where(logits <= 0.0, tail, tf.ones_like(tail)) / (1.0 + tail)
        return upstream * (sigmoid - targets), upstream * by_targets

    return losses, gradient


def _dense_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """sum_c -t_c log p_c over the last axis, with 0 * inf = 0."""
    log_p = tf.nn.log_softmax(logits)
    losses = -tf.reduce_sum(tf.math.multiply_no_nan(log_p, targets), -1)
    # Keep the NaN of a poisoned row, which is NaN in every entry. multiply_no_nan loses it where
    # all targets are 0.
    losses = tf.where(tf.math.is_nan(log_p[..., 0]), log_p[..., 0], losses)

    def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
        upstream = tf.expand_dims(upstream, -1)
        total = tf.reduce_sum(targets, -1, keepdims=True)
        unread = tf.equal(targets, 0.0) & tf.math.is_inf(log_p)
        by_targets = tf.where(unread, tf.zeros_like(log_p), -log_p)
        return upstream * (tf.exp(log_p) * total - targets), upstream * by_targets

    return losses, gradient
