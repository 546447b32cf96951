"""torch.distributed for the conformance suite: calls whose tensors are DTensors.

`unifiedloss.conformance.engines` says what an engine is.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

_STARTS = itertools.count()
"""Counts the starts in this process, because a file serves the meeting of one start alone."""


@contextlib.contextmanager
def started(place: Any) -> Iterator[Engine]:
    """The engine of a process, from its first collective to its last.

    Args:
        place: a `unifiedloss.conformance.processes.Place`.
    """
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place.folder / f'store{next(_STARTS)}'}",
        rank=place.rank,
        world_size=place.size,
    )
    try:
        yield Engine(place.size)
        dist.barrier()
    finally:
        dist.destroy_process_group()


class Engine:
    """Meshes of all processes: one axis, and where their number is even, two."""

    def __init__(self, size: int) -> None:
        self._line = init_device_mesh("cpu", (size,))
        self._square = None
        if size > 2 and size % 2 == 0:
            self._square = init_device_mesh("cpu", (2, size // 2))

    def layouts(self, rank: int, axis: int | None) -> dict[str, Any]:
        """How predictions can be split, by name.

        Args:
            rank: the number of axes of the predictions.
            axis: the class axis; None if there is none.
        """
        if not rank:
            return {"the same everywhere": (self._line, [Replicate()])}
        classes = rank - 1 if axis is None else axis
        rows = next((a for a in range(rank) if a != classes), classes)
        found: dict[str, Any] = {
            "rows": (self._line, [Shard(rows)]),
            "classes": (self._line, [Shard(classes)]),
        }
        if self._square is not None:
            found |= {
                "rows and classes": (self._square, [Shard(rows), Shard(classes)]),
                "rows, twice": (self._square, [Shard(rows), Shard(rows)]),
                "classes, twice": (self._square, [Shard(classes), Shard(classes)]),
                "classes of copies": (self._square, [Replicate(), Shard(classes)]),
            }
        return found

    def step(
        self,
        function: Callable[..., Any],
        inputs: Mapping[str, Tensor],
        upstream: Tensor | None,
        layout: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        """A loss and its gradients as whole tensors, and what is wrong with their placements.

        Args:
            function: computes the loss of the inputs; its other tensors are plain.
            inputs: whole tensors by name. "predictions" are split, the others the same everywhere.
            upstream: the upstream gradient; None for ones.
            layout: one of `layouts`.
        """
        mesh, placements = layout
        everywhere = [Replicate()] * mesh.ndim
        leaves: dict[str, Any] = {
            name: distribute_tensor(
                x, mesh, placements if name == "predictions" else everywhere
            ).requires_grad_()
            for name, x in inputs.items()
        }
        value = function(*leaves.values())
        wrong = []
        if value.ndim == 0 and value.placements != tuple(everywhere):
            wrong.append(f"the loss is placed as {value.placements}, should be the same everywhere")
        if upstream is None:
            upstream = torch.ones(value.shape, dtype=value.dtype)
        above = distribute_tensor(upstream.to(value.dtype), mesh, value.placements)
        found: tuple[Any, ...] = (None,) * len(leaves)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(leaves.values()), above, allow_unused=True)
        gradients = {}
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
            if gradient is None:
                gradients[name] = torch.zeros(leaf.shape, dtype=leaf.dtype)
                continue
            if gradient.placements != leaf.placements:
                wrong.append(
                    f"the gradient to {name} is placed as {gradient.placements}, should be "
                    f"{leaf.placements}"
                )
            gradients[name] = _gathered(gradient)
        return _gathered(value.detach()), gradients, wrong


def _gathered(x: Any) -> Tensor:
    whole: Tensor = x.full_tensor() if isinstance(x, DTensor) else x
    return whole
