"""The categorical cross-entropy, and the negative log-likelihood, of each position."""

from __future__ import annotations

from unifiedloss.evaluator import INFINITY, Evaluator, Positions, Selection
from unifiedloss.logarithms import (
    flush_targets,
    guard_log_zero,
    negative_log,
    outside_unit,
    poison,
    poisoned_positions,
    smooth,
)
from unifiedloss.ops import Array
from unifiedloss.plan import Plan


def positions(e: Evaluator, predictions: Array, targets: Array, selection: Selection) -> Positions:
    """The losses and weights W_i of all positions, without sample weights.

    Args:
        e: the plan, and the operations of the framework.
        predictions: in the compute dtype.
        targets: class indices as int64, or dense targets.
        selection: the positions that count.
    """
    compute = _of_indices if e.plan.kind == "index" else _of_dense_targets
    return compute(e, predictions, targets, selection)


def weights(e: Evaluator, targets: Array, selection: Selection) -> Positions:
    """The weights W_i of all positions, without sample weights or predictions; the losses are 0.

    The number of classes is unknown unless there is a weight for each.
    """
    ops, plan = e.ops, e.plan
    bad = None
    if plan.kind == "index":
        labels = e.replace(selection.kept, targets, 0)
        nothing = 0.0 * ops.cast(labels, plan.compute_dtype)
        if not e.checked:
            bad = labels < 0
            if plan.class_weights is not None:
                bad = bad | (labels >= len(plan.class_weights))
            labels = ops.where(~bad, labels, 0)
        if plan.class_weights is None:
            return Positions(nothing, None, bad)
        class_weight = ops.constant(plan.class_weights, plan.compute_dtype, targets)
        return Positions(nothing, ops.take(class_weight, labels), bad)
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0, e.axis)
    nothing = 0.0 * ops.sum_axis(targets, e.axis)
    if not e.checked:
        bad_entries = (targets <= -plan.tiny_target) | ops.equal(targets, INFINITY)
        bad = ops.any_axis(bad_entries, e.axis)
    targets = flush_targets(e, targets)
    each, _ = _dense_weights(e, targets, targets, targets)
    return Positions(nothing, each, bad)


def _of_indices(e: Evaluator, predictions: Array, labels: Array, selection: Selection) -> Positions:
    """The cross-entropy, or negative log-likelihood, of class indices."""
    ops, plan, axis = e.ops, e.plan, e.axis
    bad = None
    # Dropped and zero-weighted positions get a valid label and harmless predictions.
    labels = e.replace(selection.kept, labels, 0)
    if not e.checked:
        classes = plan.classes
        limit = ops.extent(predictions, axis, "int64") if classes is None else classes
        bad = (labels < 0) | (labels >= limit)
        labels = ops.where(~bad, labels, 0)
    harmless = 1.0 if plan.probabilities else 0.0
    predictions = e.replace(selection.kept, predictions, harmless, axis)
    weights = class_weight = None
    if plan.class_weights is not None:
        class_weight = ops.constant(plan.class_weights, plan.compute_dtype, predictions)
        weights = ops.take(class_weight, labels)

    if bad is not None and plan.probabilities:
        if plan.reads_all:
            bad = bad | ops.any_axis(outside_unit(plan, predictions), axis)
        else:
            bad = bad | outside_unit(plan, ops.take_class(predictions, labels, axis))
    predictions = _guard_empty_mean(e, selection, weights, bad, predictions, harmless)
    if not plan.from_logits:
        poisoned = poisoned_positions(e, selection, weights, bad)
        predictions = poison(e, predictions, poisoned, axis)

    if not plan.reads_all:
        if plan.from_logits:
            losses = e.kernels.cross_entropy(predictions, labels, axis)
        else:
            true_class = ops.take_class(predictions, labels, axis)
            if plan.log_probabilities and weights is not None:
                true_class = ops.where(~ops.equal(weights, 0), true_class, 0.0)
            losses = _cost(e, guard_log_zero(e, weights, true_class), axis)
        if weights is not None:
            losses = e.multiply_no_nan(weights, losses)
        return Positions(losses, weights, bad)

    each_weight = None
    if class_weight is not None and weights is not None:
        if plan.class_weighting == "position":
            each_weight = ops.expand(weights, axis)
        else:
            each_weight = ops.along(class_weight, predictions, axis)
    if plan.from_logits:
        costs = -e.kernels.log_softmax(predictions, axis)
    else:
        costs = _cost(e, guard_log_zero(e, each_weight, predictions), axis)
    losses = ops.take_class(costs, labels, axis)
    if weights is not None:
        losses = e.multiply_no_nan(weights, losses)
    if plan.label_smoothing:
        if each_weight is not None:
            costs = e.multiply_no_nan(each_weight, costs)
        shared = ops.sum_axis(costs, axis) * _share(e, predictions)
        if plan.label_smoothing < 1.0:
            losses = shared + losses * (1.0 - plan.label_smoothing)
        else:
            losses = shared
    return Positions(losses, weights, bad)


def _of_dense_targets(
    e: Evaluator, predictions: Array, targets: Array, selection: Selection
) -> Positions:
    """The cross-entropy, or negative log-likelihood, of dense targets."""
    ops, plan, axis = e.ops, e.plan, e.axis
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0, axis)
    bad = None
    if not e.checked:
        bad_entries = (targets <= -plan.tiny_target) | ops.equal(targets, INFINITY)
        bad = ops.any_axis(bad_entries, axis)
    targets = flush_targets(e, targets)
    smoothed = targets
    if plan.label_smoothing:
        smoothed = smooth(e, targets, _share(e, predictions))
    weights, weighted = _dense_weights(e, predictions, targets, smoothed)
    harmless = 1.0 if plan.probabilities else 0.0
    predictions = e.replace(selection.kept, predictions, harmless, axis)
    read = None
    if not plan.from_logits:
        read = ~ops.equal(weighted if plan.log_probabilities else smoothed, 0)
    if bad is not None and plan.probabilities:
        outside = outside_unit(plan, predictions)
        bad = bad | ops.any_axis(outside if plan.reads_all else read & outside, axis)
    predictions = _guard_empty_mean(e, selection, weights, bad, predictions, harmless)
    if read is None:
        costs = -e.kernels.log_softmax(predictions, axis)
    else:
        # The total is NaN if a target is NaN, whether or not the loss reads that target.
        total = ops.sum_axis(targets, axis) if weights is None else weights
        is_nan = ~((total < 0) | (total >= 0))
        bad_or_nan = is_nan if bad is None else bad | is_nan
        poisoned = poisoned_positions(e, selection, weights, bad_or_nan)
        predictions = poison(e, predictions, poisoned, axis)
        if plan.renormalize is None:
            # The loss does not read an entry to which the target gives no weight. Keep its value
            # anyway if its cost is finite, because the gradient of the targets is that cost.
            counts = _has_finite_cost(plan, predictions) | read
            predictions = ops.where(counts, predictions, harmless)
        costs = _cost(e, guard_log_zero(e, weighted, predictions), axis)
        if plan.renormalize is None and plan.clip is not None:
            costs = ops.where(counts, costs, 0.0)  # a clip makes the cost of `harmless` positive
    losses = ops.sum_axis(e.multiply_no_nan(weighted, costs), axis)
    return Positions(losses, weights, bad)


def _dense_weights(
    e: Evaluator, predictions: Array, targets: Array, smoothed: Array
) -> tuple[Array | None, Array]:
    """Return W_i without the sample weight, and the weighted targets tau."""
    ops, plan, axis = e.ops, e.plan, e.axis
    if plan.class_weights is None:
        return None, smoothed
    constant = ops.constant(plan.class_weights, plan.compute_dtype, predictions)
    class_weight = ops.along(constant, targets, axis)
    if plan.class_weighting == "position":
        counted = _of_weighted_classes(e, targets, class_weight)
        weights = ops.sum_axis(e.product(counted, class_weight), axis)
        return weights, e.product(smoothed, ops.expand(weights, axis))
    if min(plan.class_weights) < plan.tiny:
        targets, smoothed = (_of_weighted_classes(e, x, class_weight) for x in (targets, smoothed))
    # From logits, a product may underflow to 0, except where "nonzero" counts it.
    weighted = smoothed * class_weight if plan.from_logits else e.product(smoothed, class_weight)
    each = weighted
    if plan.divisor == "nonzero":
        each = e.product(targets, class_weight)
    elif plan.label_smoothing:
        each = targets * class_weight
    return ops.sum_axis(each, axis), weighted


def _of_weighted_classes(e: Evaluator, targets: Array, class_weight: Array) -> Array:
    """The targets, without a gradient to those whose class weight is 0.

    An infinite loss would make that gradient NaN.
    """
    ops = e.ops
    return ops.where(~ops.equal(class_weight, 0), targets, ops.stop_gradient(targets))


def _share(e: Evaluator, predictions: Array) -> Array | float:
    """The share of each class in smoothing: eps / K."""
    if e.plan.classes is not None:
        return e.plan.label_smoothing / e.plan.classes
    return e.plan.label_smoothing / e.ops.extent(predictions, e.axis, e.plan.compute_dtype)


def _guard_empty_mean(
    e: Evaluator,
    selection: Selection,
    weights: Array | None,
    bad: Array | None,
    predictions: Array,
    harmless: float,
) -> Array:
    """Replace all predictions by harmless ones if class weights of 0 make the divisor 0.

    The gradient of such a mean is 0, but the select at the division would let a NaN or an infinite
    slope through. If no position is kept, the predictions are harmless already.
    """
    ops, plan = e.ops, e.plan
    if not plan.may_cancel or weights is None:
        return predictions
    if selection.weight is not None:
        weights = e.product(weights, selection.weight)
    nonzero = ~ops.equal(weights, 0)
    if bad is not None:
        nonzero = nonzero | bad
    if selection.kept is not None:
        nonzero = nonzero & selection.kept
    return ops.where(ops.count(nonzero, plan.compute_dtype) > 0, predictions, harmless)


def _has_finite_cost(plan: Plan, p: Array) -> Array:
    """Which predictions have a finite cost and slope, so that they are safe to multiply by 0."""
    if plan.log_probabilities:
        return (p > -INFINITY) & (p < INFINITY)
    return (p > (0.0 if plan.clip is None else -plan.tiny)) & (p <= plan.probability_limit)


def _cost(e: Evaluator, x: Array, axis: int) -> Array:
    """The cost of a class as the only target: -log p, or -x if the predictions are x = log p."""
    ops, plan = e.ops, e.plan
    if plan.log_probabilities:
        return -x
    if plan.renormalize is None:
        return negative_log(e, x)
    # Replace numbers below the smallest normal one by 0; the derivative stays 1.
    x = x - ops.stop_gradient(ops.where(x < plan.tiny, x, 0.0))
    if plan.renormalize == "before_clip":
        return negative_log(e, x / ops.expand(ops.sum_axis(x, axis), axis))
    total = ops.sum_axis(_clipped(e, x), axis)
    cost = negative_log(e, x) + ops.expand(ops.log(total), axis)
    # Of a single class, the difference of two roundings of one logarithm may be below 0.
    return cost - ops.stop_gradient(ops.where(cost < 0, cost, 0.0))


def _clipped(e: Evaluator, p: Array) -> Array:
    """Clip probabilities as `epsilon` says; the gradient is 0 outside the bounds."""
    ops, clip = e.ops, e.plan.clip
    assert clip is not None
    zero = 0.0 * ops.stop_gradient(p)
    p = ops.where(p < clip.low, zero + clip.low, p)
    return ops.where(p > clip.high, zero + clip.high, p)
