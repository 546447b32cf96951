"""Native calls of NumPy by the compiled loops: bounds, special values, layouts, and small numbers.

The loops are compared with the oracle by the conformance suite, with torch's arithmetic nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled, registry
from unifiedloss.compiled import native
from unifiedloss.conformance.cases import all_cases, bad_calls
from unifiedloss.conformance.checks import check_bad_call, check_case

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
NUMPY = registry.adapter("numpy")
CE = ul.CrossEntropyLoss(from_logits=True)
BCE = ul.BinaryCrossEntropyLoss(from_logits=True)
EPSILON = float(np.finfo(np.float32).eps)
TINY = float(np.finfo(np.float32).tiny)

pytestmark = pytest.mark.framework("numpy")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each call of a loop did not know, so that a test sees that the loops were used."""
    found: list[int] = []
    run = native.run

    def counted(*arguments: Any, **more: Any) -> Any:
        result = run(*arguments, **more)
        found.append(result[0])
        return result

    monkeypatch.setattr(native, "run", counted)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_conforms(level: str, calls: list[int]) -> None:
    """The native cases of float32 are within the bounds of the conformance suite at every level."""
    eager = NUMPY.modes()["eager"]
    with compiled.forced(level):
        for case in all_cases():
            if case.dtype == "float32":
                outcome = check_case(NUMPY, eager, case, case.expected())
                assert not outcome.failures, (case.name, outcome.failures)
        for call in bad_calls():
            assert not check_bad_call(NUMPY, eager, call).failures, call.name
    assert len(calls) > 400


def _wide(z: Any, y: Any) -> tuple[Any, Any]:
    """The losses and slopes of rows of logits, in long double."""
    wide = z.astype(np.longdouble)
    shifted = wide - wide.max(1, keepdims=True)
    e = np.exp(shifted)
    rows = np.arange(len(z))
    own = e[rows, y]
    e[rows, y] = 0
    others = e.sum(1)
    with np.errstate(divide="ignore"):
        near, far = np.log1p(others / own), np.log(others + own) - shifted[rows, y]
    losses = np.where(own > 0.5, near, far)
    slopes = e / (others + own)[:, None]
    slopes[rows, y] = -others / (others + own)
    return losses, slopes


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 31, 64, 65, 129, 1000, 4111])
@pytest.mark.parametrize("spread", [0.01, 4, 40, 400])
def test_rows(level: str, classes: int, spread: float, calls: list[int]) -> None:
    """Each loss errs by few epsilons of itself, and each slope by few of it and its exponent."""
    rng = np.random.default_rng(classes)
    z = rng.normal(scale=spread, size=(70, classes)).astype(np.float32)
    y = rng.integers(0, classes, 70)
    z[0, y[0]] = -np.inf if classes > 1 else 0.0
    losses, slopes = _wide(z, y)
    with compiled.forced(level):
        value, gradient = CE.replace(reduction="none").value_and_grad(z, y)
        alone = CE.replace(reduction="none")(z, y)
        mean, by_mean = CE.replace(reduction="sum").value_and_grad(z, y, upstream=0.25)
    assert calls == [0, 0, 0]
    assert (value == alone).all()
    assert (value >= 0).all()
    assert np.isinf(value[0]) == np.isinf(mean) == (classes > 1)
    far = np.where(np.isfinite(losses), losses, 0)
    gap = np.where(np.isfinite(z), z.max(1, keepdims=True) - z, 0)
    wrong = np.abs(np.where(np.isfinite(value), value, 0) - far)
    # The rounding of an exponent is one of the relative error of a confident row's loss.
    tail = np.where(far < 1, gap.max(1), 0)
    assert (wrong <= (6 + tail) * EPSILON * far + TINY).all()
    allowed = (6 + gap) * EPSILON * np.abs(slopes) + 2.0**-149
    # The slope of the label depends on the exponents of all others.
    allowed[np.arange(70), y] = (6 + gap.max(1)) * EPSILON * np.abs(slopes[np.arange(70), y]) + TINY
    assert (np.abs(gradient - slopes) <= allowed).all()
    np.testing.assert_allclose(by_mean, 0.25 * gradient, rtol=4 * EPSILON, atol=TINY)


@pytest.mark.parametrize("level", LEVELS)
def test_small_slopes_keep_their_digits(level: str) -> None:
    """A slope whose probability float32 does not hold is right under a large upstream gradient."""
    z = np.array([[0.0, -87.0, -95.0, -110.0, -120.0, -np.inf]], np.float32)
    p = np.exp(z.astype(np.float64))[0] / np.exp(z.astype(np.float64)).sum()
    spec = CE.replace(reduction="sum")
    with compiled.forced(level):
        for upstream in (1.0, 2.0**16, 2.0**100, -(2.0**40)):
            _, slopes = spec.value_and_grad(z, [0], upstream=upstream)
            wanted = p * upstream
            wrong = np.abs(slopes[0, 1:] - wanted[1:])
            assert (wrong <= 100 * EPSILON * np.abs(wanted[1:]) + 2.0**-149).all(), upstream
        for upstream in (2.0**-60, 2.0**-120):
            slope = spec.value_and_grad(z[:, ::-1], [1], upstream=upstream)[1][0, ::-1]
            np.testing.assert_allclose(slope[0], upstream, rtol=4 * EPSILON)


@pytest.mark.parametrize("level", LEVELS)
def test_elements(level: str, calls: list[int]) -> None:
    """Elementwise losses and their slopes agree with formulas in float64."""
    rng = np.random.default_rng(5)
    for n in (1, 31, 33, 1024, 1500, 5000):
        z = rng.normal(scale=20, size=n).astype(np.float32)
        t = rng.random(n).astype(np.float32)
        hard = (t < 0.5).astype(np.float32)
        wide, q = z.astype(np.float64), 3.5
        up, down = np.logaddexp(0, wide), np.logaddexp(0, -wide)
        sigma = np.exp(-down)
        with compiled.forced(level):
            for spec, target, loss, slope in (
                (BCE, hard, np.where(hard == 1, down, up), sigma - hard),
                (BCE, t, t * down + (1 - t) * up, sigma - t),
                (
                    BCE.replace(pos_weight=q),
                    t,
                    q * t * down + (1 - t) * up,
                    (1 - t) * sigma - q * t * np.exp(-up),
                ),
                (ul.MeanSquaredError(), t, (wide - t) ** 2, 2 * (wide - t)),
                (
                    ul.HuberLoss(delta=5),
                    t,
                    np.where(abs(wide - t) <= 5, (wide - t) ** 2 / 2, 5 * (abs(wide - t) - 2.5)),
                    np.clip(wide - t, -5, 5),
                ),
            ):
                value, gradient = spec.replace(reduction="none").value_and_grad(z, target)
                mean = spec(z, target)
                np.testing.assert_allclose(value, loss, rtol=8 * EPSILON, atol=2.0**-149)
                np.testing.assert_allclose(gradient, slope, rtol=8 * EPSILON, atol=8 * EPSILON)
                assert (value >= 0).all()
                np.testing.assert_allclose(mean, loss.mean(), rtol=8 * EPSILON)
    assert not any(calls)


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_loop_does_not_know(level: str, calls: list[int]) -> None:
    """Infinite logits and tiny targets of the binary loss go the way of NumPy alone."""
    inf = np.inf
    for z, t in (([inf, 1, -inf], [1, 0, 0]), ([1, inf, 2], [0, 0, 1]), ([3, 3, 3], [1e-40, 0, 1])):
        arrays = np.array(z, np.float32), np.array(t, np.float32)
        with compiled.forced(compiled.NUMPY):
            value, gradient = BCE.value_and_grad(*arrays)
        with compiled.forced(level):
            again, slopes = BCE.value_and_grad(*arrays)
        assert value == again
        np.testing.assert_array_equal(gradient, slopes)
    assert all(calls)
    assert calls


@pytest.mark.parametrize("level", LEVELS)
def test_layouts_and_dtypes_give_the_same_bits(level: str) -> None:
    """The order of memory, the class axis and the dtype of labels and targets change no bit."""
    rng = np.random.default_rng(2)
    z = rng.normal(scale=4, size=(300, 5, 40)).astype(np.float32)
    y = rng.integers(0, 40, (300, 5))
    spec = CE.replace(reduction="none", axis=-1)
    moved = CE.replace(reduction="none", axis=1)
    unaligned = np.frombuffer(b"x" + z.tobytes(), np.uint8)[1:].view(np.float32).reshape(z.shape)
    with compiled.forced(level):
        value, gradient = spec.value_and_grad(z, y)
        for dtype in ("int8", "uint8", "int16", "uint16", ">i4", "uint32", "uint64"):
            again, slopes = spec.value_and_grad(z, y.astype(dtype))
            assert (again == value).all()
            assert (slopes == gradient).all()
        for other in (np.asfortranarray(z), z.astype(">f4"), unaligned, z[::-1][::-1]):
            again, slopes = spec.value_and_grad(other, y)
            assert (again == value).all()
            assert (slopes == gradient).all()
        last = np.ascontiguousarray(z.transpose(0, 2, 1))
        again, slopes = moved.value_and_grad(last, y)
        assert (again == value).all()
        assert (slopes.transpose(0, 2, 1) == gradient).all()
        hard = z > 0
        wanted = BCE.value_and_grad(z, hard.astype(np.float32))
        for targets in (hard, hard.astype(np.int8), hard.astype(np.float16)):
            found = BCE.value_and_grad(z, targets)
            assert (found[1] == wanted[1]).all()
            np.testing.assert_allclose(found[0], wanted[0], rtol=2 * EPSILON)


@pytest.mark.parametrize("level", LEVELS)
def test_weights_masks_and_ignored_labels(level: str, calls: list[int]) -> None:
    """Large calls with companions agree with NumPy alone, whichever array is cut into blocks."""
    rng = np.random.default_rng(8)
    z = rng.normal(scale=4, size=(3, 6000, 12)).astype(np.float32)
    y = rng.integers(0, 12, (3, 6000))
    soft = rng.random(z.shape).astype(np.float32)
    weight = rng.random((3, 6000)) * (rng.random((3, 6000)) < 0.7)
    classes = tuple(rng.random(12) * (np.arange(12) != 3))
    ce = CE.replace(axis=-1)
    for spec, targets, more in (
        (ce.replace(class_weights=classes), y, {}),
        (ce.replace(class_weights=classes, divisor="present"), y, {"sample_weight": weight}),
        (ce.replace(ignore_index=[1, 4]), y, {"mask": weight > 0.2, "sample_weight": weight}),
        (ce.replace(divisor="nonzero"), y, {"sample_weight": weight[:, 0]}),
        (ce.replace(reduction="none"), y, {"upstream": weight, "mask": weight > 0.2}),
        (BCE.replace(pos_weight=2), soft, {"mask": soft > 0.3}),
        (ul.HuberLoss(), soft, {"sample_weight": weight}),
        (ul.MeanSquaredError(reduction="sum"), soft, {"sample_weight": weight, "upstream": 3}),
    ):
        assert isinstance(spec, ul.CrossEntropyLoss | ul.BinaryCrossEntropyLoss | ul.HuberLoss |
                          ul.MeanSquaredError)  # fmt: skip
        with compiled.forced(compiled.NUMPY):
            value, gradient = spec.value_and_grad(z, targets, **more)
        with compiled.forced(level):
            again, slopes = spec.value_and_grad(z, targets, **more)
            companions = {name: x for name, x in more.items() if name != "upstream"}
            assert np.array_equal(spec(z, targets, **companions), again)
        np.testing.assert_allclose(again, value, rtol=10 * EPSILON, atol=TINY)
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(slopes, gradient, rtol=4e-6, atol=4 * EPSILON * largest)
        assert ((gradient == 0) <= (slopes == 0)).all()
    assert not any(calls)
    assert len(calls) > 20


@pytest.mark.framework("torch")
@pytest.mark.parametrize("level", LEVELS)
def test_flush_to_zero_changes_no_bit(level: str) -> None:
    """A host that replaces subnormal numbers by 0 gets them all the same."""
    import torch

    z = np.array([[0.0, -95.0, -100.0]], np.float32)
    with compiled.forced(level):
        before = CE.value_and_grad(z, np.array([0]))
        assert torch.set_flush_denormal(True)
        try:
            after = CE.value_and_grad(z, np.array([0]))
        finally:
            torch.set_flush_denormal(False)
    bits = before[1].view(np.int32)[0, 1:]
    assert ((bits > 0) & (bits < 1 << 23)).all()
    for x, again in zip(before, after, strict=True):
        assert x.tobytes() == again.tobytes()
