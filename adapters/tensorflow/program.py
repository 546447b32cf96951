"""Exact mode under XLA, which cannot call the host.

The graph computes in float64, and with balls where float64 leaves a rounding undecided. A result
that balls leave undecided too, mostly a tie of a weighted sum, is NaN. A loss that has no such form
is refused while it is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # see `exact`

from unifiedloss.adapters.tensorflow import further
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan

Tensor = Any


def loss(plan: Plan, *tensors: Tensor | None) -> Tensor:
    """The loss of (predictions, targets, sample_weight, mask); loss and gradient are exact."""
    _refuse_others(plan, sample_weight=tensors[2])
    is_given = tuple(x is not None for x in tensors)
    given = [x for x in tensors if x is not None]
    # Not under "none": the upstream gradient there is seldom the 1 that a gradient computed with
    # the loss is for.
    keeps = plan.spec.reduction != "none" and record.should_record_backprop(given[:1])
    result = _loss(plan, is_given, tuple(x.dtype.name for x in given), bool(keeps))(*given)
    result.set_shape(plan.positions if plan.spec.reduction == "none" else ())
    return result


def gradient(plan: Plan, upstream: Tensor, *tensors: Tensor | None) -> Tensor:
    """The gradient to the predictions, for an upstream gradient of any dtype."""
    _refuse_others(plan, upstream_gradient=upstream)
    is_given = tuple(x is not None for x in tensors)
    given = [x for x in tensors if x is not None]
    dtypes = tuple(x.dtype.name for x in given)
    return _slope(plan, is_given, dtypes, keeps=False)(upstream, *given)


def _refuse_others(plan: Plan, **weights: Tensor | None) -> None:
    """Raise an error for a call that has no form in a program, or for factors that do not fit."""
    from unifiedloss.exact.graph import form  # imported here because native mode does not need it

    reason = form.why_not(plan)
    for name, x in weights.items():
        if reason is None and x is not None and not form.fits(x.dtype.name):
            reason = f"{x.dtype.name} {name.replace('_', ' ')}s"
    if reason is None and not plan.count:
        reason = "an empty batch"
    if reason is not None:
        msg = (
            f"rounding='exact' has no form that XLA compiles for {reason}; trace with "
            "jit_compile=False (in Keras: compile(jit_compile=False)), where the host computes it, "
            "or use rounding='native'."
        )
        raise UnsupportedError(msg)


@lru_cache(4096)
def _loss(
    plan: Plan, is_given: tuple[bool, ...], dtypes: tuple[str, ...], keeps: bool
) -> Callable[..., Tensor]:
    def loss(*tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        value, *kept = _evaluate(plan, is_given, tensors, None, gradient=keeps)

        def gradient(upstream: Tensor) -> list[Tensor | None]:
            slope = _slope(plan, is_given, dtypes, keeps)(upstream, *kept, *tensors)
            wanted = further.floating(tensors)[1:]
            native = further.NativeLoss(plan.spec, is_given)
            return [slope, *further.gradients(native, upstream, tensors, wanted)[1:]]

        return value, gradient

    return further.differentiable(loss)


@lru_cache(4096)
def _slope(
    plan: Plan, is_given: tuple[bool, ...], dtypes: tuple[str, ...], keeps: bool
) -> Callable[..., Tensor]:
    """The gradient to the predictions, as a function.

    Its arguments are the upstream gradient, then, if `keeps`, the gradient for an upstream gradient
    of 1, then the tensors.
    """

    def slope(upstream: Tensor, *tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        def again() -> Tensor:
            # Not the kept gradient times `upstream`, which would be rounded twice.
            return _evaluate(plan, is_given, tensors[keeps:], upstream, gradient=True)[1]

        if not keeps:
            result = again()
        elif tf.get_static_value(upstream) == 1:
            result = tf.identity(tensors[0])
        else:
            result = tf.cond(tf.equal(upstream, 1), lambda: tensors[0], again)

        def gradient(above: Tensor) -> list[Tensor | None]:
            native = further.NativeLoss(plan.spec, is_given)
            by_upstream, *rest = further.second(native, above, upstream, tensors[keeps:])
            return [by_upstream, *[None] * keeps, *rest]

        return result, gradient

    return further.differentiable(slope)


def _evaluate(
    plan: Plan, is_given: tuple[bool, ...], tensors: Any, upstream: Tensor | None, *, gradient: bool
) -> list[Tensor]:
    from unifiedloss.adapters.tensorflow.graph import TensorFlowOps
    from unifiedloss.exact.graph.call import Given, GraphCall

    xp = TensorFlowOps()
    rest = iter(tensors)
    given = [next(rest) if x_is_given else None for x_is_given in is_given]
    weights = [
        None if x is None else tf.constant(x, tf.float64)
        for x in (plan.class_weights, plan.pos_weight)
    ]
    each = (None if x is None else x[None] for x in (*given, upstream, *weights))
    call = GraphCall(xp, plan, Given(*each), gradient=gradient)
    found = call.mended(call.found())
    value = call.known_loss(found.terms)
    return [value[0]] if found.slopes is None else [value[0], call.gradient(found.slopes)[0]]
