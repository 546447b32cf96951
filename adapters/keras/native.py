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
    if BACKEND.name not in ("tensorflow", "torch"):
        # There keras.ops.sparse_categorical_crossentropy multiplies with a one-hot matrix: slower, and NaN where a logit is -inf.
        return -take_class(keras.ops.log_softmax(logits, axis), labels, axis)
    rows = _rows(logits, axis)
    losses = keras.ops.sparse_categorical_crossentropy(keras.ops.reshape(labels, (-1,)), rows, from_logits=True)
    return keras.ops.reshape(losses, keras.ops.shape(labels))


def _rows(x: Array, axis: int) -> Array:
    """`x` as a matrix with the class axis last.

    Never `x` itself: TensorFlow's crossentropies look where a tensor came from, and compute from the logits of the softmax or sigmoid
    they find there in place of the numbers they are given.
    """
    if axis not in (-1, len(x.shape) - 1):
        x = keras.ops.moveaxis(x, axis, -1)
    return keras.ops.reshape(x, (-1, x.shape[-1]))


def log_softmax(logits: Array, axis: int) -> Array:
    return keras.ops.log_softmax(logits, axis)


def softmax(logits: Array, axis: int) -> Array:
    return keras.ops.softmax(logits, axis)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element."""
    if BACKEND.name == "numpy":
        # Keras' function clips here what it does not clip elsewhere, and its softplus takes six times as long as this one, whose
        # derivative at 0 would be wrong if NumPy had any.
        tail = keras.ops.log1p(keras.ops.exp(-keras.ops.abs(logits)))
        positive = targets if pos_weight is None else targets * pos_weight
        return positive * (keras.ops.relu(-logits) + tail) + (1 - targets) * (keras.ops.relu(logits) + tail)
    if pos_weight is None:
        # Flat, for the reason _rows gives, and because on Apple's GPUs torch's version drops a last axis of length 1.
        flat = keras.ops.binary_crossentropy(
            keras.ops.reshape(targets, (-1,)), keras.ops.reshape(logits, (-1,)), from_logits=True
        )
        return keras.ops.reshape(flat, keras.ops.shape(logits))
    # Not softplus: torch's is linear from 20 on, which in float64 is 1e-10 off.
    return -(targets * pos_weight * keras.ops.log_sigmoid(logits) + (1 - targets) * keras.ops.log_sigmoid(-logits))


def squared_error(predictions: Array, targets: Array) -> Array:
    return keras.ops.square(predictions - targets)


def finite_losses(kind: str, predictions: Array, targets: Array, axis: int | None) -> Array:
    """The losses per position from logits where nothing is infinite, without the selects that infinities need."""
    if kind == "binary":
        return binary_cross_entropy(predictions, targets, None)
    assert axis is not None
    # Not keras.ops.categorical_crossentropy, whose gradient on TensorFlow is that of targets that sum to 1 (tensorflow#60314).
    return -keras.ops.sum(targets * keras.ops.log_softmax(predictions, axis), axis)
