"""The NumPy adapter: closed-form gradients, blocks of rows, dtypes and memory layouts."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.adapters.numpy import kernels

pytestmark = pytest.mark.framework("numpy")


def test_scalars_and_lists() -> None:
    """Python numbers and lists are float64; a reduction gives a NumPy scalar, as np.mean does."""
    loss = ul.cross_entropy_loss([[2, 1, 0]], [0], from_logits=True)
    assert isinstance(loss, np.float64)
    assert abs(loss - 0.4076059644443803) < 1e-15
    assert isinstance(ul.mean_squared_error(np.float32([1]), np.float32([0])), np.float32)
    assert ul.mean_squared_error(2.0, 5) == 9.0
    assert ul.binary_cross_entropy_loss(0.5, 1) == pytest.approx(np.log(2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_floating_point_errors(dtype: Any) -> None:
    """Special values raise no floating-point error of NumPy, in a loss, its gradient or softmax."""
    largest, inf, nan = np.finfo(dtype).max, np.inf, np.nan
    with np.errstate(all="raise"):
        for row in ([inf, 0], [inf, inf], [-inf, -inf], [nan, 0], [largest, -largest], [12, 0]):
            logits = np.array([row], dtype)
            assert ul.softmax(logits).shape == (1, 2)
            for spec, targets in (
                (ul.CrossEntropyLoss(from_logits=True), [0]),
                (ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1), [0]),
                (ul.BinaryCrossEntropyLoss(from_logits=True), [[0, 1]]),
                (ul.MeanSquaredError(), [[0, 1]]),
                (ul.NegativeLogLikelihoodLoss(), [0]),
                (ul.HuberLoss(), [[0, 1]]),
            ):
                spec(logits, targets)
                spec.value_and_grad(logits, targets)


@pytest.mark.parametrize("words", [[[1, 2], [3]], [["a"]], [object()]])
def test_lists_that_are_no_arrays(words: list[object]) -> None:
    """A ragged list, or a list of non-numbers, is refused with one of our errors."""
    with pytest.raises(ul.UnifiedLossError):
        ul.mean_squared_error(words, [1.0])


@pytest.mark.parametrize("classes", [1, 2, 10, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [1, 30, 300])
def test_blocks_and_shifts(classes: int, dtype: type, spread: float) -> None:
    """Blocks with and without the shift agree with a shifted log-softmax in long double."""
    rng = np.random.default_rng(classes)
    z = rng.normal(scale=spread, size=(70, classes)).astype(dtype)
    z[3] += 1000  # makes its block need the shift, because exp would overflow
    y = rng.integers(classes, size=70)
    losses, gradient = kernels.cross_entropy_rows(z, y, np.ones(70, dtype))
    wide = z.astype(np.longdouble)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(70), y] -= 1
    shifted = wide - wide.max(1, keepdims=True)
    exact = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(70), y]
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(losses, exact.astype(dtype), rtol=20 * eps, atol=20 * eps)
    assert gradient is not None
    np.testing.assert_allclose(gradient, p.astype(dtype), rtol=0, atol=100 * eps)


def test_confident_rows_keep_their_digits() -> None:
    """A float32 row with gap 18 costs 3e-8; log sum exp z - z_y would give 0 (pytorch#113708)."""
    loss = ul.cross_entropy_loss(np.array([[18, 0, 0]], np.float32), [0], from_logits=True)
    assert loss == pytest.approx(2 * np.exp(-18), rel=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        ul.CrossEntropyLoss(from_logits=True, axis=1, class_weights=[1, 2, 3], label_smoothing=0.1),
        ul.CrossEntropyLoss(axis=1, epsilon=1e-3),
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=[1, 2], axis=-1),
        ul.BinaryCrossEntropyLoss(label_smoothing=0.2),
        ul.MeanSquaredError(divisor="nonzero"),
    ],
    ids=repr,
)
def test_gradients_are_slopes(spec: object) -> None:
    """The closed form agrees with central differences of the loss itself."""
    assert isinstance(spec, ul.CrossEntropyLoss | ul.BinaryCrossEntropyLoss | ul.MeanSquaredError)
    rng = np.random.default_rng(1)
    x = rng.uniform(0.1, 0.9, (4, 3, 2))
    index = isinstance(spec, ul.CrossEntropyLoss)
    t = rng.integers(3, size=(4, 2)) if index else rng.random((4, 3, 2))
    weight = np.array([1.0, 0.0, 2.0, 0.5])
    mask = rng.random((4, 2) if index else (4, 3, 2)) < 0.8
    _, gradient = spec.value_and_grad(x, t, sample_weight=weight, mask=mask, upstream=1.5)
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        up, down = (spec(x + s, t, sample_weight=weight, mask=mask) for s in (step, -step))
        slopes[i] = 1.5 * (up - down) / 2e-6
    np.testing.assert_allclose(gradient, slopes, atol=2e-8)


def test_memory_layouts() -> None:
    """Slices, transposes, Fortran order, read-only and byte-swapped arrays give the same bits."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(5, size=6)
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    expected = spec(z, y)
    frozen = z.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(z), np.repeat(z, 2, 0)[::2], z.astype(">f4"), frozen):
        np.testing.assert_array_equal(spec(other, y), expected)
        np.testing.assert_array_equal(
            spec.value_and_grad(other, y)[1], spec.value_and_grad(z, y)[1]
        )
    np.testing.assert_array_equal(spec(z, y.astype(">i2")), expected)
    with pytest.raises(ul.BadValueError, match=r"targets\[1\] is 256"):
        spec(z, np.array([0, 256, 1, 1, 1, 1], ">i4"))


def test_inputs_are_left_alone() -> None:
    """A call changes none of its inputs and gives no warning."""
    z, y = np.array([[np.inf, 0.0], [1.0, -np.inf]]), np.array([0, 1])
    before = z.copy()
    assert np.isnan(ul.cross_entropy_loss(z, y, from_logits=True))
    ul.CrossEntropyLoss(from_logits=True).value_and_grad(z, y)
    np.testing.assert_array_equal(z, before)


def test_values_are_checked_without_warnings() -> None:
    """A NaN in bfloat16, and a weight too large for float32, give no warning of NumPy's."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    targets = np.array([np.nan, 0.5], bfloat16)
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none")
    assert np.isnan(spec(np.zeros(2, bfloat16), targets)[0])
    heavy = ul.MeanSquaredError(element_weights=1e300, reduction="none", rounding="exact")
    x = np.ones(2, np.float32)
    assert heavy(x, 0 * x, sample_weight=np.array([0, 1])).tolist() == [0, np.inf]


def test_function_object() -> None:
    """The object from spec.to("numpy") pickles, compares by its spec, and its repr shows it."""
    function = ul.MeanSquaredError().to("numpy")
    assert pickle.loads(pickle.dumps(function))(np.ones(2), np.zeros(2)) == 1.0  # noqa: S301
    assert repr(function) == "LossFunction(MeanSquaredError())"
    again = pickle.loads(pickle.dumps(function))  # noqa: S301
    other = ul.MeanSquaredError(reduction="sum").to("numpy")
    assert again == function != other
    assert len({again, function, other}) == 2


@pytest.mark.parametrize("more", [{}, {"mask": np.ones(6, bool)}], ids=["whole", "masked"])
def test_gradient_of_a_mean_of_large_errors(more: dict[str, Any]) -> None:
    """The gradient of the mean is finite, though twice the error overflows."""
    x = np.full(6, 3e38, np.float32)
    _, gradient = ul.MeanSquaredError().value_and_grad(x, np.zeros_like(x), **more)
    np.testing.assert_allclose(gradient, 1e38, rtol=1e-6)
