"""Positive weights as arrays that broadcast against the last axes, which torch and TensorFlow have, and as a spec has them."""

from __future__ import annotations

from typing import Any

from unifiedloss.spec import extents
from unifiedloss.switching.tables import refuse


def along_one_axis(weights: Any, advice: str) -> tuple[Any, int | None]:
    """The numbers of an array that varies along one axis at most, and that axis, counted from the end; None for the last.

    Args:
        weights: nested tuples, a number, or None.
        advice: what to do where it varies along several, as the end of the message.

    Raises:
        UnsupportedError: it varies along several axes.
    """
    shape = extents(weights)
    longer = [axis for axis, extent in enumerate(shape) if extent != 1]
    if len(longer) > 1:
        refuse(
            f"pos_weight of shape {shape} varies along {len(longer)} axes, and that of a spec runs along one axis; give one number for "
            f"each class{advice}."
        )
    flat = _flat(weights)
    if not longer:
        return flat[0], None
    axis = longer[0] - len(shape)
    return flat, None if axis == -1 else axis


def _flat(value: Any) -> tuple[Any, ...]:
    return tuple(number for part in value for number in _flat(part)) if isinstance(value, tuple) else (value,)


def against_last_axes(weights: Any, axis: int | None) -> Any:
    """The array whose weights run along an axis that is counted from the end; axes of length 1 follow it."""
    if not isinstance(weights, tuple) or axis is None:
        return weights
    for _ in range(-1 - axis):
        weights = tuple((number,) for number in weights)
    return weights
