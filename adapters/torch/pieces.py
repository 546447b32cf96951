"""Exact mode for pieces of a loss: a given divisor, totals and their result, behind operators.

``unifiedloss::exact_piece`` and ``unifiedloss::exact_piece_gradient`` are the operators of
`unifiedloss.adapters.torch.exact` with a divisor. ``unifiedloss::exact_on_host`` runs any other job
of `unifiedloss.exact.pieces`, which has no derivative.
"""

from __future__ import annotations

import ast
from functools import lru_cache, partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from unifiedloss import host
from unifiedloss.adapters.torch import exact, ops
from unifiedloss.exact.pieces import Job
from unifiedloss.plan import Plan
from unifiedloss.serialization import from_dict

_Companion = Tensor | None
_Array = Any

_MAX_JOBS = 1024


def loss(plan: Plan, *tensors: Any, divisor: Any) -> Any:
    """The sum of (predictions, targets, sample_weight, mask) over a divisor, rounded once."""
    predictions, targets, sample_weight, _ = tensors
    wanted = torch.is_grad_enabled()
    if wanted:
        exact._refuse_other_gradients(targets, sample_weight)
    ahead = wanted and predictions.requires_grad
    with_divisor = (*tensors, _in_tensor(divisor))
    if not (ahead or torch.compiler.is_compiling()) and exact._is_plain(*with_divisor):
        return _computed(plan, None, with_divisor, gradient=False)[0]
    given = (*with_divisor, _text(plan), ahead)
    if torch.compiler.is_compiling():  # see `exact.loss`
        return _PIECE(*given)[0]
    return _Piece.apply(*given)[0]


def value_and_grad(
    plan: Plan, *tensors: Any, upstream: _Companion, divisor: Any
) -> tuple[Tensor, Tensor]:
    """`loss` and its gradient to the predictions, for an upstream gradient of any dtype."""
    _, targets, sample_weight, _ = tensors
    exact._refuse_other_gradients(targets, sample_weight)
    given = (*tensors, _in_tensor(divisor), _text(plan))
    compiling = torch.compiler.is_compiling()  # see `exact.loss`
    # Under torch.func, an outer transform may differentiate the value.
    with torch.set_grad_enabled(not compiling and exact._transform() is not None):
        piece = _PIECE if compiling else _Piece.apply
        if upstream is None:
            value, gradient = piece(*given, True)  # noqa: FBT003 - as the operator takes it
            return value, gradient
        value, none_ahead = piece(*given, False)  # noqa: FBT003
        return value, (_GRADIENT if compiling else _Gradient.apply)(upstream, none_ahead, *given)


def _text(plan: Plan) -> str:
    return (exact._text if torch.compiler.is_compiling() else exact._known_text)(plan.spec)


def _in_tensor(divisor: Any) -> Tensor:
    """The divisor as a constant."""
    return divisor.detach() if isinstance(divisor, Tensor) else torch.from_numpy(divisor)


def on_host(job: Job, *tensors: _Companion) -> Tensor:
    """Run a job of `unifiedloss.exact.pieces`, also in a compiled program."""
    words = (job.kind, job.dtype, *(dtype or "" for dtype in job.dtypes))
    # The operator has no derivative, because it rounds or counts.
    given = [None if x is None else x.detach() for x in tensors]
    found: Tensor = _ON_HOST(given, ",".join(words), exact._text(job.spec))
    return found


@lru_cache(_MAX_JOBS)
def _job(words: str, spec: str) -> Job:
    kind, dtype, *dtypes = words.split(",")
    known = tuple(each or None for each in dtypes)
    return Job(kind, from_dict(ast.literal_eval(spec)), known, dtype)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------- the operators

_LIBRARY = torch.library.Library("unifiedloss", "FRAGMENT")
_TENSORS = f"{exact._TENSORS}, Tensor divisor"
_TAG = torch.Tag.pt2_compliant_tag
_LIBRARY.define(f"exact_piece({_TENSORS}, str spec, bool ahead) -> (Tensor, Tensor)", tags=_TAG)
_LIBRARY.define(
    f"exact_piece_gradient(Tensor upstream, Tensor ahead, {_TENSORS}, str spec) -> Tensor",
    tags=_TAG,
)
_LIBRARY.define("exact_on_host(Tensor?[] tensors, str words, str spec) -> Tensor", tags=_TAG)
_PIECE = torch.ops.unifiedloss.exact_piece.default
_GRADIENT = torch.ops.unifiedloss.exact_piece_gradient.default
_ON_HOST = torch.ops.unifiedloss.exact_on_host.default


def _computed(
    plan: Plan, upstream: _Companion, tensors: tuple[Any, ...], *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    from unifiedloss import exact as kernel  # imported here because native mode does not need it

    *given, divisor = (None if x is None else exact._array(x) for x in tensors)
    above = None if upstream is None else exact._array(upstream)
    compute = partial(kernel.evaluate, gradient=gradient, exp=exact._exponential())
    value, slope = host.run(compute, plan, *given, above, divisor)
    device = tensors[0].device
    rounded = exact._tensor(value, plan.result_dtype, device)
    return rounded, None if slope is None else exact._tensor(slope, plan.predictions_dtype, device)


def _piece(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, spec, ahead = arguments
    plan = exact._plan(spec, *tensors[:4])
    value, gradient = _computed(plan, None, tuple(tensors), gradient=ahead)
    return value, tensors[0].new_empty(0) if gradient is None else gradient


def _fake_piece(*arguments: Any) -> tuple[Tensor, Tensor]:
    *tensors, spec, ahead = arguments
    predictions = tensors[0]
    plan = exact._plan(spec, *tensors[:4])
    value = predictions.new_empty((), dtype=ops.DTYPES[plan.result_dtype])
    return value, predictions.new_empty(predictions.shape if ahead else 0)


def _gradient(upstream: Tensor, ahead: Tensor, *arguments: Any) -> Tensor:
    """The gradient; that computed `ahead` only if the upstream gradient is 1, see `exact`."""
    *tensors, spec = arguments
    if ahead.shape == tensors[0].shape and upstream.ndim == 0 and upstream.item() == 1:
        return ahead.clone(memory_format=torch.contiguous_format)
    plan = exact._plan(spec, *tensors[:4])
    _, gradient = _computed(plan, upstream, tuple(tensors), gradient=True)
    assert gradient is not None
    return gradient


def _fake_gradient(upstream: Tensor, ahead: Tensor, predictions: Tensor, *rest: Any) -> Tensor:
    return predictions.new_empty(predictions.shape)


def _run(tensors: list[_Companion], words: str, spec: str) -> Tensor:
    arrays = [None if x is None else exact._array(x) for x in tensors]
    found = host.run(_job(words, spec).run, *arrays)
    return torch.from_numpy(found).to(_first(tensors).device)


def _fake_run(tensors: list[_Companion], words: str, spec: str) -> Tensor:
    shape, dtype = _job(words, spec).form
    return _first(tensors).new_empty(shape, dtype=ops.DTYPES[dtype])


def _first(tensors: list[_Companion]) -> Tensor:
    return next(x for x in tensors if x is not None)


class _Piece(Function):
    """The loss over the divisor, with its derivative."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return _PIECE(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the gradient that was computed ahead, and the tensors."""
        *tensors, ctx.spec, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        upstream = upstreams[0]
        if upstream is None:
            return (None,) * 7
        return _Gradient.apply(upstream, *ctx.saved_tensors, ctx.spec), *(None,) * 6

    jvp = staticmethod(exact._no_forward_mode)
    # _Piece is not yet defined here, hence the lambda.
    vmap = staticmethod(exact._vmap_rule(lambda *args: _Piece.apply(*args)))  # noqa: PLW0108


class _Gradient(Function):
    """The gradient, which has no derivative because it is rounded."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return _GRADIENT(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save nothing."""

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> NoReturn:
        exact._Gradient.backward(ctx, *upstream)
        raise AssertionError

    jvp = staticmethod(exact._no_forward_mode)
    vmap = staticmethod(exact._vmap_rule(lambda *args: _Gradient.apply(*args)))  # noqa: PLW0108


def _on_host_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """The rule for torch.func.vmap, whose tensors are in a list; see `exact._vmap_rule`."""
    (tensors, *rest), (axes, *_) = args, in_dims
    axes = axes if isinstance(axes, list | tuple) else [axes] * len(tensors)

    def at(i: int) -> Tensor:
        return _ON_HOST(
            [
                x if x is None or axis is None else x.select(axis, i)
                for x, axis in zip(tensors, axes, strict=True)
            ],
            *rest,
        )

    return torch.stack([at(i) for i in range(info.batch_size)]), 0


for _operator, _kernel, _fake in (
    (_PIECE, _piece, _fake_piece),
    (_GRADIENT, _gradient, _fake_gradient),
    (_ON_HOST, _run, _fake_run),
):
    _LIBRARY.impl(_operator, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(_operator, _fake, lib=_LIBRARY)
for _operator, _function in ((_PIECE, _Piece), (_GRADIENT, _Gradient)):
    _LIBRARY.impl(_operator, _function.apply, "Autograd")
    torch.library.register_vmap(_operator, exact._vmap_rule(_operator), lib=_LIBRARY)
torch.library.register_vmap(_ON_HOST, _on_host_vmap, lib=_LIBRARY)
