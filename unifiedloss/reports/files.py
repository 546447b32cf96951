"""What the files of a loss hold: shapes, dtypes, hashes, and how many positions count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from unifiedloss.conformance.compare import BLOCK
from unifiedloss.described import Described, sha256
from unifiedloss.evaluation.sums import Counts, counts_of
from unifiedloss.readers.column import Column
from unifiedloss.readers.files import Source
from unifiedloss.readers.memory import size
from unifiedloss.spec import Loss

_READ = 1_000_000_000
"""The bytes of arrays from which on they are not read once more."""


@dataclass(frozen=True)
class Data:
    """The arrays of files.

    Attributes:
        arrays: the arrays.
        counts: the numbers of positions; None where they were not counted.
        why_no_hash: why the arrays have no hash; empty if they have.
    """

    arrays: tuple[Described, ...]
    counts: Counts | None = None
    why_no_hash: str = ""


def data_of(source: Source, spec: Loss | None = None) -> Data:
    """Describe open files, and count the positions of a loss; this reads them in blocks.

    Files that are too large to be read once more are described without hashes and counts.

    Raises:
        FileError: a file cannot be read, or has changed since it was opened.
    """
    if source.nbytes >= _READ:
        return Data(_arrays(source, {}), None, f"not computed: they have {size(source.nbytes)}")
    # Files of one such block are whole, because a loss may need its first axis whole.
    rows = source.rows_of_block(BLOCK)
    hashes = {
        name: sha256(tuple(column.shape), column.dtype, _pieces(column, rows))
        for name, column in source.columns.items()
    }
    counts = None
    if spec is not None:
        counted = (counts_of(spec.summed, block.arrays) for block in source.blocks(rows))
        counts = Counts(*map(sum, zip(*counted, strict=True)))
    source.check_unchanged()
    return Data(_arrays(source, hashes), counts)


def _pieces(column: Column, rows: int) -> Iterator[Any]:
    if not column.shape:
        yield column.read(0, 1)
        return
    for start in range(0, column.shape[0], rows):
        yield column.read(start, min(start + rows, column.shape[0]))


def _arrays(source: Source, hashes: dict[str, str | None]) -> tuple[Described, ...]:
    return tuple(
        Described(name, tuple(column.shape), column.dtype.name, hashes.get(name))
        for name, column in source.columns.items()
    )
