"""Bring the tensors of two losses into one layout: the class axis, and labels or one-hot rows.

A port often moves the classes from axis 1 (torch: N, C, H, W) to the last one (N, H, W, C), and its
labels to one-hot rows. Both losses are compared on the tensors of one layout, and the loss of the
other one gets them moved; see `unifiedloss.interop.sides.Moved`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import ShapeError
from unifiedloss.interop.diff import nearest
from unifiedloss.interop.sides import Input, Moved, Side, number, with_axis_moved
from unifiedloss.shapes import loss_axis
from unifiedloss.spec import Categorical

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """The tensors of two losses in one layout.

    Attributes:
        a: the first loss, for these tensors.
        b: the second loss, for these tensors.
        x: the tensors.
        own: those of the second loss in this layout, if their numbers are others; else None.
        said: sentences about what was moved, and about numbers that differ.
    """

    a: Side
    b: Side
    x: Input
    own: Input | None = None
    said: tuple[str, ...] = ()


def batch_of(a: Side, b: Side, x: Input, other: Input | None) -> Batch:
    """Bring the tensors of two losses into one layout.

    Args:
        a: the first loss.
        b: the second loss.
        x: the tensors of both, or of the first if the second has its own.
        other: the tensors of the second loss; None if it has those of the first.

    Raises:
        ShapeError: the tensors of the second loss are no layout of a batch of the same size.
    """
    axes = _axes(a, b, x.predictions.ndim)
    if other is None:
        return _found(a, b, x, axes)
    said: list[str] = []
    # The same tensor given twice is one layout, also where its axes are equally long.
    twice = np.array_equal(other.predictions, x.predictions, equal_nan=True)
    if axes is not None and axes[0] != axes[1] and not twice:
        moved = with_axis_moved(other, axes[1], axes[0])
        if moved.predictions.shape == x.predictions.shape:
            b, other = _in_layout_of(a, b, x.predictions.ndim), moved
            said.append(
                f"The class axis is {axes[0]} in the tensors of a, and {axes[1]} in those of b."
            )
    if other.predictions.shape != x.predictions.shape:
        msg = (
            f"the predictions of b have shape {other.predictions.shape}, and those of a "
            f"{x.predictions.shape}; they must be one batch, with the class axis where each loss "
            "has it."
        )
        raise ShapeError(msg)
    x, other, labels = _same_targets(x, other, None if axes is None else axes[0])
    said += labels
    differences = [
        _difference(name, getattr(x, name), getattr(other, name))
        for name in ("predictions", "targets", "sample_weight", "mask")
    ]
    said += [sentence for sentence in differences if sentence is not None]
    own = other if any(sentence is not None for sentence in differences) else None
    return Batch(a, b, x, own, tuple(said))


def _axes(a: Side, b: Side, rank: int) -> tuple[int, int] | None:
    """The class axes of both losses, counted from the front; None if they are not known."""
    found = [_axis(side, rank) for side in (a, b)]
    if rank < 2 or found[0] is None or found[1] is None:
        return None
    return loss_axis(found[0], (1,) * rank) % rank, loss_axis(found[1], (1,) * rank) % rank


def _axis(side: Side, rank: int) -> int | None:
    """The class axis of a loss for tensors of this rank; None if it has none, or must name it."""
    spec = nearest(side)
    if not isinstance(spec, Categorical):
        return None
    if spec.axis is None:
        return -1 if rank < 3 else None
    return int(spec.axis)


def _found(a: Side, b: Side, x: Input, axes: tuple[int, int] | None) -> Batch:
    """Find the layout of tensors that are given once, by the shape of the labels."""
    shape, labels = x.predictions.shape, x.targets.shape
    if axes is None or axes[0] == axes[1] or len(labels) != len(shape) - 1:
        return Batch(a, b, x)
    fits = [labels == shape[:axis] + shape[axis + 1 :] for axis in axes]
    if fits == [True, False]:
        return Batch(
            a, _in_layout_of(a, b, len(shape)), x, None, (_sentence("b", axes[0], axes[1]),)
        )
    if fits == [False, True]:
        return Batch(
            _in_layout_of(b, a, len(shape)), b, x, None, (_sentence("a", axes[1], axes[0]),)
        )
    return Batch(a, b, x)


def _sentence(letter: str, given: int, axis: int) -> str:
    return f"The class axis of the tensors is {given}; for {letter} it was moved to {axis}."


def _in_layout_of(other: Side, side: Side, rank: int) -> Side:
    """A side for tensors whose class axis is that of another loss."""
    given, axis = _axis(other, rank), _axis(side, rank)
    assert given is not None
    assert axis is not None
    spec = None if side.spec is None else side.spec.replace(axis=given)
    return replace(side, spec=spec, moved=Moved(side, given, axis), _cache={})


def _same_targets(x: Input, other: Input, axis: int | None) -> tuple[Input, Input, list[str]]:
    """Take the labels where one has labels and the other the same as one-hot rows."""
    for labels, rows, letter in ((x, other, "b"), (other, x, "a")):
        shape = rows.targets.shape
        if shape != rows.predictions.shape or labels.targets.ndim != len(shape) - 1:
            continue
        along = len(shape) - 1 if axis is None else axis
        found = rows.targets.argmax(along)
        one_hot = ((rows.targets == 0) | (rows.targets == 1)).all()
        if one_hot and (rows.targets.sum(along) == 1).all() and _equal(found, labels.targets):
            said = [f"The targets of {letter} are the one-hot rows of the labels of the other."]
            taken = labels.targets
            x, other = (replace(each, targets=taken, own=(each.own[0], None, each.own[2]))
                        for each in (x, other))  # fmt: skip
            return x, other, said
    return x, other, []


def _equal(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _difference(name: str, a: Array | None, b: Array | None) -> str | None:
    """Say how two tensors differ; None if they are the same, or if b has none of its own."""
    if b is None or (a is not None and a.shape == b.shape and np.array_equal(a, b, equal_nan=True)):
        return None
    if a is None or a.shape != b.shape:
        given = "none" if a is None else str(a.shape)
        return f"The {name} of b have shape {b.shape}, and those of a {given}."
    p, q = a.astype(np.float64), b.astype(np.float64)
    differs = ~((p == q) | (np.isnan(p) & np.isnan(q)))
    place = tuple(int(i) for i in np.argwhere(differs)[0])
    with np.errstate(invalid="ignore"):
        most = float(np.nanmax(np.abs(p - q)))
    return (
        f"The {name} of a and b differ in {np.count_nonzero(differs)} of {a.size} numbers, by "
        f"{number(most)} at most; the first is {list(place)}: {number(p[place])} and "
        f"{number(q[place])}."
    )
