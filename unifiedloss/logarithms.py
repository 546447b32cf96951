"""Probabilities, their targets and their logarithms, in the operations of any framework.

The pipelines of the losses of probabilities share these steps.
"""

from __future__ import annotations

from collections.abc import Callable

from unifiedloss.evaluator import NAN, Evaluator, Selection
from unifiedloss.ops import Array
from unifiedloss.plan import Plan

# --------------------------------------------------------------------------------------- targets


def flush_targets(e: Evaluator, targets: Array) -> Array:
    """Replace targets below the smallest normal number by 0; the derivative is 1."""
    small = targets < e.plan.tiny_target
    return targets - e.ops.stop_gradient(e.ops.where(small, targets, 0.0))


def smooth(e: Evaluator, targets: Array, share: Array | float) -> Array:
    """(1 - eps) t + share."""
    if e.plan.label_smoothing == 1.0:
        # No gradient reaches the targets: an infinite cost times 1 - eps = 0 would be NaN.
        targets = e.ops.stop_gradient(targets)
    return targets * (1.0 - e.plan.label_smoothing) + share


# ------------------------------------------------------------------------------------ bad values


def outside_unit(plan: Plan, p: Array) -> Array:
    """Which numbers are bad values because they lie outside [0, 1]. NaN is not a bad value."""
    return (p <= -plan.tiny) | (p > plan.probability_limit)


def poisoned_positions(
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


def poison(e: Evaluator, p: Array, bad: Array | None, axis: int | None = None) -> Array:
    """Multiply the predictions of bad positions by NaN.

    A product, not a select, so that the whole gradient of the position is NaN, not only that of the
    entries that the loss reads.
    """
    if bad is None:
        return p
    bad = bad if axis is None else e.ops.expand(bad, axis)
    return p * e.ops.where(bad, e.scalar(NAN, p), 1.0)


# ------------------------------------------------------------------------------------ logarithms


def guard_log_zero(
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


def flush_and_cap(e: Evaluator, p: Array) -> Array:
    """Replace p below the smallest normal number by 0, and p above 1 (by rounding) by 1.

    TensorFlow and JAX read subnormal numbers as 0, but NumPy and torch do not; this makes all do
    so. The derivative stays 1, because the difference, which is exact, is subtracted as a constant.
    A select would set the infinite gradient of -log p at 0 to 0.
    """
    replaced = e.ops.where(p <= 1.0, e.ops.where(p >= e.plan.tiny, p, 0.0), 1.0)
    # NaN fails the comparison and is replaced by 1, but p - (p - 1) is NaN again.
    return p - e.ops.stop_gradient(p - replaced)


def cap(e: Evaluator, p: Array) -> Array:
    """Replace p above 1 (by rounding) by 1 where a clip to 1 would take it for outside.

    The upper bound of "keras" is 1 in half types.
    """
    clip = e.plan.clip
    if clip is None or clip.high < 1.0 or e.plan.renormalize is not None:
        return p
    return flush_and_cap(e, p)


def negative_log(e: Evaluator, p: Array) -> Array:
    """-log p, with the clip or the added epsilon of the plan."""
    ops, plan = e.ops, e.plan
    if plan.clip is None:
        p = flush_and_cap(e, p)
        return -ops.log(p + plan.epsilon_added if plan.epsilon_added else p)
    return constant_outside_clip(e, cap(e, p), plan.clip.costs, lambda q: -ops.log(q))


def constant_outside_clip(
    e: Evaluator, p: Array, costs: tuple[float, float], cost: Callable[[Array], Array]
) -> Array:
    """The cost of p inside the bounds of the clip; outside, the constant cost of the bound."""
    ops, clip = e.ops, e.plan.clip
    assert clip is not None
    inside = ~((p < clip.low) | (p > clip.high))
    low, high = costs
    clipped = ops.where(p < clip.low, 0.0 * ops.stop_gradient(p) + low, high)
    return ops.where(inside, cost(ops.where(inside, p, 0.5)), clipped)
