"""Every loss of the installed libraries is read, or named as what it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.interop.library_loss import knows

pytestmark = [pytest.mark.framework("torch", "tensorflow", "keras", "jax")]


def _public(module: Any) -> Iterator[tuple[str, Any]]:
    for name in sorted(dir(module)):
        if not name.startswith("_") and callable(getattr(module, name)):
            yield name, getattr(module, name)


def _speaks_of_loss(name: str) -> bool:
    return any(word in name for word in ("loss", "entropy", "kl_div"))


def losses() -> dict[str, Any]:
    """The losses of the installed libraries, by their public names, and what stands beside them."""
    import keras
    import optax
    import sklearn.metrics
    import tensorflow as tf
    import torch

    of_torch = torch.nn.modules.loss.__name__
    found = {f"torch.nn.{n}": x for n, x in _public(torch.nn) if x.__module__ == of_torch}
    found |= {f"torch.nn.{n}": x for n, x in _public(torch.nn) if "Loss" in n}
    for prefix, module in (("torch.nn.functional", torch.nn.functional), ("tf.nn", tf.nn)):
        found |= {f"{prefix}.{n}": x for n, x in _public(module) if _speaks_of_loss(n)}
    for prefix, module in (
        ("keras.losses", keras.losses),
        ("tf.compat.v1.losses", tf.compat.v1.losses),
        ("optax.losses", optax.losses),
    ):
        found |= {f"{prefix}.{n}": x for n, x in _public(module)}
    for name in sklearn.metrics.__all__:
        if callable(getattr(sklearn.metrics, name)):
            found[f"sklearn.metrics.{name}"] = getattr(sklearn.metrics, name)
    return found


def _message(obj: Any) -> str | None:
    try:
        ul.from_native(obj)
    except ul.UnifiedLossError as error:
        return str(error)
    return None


def _object(loss: Any) -> Any:
    """An object of a class without required arguments; else the class or function."""
    if not inspect.isclass(loss):
        return loss
    try:
        return loss()
    except (TypeError, NotImplementedError):
        return None


@pytest.mark.filterwarnings("ignore:.*NLLLoss2d:FutureWarning")
def test_every_loss_is_read_or_named() -> None:
    """A loss that is not read says what it is, as text and as an object; none is mistaken."""
    found = losses()
    assert len(found) > 150
    unread = {name: loss for name, loss in found.items() if not knows(name)}
    assert len(unread) > 100
    for name, loss in unread.items():
        says = _message(f"{name}()") or "read"
        assert says.startswith(f"{name} is "), says
        assert "Did you mean" not in says
        obj = _object(loss)
        if obj is None:
            continue
        assert " is no loss that is known here" not in (_message(obj) or "read"), name


def test_a_loss_of_ones_own_is_not_named() -> None:
    """A subclass, and a class of another package, may compute anything."""
    import torch

    class KLDivLoss(torch.nn.KLDivLoss):
        """A subclass with the name of its base."""

    assert "A subclass or a function of your own" in (_message(KLDivLoss()) or "")
    assert "is no loss that is known here" in (_message("mine.KLDivLoss()") or "")
    assert "Did you mean" not in (_message("mine.KLDivLoss()") or "Did you mean")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("torch.nn.CrossEntropyLos()", "torch.nn.CrossEntropyLoss"),
        ("keras.losses.MeanSquareError()", "keras.losses.MeanSquaredError"),
        ("optax.squared_eror", "optax.losses.squared_error"),
        ("MSELoss()", "torch.nn.MSELoss"),
    ],
)
def test_a_slip_is_found(text: str, meant: str) -> None:
    """A misspelled name of a loss that is read is suggested, of the library that was named."""
    assert f"Did you mean {meant}?" in (_message(text) or "")


RNG = np.random.default_rng(5)
T = RNG.dirichlet(np.ones(3), 4)
P = RNG.dirichlet(np.ones(3), 4)
Z = RNG.normal(size=(4, 3))
Y = RNG.integers(0, 2, (4, 3))
SIZES = RNG.uniform(0.5, 3, (4, 3))
ENTROPY = -(T * np.log(T)).sum(axis=1)


def _torch(name: str, *tensors: Any, **arguments: Any) -> Any:
    import torch

    return getattr(torch.nn, name)(**arguments)(*map(torch.tensor, tensors)).numpy()


def _keras(name: str, y_true: Any, y_pred: Any) -> Any:
    import keras

    loss = getattr(keras.losses, name)(dtype="float64")
    return keras.ops.convert_to_numpy(loss(y_true, y_pred))


def _optax(name: str, *tensors: Any, **arguments: Any) -> Any:
    import optax

    return np.asarray(getattr(optax.losses, name)(*tensors, **arguments))


def _v1_huber() -> Any:
    import tensorflow as tf

    return tf.compat.v1.losses.huber_loss(SIZES.astype("f"), Z.astype("f"), delta=0.5).numpy()


def _l2() -> Any:
    import tensorflow as tf

    return tf.nn.l2_loss(Z).numpy()


def _sklearn(name: str, *tensors: Any) -> Any:
    import sklearn.metrics

    return getattr(sklearn.metrics, name)(*tensors)


BCE = ul.BinaryCrossEntropyLoss(from_logits=True)
NLL = ul.NegativeLogLikelihoodLoss(axis=-1, reduction="none")
MSE = ul.MeanSquaredError()

CLAIMS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "KLDivLoss": (
        lambda: _torch("KLDivLoss", np.log(P), T, reduction="batchmean"),
        lambda: np.mean(NLL(np.log(P), T) - ENTROPY),
    ),
    "KLDivLoss, mean": (
        lambda: _torch("KLDivLoss", np.log(P), T),
        lambda: (NLL(np.log(P), T) - ENTROPY).sum() / T.size,
    ),
    "KLDivergence": (
        lambda: _keras("KLDivergence", T, P),
        lambda: np.mean(ul.CrossEntropyLoss(axis=-1, reduction="none")(P, T) - ENTROPY),
    ),
    "kl_divergence": (
        lambda: _optax("kl_divergence", np.log(P), T),
        lambda: NLL(np.log(P), T) - ENTROPY,
    ),
    "kl_divergence_with_log_targets": (
        lambda: _optax("kl_divergence_with_log_targets", np.log(P), np.log(T)),
        lambda: NLL(np.log(P), T) - ENTROPY,
    ),
    "SoftMarginLoss": (
        lambda: _torch("SoftMarginLoss", Z, 2.0 * Y - 1),
        lambda: BCE(Z, Y),
    ),
    "MultiLabelSoftMarginLoss": (
        lambda: _torch("MultiLabelSoftMarginLoss", Z, 1.0 * Y),
        lambda: BCE.replace(average_last_axis=True)(Z, Y),
    ),
    "ranking_softmax_loss": (
        lambda: _optax("ranking_softmax_loss", Z, SIZES),
        lambda: ul.CrossEntropyLoss(from_logits=True, axis=-1)(Z, SIZES),
    ),
    "brier_score_loss": (
        lambda: _sklearn("brier_score_loss", Y[:, 0], P[:, 0]),
        lambda: MSE(P[:, 0], Y[:, 0]),
    ),
    "brier_score_loss, three classes": (
        lambda: _sklearn("brier_score_loss", [0, 1, 2, 2], P),
        lambda: 3 * MSE(P, np.eye(3)[[0, 1, 2, 2]]),
    ),
    "l2_loss": (_l2, lambda: MSE.replace(reduction="sum", scale=0.5)(Z, 0 * Z)),
    "huber_loss": (
        _v1_huber,
        lambda: ul.HuberLoss(delta=0.5, dtype="float32", divisor="nonzero", on_empty="zero")(
            Z, SIZES
        ),
    ),
    "mean_squared_log_error": (
        lambda: _sklearn("mean_squared_log_error", T, SIZES),
        lambda: MSE(np.log1p(SIZES), np.log1p(T)),
    ),
    "root_mean_squared_error": (
        lambda: _sklearn("root_mean_squared_error", T[:, 0], P[:, 0]),
        lambda: math.sqrt(MSE(P[:, 0], T[:, 0])),
    ),
    "MeanSquaredLogarithmicError": (
        lambda: _keras("MeanSquaredLogarithmicError", T, SIZES),
        lambda: MSE.replace(average_last_axis=True)(np.log1p(SIZES), np.log1p(T)),
    ),
    "sigmoid_focal_loss, gamma 0": (
        lambda: _optax("sigmoid_focal_loss", Z.astype("f"), Y.astype("f"), alpha=None, gamma=0.0),
        lambda: BCE.replace(reduction="none")(Z, Y),
    ),
    "GaussianNLLLoss, constant variance": (
        lambda: _torch("GaussianNLLLoss", Z, SIZES, np.full((4, 1), 0.25)) - math.log(0.25) / 2,
        lambda: MSE.replace(scale=2.0)(Z, SIZES),
    ),
    "L1Loss, small delta": (
        lambda: _torch("L1Loss", Z, SIZES),
        lambda: ul.HuberLoss(delta=1e-7, scale=1e7)(Z, SIZES),
    ),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_loss_is_in_our_terms(name: str) -> None:
    """The sentences that say what a loss is in the terms of a spec are right."""
    theirs, ours = CLAIMS[name]
    np.testing.assert_allclose(theirs(), ours(), rtol=2e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_smoothing_off_the_label(classes: int) -> None:
    """Smoothing that gives eps/(K-1) to each other class is ours with eps K/(K-1)."""
    eps = 0.1
    z, y = RNG.normal(size=(6, classes)), RNG.integers(0, classes, 6)
    target = np.full((6, classes), eps / (classes - 1))
    target[np.arange(6), y] = 1 - eps
    spec = ul.CrossEntropyLoss(from_logits=True)
    ours = spec.replace(label_smoothing=eps * classes / (classes - 1))(z, y)
    np.testing.assert_allclose(ours, spec(z, target), rtol=1e-14)
    says = _message("fairseq.LabelSmoothedCrossEntropyCriterion()") or ""
    assert "label_smoothing=eps*K/(K-1)" in says
