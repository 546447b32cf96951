"""Exact mode in TensorFlow: the kernel of `unifiedloss.exact`, called on the host.

TensorFlow computes nothing here, because it reads subnormal numbers as 0. In an eager call, the
kernel reads the tensors' memory and TensorFlow takes over the memory of the results. In a graph,
the kernel is called through tf.numpy_function, which XLA cannot compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import (  # no public function says what is watching
    forwardprop_util,
    record,
)

from unifiedloss.adapters.tensorflow import ops, program, shapes
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.spec import Loss

Tensor = Any
Array = np.ndarray[Any, Any]

_NODE = "unifiedloss_exact_mode_needs_the_host_so_set_jit_compile_False"
"""The name of the host call: an XLA error shows only the name of the node it cannot compile."""

_SECOND = (
    "rounding='exact' has no second derivative, as its gradient is rounded; "
    "rounding='native' has one."
)


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


def loss(plan: Plan, *tensors: Tensor | None) -> Tensor:
    """The loss of (predictions, targets, sample_weight, mask); loss and gradient are exact.

    A fifth tensor is the divisor.
    """
    for name, x in (("targets", tensors[1]), ("sample_weight", tensors[2])):
        if x is not None and record.should_record_backprop([x]):
            msg = (
                "rounding='exact' gives a gradient to the predictions alone, and a tape watches "
                f"{name}; pass tf.stop_gradient({name}), or use rounding='native', which "
                "differentiates by both."
            )
            raise UnsupportedError(msg)
    if program.compiles():
        _refuse_divisor(tensors)
        return program.loss(plan, *tensors)
    call, given = _prepared(plan, tensors)
    spec = call.spec
    if tf.executing_eagerly() and not record.could_possibly_record():
        (result,) = _on_host(partial(_evaluate, call, gradient=False), given, [call.result])
        return result
    # While a tape records, compute the gradient with the loss, because both need the same
    # exponentials. Not under "none": the upstream gradient there is seldom the 1 that this gradient
    # is for.
    keeps = spec.reduction != "none" and record.should_record_backprop(given[:1])
    result = _loss(call, bool(keeps))(*given)
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
    if program.compiles():
        return value, program.gradient(plan, upstream, *tensors)
    return value, gradient(plan, upstream, *tensors)


def gradient(plan: Plan, upstream: Tensor, *tensors: Tensor | None) -> Tensor:
    """The gradient to the predictions, which refuses to be differentiated."""
    call, given = _prepared(plan, tensors)
    return _slope(call, upstream.dtype.name)(upstream, *given)


def has_tangent(*tensors: Tensor) -> bool:
    """Whether a tf.autodiff.ForwardAccumulator looks at one of these tensors."""
    return bool(forwardprop_util.pack_tangents(tensors).tangents)


def _refuse_divisor(tensors: Sequence[Tensor | None]) -> None:
    if len(tensors) > 4:
        msg = (
            "rounding='exact' has no form that XLA compiles for a given divisor; trace with "
            "jit_compile=False, where the host computes it, or use rounding='native'."
        )
        raise UnsupportedError(msg)


def on_host(job: Any, tensors: Sequence[Tensor | None]) -> Tensor:
    """Run a job of `unifiedloss.exact.pieces`, also in a graph."""
    if program.compiles():
        msg = (
            "rounding='exact' has no totals in a program that XLA compiles; trace with "
            "jit_compile=False, where the host computes them, or use rounding='native'."
        )
        raise UnsupportedError(msg)

    def run(*arrays: Array) -> list[Array]:
        given = iter(arrays)
        return [job.run(*(None if x is None else next(given) for x in tensors))]

    shape, dtype = job.form
    (result,) = _on_host(run, [tf.stop_gradient(x) for x in tensors if x is not None], [dtype])
    return tf.ensure_shape(result, shape)


def _prepared(plan: Plan, tensors: tuple[Tensor | None, ...]) -> tuple[_Call, list[Tensor]]:
    """What is known of a call before its shapes, and its tensors, whose shapes are checked."""
    if plan.unchecked:
        _, agreed = shapes.shapes_agree(plan, *tensors[:4])
        tensors = (*agreed, *tensors[4:])
    spec = plan.spec
    if plan.shape is None and plan.axis is not None:
        # Name the axis, because on the host the rank is known and the default may be ambiguous.
        spec = spec.replace(axis=plan.axis)
    dtypes = tuple(None if x is None else x.dtype.name for x in tensors)
    given = [x for x in tensors if x is not None]
    if not tf.executing_eagerly():
        # The reshape gives the gradient a shape that the graph can infer.
        given[0] = tf.reshape(given[0], tf.shape(given[0]))
    return _Call(spec, dtypes, plan.result_dtype), given


@cache
def _loss(call: _Call, keeps: bool) -> Callable[..., Tensor]:
    dtypes = [dtype for dtype in call.dtypes if dtype is not None]

    def loss(*tensors: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        made = [call.result, dtypes[0]] if keeps else [call.result]
        value, *kept = _on_host(partial(_evaluate, call, gradient=keeps), tensors, made)

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            slope = _slope(call, upstream.dtype.name, keeps=keeps)(upstream, *kept, *tensors)
            return slope, *map(_refused_gradient, tensors[1:])

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
        def again() -> Tensor:
            given = (upstream, *tensors[keeps:])
            return _on_host(partial(_differentiate, call), given, dtypes[:1])[0]

        if not keeps:
            result = again()
        elif tf.executing_eagerly():
            result = tf.identity(tensors[0]) if _is_one(ops.to_numpy(upstream)) else again()
        else:
            result = tf.cond(tf.equal(upstream, 1), lambda: tf.identity(tensors[0]), again)

        def gradient(second: Tensor) -> list[Tensor | None]:
            if tf.executing_eagerly():
                raise UnsupportedError(_SECOND)
            # TensorFlow builds this graph even if nobody asks for the second derivative. If it runs
            # then, `second` is 0.
            unused = tf.reduce_all(tf.equal(second, 0))
            with tf.control_dependencies([tf.debugging.Assert(unused, [_SECOND])]):
                return [
                    tf.zeros_like(x) if x.dtype.is_floating else None for x in (upstream, *tensors)
                ]

        return result, gradient

    return _differentiable(slope, [upstream_dtype, *dtypes[:1] * keeps, *dtypes])


def _differentiable(function: Callable[..., Any], dtypes: Sequence[str]) -> Callable[..., Tensor]:
    """A function with a custom gradient, traced once for graphs of all shapes."""
    eager = tf.custom_gradient(function)
    traced = shapes.traced_once(eager, *dtypes)

    def call(*tensors: Tensor) -> Tensor:
        return (eager if tf.executing_eagerly() else traced)(*tensors)

    return call


def _refused_gradient(x: Tensor) -> Tensor | None:
    """The gradient to a tensor that exact mode does not differentiate by: NaN in a graph.

    Around a tf.function TensorFlow asks for the gradient to every argument, also if no tape watches
    it, so this cannot raise. It cannot be 0 either, because a tape may be watching.
    """
    return None if tf.executing_eagerly() else program.nan_gradient(x)


# ------------------------------------------------------------------------------------- on the host


@cache
def _host() -> Any:
    from unifiedloss import host  # imported here: it starts a thread that native mode does not need

    return host


@cache
def _exact() -> Any:
    from unifiedloss import exact

    return exact


def _on_host(
    function: Callable[..., Sequence[Array]], tensors: Sequence[Tensor], dtypes: Sequence[str]
) -> list[Tensor]:
    """Call a function of arrays on tensors. It returns bfloat16 results as their bits."""
    _host().run(_exact)  # import it in a thread that keeps the subnormal numbers of its tables
    if tf.executing_eagerly():
        made = [_tensor(x, tensors[0].device) for x in function(*map(ops.to_numpy, tensors))]
    else:
        stored = [tf.uint16 if dtype == "bfloat16" else dtype for dtype in dtypes]
        made = tf.numpy_function(function, tensors, stored, stateful=False, name=_NODE)
    return [
        tf.bitcast(x, dtype) if dtype == "bfloat16" else x
        for x, dtype in zip(made, dtypes, strict=True)
    ]


def _tensor(x: Array, device: str) -> Tensor:
    """An array as a tensor in the same memory, or in a copy that TensorFlow can use.

    TensorFlow crashes at memory that is not aligned to 64 bytes (VoVAllen/tf-dlpack#4;
    test_memory_that_tensorflow_cannot_use_is_copied).
    """
    if x.ctypes.data % 64 or not x.flags.c_contiguous or not x.flags.writeable:
        from unifiedloss.exact.rooms import aligned

        out = aligned(x.shape, x.dtype)
        out[...] = x
        x = out
    made = tf.experimental.dlpack.from_dlpack(x.__dlpack__())
    if made.device == device:
        return made
    with tf.device(device):
        return tf.identity(made)


def _evaluate(
    call: _Call, *arrays: Array, upstream: Array | None = None, gradient: bool
) -> list[Array]:
    """The loss and, if asked for, the gradient."""
    given = iter(arrays)
    tensors: list[Any] = [None if dtype is None else next(given) for dtype in call.dtypes]
    plan = _plan(call, *(None if x is None else x.shape for x in tensors[:4]))
    predictions, targets, weight, mask, *divisor = tensors
    value, slope = _exact().evaluate(
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
    plan: Plan = _host().run(resolve, call.spec, *signatures)
    return plan


def _is_one(upstream: Array) -> bool:
    return bool((upstream == 1).all())
