"""optax' losses: read from functions as calls, built from calls, and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.functions import Losses, read_function, with_arguments
from unifiedloss.interop.library_loss import Call

_FUNCTIONS = Losses("optax", optax)

TENSORS = jax.Array
"""The type of the tensors that optax' losses take unchanged."""


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call of a function of optax with its arguments; None for anything else."""
    return read_function(_FUNCTIONS, obj, arguments)


def build(call: Call) -> Callable[..., Any]:
    """The function, with the arguments of the call bound if there are any."""
    return with_arguments(_FUNCTIONS[call.name], call.arguments)


def accepted(_: Call, predictions: Any, targets: Any) -> tuple[Any, Any]:
    """The predictions and targets as JAX holds them: without 64 bits unless x64 is enabled."""
    return jnp.asarray(predictions), jnp.asarray(targets)


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value of optax' loss and the gradient of its sum, as NumPy arrays.

    The gradient is with respect to the predictions. `given` is the function that the call was read
    from; without it, `build` makes the function.
    """
    if sample_weight is not None:
        msg = f"{call.name} takes no sample weights; multiply the losses it returns."
        raise UnsupportedError(msg)
    function = build(call) if given is None else given
    labels = jnp.asarray(targets)
    value, pullback = jax.vjp(lambda x: function(x, labels), jnp.asarray(predictions))
    (gradient,) = pullback(jnp.ones_like(value))
    return np.asarray(value), np.asarray(gradient)
