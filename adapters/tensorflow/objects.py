"""What users of TensorFlow hold: a callable for ``tf.function``."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from unifiedloss.spec import AnyLoss


class LossFunction:
    """A spec as a function of (predictions, targets) on TensorFlow's tensors; pickles, copies and compares by its spec."""

    def __init__(self, spec: AnyLoss) -> None:
        self.spec = spec

    @tf.autograph.experimental.do_not_convert
    def __call__(self, predictions: Any, targets: Any, *, sample_weight: Any = None, mask: Any = None) -> Any:
        """The loss; arguments and errors as for calling the spec."""
        # Looked up in the module, not bound in __init__: a function must survive pickling, and an adapter does not travel.
        from unifiedloss.adapters.tensorflow import ADAPTER

        return ADAPTER.loss(self.spec, predictions, targets, sample_weight, mask)

    def __eq__(self, other: object) -> bool:
        return self.spec == other.spec if isinstance(other, LossFunction) else NotImplemented

    def __hash__(self) -> int:
        return hash((LossFunction, self.spec))

    def __repr__(self) -> str:
        return f"LossFunction({self.spec!r})"
