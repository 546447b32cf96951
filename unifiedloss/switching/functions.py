"""Losses that are plain functions: read as calls, and built from them, for the adapters of their libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from unifiedloss.switching.arrays import plain
from unifiedloss.switching.library_loss import Call, find

Functions = Mapping[str, Callable[..., Any]]


def call_with(name: str, arguments: Mapping[str, Any], backend: str | None = None) -> Call:
    """The call of a loss with arguments as its library has them."""
    return Call(
        name, find(name).bind([], {key: plain(value) for key, value in arguments.items()}), backend
    )


def read_function(functions: Functions, obj: Any, arguments: Mapping[str, Any]) -> Call | None:
    """The call that one of these functions and the arguments given with it make; None for anything else."""
    return next(
        (call_with(name, arguments) for name, function in functions.items() if obj is function),
        None,
    )


def with_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """The function itself, with arguments filled in where there are any."""
    return partial(function, **arguments) if arguments else function
