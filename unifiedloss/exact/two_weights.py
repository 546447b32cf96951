"""Calls of elementwise losses with element weights beside sample weights.

Where the sample weights run along the first axes and the element weights along others, the weights
of all elements are an outer product. Checks of its two factors replace those of all elements, which
take longer than the loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import compiled, host
from unifiedloss.checks import extents
from unifiedloss.exact import counts, loops, mixed
from unifiedloss.exact.balls import Ball, two_sum
from unifiedloss.exact.call import Array, Bools, Floats, known_divisor, plain
from unifiedloss.exact.factors import are_in_reach, is_power_of_two
from unifiedloss.exact.request import Request
from unifiedloss.exact.rounding import bits_of, from_bits, stored
from unifiedloss.exact.sums import Sum, rounded
from unifiedloss.plan import Plan


class Weights(NamedTuple):
    """One factor of the outer product.

    Attributes:
        each: float64 (n,).
        kept: where they are not 0.
        least: the smallest magnitude of those.
        total: the exact sum.
    """

    each: Floats
    kept: Bools
    least: float
    total: Fraction


def takes(plan: Plan) -> bool:
    """Whether `at_once` computes the calls of a plan, with weights of usual sizes."""
    if plan.element_weights is None or plan.weight_rank is None or plan.shape is None:
        return False
    ranks = plan.weight_rank + len(extents(plan.element_weights))
    masked = plan.mask_rank is not None and plan.mask_rank > plan.weight_rank
    return not (plan.average_last_axis or masked) and ranks <= len(plan.shape) and mixed.takes(plan)


@lru_cache(256)
def _of_elements(plan: Plan) -> Weights | None:
    """The element weights, along the axes behind those of the sample weights."""
    if not takes(plan) or mixed.of_arrays(plan) is None:
        return None
    behind: Any = plan.shape[plan.weight_rank :]  # type: ignore[index]
    return _weights(np.broadcast_to(np.asarray(plan.element_weights, np.float64), behind), plan)


def _weights(x: Array, plan: Plan) -> Weights | None:
    """Weights, or None where one may count as 0 although it is not, is bad, or is out of reach."""
    each = np.ascontiguousarray(x, np.float64).reshape(-1)
    kept = each != 0
    if not kept.any() or not are_in_reach(each):
        return None
    least = float(np.abs(each[kept]).min())
    by_weights = plan.spec.reduction == "mean" and plan.divisor == "weights"
    if least < 2 * plan.tiny_weight or (by_weights and each.min() < 0):
        return None
    return Weights(each, kept, least, Sum(each).fraction())


def at_once(
    plan: Plan, request: Request, some_rows: Callable[..., tuple[Array, Array | None]]
) -> tuple[Array, Array | None] | None:
    """The results of `unifiedloss.exact.evaluate` of such a call, without a divisor.

    Args:
        plan: the plan of the call.
        request: the call; it has sample weights.
        some_rows: computes elements that the loop leaves undecided, as for `mixed.at_once`.

    Returns:
        The results, or None if another way must compute them: a loop does not read the arrays, the
        weights are unusual, or the sum is undecided.
    """
    of_elements = _of_elements(plan)
    if of_elements is None or not compiled.is_available() or "fast" in counts.skipped_tiers:
        return None
    if request.sample_weight.dtype.kind in "iu":  # type: ignore[union-attr]
        return None
    if not mixed.are_readable(plan, request.predictions, request.targets):
        return None
    return host.run(_computed, plan, of_elements, request, some_rows)


def _computed(
    plan: Plan,
    of_elements: Weights,
    request: Request,
    some_rows: Callable[..., tuple[Array, Array | None]],
) -> tuple[Array, Array | None] | None:
    predictions, targets, sample_weight, mask, upstream, _ = request.arrays
    call: Any = mixed.of_arrays(plan)
    weights, present = plain(sample_weight), call.n
    if mask is not None:
        present = call.n // mask.size * int(np.count_nonzero(mask))
        weights = np.where(mask.reshape(mask.shape + (1,) * (weights.ndim - mask.ndim)), weights, 0)
    of_samples = _weights(weights, plan)
    if of_samples is None or of_samples.least * of_elements.least < 2 * plan.tiny_weight:
        return None
    factors = of_samples, of_elements
    over = _divisor(plan, *factors, present)
    divisor = known_divisor(over)
    weight = np.multiply.outer(*(f.each for f in factors)).reshape(-1)
    given = _upstream(upstream)
    if not isinstance(divisor, tuple) or given is None:
        return None
    u, above = given
    factor = weight if above is None else weight * above
    high = float(divisor[0].high)
    exactly = over if Fraction(high) == over else None
    # A product of float32 numbers has no error, and so counts as one weight.
    count = 1 if all(np.array_equal(f.each, f.each.astype(np.float32)) for f in factors) else 2
    work = mixed.with_factors(call, u, exactly, count + (above is not None), high)
    one_weight = count == 1 and is_power_of_two(plan.scale)
    work = dataclasses.replace(work, weight_is_exact=one_weight)
    todo = None
    if not all(f.kept.all() for f in factors):
        todo = np.logical_and.outer(*(f.kept for f in factors)).reshape(-1)
    slopes, terms = request.room(bits_of(plan.predictions_dtype)), None
    if plan.spec.reduction == "none":
        terms = np.empty(predictions.shape, bits_of(plan.result_dtype))
    for x in (slopes, terms):
        if x is not None and todo is not None:
            x.fill(0)
    left = np.zeros(call.n, bool)
    arrays = predictions, targets, terms, slopes, left
    total = compiled.mixed(
        work,
        *map(compiled.address, arrays),
        todo=compiled.address(todo),
        weight=compiled.address(weight),
        factor=compiled.address(factor),
        threads=request.threads,
    )
    if total.left:
        if isinstance(plan.pos_weight, tuple):
            return None  # these run along an axis, so some elements are no call of their own
        of_rows = (from_bits(x.reshape(-1)[left]) for x in (predictions, targets))
        rows, columns = np.divmod(np.flatnonzero(left), len(of_elements.each))
        own = _of_some(plan, of_elements.each[columns])
        single = u if above is None else above[left]
        weight = of_samples.each[rows]
        found, some = some_rows(own, *of_rows, divisor, single, weight, gradient=request.gradient)
        total = total.plus(found.tolist())
        if slopes is not None and some is not None:
            slopes.reshape(-1)[left] = some[:, 0]
        if terms is not None:
            terms.reshape(-1)[left] = stored(found, plan.result_dtype)
    if terms is not None:
        return terms, slopes
    with np.errstate(all="ignore"):
        sums = two_sum(np.float64(total.high), np.float64(total.low))
        value, known = rounded(Ball(*sums, np.float64(total.error)) / divisor[0], "float32")
    return (np.asarray(np.float32(value)), slopes) if known else None


def _of_some(plan: Plan, weights: Floats) -> Plan:
    """The plan of a call of single elements with these element weights, and one weight for each."""
    n = len(weights)
    return dataclasses.replace(
        plan, shape=(n,), positions=(n,), count=n, weight_rank=1, mask_rank=None,
        element_weights=tuple(weights.tolist()),
    )  # fmt: skip


def _divisor(plan: Plan, of_samples: Weights, of_elements: Weights, present: int) -> Fraction:
    """The divisor of the losses: that of the mean, or 1."""
    if plan.spec.reduction != "mean":
        return Fraction(1)
    if plan.divisor == "weights":
        return of_samples.total * of_elements.total
    if plan.divisor == "nonzero":
        pairs = (int(np.count_nonzero(w.kept)) for w in (of_samples, of_elements))
        return Fraction(next(pairs) * next(pairs))
    of_all: Any = plan.count
    return Fraction(of_all if plan.divisor == "all" else present)


def _upstream(upstream: Any) -> tuple[float, Floats | None] | None:
    """The upstream gradient, one number and perhaps an array; None if the loop does not take it."""
    if upstream is None or not np.ndim(upstream):
        u = loops.upstream_of(upstream)
        return None if u is None else (u, None)
    each = plain(upstream).astype(np.float64).reshape(-1)
    return (1.0, each) if are_in_reach(each) else None
