"""Evaluate the blocks of files on a running dask cluster.

Each task opens the files and reads one block, so what travels is a few numbers. If a worker dies,
the cluster runs its tasks again on another, and the bits of exact mode stay the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from unifiedloss.errors import MissingBackendError, UnsupportedError
from unifiedloss.evaluation.blocks import Progress, sums_over
from unifiedloss.evaluation.groups import Groups
from unifiedloss.evaluation.sums import Sums
from unifiedloss.readers.files import Files, Source
from unifiedloss.spec import Loss
from unifiedloss.text import shortened

_TASK = 1 << 26
"""Bytes of predictions in a task, which reads them in smaller blocks."""

_PATIENCE = 30
"""Seconds to wait for the scheduler."""


def sums_on(
    address: str, spec: Loss, source: Source, rows: int | None, progress: Progress | None
) -> Sums | Groups:
    """The sums over all blocks; see `unifiedloss.evaluation.evaluate`."""
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        msg = (
            f"a cluster needs the module {error.name!r}, which is not installed; install it with: "
            "pip install 'dask[distributed]'."
        )
        raise MissingBackendError(msg) from error
    spans = source.spans(rows or source.rows_of_block(_TASK))
    try:
        asyncio.run(_connect(address))
    except (OSError, ValueError) as error:
        msg = (
            f"no dask scheduler answers at {shortened(address)}; give the address that it prints, "
            f"such as tcp://host:8786 ({shortened(str(error))})."
        )
        raise UnsupportedError(msg) from error
    files, state = source.files, source.state()
    whole, groups = Sums(), Groups() if files.by is not None else None
    with Client(address, timeout=_PATIENCE, set_as_default=False) as client:
        # pure=False, because the same files may have other content the next time.
        futures = client.map(_sums_of_span, spans, spec=spec, files=files, state=state, pure=False)
        rows_of = {
            future.key: stop - start for future, (start, stop) in zip(futures, spans, strict=True)
        }
        done = 0
        # By default it would wait in the loop of the default client of this process, which is
        # another one. Then it may miss the result of a task that ran again, and wait forever.
        for future, found in as_completed(futures, with_results=True, loop=client.loop):
            if groups is None:
                whole += found
            else:
                groups.merge(found)
            future.release()
            done += rows_of[future.key]
            if progress is not None:
                progress(done, source.rows)
    return whole if groups is None else groups


async def _connect(address: str) -> None:
    """Connect once, because a `Client` that finds no scheduler waits a minute when it is deleted.

    Raises:
        OSError, ValueError: nothing answers, or this is no address.
    """
    from distributed.comm.core import connect

    comm = await connect(address, timeout=_PATIENCE)
    await comm.close()


def _sums_of_span(
    span: tuple[int, int], *, spec: Loss, files: Files, state: Mapping[Any, Any]
) -> Sums | Groups:
    """The sums of some rows (a task of a worker)."""
    with files.open() as source:
        source.check_unchanged(state)
        found = sums_over(spec, source, source.spans(first=span[0], last=span[1]))
        source.check_unchanged(state)
    return found
