r"""The bound on how far native mode may deviate from the oracle, and its derivation.

A native kernel rounds at every step. Its error scales with the size of the terms that it adds, not
with the result: if a loss of 3e-8 is the difference of two numbers near 1, its absolute error is
that of numbers near 1. So each result has a *magnitude* $M$, the sum of the absolute values of its
terms, and the distance is measured in ulps of that magnitude:

$$\text{distance} = \frac{|\text{got} - \text{exact}|}
{\epsilon_c M + \tfrac12 \epsilon_r |\text{exact}| + \eta}$$

Here $\epsilon_c$ is the epsilon of the compute dtype, $\epsilon_r$ that of the result's dtype (its
own rounding is half an ulp), and $\eta$ the loss to underflow. The bound on the distance is

$$\text{LIMIT} = 12 + n/2 + K/2$$

for n positions and K classes:

- A sum of n terms, in any order, errs by at most (n - 1)/2 epsilons of the sum of their absolute
  values. The softmax's sum over K errs in the same way.
- Each of exp, log and log1p errs by at most 2 epsilons in these frameworks. Every loss or gradient
  calls at most three of them. That is 6.
- Around these calls there are six roundings of half an epsilon: the shift, the products with
  weight, smoothing and upstream gradient, the division by the divisor, and a sum of two terms.
  Element weights, the scale and the average over the last axis round once more each. These nine
  roundings are 9/2.
- The sum is 10.5. The divisor's own rounding and the terms of second order raise it to 12. Usual
  distances are 1 to 3.

Where the last axis is averaged, n counts elements, because all of them are added up.

Predictions that the program makes itself have the same bound, because the loss is that of the
rounded predictions. The gradient to what they are made from has up to three more roundings of half
an epsilon: the product in the backend, and in the expected number the gradient and the product.
They take the place of element weights, scale and average, which these cases do not have.

`unifiedloss.magnitudes` lists the magnitudes of the losses.

The softmax itself has the magnitude $p_c C_c$ with $C_c = m - z_c + \log K + 1$. Its gradient has

$$p_c \bigl(C_c (|u_c| + \sum_j |u_j| p_j) + \sum_j |u_j| p_j C_j\bigr)$$

for the upstream gradient u, and n = 1:

- The exponential turns the rounding of its argument, half an epsilon of $m - z_c$, into a relative
  error. The sum has the average of these errors over the row, which is at most half an epsilon of
  $\log K$.
- The exponentials of the term and of the sum err by 2 epsilons each, the sum by K/2, and the
  division by half an epsilon.
- The gradient adds up K terms once more. C covers that K/2, because C is above 2 from 3 classes on.
- $\eta$ contains no underflow of the value, because the rule defines where the value becomes 0.
  Where p differs from the smallest normal number by less than the bound, both 0 and p are right.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import losses
from unifiedloss.conformance.case import Case, SoftmaxCase
from unifiedloss.floats import FORMATS
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.magnitudes import Parts, class_weights, labels, softmax_and_cost
from unifiedloss.plan import Plan, Signature, class_axis, resolve

Array = NDArray[np.float64]

LEAST = 12
"""The part of the limit that no count of terms or classes changes."""


@dataclass(frozen=True)
class Magnitudes:
    """The magnitude of each result of a case, in float64, with the result's shape."""

    loss: Array
    grad_predictions: Array
    grad_targets: Array
    grad_sample_weight: Array | None


def plan_of(case: Case) -> Plan:
    """The plan of a case's call."""
    return resolve(
        case.spec,
        Signature(case.predictions.shape, case.dtype),
        Signature(case.targets.shape, case.targets.dtype.name),
        None
        if case.sample_weight is None
        else Signature(case.sample_weight.shape, case.sample_weight.dtype.name),
        None if case.mask is None else Signature(case.mask.shape, "bool"),
    )


def limit(plan: Plan) -> float:
    """The largest distance allowed, in ulps of the magnitude."""
    return LEAST + (plan.count or 0) / 2 + (plan.classes or 0) / 2


def distance(
    got: Array, exact: Array, magnitude: Array, plan: Plan, dtype: str, *, underflows: bool = True
) -> Array:
    """The distance of finite results from the exact ones, in ulps of the magnitude.

    `checks` compares infinities and NaN. Without `underflows`, a result may lose to underflow only
    the digits that its dtype cannot hold.
    """
    compute, result = FORMATS[plan.compute_dtype], FORMATS[dtype]
    lost = result.tiny * result.epsilon
    if underflows:
        # Each term may lose this much in a framework that flushes subnormal numbers to 0.
        lost += compute.tiny * (1 + (plan.count or 0) + (plan.classes or 0))
        if plan.compute_dtype != "float16" and result.min_exponent == compute.min_exponent:
            lost += result.tiny
    allowed = compute.epsilon * magnitude + 0.5 * result.epsilon * np.abs(exact) + lost
    with np.errstate(invalid="ignore"):
        return np.where(got == exact, 0.0, np.abs(got - exact) / allowed)


def magnitudes(case: Case, plan: Plan) -> Magnitudes:
    """The magnitudes of a case's results.

    They are meaningless for positions that hold an infinity or NaN, which nobody measures.
    """
    with np.errstate(all="ignore"):
        parts = losses.part(plan.spec.name, "magnitude").parts(plan, case.predictions, case.targets)
        shape = parts.loss.shape
        on, weight = _kept_and_weight(case, plan, shape)
        parts = Parts(
            *(plan.scale * x for x in (parts.loss, parts.by_predictions, parts.by_targets))
        )
        upstream = np.ones(())
        if case.upstream is not None:
            upstream = np.abs(np.asarray(case.upstream, np.float64))
        terms = np.where(on, np.abs(weight) * parts.loss, 0.0)
        omega = _unit_weights(case, plan, shape)
        divisor, condition = _divisor(case, plan, on, weight, omega)
        if plan.average_last_axis and upstream.ndim:
            upstream = upstream[..., None]
        factor = np.where(on, upstream * np.abs(weight) / divisor, 0.0)
        # The mean's divisor counts each of the m averaged elements, which divides by m already.
        averaged_over = shape[-1] if plan.average_last_axis and plan.spec.reduction != "mean" else 1
        factor = np.broadcast_to(factor, shape) / averaged_over
        if plan.spec.reduction == "none":
            loss = terms.sum(-1) if plan.average_last_axis else terms
        else:
            loss = terms.sum() * condition / divisor
        loss = loss / averaged_over
        # The gradient through the divisor: the mean over the divisor, for each unit of weight.
        through = 0.0
        if plan.spec.reduction == "mean" and plan.divisor == "weights":
            through = terms.sum() / divisor / divisor * condition
        by_predictions = _expand(factor, plan) * parts.by_predictions * condition
        by_targets = _expand(factor, plan) * parts.by_targets * condition
        if plan.kind == "dense" and plan.class_weights is not None:
            by_divisor = np.where(on, upstream * np.abs(weight), 0.0) * through
            by_targets = by_targets + _expand(by_divisor, plan) * class_weights(plan)
        by_weight = None
        if case.sample_weight is not None:
            per_weight = upstream * _element_weights(plan, shape)
            slope = per_weight * (parts.loss / divisor + omega * through) * condition
            slope = np.where(on, slope, 0.0) / averaged_over
            rank = case.sample_weight.ndim
            by_weight = slope.sum(axis=tuple(range(rank, slope.ndim)))
    return Magnitudes(loss, by_predictions, by_targets, by_weight)


def plan_of_row(case: SoftmaxCase) -> Plan:
    """The plan of a cross-entropy of one row, with the softmax's compute dtype and classes."""
    row = (case.logits.shape[class_axis(case.axis, case.logits.shape)],)
    return resolve(
        CrossEntropyLoss(from_logits=True), Signature(row, case.dtype), Signature((), "int64")
    )


def softmax_magnitudes(case: SoftmaxCase) -> tuple[Array, Array]:
    """The magnitudes of a softmax and of its gradient.

    They are meaningless for rows that hold an infinity or NaN.
    """
    axis = class_axis(case.axis, case.logits.shape)
    with np.errstate(all="ignore"):
        p, cost = softmax_and_cost(case.logits.astype(np.float64), axis, case.logits.shape[axis])
        cost = np.where(p > 0, cost, 0)
        upstream = np.abs(case.upstream.astype(np.float64))
        mean, far = ((upstream * x).sum(axis, keepdims=True) for x in (p, p * cost))
        return p * cost, p * (cost * (upstream + mean) + far)


def or_zero(got: Array, exact: Array, probabilities: Array, magnitude: Array, plan: Plan) -> Array:
    """The expected softmax: `exact`, but near the flush threshold 0 if `got` is 0, else p."""
    form = FORMATS[plan.compute_dtype]
    near = np.abs(probabilities - form.tiny) <= limit(plan) * form.epsilon * magnitude
    return np.where(near, np.where(got == 0, 0.0, probabilities), exact)


def _expand(x: Array, plan: Plan) -> Array:
    return x if plan.axis is None else np.expand_dims(x, plan.axis)


def kept(case: Case, plan: Plan) -> NDArray[np.bool_]:
    """The positions, or elements if averaged, that are neither dropped nor zero-weighted."""
    with np.errstate(over="ignore"):  # a weight may be too large for the compute dtype
        return _kept_and_weight(case, plan, _shape_of_terms(case, plan))[0]


def _shape_of_terms(case: Case, plan: Plan) -> tuple[int, ...]:
    """The predictions' shape without the class axis."""
    shape = case.predictions.shape
    return shape if plan.axis is None else shape[: plan.axis] + shape[plan.axis + 1 :]


def _kept_and_weight(
    case: Case, plan: Plan, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], Array]:
    kept = np.ones(shape, bool)

    def spread(x: Any) -> Any:
        return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)

    weight = np.ones(shape)
    if case.mask is not None:
        kept &= spread(case.mask)
    for label in plan.ignored_labels:
        kept &= case.targets != label
    if case.sample_weight is not None:
        weight = spread(case.sample_weight).astype(np.float64)
        kept &= ~(np.abs(weight.astype(plan.compute_dtype)) < plan.tiny_weight)
    if plan.element_weights is not None:
        weight = weight * _element_weights(plan, shape)
        kept &= ~(np.abs(weight.astype(plan.compute_dtype)) < plan.tiny_weight)
    return kept, weight


def _element_weights(plan: Plan, shape: tuple[int, ...]) -> Any:
    if plan.element_weights is None:
        return 1.0
    return np.broadcast_to(np.asarray(plan.element_weights, np.float64), shape)


def _unit_weights(case: Case, plan: Plan, shape: tuple[int, ...]) -> Array:
    """sum_c w_c t_c, the weight that a sample weight of 1 gives a position."""
    if plan.class_weights is None:
        return np.ones(shape)
    if plan.kind == "index":
        each: Array = np.asarray(plan.class_weights, np.float64).take(labels(plan, case.targets))
        return each
    total: Array = (case.targets.astype(np.float64) * class_weights(plan)).sum(plan.axis)
    return total


def _divisor(case: Case, plan: Plan, kept: Any, weight: Array, omega: Array) -> tuple[float, float]:
    """The divisor's size, and the factor by which cancellation in it enlarges a relative error."""
    if plan.spec.reduction != "mean":
        return 1.0, 1.0
    return divisor_of(*_terms_of_divisor(case, plan, kept, weight, omega))


def divisor_terms(case: Case, plan: Plan) -> tuple[float, float]:
    """The sum of what a mean divides by, and of its absolute values.

    Those of a case are the sums of those of its blocks.
    """
    shape = _shape_of_terms(case, plan)
    on, weight = _kept_and_weight(case, plan, shape)
    return _terms_of_divisor(case, plan, on, weight, _unit_weights(case, plan, shape))


def divisor_of(total: float, size: float) -> tuple[float, float]:
    """The divisor's size, and the factor by which cancellation enlarges its relative error."""
    total = abs(float(total))
    return total, float(size) / total if total else 1.0


def _terms_of_divisor(
    case: Case, plan: Plan, kept: Any, weight: Array, omega: Array
) -> tuple[float, float]:
    each = np.where(kept, weight * omega, 0.0)
    rule = plan.divisor
    if rule == "weights":
        return float(each.sum()), float(np.abs(each).sum())
    if rule == "all":
        return float(each.size), float(each.size)
    counted = _present(case, plan, weight.shape) if rule == "present" else kept & (each != 0)
    if plan.average_last_axis:
        counted = np.broadcast_to(counted.any(-1, keepdims=True), counted.shape)
    number = float(np.count_nonzero(counted))
    return number, number


def _present(case: Case, plan: Plan, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    unweighted = dataclasses.replace(plan, element_weights=None)
    return _kept_and_weight(dataclasses.replace(case, sample_weight=None), unweighted, shape)[0]
