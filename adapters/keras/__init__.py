"""The Keras 3 adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Any, ClassVar

import keras
import numpy as np
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.keras import kernels, objects, ops
from unifiedloss.adapters.keras.ops import BACKEND
from unifiedloss.auto_rounding import Setting
from unifiedloss.errors import UnsupportedError
from unifiedloss.evaluator import Evaluator, Terms
from unifiedloss.plan import Plan
from unifiedloss.spec import Loss

Array = Any

_AS_IT_IS = nullcontext()

_BACKEND_TYPES = (
    BACKEND.tensor_type if isinstance(BACKEND.tensor_type, tuple) else (BACKEND.tensor_type,)
)


class KerasAdapter(Adapter):
    """Carry out plans with ``keras.ops``, on the backend that Keras runs on.

    This adapter owns Keras' variables and symbolic tensors. A plain tensor of the backend goes to
    the backend's adapter, unless it comes with a tensor of Keras or the loss was made by
    ``spec.to("keras")``.
    """

    name = "keras"
    tensor_type = (keras.Variable, keras.KerasTensor, *_BACKEND_TYPES)
    ops: ClassVar[Any] = ops
    kernels: ClassVar[Any] = kernels

    differentiates = BACKEND.differentiates

    def version(self) -> str:
        return keras.__version__

    def dtype_name(self, dtype: Any) -> str:
        return dtype if isinstance(dtype, str) else BACKEND.dtype_name(dtype)

    def shape(self, x: Array) -> tuple[int | None, ...] | None:
        return x.shape if isinstance(x, keras.KerasTensor) else BACKEND.shape(x)

    def accepts(self, other: str) -> bool:
        return other in ("numpy", BACKEND.name)

    def convert(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        return BACKEND.convert(x, None if isinstance(reference, keras.KerasTensor) else reference)

    def _is_numeric(self, x: np.ndarray[Any, Any]) -> bool:
        return BACKEND._is_numeric(x)

    def dtypes(self) -> tuple[str, ...]:
        return BACKEND.dtypes()

    def computes_in(self, dtype: str) -> bool:
        return BACKEND.computes_in(dtype)

    def tensor(self, x: np.ndarray[Any, Any], dtype: str | None = None) -> Array:
        return BACKEND.tensor(x, dtype)

    def readable(self, *tensors: Array | None) -> bool:
        # While Keras infers shapes, tensors hold made-up or uninitialized numbers.
        return not in_symbolic_scope() and BACKEND.readable(*tensors)

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return BACKEND.to_numpy(x)

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        tensors = super().to_tensors(_value(predictions), *companions)
        return tuple(map(_value, tensors))

    def stored(self, *tensors: Array | None) -> tuple[Array | None, ...]:
        return BACKEND.stored(*tensors)

    def setting(self, *tensors: Array | None) -> Setting:
        if in_symbolic_scope() or any(isinstance(x, keras.KerasTensor) for x in tensors):
            return Setting(BACKEND.name)
        found: Setting = BACKEND.setting(*tensors)
        return found

    def read_in(self, spec: Loss, predictions: Any) -> Any:
        """Predictions in the dtype that a spec asks for, if the backend cannot hold their own."""
        return predictions

    def around(self, *tensors: Array | None) -> AbstractContextManager[None]:
        """The context to enter to compute with these tensors, predictions first."""
        return _AS_IT_IS

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
            self._refuse_symbolic(predictions, targets, sample_weight, mask, divisor)
            p = self.read_in(spec, predictions)
            with self.around(*self.to_tensors(p, targets, sample_weight, mask)):
                return super().loss(spec, p, targets, sample_weight, mask, _value(divisor))
        tensors = self.to_tensors(self.read_in(spec, predictions), targets, sample_weight, mask)
        for x in tensors:
            if isinstance(x, keras.KerasTensor):
                return objects.LossOperation(spec)(*tensors)
        tensors = self.stored(*tensors)
        plan = self.plan(spec, *tensors)
        checked = self.checked(plan, *tensors)
        with self.around(*tensors):
            if plan.exact:
                return self.exact(plan, *tensors)
            return self.compute(plan, *tensors, checked=checked)

    def exact(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        divisor: Any = None,
    ) -> Array:
        if in_symbolic_scope():
            # Keras asks only for shape and dtype, which are the same as in native mode.
            return self.compute(plan, predictions, targets, sample_weight, mask, checked=False)
        return BACKEND.exact(plan, predictions, targets, sample_weight, mask, divisor)

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
        return BACKEND.exact_value_and_grad(
            plan, predictions, targets, sample_weight, mask, upstream, divisor
        )

    def softmax(self, logits: Any, axis: int | None) -> Array:
        if isinstance(logits, keras.KerasTensor):
            return objects.SoftmaxOperation(axis)(logits)
        return super().softmax(logits, axis)

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
            divisor = _value(divisor)
        p, t, w, m, u = self._with_values(
            self.read_in(spec, predictions), targets, sample_weight, mask, upstream
        )
        with self.around(p, t, w, m):
            return super().value_and_grad(spec, p, t, w, m, u, divisor)

    def _with_values(self, *tensors: Any) -> tuple[Any, ...]:
        self._refuse_symbolic(*tensors)
        return self.to_tensors(*tensors)

    def _refuse_symbolic(self, *tensors: Any) -> None:
        if any(isinstance(x, keras.KerasTensor) for x in tensors):
            msg = (
                "a symbolic Keras tensor has no values: it can be given to a spec, and not to "
                "value_and_grad, totals, divisor_of or divisor=; call these with tensors that have "
                "some, in a training step."
            )
            raise UnsupportedError(msg)

    # The framework below has the same totals, because they are sums of per-position losses.

    def totals(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Array:
        tensors = self._with_values(self.read_in(spec, predictions), targets, sample_weight, mask)
        return BACKEND.totals(spec, *tensors)

    def divisor_of(
        self,
        spec: Loss,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        dtype: Any = "float32",
    ) -> Array:
        self._refuse_symbolic(targets, sample_weight, mask)
        t, w, m = map(_value, (targets, sample_weight, mask))
        return BACKEND.divisor_of(spec, t, w, m, dtype)

    def result(self, spec: Loss, summed: Any) -> Array:
        self._refuse_symbolic(summed)
        return BACKEND.result(spec, _value(summed))

    def wide(self, x: Array) -> str:
        return BACKEND.wide(x)

    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        return BACKEND.differentiate(function, tensors, upstream)

    def divisor_of_replicas(
        self,
        spec: Loss,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        dtype: Any,
    ) -> Array | None:
        """The divisor of the batch of which this call is a part; None if the call is the whole."""
        add_up = self.sum_of_replicas()
        if add_up is None:
            return None
        return add_up(self.divisor_of(spec, targets, sample_weight, mask, dtype))

    def sum_of_replicas(self) -> Callable[[Array], Array] | None:
        """A function that adds up a tensor over all replicas; None if there are no others."""
        return None

    def bind(self, spec: Loss) -> objects.KerasLoss:
        return objects.KerasLoss(spec)

    def bind_global_mean(self, spec: Loss) -> objects.KerasLoss:
        return objects.KerasLoss(spec, global_mean=True)

    def modes(self) -> Mapping[str, Mode]:
        return BACKEND.modes()

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
        if plan.kind == "binary" and not checked:
            # Under tracing, the selects for infinite logits cost twice as much as the loss. The
            # backend's adapter writes them as the backend compiles them best.
            return BACKEND.compute(plan, predictions, targets, sample_weight, mask, checked=False)
        losses = _plain_losses(plan, predictions, targets) if checked and plan.fused else None
        if losses is not None:
            loss = Evaluator(self.ops, self.kernels, plan).reduce(Terms(losses))
            # The plain losses are NaN at infinite logits, where the loss is defined. The pipeline
            # handles them.
            if isfinite(BACKEND.to_numpy(loss)):
                return loss
        return super().compute(plan, predictions, targets, sample_weight, mask, checked=checked)


def _plain_losses(plan: Plan, predictions: Array, targets: Array) -> Array | None:
    """The losses of a call without weights and bad values, right for finite logits alone.

    None for the kinds of loss for which the pipeline needs few selects.
    """
    if plan.kind == "binary":
        return kernels.binary_cross_entropy(predictions, targets, None)
    if plan.kind != "dense" or plan.axis is None:
        return None
    if plan.label_smoothing:
        targets = targets * (1.0 - plan.label_smoothing) + plan.label_smoothing / plan.shared_by
    return kernels.dense_cross_entropy(predictions, targets, plan.axis)


class _KerasOnNumPy(KerasAdapter):
    """The adapter for Keras on NumPy."""

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
        if plan.compute_dtype == "float64":
            # Keras takes NumPy's float64 for Python's float, because the two compare equal, and
            # would compute in float32.
            return BACKEND.compute(plan, predictions, targets, sample_weight, mask, checked=checked)
        with np.errstate(all="ignore"):
            return super().compute(plan, predictions, targets, sample_weight, mask, checked=checked)

    def softmax(self, logits: Any, axis: int | None) -> Array:
        with np.errstate(all="ignore"):
            return super().softmax(logits, axis)

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
        p, t, w, m, u = self._with_values(predictions, targets, sample_weight, mask, upstream)
        # NumPy cannot differentiate Keras' operations, but its adapter has closed-form gradients.
        value, gradient = BACKEND.value_and_grad(spec, p, t, w, m, u)
        exact = self.plan(spec, p, t, w, m).exact
        return (value if exact else self.loss(spec, p, t, w, m)), gradient


class _KerasOnTorch(KerasAdapter):
    """The adapter for Keras on PyTorch; Keras moves all tensors to the device that it is set to."""

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        tensors = super().to_tensors(predictions, *companions)
        return tuple(
            keras.ops.convert_to_tensor(x) if isinstance(x, BACKEND.tensor_type) else x
            for x in tensors
        )

    def sum_of_replicas(self) -> Callable[[Array], Array] | None:
        from unifiedloss.adapters.torch import processes

        others = processes.count() - 1
        if others:
            msg = (
                f"global_mean does not reach the other {others} processes of this group, because "
                "Keras on PyTorch has no collectives; write the training step, and give the spec "
                "divisor=, the all_reduce of spec.divisor_of."
            )
            raise UnsupportedError(msg)
        return None

    def plan(
        self,
        spec: Loss,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> Plan:
        tensors = predictions, targets, sample_weight, mask
        if in_symbolic_scope() or any(isinstance(x, keras.KerasTensor) for x in tensors):
            return super().plan(spec, *tensors)
        # torch.compile would trace this adapter's cache, entry by entry. The torch adapter bypasses
        # its cache under torch.compile.
        return BACKEND.plan(spec, *tensors)


class _KerasOnTensorFlow(KerasAdapter):
    """The adapter for Keras on TensorFlow, where Keras' variables hold TensorFlow's."""

    def sum_of_replicas(self) -> Callable[[Array], Array] | None:
        from unifiedloss.adapters.tensorflow import replicas

        return replicas.add_up()

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        tensors = super().to_tensors(predictions, *companions)
        return tuple(
            BACKEND.to_tensors(x)[0] if isinstance(x, BACKEND.tensor_type) else x for x in tensors
        )


class _KerasOnJAX(KerasAdapter):
    """The adapter for Keras on JAX, which narrows 64-bit dtypes unless x64 is enabled."""

    def read_in(self, spec: Loss, predictions: Any) -> Any:
        from unifiedloss.adapters.jax import read_in

        return read_in(getattr(spec, "dtype", None), predictions)

    def around(self, *tensors: Array | None) -> AbstractContextManager[None]:
        from unifiedloss.adapters.jax import wide_enough

        return wide_enough(*tensors)

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
        p, t, w, m, u = self._with_values(
            self.read_in(spec, predictions), targets, sample_weight, mask, upstream
        )
        with self.around(p, t, w, m):
            # The loss cannot read the values that jax.vjp traces.
            known = spec if divisor is None else spec.summed
            self.checked(self.plan(known, p, t, w, m), p, t, w, m)
        return super().value_and_grad(spec, p, t, w, m, u, divisor)


def _value(x: Any) -> Any:
    """The value of a variable; anything else as it is."""
    return keras.ops.convert_to_tensor(x.value) if isinstance(x, keras.Variable) else x


ADAPTER = {
    "numpy": _KerasOnNumPy,
    "torch": _KerasOnTorch,
    "tensorflow": _KerasOnTensorFlow,
    "jax": _KerasOnJAX,
}.get(BACKEND.name, KerasAdapter)()
