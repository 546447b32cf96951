"""JAX's array operations under the names of `unifiedloss.pipeline.Ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan, Signature, resolve

Rule = Callable[..., tuple[Array, Array]]


def x64() -> AbstractContextManager[None]:
    """The context in which 64-bit arrays keep their dtype."""
    context: AbstractContextManager[None] = jax.enable_x64(True)  # noqa: FBT003 - positional in JAX
    return context


def in_own_width(rule: Rule) -> Rule:
    """Run a differentiation rule with x64 enabled if what it differentiates has 64 bits.

    Under jax.checkpoint and lax.scan, JAX calls the rule after the loss has returned, which is
    outside the context that enabled x64.
    """

    @wraps(rule)
    def run(*arguments: Any) -> tuple[Array, Array]:
        primals = arguments[-2]
        enabled: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]
        if not enabled and any(x.dtype.itemsize == 8 for x in primals):
            with x64():
                return rule(*arguments)
        return rule(*arguments)

    return run


where = jnp.where
log = jnp.log
log1p = jnp.log1p
stop_gradient = lax.stop_gradient
sum = jnp.sum  # noqa: A001 - the name that `Ops` prescribes


def cast(x: Array, dtype: str) -> Array:
    return lax.convert_element_type(x, jnp.dtype(dtype))


def cast_labels(x: Array) -> Array:
    # Without x64 the widest signed integer is int32, in which a large uint32 label would become
    # negative. So uint32 labels stay unsigned.
    if x.dtype.name in ("int64", "uint32", "uint64"):
        return x
    return lax.convert_element_type(x, jnp.int32)


def equal(x: Array, value: float) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return jnp.equal(x, value)
    limits = jnp.iinfo(x.dtype)
    if not limits.min <= value <= limits.max:  # it would wrap around and equal another label
        return jnp.zeros(x.shape, bool)
    # Not the bare number, which is an error beyond int32 if x64 is off.
    return jnp.equal(x, np.asarray(value, x.dtype))


@jax.custom_jvp
def finite(x: Array) -> Array:
    return jnp.where(jnp.isinf(x), jnp.copysign(jnp.full_like(x, 2.0**100), x), x)


@finite.defjvp
@in_own_width
def _finite_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivative is 1 everywhere; that of jnp.clip is 0 where it clips."""
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
    """The derivative as a select, which XLA fuses, in place of take_along_axis's scatter."""
    return take_class(*primals, axis), _select_class(tangents[0], primals[1], axis)


def _select_class(x: Array, index: Array, axis: int) -> Array:
    named = lax.broadcasted_iota(index.dtype, x.shape, axis) == jnp.expand_dims(index, axis)
    return jnp.sum(jnp.where(named, x, 0), axis)


def constant(values: tuple[float, ...] | float, dtype: str, reference: Array) -> Array:
    return jnp.asarray(np.asarray(values, jnp.dtype(dtype)))


def take(vector: Array, index: Array) -> Array:
    return vector.at[index].get(mode="promise_in_bounds", out_sharding=_sharding(index))


def _sharding(x: Array) -> Any:
    """How a tensor's type says that it is split over devices; a gather must be given this.

    Types say so under jax.make_mesh.
    """
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
    """Check shapes while tracing.

    An unknown extent is a symbol of jax.export, and symbols can be compared while tracing.
    """
    signatures: Any = (None if x is None else Signature(x.shape, x.dtype.name) for x in tensors)
    resolve(plan.spec, *signatures)
    return jnp.asarray(True), tensors  # noqa: FBT003 - a value


def settle(x: Array) -> Array:
    """`x`, with a hint to XLA to compute it in one pass before it is summed.

    On the CPU, XLA fuses the arithmetic before a sum into a kernel that has no selects, and writes
    the result of each select to memory (in JAX 0.10 this takes four times as long for the binary
    cross-entropy). Rounding to the dtype's own precision changes no number and ends that fusion.
    """
    form = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, form.nexp, form.nmant)


_INTEGERS = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}


def stored(x: Array) -> Array:
    """`x` rounded to its dtype, for a compiler that would keep more digits of it.

    XLA contracts a product with the subtraction after it, also where the difference of two
    roundings of the same product should be 0. On the CPU, lax.optimization_barrier is gone before
    it does so, and so is lax.reduce_precision to the dtype's own precision (conformance's fused
    cases). XLA must round a number before it reads its bits as an integer. It would cancel two
    bitcasts, so a minimum stands between them. That minimum changes one NaN to another, and no
    number.
    """
    found: Array = _stored_p.bind(x)
    return found


def with_none(given: Sequence[bool], present: Sequence[Any]) -> list[Any]:
    """The arrays of a call, with None for those that are not given."""
    rest = iter(present)
    return [next(rest) if is_given else None for is_given in given]


def all_stored(tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The tensors of a call, `stored`; any of them may be None.

    Operations of XLA need this. A callback and a custom call read memory, as do programs the
    arrays that are not traced.
    """
    return tuple(
        stored(x) if isinstance(x, Tracer) and x.dtype.name in FORMATS else x for x in tensors
    )


@jax.jit
def _by_bits(x: Array) -> Array:
    form = _INTEGERS[x.dtype.itemsize]
    with x64() if x.dtype.itemsize == 8 else nullcontext():
        bits = jnp.minimum(lax.bitcast_convert_type(x, form), jnp.iinfo(form).max - 1)
        return lax.bitcast_convert_type(bits, x.dtype)


def _stored_jvp(primals: tuple[Array], tangents: tuple[Any]) -> tuple[Array, Any]:
    return stored(*primals), *tangents


# A primitive, because JAX replaces a jax.custom_jvp within the derivative of a lax.scan by what it
# computes, and the derivative of that is 0 here (test_other_derivatives_are_native).
_stored_p = Primitive("unifiedloss_stored")
_stored_p.def_impl(_by_bits)
_stored_p.def_abstract_eval(lambda x: x)
ad.primitive_jvps[_stored_p] = _stored_jvp
batching.defvectorized(_stored_p)
mlir.register_lowering(_stored_p, mlir.lower_fun(_by_bits, multiple_results=False))
