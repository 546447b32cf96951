"""Sums for each group of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import UnsupportedError
from unifiedloss.evaluation.sums import Counts, FirstBad, Sums, earlier, sums_of
from unifiedloss.readers.files import Block
from unifiedloss.spec import Loss

Array = NDArray[Any]

Key = int | str
"""What names a group."""

MOST = 1_000_000
"""The largest number of groups. Each takes about 100 bytes, and 30 microseconds at the end."""


class Groups:
    """The sums of all groups.

    The totals of exact mode have 82 entries or more, and nearly all of them are 0 in every group.
    So each entry has an array of its own, which is made when a group first needs it.
    """

    def __init__(self) -> None:
        self._places: dict[Key, int] = {}
        self._entries: dict[int, Array] = {}
        self._counts = np.zeros((0, len(Counts._fields)), np.int64)
        self._first: dict[int, FirstBad] = {}
        self._length = 0
        self._dtype: Any = np.float64

    def __len__(self) -> int:
        return len(self._places)

    def add(self, key: Key, sums: Sums) -> None:
        """Add to the sums of one group.

        Raises:
            UnsupportedError: there are more than `MOST` groups.
        """
        place = self._places.setdefault(key, len(self._places))
        if place >= MOST:
            msg = (
                f"there are more than {MOST:,} groups; choose a column with fewer different "
                "values, such as a language and not the text."
            )
            raise UnsupportedError(msg)
        if place >= len(self._counts):
            self._counts = _longer(self._counts)
            self._entries = {n: _longer(entry) for n, entry in self._entries.items()}
        self._counts[place] += sums.counts
        if sums.first is not None:
            first = earlier(self._first.get(place), sums.first)
            assert first is not None
            self._first[place] = first
        if sums.totals is None:
            return
        self._length, self._dtype = len(sums.totals), sums.totals.dtype
        for n in np.flatnonzero(sums.totals).tolist():
            if n not in self._entries:
                self._entries[n] = np.zeros(len(self._counts), self._dtype)
            # Slices, because NumPy warns where a scalar wraps, and the check number does.
            with np.errstate(all="ignore"):  # inf - inf is NaN
                self._entries[n][place : place + 1] += sums.totals[n : n + 1]

    def merge(self, other: Groups) -> None:
        """Add the sums of other rows."""
        for key, sums in other:
            self.add(key, sums)

    def __iter__(self) -> Iterator[tuple[Key, Sums]]:
        for key, place in self._places.items():
            totals = None
            if self._length:
                totals = np.zeros(self._length, self._dtype)
                for n, entry in self._entries.items():
                    totals[n] = entry[place]
            yield key, Sums(totals, Counts(*self._counts[place].tolist()), self._first.get(place))


def _longer(x: Array) -> Array:
    """An array with room for more rows, of zeros."""
    more = np.zeros((max(64, len(x)), *x.shape[1:]), x.dtype)
    return np.concatenate([x, more])


def groups_of(spec: Loss, block: Block, into: Groups) -> None:
    """Add the sums of each group of a block."""
    assert block.group is not None
    names = _names(block.group)
    for key, rows in _split(names):
        arrays = {name: x[rows] if x.ndim else x for name, x in block.arrays.items()}
        into.add(key, sums_of(spec, arrays, block.start + rows))


def _names(group: Array) -> Array:
    """The groups as integers or text, which can be sorted."""
    if group.dtype.kind == "S" or (len(group) and isinstance(group[0], bytes)):
        return np.array([bytes(x).decode(errors="replace") for x in group], object)
    return group


def _split(names: Array) -> Iterator[tuple[Key, Array]]:
    """Each group with its rows, in their order."""
    keys, which = np.unique(names, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(len(keys)), side="right")
    start = 0
    listed: Sequence[Key] = keys.tolist()
    for key, end in zip(listed, ends.tolist(), strict=True):
        yield key, order[start:end]
        start = end
