"""The compiled losses of float64 predictions: their bounds, and every level gives NumPy's bits."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled
from unifiedloss.compiled import threads, wide
from unifiedloss.exact import counts, loops
from unifiedloss.exact.balls import two_sum

pytestmark = pytest.mark.framework("numpy")

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
PER_LEVEL = pytest.mark.parametrize("level", LEVELS)
CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
BCE = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")
MSE = ul.MeanSquaredError(rounding="exact")
HUBER = ul.HuberLoss(rounding="exact")
Array = Any
DIGITS = 60


# ----------------------------------------------------------------------------------------- bounds


def _arguments(rng: np.random.Generator, *, logarithm: bool) -> tuple[Array, Array]:
    """Pairs: random ones, small ones, and those at and beside the ends of the intervals of exp."""
    if logarithm:
        powers = 2.0 ** np.arange(-80, 60)
        x = np.concatenate([powers, np.nextafter(powers, 0), 10.0 ** rng.uniform(-30, 17, 300)])
        x = np.concatenate([x, np.expm1((np.arange(1, 200) + 0.5) * np.log(2) / 256), [0.0]])
        low = x * rng.uniform(-1, 1, len(x)) * 2.0**-54
    else:
        ends = (np.arange(-229000, 1000, 997) + 0.5) * (np.log(2) / 256)
        x = np.concatenate([ends, np.nextafter(ends, 0), rng.uniform(-620, 0, 300)])
        x = np.concatenate([x, -(2.0 ** -rng.uniform(0, 60, 100))])
        low = np.concatenate([x * 2.0**-54, [0.0]])
        x = np.concatenate([x, [0.0]])
    high, low = two_sum(x, low)
    return high, low


@PER_LEVEL
@pytest.mark.parametrize("logarithm", [False, True])
def test_functions_keep_their_bounds(level: str, logarithm: bool) -> None:
    """Exp errs by less than 2^-80 of it, log1p by less than 2^-79 and 2^-70 of it."""
    from unifiedloss.compiled import _loops

    x, more = _arguments(np.random.default_rng(0), logarithm=logarithm)
    high, low = x.copy(), more.copy()
    constants = loops.constants()
    addresses = [a.ctypes.data for a in (constants, high, low)]
    _loops.of_pairs(LEVELS.index(level), *addresses, len(x), logarithm)
    function = mpmath.log1p if logarithm else mpmath.exp
    with mpmath.workdps(DIGITS):
        for a, b, h, lo in zip(*(v.tolist() for v in (x, more, high, low)), strict=True):
            right = function(mpmath.mpf(a) + mpmath.mpf(b))
            off = abs(mpmath.mpf(h) + mpmath.mpf(lo) - right)
            bound = min(mpmath.mpf(2) ** -79, right * mpmath.mpf(2) ** -70)
            assert off <= (bound if logarithm else right * mpmath.mpf(2) ** -80), (a, b)
    assert high[-1] == (0 if logarithm else 1)
    assert low[-1] == 0


def _near_midpoint(slope: Any, rng: np.random.Generator) -> tuple[tuple[float, float, float], Any]:
    """A divisor in two parts that brings a slope next to a midpoint, and how near it is."""
    with mpmath.workdps(DIGITS):
        middle = mpmath.mpf(2 * int(rng.integers(2**52, 2**53)) + 1) * mpmath.mpf(2) ** -54
        off = mpmath.mpf(float(rng.choice([-1.0, 1.0]))) * mpmath.mpf(2) ** -int(
            rng.integers(74, 92)
        )
        wanted = abs(slope) / (middle * (1 + off))
        high = float(wanted)
        return (high, float(wanted - high), 2.0**-105), off


def _is_nearest(rounded: float, exact: Any) -> bool:
    """Whether no float64 number is nearer."""
    distance = abs(mpmath.mpf(rounded) - exact)
    return all(
        distance <= abs(mpmath.mpf(float(np.nextafter(rounded, side))) - exact)
        for side in (-np.inf, np.inf)
    )


def _slopes(rng: np.random.Generator) -> Iterator[tuple[str, Array, Array, int, Any]]:
    """Calls of a loop with one position: the loss, both arrays, the column, and the slope there."""
    for number in range(60):
        k = int(rng.integers(2, 20))
        z = rng.normal(scale=10 ** rng.uniform(-3, 1.5), size=(1, k))
        y = np.array([int(z.argmax()) if number % 3 else number % k])
        with mpmath.workdps(DIGITS):
            powers = [mpmath.exp(mpmath.mpf(x)) for x in z[0].tolist()]
            column = number % k
            others = mpmath.fsum(p for c, p in enumerate(powers) if c != y[0])
            shares = -others if column == y[0] else powers[column]
            yield "cross_entropy", z, y, column, shares / mpmath.fsum(powers)
        z, t = rng.normal(scale=5, size=(1, 1)), np.array([float(number % 2)])
        with mpmath.workdps(DIGITS):
            x = mpmath.mpf(z.item())
            slope = -1 / (1 + mpmath.exp(x)) if number % 2 else 1 / (1 + mpmath.exp(-x))
            yield "binary_cross_entropy", z, t, 0, slope


@PER_LEVEL
def test_slopes_beside_midpoints(level: str) -> None:
    """What the loops decide is rounded right, and they decide all that their bounds reach."""
    rng = np.random.default_rng(5)
    decided = 0
    for loss, predictions, targets, column, slope in _slopes(rng):
        divisor, off = _near_midpoint(slope, rng)
        slopes, left = np.empty(predictions.shape), np.zeros(1, bool)
        with compiled.forced(level):
            wide.run(
                loss,
                predictions,
                targets,
                loops.constants(),
                losses=np.empty(1),
                left=left,
                slopes=slopes,
                divisor=divisor,
            )
        if left[0]:
            assert abs(off) < 2.0**-76
            continue
        decided += 1
        with mpmath.workdps(DIGITS):
            assert _is_nearest(slopes[0, column].item(), slope / sum(map(mpmath.mpf, divisor[:2])))
    assert decided > 20


# ------------------------------------------------------------------------------- NumPy's own bits


def _calls() -> Iterator[tuple[ul.Loss, Array, Array, dict[str, Any]]]:
    """Calls with rows and elements that are extreme, undecided, or not there."""
    rng = np.random.default_rng(8)
    for number, (n, k) in enumerate([(7, 1), (33, 3), (20, 17), (6, 200)]):
        z = rng.normal(scale=[1, 30, 0.01, 200][number], size=(n, k))
        y = rng.integers(0, k, n).astype(["uint8", "int64", "int16", "int32"][number])
        z[1, -1] = -np.inf if y[1] != k - 1 else 3
        z[2] = 0.5
        z[3, 0] = 1e300
        weight = rng.uniform(0, 3, n)
        weight[0] = 0
        yield CE, z, y, {}
        yield CE.replace(reduction="none"), z, y, {"sample_weight": weight, "upstream": weight}
        classes = tuple(rng.uniform(0.5, 2, k).tolist())
        yield CE.replace(class_weights=classes), z, y, {"mask": weight > 1}
        yield CE.replace(reduction="sum", ignore_index=0), np.asfortranarray(z), y, {"upstream": -3}
    deep = np.array([[0, x] for x in (-610.0, -640, -745, -850, -1000, -np.inf)])
    yield CE.replace(reduction="none"), deep, np.array([0, 1, 0, 1, 0, 0]), {}
    p, t = rng.normal(scale=3, size=(2, 700))
    p[:6], t[:6] = [1e160, 1e-200, 5e-324, 2, 1e308, 0], [0, 0, 0, 2, -1e308, 0]
    # The squares are subnormal numbers, and a weight makes them normal ones.
    tiny, heavy = rng.uniform(1, 2, (2, 40)) * [[1e-158], [1e12]]
    yield MSE.replace(reduction="none"), tiny, np.zeros(40), {"sample_weight": heavy}
    hard, soft = (rng.random(700) < 0.5) * 1.0, rng.random(700)
    weight = rng.uniform(0, 3, 700)
    bce = p.copy()
    bce[:4] = [700, -650, 0, 1e-300]
    for spec, of, targets in (
        (MSE, p, t),
        (HUBER, np.concatenate([p[:6], np.round(p[6:] * 64) / 64]), t * 2.0**-3),
        (HUBER.replace(delta=0.3), p, t.clip(-9, 9).astype(np.float32)),
        (MSE, p, t.clip(-9, 9).astype(np.int16)),
        (BCE, bce, hard),
        (BCE.replace(pos_weight=3.3), bce, soft),
    ):
        yield spec, of[6:], targets[6:], {}
        yield spec.replace(reduction="none"), of, targets, {"sample_weight": weight}
        yield spec.replace(reduction="sum"), of[:100], targets[:100], {"mask": weight[:100] < 2}


def _bits(spec: ul.Loss, p: Array, t: Array, more: dict[str, Any]) -> list[bytes]:
    alone = {name: x for name, x in more.items() if name != "upstream"}
    found = (*spec.value_and_grad(p, t, **more), spec(p, t, **alone))
    return [np.asarray(x).tobytes() for x in found]


@PER_LEVEL
def test_levels_give_the_bits_of_numpy(level: str) -> None:
    """Values and gradients have the same bits with and without the loops."""
    for spec, p, t, more in _calls():
        with compiled.forced(compiled.NUMPY), np.errstate(all="ignore"):
            expected = _bits(spec, p, t, more)
        with compiled.forced(level):
            assert _bits(spec, p, t, more) == expected, (spec, p.shape, more.keys())


@PER_LEVEL
def test_little_is_left(level: str) -> None:
    """Random numbers, infinite logits, ties of slopes and of losses stay in C."""
    rng = np.random.default_rng(2)
    z = rng.normal(scale=5, size=(300, 200))
    z[rng.random(z.shape) < 0.1] = -np.inf
    z[:, 0] = 1
    p, t = rng.normal(size=(2, 50_000))
    counts.undecided.clear()
    with compiled.forced(level):
        CE.value_and_grad(z, np.zeros(300, np.int64))
        for spec in (MSE, HUBER, HUBER.replace(delta=0.3)):
            spec.value_and_grad(p, t)
        BCE.value_and_grad(8 * p, (t > 0) * 1.0)
        assert not counts.undecided


@PER_LEVEL
def test_slopes_that_are_ties(level: str) -> None:
    """Slopes of a mean that are half way between two numbers, and those beside them."""
    rng = np.random.default_rng(3)
    # p - t is an odd multiple of 125 in 61 bits, and 2 (p - t) / 1000 has 54.
    exact = [(2 * int(x) + 1) * 125 for x in rng.integers(2**52, 2**53, 1000)]
    high = np.array([float(x) for x in exact])
    low = np.array([float(int(h) - x) for h, x in zip(high.tolist(), exact, strict=True)])
    for beside in (0.0, 2.0**-45, -(2.0**-45)):
        counts.undecided.clear()
        with compiled.forced(level):
            _, slopes = MSE.value_and_grad(high, low - beside)
        assert bool(counts.undecided) == bool(beside)
        differences = [2 * (x + Fraction(beside)) for x in exact]
        assert slopes.tolist() == [float(x / 1000) for x in differences]


@PER_LEVEL
def test_threads_give_the_same_bits(level: str) -> None:
    """Rows and elements that are computed in several threads, with labels and weights of each."""
    rng = np.random.default_rng(4)
    z, y = rng.normal(size=(601, 300)), rng.integers(0, 300, 601)
    weight = rng.uniform(0, 2, 601)
    calls = [
        (CE, z, y, {}),
        (CE.replace(reduction="none"), z, y, {"sample_weight": weight, "upstream": weight}),
        (CE.replace(class_weights=tuple(rng.uniform(0.5, 2, 300).tolist())), z, y, {}),
        (MSE, z, z[::-1].copy(), {"mask": weight > 0.2}),
    ]
    with compiled.forced(level):
        for spec, p, t, more in calls:
            found = set()
            for count in (1, 3):
                with threads.forced(count):
                    found.add(tuple(_bits(spec, p, t, more)))
            assert len(found) == 1


@PER_LEVEL
def test_sums_keep_their_bound(level: str) -> None:
    """The sum of a million numbers that cancel, of no numbers, and of those that are not finite."""
    rng = np.random.default_rng(1)
    for n in (0, 1, 77, 100_000):
        x = rng.normal(size=n) * 10.0 ** rng.uniform(-20, 20, n)
        x = np.concatenate([x, -x[::-1] * (1 + 2.0**-40)])
        with compiled.forced(level):
            high, low, error = compiled.sum_in_pairs(x)
        with mpmath.workdps(80):
            right = mpmath.fsum(map(mpmath.mpf, x.tolist()))
            assert abs(mpmath.mpf(high) + mpmath.mpf(low) - right) <= error
        assert error <= float(np.abs(x).sum()) * 2.0**-75
    with compiled.forced(level):
        assert np.isnan(compiled.sum_in_pairs(np.array([1.0, np.nan]))[0])
