"""How many threads the compiled loops may use, and what a thread does with subnormal numbers.

The environment variable ``UNIFIEDLOSS_NUM_THREADS`` says so, else ``OMP_NUM_THREADS``, else it is
one. For tensors of PyTorch it is the number that PyTorch itself uses. Losses, gradients and their
sums have the same bits for every number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from unifiedloss.errors import SpecValueError

_BUILT = True
try:
    from unifiedloss.compiled import _loops
except ImportError:  # see `unifiedloss.compiled`
    _BUILT = False

VARIABLES = ("UNIFIEDLOSS_NUM_THREADS", "OMP_NUM_THREADS")

_number: int | None = None


def number() -> int:
    """The number of threads, read from the environment once.

    Raises:
        SpecValueError: the variable holds no positive integer.
    """
    global _number  # noqa: PLW0603 - read once for the process
    if _number is None:
        _number = _read()
    return _number


@contextlib.contextmanager
def forced(count: int) -> Iterator[None]:
    """Use another number of threads inside a ``with`` block, for tests."""
    global _number  # noqa: PLW0603
    before, _number = _number, count
    try:
        yield
    finally:
        _number = before


def _read() -> int:
    for name in VARIABLES:
        text = os.environ.get(name, "").strip()
        if not text:
            continue
        # OpenMP takes a list with a number for each level of nested regions. We have one level.
        first = text.partition(",")[0].strip() if name == "OMP_NUM_THREADS" else text
        if not (first.isascii() and first.isdigit() and int(first)):
            msg = f"{name} is {text!r}, which is no number of threads; set a positive integer."
            raise SpecValueError(msg)
        return int(first)
    return 1


@contextlib.contextmanager
def subnormals_kept() -> Iterator[None]:
    """Let this thread keep subnormal numbers, if it can be told to and the module is built.

    So `unifiedloss.host.run` need not hand its work to another thread, which takes longer than a
    small loss.
    """
    if not _BUILT:
        yield
        return
    before = _loops.kept()
    try:
        yield
    finally:
        _loops.restored(before)
