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
    """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element.

    Without a weight, bit for bit what tf.nn.sigmoid_cross_entropy_with_logits gives, at a third of its price on a small batch: -|z| is
    z - 2 max(z, 0), whose slope at 0 is also the one that makes the gradient there right. tf.nn.weighted_cross_entropy_with_logits has
    the gradient 1 - t at 0, and at -20 no digit of the loss.
    """
    raw = tf.raw_ops
    positive = raw.Relu(features=logits)
    tail = raw.Log1p(x=raw.Exp(x=raw.Sub(x=logits, y=raw.AddV2(x=positive, y=positive))))
    if pos_weight is None:
        return raw.AddV2(x=raw.Sub(x=positive, y=raw.Mul(x=logits, y=targets)), y=tail)
    return targets * pos_weight * (positive - logits + tail) + (1.0 - targets) * (positive + tail)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return tf.math.squared_difference(predictions, targets)


def whole_loss(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor:
    """The sum or the mean over all positions, for an eager call in which every position counts once.

    There the four divisors are one number and tf.reduce_mean divides by it too; a native mean is taken nowhere else. ``tf.raw_ops`` are
    the kernels without the wrappers around them, which on a small batch cost several times what the kernels do.
    """
    if plan.kind == "index":
        assert plan.axis is not None
        labels = targets if len(targets.shape) == 1 else tf.reshape(targets, [-1])
        rows = shapes.rows(predictions, plan.axis)
        losses, _ = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=rows, labels=labels)
    elif plan.kind == "dense":
        assert plan.axis is not None
        # tf.nn.softmax_cross_entropy_with_logits would take it, in its gradient, that the targets sum to 1 (tensorflow#60314).
        losses = tf.raw_ops.Mul(x=targets, y=-log_softmax(predictions, plan.axis))
    elif plan.kind == "binary":
        losses = binary_cross_entropy(predictions, targets, None)
    else:
        losses = tf.raw_ops.SquaredDifference(x=predictions, y=targets)
    axes = _axes(len(losses.shape))
    if plan.spec.reduction == "mean" and plan.kind != "dense":
        return tf.raw_ops.Mean(input=losses, axis=axes)
    total = tf.raw_ops.Sum(input=losses, axis=axes)
    return total if plan.spec.reduction == "sum" else total / plan.count


@cache
def _axes(rank: int) -> Tensor:
    """All axes of a tensor. Made once: to make a tensor of Python numbers costs as much as to reduce."""
    return tf.range(rank)
