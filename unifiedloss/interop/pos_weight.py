"""Conversion of positive weights between other libraries' arrays and the fields of a spec.

In torch and TensorFlow, `pos_weight` is an array that broadcasts against the last axes. In a spec,
`pos_weight` runs along one axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unifiedloss.checks import extents, nested_weights
from unifiedloss.interop.lens import Given, Lens, Refusal, refuse

COVERED: dict[str, tuple[Any, ...]] = {"axis": (None,)}
"""A spec without an axis has its weights on the last one, or refuses the call."""


def pos_weight(several: str, check_spec: Callable[[Any], None], *refusals: Refusal) -> Lens:
    """The argument `pos_weight`.

    The text `several` refuses an array that varies along several axes; in it, ``{shape}`` and
    ``{axes}`` are its shape and their number. `check_spec` refuses specs that have no such array.
    """

    def read(weights: Any, _: Given) -> dict[str, Any]:
        axes = len(varying_axes(weights))
        if axes > 1:
            refuse(several.format(shape=extents(weights), axes=axes))
        numbers, axis = along_one_axis(weights)
        return {"pos_weight": numbers, "axis": axis}

    def write(spec: Any, _: str | None) -> Any:
        check_spec(spec)
        return against_last_axes(spec.pos_weight, spec.axis)

    return Lens(None, read, write, refusals, tensor=True)


def varying_axes(weights: Any) -> list[int]:
    """The axes of nested tuples whose length is not 1, counted from the end."""
    shape = extents(weights)
    return [axis - len(shape) for axis, extent in enumerate(shape) if extent != 1]


def along_one_axis(weights: Any) -> tuple[Any, int | None]:
    """The numbers of an array that varies along one axis, and that axis; (number, None) for one."""
    if weights is not None:
        weights = nested_weights("pos_weight", weights)  # refuses anything but an array
    axes, flat = varying_axes(weights), _flat(weights)
    if not axes:
        return flat[0], None
    return flat, axes[0]


def _flat(value: Any) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return tuple(number for part in value for number in _flat(part))
    return (value,)


def against_last_axes(weights: Any, axis: int | None) -> Any:
    """The weights as an array along `axis`, counted from the end; axes of length 1 follow it."""
    if not isinstance(weights, tuple) or axis is None:
        return weights
    for _ in range(-1 - axis):
        weights = tuple((number,) for number in weights)
    return weights
