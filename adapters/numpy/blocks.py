"""Native calls in blocks of positions, so that their temporaries are small beside the tensors.

The losses of a block are added in the compute dtype, and the sums of the blocks in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss import pipeline, values
from unifiedloss.adapters.numpy import ops
from unifiedloss.errors import BadValueError, EmptyMeanError
from unifiedloss.evaluator import Evaluator
from unifiedloss.inputs import Inputs
from unifiedloss.plan import Plan

Array = NDArray[Any]

ELEMENTS = 1 << 15
"""Elements per block. The temporaries of a block, ten or so, stay in the processor's cache."""


class Block(NamedTuple):
    """Some positions of a call.

    Attributes:
        inputs: their tensors, as views.
        place: where their predictions are among all predictions.
        positions: where their losses are among the losses of all positions.
    """

    inputs: Inputs
    place: tuple[slice, ...]
    positions: tuple[slice, ...]


def axis_to_cut(plan: Plan, predictions: Array) -> int | None:
    """The longest axis along which a large call can be cut; None for a small call."""
    if predictions.size <= 2 * ELEMENTS:
        return None
    axes = [axis for axis in range(predictions.ndim) if axis not in plan.whole_axes]
    return max(axes, key=lambda axis: predictions.shape[axis], default=None)


def blocks(plan: Plan, inputs: Inputs, axis: int, size: int | None = None) -> Iterator[Block]:
    """Cut a call along an axis of the predictions, in blocks of `ELEMENTS` or so many elements."""
    predictions = inputs.predictions
    before = axis if plan.axis is None or axis < plan.axis else axis - 1
    extent = predictions.shape[axis]
    step = max(1, extent * (size or ELEMENTS) // predictions.size)
    for start in range(0, extent, step):
        part = slice(start, start + step)
        place, positions = (
            (slice(None),) * axis + (part,),
            (slice(None),) * before + (part,),
        )
        yield Block(
            Inputs(
                predictions[place],
                inputs.targets[positions if plan.kind == "index" else place],
                *(cut(x, positions) for x in (inputs.sample_weight, inputs.mask)),
            ),
            place,
            positions,
        )


def cut(x: Array | None, positions: tuple[slice, ...]) -> Array | None:
    """The part of a companion that belongs to a block; all of it if it lacks the axis."""
    return x if x is None or x.ndim < len(positions) else x[positions]


def check(plan: Plan, inputs: Inputs) -> None:
    """Check the values as `unifiedloss.values.check` does."""
    axis = axis_to_cut(plan, inputs.predictions)
    if axis is not None and not _reads_little(plan, inputs):
        try:
            # A list, because every block is checked, also after one that is not empty.
            empty = [_is_empty(plan, block) for block in blocks(plan, inputs, axis)]
            if not all(empty):
                return
        except BadValueError:
            pass  # the whole call says which of several bad values comes first
    values.check(plan, *inputs)


def _reads_little(plan: Plan, inputs: Inputs) -> bool:
    """Whether the check of a call makes no arrays of the size of the predictions."""
    spec: Any = plan.spec
    if plan.kind == "real":
        alone = inputs.sample_weight is None and getattr(spec, "dtype", None) is None
        return alone and spec.on_empty != "error"
    return plan.kind == "index" and not plan.probabilities and inputs.targets.size <= ELEMENTS


def _is_empty(plan: Plan, block: Block) -> bool:
    """Check a block. Return whether its own mean would be refused as empty."""
    try:
        values.check(plan, *block.inputs)
    except EmptyMeanError:
        return True
    return False


def evaluator_of_blocks(e: Evaluator) -> Evaluator:
    """The evaluator of a block: nothing that holds for the whole call alone is known there."""
    # Whether the mean is empty is not known before the last block. `quotient` handles it.
    plan = dataclasses.replace(e.plan, count=None, may_cancel=False)
    return Evaluator(e.ops, e.kernels, plan, checked=e.checked)


def evaluate(e: Evaluator, inputs: Inputs, axis: int) -> tuple[Array, Array | None]:
    """The loss of a call, reduced, and the divisor of a mean."""
    plan = e.plan
    own = evaluator_of_blocks(e)
    if plan.spec.reduction == "none":
        shape: Any = plan.positions
        losses: Array = np.empty(shape, ops.dtype(plan.result_dtype))
        for block in blocks(plan, inputs, axis):
            losses[block.positions] = own.reduce(pipeline.terms(own, block.inputs))
        return losses, None
    total = count = 0.0
    mean = plan.spec.reduction == "mean"
    for block in blocks(plan, inputs, axis):
        terms = pipeline.terms(own, block.inputs)
        total += float(np.sum(terms.losses))
        if mean:
            count += float(own.divisor(terms))
    result, divisor = (np.asarray(x, plan.compute_dtype) for x in (total, count))
    if mean:
        result = e.quotient(result, divisor)
    elif plan.average_last_axis:
        result = result / inputs.predictions.shape[-1]
    return e.ops.cast(result, plan.result_dtype), divisor if mean else None
