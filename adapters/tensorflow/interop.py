"""TensorFlow's losses: read from functions as calls, built from calls, and run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.functions import Losses, read_function, with_arguments
from unifiedloss.interop.library_loss import Call

_FUNCTIONS = Losses("tensorflow", tf)

TENSORS = (tf.Tensor, tf.Variable)
"""The types of the tensors that TensorFlow's losses take unchanged."""

_TARGETS = ("labels", "onehot_labels", "multi_class_labels")
_PREDICTIONS = ("logits", "predictions")
"""TensorFlow's names of the parameters for targets and for predictions."""


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call of a function of TensorFlow with its arguments; None for anything else."""
    return read_function(_FUNCTIONS, obj, arguments)


def build(call: Call) -> Callable[..., Any]:
    """The function, with the arguments of the call bound if there are any."""
    arguments = {
        name: tf.constant(value) if isinstance(value, tuple) else value
        for name, value in call.arguments.items()
    }
    return with_arguments(_FUNCTIONS[call.name], arguments)


def weight_dtype(call: Call, given: Any = None) -> str | None:
    """The dtype of a function's tensor of positive weights; None without such a tensor."""
    weights = getattr(build(call) if given is None else given, "keywords", {}).get("pos_weight")
    return str(weights.dtype.name) if isinstance(weights, tf.Tensor | tf.Variable) else None


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value of TensorFlow's loss and the gradient of its sum, as NumPy arrays.

    The gradient is with respect to the predictions. `given` is the function that the call was read
    from; without it, `build` makes the function.
    """
    value, gradient = _differentiated(call, predictions, targets, sample_weight, given)
    return value.numpy(), tf.convert_to_tensor(gradient).numpy()


def _differentiated(
    call: Call, predictions: Any, targets: Any, sample_weight: Any, given: Any
) -> tuple[Any, Any]:
    labels, logits = (
        next(name for name in inspect.signature(_FUNCTIONS[call.name]).parameters if name in names)
        for names in (_TARGETS, _PREDICTIONS)
    )
    function = build(call) if given is None else given
    weights = {}
    leaf = tf.convert_to_tensor(predictions)
    with tf.GradientTape() as tape:
        if leaf.dtype.is_floating:  # other dtypes have no gradient, and watching them warns
            tape.watch(leaf)
        if sample_weight is not None:
            rank = len(leaf.shape) - ("softmax" in call.name)
            weights["weights"] = _weights(call, sample_weight, rank)
        value = function(**{labels: tf.convert_to_tensor(targets), logits: leaf}, **weights)
    return value, tape.gradient(value, leaf, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def run_compiled(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The result of `run` compiled by XLA, under which a function raises no errors."""

    @tf.function(jit_compile=True, autograph=False)
    def compiled() -> tuple[Any, Any]:
        return _differentiated(call, predictions, targets, sample_weight, given)

    value, gradient = compiled()
    return value.numpy(), gradient.numpy()


def _weights(call: Call, sample_weight: Any, rank: int) -> Any:
    """Sample weights with the rank of the losses, times the scalar `weights` of the call."""
    if not call.name.startswith("tf.compat.v1"):
        msg = f"{call.name} takes no sample weights; multiply the losses it returns."
        raise UnsupportedError(msg)
    weight = np.asarray(sample_weight)
    aligned = weight.reshape(weight.shape + (1,) * (rank - weight.ndim))
    return aligned * call.arguments.get("weights", 1.0)
