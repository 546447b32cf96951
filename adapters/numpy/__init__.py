"""The NumPy adapter."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unifiedloss import losses, pipeline, values
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.numpy import blocks, exact, kernels, native, objects, ops
from unifiedloss.errors import UnsupportedError
from unifiedloss.evaluator import Evaluator, Terms
from unifiedloss.floats import FORMATS
from unifiedloss.inputs import Inputs
from unifiedloss.plan import Plan, check_upstream
from unifiedloss.spec import Loss

Array = NDArray[Any]


_GRADIENTS = {row.name: losses.part(row.name, "gradient") for row in losses.ROWS}
"""The module of each loss with its closed-form gradient."""


class NumPyAdapter(Adapter):
    """Carry out plans in NumPy, with closed-form gradients."""

    name = "numpy"
    tensor_type = np.ndarray
    ops: ClassVar[Any] = ops
    kernels: ClassVar[Any] = kernels
    differentiates = False

    def dtypes(self) -> tuple[str, ...]:
        try:
            ops.dtype("bfloat16")
        except ModuleNotFoundError:
            return tuple(name for name in FORMATS if name != "bfloat16")
        return tuple(FORMATS)

    def version(self) -> str:
        return np.__version__

    def dtype_name(self, dtype: np.dtype[Any]) -> str:
        return dtype.name

    def convert(self, x: Array, reference: Array | None) -> Array:
        return x

    def readable(self, *tensors: Array | None) -> bool:
        return True

    def to_numpy(self, x: Array) -> Array:
        return x

    def exact(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        divisor: Array | None = None,
    ) -> Array:
        return exact.loss(plan, predictions, targets, sample_weight, mask, divisor)

    def exact_value_and_grad(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        upstream: Array | None,
        divisor: Array | None = None,
    ) -> tuple[Array, Array]:
        tensors = predictions, targets, sample_weight, mask
        return exact.value_and_grad(plan, *tensors, upstream, divisor)

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
        with np.errstate(all="ignore"):
            e = Evaluator(self.ops, self.kernels, plan, checked=checked)
            inputs = Inputs(predictions, targets, sample_weight, mask)
            found = native.evaluate(e, inputs, gradient=False)
            if found is not None:
                return found[0]
            axis = None if _is_rowwise(plan, predictions) else blocks.axis_to_cut(plan, predictions)
            if axis is None:
                result = pipeline.evaluate(e, inputs)
            else:
                result, _ = blocks.evaluate(e, inputs, axis)
        return result[()]  # a reduction gives a NumPy scalar, as np.mean does

    def native_totals(self, plan: Plan, inputs: Inputs, *, mean: bool, checked: bool) -> Array:
        with np.errstate(all="ignore"):
            e = Evaluator(self.ops, self.kernels, plan, checked=checked)
            found = native.totals(e, inputs, mean=mean)
            if found is not None:
                return np.array(found if mean else found[:1], self.wide(inputs.predictions))
            return super().native_totals(plan, inputs, mean=mean, checked=checked)

    def native_divisor(self, plan: Plan, inputs: Inputs, *, checked: bool) -> Array:
        with np.errstate(all="ignore"):
            return super().native_divisor(plan, inputs, checked=checked)[()]

    def result(self, spec: Loss, summed: Any) -> Array:
        with np.errstate(all="ignore"):
            return super().result(spec, summed)[()]

    def _check(self, plan: Plan, *tensors: Array | None) -> None:
        if tensors[0] is None:  # the call has no predictions
            super()._check(plan, *tensors)
        else:
            blocks.check(plan, Inputs(*tensors))

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
            with np.errstate(all="ignore"):
                mean = super().loss(spec, predictions, targets, sample_weight, mask, divisor)
            return mean[()]
        if sample_weight is None and mask is None:
            found = self._whole(spec, predictions, targets, None)
            if found is not None:
                return found[0]
        return super().loss(spec, predictions, targets, sample_weight, mask)

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
            with np.errstate(all="ignore"):
                value, gradient = super().value_and_grad(
                    spec, predictions, targets, sample_weight, mask, upstream, divisor
                )
            return value[()], gradient
        per_position = upstream is not None and spec.reduction == "none"
        if sample_weight is None and mask is None and not per_position:
            found = self._whole(spec, predictions, targets, 1.0 if upstream is None else upstream)
            if found is not None:
                return found
        tensors = self.to_tensors(predictions, targets, sample_weight, mask, upstream)
        predictions, targets, sample_weight, mask, upstream = tensors
        plan = self.plan(spec, predictions, targets, sample_weight, mask)
        if upstream is not None:
            check_upstream(plan, self.signature(upstream))
        checked = self.checked(plan, predictions, targets, sample_weight, mask)
        if plan.exact:
            return self.exact_value_and_grad(
                plan, predictions, targets, sample_weight, mask, upstream
            )
        tensors = predictions, targets, sample_weight, mask
        if not plan.fast_paths:  # no closed form of the gradient is written for such a field
            read_in = getattr(spec, "dtype", None)
            read = [
                x if x is None or read_in is None or x.dtype.kind != "f" else ops.cast(x, read_in)
                for x in tensors
            ]
            _, slope = exact.value_and_grad(plan, *read, upstream, None)
            value = self.compute(plan, *tensors, checked=checked)
            return value, ops.cast(slope, predictions.dtype.name)
        with np.errstate(all="ignore"):
            e = Evaluator(self.ops, self.kernels, plan, checked=checked)
            inputs = Inputs(*tensors)
            computed: Any = native.evaluate(e, inputs, upstream, gradient=True)
            if computed is not None:
                return computed
            if _is_rowwise(plan, predictions):
                return self._rowwise(plan, predictions, targets, upstream)
            axis = blocks.axis_to_cut(plan, predictions)
            if axis is None:
                found = pipeline.terms(e, inputs)
                divisor = e.divisor(found) if plan.spec.reduction == "mean" else None
                gradient = _gradient(e, inputs, found, divisor, upstream)
                return e.reduce(found)[()], gradient
            value, divisor = blocks.evaluate(e, inputs, axis)
            own = blocks.evaluator_of_blocks(e)
            gradient = np.empty(predictions.shape, predictions.dtype)
            for block in blocks.blocks(plan, inputs, axis):
                found = pipeline.terms(own, block.inputs)
                above = None if upstream is None else blocks.cut(upstream, block.positions)
                gradient[block.place] = _gradient(own, block.inputs, found, divisor, above)
            return value[()], gradient

    def _whole(self, spec: Loss, predictions: Any, targets: Any, upstream: Any) -> Any:
        """Compute a common loss in one pass over the memory; None if the call needs the pipeline.

        The gradient is computed too, unless `upstream` is None.
        """
        if (
            type(predictions) is not np.ndarray
            or type(targets) is not np.ndarray
            or not predictions.dtype.isnative
        ):
            return None
        plan = self.plan(spec, predictions, targets, None, None)
        if upstream is None or type(upstream) is float:
            way = exact.small if plan.exact else native.whole
            found = way(plan, predictions, targets, upstream)
            if found is not None:
                return found
        if not plan.fused or plan.kind == "dense" or plan.label_smoothing:
            return None
        if plan.kind == "index" and _is_large_copy(plan, predictions):
            return None
        if upstream is not None and type(upstream) is not float:
            upstream = self.to_tensors(predictions, targets, None, None, upstream)[-1]
            check_upstream(plan, self.signature(upstream))
        if not values.trivially_valid(plan, None, targets):
            return None
        with np.errstate(all="ignore"):
            value, gradient = kernels.fused_loss(plan, predictions, targets, upstream)
        # The elementwise kernel gives NaN at infinite logits, also where the loss is 0. The
        # pipeline handles them.
        return (value, gradient) if plan.kind != "binary" or isfinite(value) else None

    def _rowwise(
        self, plan: Plan, predictions: Array, labels: Array, upstream: Any
    ) -> tuple[Array, Array]:
        """Compute loss and gradient with one exponential per logit."""
        assert plan.axis is not None
        rows = np.moveaxis(ops.cast(predictions, plan.compute_dtype), plan.axis, -1)
        scale = (
            np.ones(labels.shape, rows.dtype)
            if upstream is None
            else np.asarray(upstream, rows.dtype)
        )
        if plan.spec.reduction == "mean" and labels.size:
            scale = scale / labels.size
        scale = np.broadcast_to(scale, labels.shape).reshape(-1)
        losses, slopes = kernels.cross_entropy_rows(
            rows.reshape(-1, rows.shape[-1]), labels.reshape(-1), scale
        )
        assert slopes is not None
        e = Evaluator(self.ops, self.kernels, plan)
        value = e.reduce(Terms(losses.reshape(labels.shape)))
        return value[()], ops.cast(
            np.moveaxis(slopes.reshape(rows.shape), -1, plan.axis), predictions.dtype.name
        )

    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        msg = (
            "NumPy cannot differentiate a function; use spec.value_and_grad, whose gradient is a "
            "closed form."
        )
        raise UnsupportedError(msg)

    def bind(self, spec: Loss) -> objects.LossFunction:
        return objects.LossFunction(spec, self)

    def modes(self) -> dict[str, Mode]:
        return {"eager": Mode(lambda function, *tensors: function(*tensors), raises=True)}


def _gradient(
    e: Evaluator, inputs: Inputs, found: Terms, divisor: Any, upstream: Array | None
) -> Array:
    """The gradient to the predictions, in their dtype; `divisor` is None unless it is a mean's."""
    plan = e.plan
    predictions, targets, sample_weight, _ = inputs
    factor = np.asarray(1.0 if upstream is None else upstream, plan.compute_dtype)
    if plan.average_last_axis and plan.spec.reduction != "mean":
        factor = factor / e.averaged_over(found)
        factor = np.expand_dims(factor, -1) if factor.ndim else factor
    if divisor is not None:
        factor = factor / divisor
    if sample_weight is not None:
        factor = factor * ops.align(ops.cast(sample_weight, plan.compute_dtype), found.losses)
    if plan.element_weights is not None:
        factor = factor * np.asarray(plan.element_weights, plan.compute_dtype)
    factor = _GRADIENTS[plan.spec.name].SLOPE_UNIT * factor
    factor = np.broadcast_to(factor, found.losses.shape)
    slope = _slopes(e, predictions, targets, found.kept)
    if plan.average_last_axis:
        # No value is bad, because bad values have raised, but targets may be NaN.
        poisoned = e.rows_with_nan(targets, found.kept)
        slope = slope if poisoned is None else np.where(poisoned, np.nan, slope)
    if plan.axis is not None:
        factor = np.expand_dims(factor, plan.axis)
    # A slope may be NaN or infinite, so a factor of 0 would not make an empty mean's gradient 0.
    empty = divisor is not None and bool(divisor == 0)
    result = np.zeros_like(slope) if empty else slope * factor
    if found.kept is not None:
        kept = found.kept if plan.axis is None else np.expand_dims(found.kept, plan.axis)
        result = np.where(kept, result, 0)
    return ops.cast(result, predictions.dtype.name)


def _is_large_copy(plan: Plan, predictions: Array) -> bool:
    """Whether the kernel for rows would copy many predictions, to change dtype or order of axes."""
    in_place = predictions.dtype.name == plan.compute_dtype and plan.axis == predictions.ndim - 1
    return not in_place and blocks.axis_to_cut(plan, predictions) is not None


def _slopes(e: Evaluator, predictions: Array, targets: Array, kept: Array | None) -> Array:
    """The derivatives of the losses of positions, in the loss's `SLOPE_UNIT`."""
    plan = e.plan
    predictions = e.read(predictions, plan.tiny)
    if plan.kind == "real" and plan.targets_dtype in FORMATS:
        targets = e.read(targets, plan.tiny_target)
    if kept is not None:
        expanded = kept if plan.axis is None else np.expand_dims(kept, plan.axis)
        predictions = np.where(expanded, predictions, 0.5)
        targets = np.where(kept if plan.kind == "index" else expanded, targets, 0)
    slopes: Array = _GRADIENTS[plan.spec.name].slopes(e, predictions, targets)
    return slopes if plan.scale == 1.0 else slopes * plan.scale


def _is_rowwise(plan: Plan, predictions: Array) -> bool:
    """Whether the kernel for rows, which has its own blocks, computes the loss and the gradient.

    The loss is an unweighted, unmasked cross-entropy of class indices from logits.
    """
    return (
        plan.plain
        and plan.kind == "index"
        and plan.from_logits
        and not plan.label_smoothing
        and plan.scale == 1.0
        and not _is_large_copy(plan, predictions)
    )


ADAPTER = NumPyAdapter()
