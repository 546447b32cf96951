"""Small inputs on which losses can differ, laid out so that two given losses take them.

Class weights fix the number of classes, `axis` where they lie, weights of elements the last extents: a `Layout` knows, and places rows of
numbers accordingly. `inputs` lists what a search for the smallest telling input goes through, the smallest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unifiedloss.checks import extents
from unifiedloss.spec import AnyLoss, BinaryCrossEntropyLoss, Categorical, NegativeLogLikelihoodLoss
from unifiedloss.switching.sides import Array, Input

_ROWS = ((2.0, 1.0, 0.0), (0.0, 1.0, 2.0), (1.0, 3.0, -1.0), (0.5, 0.5, 0.5))
_LABELS = (0, 1, 1, 2)


@dataclass(frozen=True)
class Layout:
    """Where predictions have their classes or elements.

    Attributes:
        classes: the number of classes.
        axis: the class axis.
        tail: the last extents of elementwise predictions.
        averaged: whether the last axis is averaged away, so that there must be one more.
        ignored: a label that is ignored, where one is.
        elementwise: whether the loss has no classes.
        weights: the loss's own weights, of classes or of elements, where it has some.
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
        """Rows of classes, cut or filled with 0 to the number there is, and labels, or rows of targets."""
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
        free = 0 if axis else 1  # the first axis that holds no classes counts the rows
        shape[free] = rows.shape[0]
        return np.ascontiguousarray(np.moveaxis(rows, 1, 1 if axis > free else 0).reshape(shape))

    def elements(
        self,
        predictions: Sequence[float],
        targets: Sequence[float],
        weight: Any = None,
        dtype: str = "float32",
    ) -> Input:
        """One number for each example, repeated with small changes where an example has several."""
        shape = self._elements(len(predictions))
        return Input(
            _filled(predictions, shape, dtype), _filled(targets, shape, dtype), _weight(weight, dtype)
        )  # fmt: skip

    def _elements(self, examples: int) -> tuple[int, ...]:
        tail = self.tail
        if self.averaged and not tail:
            return (examples, 1)
        return (examples, *tail)


def _fitted(row: Sequence[float], length: int) -> list[float]:
    return [*row[:length], *[0.0] * (length - len(row))]


def _filled(values: Sequence[float], shape: tuple[int, ...], dtype: str) -> Array:
    """Each value along the first axis, the same in all elements of the example."""
    column = np.array(values, dtype).reshape(len(values), *(1,) * (len(shape) - 1))
    return np.ascontiguousarray(np.broadcast_to(column, shape))


def _weight(weight: Any, dtype: str) -> Array | None:
    return None if weight is None else np.array(weight, dtype)


def weights_of(spec: AnyLoss) -> Any:
    """The weights that a spec holds itself, of classes or of elements; None where it has none."""
    return (
        getattr(spec, "class_weights", None)
        if isinstance(spec, Categorical)
        else getattr(spec, "element_weights", None)
    )


def layouts(a: AnyLoss, b: AnyLoss) -> list[Layout]:
    """The layouts that one of two losses of the same kind asks for, or that both do where they agree."""
    if isinstance(a, Categorical):
        return list(dict.fromkeys(_classes(own, other) for own, other in ((a, b), (b, a))))
    return [_elementwise(a, b)]


def _classes(own: Any, other: Any) -> Layout:
    weights = own.class_weights if own.class_weights is not None else other.class_weights
    axis = own.axis if own.axis is not None else other.axis
    return Layout(
        classes=len(weights) if weights is not None else 3,
        axis=-1 if axis is None else _plain(axis),
    )


def _plain(axis: int) -> int:
    # Rows and classes alone are the layout that most axes share.
    return -1 if axis in (1, -1) else axis


def _elementwise(a: Any, b: Any) -> Layout:
    averaged = bool(
        getattr(a, "average_last_axis", False) or getattr(b, "average_last_axis", False)
    )
    tail: tuple[int, ...] = ()
    for spec in (a, b):
        weights = getattr(spec, "element_weights", None)
        if isinstance(weights, tuple):
            tail = _broadcast(tail, extents(weights))
        several = getattr(spec, "pos_weight", None)
        if isinstance(several, tuple):
            axis = -1 if spec.axis is None else spec.axis
            shape = [1] * (-axis if axis < 0 else 1)
            shape[0] = len(several)
            tail = _broadcast(tail, tuple(shape))
    return Layout(tail=tail, averaged=averaged, elementwise=True)


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(np.broadcast_shapes(a, b))
    except ValueError:
        return a or b


def inputs(a: AnyLoss, b: AnyLoss) -> list[Input]:
    """What two losses of one kind are tried on, the smallest first, and the empty batch last."""
    make = _of_classes if isinstance(a, Categorical) else _of_elements
    found = [x for layout in layouts(a, b) for x in make(layout, a, b)]

    def size(x: Input) -> tuple[bool, int, bool, bool]:
        return (
            x.predictions.size == 0,
            x.predictions.size,
            x.sample_weight is not None,
            x.predictions.dtype != np.float32,
        )

    return sorted(found, key=size)


_MANY = 64
"""As many classes, or elements along an axis, are no small input any more."""


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
    """The first rows, in both dtypes, and with weights."""
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
    # Every class occurs, as scikit-learn asks for.
    yield layout.rows(
        [(0.0, 0.5, 0.5), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)],
        list(range(min(3, layout.classes))) + [0] * (3 - layout.classes),
    )
    yield layout.rows([(0.4, 0.2, 0.2)], [0])
    yield layout.rows([(2.0, 1.0, 1.0)], [0])
    yield layout.rows([(0.5, 0.25, 0.25)], [[0.5, 0.25, 0.25]])


def _cubes(layout: Layout) -> Iterator[Input]:
    """As many positions as classes along every axis, so that no shape tells which holds the classes."""
    k = layout.classes
    if k > _MANY:
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
    one, other = predictions[:1], targets[:1]
    yield layout.elements(one, other)
    yield layout.elements(one, other, dtype="float64")
    yield layout.elements(one, other, weight=[0.0])
    yield layout.elements(one, other, weight=[2.0])
    for weight in (None, [1.0, 3.0], [1.0, 0.0]):
        yield layout.elements(predictions, targets, weight)
    yield layout.elements([], [])


def _squares(layout: Layout, binary: bool) -> Iterator[Input]:
    """Two examples of several elements that differ, whichever axis is weighted or averaged."""
    tail = layout.tail or (2,)
    for shape in (tail, (2, *tail), (2, 2, *tail)):
        size = int(np.prod(shape))
        if size > _MANY**2:
            continue
        values = np.arange(1, size + 1, dtype=np.float32).reshape(shape)
        if binary:
            yield Input(values / (size + 1), np.ones(shape, np.float32))
        else:
            yield Input(values, np.zeros(shape, np.float32))
