"""TensorFlow's array operations under the names of `unifiedloss.pipeline.Ops`."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from unifiedloss.spec import Plan

Tensor = Any

log = tf.math.log
log1p = tf.math.log1p
stop_gradient = tf.stop_gradient
sum = tf.reduce_sum  # noqa: A001 - the name the contract gives
sum_axis = tf.reduce_sum
any_axis = tf.reduce_any
expand = tf.expand_dims
take = tf.gather


def cast(x: Tensor, dtype: str) -> Tensor:
    return tf.cast(x, dtype)


def cast_labels(x: Tensor) -> Tensor:
    return tf.cast(x, tf.int64)


def where(condition: Tensor, x: Tensor, y: Tensor | float) -> Tensor:
    return tf.where(condition, x, tf.cast(y, x.dtype))


def equal(x: Tensor, value: float) -> Tensor:
    return tf.equal(x, tf.cast(value, x.dtype))


@tf.custom_gradient
def finite(x: Tensor) -> tuple[Tensor, Any]:
    return tf.where(tf.math.is_inf(x), tf.sign(x) * 2.0**100, x), lambda gradient: gradient


def count(condition: Tensor, dtype: str) -> Tensor:
    return tf.cast(tf.math.count_nonzero(condition), dtype)


def size(x: Tensor, dtype: str) -> Tensor:
    return tf.cast(tf.size(x, tf.int64), dtype)


def align(x: Tensor, reference: Tensor) -> Tensor:
    missing = reference.shape.rank - x.shape.rank
    return tf.reshape(x, tf.concat([tf.shape(x), [1] * missing], 0)) if missing else x


def broadcast_like(x: Tensor, reference: Tensor) -> Tensor:
    return tf.broadcast_to(x, tf.shape(reference))


def take_class(x: Tensor, index: Tensor, axis: int) -> Tensor:
    rows = flatten(x, axis)
    return tf.reshape(tf.gather(rows, tf.reshape(index, [-1]), batch_dims=1), tf.shape(index))


def flatten(x: Tensor, axis: int) -> Tensor:
    if axis != -1 and axis != x.shape.rank - 1:
        rank = x.shape.rank
        x = tf.transpose(x, [*range(axis), *range(axis + 1, rank), axis])
    return tf.reshape(x, tf.stack([-1, tf.shape(x)[-1]]))


def constant(values: tuple[float, ...] | float, dtype: str, reference: Tensor) -> Tensor:
    return tf.constant(values, dtype)


def along(vector: Tensor, reference: Tensor, axis: int) -> Tensor:
    trailing = -axis - 1 if axis < 0 else reference.shape.rank - axis - 1
    return tf.reshape(vector, [-1] + [1] * trailing)


def shapes_agree(plan: Plan, *tensors: Tensor | None) -> None:
    """To come."""
