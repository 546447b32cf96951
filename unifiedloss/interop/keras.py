"""The table of Keras 3's losses, classes and functions: read as specs, and written from specs."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from unifiedloss.checks import integer
from unifiedloss.floats import HALF_TYPES
from unifiedloss.interop.lens import Arguments, refuse
from unifiedloss.interop.library_loss import LibraryLoss, hand_written, register
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_REDUCTIONS = {
    "sum_over_batch_size": "mean",
    "mean": "mean",
    "sum": "sum",
    "none": "none",
    None: "none",
}

_REASONS = MappingProxyType(
    {
        "divisor": "Keras divides by the number of positions that its mask keeps, whatever the "
        "weights",
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
)


def _checked_reduction(name: str, arguments: Arguments) -> str:
    reduction = arguments["reduction"]
    if reduction == "mean_with_sample_weight":
        refuse(
            f"{name}(reduction='mean_with_sample_weight') divides by the sum of the sample weights "
            "as they are passed, before they are broadcast, so that its mean of losses (2, 3) "
            "with weights (2, 1) is three times too large; a spec with divisor='weights' "
            "broadcasts first."
        )
    if reduction not in _REDUCTIONS:
        known = ", ".join(map(repr, _REDUCTIONS))
        refuse(
            f"{name}: reduction must be one of {known} or 'mean_with_sample_weight', got "
            f"{reduction!r}."
        )
    return _REDUCTIONS[reduction]


def _checked_dtype(name: str, arguments: Arguments, backend: str | None) -> str:
    dtype = arguments["dtype"] or "float32"
    if dtype == "float64" and backend != "tensorflow":
        # In Keras 3.15, keras.ops treats float64 as Python's float and casts it to float32.
        # Guarded by test_refusals_are_real.
        refuse(
            f"{name}(dtype='float64') computes a part in float32 where Keras runs on {backend}, "
            "not on tensorflow; use dtype='float32' or write the spec with dtype='float64'."
        )
    if dtype not in ("float32", "float64", *HALF_TYPES, *(f"mixed_{half}" for half in HALF_TYPES)):
        refuse(
            f"{name}(dtype={dtype!r}) casts predictions and labels to that dtype before it looks "
            "at them, in int32 1.5 to 1, and a spec computes in float32 or float64; use "
            "dtype='float32'."
        )
    if dtype not in ("float32", "float64"):
        refuse(
            f"{name}(dtype={dtype!r}) rounds labels and predictions to that dtype before it looks "
            "at them: in bfloat16 the label 257 is 256 (keras#15012). Use dtype='float32', in "
            "which a spec reads half predictions anyway."
        )
    return str(dtype)


def _of_class(name: str, arguments: Arguments, backend: str | None) -> dict[str, Any]:
    """The fields that `reduction` and `dtype` set; functions have neither argument."""
    if "reduction" not in arguments:
        return {"reduction": "none"}
    reduction, dtype = _checked_reduction(name, arguments), _checked_dtype(name, arguments, backend)
    if reduction != "mean":
        return {"reduction": reduction, "dtype": dtype}
    # Keras' mask excludes positions from the count, and a sample weight of 0 does not.
    # keras.src.losses.loss.reduce_values divides with divide_no_nan.
    # Guarded by test_special_values of tests/keras_interop_checks.py.
    return {"reduction": "mean", "divisor": "present", "on_empty": "zero", "dtype": dtype}


def _probabilities(arguments: Arguments, renormalize: str | None) -> dict[str, Any]:
    if arguments["from_logits"]:
        return {"from_logits": True}
    return {"epsilon": "keras"} | ({} if renormalize is None else {"renormalize": renormalize})


def _axis(name: str, arguments: Arguments) -> int:
    axis = arguments["axis"]
    if isinstance(axis, bool) or not isinstance(axis, int):
        refuse(f"{name}: axis must be an int, got {axis!r}.")
    return axis


def _from_spec_axis(spec: CrossEntropyLoss) -> int:
    return -1 if spec.axis is None else spec.axis


def _sparse(name: str, arguments: Arguments, backend: str | None) -> Loss:
    axis = _axis(name, arguments)
    if axis != -1 and backend != "torch":
        # Of the four backends in keras-team/keras, only torch moves the class axis.
        # Guarded by test_refusals_are_real.
        refuse(
            f"{name}(axis={axis}) works where Keras runs on torch, and here it runs on {backend}, "
            "which asks for the last axis; move the classes there and leave axis out."
        )
    # Keras on TensorFlow computes a softmax of the logarithms of the clipped probabilities.
    # Guarded by the row [2, 1, 1] of test_special_values.
    order = "after_clip" if backend == "tensorflow" else "before_clip"
    fields = _of_class(name, arguments, backend) | _probabilities(arguments, order)
    ignored = arguments["ignore_class"]
    if ignored is not None:
        ignored = integer("ignore_class", ignored)
    return CrossEntropyLoss(axis=axis, ignore_index=ignored, **fields)


def _categorical(name: str, arguments: Arguments, backend: str | None) -> Loss:
    axis, smoothing = _axis(name, arguments), arguments["label_smoothing"]
    if smoothing and axis != -1:
        # keras#23437. Guarded by test_refused_smoothing_axis_is_real.
        refuse(
            f"{name}(axis={axis}, label_smoothing={smoothing}) divides what it smooths by the "
            "length of the last axis, whichever holds the classes; a spec counts the classes. "
            "Move them to the last axis, or write the spec."
        )
    fields = _of_class(name, arguments, backend) | _probabilities(arguments, "before_clip")
    return CrossEntropyLoss(axis=axis, label_smoothing=smoothing, **fields)


def _binary(name: str, arguments: Arguments, backend: str | None) -> Loss:
    axis = _axis(name, arguments)
    if axis != -1:
        refuse(
            f"{name}(axis={axis}) averages axis {axis} before it reduces, and average_last_axis of "
            "a spec is about the last; move that axis to the end and leave axis out."
        )
    if arguments["from_logits"] and backend == "numpy":
        # Guarded by test_refusals_are_real.
        refuse(
            f"{name}(from_logits=True) where Keras runs on numpy takes the sigmoid and clips it, "
            "so that the loss of a logit of 100 is 15.94; on every other backend it is 100, which "
            "a spec with from_logits=True gives. Say which backend is meant, as in "
            "keras[tensorflow]."
        )
    fields = _of_class(name, arguments, backend) | _probabilities(arguments, None)
    return BinaryCrossEntropyLoss(
        average_last_axis=True, label_smoothing=arguments["label_smoothing"], **fields
    )


def _squared(name: str, arguments: Arguments, backend: str | None) -> Loss:
    return MeanSquaredError(average_last_axis=True, **_of_class(name, arguments, backend))


def _class_arguments(spec: Any) -> dict[str, Any]:
    reduction = {"mean": "sum_over_batch_size"}.get(spec.reduction, spec.reduction)
    return {
        "reduction": reduction,
        "dtype": None if spec.dtype in (None, "float32") else spec.dtype,
    }


def _from_sparse(spec: CrossEntropyLoss) -> dict[str, Any]:
    labels: Any = spec.ignore_index or (None,)
    if len(labels) > 1:
        refuse(f"Keras ignores one class, and the spec has ignore_index={list(labels)}.")
    if spec.label_smoothing:
        refuse("Keras smooths dense labels alone.")
    return {
        "from_logits": spec.from_logits,
        "ignore_class": labels[0],
        "axis": _from_spec_axis(spec),
    }


def _last_axis(arguments: Arguments, backend: str) -> Arguments:
    """Replace the axis by the last one on the backends that refuse any other axis."""
    return arguments if backend == "torch" else {**arguments, "axis": -1}


def _from_categorical(spec: CrossEntropyLoss) -> dict[str, Any]:
    return {
        "from_logits": spec.from_logits,
        "label_smoothing": spec.label_smoothing,
        "axis": -1 if spec.label_smoothing else _from_spec_axis(spec),
    }


def _from_binary(spec: BinaryCrossEntropyLoss) -> dict[str, Any]:
    return {"from_logits": spec.from_logits, "label_smoothing": spec.label_smoothing}


def _from_squared(_: MeanSquaredError) -> dict[str, Any]:
    return {}


_SMOOTHED = {"from_logits": False, "label_smoothing": 0.0, "axis": -1}

_LOSSES: tuple[tuple[str, str, type[Loss], dict[str, Any], Any, Any], ...] = (
    (
        "SparseCategoricalCrossentropy",
        "sparse_categorical_crossentropy",
        CrossEntropyLoss,
        {
            "from_logits": False,
            "ignore_class": None,
            "reduction": "sum_over_batch_size",
            "axis": -1,
        },
        _sparse,
        _from_sparse,
    ),
    (
        "CategoricalCrossentropy",
        "categorical_crossentropy",
        CrossEntropyLoss,
        _SMOOTHED | {"reduction": "sum_over_batch_size"},
        _categorical,
        _from_categorical,
    ),
    (
        "BinaryCrossentropy",
        "binary_crossentropy",
        BinaryCrossEntropyLoss,
        _SMOOTHED | {"reduction": "sum_over_batch_size"},
        _binary,
        _from_binary,
    ),
    (
        "MeanSquaredError",
        "mean_squared_error",
        MeanSquaredError,
        {"reduction": "sum_over_batch_size"},
        _squared,
        _from_squared,
    ),
)
"""Class, function, spec class, the parameters in Keras' order, `to_spec` and `from_spec`."""


def _class_and_function(
    cls: str,
    function: str,
    loss: type[Loss],
    parameters: dict[str, Any],
    to_spec: Any,
    from_spec: Any,
) -> tuple[LibraryLoss, LibraryLoss]:
    name, called = f"keras.losses.{cls}", f"keras.losses.{function}"
    adapt = _last_axis if to_spec is _sparse else None

    def from_reduced(spec: Any) -> dict[str, Any]:
        return {**from_spec(spec), **_class_arguments(spec)}

    def from_unreduced(spec: Any) -> dict[str, Any]:
        if spec.reduction != "none":
            refuse(f"{called} gives one loss per position and reduces nothing.")
        arguments: dict[str, Any] = from_spec(spec)
        return arguments

    return (
        hand_written(
            name,
            loss,
            parameters | {"name": function, "dtype": None},
            lambda arguments, backend: to_spec(name, arguments, backend),
            from_reduced,
            data=("sample_weight",),
            reasons=_REASONS,
            adapt=adapt,
        ),
        hand_written(
            called,
            loss,
            {
                parameter: default
                for parameter, default in parameters.items()
                if parameter != "reduction"
            },
            lambda arguments, backend: to_spec(called, arguments, backend),
            from_unreduced,
            aliases=(f"keras.metrics.{function}",),
            data=("y_true", "y_pred"),
            reasons=_REASONS,
            adapt=adapt,
        ),
    )


# Classes come first, because a model is compiled with them: a spec that both can express is
# written as the class.
_PAIRS = [_class_and_function(*loss) for loss in _LOSSES]
register(*(pair[0] for pair in _PAIRS), *(pair[1] for pair in _PAIRS))
