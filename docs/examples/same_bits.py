"""The same training in four frameworks, with the same bits: every loss, every gradient, and so the model.

A softmax regression on images of digits is trained with NumPy, PyTorch, TensorFlow and JAX. Each computes the loss and its gradient with
its own tensors and its own differentiation. The two matrix products of the model are one function's for all, since each framework adds
up products in an order of its own. With rounding="exact" nothing is left that could differ, and the script fails if a bit does. Beside
it, for contrast, the same training with rounding="native".

    pip install 'unifiedloss[all]' scikit-learn
    python same_bits.py
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import unifiedloss as ul

try:
    import jax
    import sklearn.datasets
    import tensorflow as tf
    import torch
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    wanted = "scikit-learn" if missing == "sklearn" else f"'unifiedloss[{missing}]'"
    sys.exit(
        f"This example needs {missing}, which is not installed; install it with: pip install {wanted}"
    )


# --------------------------------------------------------------------------------------------------------- the loss
# One line, whichever framework the logits are from.


def exact_loss(logits: Any, y: Any) -> Any:
    """The mean over the batch, with every bit defined."""
    loss = ul.cross_entropy_loss(logits, y, from_logits=True, rounding="exact")
    return loss  # noqa: RET504 - the line as it stands in a training step


def native_loss(logits: Any, y: Any) -> Any:
    """The same by the framework's own operations, which round as they do."""
    loss = ul.cross_entropy_loss(logits, y, from_logits=True, rounding="native")
    return loss  # noqa: RET504


LOSSES = {"exact": exact_loss, "native": native_loss}


# ------------------------------------------------------------------------------------------------- and its gradient
# Each function returns one that computes the loss and its gradient in a framework, from NumPy arrays to NumPy arrays.

Array = np.ndarray
Step = Callable[[Array, Array], tuple[Array, Array]]


def in_numpy(rounding: str) -> Step:
    """NumPy has no gradients of its own; the same loss as an object knows its gradient."""
    loss, loss_object = LOSSES[rounding], ul.CrossEntropyLoss(from_logits=True, rounding=rounding)
    return lambda logits, y: (loss(logits, y), loss_object.value_and_grad(logits, y)[1])


def in_torch(rounding: str) -> Step:
    """PyTorch: backward."""
    loss = LOSSES[rounding]

    def step(logits: Array, y: Array) -> tuple[Array, Array]:
        z = torch.tensor(logits, requires_grad=True)
        value = loss(z, torch.tensor(y))
        value.backward()
        assert z.grad is not None
        return value.detach().numpy(), z.grad.numpy()

    return step


def in_tensorflow(rounding: str) -> Step:
    """TensorFlow: a gradient tape, compiled by tf.function."""
    loss = LOSSES[rounding]

    @tf.function
    def differentiate(z: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(z, y)
        return value, tape.gradient(value, z)

    def step(logits: Array, y: Array) -> tuple[Array, Array]:
        value, gradient = differentiate(tf.constant(logits), tf.constant(y))
        return value.numpy(), gradient.numpy()

    return step


def in_jax(rounding: str) -> Step:
    """JAX: value_and_grad, compiled by jit."""
    differentiate = jax.jit(jax.value_and_grad(LOSSES[rounding]))

    def step(logits: Array, y: Array) -> tuple[Array, Array]:
        value, gradient = differentiate(jax.numpy.asarray(logits), jax.numpy.asarray(y))
        return np.asarray(value), np.asarray(gradient)

    return step


FRAMEWORKS = {"NumPy": in_numpy, "PyTorch": in_torch, "TensorFlow": in_tensorflow, "JAX": in_jax}


# ------------------------------------------------------------------------------------------------------ the training

EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 50, np.float32(0.3)


@dataclass(frozen=True)
class Digits:
    """1,797 images of handwritten digits, 8 by 8 pixels, and a 1 for the bias; the last 297 are kept for the test."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


def digits() -> Digits:
    """The data in an order that mixes the writers, and that no version of NumPy's random numbers changes."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    order = np.arange(len(x)) * 1000 % len(x)
    x = np.hstack([x[order] / 16, np.ones((len(x), 1))]).astype(np.float32)
    return Digits(x[:1500], y[order[:1500]], x[1500:], y[order[1500:]])


def product(a: Array, b: Array) -> Array:
    """The matrix product, with an order: from the first term to the last, in float64, rounded to float32 at the end.

    A linear algebra library chooses an order by machine, shape and number of threads. With this one the bits are the same everywhere.
    """
    terms = a[:, :, None].astype(np.float64) * b
    return np.add.accumulate(terms, axis=1)[:, -1].astype(np.float32)


@dataclass(frozen=True)
class Result:
    """The loss of every step, and the weights after the last."""

    losses: Array
    weights: Array

    def row(self, data: Digits) -> str:
        """Both in short: numbers to read, and hashes of all the bits."""
        accuracy = np.mean(np.argmax(product(data.x_test, self.weights), axis=1) == data.y_test)
        return f"{self.losses[-1]:>13.9f}{accuracy:>11.4f}   {digest(self.losses)}   {digest(self.weights)}"


def digest(x: Array) -> str:
    """The first 16 of a SHA-256's 64 digits, of float32 numbers in their order."""
    return hashlib.sha256(x.astype("<f4").tobytes()).hexdigest()[:16]


def train(step: Step, data: Digits) -> Result:
    """Gradient descent from zero."""
    weights, losses = np.zeros((data.x.shape[1], 10), np.float32), []
    for _ in range(EPOCHS):
        for start in range(0, len(data.x), BATCH_SIZE):
            x, y = data.x[start : start + BATCH_SIZE], data.y[start : start + BATCH_SIZE]
            loss, gradient = step(product(x, weights), y)
            weights = weights - LEARNING_RATE * product(x.T, gradient)
            losses.append(loss)
    return Result(np.array(losses), weights)


# --------------------------------------------------------------------------------------------------- the comparison


def compare(rounding: str, data: Digits) -> bool:
    """Train in every framework, print what came out, and tell whether all bits are the same."""
    results = {name: train(framework(rounding), data) for name, framework in FRAMEWORKS.items()}
    first, *others = results.values()
    # Compared as bytes: to a comparison of numbers 0 and -0 are the same.
    steps = first.losses.view(np.uint32)
    same_steps = np.all([steps == other.losses.view(np.uint32) for other in others], axis=0)
    same = bool(same_steps.all()) and all(
        first.weights.tobytes() == other.weights.tobytes() for other in others
    )

    print(f'rounding="{rounding}"\n')
    print(f"{'':<10}{'last loss':>13}{'accuracy':>11}   {'SHA-256, losses':<16}   SHA-256, weights")
    for name, result in results.items():
        print(f"{name:<10}{result.row(data)}")
    print(
        f"\nlosses with the same bits in all: {np.count_nonzero(same_steps)} of {len(same_steps)} steps"
    )
    print("the weights are the same\n" if same else "the weights differ\n")
    return same


def main() -> None:
    """Train with both roundings; exit with an error if exact mode did not give the same bits."""
    torch.set_num_threads(
        1
    )  # there is little to share out, and waiting for a second thread takes longer
    data = digits()
    print("Softmax regression on handwritten digits, cross-entropy from logits\n")
    same = compare("exact", data)
    compare("native", data)
    if not same:
        sys.exit("Exact mode gave different bits.")


if __name__ == "__main__":
    main()
