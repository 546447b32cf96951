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

from unifiedloss.conformance.case import Case, SoftmaxCase
from unifiedloss.floats import FORMATS
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.plan import Plan, Signature, class_axis, resolve

Array = NDArray[np.float64]


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
    return 12 + (plan.count or 0) / 2 + (plan.classes or 0) / 2


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
        parts = _parts(case, plan)
        shape = parts.loss.shape
        on, weight = _kept_and_weight(case, plan, shape)
        parts = _Parts(
            *(plan.scale * x for x in (parts.loss, parts.by_predictions, parts.by_targets))
        )
        upstream = np.ones(())
        if case.upstream is not None:
            upstream = np.abs(np.asarray(case.upstream, np.float64))
        losses = np.where(on, np.abs(weight) * parts.loss, 0.0)
        omega = _unit_weights(case, plan, shape)
        divisor, condition = _divisor(case, plan, on, weight, omega)
        if plan.average_last_axis and upstream.ndim:
            upstream = upstream[..., None]
        factor = np.where(on, upstream * np.abs(weight) / divisor, 0.0)
        # The mean's divisor counts each of the m averaged elements, which divides by m already.
        averaged_over = shape[-1] if plan.average_last_axis and plan.spec.reduction != "mean" else 1
        factor = np.broadcast_to(factor, shape) / averaged_over
        if plan.spec.reduction == "none":
            loss = losses.sum(-1) if plan.average_last_axis else losses
        else:
            loss = losses.sum() * condition / divisor
        loss = loss / averaged_over
        # The gradient through the divisor: the mean over the divisor, for each unit of weight.
        through = 0.0
        if plan.spec.reduction == "mean" and plan.divisor == "weights":
            through = losses.sum() / divisor**2 * condition
        by_predictions = _expand(factor, plan) * parts.by_predictions * condition
        by_targets = _expand(factor, plan) * parts.by_targets * condition
        if plan.kind == "dense" and plan.class_weights is not None:
            by_divisor = np.where(on, upstream * np.abs(weight), 0.0) * through
            by_targets = by_targets + _expand(by_divisor, plan) * _class_weights(plan)
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
        p, cost = _softmax_and_cost(case.logits.astype(np.float64), axis, case.logits.shape[axis])
        cost = np.where(p > 0, cost, 0)
        upstream = np.abs(case.upstream.astype(np.float64))
        mean, far = ((upstream * x).sum(axis, keepdims=True) for x in (p, p * cost))
        return p * cost, p * (cost * (upstream + mean) + far)


def or_zero(got: Array, exact: Array, probabilities: Array, magnitude: Array, plan: Plan) -> Array:
    """The expected softmax: `exact`, but near the flush threshold 0 if `got` is 0, else p."""
    form = FORMATS[plan.compute_dtype]
    near = np.abs(probabilities - form.tiny) <= limit(plan) * form.epsilon * magnitude
    return np.where(near, np.where(got == 0, 0.0, probabilities), exact)


@dataclass(frozen=True)
class _Parts:
    loss: Array
    by_predictions: Array
    by_targets: Array


def _expand(x: Array, plan: Plan) -> Array:
    return x if plan.axis is None else np.expand_dims(x, plan.axis)


def _class_weights(plan: Plan) -> Any:
    if plan.class_weights is None:
        return 1.0
    shape = [1] * len(plan.shape or ())
    assert plan.axis is not None
    shape[plan.axis] = -1
    return np.reshape(plan.class_weights, shape)


def kept(case: Case, plan: Plan) -> NDArray[np.bool_]:
    """The positions, or elements if averaged, that are neither dropped nor zero-weighted."""
    shape = case.predictions.shape
    if plan.axis is not None:
        shape = shape[: plan.axis] + shape[plan.axis + 1 :]
    return _kept_and_weight(case, plan, shape)[0]


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


def _labels(case: Case, plan: Plan) -> Any:
    inside = (case.targets >= 0) & (case.targets < plan.shared_by)
    return np.where(inside, case.targets, 0).astype(np.int64)


def _unit_weights(case: Case, plan: Plan, shape: tuple[int, ...]) -> Array:
    """sum_c w_c t_c, the weight that a sample weight of 1 gives a position."""
    if plan.class_weights is None:
        return np.ones(shape)
    if plan.kind == "index":
        each: Array = np.asarray(plan.class_weights, np.float64).take(_labels(case, plan))
        return each
    total: Array = (case.targets.astype(np.float64) * _class_weights(plan)).sum(plan.axis)
    return total


def _divisor(case: Case, plan: Plan, kept: Any, weight: Array, omega: Array) -> tuple[float, float]:
    """The divisor's size, and the factor by which cancellation in it enlarges a relative error."""
    if plan.spec.reduction != "mean":
        return 1.0, 1.0
    each = np.where(kept, weight * omega, 0.0)
    rule = plan.divisor
    if rule == "weights":
        total = float(np.abs(each.sum()))
        return total, float(np.abs(each).sum()) / total if total else 1.0
    if rule == "all":
        return float(each.size), 1.0
    counted = _present(case, plan, weight.shape) if rule == "present" else kept & (each != 0)
    if plan.average_last_axis:
        counted = np.broadcast_to(counted.any(-1, keepdims=True), counted.shape)
    return float(np.count_nonzero(counted)), 1.0


def _present(case: Case, plan: Plan, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    unweighted = dataclasses.replace(plan, element_weights=None)
    return _kept_and_weight(dataclasses.replace(case, sample_weight=None), unweighted, shape)[0]


def _parts(case: Case, plan: Plan) -> _Parts:
    x, t = case.predictions.astype(np.float64), case.targets.astype(np.float64)
    if plan.kind == "real":
        difference = np.abs(x - t)
        rounded = np.abs(t) if case.targets.dtype.kind in "iu" else 0.0
        return _Parts(
            difference**2 + 2 * difference * rounded, 2 * (difference + rounded), 2 * difference
        )
    t = np.where(t < plan.tiny_target, 0.0, t)
    if plan.kind == "binary":
        return _binary(plan, x, t)
    return _categorical(case, plan, x, t)


def _clipped(plan: Plan, p: Array) -> tuple[Array, Array, Any]:
    """p and 1 - p, both clipped, and where the gradient passes through the clip."""
    if plan.bounds is None:
        return p, 1 - p, np.True_
    low, gap = plan.bounds
    below, above = p < low, p > 1 - gap
    rest = np.where(below, 1 - low, np.where(above, gap, 1 - p))
    return np.where(below, low, np.where(above, 1 - gap, p)), rest, ~below & ~above


def _flush_and_cap(plan: Plan, p: Array) -> Array:
    """p with subnormal numbers as 0, and at most 1 unless it is renormalized."""
    return np.where(p < plan.tiny, 0.0, p if plan.renormalize else np.minimum(p, 1.0))


def _cost(plan: Plan, p: Array) -> Array:
    """|log p| + 1: the size of the logarithm, plus the error that a relative error of p causes."""
    cost = np.abs(np.log(p + plan.epsilon_added))
    return (np.minimum(cost, 100.0) if plan.clamped else cost) + 1


def _binary(plan: Plan, x: Array, t: Array) -> _Parts:
    q: Any = plan.pos_weight
    q = 1.0 if q is None else np.asarray(q)
    if np.ndim(q):
        q = np.reshape(q, [-1 if i == plan.pos_weight_axis % x.ndim else 1 for i in range(x.ndim)])
    keep = 1 - plan.label_smoothing
    positive = q * (keep * t + plan.label_smoothing / 2)
    negative = keep * (1 - t) + plan.label_smoothing / 2
    if plan.from_logits:
        size = np.abs(x) + 1
        return _Parts((positive + negative) * size, positive + negative, keep * (q + 1) * size)
    p, rest, passes = _clipped(plan, _flush_and_cap(plan, x))
    cost, complement = _cost(plan, p), _cost(plan, rest)
    if plan.clamped:
        slope = (p * negative + rest * positive) / np.maximum(p * rest, 1e-12)
    else:
        slope = _divide_no_nan(positive, p + plan.epsilon_added)
        slope = slope + _divide_no_nan(negative, rest + plan.epsilon_added)
        slope = np.where(passes, slope, 0.0)
    loss = _multiply_no_nan(positive, cost) + _multiply_no_nan(negative, complement)
    by_targets = np.where(np.isinf(cost), 0, q * cost)
    by_targets = by_targets + np.where(np.isinf(complement), 0, complement)
    return _Parts(loss, slope, keep * by_targets)


def _multiply_no_nan(weight: Array, cost: Array) -> Array:
    """The product, or 0 where the weight is 0, because 0 * inf is NaN."""
    return np.where(weight == 0, 0.0, weight * cost)


def _divide_no_nan(weight: Array, p: Array) -> Array:
    """The quotient, or 0 where the weight is 0, because 0 / 0 is NaN."""
    return np.where(weight == 0, 0.0, weight / p)


def _softmax_and_cost(x: Array, axis: int, classes: int) -> tuple[Array, Array]:
    """The softmax, and its C = m - z + log K + 1 (see the module docstring)."""
    gap = x.max(axis, keepdims=True) - x
    p = np.exp(-gap)
    return p / p.sum(axis, keepdims=True), gap + np.log(classes) + 1


def _categorical(case: Case, plan: Plan, x: Array, t: Array) -> _Parts:
    assert plan.axis is not None
    axis = plan.axis
    if plan.kind == "index":
        t = np.zeros(x.shape)
        np.put_along_axis(t, np.expand_dims(_labels(case, plan), axis), 1.0, axis)
    w = _class_weights(plan)
    keep = 1 - plan.label_smoothing
    smoothed = keep * t + plan.label_smoothing / plan.shared_by
    position = (w * t).sum(axis, keepdims=True)
    tau = (position if plan.class_weighting == "position" else w) * smoothed
    if plan.log_probabilities:
        cost, slope = np.abs(x), tau
    elif plan.from_logits:
        p, cost = _softmax_and_cost(x, axis, plan.shared_by)
        slope = p * np.where(p > 0, cost, 0) * tau.sum(axis, keepdims=True) + tau
    elif plan.renormalize is not None:
        cost, slope = _renormalized(plan, _flush_and_cap(plan, x), tau)
    else:
        p, _, passes = _clipped(plan, _flush_and_cap(plan, x))
        cost = _cost(plan, p)
        slope = np.where(passes, _divide_no_nan(tau, p), 0.0)
    finite_cost = np.where(np.isfinite(cost), cost, 0.0)
    by_targets = w * keep * finite_cost
    if plan.class_weighting == "position":
        by_targets = (
            w * (smoothed * finite_cost).sum(axis, keepdims=True) + position * keep * finite_cost
        )
    return _Parts(_multiply_no_nan(tau, cost).sum(axis), slope, by_targets)


def _renormalized(plan: Plan, p: Array, tau: Array) -> tuple[Array, Array]:
    """The costs and slopes of probabilities that are divided by their sum."""
    assert plan.axis is not None
    clipped, _, passes = _clipped(plan, p)
    if plan.renormalize == "after_clip":
        total = clipped.sum(plan.axis, keepdims=True)
        slope = tau.sum(plan.axis, keepdims=True) / total + _divide_no_nan(tau, clipped)
        slope = np.where(passes, slope, 0.0)
        return _cost(plan, clipped) + np.abs(np.log(total)), slope
    total = p.sum(plan.axis, keepdims=True)
    quotient, _, passes = _clipped(plan, p / total)
    moving = np.where(passes, tau, 0.0)
    slope = moving.sum(plan.axis, keepdims=True) / total + _divide_no_nan(moving, p)
    return _cost(plan, quotient), slope
