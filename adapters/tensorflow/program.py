"""Exact mode under XLA, which cannot call the host.

The graph computes in float64, and with balls where float64 leaves a rounding undecided. A result
that balls leave undecided too, mostly a tie of a weighted sum, is NaN. A loss that has no such form
is refused while it is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # see `exact`
from tensorflow.python.ops import control_flow_util  # no public function says who compiles

from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan

Tensor = Any


def compiles() -> bool:
    """Whether XLA will compile this graph: within tf.function(jit_compile=True), at any depth."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def loss(plan: Plan, *tensors: Tensor | None) -> Tensor:
    """The loss of (predictions, targets, sample_weight, mask); loss and gradient are exact."""
    _refuse_others(plan, sample_weight=tensors[2])
    is_given = tuple(x is not None for x in tensors)
    given = [x for x in tensors if x is not None]
    # Not under "none": the upstream gradient there is seldom the 1 that a gradient computed with
    # the loss is for.
    keeps = plan.spec.reduction != "none" and record.should_record_backprop(given[:1])
    result = _loss(plan, is_given, tuple(x.dtype.name for x in given), bool(keeps))(*given)
    return tf.ensure_shape(result, plan.positions if plan.spec.reduction == "none" else ())


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

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            slope = _slope(plan, is_given, dtypes, keeps)(upstream, *kept, *tensors)
            return slope, *map(nan_gradient, tensors[1:])

        return value, gradient

    return tf.custom_gradient(loss)


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

        def gradient(second: Tensor) -> list[Tensor | None]:
            # There is no second derivative. It is NaN, because XLA drops assertions. If nobody asks
            # for it, `second` is 0, and so is this.
            wanted = tf.reduce_any(tf.not_equal(second, 0))

            def poisoned(x: Tensor) -> Tensor | None:
                if not x.dtype.is_floating:
                    return None
                nan, zero = tf.constant(math.nan, x.dtype), tf.constant(0, x.dtype)
                return tf.fill(tf.shape(x), tf.where(wanted, nan, zero))

            return [poisoned(x) for x in (upstream, *tensors)]

        return result, gradient

    return tf.custom_gradient(slope)


def nan_gradient(x: Tensor) -> Tensor | None:
    """NaN for a floating tensor, which exact mode does not differentiate by, see `exact`."""
    return tf.fill(tf.shape(x), tf.constant(math.nan, x.dtype)) if x.dtype.is_floating else None


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
