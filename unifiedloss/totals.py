"""Losses of pieces: means over a divisor that is given, and totals that plain addition merges.

A piece of a loss is one small vector: the sum of its terms and, for a mean, its own divisor. The
vectors of several pieces are added, and `result` divides. The functions here are the methods of
`unifiedloss.adapter.Adapter` with the same names. They use nothing but the adapter's operations,
so every adapter has them. `unifiedloss.exact.limbs` describes the vectors of exact mode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unifiedloss import pipeline
from unifiedloss.auto_rounding import settled
from unifiedloss.divisors import SCALARS, check_divisor, check_number, read_tensor
from unifiedloss.errors import DTypeError, ShapeError, SpecValueError
from unifiedloss.evaluator import INFINITY, NAN, Evaluator
from unifiedloss.floats import FORMATS, INTEGER_TYPES
from unifiedloss.inputs import Inputs, Signature
from unifiedloss.messages import describe
from unifiedloss.plan import Plan, check_upstream
from unifiedloss.spec import Loss
from unifiedloss.text import quoted

Array = Any
Adapter = Any
"""An adapter, whose module imports this one."""


# ------------------------------------------------------------------------- a divisor that is given


class Divisor(NamedTuple):
    """The divisor that a call is given.

    Attributes:
        number: its value; None if it cannot be read now.
        tensor: the tensor; None for a Python number or a NumPy scalar.
    """

    number: float | None
    tensor: Array | None = None


def loss(adapter: Adapter, spec: Loss, *tensors: Any, divisor: Any) -> Array:
    """The sum of a piece's terms over the divisor of the whole.

    Args:
        adapter: the adapter that carries out the call.
        spec: a mean.
        *tensors: predictions, targets, sample_weight and mask.
        divisor: what the sum is divided by.
    """
    refuse_other_reductions(spec, "divisor")
    spec = settled(adapter, spec, *tensors)
    if spec.rounding == "exact":
        from unifiedloss.exact import parts  # imported here because native mode does not need it

        return parts.loss(adapter, spec, *tensors, divisor=divisor)
    given = read(adapter, spec, divisor)
    if not given.number:
        tensors = unlinked_if_empty(adapter, given, adapter.to_tensors(*tensors))
    return quotient(adapter, spec, adapter.loss(spec.summed, *tensors), given)


def value_and_grad(
    adapter: Adapter, spec: Loss, *tensors: Any, upstream: Any, divisor: Any
) -> tuple[Array, Array]:
    """`loss` and its gradient with respect to the predictions."""
    refuse_other_reductions(spec, "divisor")
    spec = settled(adapter, spec, *tensors)
    if spec.rounding == "exact":
        from unifiedloss.exact import parts  # see `loss`

        return parts.value_and_grad(adapter, spec, *tensors, upstream=upstream, divisor=divisor)
    given = read(adapter, spec, divisor)
    *given_tensors, upstream = adapter.to_tensors(*tensors, upstream)
    tensors = tuple(given_tensors)
    ops, wide = adapter.ops, adapter.wide(tensors[0])
    above: Any = 1.0
    if upstream is not None:
        check_upstream(adapter.plan(spec.summed, *tensors), adapter.signature(upstream))
        above = ops.cast(upstream, wide)
    if given.number:
        above = above / float(given.number)
        if upstream is None and wide != "float64":
            above = np.asarray(above, wide)  # a Python number would be read as float64
        total, gradient = adapter.value_and_grad(spec.summed, *tensors, above)
    else:
        d = _in_tensor(adapter, given, tensors[0])
        nonempty = ~ops.equal(d, 0)
        above = above / ops.where(nonempty, d, 1.0)
        total, gradient = adapter.value_and_grad(spec.summed, *tensors, above)
        # Cast, because NumPy widens bfloat16 beside a Python number.
        dtype = adapter.dtype_name(gradient.dtype)
        gradient = ops.cast(ops.where(nonempty, gradient, 0.0), dtype)
    return quotient(adapter, spec, total, given), gradient


def refuse_other_reductions(spec: Loss, what: str) -> None:
    """Refuse a divisor of a loss that divides by nothing."""
    if spec.reduction != "mean":
        msg = (
            f"{what} is for a mean, and this spec has reduction={spec.reduction!r}, which divides "
            "by nothing; leave it out, or use spec.replace(reduction='mean')."
        )
        raise SpecValueError(msg)


def read(adapter: Adapter, spec: Loss, divisor: Any) -> Divisor:
    """Read a divisor, and refuse it if it is not finite, negative, or no number."""
    if isinstance(divisor, int | float) and not isinstance(divisor, bool):
        return Divisor(_checked(spec, divisor))
    tensor = read_tensor(adapter, divisor)
    signature = adapter.signature(tensor)
    if signature.shape not in ((), None):
        why = "the vector that divisor_of gives for rounding='exact' does not fit this spec."
        msg = (
            f"divisor must be a number or a 0-d tensor, got shape {describe(signature.shape)}; add "
            f"up the divisors of the pieces first; {why}"
        )
        raise ShapeError(msg)
    if signature.dtype not in FORMATS and signature.dtype not in INTEGER_TYPES:
        msg = f"divisor must be floating or integer, got {signature.dtype}; cast it."
        raise DTypeError(msg)
    if isinstance(tensor, SCALARS):
        return Divisor(_checked(spec, tensor.item()))
    number = None
    if adapter.readable(tensor):
        number = _checked(spec, adapter.to_numpy(tensor).item())
    return Divisor(number, tensor)


def _checked(spec: Loss, number: float) -> float:
    """Refuse a divisor that is no divisor, or 0 where the spec says that this is an error."""
    check_number(spec, number)
    return number


def _in_tensor(adapter: Adapter, given: Divisor, reference: Array) -> Array:
    """The divisor in the dtype of `Adapter.wide`; NaN where it is negative or not finite."""
    ops, wide = adapter.ops, adapter.wide(reference)
    if given.number is not None:
        return ops.constant(float(given.number), wide, reference)
    d = ops.stop_gradient(ops.cast(given.tensor, wide))
    return ops.where((d >= 0) & (d < INFINITY), d, NAN)


def quotient(adapter: Adapter, spec: Loss, total: Array, given: Divisor) -> Array:
    """Divide in the dtype of `Adapter.wide`, and return the dtype of the total."""
    ops, wide = adapter.ops, adapter.wide(total)
    dtype = adapter.dtype_name(total.dtype)
    if given.number:
        return ops.cast(ops.cast(total, wide) / float(given.number), dtype)
    d = _in_tensor(adapter, given, total)
    return ops.cast(_divided(adapter, spec, ops.cast(total, wide), d), dtype)


def _divided(adapter: Adapter, spec: Loss, total: Array, d: Array) -> Array:
    ops = adapter.ops
    nonempty = ~ops.equal(d, 0)
    fill = 0.0 if spec.on_empty == "zero" else NAN
    return ops.where(nonempty, total / ops.where(nonempty, d, 1.0), fill)


def unlinked_if_empty(
    adapter: Adapter, given: Divisor, tensors: tuple[Array, ...]
) -> tuple[Array, ...]:
    """The tensors, through which no gradient passes if the divisor is 0.

    The select at the division passes 0 on, and the slope of a bad position is NaN, so the gradient
    would be NaN.
    """
    ops = adapter.ops

    def unlinked(x: Array) -> Array:
        if not isinstance(x, adapter.tensor_type) or adapter.signature(x).dtype not in FORMATS:
            return x
        return ops.where(nonempty, x, ops.stop_gradient(x))

    with adapter.around(*tensors):
        nonempty = ~ops.equal(_in_tensor(adapter, given, tensors[0]), 0)
        return tuple(map(unlinked, tensors))


# ------------------------------------------------------------------------------------------- totals


def totals(adapter: Adapter, spec: Loss, *tensors: Any) -> Array:
    """The vector of a piece: its sum and, for a mean, its divisor, in the dtype `Adapter.wide`.

    Args:
        adapter: the adapter that carries out the call.
        spec: a sum or a mean.
        *tensors: predictions, targets, sample_weight and mask.
    """
    refuse_none(spec)
    tensors = adapter.stored(*adapter.to_tensors(*tensors))
    spec = settled(adapter, spec, *tensors)
    if spec.rounding == "exact":
        from unifiedloss.exact import parts  # see `loss`

        return parts.totals(adapter, spec, *tensors)
    # The mean's plan says which values are bad. The terms are those of a sum, because the divisor
    # of a piece must not decide what its positions contribute.
    checked = adapter.checked(adapter.plan(spec.piece, *tensors), *tensors)
    plan = adapter.plan(spec.summed, *tensors)
    mean = spec.reduction == "mean"
    return adapter.native_totals(plan, Inputs(*tensors), mean=mean, checked=checked)


def refuse_none(spec: Loss) -> None:
    """Refuse totals of a loss that is not reduced."""
    if spec.reduction == "none":
        msg = (
            "reduction='none' has no totals, because there is nothing to combine; concatenate the "
            "losses of the pieces, or use spec.replace(reduction='mean')."
        )
        raise SpecValueError(msg)


def native_totals(
    adapter: Adapter, plan: Plan, inputs: Inputs, *, mean: bool, checked: bool
) -> Array:
    """`totals` of a plan whose reduction is "sum", with its operations in native mode."""
    e = Evaluator(adapter.ops, adapter.kernels, plan, checked=checked)
    ops, wide = adapter.ops, adapter.wide(inputs.predictions)
    found = pipeline.terms(e, inputs)
    total = ops.sum(ops.cast(found.losses, wide))
    if plan.average_last_axis:
        total = total / e.averaged_over(found, wide)
    if not mean:
        return ops.expand(total, 0)
    divisor = e.divisor_of_piece(found, wide)
    zero = ops.constant((0.0, 0.0), wide, inputs.predictions)
    first = ops.equal(ops.constant((1.0, 0.0), wide, inputs.predictions), 1)
    return ops.where(first, zero + total, zero + divisor)


def divisor_of(
    adapter: Adapter, spec: Loss, targets: Any, sample_weight: Any, mask: Any, dtype: Any
) -> Array:
    """The divisor of a piece, from its targets, weights and mask alone."""
    refuse_other_reductions(spec, "divisor_of")
    name = dtype_name(adapter, dtype)
    reference = targets if isinstance(targets, adapter.tensor_type) else 0.0
    _, *tensors = adapter.to_tensors(reference, targets, sample_weight, mask)
    _, *tensors = adapter.stored(None, *tensors)
    plan = adapter.plan_of_divisor(spec.piece, *tensors, dtype=name)
    if plan.exact:
        from unifiedloss.exact import parts  # see `loss`

        return parts.divisor_of(adapter, plan, *tensors)
    checked = adapter.checked(plan, None, *tensors)
    return adapter.native_divisor(plan, Inputs(None, *tensors), checked=checked)


def dtype_name(adapter: Adapter, dtype: Any) -> str:
    """The name of the dtype of predictions that are not there."""
    name = dtype
    if not isinstance(dtype, str):
        try:
            name = adapter.dtype_name(dtype)
        except (AttributeError, TypeError):  # a type of NumPy or JAX, such as numpy.float32
            name = np.dtype(dtype).name
    if name not in FORMATS:
        msg = (
            f"dtype is that of the predictions, so it must be floating ({', '.join(FORMATS)}), got "
            f"{quoted(name)}."
        )
        raise DTypeError(msg)
    return str(name)


def native_divisor(adapter: Adapter, plan: Plan, inputs: Inputs, *, checked: bool) -> Array:
    """`divisor_of` a plan, with its operations in native mode."""
    e = Evaluator(adapter.ops, adapter.kernels, plan, checked=checked)
    wide = adapter.wide(inputs.targets)
    divisor = e.divisor_of_piece(pipeline.weights(e, inputs), wide)
    return adapter.ops.constant(0.0, wide, inputs.targets) + divisor


# ------------------------------------------------------------------------------------------- result


def result(adapter: Adapter, spec: Loss, totals: Any) -> Array:
    """The loss of the whole, from the sum of the totals of its pieces."""
    refuse_none(spec)
    (totals,) = adapter.to_tensors(totals)
    signature = adapter.signature(totals)
    spec = settled_by(spec, signature)
    if spec.rounding == "exact":
        from unifiedloss.exact import parts  # see `loss`

        return parts.result(adapter, spec, totals)
    check_totals(spec, signature)
    ops = adapter.ops
    with adapter.around(totals):
        summed = totals if len(signature.shape or ()) < 2 else ops.sum_axis(totals, 0)
        if spec.reduction == "sum":
            value = ops.sum(summed)
        else:
            first = ops.equal(ops.constant((1.0, 0.0), signature.dtype, totals), 1)
            value, d = (ops.sum(ops.where(chosen, summed, 0.0)) for chosen in (first, ~first))
            if adapter.readable(d):
                check_divisor(spec, adapter.to_numpy(d).item())
            value = _divided(adapter, spec, value, d)
    return ops.cast(value, adapter.wide(value))


def settled_by(spec: Loss, totals: Signature) -> Loss:
    """The spec with the rounding that its totals have, which ``rounding="auto"`` leaves open.

    Raises:
        SpecValueError: the totals are the sum of exact and native ones.
    """
    if spec.rounding != "auto":
        return spec
    known = spec.rounded("exact" if totals.dtype == "int64" else "native")
    entries = None if not totals.shape else totals.shape[-1]
    if known.rounding == "native" and entries is not None and entries > _MOST_ENTRIES:
        msg = (
            f"these totals have {entries} entries of {totals.dtype}, as the sum of exact totals "
            "and native ones has; rounding='auto' chose 'exact' for some pieces and 'native' for "
            "others, which nothing can combine; name one of the two in the spec."
        )
        raise SpecValueError(msg)
    return known


_MOST_ENTRIES = 2
"""The entries of native totals: a sum, and a divisor. Exact totals have more."""


def result_over(adapter: Adapter, spec: Loss, dtype: str, totals: Array, divisor: Any) -> Array:
    """The mean of the totals of a sum over a divisor that is given.

    Args:
        adapter: the adapter that carries out the call.
        spec: a mean.
        dtype: the dtype of the loss.
        totals: what `totals` gives for the spec with the reduction "sum".
        divisor: what the sum is divided by.
    """
    if spec.rounding == "exact":
        from unifiedloss.exact import parts  # see `loss`

        given = parts.read(adapter, spec, divisor)
        return parts.result_over(adapter, spec, dtype, totals, given)
    ops = adapter.ops
    return ops.cast(quotient(adapter, spec, ops.sum(totals), read(adapter, spec, divisor)), dtype)


def check_totals(spec: Loss, signature: Signature) -> None:
    """Refuse a tensor that cannot be the totals of a native spec."""
    length = 2 if spec.reduction == "mean" else 1
    shape = signature.shape
    if signature.dtype not in ("float64", "float32"):
        msg = (
            f"totals of rounding='native' are float64, got {signature.dtype}; pass the sum of what "
            "spec.totals returned, with a spec of the same rounding and reduction."
        )
        raise DTypeError(msg)
    if shape is not None and not (len(shape) in (1, 2) and shape[-1] in (length, None)):
        msg = (
            f"totals of reduction={spec.reduction!r} have shape ({length},), or (pieces, {length}) "
            f"where they are stacked, got {describe(shape)}; pass the sum of what spec.totals "
            "returned, with a spec of the same rounding and reduction."
        )
        raise ShapeError(msg)
