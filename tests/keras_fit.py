"""A Keras model whose gradient can be read bit by bit, for tests of distributed training.

The features are the identity, so the weights of the one layer are the logits, and the gradient to
them is that to the logits. The optimizer assigns the gradient to the weights.
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np

import unifiedloss as ul
from tests.replica_batch import CLASSES, FEATURES, LABELS, LOGITS, ROWS, Fit

NATIVE: Any = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)
EXACT: Any = NATIVE.replace(rounding="exact")


class Assign(keras.optimizers.Optimizer):
    """Assigns the gradient to each weight."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Replace a weight by its gradient."""
        del learning_rate
        self.assign(variable, gradient)


def model_of(loss: Any, **settings: Any) -> Any:
    """A model of one layer, whose logits are `LOGITS`."""
    layer = keras.layers.Dense(CLASSES, use_bias=False, name="last")
    model = keras.Sequential([keras.Input((ROWS,)), layer])
    layer.set_weights([LOGITS])
    model.compile(optimizer=Assign(1.0), loss=loss, **settings)
    return model


def fit(loss: Any, weights: Any = None, strategy: Any = None, **settings: Any) -> Fit:
    """Train for one step on all rows, in the scope of a strategy of `tf.distribute` if given."""
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        model = model_of(loss, **settings)
    history = model.fit(
        FEATURES,
        LABELS,
        sample_weight=weights,
        batch_size=ROWS,
        shuffle=False,
        verbose=0,
    ).history
    kernel = model.layers[0].kernel
    sharding = getattr(kernel.value, "sharding", None)
    where = () if sharding is None else tuple(sharding.spec)
    return Fit(history["loss"][0], np.asarray(kernel), where)
