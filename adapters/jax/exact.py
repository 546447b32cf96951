"""Exact mode on JAX arrays: the value, and its derivatives by `primitives`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.core import Tracer

from unifiedloss.adapters.jax import evaluation, manual, primitives
from unifiedloss.plan import Plan


def loss(
    plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any, divisor: Any = None
) -> Array:
    """The loss, correctly rounded.

    Its gradient to the predictions in reverse mode is correctly rounded too. Every other derivative
    is native.
    """
    arrays = predictions, targets, sample_weight, mask, divisor
    if evaluation.is_concrete(*arrays):
        return evaluation.with_values(plan, *arrays[:4], None, divisor)[0]
    # Here and not in the rule, so that the derivative of the cast sums over the devices.
    value: Array = _loss(plan, *manual.alike(arrays))
    return value


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
    arrays = predictions, targets, sample_weight, mask, divisor
    if evaluation.is_concrete(*arrays, upstream):
        value, gradient = evaluation.with_values(
            plan, *arrays[:4], upstream, divisor, gradient=True
        )
        return value, gradient
    *alike, upstream = manual.alike((*arrays, upstream))
    value, gradient = _evaluate(plan, alike, upstream, gradient=True)
    value = primitives.loss(plan, value, alike, gradient if upstream is None else None)
    gradient = primitives.slope(plan, gradient, alike, upstream)
    # As a gradient by differentiation, the one to predictions that all devices hold is the sum.
    axes = manual.axes(gradient) - manual.axes(predictions)
    return value, lax.psum(gradient, tuple(sorted(axes))) if axes else gradient


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(plan: Plan, *arrays: Any) -> Array:
    (value,) = _evaluate(plan, arrays)
    # JAX may compute the derivative of this program in place of the rule below.
    return primitives.loss(plan, value, arrays)


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(plan: Plan, arrays: Any, tangents: Any) -> tuple[Any, Any]:
    """Compute the gradient with the loss, and leave the derivative to `primitives`."""
    # A reduced loss is most often the end of a program, where the upstream gradient is 1. So
    # compute the gradient for that with the value.
    value, *gradient = _evaluate(plan, arrays, gradient=plan.spec.reduction != "none")
    kept = gradient[0] if gradient else None
    return primitives.loss_with_tangent(plan, value, arrays, kept, tangents)


def _evaluate(
    plan: Plan, arrays: Any, upstream: Any = None, *, gradient: bool = False
) -> tuple[Array, ...]:
    """`evaluation.evaluate` without derivatives, which `primitives` give."""
    with evaluation.in_width(*arrays):
        *tensors, divisor, above = (
            lax.stop_gradient(x) if isinstance(x, Tracer) else x for x in (*arrays, upstream)
        )
        return evaluation.evaluate(plan, *tensors, above, divisor, gradient=gradient)
