"""Losses of DTensors: each process computes with its local part, and DTensor adds up the rest.

In native mode the pipeline runs on the local parts with the operations of
`unifiedloss.adapters.torch.split_ops`. In exact mode each process has whole rows: their totals and
divisors are added, and then each computes its own part of the gradient for the common divisor. No
value is checked, because a process that raises alone would leave the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Partial, Replicate

from unifiedloss import totals as of_pieces
from unifiedloss.adapters.torch import kernels
from unifiedloss.adapters.torch.layout import Layout, placed
from unifiedloss.adapters.torch.split_ops import SplitKernels, SplitOps
from unifiedloss.checks import extents
from unifiedloss.errors import UnsupportedError
from unifiedloss.inputs import Signature
from unifiedloss.plan import Plan
from unifiedloss.spec import Loss

_NAMES = ("targets", "sample_weight", "mask")

_Call = tuple[Any, ...]
"""The predictions, targets, sample weights and mask of a call."""


def is_any(*tensors: Any) -> bool:
    """Whether one of these is a DTensor."""
    return any(isinstance(x, DTensor) for x in tensors)


MakeLocal = Callable[..., Any]
"""The class that joins `unifiedloss.adapters.torch.local.LocalParts` and `TorchAdapter`."""


class _Parts(NamedTuple):
    """A call in its local parts.

    Attributes:
        layout: how the predictions are split where the loss is computed.
        tensors: the local parts.
        of_call: the adapter for the call as a whole.
        of_piece: the adapter for the local positions as a piece.
        plan: of the whole call.
        own: the layout that the predictions have of themselves.
    """

    layout: Layout
    tensors: _Call
    of_call: Any
    of_piece: Any
    plan: Plan
    own: Layout

    def positions(self, x: Tensor) -> Any:
        """The DTensor of local losses, or of a number that all processes have."""
        if not x.ndim:
            return self.layout.whole(x, self.layout.everywhere)
        assert self.plan.positions is not None
        shape: Any = self.plan.positions
        rank = len(shape)
        losses = self.layout.whole(x, self.layout.of_positions(rank), shape)
        return losses.redistribute(placements=self.own.of_positions(rank))


def _parts(make: MakeLocal, adapter: Any, spec: Loss, *tensors: Any) -> _Parts:
    """Bring a call to its local parts.

    Raises:
        UnsupportedError: the predictions are a plain tensor beside a DTensor.
    """
    predictions, *companions = adapter.to_tensors(*tensors)
    _refuse_plain("predictions", predictions, companions)
    plan = adapter.plan(spec, predictions, *companions)
    return _split(make, adapter, plan, predictions, (predictions, *companions))


def _parts_of_divisor(
    make: MakeLocal, adapter: Any, spec: Loss, *tensors: Any, dtype: str
) -> _Parts:
    """`_parts` of a call that has no predictions."""
    _, targets, *rest = adapter.to_tensors(tensors[0], *tensors)
    _refuse_plain("targets", targets, [targets, *rest])
    plan = adapter.plan_of_divisor(spec, targets, *rest, dtype)
    return _split(make, adapter, plan, targets, (None, targets, *rest))


def _refuse_plain(what: str, x: Any, companions: list[Any]) -> None:
    if isinstance(x, DTensor):
        return
    name = next(n for n, x in zip(_NAMES, companions, strict=True) if isinstance(x, DTensor))
    msg = (
        f"{name} is a DTensor beside {what} that are a plain tensor; distribute the {what} too, as "
        f"with DTensor.from_local, or pass {name}.full_tensor()."
    )
    raise UnsupportedError(msg)


def _split(make: MakeLocal, adapter: Any, plan: Plan, first: Any, tensors: _Call) -> _Parts:
    """The local parts of tensors, which are split as the first of them is."""
    signatures = tuple(None if x is None else adapter.signature(x) for x in tensors)
    # Class indices have no class axis, so they are split as the positions are.
    axis = None if first is not tensors[0] and plan.kind == "index" else plan.axis
    placements = placed(first, whole=_whole_axes(plan, axis, first.ndim))
    own = Layout(first.device_mesh, tuple(first.placements), tuple(first.shape), axis)
    layout = own._replace(placements=placements)

    def local_of(name: str, x: Any) -> Any:
        has_classes = name == "predictions" or (name == "targets" and plan.kind != "index")
        given = placements if has_classes else layout.of_positions(x.ndim)
        return layout.local(name, x, given)

    local: _Call = tuple(
        None if x is None else local_of(name, x)
        for name, x in zip(("predictions", *_NAMES), tensors, strict=True)
    )
    of_piece = tuple(
        None if s is None or x is None else s._replace(shape=tuple(x.shape))
        for s, x in zip(signatures, local, strict=True)
    )
    if layout.over_classes:
        of_piece = tuple(_with_classes(s, layout) for s in of_piece)
    of_classes = SplitKernels(layout) if layout.over_classes else kernels
    return _Parts(
        layout,
        local,
        make(signatures, SplitOps(layout, of_piece=False), of_classes),
        make(of_piece, SplitOps(layout, of_piece=True), of_classes),
        plan,
        own,
    )


def _with_classes(signature: Signature | None, layout: Layout) -> Signature | None:
    """The signature of local rows with the whole class axis."""
    axis = layout.axis
    if signature is None or signature.shape is None or len(signature.shape) < len(layout.shape):
        return signature
    assert axis is not None
    shape = (*signature.shape[:axis], layout.shape[axis], *signature.shape[axis + 1 :])
    return signature._replace(shape=shape)


def _whole_axes(plan: Plan, axis: int | None, rank: int) -> Callable[[int], bool]:
    """Which axes must not be split."""
    # Weights of elements belong to the last axes, and an average needs its whole axis.
    last = len(extents(plan.element_weights)) if plan.element_weights is not None else 0
    last = max(last, int(plan.average_last_axis))
    if plan.exact and (
        # If the divisor is 0, the loss is NaN only for a bad prediction, which totals do not tell
        # from another NaN.
        (plan.may_cancel and not plan.from_logits)
        # Totals have no fractions for a divisor.
        or (plan.average_last_axis and plan.element_weights is not None)
    ):
        return lambda _: True
    one = set()
    if axis is not None and (plan.exact or rank == 1):
        # Exact mode sums a row in one place. Of a single example nothing tells a number from a
        # tensor of positions.
        one.add(axis)
    if plan.exact and isinstance(plan.pos_weight, tuple):
        one.add(plan.pos_weight_axis % rank)

    def whole(a: int) -> bool:
        return a in one or a >= rank - last

    return whole


# --------------------------------------------------------------------------------------- the calls


def loss(make: MakeLocal, adapter: Any, spec: Loss, *tensors: Any, divisor: Any) -> Any:
    """`unifiedloss.adapter.Adapter.loss`, of a call with DTensors."""
    divisor = _everywhere(divisor)
    if not is_any(*tensors):
        return adapter.loss(spec, *tensors, divisor)
    parts = _parts(make, adapter, spec, *tensors)
    spec = spec.rounded(parts.plan.rounding)
    if spec.rounding == "exact":
        return parts.positions(_exact_loss(parts, spec, divisor))
    return parts.positions(parts.of_call.loss(spec, *parts.tensors, divisor))


def value_and_grad(
    make: MakeLocal, adapter: Any, spec: Loss, *tensors: Any, upstream: Any, divisor: Any
) -> tuple[Any, Any]:
    """`unifiedloss.adapter.Adapter.value_and_grad`, of a call with DTensors."""
    divisor = _everywhere(divisor)
    if not is_any(*tensors):
        found: tuple[Any, Any] = adapter.value_and_grad(spec, *tensors, upstream, divisor)
        return found
    parts = _parts(make, adapter, spec, *tensors)
    spec, layout = spec.rounded(parts.plan.rounding), parts.layout
    if upstream is not None:
        _, upstream = adapter.to_tensors(tensors[0], upstream)
        upstream = layout.local("upstream", upstream, layout.of_positions(upstream.ndim))
    if spec.rounding == "exact":
        value, gradient = _exact_value_and_grad(parts, spec, upstream, divisor)
    else:
        value, gradient = parts.of_call.value_and_grad(spec, *parts.tensors, upstream, divisor)
    predictions = tensors[0]
    slopes = layout.whole(gradient.contiguous(), layout.placements, layout.shape)
    if layout.placements != predictions.placements:
        slopes = slopes.redistribute(placements=_of_gradient(predictions.placements))
    return parts.positions(value), slopes


def totals(make: MakeLocal, adapter: Any, spec: Loss, *tensors: Any) -> Any:
    """`unifiedloss.adapter.Adapter.totals` of DTensors: parts that are added when they are read."""
    of_pieces.refuse_none(spec)
    parts = _parts(make, adapter, spec, *tensors)
    spec, layout = spec.rounded(parts.plan.rounding), parts.layout
    vector = of_pieces.totals(parts.of_piece, spec, *parts.tensors)
    return layout.whole(vector, layout.sums(layout.over_positions))


def divisor_of(make: MakeLocal, adapter: Any, spec: Loss, *tensors: Any, dtype: Any) -> Any:
    """`unifiedloss.adapter.Adapter.divisor_of` DTensors: parts, as those of `totals`."""
    of_pieces.refuse_other_reductions(spec, "divisor_of")
    name = of_pieces.dtype_name(adapter, dtype)
    parts = _parts_of_divisor(make, adapter, spec, *tensors, dtype=name)
    spec, layout = spec.rounded(parts.plan.rounding), parts.layout
    _, targets, weight, mask = parts.tensors
    found = of_pieces.divisor_of(parts.of_piece, spec, targets, weight, mask, name)
    return layout.whole(found, layout.sums(layout.over_positions))


def result(adapter: Any, spec: Loss, totals: Any) -> Any:
    """`unifiedloss.adapter.Adapter.result` of a DTensor, on all processes."""
    layout = Layout(totals.device_mesh, totals.placements, tuple(totals.shape))
    return layout.whole(adapter.result(spec, totals.full_tensor()), layout.everywhere)


def _everywhere(x: Any) -> Any:
    """A divisor as a plain tensor, added up if it is in parts."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _of_gradient(placements: Any) -> list[Any]:
    """The placements of the gradient to a tensor, which is nowhere in parts to be added."""
    return [Replicate() if isinstance(p, Partial) else p for p in placements]


# ------------------------------------------------------------------------------------- exact mode


def _exact_loss(parts: _Parts, spec: Loss, divisor: Any) -> Tensor:
    if spec.reduction == "none" or not parts.layout.over_positions:
        whole: Tensor = parts.of_piece.loss(spec, *parts.tensors, divisor)
        return whole
    value, by = _exact_value(parts, spec, divisor)
    wanted = any(x is not None and x.requires_grad for x in parts.tensors)
    if not (wanted and torch.is_grad_enabled()):
        return value
    if spec.reduction == "mean" and divisor is None and _is_divisor_wanted(parts):
        predictions, *rest = parts.tensors
        fixed = [None if x is None else x.detach() for x in rest]
        piece = parts.of_piece.loss(spec, predictions, *fixed, by)
        natively = spec.replace(rounding="native")
        native = parts.of_call.loss(natively, predictions.detach(), *rest)
        return _Beside.apply(piece, native, value)
    piece = parts.of_piece.loss(spec, *parts.tensors, by)
    found: Tensor = _WithValue.apply(piece, value, parts.layout)
    return found


def _is_divisor_wanted(parts: _Parts) -> bool:
    """Whether a gradient is wanted to tensors that the divisor depends on."""
    plan = parts.plan
    _, targets, weight, _ = parts.tensors
    of_targets = targets if plan.kind == "dense" and plan.class_weights is not None else None
    wanted = any(x is not None and x.requires_grad for x in (of_targets, weight))
    return plan.divisor == "weights" and wanted


def _exact_value_and_grad(
    parts: _Parts, spec: Loss, upstream: Tensor | None, divisor: Any
) -> tuple[Tensor, Tensor]:
    if spec.reduction == "none" or not parts.layout.over_positions:
        value, gradient = parts.of_piece.value_and_grad(spec, *parts.tensors, upstream, divisor)
        return value, gradient
    value, by = _exact_value(parts, spec, divisor)
    _, gradient = parts.of_piece.value_and_grad(spec, *parts.tensors, upstream, by)
    return value, gradient


def _exact_value(parts: _Parts, spec: Loss, divisor: Any) -> tuple[Tensor, Any]:
    """The loss of the whole, rounded once, and what a mean divides by.

    What the processes have is added by one reduction.
    """
    from unifiedloss.exact import parts as vectors  # imported here, see `unifiedloss.totals`

    if divisor is not None:
        of_pieces.refuse_other_reductions(spec, "divisor")
    layout, local = parts.layout, parts.of_piece
    predictions, targets, weight, mask = parts.tensors
    with torch.no_grad():
        found = of_pieces.totals(local, spec.summed, *parts.tensors)
        if spec.reduction == "sum" or divisor is not None:
            found = layout.reduced(found, layout.over_positions)
        else:
            dtype = predictions.dtype
            own = of_pieces.divisor_of(local, spec, targets, weight, mask, dtype)
            sizes = len(found), len(own)
            both = layout.reduced(torch.cat([found, own]), layout.over_positions)
            found, divisor = both.split(sizes)
        if spec.reduction == "sum":
            return vectors.result(local, spec, found), None
        by = vectors.read(local, spec, divisor)
        by = by if isinstance(by, Tensor) else torch.from_numpy(by).to(found.device)
        return vectors.result_over(local, spec, parts.plan.result_dtype, found, by), by


class _WithValue(Function):
    """The loss of the whole, with the derivative of the loss of the local positions."""

    @staticmethod
    def forward(ctx: Any, piece: Tensor, value: Tensor, layout: Layout) -> Tensor:
        ctx.layout = layout
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        # Each process computes with it the gradient of its own positions.
        return ctx.layout.shared(upstreams[0], ctx.layout.over_positions), None, None


class _Beside(Function):
    """The loss of the whole, differentiable once.

    A piece has the gradient to the predictions, for a divisor that is fixed, and the native loss
    those to the tensors that the divisor depends on.
    """

    @staticmethod
    def forward(ctx: Any, piece: Tensor, native: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            msg = (
                "rounding='exact' gives no second derivative where the positions of a mean with "
                "divisor='weights' are split and the tensors that its divisor depends on require "
                "a gradient; detach sample_weight and targets, or use rounding='native'."
            )
            raise UnsupportedError(msg)
        return upstreams[0], upstreams[0], None
