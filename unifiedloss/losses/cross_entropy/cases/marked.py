"""Edge cases of the rules that exist for other libraries' losses.

One case of each rule is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Case, proving, round_to
from unifiedloss.conformance.data import (
    F32_TINY,
    INF,
    MASKED_DENSE,
    NAN,
    ONE_HOT,
    P,
    W,
    X,
    Y,
    f32,
    ints,
)
from unifiedloss.losses.cross_entropy.cases.specs import spec_with

quotient_case = proving("renormalize")
bad_case = proving("renormalize", "bad-probability")
preset_case = proving("epsilon-presets")
class_weighting_case = proving("class-weighting", "label-smoothing")
label_weights_case = proving("label-weights", "scale")
masked_case = proving("label-weights", "dropped", "divisor")
cast_case = proving("dtype")
unread_case = proving("what-is-read", "epsilon")
nan_case = proving("nan-targets-and-weights", "class-weight-zero", "on-empty")

_MEAN = {"reduction": "mean"}


def marked_cases() -> Iterator[Case]:
    """All of them."""
    yield from _renormalized()
    yield from _clipped()
    yield from _class_weights()
    yield from _dtype()
    yield from _nan_weights()


def _renormalized() -> Iterator[Case]:
    """Probabilities divided by their sum, before or after they are clipped."""
    half = F32_TINY / 2
    rows = f32([2, 1, 1], [0, 0, 0], [half, 0, 0], [-half, 1, 0], [NAN, 1, 1], [0.5, 0.25, 0.125])
    bad = f32([-F32_TINY, 1, 1], [INF, 1, 1], [-INF, 1, 1], [8, 1, 1])
    for order, dtype in (("before_clip", "float16"), ("after_clip", "float64")):
        spec = spec_with(from_logits=False, epsilon="keras", renormalize=order)
        far = spec.replace(epsilon=0.1875)
        yield quotient_case(
            f"12 {order}, index",
            far,
            np.vstack([rows, rows]),
            ints(*[0] * 6, *[1] * 6),
            compiled=True,
        )
        smoothed = far.replace(class_weights=W, label_smoothing=0.25)
        yield quotient_case(
            f"12 {order}, dense",
            smoothed,
            rows[[0, 3, 5]],
            f32([1, 0, 0], [0, 2, 0], [0.5, 0, 0.5]),
        )
        yield bad_case(f"12 {order}, bad", far, bad, ints(0, 0, 1, 1))
        weight = f32(1, 0, 0, 2, 0, 3)
        yield quotient_case(
            f"12 {order}, keras, dropped rows",
            spec.replace(reduction="mean"),
            rows,
            ints(0, 1, 2, 0, 1, 2),
            weight,
        )
        yield quotient_case(f"12 {order}, {dtype}", spec, round_to(3 * P, dtype), Y, dtype=dtype)


def _clipped() -> Iterator[Case]:
    """The clip of Keras."""
    yield preset_case(
        "09 keras, classes",
        spec_with(from_logits=False, epsilon="keras"),
        f32([0, 1, 0], [0, 1, 0]),
        ints(0, 1),
    )
    # In bfloat16 the upper bound is 1, and a number above it by rounding is read as 1.
    yield preset_case(
        "09 keras, classes, above 1",
        spec_with(from_logits=False, epsilon="keras"),
        f32([1 + 2.0**-7, 0], [1, 1 + 2.0**-7]),
        ints(0, 1),
        dtype="bfloat16",
    )


def _class_weights() -> Iterator[Case]:
    """Class weights inside or outside the smoothing, divisors of torch, and a scale."""
    dense = f32([1, 0, 0], [0, 0.5, 0.5], [2, 0.25, 0], [0, 0, 1])
    spec = spec_with(
        class_weights=(0, 2, 4), class_weighting="position", label_smoothing=0.25, **_MEAN
    )
    yield class_weighting_case("18 weighted positions, logits", spec, X, Y)
    yield class_weighting_case(
        "18 weighted positions, logits, dense", spec, X, dense, compiled=True
    )
    yield class_weighting_case(
        "18 weighted positions, p, dense", spec.replace(from_logits=False), P, dense
    )
    spec = spec_with(from_logits=False, class_weights=(0, 2), class_weighting="position")
    odd = f32([0, 1], [0, 1], [NAN, 1], [0, 1])
    yield class_weighting_case("18 weighted positions, special", spec, odd, ints(0, 1, 0, 1))
    yield class_weighting_case(
        "18 weighted positions, special, dense", spec, odd, f32([1, 0], [0, 1], [1, 0], [0.5, 0.5])
    )
    yield class_weighting_case(
        "18 weighted positions, empty", spec.replace(**_MEAN), odd, ints(0, 0, 0, 0)
    )
    for targets in (Y, ONE_HOT):
        spec = spec_with(class_weights=W, divisor="label_weights", scale=3.0, **_MEAN)
        yield label_weights_case(
            f"02 label weights, {targets.dtype}", spec, X, targets, compiled=targets is ONE_HOT
        )
    spec = spec_with(divisor="label_weights", **_MEAN)
    for name, rule in (("", spec), (" and class weights", spec.replace(class_weights=W))):
        yield masked_case(f"02 masked label weights{name}", rule, *MASKED_DENSE, compiled=not name)


def _dtype() -> Iterator[Case]:
    """A spec that names a dtype casts all its inputs to it."""
    keras = spec_with(
        from_logits=False,
        epsilon="keras",
        renormalize="before_clip",
        dtype="float32",
        reduction="mean",
    )
    wide = P.astype(np.float64) + 1e-9
    yield cast_case(
        "39 float64 in float32",
        keras,
        wide,
        ONE_HOT.astype(np.float64),
        np.array([1, 2, 3, 1e-50]),
        dtype="float64",
    )
    yield cast_case("39 float32 in float64", spec_with(dtype="float64"), X, Y)
    # No probability stands where the target is 0, so the derivative by that target is 0.
    unread = f32([0.5, -(2.0**-15), 0.5], [0.25, 0.75, 7])
    clipped = spec_with(from_logits=False, epsilon="sklearn")
    first = f32([1, 0, 0], [0, 1, 0])
    yield unread_case("08 sklearn, unread", clipped, unread, first, dtype="float16")


def _nan_weights() -> Iterator[Case]:
    """A NaN sample weight is not hidden by a class weight of 0, whatever the mean divides by."""
    for divisor in ("weights", "nonzero", "present", "all"):
        spec = spec_with(class_weights=(0, 1), divisor=divisor, on_empty="zero", **_MEAN)
        yield nan_case(
            f"NaN sample weight of class weight 0, {divisor}",
            spec,
            f32([1, 2]),
            ints(0),
            f32(NAN),
            compiled=divisor == "nonzero",
        )
        yield nan_case(
            f"NaN sample weight of class weight 0, dense, {divisor}",
            spec,
            f32([1, 2]),
            f32([1, 0]),
            f32(NAN),
        )
