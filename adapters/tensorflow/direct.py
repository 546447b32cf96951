"""Exact mode on two eager CPU tensors: a compiled loop reads and writes TensorFlow's own memory.

The derivative is recorded on the tapes as tf.custom_gradient records it, without the copies and the
look at signatures that cost more than the loss of a small batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record  # see `exact`

from unifiedloss import compiled, values
from unifiedloss.adapters.tensorflow import exact, further, ops
from unifiedloss.compiled import threads
from unifiedloss.plan import Plan

Tensor = Any
Array = np.ndarray[Any, Any]


def loss(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor | None:
    """The loss of two eager CPU tensors whose values have not been checked.

    Returns:
        None if another way must compute it.
    """
    from unifiedloss.exact import loops  # imported here because native mode does not need it

    ready = loops.ready(plan)
    # The results are tensors of the first CPU, and there may be several logical ones.
    if ready is None or not predictions.device.endswith("CPU:0"):
        return None
    keeps = False
    if record.could_possibly_record():
        if record.should_record_backprop([targets]) or further.has_tangent(predictions, targets):
            return None
        keeps = record.should_record_backprop([predictions])
    found = _evaluate(ready, predictions, targets, 1.0, gradient=keeps)
    if found is None:
        return None
    value, slope = found
    if keeps:

        def gradient(upstream: Tensor) -> tuple[Tensor, None]:
            return _gradient(plan, upstream, slope, predictions, targets), None

        record.record_operation("unifiedloss", [value], [predictions, targets], gradient)
    return value


def _gradient(
    plan: Plan, upstream: Tensor, ahead: Tensor, predictions: Tensor, targets: Tensor
) -> Tensor:
    """The gradient for an upstream gradient; that computed `ahead` is for 1."""
    tensors = (upstream, predictions, targets)
    if record.could_possibly_record() and record.should_record_backprop(tensors):
        return exact.gradient(plan, upstream, predictions, targets, None, None)
    if tf.executing_eagerly() and upstream.numpy() == 1:
        return ahead
    return exact.gradient(plan, upstream, predictions, targets, None, None)


def _evaluate(
    ready: Any, predictions: Tensor, targets: Tensor, upstream: float, *, gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    from unifiedloss.exact.loops import bits
    from unifiedloss.exact.rooms import aligned
    from unifiedloss.exact.rounding import bits_of

    plan = ready.plan
    value = aligned((), np.dtype(np.float32))
    slopes = aligned(plan.shape, bits_of(plan.predictions_dtype)) if gradient else None
    to = 0 if slopes is None else slopes
    halves = plan.predictions_dtype == "bfloat16"  # Python's buffers have no such numbers
    logits = bits(ops.to_numpy(predictions)) if halves else predictions
    memory = logits, targets, to, value
    left = compiled.call(ready.fixed, upstream, *memory, threads=threads.number())
    if left is not None:
        from unifiedloss import host
        from unifiedloss.exact import kernel

        arrays = ops.to_numpy(predictions), ops.view(targets)
        values.check(plan, *arrays, None, None)
        finished = host.run(kernel.finish, ready, left, *arrays, upstream, slopes)
        if finished is None:
            return None
        value[...] = finished
    if slopes is None:
        return _shared(value), None
    gradient_of = _shared(slopes)
    return _shared(value), tf.bitcast(gradient_of, tf.bfloat16) if halves else gradient_of


def _shared(x: Array) -> Tensor:
    """An aligned array as a tensor in the same memory."""
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())
