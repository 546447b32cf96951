"""`unifiedloss.host`: work is done where subnormal numbers are kept, whatever the calling thread does with them."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import host
from unifiedloss.errors import UnsupportedError

# fesetenv takes the settings to be taken; on x86-64 glibc gives the processor's word for float32 and float64 (MXCSR) as the last field.
settable = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="sets a register of x86-64 through glibc",
)
FLUSH = 0x8040
"""MXCSR's bits: results to zero, and inputs as zero."""


@contextmanager
def flushing() -> Iterator[None]:
    """This thread treats subnormal numbers as 0."""
    libm = ctypes.CDLL("libm.so.6")
    kept, changed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    libm.fegetenv(kept)
    libm.fegetenv(changed)
    changed[7] |= FLUSH
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(kept)


def product() -> tuple[float, int]:
    """A subnormal number times 1, scaled up to where nothing flushes it, and the thread that did it."""
    x = np.array([8], np.uint32).view(np.float32) * np.ones(1, np.float32)
    return int(x.view(np.uint32)[0]), threading.get_ident()


def test_here_where_this_thread_will_do() -> None:
    """No thread is changed without need, and errors and arguments pass."""
    assert host.run(product) == (8, threading.get_ident())
    assert host.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        host.run(divmod, 7, 0)


@settable
def test_elsewhere_where_it_flushes() -> None:
    """And from there as it is: a call within a call does not wait for its own thread."""
    with flushing():
        assert product()[0] == 0
        bits, thread = host.run(product)
        nested = host.run(host.run, product)
        with pytest.raises(ZeroDivisionError):
            host.run(divmod, 7, 0)
    assert (bits, nested) == (8, (8, thread))
    assert thread != threading.get_ident()
    assert host.run(product) == (8, threading.get_ident())


@settable
def test_refuses_without_a_thread_that_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread started where they are flushed flushes too; then there is no right number to give."""
    with flushing():
        monkeypatch.setattr(host, "_worker", host._Worker())
        with pytest.raises(UnsupportedError, match="keeps subnormal numbers"):
            host.run(product)
    assert host.run(product)[0] == 8


@settable
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")  # other tests' frameworks have threads of their own
def test_after_a_fork() -> None:
    """The child starts a thread of its own instead of waiting for its parent's."""
    child = os.fork()
    if not child:
        with flushing():
            os._exit(0 if host.run(product)[0] == 8 else 1)
    assert os.waitpid(child, 0)[1] == 0


@settable
def test_exact_numpy_where_it_flushes() -> None:
    """A subnormal loss of NumPy arrays is right in such a thread too."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none", rounding="exact")
    logits, labels = np.array([[100, 0]], np.float32), np.array([0])
    spec(logits, labels)
    with flushing():
        loss = spec(logits, labels)
    assert int(loss.view(np.uint32)[0]) == 27  # 3.8e-44
