"""The compiled loops of the cross-entropy of logits: every kind of call has the bits of NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled, exact
from unifiedloss.exact import counts
from unifiedloss.losses.cross_entropy import exact as tiers
from unifiedloss.plan import Signature, resolve

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
DTYPES = ("float32", "bfloat16", "float16")
INF, NAN = np.inf, np.nan
Array = np.ndarray[Any, Any]


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.dtype(name)


def _logits(rng: np.random.Generator, shape: tuple[int, int], spread: float, dtype: Any) -> Array:
    with np.errstate(over="ignore"):
        return rng.normal(scale=spread, size=shape).astype(np.float32).astype(dtype)


def _calls(dtype: str) -> Iterator[tuple[ul.Loss, Array, Array, dict[str, Any]]]:
    """Random calls: spec, predictions, targets, and the other arguments."""
    rng = np.random.default_rng(3)
    held = _dtype(dtype)
    ce = ul.CrossEntropyLoss(from_logits=True)
    none = ce.replace(reduction="none")
    # Confident rows have large spreads, and rows of 1 and 2 numbers have their own code.
    for n, k, spread in ((65, 1, 1), (70, 2, 8), (130, 10, 3), (40, 67, 30), (9, 2055, 0.1)):
        z = _logits(rng, (n, k), spread, held)
        y = rng.integers(0, k, n)
        weight = rng.uniform(0, 3, n).astype(np.float32)
        mask = rng.random(n) < 0.7
        each = tuple(rng.uniform(0.5, 2, k))
        above = rng.normal(size=n).astype(np.float32).astype(held)
        for scale in (None, 65536.0, -0.3, 2.0**-20):
            yield ce.replace(reduction="sum"), z, y, {"upstream": scale}
        yield ce, z, y, {}
        yield ce, z[::2, ::-1], y[::2], {"upstream": 1024.0}
        yield none, z, y, {"upstream": above}
        yield none.replace(ignore_index=0), z, y, {"upstream": above, "sample_weight": weight}
        yield ce.replace(class_weights=each), z, y, {"mask": mask, "upstream": 2.0**16}
        smooth, dense = none.replace(label_smoothing=0.1), rng.random((n, k)) ** 4
        dense[:3, 0] = 0, 1e-40, 60000  # a number below the smallest normal one counts as 0
        for targets in (y, dense.astype(np.float32), dense.astype(held)):
            by_position = smooth.replace(class_weights=each, class_weighting="position")
            yield smooth.replace(reduction="mean"), z, targets, {"upstream": 2.0**16}
            yield smooth.replace(reduction="sum"), z, targets, {}
            yield smooth.replace(class_weights=each), z, targets, {"upstream": above}
            yield by_position, z, targets, {"sample_weight": weight, "mask": mask}
            yield smooth.replace(label_smoothing=1.0), z, targets, {}
        yield none, z, dense.astype(np.float32), {"upstream": above}
        yield ce.replace(class_weights=each), z, dense.astype(held), {"upstream": -0.3}
        soft = by_position.replace(label_smoothing=0.0, reduction="mean")
        yield soft, z, dense.astype(held), {"sample_weight": weight}


def _hostile(dtype: str) -> Iterator[tuple[ul.Loss, Array, Array, dict[str, Any]]]:
    """Infinities, NaN, ties, ends of the range, rows without numbers."""
    held = _dtype(dtype)
    largest = {"float32": 3e38, "bfloat16": 3e38, "float16": 65504.0}[dtype]
    rows = [
        [0, 0, 0, 0],
        [INF, 0, 0, 0],
        [-INF, 0, 1, 2],
        [0, -INF, -INF, -INF],
        [NAN, 0, 1, 2],
        [largest, -largest, 0, 0],
        [-largest, largest, 0, 0],
        [100.5, 3.25, 0, 0],  # the loss at 1 is a tie that e^-97.25 decides
        [16, -0.0625, -30, -90],
        [-900, -901, -902, -903],
        [9, -3, -9, -17],  # slopes that are subnormal numbers of float16
        [0, -20, -80, -95],
        [1e-3, 1e-4, 0, -1e-4],
    ]
    z = np.array(rows).astype(held)
    for reduction in ("mean", "sum", "none"):
        spec = ul.CrossEntropyLoss(from_logits=True, reduction=reduction)
        for label in range(3):
            for row in range(len(z)):
                yield spec, z[row : row + 1], np.array([label]), {}
            yield spec, z, np.full(len(z), label, np.int32), {}
            one_hot = np.eye(4, dtype=np.float32)[[label] * len(z)]
            for targets in (one_hot, np.float32(0.9) * one_hot + np.float32(0.025)):
                yield spec, z, targets, {}
                yield spec, z[-6:], targets[-6:].astype(held), {"sample_weight": np.arange(6)}
            yield spec.replace(label_smoothing=0.1), z, np.full(len(z), label), {}
        if reduction != "mean":
            yield spec, z[:0], np.zeros(0, int), {}
    big = 512 if dtype == "bfloat16" else 4096
    equal = np.zeros((3, big), held)  # a slope is a tie: (K - 1) / K has one bit too many
    yield ul.CrossEntropyLoss(from_logits=True, reduction="sum"), equal, np.array([0, 5, 9]), {}


def _evaluate(spec: ul.Loss, z: Array, y: Array, more: dict[str, Any]) -> tuple[bytes, bytes]:
    exact = spec.replace(rounding="exact")
    value, gradient = exact.value_and_grad(z, y, **more)
    companions = {name: x for name, x in more.items() if name != "upstream"}
    assert np.asarray(exact(z, y, **companions)).tobytes() == np.asarray(value).tobytes()
    return np.asarray(value).tobytes(), np.asarray(gradient).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_give_the_bits_of_numpy(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random calls have NumPy's bits, and the loops leave hardly anything to the other tiers."""
    calls = list(_calls(dtype))
    with compiled.forced(compiled.NUMPY):
        wanted = [_evaluate(*call) for call in calls]
    monkeypatch.setattr(tiers, "float64", None)  # NumPy's first tier is not called from here on
    for level in LEVELS:
        counts.undecided.clear()
        with compiled.forced(level):
            for call, right in zip(calls, wanted, strict=True):
                assert _evaluate(*call) == right, (call[0], call[1].shape, call[3].keys())
        # Some rows of two classes are ties, and some slopes of a smoothed target cancel.
        assert sum(counts.undecided.values()) < 30, (level, counts.undecided)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hostile_calls_have_the_bits_of_numpy(dtype: str) -> None:
    """So have calls with ties, infinities and NaN, which other tiers finish."""
    for call in _hostile(dtype):
        with compiled.forced(compiled.NUMPY):
            right = _evaluate(*call)
        for level in LEVELS:
            with compiled.forced(level):
                assert _evaluate(*call) == right, (level, call)


def _beside_midpoints(
    rng: np.random.Generator, spec: Any, z: Array, y: Array, t: Array, column: int
) -> Array:
    """Upstream gradients that bring the slopes of a column within some u of a midpoint."""
    smoothing, weights = spec.label_smoothing, spec.class_weights
    one_hot = np.eye(z.shape[1])[y] if t is y else t.astype(np.float64)
    tau = (1 - smoothing) * one_hot + smoothing / z.shape[1]
    if weights is not None and spec.class_weighting == "entries":
        tau *= weights
    elif weights is not None:
        tau *= (one_hot * weights).sum(1, keepdims=True)
    p = np.exp(z.astype(np.float64) - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    slope = (tau.sum(1, keepdims=True) * p - tau)[:, column]
    low = rng.uniform(1, 2, len(z)).astype(np.float32)
    middle = (low.astype(np.float64) + np.nextafter(low, np.float32(2))) / 2
    return middle / slope * (1 + rng.integers(-9, 10, len(z)) * 2.0**-53)


def test_slopes_beside_midpoints() -> None:
    """The first tier leaves such slopes of soft targets, and the second has the bits of balls."""
    rng = np.random.default_rng(2)
    n, k = 60, 7
    z = rng.normal(scale=2, size=(n, k)).astype(np.float32)
    y, dense = rng.integers(0, k, n), rng.random((n, k)).astype(np.float32)
    each = tuple(rng.uniform(0.5, 2, k))
    plain = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    weighted = plain.replace(class_weights=each, label_smoothing=0.2)
    for spec in (plain.replace(label_smoothing=0.1), weighted, plain.replace(class_weights=each)):
        for weighting in ("entries", "position"):
            spec = spec.replace(class_weighting=weighting)  # noqa: PLW2901
            for t in (y, dense):
                if t is y and not spec.label_smoothing:
                    continue
                above = _beside_midpoints(rng, spec, z, y, t, int(rng.integers(k)))
                call = spec, z, t, {"upstream": above}
                with compiled.forced(compiled.NUMPY):
                    right = _evaluate(*call)
                for level in LEVELS:
                    counts.undecided.clear()
                    with compiled.forced(level):
                        assert _evaluate(*call) == right, (level, spec)
                    assert counts.undecided["elements"] > n / 2
                    assert counts.undecided["rows"] < 3


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_bad_targets_give_nan(reduction: str) -> None:
    """A loop leaves rows with a NaN, an infinite or a negative target, and only those."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction=reduction, rounding="exact")  # type: ignore[arg-type]
    z = np.linspace(-3, 3, 50, dtype=np.float32).reshape(5, 10)
    t = np.full(z.shape, 0.1, np.float32)
    t[0, 0], t[1, 9], t[2, 2], t[3, 3] = NAN, INF, -1, -1e-40
    plan = resolve(spec, Signature(z.shape, "float32"), Signature(t.shape, "float32"))
    found = []
    for level in compiled.levels():
        with compiled.forced(level):
            found.append(exact.evaluate(plan, z, t, gradient=True))
    for value, gradient in found:
        assert gradient is not None
        assert np.isnan(gradient).all(1).tolist() == [True, True, True, False, False]
        assert value.tobytes() == found[0][0].tobytes()
        assert np.isnan(value).sum() == (3 if reduction == "none" else 1)
