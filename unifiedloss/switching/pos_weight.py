"""Positive weights as arrays that broadcast against the last axes, which torch and TensorFlow have, and as a spec has them."""

from __future__ import annotations

from typing import Any

from unifiedloss.checks import extents, nested_weights


def varying_axes(weights: Any) -> list[int]:
    """The axes of an array, in nested tuples, that are longer than 1, counted from the end."""
    shape = extents(weights)
    return [axis - len(shape) for axis, extent in enumerate(shape) if extent != 1]


def along_one_axis(weights: Any) -> tuple[Any, int | None]:
    """The numbers of an array that varies along one axis at most, and that axis; None for the last."""
    weights = (
        None if weights is None else nested_weights("pos_weight", weights)
    )  # which refuses what is no array
    axes, flat = varying_axes(weights), _flat(weights)
    if not axes:
        return flat[0], None
    return flat, None if axes[0] == -1 else axes[0]


def _flat(value: Any) -> tuple[Any, ...]:
    return (
        tuple(number for part in value for number in _flat(part))
        if isinstance(value, tuple)
        else (value,)
    )


def against_last_axes(weights: Any, axis: int | None) -> Any:
    """The array whose weights run along an axis that is counted from the end; axes of length 1 follow it."""
    if not isinstance(weights, tuple) or axis is None:
        return weights
    for _ in range(-1 - axis):
        weights = tuple((number,) for number in weights)
    return weights
