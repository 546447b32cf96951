"""Exact mode for totals and their result, behind an operator.

``unifiedloss::exact_on_host`` runs a job of `unifiedloss.exact.pieces`, which has no derivative.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from unifiedloss import host
from unifiedloss.adapters.torch import operators, ops
from unifiedloss.adapters.torch.operators import LIBRARY, Companion
from unifiedloss.adapters.torch.spec_text import spec_of, text_of
from unifiedloss.exact.pieces import Job

_MAX_JOBS = 1024


def on_host(job: Job, *tensors: Companion) -> Tensor:
    """Run a job of `unifiedloss.exact.pieces`, also in a compiled program."""
    words = (job.kind, job.dtype, *(dtype or "" for dtype in job.dtypes))
    # The operator has no derivative, because it rounds or counts.
    given = [None if x is None else x.detach() for x in tensors]
    found: Tensor = _ON_HOST(given, ",".join(words), text_of(job.spec))
    return found


@lru_cache(_MAX_JOBS)
def _job(words: str, spec: str) -> Job:
    kind, dtype, *dtypes = words.split(",")
    known = tuple(each or None for each in dtypes)
    return Job(kind, spec_of(spec), known, dtype)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ the operator

LIBRARY.define(
    "exact_on_host(Tensor?[] tensors, str words, str spec) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_ON_HOST = torch.ops.unifiedloss.exact_on_host.default


def _run(tensors: list[Companion], words: str, spec: str) -> Tensor:
    arrays = [None if x is None else operators.array(x) for x in tensors]
    found = host.run(_job(words, spec).run, *arrays)
    return torch.from_numpy(found).to(_first(tensors).device)


def _fake_run(tensors: list[Companion], words: str, spec: str) -> Tensor:
    shape, dtype = _job(words, spec).form
    return _first(tensors).new_empty(shape, dtype=ops.DTYPES[dtype])


def _first(tensors: list[Companion]) -> Tensor:
    return next(x for x in tensors if x is not None)


def _on_host_vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
    """The rule for torch.func.vmap, whose tensors are in a list; see `derivatives._vmap_rule`."""
    (tensors, *rest), (axes, *_) = args, in_dims
    axes = axes if isinstance(axes, list | tuple) else [axes] * len(tensors)

    def at(i: int) -> Tensor:
        return _ON_HOST(
            [
                x if x is None or axis is None else x.select(axis, i)
                for x, axis in zip(tensors, axes, strict=True)
            ],
            *rest,
        )

    return torch.stack([at(i) for i in range(info.batch_size)]), 0


LIBRARY.impl(_ON_HOST, _run, "CompositeExplicitAutograd")
torch.library.register_fake(_ON_HOST, _fake_run, lib=LIBRARY)
torch.library.register_vmap(_ON_HOST, _on_host_vmap, lib=LIBRARY)
