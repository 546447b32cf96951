"""Refuse an object whose class is known, and on which something was put that may compute more."""

from __future__ import annotations

from typing import Any

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


def refuse_changed(name: str, what: str) -> None:
    """Raise the error about an object that has something of its own."""
    msg = (
        f"this {name} has {what}, which may compute anything; pass one without, or write its "
        "rules as a spec."
    )
    raise SpecTypeError(msg)
