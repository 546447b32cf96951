"""The cases of the Huber loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unifiedloss.conformance.case import (
    Array,
    BadCall,
    Case,
    Fusible,
    LossCases,
    proving,
    refused,
    rng_of,
)
from unifiedloss.conformance.data import INF, NAN, f32
from unifiedloss.conformance.hard import PRECISION, hard_case
from unifiedloss.conformance.product import REAL, Row, fields_of, product, real_case
from unifiedloss.losses.huber.spec import HuberLoss

threshold_case = proving("delta", "gradient-huber")
infinite_case = proving("infinite-errors", "gradient-huber")
half_case = proving("half-dtypes")
wide_case = proving("float64-targets")
averaged_case = proving("average-last-axis")
element_case = proving("element-weights")
poisoned_case = proving("average-last-axis", "nan-targets-and-weights")
integer_case = proving("bad-integer-target", "target-dtypes")


def _huber(**fields: Any) -> HuberLoss:
    return HuberLoss(**{"reduction": "none"} | fields)


def edge_cases() -> Iterator[Case]:
    """Errors at the threshold and beside it, infinite errors, and extreme thresholds."""
    one, above = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    errors = f32(0, 0.5, one, above, -1, -above, 3, -3)
    yield threshold_case("huber at its threshold", _huber(), errors, 0 * errors)
    yield threshold_case("huber, threshold 0.1", _huber(delta=0.1), errors, 0 * errors)
    yield infinite_case(
        "huber, special", _huber(), f32(INF, -INF, NAN, INF, 0), f32(0, 0, 0, INF, NAN)
    )
    least = f32(0, 2.0**-126, 2.0**-125, 1, 1e38)
    yield threshold_case("huber, least threshold", _huber(delta=2.0**-126), least, 0 * least)
    yield threshold_case(
        "huber, largest threshold", _huber(delta=2.0**126), f32(1, 3e38), f32(0, 0)
    )
    yield threshold_case(
        "huber, error past the largest", _huber(delta=0.125), f32(3e38), f32(-3e38)
    )
    many = np.full(3000, 0.5, np.float32)
    yield half_case("huber, float16 mean", HuberLoss(), many, 0 * many, dtype="float16")
    wide = np.array([1 + 1e-9, 0.5 + 2.0**-40])
    yield wide_case("huber, targets in float64", _huber(delta=0.5), f32(2, 1), wide)
    grid = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    mask = np.array([[True, False], [True, True]])
    averaged = _huber(average_last_axis=True, divisor="present", reduction="mean", delta=2.5)
    yield averaged_case("huber, averaged", averaged, grid, 0 * grid, f32(1, 0), mask)
    weighted = _huber(element_weights=(1, 0, 3), scale=0.5)
    yield element_case("huber, element weights", weighted, grid, 0 * grid, f32(1, 2))
    rows, answers = f32([1, 2], [NAN, 2]), f32([NAN, 0], [0, 0])
    yield poisoned_case("huber, averaged, NaN", _huber(average_last_axis=True), rows, answers)
    big = np.array([2**53, -(2**53), 2**53 + 1, 3])
    yield integer_case("huber, integer targets at 2^53", _huber(), f32(0, 0, 0, 0), big)


def product_cases() -> Iterator[Case]:
    """Each pair of fields, dtypes and shapes."""
    yield from product("huber", REAL | {"delta": (1.0, 0.1, 4.0)}, 14, _case)


def _case(name: str, row: Row) -> Case:
    return real_case(name, row, HuberLoss(**fields_of(row, "delta")))


def hard_cases() -> Iterator[Case]:
    """Losses on a midpoint of two floats, and losses that a tiny term moves off it."""
    for dtype, bits in PRECISION.items():
        floats = np.float64 if dtype == "float64" else np.float32
        big = 2.0**bits
        # The loss is |error| - 1/2. With targets of -1.5 it is a midpoint: 2^p + 1, or 2^p + 3.
        tiny = 2.0**-52 if dtype == "float64" else 2.0**-23
        targets = np.array([-1.5, -1.5, -1.5 - tiny, -1.5 + tiny], floats)
        yield hard_case("huber, a tie", _huber(), dtype, [big, big + 2, big, big + 2], targets)
        # The loss is 3 |error| - 9/2, and no power of two.
        third = _huber(delta=3.0)
        targets = np.array([-3.5, -3.5 - tiny], floats)
        yield hard_case("huber, delta of 3", third, dtype, [big, big], targets)
    # Squares and slopes, where the loss is half the squared error.
    ulp = f32(2.0**-23)[0]
    p, t = f32(1 + ulp, 1 + 3 * ulp), f32(-1, -1)
    yield hard_case("huber, half a square", _huber(delta=4.0), "float32", p, t, upstream=p)


def bad_calls() -> Iterator[BadCall]:
    """Calls that must fail."""
    yield refused("strict-shapes")(
        "huber, column against vector", HuberLoss(), f32([1], [2]), f32(1, 2)
    )


def fusible() -> Iterator[Fusible]:
    """Predictions that equal their targets, and errors on both sides of the threshold."""
    rng = rng_of("fused/huber")
    wanted = rng.normal(scale=3, size=(16, 16)).astype(np.float32)
    right = rng.random((16, 16)) < 0.5

    def targets(predictions: Array) -> Array:
        return np.where(right, predictions.astype(np.float32), np.float32(0.5))

    yield Fusible("huber", _huber(), wanted, targets, ("huber",))


CASES = LossCases(
    bad_calls=bad_calls,
    edge_cases=edge_cases,
    product_cases=product_cases,
    hard_cases=hard_cases,
    fusible=fusible,
)
