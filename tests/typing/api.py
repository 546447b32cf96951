"""User code for the type checkers: "make lint" compares the types they infer with the types here.

The result has the tensor type of the predictions, for every framework. No framework needs another
one to be installed.
"""

from __future__ import annotations

from typing import Any, assert_type

import dask.array as da
import jax
import numpy as np
import torch
from numpy.typing import NDArray

import unifiedloss as ul
from unifiedloss.adapters.dask.objects import LossFunction as DaskFunction
from unifiedloss.adapters.jax.objects import LossFunction as JaxFunction
from unifiedloss.adapters.keras.objects import KerasLoss
from unifiedloss.adapters.numpy.objects import LossFunction as NumPyFunction
from unifiedloss.adapters.tensorflow.objects import LossFunction as TensorFlowFunction
from unifiedloss.adapters.torch.objects import LossModule as TorchModule


def torch_in_torch_out(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Functions and specs return torch.Tensor for torch.Tensor."""
    spec = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, ignore_index=-100)
    assert_type(spec(logits, labels, sample_weight=None, mask=None), torch.Tensor)
    assert_type(spec.value_and_grad(logits, labels), tuple[torch.Tensor, torch.Tensor])
    assert_type(ul.softmax(logits), torch.Tensor)
    assert_type(
        ul.cross_entropy_loss(logits, labels, from_logits=True, ignore_index=(0, 1)), torch.Tensor
    )
    assert_type(
        ul.binary_cross_entropy_loss(logits, labels, from_logits=True, pos_weight=3.0), torch.Tensor
    )
    assert_type(ul.mean_squared_error(logits, labels, reduction="none"), torch.Tensor)


def jax_in_jax_out(logits: jax.Array, labels: jax.Array) -> None:
    """Functions and specs return jax.Array for jax.Array."""
    assert_type(ul.MeanSquaredError()(logits, labels), jax.Array)
    assert_type(ul.softmax(logits), jax.Array)
    assert_type(ul.cross_entropy_loss(logits, labels, class_weights=(1.0, 2.0)), jax.Array)


def dask_in_dask_out(logits: da.Array, labels: da.Array) -> None:
    """Functions and specs return dask.array.Array for dask.array.Array."""
    assert_type(ul.MeanSquaredError()(logits, labels), da.Array)
    assert_type(ul.CrossEntropyLoss().value_and_grad(logits, labels), tuple[da.Array, da.Array])
    assert_type(ul.MeanSquaredError().to("dask")(logits, labels), da.Array)


def numpy_in_numpy_out(predictions: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
    """The predictions decide the dtype; a mean and a sum are NumPy scalars, not arrays."""
    assert_type(ul.softmax(predictions), NDArray[np.float32])
    assert_type(ul.BinaryCrossEntropyLoss()(predictions, targets), NDArray[np.float32] | np.float32)
    assert_type(ul.mean_squared_error(predictions, targets), NDArray[np.float32] | np.float32)


def mixed(logits: torch.Tensor, labels: list[int]) -> None:
    """Targets may be NumPy arrays or lists beside the predictions of any framework."""
    assert_type(ul.cross_entropy_loss(logits, labels, from_logits=True), torch.Tensor)
    assert_type(ul.cross_entropy_loss(logits, np.array(labels), from_logits=True), torch.Tensor)


def objects_of_frameworks(spec: ul.Loss, name: str, logits: torch.Tensor, x: jax.Array) -> None:
    """The name of a framework decides the type of the object that `to` returns."""
    module = spec.to("torch")
    assert_type(module, TorchModule)
    assert_type(module(logits, logits), torch.Tensor)
    assert_type(spec.to("jax"), JaxFunction)
    assert_type(spec.to("jax")(x, x), jax.Array)
    assert_type(spec.to("keras"), KerasLoss)
    assert_type(spec.to("keras", global_mean=True), KerasLoss)
    assert_type(spec.to("tensorflow"), TensorFlowFunction)
    assert_type(spec.to("numpy"), NumPyFunction)
    assert_type(spec.to("dask"), DaskFunction)
    assert_type(spec.to(name), Any)
    ul.check(spec.to("jax"), x, x)


def serialised(spec: ul.CrossEntropyLoss) -> None:
    """Serialization gives a plain str and a plain dict."""
    assert_type(spec.to_json(), str)
    assert_type(spec.to_dict(), dict[str, Any])


def misuse(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Each line is a type error; if a checker accepts it, its unused "type: ignore" is an error."""
    # Options are keyword-only.
    ul.cross_entropy_loss(logits, labels, True)  # type: ignore[call-overload]  # noqa: FBT003
    ul.CrossEntropyLoss(reduction="average")  # type: ignore[arg-type]
    ul.CrossEntropyLoss().epsilon = 0.5  # type: ignore[misc]  # specs are frozen
    ul.cros_entropy_loss  # type: ignore[attr-defined]  # noqa: B018
    ul.functional.mean_square_error  # type: ignore[attr-defined]  # noqa: B018
    from unifiedloss.spec import CrossEntropyLos  # type: ignore[attr-defined]  # noqa: F401

    ul.check("cross_entropy", logits, labels)  # type: ignore[arg-type]
