"""The TensorFlow adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar

import tensorflow as tf
from tensorflow.python.saved_model import save_context  # no public function says who saves

from unifiedloss import values
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.tensorflow import (
    callback,
    direct,
    exact,
    further,
    kernels,
    objects,
    ops,
    shapes,
)
from unifiedloss.auto_rounding import Setting
from unifiedloss.autograph import no_autograph
from unifiedloss.errors import DTypeError, UnknownTensorError
from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.spec import Loss

if TYPE_CHECKING:
    import numpy as np

Tensor = Any

_COMPOSITES = (tf.RaggedTensor, tf.SparseTensor, tf.IndexedSlices)


class TensorFlowAdapter(Adapter):
    """Carry out plans with ``tf.nn``, eagerly, in ``tf.function`` and under XLA."""

    name = "tensorflow"
    tensor_type = (tf.Tensor, tf.Variable)
    ops: ClassVar[Any] = ops
    kernels: ClassVar[Any] = kernels

    def version(self) -> str:
        return str(tf.__version__)

    def dtype_name(self, dtype: Any) -> str:
        return str(dtype.name)

    def shape(self, x: Tensor) -> tuple[int | None, ...] | None:
        return None if x.shape.rank is None else tuple(x.shape)

    def convert(self, x: np.ndarray[Any, Any], reference: Tensor | None) -> Tensor:
        try:
            return tf.convert_to_tensor(x.astype(x.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError) as error:
            msg = f"TensorFlow has no tensors for a NumPy array of dtype {x.dtype}; cast it."
            raise DTypeError(msg) from error

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        tensors = super().to_tensors(predictions, *companions)
        return tuple(tf.convert_to_tensor(x) if isinstance(x, tf.Variable) else x for x in tensors)

    def _as_tensor(self, name: str, x: Any, reference: Tensor | None, list_dtype: Any) -> Tensor:
        if isinstance(x, _COMPOSITES):
            msg = (
                f"a dense tensor is needed, got {type(x).__name__}; convert it, "
                "and pass a mask for the positions it does not have."
            )
            raise UnknownTensorError(msg)
        return super()._as_tensor(name, x, reference, list_dtype)

    def readable(self, *tensors: Tensor | None) -> bool:
        if not tf.executing_eagerly():
            return False
        for x in tensors:  # noqa: SIM110 - all(...) with a generator takes three times as long
            if x is not None and "CPU" not in x.device:
                return False
        return True

    def to_numpy(self, x: Tensor) -> np.ndarray[Any, Any]:
        return ops.to_numpy(tf.convert_to_tensor(x))

    def stored(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        if not callback.compiles():
            return tensors
        return tuple(
            ops.stored(x) if x is not None and x.dtype.name in FORMATS else x for x in tensors
        )

    @no_autograph
    def setting(self, *tensors: Tensor | None) -> Setting:
        devices = [x.device for x in tensors if isinstance(x, tf.Tensor)]
        on_host = all(not device or "CPU" in device for device in devices)
        if tf.executing_eagerly():
            mode = "eager"
        elif save_context.in_save_context():
            mode = "export"
        else:
            mode = "xla" if callback.compiles() else "graph"
        return Setting(self.name, "cpu" if on_host else "accelerator", mode)

    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Tensor:
        if divisor is not None:
            return super().loss(spec, predictions, targets, sample_weight, mask, divisor)
        if further.is_nested(predictions, targets, sample_weight):
            whole = self._whole_loss(spec, predictions, targets, sample_weight, mask)
            if whole is not None:
                return whole
        if (
            sample_weight is None
            and mask is None
            and isinstance(predictions, tf.Tensor)
            and isinstance(targets, tf.Tensor)
            and self.readable(predictions, targets)
        ):
            plan = self.plan(spec, predictions, targets, None, None)
            if plan.exact:
                exact_loss = direct.loss(plan, predictions, targets)
                if exact_loss is not None:
                    return exact_loss
            elif plan.fused and values.trivially_valid(plan, None, ops.view(targets)):
                loss = kernels.checked_loss(plan, predictions, targets)
                # The native kernels give NaN at infinite logits, where the loss is defined. The
                # pipeline handles them.
                if isfinite(loss):
                    return loss
        return super().loss(spec, predictions, targets, sample_weight, mask)

    def _whole_loss(self, spec: Loss, *tensors: Any) -> Tensor | None:
        """The loss of a call under nested ForwardAccumulators; None if it is exact."""
        tensors = self.to_tensors(*tensors)
        if self.plan(spec, *tensors).exact:
            return None
        loss = further.NativeLoss(spec, tuple(x is not None for x in tensors))
        given = [x for x in tensors if x is not None]
        return further.whole(loss, lambda: Adapter.loss(self, spec, *tensors), given)

    def compute(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        *,
        checked: bool,
    ) -> Tensor:
        if plan.fused and not checked:
            return kernels.unchecked_loss(plan, predictions, targets)
        return super().compute(plan, predictions, targets, sample_weight, mask, checked=checked)

    def exact(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        divisor: Any = None,
    ) -> Tensor:
        tensors = predictions, targets, sample_weight, mask
        return exact.loss(plan, *tensors, *_constants(divisor))

    def exact_value_and_grad(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        upstream: Tensor | None,
        divisor: Any = None,
    ) -> tuple[Tensor, Tensor]:
        tensors = predictions, targets, sample_weight, mask
        if upstream is None:
            shape: Any = plan.positions if plan.spec.reduction == "none" else ()
            upstream = tf.ones(shape, plan.result_dtype)
        return exact.value_and_grad(plan, *tensors, *_constants(divisor), upstream)

    def on_host(self, job: Any, *tensors: Tensor | None) -> Tensor:
        return exact.on_host(job, tensors)

    def _resolve(self, spec: Loss, *tensors: Tensor | None) -> Plan:
        plan = super()._resolve(spec, *tensors)
        if plan.label_smoothing:  # TensorFlow's kernels have no label smoothing
            return replace(plan, fused=False)
        # TensorFlow's kernel also takes int32 labels, so they fuse where int64 labels would.
        if plan.kind == "index" and plan.targets_dtype == "int32" and plan.plain:
            signature = self.signature(tensors[0])
            return replace(
                plan, fused=resolve(spec, signature, Signature(plan.positions, "int64")).fused
            )
        return plan

    def differentiate(
        self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], upstream: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        leaves = [tf.convert_to_tensor(x) for x in tensors]
        with tf.GradientTape() as tape:
            for x in leaves:
                if x.dtype.is_floating:  # TensorFlow warns about watched integers
                    tape.watch(x)
            value = function(*leaves)
        if upstream is not None:
            upstream = shapes.shaped_like(value, tf.cast(upstream, value.dtype))
        # ZERO, because the value may not depend on a leaf: an empty mean is a constant.
        gradients = tape.gradient(value, leaves, upstream, tf.UnconnectedGradients.ZERO)
        return value, tuple(tf.convert_to_tensor(x) for x in gradients)

    def bind(self, spec: Loss) -> objects.LossFunction:
        return objects.LossFunction(spec, self)

    def modes(self) -> dict[str, Mode]:
        return {
            "eager": Mode(lambda function, *tensors: function(*tensors), raises=True),
            "function": Mode(_traced(jit_compile=False), raises=False),
            "xla": Mode(_traced(jit_compile=True), raises=False, exact=False),
        }


def _constants(divisor: Any) -> list[Tensor]:
    """The divisor, if one is given, through which no gradient passes."""
    return [] if divisor is None else [tf.stop_gradient(tf.convert_to_tensor(divisor))]


def _traced(*, jit_compile: bool) -> Callable[..., Any]:
    def run(function: Callable[..., Any], *tensors: Tensor) -> Any:
        # Call the concrete function, because TensorFlow takes a new tf.function at every run for
        # retracing and warns.
        traced = tf.function(function, autograph=False, jit_compile=jit_compile or None)
        return traced.get_concrete_function(*tensors)(*tensors)

    return run


ADAPTER = TensorFlowAdapter()
