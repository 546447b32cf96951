"""A spec as a function for ``tf.function``, made by ``spec.to("tensorflow")``."""

from __future__ import annotations

from typing import Any

from unifiedloss.adapter import Adapter
from unifiedloss.spec import Loss


class LossFunction:
    """A spec as a function of (predictions, targets) on TensorFlow tensors.

    It pickles, copies and compares by its spec.
    """

    autograph_info__ = None  # see `unifiedloss.autograph.no_autograph`

    def __init__(self, spec: Loss, adapter: Adapter) -> None:
        self.spec = spec
        self._adapter = adapter

    def __call__(
        self,
        predictions: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Any:
        """The loss; arguments and errors as for calling the spec."""
        return self._adapter.loss(self.spec, predictions, targets, sample_weight, mask, divisor)

    def __eq__(self, other: object) -> bool:
        return self.spec == other.spec if isinstance(other, LossFunction) else NotImplemented

    def __hash__(self) -> int:
        return hash((LossFunction, self.spec))

    def __repr__(self) -> str:
        return f"LossFunction({self.spec!r})"
