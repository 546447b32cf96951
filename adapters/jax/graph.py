"""The array operations of `unifiedloss.exact.graph` in JAX. Call them with x64 enabled."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from unifiedloss.adapters.jax import manual
from unifiedloss.exact.graph.ops import GraphOps

Array = Any

_INTEGERS = {
    "float16": jnp.int16,
    "bfloat16": jnp.int16,
    "float32": jnp.int32,
    "float64": jnp.int64,
}


class JaxOps(GraphOps):
    """See `unifiedloss.exact.graph.ops.GraphOps`.

    Args:
        axes: the mesh axes of `jax.shard_map` over which the arrays of the program vary.
    """

    def __init__(self, axes: frozenset[str] = frozenset()) -> None:
        self.axes = axes

    def float64(self, x: Array) -> Array:
        return jnp.asarray(x, jnp.float64)

    def float32(self, x: Array) -> Array:
        return jnp.asarray(x, jnp.float32)

    def int64(self, x: Array) -> Array:
        return jnp.asarray(x, jnp.int64)

    def int32(self, x: Array) -> Array:
        return jnp.asarray(x, jnp.int32)

    def bits(self, x: Array) -> Array:
        x = jnp.asarray(x, None if hasattr(x, "dtype") else jnp.float64)
        return lax.bitcast_convert_type(x, _INTEGERS[x.dtype.name])

    def of_bits(self, x: Array, dtype: str) -> Array:
        return lax.bitcast_convert_type(jnp.asarray(x, _INTEGERS[dtype]), jnp.dtype(dtype))

    def left(self, x: Array, places: int) -> Array:
        return x << places

    def right(self, x: Array, places: int) -> Array:
        return x >> places

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return jnp.where(condition, x, y)

    def minimum(self, x: Array, y: Array) -> Array:
        return jnp.minimum(x, y)

    def maximum(self, x: Array, y: Array) -> Array:
        return jnp.maximum(x, y)

    def rint(self, x: Array) -> Array:
        return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)

    def log(self, x: Array) -> Array:
        return jnp.log(x)

    def log1p(self, x: Array) -> Array:
        return jnp.log1p(x)

    def isnan(self, x: Array) -> Array:
        return jnp.isnan(x)

    def sum(self, x: Array) -> Array:
        return jnp.sum(x, -1, keepdims=True)

    def max(self, x: Array) -> Array:
        return jnp.max(x, -1, keepdims=True)

    def any(self, x: Array) -> Array:
        return jnp.any(x, -1, keepdims=True)

    def concatenate(self, arrays: list[Array]) -> Array:
        return jnp.concatenate(arrays, -1)

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return jnp.reshape(x, shape)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(x, shape)

    def arange(self, n: int) -> Array:
        return jnp.arange(n, dtype=jnp.int32)

    def take(self, table: Array, index: Array) -> Array:
        return table.at[index].get(mode="promise_in_bounds")

    def along(self, x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index, -1, mode="promise_in_bounds")

    def moved(self, x: Array, source: int, destination: int) -> Array:
        return jnp.moveaxis(x, source, destination)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        # JAX 0.8 and 0.9 may have no lax.empty. Zeros cost a pass over the memory.
        if hasattr(lax, "empty"):
            return lax.empty(shape, jnp.dtype(dtype))
        return jnp.zeros(shape, jnp.dtype(dtype))

    def constant(self, x: Any, dtype: str) -> Array:
        return jnp.asarray(x, jnp.dtype(dtype))

    def barrier(self, x: Array) -> Array:
        return lax.optimization_barrier(x)

    def loop(self, goes_on: Any, step: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        # A loop must keep the types of its state, and its first state is often a constant.
        def typed(state: tuple[Array, ...]) -> tuple[Array, ...]:
            return tuple(manual.varying(x, self.axes) for x in state) if self.axes else state

        return lax.while_loop(
            lambda s: jnp.reshape(goes_on(*s), ()), lambda s: typed(step(*s)), typed(state)
        )

    def rows(self, x: Array, start: Array, count: int) -> Array:
        return lax.dynamic_slice_in_dim(x, start, count, 0)

    def with_rows(self, x: Array, rows: Array, start: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(x, rows, start, 0)
