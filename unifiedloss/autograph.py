"""Keep TensorFlow's autograph from rewriting this library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

EntryT = TypeVar("EntryT", bound=Callable[..., Any])


def no_autograph(entry: EntryT) -> EntryT:
    """Mark a function, or a class of callables, so that tf.function does not rewrite it.

    The mark covers everything that the function calls. Without it, autograph rewrites the source of
    every function it meets, which takes 0.3 s at the first call and warns of what it cannot
    rewrite. ``tf.autograph.experimental.do_not_convert`` leaves the same mark, but needs TensorFlow
    and costs 2 microseconds at each call.
    """
    vars(entry)["autograph_info__"] = None
    return entry
