"""Exact mode on tensors: the kernel of `unifiedloss.exact`, on the host, behind two operators.

The operators are opaque to torch's compilers. ``unifiedloss::exact`` computes the loss and, if
asked, the gradient for an upstream gradient of 1. ``unifiedloss::exact_gradient`` computes the
gradient for any upstream gradient. They take the spec as text, because an operator takes only
tensors, numbers and strings.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter

from unifiedloss import host, registry, values
from unifiedloss.adapters.torch import direct, ops
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan
from unifiedloss.serialization import from_dict
from unifiedloss.spec import Loss

_Array = np.ndarray[Any, Any]
_Companion = Tensor | None

_MAX_SPECS = 1024

_STRIDED = torch.strided
_C: Any = torch._C  # Any, because type checkers do not know its parts
# The innermost torch.func transform now, or None. No public function returns it.
_transform = _C._functorch.peek_interpreter_stack


def loss(
    plan: Plan, predictions: Tensor, targets: Tensor, sample_weight: _Companion, mask: _Companion
) -> Tensor:
    """The loss, correctly rounded and differentiable once, by the predictions."""
    wanted = torch.is_grad_enabled()
    if wanted:
        _refuse_other_gradients(targets, sample_weight)
    # Not under "none", where the upstream gradient seldom consists of ones.
    ahead = wanted and predictions.requires_grad and plan.spec.reduction != "none"
    # torch.func needs the Function, but torch.compile cannot trace one that has a vmap rule
    # (pytorch#118397), so it gets the operator. torch.func.grad inside torch.compile raises.
    if torch.compiler.is_compiling():
        return _LOSS(predictions, targets, sample_weight, mask, _text(plan.spec), ahead)[0]
    if _is_plain(predictions, targets, sample_weight, mask):
        if not (wanted and predictions.requires_grad):
            tensors = (predictions, targets, sample_weight, mask)
            return _computed(plan, None, tensors, gradient=False)[0]
        return _Eager.apply(predictions, targets, sample_weight, mask, plan, ahead)
    return _Loss.apply(predictions, targets, sample_weight, mask, _known_text(plan.spec), ahead)[0]


def loss_of_two(plan: Plan, predictions: Tensor, targets: Tensor) -> Tensor | None:
    """`loss` of two CPU tensors whose values have not been checked, without any operator.

    Returns:
        None if another way must compute it.
    """
    if targets.requires_grad or not _is_untransformed() or not _are_memory(predictions, targets):
        return None
    if not direct.takes(plan):
        return None
    wanted = torch.is_grad_enabled() and predictions.requires_grad
    if wanted and plan.spec.reduction == "none":  # `_OfTwo` computes a gradient ahead
        return None
    if not wanted:
        found = direct.evaluate(plan, predictions, targets, gradient=False, checked=False)
        return None if found is None else found[0]
    if predictions.is_inference() or targets.is_inference():  # autograd does not save these
        return None
    # Function's own `apply` only looks for transforms, and there are none.
    plain: Any = super(Function, _OfTwo)
    value: Tensor = plain.apply(predictions, targets, plan)
    return value


def value_and_grad(
    plan: Plan,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: _Companion,
    mask: _Companion,
    upstream: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient to the predictions, for an upstream gradient of any dtype.

    Autograd would round the upstream gradient to the dtype of the loss.
    """
    _refuse_other_gradients(targets, sample_weight)
    tensors = (predictions, targets, sample_weight, mask)
    none_ahead, ahead = predictions.new_empty(0), False
    if torch.compiler.is_compiling():
        text = _text(plan.spec)
        with torch.no_grad():
            value = _LOSS(*tensors, text, ahead)[0]
            return value, _GRADIENT(upstream, none_ahead, *tensors, text)
    text = _known_text(plan.spec)
    # Under torch.func, an outer transform may differentiate the value.
    with torch.set_grad_enabled(_transform() is not None):
        value = _Loss.apply(*tensors, text, ahead)[0]
        return value, _Gradient.apply(upstream, none_ahead, *tensors, text)


def _is_plain(*tensors: _Companion) -> bool:
    """Whether nothing but autograd looks at these tensors: no transform, mode, tracer or subclass.

    Such calls need no operator, which costs more than the loss of a small batch.
    """
    return _is_untransformed() and _are_memory(*(x for x in tensors if x is not None))


def _are_memory(*tensors: Any) -> bool:
    """Whether these are dense tensors on the CPU, of no subclass."""
    return all(
        (type(x) is Tensor or type(x) is Parameter) and x.is_cpu and x.layout is _STRIDED
        for x in tensors
    )


def _is_untransformed() -> bool:
    """Whether no transform, mode or tracer looks at the operators now."""
    return (
        _transform() is None
        and not _C._len_torch_dispatch_stack()
        and not _C._get_tracing_state()
        and forward_ad._current_level < 0
    )


def _refuse_other_gradients(targets: Tensor, sample_weight: _Companion) -> None:
    """Raise an error if a tensor requires a gradient that exact mode does not give."""
    for name, x in (("targets", targets), ("sample_weight", sample_weight)):
        if x is not None and x.requires_grad:
            msg = (
                "rounding='exact' gives a gradient to the predictions alone, and "
                f"{name} requires one; detach {name}, or use rounding='native', which "
                "differentiates by both."
            )
            raise UnsupportedError(msg)


# ---------------------------------------------------------------------------------------- the spec


def _text(spec: Loss) -> str:
    """The spec as text, made with repr because torch.compile cannot trace the module json."""
    return repr({name: _constant(value) for name, value in spec.to_dict().items()})


def _constant(x: Any) -> Any:
    """`x` with its numbers made constant.

    Under ``dynamic=True`` torch.compile traces a spec's numbers as symbols, whose text is unknown.
    """
    if isinstance(x, list):
        return [_constant(each) for each in x]
    if isinstance(x, float):
        numerator, denominator = x.as_integer_ratio()
        return numerator / denominator  # the same number, and constant
    if isinstance(x, int) and not isinstance(x, bool):
        return next(iter({x: None}))  # torch.compile makes a dictionary key constant
    return x


_known_text = lru_cache(_MAX_SPECS)(_text)


@lru_cache(_MAX_SPECS)
def _spec(text: str) -> Loss:
    return from_dict(ast.literal_eval(text))


def _plan(text: str, *tensors: Any) -> Plan:
    return registry.adapter("torch").plan(_spec(text), *tensors)


# ---------------------------------------------------------------------------------------- the host


def _evaluate(
    text: str, upstream: _Companion, tensors: tuple[_Companion, ...], *, gradient: bool
) -> tuple[Any, Tensor | None]:
    """`_computed` for a spec as text."""
    return _computed(_plan(text, *tensors), upstream, tensors, gradient=gradient)


def _computed(
    plan: Plan, upstream: _Companion, tensors: tuple[_Companion, ...], *, gradient: bool
) -> tuple[Any, Tensor | None]:
    """`unifiedloss.exact.evaluate` on tensors of any device.

    The loss may be None where an upstream gradient is given.
    """
    from unifiedloss import exact  # imported here because native mode does not need it

    predictions: Any = tensors[0]
    targets: Any = tensors[1]
    if tensors[2:] == (None, None) and _are_memory(predictions, targets):
        found = direct.evaluate(plan, predictions, targets, upstream, gradient=gradient)
        if found is not None:
            return found
    arrays = [None if x is None else _array(x) for x in (*tensors, upstream)]
    value, slope = host.run(
        partial(
            exact.evaluate,
            gradient=gradient,
            exp=_exponential(),
            threads=torch.get_num_threads(),
        ),
        plan,
        *arrays,
    )
    device = tensors[0].device if tensors[0] is not None else None
    rounded = _tensor(value, plan.result_dtype, device)
    return rounded, None if slope is None else _tensor(slope, plan.predictions_dtype, device)


@cache
def _exponential() -> Callable[..., Any]:
    """NumPy's float64 exponential, or torch's if the processor has no AVX-512.

    Without AVX-512 NumPy's is not vectorized and takes more than twice as long.
    """
    try:
        known = np.lib.introspect.opt_func_info(func_name="^exp$", signature="^float64$")
        chosen: str = known["exp"]["dd"]["current"]
    except (AttributeError, KeyError):  # another NumPy, or only one variant for this processor
        return _exp
    return np.exp if chosen in ("X86_V4", "AVX512_SKX") else _exp


def _exp(x: _Array, out: _Array) -> None:
    torch.exp(torch.from_numpy(x), out=torch.from_numpy(out))


def _array(x: Tensor) -> _Array:
    """The values on the host.

    bfloat16 is widened by its bits, because a cast in torch flushes subnormal numbers after
    ``torch.set_flush_denormal(True)``.
    """
    if x.dtype is torch.bfloat16:
        bits: _Array = x.view(torch.int16).numpy(force=True)
        return np.asarray(bits.astype(np.int32) << 16, np.int32).view(np.float32)
    return x.numpy(force=True)


def _tensor(x: _Array, dtype: str, device: torch.device | None) -> Tensor:
    if dtype == "bfloat16":
        x = x.view(np.int16)
    return torch.from_numpy(np.asarray(x)).view(ops.DTYPES[dtype]).to(device)


# ----------------------------------------------------------------------------------- the operators
# Not torch.library.custom_op, whose registered derivative silently gives 0 in forward mode.

_TENSORS = "Tensor predictions, Tensor targets, Tensor? sample_weight, Tensor? mask"
_LIBRARY = torch.library.Library("unifiedloss", "FRAGMENT")
_LIBRARY.define(
    f"exact({_TENSORS}, str spec, bool ahead) -> (Tensor, Tensor)", tags=torch.Tag.pt2_compliant_tag
)
_LIBRARY.define(
    f"exact_gradient(Tensor upstream, Tensor ahead, {_TENSORS}, str spec) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_LOSS = torch.ops.unifiedloss.exact.default
_GRADIENT = torch.ops.unifiedloss.exact_gradient.default


def _loss(
    predictions: Tensor,
    targets: Tensor,
    sample_weight: _Companion,
    mask: _Companion,
    spec: str,
    ahead: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient for an upstream gradient of 1, empty unless asked for `ahead`."""
    value, gradient = _evaluate(
        spec, None, (predictions, targets, sample_weight, mask), gradient=ahead
    )
    return value, predictions.new_empty(0) if gradient is None else gradient


def _fake_loss(
    predictions: Tensor,
    targets: Tensor,
    sample_weight: _Companion,
    mask: _Companion,
    spec: str,
    ahead: bool,
) -> tuple[Tensor, Tensor]:
    plan = _plan(spec, predictions, targets, sample_weight, mask)
    shape = plan.positions if plan.spec.reduction == "none" else ()
    dtype = ops.DTYPES[plan.result_dtype]
    value = predictions.new_empty(shape, dtype=dtype)  # type: ignore[arg-type]
    return value, predictions.new_empty(predictions.shape if ahead else 0)


def _gradient(
    upstream: Tensor,
    ahead: Tensor,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: _Companion,
    mask: _Companion,
    spec: str,
) -> Tensor:
    """The gradient to the predictions.

    That computed `ahead` is used only if the upstream gradient is 1, because scaling it would round
    it twice.
    """
    if ahead.shape == predictions.shape and upstream.ndim == 0 and upstream.item() == 1:
        return ahead.clone(memory_format=torch.contiguous_format)
    _, gradient = _evaluate(
        spec, upstream, (predictions, targets, sample_weight, mask), gradient=True
    )
    assert gradient is not None
    return gradient


def _fake_gradient(upstream: Tensor, ahead: Tensor, predictions: Tensor, *rest: Any) -> Tensor:
    return predictions.new_empty(predictions.shape)


# ---------------------------------------------------------------------------------------- autograd


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.spec, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], *tensors)


def _backward(ctx: Any, upstream: _Companion, _: _Companion) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * 6
    ahead = ctx.saved_tensors[0]
    if not _is_reusable(ahead, upstream) or upstream.item() != 1:
        ahead = _Gradient.apply(upstream, *ctx.saved_tensors, ctx.spec)
    return ahead, None, None, None, None, None


def _is_reusable(ahead: Tensor, upstream: Tensor) -> bool:
    """Whether the gradient computed ahead may be returned without a copy if the upstream one is 1.

    It may not if another backward pass may use it again, if its own derivative may be asked for, or
    if the upstream gradient cannot be read.
    """
    return (
        ahead.numel() > 0
        and not torch.is_grad_enabled()
        # No public function says whether the graph is retained.
        and not _C._autograd._get_current_graph_task_keep_graph()
        and type(upstream) is Tensor
        and not upstream.is_meta
        # autograd.grad(is_grads_batched=True) brings such tensors.
        and not _C._functorch.is_legacy_batchedtensor(upstream)
        and _transform() is None
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


def _no_forward_mode(ctx: Any, *tangents: Any) -> NoReturn:
    msg = (
        "rounding='exact' has no forward-mode derivative (torch.func.jvp, jacfwd, hessian), for "
        "its gradient is rounded from the real one in the backward pass; use reverse mode, or "
        "rounding='native', which has both."
    )
    raise UnsupportedError(msg)


class _Loss(Function):
    """The loss with its derivative."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return _LOSS(*args)

    setup_context = staticmethod(_setup)
    backward = staticmethod(_backward)  # pyright: ignore[reportAssignmentType]
    jvp = staticmethod(_no_forward_mode)
    # _Loss is not yet defined here, hence the lambda.
    vmap = staticmethod(_vmap_rule(lambda *args: _Loss.apply(*args)))  # noqa: PLW0108


class _Eager(Function):
    """The loss with its derivative where `_is_plain`.

    A Function with a separate setup_context costs 30 microseconds more a call, because torch looks
    at the signature of forward each time. Only torch.func needs one.
    """

    @staticmethod
    def forward(
        ctx: Any,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: _Companion,
        mask: _Companion,
        plan: Plan,
        ahead: bool,
    ) -> Tensor:
        tensors = (predictions, targets, sample_weight, mask)
        value, gradient = _computed(plan, None, tensors, gradient=ahead)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(predictions.new_empty(0) if gradient is None else gradient, *tensors)
        return value

    @staticmethod
    def backward(ctx: Any, *upstreams: _Companion) -> tuple[Any, ...]:
        (upstream,) = upstreams
        if upstream is None:
            return (None,) * 6
        ahead = ctx.saved_tensors[0]
        if not _is_reusable(ahead, upstream) or upstream.item() != 1:
            text = _known_text(ctx.plan.spec)
            ahead = _Gradient.apply(upstream, *ctx.saved_tensors, text)
        return ahead, None, None, None, None, None


class _OfTwo(Function):
    """`_Eager` for two tensors whose values have not been checked."""

    @staticmethod
    def forward(ctx: Any, predictions: Tensor, targets: Tensor, plan: Plan) -> Tensor:
        found = direct.evaluate(plan, predictions, targets, gradient=True, checked=False)
        if found is None:
            values.check(plan, predictions.numpy(), targets.numpy(), None, None)
            found = _computed(plan, None, (predictions, targets, None, None), gradient=True)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(found[1], predictions, targets)
        return found[0]

    @staticmethod
    def backward(ctx: Any, *upstreams: _Companion) -> tuple[Any, ...]:
        (upstream,) = upstreams
        if upstream is None:
            return (None,) * 3
        ahead, predictions, targets = ctx.saved_tensors
        if not _is_reusable(ahead, upstream) or upstream.item() != 1:
            text = _known_text(ctx.plan.spec)
            ahead = _Gradient.apply(upstream, ahead, predictions, targets, None, None, text)
        return ahead, None, None


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
        msg = (
            "rounding='exact' has no second derivative, for its gradient is a rounded number; "
            "use rounding='native', which can be differentiated again."
        )
        raise UnsupportedError(msg)

    jvp = staticmethod(_no_forward_mode)
    vmap = staticmethod(_vmap_rule(lambda *args: _Gradient.apply(*args)))  # noqa: PLW0108


def _with_derivative(operator: Any, function: Any) -> Callable[..., Any]:
    """The operator where autograd may look at it; its Function only where autograd does."""

    def call(*args: Any) -> Any:
        looks = torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in args
        )
        if looks or _transform() is not None or forward_ad._current_level >= 0:
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    return call


for _operator, _kernel, _fake, _function in (
    (_LOSS, _loss, _fake_loss, _Loss),
    (_GRADIENT, _gradient, _fake_gradient, _Gradient),
):
    _LIBRARY.impl(_operator, _kernel, "CompositeExplicitAutograd")
    _LIBRARY.impl(_operator, _with_derivative(_operator, _function), "Autograd")
    torch.library.register_fake(_operator, _fake, lib=_LIBRARY)
    torch.library.register_vmap(_operator, _vmap_rule(_operator), lib=_LIBRARY)
