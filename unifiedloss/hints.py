"""Say what the values of a call suggest: probabilities for logits, swapped arguments, one class.

A hint is no error, because the same values may be meant. `check` and `port_report` give hints; a
call of a loss does not look for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import UnifiedLossError
from unifiedloss.inputs import Signature
from unifiedloss.messages import Message
from unifiedloss.plan import Plan, resolve
from unifiedloss.spec import Loss

Array = NDArray[Any]

_CLOSE = 1e-3
"""How far the sum of a row of probabilities may lie from 1; half types are rounded so far."""

_ENOUGH_ROWS = 4
"""From how many rows on one-hot targets are no chance."""


def hints(spec: Loss, predictions: Array, targets: Array) -> tuple[str, ...]:
    """The hints about a call, a sentence each.

    Args:
        spec: the loss.
        predictions: the predictions, as a NumPy array.
        targets: the targets, as a NumPy array.

    Returns:
        The hints; none if the tensors do not fit, because the error then says more.
    """
    signatures = [Signature(x.shape, x.dtype.name) for x in (predictions, targets)]
    try:
        plan = resolve(spec, *signatures)
    except UnifiedLossError:
        return ()
    if not predictions.size:
        return ()
    x, t = (np.asarray(each).astype(np.float64) for each in (predictions, targets))
    with np.errstate(all="ignore"):
        return tuple(_of_classes(plan, x, t) if plan.axis is not None else _of_elements(plan, x, t))


def _of_classes(plan: Plan, x: Array, t: Array) -> Iterator[str]:
    assert plan.axis is not None
    if plan.classes == 1 and not plan.log_probabilities:
        yield (
            f"there is one class on axis {plan.axis}, whose probability is 1; two outcomes with "
            "one output are the binary cross-entropy."
        )
        return
    x = np.moveaxis(x, plan.axis, -1)
    if plan.kind == "dense":
        t = np.moveaxis(t, plan.axis, -1)
        if _one_hot(x) and not _one_hot(t):
            yield f"predictions are one-hot rows, and the targets are not: {Message.FIX_SWAPPED}"
            return
        if _only_0_and_1(t) and (t.sum(axis=-1) > 1).any():
            yield (
                "some rows of targets hold several 1: tags that do not exclude each other are "
                "targets of the binary cross-entropy."
            )
    if (plan.from_logits or plan.log_probabilities) and _distributions(x):
        instead = (
            "the loss reads them as their logarithms; take the logarithm before, or use the "
            "cross-entropy of probabilities"
            if plan.log_probabilities
            else "the softmax of the loss is then a second one; set from_logits=False"
        )
        yield f"every row of predictions sums to 1, as probabilities do: {instead}."
    elif plan.log_probabilities:
        sums = np.exp(x).sum(axis=-1).ravel()
        if not (np.abs(sums - 1) <= _CLOSE).any():
            yield (
                f"the exponentials of a row of predictions sum to {sums[0]:.3g}, and those of "
                "log-probabilities to 1: a log_softmax is missing; for logits use the "
                "cross-entropy with from_logits=True."
            )


def _of_elements(plan: Plan, x: Array, t: Array) -> Iterator[str]:
    if plan.kind != "binary":
        return
    if _only_0_and_1(x) and not _only_0_and_1(t) and x.size > 1:
        yield f"predictions are 0 and 1 alone, and the targets are not: {Message.FIX_SWAPPED}"
        return
    if plan.from_logits and 0 <= x.min() < x.max() <= 1:
        yield (
            "predictions lie in [0, 1], as probabilities do: the sigmoid of the loss is then a "
            "second one; if they are probabilities, set from_logits=False."
        )
    rows = t.shape[:-1]
    if t.ndim > 1 and t.shape[-1] > 2 and np.prod(rows) >= _ENOUGH_ROWS and _one_hot(t):
        yield (
            "each row of targets is one-hot: classes that exclude each other are targets of the "
            "categorical cross-entropy."
        )


def _only_0_and_1(x: Array) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _one_hot(rows: Array) -> bool:
    return _only_0_and_1(rows) and bool((rows.sum(axis=-1) == 1).all())


def _distributions(rows: Array) -> bool:
    inside = rows.min() >= 0 and rows.max() <= 1
    return bool(inside and (np.abs(rows.sum(axis=-1) - 1) <= _CLOSE).all())
