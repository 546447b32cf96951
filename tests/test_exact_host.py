"""`unifiedloss.host`: run work on a thread that keeps subnormal numbers."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import host
from unifiedloss.errors import UnsupportedError

# On x86-64, the last field of the environment that glibc's fegetenv and fesetenv use is MXCSR, the
# control register for float32 and float64.
settable = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="sets a register of x86-64 through glibc",
)
FLUSH = 0x8040
"""MXCSR's bits that flush subnormal results to zero and read subnormal inputs as zero."""


@contextmanager
def flushing() -> Iterator[None]:
    """Make this thread treat subnormal numbers as 0."""
    libm = ctypes.CDLL("libm.so.6")
    before, changed = (ctypes.c_uint32 * 8)(), (ctypes.c_uint32 * 8)()
    libm.fegetenv(before)
    libm.fegetenv(changed)
    changed[7] |= FLUSH
    libm.fesetenv(changed)
    try:
        yield
    finally:
        libm.fesetenv(before)


def product() -> tuple[float, int]:
    """Return the bits of a subnormal number times 1, and the thread that computed it."""
    x = np.array([8], np.uint32).view(np.float32) * np.ones(1, np.float32)
    return int(x.view(np.uint32)[0]), threading.get_ident()


def test_runs_on_this_thread_if_it_keeps_subnormals() -> None:
    """Work stays on a thread that keeps subnormal numbers; arguments and errors pass through."""
    assert host.run(product) == (8, threading.get_ident())
    assert host.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        host.run(divmod, 7, 0)


@settable
def test_runs_on_another_thread_if_this_one_flushes() -> None:
    """Work leaves a flushing thread; a nested call stays on the worker, so it does not deadlock."""
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
    """Refuse if the worker flushes too, which it does if it is started from a flushing thread."""
    with flushing():
        monkeypatch.setattr(host, "_worker", host._Worker())
        with pytest.raises(UnsupportedError, match="keeps subnormal numbers"):
            host.run(product)
    assert host.run(product)[0] == 8


@settable
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")  # other tests' frameworks have threads of their own
def test_after_a_fork() -> None:
    """A forked child starts its own worker instead of waiting for its parent's."""
    child = os.fork()
    if not child:
        with flushing():
            os._exit(0 if host.run(product)[0] == 8 else 1)
    assert os.waitpid(child, 0)[1] == 0


@settable
def test_after_the_main_thread() -> None:
    """A thread that goes on after the main thread has ended gets its results."""
    program = """
        import threading
        from tests.test_exact_host import flushing, host, product
        main = threading.main_thread()
        def late():
            main.join()
            with flushing():
                print(host.run(product)[0])
        threading.Thread(target=late).start()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.split() == ["8"], done.stderr


@settable
def test_exact_numpy_where_it_flushes() -> None:
    """A subnormal loss of NumPy arrays is right on a flushing thread."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none", rounding="exact")
    logits, labels = np.array([[100, 0]], np.float32), np.array([0])
    spec(logits, labels)
    with flushing():
        loss = spec(logits, labels)
    assert int(loss.view(np.uint32)[0]) == 27  # 3.8e-44


@settable
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_compiled_loop_where_numbers_are_flushed(reduction: str) -> None:
    """A reduced subnormal loss, and a subnormal gradient, need no other thread."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction=reduction, rounding="exact")
    logits, labels = np.array([[100, 0]] * 3, np.float32), np.array([0, 0, 0])
    value, gradient = spec.value_and_grad(logits, labels)
    with flushing():
        flushed = spec.value_and_grad(logits, labels)
    assert value.tobytes() == flushed[0].tobytes() != np.float32(0).tobytes()
    assert gradient.tobytes() == flushed[1].tobytes() != np.zeros_like(gradient).tobytes()
