"""What the tensors of a comparison are: shapes, dtypes, hashes, and how many positions count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unifiedloss.described import Described, described
from unifiedloss.errors import UnifiedLossError
from unifiedloss.evaluation.sums import Counts, counts_of
from unifiedloss.interop.diff import nearest
from unifiedloss.interop.sides import Input, Side
from unifiedloss.spec import Loss


@dataclass(frozen=True)
class Tensors:
    """The tensors that two losses got.

    Attributes:
        arrays: each tensor.
        counts_a: the positions of the first loss, and those that it drops; None if it does not take
            the tensors, or if no spec is near it.
        counts_b: the same for the second.
    """

    arrays: tuple[Described, ...]
    counts_a: Counts | None
    counts_b: Counts | None


def tensors_of(a: Side, b: Side, x: Input) -> Tensors:
    """Describe the tensors of a comparison."""
    given = {
        "predictions": x.predictions,
        "targets": x.targets,
        "sample_weight": x.sample_weight,
        "mask": x.mask,
    }
    first, second = (_counts(nearest(side), given) for side in (a, b))
    return Tensors(
        tuple(described(name, array) for name, array in given.items() if array is not None),
        first,
        second,
    )


def _counts(spec: Loss | None, given: dict[str, Any]) -> Counts | None:
    """The positions and the dropped ones, as the spec nearest to a loss counts them."""
    if spec is None:
        return None
    try:
        return counts_of(spec.summed, given)
    except UnifiedLossError:  # the loss does not take the tensors
        return None
