"""Runs NumPy where it keeps subnormal numbers.

TensorFlow and JAX call back into Python from threads whose processor reads subnormal numbers as 0 and writes 0 in their place, and
``torch.set_flush_denormal(True)`` asks the same of the user's own thread. NumPy obeys: there 1e-40 in float32 is 0. The setting
belongs to the thread, and a new thread takes it over from the one that starts it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from unifiedloss.errors import UnsupportedError

R = TypeVar("R")

_SUBNORMAL = np.array([1], np.uint32).view(np.float32)
_ONE = np.ones(1, np.float32)


def keeps_subnormals() -> bool:
    """Whether arithmetic in this thread reads and writes subnormal numbers."""
    return bool(
        (_SUBNORMAL * _ONE).view(np.uint32)[0]
    )  # by its bits: a comparison would read it as 0 once more


def run(function: Callable[..., R], *args: Any) -> R:
    """Call the function here if this thread keeps subnormal numbers, and otherwise in one that does.

    Raises:
        UnsupportedError: there is no such thread, because this module was imported where subnormal numbers were flushed.
    """
    if keeps_subnormals():
        return function(*args)
    return _worker.submit(_run_checked, function, *args).result()


def _run_checked(function: Callable[..., R], *args: Any) -> R:
    if not keeps_subnormals():
        msg = (
            "rounding='exact' needs a thread that keeps subnormal numbers, and they were already flushed to 0 where unifiedloss was "
            "first used; use an exact loss (or import unifiedloss.host) before torch.set_flush_denormal(True)."
        )
        raise UnsupportedError(msg)
    return function(*args)


class _Worker:
    """One thread, started now, in the setting of the thread that is running now."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.submit = ThreadPoolExecutor(1, "unifiedloss").submit
        self.submit(int)  # without work a pool starts no thread


_worker = _Worker()
if hasattr(os, "register_at_fork"):  # a fork's child has none of its parent's threads
    os.register_at_fork(after_in_child=_worker.start)
