"""Keras' own losses: read from what a user holds, made from a written call, and run, on the backend that Keras runs on here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from unifiedloss.adapters.keras.ops import BACKEND
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.switching.arrays import as_bfloat16
from unifiedloss.switching.functions import call_with, with_arguments
from unifiedloss.switching.library_loss import Call

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
    call = call_with(name, arguments, BACKEND.name)
    _check_epsilon(call)
    return call


def _check_epsilon(call: Call) -> None:
    changed = _changed_epsilon(call)
    if changed is not None:
        raise UnsupportedError(changed)


def _changed_epsilon(call: Call) -> str | None:
    epsilon = keras.config.epsilon()
    if (
        epsilon == EPSILON
        or not call.name.endswith("ntropy")
        or call.arguments.get("from_logits", False)
    ):
        return None
    return (
        f"keras.config.epsilon() is {epsilon}, and {call.name} clips probabilities to it; the rule epsilon='keras' is about Keras' "
        f"default: call keras.config.set_epsilon({EPSILON}), or write the spec with epsilon={epsilon}."
    )


def _changed_floatx(call: Call) -> str | None:
    floatx = keras.config.floatx()
    if (
        floatx == "float32"
        or not call.name.rpartition(".")[2][0].isupper()
        or "dtype" in call.arguments
    ):
        return None
    return (
        f"keras.config.floatx() is {floatx!r}, which a loss object has that is made here without a dtype; what is compared is "
        f"{call.name} with dtype='float32', as Keras comes."
    )


def setting(call: Call) -> str | None:
    """What this process has changed in Keras, so that the call makes another loss here than where Keras is as it comes; else None."""
    return _changed_epsilon(call) or _changed_floatx(call)


def written(call: Call) -> Call:
    """The call as it has to be written here: with its dtype, where a loss without one would have another."""
    return (
        call
        if _changed_floatx(call) is None
        else Call(call.name, {**call.arguments, "dtype": "float32"}, call.backend)
    )


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
    return with_arguments(own, call.arguments)


def _loss(call: Call, given: Any) -> Any:
    """What is run: the loss that was read, which clips as Keras does now, or one that is made."""
    if given is None:
        return build(call)
    _check_epsilon(call)
    return given


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value of the native call itself, and the gradient of its sum with respect to the predictions, as NumPy arrays.

    There is no gradient where Keras runs on NumPy. `native` is the loss that the call was read from; without it, that is run which `build`
    makes.
    """
    loss: Callable[..., Any] = _loss(call, given)
    if sample_weight is not None:
        if not isinstance(loss, keras.losses.Loss):
            msg = f"{call.name} takes no sample weights; multiply the losses it returns."
            raise UnsupportedError(msg)
        # A copy: where a class is ignored, Keras on torch multiplies the mask into the very weights it was given (keras 3.15).
        # Guarded by test_weights_are_overwritten of tests/keras_switching_checks.py.
        loss = partial(loss, sample_weight=_tensor(np.array(sample_weight)))
    y_pred, y_true = _tensor(predictions), _tensor(targets)
    if not BACKEND.differentiates:
        with np.errstate(all="ignore"):
            return np.asarray(loss(y_true, y_pred)), None
    value, (gradient,) = BACKEND.differentiate(lambda p: loss(y_true, p), (y_pred,), None)
    return as_bfloat16(value, BACKEND.to_numpy(value)), as_bfloat16(
        gradient, BACKEND.to_numpy(gradient)
    )


def run_behind_softmax(
    call: Call, logits: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, None]:
    """The value for predictions that come from ``keras.ops.softmax``: on TensorFlow, Keras finds the logits on them."""
    x, y_true = (BACKEND.convert(np.asarray(tensor), None) for tensor in (logits, targets))
    return keras.ops.convert_to_numpy(_loss(call, given)(y_true, keras.ops.softmax(x))), None


def run_behind_sigmoid(
    call: Call, logits: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, None]:
    """The value for predictions that come from a sigmoid in a compiled graph, in which Keras on TensorFlow looks for the operation."""
    model = keras.Sequential([keras.layers.Activation("sigmoid")])
    model.compile(loss=_loss(call, given))
    value = model.evaluate(np.asarray(logits), np.asarray(targets), verbose=0)  # pyright: ignore[reportArgumentType] # Keras' own value
    return np.asarray(value, np.float32), None


def run_aligned(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """What `run` gives with sample weights that align to the first axes, as those of a spec do: axes of length 1 are appended."""
    weight = None if sample_weight is None else np.asarray(sample_weight)
    positions = np.ndim(predictions) - 1
    return run(
        call,
        predictions,
        targets,
        None if weight is None else weight.reshape(weight.shape + (1,) * (positions - weight.ndim)),
        given,
    )


def _tensor(x: Any) -> Any:
    """A tensor as Keras makes one: where x64 is off JAX narrows 64 bits, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keras.ops.convert_to_tensor(np.asarray(x))
