r"""The magnitudes of losses and gradients: the sums of the absolute values of their terms.

`unifiedloss.conformance.tolerances` derives from them how far native results may deviate. The
module `magnitude` of each loss has its own.

Magnitudes of a position's loss, where m is the row's largest logit:

| loss | magnitude |
|---|---|
| categorical, logits | $\sum_c \tau_c (m - z_c + \log K + 1)$ |
| categorical, probabilities | $\sum_c \tau_c (\lvert\log p_c\rvert + 1)$ |
| binary, logits | $(q t' + 1 - t')(\lvert z\rvert + 1)$ |
| binary, probabilities | $q t' (\lvert\log p\rvert + 1) + (1 - t')(\lvert\log(1-p)\rvert + 1)$ |
| categorical, log-probabilities | $\sum_c \tau_c \lvert x_c\rvert$ |
| categorical, divided by S after the clip | $\sum_c \tau_c (\lvert\log p_c\rvert + L + 1)$ |
| squared error | $(p - t)^2$ |
| squared error, integer targets | $(p - t)^2 + 2 \lvert p - t\rvert \lvert t\rvert$ |

L is $\lvert\log S\rvert$, because $\log S$ is subtracted. The second term for integer targets
covers their rounding to the compute dtype.

p in these formulas is the probability after the rule of `epsilon` is applied: clipped, clamped,
added to, or divided by S. The division and the sum S err by $(K + 1)/2$ epsilons. The 1 beside the
logarithm makes this a part of the bound. The slope by an entry that is divided by S is the
difference of $T/S$ and $\tau_k/p_k$, where T is the sum of all $\tau_c$; its magnitude is their
sum. Torch's clamp divides $p - t'$, which is also a difference, by $\max(p (1 - p), 10^{-12})$;
its magnitude is $(p (1 - t') + (1 - p) t')$ over the same denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.plan import Plan

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """The magnitudes of a position's loss, and of its derivatives by predictions and targets."""

    loss: Array
    by_predictions: Array
    by_targets: Array


def class_weights(plan: Plan) -> Any:
    """The class weights, along the class axis."""
    if plan.class_weights is None:
        return 1.0
    shape = [1] * len(plan.shape or ())
    assert plan.axis is not None
    shape[plan.axis] = -1
    return np.reshape(plan.class_weights, shape)


def labels(plan: Plan, targets: Any) -> Any:
    """Class indices, with 0 in place of a bad one."""
    inside = (targets >= 0) & (targets < plan.shared_by)
    return np.where(inside, targets, 0).astype(np.int64)


def clip(plan: Plan, p: Array) -> tuple[Array, Array, Any]:
    """p and 1 - p, both clipped, and where the gradient passes through the clip."""
    if plan.bounds is None:
        return p, 1 - p, np.True_
    low, gap = plan.bounds
    below, above = p < low, p > 1 - gap
    rest = np.where(below, 1 - low, np.where(above, gap, 1 - p))
    return np.where(below, low, np.where(above, 1 - gap, p)), rest, ~below & ~above


def flush_and_cap(plan: Plan, p: Array) -> Array:
    """p with subnormal numbers as 0, and at most 1 unless it is renormalized."""
    return np.where(p < plan.tiny, 0.0, p if plan.renormalize else np.minimum(p, 1.0))


def cost_of(plan: Plan, p: Array) -> Array:
    """|log p| + 1: the size of the logarithm, plus the error that a relative error of p causes."""
    cost = np.abs(np.log(p + plan.epsilon_added))
    return (np.minimum(cost, 100.0) if plan.clamped else cost) + 1


def multiply_no_nan(weight: Array, cost: Array) -> Array:
    """The product, or 0 where the weight is 0, because 0 * inf is NaN."""
    return np.where(weight == 0, 0.0, weight * cost)


def divide_no_nan(weight: Array, p: Array) -> Array:
    """The quotient, or 0 where the weight is 0, because 0 / 0 is NaN."""
    return np.where(weight == 0, 0.0, weight / p)


def softmax_and_cost(x: Array, axis: int, classes: int) -> tuple[Array, Array]:
    """The softmax, and its C = m - z + log K + 1 (see the module docstring)."""
    gap = x.max(axis, keepdims=True) - x
    p = np.exp(-gap)
    return p / p.sum(axis, keepdims=True), gap + np.log(classes) + 1
