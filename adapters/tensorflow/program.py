"""Exact mode where XLA compiles, which has no way to the host: float64 in the graph, and balls for what that leaves undecided.

What even these do not decide is NaN: ties of weighted sums, mostly. A loss that has no such form is refused when it is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # see `exact`
from tensorflow.python.ops import control_flow_util  # nothing public tells who will compile a graph

from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan

Tensor = Any


def compiles() -> bool:
    """Whether what is traced now is for XLA: within tf.function(jit_compile=True), at any depth."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def loss(plan: Plan, *tensors: Tensor | None) -> Tensor:
    """The loss of (predictions, targets, sample_weight, mask), correctly rounded, with a gradient that is."""
    from unifiedloss.exact import graph_form  # not above: native mode does without

    weight = tensors[2]
    reason = graph_form.why_not(plan)
    if reason is None and weight is not None and not graph_form.fits(weight.dtype.name):
        reason = f"{weight.dtype.name} sample weights"
    if reason is None and not plan.count:
        reason = "an empty batch"
    if reason is not None:
        msg = (
            f"rounding='exact' has no form that XLA compiles for {reason}; trace with jit_compile=False (in Keras: "
            f"compile(jit_compile=False)), where the host computes it, or use rounding='native'."
        )
        raise UnsupportedError(msg)
    there = tuple(x is not None for x in tensors)
    given = [x for x in tensors if x is not None]
    # Of single positions the upstream gradient is seldom the 1 that a gradient made along with the loss would be for.
    keeps = plan.spec.reduction != "none" and record.should_record_backprop(given[:1])
    result = _loss(plan, there, tuple(x.dtype.name for x in given), bool(keeps))(*given)
    return tf.ensure_shape(result, plan.positions if plan.spec.reduction == "none" else ())


@lru_cache(4096)
def _loss(
    plan: Plan, there: tuple[bool, ...], dtypes: tuple[str, ...], keeps: bool
) -> Callable[..., Tensor]:
    def loss(*tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        value, *kept = _evaluate(plan, there, tensors, None, gradient=keeps)

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            slope = _slope(plan, there, dtypes, keeps)(upstream, *kept, *tensors)
            return slope, *map(unknown, tensors[1:])

        return value, gradient

    return tf.custom_gradient(loss)


@lru_cache(4096)
def _slope(
    plan: Plan, there: tuple[bool, ...], dtypes: tuple[str, ...], keeps: bool
) -> Callable[..., Tensor]:
    """The gradient to the predictions: of the upstream gradient, the gradient for an upstream of 1 if it was kept, and the tensors."""

    def slope(upstream: Tensor, *tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        def again() -> (
            Tensor
        ):  # from the start: the gradient for 1 times `upstream` would be rounded twice
            return _evaluate(plan, there, tensors[keeps:], upstream, gradient=True)[1]

        if keeps and tf.get_static_value(upstream) == 1:
            result = tf.identity(tensors[0])
        else:
            result = tf.cond(tf.equal(upstream, 1), lambda: tensors[0], again) if keeps else again()

        def gradient(second: Tensor) -> list[Tensor | None]:
            # There is no second derivative, and XLA drops assertions. Where nobody asks for it, it is asked for with zeros.
            wanted = tf.reduce_any(tf.not_equal(second, 0))
            return [
                tf.fill(
                    tf.shape(x),
                    tf.where(wanted, tf.constant(math.nan, x.dtype), tf.constant(0, x.dtype)),
                )
                if x.dtype.is_floating
                else None
                for x in (upstream, *tensors)
            ]

        return result, gradient

    return tf.custom_gradient(slope)


def unknown(x: Tensor) -> Tensor | None:
    """The gradient to what is not differentiated by, in a graph: neither an error nor 0, see `exact`."""
    return tf.fill(tf.shape(x), tf.constant(math.nan, x.dtype)) if x.dtype.is_floating else None


def _evaluate(
    plan: Plan, there: tuple[bool, ...], tensors: Any, upstream: Tensor | None, *, gradient: bool
) -> list[Tensor]:
    from unifiedloss.adapters.tensorflow.graph import TensorFlowOps
    from unifiedloss.exact import graph

    xp = TensorFlowOps()
    rest = iter(tensors)
    given = [next(rest) if is_there else None for is_there in there]
    weights = [
        None if x is None else tf.constant(x, tf.float64)
        for x in (plan.class_weights, plan.pos_weight)
    ]
    each = (None if x is None else x[None] for x in (*given, upstream, *weights))
    call = graph.GraphCall(xp, plan, graph.Given(*each), gradient=gradient)
    found = call.mended(call.found())
    value = call.loss(found.terms, careful=True)[0]
    return [value[0]] if found.slopes is None else [value[0], call.gradient(found.slopes)[0]]
