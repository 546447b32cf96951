"""Train one model in four frameworks with the same bits: every loss, gradient and weight.

The script trains a softmax regression on images of digits in NumPy, PyTorch, TensorFlow and JAX.
Each framework computes the loss and its gradient with its own tensors and its own differentiation.
One NumPy function computes the two matrix products of the model for all four, because each
framework adds up products in its own order. With rounding="exact" nothing else can differ, and the
script fails if one bit does. For contrast it repeats the training with rounding="native".

Then it cuts one batch into seven pieces. The totals of the pieces add up to those of the batch, and
their gradients to the logits, one after another, are the gradient of the batch, bit by bit.

    pip install 'unifiedloss[all]' scikit-learn
    python same_bits.py
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
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
        f"This example needs {missing}, which is not installed; "
        f"install it with: pip install {wanted}"
    )


# ----------------------------------------------------------------------------------------- the loss
# One line, for the logits of any framework.


def exact_loss(logits: Any, y: Any) -> Any:
    """The mean over the batch, correctly rounded."""
    loss = ul.cross_entropy_loss(logits, y, from_logits=True, rounding="exact")
    return loss  # noqa: RET504 - the line of a training step


def native_loss(logits: Any, y: Any) -> Any:
    """The same loss with the framework's own operations and their rounding."""
    loss = ul.cross_entropy_loss(logits, y, from_logits=True, rounding="native")
    return loss  # noqa: RET504


LOSSES = {"exact": exact_loss, "native": native_loss}


# --------------------------------------------------------------------------------- and its gradient
# Each function returns a step, which computes the loss and its gradient in one framework. NumPy
# arrays go in, and NumPy arrays come out.

Array = np.ndarray
Step = Callable[[Array, Array], tuple[Array, Array]]


def in_numpy(rounding: str) -> Step:
    """NumPy does not differentiate, so the loss object computes the gradient."""
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


# ------------------------------------------------------------------------------------- the training

EPOCHS, BATCH_SIZE, LEARNING_RATE = 10, 50, np.float32(0.3)


@dataclass(frozen=True)
class Digits:
    """1,797 images of handwritten digits, 8 by 8 pixels, with a 1 for the bias.

    The last 297 are for the test.
    """

    x: Array
    y: Array
    x_test: Array
    y_test: Array


def digits() -> Digits:
    """The data, shuffled so that the writers mix, in an order that no version of NumPy changes."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    order = np.arange(len(x)) * 1000 % len(x)
    x = np.hstack([x[order] / 16, np.ones((len(x), 1))]).astype(np.float32)
    return Digits(x[:1500], y[order[:1500]], x[1500:], y[order[1500:]])


def product(a: Array, b: Array) -> Array:
    """The matrix product, added in order, in float64, and rounded to float32 at the end.

    A linear algebra library chooses an order by machine, shape and number of threads. This product
    has the same bits everywhere.
    """
    terms = a[:, :, None].astype(np.float64) * b
    return np.add.accumulate(terms, axis=1)[:, -1].astype(np.float32)


@dataclass(frozen=True)
class Result:
    """The loss of every step, and the weights after the last."""

    losses: Array
    weights: Array

    def row(self, data: Digits) -> str:
        """One line of the table: the last loss, the accuracy, and hashes of all bits."""
        accuracy = np.mean(np.argmax(product(data.x_test, self.weights), axis=1) == data.y_test)
        hashes = f"{digest(self.losses)}   {digest(self.weights)}"
        return f"{self.losses[-1]:>13.9f}{accuracy:>11.4f}   {hashes}"


def digest(x: Array) -> str:
    """The first 16 of the 64 digits of the SHA-256 of float32 numbers."""
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


# ----------------------------------------------------------------------------------- the comparison


def compare(rounding: str, data: Digits) -> bool:
    """Train in every framework, print the results, and return whether all bits are the same."""
    results = {name: train(framework(rounding), data) for name, framework in FRAMEWORKS.items()}
    first, *others = results.values()
    # Compare bytes, because 0 == -0.
    steps = first.losses.view(np.uint32)
    same_steps = np.all([steps == other.losses.view(np.uint32) for other in others], axis=0)
    same = bool(same_steps.all()) and all(
        first.weights.tobytes() == other.weights.tobytes() for other in others
    )

    print(f'rounding="{rounding}"\n')
    print(f"{'':<10}{'last loss':>13}{'accuracy':>11}   {'SHA-256, losses':<16}   SHA-256, weights")
    for name, result in results.items():
        print(f"{name:<10}{result.row(data)}")
    count = np.count_nonzero(same_steps)
    print(f"\nlosses with the same bits in all: {count} of {len(same_steps)} steps")
    print("the weights are the same\n" if same else "the weights differ\n")
    return same


# ---------------------------------------------------------------------------------------- in pieces

TENSORS: dict[str, Callable[[Array], Any]] = {
    "NumPy": np.asarray,
    "PyTorch": torch.tensor,
    "TensorFlow": tf.constant,
    "JAX": jax.numpy.asarray,
}
CUTS = (0, 1, 40, 41, 200, 200, 347, 350)  # seven pieces of the batch, one of them empty


def compare_pieces(data: Digits, cuts: tuple[int, ...] = CUTS) -> bool:
    """Compute one batch at once and in pieces, and return whether all bits are the same."""
    spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
    x, y = data.x[: cuts[-1]], data.y[: cuts[-1]]
    weights = (np.arange(x.shape[1] * 10).reshape(-1, 10) % 7 - 3).astype(np.float32) / 4
    logits = product(x, weights)  # made once: a matrix product may depend on the batch
    pieces = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    print(f"{'':<18}{'loss':>13}   {'SHA-256, totals':<16}   SHA-256, gradient")
    rows = {}
    for name, tensor in TENSORS.items():
        for cut in ([slice(None)], pieces):
            parts = [(tensor(logits[part]), tensor(y[part])) for part in cut]
            totals = add([spec.totals(z, labels) for z, labels in parts])
            divisor = add([spec.divisor_of(labels) for _, labels in parts])
            slopes = [spec.value_and_grad(z, labels, divisor=divisor)[1] for z, labels in parts]
            # Adding leaves carries in the vectors, so compare what stands for the same number.
            held = np.asarray(totals).astype(object)[:9] @ [2 ** (32 * i) for i in range(9)]
            gradient = np.concatenate([np.asarray(slope) for slope in slopes])
            sums = hashlib.sha256(str(held).encode()).hexdigest()[:16]
            row = f"{float(spec.result(totals)):>13.9f}   {sums}   {digest(gradient)}"
            label = f"{name}, {len(cut)}"
            print(f"{label:<18}{row}")
            rows[label] = row
    same = len(set(rows.values())) == 1
    print("\none batch and seven pieces have the same bits\n" if same else "\nthe bits differ\n")
    return same


def add(vectors: list[Any]) -> Any:
    """The sum, without a Python number at the start, for which JAX would narrow 64-bit integers."""
    return functools.reduce(operator.add, vectors)


def main() -> None:
    """Train with both roundings; fail if exact mode does not give the same bits."""
    torch.set_num_threads(1)  # the batches are small: a second thread would cost more than it gives
    data = digits()
    print("Softmax regression on handwritten digits, cross-entropy from logits\n")
    same = compare("exact", data)
    native = compare("native", data)
    print("One batch of 350 images at once, and in seven pieces\n")
    same = compare_pieces(data) and same
    if not same:
        sys.exit("Exact mode gave different bits.")
    others = "are too" if native else "differ, as expected"
    print(f"Passed: the exact weights are the same bits; the native weights {others}.")


if __name__ == "__main__":
    main()
