"""PyTorch's array operations under the names of `unifiedloss.pipeline.Ops`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from unifiedloss.plan import Plan

DTYPES = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "bool"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
}

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

where = torch.where
equal = torch.eq
log = torch.log
log1p = torch.log1p
stop_gradient = torch.Tensor.detach
sum = torch.sum  # noqa: A001 - the name that `Ops` prescribes


def cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])


def cast_labels(x: Tensor) -> Tensor:
    return x.to(torch.int64)


def finite(x: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return with_derivatives_of(x, x.clamp(-largest, largest))


def with_derivatives_of(x: Tensor, values: Tensor) -> Tensor:
    """`values` with the derivatives of x in both modes, as if they were x.

    The derivative of torch.clamp is 0 at infinity, and in nested forward mode that of a Function
    is 0 (pytorch#197867).
    """
    y = x.clone()
    # What is recorded is the clone alone.
    with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):  # noqa: FBT003 - its only way
        y.copy_(values)
    return y


def stored(x: Tensor) -> Tensor:
    """`x` rounded to its dtype, for a compiler that would keep more digits of it.

    inductor leaves out a cast to a half type if a cast back follows, and its code for CPUs
    contracts a product and the subtraction after it (conformance's fused cases). It must round a
    number before it reads the bits. It would cancel two views, so a clamp stands between them,
    which changes one NaN to another, and no number.
    """
    form = _INTEGERS[x.dtype.itemsize]
    with torch.no_grad():
        rounded = x.view(form).clamp(max=torch.iinfo(form).max - 1).view(x.dtype)
    return with_derivatives_of(x, rounded)


def sum_axis(x: Tensor, axis: int) -> Tensor:
    return x.sum(axis)


def any_axis(x: Tensor, axis: int) -> Tensor:
    return x.any(axis)


def count(condition: Tensor, dtype: str) -> Tensor:
    return condition.sum().to(DTYPES[dtype])


def size(x: Tensor, dtype: str) -> Tensor:
    return torch.full((), x.numel(), dtype=DTYPES[dtype], device=x.device)


def expand(x: Tensor, axis: int) -> Tensor:
    return x.unsqueeze(axis)


def align(x: Tensor, reference: Tensor) -> Tensor:
    return x.reshape(x.shape + (1,) * (reference.ndim - x.ndim))


def broadcast_like(x: Tensor, reference: Tensor) -> Tensor:
    return x.expand_as(reference)


def take_class(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return x.gather(axis, index.unsqueeze(axis)).squeeze(axis)


def constant(values: tuple[float, ...] | float, dtype: str, reference: Tensor) -> Tensor:
    return torch.tensor(values, dtype=DTYPES[dtype], device=reference.device)


def take(vector: Tensor, index: Tensor) -> Tensor:
    return vector.take(index)  # vector[index] reads a scalar index; compiled code cannot


def along(vector: Tensor, reference: Tensor, axis: int) -> Tensor:
    shape = [1] * reference.ndim
    shape[axis] = -1
    return vector.view(shape)


def extent(x: Tensor, axis: int, dtype: str) -> Tensor:
    return torch.full((), x.shape[axis], dtype=DTYPES[dtype], device=x.device)


def shapes_agree(plan: Plan, *tensors: Tensor | None) -> tuple[Any, Any]:
    return torch.tensor(data=True), tensors  # torch knows every shape, also in torch.compile
