"""What users of Keras hold: a ``keras.losses.Loss``, and the nodes of functional models."""

from __future__ import annotations

from typing import Any, Self

import keras
from keras import ops as K
from keras.src.backend import get_keras_mask
from keras.src.losses.loss import scale_loss_for_distribution

from unifiedloss.spec import AnyLoss, CrossEntropyLoss, from_dict

Array = Any


@keras.saving.register_keras_serializable(package="unifiedloss")
class KerasLoss(keras.losses.Loss):
    """A spec as a ``keras.losses.Loss``, called with (y_true, y_pred), compiled into a model and saved with it."""

    def __init__(self, spec: AnyLoss, name: str | None = None) -> None:
        super().__init__(name=name or spec.name, reduction=spec.reduction)
        self.spec = spec

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Array:
        """The loss."""
        # Keras' own __call__ casts the labels to the loss's dtype (keras-team/keras#15012), so it takes no part.
        loss = self._evaluate(self.spec, y_true, y_pred, sample_weight)
        return scale_loss_for_distribution(loss) if self.spec.reduction == "mean" else loss

    def call(self, y_true: Any, y_pred: Any) -> Array:
        """The loss per position."""
        return self._evaluate(self.spec.replace(reduction="none"), y_true, y_pred, None)

    def _evaluate(self, spec: AnyLoss, y_true: Any, y_pred: Any, sample_weight: Any) -> Array:
        from unifiedloss.adapters.keras import ADAPTER

        mask = get_keras_mask(y_pred)
        y_pred, y_true, sample_weight, mask = ADAPTER.own(y_pred, y_true, sample_weight, mask)
        y_true = _as_keras_hands_it(spec, y_true, y_pred)
        if sample_weight is not None:
            sample_weight = _without_last_one(sample_weight)
        if mask is not None:
            mask = _without_last_one(K.cast(mask, "bool"))
        return ADAPTER.loss(spec, y_pred, y_true, sample_weight, mask)

    def get_config(self) -> dict[str, Any]:
        """The spec as a dictionary, and the name."""
        return {"name": self.name, "spec": self.spec.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The loss that `get_config` described."""
        return cls(from_dict(config["spec"]), name=config.get("name"))


def _as_keras_hands_it(spec: AnyLoss, y_true: Array, y_pred: Array) -> Array:
    """`y_true` without, or with, a last axis of length 1, where the predictions tell that this is what is meant."""
    true, pred = y_true.shape, y_pred.shape
    if isinstance(spec, CrossEntropyLoss):
        integer = "int" in keras.backend.standardize_dtype(y_true.dtype)
        return K.squeeze(y_true, -1) if integer and len(true) == len(pred) and true[-1] == 1 else y_true
    if len(true) + 1 == len(pred) and pred[-1] == 1:
        return K.expand_dims(y_true, -1)
    if len(true) == len(pred) + 1 and true[-1] == 1:
        return K.squeeze(y_true, -1)
    return y_true


def _without_last_one(x: Array) -> Array:
    """(N, 1) as (N,): repeated over the trailing axes both are the same."""
    return K.squeeze(x, -1) if len(x.shape) > 1 and x.shape[-1] == 1 else x


@keras.saving.register_keras_serializable(package="unifiedloss")
class LossOperation(keras.Operation):
    """A loss as a node of a functional model: what a spec called with symbolic tensors becomes."""

    def __init__(self, spec: AnyLoss, name: str | None = None) -> None:
        super().__init__(name=name)
        self.spec = spec

    def call(self, predictions: Array, targets: Array, sample_weight: Any = None, mask: Any = None) -> Array:
        """The loss; arguments and errors as for calling the spec."""
        from unifiedloss.adapters.keras import ADAPTER

        return ADAPTER.loss(self.spec, predictions, targets, sample_weight, mask)

    def compute_output_spec(
        self, predictions: Array, targets: Array, sample_weight: Any = None, mask: Any = None
    ) -> keras.KerasTensor:
        """Shape and dtype of the loss, with all checks that need no values."""
        from unifiedloss.adapters.keras import ADAPTER

        plan = ADAPTER.plan(self.spec, predictions, targets, sample_weight, mask)
        shape = plan.positions if self.spec.reduction == "none" else ()
        return keras.KerasTensor(shape, dtype=plan.result_dtype)

    def get_config(self) -> dict[str, Any]:
        """The spec as a dictionary, and the name."""
        return {"name": self.name, "spec": self.spec.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The operation that `get_config` described."""
        return cls(from_dict(config["spec"]), name=config.get("name"))


@keras.saving.register_keras_serializable(package="unifiedloss")
class SoftmaxOperation(keras.Operation):
    """`unifiedloss.softmax` as a node of a functional model."""

    def __init__(self, axis: int | None = None, name: str | None = None) -> None:
        super().__init__(name=name)
        self.axis = axis

    def call(self, logits: Array) -> Array:
        """The probabilities."""
        from unifiedloss.adapters.keras import ADAPTER

        return ADAPTER.softmax(logits, self.axis)

    def compute_output_spec(self, logits: Array) -> keras.KerasTensor:
        """Shape and dtype of the logits."""
        return keras.KerasTensor(logits.shape, dtype=logits.dtype)

    def get_config(self) -> dict[str, Any]:
        """The axis and the name."""
        return {"name": self.name, "axis": self.axis}
