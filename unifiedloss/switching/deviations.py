"""The rules of other libraries' losses that no spec can say: what each does, what a spec does instead, and what shows it.

Some are a matter of arguments, and the losses that have these are not imported: `of_arguments`. The others are a matter of the tensors of
one call; losses are imported all the same, as they differ from their specs at such tensors alone: `of_tensors`. Which losses have the
second kind is told by their names, and tests/test_switching_diff.py runs every importable loss on every input here to see that it is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unifiedloss.floats import HALF_TYPES
from unifiedloss.spec import (
    WITH_CLASSES,
    AnyLoss,
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihoodLoss,
)
from unifiedloss.switching.calls import Call
from unifiedloss.switching.inputs import Layout, weights_of
from unifiedloss.switching.phrases import Phrase, say
from unifiedloss.switching.sides import Input, Outcome, kinds_of, same

Of = Literal["value", "gradient", "digits", "sign"]

_ELEMENTS = (BinaryCrossEntropyLoss, MeanSquaredError)


@dataclass(frozen=True, eq=False)
class Deviation:
    """One rule that no spec can say.

    Attributes:
        name: what it is called in a difference.
        losses: the kinds of specs that it is about.
        spec: what a spec does, in a sentence.
        native: what the libraries do that have it, by the beginning of the names of their losses.
        inputs: what shows it, the smallest first.
        predictions: "logits" or "probabilities", where it is about such alone.
        kind: "index" or "dense", where it is about losses that take such targets.
        of: what is compared: values, values and gradients, the leading digits of values, or the sign of values.
        digits: how many digits count, as a relative difference.
        weightless: whether it is about losses with a weight of 0 among their own.
        where: whether it is about a loss, told by its spec and its call; None where it is about all.
    """

    name: str
    losses: tuple[type[Loss], ...]
    spec: str
    native: Mapping[str, str]
    inputs: Callable[[Layout], Iterator[Input]]
    predictions: Literal["logits", "probabilities"] | None = None
    kind: Literal["index", "dense"] | None = None
    of: Of = "value"
    digits: float = 1e-3
    weightless: bool = False
    where: Callable[[Any, Call], bool] | None = None

    def concerns(self, spec: AnyLoss, call: Call | None) -> bool:
        """Whether a loss takes what this rule is about."""
        if not isinstance(spec, self.losses):
            return False
        if self.where is not None and call is not None and not self.where(spec, call):
            return False
        if self.weightless and np.all(np.asarray(1.0 if weights_of(spec) is None else weights_of(spec))):
            return False
        if self.predictions is not None and getattr(spec, "from_logits", None) is not (self.predictions == "logits"):
            return False
        return self.kind is None or call is None or self.kind in kinds_of(call.name)

    def sentence(self, call: Call | None) -> str:
        """What a side does: the loss of a call, or a spec."""
        if call is not None:
            name = keyed(call)
            # A name may begin with another: the longest that fits decides, and an empty text is what a spec does.
            found = max((prefix for prefix in self.native if name.startswith(prefix)), key=len, default=None)
            if found is not None and self.native[found]:
                return self.native[found]
        return self.spec

    def has(self, call: Call) -> bool:
        """Whether the loss of a call has this rule."""
        return self.sentence(call) != self.spec

    def differ(self, a: Outcome, b: Outcome) -> bool:
        """Whether two outcomes differ in what this rule is about."""
        if self.of in ("value", "gradient"):
            return not same(a, b, gradients=self.of == "gradient")
        if a.value is None or b.value is None or a.value.size != b.value.size:
            return False
        x, y = (np.asarray(outcome.value, np.float64).ravel() for outcome in (a, b))
        if self.of == "sign":
            return bool(np.any(np.signbit(x) != np.signbit(y)))
        digits = self.digits
        if a.value.dtype == b.value.dtype != np.float64:
            digits = max(digits, 1e-6)
        return not np.allclose(x, y, rtol=digits, atol=0.0, equal_nan=True)


def keyed(call: Call) -> str:
    """The name of a call, with the framework that Keras runs on: "keras[torch].losses.MeanSquaredError"."""
    if call.library != "keras":
        return call.name
    return call.name.replace("keras", f"keras[{call.backend or 'tensorflow'}]", 1)


# ------------------------------------------------------------------------------------------------------------------ labels


def _bad_labels(layout: Layout) -> Iterator[Input]:
    for label in (-1, layout.classes, -100):
        yield layout.rows([(2.0, 1.0, 0.0)], [label])


def _integer_rows(layout: Layout) -> Iterator[Input]:
    dense = layout.rows([(2.0, 1.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield Input(dense.predictions, dense.targets.astype(np.int64))


def _floating_label(layout: Layout) -> Iterator[Input]:
    x = layout.rows([(2.0, 1.0, 0.0)], [0])
    yield Input(x.predictions, x.targets + np.float32(1.7))


def _unnormalized(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(2.0, 1.0, 0.0)], [[2.0, 0.0, 0.0]])


def _negative_row(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(2.0, 1.0, 0.0)], [[-1.0, 1.0, 1.0]])


def _out_of_range_target(layout: Layout) -> Iterator[Input]:
    yield layout.elements([0.5], [1.5])


# ------------------------------------------------------------------------------------------------------------- predictions


def _minus_infinity(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(2.0, -np.inf, 0.0)], [[1.0, 0.0, 0.0]])


def _infinite_logit(layout: Layout) -> Iterator[Input]:
    yield layout.elements([np.inf], [1.0])
    yield layout.elements([np.inf], [0.0])


def _plus_infinity(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(np.inf, 0.0, 0.0)], [1])


def _large(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(100001.0, 100000.0, 0.0)], [0])


def _confident(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(18.0, 0.0, 0.0)], [0])


def _sure(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(200.0, 0.0, 0.0)], [[1.0, 0.0, 0.0]])
    yield layout.rows([(200.0, 0.0, 0.0)], [0])


def _half(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(1.0, 6.0, -1.0)], [1], dtype="float16")


def _double(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(2.0, 1.0, 0.0)], [0], dtype="float64")


def _double_elements(layout: Layout) -> Iterator[Input]:
    yield layout.elements([0.3], [1.0], dtype="float64")


def _double_beside_weights(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(2.0, 1.0, 0.0)], [0], dtype="float64")


def _double_elements_beside_weights(layout: Layout) -> Iterator[Input]:
    shape = np.shape(layout.weights) if layout.weights is not None else layout.tail or (1,)
    yield Input(np.full(shape, 0.3), np.ones(shape))


def _half_overflow(layout: Layout) -> Iterator[Input]:
    yield layout.elements([300.0], [0.0], dtype="float16")


def _no_number(layout: Layout) -> Iterator[Input]:
    yield layout.elements([np.nan], [1.0])


def _subnormal(layout: Layout) -> Iterator[Input]:
    yield layout.elements([1e-40], [1.0])


def _beyond_one(layout: Layout) -> Iterator[Input]:
    yield layout.elements([1.5], [1.0])


def _zero_logit(layout: Layout) -> Iterator[Input]:
    yield layout.elements([0.0], [0.0])


def _at_the_bound(layout: Layout) -> Iterator[Input]:
    yield layout.elements([1e-7], [1.0])


def _behind_softmax(_: Layout) -> Iterator[Input]:
    note = "the predictions come from keras.ops.softmax([[100, 0]])"
    yield Input(
        np.array([[1.0, 0.0]], np.float32),
        np.array([1], np.int64),
        None,
        "run_behind_softmax",
        np.array([[100.0, 0.0]], np.float32),
        note,
    )


def _behind_sigmoid(_: Layout) -> Iterator[Input]:
    note = "in a tf.function the predictions come from keras.ops.sigmoid([[100]])"
    yield Input(
        np.array([[1.0]], np.float32),
        np.array([[0.0]], np.float32),
        None,
        "run_behind_sigmoid",
        np.array([[100.0]], np.float32),
        note,
    )


# --------------------------------------------------------------------------------------------------- positions and shapes


def _dropped_nan(layout: Layout) -> Iterator[Input]:
    if layout.ignored is not None:
        yield layout.rows([(2.0, 1.0, 0.0), (np.nan, np.nan, np.nan)], [0, layout.ignored])


def _weightless_class(layout: Layout) -> Iterator[Input]:
    weights = list(layout.weights)
    if any(weights):
        counted = weights.index(max(weights))
        yield layout.rows([(2.0, 1.0, 0.0), (np.nan, np.nan, np.nan)], [counted, weights.index(0.0)])


def _infinite_class(layout: Layout) -> Iterator[Input]:
    weights = list(layout.weights)
    if any(weights):
        counted, label = weights.index(max(weights)), weights.index(0.0)
        yield layout.rows(
            [(2.0, 1.0, 0.0), [-np.inf if c == label else 0.0 for c in range(len(weights))]], [counted, label]
        )


def _weightless_elements(layout: Layout) -> Iterator[Input]:
    weights = np.asarray(layout.weights)
    if weights.any():
        yield Input(np.where(weights == 0, np.nan, 0.25).astype(np.float32), np.ones(weights.shape, np.float32))


def _no_class_weight(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(2.0, 1.0, 0.0)], [layout.weights.index(0.0)])


def _no_element_weight(layout: Layout) -> Iterator[Input]:
    weights = np.asarray(layout.weights)
    if not weights.any():
        yield Input(np.full(weights.shape, 0.25, np.float32), np.ones(weights.shape, np.float32))


def _switched_off_nan(_: Layout) -> Iterator[Input]:
    yield Input(
        np.array([[0.5], [np.nan]], np.float32), np.zeros((2, 1), np.float32), np.array([1.0, 0.0], np.float32)
    )  # fmt: skip


def _switched_off_row(layout: Layout) -> Iterator[Input]:
    nothing = (np.nan, np.nan, np.nan)
    yield layout.rows([(0.5, 0.375, 0.125), nothing], [0, 0], [1.0, 0.0])
    # scikit-learn wants every class in a batch.
    rows = [(0.5, 0.375, 0.125), (0.25, 0.5, 0.25), (0.125, 0.25, 0.625)]
    labels = [min(label, layout.classes - 1) for label in range(3)]
    yield layout.rows([*rows, nothing], [*labels, 0], [1.0, 1.0, 1.0, 0.0])


def _column(_: Layout) -> Iterator[Input]:
    yield Input(np.array([[0.25], [0.75]], np.float32), np.array([0.25, 0.75], np.float32))


def _one_label(layout: Layout) -> Iterator[Input]:
    x = layout.rows([(2.0, 1.0, 0.0), (0.0, 1.0, 2.0)], [0, 0])
    yield Input(x.predictions, np.zeros(1, np.int64))


def _label_column(layout: Layout) -> Iterator[Input]:
    yield Input(layout.rows([(2.0, 1.0, 0.0)], [0]).predictions, np.zeros((1, 1), np.int64))


def _one_axis(_: Layout) -> Iterator[Input]:
    yield Input(np.array([0.25, 0.75], np.float32), np.ones(2, np.float32))
    yield Input(np.array([0.25, 0.75], np.float32), np.ones(2, np.float32), np.array([1.0, 3.0], np.float32))


def _steps(_: Layout) -> Iterator[Input]:
    values = np.array([[[0.25], [0.25]], [[0.5], [0.5]]], np.float32)
    yield Input(values, np.zeros_like(values), np.array([1.0, 3.0], np.float32))


def _repeated(_: Layout) -> Iterator[Input]:
    values = np.array([[[0.25]] * 3, [[0.5]] * 3], np.float32)
    yield Input(values, np.zeros_like(values), np.array([[1.0], [3.0]], np.float32))


def _sequences(layout: Layout, weight: list[Any]) -> Iterator[Input]:
    """Two examples of two steps, each step with classes."""
    if not -3 <= layout.axis < 3:
        return
    rows = np.zeros((2, 2, layout.classes), np.float32)
    rows[:, :, :3] = np.array([[[0.5, 0.375, 0.125]], [[0.125, 0.25, 0.625]]], np.float32)[:, :, : layout.classes]
    yield Input(np.moveaxis(rows, -1, layout.axis), np.zeros((2, 2), np.int64), np.array(weight, np.float32))


def _weighted_sequences(layout: Layout) -> Iterator[Input]:
    yield from _sequences(layout, [1.0, 3.0])


def _repeated_sequences(layout: Layout) -> Iterator[Input]:
    yield from _sequences(layout, [[1.0], [3.0]])


def _nothing(layout: Layout) -> Iterator[Input]:
    yield Input(np.zeros((0, layout.classes), np.float32), np.zeros(0, np.int64))


def _no_elements(_: Layout) -> Iterator[Input]:
    yield Input(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))


def _one_example(layout: Layout) -> Iterator[Input]:
    yield Input(layout.rows([(2.0, 1.0, 0.0)], [0]).predictions.reshape(-1), np.array(0))


def _few_labels(layout: Layout) -> Iterator[Input]:
    yield layout.rows([(0.5, 0.25, 0.25)], [0])


def _compiled(layout: Layout) -> Iterator[Input]:
    row = layout.rows([(2.0, 1.0, 0.0)], [layout.classes])
    yield Input(row.predictions, row.targets, None, "run_compiled", note="in a tf.function with jit_compile=True")


# ---------------------------------------------------------------------------------------------------------------- the list


def _has_class_weights(spec: Any, _: Call) -> bool:
    return spec.class_weights is not None


def _has_narrow_weights(spec: Any, call: Call) -> bool:
    """Whether an elementwise loss holds a tensor that float32 rounds or, in TensorFlow, that has a dtype at all."""
    if call.library == "tensorflow":
        return isinstance(getattr(spec, "pos_weight", None), tuple)
    held = (getattr(spec, name, None) for name in ("element_weights", "pos_weight"))
    return any(np.any(np.float32(weights) != np.asarray(weights)) for weights in held if weights is not None)


def _each(text: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, text)


_TORCH_CE = ("torch.nn.CrossEntropyLoss", "torch.nn.functional.cross_entropy")
_TORCH_NLL = ("torch.nn.NLLLoss", "torch.nn.functional.nll_loss")
_TORCH_BCE = ("torch.nn.BCEWithLogitsLoss", "torch.nn.functional.binary_cross_entropy_with_logits")
_TORCH_CLAMPED = ("torch.nn.BCELoss", "torch.nn.functional.binary_cross_entropy")
_TF_DENSE = ("tf.nn.softmax", "tf.compat.v1.losses.softmax")
_TF_SPARSE = ("tf.nn.sparse", "tf.compat.v1.losses.sparse")
_TF_BINARY = ("tf.nn.sigmoid", "tf.nn.weighted", "tf.compat.v1.losses.sigmoid")
_V1 = "tf.compat.v1.losses."
_OPTAX_INDEX = "optax.losses.softmax_cross_entropy_with_integer_labels"
_OPTAX_DENSE = ("optax.losses.softmax_cross_entropy", "optax.losses.safe_softmax_cross_entropy")
_KERAS = tuple(f"keras[{backend}].losses." for backend in ("numpy", "torch", "tensorflow", "jax"))
_SPARSE = ("SparseCategoricalCrossentropy", "sparse_categorical_crossentropy")
_CATEGORICAL = ("CategoricalCrossentropy", "categorical_crossentropy")
_BINARY = ("BinaryCrossentropy", "binary_crossentropy")
_SQUARED = ("MeanSquaredError", "mean_squared_error")
_OBJECTS = (_CATEGORICAL[0], _SPARSE[0], _BINARY[0], _SQUARED[0])


def _keras(names: tuple[str, ...], *backends: str) -> tuple[str, ...]:
    """The losses of Keras of these names, on some backends or on all."""
    return tuple(
        f"{prefix}{name}"
        for prefix in _KERAS
        for name in names
        if not backends or prefix[6:].partition("]")[0] in backends
    )


of_tensors: tuple[Deviation, ...] = (
    Deviation(
        "bad_index", WITH_CLASSES,
        "A label outside 0..K-1 is an error (NaN under tracing).",
        {
            _OPTAX_INDEX: "Labels -1 to -K count from the end; any other that is no class gives NaN, with a finite gradient.",
            **_each("Negative labels count from the end.", "onnx."),
            **_each("A label that is no class costs 0.", *_keras(_SPARSE, "jax")),
            **_each("A negative label costs 0.", *_keras(_SPARSE, "numpy", "torch")),
        },
        _bad_labels,
    ),
    Deviation(
        "compiled_checks", WITH_CLASSES,
        "A label outside 0..K-1 is an error where values can be read, and NaN in loss and gradient under tracing.",
        _each("A label outside 0..K-1 is an error, and under XLA NaN.", *_TF_SPARSE),
        _compiled, kind="index",
    ),
    Deviation(
        "target_kind", WITH_CLASSES,
        "Integer targets are class indices, floating ones rows of a dense target.",
        _each(
            "Dense targets may be integers.", *_TF_DENSE, _OPTAX_DENSE[0], *_keras(_CATEGORICAL),
        ),
        _integer_rows, kind="dense",
    ),
    Deviation(
        "label_dtype", WITH_CLASSES,
        "A floating target is a dense one; labels are integers.",
        _each("Floating labels are cut off: 1.7 is class 1.", *_keras(_SPARSE), "onnx."),
        _floating_label, kind="index",
    ),
    Deviation(
        "target_sum", WITH_CLASSES,
        "A dense row with the sum T has the gradient T p - t.",
        _each("The gradient is p - t, as if every dense row had the sum 1.", *_TF_DENSE, *_keras(_CATEGORICAL, "tensorflow")),
        _unnormalized, "logits", "dense", "gradient",
    ),
    Deviation(
        "target_range", (BinaryCrossEntropyLoss,),
        "A target outside [0, 1] is an error (NaN under tracing).",
        _each(
            "Targets outside [0, 1] are taken as they are.",
            *_TORCH_BCE, *_TF_BINARY, "optax.losses.sigmoid", *_keras(_BINARY),
        ),
        _out_of_range_target, "logits",
    ),
    Deviation(
        "target_range", (BinaryCrossEntropyLoss,),
        "A target outside [0, 1] is an error (NaN under tracing).",
        _each(
            "Targets outside [0, 1] are taken as they are.",
            f"{_V1}log_loss", *_keras(_BINARY, "numpy", "tensorflow", "jax"),
        ),
        _out_of_range_target, "probabilities",
    ),
    Deviation(
        "dense_range", (CrossEntropyLoss,),
        "A negative entry of a dense target is an error (NaN under tracing).",
        _each("Negative entries of dense targets are taken as they are.", *_TORCH_CE, *_TF_DENSE, *_OPTAX_DENSE, *_keras(_CATEGORICAL)),
        _negative_row, kind="dense",
    ),
    Deviation(
        "zero_times_infinity", WITH_CLASSES,
        "0 log 0 = 0: a class with the logit -inf and the target 0 adds nothing.",
        _each(
            "0 times infinity is NaN: a class with the logit -inf and the target 0 makes the loss NaN, where targets are dense.",
            *_TORCH_CE, *_TF_DENSE, _OPTAX_DENSE[0], *_keras(_CATEGORICAL),
        ),
        _minus_infinity, "logits", "dense",
    ),
    Deviation(
        "infinite_logit", (BinaryCrossEntropyLoss,),
        "At an infinite logit the loss is 0 where the label agrees, and infinite where not.",
        _each("An infinite logit makes the loss NaN.", *_TORCH_BCE, *_TF_BINARY, "optax.losses.sigmoid", *_keras(_BINARY)),
        _infinite_logit, "logits",
    ),
    Deviation(
        "plus_infinity", (CrossEntropyLoss,),
        "A row with the logit +inf is NaN.",
        {_OPTAX_INDEX: "A logit of +inf makes the loss of the other classes infinite."},
        _plus_infinity, "logits",
    ),
    Deviation(
        "offset", (CrossEntropyLoss,),
        "An offset common to all logits of a row changes nothing.",
        {_OPTAX_INDEX: "The row's largest logit is subtracted from one term alone, which costs digits of large ones (optax#1792)."},
        _large, "logits",
    ),
    Deviation(
        "confident_row", (CrossEntropyLoss,),
        "A confident row keeps its loss where the backend can hold it: NumPy and exact rounding do, the other kernels give 0.",
        _each(
            "The loss of a confident row is 0: the logarithm of 1 + x is that of 1.",
            *_TORCH_CE, *_TF_DENSE, *_TF_SPARSE, "optax.losses.s", "onnx.Softmax",
            *_keras(_CATEGORICAL), *_keras(_SPARSE),
        ),
        _confident, "logits", of="digits",
    ),
    Deviation(
        "half_rounding", (CrossEntropyLoss,),
        "Half types are computed in float32 and rounded once; means and sums are float32.",
        _each(
            "The log-softmax is rounded to the half type before the loss is formed.",
            *_TORCH_CE, "optax.losses.s", *_keras(_SPARSE[1:], "torch", "jax", "numpy"), *_keras(_CATEGORICAL[1:], "torch", "jax", "numpy"),
        ),
        _half, "logits", of="digits",
    ),
    Deviation(
        "half_mean", (MeanSquaredError,),
        "Half types are computed in float32; means and sums are float32.",
        _each(
            "Means and sums have the dtype of the predictions, and overflow in it.",
            "torch.nn.MSELoss", "torch.nn.functional.mse_loss", "sklearn.",
        )
        | {"optax.losses.l2_loss": "The square of a half type overflows before it is halved."},
        _half_overflow,
    ),
    Deviation(
        "float64", WITH_CLASSES,
        "float64 predictions are computed in float64.",
        _each("The losses are rounded to float32, though float64 is returned.", f"{_V1}s")
        | _each("Everything is float32, unless jax_enable_x64 is set.", "optax.")
        | _each("A function of Keras' works in float32.", *_keras((_SPARSE[1], _CATEGORICAL[1]), "jax"),
                *_keras((_SPARSE[1], _CATEGORICAL[1]), "numpy")),
        _double, of="digits", digits=1e-9,
    ),
    Deviation(
        "float64_elements", _ELEMENTS,
        "float64 predictions are computed in float64.",
        _each("The losses are rounded to float32, though float64 is returned.", f"{_V1}sigmoid")
        | _each("Everything is float32, unless jax_enable_x64 is set.", "optax.")
        | _each("A function of Keras' works in float32.", *_keras((_BINARY[1], _SQUARED[1]), "jax", "torch", "numpy")),
        _double_elements, of="digits", digits=1e-9,
    ),
    Deviation(
        "sign_of_zero", WITH_CLASSES,
        "A loss of 0 is +0.",
        _each("A loss of 0 can be -0.", *_TORCH_CE, *_OPTAX_DENSE, "onnx.Softmax", *_keras(_SPARSE, "jax"), *_keras(_CATEGORICAL, "jax"),
            *_keras((_SPARSE[1], _CATEGORICAL[1]), "torch", "numpy"),
        ) | {_OPTAX_INDEX: ""},
        _sure, "logits", of="sign",
    ),
    Deviation(
        "probability_range", (BinaryCrossEntropyLoss,),
        "A number outside [0, 1] is no probability: an error (NaN under tracing).",
        _each("Numbers outside [0, 1] are clipped into it.", *_keras(_BINARY))
        | _each("Numbers outside [0, 1] are taken as they are.", f"{_V1}log_loss"),
        _beyond_one, "probabilities",
    ),
    Deviation(
        "nan_probability", (BinaryCrossEntropyLoss,),
        "A probability that is NaN makes the loss NaN.",
        _each("NaN is an error.", *_TORCH_CLAMPED, *_keras(_BINARY, "torch")),
        _no_number, "probabilities",
    ),
    Deviation(
        "subnormal", (BinaryCrossEntropyLoss,),
        "Probabilities below the smallest normal number count as 0.",
        _each("Subnormal numbers have their own logarithms.", *_TORCH_CLAMPED),
        _subnormal, "probabilities",
    ),
    Deviation(
        "gradient_at_zero", (BinaryCrossEntropyLoss,),
        "The gradient at the logit 0 is (1 - t' - q t') / 2.",
        {"tf.nn.weighted": "The gradient at the logit 0 is 1 - t, on one side of the true one: the parts of the formula have kinks there."},
        _zero_logit, "logits", of="gradient",
    ),
    Deviation(
        "clip_tie", (BinaryCrossEntropyLoss,),
        "Exactly on the bound nothing is clipped, and the gradient is that of the formula.",
        _each("Exactly on the bound the gradient is half of the formula's.", *_keras(_BINARY, "jax")),
        _at_the_bound, "probabilities", of="gradient",
    ),
    Deviation(
        "hidden_logits", (CrossEntropyLoss,),
        "Where predictions came from is not looked at.",
        _each(
            "Predictions that came from keras.ops.softmax are set aside for the logits they came from.",
            *_keras(_CATEGORICAL, "tensorflow"), *_keras(_SPARSE, "tensorflow"),
        ),
        _behind_softmax, "probabilities",
    ),
    Deviation(
        "hidden_logits_in_a_graph", (BinaryCrossEntropyLoss,),
        "Where predictions came from is not looked at.",
        _each(
            "In a tf.function, predictions that came from a sigmoid are set aside for the logits they came from.",
            *_keras(_BINARY, "tensorflow"),
        ),
        _behind_sigmoid, "probabilities",
    ),
    Deviation(
        "weight_dtype", WITH_CLASSES,
        "The weights of a spec are computed with in the dtype of the predictions.",
        _each("Class weights keep the dtype they were made in, float32 by default: with labels, predictions of another are an error.",
              *_TORCH_CE, *_TORCH_NLL),
        _double_beside_weights, kind="index", where=_has_class_weights,
    ),
    Deviation(
        "weight_dtype", _ELEMENTS,
        "The weights of a spec are computed with in the dtype of the predictions.",
        _each("The weights of a float32 loss are rounded to float32 whatever the predictions are.",
              "torch.nn.functional.mse_loss", *_TORCH_BCE, *_TORCH_CLAMPED)
        | {"tf.nn.weighted": "A tensor of positive weights keeps its dtype: float32 beside logits of another is an error."},
        _double_elements_beside_weights, where=_has_narrow_weights,
    ),
    Deviation(
        "nan_in_ignored", WITH_CLASSES,
        "Nothing in an ignored position is read: its gradient is 0 even where it holds NaN.",
        _each("An ignored position that holds NaN has the gradient NaN.", *_TORCH_CE),
        _dropped_nan, of="gradient",
    ),
    Deviation(
        "nan_in_weightless", _ELEMENTS,
        "Nothing in a position with sample weight 0 is read.",
        _each("0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the loss NaN.", *_keras(_OBJECTS), _V1)
        | _each("NaN is an error wherever it is.", "sklearn."),
        _switched_off_nan,
    ),
    Deviation(
        "nan_in_weightless", (CrossEntropyLoss,),
        "Nothing in a position with sample weight 0 is read.",
        _each("0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the loss NaN.", *_keras(_OBJECTS), _V1)
        | _each("NaN is an error wherever it is.", "sklearn."),
        _switched_off_row,
    ),
    Deviation(
        "nan_in_weightless", (NegativeLogLikelihoodLoss,),
        "The log-probability of a class with weight 0 is not read.",
        _each("0 times NaN is NaN: the log-probability of a class with weight 0 is read all the same.", *_TORCH_NLL, "onnx."),
        _weightless_class, kind="index", weightless=True,
    ),
    Deviation(
        "nan_in_weightless", _ELEMENTS,
        "Nothing in an element with weight 0 is read.",
        _each(
            "0 times NaN is NaN: an element with weight 0 is read all the same.",
            "torch.nn.functional.mse_loss", *_TORCH_BCE, *_TORCH_CLAMPED,
        ),
        _weightless_elements, weightless=True,
    ),
    Deviation(
        "weightless_infinity", (CrossEntropyLoss,),
        "A label whose class has the weight 0 adds nothing, also where its logit is -inf.",
        _each("0 times infinity is NaN: a label whose class has the weight 0 and the logit -inf makes the loss NaN.",
              *_TORCH_CE, "onnx.Softmax"),
        _infinite_class, "logits", "index", weightless=True,
    ),
    Deviation(
        "weightless_mean", WITH_CLASSES,
        "A mean with nothing to divide by has the gradient 0.",
        _each("A mean of positions whose classes have the weight 0 is 0 / 0, and its gradient NaN.", *_TORCH_CE, *_TORCH_NLL),
        _no_class_weight, kind="index", of="gradient", weightless=True,
    ),
    Deviation(
        "weightless_mean", _ELEMENTS,
        "A mean with nothing to divide by has the gradient 0.",
        {"torch.nn.functional.mse_loss": "A mean whose weights are 0 is 0 / 0, and its gradient NaN."},
        _no_element_weight, of="gradient", weightless=True,
    ),
    Deviation(
        "shapes", _ELEMENTS,
        "Predictions and targets have one shape; nothing is squeezed or broadcast.",
        _each("Shapes broadcast: (2, 1) against (2,) is (2, 2).",
              "torch.nn.MSELoss", "torch.nn.functional.mse_loss", "optax.losses.sigmoid")
        | _each("An axis of length 1 at the end is squeezed or added.", *_keras(_OBJECTS), *_keras(_SQUARED), "sklearn."),
        _column,
    ),
    Deviation(
        "label_shape", WITH_CLASSES,
        "There is one label per position; nothing is squeezed or broadcast.",
        _each("Fewer labels than rows broadcast.", _OPTAX_INDEX)
        | _each("Fewer labels than rows are accepted, and only their rows count.", "onnx."),
        _one_label, kind="index",
    ),
    Deviation(
        "label_column", WITH_CLASSES,
        "Labels have the predictions' shape without the class axis.",
        _each("An axis of length 1 at the end of the labels is squeezed.", *_keras(_SPARSE), f"{_V1}sparse"),
        _label_column, kind="index",
    ),
    Deviation(
        "one_axis", _ELEMENTS,
        "An average over the last axis needs an axis that is left.",
        _each("Predictions with one axis are averaged to one number before they are weighted.", *_keras(_BINARY), *_keras(_SQUARED)),
        _one_axis,
    ),
    Deviation(
        "weight_alignment", _ELEMENTS,
        "Sample weights align to the first axes: one number per example is repeated over its steps.",
        _each("Sample weights broadcast to the last axes: one number per example scales the steps.", *_keras(_OBJECTS))
        | _each("Predictions have two axes at most.", "sklearn."),
        _steps,
    ),
    Deviation(
        "weight_alignment", (CrossEntropyLoss,),
        "Sample weights align to the first axes: one number per example is repeated over its steps.",
        _each("Sample weights broadcast to the last axes: one number per example scales the steps.", *_keras(_OBJECTS)),
        _weighted_sequences,
    ),
    Deviation(
        "weight_shape", _ELEMENTS,
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        _each("Sample weights broadcast, axes of length 1 included.", *_keras(_OBJECTS), _V1),
        _repeated,
    ),
    Deviation(
        "weight_shape", (CrossEntropyLoss,),
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        _each("Sample weights broadcast, axes of length 1 included.", *_keras(_OBJECTS), _V1),
        _repeated_sequences,
    ),
    Deviation(
        "empty_batch", WITH_CLASSES,
        "An empty batch has one mean, which on_empty says.",
        _each("An empty batch gives an empty array.", *_keras(_OBJECTS))
        | _each("An empty batch fails.", "onnx.Softmax")
        | {"onnx.Negative": "An empty batch gives 0."},
        _nothing,
    ),
    Deviation(
        "no_elements", _ELEMENTS,
        "An empty batch has one mean, which on_empty says.",
        _each("An empty batch gives an empty array.", *_keras(_OBJECTS)),
        _no_elements,
    ),
    Deviation(
        "one_example", WITH_CLASSES,
        "The class axis is where the spec has it, whatever the rank.",
        _each("Predictions with one axis are one example, and their axis is that of the classes.", *_TORCH_CE, *_TORCH_NLL),
        _one_example, kind="index",
    ),
    Deviation(
        "missing_labels", (CrossEntropyLoss,),
        "A batch need not hold every class.",
        {"sklearn.metrics.log_loss": "A batch in which not every class occurs is an error, unless labels says which there are."},
        _few_labels,
    ),
)  # fmt: skip
"""What a loss does at some tensors, in the order in which differences are listed."""


def rules_of(spec: AnyLoss, call: Call) -> list[tuple[str, Phrase]]:
    """What the loss of a call does at some tensors that its spec does not: the names of the rules, and sentences."""
    return [
        (deviation.name, say(deviation.sentence(call)))
        for deviation in of_tensors
        if deviation.concerns(spec, call) and deviation.has(call)
    ]


# --------------------------------------------------------------------------------------------------------------- arguments


@dataclass(frozen=True, eq=False)
class Refusal:
    """A rule that arguments ask for and no spec can say; losses that have them are not imported.

    Attributes:
        name: what it is called in a difference.
        spec: what a spec does.
        native: what the libraries do that have it, by the beginning of their names.
        applies: whether the loss of a call has it.
        closest: the call that says the rest.
        fields: the fields of a spec that it stands for.
        inputs: what shows it.
    """

    name: str
    spec: str
    native: Mapping[str, str]
    applies: Callable[[Call], bool]
    closest: Callable[[Call], Call]
    fields: tuple[str, ...]
    inputs: Callable[[Layout], Iterator[Input]]

    def sentence(self, call: Call | None) -> str:
        """What a side does: the loss of a call, or a spec."""
        if call is None or not self.applies(call):
            return self.spec
        return next(text for prefix, text in self.native.items() if call.name.startswith(prefix))


def _without(name: str) -> Callable[[Call], Call]:
    def without(call: Call) -> Call:
        return Call(call.name, {key: value for key, value in call.arguments.items() if key != name}, call.backend)

    return without


def _on_tensorflow(call: Call) -> Call:
    return Call(call.name, call.arguments, "tensorflow")


def _beyond(low: float, x: object, high: float) -> bool:
    return isinstance(x, int | float) and not low <= x <= high


def _weighted_steps(layout: Layout) -> Iterator[Input]:
    note = "Keras is given the weights as [[1], [3]]"
    weight = np.array([1.0, 3.0], np.float32)
    values = np.array([[[1.0]] * 3, [[2.0]] * 3], np.float32)
    if layout.elementwise:
        yield Input(values, np.zeros_like(values), weight, "run_aligned", note=note)
        yield Input(values / 4, np.zeros_like(values), weight, "run_aligned", note=note)
        return
    logits = np.array([[[2.0, 1.0, 0.0]] * 3, [[0.0, 1.0, 2.0]] * 3], np.float32)
    yield Input(logits, np.zeros((2, 3), np.int64), weight, "run_aligned", note=note)
    yield Input((logits + 1) / 6, np.zeros((2, 3), np.int64), weight, "run_aligned", note=note)


def _many(layout: Layout) -> Iterator[Input]:
    if layout.elementwise:
        for error in (0.5, 1.0):
            yield Input(np.full((70000, 1), error, np.float32), np.zeros((70000, 1), np.float32))
        yield layout.elements([0.3], [1.0])
        return
    for classes, label in ((300, 257), (2100, 2049)):
        row = np.zeros((1, classes), np.float32)
        row[0, label] = 10.0
        yield Input(row, np.array([label], np.int64))
        yield Input(np.exp(row) / np.exp(row).sum(), np.array([label], np.int64))
    yield layout.rows([(0.3, 0.6, 0.1)], [0])


def _smoothed(layout: Layout) -> Iterator[Input]:
    yield layout.elements([0.3], [1.0]) if layout.elementwise else layout.rows([(0.3, 0.6, 0.1)], [0])


def _turned(_: Layout) -> Iterator[Input]:
    logits = np.array([[[2.0, 1.0], [1.0, 3.0], [0.0, 0.5]]], np.float32)
    target = np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]], np.float32)
    yield Input(logits, target)
    yield Input((logits + 1) / 10, target)


def _averaged_otherwise(_: Layout) -> Iterator[Input]:
    values = np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32)
    yield Input(values, np.ones_like(values))


def _hundred(layout: Layout) -> Iterator[Input]:
    yield layout.elements([100.0], [0.0])


of_arguments: tuple[Refusal, ...] = (
    Refusal(
        "mean_with_sample_weight",
        'Weights are broadcast first and summed after, under divisor="weights".',
        {"keras": "The weighted mean divides by the sum of the weights as they were passed, before they are broadcast."},
        lambda call: call.arguments.get("reduction") == "mean_with_sample_weight",
        _without("reduction"), ("reduction", "divisor", "on_empty"),
        _weighted_steps,
    ),
    Refusal(
        "half_dtype",
        "Labels never become floating; sums and counts are never held in a half type.",
        {"keras": "Labels, predictions, sums and counts are held in the half type that the loss was given as its dtype."},
        lambda call: call.library == "keras" and call.arguments.get("dtype") in HALF_TYPES,
        _without("dtype"), ("dtype",),
        _many,
    ),
    Refusal(
        "smoothing_axis",
        "Smoothing spreads over the classes, wherever they lie.",
        {"keras": "Smoothing divides by the length of the last axis, whichever holds the classes (keras#23437)."},
        lambda call: bool(call.library == "keras" and call.arguments.get("label_smoothing") and "Binary" not in call.name
                          and "binary" not in call.name and call.arguments.get("axis", -1) != -1),
        _without("label_smoothing"), ("label_smoothing",),
        _turned,
    ),
    Refusal(
        "averaged_axis",
        "average_last_axis averages the last axis.",
        {"keras": "The losses along the axis that was named are averaged."},
        lambda call: bool("inary" in call.name and call.library == "keras" and call.arguments.get("axis", -1) != -1),
        _without("axis"), (),
        _averaged_otherwise,
    ),
    Refusal(
        "clipped_sigmoid",
        "A loss from logits is computed from the logits, and clips nothing.",
        {"keras": "Where Keras runs on NumPy, the sigmoid of the logits is clipped as probabilities are."},
        lambda call: bool("inary" in call.name and call.backend == "numpy" and call.arguments.get("from_logits")),
        _on_tensorflow, (),
        _hundred,
    ),
    Refusal(
        "smoothing_range",
        "The amount of smoothing lies in [0, 1]; anything else is an error when the spec is made.",
        {
            "torch": "The amount of smoothing is checked when the loss is called.",
            "keras": "The amount of smoothing is not checked.",
            "tf.": "The amount of smoothing is not checked.",
        },
        lambda call: _beyond(0.0, call.arguments.get("label_smoothing", 0.0), 1.0),
        _without("label_smoothing"), ("label_smoothing",),
        _smoothed,
    ),
)  # fmt: skip
"""What arguments ask for that no spec can say, where a nearest spec can be compared all the same."""


def refusal_of(call: Call) -> Refusal | None:
    """The rule of a call's arguments that no spec can say, if it is one of those above."""
    return next((refusal for refusal in of_arguments if refusal.applies(call)), None)
