"""The derivatives of exact mode, as primitives of JAX.

- *loss* and *slope* are the results of exact mode, the loss and its gradient to the predictions.
  They return what was computed without derivatives.
- *tangent* is the derivative of the loss along a tangent of the predictions: their product.
- *gradient* is its transpose: the gradient to the predictions, rounded once with the upstream
  gradient. A product of both is rounded twice: for an upstream gradient of 0.3 a quarter of its
  elements differ.

All other derivatives are those of the native loss, and are traced only where they are asked for.

`jax.custom_vjp` has no forward mode, `jax.custom_jvp` no transpose of its own, and
`jax.custom_derivatives.linear_call`, which has one, cannot be mapped nor differentiated again.

The first two operands of each have the types of the loss and of the predictions, and the result has
one of these types. So vmap always puts its axis in front of them. The other operands may have it or
not: what the primitive is linear in, if it is, and the arrays of the call.
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

from unifiedloss.adapters.jax import evaluation, exported, native, ops, rows
from unifiedloss.plan import Plan, natively


class Call(NamedTuple):
    """What the primitives know of a call while it is traced.

    Attributes:
        plan: the plan.
        given: which of these the call has: predictions, targets, sample_weight, mask, divisor,
            upstream gradient, and the gradient for the upstream gradient 1, which is computed again
            where it is missing.
        axes: for each vmap around the call, the innermost first, the axis that it maps, 0 or None,
            of the operands after the first two.
    """

    plan: Plan
    given: tuple[bool, ...]
    axes: tuple[tuple[int | None, ...], ...] = ()

    def arrays(self, present: Sequence[Any]) -> list[Any]:
        """The arrays of a call, with None for those that are not given."""
        return ops.with_none(self.given, present)


def loss(plan: Plan, value: Array, arrays: Sequence[Any], gradient: Array | None = None) -> Array:
    """A loss that was computed without derivatives, with them.

    Args:
        plan: the plan of the call.
        value: the loss.
        arrays: predictions, targets, sample_weight, mask and divisor; the last three may be None.
        gradient: the gradient for the upstream gradient 1, if it was computed too.
    """
    call, operands = _operands(plan, value, (*arrays, None, gradient))
    found: Array = _loss_p.bind(*operands, call=call)
    return found


def loss_with_tangent(
    plan: Plan,
    value: Array,
    arrays: Sequence[Any],
    gradient: Array | None,
    tangents: Sequence[Any],
) -> tuple[Array, Any]:
    """`loss`, and its tangent from those of the arrays, of which any may be None for 0."""
    call, operands = _operands(plan, value, (*arrays, None, gradient))
    direction = tangents[0]
    others = (x for x, array in zip(tangents[1:], arrays[1:], strict=True) if array is not None)
    kept = () if gradient is None else (None,)
    return _loss_jvp(operands, (None, direction, None, *others, *kept), call=call)


def slope(plan: Plan, gradient: Array, arrays: Sequence[Any], upstream: Any) -> Array:
    """A gradient to the predictions that was computed without derivatives, with them."""
    call, operands = _operands(plan, gradient, (*arrays, upstream, None))
    found: Array = _slope_p.bind(*operands, call=call)
    return found


def _operands(plan: Plan, found: Array, arrays: Sequence[Any]) -> tuple[Call, tuple[Any, ...]]:
    given = tuple(x is not None for x in arrays)
    present = [x if isinstance(x, Array) else _as_it_is(x) for x in arrays if x is not None]
    return Call(plan, given), (found, present[0], *present)


def _as_it_is(x: Any) -> Array:
    """An array of NumPy as one of JAX, with its 64 bits if it has them."""
    with ops.x64():
        return jnp.asarray(x)


# ------------------------------------------------------------------------------ what they compute


def _given(found: Array, form: Array, *operands: Any, call: Call) -> Array:
    del form, operands, call
    return found


def _each(function: Callable[..., Array]) -> Callable[..., Array]:
    """What a primitive computes: the function, mapped as the call is."""

    def compute(value: Array, form: Array, *operands: Any, call: Call) -> Array:
        del value, form
        with evaluation.in_width(*operands):
            return _mapped(function, call)(*operands)

    return compute


def _mapped(function: Callable[..., Array], call: Call) -> Callable[..., Array]:
    function = partial(function, call)
    for axes in call.axes:
        function = jax.vmap(function, axes)
    return function


def _tangent_of_one(call: Call, direction: Array, *present: Any) -> Array:
    plan = call.plan
    if plan.result_dtype != plan.gradient_dtype:
        # The loss has digits that the gradient has not: of float16 it may have none at all.
        return _native_tangent(call, direction, *present)
    *tensors, divisor, _, gradient = call.arrays(present)
    if gradient is None:
        gradient = evaluation.evaluate(plan, *tensors, None, divisor, gradient=True)[1]
    wide = jnp.dtype(plan.compute_dtype)
    # Not 0 times an infinite slope, so that a unit vector gives an element of the gradient.
    products = jnp.where(direction == 0, 0, gradient.astype(wide) * direction.astype(wide))
    axis: int | None = None
    if plan.spec.reduction == "none":
        axis = products.ndim - 1 if plan.average_last_axis else plan.axis
    each = axis is None and plan.spec.reduction == "none"
    found = (products if each else jnp.sum(products, axis)).astype(gradient.dtype)
    return rows.beside_losses(plan, found, *tensors[:2])


def _gradient_of_one(call: Call, upstream: Array, *present: Any) -> Array:
    *tensors, divisor, _, gradient = call.arrays(present)

    def again() -> Array:
        # Not the kept gradient times `upstream`, which would be rounded twice.
        return evaluation.evaluate(call.plan, *tensors, upstream, divisor, gradient=True)[1]

    if gradient is None or any(axes[0] is not None for axes in call.axes):
        return again()  # JAX would compute both branches for a condition that is mapped
    if not isinstance(upstream, Tracer) and getattr(upstream, "is_fully_replicated", True):
        return gradient if float(upstream) == 1 else again()
    found: Array = lax.cond(upstream == 1, lambda: gradient, again)
    return found


# ------------------------------------------------------------------- the native loss of their calls


def _native_loss(call: Call, *present: Any) -> Array:
    *arrays, _, _ = call.arrays(present)
    return _loss_of(call.plan, *arrays)


def _native_slope(call: Call, *present: Any) -> Array:
    *arrays, upstream, _ = call.arrays(present)
    return _slope_of(call.plan, upstream, *arrays)


def _native_gradient(call: Call, upstream: Array, *present: Any) -> Array:
    *arrays, _, _ = call.arrays(present)
    return _slope_of(call.plan, upstream, *arrays)


def _native_tangent(call: Call, direction: Array, *present: Any) -> Array:
    predictions, *others, _, _ = call.arrays(present)
    value_at = _by_predictions(call.plan, *others)
    found: Array = jax.jvp(value_at, (predictions,), (direction,))[1]
    return found


def _slope_of(plan: Plan, upstream: Array | None, predictions: Array, *others: Any) -> Array:
    value, pull_back = jax.vjp(_by_predictions(plan, *others), predictions)
    (slope,) = pull_back(native.typed_as(value, upstream))
    found: Array = slope
    return found


def _by_predictions(plan: Plan, *others: Any) -> Callable[[Array], Array]:
    return lambda predictions: _loss_of(plan, predictions, *others)


def _loss_of(plan: Plan, *arrays: Any) -> Array:
    """The native loss of predictions, targets, sample_weight, mask and divisor."""
    *tensors, divisor = arrays
    value: Array = native.loss(natively(plan), *ops.all_stored(tensors))
    if divisor is not None:
        return value * evaluation.reciprocal(plan, divisor)
    return rows.beside_losses(plan, value, *tensors[:2])


# ------------------------------------------------------------------------------ their derivatives


def _loss_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call) -> tuple[Any, Any]:
    value, form, *present = primals
    _, direction, _, *others = tangents
    parts = []
    if not native.is_zero(direction):
        linear = call._replace(axes=tuple((0, *axes) for axes in call.axes))
        parts.append(_tangent_p.bind(value, form, direction, *present, call=linear))
    along = _natively(_native_loss, call, present, (None, *others))
    # An eager call takes less time without the primitive, which matters for traced operands alone.
    traced = any(isinstance(x, Tracer) for x in primals)
    return _sum(_loss_p.bind(*primals, call=call) if traced else value, [*parts, *along])


def _slope_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call) -> tuple[Any, Any]:
    along = _natively(_native_slope, call, primals[2:], tangents[2:])
    return _sum(_slope_p.bind(*primals, call=call), along)


def _linear_jvp(
    primitive: Primitive,
    function: Callable[..., Array],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    call: Call,
) -> tuple[Any, Any]:
    value, form, linear, *present = primals
    _, _, turned, *others = tangents
    parts = []
    if not native.is_zero(turned):
        parts.append(primitive.bind(value, form, turned, *present, call=call))
    along = _natively(function, call, (linear, *present), (None, *others))
    return _sum(primitive.bind(*primals, call=call), [*parts, *along])


def _natively(
    function: Callable[..., Array], call: Call, operands: Sequence[Any], tangents: Sequence[Any]
) -> list[Array]:
    """The native derivative of a function of operands, if a tangent is not 0.

    The tangent of a kept gradient does not count, because the function is one of the other arrays.
    """
    moving = [*tangents[:-1], None] if call.given[-1] else tangents
    with evaluation.in_width(*operands):
        found = native.derivative(_mapped(function, call), operands, moving)
    return [] if found is None else [found]


def _sum(found: Array, parts: Sequence[Array]) -> tuple[Array, Any]:
    """A result and its tangent, the sum of these parts."""
    return found, reduce(operator.add, parts) if parts else zero_from_primal(found)


def _transpose(
    other: Primitive, cotangent: Any, value: Any, form: Any, linear: Any, *present: Any, call: Call
) -> list[Any]:
    found: Any = ad.Zero(linear.aval)
    if type(cotangent) is not ad.Zero:
        linear_axes = [axes[0] for axes in call.axes]
        mapped = call._replace(axes=tuple((0, *axes[1:]) for axes in call.axes))
        found = other.bind(value, form, cotangent, *present, call=mapped)
        if None in linear_axes:  # a vmap used the same operand for each of its results
            found = jnp.sum(found, [i for i, a in enumerate(reversed(linear_axes)) if a is None])
    return [None, None, found, *[None] * len(present)]


def _batch(
    primitive: Primitive, operands: Sequence[Any], axes: Sequence[int | None], *, call: Call
) -> tuple[Array, int]:
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    with evaluation.in_width(*operands):
        front = [
            x if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        for i, axis in enumerate(axes[:2]):
            if axis is None:
                front[i] = jnp.broadcast_to(front[i], (size, *front[i].shape))
    mapped = tuple(None if axis is None else 0 for axis in axes[2:])
    return primitive.bind(*front, call=call._replace(axes=(*call.axes, mapped))), 0


def _made(name: str, compute: Callable[..., Array], result: int) -> Primitive:
    """A primitive without its derivatives, whose result has the type of one of its operands."""
    made = Primitive(f"unifiedloss_{name}")
    made.def_impl(compute)
    made.def_abstract_eval(lambda *operands, call: operands[result])
    lowered = mlir.lower_fun(compute, multiple_results=False)
    mlir.register_lowering(made, partial(exported.refuse, lowered))
    batching.primitive_batchers[made] = partial(_batch, made)
    return made


_loss_p = _made("loss", _given, 0)
_slope_p = _made("slope", _given, 0)
_tangent_p = _made("tangent", _each(_tangent_of_one), 0)
_gradient_p = _made("gradient", _each(_gradient_of_one), 1)
ad.primitive_jvps[_loss_p] = _loss_jvp
ad.primitive_jvps[_slope_p] = _slope_jvp
ad.primitive_jvps[_tangent_p] = partial(_linear_jvp, _tangent_p, _native_tangent)
ad.primitive_jvps[_gradient_p] = partial(_linear_jvp, _gradient_p, _native_gradient)
ad.primitive_transposes[_tangent_p] = partial(_transpose, _gradient_p)
ad.primitive_transposes[_gradient_p] = partial(_transpose, _tangent_p)
