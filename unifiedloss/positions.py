"""The loss of each position, in any framework's operations.

Each function takes the evaluator, the predictions in the compute dtype, the targets, and which
positions count. It returns the losses without sample weights, the weights W_i without sample
weights, and which positions hold a bad value.
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
            bad = bad | ops.any_axis(_no_probability(plan, predictions), axis)
        else:
            bad = bad | _no_probability(plan, ops.take_class(predictions, labels, axis))
    predictions = _unless_empty(e, selection, weights, bad, predictions, harmless)
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
        refused = (targets <= -plan.tiny_target) | ops.equal(targets, INFINITY)
        bad = ops.any_axis(refused, axis)
    targets = _normal(e, targets)
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
        outside = _no_probability(plan, predictions)
        bad = bad | ops.any_axis(outside if plan.reads_all else read & outside, axis)
    predictions = _unless_empty(e, selection, weights, bad, predictions, harmless)
    if read is None:
        costs = -e.kernels.log_softmax(predictions, axis)
    else:
        # The total is NaN where a target is, whether or not that target is read.
        total = ops.sum_axis(targets, axis) if weights is None else weights
        unknown = ~((total < 0) | (total >= 0))
        bad_or_unknown = unknown if bad is None else bad | unknown
        poisoned = _poisoned_positions(e, selection, weights, bad_or_unknown)
        predictions = _poison(e, predictions, poisoned, axis)
        if plan.renormalize is None:
            # An entry to which the target gives no weight is not read. It is read all the same
            # where that does no harm, for the gradient of the targets.
            predictions = ops.where(_harmless(plan, predictions) | read, predictions, harmless)
        costs = _cost(e, _guard_log_zero(e, weighted, predictions), axis)
    losses = ops.sum_axis(e.multiply_no_nan(weighted, costs), axis)
    return Positions(losses, weights, bad)


def _dense_weights(
    e: Evaluator, predictions: Array, targets: Array, smoothed: Array
) -> tuple[Array | None, Array]:
    """W_i without the sample weight, and tau, of dense targets."""
    ops, plan, axis = e.ops, e.plan, e.axis
    if plan.class_weights is None:
        return None, smoothed
    constant = ops.constant(plan.class_weights, plan.compute_dtype, predictions)
    class_weight = ops.along(constant, targets, axis)
    if plan.class_weighting == "position":
        # No gradient reaches a target through a weight of 0, because the gradient of an infinite
        # loss would be NaN there.
        counted = ops.where(~ops.equal(class_weight, 0), targets, ops.stop_gradient(targets))
        weights = ops.sum_axis(e.product(counted, class_weight), axis)
        return weights, e.product(smoothed, ops.expand(weights, axis))
    # From logits, a product that underflows is as good as 0, except where it is counted.
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
        targets = _normal(e, targets)
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
        # At an infinite logit the kernel gets a large finite one, which gives the right gradient
        # sigma(z) - t. The infinite cost of the denied side is added here, for the value of the
        # loss and for the gradient of the targets.
        affirmed, denied = ops.equal(predictions, INFINITY), ops.equal(predictions, -INFINITY)
        finite_targets = ops.where(~(affirmed | denied), targets, ops.stop_gradient(targets))
        losses = e.kernels.binary_cross_entropy(ops.finite(predictions), finite_targets, pos_weight)
        infinite = e.scalar(INFINITY, losses)
        losses = (
            losses
            + e.multiply_no_nan(complement, ops.where(affirmed, infinite, 0.0))
            + e.multiply_no_nan(positive, ops.where(denied, infinite, 0.0))
        )
        return Positions(losses, None, bad)
    if bad is not None:
        bad = bad | _no_probability(plan, predictions)
    predictions = _poison(e, predictions, _poisoned_positions(e, selection, None, bad))
    if plan.clamped:
        return Positions(_clamped(e, predictions, targets, complement), None, bad)
    yes = _negative_log(e, _guard_log_zero(e, positive, predictions))
    no = _negative_log_complement(e, _guard_log_zero(e, complement, predictions, complement=True))
    losses = e.multiply_no_nan(positive, yes) + e.multiply_no_nan(complement, no)
    return Positions(losses, None, bad)


# --------------------------------------------------------------------------------- squared error


def squared_error(
    e: Evaluator, predictions: Array, targets: Array, selection: Selection
) -> Positions:
    """The squared error of each element."""
    ops, plan = e.ops, e.plan
    bad = None
    if plan.targets_dtype in BEYOND_FLOAT64 and not e.checked:
        # As int64 the largest uint64 are negative. In its own dtype a comparison with a negative
        # number has no meaning.
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
    "regression": squared_error,
}
"""The losses of positions, by the kind of plan."""

# --------------------------------------------------------------------------------------- targets


def _normal(e: Evaluator, targets: Array) -> Array:
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


def _no_probability(plan: Plan, p: Array) -> Array:
    """Which numbers are no probabilities. NaN is not among them, because it is no bad value."""
    return (p <= -plan.tiny) | (p > plan.probability_limit)


def _unless_empty(
    e: Evaluator,
    selection: Selection,
    weights: Array | None,
    bad: Array | None,
    predictions: Array,
    harmless: float,
) -> Array:
    """Predictions, or harmless ones where class weights of 0 leave the mean no divisor.

    The gradient of such a mean is 0. The select at the division alone would let a NaN or an
    infinite slope through. Where no position is kept, nothing is read anyway.
    """
    ops, plan = e.ops, e.plan
    if not plan.may_cancel or weights is None:
        return predictions
    if selection.weight is not None:
        weights = e.product(weights, selection.weight)
    counts = ~ops.equal(weights, 0)
    if bad is not None:
        counts = counts | bad
    if selection.kept is not None:
        counts = counts & selection.kept
    return ops.where(ops.count(counts, plan.compute_dtype) > 0, predictions, harmless)


def _poisoned_positions(
    e: Evaluator, selection: Selection, weights: Array | None, bad: Array | None
) -> Array | None:
    """Which positions must have NaN gradients throughout.

    These are the bad positions and those with a NaN weight, and all positions where the divisor is
    NaN.
    """
    found = [x for x in (bad, selection.poisoned) if x is not None]
    if not found:
        return None
    poisoned = found[0]
    for more in found[1:]:
        poisoned = poisoned | more
    if not e.divides_by_weights or (weights is None and selection.weight is None):
        return poisoned
    # What is not kept must stay finite, for the gradient of its weight.
    any_poisoned = e.ops.count(poisoned, e.plan.compute_dtype) > 0
    every = e.ops.broadcast_like(any_poisoned, poisoned)
    return every if selection.kept is None else every & selection.kept


def _poison(e: Evaluator, p: Array, bad: Array | None, axis: int | None = None) -> Array:
    """Probabilities, NaN throughout at bad positions.

    A product, so that the whole gradient of the position is NaN, not only the part that is read.
    """
    if bad is None:
        return p
    bad = bad if axis is None else e.ops.expand(bad, axis)
    return p * e.ops.where(bad, e.scalar(NAN, p), 1.0)


def _harmless(plan: Plan, p: Array) -> Array:
    """Which predictions give neither NaN nor infinity where the target gives them no weight."""
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
    # In half types Keras' upper bound, 1 - 1e-7, is 1, and so clips nothing.
    if plan.clip is not None and not (complement and plan.clip.high == 1.0):
        return p
    zero = p >= 1.0 if complement else p < plan.tiny
    return e.ops.where(~(e.ops.equal(weight, 0) & zero), p, 0.0 if complement else 1.0)


def _read(e: Evaluator, p: Array) -> Array:
    """Read p below the smallest normal number as 0, and p above 1 by rounding as 1.

    TensorFlow and JAX read subnormal numbers as 0, NumPy and torch do not; here all do. The
    derivative is 1. Subtracting the difference, which is exact, keeps it, and so keeps the infinite
    gradient of -log p at 0, which a select would set to 0.
    """
    read = e.ops.where(p <= 1.0, e.ops.where(p >= e.plan.tiny, p, 0.0), 1.0)
    # NaN fails both comparisons and must stay NaN: p - (p - 1) is NaN again.
    return p - e.ops.stop_gradient(p - read)


def _cost(e: Evaluator, x: Array, axis: int) -> Array:
    """The cost of a class that has all the weight of the target: -log p, or -x of log p = x."""
    ops, plan = e.ops, e.plan
    if plan.log_probabilities:
        return -x
    if plan.renormalize is None:
        return _negative_log(e, x)
    x = x - ops.stop_gradient(ops.where(x < plan.tiny, x, 0.0))
    if plan.renormalize == "before_clip":
        return _negative_log(e, x / ops.expand(ops.sum_axis(x, axis), axis))
    total = ops.sum_axis(_clipped(e, x), axis)
    return _negative_log(e, x) + ops.expand(ops.log(total), axis)


def _clipped(e: Evaluator, p: Array) -> Array:
    """Probabilities as `epsilon` clips them."""
    ops, clip = e.ops, e.plan.clip
    assert clip is not None
    constant = 0.0 * ops.stop_gradient(p)
    p = ops.where(p < clip.low, constant + clip.low, p)
    return ops.where(p > clip.high, constant + clip.high, p)


def _clamped(e: Evaluator, p: Array, targets: Array, complement: Array) -> Array:
    """-t' log p - (1 - t') log(1 - p) with logarithms of at least -100, as torch.nn.BCELoss has it.

    The slope is (p - t') / max(p (1 - p), 1e-12). Where the maximum is p (1 - p), no logarithm is
    near -100, and this slope is the derivative. Elsewhere the clamped value is held constant, and a
    parabola that is 0 here brings the slope.
    """
    ops = e.ops
    p = _read(e, p)
    inside = p * (1.0 - p) >= TORCH_LEAST_SPREAD
    middle = ops.where(inside, p, 0.5)
    still, fixed = ops.stop_gradient(p), ops.stop_gradient(targets)
    # Neither a minimum nor ~(cost < 100), which TensorFlow's graphs turn into cost >= 100, because
    # NaN must stay.
    yes, no = (
        ops.where(x > 100.0, 0.0 * still + 100.0, x) for x in (-ops.log(still), -ops.log1p(-still))
    )
    parabola = (p - fixed) * (p - fixed)
    slope = (parabola - ops.stop_gradient(parabola)) * (0.5 / TORCH_LEAST_SPREAD)
    return ops.where(
        inside,
        targets * -ops.log(middle) + complement * -ops.log1p(-middle),
        targets * yes + complement * no + slope,
    )


def _negative_log(e: Evaluator, p: Array) -> Array:
    """-log p, p read and clipped as the plan says."""
    ops, plan = e.ops, e.plan
    if plan.clip is None:
        p = _read(e, p)
        return -ops.log(p + plan.epsilon_added if plan.epsilon_added else p)
    return _outside_constant(e, p, plan.clip.costs, lambda q: -ops.log(q))


def _negative_log_complement(e: Evaluator, p: Array) -> Array:
    """-log(1 - p), p read and clipped as the plan says."""
    ops, plan = e.ops, e.plan
    if plan.epsilon_added:
        p = _read(e, p)
        # Next to p = 1 the difference is exact, and eps is what is left. Next to p = 0 the
        # logarithm is that of a number next to 1.
        large = p > 0.5
        zero = 0.0 * ops.stop_gradient(p)
        # XLA turns (1 - p) + eps into (1 + eps) - p if eps is a constant, and so loses most of it.
        near_one = ops.log((1.0 - ops.where(large, p, 1.0)) + (zero + plan.epsilon_added))
        near_zero = ops.log1p(plan.epsilon_added - ops.where(large, zero, p))
        return -ops.where(large, near_one, near_zero)
    if plan.clip is None:
        return -ops.log1p(-_read(e, p))
    return _outside_constant(e, p, plan.clip.complement_costs, lambda q: -ops.log1p(-q))


def _outside_constant(
    e: Evaluator, p: Array, costs: tuple[float, float], cost: Callable[[Array], Array]
) -> Array:
    """The cost of p between the bounds of the clip, and the constants of the bounds outside."""
    ops, clip = e.ops, e.plan.clip
    assert clip is not None
    inside = ~((p < clip.low) | (p > clip.high))
    low, high = costs
    clipped = ops.where(p < clip.low, 0.0 * ops.stop_gradient(p) + low, high)
    return ops.where(inside, cost(ops.where(inside, p, 0.5)), clipped)
