"""The PyTorch adapter."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.torch import native, objects, ops
from unifiedloss.spec import AnyLoss, Plan

_NAMES = {dtype: name for name, dtype in ops.DTYPES.items()}

# The plain classes. A subclass may be a fake, a traced or a distributed tensor, whose values cannot be read.
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})

_FLOATING = frozenset({torch.float32, torch.float64})


class TorchAdapter(Adapter):
    """Carries plans out with ``torch.nn.functional``, eagerly, under ``torch.compile`` and under ``torch.func``."""

    name = "torch"
    tensor_type = Tensor
    ops = ops
    native = native

    def version(self) -> str:
        return torch.__version__

    def dtype_name(self, dtype: torch.dtype) -> str:
        return _NAMES.get(dtype) or str(dtype).removeprefix("torch.")

    def convert(self, x: np.ndarray[Any, Any], reference: Tensor | None) -> Tensor:
        device = None if reference is None else reference.device
        if x.dtype.name == "bfloat16":  # NumPy has none of its own; ml_dtypes' is known to torch by its bits alone
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).to(device)
        x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=")).reshape(x.shape)
        return torch.from_numpy(x if x.flags.writeable else x.copy()).to(device)

    def readable(self, *tensors: Tensor | None) -> bool:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            return False
        # A loop, not all(...): a generator costs as much as all its turns here.
        for x in tensors:  # noqa: SIM110
            if x is not None and not (type(x) in _PLAIN and x.is_cpu):
                return False
        return True

    def to_numpy(self, x: Tensor) -> np.ndarray[Any, Any]:
        if x.requires_grad:
            x = x.detach()
        if x.dtype is torch.bfloat16:
            x = x.float()
        return x.numpy() if x.is_cpu else x.cpu().numpy()

    def compute(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        *,
        checked: bool,
    ) -> Tensor:
        if torch.is_autocast_enabled(predictions.device.type):
            with torch.autocast(predictions.device.type, enabled=False):
                return self._compute(plan, predictions, targets, sample_weight, mask, checked)
        return self._compute(plan, predictions, targets, sample_weight, mask, checked)

    def _compute(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        checked: bool,
    ) -> Tensor:
        if checked and _is_whole(plan, predictions, targets):
            loss = native.whole_loss(plan, predictions, targets)
            # The native kernels give NaN at infinite logits, where the loss is defined. The long way knows the cases.
            if isfinite(loss.item()):
                return loss
        return super().compute(plan, predictions, targets, sample_weight, mask, checked=checked)

    def differentiate(
        self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], upstream: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            leaves = tuple(x.detach().requires_grad_() for x in tensors)
            value = function(*leaves)
            if upstream is None:
                upstream = torch.ones_like(value)
            if value.requires_grad:
                gradients = torch.autograd.grad(value, leaves, upstream, allow_unused=True, materialize_grads=True)
            else:  # an empty mean is a constant
                gradients = tuple(torch.zeros_like(x) for x in leaves)
        return value.detach(), gradients

    def bind(self, spec: AnyLoss) -> objects.LossModule:
        return objects.LossModule(spec)

    def modes(self) -> dict[str, Mode]:
        return {
            "eager": Mode(lambda function, *tensors: function(*tensors), raises=True),
            "aot_eager": Mode(_compiled("aot_eager"), raises=False),
            "inductor": Mode(_compiled("inductor"), raises=False, costly=True),
        }


def _is_whole(plan: Plan, predictions: Tensor, targets: Tensor) -> bool:
    """Whether one native call computes the plan: every position counts once, in a dtype torch computes and returns."""
    if not plan.plain or plan.spec.reduction == "none" or not plan.count or predictions.dtype not in _FLOATING:
        return False
    if plan.kind == "index":
        return plan.from_logits and targets.dtype is torch.int64
    if targets.dtype is not predictions.dtype:
        return False
    if plan.kind == "binary":
        return plan.from_logits and not plan.smoothing and getattr(plan.spec, "pos_weight", None) is None
    return plan.kind == "regression" or plan.from_logits


def _compiled(backend: str) -> Callable[..., Any]:
    def run(function: Callable[..., Any], *tensors: Tensor) -> Any:
        torch._dynamo.reset()
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*tensors)

    return run


ADAPTER = TorchAdapter()
