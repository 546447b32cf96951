"""What users of Keras hold: a ``keras.losses.Loss``, and the nodes of functional models."""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np
from keras.src.backend import get_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.losses.loss import scale_loss_for_distribution

from unifiedloss import registry
from unifiedloss.plan import class_axis
from unifiedloss.serialization import from_dict
from unifiedloss.spec import AnyLoss, Categorical

Array = Any


@keras.saving.register_keras_serializable(package="unifiedloss")
class KerasLoss(keras.losses.Loss):
    """A spec as a ``keras.losses.Loss``: called with (y_true, y_pred), compiled into a model, saved with it.

    ```python
    import keras
    from unifiedloss import CrossEntropyLoss

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("adam", loss=CrossEntropyLoss(from_logits=True).to("keras"))
    ```

    What Keras hands to a loss is understood as Keras means it:

    - ``sample_weight`` of ``fit`` and ``evaluate``, and what ``class_weight`` becomes, is the spec's `sample_weight`; a mask that a
      layer has computed for `y_pred` is the spec's `mask`. A last axis of length 1 of either is dropped, which changes nothing: with or
      without it the number is repeated over the trailing axes.
    - `y_true` keeps its dtype, so integer labels stay integers. Its shape is the one the spec asks for, with these exceptions and no other:
      class indices (N, 1) are read as (N,) beside predictions (N, K); targets of the elementwise losses are read as (N, 1) where they
      are (N,) and the predictions (N, 1), and as (N,) where it is the other way around. In front of N and in its place more axes may
      stand.

    Keras shows for an epoch the average of the batches' losses, each counted by its number of examples. Where weights, masks or
    ignored labels make a batch's divisor another number, that is not the loss of the whole epoch.

    XLA on TensorFlow has no form of ``rounding="exact"`` for the batches of `fit`, whose shapes are unknown when it compiles, and Keras
    turns it on by itself where there is a GPU: there compile the model with ``jit_compile=False``. Otherwise the first step fails with an
    error that says so.

    Before a model that was saved with such a loss is loaded, ``unifiedloss.adapters.keras`` must have been imported.

    Args:
        spec: the loss.
        name: what Keras calls it. Default: the name of the kind of loss.
    """

    def __init__(self, spec: AnyLoss, name: str | None = None) -> None:
        super().__init__(name=name or spec.name, reduction=spec.reduction)
        self.spec = spec
        self._adapter: Any = registry.adapter("keras")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Array:
        """The loss; errors as for calling the spec."""
        # Not Keras' own __call__, which casts labels to the loss's dtype: in bfloat16 the label 257 is 256 (keras#15012).
        loss = self._evaluate(self.spec, y_true, y_pred, sample_weight)
        # The replicas' gradients are summed under tf.distribute, so Keras wants each to bring its share of a mean.
        return scale_loss_for_distribution(loss) if self.spec.reduction == "mean" else loss

    def call(self, y_true: Any, y_pred: Any) -> Array:
        """The loss per position, which Keras asks of every loss and calls nowhere itself."""
        return self._evaluate(self.spec.replace(reduction="none"), y_true, y_pred, None)

    def _evaluate(self, spec: AnyLoss, y_true: Any, y_pred: Any, sample_weight: Any) -> Array:
        mask = get_keras_mask(y_pred)
        tensors = self._adapter.to_tensors(
            self._adapter.read_in(spec, y_pred), y_true, sample_weight, mask
        )
        if any(isinstance(x, np.ndarray) and not self._adapter._is_numeric(x) for x in tensors):
            self._adapter.plan(
                spec, *tensors
            )  # refuses them, where Keras could not even reshape them
        y_pred, y_true, sample_weight, mask = tensors
        with self._adapter.around(y_pred, y_true, sample_weight, mask):
            y_true = self._as_keras_means_it(y_true, y_pred)
            if sample_weight is not None:
                sample_weight = self._without_last_one(sample_weight)
            if mask is not None:
                mask = self._without_last_one(keras.ops.cast(mask, "bool"))
            return self._adapter.loss(spec, y_pred, y_true, sample_weight, mask)

    def _as_keras_means_it(self, y_true: Array, y_pred: Array) -> Array:
        """`y_true` with a last axis of length 1 dropped or added, where the class docstring says so."""
        true, pred = self._adapter.shape(y_true), self._adapter.shape(y_pred)
        if true is None or pred is None:
            return y_true
        if isinstance(self.spec, Categorical):
            index = "int" in self._adapter.dtype_name(y_true.dtype)
            if not index and in_symbolic_scope() and len(true) < len(pred):
                # Where Keras only looks for shapes under tf.distribute, it hands over the mean of the replicas' labels.
                return keras.ops.cast(y_true, "int32")
            # Floating targets are dense, also those of one class.
            drop = index and len(true) == len(pred) and true[-1:] == (1,)
        elif len(true) + 1 == len(pred) and pred[-1] == 1:
            return keras.ops.expand_dims(y_true, -1)
        else:
            drop = len(true) == len(pred) + 1 and true[-1] == 1
        return keras.ops.squeeze(y_true, -1) if drop else y_true

    def _without_last_one(self, x: Array) -> Array:
        shape = self._adapter.shape(x)
        return (
            keras.ops.squeeze(x, -1)
            if shape is not None and len(shape) > 1 and shape[-1] == 1
            else x
        )

    def get_config(self) -> dict[str, Any]:
        """The spec as a dictionary, and the name."""
        return {"name": self.name, "spec": self.spec.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The loss that `get_config` described."""
        return cls(from_dict(config["spec"]), name=config.get("name"))

    def __repr__(self) -> str:
        return f"KerasLoss({self.spec!r})"


@keras.saving.register_keras_serializable(package="unifiedloss")
class LossOperation(keras.Operation):
    """A loss as a node of a functional model: what calling a spec with symbolic tensors makes.

    Shapes and dtypes are checked when the model is built, and again, with what is known then, when it runs.
    """

    def __init__(self, spec: AnyLoss, name: str | None = None) -> None:
        super().__init__(name=name)
        self.spec = spec

    def call(
        self, predictions: Array, targets: Array, sample_weight: Any = None, mask: Any = None
    ) -> Array:
        """The loss; arguments and errors as for calling the spec."""
        return registry.adapter("keras").loss(self.spec, predictions, targets, sample_weight, mask)

    def compute_output_spec(
        self, predictions: Array, targets: Array, sample_weight: Any = None, mask: Any = None
    ) -> keras.KerasTensor:
        """Shape and dtype of the loss."""
        plan = registry.adapter("keras").plan(self.spec, predictions, targets, sample_weight, mask)
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
        return registry.adapter("keras").softmax(logits, self.axis)

    def compute_output_spec(self, logits: Array) -> keras.KerasTensor:
        """Shape and dtype of the logits."""
        class_axis(self.axis, logits.shape)
        return keras.KerasTensor(logits.shape, dtype=logits.dtype)

    def get_config(self) -> dict[str, Any]:
        """The axis and the name."""
        return {"name": self.name, "axis": self.axis}
