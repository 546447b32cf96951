"""Messages that more than one module raises, so that their wording is the same everywhere."""

from __future__ import annotations

from unifiedloss.inputs import Shape


def describe(shape: Shape | None) -> str:
    """Format a shape for a message."""
    return "of unknown rank" if shape is None else str(tuple(shape))


class Message:
    """Templates of the messages about the shapes of a call.

    `unifiedloss.shapes` fills them in for extents that are known at the call, and a traced graph
    for extents that it learns when it runs.
    """

    NO_AXIS = "predictions need a class axis, got a scalar of shape ()."
    AXIS = "axis={axis} is out of range for predictions of shape {predictions}."
    NO_CLASSES = "predictions of shape {predictions} have no classes on axis {axis}."
    CLASS_WEIGHTS = (
        "class_weights has {count} entries, and predictions of shape {predictions} have {classes} "
        "classes on axis {axis}."
    )
    INDEX_TARGETS = (
        "class indices must have the predictions' shape without the class axis: predictions "
        "{predictions} with class axis {axis} need targets {positions}, got {targets}; {fix}"
    )
    DENSE_TARGETS = (
        "dense (floating) targets must have the shape of the predictions {predictions}, got "
        "{targets}; {fix}"
    )
    DENSE_IGNORED = (
        "ignore_index={label} names a class, and dense targets have no label to compare it with; "
        "use a mask to drop positions, or index targets."
    )
    ELEMENTS = (
        "targets must have the shape of the predictions, nothing is broadcast or squeezed: "
        "predictions {predictions}, targets {targets}; {fix}"
    )
    POS_WEIGHT_SCALAR = (
        "pos_weight has {count} entries, one per entry of the last axis, and the predictions are a "
        "scalar."
    )
    POS_WEIGHT_AXIS = (
        "pos_weight has {count} entries, and the predictions {predictions} have {rank} axes: name "
        "the one along which the weights run. torch aligns them to the last axis, axis=-1; the "
        "tags of images (batch, tags, height, width) are axis=1."
    )
    POS_WEIGHT = (
        "pos_weight has {count} entries, and axis {axis} of the predictions {predictions} has "
        "{extent}."
    )
    ELEMENT_WEIGHTS = (
        "element_weights of shape {weights} do not fit the last axes of predictions {predictions}: "
        "each extent must be 1 or the same."
    )
    AVERAGED = (
        "average_last_axis leaves no position of predictions {predictions}: they need another "
        "axis, and at least one entry on the last; add an axis, or leave average_last_axis out."
    )
    UPSTREAM = "upstream must have the shape of the loss {loss}, got {got}; nothing is broadcast."
    LEADING = (
        "{name} must have the shape of the per-position loss {positions} or a leading part of it, "
        "got {got}; nothing is broadcast over leading axes."
    )

    FIX_INDEX_TARGETS = "one label per position."
    FIX_DENSE_TARGETS = "for class indices use an integer dtype and the shape {positions}."
    FIX_SWAPPED = (
        "arguments swapped? A spec takes (predictions, targets), and Keras calls a loss as "
        "(y_true, y_pred); for Keras: spec.to('keras')."
    )
    FIX_VMAP = (
        "Under vmap an example lacks the batch axis; count the axis from the end, as in axis=-1."
    )
    FIX_ELEMENTS = "make the shapes equal before the call."


def foreign(argument: str, owner: str, backend: str) -> str:
    """Return the message about an argument of another framework than that of the call."""
    return (
        f"{argument} is a {owner} tensor and the call is carried out by {backend}; one call has "
        f"one framework. Convert {argument} first, or pass it as a NumPy array."
    )
