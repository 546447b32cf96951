"""Read and build losses that are plain functions; used by the adapters of their libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

from unifiedloss.interop.arrays import plain
from unifiedloss.interop.library_loss import LIBRARY_LOSSES, Call, find

Functions = Mapping[str, Callable[..., Any]]


def losses_of(library: str, module: Any) -> dict[str, Any]:
    """Return the classes and functions that the library's table names, by canonical name.

    `module` is the library's package.
    """
    return {
        name: reduce(getattr, name.split(".")[1:], module)
        for name, library_loss in LIBRARY_LOSSES.items()
        if library_loss.library == library
    }


def call_with(name: str, arguments: Mapping[str, Any], backend: str | None = None) -> Call:
    """Return the call of a loss, with its arguments converted from the library's types."""
    return Call(
        name, find(name).bind([], {key: plain(value) for key, value in arguments.items()}), backend
    )


def read_function(functions: Functions, obj: Any, arguments: Mapping[str, Any]) -> Call | None:
    """Return the call of `obj` with `arguments`, or None if `obj` is not one of `functions`."""
    return next(
        (call_with(name, arguments) for name, function in functions.items() if obj is function),
        None,
    )


def with_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return the function, with its arguments bound if there are any."""
    return partial(function, **arguments) if arguments else function
