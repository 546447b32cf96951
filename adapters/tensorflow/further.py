"""The derivatives that exact mode takes from native mode: all but the gradient to the predictions.

These are the gradients to targets and sample weights, and every derivative of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import (  # no public function says what is watching
    forwardprop_util,
    record,
)

from unifiedloss import registry
from unifiedloss.adapters.tensorflow import callback, shapes
from unifiedloss.spec import Loss

Tensor = Any


class NativeLoss(NamedTuple):
    """The native loss, as a function of the tensors that are given.

    Attributes:
        spec: the loss, with any rounding.
        is_given: which are given of predictions, targets, sample_weight, mask and divisor.
    """

    spec: Loss
    is_given: tuple[bool, ...]

    def results(self, *tensors: Tensor) -> list[Tensor]:
        """The loss."""
        rest = iter(tensors)
        given = (next(rest) if x else None for x in (*self.is_given, False)[:5])
        predictions, targets, weight, mask, divisor = given
        spec = self.spec.replace(rounding="native")
        if divisor is not None:
            # Exact mode takes a vector too, and the plan of such a call is that of a sum.
            (divisor,) = callback.on_host(_number, [divisor], ["float64"])
            divisor.set_shape(())
            spec = spec.replace(reduction="mean")
        adapter = registry.adapter("tensorflow")
        return [adapter.loss(spec, predictions, targets, weight, mask, divisor)]


class Derivative(NamedTuple):
    """A vector-Jacobian product: a function of upstream gradients, then the arguments of `of`.

    There is one upstream gradient per result of `of`. The derivatives of a derivative are
    derivatives again, of any order and in both modes.

    Attributes:
        of: what is differentiated.
        by: the arguments of `of` to differentiate by, which are floating.
    """

    of: NativeLoss | Derivative
    by: tuple[int, ...]

    @property
    def upstreams(self) -> int:
        """The number of upstream gradients."""
        return 1 if isinstance(self.of, NativeLoss) else len(self.of.by)

    def __call__(self, *given: Tensor) -> list[Tensor]:
        """The products for each argument of `by`."""
        if tf.executing_eagerly():
            return list(_traced(self, compiled=False)(*given))
        if callback.compiles() or has_tangent(*given):
            return list(differentiable(_if_asked(self))(*given))
        return list(_traced_once(self, tuple(x.dtype.name for x in given))(*given))

    def results(self, *given: Tensor) -> list[Tensor]:
        """The products, in a graph."""
        upstreams, arguments = given[: self.upstreams], given[self.upstreams :]
        results = self.of.results(*arguments)
        above = [tf.cast(u, x.dtype) for u, x in zip(upstreams, results, strict=True)]
        # Not a tape: while a ForwardAccumulator asks, TensorFlow records nothing, and a tape would
        # give 0 (test_every_derivative).
        found = tf.gradients(
            results,
            [arguments[i] for i in self.by],
            above,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return list(map(tf.convert_to_tensor, found))


def gradients(
    loss: NativeLoss, upstream: Tensor, tensors: Sequence[Tensor], wanted: Sequence[int]
) -> list[Tensor | None]:
    """The gradients to the wanted ones of the tensors, and None for the others."""
    if not wanted:
        return [None] * len(tensors)
    found = iter(Derivative(loss, tuple(wanted))(upstream, *tensors))
    return [next(found) if i in wanted else None for i in range(len(tensors))]


def second(
    loss: NativeLoss, upstream_of_gradient: Tensor, upstream: Tensor, tensors: Sequence[Tensor]
) -> list[Tensor | None]:
    """The derivatives of the gradient to the predictions, by its upstream and by the tensors."""
    arguments = upstream, *tensors
    by = floating(arguments)
    found = iter(Derivative(Derivative(loss, (0,)), by)(upstream_of_gradient, *arguments))
    return [next(found) if i in by else None for i in range(len(arguments))]


def floating(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Which tensors are floating."""
    return tuple(i for i, x in enumerate(tensors) if x.dtype.is_floating)


def has_tangent(*tensors: Tensor) -> bool:
    """Whether a tf.autodiff.ForwardAccumulator looks at one of these tensors."""
    return bool(forwardprop_util.pack_tangents(tensors).tangents)


def is_nested(*arguments: Any) -> bool:
    """Whether several tf.autodiff.ForwardAccumulators look at these tensors, one in another."""
    if not record.could_possibly_record():
        return False
    tensors = [x for x in arguments if isinstance(x, tf.Tensor)]
    levels = forwardprop_util.pack_tangents(tensors).indices
    return len(levels) > 1 and sum(map(bool, levels)) > 1


def whole(loss: NativeLoss, value: Callable[[], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """A native loss whose derivatives are graphs of their own, for nested accumulators.

    TensorFlow's own fail in a graph at a comparison, and are wrong in eager calls where an
    intermediate tensor is used twice (tensorflow#127753; test_forward_over_forward).

    Args:
        loss: the loss.
        value: computes it, in any operations.
        tensors: the tensors that are given.
    """

    def function(*given: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        def gradient(upstream: Tensor) -> list[Tensor | None]:
            by = floating(given)
            found = iter(made(_if_asked(Derivative(loss, by)))(upstream, *given))
            return [next(found) if i in by else None for i in range(len(given))]

        with record.stop_recording():
            return value(), gradient

    made = tf.custom_gradient if tf.executing_eagerly() else differentiable
    return made(function)(*tensors)


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a custom gradient, for graphs that cannot call one that is traced once.

    These are graphs that XLA compiles, which must know shapes, and those of a ForwardAccumulator.
    """

    def recorded(*tensors: Tensor) -> tuple[Any, Callable[..., Any]]:
        # Below several tapes, TensorFlow differentiates each loop where it is built, and the
        # operations in it have no gradient.
        with record.stop_recording():
            results, gradient = function(*tensors)
        # In a graph, a ForwardAccumulator does not see the custom gradient, but the tangents of the
        # results that it is given.
        record.record_operation_forwardprop_only(
            "unifiedloss", tf.nest.flatten(results), list(tensors), gradient, None
        )
        return results, gradient

    made: Callable[..., Any] = tf.custom_gradient(recorded)
    return made


@cache
def _traced(derivative: Derivative, *, compiled: bool) -> Callable[..., Any]:
    """A derivative as a graph of its own.

    Args:
        derivative: the derivative.
        compiled: whether XLA compiles the graph, in which some losses are written differently.
    """
    del compiled
    made: Callable[..., Any] = tf.function(
        derivative.results, autograph=False, reduce_retracing=True
    )
    return made


@cache
def _traced_once(derivative: Derivative, dtypes: tuple[str, ...]) -> Callable[..., Any]:
    return shapes.traced_once(tf.custom_gradient(_if_asked(derivative)), *dtypes)


def _number(divisor: Any) -> list[Any]:
    """A given divisor as a float64."""
    from unifiedloss.exact import call  # imported here because native mode does not need it

    return [np.float64(callback.host().run(call.exact_number, divisor))]


def _if_asked(derivative: Derivative) -> Callable[..., Any]:
    """A derivative in a graph, which runs only where an upstream gradient is not 0.

    TensorFlow builds the gradient of a function by every floating argument, asked for or not. What
    nobody asked for has the upstream gradient 0 then.
    """

    def results(*given: Tensor) -> tuple[list[Tensor], Callable[..., Any]]:
        upstreams, arguments = given[: derivative.upstreams], given[derivative.upstreams :]
        asked = [tf.reduce_any(tf.not_equal(u, tf.constant(0, u.dtype))) for u in upstreams]
        found = tf.cond(
            tf.reduce_any(tf.stack(asked)),
            lambda: list(_traced(derivative, compiled=callback.compiles())(*given)),
            lambda: [tf.zeros_like(arguments[i]) for i in derivative.by],
        )
        by = floating(given)

        def gradient(*further: Tensor) -> list[Tensor | None]:
            # Not the gradient of the tf.cond, which would be 0 by an upstream gradient of 0.
            products = iter(Derivative(derivative, by)(*further, *given))
            return [next(products) if i in by else None for i in range(len(given))]

        return found, gradient

    return results
