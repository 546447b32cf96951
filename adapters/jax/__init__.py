"""The JAX adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from math import isnan
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.jax import native, objects, ops
from unifiedloss.errors import UnsupportedError
from unifiedloss.spec import AnyLoss

_CONCRETE = type(jnp.zeros(()))
"""The class of arrays with values. Everything else that is a jax.Array is traced."""

_WIDE = frozenset(map(np.dtype, ("int64", "uint64", "float64")))
"""The dtypes JAX has only where x64 is enabled."""

# jax.enable_x64 is new in JAX 0.8; before it lived among the experimental things.
_enable_x64: Callable[[bool], AbstractContextManager[None]] = (
    jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
)


class JaxAdapter(Adapter):
    """Carries plans out with ``jax.nn`` and ``jax.numpy``, each spec compiled once per shapes and dtypes.

    Bad values are told from the result: what the compiled loss makes of them is NaN, and only a NaN is looked into. So an eager call
    is one compiled call and reading one number, and the same program serves under tracing.

    Where x64 is off, 64-bit companions (labels, float64 targets, Python lists) are still read as they are: NumPy arrays are handed to the
    compiled function within ``jax.enable_x64``.
    """

    name = "jax"
    tensor_type = Array
    ops = ops
    native = native

    def version(self) -> str:
        return jax.__version__

    def dtype_name(self, dtype: Any) -> str:
        name: str = dtype.name
        return name

    def convert(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        with _enable_x64(True):
            return jax.device_put(_native_order(x), reference.sharding if type(reference) is _CONCRETE else None)

    def admit(self, x: np.ndarray[Any, Any], reference: Array | None) -> Any:
        return _native_order(x)

    def readable(self, *tensors: Any) -> bool:
        return all(
            x is None or isinstance(x, np.ndarray) or (type(x) is _CONCRETE and _on_cpu(x.sharding)) for x in tensors
        )

    def to_numpy(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def loss(
        self,
        spec: AnyLoss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Array:
        if type(predictions) is not _CONCRETE or type(targets) is not _CONCRETE or not sample_weight is mask is None:
            predictions, targets, sample_weight, mask = self.own(predictions, targets, sample_weight, mask)
            with self._wide_enough(spec, predictions, targets, sample_weight, mask):
                value: Array = _loss(spec, predictions, targets, sample_weight, mask)
        else:
            value = _loss(spec, predictions, targets, None, None)
        if _shows_nan(value):
            self._find_reason(spec, predictions, targets, sample_weight, mask)
        return value

    def value_and_grad(
        self,
        spec: AnyLoss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        upstream: Any = None,
    ) -> tuple[Array, Array]:
        predictions, targets, sample_weight, mask = self.own(predictions, targets, sample_weight, mask)
        if upstream is not None and not isinstance(upstream, Array):
            upstream = _native_order(np.asarray(upstream))
        with self._wide_enough(spec, predictions, targets, sample_weight, mask, upstream):
            value, gradient = _value_and_grad(spec, predictions, targets, sample_weight, mask, upstream)
        if _shows_nan(value):
            self._find_reason(spec, predictions, targets, sample_weight, mask)
        return value, gradient

    def softmax(self, logits: Any, axis: int | None) -> Array:
        (logits,) = self.own(logits)
        with _wide_enough(logits):
            probabilities: Array = _softmax(axis, logits)
        return probabilities

    def _wide_enough(self, spec: AnyLoss, *tensors: Any) -> AbstractContextManager[None]:
        if not _needs_x64(*tensors):
            return nullcontext()
        self.plan(spec, *tensors[:4])  # says what is wrong with the call before it is refused for being too wide
        return _wide_enough(*tensors)

    def _find_reason(self, spec: AnyLoss, *tensors: Any) -> None:
        """Raise where a bad value is why the loss is NaN."""
        if self.readable(*tensors):
            self._check(self.plan(spec, *tensors), *tensors)

    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        value, pull_back = jax.vjp(function, *tensors)
        upstream = jnp.ones_like(value) if upstream is None else upstream.astype(value.dtype)
        return value, pull_back(upstream)

    def bind(self, spec: AnyLoss) -> objects.LossFunction:
        return objects.LossFunction(spec)

    def modes(self) -> dict[str, Mode]:
        return {
            "eager": Mode(_in_x64(lambda function, *tensors: function(*tensors)), raises=True),
            "jit": Mode(_in_x64(lambda function, *tensors: jax.jit(function)(*tensors)), raises=False),
            "vmap": Mode(_in_x64(_mapped), raises=False),
        }


# One program per spec, shapes and dtypes. Within another trace it is inlined: the outer program then holds our operations, not a call.


@partial(jax.jit, static_argnums=0, inline=True)
def _loss(spec: AnyLoss, predictions: Array, targets: Array, sample_weight: Array | None, mask: Array | None) -> Array:
    with _wide_enough(predictions, targets, sample_weight, mask):
        plan = ADAPTER.plan(spec, predictions, targets, sample_weight, mask)
        return ADAPTER.compute(plan, predictions, targets, sample_weight, mask, checked=False)


@partial(jax.jit, static_argnums=0, inline=True)
def _value_and_grad(
    spec: AnyLoss,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Array | None,
) -> tuple[Array, Array]:
    value, pull_back = jax.vjp(lambda p: _loss(spec, p, targets, sample_weight, mask), predictions)
    (gradient,) = pull_back(jnp.ones_like(value) if upstream is None else upstream.astype(value.dtype))
    return value, gradient


@partial(jax.jit, static_argnums=0, inline=True)
def _softmax(axis: int | None, logits: Array) -> Array:
    with _wide_enough(logits):
        return Adapter.softmax(ADAPTER, logits, axis)


def _needs_x64(*tensors: Any) -> bool:
    return any(x is not None and x.dtype in _WIDE for x in tensors) and not jax.config.jax_enable_x64


def _wide_enough(predictions: Array, *companions: Any) -> AbstractContextManager[None]:
    """Where x64 is off and a tensor has 64 bits, the context in which JAX computes with them; so the inputs are read exactly."""
    if not _needs_x64(predictions, *companions):
        return nullcontext()
    if predictions.dtype == np.float64:
        msg = (
            "predictions are float64, which JAX computes with only where x64 is enabled; "
            "cast them to float32, or set jax.config.update('jax_enable_x64', True)."
        )
        raise UnsupportedError(msg)
    return _enable_x64(True)


def _native_order(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _shows_nan(value: Array) -> bool:
    """Whether a loss that can be read now holds NaN."""
    if type(value) is not _CONCRETE or not _on_cpu(value.sharding):
        return False
    if value.shape:
        return bool(np.isnan(np.asarray(value)).any())
    return isnan(value)


@lru_cache(maxsize=256)
def _on_cpu(sharding: jax.sharding.Sharding) -> bool:
    return sharding.is_fully_addressable and all(device.platform == "cpu" for device in sharding.device_set)


def _mapped(function: Callable[..., Any], *tensors: Any) -> Any:
    """Two copies at once, of which the first is looked at."""
    with _enable_x64(True):  # stacking must not narrow what is stacked
        stacked = jax.tree.map(lambda x: jnp.stack([x, x]), tensors)
    return jax.tree.map(lambda x: x[0], jax.jit(jax.vmap(function))(*stacked))


def _in_x64(run: Callable[..., Any]) -> Callable[..., Any]:
    """For float64 predictions x64 is enabled, as their user has it; for others it stays as it is."""

    def enabled(function: Callable[..., Any], *tensors: Any) -> Any:
        with _enable_x64(True) if tensors and tensors[0].dtype == np.float64 else nullcontext():
            return run(function, *tensors)

    return enabled


ADAPTER = JaxAdapter()
