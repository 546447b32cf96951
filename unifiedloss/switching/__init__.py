"""Losses of other libraries: read as specs, and written from them.

`from_native` reads an object, a function with its keyword arguments, or text; `to_native` writes one. What a library's losses
mean stands in its table here, as plain Python; objects are read and built by ``unifiedloss.adapters.<library>.switching``.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from unifiedloss.checks import integer
from unifiedloss.errors import MissingBackendError, SpecTypeError, SpecValueError
from unifiedloss.serialization import from_json
from unifiedloss.spec import LOSSES, AnyLoss, Loss, bound_spec
from unifiedloss.suggestion import suggestion
from unifiedloss.switching import keras as _keras
from unifiedloss.switching import onnx as _onnx
from unifiedloss.switching import optax as _optax
from unifiedloss.switching import sklearn as _sklearn
from unifiedloss.switching import tensorflow as _tensorflow
from unifiedloss.switching import torch as _torch
from unifiedloss.switching.library_loss import (
    LIBRARIES,
    LIBRARY_LOSSES,
    Call,
    Closest,
    LibraryLoss,
    call_of,
    closest,
    find,
    spec_of,
)
from unifiedloss.switching.parse import parse

__all__ = [
    "LIBRARIES",
    "LIBRARY_LOSSES",
    "Call",
    "Closest",
    "LibraryLoss",
    "adapter",
    "build",
    "call_of",
    "closest",
    "find",
    "from_native",
    "parse",
    "read",
    "run",
    "spec_of",
    "to_native",
]

_TABLES = (_torch, _keras, _tensorflow, _optax, _sklearn, _onnx)
"""Importing a table enters it."""

_PACKAGES = {"sklearn": "scikit-learn", "onnx": "onnx onnxruntime"}
"""What is installed for a library, where that is not its name."""

_SMALLEST_RANK = 2

_SPECS = {cls.__name__: cls for cls in LOSSES.values()}


def from_native(obj: Any, /, **arguments: Any) -> AnyLoss:
    """The spec that computes the same numbers as a loss of another library.

    Args:
        obj: a loss object of torch or Keras; a loss function of torch, Keras, TensorFlow, optax or scikit-learn; a
            ``functools.partial`` of one; an ``onnx.NodeProto``; or the text of a call with literal arguments, which is parsed and never
            evaluated, such as ``"torch.nn.CrossEntropyLoss(label_smoothing=0.1)"``. A spec is returned as it is; so is one that was
            bound with `Loss.to`, or is written as JSON or as ``"ul.CrossEntropyLoss(...)"``.
        arguments: what a function is called with beside the tensors, by name; the class weights of an ONNX node as `weights`.

    Returns:
        The spec. A Keras loss is read as it runs on the backend that Keras has here; in text, ``keras[jax].losses...`` says which one
        is meant, and TensorFlow is where nothing does.

        Weights in a float32 tensor are read as the shortest decimals that round to it: 0.1 is what was written, where float32 has
        0.10000000149. For float32 predictions the two are one; for others they are not, which is the rule "weight_dtype" of `diff`.

    Raises:
        UnsupportedError: no spec computes what this loss does. The message names the rule.
        SpecTypeError, SpecValueError: this is no loss that is known, or the text is no call with literal arguments.
        MissingBackendError: the library of the object is not installed.

    Example:
        ```python
        import unifiedloss as ul

        spec = ul.from_native("torch.nn.CrossEntropyLoss(label_smoothing=0.1)")
        assert spec.axis == 1 and spec.label_smoothing == 0.1
        ```
    """
    if isinstance(obj, str):
        return _from_text(obj, arguments)
    if not arguments:
        if isinstance(obj, Loss):
            return obj  # type: ignore[return-value]
        bound = bound_spec(obj)
        if bound is not None:
            return bound  # type: ignore[return-value]
    if isinstance(obj, Call):
        return spec_of(obj)
    return spec_of(read(obj, **arguments))


def _from_text(text: str, arguments: Mapping[str, Any]) -> AnyLoss:
    if arguments:
        msg = f"write {', '.join(arguments)} into the text of the call."
        raise SpecTypeError(msg)
    if text.lstrip().startswith("{"):
        return from_json(text)
    call = parse(text)
    root, _, name = call.name.partition(".")
    if root != "unifiedloss":
        return spec_of(call)
    if name not in _SPECS:
        msg = f"unifiedloss has no loss {name!r}; it has {', '.join(_SPECS)}.{suggestion(name, _SPECS)}"
        raise SpecValueError(msg)
    cls = _SPECS[name]
    return cls(**call.arguments)  # type: ignore[return-value]


def read(obj: Any, /, **arguments: Any) -> Call:
    """The call that makes this object, or that a function with these arguments is.

    Raises:
        SpecTypeError: this is no loss that is known.
    """
    function, arguments = _unwrapped(obj, arguments)
    for library in _libraries_of(function):
        call: Call | None = adapter(library).read(function, **arguments)
        if call is not None:
            return call
    if isinstance(function, type):
        msg = f"{function.__module__}.{function.__qualname__} is a class; call it, and pass the loss that it makes."
    else:
        msg = (
            f"{_described(function)} is no loss that is known here: losses of {', '.join(LIBRARIES)} are read. "
            "A subclass or a function of your own may compute anything; write its rules as a spec."
        )
    raise SpecTypeError(msg)


def _unwrapped(obj: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A function and its keyword arguments, out of any number of ``functools.partial``."""
    while isinstance(obj, functools.partial):
        if obj.args:
            msg = f"{obj!r} binds positional arguments, which are tensors; bind those that configure the loss, by name."
            raise SpecTypeError(msg)
        arguments = {**obj.keywords, **arguments}
        obj = obj.func
    return obj, arguments


def _libraries_of(obj: Any) -> list[str]:
    """The libraries that may know this object, told by the modules that its class and bases, or the function, come from."""
    bases = obj.__mro__ if isinstance(obj, type) else type(obj).__mro__
    modules = [str(getattr(obj, "__module__", "")), *(base.__module__ for base in bases)]
    roots = dict.fromkeys(module.partition(".")[0] for module in modules)
    return [root for root in roots if root in LIBRARIES]


def _described(obj: Any) -> str:
    named = obj if hasattr(obj, "__qualname__") else type(obj)
    return f"{named.__module__}.{named.__qualname__}"


def to_native(spec: AnyLoss, library: str, *, code: bool = False, rank: int | None = None) -> Any:
    """A spec as a library's own loss, or as the line that makes it; see `Loss.to_native`."""
    call = call_of(spec, library, _keras_backend(code=code) if library == "keras" else None)
    if rank is not None and (code or library != "onnx"):
        msg = f"rank={rank!r} is that of the predictions in an ONNX model; leave it out here."
        raise SpecTypeError(msg)
    if rank is not None and integer("rank", rank) < _SMALLEST_RANK:
        msg = f"rank must be at least {_SMALLEST_RANK}, as an ONNX model has its classes on axis 1, got {rank!r}."
        raise SpecValueError(msg)
    if code:
        return str(
            call
            if call.backend is None or "keras" not in sys.modules
            else adapter("keras").written(call)
        )
    return build(call) if rank is None else adapter(library).build(call, rank)


def _keras_backend(*, code: bool) -> str | None:
    """The framework that Keras runs on; None where that need not be known, as for text without Keras at hand."""
    if code and "keras" not in sys.modules:
        return None
    backend: str = adapter("keras").backend()
    return backend


def build(call: Call) -> Any:
    """The library's own object, or function, of a call."""
    return adapter(call.library).build(call)


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """What the library itself computes: its value and gradient, as NumPy arrays.

    The gradient is that of the sum of the values, and None where the library has none. `native` is the object or function that the call
    was read from, which is run as it is; without it, that is run which `build` makes.
    """
    value, gradient = adapter(call.library).run(call, predictions, targets, sample_weight, given)
    return value, gradient


def adapter(library: str) -> Any:
    """The module that reads, builds and runs the losses of a library.

    Raises:
        MissingBackendError: the library is not installed.
    """
    try:
        return importlib.import_module(f"unifiedloss.adapters.{library}.switching")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "unifiedloss":
            raise
        packages = _PACKAGES.get(library, library)
        msg = f"The losses of {library} need the module {error.name!r}, which is not installed; install it with: pip install {packages}."
        raise MissingBackendError(msg) from error
