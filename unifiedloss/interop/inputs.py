"""Make small inputs on which two losses can differ, in shapes that both losses accept.

Class weights fix the number of classes, `axis` fixes the class axis, and element weights fix the
last extents. A `Layout` holds these and places rows of numbers accordingly. `diff` searches the
list that `inputs` returns, smallest first, for an input that shows a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unifiedloss.checks import extents
from unifiedloss.interop.sides import Array, Input
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Categorical, Loss

_ROWS = ((2.0, 1.0, 0.0), (0.0, 1.0, 2.0), (1.0, 3.0, -1.0), (0.5, 0.5, 0.5))
_LABELS = (0, 1, 1, 2)


@dataclass(frozen=True)
class Layout:
    """The shape that predictions must have.

    Attributes:
        classes: the number of classes.
        axis: the class axis.
        tail: the last extents of elementwise predictions.
        averaged: whether the loss averages the last axis, so predictions need a second axis.
        ignored: a label that the loss ignores, or None.
        elementwise: whether the loss has no classes.
        weights: the class weights or element weights of the loss, or None.
    """

    classes: int = 3
    axis: int = -1
    tail: tuple[int, ...] = ()
    averaged: bool = False
    ignored: int | None = None
    elementwise: bool = False
    weights: Any = None

    def rows(
        self,
        rows: Sequence[Sequence[float]],
        targets: Any,
        weight: Any = None,
        dtype: str = "float32",
    ) -> Input:
        """Place rows, cut or zero-padded to the number of classes, with labels or target rows."""
        predictions = self._placed(np.array([_fitted(row, self.classes) for row in rows], dtype))
        if targets and isinstance(targets[0], Sequence):
            placed = self._placed(np.array([_fitted(row, self.classes) for row in targets], dtype))
        else:
            placed = np.array(targets, np.int64).reshape(
                np.delete(predictions.shape, self._axis(predictions.ndim))
            )
        return Input(predictions, placed, _weight(weight, dtype))

    def _axis(self, rank: int) -> int:
        return self.axis % rank

    def _placed(self, rows: Array) -> Array:
        rank = max(2, self.axis + 1, -self.axis)
        axis = self.axis % rank
        shape = [1] * rank
        shape[axis] = rows.shape[1]
        free = 0 if axis else 1  # rows lie along the first axis that is not the class axis
        shape[free] = rows.shape[0]
        return np.ascontiguousarray(np.moveaxis(rows, 1, 1 if axis > free else 0).reshape(shape))

    def elements(
        self,
        predictions: Sequence[float],
        targets: Sequence[float],
        weight: Any = None,
        dtype: str = "float32",
    ) -> Input:
        """Place one number per example, repeated in all elements of the example."""
        tail = (1,) if self.averaged and not self.tail else self.tail
        shape = (len(predictions), *tail)
        return Input(
            _filled(predictions, shape, dtype),
            _filled(targets, shape, dtype),
            _weight(weight, dtype),
        )


def _fitted(row: Sequence[float], length: int) -> list[float]:
    return [*row[:length], *[0.0] * (length - len(row))]


def _filled(values: Sequence[float], shape: tuple[int, ...], dtype: str) -> Array:
    """Put the values along the first axis and repeat each in all elements of its example."""
    column = np.array(values, dtype).reshape(len(values), *(1,) * (len(shape) - 1))
    return np.ascontiguousarray(np.broadcast_to(column, shape))


def _weight(weight: Any, dtype: str) -> Array | None:
    return None if weight is None else np.array(weight, dtype)


def weights_of(spec: Loss) -> Any:
    """Return the class weights or element weights of a spec, or None."""
    field = "class_weights" if isinstance(spec, Categorical) else "element_weights"
    return getattr(spec, field, None)


def layouts(a: Loss, b: Loss) -> list[Layout]:
    """List the layouts of two losses of the same kind: one, or one for each if they contradict."""
    if isinstance(a, Categorical):
        return list(dict.fromkeys([_categorical(a, b), _categorical(b, a)]))
    return [_elementwise(a, b)]


def _categorical(preferred: Any, other: Any) -> Layout:
    """Take the class weights and the axis of `preferred`; take those it lacks from `other`."""
    weights = preferred.class_weights
    if weights is None:
        weights = other.class_weights
    axis = preferred.axis if preferred.axis is not None else other.axis
    if axis is None or axis == 1:  # with two axes, rows and classes, 1 is the last axis
        axis = -1
    return Layout(classes=3 if weights is None else len(weights), axis=axis)


def _elementwise(a: Any, b: Any) -> Layout:
    averaged = bool(
        getattr(a, "average_last_axis", False) or getattr(b, "average_last_axis", False)
    )
    tail: tuple[int, ...] = ()
    for spec in (a, b):
        weights = getattr(spec, "element_weights", None)
        if isinstance(weights, tuple):
            tail = _broadcast(tail, extents(weights))
        pos_weight = getattr(spec, "pos_weight", None)
        if isinstance(pos_weight, tuple):
            axis = -1 if spec.axis is None else spec.axis
            shape = [1] * (-axis if axis < 0 else 1)
            shape[0] = len(pos_weight)
            tail = _broadcast(tail, tuple(shape))
    return Layout(tail=tail, averaged=averaged, elementwise=True)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(a, b))
    except ValueError:
        return a or b


def inputs(a: Loss, b: Loss) -> list[Input]:
    """List inputs for two losses of one kind, smallest first, empty batches last."""
    make = _of_classes if isinstance(a, Categorical) else _of_elements
    unsorted = [x for layout in layouts(a, b) for x in make(layout, a, b)]

    def size(x: Input) -> tuple[bool, int, bool, bool]:
        return (
            x.predictions.size == 0,
            x.predictions.size,
            x.sample_weight is not None,
            x.predictions.dtype != np.float32,
        )

    return sorted(unsorted, key=size)


_LARGEST_SMALL_EXTENT = 64
"""Skip inputs with more classes, or more elements per axis, because they are not small."""


def _of_classes(layout: Layout, a: Any, b: Any) -> Iterator[Input]:
    from_probabilities = [not getattr(spec, "from_logits", True) for spec in (a, b)]
    if any(from_probabilities):
        yield from _probabilities(layout)
    if not all(from_probabilities) or isinstance(a, NegativeLogLikelihoodLoss):
        yield from _logits(layout, a, b)
    yield from _cubes(layout)


def _logits(layout: Layout, a: Any, b: Any) -> Iterator[Input]:
    yield from _rows(layout, _ROWS, _LABELS)
    last = layout.classes - 1
    labels = {label for spec in (a, b) for label in spec.ignore_index or ()}
    for label in sorted(labels - set(range(layout.classes))):
        yield layout.rows(_ROWS[:1], [label])
        yield layout.rows(_ROWS[:2], [0, label])
    for label in sorted(labels & set(range(layout.classes))):
        yield layout.rows(_ROWS[:2], [last if label == 0 else 0, label])
    yield layout.rows(_ROWS[:1], [[0.5, 0.25, 0.25]])
    yield layout.rows(_ROWS[:2], [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    yield layout.rows(_ROWS[:2], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _rows(
    layout: Layout, rows: Sequence[Sequence[float]], labels: Sequence[int]
) -> Iterator[Input]:
    """Yield one, two and four of the rows, in both dtypes, and with weights."""
    last = layout.classes - 1
    labels = [min(label, last) for label in labels]
    yield layout.rows(rows[:1], labels[:1])
    yield layout.rows(rows[:1], labels[:1], dtype="float64")
    yield layout.rows(rows[:1], labels[:1], weight=[0.0])
    yield layout.rows(rows[:1], labels[:1], weight=[2.0])
    for weight in (None, [1.0, 3.0], [1.0, 0.0]):
        yield layout.rows(rows[:2], labels[:2], weight)
    for weight in (None, [1.0, 0.0, 3.0, 1.0]):
        yield layout.rows(rows[:4], labels[:4], weight)
    if layout.axis in (-1, 1):
        yield Input(np.zeros((0, layout.classes), np.float32), np.zeros(0, np.int64))


def _probabilities(layout: Layout) -> Iterator[Input]:
    yield from _rows(
        layout, ((0.5, 0.25, 0.25), (0.2, 0.7, 0.1), (0.1, 0.6, 0.3), (0.3, 0.3, 0.4)), _LABELS
    )
    yield layout.rows([(0.0, 0.5, 0.5)], [0])
    yield layout.rows([(0.0, 0.5, 0.5)], [0], dtype="float64")
    yield layout.rows([(1.0, 0.0, 0.0)], [0])
    # Let every class occur, because scikit-learn requires it.
    yield layout.rows(
        [(0.0, 0.5, 0.5), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)],
        list(range(min(3, layout.classes))) + [0] * (3 - layout.classes),
    )
    yield layout.rows([(0.4, 0.2, 0.2)], [0])
    yield layout.rows([(2.0, 1.0, 1.0)], [0])
    yield layout.rows([(0.5, 0.25, 0.25)], [[0.5, 0.25, 0.25]])


def _cubes(layout: Layout) -> Iterator[Input]:
    """Yield cubes: all axes have the same length, so any of them could be the class axis."""
    k = layout.classes
    if k > _LARGEST_SMALL_EXTENT:
        return
    for shape in ((k, k), (1, k, k)):
        size = int(np.prod(shape))
        values = np.arange(size, dtype=np.float32).reshape(shape)
        labels = np.broadcast_to(np.arange(k), shape[:-1]).astype(np.int64)
        yield Input(values, labels)
        yield Input(((values % k + 1) / (k + 1)).astype(np.float32), labels)


def _of_elements(layout: Layout, a: Any, b: Any) -> Iterator[Input]:
    binary = isinstance(a, BinaryCrossEntropyLoss) or isinstance(b, BinaryCrossEntropyLoss)
    if binary:
        from_probabilities = [not getattr(spec, "from_logits", True) for spec in (a, b)]
        if any(from_probabilities):
            yield from _pairs(layout, (0.25, 0.75), (1.0, 1.0))
            for p, t in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)):
                yield layout.elements([p], [t])
                yield layout.elements([p], [t], dtype="float64")
        if not all(from_probabilities):
            yield from _pairs(layout, (1.0, -2.0), (1.0, 1.0))
    else:
        yield from _pairs(layout, (1.0, 2.0), (0.0, 0.0))
    yield from _squares(layout, binary)


def _pairs(
    layout: Layout, predictions: Sequence[float], targets: Sequence[float]
) -> Iterator[Input]:
    """Yield the first example and both, in both dtypes, and with weights; then an empty batch."""
    prediction, target = predictions[:1], targets[:1]
    yield layout.elements(prediction, target)
    yield layout.elements(prediction, target, dtype="float64")
    yield layout.elements(prediction, target, weight=[0.0])
    yield layout.elements(prediction, target, weight=[2.0])
    for weight in (None, [1.0, 3.0], [1.0, 0.0]):
        yield layout.elements(predictions, targets, weight)
    yield layout.elements([], [])


def _squares(layout: Layout, binary: bool) -> Iterator[Input]:
    """Yield elements that all differ, so weights and means along any axis change the loss."""
    tail = layout.tail or (2,)
    for shape in (tail, (2, *tail), (2, 2, *tail)):
        size = int(np.prod(shape))
        if size > _LARGEST_SMALL_EXTENT**2:
            continue
        values = np.arange(1, size + 1, dtype=np.float32).reshape(shape)
        if binary:
            yield Input(values / (size + 1), np.ones(shape, np.float32))
        else:
            yield Input(values, np.zeros(shape, np.float32))
