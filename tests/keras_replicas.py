"""Keras on TensorFlow in replicas, in processes that tests/test_replicas.py starts."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from tests import replica_jobs
from tests.keras_fit import EXACT, NATIVE, fit, model_of
from tests.replica_batch import FEATURES, LABELS, WEIGHTS, Fit
from unifiedloss.adapters.tensorflow import engine
from unifiedloss.conformance.processes import Place


def mirrored(place: Place, count: int, strength: str) -> tuple[dict[str, Any], dict[str, Fit]]:
    """Cases in strategy.run, and Keras' fit, on logical CPUs as replicas."""
    cases = replica_jobs.main(place, "tensorflow", count, strength)
    strategy = engine.strategy(count)
    fits = {"exact": fit(_global(EXACT), None, strategy)}
    if strength == "all":
        fits["native, weights"] = fit(_global(NATIVE), WEIGHTS, strategy)
        fits["native, eager"] = fit(_global(NATIVE), None, strategy, run_eagerly=True)
        fits["own mean"] = fit(NATIVE.to("keras"), None, strategy)
    return cases, fits


def workers(place: Place) -> dict[str, Fit]:
    """A training step in several processes, each a worker."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in place.ports]}
    task = {"type": "worker", "index": place.rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == place.size
    return {
        "native, weights": _step(strategy, _global(NATIVE), WEIGHTS),
        "exact": _step(strategy, _global(EXACT), None),
    }


def _step(strategy: Any, loss: Any, weights: Any) -> Fit:
    """Train for one step that is written out.

    The `fit` of Keras 3.15 fails in several workers, with losses of its own too.
    """
    with strategy.scope():
        model = model_of(loss)
        model.optimizer.build(model.trainable_variables)

    def rows(x: Any) -> Any:
        parts = np.split(x, strategy.num_replicas_in_sync)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group])
        )

    def step(x: Any, y: Any, w: Any) -> Any:
        with tf.GradientTape() as tape:
            value = loss(y, model(x), sample_weight=w)
        gradients = tape.gradient(value, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)
        return value

    given = rows(FEATURES), rows(LABELS), None if weights is None else rows(weights)
    each = tf.function(lambda: strategy.run(step, args=given))()
    value = strategy.reduce("SUM", each, axis=None)
    return Fit(float(value), model.layers[0].get_weights()[0], ())


def _global(spec: Any) -> Any:
    return spec.to("keras", global_mean=True)
