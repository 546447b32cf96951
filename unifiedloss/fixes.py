"""Say what the shapes and dtypes of a call that does not fit suggest went wrong.

`unifiedloss.shapes` finds that a call does not fit; the functions here find what would fit in its
place. Each returns the end of a message. Unknown extents are assumed to fit.
"""

from __future__ import annotations

from unifiedloss.floats import FORMATS, INTEGER_TYPES
from unifiedloss.inputs import Shape, Signature, same
from unifiedloss.messages import Message, describe


def of_dtypes(predictions: str, targets: str) -> str:
    """What predictions that are not floating suggest, beside targets of this dtype."""
    if targets in FORMATS and predictions in (*INTEGER_TYPES, "bool"):
        return f"the targets are: {Message.FIX_SWAPPED}"
    return "cast them, or check that predictions come first and targets second."


def of_index_targets(given: int | None, predictions: Shape, axis: int, targets: Shape) -> str:
    """What class indices of another shape than the positions suggest.

    `given` is the class axis as the spec has it, and `axis` the same counted from the front.
    """
    positions = _without(predictions, axis)
    if same(predictions, targets):
        return "for one-hot or soft targets use a floating dtype."
    if same((*positions[:axis], 1, *positions[axis:]), targets):
        return f"remove the axis of length 1 with targets.reshape({describe(positions)})."
    fitting = [
        other - len(predictions)
        for other in range(len(predictions))
        if same(_without(predictions, other), targets)
    ]
    if len(fitting) != 1 or given is None:  # without an axis, a batch is too short
        return Message.FIX_INDEX_TARGETS
    one_less = given == axis == fitting[0] + len(predictions) + 1
    vmapped = f" {Message.FIX_VMAP}" if one_less else ""
    return (
        f"{Message.FIX_INDEX_TARGETS} They would fit axis={fitting[0]}, if the classes lie there."
        f"{vmapped}"
    )


def of_dense_targets(predictions: Shape, axis: int, targets: Shape) -> str:
    """What floating targets of another shape than the predictions suggest."""
    positions = _without(predictions, axis)
    if not same(positions, targets):
        if _is_index_of(predictions, targets):
            return Message.FIX_SWAPPED
        if sorted(map(str, predictions)) == sorted(map(str, targets)):
            return "transpose one of them, so that the classes lie on one axis in both."
    return Message.FIX_DENSE_TARGETS.format(positions=describe(positions))


def _is_index_of(labels: Shape, predictions: Shape) -> bool:
    """Whether the first shape is that of class indices of the second: (N,) or (N, 1) of (N, K)."""
    if len(labels) + 1 == len(predictions):
        return any(same(labels, _without(predictions, axis)) for axis in range(len(predictions)))
    column = len(labels) == len(predictions) > 1 and labels[-1] == 1 != predictions[-1]
    return column and same(labels[:-1], predictions[:-1])


def of_elements(predictions: Signature, targets: Signature, *, binary: bool) -> str:
    """What targets of another shape than elementwise predictions suggest."""
    shape, other = predictions.shape, targets.shape
    assert shape is not None
    assert other is not None
    if [n for n in shape if n != 1] == [n for n in other if n != 1]:
        return f"reshape one of them, as in targets.reshape({describe(shape)})."
    if targets.dtype in INTEGER_TYPES and binary and _is_index_of(other, shape):
        return (
            "class indices are targets of the categorical cross-entropy; the binary one takes a "
            "target for each element."
        )
    return Message.FIX_ELEMENTS


def of_axis(axis: int, rank: int) -> str:
    """What a class axis that is out of range suggests, with a space in front; may be empty."""
    return f" {Message.FIX_VMAP}" if axis == rank else ""


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])
