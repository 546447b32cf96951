"""The frameworks' own losses as functions of predictions and targets, for the scoreboard.

Each is the public loss as it is, with the arguments of a text such as
``keras.losses.Huber(delta=1.0)``; only the order of the tensors is ours.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unifiedloss import interop
from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.sides import kinds_of
from unifiedloss.spec import Categorical, Loss

BACKENDS = {
    "torch": "torch",
    "tensorflow": "tensorflow",
    "optax": "jax",
    "sklearn": "numpy",
    "onnx": "numpy",
}
"""The backend whose tensors the losses of a library take; those of Keras are its own."""


@dataclass(frozen=True)
class NativeLoss:
    """A loss of a library, as ``function(predictions, targets)``.

    Attributes:
        text: the loss as Python code; a loss of Keras without its backend.
        keras: the backend of Keras; None for other libraries.
    """

    text: str
    keras: str | None = None

    @property
    def call(self) -> Call:
        """The call that makes the loss."""
        call = interop.parse(self.text)
        return call if self.keras is None else Call(call.name, call.arguments, self.keras)

    @property
    def spec(self) -> Loss:
        """The spec that it is read as; where none is the same, the one of its Keras elsewhere."""
        try:
            return interop.spec_of(self.call)
        except UnsupportedError:
            return interop.spec_of(interop.parse(self.text))

    @property
    def refusal(self) -> str | None:
        """Why no spec computes the same; None if one does."""
        try:
            interop.spec_of(self.call)
        except UnsupportedError as error:
            return str(error).partition(". ")[0]
        return None

    @property
    def backend(self) -> str:
        """The label of the backend that it runs on."""
        return BACKENDS[self.call.library] if self.keras is None else f"keras ({self.keras})"

    @property
    def targets(self) -> str | None:
        """The only kind of targets that it takes; None for both, and for losses of elements."""
        if not isinstance(self.spec, Categorical):
            return None
        kinds = kinds_of(self.call.name)
        return kinds[0] if len(kinds) == 1 else None

    @cached_property
    def _built(self) -> Any:
        return interop.build(self.call)

    def __call__(self, predictions: Any, targets: Any) -> Any:
        """Return the loss."""
        return self._run(predictions, targets)

    def _run(self, predictions: Any, targets: Any, **weights: Any) -> Any:
        library = self.call.library
        if library == "onnx":  # a model of its own for these shapes
            return interop.run(self.call, predictions, targets)[0]
        if library == "tensorflow":
            name = "labels" if "labels" in inspect.signature(self._built).parameters else "targets"
            return self._built(**{name: targets, "logits": predictions})
        if library in ("keras", "sklearn"):
            loss = self._built(targets, predictions, **weights)
            return np.asarray(loss) if library == "sklearn" else loss
        return self._built(predictions, targets)


class WeightedNativeLoss(NativeLoss):
    """A loss of a library that takes sample weights too."""

    def __call__(self, predictions: Any, targets: Any, sample_weight: Any = None) -> Any:
        """Return the loss."""
        return self._run(predictions, targets, sample_weight=sample_weight)


_KERAS = (
    "keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
    "keras.losses.SparseCategoricalCrossentropy()",
    "keras.losses.CategoricalCrossentropy(from_logits=True)",
    "keras.losses.CategoricalCrossentropy()",
    "keras.losses.BinaryCrossentropy(from_logits=True)",
    "keras.losses.BinaryCrossentropy()",
    "keras.losses.MeanSquaredError()",
    "keras.losses.Huber()",
)

LOSSES: tuple[NativeLoss, ...] = (
    NativeLoss("torch.nn.functional.cross_entropy"),
    NativeLoss("torch.nn.functional.nll_loss"),
    NativeLoss("torch.nn.functional.binary_cross_entropy"),
    NativeLoss("torch.nn.functional.binary_cross_entropy_with_logits"),
    NativeLoss("torch.nn.functional.mse_loss"),
    NativeLoss("torch.nn.functional.huber_loss"),
    *(
        WeightedNativeLoss(text, on)
        for text in _KERAS
        for on in ("tensorflow", "torch", "jax", "numpy")
    ),
    NativeLoss("tf.nn.sparse_softmax_cross_entropy_with_logits"),
    NativeLoss("tf.nn.softmax_cross_entropy_with_logits"),
    NativeLoss("tf.nn.sigmoid_cross_entropy_with_logits"),
    NativeLoss("optax.losses.softmax_cross_entropy_with_integer_labels"),
    NativeLoss("optax.losses.softmax_cross_entropy"),
    NativeLoss("optax.losses.sigmoid_binary_cross_entropy"),
    NativeLoss("optax.losses.squared_error"),
    NativeLoss("optax.losses.huber_loss"),
    WeightedNativeLoss("sklearn.metrics.log_loss"),
    WeightedNativeLoss("sklearn.metrics.mean_squared_error"),
    NativeLoss("onnx.SoftmaxCrossEntropyLoss()"),
    NativeLoss("onnx.NegativeLogLikelihoodLoss()"),
)
"""The rows of the scoreboard. Losses with the same text are one section of it."""
