"""The binary cross-entropy of each element."""

from __future__ import annotations

from unifiedloss.evaluator import INFINITY, Evaluator, Positions, Selection
from unifiedloss.floats import FORMATS, TORCH_LEAST_SPREAD
from unifiedloss.logarithms import (
    cap,
    constant_outside_clip,
    flush_and_cap,
    flush_targets,
    guard_log_zero,
    negative_log,
    outside_unit,
    poison,
    poisoned_positions,
    smooth,
)
from unifiedloss.ops import Array


def positions(e: Evaluator, predictions: Array, targets: Array, selection: Selection) -> Positions:
    """The losses of all elements; see `unifiedloss.losses.cross_entropy.pipeline.positions`."""
    ops, plan = e.ops, e.plan
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0)
    bad = None if e.checked else (targets <= -plan.tiny_target) | (targets > 1.0)
    if plan.targets_dtype in FORMATS:
        targets = flush_targets(e, targets)
    predictions = e.replace(selection.kept, predictions, 0.0 if plan.from_logits else 0.5)
    # 1 - t' is formed from 1 - t, because 1 minus the rounded t' loses all digits at small eps.
    complement = 1.0 - targets
    if plan.label_smoothing:
        share = plan.label_smoothing / 2
        # XLA and TensorFlow's graphs turn (1 - t) + share into (1 + share) - t if the share is a
        # constant, and so lose a small share.
        complement = smooth(e, complement, 0.0 * ops.stop_gradient(targets) + share)
        targets = smooth(e, targets, share)
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
        bad = bad | outside_unit(plan, predictions)
    predictions = poison(e, predictions, poisoned_positions(e, selection, None, bad))
    if plan.clamped:
        return Positions(_clamped(e, predictions, targets, complement), None, bad)
    cost_of_one = negative_log(e, guard_log_zero(e, positive, predictions))
    guarded = guard_log_zero(e, complement, predictions, complement=True)
    cost_of_zero = _negative_log_complement(e, guarded)
    losses = e.multiply_no_nan(positive, cost_of_one) + e.multiply_no_nan(complement, cost_of_zero)
    return Positions(losses, None, bad)


def _clamped(e: Evaluator, p: Array, targets: Array, complement: Array) -> Array:
    """-t' log p - (1 - t') log(1 - p) with logarithms clamped at -100, as in torch.nn.BCELoss.

    The slope is (p - t') / max(p (1 - p), 1e-12). Where the maximum is p (1 - p), no logarithm is
    near -100, and this slope is the derivative. Elsewhere the clamped value is a constant, and the
    slope comes from an added parabola whose value is subtracted again.
    """
    ops = e.ops
    p = flush_and_cap(e, p)
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


def _negative_log_complement(e: Evaluator, p: Array) -> Array:
    """-log(1 - p), with the clip or the added epsilon of the plan."""
    ops, plan = e.ops, e.plan
    if plan.epsilon_added:
        p = flush_and_cap(e, p)
        # Near p = 1, the difference 1 - p is exact, and eps is what is left. Near p = 0, the
        # argument of the logarithm is close to 1, so use log1p.
        large = p > 0.5
        zero = 0.0 * ops.stop_gradient(p)
        # If eps is a constant, XLA turns (1 - p) + eps into (1 + eps) - p and loses most of eps.
        near_one = ops.log((1.0 - ops.where(large, p, 1.0)) + (zero + plan.epsilon_added))
        near_zero = ops.log1p(plan.epsilon_added - ops.where(large, zero, p))
        return -ops.where(large, near_one, near_zero)
    if plan.clip is None:
        return -ops.log1p(-flush_and_cap(e, p))
    return constant_outside_clip(e, cap(e, p), plan.clip.complement_costs, lambda q: -ops.log1p(-q))
