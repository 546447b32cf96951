"""Large native calls in NumPy: little memory, and results that do not depend on the blocks."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import registry
from unifiedloss.adapters.numpy import blocks
from unifiedloss.conformance import checks
from unifiedloss.conformance.cases import all_cases, bad_calls

pytestmark = pytest.mark.framework("numpy")

NUMPY = registry.adapter("numpy")
RANDOM = np.random.default_rng(0)
ROWS, CLASSES = 6000, 1000
LOGITS = RANDOM.normal(size=(ROWS, CLASSES)).astype(np.float32)
TARGETS = RANDOM.random((ROWS, CLASSES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, ROWS)
MASK = RANDOM.random(ROWS) < 0.8
WEIGHT = RANDOM.random(ROWS)
CE = ul.CrossEntropyLoss(from_logits=True)
BCE = ul.BinaryCrossEntropyLoss(from_logits=True)

CALLS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "rows": (CE, LOGITS, LABELS, {}),
    "mask": (CE, LOGITS, LABELS, {"mask": MASK}),
    "ignored labels": (CE.replace(ignore_index=[1, 5]), LOGITS, LABELS, {}),
    "smoothing and weights": (
        CE.replace(label_smoothing=0.1),
        LOGITS,
        LABELS,
        {"sample_weight": WEIGHT},
    ),
    "class axis 1": (
        CE.replace(axis=1),
        np.ascontiguousarray(LOGITS.reshape(60, 100, CLASSES).transpose(0, 2, 1)),
        LABELS.reshape(60, 100),
        {},
    ),
    "dense": (CE.replace(class_weights=np.linspace(0, 1, CLASSES)), LOGITS, TARGETS, {}),
    "binary": (BCE.replace(pos_weight=3), LOGITS, TARGETS, {"mask": TARGETS > 0.3}),
    "elements": (BCE, LOGITS, TARGETS, {}),
    "short rows": (
        CE.replace(class_weights=(1, 2, 3)),
        LOGITS.reshape(-1)[: 3 * 1_800_000].reshape(-1, 3),
        np.arange(1_800_000) % 3,
        {"sample_weight": np.ones(1_800_000)},
    ),
    "squares": (ul.MeanSquaredError(), LOGITS, TARGETS, {"sample_weight": WEIGHT}),
}


@pytest.mark.parametrize("name", CALLS)
def test_memory(name: str) -> None:
    """Beside the tensors and the gradient, a call needs at most a tenth of the logits' memory."""
    spec, predictions, targets, companions = CALLS[name]
    tracemalloc.start()
    try:
        spec(predictions, targets, **companions)
        _, peak = tracemalloc.get_traced_memory()
        assert peak <= 0.1 * predictions.nbytes
        tracemalloc.reset_peak()
        spec.value_and_grad(predictions, targets, **companions)
        _, peak = tracemalloc.get_traced_memory()
        assert peak <= 1.1 * predictions.nbytes
    finally:
        tracemalloc.stop()


def test_blocks_of_few_elements_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that are cut into single positions are within the bounds of the conformance suite."""
    monkeypatch.setattr(blocks, "ELEMENTS", 2)
    cases = [case for case in all_cases() if case.dtype in NUMPY.dtypes()]
    cut = 0
    cut_into = blocks.blocks

    def counted(*call: Any) -> Any:
        nonlocal cut
        cut += 1
        return cut_into(*call)

    monkeypatch.setattr(blocks, "blocks", counted)
    for case in cases[::3]:
        outcome = checks.check_case(NUMPY, NUMPY.modes()["eager"], case, case.expected())
        assert not outcome.failures, case.name
    assert cut > 100
    for call in bad_calls():
        assert not checks.check_bad_call(NUMPY, NUMPY.modes()["eager"], call).failures, call.name


def test_the_first_bad_value_is_named_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad weight in the last block comes before a bad label in the first, as in a small call."""
    monkeypatch.setattr(blocks, "ELEMENTS", 6)
    labels, weight = LABELS[:50] % 3, WEIGHT[:50].copy()
    labels[2], weight[49] = 7, -1
    with pytest.raises(ul.BadValueError, match=r"sample_weight\[49\] is -1"):
        CE(LOGITS[:50, :3], labels, sample_weight=weight)
    weight[49] = 1
    with pytest.raises(ul.BadValueError, match=r"targets\[2\] is 7"):
        CE(LOGITS[:50, :3], labels, sample_weight=weight)


def test_a_mean_is_empty_if_every_block_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty block is no error, and a call of empty blocks is one."""
    monkeypatch.setattr(blocks, "ELEMENTS", 6)
    spec, z, y = CE.replace(on_empty="error"), LOGITS[:50, :3], LABELS[:50] % 3
    weight = np.zeros(50)
    with pytest.raises(ul.EmptyMeanError, match=r"shape \(50,\)"):
        spec(z, y, sample_weight=weight)
    weight[30] = 2
    assert spec(z, y, sample_weight=weight) == CE(z[30:31], y[30:31])


def test_a_sum_of_blocks_keeps_its_digits() -> None:
    """The sums of blocks are added in float64, so a long sum is within an epsilon."""
    errors = np.full(5_000_000, 0.1, np.float32)
    mask = np.ones(errors.shape, bool)
    total = ul.MeanSquaredError(reduction="sum")(errors, 0 * errors, mask=mask)
    exact = 5_000_000 * float(np.float32(0.1) * np.float32(0.1))
    assert abs(float(total) / exact - 1) < 2 * np.finfo(np.float32).eps
