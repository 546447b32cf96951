"""Run the calls that `ratios` measures, and check that both calls of a pair compute the same.

``pytest tests/benchmarks --benchmark-disable`` runs each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.pairs import (
    BOTH,
    CONFIDENT,
    FORWARD,
    FRAMEWORKS,
    LARGE,
    SMALL,
    UPSTREAM,
    Case,
    cases_of,
)
from tests.conftest import installed

NEEDED = {
    "numpy": ("numpy", "torch"),
    "torch": ("torch",),
    "tensorflow": ("tensorflow",),
    "jax": ("jax",),
    "keras": ("keras",),
}


def values(result: Any) -> np.ndarray:
    """The loss that a call returned, or the gradient if it returned one (as the last item)."""
    last = result[-1] if isinstance(result, tuple | list) else result
    return np.asarray(last.detach() if hasattr(last, "detach") else last)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Keep PyTorch on one thread.

    On a busy machine the wait for a second thread takes a thousand times as long as a small call.
    """
    if not installed("torch"):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Small shapes for every framework. Large ones for NumPy, because our kernels work in blocks there,
# and for the variants, which have no small shape.
SAME = [
    pytest.param(
        name,
        case,
        id=f"{name} {case.rounding} {case.name} {case.shape}",
        marks=pytest.mark.framework(*needed),
    )
    for name, needed in NEEDED.items()
    for case in cases_of(name)
    if case.shape == SMALL
    or (case.shape == LARGE and (name == "numpy" or case.variant not in ("", CONFIDENT)))
    or case.shape == (1024, 64)
]


@pytest.mark.parametrize(("framework", "case"), SAME)
@pytest.mark.slow(
    "NumPy and PyTorch, and native mode in TensorFlow and JAX",
    only=["tensorflow exact", "jax exact", "keras "],
)
def test_both_sides_compute_the_same(framework: str, case: Case) -> None:
    """Both calls compute the same values; otherwise their ratio means nothing."""
    works = set()
    for pair in FRAMEWORKS[framework](case):
        # The conformance suite covers compiled calls, and compiling takes seconds.
        if pair.mode != "compiled" and (case.shape != LARGE or pair.against.startswith("torch")):
            ours, native = values(pair.ours()), values(pair.native())
            assert ours.shape == native.shape
            # The rounding of each gradient element scales with the largest of them.
            np.testing.assert_allclose(ours, native, rtol=1e-5, atol=1e-5 * np.abs(native).max())
            works.add(pair.work)
    assert works >= {BOTH}
    assert (FORWARD in works) == (case.variant != UPSTREAM)


@pytest.mark.benchmark(min_rounds=5, max_time=0.1, warmup=True, warmup_iterations=20)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize(
    "framework",
    [pytest.param(name, marks=pytest.mark.framework(*needed)) for name, needed in NEEDED.items()],
)
def test_small_call(benchmark: Any, framework: str, loss: str) -> None:
    """Time a call on a small batch, where most of the cost is outside the kernel."""
    pair = next(
        p
        for p in FRAMEWORKS[framework](Case(loss, SMALL))
        if p.work == FORWARD and p.mode != "function"
    )
    benchmark.group = f"{loss} {SMALL}"
    assert np.isfinite(values(benchmark(pair.ours)))
