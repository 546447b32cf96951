"""Exact mode under XLA where the number of positions is unknown while it is traced.

XLA compiles for each number, but the graph is the same for all. So its rows are padded to whole
blocks, which have a known number of rows, and a mask drops the padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from unifiedloss.adapters.tensorflow import ops, shapes
from unifiedloss.exact.graph.call import PADDED_WIDTH, Padded, padded_rows
from unifiedloss.plan import Plan, Signature, resolve

Tensor = Any


class Form(NamedTuple):
    """A call whose positions are along one axis, and padded.

    Attributes:
        plan: its plan.
        arrays: predictions, targets, sample_weight, mask, upstream, class_weights and pos_weight.
        counts: the number of positions.
        whole: the plan of the call as it was given.
        shape: the shape of its predictions.
        fits: whether its shapes agree.
    """

    plan: Plan
    arrays: list[Tensor | None]
    counts: Padded
    whole: Plan
    shape: Tensor
    fits: Tensor

    def cut(self, results: list[Tensor]) -> list[Tensor]:
        """The loss and the gradient without the padding; NaN if shapes do not agree."""
        loss, *slopes = results
        if self.whole.spec.reduction == "none":
            loss = tf.reshape(loss[: self.counts.real], _positions(self.whole, self.shape))
        found = [loss]
        for x in slopes:
            real, axis = x[: self.counts.real], self.whole.axis
            if axis is not None:
                parts: Any = [_positions(self.whole, self.shape), [self.whole.classes]]
                moved = tf.concat(parts, 0)
                rank = len(self.whole.shape or ())
                real = tf.reshape(real, moved)
                real.set_shape([None] * rank)
                found.append(shapes.classes_back(real, axis))
            else:
                found.append(tf.reshape(real, self.shape))
        return [ops.where(self.fits, x, tf.constant(float("nan"), x.dtype)) for x in found]


def _positions(plan: Plan, shape: Tensor) -> Tensor:
    if plan.axis is None:
        return shape
    return tf.concat([shape[: plan.axis], shape[plan.axis + 1 :]], 0)


def padded(plan: Plan, *tensors: Tensor | None) -> Form:
    """A call with its positions along one axis, and padded.

    Args:
        plan: the plan.
        *tensors: as `Form.arrays`.
    """
    *given, upstream, class_weights, pos_weight = tensors
    fits, (predictions, targets, weight, mask) = shapes.shapes_agree(plan, *given)
    shape = tf.shape(predictions)
    positions = _positions(plan, shape)

    def rows(x: Tensor) -> Tensor:
        return tf.reshape(x, [-1]) if plan.axis is None else shapes.rows(x, plan.axis)

    def spread(x: Tensor | None) -> Tensor | None:
        """An array that is aligned to the leading axes, along one axis."""
        if x is None:
            return None
        ones = tf.ones([tf.size(positions) - tf.rank(x)], tf.int32)
        aligned = tf.reshape(x, tf.concat([tf.shape(x), ones], 0))
        return tf.reshape(tf.broadcast_to(aligned, positions), [-1])

    x = rows(predictions)
    real = tf.shape(x)[0]
    step = PADDED_WIDTH * padded_rows(PADDED_WIDTH)
    if plan.classes is not None:
        step = padded_rows(plan.classes)
    count = tf.maximum((real + step - 1) // step, 1) * step
    if plan.spec.reduction == "none":
        upstream = spread(upstream)
    if isinstance(plan.pos_weight, tuple):
        pos_weight = tf.reshape(tf.broadcast_to(pos_weight, positions), [-1])

    def filled(x: Tensor | None) -> Tensor | None:
        if x is None or x.shape.rank == 0:
            return x
        more: Any = [[0, count - real], *[[0, 0]] * (x.shape.rank - 1)]
        return tf.pad(x, more)

    present = tf.fill([real], value=True) if mask is None else spread(mask)
    arrays = [
        filled(x),
        filled(tf.reshape(targets, [-1]) if plan.kind == "index" else rows(targets)),
        filled(spread(weight)),
        filled(present),
        filled(upstream),
        class_weights,
        filled(pos_weight),
    ]
    signatures: list[Any] = [
        None if x is None else Signature((None, *x.shape[1:]), x.dtype.name) for x in arrays[:4]
    ]
    spec = plan.spec if plan.axis is None else plan.spec.replace(axis=1)
    return Form(resolve(spec, *signatures), arrays, Padded(count, real), plan, shape, fits)
