"""The cases of the squared error."""

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
    round_to,
)
from unifiedloss.conformance.data import INF, NAN, ONE_HOT, P, X, f32, ints
from unifiedloss.conformance.product import (
    REAL,
    Row,
    companions,
    draws,
    element_weights,
    fields_of,
    product,
    real_case,
    rule_rows,
)
from unifiedloss.losses.mean_squared_error.hard import hard_cases
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError

leading_case = proving("leading-weights", "divisor")
dropped_case = proving("dropped")
dtype_case = proving("target-dtypes")
wide_case = proving("float64-targets")
sum_case = proving("reduction")
half_case = proving("half-dtypes", "result-dtype")
ieee_case = proving("ieee-errors", "gradient-squared-error")
integer_case = proving("bad-integer-target", "target-dtypes")
element_case = proving("element-weights")
product_case = proving("element-weights", "product-of-weights")
averaged_case = proving("average-last-axis")
poisoned_case = proving("average-last-axis", "nan-targets-and-weights")
bad_row_case = proving("average-last-axis", "bad-integer-target", "bad-values")
tiny_weight_case = proving("element-weights", "tiny-sample-weights", "zero-weighted")
cast_case = proving("dtype")


def _mse(**fields: Any) -> MeanSquaredError:
    return MeanSquaredError(**{"reduction": "none"} | fields)


def edge_cases() -> Iterator[Case]:
    """The known disagreements between frameworks, and the boundaries of each rule."""
    yield from _weights()
    yield from _targets()
    yield from _sums()


def _weights() -> Iterator[Case]:
    """Weights align with the leading axes, and a masked NaN is not read."""
    error, errors = f32(1, 2), np.zeros(2, np.float32)
    yield leading_case("22 one axis, weighted", MeanSquaredError(), error, errors, f32(1, 3))
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    yield leading_case(
        "23 leading weights, weighted mean", MeanSquaredError(), grid, 0 * grid, f32(1, 3)
    )
    yield leading_case(
        "23 leading weights of full rank",
        MeanSquaredError(),
        grid,
        0 * grid,
        np.repeat(f32([1], [3]), 3, 1),
    )
    yield leading_case(
        "24 weights scale examples",
        MeanSquaredError(reduction="none"),
        grid[:, :2],
        0 * grid[:, :2],
        f32(1, 3),
    )
    yield dropped_case(
        "32 NaN squared error masked",
        MeanSquaredError(),
        f32(NAN, 1),
        f32(0, 3),
        None,
        np.array([False, True]),
    )


def _targets() -> Iterator[Case]:
    """Targets of every dtype."""
    for dtype in ("bool", "int8", "int64", "uint8", "float64", "float16"):
        answers = ints(0, 1, 1, dtype=dtype)
        name = answers.dtype.name
        yield dtype_case(
            f"squared error, targets of {name}", MeanSquaredError(), f32(0, 1, 2.5), answers
        )
    yield wide_case(
        "squared error, targets in float64",
        MeanSquaredError(reduction="none"),
        f32(1, 2),
        np.array([1 + 1e-9, 2.5]),
    )


def _sums() -> Iterator[Case]:
    """Sums run over all elements; half types accumulate in float32 and round once at the end."""
    yield sum_case(
        "21 sum of squares",
        MeanSquaredError(reduction="sum"),
        f32([1, 2], [3, 4]),
        np.zeros((2, 2), np.float32),
    )
    many = np.full(3000, 0.5, np.float32)
    yield half_case("26 float16 mean of many", MeanSquaredError(), many, 0 * many, dtype="float16")
    yield half_case(
        "27 float16 sum past its largest",
        MeanSquaredError(reduction="sum"),
        f32(200, 200),
        f32(0, 0),
        dtype="float16",
    )
    yield half_case(
        "26 float16 error 300",
        MeanSquaredError(reduction="none"),
        f32(300),
        f32(0),
        dtype="float16",
    )
    yield ieee_case(
        "squared error, IEEE",
        MeanSquaredError(reduction="none"),
        f32(INF, INF, NAN, 1e30, 0),
        f32(0, INF, 0, -1e30, -0.0),
    )
    big = np.array([2**53, -(2**53), 2**53 + 1, 3])
    yield integer_case(
        "integer targets at 2^53", MeanSquaredError(reduction="none"), f32(0, 0, 0, 0), big
    )


def marked_cases() -> Iterator[Case]:
    """The rules that exist for other libraries' losses; one case of each is compiled."""
    yield from _element_weights()
    yield from _averaged()
    yield from _dtype()


def _element_weights() -> Iterator[Case]:
    """Element weights, as torch's mse_loss has them."""
    spec = _mse(element_weights=(1, 0, 3), divisor="nonzero", scale=0.5, reduction="mean")
    yield element_case("35 element weights", spec, X, ONE_HOT, f32(1, 0, 2, 3), compiled=True)
    tiny = _mse(element_weights=(1e-30, 1, 1e-50))
    yield product_case(
        "35 product of weights is 0",
        tiny,
        f32([NAN, 1, NAN], [1, 2, 3]),
        0 * X[:2],
        f32(1e-15, 1),
    )
    for divisor in ("weights", "nonzero"):
        large = _mse(element_weights=1e10, divisor=divisor, reduction="mean")
        yield tiny_weight_case(
            f"35 subnormal weight of a large one, {divisor}",
            large,
            f32(NAN, 3),
            f32(0, 0),
            f32(1e-40, 1),
            compiled=divisor == "nonzero",
        )
    unread = np.array([2**53 + 1, 0])
    yield tiny_weight_case(
        "35 subnormal weight, bad target",
        _mse(element_weights=1e10),
        f32(2, 3),
        unread,
        f32(1e-40, 1),
    )
    wide = _mse(element_weights=(1e-20, 1e20), divisor="nonzero", reduction="mean")
    yield tiny_weight_case(
        "35 float32 weights of float64 predictions",
        wide,
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.zeros((2, 2)),
        f32(1e-20, 1e-40),
        dtype="float64",
    )


def _averaged() -> Iterator[Case]:
    """Means over the last axis, which Keras takes before it weights and reduces."""
    grid = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    mask = np.array([[True, False], [True, True]])
    spec = _mse(average_last_axis=True, divisor="present", reduction="mean")
    yield averaged_case("21 averaged", spec, grid, 0 * grid, f32(1, 0), mask, compiled=True)
    # In some positions only some elements have weight.
    some = spec.replace(element_weights=((0, 0, 0), (0, 1, 3)), scale=2.0, divisor="nonzero")
    yield averaged_case("22 averaged, element weights", some, grid, 0 * grid, f32(1, 2))
    half = _mse(average_last_axis=True)
    yield averaged_case("21 averaged in float16", half, 100 * grid, 0 * grid, dtype="float16")
    # A NaN target poisons its row, a NaN prediction only its own derivative, and neither does
    # where it has no weight.
    rows = f32([1, 2, 3], [1, NAN, 3], [1, 2, 3], [1, 2, NAN])
    targets = f32([NAN, 0, 0], [0, 0, 0], [0, 0, NAN], [0, 0, NAN])
    for name, more in (("", {}), (", element weights", {"element_weights": (1, 2, 0)})):
        yield poisoned_case(
            f"21 averaged, NaN target{name}", _mse(average_last_axis=True, **more), rows, targets
        )
    mean = MeanSquaredError(average_last_axis=True)
    yield poisoned_case(
        "21 averaged, NaN target, weighted mean", mean, rows, targets, f32(1, 2, 1, 1)
    )
    summed = _mse(average_last_axis=True, element_weights=(1, 2, 0), reduction="sum")
    yield poisoned_case(
        "21 averaged, NaN weight", summed, rows[2:], 0 * rows[:2], f32(1, NAN), compiled=True
    )
    odd = np.array([[2**53 + 1, 0, 0], [0, 0, 2**53 + 1]])
    yield bad_row_case(
        "21 averaged, bad integer",
        _mse(average_last_axis=True, element_weights=(1, 2, 0)),
        f32([1, 2, 3], [4, 5, 6]),
        odd,
    )


def _dtype() -> Iterator[Case]:
    """A spec that names a dtype casts all its inputs to it."""
    wide = P.astype(np.float64) + 1e-9
    squares = _mse(dtype="float32", average_last_axis=True, reduction="mean")
    yield cast_case(
        "39 float64 averaged in float32",
        squares,
        1e9 + wide,
        1e9 * np.ones((4, 3)),
        dtype="float64",
    )


def product_cases() -> Iterator[Case]:
    """Each pair of fields, dtypes and shapes."""
    yield from product("regression", REAL, 13, _case)


def _case(name: str, row: Row) -> Case:
    return real_case(name, row, MeanSquaredError(**fields_of(row)))


def rule_cases() -> Iterator[Case]:
    """Element weights and averages."""
    for name, row in rule_rows("elements", (1,)):
        rng = rng_of(name)
        shape: tuple[int, ...] = row["shape"]
        fields = fields_of(row, "scale", "average_last_axis") | {
            "element_weights": element_weights(rng, row)
        }
        predictions, targets = rng.normal(size=shape), rng.random(shape).astype(np.float32)
        positions = shape[:-1] if row["average_last_axis"] else shape
        yield Case(
            name,
            MeanSquaredError(**fields),
            round_to(predictions, row["dtype"]),
            targets,
            **companions(rng, row, positions),
        )


def random_cases() -> Iterator[Case]:
    """Targets as far apart as the predictions."""
    for draw in draws(range(1, 40, 4)):
        spec = MeanSquaredError(reduction=draw.reduction)
        targets = draw.rng.normal(scale=draw.spread, size=draw.predictions.shape)
        yield Case(draw.name, spec, draw.predictions, targets.astype(np.float32), dtype=draw.dtype)


def bad_calls() -> Iterator[BadCall]:
    """Calls that must fail."""
    z, t = X, ONE_HOT
    mse = MeanSquaredError()
    yield refused("strict-shapes")(
        "19 column against vector", mse, f32([1], [2], [3]), f32(1, 2, 3)
    )
    yield refused("element-weights")(
        "35 element weights of another shape", mse.replace(element_weights=(1, 2)), z, t
    )
    yield refused("element-weights")(
        "35 element weights of too many axes", mse.replace(element_weights=[[[1, 2, 3]]]), z, t
    )
    yield refused("average-last-axis")(
        "22 one axis, averaged", mse.replace(average_last_axis=True), z[0], t[0]
    )
    yield refused("average-last-axis")(
        "22 weights of elements that are averaged",
        mse.replace(average_last_axis=True),
        z,
        t,
        np.ones((4, 3)),
    )
    yield refused("leading-weights")(
        "weights on a trailing axis", mse, z, t, np.ones(3, np.float32)
    )
    yield refused("leading-weights")(
        "mask of too many axes", mse, z, t, None, np.ones((4, 3, 1), bool)
    )
    unweighted = mse.replace(element_weights=(0, 0, 0), on_empty="error")
    yield refused("on-empty")("no element weighs", unweighted, z, t, reads=True)
    yield refused("empty-batch", "on-empty")(
        "an empty batch", mse.replace(on_empty="error"), z[:0], t[:0], reads=True
    )


def fusible() -> Iterator[Fusible]:
    """Predictions that equal their targets, where the loss and its gradient are 0."""
    rng = rng_of("fused/squared error")
    wanted = rng.normal(scale=3, size=(16, 16)).astype(np.float32)
    right = rng.random((16, 16)) < 0.5

    def targets(predictions: Array) -> Array:
        return np.where(right, predictions.astype(np.float32), np.float32(0.5))

    spec = MeanSquaredError(reduction="none")
    yield Fusible("squared error", spec, wanted, targets, ("mean-squared-error",))


CASES = LossCases(
    edge_cases=edge_cases,
    bad_calls=bad_calls,
    marked_cases=marked_cases,
    product_cases=product_cases,
    rule_cases=rule_cases,
    random_cases=random_cases,
    hard_cases=hard_cases,
    fusible=fusible,
)
