"""Small tensors that the cases of several losses share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unifiedloss.conformance.case import Array

NAN, INF = math.nan, math.inf

X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
"""Logits of four positions and three classes."""

Y = np.array([0, 1, 1, 2])
"""Labels of these positions."""

W = (1.0, 2.0, 4.0)
"""Class weights."""

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.5, 0.25], [0.2, 0.3, 0.5]], np.float32)
"""Probabilities of these positions."""

ONE_HOT = np.eye(3, dtype=np.float32)[Y]
"""The labels as dense targets."""

F32_TINY = np.float32(2.0**-126)
"""The smallest normal float32 number."""


def f32(*values: Any) -> Array:
    """The values as a float32 array."""
    return np.array(values, np.float32)


def ints(*values: Any, dtype: Any = np.int64) -> Array:
    """The values as an array of an integer dtype."""
    return np.array(values, dtype)


MASKED_DENSE = (
    f32([2, 1, 0], [0, 1, 2], [1, 3, -1], [NAN, INF, -1], [NAN] * 3, [-INF] * 3),
    f32([1, 0, 0], [0, 0.5, 0.25], [0, 0, 0], [NAN, -1, INF], [1, 0, 0], [0, 0, 0]),
    f32(1, -3, 3, NAN, -1, INF),
    np.array([True, True, True, False, False, False]),
)
"""Predictions, dense targets, sample weights and a mask; whatever is masked must not be read."""
