"""What is added over the blocks of a file: totals of the loss, and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry, values
from unifiedloss.errors import BadValueError
from unifiedloss.plan import Plan
from unifiedloss.readers.files import ARGUMENTS
from unifiedloss.spec import Loss

Array = NDArray[Any]


class Counts(NamedTuple):
    """Numbers of positions, which are those of the per-position loss.

    Attributes:
        positions: all.
        dropped: those that a mask or an ignored label drops.
        bad: those that hold a bad value.
    """

    positions: int = 0
    dropped: int = 0
    bad: int = 0


NONE = Counts()


class FirstBad(NamedTuple):
    """The first bad value. The one with the smaller place is the first of two.

    Attributes:
        place: where it lies along the axes of its array, of all rows.
        message: what is wrong with it.
    """

    place: tuple[int, ...]
    message: str


@dataclass(frozen=True)
class Sums:
    """The sums over some rows; `+` gives those of both.

    Attributes:
        totals: as `spec.totals` gives them, without the blocks that hold a bad value.
        counts: the numbers of positions.
        first: the first bad value; None if there is none.
    """

    totals: Array | None = None
    counts: Counts = NONE
    first: FirstBad | None = None

    def __add__(self, other: Sums) -> Sums:
        mine, theirs = self.totals, other.totals
        with np.errstate(all="ignore"):  # inf - inf is NaN
            both = mine if theirs is None else theirs if mine is None else mine + theirs
        counts = Counts(*map(sum, zip(self.counts, other.counts, strict=True)))
        return Sums(both, counts, earlier(self.first, other.first))


def earlier(a: FirstBad | None, b: FirstBad | None) -> FirstBad | None:
    """The first of two bad values."""
    return min((x for x in (a, b) if x is not None), default=None)


def sums_of(spec: Loss, arrays: dict[str, Array], row: Array | int) -> Sums:
    """The sums over some rows.

    Args:
        spec: a mean or a sum.
        arrays: the arguments of the loss by their names.
        row: the place of the first row among all, or the places of all of them.
    """
    numpy = registry.adapter("numpy")
    tensors = [arrays.get(name) for name in ARGUMENTS]
    counts = counts_of(spec, arrays)
    try:
        return Sums(numpy.totals(spec, *tensors), counts)
    except BadValueError:
        predictions, targets, *others = tensors
        assert predictions is not None
        assert targets is not None
        plan = numpy.plan(spec.piece, *tensors)
        bad = values.bad_values(plan, predictions, targets, *others)
        if bad.first is None:
            raise
    place = _moved(bad.first.place(), row)
    counts = counts._replace(bad=bad.positions)
    return Sums(None, counts, FirstBad(place, bad.first.message(place)))


def counts_of(spec: Loss, arrays: Mapping[str, Array | None]) -> Counts:
    """The numbers of positions, and of those that are dropped, of a mean or a sum."""
    predictions, targets, sample_weight, mask = (arrays.get(name) for name in ARGUMENTS)
    assert predictions is not None
    assert targets is not None
    numpy = registry.adapter("numpy")
    plan = numpy.plan(spec.piece, predictions, targets, sample_weight, mask)
    dropped = values.dropped(plan, predictions, targets, mask)
    return Counts(_positions(plan, predictions), dropped)


def _positions(plan: Plan, predictions: Array) -> int:
    axis = -1 if plan.average_last_axis else plan.axis
    return predictions.size // (1 if axis is None else predictions.shape[axis])


def _moved(place: tuple[int, ...], row: Array | int) -> tuple[int, ...]:
    """A place among all rows."""
    if not place:
        return place
    first, *rest = place
    return (int(row[first]) if isinstance(row, np.ndarray) else row + first, *rest)
