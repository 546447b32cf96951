"""Keras' array operations under the names of `unifiedloss.pipeline.Ops`.

Arithmetic is ``keras.ops``. Selection, indexing and reshaping use the adapter of Keras' backend,
because it handles extents that are unknown under tracing and integers that JAX cannot hold.
``keras.ops.where`` and ``take_along_axis`` also cost several times more, because they first convert
their arguments to tensors of one dtype.
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
sum = keras.ops.sum  # noqa: A001 - the name that `Ops` prescribes
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
    # On TensorFlow even a cast to the same dtype takes 10 microseconds, and every call has three.
    return x if BACKEND.dtype_name(x.dtype) == dtype else keras.ops.cast(x, dtype)
