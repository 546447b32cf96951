"""The table of Keras 3's losses, classes and functions: read as specs, and written from specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unifiedloss.floats import HALF_TYPES
from unifiedloss.interop.lens import Given, Lens, Refusal, choice, one_label, pair, unused
from unifiedloss.interop.library_loss import LibraryLoss, register
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.huber.spec import HuberLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_REASONS = {
    "divisor": "Keras divides by the number of positions that its mask keeps, whatever the weights",
    "on_empty": "Keras gives 0 where nothing is left to average",
    "dtype": "a loss object of Keras computes in its own dtype, float32 by default; only a "
    "function keeps the dtype of the predictions",
    "class_weights": "Keras takes class weights in fit(class_weight=...), and turns them into "
    "sample weights",
    "average_last_axis": "Keras averages the last axis of elementwise losses before it reduces",
    "epsilon": "Keras clips to its own epsilon, the same for all losses of a process",
    "renormalize": "Keras divides probabilities by their sum, before it clips them or, for "
    "class indices on TensorFlow, after",
    "pos_weight": "no loss of Keras weights the positive term",
    "axis": "Keras takes a number as the axis",
    "ignore_index": "SparseCategoricalCrossentropy ignores one class, and no other loss of "
    "Keras ignores any",
}

# Keras' mask excludes positions from the count, and a sample weight of 0 does not.
# keras.src.losses.loss.reduce_values divides with divide_no_nan.
# Guarded by test_special_values of tests/keras_interop_checks.py.
_MEAN = {"reduction": "mean", "divisor": "present", "on_empty": "zero"}
_NONE = {"reduction": "none"}
_REDUCTIONS: dict[Any, dict[str, Any]] = {
    "sum_over_batch_size": _MEAN,
    "mean": _MEAN,
    "sum": {"reduction": "sum"},
    "none": _NONE,
    None: _NONE,
}
_KNOWN = ", ".join(map(repr, _REDUCTIONS))
_REDUCTION = choice(
    _REDUCTIONS,
    Refusal(
        lambda reduction, _: reduction == "mean_with_sample_weight",
        "{given.name}(reduction='mean_with_sample_weight') divides by the sum of the sample "
        "weights as they are passed, before they are broadcast, so that its mean of losses (2, 3) "
        "with weights (2, 1) is three times too large; a spec with divisor='weights' broadcasts "
        "first.",
    ),
    Refusal(
        lambda reduction, _: reduction not in _REDUCTIONS,
        f"{{given.name}}: reduction must be one of {_KNOWN} or 'mean_with_sample_weight', got "
        "{value!r}.",
    ),
    # Keras 2 chose the mean under this name, except under tf.distribute, where it was an error.
    renamed={"auto": "sum_over_batch_size"},
)

_HALVES = (*HALF_TYPES, *(f"mixed_{half}" for half in HALF_TYPES))
_DTYPE = Lens(
    None,
    lambda dtype, _: {"dtype": dtype or "float32"},
    lambda spec, _: None if spec.dtype == "float32" else spec.dtype,
    (
        # In Keras 3.15, keras.ops treats float64 as Python's float and casts it to float32.
        # Guarded by test_refusals_are_real.
        Refusal(
            lambda dtype, given: dtype == "float64" and given.backend != "tensorflow",
            "{given.name}(dtype='float64') computes a part in float32 where Keras runs on "
            "{given.backend}, not on tensorflow; use dtype='float32' or write the spec with "
            "dtype='float64'.",
        ),
        Refusal(
            lambda dtype, _: dtype in _HALVES,
            "{given.name}(dtype={value!r}) rounds labels and predictions to that dtype before it "
            "looks at them: in bfloat16 the label 257 is 256 (keras#15012). Use dtype='float32', "
            "in which a spec reads half predictions anyway.",
        ),
        Refusal(
            lambda dtype, _: bool(dtype) and dtype not in ("float32", "float64"),
            "{given.name}(dtype={value!r}) casts predictions and labels to that dtype before it "
            "looks at them, in int32 1.5 to 1, and a spec computes in float32 or float64; use "
            "dtype='float32'.",
        ),
    ),
)

_NO_AXIS = Refusal(
    lambda axis, _: isinstance(axis, bool) or not isinstance(axis, int),
    "{given.name}: axis must be an int, got {value!r}.",
)
# Of the four backends in keras-team/keras, only torch moves the class axis.
# Guarded by test_refusals_are_real.
_AXIS_OF_INDICES = Refusal(
    lambda axis, given: axis != -1 and given.backend != "torch",
    "{given.name}(axis={value}) works where Keras runs on torch, and here it runs on "
    "{given.backend}, which asks for the last axis; move the classes there and leave axis out.",
)
# keras#23437. Guarded by test_refused_smoothing_axis_is_real.
_AXIS_OF_SMOOTHING = Refusal(
    lambda axis, given: axis != -1 and bool(given.arguments["label_smoothing"]),
    "{given.name}(axis={value}, label_smoothing={given.arguments[label_smoothing]}) divides what "
    "it smooths by the length of the last axis, whichever holds the classes; a spec counts the "
    "classes. Move them to the last axis, or write the spec.",
)
_AVERAGED_AXIS = Refusal(
    lambda axis, _: axis != -1,
    "{given.name}(axis={value}) averages axis {value} before it reduces, and average_last_axis of "
    "a spec is about the last; move that axis to the end and leave axis out.",
)
# Guarded by test_refusals_are_real.
_CLIPPED_SIGMOID = Refusal(
    lambda from_logits, given: bool(from_logits) and given.backend == "numpy",
    "{given.name}(from_logits=True) where Keras runs on numpy takes the sigmoid and clips it, so "
    "that the loss of a logit of 100 is 15.94; on every other backend it is 100, which a spec with "
    "from_logits=True gives. Say which backend is meant, as in keras[tensorflow].",
)


def _axis(last: Callable[[Any, str | None], bool], refusal: Refusal) -> Lens:
    """The class axis, written as the last one where Keras refuses any other."""

    def write(spec: Any, backend: str | None) -> int:
        return -1 if spec.axis is None or last(spec, backend) else spec.axis

    return Lens(-1, lambda axis, _: {"axis": axis}, write, (_NO_AXIS, refusal))


def _order_of_indices(given: Given) -> dict[str, str]:
    # Keras on TensorFlow computes a softmax of the logarithms of the clipped probabilities.
    # Guarded by the row [2, 1, 1] of test_special_values.
    return {"renormalize": "after_clip" if given.backend == "tensorflow" else "before_clip"}


def _from_logits(renormalized: Callable[[Given], dict[str, str]], *refusals: Refusal) -> Lens:
    def read(from_logits: Any, given: Given) -> dict[str, Any]:
        if from_logits:
            return {"from_logits": True}
        return {"epsilon": "keras"} | renormalized(given)

    return Lens(default=False, read=read, write=lambda spec, _: spec.from_logits, refusals=refusals)


_SHORT = {"mean_squared_error": ("mse", "MSE"), "binary_crossentropy": ("bce", "BCE")}
"""Keras' short names of its functions."""


def _class_and_function(
    cls: str,
    function: str,
    fixed: Loss,
    lenses: dict[str, Lens],
    requires: dict[str, str] | None = None,
) -> tuple[LibraryLoss, LibraryLoss]:
    """A class, and the function of the same name, which reduces nothing and has no dtype."""
    called = f"keras.losses.{function}"
    unreduced = f"{called} gives one loss per position and reduces nothing."
    return (
        LibraryLoss(
            f"keras.losses.{cls}",
            fixed,
            lenses | {"name": unused(function), "dtype": _DTYPE},
            requires or {},
            data=("sample_weight",),
            reasons=_REASONS,
        ),
        LibraryLoss(
            called,
            fixed.replace(reduction="none"),
            {name: lens for name, lens in lenses.items() if name != "reduction"},
            {"reduction": unreduced} | (requires or {}),
            aliases=tuple(
                f"keras.{module}.{name}"
                for module in ("losses", "metrics")
                for name in (function, *_SHORT.get(function, ()))
                if (module, name) != ("losses", function)
            ),
            data=("y_true", "y_pred"),
            reasons=_REASONS,
        ),
    )


_PAIRS = (
    _class_and_function(
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        CrossEntropyLoss(),
        {
            "from_logits": _from_logits(_order_of_indices),
            "ignore_class": one_label(
                "ignore_class", None, "Keras ignores one class, and the spec has ignore_index={}."
            ),
            "reduction": _REDUCTION,
            "axis": _axis(lambda _, backend: backend != "torch", _AXIS_OF_INDICES),
        },
        {"label_smoothing": "Keras smooths dense labels alone."},
    ),
    _class_and_function(
        "CategoricalCrossentropy",
        "categorical_crossentropy",
        CrossEntropyLoss(),
        {
            "from_logits": _from_logits(lambda _: {"renormalize": "before_clip"}),
            "label_smoothing": pair("label_smoothing", 0.0),
            "axis": _axis(lambda spec, _: bool(spec.label_smoothing), _AXIS_OF_SMOOTHING),
            "reduction": _REDUCTION,
        },
    ),
    _class_and_function(
        "BinaryCrossentropy",
        "binary_crossentropy",
        BinaryCrossEntropyLoss(average_last_axis=True),
        {
            "from_logits": _from_logits(lambda _: {}, _CLIPPED_SIGMOID),
            "label_smoothing": pair("label_smoothing", 0.0),
            "axis": unused(-1, _NO_AXIS, _AVERAGED_AXIS),
            "reduction": _REDUCTION,
        },
    ),
    _class_and_function(
        "MeanSquaredError",
        "mean_squared_error",
        MeanSquaredError(average_last_axis=True),
        {"reduction": _REDUCTION},
    ),
    _class_and_function(
        "Huber",
        "huber",
        HuberLoss(average_last_axis=True),
        {"delta": pair("delta", 1.0), "reduction": _REDUCTION},
    ),
)
# Classes come first, because a model is compiled with them: a spec that both can express is
# written as the class.
register(*(cls for cls, _ in _PAIRS), *(function for _, function in _PAIRS))

STRINGS: dict[str, str] = {
    name: cls.name
    for cls, function in _PAIRS
    for of_function in (function.name.rpartition(".")[2],)
    for name in (cls.name.rpartition(".")[2], of_function, *_SHORT.get(of_function, ()))
}
"""The classes by the strings that ``compile(loss=...)`` takes; it averages a function's losses."""

CHOSEN_BY_SHAPE = ("crossentropy", "ce")
"""Strings for which Keras chooses the loss by the shapes of a call."""
