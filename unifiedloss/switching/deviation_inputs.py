"""The inputs that show the rules of `unifiedloss.switching.deviations`, laid out as a loss takes them, the smallest first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unifiedloss.switching.inputs import Layout
from unifiedloss.switching.sides import Input

# ------------------------------------------------------------------------------------------------------------------ labels


def bad_labels(layout: Layout) -> Iterator[Input]:
    """Labels that are no class."""
    for label in (-1, layout.classes, -100):
        yield layout.rows([(2.0, 1.0, 0.0)], [label])


def integer_rows(layout: Layout) -> Iterator[Input]:
    """A one-hot row of integers."""
    dense = layout.rows([(2.0, 1.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield Input(dense.predictions, dense.targets.astype(np.int64))


def floating_label(layout: Layout) -> Iterator[Input]:
    """A label of 1.7."""
    x = layout.rows([(2.0, 1.0, 0.0)], [0])
    yield Input(x.predictions, x.targets + np.float32(1.7))


def unnormalized(layout: Layout) -> Iterator[Input]:
    """A dense row with the sum 2."""
    yield layout.rows([(2.0, 1.0, 0.0)], [[2.0, 0.0, 0.0]])


def negative_row(layout: Layout) -> Iterator[Input]:
    """A dense row with a negative entry."""
    yield layout.rows([(2.0, 1.0, 0.0)], [[-1.0, 1.0, 1.0]])


def out_of_range_target(layout: Layout) -> Iterator[Input]:
    """A target of 1.5."""
    yield layout.elements([0.5], [1.5])


# ------------------------------------------------------------------------------------------------------------- predictions


def minus_infinity(layout: Layout) -> Iterator[Input]:
    """A logit of -inf where the dense target is 0."""
    yield layout.rows([(2.0, -np.inf, 0.0)], [[1.0, 0.0, 0.0]])


def infinite_logit(layout: Layout) -> Iterator[Input]:
    """A logit of +inf, for either label."""
    yield layout.elements([np.inf], [1.0])
    yield layout.elements([np.inf], [0.0])


def plus_infinity(layout: Layout) -> Iterator[Input]:
    """A logit of +inf in another class than the label's."""
    yield layout.rows([(np.inf, 0.0, 0.0)], [1])


def large(layout: Layout) -> Iterator[Input]:
    """Logits about 1e5."""
    yield layout.rows([(100001.0, 100000.0, 0.0)], [0])


def confident(layout: Layout) -> Iterator[Input]:
    """A label's logit 18 above the others."""
    yield layout.rows([(18.0, 0.0, 0.0)], [0])


def sure(layout: Layout) -> Iterator[Input]:
    """A label's logit so far above the others that the loss is 0."""
    yield layout.rows([(200.0, 0.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield layout.rows([(200.0, 0.0, 0.0)], [0])


def half(layout: Layout) -> Iterator[Input]:
    """A float16 row with a small loss."""
    yield layout.rows([(1.0, 6.0, -1.0)], [1], dtype="float16")


def double(layout: Layout) -> Iterator[Input]:
    """A float64 row."""
    yield layout.rows([(2.0, 1.0, 0.0)], [0], dtype="float64")


def double_elements(layout: Layout) -> Iterator[Input]:
    """A float64 element."""
    yield layout.elements([0.3], [1.0], dtype="float64")


def half_overflow(layout: Layout) -> Iterator[Input]:
    """A float16 error whose square is infinite."""
    yield layout.elements([300.0], [0.0], dtype="float16")


def no_number(layout: Layout) -> Iterator[Input]:
    """A prediction that is NaN."""
    yield layout.elements([np.nan], [1.0])


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
    """A probability that lies on the bound of Keras' clipping."""
    yield layout.elements([1e-7], [1.0])


def behind_softmax(_: Layout) -> Iterator[Input]:
    """Probabilities that come from a softmax of Keras'."""
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
    """A probability that comes from a sigmoid of Keras', in a graph."""
    note = "in a tf.function the predictions come from keras.ops.sigmoid([[100]])"
    yield Input(
        np.array([[1.0]], np.float32),
        np.array([[0.0]], np.float32),
        None,
        "run_behind_sigmoid",
        np.array([[100.0]], np.float32),
        note,
    )


# --------------------------------------------------------------------------------------------------- positions and shapes


def dropped_nan(layout: Layout) -> Iterator[Input]:
    """A row of NaN whose label is ignored."""
    if layout.ignored is not None:
        yield layout.rows([(2.0, 1.0, 0.0), (np.nan, np.nan, np.nan)], [0, layout.ignored])


def weightless_class(layout: Layout) -> Iterator[Input]:
    """A row of NaN whose class has the weight 0."""
    weights = list(layout.weights)
    if any(weights):
        counted = weights.index(max(weights))
        yield layout.rows([(2.0, 1.0, 0.0), (np.nan, np.nan, np.nan)], [counted, weights.index(0.0)])


def infinite_class(layout: Layout) -> Iterator[Input]:
    """A label whose class has the weight 0 and the logit -inf."""
    weights = list(layout.weights)
    if any(weights):
        counted, label = weights.index(max(weights)), weights.index(0.0)
        yield layout.rows(
            [(2.0, 1.0, 0.0), [-np.inf if c == label else 0.0 for c in range(len(weights))]], [counted, label]
        )


def weightless_elements(layout: Layout) -> Iterator[Input]:
    """NaN in the elements whose weight is 0."""
    weights = np.asarray(layout.weights)
    if weights.any():
        yield Input(np.where(weights == 0, np.nan, 0.25).astype(np.float32), np.ones(weights.shape, np.float32))


def no_class_weight(layout: Layout) -> Iterator[Input]:
    """A label whose class has the weight 0, alone."""
    yield layout.rows([(2.0, 1.0, 0.0)], [layout.weights.index(0.0)])


def no_element_weight(layout: Layout) -> Iterator[Input]:
    """An example all of whose elements have the weight 0."""
    weights = np.asarray(layout.weights)
    if not weights.any():
        yield Input(np.full(weights.shape, 0.25, np.float32), np.ones(weights.shape, np.float32))


def switched_off_nan(_: Layout) -> Iterator[Input]:
    """An element that is NaN, with the sample weight 0."""
    yield Input(
        np.array([[0.5], [np.nan]], np.float32), np.zeros((2, 1), np.float32), np.array([1.0, 0.0], np.float32)
    )  # fmt: skip


def switched_off_row(layout: Layout) -> Iterator[Input]:
    """A row of NaN with the sample weight 0."""
    nothing = (np.nan, np.nan, np.nan)
    yield layout.rows([(0.5, 0.375, 0.125), nothing], [0, 0], [1.0, 0.0])
    # scikit-learn wants every class in a batch.
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


def one_axis(_: Layout) -> Iterator[Input]:
    """Elementwise predictions with one axis, without and with weights."""
    yield Input(np.array([0.25, 0.75], np.float32), np.ones(2, np.float32))
    yield Input(np.array([0.25, 0.75], np.float32), np.ones(2, np.float32), np.array([1.0, 3.0], np.float32))


def steps(_: Layout) -> Iterator[Input]:
    """Two examples of two steps, and a weight for each example."""
    values = np.array([[[0.25], [0.25]], [[0.5], [0.5]]], np.float32)
    yield Input(values, np.zeros_like(values), np.array([1.0, 3.0], np.float32))


def repeated(_: Layout) -> Iterator[Input]:
    """Two examples of three steps, and weights of shape (2, 1)."""
    values = np.array([[[0.25]] * 3, [[0.5]] * 3], np.float32)
    yield Input(values, np.zeros_like(values), np.array([[1.0], [3.0]], np.float32))


def _sequences(layout: Layout, weight: list[Any]) -> Iterator[Input]:
    """Two examples of two steps, each step with classes."""
    if not -3 <= layout.axis < 3:
        return
    rows = np.zeros((2, 2, layout.classes), np.float32)
    rows[:, :, :3] = np.array([[[0.5, 0.375, 0.125]], [[0.125, 0.25, 0.625]]], np.float32)[:, :, : layout.classes]
    yield Input(np.moveaxis(rows, -1, layout.axis), np.zeros((2, 2), np.int64), np.array(weight, np.float32))


def weighted_sequences(layout: Layout) -> Iterator[Input]:
    """Two sequences of two steps, and a weight for each."""
    yield from _sequences(layout, [1.0, 3.0])


def repeated_sequences(layout: Layout) -> Iterator[Input]:
    """Two sequences of two steps, and weights of shape (2, 1)."""
    yield from _sequences(layout, [[1.0], [3.0]])


def nothing(layout: Layout) -> Iterator[Input]:
    """No rows of classes."""
    yield Input(np.zeros((0, layout.classes), np.float32), np.zeros(0, np.int64))


def no_elements(_: Layout) -> Iterator[Input]:
    """No rows of elements."""
    yield Input(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))


def one_example(layout: Layout) -> Iterator[Input]:
    """Logits with one axis, and a label with none."""
    yield Input(layout.rows([(2.0, 1.0, 0.0)], [0]).predictions.reshape(-1), np.array(0))


def few_labels(layout: Layout) -> Iterator[Input]:
    """A batch in which most classes do not occur."""
    yield layout.rows([(0.5, 0.25, 0.25)], [0])


def compiled(layout: Layout) -> Iterator[Input]:
    """A label that is no class, compiled by XLA."""
    row = layout.rows([(2.0, 1.0, 0.0)], [layout.classes])
    yield Input(row.predictions, row.targets, None, "run_compiled", note="in a tf.function with jit_compile=True")
