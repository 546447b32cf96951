"""JAX's array operations under the names of `unifiedloss.pipeline.Ops`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from unifiedloss.plan import Plan, Signature, resolve

Rule = Callable[..., tuple[Array, Array]]


def x64() -> AbstractContextManager[None]:
    """Where 64-bit arrays stay what they are."""
    context: AbstractContextManager[None] = jax.enable_x64(True)  # noqa: FBT003 - JAX takes it so
    return context


def in_own_width(rule: Rule) -> Rule:
    """A rule of differentiation that knows 64 bits where what it differentiates has them.

    Under jax.checkpoint and lax.scan JAX asks for it when the loss has returned, and left the context that enabled x64.
    """

    @wraps(rule)
    def run(*arguments: Any) -> tuple[Array, Array]:
        primals = arguments[-2]
        if any(x.dtype.itemsize == 8 for x in primals) and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
            with x64():
                return rule(*arguments)
        return rule(*arguments)

    return run


where = jnp.where
log = jnp.log
log1p = jnp.log1p
stop_gradient = lax.stop_gradient
sum = jnp.sum  # noqa: A001 - the name the contract gives


def cast(x: Array, dtype: str) -> Array:
    return lax.convert_element_type(x, jnp.dtype(dtype))


def cast_labels(x: Array) -> Array:
    # Without x64 the widest signed integer is int32, in which a uint32 label would turn negative. Unsigned it keeps its meaning.
    if x.dtype.name in ("int64", "uint32", "uint64"):
        return x
    return lax.convert_element_type(x, jnp.int32)


def equal(x: Array, value: float) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.equal(x, value)
    limits = jnp.iinfo(x.dtype)
    if not limits.min <= value <= limits.max:  # would wrap around, and then equal another label
        return jnp.zeros(x.shape, bool)
    return jnp.equal(
        x, np.asarray(value, x.dtype)
    )  # a bare number past int32 is an error where x64 is off


@jax.custom_jvp
def finite(x: Array) -> Array:
    return jnp.where(jnp.isinf(x), jnp.copysign(jnp.full_like(x, 2.0**100), x), x)


@finite.defjvp
@in_own_width
def _finite_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Lets the derivative pass where it clamps, which jnp.clip would set to 0."""
    return finite(*primals), *tangents


def sum_axis(x: Array, axis: int) -> Array:
    return jnp.sum(settle(x), axis)


def any_axis(x: Array, axis: int) -> Array:
    return jnp.any(x, axis)


def count(condition: Array, dtype: str) -> Array:
    return cast(jnp.sum(condition, dtype=jnp.int32), dtype)


def size(x: Array, dtype: str) -> Array:
    return jnp.asarray(x.size, jnp.dtype(dtype))


def expand(x: Array, axis: int) -> Array:
    return jnp.expand_dims(x, axis)


def align(x: Array, reference: Array) -> Array:
    return jnp.reshape(x, x.shape + (1,) * (reference.ndim - x.ndim))


def broadcast_like(x: Array, reference: Array) -> Array:
    return jnp.broadcast_to(x, reference.shape)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def take_class(x: Array, index: Array, axis: int) -> Array:
    if _is_split(x, axis):
        return _select_class(x, index, axis)
    taken = jnp.take_along_axis(x, jnp.expand_dims(index, axis), axis, mode="promise_in_bounds")
    return jnp.squeeze(taken, axis)


@take_class.defjvp
@in_own_width
def _take_class_jvp(
    axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """A select in place of the scatter that take_along_axis has for a derivative: XLA fuses it into what comes before and after."""
    return take_class(*primals, axis), _select_class(tangents[0], primals[1], axis)


def _select_class(x: Array, index: Array, axis: int) -> Array:
    named = lax.broadcasted_iota(index.dtype, x.shape, axis) == jnp.expand_dims(index, axis)
    return jnp.sum(jnp.where(named, x, 0), axis)


def constant(values: tuple[float, ...] | float, dtype: str, reference: Array) -> Array:
    return jnp.asarray(np.asarray(values, jnp.dtype(dtype)))


def take(vector: Array, index: Array) -> Array:
    return vector.at[index].get(mode="promise_in_bounds", out_sharding=_sharding(index))


def _sharding(x: Array) -> Any:
    """How a tensor is split over devices, as far as its type says so: under jax.make_mesh it does, and gathering has to be told."""
    return jax.typeof(x).sharding


def _is_split(x: Array, axis: int) -> bool:
    return _sharding(x).spec[axis] is not None


def along(vector: Array, reference: Array, axis: int) -> Array:
    shape = [1] * reference.ndim
    shape[axis] = -1
    return jnp.reshape(vector, shape)


def extent(x: Array, axis: int, dtype: str) -> Array:
    return jnp.asarray(x.shape[axis], jax.dtypes.canonicalize_dtype(dtype))


def shapes_agree(plan: Plan, *tensors: Any) -> tuple[Array, tuple[Any, ...]]:
    """An extent is unknown only where it is a symbol (jax.export), and symbols can be compared while tracing."""
    signatures: Any = (None if x is None else Signature(x.shape, x.dtype.name) for x in tensors)
    resolve(plan.spec, *signatures)
    return jnp.asarray(True), tensors  # noqa: FBT003 - a value


def settle(x: Array) -> Array:
    """`x`, with a hint to XLA to compute it in one pass before it is summed.

    XLA on the CPU takes the arithmetic before a sum into a kernel that knows no selects, and writes down what each of them yields (JAX
    0.10: four times the time of the binary cross-entropy). Rounding to the precision the numbers have ends that kernel's reach.
    """
    form = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, form.nexp, form.nmant)
