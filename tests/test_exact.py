"""Exact mode's kernel: its tiers, its arithmetic, its assumptions on NumPy, and its promises."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unifiedloss as ul
from unifiedloss import compiled, reference, registry
from unifiedloss.adapter import Mode
from unifiedloss.conformance import checks
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases import all_cases
from unifiedloss.errors import UnsupportedError
from unifiedloss.exact import balls, by_oracle, counts, fast, kernel, rounding, sums
from unifiedloss.exact.balls import Ball
from unifiedloss.floats import FORMATS
from unifiedloss.losses.cross_entropy import exact as cross_entropy
from unifiedloss.oracle.rounding import nearest

pytestmark = pytest.mark.framework("numpy")

CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
BCE = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")
MSE = ul.MeanSquaredError(rounding="exact")
HUBER = ul.HuberLoss(delta=0.5, rounding="exact")
DIGITS = Context(prec=80)
U = 2.0**-53

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
moderate = st.floats(-1e100, 1e100).filter(lambda x: x == 0 or abs(x) > 1e-100)


@pytest.fixture(autouse=True)
def _numpy_alone() -> Iterator[None]:
    """Without the compiled loops, because this file tests NumPy's tiers."""
    with compiled.forced(compiled.NUMPY):
        yield


@pytest.fixture
def without() -> Iterator[set[str]]:
    """The set of tiers to skip, emptied after the test."""
    yield counts.skipped_tiers
    counts.skipped_tiers.clear()


# -------------------------------------------------------------------------------------------- tiers


@pytest.mark.parametrize(
    ("skipped", "step"),
    [((), 1), (("fast",), 1), (("fast", "balls"), 1), (("fast", "balls"), 3)],
    ids=["none", "fast", "both", "sample"],
)
@pytest.mark.slow(
    "tests/test_conformance.py skips no tier; a sample of both", only=["none", "both"]
)
def test_every_case_through_every_tier(
    skipped: tuple[str, ...], step: int, without: set[str]
) -> None:
    """Every tier gives the oracle's bits; the last run sends every element to the oracle."""
    without.update(skipped)
    numpy = registry.adapter("numpy")
    mode = numpy.modes()["eager"]
    compared = 0
    for case in all_cases()[::step]:
        exact = case.rounded("exact")
        outcome = checks.check_case(numpy, mode, exact, exact.expected())
        assert not outcome.failures, (case.name, outcome.failures)
        compared += outcome.comparisons
    assert compared > 1000 / step


def test_bad_values_that_cannot_be_raised() -> None:
    """Where values cannot be read, as in compiled modes, bad ones give the oracle's NaN."""

    class Unread(type(registry.adapter("numpy"))):  # type: ignore[misc]
        def checked(self, *_: Any) -> bool:
            return False

    mode = Mode(lambda function, *tensors: function(*tensors), raises=False)
    bad = 0
    for case in all_cases():
        exact = case.rounded("exact")
        expected = exact.expected()
        outcome = checks.check_case(Unread(), mode, exact, expected)
        assert not outcome.failures, (case.name, outcome.failures)
        bad += bool(expected.bad_positions)
    assert bad > 30


KNOWN = [
    ul.NegativeLogLikelihoodLoss(class_weights=[0.5, 0.0, 3.1]),
    ul.NegativeLogLikelihoodLoss(divisor="label_weights", reduction="none"),
    ul.CrossEntropyLoss(from_logits=True, scale=0.3, class_weights=[0.5, 0.0, 3.1]),
    ul.CrossEntropyLoss(epsilon="keras", scale=3, reduction="none"),
    ul.CrossEntropyLoss(epsilon="sklearn", label_smoothing=0.1, reduction="sum"),
    ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=[0.3, 2.5], axis=0, scale=1e-3),
    ul.BinaryCrossEntropyLoss(epsilon="keras", element_weights=[0.1, 0.0, 2.5], reduction="none"),
    ul.BinaryCrossEntropyLoss(epsilon="sklearn", pos_weight=[0.3, 0, 2.5], axis=-1),
    ul.CrossEntropyLoss(epsilon="keras", renormalize="before_clip", class_weights=[0.5, 0.0, 3.1]),
    ul.CrossEntropyLoss(
        epsilon=0.25, renormalize="before_clip", label_smoothing=0.1, reduction="none"
    ),
    ul.CrossEntropyLoss(epsilon="keras", renormalize="after_clip", scale=0.3),
    ul.CrossEntropyLoss(
        epsilon=1e-3, renormalize="after_clip", label_smoothing=0.1, reduction="none"
    ),
    ul.CrossEntropyLoss(class_weights=[0.5, 0.0, 3.1], class_weighting="position", epsilon="keras"),
    ul.CrossEntropyLoss(
        from_logits=True,
        class_weights=[0.5, 0.0, 3.1],
        class_weighting="position",
        label_smoothing=0.1,
    ),
    ul.BinaryCrossEntropyLoss(epsilon="torch", element_weights=[0.1, 0.0, 2.5]),
    ul.BinaryCrossEntropyLoss(epsilon="torch", scale=0.3, reduction="none"),
    ul.BinaryCrossEntropyLoss(epsilon=1e-7, epsilon_added=True, label_smoothing=0.1),
    ul.BinaryCrossEntropyLoss(
        epsilon=0.4, epsilon_added=True, pos_weight=[0.3, 0, 2.5], axis=-1, reduction="none"
    ),
    ul.BinaryCrossEntropyLoss(epsilon="keras", average_last_axis=True, divisor="nonzero"),
    ul.BinaryCrossEntropyLoss(
        from_logits=True, average_last_axis=True, pos_weight=[0.3, 2.5], axis=0, reduction="none"
    ),
    ul.MeanSquaredError(average_last_axis=True, scale=0.3),
    ul.MeanSquaredError(average_last_axis=True, reduction="none"),
    ul.MeanSquaredError(element_weights=[[[0.7]], [[1e-50]]], scale=0.5),
    ul.MeanSquaredError(element_weights=[[[0.7]], [[0.3]]], divisor="nonzero", reduction="sum"),
]


@pytest.mark.parametrize("spec", KNOWN, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rules_of_other_libraries_are_the_oracles(spec: Any, dtype: str, without: set[str]) -> None:
    """The kernel gives the oracle's bits for these rules, special values included.

    Skip the calls whose rules the kernel leaves to the oracle (`plan.oracle_only`).
    """
    rng = np.random.default_rng(5)
    adapter = registry.adapter("numpy")
    special = [0.0, 1.0, -0.0, 1e-7, np.nan, np.inf, -np.inf, 1.5, -0.5, 5e-8, 0.99999994, 0.25]
    x = np.concatenate([rng.random(30), np.array(special)]).reshape(2, -1, 3).astype(dtype)
    if spec.name in ("cross_entropy", "negative_log_likelihood"):
        x = x.reshape(-1, 3)
        targets = [
            rng.integers(-1, 3, len(x)),
            np.where(rng.random(x.shape) < 0.5, 0, rng.random(x.shape)).astype(dtype),
        ]
    else:
        targets = [rng.random(x.shape).astype(dtype), rng.random(x.shape) < 0.5]
    for t in targets:
        spec = spec.replace(on_empty="error", rounding="exact")
        by_row = x.ndim == 2 or getattr(spec, "average_last_axis", False)
        shape = x.shape[:-1] if by_row else x.shape
        upstream = rng.normal(size=shape) if spec.reduction == "none" else -0.7
        for weight in (None, rng.random(len(x)).astype(dtype)):
            plan = adapter.plan(spec, x, t, weight, None)
            if plan.oracle_only:
                continue
            oracle = kernel.evaluate(
                replace(plan, oracle_only=True), x, t, weight, None, upstream, gradient=True
            )
            for skipped in ((), ("fast", "balls")):
                without.update(skipped)
                found = kernel.evaluate(plan, x, t, weight, None, upstream, gradient=True)
                without.clear()
                for a, b in zip(found, oracle, strict=True):
                    assert a.dtype == b.dtype
                    np.testing.assert_array_equal(a, b)
                    assert not (np.signbit(a) & (a == 0)).any()


def test_each_tier_is_needed_and_taken(without: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The float64 tier leaves few elements; the tiers behind it give the same bits."""
    rng = np.random.default_rng(7)
    z = rng.normal(scale=4, size=(64, 3000)).astype(np.float32)
    y = rng.integers(0, 3000, 64)
    loss, gradient = CE.value_and_grad(z, y)
    # Claim an exp with half its digits, so that hundreds of elements stay undecided.
    # They need the sum of their row in two parts.
    monkeypatch.setattr(cross_entropy, "EXP", 2.0**-34)
    seen = []
    by_balls = cross_entropy.round_elements
    monkeypatch.setattr(
        cross_entropy,
        "round_elements",
        lambda call, i, *rest: seen.append(i) or by_balls(call, i, *rest),
    )
    again, doubtful = CE.value_and_grad(z[:16], y[:16], upstream=16 / 64)
    assert len(seen) > 8
    np.testing.assert_array_equal(gradient[:16], doubtful)
    monkeypatch.undo()
    without.add("fast")
    slow, gradient_of_balls = CE.value_and_grad(z[:4], y[:4], upstream=4 / 64)
    np.testing.assert_array_equal(gradient[:4], gradient_of_balls)
    without.clear()
    assert slow == CE(z[:4], y[:4])
    assert again == CE(z[:16], y[:16])
    assert loss == CE(z, y)


# --------------------------------------------------------------------------------------- arithmetic


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_two_sum(a: float, b: float) -> None:
    """The two parts add up to a + b exactly."""
    high, low = balls.two_sum(np.float64(a), np.float64(b))
    assert Fraction(a) + Fraction(b) == Fraction(float(high)) + Fraction(float(low))


@given(moderate, moderate)
def test_two_prod(a: float, b: float) -> None:
    """The two parts add up to a b exactly."""
    high, low = balls.two_prod(np.float64(a), np.float64(b))
    assert Fraction(a) * Fraction(b) == Fraction(float(high)) + Fraction(float(low))


@settings(max_examples=300)
@given(
    st.one_of(
        finite, st.floats(width=32, allow_nan=False, allow_infinity=False), st.floats(-70000, 70000)
    ),
    st.sampled_from(list(FORMATS)),
)
def test_rounding_once(x: float, dtype: str) -> None:
    """Rounding to every format, with subnormals and overflow, agrees with the oracle's."""
    rounded = float(rounding.to_format(np.array([x]), dtype)[0])
    assert rounded == nearest(Fraction(x), FORMATS[dtype])


@pytest.mark.parametrize(
    ("x", "dtype", "right"),
    [
        (1 + 2.0**-11 + 2.0**-30, "float16", 1.0009765625),
        (1 + 2.0**-8 + 2.0**-40, "bfloat16", 1.0078125),
        (65519.999999, "float16", 65504.0),
        (65520.0, "float16", math.inf),
        (2.0**-150, "float32", 0.0),
        (2.0**-150 * (1 + 2.0**-30), "float32", 2.0**-149),
        (3.0**-1 * 2.0**-133, "bfloat16", 0.0),
    ],
)
def test_where_casts_round_twice(x: float, dtype: str, right: float) -> None:
    """Numbers that a cast through float32 gets wrong are right here."""
    assert rounding.to_format(np.array([x]), dtype)[0] == right


@settings(max_examples=300)
@given(moderate, st.floats(-1, 1), st.floats(0, 2.0**-40), st.sampled_from(list(FORMATS)))
def test_decided_is_right(high: float, share: float, width: float, dtype: str) -> None:
    """A decided rounding is right for every number of the interval: try middle and both ends."""
    total, low = balls.two_sum(np.float64(high), np.float64(share * abs(high) * U))
    radius = abs(high) * width
    rounded, undecided = rounding.decide(
        np.array([total]), np.array([low]), np.array([radius]), dtype
    )
    middle = Fraction(float(total)) + Fraction(float(low))
    if not undecided[0]:
        for end in (-1, 0, 1):
            assert nearest(middle + end * Fraction(radius), FORMATS[dtype]) == rounded[0]


def test_exact_ties_go_to_even() -> None:
    """A radius of 0 decides a tie; any positive radius leaves it undecided."""
    tie = np.array([1 + 2.0**-24])
    assert rounding.decide(tie, np.zeros(1), np.zeros(1), "float32") == (1.0, False)
    assert rounding.decide(tie, np.array([2.0**-80]), np.zeros(1), "float32")[0] == 1 + 2.0**-23
    assert rounding.decide(tie, np.zeros(1), np.array([2.0**-200]), "float32")[1]


def _largest_share(ball: Ball, truths: list[Decimal]) -> float:
    """Assert that each ball holds its number; return the largest error as a share of its radius."""
    high, low, radius = (np.broadcast_to(x, len(truths)) for x in ball)
    largest = 0.0
    for h, w, r, truth in zip(high, low, radius, truths, strict=True):
        off = abs(DIGITS.subtract(DIGITS.add(Decimal(float(h)), Decimal(float(w))), truth))
        assert off <= Decimal(float(r))
        largest = max(largest, float(off / Decimal(float(r))) if r else 0.0)
    return largest


def test_functions_of_balls() -> None:
    """exp, log1p and -log use less than a tenth of their bounds."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            -rng.random(400) * 100,
            -(10.0 ** rng.uniform(-30, 2.8, 400)),
            np.arange(-60, 0) * math.log(2) / 128,
        ]
    )
    truths = [DIGITS.exp(Decimal(float(v))) for v in x]
    assert _largest_share(Ball(x).exp(), truths) < 0.1
    high, low = balls.exp_in_two(x, np.zeros(len(x)))
    assert _largest_share(Ball(high, low, high * 2.0**-64), truths) < 1
    x = np.concatenate(
        [rng.random(300) * 50, 10.0 ** rng.uniform(-25, 4, 600), rng.random(200) * 2.0**-5]
    )
    truths = [DIGITS.ln(DIGITS.add(Decimal(1), Decimal(float(v)))) for v in x]
    assert _largest_share(Ball(x).log1p(), truths) < 0.1
    x = np.concatenate(
        [rng.random(300), 10.0 ** rng.uniform(-300, 0, 600), 1 - 10.0 ** rng.uniform(-15, 0, 300)]
    )
    truths = [DIGITS.minus(DIGITS.ln(Decimal(float(v)))) for v in x]
    assert _largest_share(Ball(x).negative_log(Ball(*balls.two_sum(1.0, -x))), truths) < 0.1


@given(st.lists(st.tuples(moderate, st.floats(-1, 1)), min_size=2, max_size=2))
def test_operations_of_balls(pairs: list[tuple[float, float]]) -> None:
    """Sums, products and quotients lie within their bounds, and a radius of 0 means exact."""
    a, b = (
        Ball(*balls.two_sum(np.float64(x), np.float64(x * share * U / 2))) for x, share in pairs
    )
    x, y = (Fraction(float(ball.high)) + Fraction(float(ball.low)) for ball in (a, b))
    results = [(a + b, x + y), (a - b, x - y), (a * b, x * y)]
    if y:
        results.append((a / b, x / y))
    for ball, truth in results:
        if np.isfinite(ball.radius):
            middle = Fraction(float(ball.high)) + Fraction(float(ball.low))
            assert abs(middle - truth) <= Fraction(float(ball.radius))


# ----------------------------------------------------------------------------- assumptions on NumPy


def _worst(values: Any, truths: list[Decimal]) -> float:
    """The largest relative error in units of u."""
    errors = [
        abs(DIGITS.subtract(Decimal(x), y) / y)
        for x, y in zip(values.tolist(), truths, strict=True)
    ]
    return float(max(errors)) / U


def _exponential_of(module: str) -> Any:
    """The float64 exponential of the first tier from a module, as an out-of-place function."""
    if module == "numpy":
        return np.exp
    from unifiedloss.adapters.torch.operators import _exp

    def exp(x: Any) -> Any:
        out = np.array(x)
        _exp(out, out)
        return out

    return exp


@pytest.mark.parametrize(
    "module", ["numpy", pytest.param("torch", marks=pytest.mark.framework("torch"))]
)
def test_exp_errs_as_little_as_assumed(module: str) -> None:
    """The error of exp is at most 2 u.

    Try random arguments, the ends of the range, and the neighbours of multiples of ln 2 / 64, where
    the argument reduction changes.
    """
    exp = _exponential_of(module)
    rng = np.random.default_rng(1)
    borders = np.outer(
        np.arange(-1020, 430, 6) * (math.log(2) / 2), [1 - 2.0**-52, 1, 1 + 2.0**-50]
    ).ravel()
    finer = np.arange(-200, 200) * (math.log(2) / 64)
    ends = np.concatenate(
        [-708.39 + rng.random(100), 300 + rng.random(100), -(10.0 ** rng.uniform(-300, -15, 100))]
    )
    x = np.concatenate(
        [
            rng.uniform(-708, 300, 1500),
            rng.normal(size=500),
            10.0 ** rng.uniform(-20, 0, 300),
            borders,
            finer,
            ends,
        ]
    )
    # Try many lengths and a stride, because vector instructions, their remainder loop and strided
    # arrays run different code.
    truths = [DIGITS.exp(Decimal(v)) for v in x.tolist()]
    for n in (1, 2, 3, 5, 7, 13):
        for start in range(0, 39, n):
            part = slice(start, start + n)
            assert _worst(exp(x[part]), truths[part]) <= 2
    assert _worst(exp(x), truths) <= 2
    assert _worst(exp(np.repeat(x, 2)[::2][:400]), truths[:400]) <= 2


def test_numpy_log1p_errs_as_little_as_assumed() -> None:
    """The error of log1p is at most 4 u, over the range of the quotients that reach it.

    Try random arguments, small ones, and those where 1 + x is next to a power of sqrt(2).
    """
    rng = np.random.default_rng(1)
    powers = 2.0 ** (np.arange(-60, 120) / 2) - 1
    x = np.concatenate(
        [10.0 ** rng.uniform(-300, 260, 1000), 10.0 ** rng.uniform(-20, 3, 1500), rng.random(800)]
        + [np.abs(powers) * (1 + e) for e in (-(2.0**-50), 0, 2.0**-40)]
    )
    x = x[x > 0]
    long = Context(prec=360)
    truths = [
        long.ln(long.add(Decimal(1), Decimal(v))) if v > 1e-40 else Decimal(v) for v in x.tolist()
    ]
    assert _worst(np.log1p(x), truths) <= 4


SIZES = [7, 8, 9, 25, 127, 128, 129, 136, 255, 257, 1000, 1025, 4096, 4097, 4103, 32000, 50257]


def _additions(add: Any, size: int, i: int) -> int:
    """A lower bound on the number of additions that term i passes through.

    Sum ones with 2^60 at i and -2^60 at j. The ones that are added between the two are lost, so the
    number of different sums over all j bounds the number of additions.
    """
    distances = {
        *range(1, 9),
        *range(8, 136, 8),
        *(2**k + e for k in range(7, 17) for e in (-8, 0, 8)),
    }
    others = sorted({j for d in distances for j in (i - d, i + d) if 0 <= j < size})
    x = np.ones((len(others), size))
    x[:, i] = 2.0**60
    x[np.arange(len(others)), others] = -(2.0**60)
    return len(set(add(x).tolist()))


@pytest.mark.parametrize("size", SIZES)
def test_numpy_adds_in_a_low_tree(size: int) -> None:
    """The height of NumPy's summation tree along the last axis is as low as assumed.

    Sequential addition, which NumPy uses along other axes, fails this check.
    """
    places = {0, 1, 8, size // 2, 3 * size // 4, size - 1} & set(range(size))
    for i in places:
        assert _additions(lambda x: x.sum(1), size, i) <= fast.height(size)
    if size >= 1000:
        sequential = [_additions(lambda x: np.add.accumulate(x, 1)[:, -1], size, i) for i in places]
        assert max(sequential) > fast.height(size)
    before = np.setbufsize(512)  # the user's buffer size must not change these sums
    try:
        assert _additions(lambda x: x.sum(1), size, size - 1) <= fast.height(size)
    finally:
        np.setbufsize(before)


@pytest.mark.parametrize("size", SIZES)
def test_numpy_adds_within_the_bound(size: int) -> None:
    """The error of a sum is within the bound for adversarial vectors.

    One term is 1 and the others are just too small to change it, so each addition to it errs by u.
    """
    places = [0, 1, 7, size // 2, size // 2 + 1, size - 1]
    for small in (U * (1 - 2.0**-10), 3 * U * (1 - 2.0**-10), 2.0**-20 + U):
        x = np.full((len(places), size), small)
        x[np.arange(len(places)), np.minimum(places, size - 1)] = 1.0
        for row, total in zip(x.tolist(), x.sum(1).tolist(), strict=True):
            exact = math.fsum(row)
            assert abs(total - exact) <= (fast.height(size) + 1) * U * exact


def test_heights_are_those_of_numpys_tree() -> None:
    """The assumed heights bound those of NumPy's pairwise summation for every length below 2^16.

    NumPy's source halves down to blocks of at most 128, at multiples of 8, and adds up each block
    in eight running sums.
    """
    heights = [0]
    for n in range(1, 1 << 16):
        half = n // 2 - n // 2 % 8
        if n < 8:
            height = n
        elif n <= 128:
            height = n // 8 + 2 + n % 8  # eight running sums, added in three steps; the remainder
        else:
            height = 1 + max(heights[half], heights[n - half])
        heights.append(height)
        assert heights[n] <= fast.height(n)
        assert heights[n] <= sums._HEIGHT


# --------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize(
    "numbers",
    [
        [1.0, 2.0**-24, 2.0**-80],
        [1.7e308, 1.7e308],
        [1.7e308, 1.7e308, -1.7e308],
        [2.0**-1074, 1.0, -1.0],
        [0.1] * 10,
    ],
)
def test_sums(numbers: list[float]) -> None:
    """Sums are exact, also where math.fsum would round or overflow on the way."""
    exact = sum(map(Fraction, numbers), Fraction(0))
    total = sums.Sum(np.array(numbers))
    assert total.fraction() == exact
    for n in (1, 2, 3):
        for dtype in ("float32", "float64"):
            mean = sums.quotient(total, Ball(np.float64(n)), lambda n=n: Fraction(n), dtype)
            assert mean == nearest(exact / n, FORMATS[dtype])


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=30))
def test_means(terms: list[float]) -> None:
    """The mean of float32 terms is the rounding of the rational mean, ties included."""
    p = np.array(terms, np.float32)
    with np.errstate(over="ignore"):
        exact = sum((Fraction(float(np.float32(float(x) ** 2))) for x in p), Fraction(0)) / len(p)
    assert MSE(p, np.zeros_like(p)) == np.float32(nearest(exact, FORMATS["float32"]))


# ---------------------------------------------------------------------------------- special results


def _row(loss: Any, z: Any, t: Any, dtype: Any = np.float32) -> tuple[float, list[float]]:
    value, gradient = loss.replace(reduction="sum").value_and_grad(np.array(z, dtype), np.array(t))
    return float(value), gradient.astype(np.float64).ravel().tolist()


def test_results_that_are_subnormal_or_tied() -> None:
    """The tiny part of a result decides its rounding, down to the smallest float32."""
    assert _row(CE, [[100, 0]], [0])[0] == float(np.float32(3.783505853677006e-44))
    # The gap 100000.00390625 is a tie between two float32, which a loss of e^-100000 more breaks.
    above = np.nextafter(np.float32(100000), np.float32(np.inf))
    assert _row(CE, [[100000, -0.00390625]], [1])[0] == float(above)
    assert _row(BCE, [60000.00390625 - 0.00390625], [1.0])[0] == 0.0
    assert _row(CE, [[5]], [0]) == (0.0, [0.0])


def test_equal_logits_are_rational() -> None:
    """(K - 1) / K is an exact tie in a half type, in every row of a model initialized to zero."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    z = np.zeros((3, 512), ml_dtypes.bfloat16)
    _, gradient = CE.replace(reduction="sum").value_and_grad(z, np.array([0, 1, 2]))
    # 511/512 lies half way between 255/256 and 1; the last bit of 1 is even.
    assert float(gradient[0, 0]) == -1.0
    assert float(gradient[0, 1]) == 2.0**-9
    _, gradient = CE.value_and_grad(np.zeros((2, 4), np.float32), np.full((2, 4), 0.25, np.float32))
    assert not gradient.any()
    assert not np.signbit(gradient).any()


def test_squared_error_at_ties() -> None:
    """Where 2 (p - t) has one bit too many for float32, the tie goes to even."""
    p, t = np.float32([1 + 2.0**-23, 1 + 3 * 2.0**-23]), np.float32([-1, -1])
    _, gradient = MSE.replace(reduction="sum").value_and_grad(p, t)
    np.testing.assert_array_equal(gradient, np.float32([4, 4 * (1 + 2.0**-22)]))


def test_probabilities_that_are_their_targets() -> None:
    """The gradient (p - t) / (p (1 - p)) is exactly 0 at p = t."""
    p = np.float32([0.3, 0.7, 0.1, 0.999])
    _, gradient = ul.BinaryCrossEntropyLoss(rounding="exact").value_and_grad(p, p.copy())
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_integer_weights_that_float64_does_not_hold() -> None:
    """The losses and the divisor read a weight of 2^53 + 1 exactly."""
    p, t, w = [1.0, 2.0, 5.0], [0.0, 0.0, 0.0], [2**53 + 1, 2**53 - 1, 3]
    exact = sum(Fraction(n) * Fraction(x) ** 2 for n, x in zip(w, p, strict=True))
    spec = ul.MeanSquaredError(rounding="exact", divisor="weights")
    mean, gradient = spec.value_and_grad(np.array(p), np.array(t), sample_weight=np.array(w))
    terms = sum(
        Fraction(nearest(Fraction(n) * Fraction(x) ** 2, FORMATS["float64"]))
        for n, x in zip(w, p, strict=True)
    )
    assert mean == nearest(terms / sum(w), FORMATS["float64"])
    assert gradient[0] == nearest(Fraction(w[0]) * 2 / sum(w), FORMATS["float64"])
    total = spec.replace(reduction="sum")
    _, gradient = total.value_and_grad(np.array([0.75]), np.array([0.0]), sample_weight=w[:1])
    assert gradient[0] == nearest(Fraction(3, 2) * w[0], FORMATS["float64"])
    assert gradient[0] != 1.5 * 2.0**53
    assert exact != terms


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("fields", [{}, {"element_weights": (1, 3)}], ids=["", "oracle alone"])
def test_upstream_gradients_of_any_dtype(reduction: Any, fields: dict[str, Any]) -> None:
    """They are factors of the gradient with all their digits, also those that float64 lacks."""
    p, t = np.float32([[1, 0.75], [3, -2]]), np.zeros((2, 2), np.float32)
    spec = MSE.replace(reduction=reduction, divisor="all", **fields)
    weight = np.float32([0.3, 1])
    for u in (1.00000006, np.float16(2.0**-24), 2**53 + 1, np.uint64(2**64 - 1), -(2**60) - 1):
        upstream = np.asarray(u)
        if reduction == "none":
            upstream = np.full(p.shape, upstream)
        _, gradient = spec.value_and_grad(p, t, sample_weight=weight, upstream=upstream)
        for i, j in np.ndindex(p.shape):
            factor = Fraction(np.asarray(u).item()) * Fraction(weight[i].item())
            factor *= (fields.get("element_weights") or (1, 1))[j]
            factor /= 4 if reduction == "mean" else 1
            exact = nearest(factor * 2 * Fraction(p[i, j].item()), FORMATS["float32"])
            assert gradient[i, j] == exact, (u, i, j)


def test_upstream_gradients_that_float64_does_not_hold() -> None:
    """A float64 gradient has the last digit of an upstream gradient of 2^53 + 1."""
    _, gradient = MSE.value_and_grad(np.array([0.75]), np.array([0.0]), upstream=2**53 + 1)
    assert gradient[0] == nearest(Fraction(3, 2) * (2**53 + 1), FORMATS["float64"])
    assert gradient[0] != 1.5 * 2.0**53


def test_overflow_of_a_half_type() -> None:
    """65519.99 rounds to the largest float16, 65520 to infinity."""
    p = np.float16([255.875, 256])
    loss = MSE.replace(reduction="none")(p, np.zeros(2, np.float16))
    np.testing.assert_array_equal(loss, np.float16([65472, np.inf]))


# --------------------------------------------------------------------------------------- invariance


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["index", "dense", "binary", "regression", "huber"]),
    st.sampled_from([0.1, 4.0, 100.0]),
)
def test_order_batch_and_memory_do_not_matter(seed: int, kind: str, spread: float) -> None:
    """Rows in another order, in parts, sliced, transposed or reversed give the same bits."""
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(2, 40)), int(rng.integers(1, 30))
    z = rng.normal(scale=spread, size=(n, k)).astype(np.float32)
    t: Any = rng.random((n, k)).astype(np.float32)
    loss: Any = {"index": CE, "dense": CE, "binary": BCE, "regression": MSE, "huber": HUBER}[kind]
    if kind == "index":
        t = rng.integers(0, k, n)
    order = rng.permutation(n)
    value, gradient = loss.value_and_grad(z, t)
    moved, gradient_moved = loss.value_and_grad(z[order], t[order])
    assert value.tobytes() == moved.tobytes()
    assert gradient[order].tobytes() == gradient_moved.tobytes()
    each = loss.replace(reduction="none")
    cut = int(rng.integers(1, n))
    parts = np.concatenate([each(z[:cut], t[:cut]), each(z[cut:], t[cut:])])
    assert parts.tobytes() == each(z, t).tobytes()
    wide = np.zeros((2 * n, 2 * k), np.float32)
    wide[::2, ::2] = z
    for view in (wide[::2, ::2], np.asfortranarray(z), z[::-1].copy()[::-1]):
        again, gradient_again = loss.value_and_grad(view, t)
        assert again.tobytes() == value.tobytes()
        assert gradient_again.tobytes() == gradient.tobytes()


def test_axis_does_not_matter() -> None:
    """The class axis in front or at the end gives the same bits, and the gradient its shape."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2, 5, 7)).astype(np.float32)
    y = rng.integers(0, 5, (2, 7))
    front, gradient = CE.replace(axis=1).value_and_grad(z, y)
    last, other = CE.replace(axis=-1).value_and_grad(np.moveaxis(z, 1, -1), y)
    assert front == last
    assert gradient.flags.c_contiguous
    np.testing.assert_array_equal(np.moveaxis(gradient, 1, -1), other)


def test_memory() -> None:
    """A call allocates the gradient and a few blocks, and never a float64 copy of the input."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(256, 16384)).astype(np.float32)
    y = rng.integers(0, 16384, 256)
    CE.value_and_grad(z[:8], y[:8])
    tracemalloc.start()
    CE.value_and_grad(z, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < z.nbytes + 6 * 8 * fast._BLOCK


# ------------------------------------------------------------ where float64 overflows or underflows


def _assert_right(
    spec: Any, predictions: Any, targets: Any, weight: Any = None, upstream: Any = None
) -> None:
    """Assert that value and gradient have the oracle's bits."""
    case = Case("", spec, np.array(predictions), np.array(targets), weight)
    given = None if upstream is None else np.asarray(upstream, np.float64).tolist()
    tensors: list[Any] = [
        None if x is None else reference.tensor(x.ravel().tolist(), x.shape, x.dtype.name)
        for x in (case.predictions, case.targets, weight)
    ]
    expected = reference.evaluate(spec, *tensors, terms="rounded", upstream=given)
    value, gradient = spec.value_and_grad(
        case.predictions, case.targets, sample_weight=weight, upstream=upstream
    )
    np.testing.assert_array_equal(np.asarray(value, np.float64).ravel(), np.ravel(expected.loss))
    np.testing.assert_array_equal(gradient.astype(np.float64).ravel(), expected.grad_predictions)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_upstream_gradients_that_are_not_finite(reduction: Any) -> None:
    """They make their own position NaN or infinite and no other.

    A NaN, which is everywhere after a training has diverged, never goes to the slow oracle.
    """
    z = np.float32([[1, 2, 0], [0, -3, 1], [5, 0, np.inf], [0, -np.inf, 3], [9, 9, 9]])
    y = [0, 1, 0, 1, 2]
    spec, binary = CE.replace(reduction=reduction), BCE.replace(reduction=reduction)
    for each in ([np.nan, 1, 2, 3, 0.5], [np.nan] * 5, [np.inf, -np.inf, np.nan, 1, 1]):
        upstream = np.float32(each if reduction == "none" else each[0])
        _assert_right(spec, z, y, None, upstream)
        _assert_right(binary, z[:, 0], z[:, 1] > 0, None, upstream)
    counts.undecided.clear()
    _, gradient = CE.value_and_grad(
        np.zeros((50, 50), np.float32), np.zeros(50, int), upstream=np.float32(np.nan)
    )
    assert np.isnan(gradient).all()
    assert not counts.undecided["oracle"]


@pytest.mark.parametrize("weights", [None, (3e-21, 1e-21)])
@pytest.mark.parametrize("offset", [-2048, -760, -744, -736, -712, -320, 320, 688, 700, 708, 2048])
def test_offsets_do_not_matter(offset: float, weights: Any) -> None:
    """A common offset of a row's logits changes no bit, though exp overflows or underflows."""
    z = np.float32([[10, 0], [0.5, -0.25], [0, 3], [4, 4]])
    for label in (0, 1):
        y = np.full(4, label)
        spec = CE.replace(reduction="none", class_weights=weights)
        assert [x.tobytes() for x in spec.value_and_grad(z + np.float32(offset), y)] == [
            x.tobytes() for x in spec.value_and_grad(z, y)
        ]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_weights_beyond_float32(reduction: Any) -> None:
    """The bits are right where float64 weights scale an underflow or overflow back into range.

    The underflow or overflow is that of exp or of a product of two weights.
    """
    spec = CE.replace(reduction=reduction)
    gap, rows, labels = np.float32([[0, -740], [0, -720]]), np.float32([[1, 2], [0, -3]]), [0, 1]
    for weights, sample in (
        ((1e300, 1), None),
        ((1e-200, 1e-300), [1e200, 1e100]),
        ((1e-200, 1e-160), [1e-200, 1e-210]),
        ((1e200, 1e150), [1e-200, 1e-100]),
        ((1e-200, 1e-160), [1.5e308, 1.5e308]),
    ):
        weighted = spec.replace(class_weights=weights)
        sample_weight = None if sample is None else np.array(sample)
        for z in (gap, rows):
            _assert_right(weighted, z[:, ::-1], labels, sample_weight)
            _assert_right(weighted, z, np.array([[1e-200, 1e-110], [0, 1e50]]), sample_weight)
    small = np.array([1e-305, 3e-306])
    upstream = np.float32([1e-20, 1]) if reduction == "none" else np.float32(1e-20)
    _assert_right(spec, rows, labels, small, upstream)
    _assert_right(BCE.replace(reduction=reduction), rows[:, 0], rows[:, 0] > 0, small, upstream)
    half = ul.CrossEntropyLoss(class_weights=(1e-200, 1), rounding="exact", reduction=reduction)
    _assert_right(half, [[0.25, 0.75]], [[1e-200, 0]], np.array([1e300]))


def test_infinite_loss_of_a_target_that_underflows() -> None:
    """A weighted target of 1e-200 * 1e-200 is not 0, so a logit of -inf costs infinity there."""
    spec = CE.replace(class_weights=(1e-200, 1), reduction="sum")
    value, _ = spec.value_and_grad(np.float32([[-np.inf, 0]]), np.array([[1e-200, 1]]))
    assert value == np.inf


def test_subnormal_means() -> None:
    """Divided by 2, 3 * 2^-1074 is a tie; divided by 2 + 2^-59 it is none."""
    p, w = np.array([math.sqrt(1.5) * 2.0**-537, 0]), np.array([2.0, 2.0**-59])
    for weight in (w, w[:1].repeat(2)):
        _assert_right(MSE, p, [0.0, 0.0], weight)
    mean = MSE(p, np.zeros(2), sample_weight=w)
    assert mean == 2.0**-1074


def test_no_radius_underflows() -> None:
    """A part below all resolution breaks a tie, though its bound times the upstream underflows."""
    tiny = Ball(np.float64(1.0), np.float64(0.0), np.float64(2.0**-995))
    for ball in (
        tiny * Ball(np.float64(2.0**-145)),
        tiny / Ball(np.float64(2.0**145)),
        Ball(np.float64(-689.0)).exp(),
    ):
        assert ball.radius > 0
    z = np.float32([[700, -98, -190, -95]])
    spec = CE.replace(reduction="sum", label_smoothing=1.0)
    upstream = np.float32(34 * 2.0**-149)
    _, gradient = spec.value_and_grad(z, np.array([0]), upstream=upstream)
    # 34 (3/4 - e^-793) would be a tie without e^-793.
    assert gradient[0, 0] == np.float32(25 * 2.0**-149)
    _assert_right(spec, z, [0], None, float(upstream))


def test_bad_values() -> None:
    """They raise with the messages of native mode."""
    with pytest.raises(ul.BadValueError, match=r"targets\[0\] is 3"):
        CE(np.zeros((1, 3), np.float32), np.array([3]))
    with pytest.raises(ul.EmptyMeanError):
        CE.replace(on_empty="error")(np.zeros((0, 3), np.float32), np.zeros(0, int))


# ----------------------------------------------------------------------------- a loss without tiers


def test_a_loss_without_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle alone computes it, up to a size; above, the message names the missing file."""
    z = np.random.default_rng(3).normal(size=(40, 3))
    t = np.random.default_rng(4).normal(size=(40, 3))
    expected = MSE.value_and_grad(z, t)
    for module in (kernel, by_oracle):
        monkeypatch.setattr(module, "has_part", lambda *_: False)
    found = MSE.value_and_grad(z, t)
    assert [x.tobytes() for x in found] == [x.tobytes() for x in expected]
    monkeypatch.setattr(by_oracle, "_MOST_WITHOUT_TIERS", 100)
    with pytest.raises(UnsupportedError, match="write unifiedloss/losses/mean_sq"):
        MSE(z, t)
