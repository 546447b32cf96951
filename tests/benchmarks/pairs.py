"""The pairs to measure: our call, and the best public call of a framework for the same number.

Each ``..._pairs`` function yields the pairs of one framework for one case. The two calls of a pair
share only their tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import unifiedloss as ul

Call = Callable[[], Any]

SPECS: dict[str, Any] = {
    "cross_entropy": ul.CrossEntropyLoss(from_logits=True),
    "binary_cross_entropy": ul.BinaryCrossEntropyLoss(from_logits=True),
    "mean_squared_error": ul.MeanSquaredError(),
    "huber": ul.HuberLoss(),
}
"""The losses with default fields, because each framework has one call for these."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cross_entropy": partial(ul.cross_entropy_loss, from_logits=True),
    "binary_cross_entropy": partial(ul.binary_cross_entropy_loss, from_logits=True),
    "mean_squared_error": ul.mean_squared_error,
}
"""The same losses as functions, which look up their spec at each call."""

TITLES = {
    "cross_entropy": "cross-entropy",
    "binary_cross_entropy": "binary cross-entropy",
    "mean_squared_error": "squared error",
    "huber": "Huber loss",
}

SMALL = (32, 10)
LARGE = (4096, 1000)
WIDE = (512, 32000)

FORWARD = "forward"
BOTH = "with gradient"

UPSTREAM = "upstream 0.3"
UNREDUCED = "none"
CLASS_WEIGHTS = "class weights"
IGNORED = "ignored labels"
CONFIDENT = "deviation 30"
TWO_THREADS = "two threads"

_SHARE_IGNORED = 0.1


@dataclass(frozen=True)
class Case:
    """A loss, the shape of its predictions, its rounding, and what is unlike the plain call.

    Attributes:
        loss: the name of the loss.
        shape: the shape of the predictions.
        rounding: "native" or "exact".
        variant: one of the names above, such as `UPSTREAM`; "" for the plain call.
    """

    loss: str
    shape: tuple[int, int]
    rounding: str = "native"
    variant: str = ""

    @property
    def name(self) -> str:
        """The name of the loss in the results."""
        rounding = "" if self.rounding == "native" else self.rounding
        return ", ".join(filter(None, (TITLES[self.loss], rounding, self.variant)))

    @property
    def spec(self) -> Any:
        """The spec."""
        changes: dict[str, Any] = {"rounding": self.rounding}
        if self.variant == UNREDUCED:
            changes["reduction"] = "none"
        elif self.variant == CLASS_WEIGHTS:
            changes |= {"class_weights": self.class_weights(), "divisor": "label_weights"}
        elif self.variant == IGNORED:
            changes["ignore_index"] = -100
        return SPECS[self.loss].replace(**changes)

    @property
    def threads(self) -> int:
        """The number of threads on which both calls run."""
        return 2 if self.variant == TWO_THREADS else 1

    def upstream(self) -> float | np.ndarray | None:
        """The upstream gradient; None for 1."""
        if self.variant == UPSTREAM:
            return 0.3
        if self.variant == UNREDUCED:
            random = np.random.default_rng(2)
            return random.uniform(0.5, 1.5, self.shape[0]).astype(np.float32)
        return None

    def class_weights(self) -> tuple[float, ...]:
        """Weights for `CLASS_WEIGHTS` that float32 holds."""
        random = np.random.default_rng(1)
        weights = random.uniform(0.5, 1.5, self.shape[1]).astype(np.float32)
        return tuple(weights.tolist())

    def data(self, deviation: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and targets, the same at every call: float32, or class indices.

        Args:
            deviation: the standard deviation of the predictions. Default: 30 for `CONFIDENT`, or 2.
        """
        random = np.random.default_rng(0)
        if deviation is None:
            deviation = 30 if self.variant == CONFIDENT else 2
        predictions = random.normal(0, deviation, self.shape).astype(np.float32)
        if self.loss == "cross_entropy":
            labels = random.integers(0, self.shape[1], self.shape[0])
            if self.variant == IGNORED:
                labels[random.random(len(labels)) < _SHARE_IGNORED] = -100
            return predictions, labels
        if self.loss == "binary_cross_entropy":
            return predictions, random.integers(0, 2, self.shape).astype(np.float32)
        return predictions, random.normal(0, 2, self.shape).astype(np.float32)


_PLAIN = [
    Case(loss, shape, rounding)
    for rounding in ("native", "exact")
    for loss, shapes in {
        "cross_entropy": (SMALL, LARGE, WIDE),
        "binary_cross_entropy": (SMALL, LARGE),
        "mean_squared_error": (SMALL, LARGE),
    }.items()
    for shape in shapes
]
_EXACT = [
    *(Case("huber", shape, "exact") for shape in (SMALL, LARGE)),
    *(Case("cross_entropy", shape, "exact") for shape in ((4096, 10), (1024, 64))),
    *(
        Case("cross_entropy", shape, "exact", variant)
        for variant, shapes in {
            UPSTREAM: (LARGE, WIDE),
            UNREDUCED: (LARGE, WIDE),
            CLASS_WEIGHTS: (LARGE,),
            IGNORED: (LARGE,),
            CONFIDENT: (LARGE,),
            TWO_THREADS: (LARGE, WIDE),
        }.items()
        for shape in shapes
    ),
]
"""Cases of exact mode alone, in PyTorch."""

CASES = [*_PLAIN, *_EXACT]


def cases_of(framework: str, threads: int = 1) -> list[Case]:
    """The cases that are measured in a framework, with a number of threads."""
    cases = CASES if framework == "torch" else _PLAIN
    if framework == "keras":  # it computes exact mode by the adapter of its backend
        cases = [case for case in cases if case.rounding == "native"]
    return [case for case in cases if case.threads == threads]


@dataclass(frozen=True)
class Pair:
    """Two calls that compute the same number.

    Attributes:
        case: the case that they compute.
        work: `FORWARD`, or `BOTH` for the loss and its gradient.
        mode: how the framework runs them.
        against: the name of the native call in the tables.
        ours: our call.
        native: the framework's call.
    """

    case: Case
    work: str
    mode: str
    against: str
    ours: Call
    native: Call


# -------------------------------------------------------------------------------------------- NumPy


def numpy_pairs(case: Case) -> Iterator[Pair]:
    """NumPy has no losses, so compare with scipy, scikit-learn, a formula, and PyTorch.

    All of them run on one thread.
    """
    import torch

    predictions, targets = case.data()
    spec = case.spec
    if case.rounding == "native":
        for against, ours, native in _numpy_forward(case.loss, predictions, targets):
            call = ours or partial(spec, predictions, targets)
            yield Pair(case, FORWARD, "eager", against, call, native)
    x, y = torch.from_numpy(predictions), torch.from_numpy(targets)
    loss = _torch_loss(case)
    yield Pair(
        case, FORWARD, "eager", "torch", partial(spec, predictions, targets), lambda: loss(x, y)
    )
    leaf = x.clone().requires_grad_()
    yield Pair(
        *(case, BOTH, "eager", "torch"),
        lambda: spec.value_and_grad(predictions, targets),
        lambda: torch.autograd.grad(loss(leaf, y), leaf),
    )


def _numpy_forward(
    loss: str, predictions: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[str, Call | None, Call]]:
    """The native forward calls, each with its name and our call if that is not the spec's.

    The cross-entropy of scikit-learn takes probabilities, so our call beside it does too.
    """
    import scipy.special
    import sklearn.metrics

    if loss == "cross_entropy":
        rows, classes = np.arange(len(predictions)), np.arange(predictions.shape[1])
        yield (
            "scipy",
            None,
            lambda: -np.mean(scipy.special.log_softmax(predictions, axis=1)[rows, targets]),
        )
        probabilities = scipy.special.softmax(predictions, axis=1)
        yield (
            "scikit-learn",
            lambda: ul.cross_entropy_loss(probabilities, targets),
            lambda: sklearn.metrics.log_loss(targets, probabilities, labels=classes),
        )
    elif loss == "binary_cross_entropy":
        yield "formula", None, lambda: np.mean(np.logaddexp(0, predictions) - predictions * targets)
    else:
        yield "formula", None, lambda: np.mean(np.square(predictions - targets))
        yield "scikit-learn", None, lambda: sklearn.metrics.mean_squared_error(targets, predictions)


# ------------------------------------------------------------------------------------------ PyTorch


def _torch_loss(case: Case) -> Callable[..., Any]:
    import torch
    import torch.nn.functional as F

    options: dict[str, Any] = {}
    if case.variant == UNREDUCED:
        options["reduction"] = "none"
    elif case.variant == CLASS_WEIGHTS:
        options["weight"] = torch.tensor(case.class_weights())
    loss = {
        "cross_entropy": F.cross_entropy,  # ignores the label -100 by default
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "mean_squared_error": F.mse_loss,
        "huber": F.huber_loss,
    }[case.loss]
    return partial(loss, **options) if options else loss


def torch_pairs(case: Case) -> Iterator[Pair]:
    """PyTorch: torch.nn.functional, eager, and compiled for exact mode."""
    import torch

    x, y = map(torch.from_numpy, case.data())
    spec = case.spec
    if case.variant == CONFIDENT:
        yield from _confident_pairs(case, x, y)
        return
    both = {"eager": (spec, _torch_loss(case))}
    if case.rounding == "exact" and case.shape in (SMALL, LARGE) and not case.variant:
        # Each side gets a function of its own, because dynamo keeps its programs by function.
        loss = both["eager"][1]
        both["compiled"] = (
            torch.compile(lambda x, y: spec(x, y)),  # noqa: PLW0108
            torch.compile(lambda x, y: loss(x, y)),  # noqa: PLW0108
        )
    upstream = case.upstream()
    vector = None if upstream is None else torch.as_tensor(upstream)
    for mode, calls in both.items():
        if case.variant != UPSTREAM:  # an upstream gradient changes nothing forward
            ours, native = (partial(f, x, y) for f in calls)
            yield Pair(case, FORWARD, mode, "torch.nn.functional", ours, native)
        ours, native = (partial(_torch_both, f, x.clone(), y, vector) for f in calls)
        yield Pair(case, BOTH, mode, "torch.nn.functional", ours, native)
    # The look-up of the spec costs the same in every framework, so measure it in this one only.
    if case.shape == SMALL and case.rounding == "native":
        function = FUNCTIONS[case.loss]
        native = partial(_torch_loss(case), x, y)
        named = "torch.nn.functional"
        yield Pair(case, FORWARD, "as a function", named, partial(function, x, y), native)


def _torch_both(f: Callable[..., Any], x: Any, y: Any, upstream: Any) -> Any:
    import torch

    leaf = x.requires_grad_()
    return torch.autograd.grad(f(leaf, y), leaf, upstream)


def _confident_pairs(case: Case, x: Any, y: Any) -> Iterator[Pair]:
    """Confident rows beside the same call on ordinary ones."""
    import torch

    spec = case.spec
    ordinary = torch.from_numpy(case.data(4)[0])
    for work, f in ((FORWARD, spec), (BOTH, lambda x, y: _torch_both(spec, x, y, None))):
        pair = (partial(f, each.clone(), y) for each in (x, ordinary))
        yield Pair(case, work, "eager", "deviation 4", *pair)


# --------------------------------------------------------------------------------------- TensorFlow


def _tensorflow_loss(loss: str) -> Callable[..., Any]:
    import tensorflow as tf

    return {
        "cross_entropy": lambda x, y: tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(y, x)
        ),
        "binary_cross_entropy": lambda x, y: tf.reduce_mean(
            tf.nn.sigmoid_cross_entropy_with_logits(y, x)
        ),
        "mean_squared_error": lambda x, y: tf.reduce_mean(tf.math.squared_difference(x, y)),
    }[loss]


def _taped(loss: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    def value_and_grad(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(x, y)
        return value, tape.gradient(value, x)

    return value_and_grad


def tensorflow_pairs(case: Case) -> Iterator[Pair]:
    """TensorFlow: tf.nn and a mean, eager, in tf.function and compiled by XLA."""
    import tensorflow as tf

    x, y = map(tf.constant, case.data())
    spec = case.spec
    # Wrap the spec in a function of x and y, as a training step does. The spec has optional
    # arguments, and tf.function would take 0.1 ms to bind them, which is no cost of the loss.
    both = (lambda x, y: spec(x, y), _tensorflow_loss(case.loss))  # noqa: PLW0108
    modes = {
        "eager": lambda function: function,
        "function": tf.function,
        "XLA": partial(tf.function, jit_compile=True),
    }
    for mode, compiled in modes.items():
        for work in (FORWARD, BOTH):
            ours, native = (compiled(f if work == FORWARD else _taped(f)) for f in both)
            yield Pair(case, work, mode, "tf.nn", partial(ours, x, y), partial(native, x, y))


# ---------------------------------------------------------------------------------------------- JAX


def _jax_loss(loss: str) -> Callable[..., Any]:
    import jax.numpy as jnp
    import optax

    return {
        "cross_entropy": lambda x, y: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(x, y)
        ),
        "binary_cross_entropy": lambda x, y: jnp.mean(optax.sigmoid_binary_cross_entropy(x, y)),
        "mean_squared_error": lambda x, y: jnp.mean(optax.squared_error(x, y)),
    }[loss]


def jax_pairs(case: Case) -> Iterator[Pair]:
    """JAX: optax and a mean, compiled, beside our call in jit and our eager call.

    The eager call also checks the labels.
    """
    import jax

    predictions, targets = case.data()
    x, y = jax.numpy.asarray(predictions), jax.numpy.asarray(targets)
    spec, loss = case.spec, _jax_loss(case.loss)
    wait = jax.block_until_ready
    value, ours = jax.jit(loss), jax.jit(spec.to("jax"))
    yield Pair(case, FORWARD, "jit", "optax", lambda: wait(ours(x, y)), lambda: wait(value(x, y)))
    # Exact mode compiles a program for large eager calls after some of them.
    many = 20 if case.rounding == "exact" else 0
    for function in (spec, spec.value_and_grad) * many:
        wait(function(x, y))
    yield Pair(
        case, FORWARD, "eager", "optax in jit", lambda: wait(spec(x, y)), lambda: wait(value(x, y))
    )
    step, our_step = jax.jit(jax.value_and_grad(loss)), jax.jit(jax.value_and_grad(spec))
    yield Pair(case, BOTH, "jit", "optax", lambda: wait(our_step(x, y)), lambda: wait(step(x, y)))
    yield Pair(
        *(case, BOTH, "eager", "optax in jit"),
        lambda: wait(spec.value_and_grad(x, y)),
        lambda: wait(step(x, y)),
    )


# -------------------------------------------------------------------------------------------- Keras


def keras_pairs(case: Case) -> Iterator[Pair]:
    """Keras, on its configured backend: keras.losses, eager and compiled as in ``fit``."""
    import keras

    native = {
        "cross_entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "binary_cross_entropy": keras.losses.BinaryCrossentropy(from_logits=True),
        "mean_squared_error": keras.losses.MeanSquaredError(),
    }[case.loss]
    # Keras' order is (y_true, y_pred). Swap it for both, so that the same code differentiates them.
    both = [lambda x, y, f=f: f(y, x) for f in (case.spec.to("keras"), native)]
    x, y = map(keras.ops.convert_to_tensor, case.data())
    for mode, work, run in _keras_modes():
        ours, theirs = (run(f) for f in both)
        yield Pair(case, work, mode, "keras.losses", partial(ours, x, y), partial(theirs, x, y))


def _keras_modes() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """The modes of Keras' backend: mode, work, and a wrapper that makes the loss callable."""
    import keras

    backend = keras.config.backend()
    if backend == "numpy":
        yield "eager", FORWARD, lambda f: f
    elif backend == "torch":
        import torch

        def differentiated(f: Callable[..., Any]) -> Callable[..., Any]:
            def both(x: Any, y: Any) -> Any:
                leaf = x.detach().requires_grad_()
                return torch.autograd.grad(f(leaf, y), leaf)

            return both

        yield "eager", FORWARD, lambda f: f
        yield "eager", BOTH, differentiated
    elif backend == "tensorflow":
        import tensorflow as tf

        yield "eager", FORWARD, lambda f: f
        yield "eager", BOTH, _taped
        yield "function", FORWARD, tf.function
        yield "function", BOTH, lambda f: tf.function(_taped(f))
    else:
        import jax

        def waited(f: Callable[..., Any]) -> Callable[..., Any]:
            return lambda x, y: jax.block_until_ready(f(x, y))

        yield "eager", FORWARD, waited
        yield "jit", FORWARD, lambda f: waited(jax.jit(f))
        yield "jit", BOTH, lambda f: waited(jax.jit(jax.value_and_grad(f)))


FRAMEWORKS: dict[str, Callable[[Case], Iterator[Pair]]] = {
    "numpy": numpy_pairs,
    "torch": torch_pairs,
    "tensorflow": tensorflow_pairs,
    "jax": jax_pairs,
    "keras": keras_pairs,
}
