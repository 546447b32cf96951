"""Runs the compiled loops of the elementwise losses on more than float32 numbers.

These are calls with half types, smoothing, several pos_weight, `scale`, `average_last_axis`, or the
reduction "none". As in `unifiedloss.exact.loops`, a call without masks and weights needs no
`HostCall`, and other calls come as one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import compiled, host, losses
from unifiedloss.compiled import FORMS, NUMBERS, Mixed, Total
from unifiedloss.compiled import threads as own_threads
from unifiedloss.exact import counts, loops
from unifiedloss.exact.balls import Ball
from unifiedloss.exact.call import Array, Bools, HostCall, exact_number, known_divisor
from unifiedloss.exact.clips import clip_of
from unifiedloss.exact.factors import are_in_reach, is_power_of_two
from unifiedloss.exact.request import Request
from unifiedloss.exact.rounding import bits_of, from_bits, stored
from unifiedloss.exact.scale import Scale
from unifiedloss.losses import has_part
from unifiedloss.plan import Plan

_SUPPORTED = frozenset(compiled.LOSSES[1:])
_EXACT = 2.0**53
"""float64 holds all integers up to this one."""


def takes(plan: Plan) -> bool:
    """Whether a loop computes the losses of a plan, whatever its weights are."""
    name = plan.spec.name
    if name not in _SUPPORTED or not has_part(name, "compiled"):
        return False
    return _is_known(plan) and (plan.pos_weight is None or are_in_reach(plan.pos_weight))


def _is_known(plan: Plan) -> bool:
    """Whether the loops know the dtype of a plan, its scale and what it adds to probabilities."""
    if plan.predictions_dtype not in FORMS or plan.oracle_only or not are_in_reach(plan.scale):
        return False
    return not plan.epsilon_added or 2.0**-100 <= plan.epsilon_added <= 2.0**-10


@lru_cache(4096)
def _of_plan(plan: Plan) -> Mixed | None:
    """What a plan says of a call, without memory and factors."""
    if not takes(plan):
        return None
    module = losses.part(plan.spec.name, "compiled")
    several, inner = None, 1
    if isinstance(plan.pos_weight, tuple):
        several = np.array(plan.pos_weight, np.float64)
        assert plan.shape is not None
        extents: Any = plan.shape
        inner = math.prod(extents[plan.pos_weight_axis % len(extents) + 1 :])
        if len(several) == 1:  # it is broadcast
            inner = math.prod(extents)
    form = NUMBERS[plan.predictions_dtype]
    clip = clip_of(plan) if plan.kind == "binary" and not plan.from_logits else None
    return Mixed(
        loss=plan.spec.name,
        n=0,
        size=1,
        read=form,
        target=0,
        form=form,
        loss_form=0,
        stored=0,
        parameter=module.parameter(plan),
        smoothing=plan.label_smoothing,
        pos_weights=several,
        inner=max(1, inner),
        loss_scale=plan.scale,
        clip=clip,
    )


def _number(dtype: np.dtype[Any], kind: str) -> int | None:
    """The number of the dtype of targets in memory, or None if the loops do not read it so.

    The loops round integers to float32. Those that it does not hold are bad binary targets.
    """
    if not dtype.isnative or dtype.name not in NUMBERS or dtype == np.float64:
        return None
    if dtype.kind in "iu" and dtype.itemsize > 2 and kind != "binary":
        return None
    return NUMBERS[dtype.name]


def with_factors(
    call: Mixed, upstream: float, over: Fraction | None, arrays: int, high: float
) -> Mixed:
    """The call with the factors of its slopes.

    Args:
        call: the call.
        upstream: the upstream gradient, 1 where an array holds it.
        over: the divisor of the slopes; None where it is not known exactly.
        arrays: how many arrays of factors there are.
        high: the divisor in float64.
    """
    numerator = upstream * call.loss_scale
    # A product with a power of two is exact.
    others = arrays + sum(not is_power_of_two(x) for x in (upstream, call.loss_scale))
    wide = high * call.size
    exact = over is not None and Fraction(wide) == over * call.size
    quotient = exact and not arrays and others == 0 and is_power_of_two(wide)
    return dataclasses.replace(
        call,
        numerator=numerator,
        over=high,
        numerator_is_exact=quotient,
        factor_is_exact=exact and others <= 1,
    )


# ------------------------------------------------------------------------------ rows of a host call


def carry_out(
    call: HostCall,
    todo: Bools,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> Bools | None:
    """Compute and round the positions that a loop decides.

    The arguments are those of `fast.carry_out`.

    Returns:
        The positions that are left undecided, or None if no loop computes this call.
    """
    if dtype not in FORMS or not compiled.is_available():
        return None
    found, rows, targets, other = _of_plan(call.plan), call.rows, call.targets, call.element_weight
    if found is None:
        return None
    number = _number(targets.dtype, call.plan.kind)
    if number is None:
        narrow = compiled.as_float32(targets)
        if narrow is None:
            return None
        targets, number = narrow, 0
    if rows.dtype.name not in FORMS:
        return None
    rows, targets = (
        np.require(rows, requirements=("C", "A")),
        np.require(targets, requirements=("C", "A")),
    )
    n, size = rows.shape
    several = found.pos_weights
    if several is not None and size == 1 and call.shape != call.plan.shape:
        return None  # some positions of a call, and the weights run along all
    weight = None if call.weight is None else np.require(call.weight, np.float64, ("C", "A"))
    if other is not None:
        weight = other if weight is None else weight * other
    weights = (call.weight is not None) + (other is not None)
    work = dataclasses.replace(
        found,
        n=n,
        size=size,
        read=NUMBERS[rows.dtype.name],
        target=number,
        loss_form=NUMBERS[dtype],
        weight_is_exact=weights + (not is_power_of_two(found.loss_scale)) <= 1,
    )
    factor = weight
    if scale is not None:
        single = 1.0 if scale.upstream.ndim else float(scale.upstream)
        if scale.upstream.ndim:
            factor = scale.upstream if weight is None else scale.upstream * weight
            factor = np.require(factor, np.float64, ("C", "A"))
        divisor = scale.divisor
        high = float(divisor.high) if call.divides else 1.0
        known = not call.divides or (divisor.low == 0 and divisor.radius == 0)
        over = Fraction(high) if known else None
        work = with_factors(work, single, over, weights + (scale.upstream.ndim > 0), high)
    left = np.zeros(n, bool)
    chosen = None if todo.all() else np.require(todo, requirements=("C", "A"))
    address = compiled.address
    compiled.mixed(
        work,
        address(rows),
        address(targets),
        address(results),
        address(slopes),
        address(left),
        todo=address(chosen),
        weight=address(weight),
        factor=address(factor if scale is not None else None),
        threads=call.threads or own_threads.number(),
    )
    return left


# ------------------------------------------------------------------------- arrays as they are given


class Ready(NamedTuple):
    """A call without masks and weights as the loops take it.

    Attributes:
        plan: the plan.
        call: the call, without the factors of its slopes.
        divisor: what the sum of the losses is divided by; 1 without a mean.
    """

    plan: Plan
    call: Mixed
    divisor: int

    @property
    def is_reduced(self) -> bool:
        """Whether the losses are added."""
        return self.plan.spec.reduction != "none"


@lru_cache(4096)
def _with_factors(ready: Ready, upstream: float, dtype: str | None) -> Mixed:
    """The call with the factors of its slopes.

    Args:
        ready: the call.
        upstream: the upstream gradient, 1 where an array holds it.
        dtype: the dtype of that array, or None.
    """
    divisor = ready.divisor
    found = with_factors(ready.call, upstream, Fraction(divisor), dtype is not None, float(divisor))
    return found if dtype is None else dataclasses.replace(found, factor=NUMBERS[dtype])


def ready(plan: Plan) -> Ready | None:
    """The call of a plan for a loop, or None if none computes it from its arrays."""
    known = _ready(plan)
    if known is None or not compiled.is_available() or "fast" in counts.skipped_tiers:
        return None
    return known


@lru_cache(4096)
def _ready(plan: Plan) -> Ready | None:
    call = of_arrays(plan)
    if call is None or not plan.plain or plan.element_weights is not None:
        return None
    return Ready(plan, call, call.n if plan.spec.reduction == "mean" else 1)


@lru_cache(4096)
def of_arrays(plan: Plan) -> Mixed | None:
    """The call of a plan for a loop that reads its arrays, or None; without weights and factors."""
    call = _of_plan(plan)
    if call is None or plan.shape is None or not plan.count or plan.casts:
        return None
    shape: Any = plan.shape
    size = shape[-1] if plan.average_last_axis else 1
    name = "bool" if plan.targets_dtype == "bool" else plan.targets_dtype
    bfloat16 = name == "bfloat16"
    target = NUMBERS["bfloat16"] if bfloat16 else _number(np.dtype(name), plan.kind)
    if target is None:
        return None
    count = plan.count // size
    loss_form = NUMBERS["float32" if plan.spec.reduction != "none" else plan.result_dtype]
    return dataclasses.replace(
        call, n=count, size=size, target=target, loss_form=loss_form, stored=loss_form,
        weight_is_exact=True,
    )  # fmt: skip


def are_readable(plan: Plan, predictions: Array, targets: Array) -> bool:
    """Whether the loops read these arrays of a plan."""
    given = (predictions, plan.predictions_dtype), (targets, plan.targets_dtype)
    return all(x.dtype.name == dtype and compiled.can_read(x) for x, dtype in given)


def ready_for(plan: Plan, predictions: Array, targets: Array) -> Ready | None:
    """The call of a plan for a loop, or None if none computes it from these arrays."""
    known = ready(plan)
    return known if known is not None and are_readable(plan, predictions, targets) else None


class Upstream(NamedTuple):
    """An upstream gradient: one number, or memory with one for each position.

    Attributes:
        number: the one number; 1 beside memory.
        address: the address of the memory, or 0.
        dtype: the dtype of the memory, or None.
    """

    number: float = 1.0
    address: int = 0
    dtype: str | None = None


ONE = Upstream()


def upstream_of(ready: Ready, upstream: Any) -> Upstream | None:
    """An upstream gradient as the loops take it, or None if they do not.

    Every number of float32 and of the half types is in the range of the loops.
    """
    if upstream is None:
        return ONE
    if ready.is_reduced or np.ndim(upstream) == 0:
        number = loops.upstream_of(upstream)
        return None if number is None else Upstream(number)
    if upstream.dtype.name not in FORMS or not compiled.can_read(upstream):
        return None
    return Upstream(1.0, compiled.address(upstream), upstream.dtype.name)


def run(
    ready: Ready,
    memory: tuple[int, int, int, int],
    upstream: Upstream,
    threads: int,
    *,
    no_losses: bool = False,
) -> tuple[Total, Bools | None]:
    """Run the loop of a call on memory.

    Args:
        ready: the call.
        memory: the addresses of predictions, targets, losses and gradient; 0 for none.
        upstream: the upstream gradient.
        threads: the most threads to use.
        no_losses: whether only the gradient is wanted.

    Returns:
        The total, and the flags of the positions that are left undecided, or None if none is.
    """
    call = _with_factors(ready, upstream.number, upstream.dtype)
    if no_losses:
        call = _without_losses(call)
    left = np.zeros(call.n, bool)
    predictions, targets, terms, slopes = memory
    flags = compiled.address(left)
    total = compiled.mixed(
        call, predictions, targets, terms, slopes, flags, factor=upstream.address, threads=threads
    )
    return total, left if total.left else None


@lru_cache(4096)
def _without_losses(call: Mixed) -> Mixed:
    return dataclasses.replace(call, no_losses=True)


def at_once(
    plan: Plan, request: Request, some_rows: Callable[..., Any]
) -> tuple[Array, Array | None] | None:
    """The results of `unifiedloss.exact.evaluate` of a call without weights and masks.

    Args:
        plan: the plan of the call.
        request: the call.
        some_rows: computes rows of a call, `unifiedloss.exact.kernel.some_rows`.

    Returns:
        The results, or None if no loop computes this call, or its sum is undecided.
    """
    predictions, targets, upstream = request.predictions, request.targets, request.upstream
    known = ready_for(plan, predictions, targets)
    if known is None:
        return None
    if request.divisor is not None:
        count = loops.integer(known_divisor(host.run(exact_number, request.divisor)))
        if count is None:
            return None
        known = known._replace(divisor=count)
    above = upstream_of(known, upstream)
    if above is None:
        return None
    slopes = request.room(bits_of(plan.predictions_dtype))
    terms = None if known.is_reduced else np.empty(known.call.n, bits_of(plan.result_dtype))
    arrays = predictions, targets, terms, slopes
    addresses: Any = tuple(map(compiled.address, arrays))
    total, left = run(known, addresses, above, request.threads)
    given = predictions, targets, upstream, terms, slopes
    value = host.run(finish, known, total, left, some_rows, *given)
    return None if value is None else (value, slopes)


def finish(
    ready: Ready,
    total: Total,
    left: Bools | None,
    some_rows: Callable[..., Any],
    predictions: Array,
    targets: Array,
    upstream: Any,
    terms: Array | None,
    slopes: Array | None,
) -> Array | None:
    """Compute what a loop left undecided of a call.

    Args:
        ready: the call.
        total: what the loop found.
        left: the flags of the positions that are undecided, or None.
        some_rows: as for `at_once`.
        predictions: the predictions; bfloat16 as its bits too.
        targets: the targets, in the same way.
        upstream: the upstream gradient, or None.
        terms: the losses, under "none"; they receive the missing numbers, as does the gradient.
        slopes: the gradient, or None.

    Returns:
        The loss, or None if another way must compute it.
    """
    plan, call = ready.plan, ready.call
    if left is not None:
        if isinstance(plan.pos_weight, tuple) and not plan.average_last_axis:
            return None  # these run along an axis, so some positions are no call of their own
        shape = (call.n, call.size) if plan.average_last_axis else (call.n,)
        rows, of_rows = (from_bits(x.reshape(shape)[left]) for x in (predictions, targets))
        above: Any = upstream
        if np.ndim(above):
            above = from_bits(np.asarray(above).reshape(-1)[left])
        divisor = (Ball(np.float64(ready.divisor)), lambda: Fraction(ready.divisor))
        gradient = slopes is not None
        found, some = some_rows(plan, rows, of_rows, divisor, above, gradient=gradient)
        if slopes is not None:
            slopes.view(some.dtype).reshape(-1, call.size)[left] = some
        if terms is None:
            total = total.plus(found.tolist())
        else:
            terms.reshape(-1)[left] = stored(found, plan.result_dtype)
    if terms is not None:
        return terms.reshape(plan.positions)  # type: ignore[arg-type]
    value = loops.rounded(total, ready.divisor)
    return None if value is None else np.asarray(value)
