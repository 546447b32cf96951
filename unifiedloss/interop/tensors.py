"""What the tensors of a comparison are: shapes, dtypes, hashes, and how many positions count."""

from __future__ import annotations

from dataclasses import dataclass

from unifiedloss.described import Described, described
from unifiedloss.errors import UnifiedLossError
from unifiedloss.evaluation.sums import Counts, counts_of
from unifiedloss.interop.diff import nearest
from unifiedloss.interop.layouts import Batch
from unifiedloss.interop.sides import Array, Input
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


def tensors_of(batch: Batch, a: Input, b: Input | None) -> Tensors:
    """Describe the tensors of a comparison.

    Args:
        batch: the losses and the tensors in one layout.
        a: the tensors as they were given.
        b: those of the second loss, if it has its own.
    """
    named = _arrays(a)
    if b is not None:
        of_b = _arrays(b)
        named |= {
            f"{name} of b": of_b[name]
            for name in ("predictions", "targets")
            if of_b[name] is not named[name]
        }
    counted = _arrays(batch.x)
    return Tensors(
        tuple(described(name, array) for name, array in named.items()),
        _counts(nearest(batch.a), counted),
        _counts(nearest(batch.b), counted),
    )


def _arrays(x: Input) -> dict[str, Array]:
    arrays = {
        "predictions": x.predictions,
        "targets": x.targets,
        "sample_weight": x.sample_weight,
        "mask": x.mask,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _counts(spec: Loss | None, given: dict[str, Array]) -> Counts | None:
    """The positions and the dropped ones, as the spec nearest to a loss counts them."""
    if spec is None:
        return None
    try:
        return counts_of(spec.summed, given)
    except UnifiedLossError:  # the loss does not take the tensors
        return None
