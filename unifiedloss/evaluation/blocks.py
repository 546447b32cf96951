"""Add the sums of blocks of rows, for all rows or for each group."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from unifiedloss.evaluation.groups import Groups, groups_of
from unifiedloss.evaluation.sums import Sums, sums_of
from unifiedloss.readers.files import Source
from unifiedloss.spec import Loss

Progress = Callable[[int, int], None]
"""Called after each block with the rows that are done and the rows in all."""


def sums_over(
    spec: Loss,
    source: Source,
    spans: Iterable[tuple[int, int]],
    progress: Progress | None = None,
) -> Sums | Groups:
    """The sums over spans of rows; those of each group if the files have groups."""
    whole, groups = Sums(), Groups() if source.files.by is not None else None
    done = 0
    for start, stop in spans:
        block = source.read(start, stop)
        if groups is None:
            whole += sums_of(spec, block.arrays, start)
        else:
            groups_of(spec, block, groups)
        done += stop - start
        if progress is not None:
            progress(done, source.rows)
    return whole if groups is None else groups
