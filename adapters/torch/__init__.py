"""The PyTorch adapter."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.torch import auto, exact, kernels, objects, ops
from unifiedloss.adapters.torch.local import LocalParts
from unifiedloss.auto_rounding import Setting
from unifiedloss.errors import UnknownTensorError, UnsupportedError
from unifiedloss.floats import FORMATS
from unifiedloss.inputs import Inputs
from unifiedloss.plan import Plan, resolve_divisor
from unifiedloss.spec import Loss

_NAMES = {dtype: name for name, dtype in ops.DTYPES.items()}

_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
# The innermost torch.func transform now, or None. No public function returns it.
_transform = _functorch.peek_interpreter_stack
_NONE = type(None)
"""For `isinstance`, because torch.compile traces the result of `_transform` as an object, whose
class it knows, and which it does not find to be None."""

# How many dispatch modes are active, such as make_fx's. No public function returns it.
_modes = torch._C._len_torch_dispatch_stack

# Only these classes surely hold values. A subclass may be a fake, traced or distributed tensor.
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})

_FLOATING = frozenset(ops.DTYPES[name] for name in FORMATS)

_FEW = 64
"""Up to this many labels, `tolist()` is faster than `aminmax`."""

_MANY = 1 << 14
"""From this many elements on, `aminmax` of floats is faster on their bits."""
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class TorchAdapter(Adapter):
    """Carry out plans with ``torch.nn.functional``.

    It works eagerly, under ``torch.compile`` and under ``torch.func``.
    """

    name = "torch"
    tensor_type = Tensor
    ops: ClassVar[Any] = ops
    kernels: ClassVar[Any] = kernels
    why_native = staticmethod(auto.why_native)
    exact_reads_memory = True  # compilers store what an operator of another library reads

    def version(self) -> str:
        return torch.__version__

    def dtype_name(self, dtype: torch.dtype) -> str:
        return _NAMES.get(dtype) or str(dtype).removeprefix("torch.")

    def convert(self, x: np.ndarray[Any, Any], reference: Tensor | None) -> Tensor:
        device = None if reference is None else reference.device
        if torch.compiler.is_compiling():
            # torch.compile traces an array as a tensor, which has no NumPy dtype.
            return torch.as_tensor(x, device=device)
        if x.dtype.name == "bfloat16":  # a type of ml_dtypes, which torch.from_numpy does not know
            return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).to(device)
        x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("=")).reshape(x.shape)
        # A contiguous array may have any stride at an axis of length 1, which ascontiguousarray
        # keeps (numpy#23349). torch refuses some of those strides.
        if not x.flags.writeable or any(stride < 0 or stride % x.itemsize for stride in x.strides):
            x = x.copy()
        return torch.from_numpy(x).to(device)

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        tensors = super().to_tensors(predictions, *companions)
        for x in tensors:
            if isinstance(x, Tensor) and (x.layout is not torch.strided or x.is_nested):
                kind, fix = (
                    ("a nested one", "to_padded_tensor")
                    if x.is_nested
                    else (str(x.layout), "to_dense")
                )
                msg = (
                    f"a dense tensor is needed, got {kind}; convert it with {fix}, "
                    "and pass a mask for the positions it does not have."
                )
                raise UnknownTensorError(msg)
        _check_devices(*tensors)
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or torch.is_inference_mode_enabled()
        ):
            return tensors
        # Autograd cannot save a tensor made in inference mode for the backward pass, but its copy.
        return tuple(
            x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in tensors
        )

    def _is_numeric(self, x: np.ndarray[Any, Any]) -> bool:
        return torch.compiler.is_compiling() or super()._is_numeric(x)  # see `convert`

    def readable(self, *tensors: Tensor | None) -> bool:
        if torch.compiler.is_compiling() or _transform() is not None:
            return False
        for x in tensors:
            if x is not None and not (type(x) in _PLAIN and x.is_cpu):
                return False
        return not (_modes() and _is_proxied())

    def stored(self, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        # Compilers cannot trace the forward derivative of the copy in `ops.stored`.
        if not torch.compiler.is_compiling() or forward_ad._current_level >= 0:
            return tensors
        return tuple(
            ops.stored(x) if x is not None and x.dtype in _FLOATING else x for x in tensors
        )

    def to_numpy(self, x: Tensor) -> np.ndarray[Any, Any]:
        if x.is_meta:
            msg = "a tensor on the device meta has no values to read; load it on another one."
            raise UnsupportedError(msg)
        if x.requires_grad:
            x = x.detach()
        if x.dtype is torch.bfloat16:
            x = x.float()
        if x.is_neg():  # a view that torch negates lazily, which NumPy cannot
            x = x.resolve_neg()
        return x.numpy() if x.is_cpu else x.cpu().numpy()

    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Tensor:
        if divisor is not None:
            tensors = predictions, targets, sample_weight, mask
            if _is_distributed(*tensors, divisor):
                return _distributed().loss(_LocalAdapter, self, spec, *tensors, divisor=divisor)
            return super().loss(spec, *tensors, divisor)
        if (
            not torch.compiler.is_compiling()
            and sample_weight is None
            and mask is None
            and type(predictions) in _PLAIN
            and type(targets) is Tensor
            and predictions.is_cpu
            and targets.is_cpu
            # The public function, called for each device, takes three times as long.
            and not torch._C._is_any_autocast_enabled()
            and _transform() is None
        ):
            try:
                plan = super().plan(spec, predictions, targets, None, None)
                if plan.exact:
                    exact_loss = exact.loss_of_two(plan, predictions, targets)
                    if exact_loss is not None:
                        return exact_loss
                elif plan.fused and _trivially_valid(plan, targets):
                    loss = kernels.fused_loss(plan, predictions, targets)
                    # The native kernels give NaN at infinite logits, where the loss is defined. The
                    # pipeline handles them. The squared error needs no such check.
                    if plan.kind == "real" or isfinite(loss.item()):
                        return loss
            except RuntimeError:
                # torch refuses tensors that are sparse, nested, lazily negated, made in inference
                # mode or traced by make_fx. Checking for each beforehand would slow every call; the
                # call below does that.
                pass
        if _is_distributed(predictions, targets, sample_weight, mask):
            tensors = predictions, targets, sample_weight, mask
            return _distributed().loss(_LocalAdapter, self, spec, *tensors, divisor=None)
        return super().loss(spec, predictions, targets, sample_weight, mask)

    def value_and_grad(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        upstream: Any = None,
        divisor: Any = None,
    ) -> tuple[Tensor, Tensor]:
        tensors = predictions, targets, sample_weight, mask
        if _is_distributed(*tensors, divisor):
            return _distributed().value_and_grad(
                _LocalAdapter, self, spec, *tensors, upstream=upstream, divisor=divisor
            )
        return super().value_and_grad(spec, *tensors, upstream, divisor)

    def totals(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Tensor:
        tensors = predictions, targets, sample_weight, mask
        if _is_distributed(*tensors):
            return _distributed().totals(_LocalAdapter, self, spec, *tensors)
        return super().totals(spec, *tensors)

    def divisor_of(
        self,
        spec: Loss,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        dtype: Any = "float32",
    ) -> Tensor:
        tensors = targets, sample_weight, mask
        if _is_distributed(*tensors):
            return _distributed().divisor_of(_LocalAdapter, self, spec, *tensors, dtype=dtype)
        return super().divisor_of(spec, *tensors, dtype)

    def result(self, spec: Loss, summed: Any) -> Tensor:
        if _is_distributed(summed):
            return _distributed().result(self, spec, summed)
        return super().result(spec, summed)

    def plan(
        self,
        spec: Loss,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
    ) -> Plan:
        # Looking up a symbolic shape in a dictionary would specialize it to its current value, and
        # torch.compile would recompile for the next one.
        if torch.compiler.is_compiling():
            return self._resolve(spec, predictions, targets, sample_weight, mask)
        return super().plan(spec, predictions, targets, sample_weight, mask)

    def setting(self, *tensors: Tensor | None) -> Setting:
        on_host = all(x is None or x.device.type == "cpu" for x in tensors)
        return Setting(self.name, "cpu" if on_host else "accelerator", _mode())

    def _resolve(self, spec: Loss, *tensors: Tensor | None) -> Plan:
        # This is checked here and not in `loss`, because every call under torch.jit.trace gets
        # here: its extents are tensors, each a new object, so no plan is found in the cache.
        if not torch.compiler.is_compiling() and torch._C._is_tracing():
            msg = (
                "torch.jit.trace would freeze the number of positions that a mean divides by; use "
                "torch.export.export, or trace the model without its loss."
            )
            raise UnsupportedError(msg)
        return super()._resolve(spec, *tensors)

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
        # Autocast would compute in half precision where the plan says float32.
        device = predictions.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return super().compute(
                    plan, predictions, targets, sample_weight, mask, checked=checked
                )
        return super().compute(plan, predictions, targets, sample_weight, mask, checked=checked)

    def native_totals(self, plan: Plan, inputs: Inputs, *, mean: bool, checked: bool) -> Tensor:
        device = inputs.predictions.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # see `compute`
                return super().native_totals(plan, inputs, mean=mean, checked=checked)
        return super().native_totals(plan, inputs, mean=mean, checked=checked)

    def wide(self, x: Tensor) -> str:
        return "float32" if x.device.type == "mps" else "float64"  # Apple's GPUs have no float64

    def plan_of_divisor(
        self,
        spec: Loss,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        dtype: str,
    ) -> Plan:
        if torch.compiler.is_compiling():  # see `plan`
            tensors = targets, sample_weight, mask
            signatures: Any = [None if x is None else self.signature(x) for x in tensors]
            return self._planned(
                spec, tensors, lambda known: resolve_divisor(known, *signatures, dtype=dtype)
            )
        return super().plan_of_divisor(spec, targets, sample_weight, mask, dtype)

    def exact(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        divisor: Any = None,
    ) -> Tensor:
        by = _constant(divisor)
        return exact.loss(plan, predictions, targets, sample_weight, mask, by)

    def exact_value_and_grad(
        self,
        plan: Plan,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        upstream: Tensor | None,
        divisor: Any = None,
    ) -> tuple[Tensor, Tensor]:
        tensors = predictions, targets, sample_weight, mask
        return exact.value_and_grad(plan, *tensors, upstream, _constant(divisor))

    def exact_divisor(self, number: float) -> Any:
        if torch.compiler.is_compiling():
            return torch.tensor(
                number, dtype=torch.int64 if isinstance(number, int) else torch.float64
            )
        return super().exact_divisor(number)

    def on_host(self, job: Any, *tensors: Tensor | None) -> Tensor:
        return _pieces().on_host(job, *tensors)

    def differentiate(
        self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], upstream: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if _transform() is not None:  # under torch.func only torch.func.vjp differentiates
            value, pull_back, *_ = torch.func.vjp(function, *tensors)
            return value, pull_back(
                torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
            )
        if torch.is_inference_mode_enabled():  # it records nothing, so every gradient would be 0
            with torch.inference_mode(mode=False):
                return self.differentiate(function, tensors, upstream)
        with torch.enable_grad():
            leaves = tuple(
                (x.clone() if x.is_inference() else x.detach()).requires_grad_() for x in tensors
            )
            value = function(*leaves)
            upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
            if value.requires_grad:
                gradients = torch.autograd.grad(
                    value, leaves, upstream, allow_unused=True, materialize_grads=True
                )
            else:  # an empty mean is a constant
                gradients = tuple(torch.zeros_like(x) for x in leaves)
        return value.detach(), gradients

    def bind(self, spec: Loss) -> objects.LossModule:
        return objects.LossModule(spec, self)

    def modes(self) -> dict[str, Mode]:
        return {
            "eager": Mode(lambda function, *tensors: function(*tensors), raises=True),
            "aot_eager": Mode(_compiled("aot_eager"), raises=False, whole_step=False),
            "inductor": Mode(
                _compiled("inductor"),
                raises=False,
                whole_step=False,
                costly=True,
                missing=_missing_compiler(),
            ),
        }


def _check_devices(predictions: Any, *companions: Any) -> None:
    """Refuse tensors on several devices, of which exact mode would read some as if on the host.

    torch takes a number on the host beside tensors on any device, and so does a loss.
    """
    names = ("targets", "sample_weight", "mask", "upstream")
    for name, x in zip(names, companions, strict=False):
        if (
            isinstance(x, Tensor)
            and isinstance(predictions, Tensor)
            and x.device != predictions.device
            and not (x.is_cpu and x.ndim == 0)
        ):
            msg = (
                f"{name} is on the device {x.device}, and predictions are on {predictions.device}; "
                f"move one of them, as in {name}.to(predictions.device)."
            )
            raise UnsupportedError(msg)


def _constant(divisor: Any) -> Tensor | None:
    """The divisor of exact mode as a constant tensor."""
    if divisor is None or isinstance(divisor, Tensor):
        return None if divisor is None else divisor.detach()
    return torch.from_numpy(divisor)


def _pieces() -> Any:
    """The module for totals in exact mode, which native mode does not need."""
    # An import statement, because torch.compile traces it, see `unifiedloss.registry`.
    from unifiedloss.adapters.torch import pieces

    return pieces


def _is_distributed(*tensors: Any) -> bool:
    """Whether one of these is a DTensor; its module, which takes long to import, is not needed."""
    return any(type(x).__name__ == "DTensor" for x in tensors)


def _distributed() -> Any:
    """The module for DTensors, which other calls do not need."""
    from unifiedloss.adapters.torch import distributed  # see `_pieces`

    return distributed


def _trivially_valid(plan: Plan, targets: Tensor) -> bool:
    """`unifiedloss.values.trivially_valid` for targets that a native kernel takes as they are.

    This uses torch and not a NumPy view: on a small batch, NumPy's code displaces torch's from the
    processor's caches, and the gradient after it takes half as long again.
    """
    limit = plan.largest_target
    if limit is None:  # the squared error, for which all targets are valid
        return True
    if targets.requires_grad:
        targets = targets.detach()
    if plan.kind == "index" and targets.ndim == 1 and targets.numel() <= _FEW:
        numbers = targets.tolist()
        return bool(min(numbers) >= 0 and max(numbers) <= limit)
    if targets.numel() >= _MANY and targets.dtype in _INTEGERS:
        # Compare the bits as integers, which takes half the time: floats from 0 to the limit have
        # the same order as their bits, and negative floats are negative integers.
        limit = _bits(limit, targets.dtype)
        targets = targets.view(_INTEGERS[targets.dtype])
    ends = torch.aminmax(targets)
    return bool(ends.min.item() >= 0 and ends.max.item() <= limit)


def _mode() -> str:
    """The mode of a call, as `Setting` names it."""
    if not torch.compiler.is_compiling():
        return "eager"
    if torch.compiler.is_exporting():
        return "export"
    return "compiled" if isinstance(_transform(), _NONE) else "transform"


def _is_proxied() -> bool:
    """Whether make_fx is tracing, so that no value can be read."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


@cache
def _bits(limit: float, dtype: torch.dtype) -> int:
    return int(torch.tensor(limit, dtype=dtype).view(_INTEGERS[dtype]).item())


def _missing_compiler() -> str | None:
    """Why inductor cannot build programs for the CPU; None if it can, as far as is seen."""
    if sys.platform == "win32":  # where inductor searches for a compiler itself
        return None
    # What torch._inductor.config.cpp.cxx says, without the second that importing it takes.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler):
        return None
    return (
        f"torch's inductor needs a C++ compiler, and {compiler!r} is not installed; install one, "
        "or name another in the environment variable CXX"
    )


def _compiled(backend: str) -> Callable[..., Any]:
    def run(function: Callable[..., Any], *tensors: Tensor) -> Any:
        torch._dynamo.reset()
        return torch.compile(function, backend=backend, fullgraph=True, dynamic=False)(*tensors)

    return run


class _LocalAdapter(LocalParts, TorchAdapter):
    """The adapter for one call, whose tensors are the local parts of DTensors."""


ADAPTER = TorchAdapter()
