"""The JAX adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from math import isnan
from typing import Any, ClassVar

import jax
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from unifiedloss import values
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.jax import evaluation, exact, kernels, native, objects, ops, rows
from unifiedloss.auto_rounding import Setting
from unifiedloss.errors import UnsupportedError
from unifiedloss.floats import FORMATS
from unifiedloss.inputs import Inputs
from unifiedloss.plan import Plan, check_upstream
from unifiedloss.spec import Loss

_WIDE = frozenset(map(np.dtype, ("int64", "uint64", "float64")))
"""The dtypes that JAX supports only if x64 is enabled."""

_FEW = 4096
"""Up to this many predictions, waiting for the loss costs less than checking the targets."""

_AS_IT_IS = nullcontext()

_WITH_VALUES: set[type] = set()
"""The classes of arrays that are not traced, collected as calls bring them.

JAX has no public name for them, and isinstance takes four times as long as a look-up here.
"""


class JaxAdapter(Adapter):
    """Carry out plans with ``jax.nn`` and ``jax.numpy``, compiled once per spec, shapes and dtypes.

    Eager calls and traced calls run the same program, in which a bad value makes its position NaN.
    If the values can be read, they are checked while the program runs. In a small call they are
    checked only if the loss is NaN.

    Companions of 64 bits (labels, float64 targets, Python lists) are read exactly also if x64 is
    off: they stay NumPy arrays until the compiled function, which is called within
    ``jax.enable_x64``.
    """

    name = "jax"
    tensor_type = Array
    ops: ClassVar[Any] = ops
    kernels: ClassVar[Any] = kernels

    def computes_in(self, dtype: str) -> bool:
        return dtype != "float64" or jax.config.jax_enable_x64  # type: ignore[attr-defined]

    def version(self) -> str:
        return jax.__version__

    def dtype_name(self, dtype: Any) -> str:
        name: str = dtype.name
        return name

    def convert(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        place = reference.sharding if reference is not None and _has_values(reference) else None
        if isinstance(place, NamedSharding):  # its axes are those of the reference
            place = NamedSharding(place.mesh, PartitionSpec())
        with ops.x64():
            return jax.device_put(_native_order(x), place)

    def tensor(self, x: np.ndarray[Any, Any], dtype: str | None = None) -> Array:
        with ops.x64():
            return super().tensor(x, dtype)

    def keep_numpy(self, x: np.ndarray[Any, Any], reference: Array | None) -> Any:
        return _native_order(x)

    def readable(self, *tensors: Any) -> bool:
        for x in tensors:
            if not (
                x is None
                or (_has_values(x) and (_only_cpu() or _on_cpu(x.sharding)))
                or isinstance(x, np.ndarray)
            ):
                return False
        return True

    def to_numpy(self, x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(x)

    def stored(self, *tensors: Any) -> tuple[Any, ...]:
        return ops.all_stored(tensors)

    def shape(self, x: Any) -> tuple[int | None, ...]:
        shape: tuple[int, ...] = x.shape
        if all(type(extent) is int for extent in shape):
            return shape
        # Any other extent is a symbol of jax.export.
        return tuple(extent if type(extent) is int else None for extent in shape)

    def compute(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        *,
        checked: bool,
    ) -> Array:
        inputs = Inputs(predictions, targets, sample_weight, mask)
        return native.compute(plan, inputs, checked=checked)

    def native_totals(self, plan: Plan, inputs: Inputs, *, mean: bool, checked: bool) -> Array:
        del checked  # one program for traced and untraced calls
        with ops.x64():
            summed: Array = _totals(plan, mean, *inputs)
        return summed

    def native_divisor(self, plan: Plan, inputs: Inputs, *, checked: bool) -> Array:
        del checked
        with ops.x64():
            divisor: Array = _divisor(plan, *inputs[1:])
        return divisor

    def wide(self, x: Any) -> str:
        return "float64" if jax.config.jax_enable_x64 else "float32"  # type: ignore[attr-defined]

    def around(self, *tensors: Any) -> AbstractContextManager[None]:
        wide = any(x is not None and x.dtype.itemsize == 8 for x in tensors)
        return ops.x64() if wide else _AS_IT_IS

    def exact(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        divisor: Any = None,
    ) -> Array:
        tensors = predictions, targets, sample_weight, mask
        with wide_enough(*tensors, divisor):
            return exact.loss(plan, *tensors, _constant(divisor))

    def exact_value_and_grad(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        upstream: Array | None,
        divisor: Any = None,
    ) -> tuple[Array, Array]:
        tensors = predictions, targets, sample_weight, mask, upstream
        with wide_enough(*tensors, divisor):
            return exact.value_and_grad(plan, *tensors, _constant(divisor))

    def on_host(self, job: Any, *tensors: Any) -> Array:
        return evaluation.on_host(job, *tensors)

    def setting(self, *tensors: Any) -> Setting:
        given = [x for x in tensors if isinstance(x, Array)]
        traced = any(isinstance(x, Tracer) for x in given)
        if traced or _only_cpu():
            on_host = jax.default_backend() == "cpu"
        else:
            on_host = all(_on_cpu(x.sharding) for x in given)
        device, mode = "cpu" if on_host else "accelerator", "jit" if traced else "eager"
        return Setting(self.name, device, mode)

    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Array:
        if divisor is not None:
            return super().loss(spec, predictions, targets, sample_weight, mask, divisor)
        if not _is_own(predictions, targets, sample_weight, mask):
            predictions, targets, sample_weight, mask = self.to_tensors(
                predictions, targets, sample_weight, mask
            )
        elif _is_small(plan := self.plan(spec, predictions, targets, None, None)):
            small: Array = native.loss(plan, predictions, targets, None, None)
            if not isnan(np.asarray(small.block_until_ready())):
                return small
        predictions = read_in(getattr(spec, "dtype", None), predictions)
        plan = self.plan(spec, predictions, targets, sample_weight, mask)
        if plan.exact:
            self._look(plan, predictions, targets, sample_weight, mask)
            return self.exact(plan, predictions, targets, sample_weight, mask)
        predictions, targets, sample_weight, mask = self.stored(
            predictions, targets, sample_weight, mask
        )
        with wide_enough(predictions, targets, sample_weight, mask):
            value: Array = native.loss(plan, predictions, targets, sample_weight, mask)
        self._look(plan, predictions, targets, sample_weight, mask)
        return value

    def value_and_grad(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        upstream: Any = None,
        divisor: Any = None,
    ) -> tuple[Array, Array]:
        if divisor is not None:
            return super().value_and_grad(
                spec, predictions, targets, sample_weight, mask, upstream, divisor
            )
        if not (
            _is_own(predictions, targets, sample_weight, mask)
            and (upstream is None or type(upstream) is float)
        ):
            tensors = self.to_tensors(predictions, targets, sample_weight, mask, upstream)
            predictions, targets, sample_weight, mask, upstream = tensors
        elif upstream is not None:
            upstream = np.asarray(upstream)
        elif _is_small(plan := self.plan(spec, predictions, targets, None, None)):
            value, gradient = native.value_and_grad(plan, predictions, targets, None, None, None)
            if not isnan(np.asarray(value.block_until_ready())):
                return value, gradient
        predictions = read_in(getattr(spec, "dtype", None), predictions)
        plan = self.plan(spec, predictions, targets, sample_weight, mask)
        if upstream is not None:
            check_upstream(plan, self.signature(upstream))
        if plan.exact:
            self._look(plan, predictions, targets, sample_weight, mask)
            return self.exact_value_and_grad(
                plan, predictions, targets, sample_weight, mask, upstream
            )
        predictions, targets, sample_weight, mask = self.stored(
            predictions, targets, sample_weight, mask
        )
        with wide_enough(predictions, targets, sample_weight, mask, upstream):
            value, gradient = native.value_and_grad(
                plan, predictions, targets, sample_weight, mask, upstream
            )
        self._look(plan, predictions, targets, sample_weight, mask)
        return value, gradient

    def softmax(self, logits: Any, axis: int | None) -> Array:
        (logits,) = self.to_tensors(logits)
        with wide_enough(logits):
            probabilities: Array = _softmax(axis, logits)
        return probabilities

    def _look(
        self, plan: Plan, predictions: Any, targets: Any, sample_weight: Any, mask: Any
    ) -> None:
        """Raise for the first bad value, if values can be read now. The program runs meanwhile."""
        if (
            plan.kind == "real"
            and sample_weight is None
            and plan.spec.on_empty != "error"
            and plan.targets_dtype in FORMATS
        ):
            return  # no value is bad
        if not self.readable(predictions, targets, sample_weight, mask):
            return
        # Only the shape of logits is needed, so do not block on their computation.
        reads = plan.probabilities
        values.check(
            plan,
            np.asarray(predictions) if reads else predictions,
            np.asarray(targets),
            None if sample_weight is None else np.asarray(sample_weight),
            None if mask is None else np.asarray(mask),
        )

    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        value, pull_back = jax.vjp(function, *tensors)
        return value, pull_back(native.typed_as(value, upstream))

    def bind(self, spec: Loss) -> objects.LossFunction:
        return objects.LossFunction(spec)

    def modes(self) -> dict[str, Mode]:
        return {
            "eager": Mode(_in_x64(lambda function, *tensors: function(*tensors)), raises=True),
            # An eager call is a compiled program too, and its eager differentiation compiles each
            # step of the backward pass. So this mode runs all cases in less time.
            "jit": Mode(
                _in_x64(lambda function, *tensors: jax.jit(function)(*tensors)),
                raises=False,
                complete=True,
            ),
            "vmap": Mode(_in_x64(_mapped), raises=False),
        }


# These are programs as those of `native`.


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _totals(plan: Plan, mean: bool, *tensors: Any) -> Array:
    inputs = rows.beside(plan, Inputs(*tensors))
    return Adapter.native_totals(ADAPTER, plan, inputs, mean=mean, checked=False)


@partial(jax.jit, static_argnums=0, inline=True)
def _divisor(plan: Plan, *tensors: Any) -> Array:
    return Adapter.native_divisor(ADAPTER, plan, Inputs(None, *tensors), checked=False)


@partial(jax.jit, static_argnums=0, inline=True)
def _softmax(axis: int | None, logits: Array) -> Array:
    return Adapter.softmax(ADAPTER, logits, axis)


def _constant(divisor: Any) -> Any:
    """A divisor, through which no gradient passes."""
    return ops.stop_gradient(divisor) if isinstance(divisor, Tracer) else divisor


def _has_values(x: Any) -> bool:
    """Whether `x` is a JAX array and not a tracer."""
    if type(x) in _WITH_VALUES:
        return True
    found = isinstance(x, Array) and not isinstance(x, Tracer)
    if found:
        _WITH_VALUES.add(type(x))
    return found


def _is_own(predictions: Any, targets: Any, sample_weight: Any, mask: Any) -> bool:
    """Whether these are two untraced JAX arrays and nothing else, checked fast for small calls."""
    return (
        sample_weight is None
        and mask is None
        and type(predictions) in _WITH_VALUES
        and type(targets) in _WITH_VALUES
    )


@lru_cache(maxsize=4096)
def _is_small(plan: Plan) -> bool:
    """Whether it is fastest to look for bad values only if the loss is NaN.

    That holds for few elements on a CPU without 64-bit dtypes, and where bad values make the loss
    NaN.
    """
    wide = {plan.predictions_dtype, plan.targets_dtype} & {dtype.name for dtype in _WIDE}
    few = plan.count is not None and plan.count * (plan.classes or 1) <= _FEW
    fit = plan.kind != "real" and plan.spec.reduction != "none" and not plan.exact
    return fit and few and not wide and _only_cpu()


def read_in(dtype: str | None, predictions: Any) -> Any:
    """Predictions in the dtype that a spec asks to compute in, if x64 is off."""
    if dtype is None or jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return predictions
    if not ADAPTER.computes_in(dtype):
        msg = (
            "dtype='float64' asks for numbers that JAX computes with only where x64 is enabled; "
            "set jax.config.update('jax_enable_x64', True), or leave dtype out."
        )
        raise UnsupportedError(msg)
    return predictions.astype(dtype) if isinstance(predictions, np.ndarray) else predictions


def wide_enough(predictions: Any, *companions: Any) -> AbstractContextManager[None]:
    """The context in which JAX reads these tensors exactly.

    It enables x64 if that is off and a companion has 64 bits.

    Raises:
        UnsupportedError: the predictions are float64 and x64 is off.
    """
    wide = predictions.dtype in _WIDE
    for x in companions:
        wide = wide or (x is not None and x.dtype in _WIDE)
    if not wide or jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return _AS_IT_IS
    if predictions.dtype == np.float64:
        msg = (
            "predictions are float64 (as Python numbers and lists are), and JAX computes in "
            "float64 only where x64 is enabled; cast them to float32, or set "
            "jax.config.update('jax_enable_x64', True)."
        )
        raise UnsupportedError(msg)
    return ops.x64()


def _native_order(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


@lru_cache(maxsize=1)
def _only_cpu() -> bool:
    """Whether all arrays are on the CPUs of one process, so that no sharding need be asked."""
    return jax.process_count() == 1 and jax.default_backend() == "cpu"


@lru_cache(maxsize=256)
def _on_cpu(sharding: jax.sharding.Sharding) -> bool:
    devices: set[Any] = sharding.device_set
    return sharding.is_fully_addressable and all(device.platform == "cpu" for device in devices)


def _mapped(function: Callable[..., Any], *tensors: Any) -> Any:
    """Run two copies of the arguments under vmap and return the first result.

    NumPy stacks the copies and takes the first result, because JAX would compile both per shape.
    """
    with ops.x64():  # so that device_put does not narrow 64-bit arrays
        stacked = [jax.device_put(np.stack([np.asarray(x)] * 2)) for x in tensors]
    found = jax.jit(jax.vmap(function))(*stacked)
    with ops.x64():
        return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[0]), found)


def _in_x64(run: Callable[..., Any]) -> Callable[..., Any]:
    """Enable x64 for float64 predictions, as their user must; leave it as it is for others."""

    def enabled(function: Callable[..., Any], *tensors: Any) -> Any:
        with ops.x64() if tensors and tensors[0].dtype == np.float64 else _AS_IT_IS:
            return run(function, *tensors)

    return enabled


ADAPTER = JaxAdapter()
