"""PyTorch's own losses: read as calls, built from calls, and run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from unifiedloss.adapters.torch import ADAPTER
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.spec import WITH_CLASSES
from unifiedloss.switching.calls import Call
from unifiedloss.switching.tables import find

# The attributes that hold what a module was made with: the old arguments are resolved into `reduction` when it is made.
_ATTRIBUTES = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "reduction", "label_smoothing"),
    nn.NLLLoss: ("weight", "ignore_index", "reduction"),
    nn.BCELoss: ("weight", "reduction"),
    nn.BCEWithLogitsLoss: ("weight", "reduction", "pos_weight"),
    nn.MSELoss: ("reduction",),
}
_FUNCTIONS = (
    functional.cross_entropy,
    functional.nll_loss,
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.mse_loss,
)


def read(obj: Any, **arguments: Any) -> Call | None:
    """The call that makes this module, or that this function with its arguments is; None for what is no loss known here."""
    attributes = _ATTRIBUTES.get(type(obj))
    if attributes is not None:
        name = f"torch.nn.{type(obj).__name__}"
        if arguments:
            msg = f"{name} has its arguments already; make another with {', '.join(arguments)}."
            raise SpecTypeError(msg)
        arguments = {attribute: getattr(obj, attribute) for attribute in attributes}
    elif any(obj is function for function in _FUNCTIONS):
        name = f"torch.nn.functional.{obj.__name__}"
    else:
        return None
    return Call(name, find(name).bind([], {key: _plain(x) for key, x in arguments.items()}))


def _plain(x: Any) -> Any:
    """A tensor, or a sequence that stands for one, as nested tuples.

    A float32 number is read as the shortest decimal that rounds to it: 0.1 is what was written, though float32 has 0.10000000149.
    Computing in float32, which is what such weights are for, the two are one.
    """
    if not isinstance(x, torch.Tensor):
        return _tuples(x)
    x = x.detach().cpu()
    array = (x.float() if x.dtype is torch.bfloat16 else x).numpy()
    if x.dtype is torch.float32:
        array = np.reshape([float(str(number)) for number in array.ravel()], array.shape)
    return _tuples(array.tolist())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def build(call: Call, dtype: torch.dtype = torch.float32) -> Any:
    """The module, or the function with its arguments bound. Weights are float32, as everything in a module is at first."""
    native = find(call.name)
    arguments = {
        name: torch.tensor(value, dtype=dtype) if name in native.tensors and value is not None else value
        for name, value in call.arguments.items()
    }
    found: Any = functools.reduce(getattr, call.name.split(".")[1:], torch)
    return found(**arguments) if native.is_class else functools.partial(found, **arguments)


def run(call: Call, predictions: Any, targets: Any, sample_weight: Any = None) -> tuple[Any, Any]:
    """The value and the gradient of its sum, as arrays.

    Weights are of the predictions' dtype. So are the targets of an elementwise loss that are integers, and class indices are int64: torch
    takes no others.
    """
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if find(call.name).loss not in WITH_CLASSES:
        targets = targets.astype(predictions.dtype) if targets.dtype.kind in "iub" else targets
    elif targets.dtype.kind in "iu":
        targets = targets.astype(np.int64)
    return run_as_given(call, predictions, targets, sample_weight)


def run_as_given(call: Call, predictions: Any, targets: Any, sample_weight: Any = None) -> tuple[Any, Any]:
    """What `run` gives, for targets of the dtype they have, which torch may refuse."""
    if sample_weight is not None:
        msg = f"{call.name} takes no sample weights; use reduction='none' and weight its losses."
        raise UnsupportedError(msg)
    x, t = (ADAPTER.convert(np.asarray(each), None) for each in (predictions, targets))
    x = x.detach().clone().requires_grad_()
    value = build(call, x.dtype)(x, t)
    (gradient,) = torch.autograd.grad(value.sum(), [x])
    return ADAPTER.to_numpy(value), ADAPTER.to_numpy(gradient)
