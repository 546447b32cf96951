"""The first tier of float64 predictions: the compiled loops in pairs of float64.

Without them, and where they leave a position undecided, balls compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, partial
from typing import Any

import numpy as np

from unifiedloss import compiled, host, losses
from unifiedloss.compiled import threads as own_threads
from unifiedloss.compiled import wide
from unifiedloss.exact import counts, loops
from unifiedloss.exact.balls import Ball
from unifiedloss.exact.call import Array, Bools, HostCall
from unifiedloss.exact.factors import is_in_reach
from unifiedloss.exact.loops import constants
from unifiedloss.exact.request import Request
from unifiedloss.exact.scale import Scale
from unifiedloss.exact.sums import Sum, quotient
from unifiedloss.losses import has_part
from unifiedloss.plan import Plan


def takes(plan: Plan) -> bool:
    """Whether a loop computes the losses of a plan."""
    name = plan.spec.name
    if plan.predictions_dtype != "float64" or not has_part(name, "compiled"):
        return False
    known = plan.kind == "real" or (plan.kind in ("index", "binary") and plan.from_logits)
    one_weight = plan.pos_weight is None or isinstance(plan.pos_weight, float)
    return known and one_weight and not plan.label_smoothing


@lru_cache(4096)
def _is_plain(plan: Plan) -> bool:
    """Whether a loop computes a plan from its arrays, and NumPy has the dtype of its targets."""
    if plan.result_dtype != "float64" or not takes(plan) or not loops.is_plain(plan):
        return False
    parameter = losses.part(plan.spec.name, "compiled").parameter(plan)
    return not parameter or is_in_reach(parameter)


def at_once(
    plan: Plan, request: Request, some_rows: Callable[..., tuple[Array, Array | None]]
) -> tuple[Array, Array | None] | None:
    """Compute a call without weights, masks and a divisor by a loop.

    Args:
        plan: the plan of the call.
        request: the call.
        some_rows: computes rows that the loop leaves undecided, as for `mixed.at_once`.

    Returns:
        The loss and the gradient, or None if no loop computes this call.
    """
    predictions, targets, upstream = request.predictions, request.targets, request.upstream
    if plan.predictions_dtype != "float64" or not compiled.is_available() or not _is_plain(plan):
        return None
    labels = plan.kind == "index"
    of_targets = "iu" if labels else "f"
    if targets.dtype.kind not in of_targets or not (labels or targets.itemsize == 8):
        return None
    if not (compiled.can_read(predictions) and compiled.can_read(targets)):
        return None
    none = plan.spec.reduction == "none"
    u: Any = loops.upstream_of(upstream) if not none or upstream is None else _each(upstream)
    if u is None or "fast" in counts.skipped_tiers:
        return None
    slopes = request.room(predictions.dtype)
    assert plan.count is not None
    n, width = plan.count, plan.classes or 1
    count = n if plan.spec.reduction == "mean" else 1
    rows, targets = predictions.reshape(n, width), targets.reshape(n)
    of_rows = None if slopes is None else slopes.reshape(n, width)
    terms, left = np.empty(n), np.zeros(n, bool)
    found = wide.run(
        plan.spec.name,
        rows,
        targets,
        constants(),
        losses=terms,
        left=left,
        slopes=of_rows,
        upstream=u,
        divisor=(float(count), 0.0, 0.0),
        parameter=losses.part(plan.spec.name, "compiled").parameter(plan),
        threads=request.threads,
    )
    divisor = (Ball(np.float64(count)), lambda: Fraction(count))
    if found:
        compute = partial(some_rows, gradient=request.gradient)
        above = u[left] if np.ndim(u) else u
        terms[left], some = host.run(compute, plan, rows[left], targets[left], divisor, above)
        if of_rows is not None:
            of_rows[left] = some
    if none:
        return terms.reshape(predictions.shape if width == 1 else predictions.shape[:-1]), slopes
    odd = terms[left & ~np.isfinite(terms)] if found else terms[:0]
    return np.array(odd.sum()) if len(odd) else host.run(_mean, terms, *divisor), slopes


def _each(upstream: Array) -> Array | None:
    """The upstream gradients of the positions as the loops take them, or None if they do not."""
    if upstream.dtype != np.float64 or not upstream.dtype.isnative:
        return None
    return np.require(upstream, requirements=("C", "A")).reshape(-1)


def _mean(terms: Array, divisor: Ball, exactly: Callable[[], Fraction]) -> Array:
    with np.errstate(all="ignore"):
        return np.array(quotient(Sum(terms), divisor, exactly, "float64"))


def carry_out(
    call: HostCall,
    todo: Bools,
    results: Array,
    slopes: Array | None,
    scale: Scale | None,
) -> Bools | None:
    """Compute and round the positions that a compiled loop decides.

    The arguments are those of `fast.carry_out`.

    Returns:
        The positions that are left undecided, or None if no loop computes this call.
    """
    plan = call.plan
    if not takes(plan) or not call.rows.size or not compiled.is_available():
        return None
    labels = plan.kind == "index"
    left = np.zeros(len(call.rows), bool)
    factors: dict[str, Any] = {}
    if scale is not None:
        ball = scale.divisor
        high = float(ball.high)
        factors["upstream"] = (
            np.require(scale.upstream, requirements=("C", "A"))
            if scale.upstream.ndim
            else float(scale.upstream)
        )
        factors["divisor"] = (high, float(ball.low), float(ball.radius) / abs(high))
    if plan.class_weights is not None:
        factors["own"] = np.require(call.own_class_weight(call.labels), requirements=("C", "A"))
    if call.weight is not None:
        factors["weight"] = np.require(call.weight, np.float64, ("C", "A"))
    wide.run(
        plan.spec.name,
        _readable(call.rows),
        np.require(call.targets, None if labels else np.float64, ("C", "A")),
        constants(),
        losses=results,
        left=left,
        slopes=slopes,
        todo=None if todo.all() else todo,
        parameter=losses.part(plan.spec.name, "compiled").parameter(plan),
        threads=call.threads or own_threads.number(),
        **factors,
    )
    return left


def _readable(rows: Array) -> Array:
    """The rows as an array that the loops read: aligned, the classes side by side."""
    ordered = rows.strides[-1] == 8 and rows.strides[0] % 8 == 0 and rows.flags.aligned
    if ordered and (rows.shape[1] > 1 or rows.strides[0] == 8):
        return rows
    return np.array(rows, np.float64, order="C")
