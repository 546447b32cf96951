"""The batch of the fits in tests/test_replicas.py; the pieces have different numbers of labels.

It needs no framework, so that tests/test_replicas.py reads what a fit found without Keras.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_RNG = np.random.default_rng(0)

ROWS, CLASSES = 12, 6
FEATURES = np.eye(ROWS, dtype=np.float32)
LOGITS = _RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS = _RNG.integers(0, CLASSES, ROWS)
LABELS[[0, 1, 2, 3, 7]] = -100
WEIGHTS = _RNG.uniform(0.5, 2, ROWS).astype(np.float32)


class Fit(NamedTuple):
    """What `fit` of tests/keras_fit.py found.

    Attributes:
        loss: the loss that Keras reports.
        gradient: the gradient to the weights.
        where: for each axis of the weights the axis of a JAX mesh that shares it.
    """

    loss: float
    gradient: Any
    where: tuple[str | None, ...]
