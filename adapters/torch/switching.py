"""PyTorch's own losses: read as calls, built from calls, and run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from unifiedloss.switching.calls import Call
from unifiedloss.switching.tables import find

_MODULES = {nn.CrossEntropyLoss: ("weight", "ignore_index", "reduction", "label_smoothing")}
"""The attributes that hold what a module was made with. The old arguments are resolved into `reduction` when it is made."""


def read(obj: Any, **arguments: Any) -> Call | None:
    """The call that makes this module, or that this function with its arguments is; None for what is no loss known here."""
    attributes = _MODULES.get(type(obj))
    if attributes is not None:
        native = find(f"torch.nn.{type(obj).__name__}")
        values = {name: getattr(obj, name) for name in attributes}
        return Call(native.name, native.bind([], {name: _plain(x) for name, x in (values | arguments).items()}))
    return None


def _plain(x: Any) -> Any:
    """A tensor as nested tuples.

    A float32 number is the shortest decimal that rounds to it: 0.1 is written, and float32 has it as 0.10000000149. Where float32 is
    computed in, and these weights are made for that, the two are one.
    """
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach().cpu()
    array = (x.float() if x.dtype is torch.bfloat16 else x).numpy()
    if x.dtype is torch.float32:
        array = np.reshape([float(str(number)) for number in array.ravel()], array.shape)
    return _tuples(array.tolist())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def build(call: Call) -> Any:
    """The module, or the function with its arguments bound. Weights are float32, as all that a module holds is at first."""
    native = find(call.name)
    arguments = {
        name: torch.tensor(value, dtype=torch.float32) if name in native.tensors and value is not None else value
        for name, value in call.arguments.items()
    }
    found: Any = functools.reduce(getattr, call.name.split(".")[1:], torch)
    return found(**arguments) if native.is_class else functools.partial(found, **arguments)


def run(call: Call, predictions: Any, targets: Any, sample_weight: Any = None) -> tuple[Any, Any]:
    """The value and the gradient of its sum, with weights in the dtype of the predictions."""
    if sample_weight is not None:
        msg = f"{call.name} takes no sample weights."
        raise TypeError(msg)
    x = torch.tensor(predictions).requires_grad_()
    loss = build(call)
    value = loss.to(x.dtype)(x, torch.tensor(targets))
    value.sum().backward()
    assert x.grad is not None
    return value.detach().numpy(), x.grad.numpy()
