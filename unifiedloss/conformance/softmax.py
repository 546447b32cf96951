"""The cases of `unifiedloss.softmax`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unifiedloss.conformance.case import SoftmaxCase, rng_of, round_to
from unifiedloss.conformance.data import INF, NAN, X

_SPECIAL_LOGITS = (
    [0, -INF, 2],
    [-INF, -INF, 2],
    [-INF, -INF, -INF],
    [0, INF, 2],
    [INF, -INF, INF],
    [0, NAN, 2],
    [-INF, NAN, INF],
    [7, 7, 7],
    [-0.0, 0, 0],
    [1000, 0, -1000],
)
# Gaps between two logits on both sides of two thresholds: where exp(-gap) is the smallest normal
# number of the compute dtype, and where it is twice that number. The second gap of float32 and of
# float64 gives a result whose own error reaches the smallest normal number.
# In float16 the result's dtype adds two: exp(-gap) is subnormal from 9.71, and 0 from 17.33.
_GAPS: dict[str, tuple[float, ...]] = {
    "float32": (87.33, 87.33654, 87.34, 86.64, 86.65, 87, 87.4, 88, 103, 110, 1e5, 3e38),
    "bfloat16": (87, 87.5, 86, 86.5, 88, 103, 1e5),
    "float16": (9.7, 9.71, 16.5, 17.5, 87, 88, 6e4),
    "float64": (708.39, 708.3964185322641, 708.4, 707.7, 707.71, 87.34, 745, 746, 1e300),
}


def softmax_cases() -> Iterator[SoftmaxCase]:
    """All dtypes at the flush threshold, special and large logits, and all class axes."""

    def case(
        name: str,
        dtype: str,
        logits: Any,
        axis: int | None = None,
        *,
        also: str | None = None,
        **options: Any,
    ) -> SoftmaxCase:
        values = round_to(np.array(logits, np.float64), dtype)
        rules = ("softmax",) if also is None else ("softmax", also)
        return SoftmaxCase(f"softmax/{name}", values, axis, dtype, rules=rules, **options)

    for dtype, gaps in _GAPS.items():
        single = dtype == "float32"
        rng = rng_of(f"softmax/{dtype}")
        yield case(
            f"gaps, {dtype}",
            dtype,
            [[0, -gap] for gap in gaps],
            compiled=True,
            representative=single,
        )
        yield case(f"gap and ties, {dtype}", dtype, [[1, gaps[0] + 1, gaps[0] + 1, 2]])
        yield case(
            f"special, {dtype}", dtype, _SPECIAL_LOGITS, also="infinite-logits", compiled=single
        )
        offset = 6e4 if dtype == "float16" else 1e5
        yield case(
            f"offset, {dtype}",
            dtype,
            offset + rng.normal(scale=3, size=(3, 4)),
            also="large-offsets",
            compiled=single,
        )
        yield case(
            f"offset below, {dtype}",
            dtype,
            rng.normal(scale=3, size=(3, 4)) - offset,
            also="large-offsets",
        )
        yield case(f"rows, {dtype}", dtype, rng.normal(scale=3, size=(4, 5)), compiled=True)
        yield case(
            f"axis 1 of 3, {dtype}",
            dtype,
            rng.normal(scale=10, size=(2, 3, 4)),
            1,
            also="axis",
            compiled=single,
        )
    rng = rng_of("softmax")
    for axis in (0, -1, -2):
        cube = rng.normal(scale=3, size=(3, 3, 3))
        yield case(
            f"axis {axis} of 3",
            "float32",
            cube,
            axis,
            also="axis",
            compiled=True,
            representative=axis == 0,
        )
    yield case("class axis first", "float32", rng.normal(size=(3, 4)), 0, also="axis")
    yield case("one row", "float32", rng.normal(size=5), compiled=True)
    yield case(
        "one class",
        "float32",
        [[7], [-1e5], [NAN], [INF], [-INF]],
        also="infinite-logits",
        compiled=True,
    )
    yield case("empty batch", "float32", np.zeros((0, 3)), also="empty-batch", compiled=True)
    yield case("many classes", "float32", rng.normal(scale=5, size=(2, 150)))


def bad_softmax_calls() -> Iterator[SoftmaxCase]:
    """Calls of the softmax that must raise the same error in every backend."""
    cube = np.zeros((2, 3, 3), np.float32)
    yield SoftmaxCase("softmax/axis not named", cube, rules=("axis",))
    yield SoftmaxCase("softmax/axis out of range", cube, 3, rules=("axis",))
    yield SoftmaxCase("softmax/axis out of range below", X, -3, rules=("axis",))
    yield SoftmaxCase("softmax/scalar logits", np.array(1.0, np.float32), rules=("strict-shapes",))
    yield SoftmaxCase(
        "softmax/integer logits", X.astype(np.int32), dtype="int32", rules=("floating-predictions",)
    )
    yield SoftmaxCase("softmax/bool logits", X > 0, dtype="bool", rules=("floating-predictions",))
    yield SoftmaxCase("softmax/no classes", np.zeros((4, 0), np.float32), rules=("strict-shapes",))
