"""Evaluate a plan with an adapter's operations. The rules of the spec are written once, for all.

An adapter provides *ops*, array operations under one set of names, and *kernels*, the framework's
loss kernels (`unifiedloss.ops`). This module calls them in order: `terms` selects the positions
that count, computes their losses and weighs them, and `Evaluator.reduce` sums and divides them.
"""

from __future__ import annotations

from unifiedloss import losses
from unifiedloss.evaluator import NAN, Evaluator, Positions, Selection, Terms
from unifiedloss.inputs import Inputs
from unifiedloss.ops import Array, Kernels, Ops

__all__ = ["Kernels", "Ops", "evaluate", "softmax", "terms", "weights"]

_POSITIONS = {row.name: losses.part(row.name, "pipeline").positions for row in losses.ROWS}
"""The function of each loss that computes the losses of positions."""

_WEIGHTS = {
    row.name: losses.part(row.name, "pipeline").weights
    for row in losses.ROWS
    if hasattr(losses.part(row.name, "pipeline"), "weights")
}
"""The function of each loss with a class axis that computes the weights of positions."""


def evaluate(e: Evaluator, inputs: Inputs) -> Array:
    """Compute the loss of a plan, reduced as its spec says.

    Args:
        e: the plan, and the operations of the framework.
        inputs: tensors as the plan describes them.
    """
    return e.reduce(terms(e, inputs))


def terms(e: Evaluator, inputs: Inputs) -> Terms:
    """Compute the losses and weights of all positions; of all elements if `average_last_axis`."""
    ops, plan = e.ops, e.plan
    agree = None
    if plan.unchecked:
        agree, tensors = ops.shapes_agree(plan, *inputs)
        inputs = Inputs(*tensors)
    predictions = e.read(inputs.predictions, plan.tiny)
    targets = ops.cast_labels(inputs.targets) if plan.kind == "index" else inputs.targets
    selection = e.select(Inputs(predictions, targets, inputs.sample_weight, inputs.mask))
    positions = _POSITIONS[plan.spec.name](e, predictions, targets, selection)
    if plan.average_last_axis:
        positions = e.averaged(positions, targets, selection.kept)
    weighed = e.weigh(positions, selection)
    if agree is None:
        return weighed
    losses = weighed.losses * ops.where(agree, e.scalar(1.0, weighed.losses), NAN)
    return weighed._replace(losses=losses)


def weights(e: Evaluator, inputs: Inputs) -> Terms:
    """Compute the weights of all positions, without predictions; the losses are 0.

    Args:
        e: a plan of `unifiedloss.plan.resolve_divisor`, and the operations of the framework.
        inputs: tensors as the plan describes them; the predictions are None.
    """
    ops, plan = e.ops, e.plan
    targets = ops.cast_labels(inputs.targets) if plan.kind == "index" else inputs.targets
    # Selecting reads no prediction, but their shape: dense targets have it.
    selection = e.select(inputs._replace(predictions=targets, targets=targets))
    of_positions = _WEIGHTS.get(plan.spec.name, _element_weights)
    positions = of_positions(e, targets, selection)
    if plan.average_last_axis:
        positions = e.averaged(positions, targets, selection.kept)
    return e.weigh(positions, selection)


def _element_weights(e: Evaluator, targets: Array, selection: Selection) -> Positions:
    """The weights of elements, which are 1 before sample weights, and which targets are bad."""
    ops, plan = e.ops, e.plan
    nothing = 0.0 * ops.cast(targets, plan.compute_dtype)
    if plan.kind == "real":
        _, targets, bad = e.real_numbers(nothing, targets, selection)
        return Positions(nothing, None, bad)
    targets = e.replace(selection.kept, ops.cast(targets, plan.compute_dtype), 0.0)
    bad = None if e.checked else (targets <= -plan.tiny_target) | (targets > 1.0)
    return Positions(nothing, None, bad)


def softmax(
    ops: Ops,
    kernels: Kernels,
    logits: Array,
    axis: int,
    dtype: str,
    compute_dtype: str,
    tiny: float,
) -> Array:
    """Compute the softmax in the compute dtype, and round once to `dtype`.

    Results below the smallest normal number of the compute dtype are 0.
    """
    probabilities = kernels.softmax(ops.cast(logits, compute_dtype), axis)
    # ~(p < tiny) as the condition would not do, because TensorFlow's graphs turn it into p >= tiny,
    # and NaN would become 0.
    zero = 0.0 * ops.stop_gradient(probabilities)
    return ops.cast(ops.where(probabilities < tiny, zero, probabilities), dtype)
