"""Keras' kernels, from ``keras.ops``.

None of ``keras.losses`` takes part: what those clip, ignore and divide by differs between Keras' own backends.
"""

from __future__ import annotations

from typing import Any

from keras import ops as K

from unifiedloss.adapters.keras import ops

Array = Any


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    return -ops.take_class(K.log_softmax(logits, axis), labels, axis)


def log_softmax(logits: Array, axis: int) -> Array:
    return K.log_softmax(logits, axis)


def softmax(logits: Array, axis: int) -> Array:
    return K.softmax(logits, axis)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    """-(q t log sigma(z) + (1 - t) log sigma(-z))."""
    # Not softplus: torch's is linear above 20, which in float64 is 1e-10 off.
    positive = targets if pos_weight is None else targets * pos_weight
    return -(positive * K.log_sigmoid(logits) + (1.0 - targets) * K.log_sigmoid(-logits))


def squared_error(predictions: Array, targets: Array) -> Array:
    return K.square(predictions - targets)
