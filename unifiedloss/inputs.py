"""Types for the arguments of a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

Shape = tuple[int | None, ...]
"""The extents of a tensor's axes; None where an extent is unknown under tracing."""


class Tensor(Protocol):
    """A tensor of any framework, as type checkers see it."""

    @property
    def shape(self) -> Any:
        """The extents of its axes."""

    @property
    def dtype(self) -> Any:
        """The type of its elements."""


TensorT = TypeVar("TensorT", bound=Tensor)
"""The type of the predictions, for functions that return a tensor of the same type."""

Numbers = float | Sequence[Any]
"""Python numbers and (nested) sequences of them, which are read as NumPy arrays."""


class Signature(NamedTuple):
    """The shape and dtype of a tensor, known without reading its values.

    Attributes:
        shape: its extents; None if the rank is unknown under tracing.
        dtype: the name of its dtype.
    """

    shape: Shape | None
    dtype: str


class Inputs(NamedTuple):
    """The tensors of one call, all of one framework."""

    predictions: Any
    targets: Any
    sample_weight: Any = None
    mask: Any = None


def same(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be the same. Unknown extents are assumed to fit."""
    return len(a) == len(b) and all(
        x is None or y is None or x == y for x, y in zip(a, b, strict=True)
    )
