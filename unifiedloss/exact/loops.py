"""Calls the compiled loops with the arrays of one call, as the first tier."""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss import compiled, losses
from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.scale import Scale
from unifiedloss.losses import has_part

_EXACT_DIVISORS = 1 << 28
"""The loops decide ties of slopes over integers below this one, whose products are exact."""


def carry_out(
    call: HostCall,
    todo: Bools,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> Bools | None:
    """Compute and round the positions that a compiled loop decides.

    The arguments are those of `fast.carry_out`.

    Returns:
        The positions that are left undecided, or None if no loop computes this call.
    """
    name = call.plan.spec.name
    if dtype != "float32" or call.plan.predictions_dtype != "float32":
        return None
    if not has_part(name, "compiled") or not compiled.is_available():
        return None
    module = losses.part(name, "compiled")
    left: Bools | None = module.carry_out(
        call, None if todo.all() else todo, results, slopes, scale
    )
    return left


def elementwise(
    call: HostCall,
    todo: Bools | None,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
    parameter: float = 1.0,
) -> Bools | None:
    """Compute an elementwise loss by its loop.

    Args:
        call: the call.
        todo: the positions to compute, or None for all.
        results: receives the losses.
        slopes: receives the gradient, or None.
        scale: the factor of the slopes, or None.
        parameter: the parameter of the loop.

    Returns:
        The positions that are left undecided, or None if the loop cannot read the arrays.
    """
    predictions, targets = call.rows[:, 0], call.targets[:, 0]
    if not (compiled.takes(predictions) and compiled.takes(targets)):
        return None
    left = np.zeros(len(predictions), bool)
    factor, exactly, divisor = _factor(scale)
    compiled.elementwise(
        call.plan.spec.name,
        np.ascontiguousarray(predictions),
        np.ascontiguousarray(targets),
        todo,
        contiguous(call.weight),
        factor,
        results,
        None if slopes is None else slopes[:, 0],
        left,
        factor_is_exact=exactly,
        divisor=divisor,
        parameter=parameter,
    )
    return left


def _factor(scale: Scale | None) -> tuple[Any, bool, float]:
    """The factor of the slopes, whether it is a power of two, and the integer it is the inverse of.

    The integer is 0 where there is none.
    """
    if scale is None:
        return 1.0, True, 0.0
    factor: Any = scale.float64(slice(None))
    if factor.ndim:
        return contiguous(factor), False, 0.0
    divisor, exact = scale.divisor, scale.power_of_two
    whole = divisor.low == 0 and divisor.radius == 0 and float(divisor.high).is_integer()
    inverse = scale.upstream == 1 and whole and 1 < divisor.high < _EXACT_DIVISORS
    return float(factor), exact, float(divisor.high) if inverse and not exact else 0.0


def contiguous(x: Array | None) -> Array | None:
    """The numbers as contiguous float64."""
    return None if x is None else np.ascontiguousarray(x, np.float64)
