"""Exact mode on tensors: which way computes a call.

A call whose tensors nothing but autograd looks at is computed at once, any other by an operator of
`unifiedloss.adapters.torch.operators`. The derivatives are in
`unifiedloss.adapters.torch.derivatives`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from unifiedloss.adapters.torch import derivatives, direct
from unifiedloss.adapters.torch.operators import (
    GRADIENT,
    LOSS,
    Companion,
    are_memory,
    computed,
)
from unifiedloss.adapters.torch.spec_text import known_text, text_of
from unifiedloss.plan import Plan

_C: Any = torch._C  # Any, because type checkers do not know its parts
_transform = derivatives.transform


def loss(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Companion,
    mask: Companion,
    divisor: Companion = None,
) -> Tensor:
    """The loss, correctly rounded, with its derivatives.

    With a divisor, the sum over it, of a plan with the reduction "sum".
    """
    tensors = (predictions, targets, sample_weight, mask)
    wanted = torch.is_grad_enabled()
    # Not under "none", where the upstream gradient seldom consists of ones.
    ahead = wanted and predictions.requires_grad and plan.spec.reduction != "none"
    # torch.func needs the Function, but torch.compile cannot trace one that has a vmap rule
    # (pytorch#118397), so it gets the operator. torch.func.grad inside torch.compile raises.
    if torch.compiler.is_compiling():
        return LOSS(*tensors, text_of(plan.spec), ahead, divisor)[0]
    if _is_plain(*tensors, divisor):
        if not (wanted and any(x is not None and x.requires_grad for x in tensors)):
            return computed(plan, None, tensors, divisor, gradient=False)[0]
        return derivatives.Eager.apply(*tensors, plan, ahead, divisor)
    return derivatives.loss(*tensors, known_text(plan.spec), ahead, divisor)[0]


def loss_of_two(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor | None:
    """`loss` of two CPU tensors whose values have not been checked, without any operator.

    Returns:
        None if another way must compute it.
    """
    if targets.requires_grad or not _is_untransformed() or not are_memory(predictions, targets):
        return None
    if not direct.takes(plan):
        return None
    wanted = torch.is_grad_enabled() and predictions.requires_grad
    if wanted and plan.spec.reduction == "none":  # `OfTwo` computes a gradient ahead
        return None
    if not wanted:
        found = direct.evaluate(plan, predictions, targets, gradient=False, checked=False)
        return None if found is None else found[0]
    if predictions.is_inference() or targets.is_inference():  # autograd does not save these
        return None
    # Function's own `apply` only looks for transforms, and there are none.
    plain: Any = super(Function, derivatives.OfTwo)
    value: Tensor = plain.apply(predictions, targets, plan)
    return value


def value_and_grad(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Companion,
    mask: Companion,
    upstream: Companion,
    divisor: Companion = None,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient to the predictions, for an upstream gradient of any dtype.

    Autograd would round the upstream gradient to the dtype of the loss. None stands for 1, and is
    for a reduced loss.
    """
    tensors = (predictions, targets, sample_weight, mask)
    compiling = torch.compiler.is_compiling()
    text = (text_of if compiling else known_text)(plan.spec)
    # Under torch.func, an outer transform may differentiate both.
    transformed = not compiling and _transform() is not None
    with torch.set_grad_enabled(transformed):
        of_loss = LOSS if compiling else derivatives.loss
        value, ahead = of_loss(*tensors, text, upstream is None, divisor)
        if upstream is None:
            if not transformed:
                return value, ahead
            upstream = torch.ones_like(value)
        of_gradient = GRADIENT if compiling else derivatives.gradient
        return value, of_gradient(upstream, ahead, *tensors, text, divisor)


def _is_plain(*tensors: Companion) -> bool:
    """Whether nothing but autograd looks at these tensors: no transform, mode, tracer or subclass.

    Such calls need no operator, which costs more than the loss of a small batch.
    """
    return _is_untransformed() and are_memory(*(x for x in tensors if x is not None))


def _is_untransformed() -> bool:
    """Whether no transform, mode or tracer looks at the operators now."""
    return (
        _transform() is None
        and not _C._len_torch_dispatch_stack()
        and not _C._get_tracing_state()
        and forward_ad._current_level < 0
    )
