"""The loop of probabilities and log-probabilities of classes: NumPy's bits, little left to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled
from unifiedloss.exact import counts

Array = np.ndarray[Any, Any]
Call = tuple[ul.Loss, Array, Array, dict[str, Any], Any]

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16)
EPSILONS = (0.0, 1e-7, 1e-3, "keras", "sklearn", 0.2, 1e-30, 1e-45)
NAN, INF = np.nan, np.inf

pytestmark = pytest.mark.skipif(not LEVELS, reason="there are no compiled loops here")


def _probabilities(rng: np.random.Generator, n: int, k: int) -> Array:
    """Rows of a softmax: diffuse or confident, at times of few bits, equal, or of any sum."""
    z = rng.normal(scale=10.0 ** rng.uniform(-2, 1.8), size=(n, k))
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    kind = rng.random()
    if kind < 0.2:
        p = np.round(p * 16) / 16
    elif kind < 0.3:
        p = np.full((n, k), 1 / k)
    elif kind < 0.4:
        p *= rng.uniform(0, 1, (n, 1))
    if rng.random() < 0.15:
        odd = (0, 1, 1e-40, -1e-40, 1.2e-38, 1 + 1.19e-7, NAN)
        p.flat[rng.integers(p.size)] = odd[rng.integers(len(odd))]
    return p


def _logarithms(rng: np.random.Generator, n: int, k: int) -> Array:
    """Any numbers, at times of few bits, so that products with weights are ties."""
    x = rng.normal(scale=10.0 ** rng.uniform(-3, 2), size=(n, k))
    if rng.random() < 0.5:
        x = np.round(x * 8) / 8
    if rng.random() < 0.2:
        odd = (INF, -INF, NAN, 0.0, -0.0, 1e-40)
        x.flat[rng.integers(x.size)] = odd[rng.integers(len(odd))]
    return x


def _targets(rng: np.random.Generator, n: int, k: int, own: Any) -> Array:
    if rng.random() < 0.5:
        labels: Array = rng.integers(0, k, n).astype((np.int64, np.int32, np.uint8)[k % 3])
        return labels
    t = rng.random((n, k)) ** 4
    if rng.random() < 0.4:
        t = np.round(rng.dirichlet(np.full(k, 0.3), n) * 8) / 8
    if rng.random() < 0.2:
        t[0] = 0
    t = t.astype(own if rng.random() < 0.4 else np.float32)
    if rng.random() < 0.1:
        t.flat[rng.integers(t.size)] = rng.choice([0, 1e-40, 60000])
    return t


def _rules(rng: np.random.Generator, k: int) -> dict[str, Any]:
    rules: dict[str, Any] = {"reduction": str(rng.choice(["mean", "sum", "none"]))}
    if rng.random() < 0.3:
        rules["class_weights"] = rng.choice([1, 2, 0.5, 0.3, 0, 1.5, 1e-3], k).tolist()
    if rng.random() < 0.2:
        rules["scale"] = float(rng.choice([0.7, 2.0]))
    return rules


def _of_probabilities(rng: np.random.Generator, k: int) -> ul.Loss:
    rules = _rules(rng, k)
    rules["epsilon"] = EPSILONS[rng.integers(len(EPSILONS))]
    if rules["epsilon"] and rng.random() < 0.6:
        rules["renormalize"] = str(rng.choice(["before_clip", "after_clip"]))
    if rng.random() < 0.3:
        rules["label_smoothing"] = float(rng.choice([0.1, 1, 0.01]))
    if rng.random() < 0.3:
        rules["class_weighting"] = "position"
    return ul.CrossEntropyLoss(**rules)


def _calls(count: int) -> Iterator[Call]:
    rng = np.random.default_rng(11)
    for number in range(count):
        own, k = FLOATS[rng.integers(3)], int(rng.choice([1, 2, 3, 7, 33, 300]))
        n = int(rng.integers(1, 3 + 200 // k))
        x: Array
        if number % 4:
            spec, x = _of_probabilities(rng, k), _probabilities(rng, n, k)
            if getattr(spec, "renormalize", None) and rng.random() < 0.3:
                x *= 10.0 ** rng.uniform(-3, 3)
        else:
            spec, x = ul.NegativeLogLikelihoodLoss(**_rules(rng, k)), _logarithms(rng, n, k)
        t = _targets(rng, n, k, own)
        if t.ndim == 1 and rng.random() < 0.3:
            spec = spec.replace(ignore_index=int(rng.integers(-1, k)))
        given: dict[str, Any] = {}
        if rng.random() < 0.3:
            weights = rng.choice([0, 1, 2, 0.7, 1.5], n) if rng.random() < 0.5 else rng.random(n)
            given["sample_weight"] = weights.astype(np.float32)
        if rng.random() < 0.2:
            given["mask"] = rng.random(n) < 0.7
        upstream: Any = None
        if spec.reduction == "none":
            if rng.random() < 0.6:
                upstream = rng.normal(size=n).astype(np.float32)
        elif rng.random() < 0.5:
            upstream = float(rng.choice([65536.0, 0.3, -1.0, 0.0, 1.5]))
        x = x.astype(own)
        x = np.asfortranarray(x) if rng.random() < 0.2 else x
        yield spec.replace(rounding="exact"), x, t, given, upstream


def _bits(call: Call) -> tuple[bytes, ...]:
    spec, p, t, given, upstream = call
    value, gradient = spec.value_and_grad(p, t, upstream=upstream, **given)
    return tuple(np.asarray(x).tobytes() for x in (value, gradient, spec(p, t, **given)))


def test_levels_give_the_bits_of_numpy() -> None:
    """Random calls of every form have the same bits with and without the loop."""
    for call in _calls(110):
        with compiled.forced(compiled.NUMPY):
            right = _bits(call)
        for level in LEVELS:
            with compiled.forced(level):
                assert _bits(call) == right, (level, *call)


def _decided(n: int, k: int) -> Iterator[Call]:
    """Calls of numbers without ties."""
    rng = np.random.default_rng(12)
    z = rng.normal(scale=2, size=(n, k))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y, t = rng.integers(0, k, n), (rng.random((n, k)) / k).astype(np.float32)
    each, weight = tuple(rng.uniform(0.5, 2, k)), {"sample_weight": rng.random(n).astype("f4")}
    none = {"reduction": "none"}
    for own in FLOATS:
        held, logarithms = p.astype(own), np.log(p).astype(own)
        nll = ul.NegativeLogLikelihoodLoss()
        for spec in (nll, nll.replace(class_weights=each), nll.replace(**none)):
            yield spec, logarithms, y, weight, None
        # Products with such weights are half way between two numbers of float32.
        halves = {"sample_weight": np.full(n, 1.5, np.float32)}
        yield nll.replace(reduction="sum"), logarithms, y, halves, None
        for clip in ({"epsilon": 1e-7}, {"epsilon": "keras", "renormalize": "before_clip"}):
            spec = ul.CrossEntropyLoss(**clip)  # type: ignore[arg-type]
            for targets in (y, t):
                yield spec, held, targets, {}, None
                yield spec.replace(class_weights=each), held, targets, weight, 0.3
                yield spec.replace(label_smoothing=0.1, **none), held, targets, {}, None
        after = ul.CrossEntropyLoss(epsilon="sklearn", renormalize="after_clip")
        yield after, held, t, {}, None


@pytest.mark.parametrize("level", LEVELS)
def test_little_is_left_to_numpy(level: str) -> None:
    """Of 100 rows of 40 classes, the loop leaves two at most."""
    for spec, p, t, given, upstream in _decided(100, 40):
        counts.undecided.clear()
        with compiled.forced(level):
            spec.replace(rounding="exact").value_and_grad(p, t, upstream=upstream, **given)
        assert counts.undecided.total() <= 2, (spec, p.dtype, t.dtype, given, upstream)


def test_an_undecided_row_goes_to_the_next_tier() -> None:
    """The loop leaves a slope beside a midpoint, and balls round it."""
    low = np.float32(1.1)
    middle = (np.float64(low) + np.nextafter(low, np.float32(2))) / 2
    p = np.full((4, 3), 1 / 3, np.float32)
    t = np.full((4, 3), 0.25, np.float32)
    slope = np.float64(t[0, 0]) / np.float64(p[0, 0])
    above = np.array([1, middle / slope, 1, middle / slope * (1 + 2.0**-52)])
    spec = ul.CrossEntropyLoss(reduction="none", rounding="exact")
    with compiled.forced(compiled.NUMPY):
        right = spec.value_and_grad(p, t, upstream=above)
    for level in LEVELS:
        counts.undecided.clear()
        with compiled.forced(level):
            found = spec.value_and_grad(p, t, upstream=above)
        assert counts.undecided["rows"] == 2
        for x, y in zip(found, right, strict=True):
            assert x.tobytes() == y.tobytes()


def test_threads_do_not_change_the_bits() -> None:
    """Rows go to threads in parts, with their labels, targets, weights and places."""
    from unifiedloss.exact import evaluate
    from unifiedloss.plan import Signature, resolve

    for spec, p, t, _, _ in _decided(300, 40):
        spec = spec.replace(rounding="exact")  # noqa: PLW2901
        if p.dtype != np.float32:
            break
        weight = np.linspace(0.5, 1.5, len(p), dtype=np.float32)
        given = [Signature(x.shape, x.dtype.name) for x in (p, t, weight)]
        for plan, w in ((resolve(spec, *given[:2]), None), (resolve(spec, *given), weight)):
            one, three = (
                evaluate(plan, p, t, w, gradient=True, threads=threads) for threads in (1, 3)
            )
            for x, y in zip(one, three, strict=True):
                assert x is not None
                assert y is not None
                assert x.tobytes() == y.tobytes()


@pytest.mark.framework("torch")
def test_tensors_of_torch_go_to_the_loop() -> None:
    """Rows that the loop leaves of tensors of bfloat16 come as bits."""
    import torch

    p = np.array([[0.5, 0.5], [0.25, 0.75], [1, 0], [0, 1]]).astype(ml_dtypes.bfloat16)
    t = np.array([[0.5, 0.5], [0, 1], [0, 1], [0, 1]]).astype(ml_dtypes.bfloat16)
    spec = ul.CrossEntropyLoss(reduction="none", rounding="exact")
    for targets in (t, np.array([0, 1, 1, 1])):
        value, gradient = spec.value_and_grad(p, targets)
        given = torch.from_numpy(np.asarray(targets, "f4" if targets is t else None))
        x = torch.from_numpy(p.astype("f4")).bfloat16().requires_grad_()
        loss = spec(x, given.bfloat16() if targets is t else given)
        loss.sum().backward()
        assert loss.tolist() == value.astype("f4").tolist()
        assert x.grad is not None
        assert x.grad.tolist() == gradient.astype("f4").tolist()
