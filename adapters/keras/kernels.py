"""Keras' kernels, from ``keras.ops``.

Nothing of ``keras.losses`` takes part: what it clips, ignores and divides by differs between Keras' own backends. Of ``keras.ops`` those
are used that mean the same on every backend they are used on.
"""

from __future__ import annotations

from typing import Any

import keras

from unifiedloss.adapters.keras.ops import BACKEND, take_class

Array = Any


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    if BACKEND.name == "torch" or BACKEND.shape(logits) is None or BACKEND.shape(labels) is None:
        # On torch, Keras' function multiplied with a one-hot matrix for years; on TensorFlow it wants to know the ranks, which are
        # unknown where a model has met (N,) and (N, 1) labels in turn.
        losses: Array = BACKEND.kernels.cross_entropy(logits, labels, axis)
        return losses
    if BACKEND.name == "tensorflow":
        if axis not in (-1, len(logits.shape) - 1):
            logits = keras.ops.moveaxis(logits, axis, -1)
        return keras.ops.sparse_categorical_crossentropy(
            labels, _of_no_origin(logits), from_logits=True
        )
    # The same function multiplies with a one-hot matrix here: slower, and NaN where a logit is -inf.
    return -take_class(keras.ops.log_softmax(logits, axis), labels, axis)


def _of_no_origin(x: Array) -> Array:
    """`x`, without anything that tells which operation it came from.

    On TensorFlow, Keras' crossentropies look for that: what they find to be a softmax or a sigmoid they put aside and compute from its
    argument, also where they are told that it is the logits. Eager tensors know only what Keras itself wrote down.
    """
    if hasattr(x, "_keras_logits") or hasattr(x, "op"):
        return keras.ops.reshape(x, keras.ops.shape(x))
    return x


def log_softmax(logits: Array, axis: int) -> Array:
    return keras.ops.log_softmax(logits, axis)


def softmax(logits: Array, axis: int) -> Array:
    if BACKEND.name == "tensorflow":
        # Its kernel, which Keras' function calls, gives 0 where the smallest numbers are not yet reached.
        probabilities: Array = BACKEND.kernels.softmax(logits, axis)
        return probabilities
    if logits.shape[axis] == 1:  # of which Keras warns
        return keras.ops.exp(keras.ops.log_softmax(logits, axis))
    return keras.ops.softmax(logits, axis)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element."""
    if BACKEND.name in ("numpy", "torch"):
        # Of keras.ops.binary_crossentropy torch.compile cannot make a graph, and on NumPy it clips what it clips nowhere else.
        losses: Array = BACKEND.kernels.binary_cross_entropy(logits, targets, pos_weight)
        return losses
    if pos_weight is None:
        return keras.ops.binary_crossentropy(targets, _of_no_origin(logits), from_logits=True)
    return targets * pos_weight * keras.ops.softplus(-logits) + (1 - targets) * keras.ops.softplus(
        logits
    )


def squared_error(predictions: Array, targets: Array) -> Array:
    return keras.ops.square(predictions - targets)


def dense_cross_entropy(logits: Array, targets: Array, axis: int) -> Array:
    """-sum t log p per position, without the selects that infinite logits need."""
    # Not keras.ops.categorical_crossentropy, whose gradient on TensorFlow is that of targets that sum to 1 (tensorflow#60314).
    likelihoods: Array = keras.ops.sum(targets * keras.ops.log_softmax(logits, axis), axis)
    return -likelihoods
