"""A spec as a plain function, made by ``spec.to("dask")``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unifiedloss import registry
from unifiedloss.spec import Loss

if TYPE_CHECKING:
    from dask.array import Array


class LossFunction:
    """A spec as a function of (predictions, targets) on arrays of dask.

    It pickles, copies and compares by its spec.
    """

    def __init__(self, spec: Loss) -> None:
        self.spec = spec

    def __call__(
        self,
        predictions: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Array:
        """The loss, not computed yet; arguments and errors as for calling the spec."""
        adapter = registry.adapter("dask")
        loss: Array = adapter.loss(self.spec, predictions, targets, sample_weight, mask, divisor)
        return loss

    def __eq__(self, other: object) -> bool:
        return self.spec == other.spec if isinstance(other, LossFunction) else NotImplemented

    def __hash__(self) -> int:
        return hash((LossFunction, self.spec))

    def __repr__(self) -> str:
        return f"LossFunction({self.spec!r})"
