"""Compute the loss of each position with the operations of any framework.

The public functions take the evaluator, the predictions in the compute dtype, the targets, and the
selection of the positions that count. Losses and weights W_i are returned without sample weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from unifiedloss.evaluator import INFINITY, NAN, Evaluator, Positions, Selection
from unifiedloss.floats import FORMATS, TORCH_LEAST_SPREAD
from unifiedloss.ops import Array
from unifiedloss.plan import BEYOND_FLOAT64, MAX_INTEGER_TARGET, Plan

# ---------------------------------------------------------------------- categorical cross-entropy


def cross_entropy_index(
    e: Evaluator, predictions: Array, labels: Array, selection: Selection
) -> Positions:
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
            bad = bad | ops.any_axis(_outside_unit(plan, predictions), axis)
        else:
            bad = bad | _outside_unit(plan, ops.take_class(predictions, labels, axis))
    predictions = _guard_empty_mean(e, selection, weights, bad, predictions, harmless)
    if not plan.from_logits:
        poisoned = _poisoned_positions(e, selection, weights, bad)
        predictions = _poison(e, predictions, poisoned, axis)

    if not plan.reads_all:
        if plan.from_logits:
            losses = e.kernels.cross_entropy(predictions, labels, axis)
        else:
            true_class = ops.take_class(predictions, labels, axis)
            if plan.log_probabilities and weights is not None:
                true_class = ops.where(~ops.equal(weights, 0), true_class, 0.0)
            losses = _cost(e, _guard_log_zero(e, weights, true_class), axis)
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
        costs = _cost(e, _guard_log_zero(e, each_weight, predictions), axis)
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


def cross_entropy_dense(
    e: Evaluator, predictions: Array, targets: Array, selection: Selection
) -> Positions:
    """The cross-entropy, or negative log-likelihood, of dense targets."""
    ops, plan, axis = e.ops, e.plan, e.axis
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0, axis)
    bad = None
    if not e.checked:
        bad_entries = (targets <= -plan.tiny_target) | ops.equal(targets, INFINITY)
        bad = ops.any_axis(bad_entries, axis)
    targets = _flush_targets(e, targets)
    smoothed = targets
    if plan.label_smoothing:
        smoothed = _smoothed(e, targets, _share(e, predictions))
    weights, weighted = _dense_weights(e, predictions, targets, smoothed)
    harmless = 1.0 if plan.probabilities else 0.0
    predictions = e.replace(selection.kept, predictions, harmless, axis)
    read = None
    if not plan.from_logits:
        read = ~ops.equal(weighted if plan.log_probabilities else smoothed, 0)
    if bad is not None and plan.probabilities:
        outside = _outside_unit(plan, predictions)
        bad = bad | ops.any_axis(outside if plan.reads_all else read & outside, axis)
    predictions = _guard_empty_mean(e, selection, weights, bad, predictions, harmless)
    if read is None:
        costs = -e.kernels.log_softmax(predictions, axis)
    else:
        # The total is NaN if a target is NaN, whether or not the loss reads that target.
        total = ops.sum_axis(targets, axis) if weights is None else weights
        is_nan = ~((total < 0) | (total >= 0))
        bad_or_nan = is_nan if bad is None else bad | is_nan
        poisoned = _poisoned_positions(e, selection, weights, bad_or_nan)
        predictions = _poison(e, predictions, poisoned, axis)
        if plan.renormalize is None:
            # The loss does not read an entry to which the target gives no weight. Keep its value
            # anyway if its cost is finite, because the gradient of the targets is that cost.
            predictions = ops.where(
                _has_finite_cost(plan, predictions) | read, predictions, harmless
            )
        costs = _cost(e, _guard_log_zero(e, weighted, predictions), axis)
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
        # Pass no gradient to a target whose class weight is 0, because an infinite loss would make
        # it NaN.
        counted = ops.where(~ops.equal(class_weight, 0), targets, ops.stop_gradient(targets))
        weights = ops.sum_axis(e.product(counted, class_weight), axis)
        return weights, e.product(smoothed, ops.expand(weights, axis))
    # From logits, a product may underflow to 0, except where "nonzero" counts it.
    weighted = smoothed * class_weight if plan.from_logits else e.product(smoothed, class_weight)
    each = weighted
    if plan.divisor == "nonzero":
        each = e.product(targets, class_weight)
    elif plan.label_smoothing:
        each = targets * class_weight
    return ops.sum_axis(each, axis), weighted


# --------------------------------------------------------------------------- binary cross-entropy


def binary_cross_entropy(
    e: Evaluator, predictions: Array, targets: Array, selection: Selection
) -> Positions:
    """The binary cross-entropy of each element."""
    ops, plan = e.ops, e.plan
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0)
    bad = None if e.checked else (targets <= -plan.tiny_target) | (targets > 1.0)
    if plan.targets_dtype in FORMATS:
        targets = _flush_targets(e, targets)
    predictions = e.replace(selection.kept, predictions, 0.0 if plan.from_logits else 0.5)
    # 1 - t' is formed from 1 - t, because 1 minus the rounded t' loses all digits at small eps.
    complement = 1.0 - targets
    if plan.label_smoothing:
        share = plan.label_smoothing / 2
        # XLA and TensorFlow's graphs turn (1 - t) + share into (1 + share) - t if the share is a
        # constant, and so lose a small share.
        complement = _smoothed(e, complement, 0.0 * ops.stop_gradient(targets) + share)
        targets = _smoothed(e, targets, share)
    pos_weight = None
    positive = targets
    if plan.pos_weight is not None:
        pos_weight = ops.constant(plan.pos_weight, plan.compute_dtype, predictions)
        if isinstance(plan.pos_weight, tuple):
            pos_weight = ops.along(pos_weight, predictions, plan.pos_weight_axis)
        if plan.from_logits:
            positive = targets * pos_weight
        else:
            positive = e.product(targets, pos_weight)
    if plan.from_logits:
        # Pass a large finite logit to the kernel in place of an infinite one, because it gives the
        # right gradient sigma(z) - t. Then add the infinite cost of the answer with probability 0,
        # for the value of the loss and for the gradient of the targets.
        is_one, is_zero = ops.equal(predictions, INFINITY), ops.equal(predictions, -INFINITY)
        finite_targets = ops.where(~(is_one | is_zero), targets, ops.stop_gradient(targets))
        losses = e.kernels.binary_cross_entropy(ops.finite(predictions), finite_targets, pos_weight)
        infinite = e.scalar(INFINITY, losses)
        losses = (
            losses
            + e.multiply_no_nan(complement, ops.where(is_one, infinite, 0.0))
            + e.multiply_no_nan(positive, ops.where(is_zero, infinite, 0.0))
        )
        return Positions(losses, None, bad)
    if bad is not None:
        bad = bad | _outside_unit(plan, predictions)
    predictions = _poison(e, predictions, _poisoned_positions(e, selection, None, bad))
    if plan.clamped:
        return Positions(_clamped(e, predictions, targets, complement), None, bad)
    cost_of_one = _negative_log(e, _guard_log_zero(e, positive, predictions))
    guarded = _guard_log_zero(e, complement, predictions, complement=True)
    cost_of_zero = _negative_log_complement(e, guarded)
    losses = e.multiply_no_nan(positive, cost_of_one) + e.multiply_no_nan(complement, cost_of_zero)
    return Positions(losses, None, bad)


# --------------------------------------------------------------------------------- squared error


def squared_error(
    e: Evaluator, predictions: Array, targets: Array, selection: Selection
) -> Positions:
    """The squared error of each element."""
    ops, plan = e.ops, e.plan
    bad = None
    if plan.targets_dtype in BEYOND_FLOAT64 and not e.checked:
        # Compare as int64, because a uint64 tensor cannot be compared with a negative number. The
        # largest uint64 numbers become negative, so the lowest valid one is 0.
        integers = ops.cast_labels(targets)
        lowest = 0 if plan.targets_dtype == "uint64" else -MAX_INTEGER_TARGET
        bad = (integers > MAX_INTEGER_TARGET) | (integers < lowest)
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0)
    predictions = e.replace(selection.kept, predictions, 0.0)
    return Positions(e.kernels.squared_error(predictions, targets), None, bad)


POSITIONS: Mapping[str, Callable[[Evaluator, Array, Array, Selection], Positions]] = {
    "index": cross_entropy_index,
    "dense": cross_entropy_dense,
    "binary": binary_cross_entropy,
    "real": squared_error,
}
"""`Plan.kind` -> the function that computes the losses of positions."""

# --------------------------------------------------------------------------------------- targets


def _flush_targets(e: Evaluator, targets: Array) -> Array:
    """Replace targets below the smallest normal number by 0; the derivative is 1."""
    small = targets < e.plan.tiny_target
    return targets - e.ops.stop_gradient(e.ops.where(small, targets, 0.0))


def _smoothed(e: Evaluator, targets: Array, share: Array | float) -> Array:
    """(1 - eps) t + share."""
    if e.plan.label_smoothing == 1.0:
        # No gradient reaches the targets: an infinite cost times 1 - eps = 0 would be NaN.
        targets = e.ops.stop_gradient(targets)
    return targets * (1.0 - e.plan.label_smoothing) + share


def _share(e: Evaluator, predictions: Array) -> Array | float:
    """The share of each class in smoothing: eps / K."""
    if e.plan.classes is not None:
        return e.plan.label_smoothing / e.plan.classes
    return e.plan.label_smoothing / e.ops.extent(predictions, e.axis, e.plan.compute_dtype)


# ------------------------------------------------------------------------------------ bad values


def _outside_unit(plan: Plan, p: Array) -> Array:
    """Which numbers are bad values because they lie outside [0, 1]. NaN is not a bad value."""
    return (p <= -plan.tiny) | (p > plan.probability_limit)


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


def _poisoned_positions(
    e: Evaluator, selection: Selection, weights: Array | None, bad: Array | None
) -> Array | None:
    """Which positions must have NaN in their whole gradient.

    These are the bad positions and those with a NaN weight. If these make the divisor NaN, all kept
    positions are poisoned.
    """
    if bad is None or selection.poisoned is None:
        poisoned = selection.poisoned if bad is None else bad
    else:
        poisoned = bad | selection.poisoned
    if poisoned is None:
        return None
    if not e.divides_by_weights or (weights is None and selection.weight is None):
        return poisoned
    # Positions that are not kept must stay finite, for the gradient of their weights.
    any_poisoned = e.ops.count(poisoned, e.plan.compute_dtype) > 0
    everywhere = e.ops.broadcast_like(any_poisoned, poisoned)
    return everywhere if selection.kept is None else everywhere & selection.kept


def _poison(e: Evaluator, p: Array, bad: Array | None, axis: int | None = None) -> Array:
    """Multiply the predictions of bad positions by NaN.

    A product, not a select, so that the whole gradient of the position is NaN, not only that of the
    entries that the loss reads.
    """
    if bad is None:
        return p
    bad = bad if axis is None else e.ops.expand(bad, axis)
    return p * e.ops.where(bad, e.scalar(NAN, p), 1.0)


def _has_finite_cost(plan: Plan, p: Array) -> Array:
    """Which predictions have a finite cost and slope, so that they are safe to multiply by 0."""
    if plan.log_probabilities:
        return (p > -INFINITY) & (p < INFINITY)
    return (p > (0.0 if plan.clip is None else -plan.tiny)) & (p <= plan.probability_limit)


# ------------------------------------------------------------------------------------ logarithms


def _guard_log_zero(
    e: Evaluator, weight: Array | None, p: Array, *, complement: bool = False
) -> Array:
    """Replace p = 0 by 1 where its weight is 0, because the gradient of 0 * log(0) is NaN.

    For the complement, replace p = 1 by 0.
    """
    plan = e.plan
    if weight is None or plan.epsilon_added or plan.log_probabilities:
        return p
    # In half types, 1 - 1e-7, the upper bound of "keras", rounds to 1 and clips nothing.
    if plan.clip is not None and not (complement and plan.clip.high == 1.0):
        return p
    zero = p >= 1.0 if complement else p < plan.tiny
    return e.ops.where(~(e.ops.equal(weight, 0) & zero), p, 0.0 if complement else 1.0)


def _flush_and_cap(e: Evaluator, p: Array) -> Array:
    """Replace p below the smallest normal number by 0, and p above 1 (by rounding) by 1.

    TensorFlow and JAX read subnormal numbers as 0, but NumPy and torch do not; this makes all do
    so. The derivative stays 1, because the difference, which is exact, is subtracted as a constant.
    A select would set the infinite gradient of -log p at 0 to 0.
    """
    replaced = e.ops.where(p <= 1.0, e.ops.where(p >= e.plan.tiny, p, 0.0), 1.0)
    # NaN fails the comparison and is replaced by 1, but p - (p - 1) is NaN again.
    return p - e.ops.stop_gradient(p - replaced)


def _cost(e: Evaluator, x: Array, axis: int) -> Array:
    """The cost of a class as the only target: -log p, or -x if the predictions are x = log p."""
    ops, plan = e.ops, e.plan
    if plan.log_probabilities:
        return -x
    if plan.renormalize is None:
        return _negative_log(e, x)
    # Replace numbers below the smallest normal one by 0; the derivative stays 1.
    x = x - ops.stop_gradient(ops.where(x < plan.tiny, x, 0.0))
    if plan.renormalize == "before_clip":
        return _negative_log(e, x / ops.expand(ops.sum_axis(x, axis), axis))
    total = ops.sum_axis(_clipped(e, x), axis)
    return _negative_log(e, x) + ops.expand(ops.log(total), axis)


def _clipped(e: Evaluator, p: Array) -> Array:
    """Clip probabilities as `epsilon` says; the gradient is 0 outside the bounds."""
    ops, clip = e.ops, e.plan.clip
    assert clip is not None
    zero = 0.0 * ops.stop_gradient(p)
    p = ops.where(p < clip.low, zero + clip.low, p)
    return ops.where(p > clip.high, zero + clip.high, p)


def _clamped(e: Evaluator, p: Array, targets: Array, complement: Array) -> Array:
    """-t' log p - (1 - t') log(1 - p) with logarithms clamped at -100, as in torch.nn.BCELoss.

    The slope is (p - t') / max(p (1 - p), 1e-12). Where the maximum is p (1 - p), no logarithm is
    near -100, and this slope is the derivative. Elsewhere the clamped value is a constant, and the
    slope comes from an added parabola whose value is subtracted again.
    """
    ops = e.ops
    p = _flush_and_cap(e, p)
    inside = p * (1.0 - p) >= TORCH_LEAST_SPREAD
    safe_p = ops.where(inside, p, 0.5)
    constant_p, constant_targets = ops.stop_gradient(p), ops.stop_gradient(targets)
    # NaN must stay NaN. So use neither a minimum nor ~(cost < 100), which TensorFlow's graphs turn
    # into cost >= 100.
    cost_of_one, cost_of_zero = (
        ops.where(cost > 100.0, 0.0 * constant_p + 100.0, cost)
        for cost in (-ops.log(constant_p), -ops.log1p(-constant_p))
    )
    parabola = (p - constant_targets) * (p - constant_targets)
    slope = (parabola - ops.stop_gradient(parabola)) * (0.5 / TORCH_LEAST_SPREAD)
    return ops.where(
        inside,
        targets * -ops.log(safe_p) + complement * -ops.log1p(-safe_p),
        targets * cost_of_one + complement * cost_of_zero + slope,
    )


def _negative_log(e: Evaluator, p: Array) -> Array:
    """-log p, with the clip or the added epsilon of the plan."""
    ops, plan = e.ops, e.plan
    if plan.clip is None:
        p = _flush_and_cap(e, p)
        return -ops.log(p + plan.epsilon_added if plan.epsilon_added else p)
    return _constant_outside_clip(e, p, plan.clip.costs, lambda q: -ops.log(q))


def _negative_log_complement(e: Evaluator, p: Array) -> Array:
    """-log(1 - p), with the clip or the added epsilon of the plan."""
    ops, plan = e.ops, e.plan
    if plan.epsilon_added:
        p = _flush_and_cap(e, p)
        # Near p = 1, the difference 1 - p is exact, and eps is what is left. Near p = 0, the
        # argument of the logarithm is close to 1, so use log1p.
        large = p > 0.5
        zero = 0.0 * ops.stop_gradient(p)
        # If eps is a constant, XLA turns (1 - p) + eps into (1 + eps) - p and loses most of eps.
        near_one = ops.log((1.0 - ops.where(large, p, 1.0)) + (zero + plan.epsilon_added))
        near_zero = ops.log1p(plan.epsilon_added - ops.where(large, zero, p))
        return -ops.where(large, near_one, near_zero)
    if plan.clip is None:
        return -ops.log1p(-_flush_and_cap(e, p))
    return _constant_outside_clip(e, p, plan.clip.complement_costs, lambda q: -ops.log1p(-q))


def _constant_outside_clip(
    e: Evaluator, p: Array, costs: tuple[float, float], cost: Callable[[Array], Array]
) -> Array:
    """The cost of p inside the bounds of the clip; outside, the constant cost of the bound."""
    ops, clip = e.ops, e.plan.clip
    assert clip is not None
    inside = ~((p < clip.low) | (p > clip.high))
    low, high = costs
    clipped = ops.where(p < clip.low, 0.0 * ops.stop_gradient(p) + low, high)
    return ops.where(inside, cost(ops.where(inside, p, 0.5)), clipped)
