"""PyTorch's losses: read from objects as calls, built from calls, and run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from unifiedloss.adapters.torch import ADAPTER
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop.arrays import as_bfloat16
from unifiedloss.interop.functions import Losses
from unifiedloss.interop.library_loss import Call, find
from unifiedloss.interop.unchanged import check_unchanged, refuse_changed
from unifiedloss.spec import Categorical

_LOSSES = Losses("torch", torch)

TENSORS = torch.Tensor
"""The type of the tensors that torch's losses take unchanged."""

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
"""Where torch keeps the hooks that run beside every module."""

_NUMPY_DTYPES = (torch.float16, torch.float32, torch.float64)
"""The floating dtypes that NumPy also has."""


def read(obj: Any, **arguments: Any) -> Call | None:
    """The call of a module, or of a function with its arguments; None for anything else."""
    if isinstance(obj, type):
        return None
    # The very class, because a subclass may compute anything.
    name = _LOSSES.name_of(type(obj)) or _LOSSES.name_of(obj)
    if name is None:
        return None
    if isinstance(obj, nn.Module):
        if arguments:
            msg = f"{name} has its arguments already; make another with {', '.join(arguments)}."
            raise SpecTypeError(msg)
        _check_own(name, obj)
        # A module lacks the deprecated arguments `size_average` and `reduce`, because torch
        # resolves them into `reduction` when the module is made.
        arguments = {
            each: getattr(obj, each) for each in find(name).parameters if hasattr(obj, each)
        }
    return Call(name, find(name).bind([], {key: _plain(x) for key, x in arguments.items()}))


def _check_own(name: str, module: nn.Module) -> None:
    """Refuse a module that runs hooks, its own or those of all modules, or a changed method."""
    check_unchanged(module, name)
    if any(getattr(nn.modules.module, hooks, None) for hooks in _GLOBAL_HOOKS):
        refuse_changed(name, "hooks of all modules (torch.nn.modules.module)")
    for called in type(module).forward.__code__.co_names:
        if f"torch.nn.functional.{called}" in _LOSSES and not _LOSSES.name_of(
            getattr(nn.functional, called)
        ):
            refuse_changed(name, f"a {called} that torch does not define")


def _plain(x: Any) -> Any:
    """A tensor, or a sequence in place of one, as nested tuples.

    A float32 number is read as the shortest decimal that rounds to it: as 0.1, although float32
    holds 0.10000000149. In float32 computations, the two are the same number.
    """
    if not isinstance(x, torch.Tensor):
        return _tuples(x)
    if x.is_meta or x.layout is not torch.strided:
        msg = (
            f"weights of layout {x.layout} on the device {x.device} hold no numbers to be read; "
            "make them dense, on a device."
        )
        raise SpecTypeError(msg)
    x = x.detach().cpu()
    array = (x.float() if x.dtype.is_floating_point and x.dtype not in _NUMPY_DTYPES else x).numpy()
    if x.dtype is torch.float32:
        array = np.reshape([float(str(number)) for number in array.ravel()], array.shape)
    return _tuples(array.tolist())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def build(call: Call) -> Any:
    """The module, or the function with its arguments bound.

    Weights have torch's default dtype, as torch.tensor([0.5]) does.
    """
    library_loss, dtype = find(call.name), torch.get_default_dtype()
    arguments = {
        name: torch.tensor(value, dtype=dtype)
        if library_loss.lenses[name].tensor and value is not None
        else value
        for name, value in call.arguments.items()
    }
    loss = _LOSSES[call.name]
    return loss(**arguments) if library_loss.is_class else functools.partial(loss, **arguments)


def _weights(loss: Any) -> list[torch.Tensor]:
    """The tensors of a module or a partial function."""
    if isinstance(loss, nn.Module):
        values = loss.__dict__ | dict(loss.named_buffers())
    else:
        values = getattr(loss, "keywords", {})
    return [each for each in values.values() if isinstance(each, torch.Tensor)]


def weight_dtype(call: Call, given: Any = None) -> str | None:
    """The dtype of the weights of `given`, or of the loss that `build` makes; None without any."""
    weights = _weights(build(call) if given is None else given)
    return str(weights[0].dtype).removeprefix("torch.") if weights else None


def _device(loss: Any) -> torch.device:
    """The device of a loss's weights, where its predictions must be too."""
    return next((each.device for each in _weights(loss)), torch.device("cpu"))


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value and the gradient of its sum, as NumPy arrays.

    Targets are cast as `accepted` says. `given` is the module or function that the call was read
    from; without it, `build` makes the loss. Tensors of torch are taken unchanged, on their device.
    """
    predictions, targets = accepted(call, predictions, targets)
    return run_as_given(call, predictions, targets, sample_weight, given)


def accepted(call: Call, predictions: Any, targets: Any) -> tuple[Any, Any]:
    """The predictions and targets in dtypes that torch takes, as arrays unless they are tensors.

    Integer targets of an elementwise loss are cast to the predictions' dtype, and class indices to
    int64, because torch takes no others.
    """
    predictions, targets = (
        x if isinstance(x, TENSORS) else np.asarray(x) for x in (predictions, targets)
    )
    categorical = issubclass(find(call.name).loss, Categorical)
    if _kind(targets) not in ("iu" if categorical else "iub"):
        return predictions, targets
    if not isinstance(targets, TENSORS):
        if categorical:
            return predictions, targets.astype(np.int64)
        if not isinstance(predictions, TENSORS):
            return predictions, targets.astype(predictions.dtype)
        targets = ADAPTER.convert(targets, predictions)
    return predictions, targets.to(torch.int64 if categorical else _converted(predictions).dtype)


def _kind(x: Any) -> str:
    """The kind of a tensor's or an array's dtype, as NumPy writes it."""
    if not isinstance(x, TENSORS):
        return str(x.dtype.kind)
    if x.dtype is torch.bool:
        return "b"
    return "f" if x.is_floating_point() or x.is_complex() else "i"


def _converted(x: Any) -> torch.Tensor:
    """A tensor as it is, and anything else as a tensor."""
    return x if isinstance(x, TENSORS) else ADAPTER.convert(np.asarray(x), None)


def run_as_given(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The result of `run` without casting the targets, whose dtype torch may refuse.

    Arrays become tensors on the device of the given predictions, or of the loss.
    """
    if sample_weight is not None:
        msg = f"{call.name} takes no sample weights; use reduction='none' and weight its losses."
        raise UnsupportedError(msg)
    loss = build(call) if given is None else given
    # The caller may have switched gradients off, but the comparison needs them.
    with torch.inference_mode(mode=False), torch.enable_grad():
        device = predictions.device if isinstance(predictions, TENSORS) else _device(loss)
        x, t = (
            each if isinstance(each, TENSORS) else _converted(each).to(device)
            for each in (predictions, targets)
        )
        x = x.detach().clone().requires_grad_()
        value = loss(x, t)
        (gradient,) = torch.autograd.grad(value.sum(), [x])
    return (
        as_bfloat16(value, ADAPTER.to_numpy(value)),
        as_bfloat16(gradient, ADAPTER.to_numpy(gradient)),
    )
