r"""The first tier of exact mode: float64 with hand-derived error bounds.

The module `exact` of each loss says which of its plans float64 computes, and how. With
\(u = 2^{-53}\), they assume these bounds of NumPy, which tests check:

- exp errs by at most 2 u, and so does an adapter's replacement;
- log1p errs by at most 4 u;
- the sum over a contiguous row of K float64 errs by at most `height(K)` u times the sum of the
  magnitudes. NumPy adds in pairs above blocks of 128, and eight terms at a time within a block.

A result v with relative error E is decided where v (1 - E) and v (1 + E) round to the same number.

float64 loses at most \(2^{-1022}\) to underflow, also where exp returns 0. `are_in_reach` and a
bound on the factor of a row's exponentials keep that loss negligible under every weight: it stays
below \(2^{-200}\), and thus below u times every result that is not rounded to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import compiled, losses
from unifiedloss.exact import counts, loops, mixed, wide
from unifiedloss.exact.balls import U
from unifiedloss.exact.call import HostCall
from unifiedloss.exact.factors import are_in_reach
from unifiedloss.exact.rounding import stored, to_format
from unifiedloss.exact.scale import Scale
from unifiedloss.plan import Plan, as_read

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Carry = Callable[[Any, Any, Any, Scale | None, str], Bools]
"""Computes some positions: (positions, losses, slopes or None, scale or None, dtype of the losses).

It fills in the losses and slopes, and returns which of the positions it leaves undecided.
"""

_BLOCK = 1 << 17
"""Elements per block. Larger blocks exceed the caches; smaller ones cost more calls per element."""

_ELEMENTS = 1 << 14
"""Elements per block of elementwise losses: their many temporaries fit the cache together."""

EXP = 2 * U
LOG1P = 4 * U
SMALL = 2.0**-990
"""An upper bound of the absolute error of exp by underflow."""


def height(k: int) -> int:
    """The most additions that a term passes through in NumPy's sum of k terms."""
    return min(k, 26 + max(0, math.ceil(math.log2(max(k, 1) / 128))))


def carry_out(
    call: HostCall,
    todo: Bools,
    results: NDArray[Any],
    slopes: NDArray[Any] | None,
    scale: Scale | None,
    dtype: str,
) -> Bools:
    """Compute and round the positions that float64 decides.

    Args:
        call: the call.
        todo: the positions to compute.
        results: receives the losses.
        slopes: receives the gradients, or None.
        scale: the factor of the slopes, or None.
        dtype: the dtype that losses are rounded to.

    Returns:
        The positions that are left undecided.
    """
    plan = call.plan
    if not _are_shared_in_reach(plan, scale):
        return todo
    unknown = _is_unknown(plan)
    if plan.predictions_dtype == "float64":
        if unknown or not _are_own_in_reach(call, slice(None), scale):
            return todo
        found = wide.carry_out(call, todo, results, slopes, scale)
        return todo if found is None else found
    if _are_own_in_reach(call, slice(None), scale):
        for tier in (loops.carry_out, mixed.carry_out):
            found = tier(call, todo, results, slopes, scale, dtype)
            if found is not None:
                return found
    if unknown:
        return todo
    step = _ELEMENTS if plan.axis is None else max(1, _BLOCK // call.rows.shape[1])
    module = losses.part(plan.spec.name, "exact")
    carry: Carry | None = module.float64(call, min(step, len(todo)))
    if carry is None:
        return todo
    left = np.zeros(len(todo), bool)
    chosen = np.flatnonzero(todo)
    all_chosen = len(chosen) == len(todo)
    for start in range(0, len(chosen), step):
        stop = min(start + step, len(chosen))
        # Use a slice where every position is chosen, because an index array copies.
        some: Any = slice(start, stop) if all_chosen else chosen[start:stop]
        if not _are_own_in_reach(call, some, scale):
            left[some] = True
            continue
        left[some] = carry(some, results, slopes, scale, dtype)
    return left


def _is_unknown(plan: Plan) -> bool:
    """Whether a plan has a rule that only the loops of `mixed` know."""
    averaged = plan.average_last_axis or plan.element_weights is not None
    return plan.scale != 1.0 or averaged


def has_loop(plan: Plan) -> bool:
    """Whether a compiled loop computes the calls of a plan here, but for a few positions.

    It takes the arrays as they are, or the rows of `carry_out`.
    """
    if plan.oracle_only or not compiled.is_available() or "fast" in counts.skipped_tiers:
        return False
    plan = as_read(plan) if plan.casts else plan
    if plan.predictions_dtype == "float64":
        return wide.takes(plan) and not _is_unknown(plan)
    return mixed.takes(plan) or (loops.loop_of(plan) is not None and not _is_unknown(plan))


def _are_shared_in_reach(plan: Plan, scale: Scale | None) -> bool:
    """Whether the numbers that all positions share are in reach."""
    shared: list[Any] = [x for x in (plan.class_weights, plan.pos_weight) if x is not None]
    if scale is not None:
        shared.append(scale.divisor.high)
        if not scale.upstream.ndim:
            shared.append(scale.upstream)
        if not np.isfinite(scale.divisor.radius):
            return False
    return all(map(are_in_reach, shared))


def _are_own_in_reach(call: HostCall, some: Any, scale: Scale | None) -> bool:
    """Whether the own weights, targets and upstream gradients of some positions are in range."""
    for weight in (call.weight, call.element_weight):
        if weight is not None and not are_in_reach(weight[some]):
            return False
    wide_targets = call.plan.kind == "dense" and call.plan.targets_dtype == "float64"
    if wide_targets and not are_in_reach(call.targets[some]):
        return False
    return scale is None or not scale.upstream.ndim or are_in_reach(scale.upstream[some])


def indices(some: Any) -> Any:
    """The indices of some positions, which may be a slice."""
    return np.arange(some.start, some.stop) if isinstance(some, slice) else some


def between(low: Floats, high: Floats, dtype: str) -> tuple[NDArray[Any], Bools]:
    """Round both ends of intervals. Return the rounded low ends and where the ends differ."""
    first: NDArray[Any]
    last: NDArray[Any]
    if dtype == "float32":
        first, last = low.astype(np.float32), high.astype(np.float32)
        np.add(first, np.float32(0.0), out=first)  # no -0
    else:
        first, last = to_format(low, dtype), to_format(high, dtype)
    return first, ~(first == last)


def round_slopes(call: HostCall, some: Any, slope: Floats, scale: Scale, slopes: Any) -> Bools:
    """Round slopes times their scales into `slopes`, and return where they are undecided.

    The slopes are exact.
    """
    scaled = slope * scale.float64(some)
    form = call.plan.predictions_dtype
    if scale.power_of_two:
        # The product is exact. Half of these are ties, which no interval decides.
        rounded, differ = to_format(scaled, form), np.zeros(len(scaled), bool)
    else:
        error = 8 * U
        rounded, differ = between(scaled * (1 - error), scaled * (1 + error), form)
    slopes[some, 0] = stored(rounded, form)
    return differ
