"""The conformance cases: hand-picked edge cases, pairwise products of all fields, and random calls.

A case is data: a spec and NumPy arrays. The oracle (`unifiedloss.reference`) computes its expected
result, `tolerances` bounds the deviation, and `checks` runs it in a backend.

The number at the start of many case names ("07 negative label, none") stands for one known
disagreement between frameworks. Reports and golden files refer to these names, so they never
change. The comments say which rule the cases of a number prove.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import reference
from unifiedloss.floats import FORMATS
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Loss

Array = NDArray[Any]
NAN, INF = math.nan, math.inf


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a loss, and the modes it runs in.

    Attributes:
        name: unique; "edge/...", "rules/...", "product/..." or "random/...".
        spec: the loss.
        predictions: values, already rounded to `dtype`.
        targets: values, in their own dtype.
        sample_weight: values or None.
        mask: values or None.
        dtype: the predictions' dtype. NumPy has no bfloat16, so a float32 array holds its values.
        upstream: the upstream gradient; None for ones.
        compiled: whether it also runs in compiled modes, where each case needs a compilation.
        representative: whether it also runs in the modes whose compilation is costly.
        of_backend: whether Keras may skip it in modes that compile, because Keras calls the same
            code as the backend below it, and that backend compiles the case itself.
    """

    name: str
    spec: Loss
    predictions: Array
    targets: Array
    sample_weight: Array | None = None
    mask: Array | None = None
    dtype: str = "float32"
    upstream: float | Array | None = None
    compiled: bool = False
    representative: bool = False
    of_backend: bool = False

    def is_wide(self) -> bool:
        """Whether an array of the case is float64."""
        given = (self.targets, self.sample_weight)
        return self.dtype == "float64" or any(
            x is not None and x.dtype.name == "float64" for x in given
        )

    def has_exact_mode(self) -> bool:
        """Whether exact mode supports the call: not if the spec names a dtype.

        Casting to that dtype rounds the inputs, so the result could not be exact.
        """
        return getattr(self.spec, "dtype", None) is None

    def rounded(self, rounding: str) -> Case:
        """The same call, with results rounded "native" or "exact"."""
        return dataclasses.replace(self, spec=self.spec.replace(rounding=rounding))

    def differentiated(self) -> list[str]:
        """The arguments to differentiate by: the floating ones; in exact mode only predictions."""
        others = {"targets": self.targets, "sample_weight": self.sample_weight}
        if self.spec.rounding == "exact":
            return ["predictions"]
        return [
            "predictions",
            *(name for name, x in others.items() if x is not None and x.dtype.name in FORMATS),
        ]

    def expected(self) -> reference.Reference:
        """The oracle's result."""
        upstream: Any = self.upstream
        if isinstance(upstream, np.ndarray):
            upstream = upstream.ravel().tolist()
        return reference.evaluate(
            self.spec,
            _tensor(self.predictions, self.dtype),
            _tensor(self.targets, self.targets.dtype.name),
            None
            if self.sample_weight is None
            else _tensor(self.sample_weight, self.sample_weight.dtype.name),
            None if self.mask is None else _tensor(self.mask, "bool"),
            terms="rounded" if self.spec.rounding == "exact" else "real",
            upstream=upstream,
        )


@dataclass(frozen=True, eq=False)
class BadCall:
    """A call that must fail, with the same error class and message in every backend.

    Attributes:
        name: unique.
        spec: the loss.
        predictions: values.
        targets: values.
        sample_weight: values or None.
        mask: values or None.
        reads: whether the mistake is in a value and not in a shape or dtype. Tracing sees no
            values, so nothing is raised there.
    """

    name: str
    spec: Loss
    predictions: Array
    targets: Array
    sample_weight: Array | None = None
    mask: Array | None = None
    reads: bool = False


@dataclass(frozen=True, eq=False)
class SoftmaxCase:
    """One call of `unifiedloss.softmax`.

    Attributes:
        name: unique; begins with "softmax/".
        logits: values, already rounded to `dtype`.
        axis: the class axis as the caller passes it.
        dtype: the logits' dtype.
        compiled: as in `Case`.
        representative: as in `Case`.
        of_backend: as in `Case`.
    """

    name: str
    logits: Array
    axis: int | None = None
    dtype: str = "float32"
    compiled: bool = False
    representative: bool = False
    of_backend: bool = False

    def is_wide(self) -> bool:
        """Whether the logits are float64."""
        return self.dtype == "float64"

    @property
    def upstream(self) -> Array:
        """The upstream gradient: random, because under ones a softmax has the gradient 0."""
        return round_to(_rng(self.name).normal(size=self.logits.shape), self.dtype)

    def expected(self) -> reference.Softmax:
        """The oracle's result."""
        return reference.softmax(
            _tensor(self.logits, self.dtype), self.axis, upstream=self.upstream.ravel().tolist()
        )


def _tensor(x: Array, dtype: str) -> reference.Tensor:
    return reference.tensor(x.ravel().tolist(), x.shape, dtype)


# ------------------------------------------------------------------------------------------ by hand

X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2])
W = (1.0, 2.0, 4.0)
P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.5, 0.25], [0.2, 0.3, 0.5]], np.float32)
ONE_HOT = np.eye(3, dtype=np.float32)[Y]
F32_TINY = np.float32(2.0**-126)


def _ce(**fields: Any) -> CrossEntropyLoss:
    defaults: dict[str, Any] = {"from_logits": True, "reduction": "none"}
    return CrossEntropyLoss(**defaults | fields)


def _bce(**fields: Any) -> BinaryCrossEntropyLoss:
    defaults: dict[str, Any] = {"from_logits": True, "reduction": "none"}
    return BinaryCrossEntropyLoss(**defaults | fields)


def _f32(*values: Any) -> Array:
    return np.array(values, np.float32)


def _i(*values: Any, dtype: Any = np.int64) -> Array:
    return np.array(values, dtype)


def edge_cases() -> Iterator[Case]:
    """The known disagreements between frameworks, and the boundaries of each rule."""

    def case(
        name: str, spec: Loss, predictions: Array, targets: Array, *rest: Any, **options: Any
    ) -> Case:
        return Case(f"edge/{name}", spec, predictions, targets, *rest, **options)

    mean = {"reduction": "mean"}
    # Divisors of the mean: class weights with index and one-hot targets, sample weights, ignored
    # labels, and an empty mean. Weights align with the leading axes.
    yield case("01 class weights, index", _ce(class_weights=W, **mean), X, Y)
    yield case("02 class weights, one-hot", _ce(class_weights=W, **mean), X, ONE_HOT)
    for divisor in ("weights", "present", "nonzero", "all"):
        spec = _ce(divisor=divisor, ignore_index=-100, **mean)
        yield case(f"03 sample weights, {divisor}", spec, X, Y, _f32(1, 0, 3, 1))
        yield case(f"04 ignored label, {divisor}", spec, X, _i(0, 1, -100, 2))
        yield case(f"06 all ignored, {divisor}", spec, X, _i(-100, -100, -100, -100))
        yield case(
            f"06 all ignored, zero, {divisor}",
            spec.replace(on_empty="zero"),
            X,
            _i(-100, -100, -100, -100),
        )
    yield case("05 ignored label per row", _ce(ignore_index=-100), X, _i(0, -100, 1, 2))
    for on_empty in ("nan", "zero"):
        yield case(
            f"06 all weights zero, {on_empty}",
            _ce(on_empty=on_empty, **mean),
            X,
            Y,
            _f32(0, 0, 0, 0),
        )
        yield case(
            f"06 class weights zero, {on_empty}",
            _ce(on_empty=on_empty, class_weights=(0, 0, 0), **mean),
            X,
            Y,
        )
        spec_e = _ce(on_empty=on_empty, **mean)
        yield case(
            f"06 empty batch, {on_empty}",
            spec_e,
            np.zeros((0, 3), np.float32),
            np.zeros(0, np.int64),
        )
    yield case("06 empty batch, none", _ce(), np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
    yield case(
        "06 empty batch, sum",
        _ce(reduction="sum"),
        np.zeros((0, 3), np.float32),
        np.zeros(0, np.int64),
    )
    error, errors = _f32(1, 2), np.zeros(2, np.float32)
    yield case("22 one axis, weighted", MeanSquaredError(), error, errors, _f32(1, 3))
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    yield case("23 leading weights, weighted mean", MeanSquaredError(), grid, 0 * grid, _f32(1, 3))
    yield case(
        "23 leading weights of full rank",
        MeanSquaredError(),
        grid,
        0 * grid,
        np.repeat(_f32([1], [3]), 3, 1),
    )
    yield case(
        "24 weights scale examples",
        MeanSquaredError(reduction="none"),
        grid[:, :2],
        0 * grid[:, :2],
        _f32(1, 3),
    )
    yield case("35 weighted binary", _bce(**mean), _f32(0, 0), _f32(1, 0), _f32(1, 3))
    yield case("41 scalar weight", _ce(**mean), X, Y, np.array(2.5, np.float32))
    yield case("scalar mask, true", _ce(**mean), X, Y, None, np.array(1, bool))
    yield case("scalar mask, false", _ce(**mean), X, Y, None, np.array(0, bool))

    # Labels: a negative one never wraps, one that is too large is an error, or NaN under tracing,
    # and any integer dtype is read without rounding.
    for name, labels in (
        ("07 negative", _i(0, -1, 1, 2)),
        ("08 too large", _i(0, 3, 1, 2)),
        ("far", _i(0, 2**31, 1, 2)),
    ):
        for reduction in ("none", "mean"):
            yield case(f"{name} label, {reduction}", _ce(reduction=reduction), X, labels)
            yield case(
                f"{name} label, probabilities, {reduction}",
                _ce(from_logits=False, reduction=reduction),
                P,
                labels,
            )
            yield case(
                f"{name} label, smoothed, {reduction}",
                _ce(label_smoothing=0.1, reduction=reduction),
                X,
                labels,
            )
    yield case("08 too large label, class weights", _ce(class_weights=W, **mean), X, _i(0, 3, 1, 2))
    yield case(
        "08 masked bad label",
        _ce(**mean),
        X,
        _i(0, 3, -7, 2),
        None,
        np.array([True, False, False, True]),
    )
    yield case("08 zero-weighted bad label", _ce(**mean), X, _i(0, 3, -7, 2), _f32(1, 0, 0, 2))
    wide = np.zeros((2, 300), np.float32)
    wide[:, 257] = 10
    yield case("25 label 257 in bfloat16", _ce(**mean), wide, _i(257, 256), dtype="bfloat16")
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"):
        yield case(f"38 labels of {dtype}", _ce(**mean), X, Y.astype(dtype))
    yield case(
        "uint8 156 is not -100",
        _ce(ignore_index=-100, **mean),
        np.zeros((2, 200), np.float32),
        _i(156, 3, dtype=np.uint8),
    )
    yield case(
        "int8 label, 200 classes",
        _ce(**mean),
        np.zeros((2, 200), np.float32),
        _i(100, 3, dtype=np.int8),
    )
    yield case(
        "uint64 -100 is no label",
        _ce(ignore_index=-100),
        X,
        np.array([0, 2**64 - 100, 1, 2], np.uint64),
    )
    yield case(
        "several ignored labels",
        _ce(ignore_index=(-100, 1), class_weights=W, label_smoothing=0.2, **mean),
        X,
        _i(0, 1, -100, 2),
    )

    # Probabilities: clipping at p = 0 and at epsilon itself, rows that do not sum to 1, and logits
    # passed by mistake.
    p = _f32([0, 0.5, 0.5], [1, 0, 0], [1e-7, 0.5, 0.5], [0.2, 0.3, 0.5])
    for epsilon in (0.0, 1e-7, 0.25):
        for target in (0, 1):
            spec = _ce(from_logits=False, epsilon=epsilon)
            yield case(f"09 p=0, epsilon {epsilon}, class {target}", spec, p, _i(*[target] * 4))
            yield case(
                f"09 p=0, epsilon {epsilon}, dense {target}",
                spec,
                p,
                np.eye(3, dtype=np.float32)[[target] * 4],
            )
        binary = _f32(
            0,
            1,
            0.25,
            0.75,
            1e-7,
            np.nextafter(np.float32(1), np.float32(0)),
            F32_TINY,
            F32_TINY / 2,
        )
        for t in (0.0, 1.0, 0.3):
            spec_b = _bce(from_logits=False, epsilon=epsilon)
            yield case(
                f"10 binary p, epsilon {epsilon}, target {t}",
                spec_b,
                binary,
                np.full(8, t, np.float32),
            )
    yield case(
        "11 p equals epsilon",
        _ce(from_logits=False, epsilon=2.0**-20),
        _f32([2.0**-20, 1 - 2.0**-20]),
        _i(0),
    )
    yield case("12 unnormalised", _ce(from_logits=False), _f32([0.5, 0.25, 0.125]), _i(0))
    over = _f32([1 + 2.0**-22, 0, 0], [1 + 2.0**-21, 0, 0], [1 + 2.0**-20, 0, 0], [-0.0, 1, 0])
    for target in (0, 1):
        yield case(f"36 p above 1, class {target}", _ce(from_logits=False), over, _i(*[target] * 4))
    yield case("36 logits as probabilities", _ce(from_logits=False), X, Y)
    yield case(
        "36 logits as binary probabilities",
        _bce(from_logits=False),
        _f32(-0.5, 0.5, 2),
        _f32(1, 1, 1),
    )
    half = _f32(1 + 2.0**-10, 1 + 2.0**-9)
    yield case(
        "36 p above 1 in float16", _bce(from_logits=False), half, _f32(1, 1), dtype="float16"
    )
    yield case("subnormal p", _ce(from_logits=False), _f32([F32_TINY, F32_TINY / 2, 0.5]), _i(0))
    yield case(
        "subnormal p, class 1", _ce(from_logits=False), _f32([F32_TINY, F32_TINY / 2, 0.5]), _i(1)
    )
    nan_p = _f32([NAN, 0.5, 0.5], [0.5, NAN, 0.5])
    yield case("NaN p is read, or not", _ce(from_logits=False), nan_p, _i(0, 0))
    yield case(
        "NaN p is read, or not, dense", _ce(from_logits=False), nan_p, _f32([1, 0, 0], [1, 0, 0])
    )
    yield case(
        "bad p is read, or not",
        _ce(from_logits=False),
        _f32([7, 0.5, 0.5], [0.5, 7, 0.5]),
        _i(0, 0),
    )
    yield case(
        "class weight 0 hides no NaN p",
        _ce(from_logits=False, class_weights=(0, 1, 1)),
        nan_p,
        _i(0, 0),
    )
    yield case(
        "class weight 0 times log 0",
        _ce(from_logits=False, class_weights=(0, 1, 1)),
        p,
        _i(0, 0, 0, 0),
    )
    yield case(
        "class weight 0 times log 0, smoothed",
        _ce(class_weights=(0, 1, 1), label_smoothing=0.1),
        _f32([-INF, 0, 1]),
        _i(1),
    )

    yield from _tiny_cases(case)

    # Infinite, large and NaN logits: the shift by the maximum, 0 * -inf = 0 in dense targets, no
    # NaN from dropped positions, and the binary gradient of 0.5 at z = 0.
    for name, row in (
        ("-inf", [0, -INF, 2]),
        ("two -inf", [-INF, -INF, 2]),
        ("all -inf", [-INF, -INF, -INF]),
        ("+inf", [0, INF, 2]),
        ("NaN", [0, NAN, 2]),
        ("offset 1e5", [1e5, 1e5 + 1, 1e5]),
        ("offset -1e7", [-1e7, -1e7 + 1, -1e7]),
        ("confident", [18, 0, 0]),
        ("gap 88", [88, 0, 0]),
        ("gap 1000", [1000, 0, 0]),
        ("gap 2e38", [1e38, -1e38, 0]),
        ("equal", [7, 7, 7]),
    ):
        z = _f32(row, row, row)
        for smoothing in (0.0, 0.1, 1.0):
            spec = _ce(label_smoothing=smoothing)
            yield case(f"28 {name}, index, smoothing {smoothing}", spec, z, _i(0, 1, 2))
            yield case(
                f"30 {name}, dense, smoothing {smoothing}", spec, z, np.eye(3, dtype=np.float32)
            )
    z = _f32(*[[0, NAN, INF], [1, 2, 3]])
    yield case("32 NaN logits under weight 0", _ce(**mean), z, _i(0, 1), _f32(0, 2))
    yield case("32 NaN logits masked", _ce(**mean), z, _i(0, 1), None, np.array([False, True]))
    yield case("32 NaN logits ignored", _ce(ignore_index=5, **mean), z, _i(5, 1))
    yield case(
        "32 NaN targets under weight 0",
        _ce(**mean),
        X[:2],
        _f32([NAN, 0, 1], [1, 0, 0]),
        _f32(0, 2),
    )
    yield case(
        "32 NaN squared error masked",
        MeanSquaredError(),
        _f32(NAN, 1),
        _f32(0, 3),
        None,
        np.array([False, True]),
    )
    yield case(
        "32 NaN binary under weight 0",
        _bce(**mean),
        _f32(NAN, INF, 1),
        _f32(0, NAN, 1),
        _f32(0, 0, 2),
    )
    yield case(
        "class weight 0 hides no NaN logit", _ce(class_weights=(0, 1, 1)), _f32([0, NAN, 1]), _i(0)
    )
    logits = _f32(0, -0.0, 100, -100, INF, -INF, NAN, 1e-30, -1e-30, 20, -20, 1e30)
    for t in (0.0, 1.0, 0.5):
        for extra in ({}, {"pos_weight": 3.0}, {"pos_weight": 0.0}, {"label_smoothing": 0.2}):
            label = ", ".join(f"{k} {v}" for k, v in extra.items())
            yield case(
                f"33 binary logits, target {t} {label}",
                _bce(**extra),
                logits,
                np.full(12, t, np.float32),
            )
    yield case("NaN binary target", _bce(), _f32(0, 1), _f32(NAN, 1))
    yield case("NaN dense target", _ce(), X[:2], _f32([NAN, 0, 1], [1, 0, 0]))
    yield case("NaN sample weight", _ce(), X, Y, _f32(1, NAN, 1, 1))

    # Shapes: the class axis where all axes have the same size, and smoothing by the size of that
    # axis. Dense rows that do not sum to 1, and bad dense and binary targets.
    cube = np.arange(18, dtype=np.float32).reshape(2, 3, 3) % 5
    labels = _i([0, 1, 2], [2, 0, 1])
    for axis in (1, 2, -1, -2):
        yield case(f"16 square, axis {axis}", _ce(axis=axis), cube, labels)
        yield case(f"17 smoothed, axis {axis}", _ce(axis=axis, label_smoothing=0.3), cube, labels)
        one_hot = np.moveaxis(np.eye(3, dtype=np.float32)[labels], -1, axis)
        yield case(
            f"17 dense, axis {axis}",
            _ce(axis=axis, label_smoothing=0.3, class_weights=W),
            cube,
            one_hot,
        )
    yield case(
        "class axis first", _ce(axis=0, class_weights=W, **mean), np.ascontiguousarray(X.T), Y
    )
    yield case("one row, scalar label", _ce(), X[0], np.array(2))
    yield case("one class", _ce(**mean), X[:, :1], _i(0, 0, 0, 0))
    yield case(
        "one class, probabilities", _ce(from_logits=False), np.ones((2, 1), np.float32), _i(0, 0)
    )
    yield case("31 dense rows do not sum to 1", _ce(), X[:1], _f32([2, 0, 0]))
    yield case("31 dense rows of zeros", _ce(**mean), X[:1], _f32([0, 0, 0]))
    yield case("negative dense target", _ce(), X[:2], _f32([1, 0, 0], [-0.5, 1, 0.5]))
    yield case("infinite dense target", _ce(), X[:2], _f32([1, 0, 0], [INF, 1, 0.5]))
    yield case("binary target out of range", _bce(), _f32(0, 1, 2), _f32(-0.25, 1.5, 1))
    yield case("binary scalar", _bce(), np.array(0.5, np.float32), np.array(1.0, np.float32))
    for dtype in ("bool", "int8", "int64", "uint8", "float64", "float16"):
        answers = _i(0, 1, 1, dtype=dtype)
        name = answers.dtype.name
        yield case(f"binary targets of {name}", _bce(**mean), _f32(0, 1, 2), answers)
        yield case(
            f"squared error, targets of {name}", MeanSquaredError(), _f32(0, 1, 2.5), answers
        )
    yield case("negative weights, sum", _ce(reduction="sum"), X, Y, _f32(1, -2, 3, 1))
    yield case(
        "negative weights, mean over all", _ce(divisor="all", **mean), X, Y, _f32(1, -2, 3, 1)
    )
    yield case("negative weights, weighted mean", _ce(**mean), X, Y, _f32(1, -2, 3, 1))
    yield case("integer weights", _ce(**mean), X, Y, _i(1, 2, 3, 0))
    yield case("float64 weights", _ce(**mean), X, Y, np.array([0.1, 0.2, 0.3, 0]))
    yield case("dense targets in float64", _ce(**mean), X, np.full((4, 3), 1 / 3))
    yield case(
        "squared error, targets in float64",
        MeanSquaredError(reduction="none"),
        _f32(1, 2),
        np.array([1 + 1e-9, 2.5]),
    )

    # Precision: half types accumulate and count in float32, and round once at the end. A zero may
    # have either sign. Shapes are strict, and sums run over all elements.
    yield case("20 column", _bce(**mean), _f32([0.5], [1]), _f32([1], [0]))
    yield case(
        "21 sum of squares",
        MeanSquaredError(reduction="sum"),
        _f32([1, 2], [3, 4]),
        np.zeros((2, 2), np.float32),
    )
    many = np.full(3000, 0.5, np.float32)
    yield case("26 float16 mean of many", MeanSquaredError(), many, 0 * many, dtype="float16")
    yield case(
        "27 float16 sum past its largest",
        MeanSquaredError(reduction="sum"),
        _f32(200, 200),
        _f32(0, 0),
        dtype="float16",
    )
    yield case(
        "26 float16 error 300",
        MeanSquaredError(reduction="none"),
        _f32(300),
        _f32(0),
        dtype="float16",
    )
    for dtype in ("bfloat16", "float16"):
        for reduction in ("none", "mean"):
            yield case(
                f"42 {dtype}, {reduction}",
                _ce(reduction=reduction),
                _f32([1, 3, -1]),
                _i(1),
                dtype=dtype,
            )
    yield case("43 a loss of zero", _ce(), _f32([200, 0, 0]), _i(0))
    yield case(
        "squared error, IEEE",
        MeanSquaredError(reduction="none"),
        _f32(INF, INF, NAN, 1e30, 0),
        _f32(0, INF, 0, -1e30, -0.0),
    )
    big = np.array([2**53, -(2**53), 2**53 + 1, 3])
    yield case("integer targets at 2^53", MeanSquaredError(reduction="none"), _f32(0, 0, 0, 0), big)


def _tiny_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Numbers that some frameworks flush to 0, the empty mean, and NaN weights."""
    mean = {"reduction": "mean"}
    half, tiny = F32_TINY / 2, F32_TINY
    nan_row = np.vstack([_f32([NAN, 0, INF]), X[1:]])
    bad_p = np.vstack([_f32([7, NAN, 0]), P[1:]])
    for dtype, small in (("float32", half), ("float64", 1e-50), ("float64", 1e-40)):
        weight = np.array([small, 1, -small, 2], dtype)
        for divisor in ("weights", "nonzero", "present"):
            spec = _ce(divisor=divisor, **mean)
            yield case(
                f"weight {small:.3g} of {dtype} is 0, {divisor}",
                spec,
                nan_row,
                _i(7, 1, 9, 2),
                weight,
            )
        spec = _ce(from_logits=False, reduction="sum")
        yield case(
            f"weight {small:.3g} of {dtype} is 0, probabilities",
            spec,
            bad_p,
            _i(7, 1, 9, 2),
            weight,
        )
        spec_b = _bce(on_empty="zero", **mean)
        yield case(
            f"weights {small:.3g} of {dtype} are an empty mean",
            spec_b,
            _f32(NAN, 1),
            _f32(2, 1),
            weight[[0, 2]],
        )
    yield case(
        "weight at the smallest normal number", _ce(), nan_row, Y, _f32(half, tiny, -tiny, 0)
    )
    wide = np.array([1, 2, 3, 4.0])[:, None] * X
    yield case(
        "float32 weight beside float64", _ce(**mean), wide, Y, _f32(half, 1, 2, 3), dtype="float64"
    )
    yield case(
        "smallest float64 weight",
        _ce(**mean),
        wide,
        Y,
        np.array([1e-310, 1, 2e-308, 3]),
        dtype="float64",
    )
    for from_logits in (True, False):
        if from_logits:
            z = _f32([-INF, 0, 1], [1, -INF, 0], [0, 1, -INF])
        else:
            z = _f32([0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0])
        kind = _source(from_logits)
        for small in (half, 1e-50, 1e-30):
            spec = _ce(from_logits=from_logits, class_weights=(small, 1, 2))
            name = f"class weight {small:.3g}, {kind}"
            yield case(f"{name}, index", spec, z, _i(0, 1, 2))
            yield case(f"{name}, nonzero", spec.replace(divisor="nonzero", **mean), z, _i(0, 2, 1))
            yield case(f"{name}, smoothed", spec.replace(label_smoothing=0.1), z[:1], _i(1))
            yield case(f"{name}, dense", spec, z, np.eye(3, dtype=np.float32))
        for small in (half, -half, tiny):
            dense = _f32([small, 1, 0], [1, small, 0], [0.5, 0.5, small])
            yield case(f"dense target {small:.3g}, {kind}", _ce(from_logits=from_logits), z, dense)
            if not from_logits:  # because from logits the gradient is a subnormal float32
                yield case(
                    f"dense target {small:.3g} in float64",
                    _ce(from_logits=False),
                    z,
                    dense.astype("d"),
                )
            binary = _f32(-INF, INF, NAN, 0) if from_logits else _f32(0, 1, NAN, 0.5)
            spec_b = _bce(from_logits=from_logits)
            yield case(
                f"binary target {small:.3g}, {kind}", spec_b, binary, np.full(4, small, np.float32)
            )
            spec_b = spec_b.replace(pos_weight=(abs(float(small)), 1, 2, 3))
            yield case(f"pos_weight {small:.3g}, {kind}", spec_b, binary, np.ones(4, np.float32))
        deep = np.array([[1e-310, 1, 0]])
        wide = z[:1].astype(np.float64)
        yield case(
            f"dense target 1e-310, {kind}",
            _ce(from_logits=from_logits),
            wide,
            deep,
            dtype="float64",
        )
        for smoothing in (1e-38, 1e-9, 1e-6, 1e-50):
            spec = _ce(from_logits=from_logits, label_smoothing=smoothing)
            yield case(f"smoothing {smoothing}, {kind}, index", spec, z, _i(1, 1, 0))
            yield case(
                f"smoothing {smoothing}, {kind}, dense",
                spec,
                z,
                np.eye(3, dtype=np.float32)[[1, 1, 0]],
            )
            binary = _f32(-INF, INF, -INF, INF, 3) if from_logits else _f32(0, 1, 0, 1, 0.5)
            spec_b = _bce(from_logits=from_logits, label_smoothing=smoothing)
            yield case(
                f"smoothing {smoothing}, {kind}, binary", spec_b, binary, _f32(0, 0, 1, 1, 1)
            )
    p = _f32([half, 0.5], [0.25, 0.75])
    yield case(
        "float32 p beside float64 targets",
        _ce(from_logits=False),
        p,
        np.array([[1.0, 0], [0.5, 0.5]]),
    )
    weight = _f32(1e-15, 1, 1e-15, 1)
    for targets in (Y, ONE_HOT):
        spec = _ce(class_weights=(1e-30, 1, 0), divisor="nonzero", **mean)
        yield case(f"underflowing product counts, {targets.dtype}", spec, X, targets, weight)
    yield case(
        "underflowing product, p 0",
        _ce(from_logits=False, class_weights=(1e-30, 1)),
        _f32([0, 1]),
        _f32([1e-15, 1]),
    )

    # An empty mean has the gradient 0.
    for divisor in ("weights", "nonzero"):
        for on_empty in ("nan", "zero"):
            for smoothing in (0.0, 0.1):
                name = f"{divisor}, {on_empty}, smoothing {smoothing}"
                spec = _ce(
                    class_weights=(0, 1, 1),
                    label_smoothing=smoothing,
                    divisor=divisor,
                    on_empty=on_empty,
                    **mean,
                )
                zeros = np.zeros(4, np.int64)
                yield case(f"empty by class weights, {name}", spec, X, zeros)
                yield case(
                    f"empty by class weights, NaN logits, {name}",
                    spec,
                    nan_row,
                    zeros,
                    _f32(1, 0, 2, 3),
                )
                yield case(
                    f"empty by class weights, one-hot, {name}",
                    spec,
                    nan_row,
                    np.eye(3, dtype=np.float32)[zeros],
                )
                p = np.vstack([_f32([NAN, 0, 0.5]), P[1:]])
                yield case(
                    f"empty by class weights, p, {name}", spec.replace(from_logits=False), p, zeros
                )
                yield case(
                    f"empty by class weights, bad p, {name}",
                    spec.replace(from_logits=False),
                    bad_p,
                    zeros,
                )
    spec = _ce(class_weights=W, **mean)
    yield case("empty by targets", spec, nan_row, np.zeros((4, 3), np.float32))
    yield case(
        "bad label where all weights are 0", _ce(class_weights=(0, 0, 0), **mean), X, _i(0, 3, 1, 2)
    )

    # A NaN weight, or a divisor that it makes NaN, makes every gradient element of its positions
    # NaN, even of probabilities that the loss does not read.
    for divisor in ("weights", "all", "nonzero"):
        fields = {"from_logits": False, "divisor": divisor} | mean
        weight = _f32(1, NAN, 0, 2)
        yield case(f"NaN sample weight, p, {divisor}", _ce(**fields), P, Y, weight)
        yield case(f"NaN sample weight, p, dense, {divisor}", _ce(**fields), P, ONE_HOT, weight)
        yield case(
            f"NaN sample weight, binary p, {divisor}",
            _bce(**fields),
            P[:, 0],
            ONE_HOT[:, 0],
            weight,
        )
        yield case(
            f"NaN sample weight, class weights, {divisor}",
            _ce(class_weights=(0, 1, 1), **fields),
            P,
            Y,
            weight,
        )
        yield case(
            f"NaN sample weight, logits, {divisor}", _ce(divisor=divisor, **mean), X, Y, weight
        )
        yield case(
            f"bad label, p, weights, {divisor}",
            _ce(class_weights=W, **fields),
            P,
            _i(0, 3, 1, 2),
            _f32(1, 1, 0, 2),
        )
        nan_targets = np.vstack([_f32([NAN, 0, 1]), ONE_HOT[1:]])
        yield case(
            f"NaN dense target, p, {divisor}", _ce(class_weights=W, **fields), P, nan_targets
        )
    yield case(
        "NaN sample weight, p, clipped",
        _ce(from_logits=False, epsilon=0.25),
        P,
        Y,
        _f32(1, NAN, 1, 1),
    )
    yield case(
        "pos_weight 0 hides no NaN p",
        _bce(from_logits=False, pos_weight=0),
        _f32(NAN, NAN),
        _f32(1, 0),
    )


# ----------------------------------------------------------------- by hand: other libraries' losses


def ruled_edge_cases() -> Iterator[Case]:
    """The boundaries of the rules that exist for other libraries' losses.

    One case of each rule is compiled. Two of these also run where compilation is costly: one of the
    negative log-likelihood, and one whose formula compilers tend to rewrite (log(p + epsilon)).
    """

    def case(
        name: str, spec: Loss, predictions: Array, targets: Array, *rest: Any, **options: Any
    ) -> Case:
        return Case(f"edge/{name}", spec, predictions, targets, *rest, **options)

    yield from _likelihood_cases(case)
    yield from _renormalized_cases(case)
    yield from _clip_cases(case)
    yield from _class_weight_cases(case)
    yield from _element_weight_cases(case)
    yield from _averaged_cases(case)
    yield from _dtype_cases(case)


def _nll(**fields: Any) -> NegativeLogLikelihoodLoss:
    return NegativeLogLikelihoodLoss(**{"reduction": "none"} | fields)


def _mse(**fields: Any) -> MeanSquaredError:
    return MeanSquaredError(**{"reduction": "none"} | fields)


def _likelihood_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Any number may be a log-probability, and entries without weight are not read."""
    mean, both = {"reduction": "mean"}, {"compiled": True, "representative": True}
    logs = np.log(P)
    spec = _nll(class_weights=W, divisor="label_weights", ignore_index=-100, **mean)
    yield case("log-probabilities, index", spec, logs, _i(0, 1, -100, 2), _f32(1, 2, 3, 0), **both)
    yield case("log-probabilities, one-hot", spec, logs, ONE_HOT)
    odd = _f32([-INF, -1, INF], [NAN, -1, -INF], [0.5, 2.0**127, -0.0])
    every, each = np.vstack([odd] * 3), np.repeat(_i(0, 1, 2), 3)
    yield case("log-probabilities, special", _nll(), every, each)
    tiny = F32_TINY
    soft = _f32(
        [0, 1, 0], [0, 0.5, 0.25], [0.25, 0, 2], [tiny / 2, 1, 0], [1, -tiny / 2, 0], [tiny, 0, 1]
    )
    yield case("log-probabilities, special, dense", _nll(), every[:6], soft, compiled=True)
    hidden = _nll(class_weights=(0, 2, 0))
    yield case("log-probabilities, class weight 0, index", hidden, every, each)
    yield case("log-probabilities, class weight 0, dense", hidden, odd, np.ones((3, 3), np.float32))
    yield case("log-probabilities, empty mean", hidden.replace(**mean), odd, _i(0, 2, 0))
    yield case(
        "log-probabilities, NaN under weight 0", _nll(**mean), odd, _i(1, 0, 2), _f32(1, 0, 2)
    )
    yield case(
        "log-probabilities, bad label",
        _nll(class_weights=W, **mean),
        logs,
        _i(0, 3, 1, 2),
        compiled=True,
    )
    cube = -np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    spec = _nll(axis=1, class_weights=W)
    yield case("log-probabilities, axis 1", spec, cube, _i([0, 1, 2], [2, 0, 1]), dtype="bfloat16")


def _renormalized_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Probabilities divided by their sum, before or after they are clipped."""
    half = F32_TINY / 2
    rows = _f32([2, 1, 1], [0, 0, 0], [half, 0, 0], [-half, 1, 0], [NAN, 1, 1], [0.5, 0.25, 0.125])
    bad = _f32([-F32_TINY, 1, 1], [INF, 1, 1], [-INF, 1, 1], [8, 1, 1])
    for order, dtype in (("before_clip", "float16"), ("after_clip", "float64")):
        spec = _ce(from_logits=False, epsilon="keras", renormalize=order)
        far = spec.replace(epsilon=0.1875)
        yield case(
            f"12 {order}, index",
            far,
            np.vstack([rows, rows]),
            _i(*[0] * 6, *[1] * 6),
            compiled=True,
        )
        smoothed = far.replace(class_weights=W, label_smoothing=0.25)
        yield case(
            f"12 {order}, dense",
            smoothed,
            rows[[0, 3, 5]],
            _f32([1, 0, 0], [0, 2, 0], [0.5, 0, 0.5]),
        )
        yield case(f"12 {order}, bad", far, bad, _i(0, 0, 1, 1))
        weight = _f32(1, 0, 0, 2, 0, 3)
        yield case(
            f"12 {order}, keras, dropped rows",
            spec.replace(reduction="mean"),
            rows,
            _i(0, 1, 2, 0, 1, 2),
            weight,
        )
        yield case(f"12 {order}, {dtype}", spec, round_to(3 * P, dtype), Y, dtype=dtype)


def _clip_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Clip p, clamp log p, or add epsilon to p, each with its gradient."""
    p = np.array([[0, 1, 0.25, 0.75, 1e-20, 1e-7, 1 - 1e-7]] * 3)
    answers = np.broadcast_to(_f32([0], [1], [0.25]), p.shape)
    spec = _bce(from_logits=False, epsilon="keras")
    for dtype in ("float32", "float16", "bfloat16"):
        single = dtype == "float32"
        yield case(
            f"09 keras, {dtype}", spec, round_to(p, dtype), answers, dtype=dtype, compiled=single
        )
    yield case(
        "09 keras, classes",
        _ce(from_logits=False, epsilon="keras"),
        _f32([0, 1, 0], [0, 1, 0]),
        _i(0, 1),
    )
    # Leave out the values next to a bound.
    values = round_to(p[:, :5], "float16")
    yield case(
        "09 sklearn", spec.replace(epsilon="sklearn"), values, answers[:, :5], dtype="float16"
    )
    torch = spec.replace(epsilon="torch")
    yield case("10 torch", torch, round_to(p, "float32"), answers, compiled=True)
    # In float64, log p is clamped at 1e-45 and not at 1e-43. Below 1e-12 the slope is not 1 / p.
    deep = np.array(
        [[0, 1, 1e-45, 1e-43, 1e-13, 2e-12, 1 - 2.0**-53, 1 - 2.0**-40, 1 - 2.0**-30, 0.5]] * 3
    )
    wide = np.broadcast_to(np.array([[0.0], [1], [0.25]]), deep.shape)
    yield case("10 torch, float64", torch, deep, wide, dtype="float64")
    smoothed = torch.replace(label_smoothing=0.1, reduction="mean", divisor="all")
    yield case(
        "10 torch, smoothed", smoothed, _f32(0, 1, 0.5, NAN), _f32(1, 0, 1, 0), _f32(1, 2, 3, 0)
    )
    values = np.tile(_f32(0, 1, 0.25, 1e-7, 1 + 2.0**-22, F32_TINY / 2, NAN), (3, 1))
    added = _bce(from_logits=False, epsilon=1e-7, epsilon_added=True)
    yield case("09 epsilon added", added, values, answers, compiled=True, representative=True)
    large = added.replace(epsilon=0.375)
    yield case("09 epsilon added, large", large, round_to(p, "bfloat16"), answers, dtype="bfloat16")


def _class_weight_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Class weights inside or outside the smoothing, torch's divisors, pos_weight's axis, scale."""
    mean = {"reduction": "mean"}
    dense = _f32([1, 0, 0], [0, 0.5, 0.5], [2, 0.25, 0], [0, 0, 1])
    spec = _ce(class_weights=(0, 2, 4), class_weighting="position", label_smoothing=0.25, **mean)
    yield case("18 weighted positions, logits", spec, X, Y)
    yield case("18 weighted positions, logits, dense", spec, X, dense, compiled=True)
    yield case("18 weighted positions, p, dense", spec.replace(from_logits=False), P, dense)
    spec = _ce(from_logits=False, class_weights=(0, 2), class_weighting="position")
    odd = _f32([0, 1], [0, 1], [NAN, 1], [0, 1])
    yield case("18 weighted positions, special", spec, odd, _i(0, 1, 0, 1))
    yield case(
        "18 weighted positions, special, dense", spec, odd, _f32([1, 0], [0, 1], [1, 0], [0.5, 0.5])
    )
    yield case("18 weighted positions, empty", spec.replace(**mean), odd, _i(0, 0, 0, 0))
    for targets in (Y, ONE_HOT):
        spec = _ce(class_weights=W, divisor="label_weights", scale=3.0, **mean)
        yield case(
            f"02 label weights, {targets.dtype}", spec, X, targets, compiled=targets is ONE_HOT
        )
    cube = (np.arange(12, dtype=np.float32).reshape(2, 3, 2) - 5) / 4
    weighted = _bce(pos_weight=(1.0, 0.0, 2.5), axis=1)
    yield case("pos_weight along axis 1", weighted, cube, np.asarray(cube > 0.3), compiled=True)


def _element_weight_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Element weights, as torch's BCELoss and mse_loss have them."""
    spec = _mse(element_weights=(1, 0, 3), divisor="nonzero", scale=0.5, reduction="mean")
    yield case("35 element weights", spec, X, ONE_HOT, _f32(1, 0, 2, 3), compiled=True)
    hidden = _bce(element_weights=(1, 0))
    odd, answers = _f32([0.5, NAN], [0.25, 7]), _f32([1, -3], [0, NAN])
    yield case(
        "35 element weight 0 hides everything", hidden.replace(from_logits=False), odd, answers
    )
    bad = _bce(element_weights=((1,), (2,)), reduction="mean")
    yield case("35 element weights, bad element", bad, odd, _f32([1, 0], [0, 2]))
    tiny = _mse(element_weights=(1e-30, 1, 1e-50))
    yield case(
        "35 product of weights is 0",
        tiny,
        _f32([NAN, 1, NAN], [1, 2, 3]),
        0 * X[:2],
        _f32(1e-15, 1),
    )
    unknown = hidden.replace(reduction="mean")
    yield case("35 NaN weight beside others", unknown, X[:2, :2], ONE_HOT[:2, :2], _f32(NAN, 1))


def _averaged_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """Means over the last axis, which Keras takes before it weights and reduces."""
    grid = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    mask = np.array([[True, False], [True, True]])
    spec = _mse(average_last_axis=True, divisor="present", reduction="mean")
    yield case("21 averaged", spec, grid, 0 * grid, _f32(1, 0), mask, compiled=True)
    # In some positions only some elements have weight.
    some = spec.replace(element_weights=((0, 0, 0), (0, 1, 3)), scale=2.0, divisor="nonzero")
    yield case("22 averaged, element weights", some, grid, 0 * grid, _f32(1, 2))
    rows = _bce(average_last_axis=True, element_weights=(1, 2, 0))
    one = ONE_HOT[:2].reshape(1, 2, 3)
    yield case("24 averaged rows", rows, X[:2].reshape(1, 2, 3), one, _f32([3, 0.5]), compiled=True)
    keras = _bce(from_logits=False, average_last_axis=True, epsilon="keras")
    yield case("21 averaged, bad element", keras, _f32([0.5, 2], [0.5, 0.25]), _f32([1, 1], [1, 0]))
    mean = keras.replace(reduction="mean", on_empty="zero")
    yield case(
        "21 averaged, NaN dropped",
        mean,
        _f32([0.5, NAN], [0, 1]),
        np.eye(2, dtype=bool),
        _f32(0, 2),
    )
    yield case("21 averaged, empty mean", mean, P[:2], ONE_HOT[:2], _f32(0, 0))
    half = _mse(average_last_axis=True)
    yield case("21 averaged in float16", half, 100 * grid, 0 * grid, dtype="float16")


def _dtype_cases(case: Callable[..., Case]) -> Iterator[Case]:
    """A spec that names a dtype casts all its inputs to it."""
    keras = _ce(
        from_logits=False,
        epsilon="keras",
        renormalize="before_clip",
        dtype="float32",
        reduction="mean",
    )
    wide = np.float64(P) + 1e-9
    yield case(
        "39 float64 in float32",
        keras,
        wide,
        np.float64(ONE_HOT),
        np.array([1, 2, 3, 1e-50]),
        dtype="float64",
    )
    spec, small = _bce(dtype="float32"), np.array([1, 2, 3, 0], np.float16)
    yield case(
        "39 float16 in float32",
        spec,
        round_to(X, "float16"),
        ONE_HOT,
        small,
        dtype="float16",
        compiled=True,
    )
    # The predictions are float64, so that JAX runs the case with x64 enabled.
    beside = spec.replace(dtype="float64")
    yield case(
        "39 float32 beside float64",
        beside,
        np.float64(X),
        ONE_HOT,
        _f32(1, 2, 3, F32_TINY / 2),
        dtype="float64",
    )
    squares = _mse(dtype="float32", average_last_axis=True, reduction="mean")
    yield case(
        "39 float64 averaged in float32",
        squares,
        1e9 + wide,
        1e9 * np.ones((4, 3)),
        dtype="float64",
    )
    p, t = np.array([1e-40, 2.0**-126, 0.5]), np.array([1, 1e-40, 1e-50])
    yield case("39 subnormal in float32", spec.replace(from_logits=False), p, t, dtype="float64")


# -------------------------------------------------------------------------------------- the product


def rule_cases() -> Iterator[Case]:
    """The rules of other libraries' losses: pairs of their fields, with fewer values per field."""
    companions: dict[str, Sequence[Any]] = {
        "reduction": ("mean", "sum", "none"),
        "on_empty": ("nan",),
        "weight": (None, "zeros"),
        "mask": (None, "full"),
        "dtype": ("float32", "bfloat16"),
        "upstream": (None, "given"),
        "scale": (1.0, 2.5),
    }
    axes = companions | {
        "divisor": ("weights", "label_weights"),
        "shape": ((4, 3), (2, 3, 4)),
        "kind": ("index", "dense"),
        "loss": ("likelihood", "before_clip", "after_clip", "position"),
        "label_smoothing": (0.0, 0.1),
    }
    for number, row in enumerate(_pairs(axes, seed=21)):
        yield _ruled_rows(f"rules/rows {number:03}", row)
    axes = companions | {
        "divisor": ("weights", "nonzero"),
        "shape": ((3, 4), (2, 3, 4)),
        "loss": ("binary", "regression"),
        "element_weights": (None, "last", "all"),
        "average_last_axis": (False, True),
    }
    for number, row in enumerate(_pairs(axes, seed=22)):
        yield _ruled_elements(f"rules/elements {number:03}", row)


def _ruled_rows(name: str, row: dict[str, Any]) -> Case:
    rng = _rng(name)
    shape, kind, loss = row["shape"], row["kind"], row["loss"]
    positions = shape[:1] + shape[2:]
    targets: Array = rng.integers(shape[1], size=positions)
    if kind == "dense":
        targets = _softmax(rng.normal(size=shape), 1).astype(np.float32)
    fields: dict[str, Any] = {"axis": 1, "class_weights": rng.uniform(0.5, 2, shape[1])} | _fields(
        row
    )
    predictions = rng.uniform(0.05, 3, size=shape)
    spec: Loss
    if loss == "likelihood":
        spec, predictions = NegativeLogLikelihoodLoss(**fields), -predictions
    else:
        fields |= {"label_smoothing": row["label_smoothing"], "scale": row["scale"]}
        if loss == "position":
            spec = CrossEntropyLoss(from_logits=True, class_weighting="position", **fields)
        else:
            spec = CrossEntropyLoss(epsilon="keras", renormalize=loss, **fields)
            predictions = np.minimum(predictions, 0.9) if loss == "after_clip" else predictions
    return Case(
        name, spec, round_to(predictions, row["dtype"]), targets, **_common(rng, row, positions)
    )


def _ruled_elements(name: str, row: dict[str, Any]) -> Case:
    rng = _rng(name)
    shape = row["shape"]
    positions = shape[:-1] if row["average_last_axis"] else shape
    weights = {
        None: None,
        "last": rng.uniform(0.5, 2, shape[-1]),
        "all": rng.uniform(0.5, 2, shape).round(1),
    }
    fields = _fields(row, "scale", "average_last_axis") | {
        "element_weights": weights[row["element_weights"]]
    }
    predictions, targets = rng.normal(size=shape), rng.random(shape).astype(np.float32)
    spec: Loss = MeanSquaredError(**fields)
    if row["loss"] == "binary":
        predictions = rng.uniform(0.05, 0.95, shape)
        spec = BinaryCrossEntropyLoss(
            epsilon="keras", pos_weight=rng.uniform(0.5, 2, shape[1]), axis=1, **fields
        )
    return Case(
        name, spec, round_to(predictions, row["dtype"]), targets, **_common(rng, row, positions)
    )


def _pairs(axes: dict[str, Sequence[Any]], seed: int) -> list[dict[str, Any]]:
    """Choose rows of one value per axis so that each pair of values occurs (greedy, seeded)."""
    names = list(axes)
    sizes = [len(axes[name]) for name in names]
    rng = np.random.default_rng(seed)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }
    rows = []
    while missing:
        a, i, b, j = min(missing)
        best, covered = None, -1
        for _ in range(30):
            row = [int(rng.integers(n)) for n in sizes]
            row[a], row[b] = i, j
            new = sum(
                (c, row[c], d, row[d]) in missing
                for c, d in itertools.combinations(range(len(names)), 2)
            )
            if new > covered:
                best, covered = row, new
        assert best is not None
        missing -= {
            (c, best[c], d, best[d]) for c, d in itertools.combinations(range(len(names)), 2)
        }
        rows.append({name: axes[name][k] for name, k in zip(names, best, strict=True)})
    return rows


_REDUCED: dict[str, Sequence[Any]] = {
    "reduction": ("mean", "sum", "none"),
    "divisor": ("weights", "present", "nonzero", "all"),
    "on_empty": ("nan", "zero"),
    "weight": (None, "full", "leading", "scalar", "zeros"),
    "mask": (None, "full", "leading", "nothing"),
    "dtype": ("float32", "float64", "float16", "bfloat16"),
    "upstream": (None, "given"),
}


def product_cases() -> Iterator[Case]:
    """All losses, input and target kinds, with each pair of fields, dtypes and shapes."""
    for from_logits in (True, False):
        for kind in ("index", "dense"):
            axes = _REDUCED | {
                "shape": (
                    ((4, 3), None),
                    ((2, 5, 3), -1),
                    ((2, 3, 2, 2), 1),
                    ((5,), None),
                    ((3, 7), 0),
                    ((1, 1), None),
                ),
                "class_weights": (None, "given", "with zero"),
                "label_smoothing": (0.0, 0.1, 1.0),
                "epsilon": (0.0,) if from_logits else (0.0, 1e-7, 0.2),
                "ignore_index": (None, -100, (-1, 1)) if kind == "index" else (None, -100),
                "target_dtype": ("int64", "int32", "uint8")
                if kind == "index"
                else ("float32", "float64"),
            }
            for number, row in enumerate(_pairs(axes, seed=11)):
                yield _categorical(
                    f"product/{_source(from_logits)} {kind} {number:03}", from_logits, kind, row
                )
        axes = _REDUCED | {
            "shape": ((6,), (3, 4), (2, 3, 4), ()),
            "pos_weight": (None, 3.0, "given"),
            "label_smoothing": (0.0, 0.1, 1.0),
            "epsilon": (0.0,) if from_logits else (0.0, 1e-7, 0.2),
            "target_dtype": ("float32", "float64", "int64", "bool"),
        }
        for number, row in enumerate(_pairs(axes, seed=12)):
            yield _binary(f"product/{_source(from_logits)} binary {number:03}", from_logits, row)
    axes = _REDUCED | {
        "shape": ((6,), (3, 4), (2, 3, 4), ()),
        "target_dtype": ("float32", "float64", "int32", "bool"),
    }
    for number, row in enumerate(_pairs(axes, seed=13)):
        yield _regression(f"product/regression {number:03}", row)


def _source(from_logits: bool) -> str:
    return "logits" if from_logits else "probabilities"


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def round_to(x: Array, dtype: str) -> Array:
    """Values rounded to a dtype; bfloat16 in a float32 array."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _common(
    rng: np.random.Generator, row: dict[str, Any], positions: tuple[int, ...]
) -> dict[str, Any]:
    """Weights, mask and upstream gradient for a per-position loss of this shape."""
    leading = positions[:1]
    weight = {
        None: None,
        "full": rng.uniform(0.5, 2, positions),
        "leading": rng.uniform(0.5, 2, leading),
        "scalar": np.array(0.75),
        "zeros": rng.uniform(0.5, 2, positions) * (rng.random(positions) < 0.5),
    }[row["weight"]]
    mask = {
        None: None,
        "full": rng.random(positions) < 0.6,
        "leading": rng.random(leading) < 0.7,
        "nothing": np.zeros(positions, bool),
    }[row["mask"]]
    upstream: Any = None
    if row["upstream"]:
        normal = np.asarray(rng.normal(size=positions))
        upstream = -1.5
        if row["reduction"] == "none":
            upstream = np.asarray(round_to(normal, row["dtype"]), np.float32)
    return {
        "sample_weight": None if weight is None else weight.astype(np.float32),
        "mask": None if mask is None else np.asarray(mask),
        "upstream": upstream,
        "dtype": row["dtype"],
    }


def _fields(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in ("reduction", "divisor", "on_empty", *names)}


def _softmax(z: Array, axis: int) -> Array:
    e = np.exp(z - z.max(axis, keepdims=True))
    p: Array = e / e.sum(axis, keepdims=True)
    return p


def _categorical(name: str, from_logits: bool, kind: str, row: dict[str, Any]) -> Case:
    rng = _rng(name)
    shape, axis = row["shape"]
    at = len(shape) - 1 if axis is None else axis % len(shape)
    classes = shape[at]
    positions = shape[:at] + shape[at + 1 :]
    predictions = rng.normal(scale=3, size=shape)
    if not from_logits:
        predictions = _softmax(predictions, at)
    if kind == "index":
        targets = rng.integers(classes, size=positions)
        if row["ignore_index"] is not None and row["target_dtype"] != "uint8":
            ignored = row["ignore_index"] if isinstance(row["ignore_index"], int) else -1
            targets = np.where(rng.random(positions) < 0.3, ignored, targets)
        targets = np.asarray(targets)
    else:
        targets = _softmax(rng.normal(size=shape), at) * (rng.random(shape) < 0.8)
    weights = None
    if row["class_weights"]:
        weights = rng.uniform(0.5, 2, classes)
        if row["class_weights"] == "with zero":
            weights[0] = 0.0
    spec = CrossEntropyLoss(
        from_logits=from_logits,
        axis=axis,
        class_weights=weights,
        **_fields(row, "label_smoothing", "epsilon", "ignore_index"),
    )
    common = _common(rng, row, positions)
    return Case(
        name,
        spec,
        round_to(predictions, row["dtype"]),
        targets.astype(row["target_dtype"]),
        **common,
    )


def _binary(name: str, from_logits: bool, row: dict[str, Any]) -> Case:
    rng = _rng(name)
    shape = row["shape"]
    predictions = np.asarray(rng.normal(scale=3, size=shape))
    if not from_logits:
        predictions = 1 / (1 + np.exp(-predictions))
    targets = np.asarray(rng.random(shape))
    if not row["target_dtype"].startswith("float"):
        targets = np.asarray(targets < 0.5)
    pos_weight: Any = row["pos_weight"]
    if pos_weight == "given":
        pos_weight = rng.uniform(0.5, 3, shape[-1]) if shape else 0.5
    spec = BinaryCrossEntropyLoss(
        from_logits=from_logits, pos_weight=pos_weight, **_fields(row, "label_smoothing", "epsilon")
    )
    common = _common(rng, row, shape)
    return Case(
        name,
        spec,
        round_to(predictions, row["dtype"]),
        targets.astype(row["target_dtype"]),
        **common,
    )


def _regression(name: str, row: dict[str, Any]) -> Case:
    rng = _rng(name)
    shape = row["shape"]
    predictions = np.asarray(rng.normal(scale=3, size=shape))
    targets = np.asarray(rng.normal(scale=3, size=shape))
    if not row["target_dtype"].startswith("float"):
        targets = np.rint(targets) if row["target_dtype"] != "bool" else targets > 0
    spec = MeanSquaredError(**_fields(row))
    common = _common(rng, row, shape)
    return Case(
        name,
        spec,
        round_to(predictions, row["dtype"]),
        targets.astype(row["target_dtype"]),
        **common,
    )


# ---------------------------------------------------------------------------------------- at random


def random_cases(count: int = 40, seed: int = 2026) -> Iterator[Case]:
    """Default fields on more varied data: up to 8 rows, 39 classes and logits of spread 60."""
    for number in range(count):
        name = f"random/{seed}.{number:03}"
        rng = _rng(name)
        spread = float(rng.choice([0.1, 1, 10, 60]))
        rows, classes = int(rng.integers(1, 9)), int(rng.integers(2, 40))
        reduction: Any = str(rng.choice(["mean", "sum", "none"]))
        dtype = str(rng.choice(["float32", "float32", "float64", "bfloat16", "float16"]))
        z = round_to(rng.normal(scale=spread, size=(rows, classes)), dtype)
        spec: Loss
        if number % 4 == 0:
            spec = BinaryCrossEntropyLoss(from_logits=True, reduction=reduction)
            targets = rng.random((rows, classes))
        elif number % 4 == 1:
            spec = MeanSquaredError(reduction=reduction)
            targets = rng.normal(scale=spread, size=(rows, classes))
        elif number % 4 == 2:
            spec = CrossEntropyLoss(from_logits=True, reduction=reduction)
            targets = _softmax(z.astype(np.float64), 1)
        else:
            spec = CrossEntropyLoss(from_logits=True, reduction=reduction)
            yield Case(name, spec, z, rng.integers(classes, size=rows), dtype=dtype)
            continue
        yield Case(name, spec, z, targets.astype(np.float32), dtype=dtype)


# -------------------------------------------------------------------------------------- the softmax

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
        name: str, dtype: str, logits: Any, axis: int | None = None, **options: Any
    ) -> SoftmaxCase:
        return SoftmaxCase(
            f"softmax/{name}", round_to(np.array(logits, np.float64), dtype), axis, dtype, **options
        )

    for dtype, gaps in _GAPS.items():
        single = dtype == "float32"
        rng = _rng(f"softmax/{dtype}")
        yield case(
            f"gaps, {dtype}",
            dtype,
            [[0, -gap] for gap in gaps],
            compiled=True,
            representative=single,
        )
        yield case(f"gap and ties, {dtype}", dtype, [[1, gaps[0] + 1, gaps[0] + 1, 2]])
        yield case(f"special, {dtype}", dtype, _SPECIAL_LOGITS, compiled=single)
        offset = 6e4 if dtype == "float16" else 1e5
        yield case(
            f"offset, {dtype}", dtype, offset + rng.normal(scale=3, size=(3, 4)), compiled=single
        )
        yield case(f"offset below, {dtype}", dtype, rng.normal(scale=3, size=(3, 4)) - offset)
        yield case(f"rows, {dtype}", dtype, rng.normal(scale=3, size=(4, 5)), compiled=True)
        yield case(
            f"axis 1 of 3, {dtype}", dtype, rng.normal(scale=10, size=(2, 3, 4)), 1, compiled=single
        )
    rng = _rng("softmax")
    for axis in (0, -1, -2):
        cube = rng.normal(scale=3, size=(3, 3, 3))
        yield case(
            f"axis {axis} of 3", "float32", cube, axis, compiled=True, representative=axis == 0
        )
    yield case("class axis first", "float32", rng.normal(size=(3, 4)), 0)
    yield case("one row", "float32", rng.normal(size=5), compiled=True)
    yield case("one class", "float32", [[7], [-1e5], [NAN], [INF], [-INF]], compiled=True)
    yield case("empty batch", "float32", np.zeros((0, 3)), compiled=True)
    yield case("many classes", "float32", rng.normal(scale=5, size=(2, 150)))


def bad_softmax_calls() -> Iterator[SoftmaxCase]:
    """Calls of the softmax that must raise the same error in every backend."""
    cube = np.zeros((2, 3, 3), np.float32)
    yield SoftmaxCase("softmax/axis not named", cube)
    yield SoftmaxCase("softmax/axis out of range", cube, 3)
    yield SoftmaxCase("softmax/axis out of range below", X, -3)
    yield SoftmaxCase("softmax/scalar logits", np.array(1.0, np.float32))
    yield SoftmaxCase("softmax/integer logits", X.astype(np.int32), dtype="int32")
    yield SoftmaxCase("softmax/bool logits", X > 0, dtype="bool")
    yield SoftmaxCase("softmax/no classes", np.zeros((4, 0), np.float32))


# ---------------------------------------------------------------------------------------- bad calls


def bad_calls() -> Iterator[BadCall]:
    """Calls of a loss that must raise the same error in every backend."""
    z, y, t = X, Y, ONE_HOT
    ce, bce = CrossEntropyLoss(from_logits=True), BinaryCrossEntropyLoss(from_logits=True)
    mse = MeanSquaredError()
    cube = np.zeros((2, 3, 3), np.float32)
    yield BadCall("19 column against vector", mse, _f32([1], [2], [3]), _f32(1, 2, 3))
    yield BadCall("20 binary column against vector", bce, _f32([1], [2]), _f32(1, 0))
    yield BadCall("labels as a column", ce, z, y[:, None])
    yield BadCall("labels one-hot in integers", ce, z, t.astype(np.int64))
    yield BadCall("too few labels", ce, z, y[:3])
    yield BadCall("labels broadcast", ce, z, y[:1])
    yield BadCall("dense targets of another shape", ce, z, t[:, :2])
    yield BadCall("bool labels", ce, z, y > 0)
    yield BadCall("integer predictions", ce, z.astype(np.int32), y)
    yield BadCall("axis not named", ce, cube, np.zeros((2, 3), np.int64))
    yield BadCall("axis out of range", CrossEntropyLoss(axis=2), z, y)
    yield BadCall("scalar predictions", ce, np.array(1.0, np.float32), np.array(0))
    yield BadCall("no classes", ce, np.zeros((4, 0), np.float32), y)
    yield BadCall("too many class weights", ce.replace(class_weights=(1, 2, 3, 4)), z, y)
    yield BadCall("dense with an ignored class", ce.replace(ignore_index=1), z, t)
    yield BadCall("wrong number of pos_weight", bce.replace(pos_weight=(1, 2)), z, t)
    yield BadCall("35 element weights of another shape", mse.replace(element_weights=(1, 2)), z, t)
    yield BadCall(
        "35 element weights of too many axes", mse.replace(element_weights=[[[1, 2, 3]]]), z, t
    )
    yield BadCall("pos_weight along another axis", bce.replace(pos_weight=(1, 2, 3), axis=0), z, t)
    yield BadCall("pos_weight along no axis", bce.replace(pos_weight=(1, 2, 3), axis=2), z, t)
    yield BadCall("22 one axis, averaged", mse.replace(average_last_axis=True), z[0], t[0])
    yield BadCall(
        "22 weights of elements that are averaged",
        mse.replace(average_last_axis=True),
        z,
        t,
        np.ones((4, 3)),
    )
    yield BadCall("labels one too many, log-probabilities", NegativeLogLikelihoodLoss(), z, y[:3])
    yield BadCall("mask of numbers", ce, z, y, None, np.ones(4, np.float32))
    yield BadCall("bool sample weights", ce, z, y, np.ones(4, bool))
    yield BadCall("weights on a trailing axis", mse, z, t, np.ones(3, np.float32))
    yield BadCall("mask of too many axes", mse, z, t, None, np.ones((4, 3, 1), bool))
    for name, labels in (
        ("-1", _i(0, -1, 1, 2)),
        ("3", _i(0, 1, 3, 2)),
        ("-100", _i(-100, 1, 0, 2)),
    ):
        yield BadCall(f"label {name}", ce, z, labels, reads=True)
    yield BadCall("logits as probabilities", CrossEntropyLoss(), z, y, reads=True)
    yield BadCall("binary logits as probabilities", BinaryCrossEntropyLoss(), z, t, reads=True)
    renormalized = CrossEntropyLoss(epsilon="keras", renormalize="before_clip")
    yield BadCall("logits that are divided by their sum", renormalized, z, y, reads=True)
    yield BadCall(
        "label 3, log-probabilities", NegativeLogLikelihoodLoss(), z, _i(0, 1, 3, 2), reads=True
    )
    unweighted = mse.replace(element_weights=(0, 0, 0), on_empty="error")
    yield BadCall("no element weighs", unweighted, z, t, reads=True)
    yield BadCall("negative dense target", ce, z, t - np.float32(0.5), reads=True)
    yield BadCall("binary target 2", bce, z, t * 2, reads=True)
    yield BadCall("negative weight", ce, z, y, _f32(1, -1, 1, 1), reads=True)
    yield BadCall(
        "nothing to divide by", ce.replace(on_empty="error"), z, y, _f32(0, 0, 0, 0), reads=True
    )
    yield BadCall("an empty batch", mse.replace(on_empty="error"), z[:0], t[:0], reads=True)


# To compile a case takes up to a thousand times as long as to run it. The variants of one rule are
# neighbours in the list of edge cases, so every fourth case covers each rule. Of a product, only as
# few cases are compiled as cover every value of every field.
_EVERY_EDGE = 4
_EVERY_REPRESENTATIVE = 12


def _traits(case: Case) -> set[tuple[str, Any]]:
    """The traits of a case: the value of each field, shapes, dtypes, and which inputs it has."""
    traits: dict[str, Any] = {name: getattr(case.spec, name) for name in case.spec.declarations}
    # These numbers are random, so only their kind is a trait.
    for name in ("class_weights", "pos_weight", "element_weights"):
        if isinstance(values := traits.get(name), tuple):
            traits[name] = "with zero" if 0 in values else "given"
    traits |= {
        "shape": case.predictions.shape,
        "dtype": case.dtype,
        "target_dtype": case.targets.dtype.name,
    }
    if case.sample_weight is not None:
        traits |= {"weight": case.sample_weight.ndim, "some weigh": bool(case.sample_weight.any())}
        traits["zero weight"] = bool((case.sample_weight == 0).any())
    if case.mask is not None:
        traits |= {"mask": case.mask.ndim, "some kept": bool(case.mask.any())}
    traits |= {"weighted": case.sample_weight is not None, "masked": case.mask is not None}
    traits["upstream"] = case.upstream is not None
    return set(traits.items())


def _cover(cases: Sequence[Case]) -> list[Case]:
    """A few cases that together have all traits of the given ones (greedy)."""
    missing = set[tuple[str, Any]]().union(*map(_traits, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(_traits(case) & missing))
        missing -= _traits(best)
        chosen.append(best)
    return chosen


def _every(nth: int, cases: Sequence[Case]) -> list[Case]:
    """Every nth case of each loss."""
    losses = (CrossEntropyLoss, BinaryCrossEntropyLoss, MeanSquaredError, NegativeLogLikelihoodLoss)
    chosen = []
    for loss in losses:
        chosen += [case for case in cases if isinstance(case.spec, loss)][::nth]
    return chosen


def all_cases() -> list[Case]:
    """All cases of the losses, in a fixed order; compiled and representative ones are marked."""
    edges, products = list(edge_cases()), list(product_cases())
    ruled_edges, rules = list(ruled_edge_cases()), list(rule_cases())
    chosen = _every(_EVERY_EDGE, edges)
    for _, group in itertools.groupby(products, key=lambda case: case.name.rpartition(" ")[0]):
        chosen += _cover(list(group))
    representative = {case.name for case in _every(_EVERY_REPRESENTATIVE, chosen)}
    representative |= {case.name for case in ruled_edges if case.representative}
    chosen += [case for case in ruled_edges if case.compiled] + _every(_EVERY_EDGE, rules)
    compiled = {case.name for case in chosen}
    at_random = list(random_cases())
    of_backend = {case.name for case in _every(_EVERY_EDGE, edges)[1::2]} - representative
    not_compiled = [case for case in (*products, *at_random) if case.name not in compiled]
    of_backend |= {case.name for case in not_compiled[1::2]}
    cases = [
        dataclasses.replace(
            case,
            compiled=case.name in compiled,
            representative=case.name in representative,
            of_backend=case.name in of_backend,
        )
        for case in (*edges, *ruled_edges, *rules, *products, *at_random)
    ]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases share a name"
    return cases
