"""TensorFlow's own losses: read from what a user holds, made from a written call, and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from unifiedloss.errors import UnsupportedError
from unifiedloss.switching.functions import read_function, with_arguments
from unifiedloss.switching.library_loss import Call

_V1 = tf.compat.v1.losses

_FUNCTIONS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "tf.nn.softmax_cross_entropy_with_logits": (
        tf.nn.softmax_cross_entropy_with_logits,
        "labels",
        "logits",
    ),
    "tf.nn.sparse_softmax_cross_entropy_with_logits": (
        tf.nn.sparse_softmax_cross_entropy_with_logits,
        "labels",
        "logits",
    ),
    "tf.nn.sigmoid_cross_entropy_with_logits": (
        tf.nn.sigmoid_cross_entropy_with_logits,
        "labels",
        "logits",
    ),
    "tf.nn.weighted_cross_entropy_with_logits": (
        tf.nn.weighted_cross_entropy_with_logits,
        "labels",
        "logits",
    ),
    "tf.compat.v1.losses.softmax_cross_entropy": (
        _V1.softmax_cross_entropy,
        "onehot_labels",
        "logits",
    ),
    "tf.compat.v1.losses.sparse_softmax_cross_entropy": (
        _V1.sparse_softmax_cross_entropy,
        "labels",
        "logits",
    ),
    "tf.compat.v1.losses.sigmoid_cross_entropy": (
        _V1.sigmoid_cross_entropy,
        "multi_class_labels",
        "logits",
    ),
    "tf.compat.v1.losses.log_loss": (_V1.log_loss, "labels", "predictions"),
    "tf.compat.v1.losses.mean_squared_error": (_V1.mean_squared_error, "labels", "predictions"),
}
"""The functions, and what each calls its targets and its predictions."""


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call that a function of TensorFlow's and the arguments given with it make; None for anything else."""
    return read_function(
        {name: function for name, (function, _, _) in _FUNCTIONS.items()}, obj, arguments
    )


def build(call: Call) -> Callable[..., Any]:
    """The function itself, with the arguments of the call filled in where there are any."""
    function, _, _ = _FUNCTIONS[call.name]
    arguments = {
        name: tf.constant(value) if isinstance(value, tuple) else value
        for name, value in call.arguments.items()
    }
    return with_arguments(function, arguments)


def weight_dtype(call: Call, given: Any = None) -> str | None:
    """The dtype of the tensor of positive weights that a function holds; None where there is none."""
    weights = getattr(build(call) if given is None else given, "keywords", {}).get("pos_weight")
    return str(weights.dtype.name) if isinstance(weights, tf.Tensor | tf.Variable) else None


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value of the native call itself, and the gradient of its sum with respect to the predictions, as NumPy arrays.

    `native` is the function that the call was read from; without it, that is run which `build` makes.
    """
    value, gradient = _differentiated(call, predictions, targets, sample_weight, given)
    return value.numpy(), tf.convert_to_tensor(gradient).numpy()


def _differentiated(
    call: Call, predictions: Any, targets: Any, sample_weight: Any, given: Any
) -> tuple[Any, Any]:
    _, labels, logits = _FUNCTIONS[call.name]
    function = build(call) if given is None else given
    weights = {}
    leaf = tf.convert_to_tensor(predictions)
    with tf.GradientTape() as tape:
        if leaf.dtype.is_floating:  # of others there is no gradient, and TensorFlow would warn
            tape.watch(leaf)
        if sample_weight is not None:
            rank = len(leaf.shape) - ("softmax" in call.name)
            weights["weights"] = _weights(call, sample_weight, rank)
        value = function(**{labels: tf.convert_to_tensor(targets), logits: leaf}, **weights)
    return value, tape.gradient(value, leaf, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def run_compiled(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """What `run` gives, compiled by XLA, where a function raises nothing."""

    @tf.function(jit_compile=True, autograph=False)
    def compiled() -> tuple[Any, Any]:
        return _differentiated(call, predictions, targets, sample_weight, given)

    value, gradient = compiled()
    return value.numpy(), gradient.numpy()


def _weights(call: Call, sample_weight: Any, rank: int) -> Any:
    """Sample weights as tf.compat.v1.losses take them: with the rank of the losses, and times the scalar of the call."""
    if not call.name.startswith("tf.compat.v1"):
        msg = f"{call.name} takes no sample weights; multiply the losses it returns."
        raise UnsupportedError(msg)
    weight = np.asarray(sample_weight)
    return weight.reshape(weight.shape + (1,) * (rank - weight.ndim)) * call.arguments.get(
        "weights", 1.0
    )
