"""TensorFlow's own loss kernels, one per loss."""

from __future__ import annotations

from functools import cache
from typing import Any

import tensorflow as tf

from unifiedloss.adapters.tensorflow import shapes
from unifiedloss.spec import Plan

Tensor = Any


def cross_entropy(logits: Tensor, labels: Tensor, axis: int) -> Tensor:
    """log sum exp z - z_y per position."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.reshape(labels, [-1]), logits=shapes.rows(logits, axis)
    )
    return tf.reshape(losses, tf.shape(labels))


def log_softmax(logits: Tensor, axis: int) -> Tensor:
    return shapes.classes_back(tf.nn.log_softmax(shapes.classes_last(logits, axis)), axis)


def softmax(logits: Tensor, axis: int) -> Tensor:
    return shapes.classes_back(tf.nn.softmax(shapes.classes_last(logits, axis)), axis)


def binary_cross_entropy(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    if pos_weight is None:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    # tf.nn.weighted_cross_entropy_with_logits has the gradient 1 - t at logit 0, and no digits left at -20.
    return targets * pos_weight * tf.nn.softplus(-logits) + (1.0 - targets) * tf.nn.softplus(logits)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return tf.math.squared_difference(predictions, targets)


def whole_loss(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor:
    """The sum or the mean over all positions, for an eager call in which every position counts once.

    There the four divisors are one number and tf.reduce_mean divides by it too; a native mean is taken nowhere else. ``tf.raw_ops`` are
    the kernels without the wrappers' own checks, which cost several times what the kernels do on a small batch.
    """
    if plan.kind == "index":
        assert plan.axis is not None
        losses, _ = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
            features=shapes.rows(predictions, plan.axis), labels=targets if len(targets.shape) == 1 else tf.reshape(targets, [-1])
        )
    elif plan.kind == "dense":
        # tf.nn.softmax_cross_entropy_with_logits takes the targets to sum to 1 in its gradient (tensorflow#60314).
        losses = tf.raw_ops.Mul(x=targets, y=-log_softmax(predictions, plan.axis))
    elif plan.kind == "binary":
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=predictions)
    else:
        losses = tf.raw_ops.SquaredDifference(x=predictions, y=targets)
    axes = _axes(len(losses.shape))
    if plan.spec.reduction == "mean" and plan.kind != "dense":
        return tf.raw_ops.Mean(input=losses, axis=axes)
    total = tf.raw_ops.Sum(input=losses, axis=axes)
    return total if plan.spec.reduction == "sum" else total / plan.count


@cache
def _axes(rank: int) -> Tensor:
    """All axes. Made once: turning numbers into a tensor costs as much as the reduction."""
    return tf.range(rank)
