"""Exact mode on NumPy arrays: the kernel of `unifiedloss.exact`, as it is."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.numpy import ops
from unifiedloss.plan import Plan

Array = NDArray[Any]


def loss(plan: Plan, *arrays: Array | None) -> Array:
    """The loss of (predictions, targets, sample_weight, mask), correctly rounded."""
    value, _ = _evaluate(plan, *arrays, gradient=False)
    return value


def value_and_grad(plan: Plan, *arrays: Any) -> tuple[Array, Array]:
    """The loss of (predictions, targets, sample_weight, mask, upstream) and its gradient to the predictions, correctly rounded."""
    *tensors, upstream = arrays
    value, gradient = _evaluate(
        plan, *tensors, None if upstream is None else np.asarray(upstream), gradient=True
    )
    assert gradient is not None
    return value, gradient


def _evaluate(plan: Plan, *arrays: Any, gradient: bool) -> tuple[Array, Array | None]:
    from unifiedloss import exact, host  # here and not above: native mode does without them

    value, slope = host.run(partial(exact.evaluate, gradient=gradient), plan, *arrays)
    # A reduction gives a NumPy scalar, as np.mean does.
    return _array(value, plan.result_dtype)[()], None if slope is None else _array(
        slope, plan.predictions_dtype
    )


def _array(x: Array, dtype: str) -> Array:
    return x.view(ops.dtype(dtype)) if dtype == "bfloat16" else x
