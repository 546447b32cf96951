"""The array operations of `unifiedloss.exact.graph` in NumPy: its formulas without a compiler.

A program takes seconds to compile and NumPy milliseconds, so many values can be tried. What a
compiler may change is checked on the compiled programs themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss.exact.graph.call import Given, GraphCall
from unifiedloss.exact.graph.ops import GraphOps
from unifiedloss.plan import Plan

Array = Any

_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}


class NumPyOps(GraphOps):
    """See `unifiedloss.exact.graph.ops.GraphOps`. bfloat16 is not supported."""

    def float64(self, x: Array) -> Array:
        return np.asarray(x, np.float64)

    def float32(self, x: Array) -> Array:
        return np.asarray(x).astype(np.float32)

    def int64(self, x: Array) -> Array:
        return np.asarray(x).astype(np.int64)

    def int32(self, x: Array) -> Array:
        return np.asarray(x).astype(np.int32)

    def bits(self, x: Array) -> Array:
        x = np.asarray(x)
        return x.view(_INTEGERS[x.dtype.itemsize])

    def of_bits(self, x: Array, dtype: str) -> Array:
        form = np.dtype(dtype)
        return np.asarray(x).astype(_INTEGERS[form.itemsize]).view(form)

    def left(self, x: Array, places: int) -> Array:
        return np.left_shift(x, np.asarray(x).dtype.type(places))

    def right(self, x: Array, places: int) -> Array:
        return np.right_shift(x, np.asarray(x).dtype.type(places))

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        plain = [isinstance(each, int | float) for each in (x, y)]
        if all(plain):
            dtype = np.int32 if isinstance(x, int) and isinstance(y, int) else np.float64
            return np.where(condition, x, y).astype(dtype)
        if any(plain):  # a Python number takes the dtype of the array
            dtype = (y if plain[0] else x).dtype
            x, y = np.asarray(x, dtype), np.asarray(y, dtype)
        return np.where(condition, x, y)

    def minimum(self, x: Array, y: Array) -> Array:
        return np.minimum(x, y)

    def maximum(self, x: Array, y: Array) -> Array:
        return np.maximum(x, y)

    def rint(self, x: Array) -> Array:
        return np.rint(x)

    def log(self, x: Array) -> Array:
        return np.log(x)

    def log1p(self, x: Array) -> Array:
        return np.log1p(x)

    def isnan(self, x: Array) -> Array:
        return np.isnan(x)

    def sum(self, x: Array) -> Array:
        return np.sum(x, -1, keepdims=True)

    def max(self, x: Array) -> Array:
        return np.max(x, -1, keepdims=True)

    def any(self, x: Array) -> Array:
        return np.any(x, -1, keepdims=True)

    def concatenate(self, arrays: list[Array]) -> Array:
        return np.concatenate(arrays, -1)

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.reshape(x, shape)

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(x, shape)

    def arange(self, n: int) -> Array:
        return np.arange(n, dtype=np.int32)

    def take(self, table: Array, index: Array) -> Array:
        return np.take(table, index)

    def along(self, x: Array, index: Array) -> Array:
        return np.take_along_axis(x, index, -1)

    def moved(self, x: Array, source: int, destination: int) -> Array:
        return np.moveaxis(x, source, destination)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.zeros(shape, dtype)

    def constant(self, x: Any, dtype: str) -> Array:
        return np.asarray(x, dtype)

    def barrier(self, x: Array) -> Array:
        return x

    def loop(self, goes_on: Any, step: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        while np.asarray(goes_on(*state)).item():
            state = tuple(step(*state))
        return state

    def rows(self, x: Array, start: Array, count: int) -> Array:
        return x[int(start) : int(start) + count]

    def with_rows(self, x: Array, rows: Array, start: Array) -> Array:
        x = np.array(x)
        x[int(start) : int(start) + len(rows)] = rows
        return x


def evaluate(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | None = None,
) -> tuple[Array, Array]:
    """Loss and gradient as a program without a host computes them: what it cannot decide is NaN."""
    weights = (
        None if x is None else np.asarray(x, np.float64)
        for x in (plan.class_weights, plan.pos_weight)
    )
    arrays = predictions, targets, sample_weight, mask, upstream, *weights
    given = Given(*(None if x is None else np.asarray(x)[None] for x in arrays))
    with np.errstate(all="ignore"):
        call = GraphCall(NumPyOps(), plan, given, gradient=True)
        found = call.mended(call.found())
        value = call.known_loss(found.terms)
        assert found.slopes is not None
        return value[0], call.gradient(found.slopes)[0]
