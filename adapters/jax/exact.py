"""Exact mode on JAX arrays: the kernel of `unifiedloss.exact`, called on the host.

Arrays that have values are handed to the kernel as they are. Under tracing the program calls back to the host, and:

- Numbers travel as bits. Results are bitcast, because a cast would flush subnormal numbers. What has 64 bits is two uint32, because
  where x64 is off the thread that calls back would narrow it.
- The callback is NumPy and nothing else: JAX called from within a callback can wait for itself. The part of `jax.pure_callback` that is
  JAX's own does (0.10), with more than 100 KiB where the process may use a single core. So on CPUs the callback is the one that is
  handed XLA's buffers as they are, and writes its results there; that also saves two copies.
- Mapped axes come in front, and the callback goes over them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from numpy.typing import NDArray

from unifiedloss import host
from unifiedloss.errors import UnsupportedError
from unifiedloss.spec import Plan

try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # it is called experimental
    buffer_callback = None

NumPyArray = NDArray[Any]


def loss(plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any) -> Array:
    """The loss, correctly rounded. Its gradient to the predictions is so too, and is the only one it has."""
    arrays = predictions, targets, sample_weight, mask
    value: Array = _found_at_once(plan, *arrays, None)[0] if _at_hand(*arrays) else _differentiable(plan, *arrays)
    return value


def value_and_grad(
    plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any, upstream: Any
) -> tuple[Array, Array]:
    """The loss and its gradient with respect to the predictions, correctly rounded."""
    value, gradient = _evaluate(plan, predictions, targets, sample_weight, mask, upstream, gradient=True)
    return value, gradient


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _differentiable(plan: Plan, *arrays: Any) -> Array:
    return _evaluate(plan, *arrays, None)[0]


def _forward(plan: Plan, *primals: Any) -> tuple[Array, Any]:
    if any(x is not None and x.perturbed for x in primals[1:]):
        msg = (
            "rounding='exact' has a gradient to the predictions only, and here targets or sample_weight depend on what is differentiated; "
            "hold them with jax.lax.stop_gradient, or use rounding='native', which differentiates all three."
        )
        raise UnsupportedError(msg)
    arrays = [None if x is None else x.value for x in primals]
    # A reduced loss is most often where the program ends, and upstream is 1 there: that gradient comes along with the value.
    value, *gradient = _evaluate(plan, *arrays, None, gradient=plan.spec.reduction != "none")
    return value, (arrays, gradient)


def _backward(plan: Plan, kept: Any, upstream: Any) -> tuple[Array | None, None, None, None]:
    arrays, gradient = kept

    def again() -> Array:  # from the start: the gradient for 1 times `upstream` would be rounded twice
        return _evaluate(plan, *arrays, upstream, gradient=True)[1]

    if isinstance(upstream, SymbolicZero):
        found = None
    elif not gradient:
        found = again()
    elif _at_hand(upstream):
        found = gradient[0] if float(upstream) == 1 else again()
    else:
        with _x64():  # so that 64-bit arrays enter the branches as they are
            found = lax.cond(upstream == 1, lambda: gradient[0], again)
    return found, None, None, None


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


def _evaluate(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for, from predictions, targets, sample_weight, mask, upstream (the last three or None)."""
    return (_found_at_once if _at_hand(*arrays) else _traced)(plan, *arrays, gradient=gradient)


def _at_hand(*arrays: Any) -> bool:
    """Whether all have values, each in one place."""
    return all(
        x is None
        or isinstance(x, np.ndarray)
        or (isinstance(x, Array) and not isinstance(x, Tracer) and len(x.sharding.device_set) == 1)
        for x in arrays
    )


def _found_at_once(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    found = host.run(_kernel, plan, [None if x is None else np.asarray(x) for x in arrays], gradient)
    found = [x.view(jnp.bfloat16) if x.dtype == np.uint16 else x for x in found]
    predictions = arrays[0]
    if isinstance(predictions, Array) and predictions.committed:
        return tuple(jax.device_put(found, predictions.device))
    return tuple(map(jnp.asarray, found))


def _kernel(plan: Plan, arrays: list[Any], gradient: bool) -> list[NumPyArray]:
    # Here and not above: native mode does without it, and this thread is one that reads its tables right.
    from unifiedloss import exact

    found = exact.evaluate(plan, *arrays, gradient=gradient)
    return [np.asarray(x) for x in found if x is not None]


# ------------------------------------------------------------------------------------------------------------ under tracing


def _traced(plan: Plan, *arrays: Any, gradient: bool) -> tuple[Array, ...]:
    if plan.unchecked:
        msg = "rounding='exact' calls back to Python, which jax.export cannot keep in a program; use rounding='native'."
        raise UnsupportedError(msg)
    with _x64() if any(x is not None and x.dtype.itemsize == 8 for x in arrays) else nullcontext():
        found: tuple[Array, ...] = _compiled(plan, gradient, *arrays)
    return found


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _once(plan: Plan, gradient: bool, *arrays: Any) -> tuple[Array, ...]:
    """The callback; its only derivative is the one `_backward` gives."""
    dtypes = [jnp.dtype(plan.result_dtype), jnp.dtype(plan.predictions_dtype)][: 1 + gradient]
    shapes = [plan.positions if plan.spec.reduction == "none" else (), plan.shape]
    if buffer_callback is not None and jax.default_backend() == "cpu":
        forms = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]
        in_place = buffer_callback(partial(_called_in_place, plan), forms, vmap_method="expand_dims")
        return tuple(in_place(*arrays))
    bits = jax.pure_callback(
        partial(_called_back, plan, gradient, [None if x is None else x.dtype for x in arrays]),
        [_packed_form(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False)],
        *(None if x is None else _packed(x) for x in arrays),
        vmap_method="expand_dims",
    )
    return tuple(lax.bitcast_convert_type(x, dtype) for x, dtype in zip(bits, dtypes, strict=True))


@_once.defjvp
def _refuse(*_: Any) -> Any:
    msg = (
        "rounding='exact' can be differentiated once, and this is the derivative of its gradient or of value_and_grad; use "
        "rounding='native', or take the inner gradient at jax.lax.stop_gradient(...) if it is meant to be a constant."
    )
    raise UnsupportedError(msg)


# Arrays on several devices meet the callback only in a compiled program. Within another trace it is inlined.
_compiled = jax.jit(_once, static_argnums=(0, 1), inline=True)


def _packed(x: Any) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint32) if x.dtype.itemsize == 8 else jnp.asarray(x)


def _packed_form(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    pair = dtype.itemsize == 8
    return jax.ShapeDtypeStruct(
        (*shape, 2) if pair else shape, np.dtype("uint32" if pair else f"uint{8 * dtype.itemsize}")
    )


def _called_in_place(plan: Plan, _: Any, results: Sequence[Any], *arrays: Any) -> None:
    host.run(_filled, plan, [np.asarray(x) for x in results], [None if x is None else np.asarray(x) for x in arrays])


def _filled(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """The kernel over the mapped axes, which stand in front; of an array that is not mapped they have the extent 1."""
    from unifiedloss import exact

    assert plan.shape is not None
    axes = arrays[0].ndim - len(plan.shape)
    mapped = np.broadcast_shapes(*(x.shape[:axes] for x in arrays if x is not None))
    arrays = [None if x is None else np.broadcast_to(x, mapped + x.shape[axes:]) for x in arrays]
    value, slope = results[0], results[1] if len(results) > 1 else None
    for i in np.ndindex(mapped):
        given = [None if x is None else x[(*i, ...)] for x in arrays]
        room = None if slope is None else slope[(*i, ...)]
        found, _ = exact.evaluate(plan, *given, gradient=room is not None, room=room)
        value[(*i, ...)] = found.view(value.dtype)


def _called_back(plan: Plan, gradient: bool, dtypes: list[Any], *packed: Any) -> list[NumPyArray]:
    return host.run(_mapped, plan, gradient, dtypes, [None if x is None else np.asarray(x) for x in packed])


def _mapped(plan: Plan, gradient: bool, dtypes: list[Any], packed: list[Any]) -> list[NumPyArray]:
    """The kernel over the mapped axes, which stand in front; of an array that is not mapped they have the extent 1."""
    arrays: list[Any] = [
        x if x is None else x.view(dtype)[..., 0] if dtype.itemsize == 8 else x.astype(dtype, copy=False)
        for x, dtype in zip(packed, dtypes, strict=True)
    ]
    assert plan.shape is not None
    axes = arrays[0].ndim - len(plan.shape)
    if not axes:
        return [_as_bits(x) for x in _kernel(plan, arrays, gradient)]
    mapped = np.broadcast_shapes(*(x.shape[:axes] for x in arrays if x is not None))
    arrays = [None if x is None else np.broadcast_to(x, mapped + x.shape[axes:]) for x in arrays]
    every = [
        [_as_bits(x) for x in _kernel(plan, [None if x is None else x[i] for x in arrays], gradient)]
        for i in np.ndindex(mapped)
    ]
    return [np.reshape(results, mapped + results[0].shape) for results in zip(*every, strict=True)]


def _as_bits(x: NumPyArray) -> NumPyArray:
    """Unsigned integers of the same size, and pairs of them for 64 bits."""
    return x[..., None].view(np.uint32) if x.dtype.itemsize == 8 else x.view(f"uint{8 * x.dtype.itemsize}")


def _x64() -> AbstractContextManager[None]:
    """Where 64-bit arrays stay what they are."""
    context: AbstractContextManager[None] = jax.enable_x64(True)  # noqa: FBT003 - JAX takes it so
    return context
