"""Exact mode on JAX arrays: arrays that have values are handed to the kernel of `unifiedloss.exact` as they are.

Under tracing, and for arrays with values once enough calls like theirs have come to be worth compiling for, `program` has what there is a
form of inside a compiled program. The rest is computed by a call back to the host, which goes over mapped axes one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache, partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from numpy.typing import NDArray

from unifiedloss import host
from unifiedloss.adapters.jax import callback, ops, program
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan

NumPyArray = NDArray[Any]


def loss(plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any) -> Array:
    """The loss, correctly rounded. Its gradient to the predictions is so too, and is the only one it has."""
    arrays = predictions, targets, sample_weight, mask
    value: Array = (
        _with_values(plan, *arrays, None)[0]
        if _at_hand(*arrays)
        else _differentiable(plan, *arrays)
    )
    return value


def value_and_grad(
    plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any, upstream: Any
) -> tuple[Array, Array]:
    """The loss and its gradient with respect to the predictions, correctly rounded."""
    value, gradient = _evaluate(
        plan, predictions, targets, sample_weight, mask, upstream, gradient=True
    )
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

    def again() -> (
        Array
    ):  # from the start: the gradient for 1 times `upstream` would be rounded twice
        return _evaluate(plan, *arrays, upstream, gradient=True)[1]

    if isinstance(upstream, SymbolicZero):
        found = None
    elif not gradient:
        found = again()
    elif _at_hand(upstream):
        found = gradient[0] if float(upstream) == 1 else again()
    else:
        with ops.x64():  # so that 64-bit arrays enter the branches as they are
            found = lax.cond(upstream == 1, lambda: gradient[0], again)
    return found, None, None, None


_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)


def _evaluate(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for, from predictions, targets, sample_weight, mask, upstream (the last three or None)."""
    return (_with_values if _at_hand(*arrays) else _traced)(plan, *arrays, gradient=gradient)


def _with_values(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    return (_traced if _pays(plan, arrays) else _found_at_once)(plan, *arrays, gradient=gradient)


_MANY = 1 << 26
"""Elements of calls with the same plan that the host computes first: in the time they take it, a program for them is compiled."""


def _pays(plan: Plan, arrays: tuple[Any, ...]) -> bool:
    """Whether arrays at hand are better handed to a compiled program, as calls like this one keep coming."""
    return program.holds(plan, arrays) and next(_elements(plan)) >= _MANY


@lru_cache(maxsize=4096)
def _elements(plan: Plan) -> Iterator[int]:
    """How many elements calls with this plan have had before each."""
    assert plan.count is not None
    return count(0, max(1, plan.count * (plan.classes or 1)))


def _at_hand(*arrays: Any) -> bool:
    """Whether all have values, each in one place."""
    return all(
        x is None
        or isinstance(x, np.ndarray)
        or (isinstance(x, Array) and not isinstance(x, Tracer) and len(x.sharding.device_set) == 1)
        for x in arrays
    )


def _found_at_once(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    found = host.run(
        _kernel, plan, [None if x is None else np.asarray(x) for x in arrays], gradient
    )
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
    with (
        ops.x64() if any(x is not None and x.dtype.itemsize == 8 for x in arrays) else nullcontext()
    ):
        found: tuple[Array, ...] = _compiled(plan, gradient, *arrays)
    return found


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _once(plan: Plan, gradient: bool, *arrays: Any) -> tuple[Array, ...]:
    """The values; their only derivative is the one `_backward` gives."""
    if program.holds(plan, arrays):
        return program.run(plan, arrays, gradient=gradient)
    dtypes = [jnp.dtype(plan.result_dtype), jnp.dtype(plan.predictions_dtype)][: 1 + gradient]
    shapes = [plan.positions if plan.spec.reduction == "none" else (), plan.shape]
    forms = [
        jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=False)
    ]
    return callback.on_host(partial(_filled, plan), forms, *arrays)


@_once.defjvp
def _refuse(*_: Any) -> Any:
    msg = (
        "rounding='exact' can be differentiated once, and this is the derivative of its gradient or of value_and_grad; use "
        "rounding='native', or take the inner gradient at jax.lax.stop_gradient(...) if it is meant to be a constant."
    )
    raise UnsupportedError(msg)


# Arrays on several devices meet the callback only in a compiled program. Within another trace it is inlined.
_compiled = jax.jit(_once, static_argnums=(0, 1), inline=True)


def _filled(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """The kernel over the mapped axes, which stand in front; of an array that is not mapped they have the extent 1."""
    from unifiedloss import exact

    assert plan.shape is not None
    axes = arrays[0].ndim - len(plan.shape)
    mapped = np.broadcast_shapes(*(x.shape[:axes] for x in arrays if x is not None))
    arrays = [None if x is None else np.broadcast_to(x, mapped + x.shape[axes:]) for x in arrays]
    value, *slopes = results
    for i in np.ndindex(mapped):
        given: list[Any] = [None if x is None else x[(*i, ...)] for x in arrays]
        out = slopes[0][(*i, ...)] if slopes else None
        found, _ = exact.evaluate(plan, *given, gradient=out is not None, out=out)
        value[(*i, ...)] = found.view(value.dtype)
