"""The calls of a loss and its derivatives, in each framework and mode, for `ways`.

A method of a caller takes a spec and tensors, and returns a call without arguments. Compilers run
in the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Call = Callable[[], Any]

DERIVATIVES = {
    "second derivative": "second",
    "forward mode": "forward",
    "gradient to targets": "to_targets",
}
"""The titles of the derivatives beside the first to the predictions, and the methods."""


class NumPyCaller:
    """NumPy, which has the gradient alone."""

    def __init__(self, mode: str) -> None:
        del mode

    def tensors(self, arrays: list[Any], dtype: str) -> list[Any]:
        """Predictions in a dtype, targets, sample weights and the upstream gradient."""
        import ml_dtypes

        z, *others = arrays
        return [z.astype(getattr(ml_dtypes, dtype, None) or dtype), *others]

    def gradient(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The loss and its gradient."""
        return lambda: spec.value_and_grad(z, y, sample_weight=w, upstream=u)


class TorchCaller:
    """PyTorch, eager or compiled by inductor."""

    def __init__(self, mode: str) -> None:
        self.compiled = mode == "compiled"

    def tensors(self, arrays: list[Any], dtype: str) -> list[Any]:
        """See `NumPyCaller`."""
        import torch

        z, *others = (None if x is None else torch.from_numpy(np.asarray(x)) for x in arrays)
        return [z.to(getattr(torch, dtype)), *others]

    def _run(self, spec: Any) -> Callable[..., Any]:
        import torch

        # A function for each call, because dynamo keeps its programs by function.
        def loss(z: Any, y: Any, w: Any) -> Any:
            return spec(z, y, sample_weight=w)

        return torch.compile(loss) if self.compiled else loss

    def gradient(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The loss and its gradient."""
        import torch

        loss, leaf = self._run(spec), z.clone().requires_grad_()

        def call() -> Any:
            value = loss(leaf, y, w)
            return torch.autograd.grad(value, leaf, None if u is None else u.to(value.dtype))

        return call

    def second(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The Hessian times a vector."""
        import torch

        del u
        loss, leaf, v = self._run(spec), z.clone().requires_grad_(), torch.randn_like(z)

        def call() -> Any:
            (slope,) = torch.autograd.grad(loss(leaf, y, w), leaf, create_graph=True)
            return torch.autograd.grad(slope, leaf, v)

        return call

    def forward(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The derivative along a vector."""
        import torch

        del u
        v = torch.randn_like(z)

        def along(z: Any, v: Any) -> Any:
            return torch.func.jvp(lambda x: spec(x, y, sample_weight=w), (z,), (v,))

        run = torch.compile(along) if self.compiled else along
        return lambda: run(z, v)

    def to_targets(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The gradients to the predictions and to the targets."""
        import torch

        del u
        loss, leaves = self._run(spec), [x.clone().requires_grad_() for x in (z, y)]
        return lambda: torch.autograd.grad(loss(*leaves, w), leaves)


class TensorFlowCaller:
    """TensorFlow: eager, in a tf.function, or compiled by XLA."""

    def __init__(self, mode: str) -> None:
        self.mode = mode

    def tensors(self, arrays: list[Any], dtype: str) -> list[Any]:
        """See `NumPyCaller`."""
        import tensorflow as tf

        z, *others = (None if x is None else tf.constant(x) for x in arrays)
        return [tf.cast(z, dtype), *others]

    def _run(self, function: Callable[..., Any], *given: Any, unknown: bool = False) -> Call:
        import tensorflow as tf

        if self.mode == "eager":
            return lambda: function(*given)
        forms = [
            tf.TensorSpec((None if unknown else x.shape[0], *x.shape[1:]), x.dtype) for x in given
        ]
        run = tf.function(function, input_signature=forms, jit_compile=self.mode == "xla")
        return lambda: run(*given)

    def gradient(self, spec: Any, z: Any, y: Any, w: Any, u: Any, *, unknown: bool = False) -> Call:
        """The loss and its gradient."""
        import tensorflow as tf

        def both(z: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(z)
                value = spec(z, y, sample_weight=w)
            return value, tape.gradient(value, z, None if u is None else tf.cast(u, value.dtype))

        return self._run(both, z, y, unknown=unknown)

    def unknown_batch(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """`gradient`, traced for any number of rows."""
        return self.gradient(spec, z, y, w, u, unknown=True)

    def second(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The Hessian times a vector."""
        import tensorflow as tf

        del u
        v = tf.random.normal(z.shape)

        def product(z: Any, y: Any) -> Any:
            with tf.GradientTape() as outer:
                outer.watch(z)
                with tf.GradientTape() as tape:
                    tape.watch(z)
                    value = spec(z, y, sample_weight=w)
                slope = tape.gradient(value, z)
            return outer.gradient(slope, z, v)

        return self._run(product, z, y)

    def forward(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The derivative along a vector."""
        import tensorflow as tf

        del u
        v = tf.random.normal(z.shape)

        def along(z: Any, y: Any) -> Any:
            with tf.autodiff.ForwardAccumulator(z, v) as tangents:
                value = spec(z, y, sample_weight=w)
            return tangents.jvp(value)

        return self._run(along, z, y)

    def to_targets(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The gradients to the predictions and to the targets."""
        import tensorflow as tf

        del u

        def both(z: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch([z, y])
                value = spec(z, y, sample_weight=w)
            return tape.gradient(value, [z, y])

        return self._run(both, z, y)


class JAXCaller:
    """JAX, under jit."""

    def __init__(self, mode: str) -> None:
        del mode

    def tensors(self, arrays: list[Any], dtype: str) -> list[Any]:
        """See `NumPyCaller`."""
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", dtype == "float64")
        z, *others = (None if x is None else jnp.asarray(x) for x in arrays)
        return [z.astype(dtype), *others]

    def _run(self, function: Callable[..., Any], *given: Any) -> Call:
        import jax

        run = jax.jit(function)
        return lambda: jax.block_until_ready(run(*given))

    def gradient(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The loss and its gradient."""
        import jax

        def both(z: Any, y: Any) -> Any:
            value, back = jax.vjp(lambda x: spec(x, y, sample_weight=w), z)
            above = jax.numpy.ones_like(value) if u is None else jax.numpy.asarray(u, value.dtype)
            return value, back(above)

        return self._run(both, z, y)

    def second(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The Hessian times a vector."""
        import jax

        del u
        v = jax.random.normal(jax.random.key(0), z.shape, z.dtype)

        def product(z: Any, y: Any) -> Any:
            slope = jax.grad(lambda x: spec(x, y, sample_weight=w))
            return jax.vjp(slope, z)[1](v)

        return self._run(product, z, y)

    def forward(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The derivative along a vector."""
        import jax

        del u
        v = jax.random.normal(jax.random.key(0), z.shape, z.dtype)
        return self._run(
            lambda z, y: jax.jvp(lambda x: spec(x, y, sample_weight=w), (z,), (v,)), z, y
        )

    def to_targets(self, spec: Any, z: Any, y: Any, w: Any, u: Any) -> Call:
        """The gradients to the predictions and to the targets."""
        import jax

        del u
        return self._run(jax.grad(lambda z, y: spec(z, y, sample_weight=w), (0, 1)), z, y)


CALLERS: dict[str, Callable[[str], Any]] = {
    "numpy": NumPyCaller,
    "torch": TorchCaller,
    "tensorflow": TensorFlowCaller,
    "jax": JAXCaller,
}
