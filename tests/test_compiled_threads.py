"""The threads of the compiled loops: the same bits for every number, forks, and failures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled
from unifiedloss.compiled import threads
from unifiedloss.errors import SpecValueError

pytestmark = [
    pytest.mark.framework("numpy"),
    pytest.mark.skipif(not compiled.is_available(), reason="the loops are not built or not wanted"),
]

RANDOM = np.random.default_rng(3)
LOGITS = RANDOM.normal(scale=6, size=(700, 700)).astype(np.float32)
LOGITS[:, 0] = RANDOM.normal(scale=300, size=700)
LABELS = RANDOM.integers(0, 700, 700).astype(np.int16)
SOFT = RANDOM.random(LOGITS.shape).astype(np.float32)
WEIGHT = RANDOM.random(700)
CE = ul.CrossEntropyLoss(from_logits=True)

CALLS: list[tuple[Any, Any, dict[str, Any]]] = [
    (CE, LABELS, {}),
    (CE, LABELS, {"sample_weight": WEIGHT}),
    (CE.replace(ignore_index=5, reduction="none"), LABELS, {"mask": WEIGHT > 0.2}),
    (ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=2), SOFT, {}),
    (ul.MeanSquaredError(reduction="sum"), SOFT, {"mask": SOFT > 0.5}),
    (ul.HuberLoss(delta=3), SOFT, {}),
]


def _bits(spec: Any, targets: Any, more: dict[str, Any]) -> tuple[bytes, ...]:
    value, gradient = spec.value_and_grad(LOGITS, targets, **more)
    totals = value  # "none" has no totals
    if spec.reduction != "none":
        totals = spec.replace(rounding="exact").totals(LOGITS, targets, **more)
    results = value, gradient, spec(LOGITS, targets, **more), totals
    return tuple(x.tobytes() for x in results)


@pytest.mark.parametrize("rounding", ["native", "exact"])
def test_bits_do_not_depend_on_the_number(rounding: Any) -> None:
    """Losses, gradients, means and totals have the same bits with 1, 2, 3 and 7 threads."""
    for spec, targets, more in CALLS:
        found = set()
        for count in (1, 2, 3, 7):
            with threads.forced(count):
                found.add(_bits(spec.replace(rounding=rounding), targets, more))
        assert len(found) == 1, spec


def test_undecided_elements_of_all_threads_are_found() -> None:
    """Slopes beside midpoints, which the loop leaves undecided, are right in every thread."""
    logits = np.zeros((2000, 120), np.float32)
    logits[:, 0] = RANDOM.normal(size=2000)
    labels = np.zeros(2000, np.int64)
    spec = CE.replace(rounding="exact", reduction="none")
    first = np.exp(logits[:, 0].astype(np.float64))
    p = 1 / (first + 119)
    low = RANDOM.uniform(1, 2, 2000).astype(np.float32).astype(np.float64)
    upstream = (low + 2.0**-24) / p  # the slope of every other class is next to a midpoint
    found = []
    for count in (1, 4):
        with threads.forced(count):
            found.append(_evaluated(spec, logits, labels, upstream))
    with compiled.forced(compiled.NUMPY):
        found.append(_evaluated(spec, logits, labels, upstream))
    assert found[0] == found[1] == found[2]


def _evaluated(spec: Any, logits: Any, labels: Any, upstream: Any) -> bytes:
    return bytes(spec.value_and_grad(logits, labels, upstream=upstream)[1].tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore")  # other tests' frameworks have threads of their own
def test_a_forked_child_answers() -> None:
    """A child that is forked after a call with threads makes such a call, too."""
    with threads.forced(3):
        expected = _bits(CE, LABELS, {})
        child = os.fork()
        if not child:
            same = False
            try:
                same = _bits(CE, LABELS, {}) == expected
            finally:
                os._exit(0 if same else 1)
        deadline = time.monotonic() + 60
        done, status = os.waitpid(child, os.WNOHANG)
        while not done and time.monotonic() < deadline:
            time.sleep(0.05)
            done, status = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert done, "the child did not answer"
        assert status == 0


@pytest.mark.parametrize("rounding", ["native", "exact"])
def test_calls_from_many_threads(rounding: Any) -> None:
    """Sixteen threads of Python call at once, each with three threads of its own."""
    spec = CE.replace(rounding=rounding)
    with threads.forced(3):
        expected = _bits(spec, LABELS, {})
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda _: _bits(spec, LABELS, {}), range(32)))
    assert set(found) == {expected}


_WITHOUT_MEMORY = """
import resource
import numpy as np
import unifiedloss as ul
from unifiedloss.compiled import threads

z = np.random.default_rng(0).normal(size=(4000, 1000)).astype(np.float32)
y = np.arange(4000) % 1000
spec = ul.CrossEntropyLoss(from_logits=True)
with threads.forced(1):
    expected = spec(z, y)
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + 500_000
resource.setrlimit(resource.RLIMIT_AS, (most, most))
with threads.forced(4):
    print(spec(z, y) == expected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_that_cannot_start() -> None:
    """Where there is no memory for the stack of a thread, its rows are computed without it."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_MEMORY], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    ("ours", "openmp", "expected"),
    [
        ("", "", 1),
        ("3", "2", 3),
        ("", "2", 2),
        ("", "4,2", 4),
        ("0", "", None),
        ("two", "", None),
        ("3,2", "", None),
        ("", "-1", None),
        ("1.5", "2", None),
    ],
)
def test_variables(
    monkeypatch: pytest.MonkeyPatch, ours: str, openmp: str, expected: int | None
) -> None:
    """Our variable comes before that of OpenMP; a malformed value is an error that names it."""
    for name, text in zip(threads.VARIABLES, (ours, openmp), strict=True):
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(threads, "_number", None)
    if expected is not None:
        assert threads.number() == expected
        return
    named = threads.VARIABLES[0 if ours else 1]
    with pytest.raises(SpecValueError, match=f"{named} is '.*set a positive integer"):
        threads.number()


@pytest.mark.framework("torch")
def test_torch_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its tensors, the number is that of PyTorch."""
    import torch

    counts = []
    whole, rows = compiled.call, compiled.cross_entropy

    def counted_whole(*given: Any, threads: int) -> Any:
        counts.append(threads)
        return whole(*given, threads=threads)

    def counted_rows(work: compiled.Work) -> Any:
        counts.append(work.threads)
        return rows(work)

    monkeypatch.setattr(compiled, "call", counted_whole)
    monkeypatch.setattr(compiled, "cross_entropy", counted_rows)
    spec = CE.replace(rounding="exact")
    tensors = torch.tensor(LOGITS), torch.tensor(LABELS.astype(int))
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            spec(*tensors)
            spec(*tensors, sample_weight=torch.full((len(LABELS),), 0.7))
        finally:
            torch.set_num_threads(before)
    assert counts == [1, 1, 2, 2]


@pytest.mark.framework("torch")
def test_threads_keep_subnormal_numbers() -> None:
    """Each thread writes subnormal slopes, though the caller replaces such numbers by 0."""
    import torch

    logits = torch.zeros((512, 400))
    logits[:, 1:] = -95.0
    logits.requires_grad_()
    spec = CE.replace(rounding="exact", reduction="sum")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    assert torch.set_flush_denormal(True)
    try:
        spec(logits, torch.zeros(512, dtype=torch.long)).backward()
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
    assert logits.grad is not None
    slopes = logits.grad.numpy().view(np.int32)[:, 1:]
    assert ((slopes > 0) & (slopes < 1 << 23)).all()
