"""The table of TensorFlow's losses, ``tf.nn`` and ``tf.compat.v1.losses``: read and written."""

from __future__ import annotations

from functools import partial
from typing import Any

from unifiedloss.interop.lens import Given, Lens, Refusal, choice, class_axis, pair, refuse, unused
from unifiedloss.interop.library_loss import LibraryLoss, register
from unifiedloss.interop.pos_weight import COVERED, pos_weight
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_DATA = ("labels", "logits", "predictions", "onehot_labels", "multi_class_labels")

_REASONS = {
    "reduction": "the functions of tf.nn give one loss per position and leave the rest to "
    "tf.reduce_mean",
    "axis": "TensorFlow takes a number as the axis",
    "class_weights": "TensorFlow's losses have no class weights; gather them by label, and "
    "multiply the losses by them",
    "ignore_index": "TensorFlow's losses ignore no label",
    "label_smoothing": "only tf.compat.v1.losses smooths labels, and only dense ones",
    "from_logits": "TensorFlow's cross-entropies take logits",
    "scale": "the functions of tf.nn have no factor; multiply the losses",
}

_V1_REASONS = _REASONS | {
    "on_empty": "tf.compat.v1.losses gives 0 where nothing is left to average",
    "divisor": "tf.compat.v1.losses divides by the number of weights that are not 0, of all "
    "losses, or by the sum of weights",
    "dtype": "tf.compat.v1.losses casts everything but logits to float32",
    "ignore_index": "TensorFlow's losses ignore no label; in tf.compat.v1.losses a weight of 0 "
    "stands for that",
}


# -------------------------------------------------------------------------------------------- tf.nn


_NO_POS_WEIGHT = Refusal(
    lambda weights, _: weights is None,
    "{given.name} needs its pos_weight, a number or an array that is written down here.",
)
_SEVERAL_AXES = (
    "pos_weight of shape {shape} weights elements one by one, and pos_weight of a spec runs along "
    "one axis; give the positive term of each class one weight."
)


def _check_weighted(spec: Any) -> None:
    if spec.pos_weight is None:
        refuse(
            "tf.nn.weighted_cross_entropy_with_logits is about a pos_weight, and the spec has none."
        )


_UNREDUCED = {
    "reduction": "The functions of tf.nn give one loss per position, and tf.reduce_mean reduces."
}
_NAME = unused(None)

_nn = partial(LibraryLoss, requires=_UNREDUCED, data=_DATA, reasons=_REASONS)

register(
    _nn(
        "tf.nn.sparse_softmax_cross_entropy_with_logits",
        CrossEntropyLoss(from_logits=True, axis=-1, reduction="none"),
        {"name": _NAME},
    ),
    _nn(
        "tf.nn.softmax_cross_entropy_with_logits",
        CrossEntropyLoss(from_logits=True, reduction="none"),
        {"axis": class_axis(), "name": _NAME},
    ),
    _nn(
        "tf.nn.sigmoid_cross_entropy_with_logits",
        BinaryCrossEntropyLoss(from_logits=True, reduction="none"),
        {"name": _NAME},
    ),
    _nn(
        "tf.nn.weighted_cross_entropy_with_logits",
        BinaryCrossEntropyLoss(from_logits=True, reduction="none"),
        {"pos_weight": pos_weight(_SEVERAL_AXES, _check_weighted, _NO_POS_WEIGHT), "name": _NAME},
        # No other loss of TensorFlow weights the positive term, so it is the nearest one of a mean.
        requires={},
        reasons=_REASONS
        | {
            "axis": "TensorFlow aligns pos_weight to the last axes; count it from the end, as "
            "in axis=-3 for images (N, C, H, W)"
        },
        covers=COVERED,
    ),
)


# ------------------------------------------------------------------------------ tf.compat.v1.losses

# The values are the constants of tf.compat.v1.losses.Reduction. All means give 0 if there is
# nothing to average (div_no_nan).
_REDUCTIONS: dict[str, dict[str, Any]] = {
    "weighted_sum_by_nonzero_weights": {
        "reduction": "mean",
        "divisor": "nonzero",
        "on_empty": "zero",
    },
    "weighted_sum_over_batch_size": {"reduction": "mean", "divisor": "all", "on_empty": "zero"},
    "weighted_mean": {"reduction": "mean", "divisor": "weights", "on_empty": "zero"},
    "weighted_sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
}


_UNKNOWN_REDUCTION = Refusal(
    lambda reduction, _: reduction not in _REDUCTIONS,
    "{given.name}: reduction must be one of "
    f"{', '.join(map(repr, _REDUCTIONS))}, got {{value!r}}.",
)
_NO_NUMBER = Refusal(
    lambda weights, _: isinstance(weights, bool) or not isinstance(weights, int | float),
    "{given.name}: weights that are no single number belong to the examples of one call; leave "
    "them out here, and pass them to the spec as sample_weight.",
)
_NOT_POSITIVE = Refusal(
    lambda weights, _: not weights > 0,
    "{given.name}(weights={value!r}) makes the loss 0 or turns its sign; scale of a spec is "
    "positive. Multiply the loss instead.",
)


def _scale(weights: Any, given: Given) -> dict[str, Any]:
    # In a weighted mean the factor cancels.
    return {} if given.arguments["reduction"] == "weighted_mean" else {"scale": weights}


def _added_epsilon(spec: Any, _: str | None) -> float:
    # This function adds epsilon. If the spec clips instead, reading the call back shows it.
    return spec.epsilon if isinstance(spec.epsilon, float) else 0.0


_WEIGHTS = Lens(1.0, _scale, lambda spec, _: spec.scale, (_NO_NUMBER, _NOT_POSITIVE))
_SMOOTHING = pair("label_smoothing", 0, written=lambda smoothing: smoothing or 0)
_EPSILON = Lens(
    1e-7,
    lambda epsilon, _: {"epsilon": epsilon, "epsilon_added": bool(epsilon)},
    _added_epsilon,
)


def _v1(name: str, fixed: Loss, lenses: dict[str, Lens], **others: Any) -> LibraryLoss:
    weighting = {
        "scope": unused(None),
        "loss_collection": unused("losses"),
        "reduction": choice(_REDUCTIONS, _UNKNOWN_REDUCTION),
    }
    return LibraryLoss(
        f"tf.compat.v1.losses.{name}",
        fixed,
        {"weights": _WEIGHTS} | lenses | weighting,
        data=_DATA,
        reasons=_V1_REASONS,
        **others,
    )


# These come after tf.nn, which new code uses, so exports prefer tf.nn.
register(
    _v1("sparse_softmax_cross_entropy", CrossEntropyLoss(from_logits=True, axis=-1), {}),
    _v1(
        "softmax_cross_entropy",
        CrossEntropyLoss(from_logits=True, axis=-1),
        {"label_smoothing": _SMOOTHING},
    ),
    _v1(
        "sigmoid_cross_entropy",
        BinaryCrossEntropyLoss(from_logits=True),
        {"label_smoothing": _SMOOTHING},
        requires={
            "pos_weight": "Of TensorFlow's losses, tf.nn.weighted_cross_entropy_with_logits alone "
            "weights the positive term."
        },
    ),
    _v1(
        "log_loss",
        BinaryCrossEntropyLoss(dtype="float32"),
        {"epsilon": _EPSILON},
        requires={"from_logits": "tf.compat.v1.losses.log_loss takes probabilities."},
    ),
    _v1("mean_squared_error", MeanSquaredError(dtype="float32"), {}),
)
