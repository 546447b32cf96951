"""The second tier of exact mode: double-double balls, and the oracle where they do not decide."""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss.exact import counts, formulas
from unifiedloss.exact.balls import Ball, two_sum
from unifiedloss.exact.call import Array, Bools, Floats, HostCall
from unifiedloss.exact.rounding import decide, stored
from unifiedloss.exact.scale import Scale


def round_positions(
    call: HostCall,
    chosen: Any,
    losses: Array,
    slopes: Array | None,
    scale: Scale | None,
    dtype: str,
) -> None:
    """Compute some positions in balls, and by the oracle where balls leave them undecided."""
    counts.undecided["rows"] += len(chosen)
    form = call.plan.predictions_dtype
    loss, slope = _balls(call, chosen)
    if call.plan.average_last_axis:
        count = Ball(np.float64(call.rows.shape[1]))
        loss, slope = loss.sum() / count, slope / count
    if call.weight is not None:
        loss = loss * Ball(call.weight[chosen][:, None])
    if call.plan.scale != 1.0:
        loss = loss * Ball(np.float64(call.plan.scale))
    rounded, doubtful = _decided(loss, (len(chosen), 1), dtype)
    losses[chosen] = rounded[:, 0]
    for i in chosen[doubtful[:, 0]]:
        losses[i] = call.oracle_loss(i, dtype)
    if slopes is None or scale is None:
        return
    rounded, doubtful = _decided(
        scale.times(slope, chosen), (len(chosen), call.read.shape[1]), form
    )
    labels = call.labels[chosen] if call.of_labels else None
    for row, c in np.argwhere(doubtful):
        rounded[row, c] = call.oracle_slope(
            chosen[row], c if labels is None else labels[row], scale
        )
    if labels is None:
        slopes[chosen] = stored(rounded, form)
    else:
        slopes[chosen] = 0
        slopes[chosen, labels] = stored(rounded[:, 0], form)


def round_elements(call: HostCall, i: int, columns: Any, slopes: Array, scale: Scale) -> None:
    """Compute some gradient elements of one row of logits with a class index."""
    counts.undecided["elements"] += len(columns)
    logits = call.rows[i].astype(np.float64)
    label, top = int(call.targets[i]), int(logits.argmax())
    others = formulas.partition(logits, top)
    total = Ball(np.float64(1.0)) + others
    own = Ball(np.float64(call.own_class_weight(label)))
    form = call.plan.predictions_dtype
    for c in columns:
        gap = Ball(*two_sum(logits[c], -logits[top]))
        at_top = c == top
        if at_top and c == label:
            # p - 1 of the largest logit is minus the share of the others, which cancels nothing.
            slope = -(others / total)
        else:
            share = (Ball(np.float64(1.0)) if at_top else gap.exp()) / total
            slope = share - Ball(np.float64(1.0)) if c == label else share
        rounded, doubtful = _decided(scale.times(slope * own, np.array([i])), (1, 1), form)
        value = call.oracle_slope(i, int(c), scale) if doubtful[0, 0] else rounded[0, 0]
        slopes[i, c] = stored(np.array([value]), form)[0]


def _balls(call: HostCall, chosen: Any) -> tuple[Ball, Ball]:
    plan = call.plan
    rows = call.read[chosen].astype(np.float64)
    if plan.kind == "real":
        return formulas.squared_error(rows, call.targets[chosen].astype(np.float64))
    if plan.kind == "binary":
        pos_weight = None if call.pos_weight is None else call.pos_weight[chosen]
        yes, no = formulas.binary_targets(plan, call.numbers(chosen), pos_weight)
        if plan.from_logits:
            return formulas.binary_cross_entropy(rows, yes, no)
        return formulas.binary_cross_entropy_of_probabilities(plan, rows, yes, no)
    tau = (
        call.label_weights(chosen)
        if call.of_labels
        else formulas.weighted_targets(plan, call.of_classes(chosen))
    )
    if plan.log_probabilities:
        return formulas.negative_log_likelihood(rows, tau)
    if plan.from_logits:
        return formulas.cross_entropy(rows, tau)
    of_probabilities = (
        formulas.cross_entropy_of_shares
        if plan.renormalize
        else formulas.cross_entropy_of_probabilities
    )
    return of_probabilities(plan, rows, tau)


def _decided(ball: Ball, shape: tuple[int, ...], dtype: str) -> tuple[Floats, Bools]:
    if "balls" in counts.skipped_tiers:
        return np.zeros(shape), np.ones(shape, bool)
    high, low, radius = (np.array(np.broadcast_to(x, shape), np.float64) for x in ball)
    return decide(high, low, radius, dtype)
