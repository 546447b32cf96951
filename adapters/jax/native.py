"""JAX's own kernels, one per loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    log_p = jax.nn.log_softmax(logits, axis)
    taken = jnp.take_along_axis(log_p, jnp.expand_dims(labels, axis), axis, mode="promise_in_bounds")
    return -jnp.squeeze(taken, axis)


def log_softmax(logits: Array, axis: int) -> Array:
    return jax.nn.log_softmax(logits, axis)


def softmax(logits: Array, axis: int) -> Array:
    return jax.nn.softmax(logits, axis)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    positive = targets if pos_weight is None else targets * pos_weight
    return positive * jax.nn.softplus(-logits) + (1.0 - targets) * jax.nn.softplus(logits)


def squared_error(predictions: Array, targets: Array) -> Array:
    return jnp.square(predictions - targets)
