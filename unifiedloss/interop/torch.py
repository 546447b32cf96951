"""The table of PyTorch's losses: how each is read as a spec, and written from one."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from unifiedloss.checks import extents, integer
from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.library_loss import Arguments, LibraryLoss, register
from unifiedloss.interop.pos_weight import against_last_axes, along_one_axis, varying_axes
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Loss

_REASONS = MappingProxyType(
    {
        "axis": "torch has the classes on axis 1",
        "ignore_index": "torch always ignores one label",
        "divisor": "torch divides by the sum of the labels' class weights; with dense targets, by "
        "the number of positions; in an elementwise loss, by the number of elements",
        "on_empty": "torch gives NaN where nothing is left to average",
        "epsilon": "torch clamps logarithms at -100 and clips nothing",
        "label_smoothing": "torch smooths labels only in torch.nn.CrossEntropyLoss",
        "class_weighting": "torch multiplies the entries of the smoothed target by the class "
        "weights",
        "element_weights": "torch.nn.functional.mse_loss takes weights of the predictions' own "
        "shape, and those of a spec are repeated along the axes before theirs; multiply the losses "
        "of reduction='none' by them",
        "average_last_axis": "torch reduces all axes at once",
        "scale": "torch has no factor; multiply the loss it gives",
        "dtype": "torch computes in the dtype of the predictions",
        "rounding": "torch rounds as its kernels do",
    }
)


def _reduction(arguments: Arguments) -> Any:
    """The effective reduction: as in torch, `size_average` and `reduce` override `reduction`."""
    average, reduce = arguments["size_average"], arguments["reduce"]
    if average is None and reduce is None:
        return arguments["reduction"]
    if reduce is not None and not reduce:
        return "none"
    return "mean" if average is None or average else "sum"


# ------------------------------------------------------------------------------------------ reading


def _cross_entropy(arguments: Arguments, _backend: str | None) -> Loss:
    return CrossEntropyLoss(
        from_logits=True,
        axis=1,
        class_weights=arguments["weight"],
        ignore_index=integer("ignore_index", arguments["ignore_index"]),
        label_smoothing=arguments["label_smoothing"],
        divisor="label_weights",
        reduction=_reduction(arguments),
    )


def _likelihood(arguments: Arguments, _backend: str | None) -> Loss:
    return NegativeLogLikelihoodLoss(
        axis=1,
        class_weights=arguments["weight"],
        ignore_index=integer("ignore_index", arguments["ignore_index"]),
        divisor="label_weights",
        reduction=_reduction(arguments),
    )


def _binary(arguments: Arguments, _backend: str | None) -> Loss:
    return BinaryCrossEntropyLoss(
        epsilon="torch",
        element_weights=arguments["weight"],
        divisor="all",
        reduction=_reduction(arguments),
    )


def _binary_logits(arguments: Arguments, _backend: str | None) -> Loss:
    several = varying_axes(arguments["pos_weight"])
    if len(several) > 1:
        msg = (
            f"pos_weight of shape {extents(arguments['pos_weight'])} varies along {len(several)} "
            "axes, and that of a spec runs along one; give one number for each class, and if "
            "elements are to be weighted too, do it with weight."
        )
        raise UnsupportedError(msg)
    pos_weight, axis = along_one_axis(arguments["pos_weight"])
    return BinaryCrossEntropyLoss(
        from_logits=True,
        pos_weight=pos_weight,
        axis=axis,
        element_weights=arguments["weight"],
        divisor="all",
        reduction=_reduction(arguments),
    )


def _squared(arguments: Arguments, _backend: str | None) -> Loss:
    return MeanSquaredError(
        element_weights=arguments.get("weight"), reduction=_reduction(arguments)
    )


# ------------------------------------------------------------------------------------------ writing


def _ignored(spec: CrossEntropyLoss | NegativeLogLikelihoodLoss) -> int:
    """The one label that torch ignores."""
    labels: tuple[int, ...] = spec.ignore_index or (-100,)  # type: ignore[assignment]
    if len(labels) > 1:
        msg = (
            f"torch ignores one label, and the spec has ignore_index={list(labels)}: give all of "
            "them the same label."
        )
        raise UnsupportedError(msg)
    return labels[0]


def _from_cross_entropy(spec: CrossEntropyLoss) -> Arguments:
    return {
        "weight": spec.class_weights,
        "ignore_index": _ignored(spec),
        "reduction": spec.reduction,
        "label_smoothing": spec.label_smoothing,
    }


def _from_likelihood(spec: NegativeLogLikelihoodLoss) -> Arguments:
    return {
        "weight": spec.class_weights,
        "ignore_index": _ignored(spec),
        "reduction": spec.reduction,
    }


def _from_binary(spec: BinaryCrossEntropyLoss) -> Arguments:
    if spec.from_logits:
        msg = "torch.nn.BCELoss takes probabilities, and the spec logits."
        raise UnsupportedError(msg)
    return {"weight": spec.element_weights, "reduction": spec.reduction}


def _from_binary_logits(spec: BinaryCrossEntropyLoss) -> Arguments:
    if not spec.from_logits:
        msg = "torch.nn.BCEWithLogitsLoss takes logits, and the spec probabilities."
        raise UnsupportedError(msg)
    if isinstance(spec.pos_weight, tuple) and spec.axis is not None and spec.axis >= 0:
        msg = (
            f"torch aligns pos_weight to the last axes, and the spec counts axis={spec.axis} from "
            "the front: count it from the end, as in axis=-3 for images (N, C, H, W)."
        )
        raise UnsupportedError(msg)
    pos_weight = against_last_axes(spec.pos_weight, spec.axis)
    return {"weight": spec.element_weights, "reduction": spec.reduction, "pos_weight": pos_weight}


def _from_squared(spec: MeanSquaredError) -> Arguments:
    return {"reduction": spec.reduction}


# ---------------------------------------------------------------------------------------- the table


def _entry(
    name: str,
    loss: type[Loss],
    parameters: dict[str, Any],
    to_spec: Callable[[Arguments, str | None], Loss],
    from_spec: Callable[[Any], Arguments],
    *,
    exported: bool = True,
) -> LibraryLoss:
    return LibraryLoss(
        name,
        loss,
        parameters,
        to_spec,
        from_spec,
        data=("input", "target"),
        tensors=("weight", "pos_weight"),
        reasons=_REASONS,
        exported=exported,
    )


_LABELS = {
    "weight": None,
    "size_average": None,
    "ignore_index": -100,
    "reduce": None,
    "reduction": "mean",
}
_SMOOTHED = {**_LABELS, "label_smoothing": 0.0}
_PLAIN = {"size_average": None, "reduce": None, "reduction": "mean"}
_WEIGHTED = {"weight": None, **_PLAIN}
_CLASSES = (
    (
        "CrossEntropyLoss",
        "cross_entropy",
        CrossEntropyLoss,
        _SMOOTHED,
        _cross_entropy,
        _from_cross_entropy,
    ),
    ("NLLLoss", "nll_loss", NegativeLogLikelihoodLoss, _LABELS, _likelihood, _from_likelihood),
    ("BCELoss", "binary_cross_entropy", BinaryCrossEntropyLoss, _WEIGHTED, _binary, _from_binary),
    (
        "BCEWithLogitsLoss",
        "binary_cross_entropy_with_logits",
        BinaryCrossEntropyLoss,
        {**_WEIGHTED, "pos_weight": None},
        _binary_logits,
        _from_binary_logits,
    ),
)
for _name, _function, *_rest in _CLASSES:
    _full_name = f"torch.nn.functional.{_function}"
    register(_entry(f"torch.nn.{_name}", *_rest))  # type: ignore[arg-type]
    register(_entry(_full_name, *_rest, exported=False))  # type: ignore[arg-type]
# Only the function takes weights. It does not broadcast them, and a spec does, so no spec is
# written as it. Guarded by test_weights_that_mse_loss_takes.
register(
    _entry("torch.nn.MSELoss", MeanSquaredError, _PLAIN, _squared, _from_squared),
    _entry(
        "torch.nn.functional.mse_loss",
        MeanSquaredError,
        {**_PLAIN, "weight": None},
        _squared,
        _from_squared,
        exported=False,
    ),
)
