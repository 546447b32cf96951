"""JAX's own kernels, one per loss."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from unifiedloss.adapters.jax import ops


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    # Both terms are shifted, because log_sum_exp(z) - z_y loses all digits to a large common offset
    # (optax#1792; test_large_common_offset). Not take(jax.nn.log_softmax(z), y) either, for which
    # XLA writes all log-probabilities to memory to read one per row.
    largest = lax.stop_gradient(jnp.max(logits, axis, keepdims=True))
    total = jnp.sum(jnp.exp(logits - largest), axis)
    return jnp.log(total) - (ops.take_class(logits, labels, axis) - jnp.squeeze(largest, axis))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax(logits: Array, axis: int) -> Array:
    return jax.nn.log_softmax(logits, axis)


@log_softmax.defjvp
@ops.in_own_width
def _log_softmax_jvp(
    axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """The derivative of jax.nn.log_softmax, computed from its result; that runs twice as fast."""
    log_p = log_softmax(primals[0], axis)
    (tangent,) = tangents
    return log_p, tangent - jnp.sum(jnp.exp(log_p) * tangent, axis, keepdims=True)


def softmax(logits: Array, axis: int) -> Array:
    return jax.nn.softmax(logits, axis)


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    # A third of the cost of jax.nn.softplus, which is a logaddexp of two arguments. The derivative
    # is given below, because that of this formula is 0 at 0: JAX takes 1/2 as the slope of the
    # maximum there, and 1 as that of the absolute value (test_binary_gradient_at_zero).
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
@ops.in_own_width
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _softplus(*primals), tangents[0] * jax.nn.sigmoid(*primals)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    positive = targets if pos_weight is None else targets * pos_weight
    return positive * _softplus(-logits) + (1.0 - targets) * _softplus(logits)


def squared_error(predictions: Array, targets: Array) -> Array:
    return jnp.square(predictions - targets)
