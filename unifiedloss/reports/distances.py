"""Pictures of the distances between two arrays of losses, position by position."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.reports.model import Histogram, Map, Picture, Scatter, brief

Array = NDArray[Any]

_POINTS = 800
"""The most points of a scatter: half are spread evenly, and half are the farthest."""
_ACROSS, _DOWN = 96, 64
"""The most cells of a map."""
_CLASSES = 14
"""The most classes of a histogram."""


def pictures(a: Array, b: Array, ulps: Array, limit: int, unit: str) -> list[Picture]:
    """Show two arrays of losses of one shape.

    Args:
        a: the first.
        b: the second.
        ulps: the distance at each position, in ulps; infinite where one alone is finite.
        limit: how many are rounding.
        unit: what an ulp is, such as "ulps of float32".
    """
    if not a.size:
        return []
    return [
        _scatter(a.ravel(), b.ravel(), ulps.ravel()),
        _histogram(ulps.ravel(), limit, unit),
        _map(ulps, limit),
    ]


def _scatter(a: Array, b: Array, ulps: Array) -> Scatter:
    finite = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
    chosen = finite
    note = "Each point is a position. On the diagonal both losses are the same."
    if len(finite) > _POINTS:
        half = _POINTS // 2
        even = finite[np.linspace(0, len(finite) - 1, half).round().astype(int)]
        far = finite[np.argsort(-ulps[finite], kind="stable")[:half]]
        chosen = np.union1d(even, far)
        note += f" {len(chosen):,} of {len(a):,} are shown, the {half} farthest among them."
    left = len(a) - len(finite)
    if left:
        note += f" {left:,} more have a loss that is not finite."
    x, y = (tuple(map(float, losses[chosen])) for losses in (a, b))
    return Scatter("The loss of each position", note, x, y, "loss of a", "loss of b")


def _histogram(ulps: Array, limit: int, unit: str) -> Histogram:
    finite = ulps[np.isfinite(ulps)]
    largest = float(finite.max()) if finite.size else 0.0
    edges = [float(limit)]
    while edges[0] > 1:
        edges.insert(0, edges[0] / 4)
    step = 4
    while len(edges) + _steps(largest, edges[-1], step) > _CLASSES - 3:
        step *= 4
    while edges[-1] < largest:
        edges.append(edges[-1] * step)
    shown = [edge for edge in edges if edge <= limit or edge / step < largest]
    labels, counts = ["0"], [int((ulps == 0).sum())]
    below = 0.0
    for edge in shown:
        labels.append(f"≤{brief(edge)}")
        counts.append(int(((finite > below) & (finite <= edge)).sum()))
        below = edge
    infinite = int(ulps.size - finite.size)
    if infinite:
        labels.append("∞")
        counts.append(infinite)
    note = (
        f"The number of positions by the distance of their losses. Up to {limit} it counts as "
        "rounding."
    )
    return Histogram(
        "How far they lie apart",
        note,
        tuple(labels),
        tuple(counts),
        f"distance in {unit}",
        shown.index(float(limit)) + 2,
    )


def _steps(largest: float, edge: float, step: int) -> int:
    return 0 if largest <= edge else math.ceil(math.log(largest / edge, step))


def _map(ulps: Array, limit: int) -> Map:
    grid = ulps.reshape(ulps.shape[0], -1) if ulps.ndim > 1 else ulps.reshape(1, -1)
    labels = ("position", "") if ulps.ndim < 2 else ("position within the row", "row")
    if ulps.ndim < 2 and ulps.size > _ACROSS:
        # A strip of many positions is broken into lines, as text is.
        down = min(_DOWN // 2, math.ceil(ulps.size / _ACROSS))
        across = math.ceil(ulps.size / down)
        padded = np.full(down * across, np.nan)
        padded[: ulps.size] = ulps.ravel()
        grid = padded.reshape(down, across)
        labels = ("position, from left to right, line by line", "line")
    cells = _largest(_largest(grid, _DOWN).T, _ACROSS).T
    merged = cells.size < grid.size
    note = "Grey positions are equal, blue ones differ by rounding, and orange ones by more."
    if merged:
        note += " Each cell shows the largest distance of its positions."
    return Map(
        "Where in the batch they differ",
        note,
        tuple(tuple(map(float, row)) for row in cells),
        float(limit),
        *labels,
        grid.shape[1],
        grid.shape[0],
    )


def _largest(grid: Array, most: int) -> Array:
    """Merge neighbouring rows until there are at most so many."""
    if len(grid) <= most:
        return grid
    starts = np.linspace(0, len(grid), most, endpoint=False).astype(int)
    return np.fmax.reduceat(grid, starts, axis=0)
