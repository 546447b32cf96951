"""Refuse a loss whose name is known, and that was changed, so that it may compute more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from unifiedloss.errors import SpecTypeError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module of PyTorch keeps functions that run beside it."""


def check_unchanged(obj: Any, name: str) -> None:
    """Refuse an object with hooks, or with a method that is set on the object itself.

    Args:
        obj: a loss object.
        name: its name in the message.

    Raises:
        SpecTypeError: the object may compute anything.
    """
    own = getattr(obj, "__dict__", {})
    methods = [key for key in own if callable(getattr(type(obj), key, None))]
    if any(own.get(hooks) for hooks in _HOOKS):
        refuse_changed(name, "hooks")
    if methods:
        refuse_changed(name, f"a {methods[0]} of its own")


_BASES = ("abc", "typing")
"""Modules of Python whose classes are bases of a library's."""


_RUN = {"__call__", "_wrapped_call_impl", "_call_impl", "forward", "call"}
"""The methods that a call of a loss object runs, in PyTorch and in Keras."""


def foreign_part(loss: Any, packages: tuple[str, ...]) -> str | None:
    """The name of a part of a loss that none of these packages defines; None without any.

    A class or a function of a library is known by its place. Anyone may put another one there, or
    another method on the class. `__module__` does not show it, because `functools.wraps` copies it;
    the globals of a function show where it was written.

    Args:
        loss: a class or a function.
        packages: the packages that define the losses of a library.
    """
    return next((name for name, part in _parts(loss) if not _defined(part, packages)), None)


def _parts(loss: Any) -> Iterator[tuple[str, Any]]:
    """The functions that a call of a loss runs, by name, and its class."""
    if not isinstance(loss, type):
        yield getattr(loss, "__name__", type(loss).__name__), loss
        return
    for cls in loss.__mro__[:-1]:  # without `object`
        for name in _RUN & vars(cls).keys():
            yield name, vars(cls)[name]
        yield cls.__name__, cls


def _defined(part: Any, packages: tuple[str, ...]) -> bool:
    globals_ = getattr(part, "__globals__", {"__name__": getattr(part, "__module__", "")})
    return str(globals_.get("__name__")).partition(".")[0] in (*packages, *_BASES)


def refuse_changed(name: str, what: str) -> NoReturn:
    """Raise the error about an object that has something of its own."""
    msg = (
        f"this {name} has {what}, which may compute anything; pass one without, or write its "
        "rules as a spec."
    )
    raise SpecTypeError(msg)
