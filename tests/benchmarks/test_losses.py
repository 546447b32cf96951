"""The calls that `ratios` measures, under pytest-benchmark, and that the two of a pair compute the same.

``pytest tests/benchmarks --benchmark-disable`` runs each of them once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.pairs import BOTH, CASES, FORWARD, FRAMEWORKS, SMALL, Case
from tests.conftest import installed

NEEDED = {
    "numpy": ("numpy", "torch"),
    "torch": ("torch",),
    "tensorflow": ("tensorflow",),
    "jax": ("jax",),
    "keras": ("keras",),
}


def values(result: Any) -> np.ndarray:
    """The loss a call returned, or the gradient, which is the last of what comes with one."""
    last = result[-1] if isinstance(result, tuple | list) else result
    return np.asarray(last.detach() if hasattr(last, "detach") else last)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Keep PyTorch on one thread: on a busy machine a second one is waited for a thousand times as long as a small call takes."""
    if not installed("torch"):
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Small for every framework; large where the kernels are ours and work in blocks.
SAME = [
    pytest.param(
        name, case, id=f"{name} {case.name} {case.shape}", marks=pytest.mark.framework(*needed)
    )
    for name, needed in NEEDED.items()
    for case in CASES
    if case.shape == SMALL or (name == "numpy" and case.shape == (4096, 1000))
]


@pytest.mark.parametrize(("framework", "case"), SAME)
@pytest.mark.slow(
    "exact mode in the frameworks that compile nothing",
    only=["tensorflow exact", "jax exact", "keras exact"],
)
def test_both_sides_compute_the_same(framework: str, case: Case) -> None:
    """A ratio means nothing where the two calls do different things."""
    works = set()
    for pair in FRAMEWORKS[framework](case):
        if case.shape == SMALL or pair.against == "torch":
            ours, native = values(pair.ours()), values(pair.native())
            assert ours.shape == native.shape
            # The gradient of one position is a part of a sum, so its rounding is that of the largest.
            np.testing.assert_allclose(ours, native, rtol=1e-5, atol=1e-5 * np.abs(native).max())
            works.add(pair.work)
    assert works == {FORWARD, BOTH}


@pytest.mark.benchmark(min_rounds=5, max_time=0.1, warmup=True, warmup_iterations=20)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize(
    "framework",
    [pytest.param(name, marks=pytest.mark.framework(*needed)) for name, needed in NEEDED.items()],
)
def test_small_call(benchmark: Any, framework: str, loss: str) -> None:
    """A call on a small batch, where what surrounds the kernel is most of the cost."""
    pair = next(
        p
        for p in FRAMEWORKS[framework](Case(loss, SMALL))
        if p.work == FORWARD and p.mode != "function"
    )
    benchmark.group = f"{loss} {SMALL}"
    assert np.isfinite(values(benchmark(pair.ours)))
