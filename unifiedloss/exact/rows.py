"""Calls of the cross-entropy without weights and masks that a compiled loop takes row by row.

These are the calls that `unifiedloss.exact.loops.Ready` has no words for: without a reduction, with
smoothing, with dense targets. They too need no `HostCall`, which costs as much as their loop.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import numpy as np

from unifiedloss.compiled import Total, Work
from unifiedloss.compiled import threads as own_threads
from unifiedloss.exact import clips, counts, limbs, loops
from unifiedloss.exact.balls import Ball
from unifiedloss.exact.call import Array, plain
from unifiedloss.exact.factors import are_in_reach, is_power_of_two
from unifiedloss.exact.rounding import from_bits, stored
from unifiedloss.plan import Plan


@lru_cache(4096)
def _is_taken(plan: Plan) -> bool:
    if not plan.classes or not loops.is_plain(plan):
        return False
    return plan.spec.reduction == "none" or plan.result_dtype == "float32"


def takes(plan: Plan) -> bool:
    """Whether `at_once` computes the calls of a plan."""
    return (
        _is_taken(plan) and loops.loop_of(plan) is not None and "fast" not in counts.skipped_tiers
    )


def at_once(
    plan: Plan,
    predictions: Array,
    targets: Array,
    upstream: Array | None,
    divisor: int | None,
    slopes: Array | None,
    threads: int | None,
    some_rows: Callable[..., tuple[Array, Array | None]],
) -> Array | None:
    """Compute the loss of a call, and the gradient into `slopes`.

    Args:
        plan: a plan that `takes` takes.
        predictions: in memory as `bits_of` says, or bfloat16 widened to float32.
        targets: likewise for dense ones.
        upstream: the upstream gradient: a number or, under "none", one for each position.
        divisor: divides the sum, of a plan with the reduction "sum".
        slopes: receives the gradient, in C order, or None.
        threads: the most threads of the loop.
        some_rows: computes rows of a call, `unifiedloss.exact.kernel.some_rows`.

    Returns:
        The loss in the dtype of the result, bfloat16 as its bits. None if another way must compute
        it: a loop does not read the arrays, or leaves something undecided.
    """
    n, width = plan.count, plan.classes
    assert n is not None
    assert width is not None
    module = loops.loop_of(plan)
    if not predictions.dtype.isnative:
        return None
    labelled = plan.kind == "index"
    read = module.read(targets) if labelled else _numbers(module, targets)
    u = _upstream(upstream)
    if read is None or u is None:
        return None
    read = np.require(read.reshape(n if labelled else (n, width)), requirements=("C", "A"))
    rows = np.require(loops.bits(predictions).reshape(n, width), requirements=("C", "A"))
    reduced = plan.spec.reduction != "none"
    over = (divisor or (n if plan.spec.reduction == "mean" else 1)) if reduced else 1
    soft = clips.soft_of(module, plan, read, factor_is_exact=is_power_of_two(over))
    work = Work(
        predictions=rows,
        targets=read,
        todo=None,
        weight=None,
        factor=u / over if u.ndim else float(u) / over,
        factor_is_exact=False,
        divisor=0.0,
        losses=np.empty(n, np.float32),
        slopes=None if slopes is None else slopes.reshape(n, width),
        left=np.zeros(n, bool),
        elements=np.empty(n + loops.FEW, np.int64),
        threads=threads or own_threads.number(),
        loss_dtype="float32" if reduced else plan.result_dtype,
        slope_dtype=plan.predictions_dtype,
        soft=soft,
    )
    if soft is None or soft.clip is None:
        total = loops.whole(module, plan, work, u, Ball(np.float64(over)))
    else:
        total, _ = module.run(plan, work)
        if total.left:
            total = _finished(plan, work, total, predictions, targets, u, over, some_rows)
    if total is None:
        return None
    assert work.losses is not None
    if reduced:
        value = loops.rounded(total, over, partial(limbs.sum_of, work.losses))
        return None if value is None else np.asarray(value)
    return stored(work.losses.reshape(plan.positions), plan.result_dtype)  # type: ignore[arg-type]


def _finished(
    plan: Plan,
    work: Work,
    total: Total,
    predictions: Array,
    targets: Array,
    upstream: Array,
    over: int,
    some_rows: Callable[..., tuple[Array, Array | None]],
) -> Total:
    """Compute the rows that the loop left undecided, and add their losses to the total."""
    left, slopes = work.left, work.slopes
    rows = from_bits(predictions.reshape(work.predictions.shape)[left])
    width = () if plan.kind == "index" else rows.shape[1:]
    of_rows = targets.reshape(len(left), *width)[left]
    if width:
        of_rows = from_bits(of_rows)
    divisor = (Ball(np.float64(over)), lambda: Fraction(over))
    above = upstream[left] if upstream.ndim else upstream
    found, some = some_rows(plan, rows, of_rows, divisor, above, gradient=slopes is not None)
    assert work.losses is not None
    work.losses[left] = found
    if slopes is not None:
        slopes[left] = some
    return total.plus(found.tolist())


def _numbers(module: Any, targets: Array) -> Array | None:
    """Dense targets as the loop reads them."""
    bits = loops.bits(targets)
    return bits if bits.dtype == np.uint16 else module.read(bits)


def _upstream(upstream: Any) -> Array | None:
    """The upstream gradients in float64, or None if the loops do not take them."""
    if upstream is None or not np.ndim(upstream):
        u = loops.upstream_of(upstream)
        return None if u is None else np.float64(u)  # type: ignore[return-value]
    given = plain(upstream)
    if given.dtype.kind != "f":
        return None
    wide = given.astype(np.float64).reshape(-1)
    return wide if are_in_reach(wide) else None
