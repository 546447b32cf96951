"""The operators of exact mode: the kernel of `unifiedloss.exact`, on the host.

The operators are opaque to torch's compilers. ``unifiedloss::exact`` computes the loss and, if
asked, the gradient for an upstream gradient of 1. ``unifiedloss::exact_gradient`` computes the
gradient for any upstream gradient. They take the spec as text, because an operator takes only
tensors, numbers and strings. Both take the divisor of a piece, see `unifiedloss.exact.pieces`.
Their derivatives are in `unifiedloss.adapters.torch.derivatives`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from unifiedloss import host, registry
from unifiedloss.adapters.torch import direct, ops
from unifiedloss.adapters.torch.spec_text import spec_of
from unifiedloss.plan import Plan

_Array = np.ndarray[Any, Any]
Companion = Tensor | None

_STRIDED = torch.strided


def are_memory(*tensors: Any) -> bool:
    """Whether these are dense tensors on the CPU, of no subclass."""
    return all(
        (type(x) is Tensor or type(x) is Parameter) and x.is_cpu and x.layout is _STRIDED
        for x in tensors
    )


def plan_of(text: str, *tensors: Any) -> Plan:
    return adapter().plan(spec_of(text), *tensors)


def adapter() -> Any:
    """The adapter, which is not registered by this.

    An operator also runs while torch.compile traces the first use of the library. If it filled the
    registry then, a trace that begins again would take another path, which torch refuses
    (test_first_use_in_a_compiled_function).
    """
    return registry.built_in("torch")


# ---------------------------------------------------------------------------------------- the host


def computed(
    plan: Plan,
    upstream: Companion,
    tensors: tuple[Companion, ...],
    divisor: Companion = None,
    *,
    gradient: bool,
) -> tuple[Any, Tensor | None]:
    """`unifiedloss.exact.evaluate` on tensors of any device.

    The loss may be None where an upstream gradient is given.
    """
    from unifiedloss import exact  # imported here because native mode does not need it

    predictions: Any = tensors[0]
    targets: Any = tensors[1]
    if tensors[2:] == (None, None) and divisor is None and are_memory(predictions, targets):
        found = direct.evaluate(plan, predictions, targets, upstream, gradient=gradient)
        if found is not None:
            return found
    arrays = [None if x is None else array(x) for x in (*tensors, upstream, divisor)]
    value, slope = host.run(
        partial(
            exact.evaluate,
            gradient=gradient,
            exp=exponential(),
            threads=torch.get_num_threads(),
        ),
        plan,
        *arrays,
    )
    device = tensors[0].device if tensors[0] is not None else None
    rounded = tensor(value, plan.result_dtype, device)
    return rounded, None if slope is None else tensor(slope, plan.gradient_dtype, device)


@cache
def exponential() -> Callable[..., Any]:
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


def array(x: Tensor) -> _Array:
    """The values on the host.

    bfloat16 is widened by its bits, because a cast in torch flushes subnormal numbers after
    ``torch.set_flush_denormal(True)``.
    """
    if x.dtype is torch.bfloat16:
        bits: _Array = x.view(torch.int16).numpy(force=True)
        return np.asarray(bits.astype(np.int32) << 16, np.int32).view(np.float32)
    return x.numpy(force=True)


def tensor(x: _Array, dtype: str, device: torch.device | None) -> Tensor:
    if dtype == "bfloat16":
        x = x.view(np.int16)
    return torch.from_numpy(np.asarray(x)).view(ops.DTYPES[dtype]).to(device)


# ----------------------------------------------------------------------------------- the operators
# Not torch.library.custom_op, whose registered derivative silently gives 0 in forward mode.

_TENSORS = "Tensor predictions, Tensor targets, Tensor? sample_weight, Tensor? mask"
LIBRARY = torch.library.Library("unifiedloss", "FRAGMENT")
for _schema in (
    f"exact({_TENSORS}, str spec, bool ahead, Tensor? divisor=None) -> (Tensor, Tensor)",
    (
        f"exact_gradient(Tensor upstream, Tensor ahead, {_TENSORS}, str spec, "
        "Tensor? divisor=None) -> Tensor"
    ),
):
    LIBRARY.define(_schema, tags=torch.Tag.pt2_compliant_tag)
LOSS = torch.ops.unifiedloss.exact.default
GRADIENT = torch.ops.unifiedloss.exact_gradient.default


def _loss(
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Companion,
    mask: Companion,
    spec: str,
    ahead: bool,
    divisor: Companion = None,
) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient for an upstream gradient of 1, empty unless asked for `ahead`."""
    tensors = predictions, targets, sample_weight, mask
    value, gradient = computed(plan_of(spec, *tensors), None, tensors, divisor, gradient=ahead)
    return value, predictions.new_empty(0) if gradient is None else gradient


def _fake_loss(
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Companion,
    mask: Companion,
    spec: str,
    ahead: bool,
    divisor: Companion = None,
) -> tuple[Tensor, Tensor]:
    plan = plan_of(spec, predictions, targets, sample_weight, mask)
    shape = plan.positions if plan.spec.reduction == "none" else ()
    dtype = ops.DTYPES[plan.result_dtype]
    value = predictions.new_empty(shape, dtype=dtype)  # type: ignore[arg-type]
    return value, predictions.new_empty(predictions.shape if ahead else 0)


def _gradient(
    upstream: Tensor,
    ahead: Tensor,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Companion,
    mask: Companion,
    spec: str,
    divisor: Companion = None,
) -> Tensor:
    """The gradient to the predictions.

    That computed `ahead` is used only if the upstream gradient is 1, because scaling it would round
    it twice.
    """
    if ahead.shape == predictions.shape and upstream.ndim == 0 and upstream.item() == 1:
        return ahead.clone(memory_format=torch.contiguous_format)
    tensors = predictions, targets, sample_weight, mask
    _, gradient = computed(plan_of(spec, *tensors), upstream, tensors, divisor, gradient=True)
    assert gradient is not None
    return gradient


def _fake_gradient(upstream: Tensor, ahead: Tensor, predictions: Tensor, *rest: Any) -> Tensor:
    return predictions.new_empty(predictions.shape)


for _operator, _kernel, _fake in ((LOSS, _loss, _fake_loss), (GRADIENT, _gradient, _fake_gradient)):
    LIBRARY.impl(_operator, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(_operator, _fake, lib=LIBRARY)
