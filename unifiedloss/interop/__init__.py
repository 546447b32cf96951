"""Convert losses of other libraries to specs, and specs to losses of other libraries.

`from_native` reads an object, a function with its keyword arguments, or text; `to_native` writes
one. The module of each library in this package says in plain Python which spec each of its losses
is; ``unifiedloss.adapters.<library>.interop`` reads and builds the library's objects.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from unifiedloss.checks import integer
from unifiedloss.errors import MissingBackendError, SpecTypeError, SpecValueError
from unifiedloss.interop import keras as _keras
from unifiedloss.interop import onnx as _onnx
from unifiedloss.interop import optax as _optax
from unifiedloss.interop import sklearn as _sklearn
from unifiedloss.interop import tensorflow as _tensorflow
from unifiedloss.interop import torch as _torch
from unifiedloss.interop.configs import call_of_config, is_config, of_keras_object
from unifiedloss.interop.library_loss import (
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
from unifiedloss.interop.others import what_it_is
from unifiedloss.interop.parse import parse
from unifiedloss.interop.unchanged import check_unchanged
from unifiedloss.serialization import from_dict, read_json
from unifiedloss.spec import LOSSES, Loss, bound_spec
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted, shortened

__all__ = [
    "LIBRARIES",
    "LIBRARY_LOSSES",
    "Call",
    "Closest",
    "LibraryLoss",
    "adapter",
    "build",
    "call_in",
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
"""Importing a table adds its losses to `LIBRARY_LOSSES`."""

_PACKAGES = {"sklearn": "scikit-learn", "onnx": "onnx onnxruntime"}
"""Names on PyPI, where they differ from the name of the library."""

_SMALLEST_ONNX_RANK = 2

_SPECS = {cls.__name__: cls for cls in LOSSES.values()}


def from_native(obj: Any, /, **arguments: Any) -> Loss:
    """Return the spec that computes the same numbers as a loss of another library.

    Args:
        obj: a loss object of torch or Keras; a loss function of torch, Keras, TensorFlow, optax or
            scikit-learn; a ``functools.partial`` of one; an ``onnx.NodeProto``; or the text of a
            call with literal arguments, such as
            ``"torch.nn.CrossEntropyLoss(label_smoothing=0.1)"``, which is parsed and never
            evaluated. A spec is returned unchanged. A loss bound with `Loss.to` gives its spec.
            Text may also be a line of a script that makes or calls a loss, a string that Keras'
            ``compile(loss=...)`` takes, the JSON of a spec, or a call such as
            ``"ul.CrossEntropyLoss(...)"``. A dictionary, or its JSON text, is read as Hydra,
            jsonargparse and Keras write a loss, or as `Loss.to_dict` does.
        arguments: the keyword arguments that configure a function, without its tensors. Pass the
            class weights of an ONNX node as `weights`.

    Returns:
        The spec. A Keras loss is read as it runs on the installed backend of Keras. In text,
        ``keras[jax].losses...`` names the backend; without it TensorFlow is assumed.

        Weights in a float32 tensor are read as the shortest decimals that round to it: a weight
        written as 0.1 is read as 0.1, although float32 holds 0.10000000149. The two are equal for
        float32 predictions. For other dtypes they differ; `diff` calls this rule "weight_dtype".

    Raises:
        UnsupportedError: no spec computes what this loss does. The message names the rule.
        SpecTypeError, SpecValueError: the object is not a known loss, or the text is not a call
            with literal arguments.
        MissingBackendError: the library of the object is not installed.

    Example:
        ```python
        import unifiedloss as ul

        spec = ul.from_native("torch.nn.CrossEntropyLoss(label_smoothing=0.1)")
        assert spec.axis == 1 and spec.label_smoothing == 0.1
        ```
    """
    if isinstance(obj, str | Mapping):
        if arguments:
            place = "text of the call" if isinstance(obj, str) else "dictionary"
            msg = f"write {shortened(', '.join(arguments))} into the {place}."
            raise SpecTypeError(msg)
        found = call_in(obj)
        return found if isinstance(found, Loss) else _of_call(found)
    if not arguments:
        if isinstance(obj, Loss):
            return obj
        bound = bound_spec(obj)
        if bound is not None:
            check_unchanged(obj, described(obj))
            return bound
    if isinstance(obj, Call):
        return spec_of(obj)
    return spec_of(read(obj, **arguments))


def call_in(description: str | Mapping[Any, Any]) -> Call | Loss:
    """The call, or the spec, that text or a dictionary describes.

    Raises:
        SpecValueError, SpecTypeError: it describes no known loss, or an argument does not exist.
        SerializationError: it is nearly a spec as `Loss.to_dict` and `Loss.to_json` write it.
    """
    if isinstance(description, str):
        if not description.lstrip().startswith("{"):
            return parse(description)
        description = read_json(description)
    if not isinstance(description, Mapping) or not is_config(description):
        return from_dict(description)
    spec = of_keras_object(description)
    return call_of_config(description) if spec is None else from_dict(spec)


def _of_call(call: Call) -> Loss:
    root, _, name = call.name.partition(".")
    if root != "unifiedloss":
        return spec_of(call)
    if name not in _SPECS:
        msg = (
            f"unifiedloss has no loss {quoted(name)}; it has {', '.join(_SPECS)}."
            f"{suggestion(name, _SPECS)}"
        )
        raise SpecValueError(msg)
    cls = _SPECS[name]
    return cls(**call.arguments)


def read(obj: Any, /, **arguments: Any) -> Call:
    """Return the call that makes this object, or that applies this function.

    Raises:
        SpecTypeError: the object is not a known loss.
    """
    function, arguments = _unwrapped(obj, arguments)
    for library in _libraries_of(function):
        call: Call | None = adapter(library).read(function, **arguments)
        if call is not None:
            return call
    if isinstance(function, type):
        msg = (
            f"{function.__module__}.{function.__qualname__} is a class; "
            "call it, and pass the loss that it makes."
        )
    elif _is_of_library(function) and (sentence := what_it_is(described(function))) is not None:
        msg = sentence
    else:
        msg = (
            f"{described(function)} is no loss that is known here: "
            f"losses of {', '.join(LIBRARIES)} are read. "
            "A subclass or a function of your own may compute anything; write its rules as a spec."
        )
    raise SpecTypeError(msg)


def _unwrapped(obj: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Unwrap nested ``functools.partial`` into a function and its keyword arguments."""
    # A subclass of partial may call anything, so it is read as an unknown object.
    while type(obj) is functools.partial:
        if obj.args:
            msg = (
                f"{quoted(obj)} binds positional arguments, which are tensors; "
                "bind those that configure the loss, by name."
            )
            raise SpecTypeError(msg)
        arguments = {**obj.keywords, **arguments}
        obj = obj.func
    return obj, arguments


def _libraries_of(obj: Any) -> list[str]:
    """List the libraries that define the function, or the class of the object or a base of it."""
    bases = obj.__mro__ if isinstance(obj, type) else type(obj).__mro__
    modules = [str(getattr(obj, "__module__", "")), *(base.__module__ for base in bases)]
    roots = dict.fromkeys(module.partition(".")[0] for module in modules)
    return [root for root in roots if root in LIBRARIES]


def _is_of_library(obj: Any) -> bool:
    """Whether a library defines the function, or the very class of the object."""
    return described(obj).partition(".")[0] in LIBRARIES


def described(obj: Any) -> str:
    named = obj if hasattr(obj, "__qualname__") else type(obj)
    return f"{named.__module__}.{named.__qualname__}"


def to_native(spec: Loss, library: str, *, code: bool = False, rank: int | None = None) -> Any:
    """Return a spec as a library's own loss, or as the code that makes it; see `Loss.to_native`."""
    call = call_of(spec, library, _keras_backend(code=code) if library == "keras" else None)
    if rank is not None and (code or library != "onnx"):
        msg = f"rank={quoted(rank)} is that of the predictions in an ONNX model; leave it out here."
        raise SpecTypeError(msg)
    if rank is not None and integer("rank", rank) < _SMALLEST_ONNX_RANK:
        msg = (
            f"rank must be at least {_SMALLEST_ONNX_RANK}, "
            f"as an ONNX model has its classes on axis 1, got {quoted(rank)}."
        )
        raise SpecValueError(msg)
    if code:
        if call.backend is None or "keras" not in sys.modules:
            return str(call)
        return str(adapter("keras").written(call))
    return build(call) if rank is None else adapter(library).build(call, rank)


def _keras_backend(*, code: bool) -> str | None:
    """Return the backend Keras runs on, or None for code while Keras is not imported."""
    if code and "keras" not in sys.modules:
        return None
    backend: str = adapter("keras").backend()
    return backend


def build(call: Call) -> Any:
    """Build the library's own loss, an object or a function, from a call."""
    return adapter(call.library).build(call)


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """Run the library's own loss and return its value and gradient as NumPy arrays.

    The gradient is that of the sum of the values; it is None if the library computes no gradients.
    `given` is the object or function that `call` was read from. Run it unchanged; without it, run
    the loss that `build` makes.
    """
    value, gradient = adapter(call.library).run(call, predictions, targets, sample_weight, given)
    return value, gradient


def adapter(library: str) -> Any:
    """Import the module that reads, builds and runs the losses of a library.

    Raises:
        MissingBackendError: the library is not installed.
    """
    try:
        return importlib.import_module(f"unifiedloss.adapters.{library}.interop")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "unifiedloss":
            raise
        packages = _PACKAGES.get(library, library)
        msg = (
            f"The losses of {library} need the module {error.name!r}, which is not installed; "
            f"install it with: pip install {packages}."
        )
        raise MissingBackendError(msg) from error
