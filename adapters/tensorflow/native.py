"""TensorFlow's own loss kernels, one per loss."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from unifiedloss.adapters.tensorflow.ops import flatten

Tensor = Any


def cross_entropy(logits: Tensor, labels: Tensor, axis: int) -> Tensor:
    """log sum exp z - z_y per position."""
    rows = flatten(logits, axis)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tf.reshape(labels, [-1]), logits=rows)
    return tf.reshape(losses, tf.shape(labels))


def log_softmax(logits: Tensor, axis: int) -> Tensor:
    return tf.nn.log_softmax(logits, axis)


def softmax(logits: Tensor, axis: int) -> Tensor:
    return tf.nn.softmax(logits, axis)


def binary_cross_entropy(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    if pos_weight is None:
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    return targets * pos_weight * tf.nn.softplus(-logits) + (1.0 - targets) * tf.nn.softplus(logits)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return tf.math.squared_difference(predictions, targets)
