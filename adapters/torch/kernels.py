"""PyTorch's own loss kernels, one per loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unifiedloss.plan import Plan

IGNORE_NOTHING = -(2**63)
"""A label that never occurs here, for torch's ignore_index, which cannot be switched off.

Its default is -100. A label of this value is out of range and has been refused or replaced before.
"""


def cross_entropy(logits: Tensor, labels: Tensor, axis: int) -> Tensor:
    """log sum exp z - z_y per position."""
    rows, shape = _classes_second(logits, axis)
    return F.cross_entropy(
        rows, labels.reshape(shape), ignore_index=IGNORE_NOTHING, reduction="none"
    ).view_as(labels)


def log_softmax(logits: Tensor, axis: int) -> Tensor:
    return F.log_softmax(logits, axis)


def softmax(logits: Tensor, axis: int) -> Tensor:
    return F.softmax(logits, axis)


def binary_cross_entropy(logits: Tensor, targets: Tensor, pos_weight: Tensor | None) -> Tensor:
    """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element."""
    if pos_weight is None:
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    # torch's own weighted loss forms 1 + (q - 1) t, which loses the digits of a small q (case
    # edge/34 small pos_weight).
    positive, negative = F.logsigmoid(logits), F.logsigmoid(-logits)
    return -(targets * pos_weight * positive + (1 - targets) * negative)


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(predictions, targets, reduction="none")


def _classes_second(logits: Tensor, axis: int) -> tuple[Tensor, tuple[int, ...]]:
    """Logits with the class axis second, as torch wants it, and the shape of their labels."""
    if axis == 1:
        return logits, (logits.shape[0], *logits.shape[2:])
    rows = logits.movedim(axis, -1).reshape(-1, logits.shape[axis])
    return rows, (rows.shape[0],)


def fused_loss(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor:
    """The sum or the mean in one native call, for a plan where every position counts once.

    For such a plan all four divisors are the number of positions, by which torch divides too.
    Nothing else here uses a native mean. It saves a division, which with its gradient costs more
    than half as much as the loss itself on a small batch.
    """
    reduction = plan.spec.reduction
    if plan.spec.name == "mean_squared_error":
        return F.mse_loss(predictions, targets, reduction=reduction)
    if plan.kind == "binary":
        return F.binary_cross_entropy_with_logits(predictions, targets, reduction=reduction)
    assert plan.axis is not None
    rows = predictions
    if plan.axis != 1:
        rows, shape = _classes_second(predictions, plan.axis)
        targets = (
            targets.reshape(shape)
            if plan.kind == "index"
            else _classes_second(targets, plan.axis)[0]
        )
    return F.cross_entropy(
        rows,
        targets,
        ignore_index=IGNORE_NOTHING,
        reduction=reduction,
        label_smoothing=plan.label_smoothing,
    )


def fused_gradient(plan: Plan, predictions: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of `fused_loss` to finite predictions, whose own derivatives are torch's.

    It spares the loss, which nobody wants where a gradient is differentiated.
    """
    share = upstream.to(predictions.dtype)
    if plan.spec.reduction == "mean":
        assert plan.count
        share = share / plan.count
    if plan.kind == "real":
        return (predictions - targets) * (2 * share)
    if plan.kind == "binary":
        return (predictions.sigmoid() - targets) * share
    assert plan.axis is not None
    chances = predictions.softmax(plan.axis)
    if plan.kind == "dense":
        return (chances * targets.sum(plan.axis, keepdim=True) - targets) * share
    labels = targets.unsqueeze(plan.axis)
    return (chances * share).scatter_add(plan.axis, labels, -share.expand(labels.shape))
