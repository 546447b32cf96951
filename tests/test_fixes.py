"""Errors about shapes and dtypes say what would fit, where the tensors show it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.errors import DTypeError, ShapeError, SpecValueError, UnifiedLossError

CE = ul.CrossEntropyLoss(from_logits=True)
FIRST = CE.replace(axis=1)
BCE = ul.BinaryCrossEntropyLoss(from_logits=True)
SWAPPED = "arguments swapped? A spec takes (predictions, targets), and Keras calls a loss as"


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    """Return float32 zeros."""
    return np.zeros(shape, np.float32)


def labels(*shape: int) -> np.ndarray[Any, Any]:
    """Return int64 zeros."""
    return np.zeros(shape, np.int64)


@pytest.mark.parametrize(
    ("spec", "predictions", "targets", "error", "says"),
    [
        (
            FIRST,
            zeros(2, 5, 7),
            labels(2, 5),
            ShapeError,
            "They would fit axis=-1, if the classes lie",
        ),
        (CE.replace(axis=-1), zeros(2, 5, 7), labels(2, 7), ShapeError, "They would fit axis=-2,"),
        (
            FIRST,
            zeros(7, 5),
            labels(5),
            ShapeError,
            "They would fit axis=-2, if the classes lie there. U",
        ),
        (FIRST, zeros(7, 5), labels(5), ShapeError, "Under vmap an example lacks the batch axis"),
        (CE.replace(axis=2), zeros(7, 5), labels(5), SpecValueError, "Under vmap an example"),
        (FIRST, zeros(5, 5, 5), labels(5), ShapeError, "one label per position."),
        (CE, zeros(4, 3), labels(3), ShapeError, "got (3,); one label per position."),
        (CE, np.array([["a"]]), zeros(1, 1), DTypeError, "check that predictions come first"),
        (FIRST, zeros(2, 5, 7), labels(2, 1, 7), ShapeError, "targets.reshape((2, 7))"),
        (CE, zeros(4, 3), labels(4, 3), ShapeError, "one-hot or soft targets use a floating dtype"),
        (CE, zeros(4, 3), zeros(4), ShapeError, "for class indices use an integer dtype"),
        (FIRST, zeros(2, 5, 7), zeros(2, 7, 5), ShapeError, "transpose one of them"),
        (CE, labels(4), zeros(4, 3), DTypeError, SWAPPED),
        (CE, labels(4, 1), zeros(4, 3), DTypeError, SWAPPED),
        (CE, zeros(4), zeros(4, 3), ShapeError, SWAPPED),
        (CE, zeros(4, 1), zeros(4, 3), ShapeError, SWAPPED),
        (FIRST, zeros(2, 7), zeros(2, 5, 7), ShapeError, SWAPPED),
        (BCE, labels(4, 1), zeros(4, 1), DTypeError, SWAPPED),
        (ul.MeanSquaredError(), labels(4), zeros(4), DTypeError, SWAPPED),
        (CE, labels(4), labels(4), DTypeError, "check that predictions come first"),
        (BCE, zeros(4, 3), labels(4), ShapeError, "targets of the categorical cross-entropy"),
        (ul.MeanSquaredError(), zeros(4, 3), labels(4), ShapeError, "make the shapes equal"),
        (
            BCE.replace(pos_weight=(3, 1)),
            zeros(2, 2, 2),
            zeros(2, 2, 2),
            SpecValueError,
            "name the one along which the weights run",
        ),
    ],
)
def test_fixes(
    spec: Any, predictions: Any, targets: Any, error: type[UnifiedLossError], says: str
) -> None:
    """The message ends with what fits."""
    with pytest.raises(error) as raised:
        spec(predictions, targets)
    assert says in str(raised.value)


@pytest.mark.framework("jax")
def test_under_vmap() -> None:
    """A spec of torch takes one example under vmap, and says so where an image has lost an axis."""
    import jax
    import jax.numpy as jnp

    spec = ul.from_native("torch.nn.CrossEntropyLoss()")
    logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    each = jax.vmap(spec)(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(each, [0.407606, 1.407606], rtol=1e-6)
    with pytest.raises(ShapeError, match=r"axis=-2, if the classes lie there\. Under vmap"):
        jax.vmap(spec)(jnp.zeros((2, 7, 5)), jnp.zeros((2, 5), jnp.int32))


@pytest.mark.framework("torch")
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_one_example_as_torch_takes_it(name: str) -> None:
    """A loss that was read from torch takes logits (K,) beside a label, and one-hot targets."""
    import torch

    loss = getattr(torch.nn, name)(weight=torch.tensor([1.0, 2.0, 3.0]))
    logits = torch.tensor([2.0, 1.0, 0.0])
    targets = [torch.tensor(2)]
    if name == "CrossEntropyLoss":
        targets.append(torch.tensor([0.5, 0.25, 0.25]))
    for target in targets:
        torch.testing.assert_close(ul.from_native(loss)(logits, target), loss(logits, target))


def test_another_axis_of_one_example() -> None:
    """Only axis 1 may be missing; no other axis and no axis of pos_weight."""
    with pytest.raises(SpecValueError, match="axis=2 is out of range"):
        CE.replace(axis=2)(zeros(3), labels())
    with pytest.raises(SpecValueError, match="axis=1 is out of range"):
        BCE.replace(pos_weight=(3, 1), axis=1)(zeros(2), zeros(2))
    with pytest.raises(SpecValueError, match="axis=1 is out of range"):
        ul.softmax(zeros(3), axis=1)


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (ul.cross_entropy_loss, {"weight": [1, 2]}, "Did you mean 'class_weights'?"),
        (ul.cross_entropy_loss, {"weight": zeros(2)}, "Did you mean 'class_weights'?"),
        (ul.cross_entropy_loss, {"dim": 1}, "Did you mean 'axis'?"),
        (ul.binary_cross_entropy_loss, {"weight": [1, 2]}, "Did you mean 'element_weights'?"),
        (ul.mean_squared_error, {"weights": [1, 2]}, "Did you mean 'element_weights'?"),
        (ul.huber_loss, {"beta": 1.0}, "Did you mean 'delta'?"),
    ],
)
def test_names_of_other_libraries(function: Any, arguments: dict[str, Any], says: str) -> None:
    """A function suggests the field that another library's name stands for."""
    with pytest.raises(ul.SpecTypeError) as raised:
        function(zeros(2, 2), zeros(2, 2), **arguments)
    assert says in str(raised.value)


def test_softmax_names_its_axis() -> None:
    """`softmax` suggests axis for dim, as the losses do."""
    with pytest.raises(ul.SpecTypeError, match="Did you mean 'axis'"):
        ul.softmax(zeros(2, 2), dim=1)  # type: ignore[call-overload]
