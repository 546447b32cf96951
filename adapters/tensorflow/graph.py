"""The array operations of `unifiedloss.exact.graph` in TensorFlow, for XLA.

Shapes are known, and nothing is differentiated.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# No public operation updates a slice in place or is an optimization barrier.
from tensorflow.compiler.tf2xla.python import xla

from unifiedloss.exact.graph.ops import GraphOps

Array = Any

_INTEGERS = {"float16": tf.int16, "bfloat16": tf.int16, "float32": tf.int32, "float64": tf.int64}


class TensorFlowOps(GraphOps):
    """See `unifiedloss.exact.graph.ops.GraphOps`."""

    def float64(self, x: Array) -> Array:
        return self.constant(x, "float64")

    def float32(self, x: Array) -> Array:
        return self.constant(x, "float32")

    def int64(self, x: Array) -> Array:
        return self.constant(x, "int64")

    def int32(self, x: Array) -> Array:
        return self.constant(x, "int32")

    def bits(self, x: Array) -> Array:
        x = x if tf.is_tensor(x) else tf.constant(x, tf.float64)
        return tf.bitcast(x, _INTEGERS[x.dtype.name])

    def of_bits(self, x: Array, dtype: str) -> Array:
        return tf.bitcast(self.constant(x, _INTEGERS[dtype].name), dtype)

    def left(self, x: Array, places: int) -> Array:
        return tf.bitwise.left_shift(x, tf.constant(places, x.dtype))

    def right(self, x: Array, places: int) -> Array:
        return tf.bitwise.right_shift(x, tf.constant(places, x.dtype))

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        if not tf.is_tensor(x) and not tf.is_tensor(y):
            dtype = tf.int32 if isinstance(x, int) and isinstance(y, int) else tf.float64
            x, y = tf.constant(x, dtype), tf.constant(y, dtype)
        elif not tf.is_tensor(x):
            x = tf.constant(x, y.dtype)
        elif not tf.is_tensor(y):
            y = tf.constant(y, x.dtype)
        return tf.where(condition, x, y)

    def minimum(self, x: Array, y: Array) -> Array:
        return tf.minimum(x, y)

    def maximum(self, x: Array, y: Array) -> Array:
        return tf.maximum(x, y)

    def rint(self, x: Array) -> Array:
        return tf.math.rint(x)

    def log(self, x: Array) -> Array:
        return tf.math.log(x)

    def log1p(self, x: Array) -> Array:
        return tf.math.log1p(x)

    def equal(self, x: Array, y: Array) -> Array:
        return tf.equal(x, y) if tf.is_tensor(x) else tf.equal(y, x)

    def differs(self, x: Array, y: Array) -> Array:
        if not tf.is_tensor(x) and not tf.is_tensor(y):
            return x != y
        return ~self.equal(x, y)

    def isnan(self, x: Array) -> Array:
        return tf.math.is_nan(x)

    def sum(self, x: Array) -> Array:
        return tf.reduce_sum(x, -1, keepdims=True)

    def max(self, x: Array) -> Array:
        return tf.reduce_max(x, -1, keepdims=True)

    def any(self, x: Array) -> Array:
        return tf.reduce_any(x, -1, keepdims=True)

    def concatenate(self, arrays: list[Array]) -> Array:
        return tf.concat(arrays, -1)

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return tf.reshape(x, shape)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return tf.broadcast_to(x, shape)

    def arange(self, n: int) -> Array:
        return tf.range(n)

    def take(self, table: Array, index: Array) -> Array:
        return tf.gather(table, index)

    def along(self, x: Array, index: Array) -> Array:
        return tf.gather(x, index, batch_dims=1)

    def moved(self, x: Array, source: int, destination: int) -> Array:
        order = [i for i in range(x.shape.rank) if i != source]
        order.insert(destination, source)
        return tf.transpose(x, order)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return tf.zeros(shape, dtype)

    def constant(self, x: Any, dtype: str) -> Array:
        return tf.cast(x, dtype) if tf.is_tensor(x) else tf.constant(x, dtype)

    def barrier(self, x: Array) -> Array:
        kept: Any = xla.optimization_barrier(x)
        return kept[0]

    def loop(self, goes_on: Any, step: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(
            tf.while_loop(lambda *s: tf.reshape(goes_on(*s), ()), lambda *s: tuple(step(*s)), state)
        )

    def rows(self, x: Array, start: Array, count: int) -> Array:
        return tf.slice(x, [start, 0], [count, x.shape[1]])

    def with_rows(self, x: Array, rows: Array, start: Array) -> Array:
        written = xla.dynamic_update_slice(x, rows, [start, 0])
        written.set_shape(x.shape)
        return written
