"""Exact mode in TensorFlow: the kernel of `unifiedloss.exact`, called on the host.

The loss and its gradient to the predictions are exact; every other derivative is native.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record  # no public function says what is watching

from unifiedloss.adapters.tensorflow import callback, further, ops, program, shapes
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.spec import Loss

Tensor = Any
Array = np.ndarray[Any, Any]


class _Call(NamedTuple):
    """The part of a call that is known before its shapes.

    Attributes:
        spec: the loss.
        dtypes: those of predictions, targets, sample_weight, mask and, if it is given, the divisor,
            None for another one not given.
        result: the dtype of the loss.
    """

    spec: Loss
    dtypes: tuple[str | None, ...]
    result: str

    @property
    def native(self) -> further.NativeLoss:
        """The same call with ``rounding="native"``."""
        return further.NativeLoss(self.spec, tuple(dtype is not None for dtype in self.dtypes))


def loss(plan: Plan, *tensors: Tensor | None) -> Tensor:
    """The loss of (predictions, targets, sample_weight, mask); loss and gradient are exact.

    A fifth tensor is the divisor.
    """
    if callback.compiles():
        _refuse_divisor(tensors)
        return program.loss(plan, *tensors)
    call, given = _prepared(plan, tensors)
    spec = call.spec
    if tf.executing_eagerly() and not record.could_possibly_record():
        (result,) = callback.on_host(partial(_evaluate, call, gradient=False), given, [call.result])
        return result
    # While a tape records, compute the gradient with the loss, because both need the same
    # exponentials. Not under "none": the upstream gradient there is seldom the 1 that this gradient
    # is for.
    keeps = spec.reduction != "none" and record.should_record_backprop(given[:1])
    result = _loss(call, bool(keeps), _differentiated(given))(*given)
    result.set_shape(plan.positions if spec.reduction == "none" else ())
    return result


def value_and_grad(plan: Plan, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss and its gradient to the predictions, for an upstream gradient of any dtype.

    A tape would need the upstream gradient in the dtype of the loss, which may round it.

    Args:
        plan: the plan of the call.
        *tensors: predictions, targets, sample_weight, mask, upstream; the divisor, if it is given,
            stands before the last.
    """
    *tensors, upstream = tensors  # type: ignore[assignment]
    value = loss(plan, *tensors)
    upstream = shapes.shaped_like(value, upstream)
    if callback.compiles():
        return value, program.gradient(plan, upstream, *tensors)
    return value, gradient(plan, upstream, *tensors)


def gradient(plan: Plan, upstream: Tensor, *tensors: Tensor | None) -> Tensor:
    """The gradient to the predictions."""
    call, given = _prepared(plan, tensors)
    return _slope(call, upstream.dtype.name)(upstream, *given)


def _differentiated(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Which tensors beside the predictions a tape or a ForwardAccumulator may differentiate by.

    Around a graph nobody knows, so there it is all that are floating.
    """
    return tuple(
        i
        for i in further.floating(tensors)
        if i > 0
        and (
            not tf.executing_eagerly()
            or record.should_record_backprop([tensors[i]])
            or further.has_tangent(tensors[i])
        )
    )


def _refuse_divisor(tensors: Sequence[Tensor | None]) -> None:
    if len(tensors) > 4:
        msg = (
            "rounding='exact' has no form that XLA compiles for a given divisor; trace with "
            "jit_compile=False, where the host computes it, or use rounding='native'."
        )
        raise UnsupportedError(msg)


def on_host(job: Any, tensors: Sequence[Tensor | None]) -> Tensor:
    """Run a job of `unifiedloss.exact.pieces`, also in a graph."""
    if callback.compiles():
        msg = (
            "rounding='exact' has no totals in a program that XLA compiles; trace with "
            "jit_compile=False, where the host computes them, or use rounding='native'."
        )
        raise UnsupportedError(msg)

    def run(*arrays: Array) -> list[Array]:
        rest = iter(arrays)
        return [job.run(*(None if x is None else next(rest) for x in tensors))]

    shape, dtype = job.form
    (result,) = callback.on_host(
        run, [tf.stop_gradient(x) for x in tensors if x is not None], [dtype]
    )
    return tf.ensure_shape(result, shape)


def _prepared(plan: Plan, tensors: tuple[Tensor | None, ...]) -> tuple[_Call, list[Tensor]]:
    """What is known of a call before its shapes, and its tensors, whose shapes are checked."""
    if plan.unchecked:
        _, agreed = shapes.shapes_agree(plan, *tensors[:4])
        tensors = (*agreed, *tensors[4:])
    spec = plan.spec
    if plan.axis is not None and (plan.shape is None or len(plan.shape) == 1):
        # Name the axis, because on the host the rank is known and the default may be ambiguous, and
        # because of one example axis 1 is axis 0, which a graph for all ranks does not know.
        spec = spec.replace(axis=plan.axis)
    dtypes = tuple(None if x is None else x.dtype.name for x in tensors)
    given = [x for x in tensors if x is not None]
    if not tf.executing_eagerly():
        # The reshape gives the gradient a shape that the graph can infer.
        given[0] = tf.reshape(given[0], tf.shape(given[0]))
    return _Call(spec, dtypes, plan.result_dtype), given


@cache
def _loss(call: _Call, keeps: bool, wanted: tuple[int, ...]) -> Callable[..., Tensor]:
    """The loss as a function of the given tensors.

    Args:
        call: the call.
        keeps: whether to compute the gradient with the loss.
        wanted: the tensors beside the predictions to whose gradients it leads.
    """
    dtypes = [dtype for dtype in call.dtypes if dtype is not None]

    def loss(*tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        made = [call.result, dtypes[0]] if keeps else [call.result]
        value, *kept = callback.on_host(partial(_evaluate, call, gradient=keeps), tensors, made)

        def gradient(upstream: Tensor) -> list[Tensor | None]:
            slope = _slope(call, upstream.dtype.name, keeps=keeps)(upstream, *kept, *tensors)
            return [slope, *further.gradients(call.native, upstream, tensors, wanted)[1:]]

        return value, gradient

    return _differentiable(loss, dtypes)


@cache
def _slope(call: _Call, upstream_dtype: str, *, keeps: bool = False) -> Callable[..., Tensor]:
    """The gradient to the predictions, as a function.

    Its arguments are the upstream gradient, then, if `keeps`, the gradient for an upstream gradient
    of 1, then the tensors.
    """
    dtypes = [dtype for dtype in call.dtypes if dtype is not None]

    def slope(upstream: Tensor, *tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        given = tensors[keeps:]

        def again() -> Tensor:
            job = partial(_differentiate, call)
            return callback.on_host(job, (upstream, *given), dtypes[:1])[0]

        if not keeps:
            result = again()
        elif tf.executing_eagerly():
            result = tf.identity(tensors[0]) if _is_one(ops.to_numpy(upstream)) else again()
        else:
            result = _again_unless_one(upstream, tensors[0], again)

        def gradient(above: Tensor) -> list[Tensor | None]:
            by_upstream, *rest = further.second(call.native, above, upstream, given)
            return [by_upstream, *[None] * keeps, *rest]

        return result, gradient

    return _differentiable(slope, [upstream_dtype, *dtypes[:1] * keeps, *dtypes])


def _again_unless_one(upstream: Tensor, kept: Tensor, again: Callable[[], Tensor]) -> Tensor:
    """What was kept for an upstream gradient of 1, and else again(), in a graph.

    This is a loop of at most one step. tf.vectorized_map and jacobians split a tf.cond by its
    condition, and fail where a host call has no element in its branch (test_jacobians_and_maps).
    """
    shape: Any = tf.TensorShape
    unknown = shape(None)
    with record.stop_recording():
        _, result = tf.while_loop(
            lambda other, _: other,
            lambda other, _: (other & False, again()),
            (tf.not_equal(upstream, tf.constant(1, upstream.dtype)), kept),
            shape_invariants=(tf.TensorShape(()), unknown),
        )
    return result


def _differentiable(function: Callable[..., Any], dtypes: Sequence[str]) -> Callable[..., Tensor]:
    """A function with a custom gradient, traced once for graphs of all shapes."""
    eager = tf.custom_gradient(function)
    traced = shapes.traced_once(eager, *dtypes)

    def call(*tensors: Tensor) -> Tensor:
        if tf.executing_eagerly():
            return eager(*tensors)
        # A tape over a ForwardAccumulator finds nothing behind a graph of its own
        # (test_derivatives_in_a_graph).
        return (further.differentiable(function) if further.has_tangent(*tensors) else traced)(
            *tensors
        )

    return call


# ------------------------------------------------------------------------------------- on the host


def _evaluate(
    call: _Call, *arrays: Array, upstream: Array | None = None, gradient: bool
) -> list[Array]:
    """The loss and, if asked for, the gradient."""
    given = iter(arrays)
    tensors: list[Any] = [None if dtype is None else next(given) for dtype in call.dtypes]
    plan = _plan(call, *(None if x is None else x.shape for x in tensors[:4]))
    predictions, targets, weight, mask, *divisor = tensors
    value, slope = callback.exact().evaluate(
        plan, predictions, targets, weight, mask, upstream, *divisor, gradient=gradient
    )
    return [np.asarray(x) for x in (value, slope) if x is not None]


def _differentiate(call: _Call, upstream: Array, *arrays: Array) -> list[Array]:
    """The gradient alone."""
    return _evaluate(call, *arrays, upstream=upstream, gradient=True)[1:]


@lru_cache(4096)
def _plan(call: _Call, *sizes: tuple[int, ...] | None) -> Plan:
    signatures = [
        None if dtype is None else Signature(size, dtype)
        for size, dtype in zip(sizes, call.dtypes[:4], strict=True)
    ]
    plan: Plan = callback.host().run(resolve, call.spec, *signatures)
    return plan


def _is_one(upstream: Array) -> bool:
    return bool((upstream == 1).all())
