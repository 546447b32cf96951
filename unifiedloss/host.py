"""Runs NumPy code in a thread that keeps subnormal numbers.

TensorFlow and JAX run host callbacks in threads that flush subnormal numbers to 0, both when they
read and when they write. ``torch.set_flush_denormal(True)`` does the same to the calling thread.
NumPy is affected too: in such a thread the float32 1e-40 is 0. The setting belongs to the thread,
and a new thread inherits it from the thread that starts it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import numpy as np

from unifiedloss.errors import UnsupportedError

R = TypeVar("R")
_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]

_SUBNORMAL = np.array([1], np.uint32).view(np.float32)
_ONE = np.ones(1, np.float32)


def keeps_subnormals() -> bool:
    """Whether arithmetic in this thread reads and writes subnormal numbers."""
    # Test the bits, because a floating-point comparison would flush the number to 0 again.
    return bool((_SUBNORMAL * _ONE).view(np.uint32)[0])


def run(function: Callable[..., R], *args: Any) -> R:
    """Call the function in this thread if it keeps subnormal numbers, else in a worker that does.

    Raises:
        UnsupportedError: the worker flushes them too, because this module was imported in a thread
            that flushes them.
    """
    if keeps_subnormals():
        return function(*args)
    result: R = _worker.submit(_run_checked, function, *args).result()
    return result


def _run_checked(function: Callable[..., R], *args: Any) -> R:
    if not keeps_subnormals():
        msg = (
            "rounding='exact' needs a thread that keeps subnormal numbers, and they were already "
            "flushed to 0 where unifiedloss was first used; use an exact loss (or import "
            "unifiedloss.host) before torch.set_flush_denormal(True)."
        )
        raise UnsupportedError(msg)
    return function(*args)


class _Worker:
    """A worker thread that starts at once and inherits the setting of the current thread.

    It is no pool of `concurrent.futures`, because those take no work after the main thread has
    ended, while other threads may still train.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._tasks: SimpleQueue[_Task] = SimpleQueue()
        Thread(target=_work, args=(self._tasks,), name="unifiedloss", daemon=True).start()

    def submit(self, function: Callable[..., R], *args: Any) -> Future[R]:
        future: Future[R] = Future()
        self._tasks.put((future, function, args))
        return future


def _work(tasks: SimpleQueue[_Task]) -> None:
    while True:
        _carry_out(*tasks.get())


def _carry_out(future: Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # A function of its own, so that the worker holds no array while it waits.
    try:
        future.set_result(function(*args))
    except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
        future.set_exception(error)


_worker = _Worker()
if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads
    os.register_at_fork(after_in_child=_worker.start)
