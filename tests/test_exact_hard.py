"""Exact mode on hard-to-round cases: every tier gives the right bits, and the cases are hard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled, registry
from unifiedloss.conformance import checks
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases import all_cases, hard_cases
from unifiedloss.exact import counts
from unifiedloss.floats import FORMATS
from unifiedloss.reference import Reference

pytestmark = pytest.mark.framework("numpy")

CASES = [case.rounded("exact") for case in hard_cases()]
NUMPY = registry.adapter("numpy")


@pytest.fixture(scope="module")
def expected() -> dict[str, Reference]:
    """The oracle's results by case, computed once for all tiers."""
    return {case.name: case.expected() for case in CASES}


@pytest.fixture
def without() -> Iterator[set[str]]:
    """The set of tiers to skip, emptied after the test."""
    yield counts.skipped_tiers
    counts.skipped_tiers.clear()


@pytest.mark.parametrize("skipped", [(), ("fast",), ("fast", "balls")])
def test_bits(skipped: tuple[str, ...], without: set[str], expected: dict[str, Reference]) -> None:
    """Every tier gives the oracle's bits."""
    without.update(skipped)
    for case in CASES:
        outcome = checks.check_case(NUMPY, NUMPY.modes()["eager"], case, expected[case.name])
        assert not outcome.failures, (case.name, outcome.failures)
        assert outcome.comparisons >= 2


def test_names() -> None:
    """Case names are unique, and each loss has cases near a midpoint in each dtype."""
    unique = [case.name for case in (*CASES, *all_cases())]
    assert len(set(unique)) == len(unique)
    near = {
        (case.spec.name, case.dtype)
        for case in CASES
        if "tie" in case.name or "searched" in case.name
    }
    near |= {(case.spec.name, case.dtype) for case in CASES if "twice" in case.name}
    names = {case.spec.name for case in CASES}
    assert names >= {"cross_entropy", "binary_cross_entropy", "mean_squared_error", "huber"}
    assert near == {(name, dtype) for name in names for dtype in FORMATS}


def _undecided(case: Case) -> dict[str, int]:
    """Count what each tier of a call leaves undecided."""
    predictions: Any = case.predictions
    if case.dtype == "bfloat16":
        predictions = predictions.astype(pytest.importorskip("ml_dtypes").bfloat16)
    counts.undecided.clear()
    case.spec.value_and_grad(
        predictions, case.targets, sample_weight=case.sample_weight, upstream=case.upstream
    )
    return dict(counts.undecided)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name.startswith("hard/searched")],
    ids=lambda case: case.name,
)
def test_searched_cases_need_the_second_tier(case: Case) -> None:
    """Each row has a result that float64 leaves undecided in NumPy, and none needs the oracle.

    The compiled loops have closer bounds for some, and decide rational ties.
    """
    with compiled.forced(compiled.NUMPY):
        left = _undecided(case)
    assert left.get("rows", 0) + left.get("elements", 0) >= len(case.predictions)
    assert "oracle" not in left


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.name.startswith(("hard/a tie broken", "hard/a product next"))
        or (case.name.startswith("hard/a logarithm next") and case.dtype == "float64")
    ],
    ids=lambda case: case.name,
)
def test_derived_cases_need_the_third_tier(case: Case) -> None:
    """Each row has a result that pairs of float64 leave to the oracle."""
    assert _undecided(case).get("oracle", 0) >= len(case.predictions)


def test_rational_ties_need_no_oracle() -> None:
    """Rational ties are decided without the slow oracle.

    A model initialized to zero gives a whole batch of equal logits, which are such ties.
    """
    rational = (
        "hard/equal logits, uniform",
        "hard/equal logits, two",
        "hard/p is",
        "hard/slope of -log",
    )
    for case in CASES:
        if case.name.startswith(rational):
            assert "oracle" not in _undecided(case), case.name


def test_means_whose_sum_overflows() -> None:
    """The mean of finite terms is finite, because the terms are added exactly."""
    spec = ul.MeanSquaredError(rounding="exact")
    for dtype, p in ((np.float64, 1.3e154), (np.float32, 1.8e19)):
        pair = np.array([p, p], dtype)
        assert spec(pair, 0 * pair) == pair[0] * pair[0]


def test_subnormal_numbers_in_half_types() -> None:
    """Subnormal results of half types have fewer bits and are rounded once."""
    spec = ul.MeanSquaredError(reduction="none", rounding="exact")
    tie = np.array([2.5, 3.5, 2.5 + 2.0**-30, 0.5, 0.5 + 2.0**-30]) * 2.0**-24
    losses = spec(np.ones(5, np.float16), np.zeros(5, np.float32), sample_weight=tie)
    np.testing.assert_array_equal(losses, np.float16(np.array([2, 4, 3, 0, 1]) * 2.0**-24))
