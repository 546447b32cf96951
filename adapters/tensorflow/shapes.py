"""Checks of shapes that are unknown while a graph is traced, and layouts for such shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from string import Formatter
from typing import Any

import tensorflow as tf

from unifiedloss.checks import extents
from unifiedloss.messages import Message
from unifiedloss.plan import Plan

Tensor = Any

_Check = tuple[Tensor, list[Any]]
"""A condition and its error message, as alternating text and shapes."""


# ----------------------------------------------------------------------------------------- layouts


def classes_last(x: Tensor, axis: int) -> Tensor:
    """`x` with the class axis last."""
    rank = x.shape.rank
    if axis in (-1, None if rank is None else rank - 1):
        return x
    return tf.transpose(x, _order(x, axis))


def classes_back(x: Tensor, axis: int) -> Tensor:
    """The inverse of `classes_last`."""
    rank = x.shape.rank
    if axis in (-1, None if rank is None else rank - 1):
        return x
    return tf.transpose(x, tf.math.invert_permutation(_order(x, axis)))


def _order(x: Tensor, axis: int) -> Tensor:
    axes = tf.range(tf.rank(x))
    return tf.concat([*_without(axes, axis), _entry(axes, axis)], 0)


def traced_once(function: Callable[..., Tensor], *dtypes: Any) -> Callable[..., Tensor]:
    """A function with a custom gradient as a separate graph, for tensors of any shapes.

    TensorFlow never frees a graph in which tf.custom_gradient is called, because it registers the
    gradient under a new name each time (tensorflow#27492). So users' graphs call this one, which is
    traced once, at its first call.
    """
    unknown: Any = None
    traced: Callable[..., Tensor] = tf.function(
        function,
        input_signature=[tf.TensorSpec(unknown, dtype) for dtype in dtypes],
        autograph=False,
    )
    return traced


def rows(x: Tensor, axis: int) -> Tensor:
    """`x` as a matrix, one row per position and one column per class."""
    x = classes_last(x, axis)
    if x.shape.rank == 2:
        return x
    classes = x.shape[-1] if x.shape.rank is not None else None
    return tf.reshape(x, [-1, tf.shape(x)[-1] if classes is None else classes])


def _without(vector: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The parts of a vector before and after an entry; no error if the entry does not exist."""
    return vector[:axis], vector[axis + 1 :] if axis != -1 else vector[:0]


def _entry(vector: Tensor, axis: int) -> Tensor:
    """One entry of a vector, as a vector of length 1, or length 0 if the entry does not exist."""
    return vector[axis : axis + 1] if axis != -1 else vector[-1:]


# ------------------------------------------------------------------------------------------ checks


def shapes_agree(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Whether unknown extents agree, and the tensors, which depend on the assertion that they do.

    XLA drops assertions, so nothing raises there. There the first result makes the loss NaN.
    """
    tensors = (predictions, targets, sample_weight, mask)
    fits = tf.constant(value=True)
    previous: list[Any] = []
    for holds, message in _checks(plan, *tensors):
        fits &= holds
        # One after the other, so that the same call always gives the same error.
        with tf.control_dependencies(previous):
            previous = [tf.debugging.Assert(holds, message)]
    with tf.control_dependencies(previous):
        checked: Any = tuple(None if x is None else tf.identity(x) for x in tensors)
        return fits, checked


def shaped_like(loss: Tensor, upstream: Tensor) -> Tensor:
    """The upstream gradient, after a check that it has the shape of the loss.

    If it has not, it becomes NaN where XLA drops the assertion.
    """
    if _known(loss, upstream):
        return upstream  # checked by `unifiedloss.plan.check_upstream`
    fits = _equal(tf.shape(loss), tf.shape(upstream))
    message = _message(Message.UPSTREAM, loss=tf.shape(loss), got=tf.shape(upstream))
    with tf.control_dependencies([tf.debugging.Assert(fits, message)]):
        if not upstream.dtype.is_floating:  # no integer is NaN
            return tf.identity(upstream)
        return tf.where(fits, upstream, tf.cast(float("nan"), upstream.dtype))


def _checks(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    mask: Tensor | None,
) -> Iterator[_Check]:
    """The checks that `unifiedloss.plan.resolve` could not make, because shapes were unknown."""
    shape, positions = tf.shape(predictions), tf.shape(predictions)
    if plan.axis is not None:
        yield from _check_classes(plan, plan.axis, shape)
        positions = tf.concat(_without(shape, plan.axis), 0)
    say = {
        "predictions": shape,
        "positions": positions,
        "axis": plan.axis,
        "targets": tf.shape(targets),
    }
    if not _known(predictions, targets):
        if plan.kind == "index":
            message = _message(Message.INDEX_TARGETS, **say, fix=Message.FIX_INDEX_TARGETS)
            yield _equal(positions, tf.shape(targets)), message
        elif plan.kind == "dense":
            template = Message.DENSE_TARGETS.replace("{fix}", Message.FIX_DENSE_TARGETS)
            yield _equal(shape, tf.shape(targets)), _message(template, **say)
        else:
            message = _message(Message.ELEMENTS, **say, fix=Message.FIX_ELEMENTS)
            yield _equal(shape, tf.shape(targets)), message
    yield from _check_elements(plan, shape)
    if plan.average_last_axis:
        positions = shape[:-1]
        say["positions"] = positions
    for name, x in (("sample_weight", sample_weight), ("mask", mask)):
        if x is not None and not _known(predictions, x):
            leading = positions[: tf.rank(x)]
            yield (
                _equal(leading, tf.shape(x)),
                _message(Message.LEADING, name=name, got=tf.shape(x), **say),
            )


def _check_elements(plan: Plan, shape: Tensor) -> Iterator[_Check]:
    """The checks of `pos_weight`, `element_weights` and `average_last_axis`."""
    say = {"predictions": shape}
    pos_weight, axis = getattr(plan.spec, "pos_weight", None), plan.pos_weight_axis
    if isinstance(pos_weight, tuple) and (plan.shape is None or plan.shape[axis] is None):
        count = len(pos_weight)
        if plan.shape is None:
            rank = tf.size(shape)
            yield rank > 0, _message(Message.POS_WEIGHT_SCALAR, count=count)
            yield (
                (-rank <= axis) & (axis < rank),
                _message(Message.AXIS, axis=axis, predictions=shape),
            )
        extent = _entry(shape, axis)
        message = _message(Message.POS_WEIGHT, count=count, axis=axis, extent=extent, **say)
        yield _equal(extent, tf.constant([count])), message
    weights = extents(getattr(plan.spec, "element_weights", None))
    if weights and (plan.shape is None or None in plan.shape):
        message = _message(Message.ELEMENT_WEIGHTS, weights=weights, **say)
        yield tf.size(shape) >= len(weights), message
        wanted = tf.constant(weights)
        last = shape[-len(weights) :]
        yield _fits(wanted, last), message
    if plan.average_last_axis and (plan.shape is None or plan.shape[-1] is None):
        message = _message(Message.AVERAGED, **say)
        yield tf.size(shape) > 1, message
        yield tf.reduce_all(shape[-1:] > 0), message


def _check_classes(plan: Plan, axis: int, shape: Tensor) -> Iterator[_Check]:
    if plan.shape is None:
        rank = tf.size(shape)
        yield rank > 0, [Message.NO_AXIS]
        yield (-rank <= axis) & (axis < rank), _message(Message.AXIS, axis=axis, predictions=shape)
    if plan.classes is not None:
        return
    classes = _entry(shape, axis)
    yield tf.reduce_all(classes > 0), _message(Message.NO_CLASSES, axis=axis, predictions=shape)
    if plan.class_weights is not None:
        count = len(plan.class_weights)
        message = _message(
            Message.CLASS_WEIGHTS, count=count, axis=axis, predictions=shape, classes=classes
        )
        yield _equal(classes, tf.constant([count])), message
    if plan.kind == "dense":
        for label in getattr(plan.spec, "ignore_index", None) or ():
            if label >= 0:
                yield (
                    tf.reduce_all(tf.cast(classes, tf.int64) <= label),
                    _message(Message.DENSE_IGNORED, label=label),
                )


def _fits(weights: Tensor, last: Tensor) -> Tensor:
    """Whether each extent of the weights is 1 or that of its axis, aligned at the last axes.

    `last` may have fewer axes than the weights; another check reports that.
    """
    common = tf.minimum(tf.size(weights), tf.size(last))
    weights, last = weights[tf.size(weights) - common :], last[tf.size(last) - common :]
    return tf.reduce_all(tf.equal(weights, 1) | tf.equal(weights, last))


def _known(*tensors: Tensor) -> bool:
    return all(x.shape.is_fully_defined() for x in tensors)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Whether two shapes are equal; their ranks may differ."""
    common = tf.minimum(tf.size(a), tf.size(b))
    return tf.equal(tf.size(a), tf.size(b)) & tf.reduce_all(tf.equal(a[:common], b[:common]))


def _message(template: str, **fields: Any) -> list[Any]:
    """A message as tf.debugging.Assert takes it: text and shapes, which it prints at run time."""
    parts: list[Any] = [""]
    for text, name, _, _ in Formatter().parse(template):
        parts[-1] += text
        value = None if name is None else fields[name]
        if tf.is_tensor(value):
            parts += [value, ""]
        elif value is not None:
            parts[-1] += str(value)
    return [
        part if tf.is_tensor(part) else part.strip()
        for part in parts
        if tf.is_tensor(part) or part.strip()
    ]
