"""Keras on JAX with keras.distribution, in processes that tests/test_replicas.py starts."""

from __future__ import annotations

import keras

from tests.keras_fit import EXACT, NATIVE, Fit, fit
from tests.replica_batch import WEIGHTS
from unifiedloss.conformance.processes import Place


def on_devices(place: Place) -> dict[str, Fit]:
    """Keras' fit with all devices on one axis."""
    del place
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*last.*kernel"] = (None, "model")
    split = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
    found = {}
    for distribution in (keras.distribution.DataParallel(devices=devices), split):
        keras.distribution.set_distribution(distribution)
        name = type(distribution).__name__
        found[f"native, weights, {name}"] = fit(NATIVE.to("keras", global_mean=True), WEIGHTS)
        found[f"exact, {name}"] = fit(EXACT.to("keras"))
    return found
