"""Calls that the oracle computes as a whole, because no tier knows a rule of their spec."""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss import reference
from unifiedloss.errors import UnsupportedError
from unifiedloss.exact.call import Array, exact_number, plain
from unifiedloss.exact.rounding import stored
from unifiedloss.losses import has_part
from unifiedloss.oracle.reduction import Reduction
from unifiedloss.plan import Plan

_MOST_WITHOUT_TIERS = 10**5
"""The most predictions of a loss without tiers. The oracle takes about 50 microseconds for each."""


def evaluate(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Array | float | None,
    divisor: Array | None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """Compute the results of `unifiedloss.exact.evaluate` by the oracle alone."""
    _refuse_many(plan, predictions)
    spec = plan.spec.replace(on_empty="nan") if plan.spec.on_empty == "error" else plan.spec
    above: Any = None
    if upstream is not None:
        each = plain(np.asarray(upstream))
        above = each.ravel().tolist() if plan.spec.reduction == "none" else each.item()
    result = reference.evaluate(
        spec,
        _tensor(predictions, plan.gradient_dtype),
        _tensor(targets, None if plan.casts else plan.targets_dtype),
        None if sample_weight is None else _tensor(sample_weight),
        None if mask is None else _tensor(mask),
        terms="rounded",
        upstream=above,
        divisor=None if divisor is None else exact_number(divisor),
        gradients="predictions" if gradient else False,
    )
    shape: Any = plan.positions if plan.spec.reduction == "none" else ()
    loss = stored(np.asarray(result.loss, np.float64).reshape(shape), plan.result_dtype)
    if result.grad_predictions is None:
        return loss, None
    slopes = np.reshape(result.grad_predictions, predictions.shape)
    return loss, stored(slopes, plan.gradient_dtype)


def _refuse_many(plan: Plan, predictions: Array) -> None:
    if predictions.size > _MOST_WITHOUT_TIERS and not has_part(plan.spec.name, "exact"):
        msg = (
            f"{plan.spec.name} has no tiers for exact mode, and the oracle alone would take about "
            f"{predictions.size * 5e-5:.0f} s for {predictions.size} predictions; write "
            f"unifiedloss/losses/{plan.spec.name}/exact.py, or leave out rounding='exact'."
        )
        raise UnsupportedError(msg)


def reduction(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
) -> Reduction:
    """The call as the oracle computes it."""
    _refuse_many(plan, predictions)
    return Reduction(
        plan.spec,
        _tensor(predictions, plan.gradient_dtype),
        _tensor(targets, None if plan.casts else plan.targets_dtype),
        None if sample_weight is None else _tensor(sample_weight),
        None if mask is None else _tensor(mask),
    )


def _tensor(x: Array, dtype: str | None = None) -> reference.Tensor:
    """Convert an array to the oracle's tensor. The dtype defaults to the array's own."""
    x = plain(x)
    return reference.Tensor(x.ravel().tolist(), x.shape, x.dtype.name if dtype is None else dtype)
