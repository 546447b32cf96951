"""Mathematical properties of the losses, on data from hypothesis, in every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import unifiedloss as ul
from unifiedloss import registry

Array = NDArray[Any]
LOGITS = st.floats(-30, 30, width=32)
BACKENDS = [
    pytest.param(name, marks=pytest.mark.framework(name))
    for name in ("numpy", "torch", "tensorflow", "jax")
]

pytestmark = pytest.mark.slow("the frameworks that compile no eager call", only=["jax"])

# Few examples, because eager frameworks are slow; no deadline, because the first call loads one.
settings.register_profile("unifiedloss", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("unifiedloss")


@st.composite
def batches(draw: st.DrawFn, classes: int | None = None) -> tuple[Array, Array]:
    """Logits (N, K) in float32 and class indices."""
    rows, k = draw(st.integers(1, 5)), classes or draw(st.integers(2, 6))
    logits = draw(hnp.arrays(np.float32, (rows, k), elements=LOGITS))
    labels = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, k - 1)))
    return logits, labels


def evaluate(backend: str, spec: Any, predictions: Array, targets: Array, **more: Array) -> Array:
    """Compute a loss in a backend and return it as a float64 array."""
    adapter = registry.adapter(backend)
    tensors = {name: adapter.tensor(x) for name, x in more.items()}
    value = spec(adapter.tensor(predictions), adapter.tensor(targets), **tensors)
    return np.asarray(adapter.to_numpy(value)).astype(np.float64)


def close(a: Array, b: Array, scale: float) -> None:
    """Assert equality up to 16 float32 epsilons of 1 + scale, the largest number involved."""
    np.testing.assert_allclose(a, b, rtol=0, atol=16 * np.finfo(np.float32).eps * (1 + scale))


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches(), shift=st.floats(-50, 50, width=32))
def test_shift_invariance(backend: str, batch: tuple[Array, Array], shift: float) -> None:
    """Adding one number to all logits of a row changes nothing."""
    z, y = batch
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    close(evaluate(backend, spec, z, y), evaluate(backend, spec, z + np.float32(shift), y), 100)


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches(), seed=st.integers(0, 99))
def test_class_permutation(backend: str, batch: tuple[Array, Array], seed: int) -> None:
    """Renaming the classes in logits, labels and class weights changes nothing."""
    z, y = batch
    order = np.random.default_rng(seed).permutation(z.shape[1])
    weights = np.linspace(0.5, 2, z.shape[1])
    spec = ul.CrossEntropyLoss(
        from_logits=True, reduction="none", class_weights=weights, label_smoothing=0.1
    )
    renamed = spec.replace(class_weights=weights[order])
    close(
        evaluate(backend, spec, z, y),
        evaluate(backend, renamed, z[:, order], np.argsort(order)[y]),
        120,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches())
def test_splitting_a_batch(backend: str, batch: tuple[Array, Array]) -> None:
    """The sum over a batch is the sum of the sums over its parts."""
    z, y = batch
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="sum")
    at = len(z) // 2
    parts = evaluate(backend, spec, z[:at], y[:at]) + evaluate(backend, spec, z[at:], y[at:])
    close(evaluate(backend, spec, z, y), parts, 60 * len(z))


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    batch=batches(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    divisor=st.sampled_from(["weights", "all", "nonzero"]),
)
def test_one_hot_equals_index(
    backend: str, batch: tuple[Array, Array], smoothing: float, divisor: str
) -> None:
    """An index target and its one-hot dense target give the same value, with every divisor."""
    z, y = batch
    weights = np.linspace(0, 2, z.shape[1])
    spec = ul.CrossEntropyLoss(
        from_logits=True,
        class_weights=weights,
        label_smoothing=smoothing,
        divisor=divisor,
        on_empty="zero",
    )
    one_hot = np.eye(z.shape[1], dtype=np.float32)[y]
    close(evaluate(backend, spec, z, y), evaluate(backend, spec, z, one_hot), 120)


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches(classes=2))
def test_two_classes_are_one_sigmoid(backend: str, batch: tuple[Array, Array]) -> None:
    """Softmax over two logits is the sigmoid of their difference."""
    z, y = batch
    categorical = evaluate(backend, ul.CrossEntropyLoss(from_logits=True, reduction="none"), z, y)
    binary = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none")
    close(categorical, evaluate(backend, binary, z[:, 1] - z[:, 0], y), 60)


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches(), divisor=st.sampled_from(["weights", "present", "nonzero", "all"]))
def test_unit_weights_equal_none(backend: str, batch: tuple[Array, Array], divisor: str) -> None:
    """Weights of 1, masks of True and class weights of 1 change nothing, with any divisor."""
    z, y = batch
    spec = ul.CrossEntropyLoss(from_logits=True, divisor=divisor)
    plain = evaluate(backend, spec, z, y)
    ones = np.ones(len(z), np.float32)
    close(plain, evaluate(backend, spec, z, y, sample_weight=ones, mask=ones > 0), 60)
    close(plain, evaluate(backend, spec.replace(class_weights=[1] * z.shape[1]), z, y), 60)


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches(), weight=st.floats(0.125, 8, width=32))
def test_one_weight_cancels(backend: str, batch: tuple[Array, Array], weight: float) -> None:
    """A weighted mean does not change when all weights are multiplied by one number."""
    z, y = batch
    spec = ul.CrossEntropyLoss(from_logits=True)
    weights = np.arange(1, len(z) + 1, dtype=np.float32)
    scaled = (weights * np.float32(weight)).astype(np.float32)
    close(
        evaluate(backend, spec, z, y, sample_weight=weights),
        evaluate(backend, spec, z, y, sample_weight=scaled),
        120,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@given(batch=batches())
def test_masked_rows_do_not_exist(backend: str, batch: tuple[Array, Array]) -> None:
    """Masking a row out gives what leaving it out gives."""
    z, y = batch
    spec = ul.CrossEntropyLoss(from_logits=True, on_empty="zero")
    keep = np.arange(len(z)) % 2 == 0
    close(evaluate(backend, spec, z, y, mask=keep), evaluate(backend, spec, z[keep], y[keep]), 60)


@pytest.mark.parametrize("backend", BACKENDS)
@given(z=hnp.arrays(np.float32, (3, 4), elements=LOGITS))
def test_softmax_is_a_distribution(backend: str, z: Array) -> None:
    """Probabilities are not negative, sum to 1, and give the loss that the logits give."""
    adapter = registry.adapter(backend)
    p = adapter.to_numpy(ul.softmax(adapter.tensor(z)))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    y = np.array([0, 1, 2])
    normal = p[np.arange(3), y] > 1e-30
    losses = evaluate(backend, ul.CrossEntropyLoss(reduction="none"), p, y)
    exact = evaluate(
        "numpy", ul.CrossEntropyLoss(from_logits=True, reduction="none"), z.astype(np.float64), y
    )
    close(losses[normal], exact[normal], 60)


@given(batch=batches())
def test_gradient_rows_sum_to_zero(batch: tuple[Array, Array]) -> None:
    """The gradient by the logits of a row sums to 0, because a shift of the row changes nothing."""
    z, y = batch
    _, gradient = ul.CrossEntropyLoss(from_logits=True, reduction="sum").value_and_grad(
        z.astype(np.float64), y
    )
    np.testing.assert_allclose(gradient.sum(1), 0, atol=1e-12)
