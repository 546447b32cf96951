"""Exact mode on NumPy arrays, which the kernel of `unifiedloss.exact` takes as they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.numpy import ops
from unifiedloss.plan import Plan

Array = NDArray[Any]

_loops: Any = None


def small(
    plan: Plan, predictions: Array, targets: Array, upstream: float | None
) -> tuple[Array, Array | None] | None:
    """See `unifiedloss.exact.loops.small`."""
    global _loops  # noqa: PLW0603 - imported by the first call, because native mode needs it not
    if _loops is None:
        from unifiedloss.exact import loops as _loops
    found: tuple[Array, Array | None] | None = _loops.small(plan, predictions, targets, upstream)
    return found


def loss(plan: Plan, *arrays: Array | None) -> Array:
    """The loss of (predictions, targets, sample_weight, mask, divisor), correctly rounded."""
    *tensors, divisor = arrays
    value, _ = _evaluate(plan, *tensors, None, divisor, gradient=False)
    return value


def value_and_grad(plan: Plan, *arrays: Any) -> tuple[Array, Array]:
    """The loss and its gradient with respect to the predictions, correctly rounded.

    Args:
        plan: the plan of the call.
        *arrays: predictions, targets, sample_weight, mask, upstream, divisor.
    """
    *tensors, upstream, divisor = arrays
    upstream = None if upstream is None else np.asarray(upstream)
    value, gradient = _evaluate(plan, *tensors, upstream, divisor, gradient=True)
    assert gradient is not None
    return value, gradient


def _evaluate(plan: Plan, *arrays: Any, gradient: bool) -> tuple[Array, Array | None]:
    from unifiedloss import exact, host  # imported here because native mode needs neither

    value, slope = host.run(partial(exact.evaluate, gradient=gradient), plan, *arrays)
    # [()] makes a reduced loss a NumPy scalar, as np.mean does.
    rounded = _array(value, plan.result_dtype)[()]
    return rounded, None if slope is None else _array(slope, plan.gradient_dtype)


def _array(x: Array, dtype: str) -> Array:
    """Read bfloat16 results, which arrive as their bits, as bfloat16."""
    return x.view(ops.dtype(dtype)) if dtype == "bfloat16" else x
