"""The loops of `unifiedloss.exact.mixed`: NumPy's bits at every level, and little is left to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled
from unifiedloss.exact import counts, kernel

Array = np.ndarray[Any, Any]

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
LOGITS = ul.BinaryCrossEntropyLoss(from_logits=True)
LOSSES = (LOGITS, ul.MeanSquaredError(), ul.HuberLoss(), ul.HuberLoss(delta=0.3))
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
CLIPS: tuple[dict[str, Any], ...] = (
    {},
    {"epsilon": 1e-7},
    {"epsilon": 1e-3},
    {"epsilon": "keras"},
    {"epsilon": "sklearn"},
    {"epsilon": "torch"},
    {"epsilon": 1e-7, "epsilon_added": True},
    {"epsilon": 1e-12, "epsilon_added": True},
)

Call = tuple[ul.Loss, Array, Array, dict[str, Any], Any]

pytestmark = pytest.mark.skipif(not LEVELS, reason="there are no compiled loops here")


def _numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Numbers of one spread, some of them multiples of a power of two: their results are ties."""
    x = rng.normal(scale=10.0 ** rng.uniform(-4, 2), size=shape)
    return np.round(x * 8) / 8 if rng.random() < 0.4 else x


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Probabilities, some of them 0 or 1, some tiny, some multiples of 1/16."""
    p = 1 / (1 + np.exp(-rng.normal(scale=10.0 ** rng.uniform(-2, 1.3), size=shape)))
    kind = rng.random()
    if kind < 0.3:
        p = np.round(p * 16) / 16
    elif kind < 0.6:
        p *= 10.0 ** -rng.uniform(0, 8)
    rounded: Array = p.astype(dtype)
    return rounded


def _binary_targets(rng: np.random.Generator, shape: tuple[int, ...], own: Any) -> Array:
    t = rng.random(shape)
    if rng.random() < 0.4:
        return (np.round(t * 8) / 8 if rng.random() < 0.5 else t).astype(own)
    dtypes: Any = (np.float32, own, np.bool_, np.int64, np.int32, np.int8, np.float64)
    return (t < 0.5).astype(dtypes[rng.integers(len(dtypes))])


def _companions(
    rng: np.random.Generator, spec: ul.Loss, shape: tuple[int, int]
) -> tuple[ul.Loss, dict[str, Any], Any]:
    """The spec with random rules, its weights and mask, and an upstream gradient."""
    n, k = shape
    averaged = bool(rng.random() < 0.25)
    rules: dict[str, Any] = {"reduction": str(rng.choice(["mean", "sum", "none"]))}
    rules["average_last_axis"] = averaged
    if rng.random() < 0.3:
        rules["scale"] = float(rng.choice([0.7, 2.0]))
    if rng.random() < 0.25 and not averaged:
        rules["element_weights"] = tuple(rng.choice([0.5, 1.0, 0.3], k).tolist())
    positions = (n,) if averaged else shape
    given: dict[str, Any] = {}
    if rng.random() < 0.35:
        weighted = positions if rng.random() < 0.5 else (n,)
        given["sample_weight"] = rng.choice([0, 1, 2, 0.7], weighted).astype(np.float32)
    if rng.random() < 0.25:
        given["mask"] = rng.random(n) < 0.7
    upstream: Any = None
    if rules["reduction"] == "none":
        if rng.random() < 0.6:
            upstream = rng.normal(size=positions).astype(np.float32)
    elif rng.random() < 0.6:
        upstream = float(rng.choice([65536.0, 0.3, -1.0, 0.0]))
    return spec.replace(rounding="exact", **rules), given, upstream


def _shape(rng: np.random.Generator, most: int) -> tuple[int, int]:
    k = int(rng.choice([1, 3, 7, 32, 1100] if most > 1000 else [1, 3, 32]))
    return int(rng.integers(1, 2 + most // k)), k


def _calls(count: int) -> Iterator[Call]:
    """Calls of logits and of any numbers."""
    rng = np.random.default_rng(5)
    for number in range(count):
        spec, own, shape = LOSSES[number % 4], FLOATS[rng.integers(3)], _shape(rng, 2000)
        p = _numbers(rng, shape).astype(own)
        t: Array
        if spec is LOGITS:
            t = _binary_targets(rng, shape, own)
            spec = spec.replace(label_smoothing=float(rng.choice([0, 0, 0.1, 1])))
            kind = rng.random()
            if kind < 0.4:
                several = tuple((rng.random(shape[1]) + 0.1).tolist())
                spec = spec.replace(pos_weight=2.5 if kind < 0.2 else several)
        else:
            others: Any = (np.float32, own, np.int8)
            t = _numbers(rng, shape).astype(others[rng.integers(3)])
        if rng.random() < 0.1:
            p.flat[rng.integers(p.size)] = rng.choice([np.inf, -np.inf, np.nan, 60000])
        spec, given, upstream = _companions(rng, spec, shape)
        yield spec, p, t, given, upstream


def _calls_of_probabilities(count: int) -> Iterator[Call]:
    rng = np.random.default_rng(6)
    for number in range(count):
        own, shape = FLOATS[rng.integers(3)], _shape(rng, 60)
        clip = CLIPS[number % len(CLIPS)]
        spec = ul.BinaryCrossEntropyLoss(from_logits=False, **clip)
        spec = spec.replace(label_smoothing=float(rng.choice([0, 0, 0.1])))
        if clip.get("epsilon") != "torch" and rng.random() < 0.3:
            spec = spec.replace(pos_weight=tuple((rng.random(shape[1]) + 0.1).tolist()))
        p, t = _probabilities(rng, shape, own), _binary_targets(rng, shape, own)
        spec, given, upstream = _companions(rng, spec, shape)
        yield spec, p, t, given, upstream


def _calls_of_labels(count: int) -> Iterator[Call]:
    """Cross-entropies of probabilities with class indices."""
    rng = np.random.default_rng(7)
    for number in range(count):
        own, k, n = FLOATS[rng.integers(3)], int(rng.choice([1, 3, 32])), int(rng.integers(1, 60))
        p = rng.dirichlet(np.full(k, 0.3), n)
        p = (np.round(p * 8) / 8 if rng.random() < 0.3 else p).astype(own)
        rules: dict[str, Any] = {"epsilon": (0.0, 1e-7, 1e-3, "keras", "sklearn")[number % 5]}
        if rng.random() < 0.5:
            rules["class_weights"] = rng.choice([1, 2, 0.5, 0.3, 0], k).tolist()
        spec = ul.CrossEntropyLoss(reduction=str(rng.choice(["mean", "none"])), **rules)  # type: ignore[arg-type]
        weight = rng.choice([0, 1, 2, 0.7], n).astype(np.float32)
        given = {"sample_weight": weight} if rng.random() < 0.4 else {}
        upstream = rng.normal(size=n) if spec.reduction == "none" else 65536.0
        yield spec.replace(rounding="exact"), p, rng.integers(0, k, n), given, upstream


def _bits(call: Call, level: str) -> tuple[bytes, ...]:
    spec, p, t, given, upstream = call
    with compiled.forced(level):
        value, gradient = spec.value_and_grad(p, t, upstream=upstream, **given)
        alone = spec(p, t, **given)
    return tuple(np.asarray(x).tobytes() for x in (value, gradient, alone))


@pytest.mark.parametrize("calls", [_calls(80), _calls_of_probabilities(64), _calls_of_labels(40)])
def test_levels_give_the_bits_of_numpy(calls: Iterator[Call]) -> None:
    """Value and gradient of random calls have the same bits with and without the loops."""
    for call in calls:
        right = _bits(call, compiled.NUMPY)
        for level in LEVELS:
            assert _bits(call, level) == right, (level, *call)


def _decided(n: int) -> Iterator[Call]:
    """Calls of many elements that the loops should decide: halves, their ties, and each rule."""
    rng = np.random.default_rng(8)
    k = 50
    shape = (n, k)
    z, t = rng.normal(scale=2, size=shape), rng.normal(size=shape)
    hard, p = (t < 0).astype(np.float32), 1 / (1 + np.exp(-z))
    row, ones = rng.random(n).astype(np.float32), np.ones(n, np.float32)
    several = tuple((rng.random(k) + 0.1).tolist())
    up = rng.normal(size=shape).astype(np.float32)
    for own in FLOATS:
        for spec in (LOGITS, ul.MeanSquaredError(), ul.HuberLoss()):
            target = hard.astype(own) if spec is LOGITS else t.astype(own)
            x = z.astype(own)
            for upstream in (None, 65536.0, 0.3):
                yield spec, x, target, {}, upstream
            yield spec.replace(reduction="none"), x, target, {}, up
            yield spec.replace(scale=0.7), x, target, {}, None
            yield spec.replace(average_last_axis=True), x, target, {}, None
            two = {"sample_weight": row}
            yield spec.replace(element_weights=several), x, target, two, None
            # A weight of 1 leaves the ties of the slopes.
            yield spec, x, target, {"sample_weight": ones}, None
        yield LOGITS.replace(label_smoothing=0.1), z.astype(own), hard, {}, None
        yield LOGITS.replace(pos_weight=several), z.astype(own), hard.astype(bool), {}, None
        for clip in CLIPS:
            spec = ul.BinaryCrossEntropyLoss(from_logits=False, **clip)
            yield spec, np.clip(p, 0.01, 0.99).astype(own), hard, {}, None


def test_little_is_left_to_numpy() -> None:
    """Of 5,000 elements a call, the loops leave two results at most, ties of the half types too."""
    for spec, p, t, given, upstream in _decided(100):
        counts.undecided.clear()
        exact = spec.replace(rounding="exact")
        exact.value_and_grad(p, t, upstream=upstream, **given)
        assert counts.undecided.total() <= 2, (spec, p.dtype, t.dtype, given, upstream)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_two_weights_along_different_axes_are_a_product(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of 0, a mask and every divisor need no `HostCall`, and have the bits of NumPy."""
    rng = np.random.default_rng(9)
    p, t = (rng.normal(size=(30, 4, 5)).astype(np.float32) for _ in range(2))
    weight = rng.choice([0, 0.7, 1.5, 2], 30).astype(np.float32)
    mask = rng.random(30) < 0.7
    p[~mask] = np.nan
    p[weight == 0] = np.inf
    each = (0.5, 0.0, 0.75, 1.0, 2.0)
    calls: list[Call] = []
    for divisor in ("weights", "present", "nonzero", "all"):
        spec = ul.MeanSquaredError(element_weights=each, divisor=divisor, reduction=reduction)  # type: ignore[arg-type]
        given = {"sample_weight": weight, "mask": mask}
        calls.append((spec.replace(rounding="exact"), p, t, given, None))
    with compiled.forced(compiled.NUMPY):
        right = [_bits(call, compiled.NUMPY) for call in calls]
    monkeypatch.setattr(kernel, "HostCall", None)
    for level in LEVELS:
        assert [_bits(call, level) for call in calls] == right


@pytest.mark.framework("torch")
def test_tensors_of_torch_go_to_the_loops_by_address() -> None:
    """Halves, vectors of upstream gradients, integer targets: they have the bits of NumPy."""
    import torch

    dtypes = {np.dtype(x): y for x, y in zip(
        FLOATS, (torch.float32, torch.float16, torch.bfloat16), strict=True
    )}  # fmt: skip

    def tensor(x: Any) -> Any:
        x = np.ascontiguousarray(x)
        bits = x.view(np.int16) if x.dtype == ml_dtypes.bfloat16 else x
        return torch.from_numpy(bits.copy()).view(dtypes.get(x.dtype, torch.from_numpy(bits).dtype))

    def bits(x: Any) -> bytes:
        return bytes(x.detach().view(-1).view(torch.uint8).numpy())

    for call in (*_calls(40), *_calls_of_probabilities(16)):
        spec, p, t, given, upstream = call
        if given:
            continue
        value, gradient, _ = _bits(call, compiled.level())
        x = tensor(p).requires_grad_()
        loss = spec(x, tensor(t))
        assert bits(loss) == value, call
        above = torch.ones_like(loss)
        if upstream is not None:
            above = tensor(np.asarray(upstream)).to(loss.dtype)
            if above.tolist() != np.asarray(upstream).tolist():
                continue  # autograd rounds it
        loss.backward(above)
        assert bits(x.grad) == gradient, call
        assert bits(spec(x.detach(), tensor(t))) == value, call
