"""Exact mode on JAX arrays, and its derivatives.

The value, and the gradient to the predictions in reverse mode, are correctly rounded; see
`primitives`. Every other derivative is that of the native loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal

from unifiedloss.adapters.jax import evaluation, manual, native, primitives
from unifiedloss.plan import Plan


def loss(
    plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any, divisor: Any = None
) -> Array:
    """The loss, correctly rounded, with an exact gradient to the predictions."""
    arrays = predictions, targets, sample_weight, mask, divisor
    if evaluation.is_concrete(*arrays):
        return evaluation.with_values(plan, *arrays[:4], None, divisor)[0]
    # Here and not in the rule, so that the derivative of the cast sums over the devices.
    return _loss(plan, False, *manual.alike(arrays))[0]  # noqa: FBT003 - custom_jvp knows no names


def value_and_grad(
    plan: Plan,
    predictions: Any,
    targets: Any,
    sample_weight: Any,
    mask: Any,
    upstream: Any,
    divisor: Any = None,
) -> tuple[Array, Array]:
    """The loss and its gradient with respect to the predictions, correctly rounded."""
    arrays = predictions, targets, sample_weight, mask, upstream, divisor
    if evaluation.is_concrete(*arrays):
        value, gradient = evaluation.with_values(plan, *arrays, gradient=True)
        return value, gradient
    value, gradient = _value_and_grad(plan, *manual.alike(arrays))
    # As a gradient by differentiation, the one to predictions that all devices hold is the sum.
    axes = manual.axes(gradient) - manual.axes(predictions)
    return value, lax.psum(gradient, tuple(sorted(axes))) if axes else gradient


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _loss(plan: Plan, keeps: bool, *arrays: Any) -> tuple[Array, ...]:
    """The loss and, to be kept for `primitives`, the gradient for the upstream gradient 1.

    Args:
        plan: the plan of the call.
        keeps: whether to compute that gradient.
        *arrays: predictions, targets, sample_weight, mask and divisor; the last three may be None.
    """
    *tensors, divisor = arrays
    return evaluation.evaluate(plan, *tensors, None, divisor, gradient=keeps)


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(plan: Plan, keeps: bool, arrays: Any, tangents: Any) -> tuple[Any, Any]:
    # A reduced loss is most often the end of a program, where the upstream gradient is 1. So
    # compute the gradient for that with the value.
    value, *gradient = _loss(plan, keeps or plan.spec.reduction != "none", *arrays)
    along = _tangent(plan, value, arrays, gradient[0] if gradient else None, tangents)
    kept = gradient[:1] if keeps else []
    return (value, *kept), (along, *map(zero_from_primal, kept))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _value_and_grad(plan: Plan, *arrays: Any) -> tuple[Array, ...]:
    return evaluation.evaluate(plan, *arrays, gradient=True)


@partial(_value_and_grad.defjvp, symbolic_zeros=True)
def _value_and_grad_jvp(plan: Plan, arrays: Any, tangents: Any) -> tuple[Any, Any]:
    value, gradient = _value_and_grad(plan, *arrays)
    *tensors, upstream, divisor = arrays
    *of_tensors, of_upstream, _ = tangents
    kept = gradient if upstream is None else None
    along = _tangent(plan, value, (*tensors, divisor), kept, (*of_tensors, None))

    def slope(upstream: Any, *tensors: Any) -> Array:
        return primitives.native_gradient(plan, upstream, *tensors, divisor)

    with evaluation.in_width(*arrays):
        turning = native.derivative(slope, (upstream, *tensors), (of_upstream, *of_tensors))
    return (value, gradient), (along, turning)


def _tangent(plan: Plan, value: Array, arrays: Any, gradient: Array | None, tangents: Any) -> Any:
    """The tangent of the loss: along the predictions by their exact gradient, natively else."""
    direction, *others = tangents
    parts = []
    if not native.is_zero(direction):
        parts.append(primitives.tangent(plan, direction, value, (*arrays, gradient)))
    with evaluation.in_width(*arrays):
        function = partial(primitives.native_loss, plan)
        along = native.derivative(function, arrays, (None, *others))
    parts += [along] if along is not None else []
    return sum(parts[1:], parts[0]) if parts else zero_from_primal(value)
