"""Divisors, totals and results of exact mode on the tensors of an adapter."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from unifiedloss.divisors import check_number, read_tensor
from unifiedloss.errors import DTypeError, UnsupportedError
from unifiedloss.exact import limbs, pieces
from unifiedloss.exact.pieces import Job
from unifiedloss.floats import FORMATS, INTEGER_TYPES
from unifiedloss.oracle.extended import extended
from unifiedloss.plan import Plan, check_upstream
from unifiedloss.spec import Loss

Array = Any
Adapter = Any
"""An adapter; no module of exact mode imports its class."""


def loss(adapter: Adapter, spec: Loss, *tensors: Any, divisor: Any) -> Array:
    """The sum of a piece's terms over a given divisor, rounded once; see `unifiedloss.totals`."""
    given = read(adapter, spec, divisor)
    tensors = adapter.stored(*adapter.to_tensors(*tensors))
    plan = adapter.plan(spec.summed, *tensors)
    adapter.checked(plan, *tensors)
    return adapter.exact(plan, *tensors, divisor=given)


def value_and_grad(
    adapter: Adapter, spec: Loss, *tensors: Any, upstream: Any, divisor: Any
) -> tuple[Array, Array]:
    """`loss` and its gradient to the predictions, each element rounded once from u s_i / D."""
    given = read(adapter, spec, divisor)
    *tensors, upstream = adapter.to_tensors(*tensors, upstream)
    plan = adapter.plan(spec.summed, *tensors)
    if upstream is not None:
        check_upstream(plan, adapter.signature(upstream))
    adapter.checked(plan, *tensors)
    found: tuple[Array, Array]
    found = adapter.exact_value_and_grad(plan, *tensors, upstream, divisor=given)
    return found


def read(adapter: Adapter, spec: Loss, divisor: Any) -> Array:
    """A divisor as a vector of NumPy, or as the tensor that it is if it cannot be read now."""
    if isinstance(divisor, int | float) and not isinstance(divisor, bool):
        check_number(spec, divisor)
        return adapter.exact_divisor(divisor)
    tensor = read_tensor(adapter, divisor)
    shape, dtype = adapter.signature(tensor)
    if shape != ():
        limbs.check_form("divisors", shape, dtype, (limbs.length("divisor", "float64"),))
    elif dtype not in FORMATS and dtype not in INTEGER_TYPES:
        msg = f"divisor must be floating or integer, got {dtype}; cast it."
        raise DTypeError(msg)
    if isinstance(tensor, np.ndarray):
        values = tensor
    elif adapter.readable(tensor):
        values = adapter.to_numpy(tensor)
    else:
        return tensor
    if values.ndim:
        return limbs.divisor(_checked(spec, limbs.divisor_in(values)))
    return limbs.divisor(_checked(spec, extended(values.item())))


def _checked(spec: Loss, x: Fraction | float) -> Fraction | float:
    check_number(spec, x)
    return x


def totals(adapter: Adapter, spec: Loss, *tensors: Any) -> Array:
    """The totals of a piece as a vector of limbs."""
    plan = adapter.plan(spec.piece, *tensors)
    adapter.checked(plan, *tensors)
    return _on_host(adapter, "totals", plan.spec, plan.predictions_dtype, tensors)


def divisor_of(adapter: Adapter, plan: Plan, *tensors: Any) -> Array:
    """The divisor of a piece as a vector of limbs."""
    adapter.checked(plan, None, *tensors)
    return _on_host(adapter, "divisor", plan.spec, plan.predictions_dtype, tensors)


def result_dtype(adapter: Adapter, spec: Loss, totals: Array) -> str:
    """The dtype of the loss that totals give; refuse a tensor that can be no totals of the spec."""
    lengths = {limbs.length(spec.reduction, dtype): dtype for dtype in ("float32", "float64")}
    shape, dtype = adapter.signature(totals)
    limbs.check_form("totals", shape, dtype, tuple(lengths))
    if shape is None or shape[-1] is None:
        msg = (
            "rounding='exact' needs the length of totals, which says the dtype of the loss, and it "
            "is unknown while this is traced; set it, as in tf.ensure_shape."
        )
        raise UnsupportedError(msg)
    return lengths[shape[-1]]


def result(adapter: Adapter, spec: Loss, totals: Array) -> Array:
    """The loss of the sum of several totals, in the dtype of the loss."""
    name = result_dtype(adapter, spec, totals)
    if adapter.readable(totals):
        summed = pieces.summed(adapter.to_numpy(totals))
        return adapter.convert(np.array(pieces.result(spec, name, summed), name), totals)
    return _on_host(adapter, "result", spec, name, (totals,))


def result_over(adapter: Adapter, spec: Loss, dtype: str, totals: Array, divisor: Array) -> Array:
    """The mean of the totals of a sum over a divisor, both as tensors; NaN if it is no divisor.

    Args:
        adapter: the adapter that carries out the call.
        spec: a mean.
        dtype: the dtype of the loss, "float32" or "float64".
        totals: the vector of the sum.
        divisor: a vector, or a number of any dtype.
    """
    return _on_host(adapter, "result", spec, dtype, (totals, divisor))


def _on_host(
    adapter: Adapter, kind: Any, spec: Loss, dtype: str, tensors: tuple[Array | None, ...]
) -> Array:
    dtypes = tuple(None if x is None else adapter.signature(x).dtype for x in tensors)
    return adapter.on_host(Job(kind, spec, dtypes, dtype), *tensors)
