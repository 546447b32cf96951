"""The native loss in a program, and derivatives along it.

Exact mode takes from it every derivative but the first one to the predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from unifiedloss import pipeline
from unifiedloss.adapters.jax import kernels, manual, ops, rows
from unifiedloss.evaluator import Evaluator
from unifiedloss.inputs import Inputs
from unifiedloss.plan import Plan


def compute(plan: Plan, inputs: Inputs, *, checked: bool) -> Array:
    """The operations of a plan."""
    operations: Any = ops  # type checkers compare the names of positional parameters
    e = Evaluator(operations, kernels, plan, checked=checked)
    found = pipeline.terms(e, rows.beside(plan, inputs))
    if plan.kind in ("binary", "real") or not plan.plain:
        found = found._replace(losses=ops.settle(found.losses))
    value: Array = e.reduce(found)
    return value


# One program per plan, because a plan hashes by its identity. Within another trace the program is
# inlined, so that the outer program contains its operations and not a call.
@partial(jax.jit, static_argnums=0, inline=True)
def loss(
    plan: Plan, predictions: Array, targets: Array, sample_weight: Array | None, mask: Array | None
) -> Array:
    """The loss."""
    return compute(plan, Inputs(predictions, targets, sample_weight, mask), checked=False)


@partial(jax.jit, static_argnums=0, inline=True)
def value_and_grad(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Array | None,
) -> tuple[Array, Array]:
    """The loss and its gradient with respect to the predictions; no upstream gradient means 1."""
    value, pull_back = jax.vjp(lambda p: loss(plan, p, targets, sample_weight, mask), predictions)
    (gradient,) = pull_back(typed_as(value, upstream))
    return value, gradient


def derivative(
    function: Callable[..., Array], primals: Sequence[Any], tangents: Sequence[Any]
) -> Array | None:
    """The derivative of a function along those tangents that are not 0; None if all are."""
    moved = [i for i, tangent in enumerate(tangents) if not is_zero(tangent)]
    if not moved:
        return None

    def of_moved(*chosen: Any) -> Array:
        arguments = list(primals)
        for i, x in zip(moved, chosen, strict=True):
            arguments[i] = x
        return function(*arguments)

    along = [primals[i] for i in moved], [tangents[i] for i in moved]
    found: Array = jax.jvp(of_moved, *along)[1]
    return found


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is known to be 0, as that of an integer is; None counts as 0."""
    if tangent is None or isinstance(tangent, SymbolicZero | ad.Zero):
        return True
    return bool(tangent.dtype == jax.dtypes.float0)


def typed_as(value: Array, upstream: Array | None) -> Array:
    """An upstream gradient, ones where it is None, with the type of the value."""
    given = jnp.ones_like(value) if upstream is None else upstream.astype(value.dtype)
    return manual.varying(given, manual.axes(value))
