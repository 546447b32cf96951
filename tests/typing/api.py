"""Code as users write it, for the type checkers alone: "make lint" holds what they infer against what stands here.

The tensor type that goes in comes out, whichever framework it is from, and none of them has to be installed for the others.
"""

from __future__ import annotations

from typing import Any, assert_type

import jax
import numpy as np
import torch
from numpy.typing import NDArray

import unifiedloss as ul


def torch_in_torch_out(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Functions and specs keep torch.Tensor."""
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
    """Functions and specs keep jax.Array."""
    assert_type(ul.MeanSquaredError()(logits, labels), jax.Array)
    assert_type(ul.softmax(logits), jax.Array)
    assert_type(ul.cross_entropy_loss(logits, labels, class_weights=(1.0, 2.0)), jax.Array)


def numpy_in_numpy_out(predictions: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
    """The two arguments need not have one type: the predictions decide, and the dtype stays."""
    assert_type(ul.softmax(predictions), NDArray[np.float32])
    assert_type(ul.BinaryCrossEntropyLoss()(predictions, targets), NDArray[np.float32])
    assert_type(ul.mean_squared_error(predictions, targets), NDArray[np.float32])


def mixed(logits: torch.Tensor, labels: list[int]) -> None:
    """NumPy arrays and lists may accompany any framework's predictions."""
    assert_type(ul.cross_entropy_loss(logits, labels, from_logits=True), torch.Tensor)
    assert_type(ul.cross_entropy_loss(logits, np.array(labels), from_logits=True), torch.Tensor)


def serialised(spec: ul.CrossEntropyLoss) -> None:
    """Dictionaries and JSON texts are plain."""
    assert_type(spec.to_json(), str)
    assert_type(spec.to_dict(), dict[str, Any])


def misuse(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """What must not pass: a checker that stops complaining here makes the line's own comment an error."""
    ul.cross_entropy_loss(logits, labels, True)  # type: ignore[call-overload]  # noqa: FBT003 - options are keyword-only
    ul.CrossEntropyLoss(reduction="average")  # type: ignore[arg-type]
    ul.CrossEntropyLoss().epsilon = 0.5  # type: ignore[misc]  # specs are frozen
