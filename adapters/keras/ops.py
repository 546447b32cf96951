"""Keras' array operations under the names of `unifiedloss.pipeline.Ops`, on whichever backend Keras runs.

Arithmetic is ``keras.ops``. What selects, or finds its way by shapes and indices, is the running backend's own: it knows about extents that
are unknown under tracing and about integers JAX cannot hold, where ``keras.ops.take_along_axis`` and ``where`` first spend several times
what they cost there on making tensors of their arguments alike.
"""

from __future__ import annotations

from typing import Any

import keras

from unifiedloss import registry

Array = Any

BACKEND = registry.adapter(keras.backend.backend())
"""The adapter of the backend Keras runs on."""

log = keras.ops.log
log1p = keras.ops.log1p
stop_gradient = keras.ops.stop_gradient
sum = keras.ops.sum  # noqa: A001 - the name the contract gives
sum_axis = keras.ops.sum
any_axis = keras.ops.any

cast_labels = BACKEND.ops.cast_labels
where = BACKEND.ops.where
equal = BACKEND.ops.equal
finite = BACKEND.ops.finite
count = BACKEND.ops.count
size = BACKEND.ops.size
extent = BACKEND.ops.extent
expand = BACKEND.ops.expand
align = BACKEND.ops.align
broadcast_like = BACKEND.ops.broadcast_like
take_class = BACKEND.ops.take_class
take = BACKEND.ops.take
along = BACKEND.ops.along
constant = BACKEND.ops.constant
shapes_agree = BACKEND.ops.shapes_agree


def cast(x: Array, dtype: str) -> Array:
    # On TensorFlow even a cast to the same dtype takes 10 microseconds, and there are three in every call.
    return x if BACKEND.dtype_name(x.dtype) == dtype else keras.ops.cast(x, dtype)
