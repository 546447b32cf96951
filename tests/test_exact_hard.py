"""Exact mode where a rounding hangs on little: the bits are right, whichever tier decides, and the cases are as hard as they claim."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import registry
from unifiedloss.conformance import checks
from unifiedloss.conformance.cases import Case, all_cases
from unifiedloss.conformance.hard import hard_cases
from unifiedloss.exact import counts
from unifiedloss.floats import FORMATS
from unifiedloss.reference import Reference

pytestmark = pytest.mark.framework("numpy")

CASES = [case.rounded("exact") for case in hard_cases()]
NUMPY = registry.adapter("numpy")


@pytest.fixture(scope="module")
def expected() -> dict[str, Reference]:
    """What the oracle says, once for all tiers."""
    return {case.name: case.expected() for case in CASES}


@pytest.fixture
def without() -> Iterator[set[str]]:
    """Tiers to skip, for one test."""
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
    """No two share one, here and among the others, and each loss has some of each dtype that are near a midpoint."""
    names = [case.name for case in (*CASES, *all_cases())]
    assert len(set(names)) == len(names)
    near = {
        (case.spec.name, case.dtype)
        for case in CASES
        if "tie" in case.name or "searched" in case.name
    }
    near |= {(case.spec.name, case.dtype) for case in CASES if "twice" in case.name}
    assert near == {
        (name, dtype)
        for name in ("cross_entropy", "binary_cross_entropy", "mean_squared_error")
        for dtype in FORMATS
    }


def _undecided(case: Case) -> dict[str, int]:
    """What a call leaves to the tiers behind the first."""
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
    """Each row has a result that float64 leaves undecided, if it was asked at all, and none that needs the oracle."""
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
    """Each row has a result that pairs of float64 leave undecided."""
    assert _undecided(case).get("oracle", 0) >= len(case.predictions)


def test_rational_ties_need_no_oracle() -> None:
    """A batch of equal logits, as in a model that was initialized to zero, would keep it busy."""
    for case in CASES:
        if case.name.startswith(
            (
                "hard/equal logits, uniform",
                "hard/equal logits, two",
                "hard/p is",
                "hard/slope of -log",
            )
        ):
            assert "oracle" not in _undecided(case), case.name


def test_means_whose_sum_overflows() -> None:
    """The terms are added exactly, and so their mean is finite where they are."""
    spec = ul.MeanSquaredError(rounding="exact")
    for dtype, p in ((np.float64, 1.3e154), (np.float32, 1.8e19)):
        pair = np.array([p, p], dtype)
        assert spec(pair, 0 * pair) == pair[0] * pair[0]


def test_subnormal_numbers_in_half_types() -> None:
    """Below the smallest normal number there are fewer bits, and one rounding."""
    spec = ul.MeanSquaredError(reduction="none", rounding="exact")
    tie = np.array([2.5, 3.5, 2.5 + 2.0**-30, 0.5, 0.5 + 2.0**-30]) * 2.0**-24
    losses = spec(np.ones(5, np.float16), np.zeros(5, np.float32), sample_weight=tie)
    np.testing.assert_array_equal(losses, np.float16(np.array([2, 4, 3, 0, 1]) * 2.0**-24))
