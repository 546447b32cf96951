"""What a plan decides from shapes and dtypes alone, worked out by hand.

The conformance suite cannot see a mistake here, because the oracle reads the same plan.
"""

from __future__ import annotations

from typing import Any

import pytest

import unifiedloss as ul
from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan, Signature, resolve

pytestmark = pytest.mark.framework("numpy")

F32, F64 = FORMATS["float32"].tiny, FORMATS["float64"].tiny


def plan(
    spec: ul.Loss, predictions: str = "float32", targets: str = "int64", weight: str | None = None
) -> Plan:
    """The plan of a call on four rows of five classes, or elements."""
    dense = targets in FORMATS
    given: list[Any] = [
        Signature((4, 5), predictions),
        Signature((4, 5) if dense else (4,), targets),
    ]
    return resolve(spec, *given, None if weight is None else Signature((4,), weight))


@pytest.mark.parametrize(
    ("targets", "predictions", "smallest"),
    [("int64", "float32", F32), ("float32", "float16", F32), ("float64", "float32", F64)],
)
def test_a_share_of_smoothing_below_the_smallest_normal_number_is_none(
    targets: str, predictions: str, smallest: float
) -> None:
    """The share eps / K, or eps / 2, is compared with the smallest number, and not eps itself."""
    for spec, answers in ((ul.CrossEntropyLoss(), 5), (ul.BinaryCrossEntropyLoss(), 2)):
        if answers == 2 and targets == "int64":
            continue
        for eps, kept in ((answers * smallest, True), ((answers - 0.5) * smallest, False)):
            found = plan(spec.replace(label_smoothing=eps), predictions, targets).label_smoothing
            assert found == (eps if kept else 0.0)


@pytest.mark.parametrize(
    ("dtype", "ignored", "left"),
    [
        ("int64", (-100, 3), (-100, 3)),
        ("int8", (-100, 3), (-100, 3)),
        ("uint8", (-100, 3), (3,)),
        ("uint64", (-100, 3), (3,)),
        ("uint32", -1, ()),
        ("float32", -100, ()),
    ],
)
def test_no_unsigned_label_is_negative(dtype: str, ignored: Any, left: tuple[int, ...]) -> None:
    """An unsigned label never equals a negative ignore_index, and a dense target equals none."""
    spec = ul.CrossEntropyLoss(from_logits=True, ignore_index=ignored)
    assert plan(spec, targets=dtype).ignored_labels == left


@pytest.mark.parametrize(
    ("predictions", "largest"),
    [
        ("float64", 1 + 2.0**-21),
        ("float32", 1 + 2.0**-21),
        ("float16", 1 + 2.0**-10),
        ("bfloat16", 1 + 2.0**-7),
    ],
)
def test_the_largest_probability(predictions: str, largest: float) -> None:
    """A probability may exceed 1 by 4 epsilons of float32, or by one of a half type."""
    assert plan(ul.CrossEntropyLoss(), predictions).probability_limit == largest


@pytest.mark.parametrize(
    ("predictions", "targets", "weight", "smallest"),
    [
        ("float32", "float32", "float32", (F32, F32, F32)),
        ("float64", "float64", "float64", (F64, F64, F64)),
        ("float64", "float32", "float32", (F64, F32, F32)),
        ("float32", "float64", "float32", (F32, F64, F32)),
        ("float16", "float64", "float16", (F64, F64, F64)),
        ("bfloat16", "float64", "bfloat16", (F32, F64, F32)),
    ],
)
def test_the_smallest_numbers(
    predictions: str, targets: str, weight: str, smallest: tuple[float, float, float]
) -> None:
    """Numbers of a float32 tensor that is computed in float64 keep float32's smallest number."""
    found = plan(ul.CrossEntropyLoss(), predictions, targets, weight)
    assert (found.tiny, found.tiny_target, found.tiny_weight) == smallest


@pytest.mark.parametrize(
    ("predictions", "targets", "compute", "reduced", "each"),
    [
        ("float16", "float16", "float32", "float32", "float16"),
        ("bfloat16", "int64", "float32", "float32", "bfloat16"),
        ("float32", "float64", "float64", "float32", "float32"),
        ("float64", "float32", "float64", "float64", "float64"),
        ("float16", "float64", "float64", "float32", "float16"),
    ],
)
def test_dtypes(predictions: str, targets: str, compute: str, reduced: str, each: str) -> None:
    """The dtypes of the computation, of a reduced loss, and of the losses of positions."""
    for reduction, result in (("mean", reduced), ("sum", reduced), ("none", each)):
        found = plan(ul.CrossEntropyLoss(reduction=reduction), predictions, targets)
        assert (found.compute_dtype, found.result_dtype) == (compute, result)
