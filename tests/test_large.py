"""Large batches, which take NumPy's blocks and faster checks of the targets, give right results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul

SHAPE = (700, 1000)  # several blocks of each kind, and a partial one at the end
SPECS = {
    "cross_entropy": ul.CrossEntropyLoss(from_logits=True),
    "dense": ul.CrossEntropyLoss(from_logits=True),
    "binary": ul.BinaryCrossEntropyLoss(from_logits=True),
    "regression": ul.MeanSquaredError(),
}
BACKENDS = [pytest.param(name, marks=pytest.mark.framework(name)) for name in ("numpy", "torch")]
DTYPES = ["float32", "float64"]


def data(kind: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of the large shape."""
    random = np.random.default_rng(3)
    predictions = random.normal(0, 3, SHAPE).astype(dtype)
    if kind == "cross_entropy":
        return predictions, random.integers(0, SHAPE[1], SHAPE[0])
    return predictions, random.random(SHAPE).astype(dtype)


def given(backend: str, *arrays: np.ndarray) -> tuple[Any, ...]:
    """The arrays as tensors of a backend."""
    if backend == "numpy":
        return arrays
    import torch

    return tuple(map(torch.from_numpy, arrays))


def expected(kind: str, predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss and its gradient, by the textbook formulas in float64."""
    z, t = predictions.astype(np.float64), targets
    if kind == "regression":
        return float(np.mean((z - t) ** 2)), 2 * (z - t) / z.size
    if kind == "binary":
        return float(np.mean(np.logaddexp(0, z) - z * t)), (1 / (1 + np.exp(-z)) - t) / z.size
    if kind == "cross_entropy":
        t = np.eye(SHAPE[1])[targets]
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    gradient = (np.exp(log_p) * t.sum(1, keepdims=True) - t) / len(z)
    return float(-np.sum(t * log_p) / len(z)), gradient


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_value_and_gradient(backend: str, kind: str, dtype: str) -> None:
    """Loss and gradient agree with the formulas across all blocks, also in Fortran order."""
    arrays = data(kind, dtype)
    loss, gradient = expected(kind, *arrays)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for predictions in (arrays[0], np.asfortranarray(arrays[0])):
        tensors = given(backend, predictions, arrays[1])
        got, slope = SPECS[kind].value_and_grad(*tensors)
        assert math.isclose(float(got), loss, rel_tol=tolerance)
        assert math.isclose(float(SPECS[kind](*tensors)), loss, rel_tol=tolerance)
        np.testing.assert_allclose(
            np.asarray(slope), gradient, rtol=tolerance, atol=tolerance * np.abs(gradient).max()
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("cross_entropy", SHAPE[1]),
        ("cross_entropy", -1),
        ("cross_entropy", -(2**63)),
        ("dense", -1e-3),
        ("dense", math.inf),
        ("binary", -1e-3),
        ("binary", 1.0 + 2.0**-20),
        ("binary", math.inf),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_bad_target_is_found(backend: str, kind: str, bad: float, dtype: str) -> None:
    """A single bad target is found and named at the start, in the middle and at the end."""
    predictions, targets = data(kind, dtype)
    for position in (0, targets.size // 2, targets.size - 1):
        changed = targets.copy()
        changed.flat[position] = bad
        index = ", ".join(map(str, np.unravel_index(position, targets.shape)))
        with pytest.raises(ul.BadValueError, match=rf"^targets\[{index}\] is "):
            SPECS[kind](*given(backend, predictions, changed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_zero_and_both_ends_are_valid(backend: str, dtype: str) -> None:
    """Targets of -0, 0 and 1 are valid; -0 counts as 0 though its bits differ."""
    predictions, targets = data("binary", dtype)
    targets.flat[:3] = (-0.0, 0.0, 1.0)
    positive = targets.copy()
    positive.flat[0] = 0.0
    loss = SPECS["binary"]
    assert float(loss(*given(backend, predictions, targets))) == pytest.approx(
        float(loss(*given(backend, predictions, positive))), rel=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_infinite_logit(backend: str) -> None:
    """An infinite logit that agrees with its target costs 0; the kernel alone would give NaN."""
    predictions, targets = data("binary", "float32")
    predictions.flat[5], targets.flat[5] = math.inf, 1.0
    finite = predictions.copy()
    finite.flat[5] = 1e4  # its sigmoid is 1 in float32
    got, slope = SPECS["binary"].value_and_grad(*given(backend, predictions, targets))
    near, near_slope = SPECS["binary"].value_and_grad(*given(backend, finite, targets))
    assert float(got) == pytest.approx(float(near), rel=1e-6)
    np.testing.assert_allclose(np.asarray(slope), np.asarray(near_slope), rtol=1e-5, atol=1e-12)
