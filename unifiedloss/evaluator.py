"""The steps of an evaluation that all losses share, and the values they exchange.

An evaluation selects the positions that count, computes their losses (the module `pipeline` of
each loss), weighs them, and reduces them. It uses no mean and no weighting of a framework, because
no two frameworks divide by the same number.

Masking is a *double select*: values that must not be read are replaced by harmless ones before the
computation, and the results are replaced afterwards. Multiplying by 0, or masking only afterwards,
would let a NaN through into the gradient (jax-ml/jax#17070, tensorflow#11756).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from unifiedloss.floats import FORMATS
from unifiedloss.inputs import Inputs
from unifiedloss.ops import Array, Kernels, Ops
from unifiedloss.plan import BEYOND_FLOAT64, MAX_INTEGER_TARGET, Plan

NAN = math.nan
INFINITY = math.inf


class Selection(NamedTuple):
    """Which positions count, decided before any prediction is read.

    The tensors need not have the shape of the positions, but broadcast to it.

    Attributes:
        present: which positions are not dropped; None for all.
        kept: which positions are neither dropped nor zero-weighted; None for all.
        weight: the sample weights times the element weights; None where each is 1.
        poisoned: which positions have a weight that must make their gradients NaN, because it is
            NaN or a bad value; None for none.
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
        bad: which positions hold a bad value; None if no check was needed.
        poisoned: which positions are NaN for another reason, so that their weights stay; None for
            none.
    """

    losses: Array
    weights: Array | None
    bad: Array | None
    poisoned: Array | None = None


class Terms(NamedTuple):
    """The weighted losses of all positions, and the tensors that the divisor is computed from.

    Attributes:
        losses: sample_weight_i * l_i, +0 at positions that are dropped or zero-weighted.
        weights: W_i; None where each is 1.
        present: which positions are not dropped; None for all.
        kept: which positions are neither dropped nor zero-weighted; None for all.
    """

    losses: Array
    weights: Array | None = None
    present: Array | None = None
    kept: Array | None = None


class Evaluator:
    """Evaluates one plan with the operations of one framework.

    Attributes:
        ops: the framework's array operations.
        kernels: the framework's loss kernels.
        plan: from `unifiedloss.plan.resolve`.
        checked: whether the values were checked and none is bad, so that no position needs to be
            poisoned with NaN.
    """

    __slots__ = ("checked", "kernels", "ops", "plan")

    def __init__(self, ops: Ops, kernels: Kernels, plan: Plan, *, checked: bool = False) -> None:
        self.ops, self.kernels, self.plan, self.checked = ops, kernels, plan, checked

    def read(self, x: Array, tiny: float) -> Array:
        """A floating tensor in the compute dtype.

        Where the spec names another dtype than the tensor's own, numbers below the smallest normal
        number of either dtype are 0. NumPy and torch keep them in a cast, TensorFlow and JAX do
        not.

        Args:
            x: predictions or floating targets.
            tiny: `Plan.tiny` or `Plan.tiny_target`.
        """
        ops = self.ops
        read = ops.cast(x, self.plan.compute_dtype)
        if getattr(self.plan.spec, "dtype", None) is None or x.dtype == read.dtype:
            return read
        # The derivative stays 1.
        return read - ops.stop_gradient(ops.where((read < tiny) & (read > -tiny), read, 0.0))

    # ---------------------------------------------------------------------- select positions

    def select(self, inputs: Inputs) -> Selection:
        """Select the positions that count. Predictions have the compute dtype already."""
        ops, plan = self.ops, self.plan
        predictions, targets, sample_weight, mask = inputs
        unweighted = sample_weight is None and plan.element_weights is None
        if unweighted and mask is None and not plan.ignored_labels:
            return Selection()
        # Masks and weights are aligned to the rank of this tensor, which has one axis per axis of
        # the positions.
        reference = targets if plan.kind != "dense" else ops.sum_axis(predictions, self.axis)
        present = None if mask is None else ops.align(mask, reference)
        for label in plan.ignored_labels:
            differs = ~ops.equal(targets, label)
            present = differs if present is None else present & differs
        weight = product = None
        if sample_weight is not None:
            weight = ops.align(ops.cast(sample_weight, plan.compute_dtype), reference)
        if plan.element_weights is not None:
            static = ops.constant(plan.element_weights, plan.compute_dtype, predictions)
            if weight is None:
                weight = static
            else:
                product = weight * static
        if weight is None:
            return Selection(present, present)
        nonzero = plan.counts(weight, product)
        if product is not None:
            weight = product
        kept = nonzero if present is None else present & nonzero
        poisoned = None
        if not self.checked and self.divides_by_weights:
            poisoned = weight <= -plan.tiny_weight
        if plan.probabilities or plan.log_probabilities:
            # A loss of probabilities may leave entries unread, so the product with a NaN weight
            # does not reach their gradients. From logits, and for squared errors, it does.
            is_nan = _is_nan(weight)
            poisoned = is_nan if poisoned is None else poisoned | is_nan
        return Selection(present, kept, weight, None if poisoned is None else poisoned & kept)

    @property
    def divides_by_weights(self) -> bool:
        """Whether the loss is a mean whose divisor is the sum of the weights, if there are any."""
        return self.plan.spec.reduction == "mean" and self.plan.divisor == "weights"

    @property
    def axis(self) -> int:
        """The class axis."""
        assert self.plan.axis is not None
        return self.plan.axis

    def replace(self, kept: Array | None, x: Array, value: float, axis: int | None = None) -> Array:
        """Replace the entries of positions that are not kept by a harmless value."""
        if kept is None:
            return x
        return self.ops.where(kept if axis is None else self.ops.expand(kept, axis), x, value)

    def real_numbers(
        self, predictions: Array, targets: Array, selection: Selection
    ) -> tuple[Array, Array, Array | None]:
        """Predictions and targets of a loss of any numbers, with 0 at positions that do not count.

        Returns:
            Both in the compute dtype, and which positions hold a bad target; None for none.
        """
        ops, plan = self.ops, self.plan
        bad = None
        if plan.targets_dtype in BEYOND_FLOAT64 and not self.checked:
            # Compare as int64, because a uint64 tensor cannot be compared with a negative number.
            # The largest uint64 numbers become negative, so the lowest valid one is 0.
            integers = ops.cast_labels(targets)
            lowest = 0 if plan.targets_dtype == "uint64" else -MAX_INTEGER_TARGET
            bad = (integers > MAX_INTEGER_TARGET) | (integers < lowest)
        if plan.targets_dtype in FORMATS:
            targets = self.read(targets, plan.tiny_target)
        else:
            targets = ops.cast(targets, plan.compute_dtype)
        targets = self.replace(selection.kept, targets, 0.0)
        return self.replace(selection.kept, predictions, 0.0), targets, bad

    def averaged(self, positions: Positions, targets: Array, kept: Array | None) -> Positions:
        """Flag whole rows where the last axis is averaged, because a row is one position."""
        bad = None if positions.bad is None else self._any_in_row(positions.bad, kept)
        return positions._replace(bad=bad, poisoned=self.rows_with_nan(targets, kept))

    def rows_with_nan(self, targets: Array, kept: Array | None) -> Array | None:
        """Which rows have a NaN target.

        Args:
            targets: the targets in their own dtype.
            kept: which elements are neither dropped nor zero-weighted; None for all.

        Returns:
            Flags with the last axis of length 1; None if no target can be NaN.
        """
        if self.plan.targets_dtype not in FORMATS:
            return None
        return self._any_in_row(_is_nan(targets), kept)

    def _any_in_row(self, flags: Array, kept: Array | None) -> Array:
        flags = flags if kept is None else flags & kept
        return self.ops.expand(self.ops.any_axis(flags, -1), -1)

    # ----------------------------------------------------------------------- weigh positions

    def weigh(self, positions: Positions, selection: Selection) -> Terms:
        """Multiply losses by sample weights; bad positions become NaN, those not kept 0."""
        ops, plan = self.ops, self.plan
        losses, weights, bad, nan = positions
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
            if selection.kept is not None:
                # The select below would keep the loss at 0, but not the gradient to the weight.
                bad = bad & selection.kept
            # A product, not a select, so that the gradient of the position is NaN too.
            losses = losses * ops.where(bad, self.scalar(NAN, losses), 1.0)
            if weights is not None:
                weights = ops.where(~bad, weights, NAN)
        if nan is not None:
            nan = nan if selection.kept is None else nan & selection.kept
            losses = losses * ops.where(nan, self.scalar(NAN, losses), 1.0)
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
        """Reduce the terms as the spec says, and cast to the result dtype."""
        ops, plan = self.ops, self.plan
        if plan.spec.reduction == "none":
            losses = terms.losses
            if plan.average_last_axis:
                losses = ops.sum_axis(losses, -1) / self.averaged_over(terms)
            return ops.cast(losses, plan.result_dtype)
        total = ops.sum(terms.losses)
        if plan.spec.reduction == "mean":
            # The mean needs no division by the number of averaged elements: the divisor counts
            # elements too, so that number cancels.
            total = self._mean(terms, total)
        elif plan.average_last_axis:
            total = total / self.averaged_over(terms)
        return ops.cast(total, plan.result_dtype)

    def _mean(self, terms: Terms, total: Array) -> Array:
        return self.quotient(total, self.divisor(terms))

    def quotient(self, total: Array, count: Array | int) -> Array:
        """Divide the sum by the divisor. Every mean is taken here."""
        fill = 0.0 if self.plan.spec.on_empty == "zero" else NAN
        if isinstance(count, int):
            return total / count if count else total + fill
        empty = self.ops.equal(count, 0)
        return self.ops.where(~empty, total / self.ops.where(~empty, count, 1.0), fill)

    def divisor(self, terms: Terms, dtype: str | None = None) -> Array | int:
        """The divisor of the mean; a Python int if it is known without reading a value.

        Args:
            terms: the terms of the sum.
            dtype: in which weights are added, and counts returned. Default: the compute dtype.
        """
        ops, plan = self.ops, self.plan
        rule, dtype = plan.divisor, dtype or plan.compute_dtype
        if rule == "weights" and terms.weights is not None:
            return ops.sum(ops.cast(terms.weights, dtype))
        if rule == "nonzero" and terms.weights is not None:
            nonzero = ~ops.equal(terms.weights, 0)  # the weights of other positions are 0
            if plan.average_last_axis:
                # Count each position for as many elements as it has; see `reduce`.
                return ops.count(ops.any_axis(nonzero, -1), dtype) * self.averaged_over(
                    terms, dtype
                )
            return ops.count(nonzero, dtype)
        if rule != "all" and terms.present is not None:
            return ops.count(terms.present, dtype)
        return ops.size(terms.losses, dtype) if plan.count is None else plan.count

    def divisor_of_piece(self, terms: Terms, dtype: str) -> Array | int:
        """The divisor of the mean, in positions; NaN where a weight that it adds is negative."""
        weights = terms.weights
        if weights is not None and self.plan.divisor == "weights":
            terms = terms._replace(weights=self.ops.where(~(weights < 0), weights, NAN))
        divisor = self.divisor(terms, dtype)
        return (
            divisor / self.averaged_over(terms, dtype) if self.plan.average_last_axis else divisor
        )

    def averaged_over(self, terms: Terms, dtype: str | None = None) -> Array | int:
        """How many elements are averaged to one loss; a tensor in the compute dtype or `dtype`."""
        extent = None if self.plan.shape is None else self.plan.shape[-1]
        if extent is not None:
            return extent
        return self.ops.extent(terms.losses, -1, dtype or self.plan.compute_dtype)

    # ---------------------------------------------------------------------------- arithmetic

    def scalar(self, value: float, reference: Array) -> Array:
        """A Python number as a tensor in the compute dtype, on the device of `reference`."""
        return self.ops.constant(value, self.plan.compute_dtype, reference)

    def product(self, x: Array, y: Array) -> Array:
        """Return x * y, which is 0 where a factor is 0 and nowhere else.

        Where the product underflows, the smallest normal number is added to it.
        """
        ops = self.ops
        tiny = FORMATS[self.plan.compute_dtype].tiny
        product = x * y
        is_small = (product < tiny) & (product > -tiny)
        underflows = is_small & ~ops.equal(x, 0) & ~ops.equal(y, 0)
        return product + ops.where(underflows, self.scalar(tiny, product), 0.0)

    def multiply_no_nan(self, weight: Array, cost: Array) -> Array:
        """weight * cost with 0 * inf = 0, in value and gradient: 0 log 0 = 0."""
        ops = self.ops
        undefined = ops.equal(weight, 0) & ops.equal(cost, INFINITY)
        return weight * ops.where(~undefined, cost, 0.0)


def _is_nan(x: Array) -> Array:
    return ~((x < 0) | (x >= 0))
