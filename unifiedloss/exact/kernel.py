"""The host kernel of exact mode: one call on NumPy arrays, from the plan to correctly rounded numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import reference
from unifiedloss.exact.rounding import stored
from unifiedloss.floats import FORMATS
from unifiedloss.spec import Plan

Array = NDArray[Any]


def evaluate(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | float | None = None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """The loss of a plan and, where asked for, its gradient with respect to the predictions.

    Bad values are not raised: those positions are NaN. So is an empty mean under ``on_empty="error"``.

    Args:
        plan: from `unifiedloss.spec.resolve`, every extent known.
        predictions: in the plan's dtype; bfloat16 as an array of ml_dtypes' type, or widened to float32. So are floating targets.
        targets: labels or numbers.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the gradient that arrives from above: a number, or under "none" an array shaped like the loss. Default: ones.
        gradient: whether the gradient is wanted.

    Returns:
        The loss in the result dtype and the gradient in the predictions' dtype, in C order; bfloat16 as its bits in uint16.
    """
    spec = plan.spec.replace(on_empty="nan") if plan.spec.on_empty == "error" else plan.spec
    found = reference.evaluate(
        spec,
        _tensor(predictions, plan.predictions_dtype),
        _tensor(targets, plan.targets_dtype),
        None if sample_weight is None else _tensor(sample_weight, sample_weight.dtype.name),
        None if mask is None else _tensor(mask, "bool"),
        terms="rounded",
        upstream=None if upstream is None else np.asarray(upstream, np.float64).reshape(-1).tolist()
        if plan.spec.reduction == "none"
        else float(np.asarray(upstream, np.float64)),
        gradients=gradient,
    )
    shape = () if plan.spec.reduction != "none" else _positions(plan, predictions.shape)
    loss = stored(np.asarray(found.loss, np.float64).reshape(shape), plan.result_dtype)
    if not gradient:
        return loss, None
    slope = np.asarray(found.grad_predictions, np.float64).reshape(predictions.shape)
    return loss, stored(slope, plan.predictions_dtype)


def _positions(plan: Plan, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if plan.axis is None else shape[: plan.axis] + shape[plan.axis + 1 :]


def _tensor(x: Array, dtype: str) -> reference.Tensor:
    values = x.astype(np.float64) if dtype in FORMATS else x
    return reference.tensor(values.reshape(-1).tolist(), x.shape, dtype)
