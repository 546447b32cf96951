"""The first derivative of an exact loss to its predictions, as two linear primitives of JAX.

- *tangent*: from a tangent of the predictions the tangent of the loss, <gradient, tangent>.
- *gradient*: from an upstream gradient the gradient to the predictions, correctly rounded.

Each is the transpose of the other. So reverse mode has the gradient rounded once with its upstream
factor, where a product with a kept gradient is rounded twice (a quarter of the elements differ for
a factor of 0.3). `jax.custom_vjp` can say this too, but has no forward mode, and
`jax.custom_derivatives.linear_call` cannot be mapped nor differentiated again.

As functions of everything else than the linear operand, both have the derivatives of the native
loss. These are traced only where they are asked for.

The operands are the linear one; the loss and the predictions, for no more than their types, which
are those of the results; and what the call has of `Call.given`. vmap puts its axis in front of the
first three, so that the types of the results have it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.custom_derivatives import zero_from_primal
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from unifiedloss.adapters.jax import evaluation, native, ops
from unifiedloss.plan import Plan, natively

_TYPES = 3
"""The operands before the arrays of the call."""


class Call(NamedTuple):
    """What the primitives know of a call while it is traced.

    Attributes:
        plan: the plan.
        given: which of these the call has: predictions, targets, sample_weight, mask, divisor, and
            the gradient for the upstream gradient 1, which is computed again where it is missing.
        axes: for each vmap around the call, the innermost first, the mapped axis of each of these
            arrays: 0, or None.
    """

    plan: Plan
    given: tuple[bool, ...]
    axes: tuple[tuple[int | None, ...], ...] = ()

    def arrays(self, present: Sequence[Any]) -> list[Any]:
        """The arrays of a call, with None for those that are not given."""
        rest = iter(present)
        return [next(rest) if is_given else None for is_given in self.given]


def tangent(plan: Plan, direction: Array, value: Array, arrays: Sequence[Any]) -> Array:
    """<gradient, direction> for each entry of the loss, linear in the direction.

    Args:
        plan: the plan of the call.
        direction: the tangent of the predictions.
        value: the loss.
        arrays: predictions, targets, sample_weight, mask, divisor, and the gradient for the
            upstream gradient 1; the last four may be None.
    """
    given = tuple(x is not None for x in arrays)
    with ops.x64():  # so that 64-bit arrays of NumPy stay as they are
        present = [x if isinstance(x, Array) else jnp.asarray(x) for x in arrays if x is not None]
    found: Array = _tangent_p.bind(direction, value, present[0], *present, call=Call(plan, given))
    return found


# -------------------------------------------------------------------------------- what they compute


def _tangent(direction: Array, value: Array, form: Array, *present: Any, call: Call) -> Array:
    del value, form
    return _in_width(_mapped(partial(_tangent_of_one, call), call), direction, *present)


def _tangent_of_one(call: Call, direction: Array, *present: Any) -> Array:
    plan = call.plan
    if plan.result_dtype != plan.predictions_dtype:
        # The loss has digits that the gradient has not: of float16 it may have none at all.
        return _native_tangent(call, direction, *present)
    *arrays, divisor, gradient = call.arrays(present)
    if gradient is None:
        gradient = evaluation.evaluate(plan, *arrays, None, divisor, gradient=True)[1]
    wide = jnp.dtype(plan.compute_dtype)
    # Not 0 times an infinite slope, so that a unit vector gives an element of the gradient.
    products = jnp.where(direction == 0, 0, gradient.astype(wide) * direction.astype(wide))
    axis = None
    if plan.spec.reduction == "none":
        axis = products.ndim - 1 if plan.average_last_axis else plan.axis
        if axis is None:
            return products.astype(gradient.dtype)
    return jnp.sum(products, axis).astype(gradient.dtype)


def _gradient(upstream: Array, value: Array, form: Array, *present: Any, call: Call) -> Array:
    del value, form
    return _in_width(_mapped(partial(_gradient_of_one, call), call), upstream, *present)


def _gradient_of_one(call: Call, upstream: Array, *present: Any) -> Array:
    *arrays, divisor, gradient = call.arrays(present)

    def again() -> Array:
        # Not the kept gradient times `upstream`, which would be rounded twice.
        return evaluation.evaluate(call.plan, *arrays, upstream, divisor, gradient=True)[1]

    if gradient is None:
        return again()
    if not isinstance(upstream, Tracer) and getattr(upstream, "is_fully_replicated", True):
        return gradient if float(upstream) == 1 else again()
    found: Array = lax.cond(upstream == 1, lambda: gradient, again)
    return found


def _mapped(function: Callable[..., Array], call: Call) -> Callable[..., Array]:
    for axes in call.axes:
        function = jax.vmap(function, (0, *axes))
    return function


def _in_width(function: Callable[..., Array], *arrays: Any) -> Array:
    """Call a function, with x64 enabled if an array has 64 bits."""
    with evaluation.in_width(*arrays):
        return function(*arrays)


# --------------------------------------------------------------------- their derivatives, natively


def native_loss(plan: Plan, *arrays: Any) -> Array:
    """The native loss of predictions, targets, sample_weight, mask and divisor."""
    *tensors, divisor = arrays
    value: Array = native.loss(natively(plan), *tensors)
    return value if divisor is None else value * evaluation.reciprocal(plan, divisor)


def native_gradient(plan: Plan, upstream: Array | None, *arrays: Any) -> Array:
    """The gradient of the native loss to the predictions; `upstream` may be None for 1."""
    *tensors, divisor = arrays
    if divisor is not None:
        share = evaluation.reciprocal(plan, divisor)
        upstream = share if upstream is None else upstream.astype(share.dtype) * share
    gradient: Array = native.value_and_grad(natively(plan), *tensors, upstream)[1]
    return gradient


def _native_tangent(call: Call, direction: Array, *present: Any) -> Array:
    predictions, *others, _ = call.arrays(present)
    found: Array = jax.jvp(
        lambda p: native_loss(call.plan, p, *others), (predictions,), (direction,)
    )[1]
    return found


def _native_gradient(call: Call, upstream: Array, *present: Any) -> Array:
    return native_gradient(call.plan, upstream, *call.arrays(present)[:-1])


def _jvp(
    primitive: Primitive,
    natively_: Callable[..., Array],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    call: Call,
) -> tuple[Array, Any]:
    linear, *rest = primals
    found = primitive.bind(*primals, call=call)
    parts = []
    if not native.is_zero(tangents[0]):
        parts.append(primitive.bind(tangents[0], *rest, call=call))
    # The kept gradient is a function of the other arrays, by which the native loss is derived.
    moving = list(tangents[_TYPES:])
    if call.given[-1]:
        moving[-1] = None
    function = _mapped(partial(natively_, call), call)
    with evaluation.in_width(*primals):
        along = native.derivative(partial(function, linear), primals[_TYPES:], moving)
    parts += [along] if along is not None else []
    return found, reduce(operator.add, parts) if parts else zero_from_primal(found)


def _transpose(other: Primitive, cotangent: Any, linear: Any, *rest: Any, call: Call) -> list[Any]:
    if type(cotangent) is ad.Zero:
        found = ad.Zero(linear.aval)
    else:
        found = other.bind(cotangent, *rest, call=call)
    return [found, *[None] * len(rest)]


def _batch(
    primitive: Primitive, operands: Sequence[Any], axes: Sequence[int | None], *, call: Call
) -> tuple[Array, int]:
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    with evaluation.in_width(*operands):
        front = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        for i, axis in enumerate(axes[:_TYPES]):
            if axis is None:
                front[i] = jnp.broadcast_to(front[i], (size, *front[i].shape))
    mapped = tuple(None if axis is None else 0 for axis in axes[_TYPES:])
    return primitive.bind(*front, call=call._replace(axes=(*call.axes, mapped))), 0


_tangent_p = Primitive("unifiedloss_tangent")
_gradient_p = Primitive("unifiedloss_gradient")
_tangent_p.def_abstract_eval(lambda direction, value, form, *present, call: value)
_gradient_p.def_abstract_eval(lambda upstream, value, form, *present, call: form)

for _primitive, _other, _compute, _natively in (
    (_tangent_p, _gradient_p, _tangent, _native_tangent),
    (_gradient_p, _tangent_p, _gradient, _native_gradient),
):
    _primitive.def_impl(_compute)
    mlir.register_lowering(_primitive, mlir.lower_fun(_compute, multiple_results=False))
    ad.primitive_jvps[_primitive] = partial(_jvp, _primitive, _natively)
    ad.primitive_transposes[_primitive] = partial(_transpose, _other)
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
