"""NumPy's array operations under the names of `unifiedloss.pipeline.Ops`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.plan import Plan

Array = NDArray[Any]

where = np.where
equal = np.equal
log = np.log
log1p = np.log1p
sum = np.sum  # noqa: A001 - the name that `Ops` prescribes


def dtype(name: str) -> Any:
    """A dtype by name.

    NumPy has no bfloat16. The package ml_dtypes defines it; without that package no such array
    exists.
    """
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(name)


def cast(x: Array, name: str) -> Array:
    return np.asarray(x).astype(dtype(name), copy=False)


def cast_labels(x: Array) -> Array:
    return x.astype(np.int64, copy=False)


def stop_gradient(x: Array) -> Array:
    return x


def finite(x: Array) -> Array:
    return np.where(np.isinf(x), np.copysign(x.dtype.type(2.0**100), x), x)


def sum_axis(x: Array, axis: int) -> Array:
    return x.sum(axis)


def any_axis(x: Array, axis: int) -> Array:
    return np.asarray(x.any(axis))


def count(condition: Array, name: str) -> Array:
    return np.asarray(np.count_nonzero(condition), dtype(name))


def size(x: Array, name: str) -> Array:
    return np.asarray(x.size, dtype(name))


def expand(x: Array, axis: int) -> Array:
    return np.expand_dims(x, axis)


def align(x: Array, reference: Array) -> Array:
    return x.reshape(x.shape + (1,) * (reference.ndim - x.ndim))


def broadcast_like(x: Array, reference: Array) -> Array:
    return np.broadcast_to(x, reference.shape)


def take_class(x: Array, index: Array, axis: int) -> Array:
    return np.take_along_axis(x, np.expand_dims(index, axis), axis).squeeze(axis)


def constant(values: tuple[float, ...] | float, name: str, reference: Array) -> Array:
    return np.asarray(values, dtype(name))


def take(vector: Array, index: Array) -> Array:
    return vector[index]


def along(vector: Array, reference: Array, axis: int) -> Array:
    shape = [1] * reference.ndim
    shape[axis] = -1
    return vector.reshape(shape)


def extent(x: Array, axis: int, name: str) -> Array:
    return np.asarray(x.shape[axis], dtype(name))


def shapes_agree(plan: Plan, *tensors: Array | None) -> tuple[Any, Any]:
    return np.True_, tensors  # NumPy knows every shape
