"""The table of TensorFlow's losses, ``tf.nn`` and ``tf.compat.v1.losses``: read and written."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from unifiedloss.checks import extents
from unifiedloss.interop.lens import Arguments, refuse
from unifiedloss.interop.library_loss import LibraryLoss, hand_written, register
from unifiedloss.interop.pos_weight import against_last_axes, along_one_axis, varying_axes
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_BY_NONZERO = "weighted_sum_by_nonzero_weights"

_REDUCTIONS: dict[str, dict[str, Any]] = {
    _BY_NONZERO: {"divisor": "nonzero", "on_empty": "zero"},
    "weighted_sum_over_batch_size": {"divisor": "all", "on_empty": "zero"},
    "weighted_mean": {"divisor": "weights", "on_empty": "zero"},
    "weighted_sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
}
"""The constants of tf.compat.v1.losses.Reduction, and the fields of a spec for each.

All means give 0 if there is nothing to average (div_no_nan).
"""

_DATA = ("labels", "logits", "predictions", "onehot_labels", "multi_class_labels")

_REASONS = MappingProxyType(
    {
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
)

_V1_REASONS = MappingProxyType(
    _REASONS
    | {
        "on_empty": "tf.compat.v1.losses gives 0 where nothing is left to average",
        "divisor": "tf.compat.v1.losses divides by the number of weights that are not 0, of all "
        "losses, or by the sum of weights",
        "dtype": "tf.compat.v1.losses casts everything but logits to float32",
        "ignore_index": "TensorFlow's losses ignore no label; in tf.compat.v1.losses a weight of 0 "
        "stands for that",
    }
)


# -------------------------------------------------------------------------------------------- tf.nn


def _dense(arguments: Arguments, _: str | None) -> Loss:
    return CrossEntropyLoss(from_logits=True, axis=arguments["axis"], reduction="none")


def _sparse(*_: Any) -> Loss:
    return CrossEntropyLoss(from_logits=True, axis=-1, reduction="none")


def _sigmoid(*_: Any) -> Loss:
    return BinaryCrossEntropyLoss(from_logits=True, reduction="none")


def _weighted(arguments: Arguments, _: str | None) -> Loss:
    value = arguments["pos_weight"]
    if value is None:
        refuse(
            "tf.nn.weighted_cross_entropy_with_logits needs its pos_weight, a number or an array "
            "that is written down here."
        )
    if len(varying_axes(value)) > 1:
        refuse(
            f"pos_weight of shape {extents(value)} weights elements one by one, and pos_weight of "
            "a spec runs along one axis; give the positive term of each class one weight."
        )
    weight, axis = along_one_axis(value)
    return BinaryCrossEntropyLoss(from_logits=True, pos_weight=weight, axis=axis, reduction="none")


def _check_unreduced(spec: Any) -> None:
    if spec.reduction != "none":
        refuse("The functions of tf.nn give one loss per position, and tf.reduce_mean reduces.")


def _from_dense(spec: CrossEntropyLoss) -> dict[str, Any]:
    _check_unreduced(spec)
    return {"axis": -1 if spec.axis is None else spec.axis}


def _from_weighted(spec: BinaryCrossEntropyLoss) -> dict[str, Any]:
    if spec.pos_weight is None:
        refuse(
            "tf.nn.weighted_cross_entropy_with_logits is about a pos_weight, and the spec has none."
        )
    _check_unreduced(spec)
    return {"pos_weight": against_last_axes(spec.pos_weight, spec.axis)}


def _no_arguments(spec: Any) -> dict[str, Any]:
    _check_unreduced(spec)
    return {}


register(
    hand_written(
        "tf.nn.sparse_softmax_cross_entropy_with_logits",
        CrossEntropyLoss,
        {"name": None},
        _sparse,
        _no_arguments,
        data=_DATA,
        reasons=_REASONS,
    ),
    hand_written(
        "tf.nn.softmax_cross_entropy_with_logits",
        CrossEntropyLoss,
        {"axis": -1, "name": None},
        _dense,
        _from_dense,
        data=_DATA,
        reasons=_REASONS,
    ),
    hand_written(
        "tf.nn.sigmoid_cross_entropy_with_logits",
        BinaryCrossEntropyLoss,
        {"name": None},
        _sigmoid,
        _no_arguments,
        data=_DATA,
        reasons=_REASONS,
    ),
    hand_written(
        "tf.nn.weighted_cross_entropy_with_logits",
        BinaryCrossEntropyLoss,
        {"pos_weight": None, "name": None},
        _weighted,
        _from_weighted,
        data=_DATA,
        tensors=("pos_weight",),
        reasons=_REASONS,
    ),
)


# ------------------------------------------------------------------------------ tf.compat.v1.losses


def _weighting(name: str, arguments: Arguments) -> dict[str, Any]:
    """The fields of a spec for `weights` and `reduction`."""
    reduction, weights = arguments["reduction"], arguments["weights"]
    if reduction not in _REDUCTIONS:
        refuse(
            f"{name}: reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got "
            f"{reduction!r}."
        )
    if isinstance(weights, bool) or not isinstance(weights, int | float):
        refuse(
            f"{name}: weights that are no single number belong to the examples of one call; leave "
            "them out here, and pass them to the spec as sample_weight."
        )
    if not weights > 0:
        refuse(
            f"{name}(weights={weights!r}) makes the loss 0 or turns its sign; scale of a spec is "
            "positive. Multiply the loss instead."
        )
    # In a weighted mean the factor cancels.
    scale = {} if reduction == "weighted_mean" else {"scale": weights}
    return _REDUCTIONS[reduction] | scale


def _v1_softmax(arguments: Arguments, _: str | None) -> Loss:
    fields = _weighting("tf.compat.v1.losses.softmax_cross_entropy", arguments)
    return CrossEntropyLoss(
        from_logits=True, axis=-1, label_smoothing=arguments["label_smoothing"], **fields
    )


def _v1_sparse(arguments: Arguments, _: str | None) -> Loss:
    fields = _weighting("tf.compat.v1.losses.sparse_softmax_cross_entropy", arguments)
    return CrossEntropyLoss(from_logits=True, axis=-1, **fields)


def _v1_sigmoid(arguments: Arguments, _: str | None) -> Loss:
    fields = _weighting("tf.compat.v1.losses.sigmoid_cross_entropy", arguments)
    return BinaryCrossEntropyLoss(
        from_logits=True, label_smoothing=arguments["label_smoothing"], **fields
    )


def _v1_log(arguments: Arguments, _: str | None) -> Loss:
    fields = _weighting("tf.compat.v1.losses.log_loss", arguments)
    epsilon = arguments["epsilon"]
    return BinaryCrossEntropyLoss(
        epsilon=epsilon, epsilon_added=bool(epsilon), dtype="float32", **fields
    )


def _v1_squared(arguments: Arguments, _: str | None) -> Loss:
    fields = _weighting("tf.compat.v1.losses.mean_squared_error", arguments)
    return MeanSquaredError(dtype="float32", **fields)


def _from_weighting(spec: Any) -> dict[str, Any]:
    if spec.reduction == "mean":
        by_divisor = {"all": "weighted_sum_over_batch_size", "weights": "weighted_mean"}
        reduction = by_divisor.get(spec.divisor, _BY_NONZERO)
    else:
        reduction = {"sum": "weighted_sum", "none": "none"}[spec.reduction]
    return {"weights": spec.scale, "reduction": reduction}


def _from_smoothed(spec: Any) -> dict[str, Any]:
    return _from_weighting(spec) | {"label_smoothing": spec.label_smoothing or 0}


def _from_sigmoid(spec: BinaryCrossEntropyLoss) -> dict[str, Any]:
    if spec.pos_weight is not None:
        refuse(
            "Of TensorFlow's losses, tf.nn.weighted_cross_entropy_with_logits alone weights the "
            "positive term."
        )
    return _from_smoothed(spec)


def _from_log(spec: BinaryCrossEntropyLoss) -> dict[str, Any]:
    if spec.from_logits:
        refuse("tf.compat.v1.losses.log_loss takes probabilities.")
    # This function adds epsilon. If the spec clips instead, reading the call back shows it.
    epsilon = spec.epsilon if isinstance(spec.epsilon, float) else 0.0
    return _from_weighting(spec) | {"epsilon": epsilon}


def _v1(
    name: str, loss: Any, arguments: dict[str, Any], to_spec: Any, from_spec: Any
) -> LibraryLoss:
    parameters = (
        {"weights": 1.0}
        | arguments
        | {"scope": None, "loss_collection": "losses", "reduction": _BY_NONZERO}
    )
    return hand_written(
        f"tf.compat.v1.losses.{name}",
        loss,
        parameters,
        to_spec,
        from_spec,
        data=_DATA,
        reasons=_V1_REASONS,
    )


# These come after tf.nn, which new code uses, so exports prefer tf.nn.
register(
    _v1("sparse_softmax_cross_entropy", CrossEntropyLoss, {}, _v1_sparse, _from_weighting),
    _v1(
        "softmax_cross_entropy",
        CrossEntropyLoss,
        {"label_smoothing": 0},
        _v1_softmax,
        _from_smoothed,
    ),
    _v1(
        "sigmoid_cross_entropy",
        BinaryCrossEntropyLoss,
        {"label_smoothing": 0},
        _v1_sigmoid,
        _from_sigmoid,
    ),
    _v1("log_loss", BinaryCrossEntropyLoss, {"epsilon": 1e-7}, _v1_log, _from_log),
    _v1("mean_squared_error", MeanSquaredError, {}, _v1_squared, _from_weighting),
)
