"""Keras' array operations under the names of `unifiedloss.pipeline.Ops`, on whichever backend Keras runs.

Arithmetic is ``keras.ops``. What finds its way by shapes and indices, or has no counterpart in Keras, is the running backend's own: there it
knows about extents that are unknown under tracing and about integers JAX cannot hold, and ``keras.ops.take_along_axis`` alone takes
fifteen of TensorFlow's operations.
"""

from __future__ import annotations

from typing import Any

import keras

from unifiedloss import registry

Array = Any

BACKEND = registry.adapter(keras.backend.backend())
"""The adapter of the backend Keras runs on."""

cast = keras.ops.cast
where = keras.ops.where
log = keras.ops.log
log1p = keras.ops.log1p
stop_gradient = keras.ops.stop_gradient
sum = keras.ops.sum  # noqa: A001 - the name the contract gives
sum_axis = keras.ops.sum
any_axis = keras.ops.any
expand = keras.ops.expand_dims

cast_labels = BACKEND.ops.cast_labels
equal = BACKEND.ops.equal
finite = BACKEND.ops.finite
count = BACKEND.ops.count
size = BACKEND.ops.size
align = BACKEND.ops.align
broadcast_like = BACKEND.ops.broadcast_like
take_class = BACKEND.ops.take_class
take = BACKEND.ops.take
along = BACKEND.ops.along
constant = BACKEND.ops.constant
shapes_agree = BACKEND.ops.shapes_agree
