"""PyTorch's operations and kernels where each process holds a part of the predictions.

They take the local parts and mean the whole: a sum over the class axis adds the sums of all
processes. What has an entry for each position is the same in all processes that split the classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unifiedloss.adapters.torch import kernels, ops
from unifiedloss.adapters.torch.layout import Layout


class SplitOps:
    """The operations of `unifiedloss.adapters.torch.ops` on local parts.

    Attributes:
        layout: who holds what.
        of_piece: whether sums over positions are those of the local ones alone, for the totals of
            a piece.
    """

    def __init__(self, layout: Layout, *, of_piece: bool) -> None:
        self.layout = layout
        self._classes = layout.over_classes
        self._positions = () if of_piece else layout.over_positions

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the positions."""
        return self.layout.reduced(x.sum(), self._positions)

    def count(self, condition: Tensor, dtype: str) -> Tensor:
        """How many positions fulfil a condition; int64 until all are counted."""
        return ops.cast(self.layout.reduced(condition.sum(), self._positions), dtype)

    def sum_axis(self, x: Tensor, axis: int) -> Tensor:
        """The sum over the class axis, or over an axis that is not split."""
        return self.layout.reduced(x.sum(axis), self._over(axis))

    def any_axis(self, x: Tensor, axis: int) -> Tensor:
        """Whether a condition holds anywhere along an axis."""
        if not self._over(axis):
            return x.any(axis)
        return self.layout.reduced(x.sum(axis), self._over(axis)) > 0

    def expand(self, x: Tensor, axis: int) -> Tensor:
        """Each position's number beside its classes, or a vector from a number."""
        if x.ndim == len(self.layout.shape) - 1:
            x = self.layout.shared(x, self._over(axis))
        return x.unsqueeze(axis)

    def take_class(self, x: Tensor, index: Tensor, axis: int) -> Tensor:
        """The entry of one class, from the process that has it."""
        if not self._over(axis):
            return ops.take_class(x, index, axis)
        return self.layout.reduced(_taken(self.layout, x, index, axis), self._over(axis))

    def along(self, vector: Tensor, reference: Tensor, axis: int) -> Tensor:
        """The local part of a vector that belongs to an axis of the predictions."""
        start, length = self.layout.part(axis % len(self.layout.shape))
        return ops.along(vector[start : start + length], reference, axis)

    def extent(self, x: Tensor, axis: int, dtype: str) -> Tensor:
        """The extent of an axis of the whole predictions."""
        return torch.full((), self.layout.shape[axis], dtype=ops.DTYPES[dtype], device=x.device)

    def _over(self, axis: int) -> tuple[int, ...]:
        return self._classes if axis == self.layout.axis else ()


class SplitKernels:
    """The kernels of `unifiedloss.adapters.torch.kernels` on local parts of the class axis."""

    binary_cross_entropy = staticmethod(kernels.binary_cross_entropy)
    squared_error = staticmethod(kernels.squared_error)

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._classes = layout.over_classes

    def cross_entropy(self, logits: Tensor, labels: Tensor, axis: int) -> Tensor:
        """log sum exp z - z_y per position, by two reductions: the largest logit, and both sums."""
        layout = self.layout
        shifted = self._shifted(logits, axis)
        of_label = _taken(layout, shifted, labels, axis)
        both = torch.stack([shifted.exp().sum(axis), of_label])
        total, of_label = layout.reduced(both, self._classes).unbind()
        return total.log() - of_label

    def log_softmax(self, logits: Tensor, axis: int) -> Tensor:
        """The logarithm of the softmax over the whole class axis."""
        layout = self.layout
        shifted = self._shifted(logits, axis)
        total = layout.reduced(shifted.exp().sum(axis), self._classes).log()
        return shifted - layout.shared(total, self._classes).unsqueeze(axis)

    def softmax(self, logits: Tensor, axis: int) -> Tensor:
        """The softmax over the whole class axis."""
        return self.log_softmax(logits, axis).exp()

    def _shifted(self, logits: Tensor, axis: int) -> Tensor:
        """The logits less the largest of their position."""
        known = logits.detach()
        if known.shape[axis]:
            largest = known.amax(axis)
        else:  # more processes than classes
            shape = known.shape[:axis] + known.shape[axis + 1 :]
            largest = known.new_full(shape, -math.inf)
        return logits - self.layout.reduced(largest, self._classes, "max").unsqueeze(axis)


def _taken(layout: Layout, x: Tensor, index: Tensor, axis: int) -> Tensor:
    """The entry of one class where this process has it, else 0."""
    start, length = layout.part(axis)
    if not length:
        return x.sum(axis)  # a sum over nothing, which is 0
    is_here = (index >= start) & (index < start + length)
    found = ops.take_class(x, torch.where(is_here, index - start, 0), axis)
    return torch.where(is_here, found, 0.0)
