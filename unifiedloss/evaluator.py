"""What one evaluation of a plan works with, and the steps that all losses share.

An evaluation selects the positions that count, computes their losses (`unifiedloss.positions`),
weighs them, and reduces them. No framework's own mean or weighting takes part, because no two of
them divide by the same number.

Masking is by *double select*: values that must not be read are replaced before they are computed
with, and the results are replaced again. Multiplying by 0, or masking afterwards alone, would let a
NaN through into the gradient (jax-ml/jax#17070, tensorflow#11756).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from unifiedloss.floats import FORMATS
from unifiedloss.inputs import Inputs
from unifiedloss.ops import Array, Kernels, Ops
from unifiedloss.plan import Plan

NAN = math.nan
INFINITY = math.inf


class Selection(NamedTuple):
    """Which positions count, decided before any prediction is read.

    The tensors are not broadcast to full shape. None means all positions, or none.

    Attributes:
        present: the positions that are not dropped.
        kept: the positions that are neither dropped nor zero-weighted.
        weight: the sample weights, times the static weights of elements.
        poisoned: the positions whose weight is NaN or a bad value; None where it does not matter.
    """

    present: Array | None = None
    kept: Array | None = None
    weight: Array | None = None
    poisoned: Array | None = None


class Positions(NamedTuple):
    """The losses of all positions, before sample weights.

    Attributes:
        losses: l_i.
        weights: W_i without the sample weight; None where each is 1.
        bad: which positions hold a bad value; None where nothing was looked for.
    """

    losses: Array
    weights: Array | None
    bad: Array | None


class Terms(NamedTuple):
    """What a reduction needs to know of the positions.

    Attributes:
        losses: sample_weight_i * l_i, +0 at positions that are dropped or zero-weighted.
        weights: W_i, or None where every W_i is 1.
        present: which positions are not dropped, or None for all.
        kept: which are neither dropped nor of sample weight 0, or None for all.
    """

    losses: Array
    weights: Array | None = None
    present: Array | None = None
    kept: Array | None = None


class Evaluator:
    """One plan, and the operations of the framework that carries it out.

    Attributes:
        ops: the framework's array operations.
        kernels: the framework's loss kernels.
        plan: from `unifiedloss.plan.resolve`.
        checked: bad values have been looked for and there are none, so no position needs to be
            poisoned with NaN.
    """

    __slots__ = ("checked", "kernels", "ops", "plan")

    def __init__(self, ops: Ops, kernels: Kernels, plan: Plan, *, checked: bool = False) -> None:
        self.ops, self.kernels, self.plan, self.checked = ops, kernels, plan, checked

    # ---------------------------------------------------------------------- select positions

    def select(self, inputs: Inputs) -> Selection:
        """Which positions count; predictions and targets are in the dtypes computed with."""
        ops, plan = self.ops, self.plan
        predictions, targets, sample_weight, mask = inputs
        nothing = mask is None and sample_weight is None and plan.element_weights is None
        if nothing and not plan.ignored_labels:
            return Selection()
        # Any tensor with one axis per position axis tells the rank to align to.
        reference = targets if plan.kind != "dense" else ops.sum_axis(predictions, self.axis)
        present = None if mask is None else ops.align(mask, reference)
        for label in plan.ignored_labels:
            other = ~ops.equal(targets, label)
            present = other if present is None else present & other
        weight = None
        if sample_weight is not None:
            weight = ops.align(ops.cast(sample_weight, plan.compute_dtype), reference)
        if plan.element_weights is not None:
            static = ops.constant(plan.element_weights, plan.compute_dtype, predictions)
            weight = static if weight is None else weight * static
        if weight is None:
            return Selection(present, present)
        # A weight below the smallest normal number counts as 0 in every framework. NaN does not.
        nonzero = ~((weight < plan.tiny_weight) & (weight > -plan.tiny_weight))
        kept = nonzero if present is None else present & nonzero
        poisoned = None
        if not self.checked and self.divides_by_weights:
            poisoned = weight <= -plan.tiny_weight
        if plan.kind != "regression" and not plan.from_logits:
            # A loss of probabilities may leave entries unread, so the product with a NaN weight
            # does not reach their gradients. From logits, and for squared errors, it does.
            unknown = ~((weight < 0) | (weight >= 0))
            poisoned = unknown if poisoned is None else poisoned | unknown
        return Selection(present, kept, weight, None if poisoned is None else poisoned & kept)

    @property
    def divides_by_weights(self) -> bool:
        """Whether the mean divides by the sum of the weights, wherever there are any."""
        return self.plan.spec.reduction == "mean" and self.plan.divisor == "weights"

    @property
    def axis(self) -> int:
        """The class axis."""
        assert self.plan.axis is not None
        return self.plan.axis

    def replace(self, kept: Array | None, x: Array, value: float, axis: int | None = None) -> Array:
        """`x` with a harmless value wherever the position is not kept."""
        if kept is None:
            return x
        return self.ops.where(kept if axis is None else self.ops.expand(kept, axis), x, value)

    # ----------------------------------------------------------------------- weigh positions

    def weigh(self, found: Positions, selection: Selection) -> Terms:
        """The terms of a reduction: losses times sample weights, NaN at bad positions."""
        ops, plan = self.ops, self.plan
        losses, weights, bad = found
        if plan.scale != 1.0:
            losses = losses * plan.scale
        if selection.weight is not None:
            losses = losses * selection.weight
            if weights is None:
                weights = ops.broadcast_like(selection.weight, losses)
            else:
                weights = self.product(weights, selection.weight)
        if selection.poisoned is not None:
            poisoned = ops.broadcast_like(selection.poisoned, losses)
            bad = poisoned if bad is None else bad | poisoned
        if bad is not None:
            # A product, not a select, so that the gradient of the position is NaN too.
            losses = losses * ops.where(bad, self.scalar(NAN, losses), 1.0)
            if weights is not None:
                weights = ops.where(~bad, weights, NAN)
        kept = None if selection.kept is None else ops.broadcast_like(selection.kept, losses)
        if kept is not None:
            losses = ops.where(kept, losses, 0.0)
            weights = None if weights is None else ops.where(kept, weights, 0.0)
        present = selection.present
        if present is not None:
            present = ops.broadcast_like(present, losses)
        return Terms(losses, weights, present, kept)

    # ---------------------------------------------------------------------- reduce positions

    def reduce(self, terms: Terms) -> Array:
        """The terms, reduced as the spec says, in the result dtype."""
        ops, plan = self.ops, self.plan
        if plan.spec.reduction == "none":
            losses = terms.losses
            if plan.average_last_axis:
                losses = ops.sum_axis(losses, -1) / self.averaged_over(terms)
            return ops.cast(losses, plan.result_dtype)
        total = ops.sum(terms.losses)
        if plan.spec.reduction == "mean":
            # An average over the last axis would divide the sum, and the divisor, which counts
            # elements, by the same number.
            total = self._mean(terms, total)
        elif plan.average_last_axis:
            total = total / self.averaged_over(terms)
        return ops.cast(total, plan.result_dtype)

    def _mean(self, terms: Terms, total: Array) -> Array:
        """The sum over the divisor: the one place where a mean is taken."""
        fill = 0.0 if self.plan.spec.on_empty == "zero" else NAN
        count = self.divisor(terms)
        if isinstance(count, int):
            return total / count if count else total + fill
        empty = self.ops.equal(count, 0)
        return self.ops.where(~empty, total / self.ops.where(~empty, count, 1.0), fill)

    def divisor(self, terms: Terms) -> Array | int:
        """What the mean divides by; a Python int where it is known without reading a value."""
        ops, plan = self.ops, self.plan
        rule, dtype = plan.divisor, plan.compute_dtype
        if rule == "weights" and terms.weights is not None:
            return ops.sum(terms.weights)
        if rule == "nonzero" and terms.weights is not None:
            nonzero = ~ops.equal(terms.weights, 0)
            if terms.kept is not None:
                nonzero = nonzero & terms.kept
            if plan.average_last_axis:
                # Count each position for as many elements as it has; see `reduce`.
                return ops.count(ops.any_axis(nonzero, -1), dtype) * self.averaged_over(terms)
            return ops.count(nonzero, dtype)
        if rule != "all" and terms.present is not None:
            return ops.count(terms.present, dtype)
        return ops.size(terms.losses, dtype) if plan.count is None else plan.count

    def averaged_over(self, terms: Terms) -> Array | int:
        """How many elements are averaged to one loss."""
        extent = None if self.plan.shape is None else self.plan.shape[-1]
        if extent is not None:
            return extent
        return self.ops.extent(terms.losses, -1, self.plan.compute_dtype)

    # ---------------------------------------------------------------------------- arithmetic

    def scalar(self, value: float, reference: Array) -> Array:
        """A Python number as a tensor in the compute dtype, on the device of `reference`."""
        return self.ops.constant(value, self.plan.compute_dtype, reference)

    def product(self, x: Array, y: Array) -> Array:
        """x y, raised to the smallest normal number where it underflows.

        So it is 0 where a factor is 0, and nowhere else.
        """
        ops = self.ops
        tiny = FORMATS[self.plan.compute_dtype].tiny
        small = x * y
        lost = (small < tiny) & (small > -tiny) & ~ops.equal(x, 0) & ~ops.equal(y, 0)
        return small + ops.where(lost, self.scalar(tiny, small), 0.0)

    def multiply_no_nan(self, weight: Array, cost: Array) -> Array:
        """weight * cost with 0 * inf = 0, in value and gradient: 0 log 0 = 0."""
        ops = self.ops
        lost = ops.equal(weight, 0) & ops.equal(cost, INFINITY)
        return weight * ops.where(~lost, cost, 0.0)
