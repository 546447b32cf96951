"""Carries out a plan with an adapter's operations: the rules of the spec, written once for all frameworks.

An adapter brings two modules. *ops* are array operations under one set of names (`where`, `sum`, ...). *native* are the
framework's own loss kernels. This module says in which order they are called, so that the semantics stand in one place and a
framework's folder holds only what is that framework's.

The flow: `evaluate` takes the losses and the weights of all positions from `terms`, and sums and divides them in one place. No framework's
own mean or weighting takes part, as no two of them divide by the same number.

Masking is by *double select*: what must not be read is replaced before it is computed with, and the result is replaced again.
Multiplying by 0 or masking afterwards alone would let a NaN through into the gradient (jax-ml/jax#17070, tensorflow#11756).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from unifiedloss.floats import FORMATS, TORCH_LEAST_SPREAD
from unifiedloss.plan import BEYOND_FLOAT64, MAX_INTEGER_TARGET, Plan

Array = Any
"""A tensor of whichever framework the operations belong to."""

NAN = math.nan
INFINITY = math.inf


class Ops(Protocol):
    """Array operations an adapter brings, each differentiable and traceable.

    Besides these, tensors must understand ``+ - * /``, ``< <= > >=`` and, where they are bool, ``& | ~``, also with Python numbers,
    which never change a tensor's dtype.
    """

    def cast(self, x: Array, dtype: str) -> Array:
        """`x` in another dtype, rounded to nearest."""

    def cast_labels(self, x: Array) -> Array:
        """Integer labels as int64, or as the framework's widest signed integer, in which no label changes its meaning."""

    def where(self, condition: Array, x: Array, y: Array | float) -> Array:
        """`x` where the condition holds, else `y`, broadcast; the dtype of `x`."""

    def equal(self, x: Array, value: float) -> Array:
        """Whether each element equals the Python number."""

    def log(self, x: Array) -> Array:
        """The natural logarithm."""

    def log1p(self, x: Array) -> Array:
        """log(1 + x), to full relative precision near 0."""

    def stop_gradient(self, x: Array) -> Array:
        """`x`, constant to differentiation."""

    def finite(self, x: Array) -> Array:
        """`x` with infinities replaced by the largest finite numbers, or by 2^100 of their sign; its derivative is 1 everywhere."""

    def sum(self, x: Array) -> Array:
        """The sum of all elements."""

    def sum_axis(self, x: Array, axis: int) -> Array:
        """The sums along an axis, which disappears."""

    def any_axis(self, x: Array, axis: int) -> Array:
        """Whether any element along an axis is True; the axis disappears."""

    def count(self, condition: Array, dtype: str) -> Array:
        """How many elements are True: counted in integers, then cast."""

    def size(self, x: Array, dtype: str) -> Array:
        """How many elements `x` has, as a scalar tensor, for shapes that are unknown under tracing."""

    def expand(self, x: Array, axis: int) -> Array:
        """`x` with an axis of length 1 inserted."""

    def align(self, x: Array, reference: Array) -> Array:
        """`x` with axes of length 1 appended until it has the rank of `reference`."""

    def broadcast_like(self, x: Array, reference: Array) -> Array:
        """`x` repeated to the shape of `reference`."""

    def take_class(self, x: Array, index: Array, axis: int) -> Array:
        """For every position the entry of `x` along the class axis that the index names; the class axis disappears."""

    def constant(self, values: tuple[float, ...] | float, dtype: str, reference: Array) -> Array:
        """A scalar or vector of Python numbers, on the device of `reference`."""

    def take(self, vector: Array, index: Array) -> Array:
        """The entries of a vector that the index names."""

    def along(self, vector: Array, reference: Array, axis: int) -> Array:
        """A vector shaped so that it broadcasts against `reference` along `axis`."""

    def extent(self, x: Array, axis: int, dtype: str) -> Array:
        """The length of an axis, as a scalar tensor, where it is unknown under tracing."""

    def shapes_agree(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> tuple[Array, tuple[Array, Array, Array | None, Array | None]]:
        """Compare extents the plan could not know, by the rules and with the messages of `unifiedloss.spec.resolve`.

        Only called where the plan says `unchecked`. Returns whether all fit, a bool scalar, and the four tensors, which wait for an error
        to be raised, where the framework can raise one.
        """
        raise NotImplementedError


class Kernels(Protocol):
    """The framework's own kernels an adapter brings. All arguments are in the compute dtype, labels valid."""

    def cross_entropy(self, logits: Array, labels: Array, axis: int) -> Array:
        """log sum exp z - z_y per position."""

    def log_softmax(self, logits: Array, axis: int) -> Array:
        """z_c - log sum exp z."""

    def softmax(self, logits: Array, axis: int) -> Array:
        """e^{z_c} / sum_j e^{z_j}."""

    def binary_cross_entropy(
        self, logits: Array, targets: Array, pos_weight: Array | None
    ) -> Array:
        """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element, for finite logits."""

    def squared_error(self, predictions: Array, targets: Array) -> Array:
        """(p - t)^2 per element."""


class Terms(NamedTuple):
    """What a reduction needs to know of the positions.

    Attributes:
        losses: sample_weight_i * l_i, +0 at positions that are dropped or switched off.
        weights: W_i, or None where every W_i is 1.
        present: which positions are not dropped, or None for all.
        kept: which are neither dropped nor of sample weight 0, or None for all.
    """

    losses: Array
    weights: Array | None
    present: Array | None
    kept: Array | None


class _Selection(NamedTuple):
    """What becomes of each position, before any prediction is read. Not broadcast to full shape; None means all or none.

    Attributes:
        present: which positions are not dropped.
        kept: which are neither dropped nor switched off.
        weight: the sample weights, times the static weights of elements.
        spoiled: whose weight is NaN or a bad value; None where nothing needs to know.
    """

    present: Array | None
    kept: Array | None
    weight: Array | None
    poisoned: Array | None


def evaluate(
    ops: Ops,
    kernels: Kernels,
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    *,
    checked: bool = False,
) -> Array:
    """The loss of a plan, reduced as its spec says.

    Args:
        ops: the framework's array operations.
        native: the framework's kernels.
        plan: from `unifiedloss.spec.resolve`.
        predictions: tensor, as the plan describes it.
        targets: tensor, as the plan describes it.
        sample_weight: tensor or None.
        mask: bool tensor or None.
        checked: bad values have been looked for and there are none, so no position needs to be poisoned with NaN.
    """
    found = terms(ops, kernels, plan, predictions, targets, sample_weight, mask, checked=checked)
    return reduce(ops, plan, found)


def reduce(ops: Ops, plan: Plan, found: Terms) -> Array:
    """The terms, reduced as the spec says, in the result dtype."""
    if plan.spec.reduction == "none":
        losses = (
            ops.sum_axis(found.losses, -1) / averaged_over(ops, plan, found)
            if plan.average_last_axis
            else found.losses
        )
        return ops.cast(losses, plan.result_dtype)
    total = ops.sum(found.losses)
    if plan.spec.reduction == "mean":
        # An average over the last axis divides this sum and its divisor, which counts elements, by the same number.
        total = _mean(ops, plan, found, total)
    elif plan.average_last_axis:
        total = total / averaged_over(ops, plan, found)
    return ops.cast(total, plan.result_dtype)


def averaged_over(ops: Ops, plan: Plan, found: Terms) -> Array | int:
    """How many elements are averaged to one loss."""
    extent = None if plan.shape is None else plan.shape[-1]
    return ops.extent(found.losses, -1, plan.compute_dtype) if extent is None else extent


def terms(
    ops: Ops,
    kernels: Kernels,
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    *,
    checked: bool,
) -> Terms:
    """The losses and weights of all positions; of all elements, where they are averaged. Arguments as for `evaluate`."""
    agree = None
    if plan.unchecked:
        agree, awaited = ops.shapes_agree(plan, predictions, targets, sample_weight, mask)
        predictions, targets, sample_weight, mask = awaited
    predictions = ops.cast(predictions, plan.compute_dtype)
    if plan.kind == "index":
        targets = ops.cast_labels(targets)
    selection = _select(ops, plan, predictions, targets, sample_weight, mask, checked)
    losses, unit_weights, bad = _LOSSES[plan.kind](
        ops, kernels, plan, predictions, targets, selection, checked
    )
    if plan.scale != 1.0:
        losses = losses * plan.scale
    weights = unit_weights
    if selection.weight is not None:
        losses = losses * selection.weight
        if weights is None:
            weights = ops.broadcast_like(selection.weight, losses)
        else:
            weights = product(ops, plan, weights, selection.weight)
    if selection.poisoned is not None:
        poisoned = ops.broadcast_like(selection.poisoned, losses)
        bad = poisoned if bad is None else bad | poisoned
    if bad is not None:
        # A product, not a select: the gradient of that position must be NaN too, never a plausible number.
        losses = losses * ops.where(bad, _scalar(ops, plan, NAN, losses), 1.0)
        if weights is not None:
            weights = ops.where(~bad, weights, NAN)
    kept = None if selection.kept is None else ops.broadcast_like(selection.kept, losses)
    if kept is not None:
        losses = ops.where(kept, losses, 0.0)
        weights = None if weights is None else ops.where(kept, weights, 0.0)
    if agree is not None:
        losses = losses * ops.where(agree, _scalar(ops, plan, 1.0, losses), NAN)
    present = None if selection.present is None else ops.broadcast_like(selection.present, losses)
    return Terms(losses, weights, present, kept)


def _scalar(ops: Ops, plan: Plan, value: float, reference: Array) -> Array:
    return ops.constant(value, plan.compute_dtype, reference)


def _mean(ops: Ops, plan: Plan, found: Terms, total: Array) -> Array:
    """The sum over the divisor: the one place where a mean is taken."""
    fill = 0.0 if plan.spec.on_empty == "zero" else NAN
    count = divisor(ops, plan, found)
    if isinstance(count, int):
        return total / count if count else total + fill
    empty = ops.equal(count, 0)
    return ops.where(~empty, total / ops.where(~empty, count, 1.0), fill)


def divisor(ops: Ops, plan: Plan, found: Terms) -> Array | int:
    """What the mean divides by; a Python int where it is known without reading a value."""
    rule, dtype = plan.divisor, plan.compute_dtype
    if rule == "weights" and found.weights is not None:
        return ops.sum(found.weights)
    if rule == "nonzero" and found.weights is not None:
        nonzero = ~ops.equal(found.weights, 0)
        if found.kept is not None:
            nonzero = nonzero & found.kept
        if plan.average_last_axis:
            # Positions are counted, each for as many elements as it has: see `reduce`.
            return ops.count(ops.any_axis(nonzero, -1), dtype) * averaged_over(ops, plan, found)
        return ops.count(nonzero, dtype)
    if rule != "all" and found.present is not None:
        return ops.count(found.present, dtype)
    return ops.size(found.losses, dtype) if plan.count is None else plan.count


def _select(
    ops: Ops,
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    checked: bool,
) -> _Selection:
    if (
        mask is None
        and sample_weight is None
        and not plan.ignored_labels
        and plan.element_weights is None
    ):
        return _Selection(None, None, None, None)
    # Any tensor with one axis per position axis tells the rank to align to.
    reference = targets if plan.kind != "dense" else ops.sum_axis(predictions, _axis(plan))
    present = None if mask is None else ops.align(mask, reference)
    for label in plan.ignored_labels:
        other = ~ops.equal(targets, label)
        present = other if present is None else present & other
    weight = None
    if sample_weight is not None:
        weight = ops.align(ops.cast(sample_weight, plan.compute_dtype), reference)
    if plan.element_weights is not None:
        own = ops.constant(plan.element_weights, plan.compute_dtype, predictions)
        weight = own if weight is None else weight * own
    if weight is None:
        return _Selection(present, present, None, None)
    # Below the smallest normal number it is 0, also where the framework knows smaller ones. NaN is not.
    switched_on = ~((weight < plan.tiny_weight) & (weight > -plan.tiny_weight))
    kept = switched_on if present is None else present & switched_on
    poisoned = None
    if not checked and _divides_by_weights(plan):
        poisoned = weight <= -plan.tiny_weight
    if plan.kind != "regression" and not plan.from_logits:
        # From logits and for the squared error the product with NaN is enough: no entry of the position is left unread there.
        unknown = ~((weight < 0) | (weight >= 0))
        poisoned = unknown if poisoned is None else poisoned | unknown
    return _Selection(present, kept, weight, None if poisoned is None else poisoned & kept)


def _divides_by_weights(plan: Plan) -> bool:
    """Whether the mean divides by the sum of the weights, wherever there are any."""
    return plan.spec.reduction == "mean" and plan.divisor == "weights"


def _axis(plan: Plan) -> int:
    assert plan.axis is not None
    return plan.axis


def _replace(
    ops: Ops, kept: Array | None, x: Array, value: float, axis: int | None = None
) -> Array:
    """`x` with a harmless value wherever the position is not kept."""
    if kept is None:
        return x
    return ops.where(kept if axis is None else ops.expand(kept, axis), x, value)


# --------------------------------------------------------------------------------------------------- the losses, per position
# Each takes (ops, native, plan, predictions, targets, fate, checked) and returns the losses without the sample weight, the weights
# W_i without the sample weight (None for 1), and which positions hold a bad value (None for not looked).

_Positions = tuple[Array, Array | None, Array | None]


def _cross_entropy_index(
    ops: Ops,
    kernels: Kernels,
    plan: Plan,
    predictions: Array,
    labels: Array,
    selection: _Selection,
    checked: bool,
) -> _Positions:
    axis = _axis(plan)
    bad = None
    labels = _replace(ops, selection.kept, labels, 0)
    if not checked:
        classes = (
            plan.classes if plan.classes is not None else ops.extent(predictions, axis, "int64")
        )
        bad = (labels < 0) | (labels >= classes)
        labels = ops.where(~bad, labels, 0)
    harmless = 1.0 if plan.probabilities else 0.0
    predictions = _replace(ops, selection.kept, predictions, harmless, axis)
    weights = class_weight = None
    if plan.class_weights is not None:
        class_weight = ops.constant(plan.class_weights, plan.compute_dtype, predictions)
        weights = ops.take(class_weight, labels)

    if bad is not None and plan.probabilities:
        if plan.reads_all:
            bad = bad | ops.any_axis(_no_probability(plan, predictions), axis)
        else:
            bad = bad | _no_probability(plan, ops.take_class(predictions, labels, axis))
    predictions = _unless_empty(ops, plan, selection, weights, bad, predictions, harmless)
    if not plan.from_logits:
        predictions = _poisoned(
            ops, plan, predictions, _spoiled(ops, plan, selection, weights, bad), axis
        )

    if not plan.reads_all:
        if plan.from_logits:
            losses = kernels.cross_entropy(predictions, labels, axis)
        else:
            true_class = ops.take_class(predictions, labels, axis)
            if plan.log_probabilities and weights is not None:
                true_class = ops.where(~ops.equal(weights, 0), true_class, 0.0)
            losses = _cost(ops, plan, _guard_log_zero(ops, plan, weights, true_class), axis)
        return (losses if weights is None else _multiply_no_nan(ops, weights, losses)), weights, bad

    each_weight = None
    if class_weight is not None and weights is not None:
        each_weight = (
            ops.expand(weights, axis)
            if plan.class_weighting == "position"
            else ops.along(class_weight, predictions, axis)
        )
    if plan.from_logits:
        costs = -kernels.log_softmax(predictions, axis)
    else:
        costs = _cost(ops, plan, _guard_log_zero(ops, plan, each_weight, predictions), axis)
    losses = ops.take_class(costs, labels, axis)
    if weights is not None:
        losses = _multiply_no_nan(ops, weights, losses)
    if plan.label_smoothing:
        if each_weight is not None:
            costs = _multiply_no_nan(ops, each_weight, costs)
        shared = ops.sum_axis(costs, axis) * _share(ops, plan, predictions)
        losses = (
            shared + losses * (1.0 - plan.label_smoothing) if plan.label_smoothing < 1.0 else shared
        )
    return losses, weights, bad


def _cross_entropy_dense(
    ops: Ops,
    kernels: Kernels,
    plan: Plan,
    predictions: Array,
    targets: Array,
    selection: _Selection,
    checked: bool,
) -> _Positions:
    axis = _axis(plan)
    targets = _replace(ops, selection.kept, ops.cast(targets, plan.compute_dtype), 0.0, axis)
    bad = (
        None
        if checked
        else ops.any_axis((targets <= -plan.tiny_target) | ops.equal(targets, INFINITY), axis)
    )
    targets = _normal(ops, plan, targets)
    smoothed = (
        _smoothed(ops, plan, targets, _share(ops, plan, predictions))
        if plan.label_smoothing
        else targets
    )
    weights = None
    weighted = smoothed
    if plan.class_weights is not None and plan.class_weighting == "position":
        class_weight = ops.along(
            ops.constant(plan.class_weights, plan.compute_dtype, predictions), targets, axis
        )
        # No gradient reaches a target by a weight of 0: that of an infinite loss would be NaN there.
        counted = ops.where(~ops.equal(class_weight, 0), targets, ops.stop_gradient(targets))
        weights = ops.sum_axis(product(ops, plan, counted, class_weight), axis)
        weighted = product(ops, plan, smoothed, ops.expand(weights, axis))
    elif plan.class_weights is not None:
        class_weight = ops.along(
            ops.constant(plan.class_weights, plan.compute_dtype, predictions), targets, axis
        )
        # From logits a product that underflows is as good as 0, except where it is counted.
        weighted = (
            smoothed * class_weight
            if plan.from_logits
            else product(ops, plan, smoothed, class_weight)
        )
        each = weighted
        if plan.divisor == "nonzero":
            each = product(ops, plan, targets, class_weight)
        elif plan.label_smoothing:
            each = targets * class_weight
        weights = ops.sum_axis(each, axis)
    harmless = 1.0 if plan.probabilities else 0.0
    predictions = _replace(ops, selection.kept, predictions, harmless, axis)
    read = (
        None
        if plan.from_logits
        else ~ops.equal(weighted if plan.log_probabilities else smoothed, 0)
    )
    if bad is not None and plan.probabilities:
        outside = _no_probability(plan, predictions)
        bad = bad | ops.any_axis(outside if plan.reads_all else read & outside, axis)
    predictions = _unless_empty(ops, plan, selection, weights, bad, predictions, harmless)
    if read is None:
        costs = -kernels.log_softmax(predictions, axis)
    else:
        total = (
            ops.sum_axis(targets, axis) if weights is None else weights
        )  # NaN where a target is, read or not
        unknown = ~((total < 0) | (total >= 0))
        bad_or_unknown = unknown if bad is None else bad | unknown
        predictions = _poisoned(
            ops, plan, predictions, _spoiled(ops, plan, selection, weights, bad_or_unknown), axis
        )
        if plan.renormalize is None:
            # An entry the target gives no weight is not read. Where it could be read without harm it is, for the targets' gradient.
            predictions = ops.where(_harmless(plan, predictions) | read, predictions, harmless)
        costs = _cost(ops, plan, _guard_log_zero(ops, plan, weighted, predictions), axis)
    return ops.sum_axis(_multiply_no_nan(ops, weighted, costs), axis), weights, bad


def _binary_cross_entropy(
    ops: Ops,
    kernels: Kernels,
    plan: Plan,
    predictions: Array,
    targets: Array,
    selection: _Selection,
    checked: bool,
) -> _Positions:
    targets = _replace(ops, selection.kept, ops.cast(targets, plan.compute_dtype), 0.0)
    bad = None if checked else (targets <= -plan.tiny_target) | (targets > 1.0)
    if plan.targets_dtype in FORMATS:
        targets = _normal(ops, plan, targets)
    predictions = _replace(ops, selection.kept, predictions, 0.0 if plan.from_logits else 0.5)
    # 1 - t' is formed from 1 - t: subtracting the rounded t' from 1 would lose all digits at small eps.
    complement = 1.0 - targets
    if plan.label_smoothing:
        share = plan.label_smoothing / 2
        # XLA and TensorFlow's graphs make (1 + share) - t of (1 - t) + share, if that is a constant, and so lose a small share.
        complement = _smoothed(ops, plan, complement, 0.0 * ops.stop_gradient(targets) + share)
        targets = _smoothed(ops, plan, targets, share)
    pos_weight = None
    positive = targets
    if plan.pos_weight is not None:
        pos_weight = ops.constant(plan.pos_weight, plan.compute_dtype, predictions)
        if isinstance(plan.pos_weight, tuple):
            pos_weight = ops.along(pos_weight, predictions, plan.pos_weight_axis)
        positive = (
            targets * pos_weight if plan.from_logits else product(ops, plan, targets, pos_weight)
        )
    if plan.from_logits:
        # At an infinite logit the kernel sees a large finite one, which gives the right gradient sigma(z) - t, and what the infinity
        # costs the side it denies is added here, for the loss's value and for the targets' gradient.
        affirmed, denied = ops.equal(predictions, INFINITY), ops.equal(predictions, -INFINITY)
        finite_targets = ops.where(~(affirmed | denied), targets, ops.stop_gradient(targets))
        losses = kernels.binary_cross_entropy(ops.finite(predictions), finite_targets, pos_weight)
        endless = _scalar(ops, plan, INFINITY, losses)
        return (
            losses
            + _multiply_no_nan(ops, complement, ops.where(affirmed, endless, 0.0))
            + _multiply_no_nan(ops, positive, ops.where(denied, endless, 0.0)),
            None,
            bad,
        )
    if bad is not None:
        bad = bad | _no_probability(plan, predictions)
    predictions = _poisoned(ops, plan, predictions, _spoiled(ops, plan, selection, None, bad))
    if plan.clamped:
        return _clamped(ops, plan, predictions, targets, complement), None, bad
    yes = _negative_log(ops, plan, _guard_log_zero(ops, plan, positive, predictions))
    no = _negative_log_complement(
        ops, plan, _guard_log_zero(ops, plan, complement, predictions, complement=True)
    )
    return _multiply_no_nan(ops, positive, yes) + _multiply_no_nan(ops, complement, no), None, bad


def _squared_error(
    ops: Ops,
    kernels: Kernels,
    plan: Plan,
    predictions: Array,
    targets: Array,
    selection: _Selection,
    checked: bool,
) -> _Positions:
    bad = None
    if plan.targets_dtype in BEYOND_FLOAT64 and not checked:
        # As int64 the largest of uint64 are negative; in its own dtype a comparison with a negative number has no meaning.
        integers = ops.cast_labels(targets)
        lowest = 0 if plan.targets_dtype == "uint64" else -MAX_INTEGER_TARGET
        bad = (integers > MAX_INTEGER_TARGET) | (integers < lowest)
    targets = _replace(ops, selection.kept, ops.cast(targets, plan.compute_dtype), 0.0)
    return (
        kernels.squared_error(_replace(ops, selection.kept, predictions, 0.0), targets),
        None,
        bad,
    )


_LOSSES = {
    "index": _cross_entropy_index,
    "dense": _cross_entropy_dense,
    "binary": _binary_cross_entropy,
    "regression": _squared_error,
}


# ------------------------------------------------------------------------------------------------------------------- pieces


def _normal(ops: Ops, plan: Plan, targets: Array) -> Array:
    """Targets with 0 for what is below the smallest normal number, whether or not the framework knows such numbers; the derivative is 1."""
    return targets - ops.stop_gradient(ops.where(targets < plan.tiny_target, targets, 0.0))


def product(ops: Ops, plan: Plan, x: Array, y: Array) -> Array:
    """x y, but the smallest normal number where it underflows: it is 0 where a factor is 0, and nowhere else."""
    tiny = FORMATS[plan.compute_dtype].tiny
    small = x * y
    lost = (small < tiny) & (small > -tiny) & ~ops.equal(x, 0) & ~ops.equal(y, 0)
    return small + ops.where(lost, _scalar(ops, plan, tiny, small), 0.0)


def _smoothed(ops: Ops, plan: Plan, targets: Array, share: Array | float) -> Array:
    """(1 - eps) t + share."""
    if plan.label_smoothing == 1.0:
        # No gradient reaches the targets: an infinite cost times 1 - eps = 0 would be NaN.
        targets = ops.stop_gradient(targets)
    return targets * (1.0 - plan.label_smoothing) + share


def _multiply_no_nan(ops: Ops, weight: Array, cost: Array) -> Array:
    """weight * cost with 0 * infinity = 0, in value and gradient: 0 log 0 = 0."""
    return weight * ops.where(~(ops.equal(weight, 0) & ops.equal(cost, INFINITY)), cost, 0.0)


def _share(ops: Ops, plan: Plan, predictions: Array) -> Array | float:
    """What smoothing gives each class: eps / K."""
    if plan.classes is not None:
        return plan.label_smoothing / plan.classes
    return plan.label_smoothing / ops.extent(predictions, _axis(plan), plan.compute_dtype)


def _guard_log_zero(
    ops: Ops, plan: Plan, weight: Array | None, p: Array, *, complement: bool = False
) -> Array:
    """Probabilities with 1 in the place of a 0 that has no weight (for the complement, 0 in the place of a 1).

    0 log 0 = 0 in the gradient too: behind a logarithm of 0 even a gradient of 0 comes out as NaN.
    """
    if weight is None or plan.epsilon_added or plan.log_probabilities:
        return p
    if plan.clip is not None and not (
        complement and plan.clip.high == 1.0
    ):  # in half types Keras' 1 - 1e-7 is 1
        return p
    zero = p >= 1.0 if complement else p < plan.tiny
    return ops.where(~(ops.equal(weight, 0) & zero), p, 0.0 if complement else 1.0)


def _no_probability(plan: Plan, p: Array) -> Array:
    """Which numbers are no probabilities. NaN is not among them: it is no bad value, and gives NaN by itself."""
    return (p <= -plan.tiny) | (p > plan.probability_limit)


def _unless_empty(
    ops: Ops,
    plan: Plan,
    selection: _Selection,
    weights: Array | None,
    bad: Array | None,
    predictions: Array,
    harmless: float,
) -> Array:
    """Predictions, or harmless ones where class weights of 0 leave the mean nothing to divide by, whose gradient is then 0.

    The select at the division alone would let a NaN or an infinite slope through. Where nothing is kept, nothing is read anyway.
    """
    if not plan.may_cancel or weights is None:
        return predictions
    if selection.weight is not None:
        weights = product(ops, plan, weights, selection.weight)
    counts = ~ops.equal(weights, 0)
    if bad is not None:
        counts = counts | bad
    if selection.kept is not None:
        counts = counts & selection.kept
    return ops.where(ops.count(counts, plan.compute_dtype) > 0, predictions, harmless)


def _spoiled(
    ops: Ops, plan: Plan, selection: _Selection, weights: Array | None, bad: Array | None
) -> Array | None:
    """Which positions' gradients must be NaN all over: bad ones and those with a NaN weight, and all where the divisor is NaN."""
    found = [x for x in (bad, selection.poisoned) if x is not None]
    if not _divides_by_weights(plan) or (weights is None and selection.weight is None):
        return found[0] | found[1] if len(found) == 2 else found[0] if found else None
    if not found:
        return None
    poisoned = found[0]
    for more in found[1:]:
        poisoned = poisoned | more
    # What is not kept must stay finite, for the gradient of its weight.
    every = ops.broadcast_like(ops.count(poisoned, plan.compute_dtype) > 0, poisoned)
    return every if selection.kept is None else every & selection.kept


def _poisoned(ops: Ops, plan: Plan, p: Array, bad: Array | None, axis: int | None = None) -> Array:
    """Probabilities with NaN all over a bad position. A product, so that all of its gradient is NaN, not only that of what is read."""
    if bad is None:
        return p
    bad = bad if axis is None else ops.expand(bad, axis)
    return p * ops.where(bad, _scalar(ops, plan, NAN, p), 1.0)


def _read(ops: Ops, plan: Plan, p: Array) -> Array:
    """Probabilities as they are read: below the smallest normal number 0, above 1 by rounding 1; the derivative is 1.

    TensorFlow and JAX read subnormal numbers as 0, NumPy and torch do not; so all do. Subtracting the difference, which is exact, keeps the
    derivative, and so the infinite gradient of -log p at 0, which a select would set to 0.
    """
    read = ops.where(p <= 1.0, ops.where(p >= plan.tiny, p, 0.0), 1.0)
    # NaN fails both comparisons and must stay NaN: p - (p - 1) is NaN again.
    return p - ops.stop_gradient(p - read)


def _harmless(plan: Plan, p: Array) -> Array:
    """Which predictions can be read, without a NaN or an infinity, where the target gives them no weight."""
    if plan.log_probabilities:
        return (p > -INFINITY) & (p < INFINITY)
    return (p > (0.0 if plan.clip is None else -plan.tiny)) & (p <= plan.probability_limit)


def _cost(ops: Ops, plan: Plan, x: Array, axis: int) -> Array:
    """What the target spends on a class that it puts all its weight on: -log p, or -x where x is a logarithm already."""
    if plan.log_probabilities:
        return -x
    if plan.renormalize is None:
        return _negative_log(ops, plan, x)
    x = x - ops.stop_gradient(ops.where(x < plan.tiny, x, 0.0))
    if plan.renormalize == "before_clip":
        return _negative_log(ops, plan, x / ops.expand(ops.sum_axis(x, axis), axis))
    total = ops.sum_axis(_clipped(ops, plan, x), axis)
    return _negative_log(ops, plan, x) + ops.expand(ops.log(total), axis)


def _clipped(ops: Ops, plan: Plan, p: Array) -> Array:
    """Probabilities as `epsilon` clips them."""
    assert plan.clip is not None
    constant = 0.0 * ops.stop_gradient(p)
    p = ops.where(p < plan.clip.low, constant + plan.clip.low, p)
    return ops.where(p > plan.clip.high, constant + plan.clip.high, p)


def _clamped(ops: Ops, plan: Plan, p: Array, targets: Array, complement: Array) -> Array:
    """-t' log p - (1 - t') log(1 - p) with logarithms of at least -100 and the slope (p - t') / max(p (1 - p), 1e-12).

    That is torch.nn.BCELoss. Where the maximum is p (1 - p) no logarithm is near -100, and its slope is the derivative. Elsewhere the
    clamped value is held constant, and a parabola that is 0 here brings the slope.
    """
    p = _read(ops, plan, p)
    inside = p * (1.0 - p) >= TORCH_LEAST_SPREAD
    middle = ops.where(inside, p, 0.5)
    still, fixed = ops.stop_gradient(p), ops.stop_gradient(targets)
    # Not a minimum, nor ~(cost < 100), of which TensorFlow's graphs make cost >= 100: NaN must stay.
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


def _negative_log(ops: Ops, plan: Plan, p: Array) -> Array:
    """-log p, p read and clipped as the plan says."""
    if plan.clip is None:
        p = _read(ops, plan, p)
        return -ops.log(p + plan.epsilon_added if plan.epsilon_added else p)
    clip = plan.clip
    inside = ~((p < clip.low) | (p > clip.high))
    low, high = clip.costs
    clipped = ops.where(p < clip.low, 0.0 * ops.stop_gradient(p) + low, high)
    return ops.where(inside, -ops.log(ops.where(inside, p, 0.5)), clipped)


def _negative_log_complement(ops: Ops, plan: Plan, p: Array) -> Array:
    """-log(1 - p), p read and clipped as the plan says."""
    if plan.epsilon_added:
        p = _read(ops, plan, p)
        # Next to p = 1 the difference is exact and eps what is left; next to 0 the logarithm is that of a number next to 1.
        large = p > 0.5
        # XLA makes (1 + eps) - p of (1 - p) + eps, if eps is a constant, and so loses most of it.
        near_one = ops.log(
            (1.0 - ops.where(large, p, 1.0)) + (0.0 * ops.stop_gradient(p) + plan.epsilon_added)
        )
        return -ops.where(
            large,
            near_one,
            ops.log1p(plan.epsilon_added - ops.where(large, 0.0 * ops.stop_gradient(p), p)),
        )
    if plan.clip is None:
        return -ops.log1p(-_read(ops, plan, p))
    clip = plan.clip
    inside = ~((p < clip.low) | (p > clip.high))
    low, high = clip.complement_costs
    clipped = ops.where(p < clip.low, 0.0 * ops.stop_gradient(p) + low, high)
    return ops.where(inside, -ops.log1p(-ops.where(inside, p, 0.5)), clipped)


def softmax(
    ops: Ops,
    kernels: Kernels,
    logits: Array,
    axis: int,
    dtype: str,
    compute_dtype: str,
    tiny: float,
) -> Array:
    """Softmax in the compute dtype, with 0 for results below its smallest normal number, rounded once to `dtype`."""
    probabilities = kernels.softmax(ops.cast(logits, compute_dtype), axis)
    # Not ~(p < tiny), of which TensorFlow's graphs make p >= tiny: NaN would become 0.
    zero = 0.0 * ops.stop_gradient(probabilities)
    return ops.cast(ops.where(probabilities < tiny, zero, probabilities), dtype)
