"""Loss kernels from ``keras.ops``.

``keras.losses`` is not used, because its clipping, masking and divisors differ between Keras'
backends. A function of ``keras.ops`` is used only on backends where it has the same meaning.
"""

from __future__ import annotations

from typing import Any

import keras

from unifiedloss.adapters.keras.ops import BACKEND, take_class

Array = Any


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    if BACKEND.name == "torch" or BACKEND.shape(logits) is None or BACKEND.shape(labels) is None:
        # On torch, Keras' function multiplied with a one-hot matrix for years. On TensorFlow it
        # needs the ranks, which are unknown after a model has had (N,) and (N, 1) labels in turn.
        losses: Array = BACKEND.kernels.cross_entropy(logits, labels, axis)
        return losses
    if BACKEND.name == "tensorflow":
        if axis not in (-1, len(logits.shape) - 1):
            logits = keras.ops.moveaxis(logits, axis, -1)
        return keras.ops.sparse_categorical_crossentropy(
            labels, _without_history(logits), from_logits=True
        )
    # On the other backends that function multiplies with a one-hot matrix, which is slower and
    # gives NaN where a logit is -inf.
    return -take_class(keras.ops.log_softmax(logits, axis), labels, axis)


def _without_history(x: Array) -> Array:
    """`x`, without the traces of the operation that computed it.

    On TensorFlow, Keras' cross-entropies look for these. If `x` is the result of a softmax or
    sigmoid, they compute from the argument of that instead, also under ``from_logits=True``. Graph
    tensors have an `op`; on eager tensors Keras sets `_keras_logits` (keras#15271).
    """
    if hasattr(x, "_keras_logits") or hasattr(x, "op"):
        return keras.ops.reshape(x, keras.ops.shape(x))
    return x


def log_softmax(logits: Array, axis: int) -> Array:
    return keras.ops.log_softmax(logits, axis)


def softmax(logits: Array, axis: int) -> Array:
    if BACKEND.name == "tensorflow":
        # Not Keras' function, because tf.nn.softmax gives 0 for results that are still normal
        # numbers, see `unifiedloss.adapters.tensorflow.kernels.softmax`.
        probabilities: Array = BACKEND.kernels.softmax(logits, axis)
        return probabilities
    if logits.shape[axis] == 1:  # Keras' softmax warns about a single class
        return keras.ops.exp(keras.ops.log_softmax(logits, axis))
    return keras.ops.softmax(logits, axis)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element."""
    if BACKEND.name in ("numpy", "torch"):
        # torch.compile cannot trace keras.ops.binary_crossentropy, and on NumPy alone it clips.
        losses: Array = BACKEND.kernels.binary_cross_entropy(logits, targets, pos_weight)
        return losses
    if pos_weight is None:
        return keras.ops.binary_crossentropy(targets, _without_history(logits), from_logits=True)
    positive, negative = keras.ops.softplus(-logits), keras.ops.softplus(logits)
    return targets * pos_weight * positive + (1 - targets) * negative


def squared_error(predictions: Array, targets: Array) -> Array:
    return keras.ops.square(predictions - targets)


def dense_cross_entropy(logits: Array, targets: Array, axis: int) -> Array:
    """-sum t log p per position, without the selects that infinite logits need."""
    # Not keras.ops.categorical_crossentropy, whose gradient on TensorFlow assumes that the targets
    # of a position sum to 1 (tensorflow#60314).
    likelihoods: Array = keras.ops.sum(targets * keras.ops.log_softmax(logits, axis), axis)
    return -likelihoods
