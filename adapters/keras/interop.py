"""Keras' losses, on the backend of this process: read as calls, built from calls, and run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np

from unifiedloss.adapters.keras.ops import BACKEND
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop.arrays import as_bfloat16
from unifiedloss.interop.functions import Losses, call_with, with_arguments
from unifiedloss.interop.library_loss import Call, find
from unifiedloss.interop.unchanged import check_unchanged, refuse_changed
from unifiedloss.spec import Categorical

_OBJECTS = Losses("keras", keras)

TENSORS = BACKEND.tensor_type
"""The types of the tensors that Keras' losses take unchanged."""

EPSILON = 1e-7
"""Keras' default epsilon, which epsilon="keras" of a spec stands for."""


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call that makes this loss object, or this function with its arguments.

    None for anything else.

    Raises:
        UnsupportedError: the loss clips to Keras' epsilon, which is not the default.
    """
    if isinstance(obj, type):
        return None
    # The very class, because a subclass may compute anything.
    name = _OBJECTS.name_of(type(obj))
    if name is not None:
        return _call(name, _settings(name, obj, arguments))
    name = _OBJECTS.name_of(obj)
    return None if name is None else _call(name, arguments)


def _settings(name: str, loss: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a loss object was made with.

    `get_config` omits dtype, and the axis of SparseCategoricalCrossentropy.
    """
    check_unchanged(loss, name)
    if loss.fn is not type(loss)().fn or _OBJECTS.name_of(loss.fn) is None:
        refuse_changed(name, "a fn of its own")
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
        f"keras.config.epsilon() is {epsilon}, and {call.name} clips probabilities to it; the rule "
        f"epsilon='keras' is about Keras' default: call keras.config.set_epsilon({EPSILON}), or "
        f"write the spec with epsilon={epsilon}."
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
        f"keras.config.floatx() is {floatx!r}, which a loss object has that is made here without a "
        f"dtype; what is compared is {call.name} with dtype='float32', as Keras comes."
    )


def setting(call: Call) -> str | None:
    """The setting of Keras in this process with which the call makes another loss than by default.

    A sentence, or None if there is no such setting.
    """
    return _changed_epsilon(call) or _changed_floatx(call)


def written(call: Call) -> Call:
    """The call, with dtype="float32" added if this process has changed the default dtype."""
    if _changed_floatx(call) is None:
        return call
    return Call(call.name, {**call.arguments, "dtype": "float32"}, call.backend)


def backend() -> str:
    """The backend of Keras in this process, on which some of its losses depend."""
    return BACKEND.name


def build(call: Call) -> Any:
    """A loss object, or the function with the arguments of the call bound, if there are any."""
    loss = _OBJECTS[call.name]
    _check_epsilon(call)
    if isinstance(loss, type):
        # The default dtype is keras.config.floatx(), which may have been changed.
        return loss(**{"dtype": "float32"} | call.arguments)
    return with_arguments(loss, call.arguments)


def _loss(call: Call, given: Any) -> Any:
    """The loss to run: the one that the call was read from, or one built from the call."""
    if given is None:
        return build(call)
    _check_epsilon(call)
    return given


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value of Keras' loss and the gradient of its sum, as NumPy arrays.

    The gradient is with respect to the predictions. It is None if Keras runs on NumPy, and for
    predictions whose place their logits take (see `run_behind_keras`). `given` is the loss that the
    call was read from; without it, `build` makes the loss. Tensors of Keras' backend are taken
    unchanged.
    """
    loss: Callable[..., Any] = _loss(call, given)
    if sample_weight is not None:
        if not isinstance(loss, keras.losses.Loss):
            msg = f"{call.name} takes no sample weights; multiply the losses it returns."
            raise UnsupportedError(msg)
        # Pass a copy: with an ignored class, Keras 3.15 on torch multiplies the mask into the
        # weights in place. Guarded by test_weights_are_overwritten of
        # tests/keras_interop_checks.py.
        loss = partial(loss, sample_weight=_tensor(np.array(sample_weight)))
    y_pred, y_true = accepted(call, predictions, targets)
    if not BACKEND.differentiates:
        with np.errstate(all="ignore"):
            return np.asarray(loss(y_true, y_pred)), None
    if hasattr(y_pred, "_keras_logits"):
        return BACKEND.to_numpy(loss(y_true, y_pred)), None
    value, (gradient,) = BACKEND.differentiate(lambda p: loss(y_true, p), (y_pred,), None)
    return (
        as_bfloat16(value, BACKEND.to_numpy(value)),
        as_bfloat16(gradient, BACKEND.to_numpy(gradient)),
    )


def accepted(_: Call, predictions: Any, targets: Any) -> tuple[Any, Any]:
    """The predictions and targets as tensors: on JAX without 64 bits unless x64 is enabled."""
    return _tensor(predictions), _tensor(targets)


def run_behind_keras(
    call: Call, logits: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, None]:
    """The value for predictions that ``keras.ops`` computed with the loss's own activation.

    On TensorFlow, Keras finds the logits attached to them and uses those.
    """
    x, y_true = _tensor(logits), _tensor(targets)
    return keras.ops.convert_to_numpy(_loss(call, given)(y_true, _activation(call)(x))), None


def run_behind_operation(
    call: Call, logits: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, None]:
    """The value for predictions that an operation of TensorFlow computed in a tf.function.

    Keras looks for the operation in the graph and uses its logits.

    Raises:
        UnsupportedError: Keras runs on another backend.
    """
    traced = BACKEND.modes().get("function") if BACKEND.name == "tensorflow" else None
    if traced is None:
        msg = f"Keras runs on {BACKEND.name} here, which has no tf.function."
        raise UnsupportedError(msg)
    loss = _loss(call, given)

    def behind(x: Any, y_true: Any) -> Any:
        y_pred = _activation(call)(x)
        # Without what Keras attached, this is the output of TensorFlow's own operation.
        del y_pred._keras_logits
        return loss(y_true, y_pred)

    return keras.ops.convert_to_numpy(traced.run(behind, _tensor(logits), _tensor(targets))), None


def _activation(call: Call) -> Callable[[Any], Any]:
    """The activation that turns logits into the probabilities that a loss takes."""
    categorical = issubclass(find(call.name).loss, Categorical)
    return keras.ops.softmax if categorical else keras.ops.sigmoid


def run_aligned(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The result of `run` with sample weights aligned to the first axes, as a spec aligns them.

    Axes of length 1 are appended to the weights.
    """
    if sample_weight is not None:
        weight = np.asarray(sample_weight)
        rank = np.ndim(predictions) - 1
        sample_weight = weight.reshape(weight.shape + (1,) * (rank - weight.ndim))
    return run(call, predictions, targets, sample_weight, given)


def _tensor(x: Any) -> Any:
    """A tensor of Keras, without the warning that JAX narrows 64 bits if x64 is off.

    A tensor of Keras' backend is returned as it is.
    """
    if isinstance(x, TENSORS):
        return x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keras.ops.convert_to_tensor(np.asarray(x))
