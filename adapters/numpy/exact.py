"""Exact mode on NumPy arrays: the kernel of `unifiedloss.exact`, as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.numpy import ops
from unifiedloss.spec import Plan

Array = NDArray[Any]


def loss(plan: Plan, predictions: Array, targets: Array, sample_weight: Array | None, mask: Array | None) -> Array:
    """The loss, correctly rounded."""
    from unifiedloss import exact  # here and not above: native mode does without it

    value, _ = exact.evaluate(plan, predictions, targets, sample_weight, mask, gradient=False)
    return _array(value, plan.result_dtype)[()]


def value_and_grad(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Any,
) -> tuple[Array, Array]:
    """The loss and its gradient with respect to the predictions, correctly rounded."""
    from unifiedloss import exact

    value, gradient = exact.evaluate(
        plan,
        predictions,
        targets,
        sample_weight,
        mask,
        None if upstream is None else np.asarray(upstream),
        gradient=True,
    )
    assert gradient is not None
    return _array(value, plan.result_dtype)[()], _array(gradient, plan.predictions_dtype)


def _array(x: Array, dtype: str) -> Array:
    return x.view(ops.dtype(dtype)) if dtype == "bfloat16" else x
