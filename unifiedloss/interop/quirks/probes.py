"""Parts of the probes that several quirks share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.sides import AS_GIVEN, Array, Input

ROWS = [(0.5, 0.375, 0.125), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)]
NAN_ROW = (np.nan, np.nan, np.nan)


def f32(*values: Any) -> Array:
    """An array of float32."""
    return np.array(values, np.float32)


def labels(layout: Layout) -> list[int]:
    """Labels of every class of up to three, because scikit-learn needs all of them in a batch."""
    return [min(label, layout.classes - 1) for label in range(3)]


def every_class(layout: Layout, weight: Any = None, dtype: str = "float32") -> Input:
    """A batch with labels of every class."""
    return layout.rows(ROWS, labels(layout), weight, dtype)


def one_row(layout: Layout, target: Any, dtype: str = "float32") -> Input:
    """The row (2, 1, 0) with a label, or with a dense target."""
    return layout.rows([(2.0, 1.0, 0.0)], [target], dtype=dtype)


def two_classes(layout: Layout, targets: list[int]) -> Input:
    """A batch of two classes."""
    return replace(layout, classes=2).rows([(0.875, 0.125), (0.25, 0.75)], targets)


def as_given(x: Input, dtype: str) -> Input:
    """An input whose targets have this dtype, and which the loss gets unchanged."""
    return replace(x, targets=x.targets.astype(dtype), way=AS_GIVEN)


def bfloat16(x: Input) -> list[Input]:
    """The input in bfloat16, if NumPy has it: once ml_dtypes is imported, as TensorFlow does."""
    try:
        dtype = np.dtype("bfloat16")
    except TypeError:
        return []
    targets = x.targets if x.targets.dtype.kind in "iu" else x.targets.astype(dtype)
    return [replace(x, predictions=x.predictions.astype(dtype), targets=targets)]


def sequences(layout: Layout, *weight: Any) -> list[Input]:
    """Two sequences of two steps, each step with a class axis, and sample weights."""
    if not -3 <= layout.axis < 3:
        return []
    rows = np.zeros((2, 2, layout.classes), np.float32)
    rows[:, :, :3] = f32([ROWS[0]], [ROWS[2]])[:, :, : layout.classes]
    predictions = np.moveaxis(rows, -1, layout.axis)
    return [Input(predictions, np.zeros((2, 2), np.int64), f32(*weight))]


def weightless_class(layout: Layout) -> tuple[int, int] | None:
    """A class with weight and a class without; None if no class has a weight."""
    weights = list(layout.weights)
    return (weights.index(max(weights)), weights.index(0.0)) if any(weights) else None
