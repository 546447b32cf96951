"""The rules of other libraries' losses that no spec can say: what each does, what a spec does instead, and what shows it.

These are a matter of the tensors of one call; losses are imported all the same, as they differ from their specs at such tensors alone.
What is a matter of arguments, and keeps a loss from being imported, stands in `unifiedloss.switching.refusals`. Which losses have a rule
is told by their names, and tests/test_switching_diff.py runs every importable loss on every input here to see that it is true.
"""

from __future__ import annotations

from unifiedloss.spec import (
    WITH_CLASSES,
    AnyLoss,
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    MeanSquaredError,
    NegativeLogLikelihoodLoss,
)
from unifiedloss.switching import deviation_inputs as shows
from unifiedloss.switching.calls import Call
from unifiedloss.switching.deviation import Deviation
from unifiedloss.switching.phrases import Phrase, say

_ELEMENTS = (BinaryCrossEntropyLoss, MeanSquaredError)


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
        shows.bad_labels,
    ),
    Deviation(
        "compiled_checks", WITH_CLASSES,
        "A label outside 0..K-1 is an error where values can be read, and NaN in loss and gradient under tracing.",
        _each("A label outside 0..K-1 is an error, and under XLA NaN.", *_TF_SPARSE),
        shows.compiled, kind="index",
    ),
    Deviation(
        "target_kind", WITH_CLASSES,
        "Integer targets are class indices, floating ones rows of a dense target.",
        _each(
            "Dense targets may be integers.", *_TF_DENSE, _OPTAX_DENSE[0], *_keras(_CATEGORICAL),
        ),
        shows.integer_rows, kind="dense",
    ),
    Deviation(
        "label_dtype", WITH_CLASSES,
        "A floating target is a dense one; labels are integers.",
        _each("Floating labels are cut off: 1.7 is class 1.", *_keras(_SPARSE), "onnx."),
        shows.floating_label, kind="index",
    ),
    Deviation(
        "target_sum", WITH_CLASSES,
        "A dense row with the sum T has the gradient T p - t.",
        _each("The gradient is p - t, as if every dense row had the sum 1.", *_TF_DENSE, *_keras(_CATEGORICAL, "tensorflow")),
        shows.unnormalized, "logits", "dense", "gradient",
    ),
    Deviation(
        "target_range", (BinaryCrossEntropyLoss,),
        "A target outside [0, 1] is an error (NaN under tracing).",
        _each(
            "Targets outside [0, 1] are taken as they are.",
            *_TORCH_BCE, *_TF_BINARY, "optax.losses.sigmoid", *_keras(_BINARY),
        ),
        shows.out_of_range_target, "logits",
    ),
    Deviation(
        "target_range", (BinaryCrossEntropyLoss,),
        "A target outside [0, 1] is an error (NaN under tracing).",
        _each(
            "Targets outside [0, 1] are taken as they are.",
            f"{_V1}log_loss", *_keras(_BINARY, "numpy", "tensorflow", "jax"),
        ),
        shows.out_of_range_target, "probabilities",
    ),
    Deviation(
        "dense_range", (CrossEntropyLoss,),
        "A negative entry of a dense target is an error (NaN under tracing).",
        _each("Negative entries of dense targets are taken as they are.", *_TORCH_CE, *_TF_DENSE, *_OPTAX_DENSE, *_keras(_CATEGORICAL)),
        shows.negative_row, kind="dense",
    ),
    Deviation(
        "zero_times_infinity", WITH_CLASSES,
        "0 log 0 = 0: a class with the logit -inf and the target 0 adds nothing.",
        _each(
            "0 times infinity is NaN: a class with the logit -inf and the target 0 makes the loss NaN, where targets are dense.",
            *_TORCH_CE, *_TF_DENSE, _OPTAX_DENSE[0], *_keras(_CATEGORICAL),
        ),
        shows.minus_infinity, "logits", "dense",
    ),
    Deviation(
        "infinite_logit", (BinaryCrossEntropyLoss,),
        "At an infinite logit the loss is 0 where the label agrees, and infinite where not.",
        _each("An infinite logit makes the loss NaN.", *_TORCH_BCE, *_TF_BINARY, "optax.losses.sigmoid", *_keras(_BINARY)),
        shows.infinite_logit, "logits",
    ),
    Deviation(
        "plus_infinity", (CrossEntropyLoss,),
        "A row with the logit +inf is NaN.",
        {_OPTAX_INDEX: "A logit of +inf makes the loss of the other classes infinite."},
        shows.plus_infinity, "logits",
    ),
    Deviation(
        "offset", (CrossEntropyLoss,),
        "An offset common to all logits of a row changes nothing.",
        {_OPTAX_INDEX: "The row's largest logit is subtracted from one term alone, which costs digits of large ones (optax#1792)."},
        shows.large, "logits",
    ),
    Deviation(
        "confident_row", (CrossEntropyLoss,),
        "A confident row keeps its loss where the backend can hold it: NumPy and exact rounding do, the other kernels give 0.",
        _each(
            "The loss of a confident row is 0: the logarithm of 1 + x is that of 1.",
            *_TORCH_CE, *_TF_DENSE, *_TF_SPARSE, "optax.losses.s", "onnx.Softmax",
            *_keras(_CATEGORICAL), *_keras(_SPARSE),
        ),
        shows.confident, "logits", of="digits",
    ),
    Deviation(
        "half_rounding", (CrossEntropyLoss,),
        "Half types are computed in float32 and rounded once; means and sums are float32.",
        _each(
            "The log-softmax is rounded to the half type before the loss is formed.",
            *_TORCH_CE, "optax.losses.s", *_keras(_SPARSE[1:], "torch", "jax", "numpy"), *_keras(_CATEGORICAL[1:], "torch", "jax", "numpy"),
        ),
        shows.half, "logits", of="digits",
    ),
    Deviation(
        "half_mean", (MeanSquaredError,),
        "Half types are computed in float32; means and sums are float32.",
        _each(
            "Means and sums have the dtype of the predictions, and overflow in it.",
            "torch.nn.MSELoss", "torch.nn.functional.mse_loss", "sklearn.",
        )
        | {"optax.losses.l2_loss": "The square of a half type overflows before it is halved."},
        shows.half_overflow,
    ),
    Deviation(
        "float64", WITH_CLASSES,
        "float64 predictions are computed in float64.",
        _each("The losses are rounded to float32, though float64 is returned.", f"{_V1}s")
        | _each("Everything is float32, unless jax_enable_x64 is set.", "optax.")
        | _each("A function of Keras' works in float32.", *_keras((_SPARSE[1], _CATEGORICAL[1]), "jax"),
                *_keras((_SPARSE[1], _CATEGORICAL[1]), "numpy")),
        shows.double, of="digits", digits=1e-9,
    ),
    Deviation(
        "float64_elements", _ELEMENTS,
        "float64 predictions are computed in float64.",
        _each("The losses are rounded to float32, though float64 is returned.", f"{_V1}sigmoid")
        | _each("Everything is float32, unless jax_enable_x64 is set.", "optax.")
        | _each("A function of Keras' works in float32.", *_keras((_BINARY[1], _SQUARED[1]), "jax", "torch", "numpy")),
        shows.double_elements, of="digits", digits=1e-9,
    ),
    Deviation(
        "sign_of_zero", WITH_CLASSES,
        "A loss of 0 is +0.",
        _each("A loss of 0 can be -0.", *_TORCH_CE, *_OPTAX_DENSE, "onnx.Softmax", *_keras(_SPARSE, "jax"), *_keras(_CATEGORICAL, "jax"),
            *_keras((_SPARSE[1], _CATEGORICAL[1]), "torch", "numpy"),
        ) | {_OPTAX_INDEX: ""},
        shows.sure, "logits", of="sign",
    ),
    Deviation(
        "probability_range", (BinaryCrossEntropyLoss,),
        "A number outside [0, 1] is no probability: an error (NaN under tracing).",
        _each("Numbers outside [0, 1] are clipped into it.", *_keras(_BINARY))
        | _each("Numbers outside [0, 1] are taken as they are.", f"{_V1}log_loss"),
        shows.beyond_one, "probabilities",
    ),
    Deviation(
        "nan_probability", (BinaryCrossEntropyLoss,),
        "A probability that is NaN makes the loss NaN.",
        _each("NaN is an error.", *_TORCH_CLAMPED, *_keras(_BINARY, "torch")),
        shows.no_number, "probabilities",
    ),
    Deviation(
        "subnormal", (BinaryCrossEntropyLoss,),
        "Probabilities below the smallest normal number count as 0.",
        _each("Subnormal numbers have their own logarithms.", *_TORCH_CLAMPED),
        shows.subnormal, "probabilities",
    ),
    Deviation(
        "gradient_at_zero", (BinaryCrossEntropyLoss,),
        "The gradient at the logit 0 is (1 - t' - q t') / 2.",
        {"tf.nn.weighted": "The gradient at the logit 0 is 1 - t, on one side of the true one: the parts of the formula have kinks there."},
        shows.zero_logit, "logits", of="gradient",
    ),
    Deviation(
        "clip_tie", (BinaryCrossEntropyLoss,),
        "Exactly on the bound nothing is clipped, and the gradient is that of the formula.",
        _each("Exactly on the bound the gradient is half of the formula's.", *_keras(_BINARY, "jax")),
        shows.at_the_bound, "probabilities", of="gradient",
    ),
    Deviation(
        "hidden_logits", (CrossEntropyLoss,),
        "Where predictions came from is not looked at.",
        _each(
            "Predictions that came from keras.ops.softmax are set aside for the logits they came from.",
            *_keras(_CATEGORICAL, "tensorflow"), *_keras(_SPARSE, "tensorflow"),
        ),
        shows.behind_softmax, "probabilities",
    ),
    Deviation(
        "hidden_logits_in_a_graph", (BinaryCrossEntropyLoss,),
        "Where predictions came from is not looked at.",
        _each(
            "In a tf.function, predictions that came from a sigmoid are set aside for the logits they came from.",
            *_keras(_BINARY, "tensorflow"),
        ),
        shows.behind_sigmoid, "probabilities",
    ),
    Deviation(
        "nan_in_ignored", WITH_CLASSES,
        "Nothing in an ignored position is read: its gradient is 0 even where it holds NaN.",
        _each("An ignored position that holds NaN has the gradient NaN.", *_TORCH_CE),
        shows.dropped_nan, of="gradient",
    ),
    Deviation(
        "nan_in_weightless", _ELEMENTS,
        "Nothing in a position with sample weight 0 is read.",
        _each("0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the loss NaN.", *_keras(_OBJECTS), _V1)
        | _each("NaN is an error wherever it is.", "sklearn."),
        shows.switched_off_nan,
    ),
    Deviation(
        "nan_in_weightless", (CrossEntropyLoss,),
        "Nothing in a position with sample weight 0 is read.",
        _each("0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the loss NaN.", *_keras(_OBJECTS), _V1)
        | _each("NaN is an error wherever it is.", "sklearn."),
        shows.switched_off_row,
    ),
    Deviation(
        "nan_in_weightless", (NegativeLogLikelihoodLoss,),
        "The log-probability of a class with weight 0 is not read.",
        _each("0 times NaN is NaN: the log-probability of a class with weight 0 is read all the same.", *_TORCH_NLL, "onnx."),
        shows.weightless_class, kind="index", weightless=True,
    ),
    Deviation(
        "nan_in_weightless", _ELEMENTS,
        "Nothing in an element with weight 0 is read.",
        _each(
            "0 times NaN is NaN: an element with weight 0 is read all the same.",
            "torch.nn.functional.mse_loss", *_TORCH_BCE, *_TORCH_CLAMPED,
        ),
        shows.weightless_elements, weightless=True,
    ),
    Deviation(
        "weightless_infinity", (CrossEntropyLoss,),
        "A label whose class has the weight 0 adds nothing, also where its logit is -inf.",
        _each("0 times infinity is NaN: a label whose class has the weight 0 and the logit -inf makes the loss NaN.",
              *_TORCH_CE, "onnx.Softmax"),
        shows.infinite_class, "logits", "index", weightless=True,
    ),
    Deviation(
        "weightless_mean", WITH_CLASSES,
        "A mean with nothing to divide by has the gradient 0.",
        _each("A mean of positions whose classes have the weight 0 is 0 / 0, and its gradient NaN.", *_TORCH_CE, *_TORCH_NLL),
        shows.no_class_weight, kind="index", of="gradient", weightless=True,
    ),
    Deviation(
        "weightless_mean", _ELEMENTS,
        "A mean with nothing to divide by has the gradient 0.",
        {"torch.nn.functional.mse_loss": "A mean whose weights are 0 is 0 / 0, and its gradient NaN."},
        shows.no_element_weight, of="gradient", weightless=True,
    ),
    Deviation(
        "shapes", _ELEMENTS,
        "Predictions and targets have one shape; nothing is squeezed or broadcast.",
        _each("Shapes broadcast: (2, 1) against (2,) is (2, 2).",
              "torch.nn.MSELoss", "torch.nn.functional.mse_loss", "optax.losses.sigmoid")
        | _each("An axis of length 1 at the end is squeezed or added.", *_keras(_OBJECTS), *_keras(_SQUARED), "sklearn."),
        shows.column,
    ),
    Deviation(
        "label_shape", WITH_CLASSES,
        "There is one label per position; nothing is squeezed or broadcast.",
        _each("Fewer labels than rows broadcast.", _OPTAX_INDEX)
        | _each("Fewer labels than rows are accepted, and only their rows count.", "onnx."),
        shows.one_label, kind="index",
    ),
    Deviation(
        "label_column", WITH_CLASSES,
        "Labels have the predictions' shape without the class axis.",
        _each("An axis of length 1 at the end of the labels is squeezed.", *_keras(_SPARSE), f"{_V1}sparse"),
        shows.label_column, kind="index",
    ),
    Deviation(
        "one_axis", _ELEMENTS,
        "An average over the last axis needs an axis that is left.",
        _each("Predictions with one axis are averaged to one number before they are weighted.", *_keras(_BINARY), *_keras(_SQUARED)),
        shows.one_axis,
    ),
    Deviation(
        "weight_alignment", _ELEMENTS,
        "Sample weights align to the first axes: one number per example is repeated over its steps.",
        _each("Sample weights broadcast to the last axes: one number per example scales the steps.", *_keras(_OBJECTS))
        | _each("Predictions have two axes at most.", "sklearn."),
        shows.steps,
    ),
    Deviation(
        "weight_alignment", (CrossEntropyLoss,),
        "Sample weights align to the first axes: one number per example is repeated over its steps.",
        _each("Sample weights broadcast to the last axes: one number per example scales the steps.", *_keras(_OBJECTS)),
        shows.weighted_sequences,
    ),
    Deviation(
        "weight_shape", _ELEMENTS,
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        _each("Sample weights broadcast, axes of length 1 included.", *_keras(_OBJECTS), _V1),
        shows.repeated,
    ),
    Deviation(
        "weight_shape", (CrossEntropyLoss,),
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        _each("Sample weights broadcast, axes of length 1 included.", *_keras(_OBJECTS), _V1),
        shows.repeated_sequences,
    ),
    Deviation(
        "empty_batch", WITH_CLASSES,
        "An empty batch has one mean, which on_empty says.",
        _each("An empty batch gives an empty array.", *_keras(_OBJECTS))
        | _each("An empty batch fails.", "onnx.Softmax")
        | {"onnx.Negative": "An empty batch gives 0."},
        shows.nothing,
    ),
    Deviation(
        "no_elements", _ELEMENTS,
        "An empty batch has one mean, which on_empty says.",
        _each("An empty batch gives an empty array.", *_keras(_OBJECTS)),
        shows.no_elements,
    ),
    Deviation(
        "one_example", WITH_CLASSES,
        "The class axis is where the spec has it, whatever the rank.",
        _each("Predictions with one axis are one example, and their axis is that of the classes.", *_TORCH_CE, *_TORCH_NLL),
        shows.one_example, kind="index",
    ),
    Deviation(
        "missing_labels", (CrossEntropyLoss,),
        "A batch need not hold every class.",
        {"sklearn.metrics.log_loss": "A batch in which not every class occurs is an error, unless labels says which there are."},
        shows.few_labels,
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
