"""Edge cases: the known disagreements between frameworks, and the boundaries of each rule."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Case, proving
from unifiedloss.conformance.data import F32_TINY, INF, NAN, ONE_HOT, P, W, X, Y, f32, ints
from unifiedloss.losses.cross_entropy.cases.specs import spec_with
from unifiedloss.losses.cross_entropy.cases.tiny import tiny_cases

weighted_case = proving("divisor", "class-weights", "index-is-one-hot")
divisor_case = proving("divisor", "gradient-weights")
ignored_mean_case = proving("divisor", "ignore-index")
ignored_case = proving("ignore-index", "dropped")
empty_case = proving("on-empty")
no_rows_case = proving("empty-batch", "on-empty")
scalar_case = proving("leading-weights")
bad_label_case = proving("bad-label", "label-order", "bad-values")
dropped_case = proving("dropped")
zero_weighted_case = proving("zero-weighted")
integer_case = proving("target-dtypes", "label-order")
unsigned_case = proving("unsigned-labels")
clip_case = proving("epsilon", "zero-log-zero", "gradient-probabilities")
tie_case = proving("epsilon-tie")
as_given_case = proving("from-logits")
above_case = proving("probabilities-above-1")
bad_p_case = proving("bad-probability", "bad-values")
tiny_p_case = proving("tiny-probabilities")
read_case = proving("what-is-read")
hidden_case = proving("class-weight-zero")
log_zero_case = proving("zero-log-zero", "class-weight-zero")
nan_case = proving("nan-targets-and-weights")
axis_case = proving("axis")
smoothed_axis_case = proving("axis", "label-smoothing")
shape_case = proving("strict-shapes")
one_class_case = proving("cross-entropy")
sum_case = proving("gradient-logits")
bad_target_case = proving("bad-target", "bad-values")
negative_case = proving("negative-weights")
dtype_of_weights_case = proving("weight-dtypes", "float64-weights")
wide_case = proving("float64-targets", "exact-inputs")
half_case = proving("half-dtypes", "result-dtype")
zero_case = proving("sign-of-zero")
smoothing_case = proving("tiny-smoothing")
nan_weight_case = proving("nan-targets-and-weights", "class-weight-zero", "on-empty")

_MEAN = {"reduction": "mean"}


def edge_cases() -> Iterator[Case]:
    """All edge cases. Their order chooses those that are compiled."""
    yield from _divisors()
    yield from _labels()
    yield from _probabilities()
    yield from tiny_cases()
    yield from _logits()
    yield from _shapes()
    yield from _dtypes()
    yield from _limits()


def _divisors() -> Iterator[Case]:
    """Divisors of the mean, with every kind of weight, and the empty mean."""
    yield weighted_case("01 class weights, index", spec_with(class_weights=W, **_MEAN), X, Y)
    yield weighted_case(
        "02 class weights, one-hot", spec_with(class_weights=W, **_MEAN), X, ONE_HOT
    )
    for divisor in ("weights", "present", "nonzero", "all"):
        spec = spec_with(divisor=divisor, ignore_index=-100, **_MEAN)
        yield divisor_case(f"03 sample weights, {divisor}", spec, X, Y, f32(1, 0, 3, 1))
        yield ignored_mean_case(f"04 ignored label, {divisor}", spec, X, ints(0, 1, -100, 2))
        yield empty_case(f"06 all ignored, {divisor}", spec, X, ints(-100, -100, -100, -100))
        yield empty_case(
            f"06 all ignored, zero, {divisor}",
            spec.replace(on_empty="zero"),
            X,
            ints(-100, -100, -100, -100),
        )
    yield ignored_case(
        "05 ignored label per row", spec_with(ignore_index=-100), X, ints(0, -100, 1, 2)
    )
    for on_empty in ("nan", "zero"):
        yield empty_case(
            f"06 all weights zero, {on_empty}",
            spec_with(on_empty=on_empty, **_MEAN),
            X,
            Y,
            f32(0, 0, 0, 0),
        )
        yield empty_case(
            f"06 class weights zero, {on_empty}",
            spec_with(on_empty=on_empty, class_weights=(0, 0, 0), **_MEAN),
            X,
            Y,
        )
        spec_e = spec_with(on_empty=on_empty, **_MEAN)
        yield no_rows_case(
            f"06 empty batch, {on_empty}",
            spec_e,
            np.zeros((0, 3), np.float32),
            np.zeros(0, np.int64),
        )
    yield no_rows_case(
        "06 empty batch, none", spec_with(), np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    )
    yield no_rows_case(
        "06 empty batch, sum",
        spec_with(reduction="sum"),
        np.zeros((0, 3), np.float32),
        np.zeros(0, np.int64),
    )
    yield scalar_case("41 scalar weight", spec_with(**_MEAN), X, Y, np.array(2.5, np.float32))
    yield scalar_case("scalar mask, true", spec_with(**_MEAN), X, Y, None, np.array(1, bool))
    yield scalar_case("scalar mask, false", spec_with(**_MEAN), X, Y, None, np.array(0, bool))


def _labels() -> Iterator[Case]:
    """A bad label never wraps, and any integer dtype is read without rounding."""
    for name, labels in (
        ("07 negative", ints(0, -1, 1, 2)),
        ("08 too large", ints(0, 3, 1, 2)),
        ("far", ints(0, 2**31, 1, 2)),
    ):
        for reduction in ("none", "mean"):
            yield bad_label_case(
                f"{name} label, {reduction}", spec_with(reduction=reduction), X, labels
            )
            yield bad_label_case(
                f"{name} label, probabilities, {reduction}",
                spec_with(from_logits=False, reduction=reduction),
                P,
                labels,
            )
            yield bad_label_case(
                f"{name} label, smoothed, {reduction}",
                spec_with(label_smoothing=0.1, reduction=reduction),
                X,
                labels,
            )
    yield bad_label_case(
        "08 too large label, class weights",
        spec_with(class_weights=W, **_MEAN),
        X,
        ints(0, 3, 1, 2),
    )
    yield dropped_case(
        "08 masked bad label",
        spec_with(**_MEAN),
        X,
        ints(0, 3, -7, 2),
        None,
        np.array([True, False, False, True]),
    )
    yield zero_weighted_case(
        "08 zero-weighted bad label", spec_with(**_MEAN), X, ints(0, 3, -7, 2), f32(1, 0, 0, 2)
    )
    wide = np.zeros((2, 300), np.float32)
    wide[:, 257] = 10
    yield integer_case(
        "25 label 257 in bfloat16", spec_with(**_MEAN), wide, ints(257, 256), dtype="bfloat16"
    )
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"):
        yield integer_case(f"38 labels of {dtype}", spec_with(**_MEAN), X, Y.astype(dtype))
    yield unsigned_case(
        "uint8 156 is not -100",
        spec_with(ignore_index=-100, **_MEAN),
        np.zeros((2, 200), np.float32),
        ints(156, 3, dtype=np.uint8),
    )
    yield integer_case(
        "int8 label, 200 classes",
        spec_with(**_MEAN),
        np.zeros((2, 200), np.float32),
        ints(100, 3, dtype=np.int8),
    )
    yield unsigned_case(
        "uint64 -100 is no label",
        spec_with(ignore_index=-100),
        X,
        np.array([0, 2**64 - 100, 1, 2], np.uint64),
    )
    yield ignored_case(
        "several ignored labels",
        spec_with(ignore_index=(-100, 1), class_weights=W, label_smoothing=0.2, **_MEAN),
        X,
        ints(0, 1, -100, 2),
    )


def _probabilities() -> Iterator[Case]:
    """Clipping at 0 and at epsilon, rows that do not add up to 1, and bad numbers."""
    p = f32([0, 0.5, 0.5], [1, 0, 0], [1e-7, 0.5, 0.5], [0.2, 0.3, 0.5])
    for epsilon in (0.0, 1e-7, 0.25):
        for target in (0, 1):
            spec = spec_with(from_logits=False, epsilon=epsilon)
            yield clip_case(
                f"09 p=0, epsilon {epsilon}, class {target}", spec, p, ints(*[target] * 4)
            )
            yield clip_case(
                f"09 p=0, epsilon {epsilon}, dense {target}",
                spec,
                p,
                np.eye(3, dtype=np.float32)[[target] * 4],
            )
    yield clip_case(
        "09 one class, divided by its own clipped sum",
        spec_with(from_logits=False, epsilon=0.3, renormalize="after_clip"),
        f32([0.9685050845146179], [0.2], [0.5]),
        ints(0, 0, 0),
    )
    yield tie_case(
        "11 p equals epsilon",
        spec_with(from_logits=False, epsilon=2.0**-20),
        f32([2.0**-20, 1 - 2.0**-20]),
        ints(0),
    )
    yield as_given_case(
        "12 unnormalised", spec_with(from_logits=False), f32([0.5, 0.25, 0.125]), ints(0)
    )
    over = f32([1 + 2.0**-22, 0, 0], [1 + 2.0**-21, 0, 0], [1 + 2.0**-20, 0, 0], [-0.0, 1, 0])
    for target in (0, 1):
        yield above_case(
            f"36 p above 1, class {target}", spec_with(from_logits=False), over, ints(*[target] * 4)
        )
    yield bad_p_case("36 logits as probabilities", spec_with(from_logits=False), X, Y)
    yield tiny_p_case(
        "subnormal p", spec_with(from_logits=False), f32([F32_TINY, F32_TINY / 2, 0.5]), ints(0)
    )
    yield tiny_p_case(
        "subnormal p, class 1",
        spec_with(from_logits=False),
        f32([F32_TINY, F32_TINY / 2, 0.5]),
        ints(1),
    )
    nan_p = f32([NAN, 0.5, 0.5], [0.5, NAN, 0.5])
    yield read_case("NaN p is read, or not", spec_with(from_logits=False), nan_p, ints(0, 0))
    yield read_case(
        "NaN p is read, or not, dense",
        spec_with(from_logits=False),
        nan_p,
        f32([1, 0, 0], [1, 0, 0]),
    )
    yield read_case(
        "bad p is read, or not",
        spec_with(from_logits=False),
        f32([7, 0.5, 0.5], [0.5, 7, 0.5]),
        ints(0, 0),
    )
    yield hidden_case(
        "class weight 0 hides no NaN p",
        spec_with(from_logits=False, class_weights=(0, 1, 1)),
        nan_p,
        ints(0, 0),
    )
    yield log_zero_case(
        "class weight 0 times log 0",
        spec_with(from_logits=False, class_weights=(0, 1, 1)),
        p,
        ints(0, 0, 0, 0),
    )
    yield log_zero_case(
        "class weight 0 times log 0, smoothed",
        spec_with(class_weights=(0, 1, 1), label_smoothing=0.1),
        f32([-INF, 0, 1]),
        ints(1),
    )
    hiding = spec_with(class_weights=(0, 1, 1), **_MEAN)
    shared = f32([0.5, 0.25, 0.25], [0.25, 0.5, 0.25])
    for name, spec, x in (
        ("p", hiding.replace(from_logits=False), f32([0.5, 0.5, 0], [0.25, 0.25, 0.5])),
        ("logits", hiding, f32([0, -INF, 1], [1, 0, 2])),
        ("smoothed", hiding.replace(label_smoothing=0.3), f32([0, -INF, 1], [1, 0, 2])),
    ):
        yield log_zero_case(f"class weight 0 beside an infinite loss, {name}", spec, x, shared)


def _logits() -> Iterator[Case]:
    """Infinite, large and NaN logits, and NaN where nothing is read."""
    for rule, name, row in (
        ("infinite-logits", "-inf", [0, -INF, 2]),
        ("infinite-logits", "two -inf", [-INF, -INF, 2]),
        ("infinite-logits", "all -inf", [-INF, -INF, -INF]),
        ("infinite-logits", "+inf", [0, INF, 2]),
        ("infinite-logits", "NaN", [0, NAN, 2]),
        ("large-offsets", "offset 1e5", [1e5, 1e5 + 1, 1e5]),
        ("large-offsets", "offset -1e7", [-1e7, -1e7 + 1, -1e7]),
        ("cross-entropy", "confident", [18, 0, 0]),
        ("large-offsets", "gap 88", [88, 0, 0]),
        ("large-offsets", "gap 1000", [1000, 0, 0]),
        ("large-offsets", "gap 2e38", [1e38, -1e38, 0]),
        ("cross-entropy", "equal", [7, 7, 7]),
    ):
        z = f32(row, row, row)
        index_case = proving(rule, "gradient-logits")
        dense_case = proving(rule, "zero-log-zero")
        for smoothing in (0.0, 0.1, 1.0):
            spec = spec_with(label_smoothing=smoothing)
            yield index_case(f"28 {name}, index, smoothing {smoothing}", spec, z, ints(0, 1, 2))
            yield dense_case(
                f"30 {name}, dense, smoothing {smoothing}", spec, z, np.eye(3, dtype=np.float32)
            )
    z = f32(*[[0, NAN, INF], [1, 2, 3]])
    yield zero_weighted_case(
        "32 NaN logits under weight 0", spec_with(**_MEAN), z, ints(0, 1), f32(0, 2)
    )
    yield dropped_case(
        "32 NaN logits masked", spec_with(**_MEAN), z, ints(0, 1), None, np.array([False, True])
    )
    yield dropped_case("32 NaN logits ignored", spec_with(ignore_index=5, **_MEAN), z, ints(5, 1))
    yield zero_weighted_case(
        "32 NaN targets under weight 0",
        spec_with(**_MEAN),
        X[:2],
        f32([NAN, 0, 1], [1, 0, 0]),
        f32(0, 2),
    )
    yield hidden_case(
        "class weight 0 hides no NaN logit",
        spec_with(class_weights=(0, 1, 1)),
        f32([0, NAN, 1]),
        ints(0),
    )
    yield nan_case("NaN dense target", spec_with(), X[:2], f32([NAN, 0, 1], [1, 0, 0]))
    yield nan_case("NaN sample weight", spec_with(), X, Y, f32(1, NAN, 1, 1))


def _shapes() -> Iterator[Case]:
    """The class axis where all axes have the same length, and odd targets and weights."""
    cube = np.arange(18, dtype=np.float32).reshape(2, 3, 3) % 5
    labels = ints([0, 1, 2], [2, 0, 1])
    for axis in (1, 2, -1, -2):
        yield axis_case(f"16 square, axis {axis}", spec_with(axis=axis), cube, labels)
        yield smoothed_axis_case(
            f"17 smoothed, axis {axis}", spec_with(axis=axis, label_smoothing=0.3), cube, labels
        )
        one_hot = np.moveaxis(np.eye(3, dtype=np.float32)[labels], -1, axis)
        yield smoothed_axis_case(
            f"17 dense, axis {axis}",
            spec_with(axis=axis, label_smoothing=0.3, class_weights=W),
            cube,
            one_hot,
        )
    yield axis_case(
        "class axis first",
        spec_with(axis=0, class_weights=W, **_MEAN),
        np.ascontiguousarray(X.T),
        Y,
    )
    yield shape_case("one row, scalar label", spec_with(), X[0], np.array(2))
    example = spec_with(axis=1, class_weights=W, label_smoothing=0.3)
    yield axis_case("one example under axis 1, label", example, X[0], np.array(2), compiled=True)
    yield axis_case("one example under axis 1, dense", example, X[0], ONE_HOT[0])
    yield one_class_case("one class", spec_with(**_MEAN), X[:, :1], ints(0, 0, 0, 0))
    yield one_class_case(
        "one class, probabilities",
        spec_with(from_logits=False),
        np.ones((2, 1), np.float32),
        ints(0, 0),
    )
    yield sum_case("31 dense rows do not sum to 1", spec_with(), X[:1], f32([2, 0, 0]))
    yield sum_case("31 dense rows of zeros", spec_with(**_MEAN), X[:1], f32([0, 0, 0]))
    yield bad_target_case(
        "negative dense target", spec_with(), X[:2], f32([1, 0, 0], [-0.5, 1, 0.5])
    )
    yield bad_target_case(
        "infinite dense target", spec_with(), X[:2], f32([1, 0, 0], [INF, 1, 0.5])
    )
    yield negative_case("negative weights, sum", spec_with(reduction="sum"), X, Y, f32(1, -2, 3, 1))
    yield negative_case(
        "negative weights, mean over all", spec_with(divisor="all", **_MEAN), X, Y, f32(1, -2, 3, 1)
    )
    yield negative_case(
        "negative weights, weighted mean", spec_with(**_MEAN), X, Y, f32(1, -2, 3, 1)
    )
    yield dtype_of_weights_case("integer weights", spec_with(**_MEAN), X, Y, ints(1, 2, 3, 0))
    yield dtype_of_weights_case(
        "float64 weights", spec_with(**_MEAN), X, Y, np.array([0.1, 0.2, 0.3, 0])
    )
    yield wide_case("dense targets in float64", spec_with(**_MEAN), X, np.full((4, 3), 1 / 3))


def _dtypes() -> Iterator[Case]:
    """Half types round once at the end, and a zero may have either sign."""
    for dtype in ("bfloat16", "float16"):
        for reduction in ("none", "mean"):
            yield half_case(
                f"42 {dtype}, {reduction}",
                spec_with(reduction=reduction),
                f32([1, 3, -1]),
                ints(1),
                dtype=dtype,
            )
    yield zero_case("43 a loss of zero", spec_with(), f32([200, 0, 0]), ints(0))


def _limits() -> Iterator[Case]:
    """Numbers next to the limit of a rule, on the side where a small mistake shows."""
    p = spec_with(from_logits=False)
    for dtype, largest in (("float32", 1 + 2.0**-21), ("float16", 1 + 2.0**-10)):
        rows = f32([largest, 0, 0], [0, largest, 0])
        yield above_case(f"36 p at the limit, {dtype}", p, rows, ints(0, 1), dtype=dtype)
        yield above_case(f"36 p at the limit, dense, {dtype}", p, rows, ONE_HOT[:2], dtype=dtype)
    yield negative_case(
        "slightly negative weight, weighted mean", spec_with(**_MEAN), X, Y, f32(1, -1e-30, 3, 1)
    )
    # An entry that gets a share of smoothing costs infinitely much here.
    share = p.replace(label_smoothing=2.5 * F32_TINY)
    for name, targets in (("index", ints(0)), ("dense", f32([1, 0, 0]))):
        yield smoothing_case(
            f"share of smoothing below the smallest normal number, {name}",
            share,
            f32([1, 0, 0]),
            targets,
        )
    yield nan_weight_case(
        "NaN sample weight where the class weight is 0",
        spec_with(class_weights=(0, 1, 1), on_empty="error", **_MEAN),
        X[:1],
        ints(0),
        f32(NAN),
    )
