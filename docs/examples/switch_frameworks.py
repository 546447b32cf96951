"""Train the same model in five frameworks with the same loss code.

The script trains two models, a softmax regression on images of digits and a linear regression on
medical data, in NumPy, PyTorch, TensorFlow, Keras and JAX. The data, their order, the initial
weights and the learning rate are the same. Each framework takes a step in its own way, with the
same loss. So the five loss curves agree to the last digits of float32, and the script fails if they
do not.

    pip install 'unifiedloss[all]' scikit-learn
    python switch_frameworks.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import unifiedloss as ul

try:
    import jax
    import keras
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


# --------------------------------------------------------------------------------------- the losses
# These two functions are the whole loss code. The type of the tensors selects the framework.


def digits_loss(logits: Any, labels: Any) -> Any:
    """The mean cross-entropy, in nats."""
    return ul.cross_entropy_loss(logits, labels, from_logits=True)


def diabetes_loss(predictions: Any, targets: Any) -> Any:
    """The mean squared error."""
    return ul.mean_squared_error(predictions, targets)


# The same losses as objects: for Keras, which compiles a loss into the model, and for NumPy, which
# does not differentiate.
DIGITS_LOSS = ul.CrossEntropyLoss(from_logits=True)
DIABETES_LOSS = ul.MeanSquaredError()


# ----------------------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Problem:
    """Data, initial weights, a loss and the settings of the training, for every framework."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    loss: Callable[[Any, Any], Any]
    loss_object: Any
    learning_rate: float
    batch_size: int
    epochs: int

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The training data in batches of equal size, in the same order for every framework."""
        starts = range(0, len(self.x), self.batch_size)
        return [(self.x[i : i + self.batch_size], self.y[i : i + self.batch_size]) for i in starts]


def digits() -> Problem:
    """1,797 images of handwritten digits, 8 by 8 pixels; the last 297 are for the test."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    weight = np.random.default_rng(1).normal(0, 0.01, (64, 10)).astype(np.float32)
    return Problem(
        x=x[:1500],
        y=y[:1500],
        x_test=x[1500:],
        y_test=y[1500:],
        weight=weight,
        bias=np.zeros(10, np.float32),
        loss=digits_loss,
        loss_object=DIGITS_LOSS,
        learning_rate=0.3,
        batch_size=50,
        epochs=10,
    )


def diabetes() -> Problem:
    """Ten measurements of 442 patients and the progression of their disease, all standardized.

    The last 142 are for the test.
    """
    x, y = sklearn.datasets.load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = (x[order] / x.std(axis=0)).astype(np.float32)
    # One column, like the predictions, because shapes are strict: (300, 1) against (300,) is an
    # error that names both.
    y = ((y[order] - y.mean()) / y.std()).astype(np.float32)[:, None]
    weight = np.random.default_rng(1).normal(0, 0.01, (10, 1)).astype(np.float32)
    return Problem(
        x=x[:300],
        y=y[:300],
        x_test=x[300:],
        y_test=y[300:],
        weight=weight,
        bias=np.zeros(1, np.float32),
        loss=diabetes_loss,
        loss_object=DIABETES_LOSS,
        learning_rate=0.2,
        batch_size=300,
        epochs=30,
    )


# ------------------------------------------------------------------------------------- the training
# Each function trains a linear model. It returns the mean loss of each epoch and the predictions
# for the test data.

Result = tuple[list[float], Any]


def train_numpy(problem: Problem) -> Result:
    """NumPy: the loss object computes the gradient, and the chain rule is written out."""
    weight, bias, curve = problem.weight.copy(), problem.bias.copy(), []
    for _ in range(problem.epochs):
        losses = []
        for x, y in problem.batches():
            predictions = x @ weight + bias
            loss, gradient = problem.loss_object.value_and_grad(predictions, y)
            weight -= problem.learning_rate * (x.T @ gradient)
            bias -= problem.learning_rate * gradient.sum(axis=0)
            losses.append(float(loss))
        curve.append(float(np.mean(losses)))
    return curve, problem.x_test @ weight + bias


def train_torch(problem: Problem) -> Result:
    """PyTorch: autograd and an optimizer."""
    model = torch.nn.Linear(*problem.weight.shape)
    model.load_state_dict(
        {"weight": torch.tensor(problem.weight.T), "bias": torch.tensor(problem.bias)}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=problem.learning_rate)
    curve = []
    for _ in range(problem.epochs):
        losses = []
        for x, y in problem.batches():
            optimizer.zero_grad()
            loss = problem.loss(model(torch.tensor(x)), torch.tensor(y))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curve.append(float(np.mean(losses)))
    with torch.no_grad():
        return curve, model(torch.tensor(problem.x_test))


def train_tensorflow(problem: Problem) -> Result:
    """TensorFlow: a gradient tape in a tf.function."""
    weight, bias, curve = tf.Variable(problem.weight), tf.Variable(problem.bias), []

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = problem.loss(x @ weight + bias, y)
        weight_gradient, bias_gradient = tape.gradient(loss, (weight, bias))
        weight.assign_sub(problem.learning_rate * weight_gradient)
        bias.assign_sub(problem.learning_rate * bias_gradient)
        return loss

    for _ in range(problem.epochs):
        losses = [float(step(tf.constant(x), tf.constant(y))) for x, y in problem.batches()]
        curve.append(float(np.mean(losses)))
    return curve, problem.x_test @ weight + bias


def train_keras(problem: Problem) -> Result:
    """Keras, on its configured backend: compile and fit."""
    features, outputs = problem.weight.shape
    model = keras.Sequential([keras.Input((features,)), keras.layers.Dense(outputs)])
    model.set_weights([problem.weight, problem.bias])
    optimizer = keras.optimizers.SGD(problem.learning_rate)
    model.compile(optimizer, loss=problem.loss_object.to("keras"))
    sizes = {"batch_size": problem.batch_size, "epochs": problem.epochs}
    history = model.fit(problem.x, problem.y, **sizes, shuffle=False, verbose=0)
    return history.history["loss"], keras.ops.stop_gradient(model(problem.x_test))


def train_jax(problem: Problem) -> Result:
    """JAX: a pure function, its gradient, and both compiled."""
    parameters, curve = {"weight": problem.weight, "bias": problem.bias}, []

    def predict(parameters: Any, x: Any) -> Any:
        return x @ parameters["weight"] + parameters["bias"]

    def objective(parameters: Any, x: Any, y: Any) -> Any:
        return problem.loss(predict(parameters, x), y)

    @jax.jit
    def step(parameters: Any, x: Any, y: Any) -> Any:
        loss, gradient = jax.value_and_grad(objective)(parameters, x, y)
        return loss, jax.tree.map(lambda p, g: p - problem.learning_rate * g, parameters, gradient)

    for _ in range(problem.epochs):
        losses = []
        for x, y in problem.batches():
            loss, parameters = step(parameters, x, y)
            losses.append(float(loss))
        curve.append(float(np.mean(losses)))
    return curve, predict(parameters, jax.numpy.asarray(problem.x_test))


FRAMEWORKS = {
    "NumPy": train_numpy,
    "PyTorch": train_torch,
    "TensorFlow": train_tensorflow,
    "Keras": train_keras,
    "JAX": train_jax,
}


# ----------------------------------------------------------------------------------- the comparison


def digits_quality(logits: Any, labels: np.ndarray) -> dict[str, float]:
    """The loss and the accuracy on test data, for tensors of any framework.

    This loss takes probabilities, and gives the same number as from logits up to a gap of 87
    between two logits. At 88 the smaller probability is 0 in float32, and the loss is infinite; the
    loss from logits is 88. So train on logits.
    """
    probabilities = ul.softmax(logits)
    loss = ul.cross_entropy_loss(probabilities, labels)
    accuracy = np.mean(np.argmax(np.asarray(logits), axis=1) == labels)
    return {"test loss": float(loss), "accuracy": float(accuracy)}


def diabetes_quality(predictions: Any, targets: np.ndarray) -> dict[str, float]:
    """For the regression: the loss, and the share of the variance that the model explains."""
    loss = ul.mean_squared_error(predictions, targets)
    return {"test loss": float(loss), "R squared": 1 - float(loss) / float(np.var(targets))}


def compare(
    title: str, problem: Problem, quality: Callable[[Any, np.ndarray], dict[str, float]]
) -> bool:
    """Train in every framework, print the curves side by side, and return whether they agree."""
    results = {name: train(problem) for name, train in FRAMEWORKS.items()}
    curves = np.array([curve for curve, _ in results.values()])
    steps = problem.epochs * len(problem.batches())

    # By how much may the curves differ? Each step rounds a little differently in each framework.
    # Both losses are convex and the learning rates are below 2 / (the largest curvature), so a
    # gradient step never moves two models apart. The differences of the steps therefore add up and
    # are not amplified: after n steps the losses differ by at most n roundings, each 2^-23 of the
    # largest loss.
    bound = steps * 2.0**-23 * float(curves.max())
    difference = float((curves.max(axis=0) - curves.min(axis=0)).max())

    print(f"{title}, {steps} steps\n")
    print(f"{'epoch':>9}" + "".join(f"{name:>13}" for name in results))
    for epoch in range(0, problem.epochs, problem.epochs // 10):
        print(f"{epoch + 1:>9}" + "".join(f"{loss:>13.8f}" for loss in curves[:, epoch]))
    qualities = [quality(predictions, problem.y_test) for _, predictions in results.values()]
    for row in qualities[0]:
        print(f"{row:>9}" + "".join(f"{values[row]:>13.8f}" for values in qualities))
    agree = difference <= bound  # also False for NaN
    print(
        f"\nlargest difference between two curves: {difference:.1e}, rounding explains {bound:.1e}"
    )
    print("the curves agree\n" if agree else "THE CURVES DISAGREE\n")
    return agree


def main() -> None:
    """Compare both models; fail if the curves of one disagree."""
    # By default accelerators multiply float32 with 10 bits of it. The losses do not use such
    # products, but the models do.
    tf.config.experimental.enable_tensor_float_32_execution(enabled=False)
    jax.config.update("jax_default_matmul_precision", "highest")
    # A batch of 50 images is small: a second thread would cost more than it gives.
    torch.set_num_threads(1)

    agreements = [
        compare(
            "Softmax regression on handwritten digits, cross-entropy from logits",
            digits(),
            digits_quality,
        ),
        compare(
            "Linear regression on diabetes data, mean squared error", diabetes(), diabetes_quality
        ),
    ]
    if not all(agreements):
        sys.exit("The same loss gave different curves.")
    print("Passed: one loss, five frameworks, the same curves.")


if __name__ == "__main__":
    main()
