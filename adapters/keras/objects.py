"""A spec as a ``keras.losses.Loss``, and losses as nodes of functional models."""

from __future__ import annotations

from typing import Any, Self

import keras
import numpy as np
from keras.src.backend import get_keras_mask
from keras.src.backend.common.symbolic_scope import in_symbolic_scope
from keras.src.losses.loss import scale_loss_for_distribution

from unifiedloss import registry
from unifiedloss.errors import SpecValueError
from unifiedloss.plan import class_axis
from unifiedloss.serialization import from_dict
from unifiedloss.spec import Categorical, Loss

Array = Any


@keras.saving.register_keras_serializable(package="unifiedloss")
class KerasLoss(keras.losses.Loss):
    """A spec as a ``keras.losses.Loss``.

    Call it with (y_true, y_pred), or compile a model with it. It is saved with the model.

    ```python
    import keras
    from unifiedloss import CrossEntropyLoss

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("adam", loss=CrossEntropyLoss(from_logits=True).to("keras"))
    ```

    The arguments are read as Keras means them:

    - ``sample_weight`` of ``fit`` and ``evaluate``, also where Keras makes it from
      ``class_weight``, is the spec's `sample_weight`. The mask that a layer computed for `y_pred`
      is the spec's `mask`. A last axis of length 1 of either is dropped. This changes nothing,
      because the value is repeated over the trailing axes with or without it.
    - `y_true` keeps its dtype, so integer labels stay integers. It must have the shape that the
      spec asks for, with two exceptions. Class indices (N, 1) are read as (N,) beside predictions
      (N, K). Targets of the elementwise losses are read as (N, 1) if they are (N,) and the
      predictions (N, 1), and as (N,) if it is the other way around. N stands for any number of
      axes.

    For an epoch, Keras reports the average of the batches' losses, weighted by the number of
    examples. If weights, masks or ignored labels make a batch's divisor another number, this is not
    the loss of the epoch.

    XLA on TensorFlow compiles ``rounding="exact"`` for batches of any size, once for each size, and
    refuses losses that have no form there, with an error that says so; compile the model with
    ``jit_compile=False`` then. Keras enables XLA by default if there is a GPU.

    Under `tf.distribute` each replica computes the mean of its own part of a batch, as Keras' own
    losses do, and the gradient is that of the mean of these means. With `global_mean` it is that of
    the mean of the batch: each replica divides by the sum of all divisors, which
    ``ReplicaContext.all_reduce`` computes. Keras shows the average of the replicas' losses,
    weighted by their examples. This is the mean of the batch if each has as many.

    `global_mean` changes nothing where one program sees the whole batch: without `tf.distribute`,
    and on JAX, also with `keras.distribution`. On PyTorch it is an error in a process group of
    several processes, because Keras has no collectives there.

    Import ``unifiedloss.adapters.keras`` before you load a model that was saved with such a loss.

    Args:
        spec: the loss.
        name: its name in Keras. Default: the name of the kind of loss.
        global_mean: whether a mean divides by the divisor of all replicas.

    Raises:
        SpecValueError: `global_mean` with a spec that is no mean.
    """

    autograph_info__ = None  # see `unifiedloss.autograph.no_autograph`

    def __init__(self, spec: Loss, name: str | None = None, *, global_mean: bool = False) -> None:
        if global_mean and spec.reduction != "mean":
            msg = (
                f"global_mean is for a mean, and this spec has reduction={spec.reduction!r}, which "
                "divides by nothing; leave it out, or use spec.replace(reduction='mean')."
            )
            raise SpecValueError(msg)
        super().__init__(name=name or spec.name, reduction=spec.reduction)
        self.spec = spec
        self.global_mean = global_mean
        self._adapter: Any = registry.adapter("keras")

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Array:
        """The loss; errors as for calling the spec."""
        # Not Keras' __call__, which casts labels to the dtype of the loss. In bfloat16 the label
        # 257 becomes 256 (keras#15012).
        loss = self._evaluate(self.spec, y_true, y_pred, sample_weight)
        if self.global_mean:
            return loss
        # tf.distribute sums the replicas' gradients, so each replica's mean is divided by their
        # number, as Keras does for its own losses.
        return scale_loss_for_distribution(loss) if self.spec.reduction == "mean" else loss

    def call(self, y_true: Any, y_pred: Any) -> Array:
        """The loss per position. Keras requires this method, but does not call it."""
        return self._evaluate(self.spec.replace(reduction="none"), y_true, y_pred, None)

    def _evaluate(self, spec: Loss, y_true: Any, y_pred: Any, sample_weight: Any) -> Array:
        mask = get_keras_mask(y_pred)
        tensors = self._adapter.to_tensors(
            self._adapter.read_in(spec, y_pred), y_true, sample_weight, mask
        )
        if any(isinstance(x, np.ndarray) and not self._adapter._is_numeric(x) for x in tensors):
            # This raises for the dtype, before Keras fails to reshape the array.
            self._adapter.plan(spec, *tensors)
        y_pred, y_true, sample_weight, mask = tensors
        with self._adapter.around(y_pred, y_true, sample_weight, mask):
            y_true = self._as_keras_means_it(y_true, y_pred)
            if sample_weight is not None:
                sample_weight = self._without_last_one(sample_weight)
            if mask is not None:
                mask = self._without_last_one(keras.ops.cast(mask, "bool"))
            divisor = None
            if self.global_mean and spec.reduction == "mean" and not in_symbolic_scope():
                divisor = self._adapter.divisor_of_replicas(
                    spec, y_true, sample_weight, mask, y_pred.dtype
                )
            return self._adapter.loss(spec, y_pred, y_true, sample_weight, mask, divisor)

    def _as_keras_means_it(self, y_true: Array, y_pred: Array) -> Array:
        """`y_true` with a last axis of length 1 dropped or added, by the rules of the class."""
        true, pred = self._adapter.shape(y_true), self._adapter.shape(y_pred)
        if true is None or pred is None:
            return y_true
        if isinstance(self.spec, Categorical):
            index = "int" in self._adapter.dtype_name(y_true.dtype)
            if not index and in_symbolic_scope() and len(true) < len(pred):
                # When Keras infers shapes under tf.distribute, it passes the mean of the replicas'
                # labels, which is floating.
                return keras.ops.cast(y_true, "int32")
            # Floating targets are dense, also with a single class.
            drop = index and len(true) == len(pred) and true[-1:] == (1,)
        elif len(true) + 1 == len(pred) and pred[-1] == 1:
            return keras.ops.expand_dims(y_true, -1)
        else:
            drop = len(true) == len(pred) + 1 and true[-1] == 1
        return keras.ops.squeeze(y_true, -1) if drop else y_true

    def _without_last_one(self, x: Array) -> Array:
        shape = self._adapter.shape(x)
        drop = shape is not None and len(shape) > 1 and shape[-1] == 1
        return keras.ops.squeeze(x, -1) if drop else x

    def get_config(self) -> dict[str, Any]:
        """The spec as a dictionary, the name, and `global_mean` if it is set."""
        config: dict[str, Any] = {"name": self.name, "spec": self.spec.to_dict()}
        return config | {"global_mean": True} if self.global_mean else config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The loss that `get_config` described."""
        return cls(
            from_dict(config.get("spec")),
            name=config.get("name"),
            global_mean=config.get("global_mean", False),
        )

    def __repr__(self) -> str:
        return f"KerasLoss({self.spec!r}{', global_mean=True' if self.global_mean else ''})"


@keras.saving.register_keras_serializable(package="unifiedloss")
class LossOperation(keras.Operation):
    """A loss as a node of a functional model, made by calling a spec with symbolic tensors.

    Shapes and dtypes are checked when the model is built, and again when it runs and more of them
    is known.
    """

    def __init__(self, spec: Loss, name: str | None = None) -> None:
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
