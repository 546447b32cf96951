"""Exact mode on CPU tensors without NumPy arrays: a compiled loop reads and writes memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unifiedloss import compiled, host, values
from unifiedloss.adapters.torch import ops
from unifiedloss.plan import Plan

_FORMS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

_LARGE = 1 << 20
"""Elements from which on NumPy allocates the gradient, because it asks for huge pages."""


@cache
def _loops() -> Any:
    from unifiedloss.exact import loops  # imported here because native mode does not need it

    return loops


@cache
def _mixed() -> Any:
    from unifiedloss.exact import mixed  # likewise

    return mixed


def takes(plan: Plan) -> bool:
    """Whether a loop computes the calls of a plan."""
    return _loops().ready(plan) is not None or _mixed().ready(plan) is not None


def evaluate(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    upstream: Tensor | None = None,
    *,
    gradient: bool,
    checked: bool = True,
) -> tuple[Any, Tensor | None] | None:
    """The loss and, on request, its gradient.

    The loss may be None where an upstream gradient is given.

    Args:
        plan: the plan of a call without weights and masks.
        predictions: dense, on the CPU, and neither traced nor wrapped; so are the targets.
        targets: the targets.
        upstream: a tensor in the shape of the loss, or None for 1.
        gradient: whether to compute the gradient.
        checked: whether the values have been checked. If not, a bad one raises an error.

    Returns:
        None if no loop computes this call.
    """
    loops = _loops()
    ready = loops.ready(plan)
    if not (predictions.is_contiguous() and targets.is_contiguous()):
        return None
    if predictions.is_neg() or targets.is_neg():  # views that torch negates lazily
        return None
    if ready is None:
        found = _by_rows(plan, predictions, targets, upstream, gradient=gradient)
        if found is not None:
            return found
        return _of_mixed(plan, predictions, targets, upstream, gradient=gradient, checked=checked)
    u = loops.upstream_of(None if upstream is None else upstream.item())
    addresses = predictions.data_ptr(), targets.data_ptr()
    if u is None or not all(addresses):  # a tensor of zeros may have no memory
        return None
    value = predictions.new_empty((), dtype=torch.float32)
    slopes = _room(predictions) if gradient else None
    to = 0 if slopes is None else slopes.data_ptr()
    memory = (*addresses, to, value.data_ptr())
    left = compiled.call(ready.fixed, u, *memory, threads=torch.get_num_threads())
    if left is not None:
        tensors = predictions, targets, slopes
        rest: Any = [None if x is None else _bits(x) for x in tensors]
        rest[0] = _mixed().from_bits(rest[0])
        if not checked:
            values.check(plan, rest[0], rest[1], None, None)
        finished = host.run(_finished, ready, left, *rest[:2], u, rest[2])
        if finished is None:
            return None
        value.copy_(torch.from_numpy(finished))
    return value, slopes


def _by_rows(
    plan: Plan, predictions: Tensor, targets: Tensor, upstream: Tensor | None, *, gradient: bool
) -> tuple[Tensor, Tensor | None] | None:
    """`evaluate` by the loops of `unifiedloss.exact.rows`."""
    from unifiedloss.exact import kernel, rows

    if not rows.takes(plan):
        return None
    slopes = _room(predictions) if gradient else None
    tensors = predictions, targets, upstream, None, slopes
    arrays = [None if x is None else _bits(x) for x in tensors]
    if upstream is not None:
        arrays[2] = _mixed().from_bits(arrays[2])
    value = host.run(rows.at_once, plan, *arrays, torch.get_num_threads(), kernel.some_rows)
    if value is None:
        return None
    loss = torch.from_numpy(value.view(np.int16) if value.dtype == np.uint16 else value)
    return loss.view(ops.DTYPES[plan.result_dtype]), slopes


def _of_mixed(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    upstream: Tensor | None,
    *,
    gradient: bool,
    checked: bool,
) -> tuple[Any, Tensor | None] | None:
    """`evaluate` by the loops of `unifiedloss.exact.mixed`."""
    mixed = _mixed()
    ready = mixed.ready(plan)
    if ready is None:
        return None
    above = _upstream(upstream)
    if above is None:
        return None
    # The gradient for an upstream gradient is asked for when the loss is known.
    slopes_alone = upstream is not None
    losses = slopes = None
    if not (ready.is_reduced or slopes_alone):
        losses = predictions.new_empty(plan.positions)  # type: ignore[arg-type]
    if gradient:
        slopes = _room(predictions)
    tensors = predictions, targets, losses, slopes
    memory = tuple(0 if x is None else x.data_ptr() for x in tensors)
    if not all(memory[:2]):
        return None
    total, left = mixed.run(ready, memory, above, torch.get_num_threads(), no_losses=slopes_alone)
    if left is None and (losses is not None or slopes_alone):
        return losses, slopes
    if left is None:
        number = _loops().rounded(total, ready.divisor)
        if number is not None:
            return torch.from_numpy(np.asarray(number)), slopes
        return None
    p, t, *rest = (
        None if x is None else _bits(x) for x in (*tensors[:2], upstream, losses, slopes)
    )
    if not checked:
        values.check(plan, mixed.from_bits(p), mixed.from_bits(t), None, None)
    found = host.run(_finished_mixed, ready, total, left, p, t, *rest)
    if slopes_alone and not isinstance(plan.pos_weight, tuple):
        return None, slopes
    if found is None:
        return None
    return (torch.from_numpy(found) if losses is None else losses), slopes


def _upstream(x: Tensor | None) -> Any:
    """See `unifiedloss.exact.mixed.upstream_of`."""
    mixed = _mixed()
    if x is None:
        return mixed.ONE
    if not x.ndim:
        number = _loops().upstream_of(x.item())
        return None if number is None else mixed.Upstream(number)
    if not (x.is_cpu and x.is_contiguous() and not x.is_neg() and x.dtype in _FORMS):
        return None
    return mixed.Upstream(1.0, x.data_ptr(), _FORMS[x.dtype])


def _bits(x: Tensor) -> Any:
    """The memory of a tensor; NumPy has no bfloat16, so its bits."""
    x = x.detach()
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype is torch.bfloat16 else x.numpy()


def _finished_mixed(ready: Any, total: Any, left: Any, *arrays: Any) -> Any:
    from unifiedloss.exact import kernel, mixed

    return mixed.finish(ready, total, left, kernel.some_rows, *arrays)


def _room(predictions: Tensor) -> Tensor:
    if predictions.numel() < _LARGE:
        return predictions.new_empty(predictions.shape)
    bits = torch.from_numpy(np.empty(predictions.shape, f"i{predictions.itemsize}"))
    return bits.view(predictions.dtype)


def _finished(*call: Any) -> Any:
    from unifiedloss.exact import kernel

    loss = kernel.finish(*call)
    return None if loss is None else np.asarray(loss)
