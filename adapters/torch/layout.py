"""Where the elements of a call with DTensor predictions are, and the local tensors of a process.

A DTensor has a placement for each axis of its device mesh. Along a mesh axis with `Shard(a)`, the
processes hold parts of the tensor's axis a; along one with `Replicate()` all hold the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from unifiedloss.errors import UnsupportedError

Placements = tuple[Any, ...]


class Layout(NamedTuple):
    """How the elements of predictions are split among the processes of a mesh.

    Attributes:
        mesh: the device mesh.
        placements: of the predictions, `Shard` or `Replicate` for each axis of the mesh.
        shape: of the predictions as a whole.
        axis: the class axis; None if the loss has none.
    """

    mesh: Any
    placements: Placements
    shape: tuple[int, ...]
    axis: int | None = None

    @property
    def over_classes(self) -> tuple[int, ...]:
        """The axes of the mesh that split the class axis."""
        return tuple(i for i, p in enumerate(self.placements) if _splits(p, self.axis))

    @property
    def over_positions(self) -> tuple[int, ...]:
        """The axes of the mesh that split the positions."""
        return tuple(
            i
            for i, p in enumerate(self.placements)
            if isinstance(p, Shard) and not _splits(p, self.axis)
        )

    def part(self, axis: int) -> tuple[int, int]:
        """Where the local part of an axis of the predictions begins, and how long it is."""
        start, length = 0, self.shape[axis]
        for i, placement in enumerate(self.placements):
            if _splits(placement, axis):
                # As torch.chunk: all parts have the length of the first, until none is left.
                most = -(-length // self.mesh.size(i))
                before = min(most * self.mesh.get_local_rank(i), length)
                start, length = start + before, min(most, length - before)
        return start, length

    def of_positions(self, rank: int) -> Placements:
        """The placements of a tensor that has the first `rank` axes of the positions."""
        return tuple(self._of_position(p, rank) for p in self.placements)

    def _of_position(self, placement: Any, rank: int) -> Any:
        if not isinstance(placement, Shard) or placement.dim == self.axis:
            return Replicate()
        after = self.axis is not None and placement.dim > self.axis
        axis = placement.dim - after
        return Shard(axis) if axis < rank else Replicate()

    def sums(self, over: Sequence[int]) -> Placements:
        """The placements of a tensor that is to be added up over axes of the mesh."""
        return tuple(Partial("sum") if i in over else Replicate() for i in range(self.mesh.ndim))

    @property
    def everywhere(self) -> Placements:
        """The placements of a tensor that all processes hold."""
        return (Replicate(),) * self.mesh.ndim

    def reduced(self, x: Tensor, over: Sequence[int], how: str = "sum") -> Tensor:
        """A tensor added up over axes of the mesh, for all processes.

        Its gradient passes to each process as it is, because all processes compute the same from
        the result.
        """
        if not over:
            return x
        found: Tensor = _Reduced.apply(x, self, over, how)
        return found

    def shared(self, x: Tensor, over: Sequence[int]) -> Tensor:
        """A tensor that all processes hold, for a use beside their own parts of another.

        Its gradient is the sum of those of the processes.
        """
        if not (over and x.requires_grad):
            return x
        found: Tensor = _Shared.apply(x, self, over)
        return found

    def local(self, name: str, x: Tensor, placements: Placements) -> Tensor:
        """The local part of a tensor under some placements; a plain tensor is the same everywhere.

        Raises:
            UnsupportedError: it is a DTensor of another mesh.
        """
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, self.mesh, self.everywhere, run_check=False)
        elif x.device_mesh != self.mesh:
            msg = (
                f"{name} is a DTensor on the mesh {x.device_mesh}, and predictions are on "
                f"{self.mesh}; distribute both on one mesh."
            )
            raise UnsupportedError(msg)
        # Where the positions are split and this tensor is not, each process has only the gradient
        # from its own positions. The backward pass of `redistribute` adds them.
        over = [i for i in self.over_positions if not isinstance(placements[i], Shard)]
        if over or x.placements != placements:
            x = x.redistribute(placements=placements)
        of_gradient = [Partial("sum") if i in over else p for i, p in enumerate(placements)]
        return x.to_local(grad_placements=of_gradient)

    def whole(self, x: Tensor, placements: Placements, shape: Sequence[int] | None = None) -> Any:
        """The DTensor whose local part is given; `shape` is the shape of the whole, if split."""
        given: dict[str, Any] = {}
        if shape:
            stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            given = {"shape": torch.Size(shape), "stride": stride}
        return DTensor.from_local(x, self.mesh, placements, run_check=False, **given)


# The gradient of each of these two Functions is the other. DTensor's own functions would give wrong
# second derivatives, because they take a gradient that differs between processes for one that all
# processes hold.


class _Reduced(Function):
    """`Layout.reduced`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, over: Sequence[int], how: str) -> Tensor:
        ctx.layout, ctx.over = layout, over
        parts = Partial(how)
        placements = [parts if i in over else Replicate() for i in range(layout.mesh.ndim)]
        whole: Any = DTensor.from_local(x, layout.mesh, placements, run_check=False)
        found: Tensor = whole.redistribute(placements=layout.everywhere).to_local()
        return found

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        return ctx.layout.shared(upstreams[0], ctx.over), None, None, None


class _Shared(Function):
    """`Layout.shared`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, over: Sequence[int]) -> Tensor:
        ctx.layout, ctx.over = layout, over
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstreams: Any) -> tuple[Any, ...]:
        return ctx.layout.reduced(upstreams[0], ctx.over), None, None


def _splits(placement: Any, axis: int | None) -> bool:
    return isinstance(placement, Shard) and placement.dim == axis


def placed(x: Any, *, whole: Callable[[int], bool]) -> Placements:
    """The placements in which the loss of a DTensor is computed, the nearest to its own.

    Args:
        x: a DTensor.
        whole: whether an axis must not be split. Its parts go to the processes by the first axis
            that may be, or the whole axis to each if there is none.
    """
    free = [axis for axis in range(x.ndim) if not whole(axis)]

    def nearest(placement: Any) -> Any:
        if type(placement) is not Shard:
            return Replicate()
        axis = placement.dim % x.ndim
        if not whole(axis):
            return Shard(axis)
        return Shard(free[0]) if free else Replicate()

    return tuple(map(nearest, x.placements))
