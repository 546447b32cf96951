"""The processes of `torch.distributed`, of which each computes a part of a batch."""

from __future__ import annotations

from torch import distributed


def count() -> int:
    """The number of processes in the default group; 1 if there is no group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()
