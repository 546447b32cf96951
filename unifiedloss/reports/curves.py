"""The loss curves of trainings that should be the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from unifiedloss.errors import ShapeError
from unifiedloss.reports.model import Cell, Column, Content, Lines, Table, Text

_MOST = 1000
"""The most steps of a curve that are drawn."""


def curves(losses: Mapping[str, Sequence[float]]) -> list[Content]:
    """Show the losses of trainings, and how far each lies from the first.

    Args:
        losses: the loss of each step, by the name of the training.

    Raises:
        ShapeError: a curve is not a list of numbers.
    """
    arrays = {name: np.asarray(each, np.float64) for name, each in losses.items()}
    for name, each in arrays.items():
        if each.ndim != 1 or not each.size:
            msg = f"The curve {name!r} must be a list of one loss or more, got shape {each.shape}."
            raise ShapeError(msg)
    steps = {name: _steps(len(each)) for name, each in arrays.items()}
    drawn = {name: tuple(map(float, each[list(steps[name])])) for name, each in arrays.items()}
    content: list[Content] = [
        Lines("The loss of each step", "Curves that lie on one another are drawn as one.", steps,
              drawn, "loss")
    ]  # fmt: skip
    first, *others = arrays
    apart = {name: _apart(arrays[first], arrays[name]) for name in others}
    if others and any(each.any() for each in apart.values()):
        shown = {name: _steps(len(each)) for name, each in apart.items()}
        content.append(
            Lines(
                f"How far each lies from {first}",
                "The absolute difference of the losses. A step without a point has none.",
                shown,
                {n: tuple(map(float, each[list(shown[n])])) for n, each in apart.items()},
                "difference",
                log=True,
            )
        )
    elif others:
        content.append(Text("Every step has the same loss in all trainings, to the last bit."))
    columns = (
        Column("training"),
        Column("steps"),
        Column("first loss"),
        Column("last loss"),
        Column(f"largest difference to {first}", ".4g"),
        Column("at step"),
    )
    rows: list[tuple[Cell, ...]] = []
    for name, each in arrays.items():
        far: tuple[Cell, Cell] = (None, None)
        if name in apart:
            at = int(np.argmax(apart[name]))
            far = float(apart[name][at]), at
        rows.append((name, len(each), float(each[0]), float(each[-1]), *far))
    content.append(Table(columns, tuple(rows)))
    return content


def _steps(length: int) -> tuple[int, ...]:
    if length <= _MOST:
        return tuple(range(length))
    return tuple(sorted({math.floor(i * (length - 1) / (_MOST - 1)) for i in range(_MOST)}))


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The absolute differences over the steps that both have; infinite if one alone is finite."""
    length = min(len(a), len(b))
    a, b = a[:length], b[:length]
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        far = np.where(same, 0.0, np.abs(a - b))
    return np.where(np.isnan(far), np.inf, far)
