"""Keras' own losses: read from what a user holds, made from a written call, and run, on the backend that Keras runs on here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from unifiedloss.adapters.keras.ops import BACKEND
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.switching.arrays import plain
from unifiedloss.switching.calls import Call
from unifiedloss.switching.tables import find

_OBJECTS: dict[str, Any] = {
    f"keras.losses.{name}": getattr(keras.losses, name)
    for name in (
        "SparseCategoricalCrossentropy",
        "CategoricalCrossentropy",
        "BinaryCrossentropy",
        "MeanSquaredError",
        "sparse_categorical_crossentropy",
        "categorical_crossentropy",
        "binary_crossentropy",
        "mean_squared_error",
    )
}

EPSILON = 1e-7
"""The epsilon of Keras that the rule epsilon="keras" is about: its default."""


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call that a loss of Keras', or a function and the arguments given with it, make; None for anything else.

    Raises:
        UnsupportedError: Keras' epsilon has been changed, and the loss clips to it.
    """
    for name, own in _OBJECTS.items():
        # Not isinstance: a class derived from one of Keras' may compute anything.
        if type(obj) is own:
            return _call(name, _settings(name, obj, arguments))
        if obj is own and not isinstance(own, type):
            return _call(name, arguments)
    return None


def _settings(name: str, loss: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a loss was made with. Its get_config leaves out dtype, and the axis of SparseCategoricalCrossentropy."""
    if arguments:
        msg = f"{', '.join(arguments)}: a {name} has been made with its arguments; pass it alone."
        raise SpecTypeError(msg)
    dtype = None if loss.dtype == "float32" else loss.dtype
    return {"reduction": loss.reduction, "dtype": dtype, **loss._fn_kwargs}


def _call(name: str, arguments: dict[str, Any]) -> Call:
    native = find(name)
    call = Call(name, native.bind([], {key: plain(value) for key, value in arguments.items()}), BACKEND.name)
    _check_epsilon(call)
    return call


def _check_epsilon(call: Call) -> None:
    epsilon = keras.config.epsilon()
    clips = call.name.endswith("ntropy") and not call.arguments.get("from_logits", False)
    if clips and epsilon != EPSILON:
        msg = (
            f"keras.config.epsilon() is {epsilon}, and {call.name} clips probabilities to it; the rule epsilon='keras' is about Keras' "
            f"default: call keras.config.set_epsilon({EPSILON}), or write the spec with epsilon={epsilon}."
        )
        raise UnsupportedError(msg)


def backend() -> str:
    """The backend that Keras runs on here, on which some of its losses depend."""
    return BACKEND.name


def build(call: Call) -> Any:
    """A loss object, or a function with the arguments of the call filled in where there are any."""
    own = _OBJECTS[call.name]
    _check_epsilon(call)
    if isinstance(own, type):
        # Without a dtype it would be keras.config.floatx(), which may have been changed.
        return own(**{"dtype": "float32"} | call.arguments)
    return partial(own, **call.arguments) if call.arguments else own


def run(call: Call, predictions: Any, targets: Any, sample_weight: Any = None) -> tuple[Any, Any]:
    """The value of the native call itself, and the gradient of its sum with respect to the predictions, as NumPy arrays.

    There is no gradient where Keras runs on NumPy.
    """
    loss: Callable[..., Any] = build(call)
    if sample_weight is not None:
        if not isinstance(loss, keras.losses.Loss):
            msg = f"{call.name} takes no sample weights; multiply the losses it returns."
            raise UnsupportedError(msg)
        # A copy: where a class is ignored, Keras on torch multiplies the mask into the very weights it was given (keras 3.15).
        loss = partial(loss, sample_weight=BACKEND.convert(np.array(sample_weight), None))
    y_pred, y_true = (BACKEND.convert(np.asarray(x), None) for x in (predictions, targets))
    if not BACKEND.differentiates:
        return np.asarray(loss(y_true, y_pred)), None
    value, (gradient,) = BACKEND.differentiate(lambda p: loss(y_true, p), (y_pred,), None)
    return BACKEND.to_numpy(value), BACKEND.to_numpy(gradient)
