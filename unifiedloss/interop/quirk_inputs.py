"""The inputs on which losses with a quirk differ from their specs, the smallest first.

Each function takes the `Layout` that the two losses need, and yields inputs of that layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.sides import AS_GIVEN, Input

# ------------------------------------------------------------------------------------------- labels


def bad_labels(layout: Layout) -> Iterator[Input]:
    """Labels outside 0..K-1."""
    for label in (-1, layout.classes, -100):
        yield layout.rows([(2.0, 1.0, 0.0)], [label])


def integer_rows(layout: Layout) -> Iterator[Input]:
    """A one-hot row of integers."""
    dense = layout.rows([(2.0, 1.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield Input(dense.predictions, dense.targets.astype(np.int64))


def unnormalized(layout: Layout) -> Iterator[Input]:
    """A dense row with the sum 2."""
    yield layout.rows([(2.0, 1.0, 0.0)], [[2.0, 0.0, 0.0]])


def negative_row(layout: Layout) -> Iterator[Input]:
    """A dense row with a negative entry."""
    yield layout.rows([(2.0, 1.0, 0.0)], [[-1.0, 1.0, 1.0]])


def out_of_range_target(layout: Layout) -> Iterator[Input]:
    """A target of 1.5."""
    yield layout.elements([0.5], [1.5])


# -------------------------------------------------------------------------------------- predictions


def minus_infinity(layout: Layout) -> Iterator[Input]:
    """A logit of -inf whose dense target is 0."""
    yield layout.rows([(2.0, -np.inf, 0.0)], [[1.0, 0.0, 0.0]])


def infinite_logit(layout: Layout) -> Iterator[Input]:
    """A logit of +inf with the target 1, and with the target 0."""
    yield layout.elements([np.inf], [1.0])
    yield layout.elements([np.inf], [0.0])


def large(layout: Layout) -> Iterator[Input]:
    """Logits about 1e5."""
    yield layout.rows([(100001.0, 100000.0, 0.0)], [0])


def confident(layout: Layout) -> Iterator[Input]:
    """A label's logit 18 above the others."""
    yield layout.rows([(18.0, 0.0, 0.0)], [0])


def sure(layout: Layout) -> Iterator[Input]:
    """A label's logit so far above the others that the loss rounds to 0."""
    yield layout.rows([(200.0, 0.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield layout.rows([(200.0, 0.0, 0.0)], [0])


def half(layout: Layout) -> Iterator[Input]:
    """A float16 row with a small loss."""
    yield layout.rows([(1.0, 6.0, -1.0)], [1], dtype="float16")


def double(layout: Layout) -> Iterator[Input]:
    """A float64 row."""
    yield layout.rows([(2.0, 1.0, 0.0)], [0], dtype="float64")


def double_beside_weights(layout: Layout) -> Iterator[Input]:
    """float64 predictions for a loss with weights."""
    shape = np.shape(layout.weights) if layout.weights is not None else layout.tail or (1,)
    yield Input(np.full(shape, 0.3), np.ones(shape))


def double_elements(layout: Layout) -> Iterator[Input]:
    """A float64 element."""
    yield layout.elements([0.3], [1.0], dtype="float64")


def half_overflow(layout: Layout) -> Iterator[Input]:
    """A float16 error whose square is infinite."""
    yield layout.elements([300.0], [0.0], dtype="float16")


def subnormal(layout: Layout) -> Iterator[Input]:
    """A subnormal probability."""
    yield layout.elements([1e-40], [1.0])


def beyond_one(layout: Layout) -> Iterator[Input]:
    """A probability of 1.5."""
    yield layout.elements([1.5], [1.0])


def zero_logit(layout: Layout) -> Iterator[Input]:
    """The logit 0."""
    yield layout.elements([0.0], [0.0])


def at_the_bound(layout: Layout) -> Iterator[Input]:
    """A probability equal to the lower bound of Keras' clipping."""
    yield layout.elements([1e-7], [1.0])


def behind_softmax(_: Layout) -> Iterator[Input]:
    """Probabilities computed by `keras.ops.softmax`."""
    note = "the predictions come from keras.ops.softmax([[100, 0]])"
    yield Input(
        np.array([[1.0, 0.0]], np.float32),
        np.array([1], np.int64),
        None,
        "run_behind_softmax",
        np.array([[100.0, 0.0]], np.float32),
        note,
    )


def behind_sigmoid(_: Layout) -> Iterator[Input]:
    """A probability computed by `keras.ops.sigmoid`, in a graph."""
    note = "in a tf.function the predictions come from keras.ops.sigmoid([[100]])"
    yield Input(
        np.array([[1.0]], np.float32),
        np.array([[0.0]], np.float32),
        None,
        "run_behind_sigmoid",
        np.array([[100.0]], np.float32),
        note,
    )


# ----------------------------------------------------------------------------- positions and shapes


def dropped_nan(layout: Layout) -> Iterator[Input]:
    """A row of NaN whose label is ignored."""
    if layout.ignored is not None:
        yield layout.rows([(2.0, 1.0, 0.0), (np.nan, np.nan, np.nan)], [0, layout.ignored])


def weightless_class(layout: Layout) -> Iterator[Input]:
    """A row of NaN whose class has the weight 0."""
    weights = list(layout.weights)
    if any(weights):
        counted = weights.index(max(weights))
        yield layout.rows(
            [(2.0, 1.0, 0.0), (np.nan, np.nan, np.nan)], [counted, weights.index(0.0)]
        )


def infinite_class(layout: Layout) -> Iterator[Input]:
    """A label whose class has the weight 0 and the logit -inf."""
    weights = list(layout.weights)
    if any(weights):
        counted, label = weights.index(max(weights)), weights.index(0.0)
        yield layout.rows(
            [(2.0, 1.0, 0.0), [-np.inf if c == label else 0.0 for c in range(len(weights))]],
            [counted, label],
        )


def weightless_elements(layout: Layout) -> Iterator[Input]:
    """NaN in the elements whose weight is 0."""
    weights = np.asarray(layout.weights)
    if weights.any():
        yield Input(
            np.where(weights == 0, np.nan, 0.25).astype(np.float32),
            np.ones(weights.shape, np.float32),
        )


def no_class_weight(layout: Layout) -> Iterator[Input]:
    """Only a label whose class has the weight 0."""
    yield layout.rows([(2.0, 1.0, 0.0)], [layout.weights.index(0.0)])


def no_element_weight(layout: Layout) -> Iterator[Input]:
    """An example whose elements all have the weight 0."""
    weights = np.asarray(layout.weights)
    if not weights.any():
        yield Input(np.full(weights.shape, 0.25, np.float32), np.ones(weights.shape, np.float32))


def switched_off_nan(_: Layout) -> Iterator[Input]:
    """An element that is NaN, with the sample weight 0."""
    yield Input(
        np.array([[0.5], [np.nan]], np.float32),
        np.zeros((2, 1), np.float32),
        np.array([1.0, 0.0], np.float32),
    )


def switched_off_row(layout: Layout) -> Iterator[Input]:
    """A row of NaN with the sample weight 0."""
    nothing = (np.nan, np.nan, np.nan)
    yield layout.rows([(0.5, 0.375, 0.125), nothing], [0, 0], [1.0, 0.0])
    # scikit-learn needs every class in a batch.
    rows = [(0.5, 0.375, 0.125), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)]
    labels = [min(label, layout.classes - 1) for label in range(3)]
    yield layout.rows([*rows, nothing], [*labels, 0], [1.0, 1.0, 1.0, 0.0])


def column(_: Layout) -> Iterator[Input]:
    """Predictions of shape (2, 1) and targets of shape (2,)."""
    yield Input(np.array([[0.25], [0.75]], np.float32), np.array([0.25, 0.75], np.float32))


def one_label(layout: Layout) -> Iterator[Input]:
    """One label for two rows."""
    x = layout.rows([(2.0, 1.0, 0.0), (0.0, 1.0, 2.0)], [0, 0])
    yield Input(x.predictions, np.zeros(1, np.int64))


def label_column(layout: Layout) -> Iterator[Input]:
    """Labels of shape (1, 1) for one row."""
    yield Input(layout.rows([(2.0, 1.0, 0.0)], [0]).predictions, np.zeros((1, 1), np.int64))
    x = _every_class(layout)
    yield Input(x.predictions, x.targets[..., None])


def one_axis(_: Layout) -> Iterator[Input]:
    """Elementwise predictions with one axis, without and with sample weights."""
    yield Input(np.array([0.25, 0.75], np.float32), np.ones(2, np.float32))
    yield Input(
        np.array([0.25, 0.75], np.float32), np.ones(2, np.float32), np.array([1.0, 3.0], np.float32)
    )


def steps(_: Layout) -> Iterator[Input]:
    """Two examples of two steps, and a sample weight for each example."""
    values = np.array([[[0.25], [0.25]], [[0.5], [0.5]]], np.float32)
    yield Input(values, np.zeros_like(values), np.array([1.0, 3.0], np.float32))


def repeated(_: Layout) -> Iterator[Input]:
    """Two examples of three steps, and sample weights of shape (2, 1)."""
    values = np.array([[[0.25]] * 3, [[0.5]] * 3], np.float32)
    yield Input(values, np.zeros_like(values), np.array([[1.0], [3.0]], np.float32))


def _sequences(layout: Layout, weight: list[Any]) -> Iterator[Input]:
    """Two sequences of two steps, each step with a class axis."""
    if not -3 <= layout.axis < 3:
        return
    rows = np.zeros((2, 2, layout.classes), np.float32)
    rows[:, :, :3] = np.array([[[0.5, 0.375, 0.125]], [[0.125, 0.25, 0.625]]], np.float32)[
        :, :, : layout.classes
    ]
    yield Input(
        np.moveaxis(rows, -1, layout.axis), np.zeros((2, 2), np.int64), np.array(weight, np.float32)
    )


def weighted_sequences(layout: Layout) -> Iterator[Input]:
    """Two sequences of two steps, and a sample weight for each sequence."""
    yield from _sequences(layout, [1.0, 3.0])


def repeated_sequences(layout: Layout) -> Iterator[Input]:
    """Sequences with sample weights of shape (2, 1), and a batch with one sample weight."""
    yield from _sequences(layout, [[1.0], [3.0]])
    yield replace(_every_class(layout), sample_weight=np.array(2.0, np.float32))


def nothing(layout: Layout) -> Iterator[Input]:
    """An empty batch with a class axis."""
    yield Input(np.zeros((0, layout.classes), np.float32), np.zeros(0, np.int64))


def no_elements(_: Layout) -> Iterator[Input]:
    """An empty batch of elements."""
    yield Input(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))


def one_example(layout: Layout) -> Iterator[Input]:
    """Logits of shape (K,), and a label of shape ()."""
    yield Input(layout.rows([(2.0, 1.0, 0.0)], [0]).predictions.reshape(-1), np.array(0))


def few_labels(layout: Layout) -> Iterator[Input]:
    """A batch without labels of most classes."""
    yield layout.rows([(0.5, 0.25, 0.25)], [0])


def compiled(layout: Layout) -> Iterator[Input]:
    """A label outside 0..K-1, compiled by XLA."""
    row = layout.rows([(2.0, 1.0, 0.0)], [layout.classes])
    yield Input(
        row.predictions,
        row.targets,
        None,
        "run_compiled",
        note="in a tf.function with jit_compile=True",
    )


# --------------------------------------------------------------------------------- kinds and dtypes


def _every_class(
    layout: Layout, targets: Any = None, weight: Any = None, dtype: str = "float32"
) -> Input:
    """A batch with labels of every class, because scikit-learn needs them."""
    rows = [(0.5, 0.375, 0.125), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)]
    labels = [min(label, layout.classes - 1) for label in range(3)]
    return layout.rows(rows, labels if targets is None else targets, weight, dtype)


def _given(x: Input, targets: Any = None) -> Input:
    """An input whose tensors the loss gets unchanged, with these targets if there are any."""
    return replace(x, targets=x.targets if targets is None else targets, way=AS_GIVEN)


def soft_row(layout: Layout) -> Iterator[Input]:
    """A dense target that is not one-hot."""
    yield _given(layout.rows([(0.5, 0.25, 0.25)], [[0.5, 0.25, 0.25]]))


def plain_label(layout: Layout) -> Iterator[Input]:
    """A class index."""
    yield _given(layout.rows([(0.5, 0.25, 0.25)], [1]))


def narrow_labels(layout: Layout) -> Iterator[Input]:
    """Labels of uint8, and of int32."""
    x = _every_class(layout)
    for dtype in (np.uint8, np.int32):
        yield _given(x, x.targets.astype(dtype))


def unsigned_labels(layout: Layout) -> Iterator[Input]:
    """Labels of uint64."""
    x = _every_class(layout)
    yield _given(x, x.targets.astype(np.uint64))


def floating_labels(layout: Layout) -> Iterator[Input]:
    """A label of 1.7, and floating labels that are integers."""
    x = layout.rows([(2.0, 1.0, 0.0)], [0])
    yield Input(x.predictions, x.targets + np.float32(1.7))
    x = _every_class(layout)
    yield Input(x.predictions, x.targets.astype(np.float64))


def _two_classes(layout: Layout, targets: Any, weight: Any = None) -> Input:
    rows = [(0.875, 0.125), (0.25, 0.75)]
    return replace(layout, classes=2).rows(rows, targets, weight)


def bool_labels(layout: Layout) -> Iterator[Input]:
    """Bool labels of two classes."""
    x = _two_classes(layout, [0, 1])
    yield _given(x, x.targets.astype(np.bool_))


def other_labels(layout: Layout) -> Iterator[Input]:
    """Labels that count from 1, and labels of -1 and 1."""
    yield _two_classes(layout, [1, 2])
    yield _two_classes(layout, [-1, 1])


def binary_probabilities(_: Layout) -> Iterator[Input]:
    """One probability for each example, of shape (2,) and of shape (2, 1)."""
    p = np.array([0.125, 0.75], np.float32)
    for predictions in (p, p[:, None]):
        yield Input(predictions, np.array([0, 1], np.int64))


def integer_targets(layout: Layout) -> Iterator[Input]:
    """An integer target."""
    x = layout.elements([0.25], [1.0])
    yield _given(x, x.targets.astype(np.int64))


def wider_targets(layout: Layout) -> Iterator[Input]:
    """float64 targets for float32 predictions."""
    x = layout.elements([0.25], [1.0])
    yield _given(x, x.targets.astype(np.float64))


def other_target_dtype(layout: Layout) -> Iterator[Input]:
    """Targets of another floating dtype than the predictions', wider or narrower."""
    for predictions, targets in (("float32", "float64"), ("float16", "float32")):
        x = layout.elements([0.25], [1.0], dtype=predictions)
        yield _given(x, x.targets.astype(targets))


def other_row_dtype(layout: Layout) -> Iterator[Input]:
    """Dense rows of another floating dtype than the predictions', wider or narrower."""
    for predictions, targets in (("float32", "float64"), ("float16", "float32")):
        x = layout.rows([(0.5, 0.25, 0.25)], [[0.5, 0.25, 0.25]], dtype=predictions)
        yield _given(x, x.targets.astype(targets))


def half_row_of_targets(layout: Layout) -> Iterator[Input]:
    """A float16 one-hot row for float32 logits."""
    x = layout.rows([(2.0, 1.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield _given(x, x.targets.astype(np.float16))


def integer_rows_of_predictions(layout: Layout) -> Iterator[Input]:
    """Integer predictions."""
    x = layout.rows(
        [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)],
        [min(c, layout.classes - 1) for c in range(3)],
    )
    yield replace(x, predictions=x.predictions.astype(np.int64))


def integer_predictions(layout: Layout) -> Iterator[Input]:
    """Integer predictions."""
    x = layout.elements([1.0, 0.0], [1.0, 0.5])
    yield replace(x, predictions=x.predictions.astype(np.int64))


def _bfloat16(x: Input) -> Iterator[Input]:
    # NumPy knows bfloat16 once ml_dtypes is imported, which TensorFlow and JAX do.
    with suppress(TypeError):
        yield replace(x, predictions=x.predictions.astype(np.dtype("bfloat16")))


def bfloat16_rows(layout: Layout) -> Iterator[Input]:
    """A batch of bfloat16."""
    yield from _bfloat16(_every_class(layout))


def bfloat16_elements(layout: Layout) -> Iterator[Input]:
    """An element of bfloat16."""
    x = layout.elements([0.25], [1.0])
    for rounded in _bfloat16(x):
        yield replace(rounded, targets=x.targets.astype(rounded.predictions.dtype))


def any_rows(layout: Layout) -> Iterator[Input]:
    """An ordinary batch."""
    yield _every_class(layout)


def half_rows(layout: Layout) -> Iterator[Input]:
    """A float16 batch."""
    yield _every_class(layout, dtype="float16")


def half_elements(layout: Layout) -> Iterator[Input]:
    """A float16 element."""
    yield layout.elements([0.25], [1.0], dtype="float16")


# -------------------------------------------------------------------------------------- more values


def infinite_row(layout: Layout) -> Iterator[Input]:
    """A dense row with a negative entry, and one with an infinite entry."""
    yield from negative_row(layout)
    yield layout.rows([(2.0, 1.0, 0.0)], [[np.inf, 0.0, 0.0]])


def one_row_for_two(layout: Layout) -> Iterator[Input]:
    """One dense row for two rows of predictions, and targets without the axis of one class."""
    x = layout.rows([(2.0, 1.0, 0.0), (0.0, 1.0, 2.0)], [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    shape = list(x.targets.shape)
    shape[shape.index(2)] = 1
    yield Input(
        x.predictions, np.ascontiguousarray(x.targets.ravel()[: layout.classes].reshape(shape))
    )
    yield Input(np.full((2, 1), 0.5, np.float32), np.ones(2, np.float32))


def no_classes(_: Layout) -> Iterator[Input]:
    """Predictions with a class axis of length 0."""
    nothing = np.zeros((1, 0), np.float32)
    yield Input(nothing, nothing)
    yield Input(nothing, np.zeros(1, np.int64))


def too_few_classes(_: Layout) -> Iterator[Input]:
    """Predictions of one class, for a loss with several class weights."""
    yield Input(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))


def no_probability(layout: Layout) -> Iterator[Input]:
    """A row with a negative number outside the label's class, and one with infinity there."""
    for number in (-0.2, np.inf):
        yield layout.rows([(0.5, number, 0.7)], [0])
    yield layout.rows(
        [(0.5, -0.2, 0.7), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)],
        [min(c, layout.classes - 1) for c in range(3)],
    )


def four_axes(layout: Layout) -> Iterator[Input]:
    """Probabilities with four axes."""
    if layout.axis == -1:
        yield Input(
            np.full((1, 2, 1, layout.classes), 1 / layout.classes, np.float32),
            np.zeros((1, 2, 1), np.int64),
        )


def subnormal_row(layout: Layout) -> Iterator[Input]:
    """A row whose sum is subnormal."""
    yield layout.rows([(1e-40, 0.0, 0.0)], [0])


def beyond_one_by_rounding(layout: Layout) -> Iterator[Input]:
    """A probability one unit in the last place above 1."""
    yield layout.elements([1.0 + 2.0**-23], [1.0])


def row_beyond_one_by_rounding(layout: Layout) -> Iterator[Input]:
    """A row with a probability one unit in the last place above 1, in a batch of all classes."""
    labels = [min(c, layout.classes - 1) for c in range(3)]
    yield layout.rows([(1.0 + 2.0**-23, 0.0, 0.0), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)], labels)


def nan_label_probability(layout: Layout) -> Iterator[Input]:
    """NaN in the class of the label, in a batch of all classes."""
    labels = [min(c, layout.classes - 1) for c in range(3)]
    yield layout.rows([(np.nan, 0.5, 0.5), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)], labels)


def infinite_element(layout: Layout) -> Iterator[Input]:
    """An infinite prediction."""
    yield layout.elements([np.inf], [1.0])


def nan_probability_or_target(layout: Layout) -> Iterator[Input]:
    """A probability that is NaN, and a target that is NaN."""
    yield layout.elements([np.nan], [1.0])
    yield layout.elements([0.25], [np.nan])


def infinite_logits(layout: Layout) -> Iterator[Input]:
    """A logit of +inf in another class than the label's, and in the label's class."""
    yield layout.rows([(np.inf, 0.0, 0.0)], [1])
    yield layout.rows([(np.inf, 0.0, 0.0)], [0])


def confident_element(layout: Layout) -> Iterator[Input]:
    """A logit of -20 with the target 0, and of 20 with the target 1."""
    for logit, target in ((-20.0, 0.0), (20.0, 1.0)):
        yield layout.elements([logit], [target])


def zero_and_zero(layout: Layout) -> Iterator[Input]:
    """A probability of 0 with the target 0."""
    yield layout.elements([0.0], [0.0])


def half_certain(layout: Layout) -> Iterator[Input]:
    """float16 probabilities equal to their targets, 0 and 1."""
    for p in (0.0, 1.0):
        yield layout.elements([p], [p], dtype="float16")


def half_wrong(layout: Layout) -> Iterator[Input]:
    """A float16 probability of 1 with the target 0."""
    yield layout.elements([1.0], [0.0], dtype="float16")


def half_overflow_of_rows(layout: Layout) -> Iterator[Input]:
    """Two float16 rows whose losses are finite in float16, and whose sum is not."""
    yield layout.rows([(-40000.0, 20.0, 0.0)] * 2, [0, 0], dtype="float16")


def half_overflow_of_logits(layout: Layout) -> Iterator[Input]:
    """Two float16 logits whose losses are finite in float16, and whose sum is not."""
    yield layout.elements([40000.0, 40000.0], [0.0, 0.0], dtype="float16")


def half_overflow_of_probabilities(layout: Layout) -> Iterator[Input]:
    """700 float16 probabilities with a loss of 100 each, whose sum overflows in float16."""
    yield layout.elements([0.0] * 700, [1.0] * 700, dtype="float16")


def half_probabilities(layout: Layout) -> Iterator[Input]:
    """float16 probabilities near 1."""
    labels = [min(c, layout.classes - 1) for c in range(3)]
    yield layout.rows(
        [(0.998, 0.001, 0.001), (0.001, 0.998, 0.001), (0.001, 0.001, 0.998)],
        labels,
        dtype="float16",
    )


def half_logit(layout: Layout) -> Iterator[Input]:
    """A float16 logit of 6 with the target 1, and of -6 with the target 0."""
    for logit, target in ((6.0, 1.0), (-6.0, 0.0)):
        yield layout.elements([logit], [target], dtype="float16")


def half_targets(layout: Layout) -> Iterator[Input]:
    """A float16 target for a float32 logit."""
    x = layout.elements([0.25], [1.0])
    yield _given(x, x.targets.astype(np.float16))


def half_element(layout: Layout) -> Iterator[Input]:
    """A float16 logit of 6, and a float16 probability near 1, with the target 1."""
    yield layout.elements([6.0], [1.0], dtype="float16")
    yield layout.elements([0.998], [1.0], dtype="float16")


def logit_and_small_weight(layout: Layout) -> Iterator[Input]:
    """A logit with the target 1, for a loss with a small pos_weight."""
    yield layout.elements([1.0], [1.0])


def fewer_than_pos_weights(_: Layout) -> Iterator[Input]:
    """One element, for a loss with several pos_weights."""
    yield Input(np.array([[0.5]], np.float32), np.ones((1, 1), np.float32))


def infinite_other_class(layout: Layout) -> Iterator[Input]:
    """A logit of -inf in another class than the label's, with the class weight 0."""
    weights = list(layout.weights)
    if any(weights):
        label, other = weights.index(max(weights)), weights.index(0.0)
        yield layout.rows(
            [[-np.inf if c == other else 2.0 if c == label else 0.0 for c in range(len(weights))]],
            [label],
        )


def class_to_ignore(layout: Layout) -> Iterator[Input]:
    """Dense targets of so few classes that the ignored label is not one of them."""
    if layout.ignored is not None and layout.ignored > 0 and layout.weights is None:
        k = layout.ignored
        row = [1.0] + [0.0] * (k - 1)
        yield replace(layout, classes=k).rows([row], [row])


# ------------------------------------------------------------------------------------- more weights


def negative_weight(layout: Layout) -> Iterator[Input]:
    """A negative sample weight."""
    yield layout.elements([0.25, 0.75], [1.0, 1.0], [3.0, -1.0])


def negative_weight_of_a_row(layout: Layout) -> Iterator[Input]:
    """A negative sample weight."""
    yield _every_class(layout, weight=[3.0, -1.0, 1.0])


def bool_weight(layout: Layout) -> Iterator[Input]:
    """Bool sample weights."""
    x = layout.elements([0.25, 0.75], [1.0, 1.0])
    yield replace(x, sample_weight=np.array([True, False]))


def bool_weight_of_a_row(layout: Layout) -> Iterator[Input]:
    """Bool sample weights."""
    yield replace(_every_class(layout), sample_weight=np.array([True, True, False]))


def infinite_weight(layout: Layout) -> Iterator[Input]:
    """An infinite sample weight."""
    yield layout.elements([0.25, 0.75], [1.0, 1.0], [1.0, np.inf])


def infinite_weight_of_a_row(layout: Layout) -> Iterator[Input]:
    """An infinite sample weight."""
    yield _every_class(layout, weight=[1.0, 1.0, np.inf])


def weightless_label(layout: Layout) -> Iterator[Input]:
    """A label outside 0..K-1, in a row with the sample weight 0."""
    rows = [(0.5, 0.375, 0.125), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625), (0.5, 0.25, 0.25)]
    labels = [min(c, layout.classes - 1) for c in range(3)]
    for label in (-1, layout.classes):
        yield layout.rows(rows, [*labels, label], [1.0, 1.0, 1.0, 0.0])


def weightless_target(layout: Layout) -> Iterator[Input]:
    """A target above 1 with the sample weight 0."""
    yield layout.elements([0.25, 0.75], [1.5, 1.0], [0.0, 1.0])


def weights_of_elements(layout: Layout) -> Iterator[Input]:
    """Sample weights of shape (2, 1), and a sample weight for every element."""
    yield from repeated(layout)
    values = np.array([[0.25, 0.5], [0.75, 0.5]], np.float32)
    yield Input(values, np.zeros_like(values), np.array([[1.0, 3.0], [2.0, 1.0]], np.float32))


def other_than_weights(layout: Layout) -> Iterator[Input]:
    """Two examples, for a loss whose element weights have the shape of one example."""
    weights = np.asarray(layout.weights)
    if weights.ndim:
        values = np.full((2, *weights.shape), 0.25, np.float32)
        yield Input(values, np.ones_like(values))


def empty_axes(layout: Layout) -> Iterator[Input]:
    """An empty batch, and examples without positions."""
    yield from nothing(layout)
    if layout.axis in (-1, 1):
        yield Input(np.zeros((2, layout.classes, 0), np.float32), np.zeros((2, 0), np.int64))


def weight_of_ignored(layout: Layout) -> Iterator[Input]:
    """A sample weight that is NaN, for an ignored label."""
    if layout.ignored is not None:
        yield layout.rows(
            [(0.5, 0.25, 0.25), (0.25, 0.5, 0.25)], [0, layout.ignored], [1.0, np.nan]
        )


def infinite_logit_of_another(layout: Layout) -> Iterator[Input]:
    """A logit of -inf in another class than the label's."""
    yield layout.rows([(2.0, -np.inf, 0.0)], [0])


def nothing_that_counts(layout: Layout) -> Iterator[Input]:
    """An empty batch, and a batch whose sample weights are all 0."""
    yield from nothing(layout)
    yield _every_class(layout, weight=[0.0, 0.0, 0.0])


def many_axes(_: Layout) -> Iterator[Input]:
    """Elements with three axes, and with none."""
    for shape in ((1, 1, 1), ()):
        yield Input(np.full(shape, 0.25, np.float32), np.zeros(shape, np.float32))


def no_last_axis(_: Layout) -> Iterator[Input]:
    """Examples without elements."""
    yield Input(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32))
