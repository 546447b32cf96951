"""The compiled second tier of the cross-entropy: its bounds, and which results it decides.

The results are placed beside midpoints of two float32 numbers, because only there do bounds matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled
from unifiedloss.exact import counts, loops
from unifiedloss.exact.balls import Ball

pytestmark = pytest.mark.framework("numpy")

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
PER_LEVEL = pytest.mark.parametrize("level", LEVELS)
CE = ul.CrossEntropyLoss(from_logits=True, reduction="none", rounding="exact")
Array = Any
DIGITS = 60

SLOPE_ERROR = 2.0**-71
"""What docs/exactness.md derives for slopes, rounded up."""

LOSS_ERROR = 2.0**-65
"""The same for losses."""


class Row(NamedTuple):
    """A row of logits, and its loss and slopes to 60 digits, as `results` has them in one list."""

    logits: Array
    label: int
    results: list[Any]


def rows(count: int, seed: int) -> Iterator[Row]:
    """Rows of many sizes and spreads, with equal and infinite logits, and labels of every rank."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        k = int(rng.integers(2, 40))
        z = rng.normal(scale=10 ** rng.uniform(-6, 1.7), size=k)
        if number % 4 == 0:
            z = np.round(8 * z) / 8
        if number % 4 == 1:
            z *= 10.0 ** rng.integers(-20, 1, k)  # differences that float64 does not hold
        if number % 5 == 0:
            z[rng.integers(k)] = -np.inf
        logits = z.astype(np.float32)
        label = int(logits.argmax()) if number % 3 else int(rng.integers(k))
        if logits[label] > -np.inf:
            yield Row(logits, label, _results(logits.tolist(), label))


def _results(logits: list[float], label: int) -> list[Any]:
    with mpmath.workdps(DIGITS):
        powers = [mpmath.exp(mpmath.mpf(z)) for z in logits]
        total = mpmath.fsum(powers)
        others = mpmath.fsum(power for c, power in enumerate(powers) if c != label)
        slopes = [power / total for power in powers]
        slopes[label] = -others / total
        return [mpmath.log1p(others / powers[label]), *slopes]


def midpoint(rng: np.random.Generator) -> float:
    """A number half way between two float32 numbers."""
    return float(2 * rng.integers(2**23, 2**24) + 1) * 2.0 ** int(rng.integers(-40, 10))


def run(row: Row, columns: list[int], factors: Array, divisor: Array) -> tuple[Array, Array]:
    """The rounded results of a row, and which are undecided."""
    n = len(columns)
    own = (np.zeros(n, np.int64), np.full(n, row.label), np.array(columns))
    dtypes = ("float32", "float32")
    return compiled.second_tier(row.logits[None], own, factors, divisor, loops.constants(), dtypes)


def is_nearest(rounded: float, exact: Any) -> bool:
    """Whether no float32 number is nearer."""
    near = np.float32(rounded)
    with mpmath.workdps(DIGITS):
        distance = abs(mpmath.mpf(float(near)) - exact)
        return all(
            distance <= abs(mpmath.mpf(float(np.nextafter(near, np.float32(side)))) - exact)
            for side in (-np.inf, np.inf)
        )


@PER_LEVEL
def test_slopes_keep_their_bound(level: str) -> None:
    """A divisor in two parts brings each slope as near to a midpoint as its bound, and nearer."""
    rng = np.random.default_rng(5)
    decided = 0
    for row in rows(60, 1):
        for column, slope in enumerate(row.results[1:]):
            if abs(slope) < 1e-40:
                continue
            with mpmath.workdps(DIGITS):
                off = float(rng.choice([-1, 1])) * 2.0 ** int(rng.integers(-80, -68))
                exact = mpmath.sign(slope) * midpoint(rng) * (1 + mpmath.mpf(off))
                high = float(slope / exact)
                divisor = np.array([high, float(slope / exact - high), 2.0**-105])
                exact = slope / (mpmath.mpf(divisor[0].item()) + mpmath.mpf(divisor[1].item()))
            with compiled.forced(level):
                rounded, left = run(row, [column], np.ones((3, 1)), divisor)
            if left[0]:
                assert abs(off) < 2 * SLOPE_ERROR
                continue
            decided += 1
            assert is_nearest(rounded[0], exact), (row, column)
    assert decided > 150


def beside_midpoints(result: Any, rng: np.random.Generator) -> tuple[Array, float]:
    """Two factors that bring a number as near to a midpoint as many trials can, and how near."""
    with mpmath.workdps(DIGITS):
        high = float(result)
        given = Ball(np.float64(high), np.float64(float(result - high)))
    middle = midpoint(rng)
    one = rng.uniform(1, 2, 1 << 11)
    other = middle / high / one
    with np.errstate(all="ignore"):
        off = given * Ball(one) * Ball(other) - Ball(np.float64(middle))
    near = np.abs((off.high + off.low) / middle)
    best = int(near.argmin())
    return np.array([[one[best]], [other[best]], [1.0]]), float(near[best])


@PER_LEVEL
def test_losses_keep_their_bound(level: str) -> None:
    """Weights bring each loss about as near to a midpoint as its bound."""
    rng = np.random.default_rng(6)
    decided, nearest = 0, 1.0
    for row in rows(80, 2):
        loss = row.results[0]
        if loss < 1e-40:
            continue
        factors, near = beside_midpoints(loss, rng)
        with compiled.forced(level):
            rounded, left = run(row, [-1], factors, np.array([1.0, 0.0, 0.0]))
        if left[0]:
            assert near < 2 * LOSS_ERROR
            continue
        decided += 1
        nearest = min(nearest, near)
        a, b = factors[:2, 0].tolist()
        with mpmath.workdps(DIGITS):
            assert is_nearest(rounded[0], loss * a * b), row
    assert decided > 30
    assert nearest < 64 * LOSS_ERROR


@PER_LEVEL
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_tiny_part_decides_a_tie_under_a_weight(level: str, weight: float) -> None:
    """m - z_y is half way between two float32 numbers, and log(1 + s) rounds it up."""
    half = 2.0**24 + 1  # of two numbers apart
    logits = np.float32([2.0**24, -1.0, 2.0**24 - 30])
    row = Row(logits, 1, [])
    with compiled.forced(level):
        rounded, left = run(row, [-1], np.full((3, 1), weight), np.array([1.0, 0.0, 0.0]))
    assert not left[0]
    assert rounded[0] == (half + 1) * weight**3


@PER_LEVEL
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_left(level: str, odd: float) -> None:
    """Neither the loss nor a slope of such a row is decided, wherever the number stands."""
    for place in range(5):
        logits = np.float32([1, 2, 3, 4, 5])
        logits[place] = odd
        with compiled.forced(level):
            _, left = run(Row(logits, 0, []), [-1, 0, 1], np.ones((3, 3)), np.array([1.0, 0, 0]))
        assert left.all()
    with compiled.forced(level):
        none = Row(np.full(3, -np.inf, np.float32), 0, [])
        assert run(none, [-1, 0], np.ones((3, 2)), np.array([1.0, 0, 0]))[1].all()


@PER_LEVEL
def test_weighted_confident_rows_stay_in_c(level: str) -> None:
    """Ties of m - z_y under weights of 1, of 2, and of any size go to no tier of Python."""
    rng = np.random.default_rng(9)
    z = rng.normal(scale=30, size=(400, 50)).astype(np.float32)
    y = rng.integers(0, 50, 400)
    for weight in (np.ones(400), np.full(400, 2.0), rng.uniform(0.5, 2, 400)):
        with compiled.forced(compiled.NUMPY):
            expected = CE.value_and_grad(z, y, sample_weight=weight, upstream=weight)
        counts.undecided.clear()
        with compiled.forced(level):
            found = CE.value_and_grad(z, y, sample_weight=weight, upstream=weight)
        assert (counts.undecided["elements"] > 5) == (weight[0] in (1.0, 2.0))
        assert not counts.undecided["rows"]
        assert not counts.undecided["oracle"]
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a, b)


@PER_LEVEL
def test_whole_row_of_undecided_slopes(level: str) -> None:
    """Equal logits and a factor that makes every slope a tie: and all are right."""
    z = np.zeros((3, 1024), np.float32)
    upstream = np.full(3, float(2**24 + 1))
    with compiled.forced(level):
        _, slopes = CE.value_and_grad(z, np.zeros(3, np.int64), upstream=upstream)
    assert (slopes[:, 1:] == 2.0**14).all()
    assert (slopes[:, 0] == np.float32(-(2.0**24 + 1) * 1023 / 1024)).all()
