"""The derivatives of exact mode on tensors.

Exact are the loss and, in reverse mode, its gradient to the predictions. Every other derivative is
that of native mode: the gradients to targets and sample weights, forward mode, and the derivatives
of the gradients. It is computed from the same tensors, and only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from unifiedloss import totals, values
from unifiedloss.adapters.torch import direct, kernels, operators, ops
from unifiedloss.adapters.torch.operators import (
    GRADIENT,
    LIBRARY,
    LOSS,
    Companion,
    array,
    computed,
    plan_of,
)
from unifiedloss.adapters.torch.spec_text import known_text
from unifiedloss.errors import BadValueError, EmptyMeanError
from unifiedloss.plan import Plan, natively
from unifiedloss.spec import Loss as Spec

_C: Any = torch._C  # Any, because type checkers do not know its parts
# The innermost torch.func transform now, or None. No public function returns it.
transform = _C._functorch.peek_interpreter_stack

_Tensors = tuple[Any, ...]
"""The predictions, targets, sample weights, mask and divisor of a call."""


# ---------------------------------------------------------------------------------------- natively


def _native_loss(plan: Plan, tensors: _Tensors) -> Tensor:
    """The native loss of a call."""
    *given, divisor = tensors
    adapter = operators.adapter()
    d = None if divisor is None else totals.Divisor(None, _number(divisor))
    if d is not None:
        given = [*totals.unlinked_if_empty(adapter, d, tuple(given))]
    try:
        loss: Tensor = adapter.loss(_native_spec(plan.spec), *given)
    except (BadValueError, EmptyMeanError):  # exact mode could not read the values, and gave NaN
        loss = adapter.compute(natively(plan), *given, checked=False)
    return loss if d is None else totals.quotient(adapter, plan.spec, loss, d)


@lru_cache(1024)
def _native_spec(spec: Spec) -> Spec:
    return spec.replace(rounding="native")


def _number(divisor: Tensor) -> Tensor:
    """A divisor, which may be a vector of `unifiedloss.exact.limbs`, as a number of float64."""
    if not divisor.ndim:
        return divisor.to(torch.float64)
    from unifiedloss.exact.limbs import counted_by_divisor  # native mode does not need it

    scales = divisor.new_tensor(counted_by_divisor(), dtype=torch.float64)
    total = (divisor[: len(scales)].to(torch.float64) * scales).sum()
    return torch.where((divisor[len(scales) : -1] == 0).all(), total, torch.nan)


def _native_gradient(plan: Plan, upstream: Tensor, tensors: _Tensors) -> Tensor:
    """The native gradient to the predictions."""
    short = _short_gradient(plan, upstream, tensors)
    if short is not None:
        return short
    value, pull = _vjp(lambda p: _native_loss(plan, (p, *tensors[1:])), tensors[0])
    return pull(upstream.to(value.dtype))[0]


def _short_gradient(plan: Plan, upstream: Tensor, tensors: _Tensors) -> Tensor | None:
    """`_native_gradient` without the loss, which nobody wants; None where there is no such way."""
    predictions, targets, *rest = tensors
    adapter = operators.adapter()
    if rest != [None] * 3 or not adapter.readable(upstream, predictions, targets):
        return None
    native = adapter.plan(_native_spec(plan.spec), predictions, targets, None, None)
    if not native.fused or native.label_smoothing:
        return None
    if plan.kind != "real" and not isfinite(predictions.sum().item()):  # rules of their own
        return None
    try:
        adapter.checked(native, predictions, targets, None, None)
    except BadValueError:  # it could not be read before
        return None
    return kernels.fused_gradient(native, predictions, targets, upstream)


def _vjp(
    function: Callable[..., Tensor], *primals: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """torch.func.vjp, of which the result is differentiable again where autograd records now.

    Outside of transforms it costs a fifth of torch.func's.
    """
    if transform() is not None or forward_ad._current_level >= 0:
        value, pull, *_ = torch.func.vjp(function, *primals)
        return value, pull
    with torch.enable_grad():
        # Views, because one primal may have been computed from another.
        leaves = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in primals]
        value = function(*leaves)

    def pull_back(upstream: Tensor) -> tuple[Tensor, ...]:
        if not value.requires_grad:  # an empty mean is a constant
            return tuple(torch.zeros_like(x) for x in primals)
        return torch.autograd.grad(
            value,
            leaves,
            upstream,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )

    return value, pull_back


def _of_some(
    function: Callable[..., Tensor], arguments: Sequence[Any], places: Sequence[int]
) -> Callable[..., Tensor]:
    """A function of some of its arguments, where the others are given."""

    def of_some(*some: Tensor) -> Tensor:
        every = list(arguments)
        for place, x in zip(places, some, strict=True):
            every[place] = x
        return function(*every)

    return of_some


def _pulled(
    function: Callable[..., Tensor], arguments: Sequence[Any], wanted: Sequence[bool], upstream: Any
) -> list[Companion]:
    """The gradients to the arguments that are wanted; None for the others."""
    places = [i for i, want in enumerate(wanted) if want]
    some = _of_some(function, arguments, places)
    value, pull = _vjp(some, *(arguments[i] for i in places))
    found: list[Companion] = [None] * len(arguments)
    for place, x in zip(places, pull(upstream.to(value.dtype)), strict=True):
        found[place] = x
    return found


def _pushed(
    function: Callable[..., Tensor], arguments: Sequence[Any], tangents: Sequence[Companion]
) -> Tensor:
    """The derivative along tangents, of which None is 0.

    It is the derivative of the gradient by its upstream gradient, twice in reverse mode, because
    torch refuses forward mode inside of forward mode.
    """
    places = [i for i, x in enumerate(tangents) if x is not None]
    some = _of_some(function, arguments, places)
    value, pull, *_ = torch.func.vjp(some, *(arguments[i] for i in places))

    def along(upstream: Tensor) -> Tensor:
        pairs = zip(pull(upstream), places, strict=True)
        products = [(x * tangents[i]).sum() for x, i in pairs]
        return torch.stack(products).sum()

    return torch.func.grad(along)(torch.zeros_like(value))


# --------------------------------------------------------------------------------------- the rules


def _gradients(
    ctx: Any, spec: Spec | str, upstream: Tensor, ahead: Tensor, tensors: _Tensors
) -> tuple[Companion, ...]:
    """The gradients to predictions, targets and sample weights that are needed."""
    needs = ctx.needs_input_grad[:3]
    slope = None
    if needs[0]:
        answered = _is_answer(ctx, ahead, upstream)
        slope = ahead if answered else _slope(ctx, spec, upstream, ahead, tensors)
    if not any(needs[1:]):
        return slope, None, None
    plan = plan_of(_text(spec), *tensors[:4])
    found = _pulled(
        lambda *given: _native_loss(plan, (*given, *tensors[3:])),
        tensors[:3],
        (False, *needs[1:]),
        upstream,
    )
    return slope, *found[1:]


def _slope(
    ctx: Any, spec: Spec | str, upstream: Tensor, ahead: Tensor, tensors: _Tensors
) -> Tensor:
    """The gradient to the predictions, where `_is_answer` has not found it."""
    args = (*tensors[:4], _text(spec), tensors[4])
    if ctx.given:
        return gradient(upstream, ahead.new_empty(0), *args)
    recorded = torch.is_grad_enabled() and ahead.numel() > 0
    if recorded and _is_readable(upstream) and upstream.item() == 1:
        # Without a copy the first time, because a second time is unlikely.
        ctx.given = True
        return _Given.apply(upstream, ahead, *args)
    return gradient(upstream, ahead, *args)


def _text(spec: Spec | str) -> str:
    return spec if isinstance(spec, str) else known_text(spec)


def _is_answer(ctx: Any, ahead: Tensor, upstream: Tensor) -> bool:
    """Whether the gradient computed ahead may be returned without a copy.

    It may not if another backward pass may use it again, or if its own derivative may be asked for.
    """
    return (
        ahead.numel() > 0
        and not torch.is_grad_enabled()
        # No public function says whether the graph is retained.
        and not _C._autograd._get_current_graph_task_keep_graph()
        and _is_readable(upstream)
        and upstream.item() == 1
        and not ctx.given
    )


def _is_readable(upstream: Tensor) -> bool:
    return (
        type(upstream) is Tensor
        and not upstream.is_meta
        # autograd.grad(is_grads_batched=True) brings such tensors.
        and not _C._functorch.is_legacy_batchedtensor(upstream)
        and transform() is None
        and forward_ad._current_level < 0
    )


def _vmap_rule(call: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for torch.func.vmap: one call per index of the mapped axis."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        def call_at(i: int) -> Any:
            pairs = zip(args, in_dims, strict=True)
            return call(*(x if axis is None else x.select(axis, i) for x, axis in pairs))

        results = [call_at(i) for i in range(info.batch_size)]
        if isinstance(results[0], tuple):
            return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
        return torch.stack(results), 0

    return vmap


class _Loss(Function):
    """The loss, and the gradient ahead: ``unifiedloss::exact`` with its derivatives."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        with _C._AutoDispatchBelowAutograd():
            return LOSS(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep the gradient that was computed ahead, and the tensors."""
        *tensors, ctx.spec, _, divisor = inputs
        ctx.given = False
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], *tensors, divisor)
        ctx.save_for_forward(output[1], *tensors, divisor)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        if upstreams[0] is None:
            return (None,) * 7
        ahead, *tensors = ctx.saved_tensors
        found = _gradients(ctx, ctx.spec, upstreams[0], ahead, tuple(tensors))
        return *found, *(None,) * 4

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Companion, None]:
        """The exact gradient times the tangent of the predictions, and the native rest."""
        ahead, *tensors = ctx.saved_tensors
        plan = plan_of(ctx.spec, *tensors[:4])
        found: Companion = None
        if tangents[0] is not None:
            shape: Any = plan.positions if plan.spec.reduction == "none" else ()
            ones = tensors[0].new_ones(shape, dtype=ops.DTYPES[plan.result_dtype])
            slope = gradient(ones, ahead, *tensors[:4], ctx.spec, tensors[4])
            found = _along(plan, slope, tangents[0])
        if tangents[1] is not None or tangents[2] is not None:
            rest = _pushed(
                lambda *given: _native_loss(plan, (*given, *tensors[3:])),
                tensors[:3],
                (None, *tangents[1:3]),
            )
            found = rest if found is None else found + rest
        return found, None

    # _Loss is not yet defined here, hence the lambda.
    vmap = staticmethod(_vmap_rule(lambda *args: _Loss.apply(*args)))  # noqa: PLW0108


def _along(plan: Plan, slope: Tensor, tangent: Tensor) -> Tensor:
    """The product of the gradient of each loss with a tangent of the predictions."""
    dtype = ops.DTYPES[plan.compute_dtype]
    products = slope.to(dtype) * tangent.to(dtype)
    if plan.spec.reduction != "none":
        products = products.sum()
    elif plan.axis is not None or plan.average_last_axis:
        products = products.sum(-1 if plan.axis is None else plan.axis)
    return products.to(ops.DTYPES[plan.result_dtype])


class _Gradient(Function):
    """The gradient: ``unifiedloss::exact_gradient``, whose derivative is the native one."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        with _C._AutoDispatchBelowAutograd():
            return GRADIENT(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the tensors."""
        upstream, _, *tensors, ctx.spec, divisor = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(upstream, *tensors, divisor)
        ctx.save_for_forward(upstream, *tensors, divisor)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        if upstreams[0] is None:
            return (None,) * 8
        needs = ctx.needs_input_grad
        needs = (needs[0], *needs[2:5])
        of_upstream, *found = _pulled(*_native_gradient_of(ctx), needs, upstreams[0])
        return of_upstream, None, *found, *(None,) * 3

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _pushed(*_native_gradient_of(ctx), (tangents[0], *tangents[2:5]))

    vmap = staticmethod(_vmap_rule(lambda *args: _Gradient.apply(*args)))  # noqa: PLW0108


class _Given(_Gradient):
    """The gradient where the one computed ahead is it."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        # With a version of its own, so that changing it in place does not spoil what is saved.
        given: Tensor = args[1].data
        return given


def _native_gradient_of(ctx: Any) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """The native gradient as a function of upstream, predictions, targets and sample weights."""
    saved = ctx.saved_tensors
    plan = plan_of(ctx.spec, *saved[1:5])

    def function(upstream: Tensor, *given: Any) -> Tensor:
        return _native_gradient(plan, upstream, (*given, *saved[4:]))

    return function, saved[:4]


# ------------------------------------------------------------------------------------ short ways


class Eager(Function):
    """The loss with its derivatives where nothing but autograd looks at its tensors.

    A Function with a separate setup_context costs 30 microseconds more a call, because torch looks
    at the signature of forward each time. Only torch.func needs one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Companion,
        mask: Companion,
        plan: Plan,
        ahead: bool,
        divisor: Companion,
    ) -> Tensor:
        tensors = (predictions, targets, sample_weight, mask)
        value, gradient = computed(plan, None, tensors, divisor, gradient=ahead)
        ctx.plan, ctx.given = plan, False
        ctx.set_materialize_grads(False)
        kept = predictions.new_empty(0) if gradient is None else gradient
        ctx.save_for_backward(kept, *tensors, divisor)
        return value

    @staticmethod
    def backward(ctx: Any, *upstreams: Companion) -> tuple[Any, ...]:
        (upstream,) = upstreams
        if upstream is None:
            return (None,) * 7
        ahead, *tensors = ctx.saved_tensors
        found = _gradients(ctx, ctx.plan.spec, upstream, ahead, tuple(tensors))
        return *found, *(None,) * 4


class OfTwo(Function):
    """`Eager` for predictions and labels whose values have not been checked."""

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, targets: Tensor, plan: Plan) -> Tensor:
        found = direct.evaluate(plan, predictions, targets, gradient=True, checked=False)
        if found is None:
            values.check(plan, array(predictions), array(targets), None, None)
            found = computed(plan, None, (predictions, targets, None, None), gradient=True)
        ctx.plan, ctx.given = plan, False
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found[1], predictions, targets)
        return found[0]

    @staticmethod
    def backward(ctx: Any, *upstreams: Companion) -> tuple[Any, ...]:
        (upstream,) = upstreams
        if upstream is None:
            return (None,) * 3
        ahead, predictions, targets = ctx.saved_tensors
        if not _is_answer(ctx, ahead, upstream):
            tensors = (predictions, targets, None, None, None)
            ahead = _slope(ctx, ctx.plan.spec, upstream, ahead, tensors)
        return ahead, None, None


# ----------------------------------------------------------------------------------- the operators


def loss(*args: Any) -> tuple[Tensor, Tensor]:
    """``unifiedloss::exact`` with its derivatives, under every transform."""
    if not _is_nested_forward():
        return _Loss.apply(*args)
    *tensors, text, ahead, divisor = args
    value, slope = _Loss.apply(*_detached(tensors), text, ahead, divisor)
    native = _native_loss(plan_of(text, *tensors), (*tensors, divisor))
    return ops.with_derivatives_of(native, value), slope


def gradient(*args: Any) -> Tensor:
    """``unifiedloss::exact_gradient`` with its derivatives, under every transform."""
    if not torch.is_grad_enabled() and transform() is None and forward_ad._current_level < 0:
        with _C._AutoDispatchBelowAutograd():
            return GRADIENT(*args)
    upstream, ahead, *tensors, text, divisor = args
    if _C._functorch.is_legacy_batchedtensor(upstream):
        # By autograd.grad(is_grads_batched=True), under which no derivative of a Function stays.
        with torch.no_grad():
            value = gradient(*args)
    elif _is_nested_forward():
        value = _Gradient.apply(*_detached((upstream, ahead, *tensors)), text, divisor)
    else:
        return _Gradient.apply(*args)
    plan = plan_of(text, *tensors)
    return ops.with_derivatives_of(_native_gradient(plan, upstream, (*tensors, divisor)), value)


def _is_nested_forward() -> bool:
    """Whether forward mode is inside of forward mode.

    There the second derivative of every Function is 0, silently (pytorch#197867).
    """
    levels = _C._functorch.get_interpreter_stack() or ()
    forward = _C._functorch.TransformType.Jvp
    return sum(level.key() == forward for level in levels) > 1


def _detached(tensors: Sequence[Any]) -> list[Any]:
    return [None if x is None else x.detach() for x in tensors]


def _with_derivative(operator: Any, function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The operator where autograd may look at it; its Function only where autograd does."""

    def call(*args: Any) -> Any:
        args = (*args, *(None,) * (count - len(args)))  # torch leaves out the default divisor
        looks = torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in args
        )
        if looks or transform() is not None or forward_ad._current_level >= 0:
            return function(*args)
        with _C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


for _operator, _function, _count in ((LOSS, loss, 7), (GRADIENT, gradient, 8)):
    LIBRARY.impl(_operator, _with_derivative(_operator, _function, _count), "Autograd")
    torch.library.register_vmap(_operator, _vmap_rule(_operator), lib=LIBRARY)
