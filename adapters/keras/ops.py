"""Keras' array operations under the names of `unifiedloss.pipeline.Ops`, on whichever backend Keras runs."""

from __future__ import annotations

import operator
from typing import Any

import keras
from keras import ops as K

from unifiedloss import registry

Array = Any

BACKEND = registry.adapter(keras.backend.backend())
"""The adapter of the backend Keras runs on, asked for what Keras has no operation for."""

cast = K.cast
where = K.where
equal = operator.eq
log = K.log
log1p = K.log1p
stop_gradient = K.stop_gradient
sum = K.sum  # noqa: A001 - the name the contract gives
expand = K.expand_dims

# Keras has no operations for these.
cast_labels = BACKEND.ops.cast_labels
finite = BACKEND.ops.finite
shapes_agree = BACKEND.ops.shapes_agree


def sum_axis(x: Array, axis: int) -> Array:
    return K.sum(x, axis)


def any_axis(x: Array, axis: int) -> Array:
    return K.any(x, axis)


def count(condition: Array, dtype: str) -> Array:
    return K.cast(K.sum(K.cast(condition, "int32")), dtype)


def size(x: Array, dtype: str) -> Array:
    return K.cast(K.size(x), dtype)


def align(x: Array, reference: Array) -> Array:
    for _ in range(len(reference.shape) - len(x.shape)):
        x = K.expand_dims(x, -1)
    return x


def broadcast_like(x: Array, reference: Array) -> Array:
    return K.broadcast_to(x, K.shape(reference))


def take_class(x: Array, index: Array, axis: int) -> Array:
    return K.squeeze(K.take_along_axis(x, K.expand_dims(index, axis), axis), axis)


def constant(values: tuple[float, ...] | float, dtype: str, reference: Array) -> Array:
    return K.convert_to_tensor(values, dtype)


def take(vector: Array, index: Array) -> Array:
    return K.take(vector, index, 0)


def along(vector: Array, reference: Array, axis: int) -> Array:
    shape = [1] * len(reference.shape)
    shape[axis] = -1
    return K.reshape(vector, shape)
