"""Native calls by the compiled loops, where they are built; see `unifiedloss.compiled.native`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.numpy import blocks
from unifiedloss.compiled import native
from unifiedloss.compiled.native import Loop
from unifiedloss.evaluator import Evaluator, Positions, Selection, Terms
from unifiedloss.inputs import Inputs
from unifiedloss.plan import Plan

Array = NDArray[Any]

_POSITIONS = 1 << 14
"""Positions per block. A block has ten or so arrays of that size beside the tensors."""


def whole(
    plan: Plan, predictions: Array, targets: Array, upstream: float | None
) -> tuple[Array, Array | None] | None:
    """Compute a call without weights and masks from its arrays, in one pass over them.

    The values are not checked before: the loop counts those that it does not know.

    Args:
        plan: the plan of the call.
        predictions: the predictions.
        targets: the targets.
        upstream: the upstream gradient; None if the gradient is not wanted.

    Returns:
        The loss and the gradient; None if the call needs another way.
    """
    loop = native.loop_of(plan)
    if loop is None or not plan.plain or not _classes_last(plan):
        return None
    if not (_is_ordered(predictions) and _is_ordered(targets)) or not _reads(plan, targets):
        return None
    count = plan.count if plan.spec.reduction == "mean" else 1
    assert count is not None
    alone = plan.spec.reduction == "none"
    shape: Any = plan.positions if alone else ()
    value = np.empty(shape, np.float32)
    slopes = None if upstream is None else np.empty(predictions.shape, np.float32)
    unknown, _ = native.run(
        plan,
        loop,
        predictions,
        targets,
        factor=1.0 if upstream is None else upstream / count,
        losses=value if alone else None,
        slopes=slopes,
        divisor=count,
        quotient=None if alone else value,
    )
    return None if unknown else (value[()], slopes)


def totals(e: Evaluator, inputs: Inputs, *, mean: bool) -> tuple[float, float | None] | None:
    """The sum of the terms and the divisor of a piece, of a plan with the reduction "sum".

    The losses are added in float64.

    Returns:
        Both numbers, the second only if `mean` is set; None if no loop computes them.
    """
    plan = e.plan
    loop = native.loop_of(plan)
    if loop is None or plan.average_last_axis:
        return None
    own = blocks.evaluator_of_blocks(e)
    total = divisor = 0.0
    for block in _cut(plan, inputs):
        found = _computed(own, loop, block.inputs, None, None, None)
        if found is None:
            return None
        total += float(np.sum(found.losses, dtype=np.float64))
        if mean:
            divisor += float(own.divisor_of_piece(found, "float64"))
    return total, divisor if mean else None


def _cut(plan: Plan, inputs: Inputs) -> Iterator[blocks.Block]:
    """Cut a call in blocks of positions."""
    predictions = inputs.predictions
    axis = blocks.axis_to_cut(plan, predictions)
    if axis is None:
        everything: Any = (...,)
        return iter([blocks.Block(inputs, everything, everything)])
    ordered = axis == 0 and _classes_last(plan) and _is_ordered(predictions)
    size = _POSITIONS * (plan.classes or 1) if ordered else blocks.ELEMENTS
    return blocks.blocks(plan, inputs, axis, size)


def evaluate(
    e: Evaluator, inputs: Inputs, upstream: Array | None = None, *, gradient: bool
) -> tuple[Array, Array | None] | None:
    """Compute a call whose values were checked, in blocks of positions.

    Returns:
        The loss and the gradient; None if no loop computes it.
    """
    plan = e.plan
    loop = native.loop_of(plan)
    if loop is None:
        return None
    own = blocks.evaluator_of_blocks(e)
    mean = plan.spec.reduction == "mean"
    count: Any = None
    if mean:
        each = (own.divisor(_terms(own, block.inputs, None)) for block in _cut(plan, inputs))
        count = plan.count if plan.plain else float(sum(map(float, each)))
    shape: Any = plan.positions
    losses = np.empty(shape, np.float32) if plan.spec.reduction == "none" else None
    slopes = np.empty(inputs.predictions.shape, np.float32) if gradient else None
    total = 0.0
    for block in _cut(plan, inputs):
        above = upstream if upstream is None else blocks.cut(upstream, block.positions)
        into = slopes if slopes is None else slopes[block.place]
        found = _computed(own, loop, block.inputs, count, above, into)
        if found is None:
            return None
        if losses is None:
            total += float(np.sum(found.losses))
        else:
            losses[block.positions] = found.losses
    if slopes is not None and count == 0:
        slopes[...] = 0
    if losses is not None:
        return losses[()], slopes
    result = np.asarray(total, np.float32)
    if mean:
        result = e.quotient(result, np.asarray(count, np.float32))
    return result[()], slopes


def _computed(
    e: Evaluator,
    loop: Loop,
    inputs: Inputs,
    count: float | None,
    upstream: Array | None,
    slopes: Array | None,
) -> Terms | None:
    """Compute a block, with its gradient into `slopes`; None if the loop does not know a position.

    Args:
        e: the evaluator of blocks.
        loop: the loop of the plan.
        inputs: the tensors of the block.
        count: the divisor of the whole call; None unless it is a mean's.
        upstream: the upstream gradient of the block.
        slopes: the part of the gradient.
    """
    plan = e.plan
    predictions = inputs.predictions
    if plan.axis is not None:
        predictions = np.moveaxis(predictions, plan.axis, -1)
    shape = predictions.shape if plan.axis is None else predictions.shape[:-1]
    inputs = inputs._replace(targets=_targets(plan, inputs.targets))
    selection = e.select(inputs)
    weights = _class_weights(e, inputs.targets, selection)
    factor: Any = 1.0
    if slopes is not None:
        factor = _factor(shape, count, upstream, selection.weight, weights)
    kept = selection.kept
    losses = np.empty(shape, np.float32)
    moved = None if slopes is None or plan.axis is None else np.moveaxis(slopes, plan.axis, -1)
    rows = slopes if moved is None else moved
    into = rows
    if rows is not None and not _is_ordered(rows):
        into = np.empty(rows.shape, np.float32)
    unknown, _ = native.run(
        plan,
        loop,
        _ordered(predictions, np.float32),
        inputs.targets,
        todo=None if kept is None else _ordered(np.broadcast_to(kept, shape), bool),
        factor=factor,
        losses=losses,
        slopes=into,
    )
    if unknown:
        return None
    if rows is not None and into is not rows:
        rows[...] = into
    return _terms(e, inputs, losses, selection, weights)


def _terms(
    e: Evaluator,
    inputs: Inputs,
    losses: Array | None,
    selection: Selection | None = None,
    weights: Array | None = None,
) -> Terms:
    """Weigh the losses of a block; without losses, the weights alone are of use."""
    if selection is None:
        inputs = inputs._replace(targets=_targets(e.plan, inputs.targets))
        selection = e.select(inputs)
        weights = _class_weights(e, inputs.targets, selection)
    if losses is None:
        losses = np.broadcast_to(np.float32(0), inputs.targets.shape)
    if weights is not None:
        losses = e.multiply_no_nan(weights, losses)
    return e.weigh(Positions(losses, weights, None), selection)


def _class_weights(e: Evaluator, labels: Array, selection: Selection) -> Array | None:
    plan = e.plan
    if plan.class_weights is None:
        return None
    each = np.asarray(plan.class_weights, np.float32)
    weights: Array = each[e.replace(selection.kept, labels, 0)]
    return weights


def _factor(
    shape: tuple[int, ...],
    count: float | None,
    upstream: Array | None,
    weight: Array | None,
    class_weights: Array | None,
) -> Array | float:
    """The factors of the slopes: one number, or an array, with any numbers where nothing counts."""
    factor: Any = 1.0 if upstream is None else np.asarray(upstream, np.float64)
    if count is not None:
        factor = factor / (count or 1.0)
    for each in (weight, class_weights):
        if each is not None:
            factor = factor * each.astype(np.float64)
    if not np.ndim(factor):
        return float(factor)
    return _ordered(np.broadcast_to(factor, shape), np.float64)


def _targets(plan: Plan, targets: Array) -> Array:
    """The targets as a loop reads them."""
    own = targets.dtype.newbyteorder("=")
    return _ordered(targets, own if plan.kind == "index" else np.float32)


def _ordered(x: Array, dtype: Any) -> Array:
    """An array that a loop can read."""
    x = np.asarray(x, dtype, order="C")
    return x if x.flags.aligned else x.copy()


def _is_ordered(x: Array) -> bool:
    """Whether a loop can read an array where it lies."""
    flags = x.flags
    return flags.c_contiguous and flags.aligned and x.dtype.isnative


def _reads(plan: Plan, targets: Array) -> bool:
    """Whether the loop of a plan reads targets of this dtype as they are."""
    return plan.kind == "index" or plan.targets_dtype == "float32"


def _classes_last(plan: Plan) -> bool:
    return plan.axis is None or plan.axis == len(plan.shape or ()) - 1
