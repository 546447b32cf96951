"""TensorFlow's array operations under the names of `unifiedloss.pipeline.Ops`.

Each works on eager tensors, in a ``tf.function`` with unknown shapes, and under XLA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import forwardprop_util

from unifiedloss.adapters.tensorflow import shapes

Tensor = Any

log = tf.math.log
log1p = tf.math.log1p
stop_gradient = tf.stop_gradient
sum = tf.reduce_sum  # noqa: A001 - the name that `Ops` prescribes
sum_axis = tf.reduce_sum
any_axis = tf.reduce_any
expand = tf.expand_dims
take = tf.gather
shapes_agree = shapes.shapes_agree


def cast(x: Tensor, dtype: str) -> Tensor:
    return tf.cast(x, dtype)


def cast_labels(x: Tensor) -> Tensor:
    return tf.cast(x, tf.int64)


def where(condition: Tensor, x: Tensor, y: Tensor | float) -> Tensor:
    # The raw operation converts a Python number to the dtype of x. So does tf.where, but only after
    # it has made another tensor of the number.
    return tf.raw_ops.SelectV2(condition=condition, t=x, e=y)


def equal(x: Tensor, value: float) -> Tensor:
    if x.dtype.is_integer and not x.dtype.min <= value <= x.dtype.max:
        return tf.zeros_like(x, tf.bool)
    return tf.equal(x, value)


def finite(x: Tensor) -> Tensor:
    result = _finite(x.dtype)(x)
    result.set_shape(x.shape)
    return result


@cache
def _finite(dtype: Any) -> Callable[[Tensor], Tensor]:
    """A clip with the gradient 1 everywhere, because tf.clip_by_value has 0 where it clips."""

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def clip(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return tf.where(tf.math.is_inf(x), tf.sign(x) * 2.0**100, x), lambda upstream: upstream

    return shapes.traced_once(clip, dtype)


_INTEGERS = {2: tf.int16, 4: tf.int32, 8: tf.int64}


def stored(x: Tensor) -> Tensor:
    """`x` rounded to its dtype, for XLA, which would keep more digits of it.

    `unifiedloss.adapters.jax.ops.stored` says why it is written so.
    """
    if forwardprop_util.pack_tangents([x]).tangents:
        return x  # a ForwardAccumulator takes the derivative of bits for 0

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def through_bits(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        form = _INTEGERS[x.dtype.size]
        bits = tf.minimum(tf.bitcast(x, form), tf.constant(form.max - 1, form))
        return tf.bitcast(bits, x.dtype), lambda upstream: upstream

    result: Tensor = through_bits(x)
    return result


def count(condition: Tensor, dtype: str) -> Tensor:
    return tf.cast(tf.math.count_nonzero(condition), dtype)


def size(x: Tensor, dtype: str) -> Tensor:
    return tf.cast(tf.size(x, tf.int64), dtype)


def extent(x: Tensor, axis: int, dtype: str) -> Tensor:
    return tf.cast(tf.shape(x, tf.int64)[axis], dtype)


def align(x: Tensor, reference: Tensor) -> Tensor:
    if x.shape.rank is None or reference.shape.rank is None:
        return tf.reshape(
            x, tf.concat([tf.shape(x), tf.ones([tf.rank(reference) - tf.rank(x)], tf.int32)], 0)
        )
    for _ in range(reference.shape.rank - x.shape.rank):
        x = tf.expand_dims(x, -1)
    return x


def broadcast_like(x: Tensor, reference: Tensor) -> Tensor:
    return tf.broadcast_to(x, tf.shape(reference))


def take_class(x: Tensor, index: Tensor, axis: int) -> Tensor:
    taken = tf.gather(shapes.rows(x, axis), tf.reshape(index, [-1]), batch_dims=1)
    return tf.reshape(taken, tf.shape(index))


def constant(values: tuple[float, ...] | float, dtype: str, reference: Tensor) -> Tensor:
    return tf.constant(values, dtype)


def along(vector: Tensor, reference: Tensor, axis: int) -> Tensor:
    if axis >= 0 and reference.shape.rank is None:
        return tf.reshape(
            vector, tf.concat([[-1], tf.ones([tf.rank(reference) - axis - 1], tf.int32)], 0)
        )
    after = -axis - 1 if axis < 0 else reference.shape.rank - axis - 1
    return tf.reshape(vector, [-1] + [1] * after)


def view(x: Any) -> np.ndarray[Any, Any]:
    """A view of a CPU tensor's values, which x.numpy() would copy."""
    return np.asarray(memoryview(x))


def to_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    """A view of the values in any dtype; Python's buffer protocol has no bfloat16."""
    if x.dtype == tf.bfloat16:
        return view(tf.bitcast(x, tf.uint16)).view(tf.bfloat16.as_numpy_dtype)
    return view(x)
