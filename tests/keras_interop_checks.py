"""Keras' losses agree with the specs they are read as, on the backend that Keras runs on.

tests/test_keras.py runs this file once per backend, each time in a new process, because Keras keeps
its backend for the whole process. pytest therefore must not collect it: its name is not test_*.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

import unifiedloss as ul
from tests.interop_grid import check, check_round_trip, computed
from tools.quirks import observed, plain_calls
from unifiedloss import interop, registry
from unifiedloss.adapters.keras.ops import BACKEND
from unifiedloss.errors import BadValueError, ShapeError, SpecTypeError, UnsupportedError
from unifiedloss.interop import Call
from unifiedloss.interop.quirks import entry, recorded

ON = BACKEND.name
NUMPY, TORCH, TENSORFLOW, JAX = (name == ON for name in ("numpy", "torch", "tensorflow", "jax"))

# JAX compiles each operation for each shape.
pytestmark = pytest.mark.slow("the same checks on Keras' other backends", only=None if JAX else [])

RNG = np.random.default_rng(0)
# As many rows as the special values below, because JAX compiles each operation for each shape.
LOGITS = (RNG.normal(size=(7, 3)) * 4).astype(np.float32)
# Positive numbers that Keras divides by their sum; none is near a bound of the clip.
NUMBERS = (RNG.random((7, 3)) + 0.1).astype(np.float32)
PROBABILITIES = RNG.random((7, 3)).astype(np.float32)
LABELS = np.array([0, 1, 1, 2, 0, 2, 1])
DENSE = RNG.dirichlet(np.ones(3), 7).astype(np.float32)
ANSWERS = RNG.random((7, 3)).astype(np.float32)
WEIGHTS = np.array([1.0, 0.0, 3.0, 1.0, 0.5, 2.0, 0.0], np.float32)
IMAGES = (RNG.normal(size=(2, 3, 3)) * 4).astype(np.float32)
IMAGE_LABELS = np.array([[0, 1, 2], [2, 2, 1]])
DENSE_IMAGES = np.moveaxis(RNG.dirichlet(np.ones(3), (2, 3)), -1, 1).astype(np.float32)
IMAGE_WEIGHTS = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]], np.float32)
INF, NAN = np.inf, np.nan

REDUCTIONS = ("sum_over_batch_size", "sum", "none")


def call(name: str, **arguments: Any) -> Call:
    """Return the call of a loss with these arguments, on this backend."""
    native = interop.find(f"keras.losses.{name}")
    return Call(native.name, native.bind([], arguments), ON)


def rows(*row: float) -> Any:
    """Return one row in float32."""
    return np.array([row], np.float32)


def column(*numbers: float) -> Any:
    """Return a column in float32: one number per row."""
    return rows(*numbers).T


SPARSE, SOFT = "SparseCategoricalCrossentropy", "CategoricalCrossentropy"
BINARY, SQUARED = "BinaryCrossentropy", "MeanSquaredError"

GRID: list[tuple[Any, ...]] = [
    # Reductions and weights, which are the same in all classes, on two of them.
    *(
        (call(name, reduction=reduction, **arguments), LOGITS, targets, *weights)
        for reduction in REDUCTIONS
        for weights in ((), (WEIGHTS,))
        for name, arguments, targets in (
            (SPARSE, {"from_logits": True, "ignore_class": 1}, LABELS),
            (SQUARED, {}, ANSWERS),
        )
    ),
    (call(SPARSE), NUMBERS, LABELS),
    (call(SPARSE, reduction="none"), NUMBERS, LABELS, WEIGHTS),
    (call(SOFT, label_smoothing=0.1), NUMBERS, DENSE, WEIGHTS),
    (call(BINARY, label_smoothing=0.1, reduction="sum"), PROBABILITIES, ANSWERS, WEIGHTS),
    (call(SPARSE, from_logits=True), LOGITS, LABELS),
    (call(SPARSE, ignore_class=2), NUMBERS, LABELS, WEIGHTS),
    (
        call(SPARSE, from_logits=True, ignore_class=-100),
        LOGITS,
        np.array([0, 1, -100, 2, 0, -100, 1]),
    ),
    (call(SPARSE, from_logits=True, reduction="mean"), IMAGES, IMAGE_LABELS, IMAGE_WEIGHTS),
    (call(SOFT, from_logits=True), LOGITS, DENSE),
    (call(SOFT, from_logits=True, label_smoothing=0.3), IMAGES, np.moveaxis(DENSE_IMAGES, 1, -1)),
    (call(SOFT, from_logits=True, axis=1), IMAGES, DENSE_IMAGES),
    (call(SOFT, axis=1, reduction="none"), np.abs(IMAGES) + 0.1, DENSE_IMAGES),
    (call(BINARY), PROBABILITIES, (ANSWERS > 0.5).astype(np.int64)),
    (call(SQUARED), IMAGES, DENSE_IMAGES, IMAGE_WEIGHTS),
    (call("sparse_categorical_crossentropy"), NUMBERS, LABELS),
    (call("sparse_categorical_crossentropy", from_logits=True, ignore_class=0), LOGITS, LABELS),
    (call("categorical_crossentropy", label_smoothing=0.2), NUMBERS, DENSE),
    (call("categorical_crossentropy", from_logits=True, axis=1), IMAGES, DENSE_IMAGES),
    (call("binary_crossentropy"), PROBABILITIES, ANSWERS),
    (call("mean_squared_error"), LOGITS, ANSWERS),
]
if not NUMPY:
    GRID += [
        (call(BINARY, from_logits=True), LOGITS, ANSWERS),
        (
            call(BINARY, from_logits=True, label_smoothing=0.2, reduction="none"),
            LOGITS,
            ANSWERS,
            WEIGHTS,
        ),
        (call("binary_crossentropy", from_logits=True), LOGITS, ANSWERS),
    ]
if TORCH:
    GRID += [
        (call(SPARSE, from_logits=True, axis=1), IMAGES, IMAGE_LABELS),
        (call(SPARSE, axis=1, ignore_class=2), np.abs(IMAGES) + 0.1, IMAGE_LABELS),
    ]

NONE = {"reduction": "none"}
SPARSE_LOGITS, SOFT_LOGITS = (
    call(SPARSE, from_logits=True, **NONE),
    call(SOFT, from_logits=True, **NONE),
)

# Numbers at and past the bounds of the clip. Keras divides a row such as [2, 1, 1] by its sum
# before the clip, but after it for class indices on TensorFlow.
CORNERS = np.array(
    [
        [0, 0.5, 0.5],
        [2, 1, 1],
        [1, 0, 0],
        [1e-9, 0.5, 0.5],
        [0, 0, 0],
        [0.25, 0.5, 0],
        [30, 20, 50],
    ],
    np.float32,
)
SPECIAL_LOGITS = np.array(
    [
        [NAN, 1, 0],
        [1e7 + 1, 1e7, 0],
        [88, 0, 0],
        [200, 0, 0],
        [-INF, -INF, -INF],
        [INF, 1, 0],
        [18, 0, 0],
    ],
    np.float32,
)
TRUE_FIRST, TRUE_SECOND = np.zeros(7, np.int64), np.ones(7, np.int64)


def one_hot(labels: Any) -> Any:
    """Return the dense targets of class indices."""
    return np.eye(3, dtype=np.float32)[labels]


SPECIAL: list[tuple[Any, ...]] = [
    (SPARSE_LOGITS, SPECIAL_LOGITS, TRUE_FIRST),
    (SOFT_LOGITS, SPECIAL_LOGITS, one_hot(TRUE_SECOND)),
    *((call(SPARSE, **NONE), CORNERS, labels) for labels in (TRUE_FIRST, TRUE_SECOND)),
    *((call(SOFT, **NONE), CORNERS, one_hot(labels)) for labels in (TRUE_FIRST, TRUE_SECOND)),
    *(
        (
            call(BINARY, **NONE),
            column(0.0, 1.0, 1e-10, 1 - 2.0**-24, 1e-6),
            np.full((5, 1), t, np.float32),
        )
        for t in (0.0, 0.5, 1.0)
    ),
    # If all labels are ignored, all weights are 0, or the batch is empty, the loss is 0.
    *(
        (
            call(SPARSE, from_logits=True, ignore_class=1, reduction=reduction),
            LOGITS,
            np.ones(7, np.int64),
        )
        for reduction in REDUCTIONS
    ),
    *(
        (call(SQUARED, reduction=reduction), LOGITS, ANSWERS, 0 * WEIGHTS)
        for reduction in REDUCTIONS
    ),
    *((call(SQUARED, reduction=reduction), IMAGES[:0], IMAGES[:0]) for reduction in REDUCTIONS),
    # NaN at an ignored position reaches neither loss nor gradient.
    (
        call(SPARSE, from_logits=True, ignore_class=1),
        np.where(LABELS == 1, NAN, LOGITS.T).T.astype(np.float32),
        LABELS,
    ),
    # A loss object computes in float32, whatever the dtype of its arguments.
    (call(SQUARED), LOGITS.astype(np.float16), ANSWERS.astype(np.float16)),
    (call(SPARSE), NUMBERS.astype(np.float16), LABELS),
]
if not NUMPY:
    SPECIAL += [
        (
            call(BINARY, from_logits=True, **NONE),
            column(100.0, -100.0, 0.0, 1e-8, 88.0),
            np.full((5, 1), t, np.float32),
        )
        for t in (0.0, 0.5, 1.0)
    ]
if not JAX:
    # On JAX, jnp.clip halves the gradient at a bound: see test_deviating_gradients.
    SPECIAL += [
        (call(BINARY, **NONE), column(1e-7, 1 - 2.0**-23), np.full((2, 1), t, np.float32))
        for t in (0.0, 0.5, 1.0)
    ]
if TENSORFLOW:
    SPECIAL += [
        (call(SQUARED, dtype="float64"), LOGITS, ANSWERS.astype(np.float64)),
        (call(SPARSE, dtype="float64"), NUMBERS.astype(np.float64), LABELS, WEIGHTS),
        (call("binary_crossentropy"), PROBABILITIES.astype(np.float64), ANSWERS.astype(np.float64)),
    ]


def test_grid() -> None:
    """Every class and function of Keras agrees with its spec over its arguments."""
    for native, *tensors in GRID:
        check(native, *tensors, backends=("numpy", "keras"))


def test_special_values() -> None:
    """Keras and the spec agree at infinities, NaN, bounds of the clip, divisors of 0 and so on."""
    for native, *tensors in SPECIAL:
        check(native, *tensors, backends=("numpy", "keras"))


def repeated(times: int, *row: float) -> Any:
    """Return a row repeated in float32, in a shape that JAX has compiled already."""
    return np.repeat(rows(*row), times, axis=0)


# Call, predictions, targets; the value of Keras on this backend in each row, and that of the spec.
DEVIATIONS: list[tuple[Any, ...]] = [
    (SOFT_LOGITS, repeated(7, 2.0, -INF, 0.0), repeated(7, 1.0, 0.0, 0.0), NAN, 0.12692805)
]
if NUMPY or JAX:
    DEVIATIONS += [(SPARSE_LOGITS, repeated(7, 2.0, -INF, 0.0), TRUE_FIRST, NAN, 0.12692805)]
else:
    SPECIAL += [(SPARSE_LOGITS, repeated(7, 2.0, -INF, 0.0), TRUE_FIRST)]
if not NUMPY:
    DEVIATIONS += [
        (call(BINARY, from_logits=True, **NONE), repeated(5, INF), repeated(5, 1.0), NAN, 0.0)
    ]


@pytest.mark.parametrize(("native", "predictions", "targets", "theirs", "ours"), DEVIATIONS)
def test_deviating_value(
    native: Call, predictions: Any, targets: Any, theirs: float, ours: float
) -> None:
    """If no spec can express a value of Keras, both values are the listed ones."""
    np.testing.assert_allclose(interop.run(native, predictions, targets)[0], theirs)
    np.testing.assert_allclose(
        computed("keras", interop.spec_of(native), predictions, targets)[0], ours, rtol=1e-6
    )


def test_deviating_gradients() -> None:
    """TensorFlow assumes that dense targets sum to 1; JAX halves the gradient at a clip bound."""
    predictions, targets = repeated(7, 2.0, 1.0, 0.0), repeated(7, 2.0, 0.0, 0.0)
    theirs, ours = (
        gradient_of(SOFT_LOGITS, predictions, targets, native=native) for native in (True, False)
    )
    if TENSORFLOW:
        np.testing.assert_allclose(theirs, repeated(7, -1.334759, 0.244728, 0.090031), rtol=1e-5)
    elif not NUMPY:
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    np.testing.assert_allclose(ours, repeated(7, -0.669518, 0.489457, 0.180061), rtol=1e-5)
    if JAX:
        bound = call(BINARY, **NONE), repeated(5, 1e-7), repeated(5, 1.0)
        np.testing.assert_allclose(gradient_of(*bound, native=True), -5e6, rtol=1e-6)
        np.testing.assert_allclose(gradient_of(*bound, native=False), -1e7, rtol=1e-6)


def gradient_of(native_call: Call, predictions: Any, targets: Any, *, native: bool) -> Any:
    """Return the gradient of the native call, or of its spec."""
    if native:
        return interop.run(native_call, predictions, targets)[1]
    return computed("keras", interop.spec_of(native_call), predictions, targets)[1]


def test_weighted_nan() -> None:
    """Keras multiplies NaN by a weight of 0; a spec does not read a zero-weighted position."""
    native = call(SPARSE, from_logits=True, **NONE)
    weightless = WEIGHTS == 0
    predictions = np.where(weightless, NAN, LOGITS.T).T.astype(np.float32)
    theirs, _ = interop.run(native, predictions, LABELS, WEIGHTS)
    assert np.isnan(theirs).tolist() == weightless.tolist()
    ours, _ = computed("keras", interop.spec_of(native), predictions, LABELS, WEIGHTS)
    assert not ours[weightless].any()


def test_refused_when_called() -> None:
    """A spec refuses tensors that Keras accepts: one axis, other shapes, and bad targets."""
    one = np.array([1.0, 2.0], np.float32)
    squared = call(SQUARED)
    assert interop.run(squared, one, np.array([1.0, 4.0], np.float32))[0] == 2.0
    for native, predictions, targets, error, words in (
        (squared, one, one, ShapeError, "average_last_axis leaves no position"),
        (squared, LOGITS[..., None], LOGITS, ShapeError, "nothing is broadcast"),
        (call(BINARY), PROBABILITIES, 2 + ANSWERS, BadValueError, "binary targets"),
        (SPARSE_LOGITS, LOGITS, LABELS + 1, BadValueError, "not a class index"),
        (SPARSE_LOGITS, LOGITS, LABELS - 1, BadValueError, "not a class index"),
    ):
        with pytest.raises(error, match=words):
            registry.adapter("keras").loss(interop.spec_of(native), predictions, targets)


def test_empty_batch_of_rows() -> None:
    """For an empty batch of rank 1, Keras gives an empty array with any reduction; a spec 0."""
    native = call(SPARSE, from_logits=True)
    assert interop.run(native, LOGITS[:0], LABELS[:0])[0].shape == (0,)
    assert computed("keras", interop.spec_of(native), LOGITS[:0], LABELS[:0])[0] == 0


def test_weights_of_the_last_axis() -> None:
    """Keras aligns the weights of a sequence to its last axis, a spec to the first.

    With weights in full shape, both are the same.
    """
    native = call(SQUARED, **NONE)
    weights = np.array([1.0, 3.0, 2.0], np.float32)
    value, _ = interop.run(native, IMAGES, DENSE_IMAGES, weights)
    np.testing.assert_allclose(value, ((IMAGES - DENSE_IMAGES) ** 2).mean(-1) * weights, rtol=1e-5)
    with pytest.raises(ShapeError, match="leading part"):
        registry.adapter("keras").loss(interop.spec_of(native), IMAGES, DENSE_IMAGES, weights)
    check(
        native, IMAGES, DENSE_IMAGES, np.broadcast_to(weights, (2, 3)).copy(), backends=("numpy",)
    )


@pytest.mark.parametrize(
    "native", list({str(native): native for native, *_ in GRID}.values()), ids=str
)
def test_round_trip(native: Call) -> None:
    """Every spec of the grid is written as a loss of Keras and read back."""
    check_round_trip(native)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (SOFT, {"axis": 1, "label_smoothing": 0.1}, "last axis"),
        (BINARY, {"axis": 0}, "averages axis 0"),
        (SQUARED, {"reduction": "mean_with_sample_weight"}, "divisor='weights'"),
        (SQUARED, {"dtype": "bfloat16"}, "257"),
        (SQUARED, {"dtype": "int32"}, "1.5 to 1"),
        (SPARSE, {"dtype": "mixed_float16"}, "float16"),
        *([] if TORCH else [(SPARSE, {"axis": 1}, "works where Keras runs on torch")]),
        *([(BINARY, {"from_logits": True}, "15.94")] if NUMPY else []),
        *([] if TENSORFLOW else [(SQUARED, {"dtype": "float64"}, "a part in float32")]),
    ],
)
def test_refused(name: str, arguments: dict[str, Any], words: str) -> None:
    """Arguments that no spec can express are an error that names the rule, in objects and text."""
    with pytest.raises(UnsupportedError, match=words):
        ul.from_native(getattr(keras.losses, name)(**arguments))
    with pytest.raises(UnsupportedError, match=words):
        interop.spec_of(call(name, **arguments))


def test_refusals_are_real() -> None:
    """Keras itself fails or differs exactly on the backends where the call is refused.

    Also, an int32 loss casts 1.5 to 1.
    """
    integer = keras.losses.MeanSquaredError(dtype="int32")
    assert keras.ops.convert_to_numpy(integer(column(0.2), column(1.5))) == 1
    sparse = keras.losses.SparseCategoricalCrossentropy(axis=1, from_logits=True)
    if not TORCH:
        with pytest.raises(Exception, match=r"axis=-1|same shape"):
            sparse(IMAGE_LABELS[:, :2], IMAGES[:, :, :2])
    binary = keras.losses.BinaryCrossentropy(from_logits=True, reduction="none")
    value = keras.ops.convert_to_numpy(binary(repeated(5, 0.0), repeated(5, 100.0)))
    np.testing.assert_allclose(value, 15.942385 if NUMPY else 100.0, rtol=1e-6)
    squared = keras.losses.MeanSquaredError(dtype="float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns that it truncates to float32
        value = squared(np.full((7, 3), 1 / 3), np.zeros((7, 3)))
    assert (keras.backend.standardize_dtype(value.dtype) == "float64") == TENSORFLOW


def test_weights_are_overwritten() -> None:
    """Keras on torch overwrites the sample weights if a class is ignored; our call does not."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)
    weights = keras.ops.convert_to_tensor(WEIGHTS.copy())
    loss(
        keras.ops.convert_to_tensor(LABELS),
        keras.ops.convert_to_tensor(LOGITS),
        sample_weight=weights,
    )
    assert np.array_equal(keras.ops.convert_to_numpy(weights), WEIGHTS) != TORCH
    before = WEIGHTS.copy()
    interop.run(call(SPARSE, from_logits=True, ignore_class=1), LOGITS, LABELS, WEIGHTS)
    np.testing.assert_array_equal(WEIGHTS, before)


def test_refused_smoothing_axis_is_real() -> None:
    """Keras smooths by the length of the last axis, and gives 3.864371 in place of 3.542932."""
    logits = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    targets = np.zeros((1, 3, 2), np.float32)
    targets[:, 0] = 1.0
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=0.3, axis=1, reduction="none"
    )
    value = keras.ops.convert_to_numpy(loss(targets, logits))
    spec = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.3, axis=1, reduction="none")
    # (1 - 0.3) * (4 + c) + 0.3 * (0 + 2 + 4 + 3 c) / C, with c = log(1 + e^-2 + e^-4), and C = 2 in
    # Keras, C = 3 in a spec.
    c = np.log1p(np.exp(-2) + np.exp(-4))
    np.testing.assert_allclose(
        value, np.full((1, 2), 0.7 * (4 + c) + 0.15 * (6 + 3 * c)), rtol=1e-6
    )
    np.testing.assert_allclose(
        spec(logits, targets), np.full((1, 2), 0.7 * (4 + c) + 0.1 * (6 + 3 * c)), rtol=1e-6
    )


def test_refused_weighted_mean_is_real() -> None:
    """Keras divides the sum of 2 * 3 weighted losses by the sum of 2 weights: 9.75, not 3.25."""
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    predictions = np.stack([np.full((3, 1), 1.0), np.full((3, 1), 2.0)]).astype(np.float32)
    weights = np.array([[1.0], [3.0]], np.float32)
    value = keras.ops.convert_to_numpy(
        loss(np.zeros_like(predictions), predictions, sample_weight=weights)
    )
    np.testing.assert_allclose(value, 9.75)
    np.testing.assert_allclose(
        ul.MeanSquaredError(average_last_axis=True)(
            predictions, np.zeros_like(predictions), sample_weight=weights[:, 0]
        ),
        3.25,
    )


def test_epsilon() -> None:
    """A loss that clips is read and written only while keras.config.epsilon() is the default.

    The epsilon does not matter for a loss that does not clip.
    """
    spec = ul.from_native(keras.losses.CategoricalCrossentropy())
    keras.config.set_epsilon(1e-6)
    try:
        with pytest.raises(UnsupportedError, match=r"set_epsilon\(1e-07\)"):
            ul.from_native(keras.losses.binary_crossentropy)
        with pytest.raises(UnsupportedError, match=r"set_epsilon\(1e-07\)"):
            spec.to_native("keras")
        assert ul.from_native(keras.losses.MeanSquaredError()).average_last_axis
        assert ul.from_native(keras.losses.CategoricalCrossentropy(from_logits=True)).from_logits
    finally:
        keras.config.set_epsilon(1e-7)


def test_changed_settings_are_said() -> None:
    """Text means Keras with its default settings.

    If this process has others, a report and a diff say so, and an object that they change is an
    error.
    """
    name = f"keras[{ON}].losses.BinaryCrossentropy"
    text, loss = f"{name}()", keras.losses.BinaryCrossentropy()
    tensors = column(0.0, 0.5), column(1.0, 0.0)
    spec = ul.from_native(text)
    assert ul.port_report(loss, spec, *tensors).ran_a == "native"
    assert ul.port_report(text, spec, *tensors).settings == ()
    keras.config.set_epsilon(1e-3)
    try:
        report = ul.port_report(text, spec, *tensors)
        assert (report.ran_a, report.same) == ("instead", True)
        assert "a itself was not run: keras.config.epsilon() is 0.001" in str(report)
        lines = str(ul.diff(text, text)).splitlines()
        assert lines[2].startswith("keras.config.epsilon() is 0.001")
        with pytest.raises(UnsupportedError, match=r"set_epsilon\(1e-07\)"):
            ul.port_report(loss, spec, *tensors)
        squared = f"keras[{ON}].losses.MeanSquaredError()"
        assert ul.port_report(squared, spec, *tensors).settings == ()
    finally:
        keras.config.set_epsilon(1e-7)
    keras.config.set_floatx("float64")
    try:
        written = spec.to_native("keras", code=True)
        assert written == 'keras.losses.BinaryCrossentropy(dtype="float32")'
        report = ul.port_report(text, spec, *tensors)
        assert (report.ran_a, report.same) == ("native", True)
        assert report.settings[0].startswith("keras.config.floatx() is 'float64'")
        assert ul.port_report(loss, spec, *tensors).settings == ()
    finally:
        keras.config.set_floatx("float32")
    assert spec.to_native("keras", code=True) == "keras.losses.BinaryCrossentropy()"


@pytest.mark.parametrize(
    "native",
    [call(SPARSE), call(SOFT, label_smoothing=0.1), call("binary_crossentropy"), call(SQUARED)],
)
def test_later_settings_change_no_value(native: Call) -> None:
    """floatx and image_data_format change no loss object made before, and no function."""
    targets = LABELS if "parse" in native.name else DENSE
    before, _ = interop.run(native, PROBABILITIES, targets)
    loss = interop.build(native)
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    try:
        after, _ = interop.run(native, PROBABILITIES, targets, None, loss)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_image_data_format("channels_last")
    assert after.dtype == before.dtype
    np.testing.assert_array_equal(after, before)


def test_floatx() -> None:
    """A spec has the dtype of the object, whatever floatx is when it is read or written."""
    loss = keras.losses.MeanSquaredError()
    keras.config.set_floatx("float64")
    try:
        spec = ul.from_native(loss)
        assert spec.dtype == "float32"
        assert spec.to_native("keras").dtype == "float32"
        wide = keras.losses.MeanSquaredError()
        if TENSORFLOW:
            assert ul.from_native(wide).dtype == "float64"
        else:
            with pytest.raises(UnsupportedError, match="a part in float32"):
                ul.from_native(wide)
    finally:
        keras.config.set_floatx("float32")


def test_objects() -> None:
    """Objects and functions are read with their arguments, on the backend that Keras runs on."""
    order = "after_clip" if TENSORFLOW else "before_clip"
    spec = ul.from_native(
        keras.losses.SparseCategoricalCrossentropy(ignore_class=3, name="loss", reduction=None)
    )
    assert spec == ul.CrossEntropyLoss(
        epsilon="keras",
        renormalize=order,
        axis=-1,
        ignore_index=3,
        reduction="none",
        dtype="float32",
    )
    function = keras.losses.categorical_crossentropy
    smoothed = ul.from_native(function, label_smoothing=0.1)
    assert smoothed == ul.from_native(partial(function, label_smoothing=np.float32(0.1)))
    assert smoothed.dtype is None
    assert ul.from_native(keras.metrics.mean_squared_error) == ul.MeanSquaredError(
        average_last_axis=True, reduction="none"
    )
    with pytest.raises(SpecTypeError, match="pass it alone"):
        ul.from_native(keras.losses.MeanSquaredError(), reduction="sum")
    with pytest.raises(SpecTypeError, match="is a class; call it"):
        ul.from_native(keras.losses.MeanSquaredError)
    with pytest.raises(SpecTypeError, match="given to the call"):
        ul.from_native(function, y_true=np.zeros(3))
    with pytest.raises(SpecTypeError, match="LogCosh is another kind of loss"):
        ul.from_native(keras.losses.LogCosh())

    class Own(keras.losses.MeanSquaredError):
        pass

    with pytest.raises(SpecTypeError, match="may compute anything"):
        ul.from_native(Own())
    for attribute in ("call", "fn"):
        changed = keras.losses.MeanSquaredError()
        setattr(changed, attribute, lambda true, pred: 2 * (true - pred))
        with pytest.raises(SpecTypeError, match=f"a {attribute} of its own"):
            ul.from_native(changed)


def test_exports() -> None:
    """A spec is written as Keras' own object or function, or the error names what Keras has."""
    spec = ul.CrossEntropyLoss(
        from_logits=True,
        axis=-1,
        divisor="present",
        on_empty="zero",
        dtype="float32",
        ignore_index=-100,
    )
    loss = spec.to_native("keras")
    assert type(loss) is keras.losses.SparseCategoricalCrossentropy
    assert loss.ignore_class == -100
    assert (
        spec.to_native("keras", code=True)
        == "keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)"
    )
    dense = spec.replace(ignore_index=None, label_smoothing=0.1)
    assert type(dense.to_native("keras")) is keras.losses.CategoricalCrossentropy
    # The divisor has no effect without a mean.
    assert dense.replace(reduction="sum").to_native("keras").reduction == "sum"
    function = dense.replace(reduction="none", dtype=None).to_native("keras")
    assert function.func is keras.losses.categorical_crossentropy
    for changes, words in (
        ({"divisor": "weights"}, "positions that its mask keeps"),
        ({"dtype": None}, "computes in its own dtype"),
        ({"class_weights": [1, 2]}, "class_weight"),
        ({"ignore_index": [1, 2]}, "ignores one class"),
        ({"label_smoothing": 0.1}, "ignore_index=None"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            spec.replace(**changes).to_native("keras")
    other = {"after_clip": "before_clip", "before_clip": "after_clip"}
    clipped = ul.from_native(keras.losses.SparseCategoricalCrossentropy(ignore_class=0))
    with pytest.raises(UnsupportedError, match="divides probabilities by their sum"):
        clipped.replace(renormalize=other[clipped.renormalize]).to_native("keras")
    with pytest.raises(UnsupportedError, match="positive term"):
        ul.BinaryCrossEntropyLoss(
            epsilon="keras", pos_weight=2.0, average_last_axis=True
        ).to_native("keras")
    with pytest.raises(UnsupportedError, match="no loss that a NegativeLogLikelihoodLoss"):
        ul.NegativeLogLikelihoodLoss().to_native("keras")


# On TensorFlow one loss is enough, because tests/test_interop_quirks.py tests all of them there.
PLAIN = [native for native in plain_calls(ON) if native.library == "keras"][
    -1 if TENSORFLOW else 0 :
]


ACTIVATIONS = [
    (source, activation)
    for source in ("keras.ops", "layer", *(["operation"] if TENSORFLOW else []))
    for activation in ("softmax", "sigmoid")
]


@pytest.mark.filterwarnings("ignore:.*received `from_logits=True`")
@pytest.mark.parametrize("mode", ["eager", "function"] if TENSORFLOW else ["eager"])
@pytest.mark.parametrize(("source", "activation"), ACTIVATIONS)
def test_where_hidden_logits_are_used(source: str, activation: str, mode: str) -> None:
    """The sentences of the two quirks are true for every loss and activation, in every mode.

    On TensorFlow a loss uses the logits behind a softmax or a sigmoid of Keras everywhere, and
    those behind TensorFlow's own operation in a graph alone, if it is the loss's own activation.
    """
    layer = keras.layers.Activation(activation)
    compute = layer if source == "layer" else getattr(keras.ops, activation)
    run = BACKEND.modes()[mode].run
    logits = BACKEND.convert(rows(20, -20), None)
    for name, hidden in ((SPARSE, 40.0), (SOFT, 40.0), (BINARY, 20.0)):
        targets = BACKEND.convert(np.array([1]) if name == SPARSE else rows(0, 1), None)
        own = "sigmoid" if name == BINARY else "softmax"
        expected = TENSORFLOW and (
            source != "operation" or (mode == "function" and activation == own)
        )
        of_class = getattr(keras.losses, name)
        function = getattr(keras.losses, of_class().name)
        for loss in (of_class(), of_class(from_logits=True), function):
            value = run(partial(loss_behind, loss, targets, compute, source == "operation"), logits)
            found = abs(float(keras.ops.mean(value)) - hidden) < 1e-4
            assert found == expected, (name, loss, value)


def loss_behind(loss: Any, targets: Any, compute: Any, operation: bool, logits: Any) -> Any:
    """Return a loss of the result of an activation; of TensorFlow's own operation if asked."""
    predictions = compute(logits)
    if operation:
        # Without what Keras attached, this is what tf.nn.softmax or tf.sigmoid returns.
        del predictions._keras_logits
    return loss(targets, predictions)


@pytest.mark.parametrize("native", PLAIN, ids=entry)
def test_recorded_quirks_are_true(native: Call) -> None:
    """Keras on this backend differs from its specs exactly by the recorded quirks."""
    loss, quirks = observed(native)
    assert quirks == recorded()[loss]


def test_differences_of_this_backend() -> None:
    """The diff has the clip tie only on JAX, and the clipped sigmoid only on NumPy."""
    loss = "losses.BinaryCrossentropy"
    if JAX:
        example = ul.diff(f"keras[jax].{loss}()", f"keras[torch].{loss}()")["clip_tie"].example
        assert example is not None
        gradients = [outcome.gradient for outcome in (example.a, example.b)]
        np.testing.assert_allclose(np.ravel(gradients), [-5e6, -1e7], rtol=1e-6)
    elif not NUMPY:
        assert "clip_tie" not in ul.diff(f"keras[torch].{loss}()", f"keras[tensorflow].{loss}()")
    else:
        example = ul.diff(
            f"keras[numpy].{loss}(from_logits=True)",
            "keras[torch].losses.BinaryCrossentropy(from_logits=True)",
        )["clipped_sigmoid"].example
        assert example is not None
        np.testing.assert_allclose(
            [example.a.value, example.b.value], [15.942385, 100.0], rtol=1e-6
        )
