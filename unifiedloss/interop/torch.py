"""The table of PyTorch's losses: how each is read as a spec, and written from one."""

from __future__ import annotations

from functools import partial
from typing import Any

from unifiedloss.interop.lens import Given, Lens, Refusal, one_label, pair, refuse, unused
from unifiedloss.interop.library_loss import LibraryLoss, register
from unifiedloss.interop.pos_weight import COVERED, pos_weight
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.huber.spec import HuberLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Loss

_REASONS = {
    "axis": "torch has the classes on axis 1",
    "ignore_index": "torch always ignores one label",
    "divisor": "torch divides by the sum of the labels' class weights; with dense targets, by "
    "the number of positions; in an elementwise loss, by the number of elements that no mask drops",
    "on_empty": "torch gives NaN where nothing is left to average",
    "epsilon": "torch clamps logarithms at -100 and clips nothing",
    "label_smoothing": "torch smooths labels only in torch.nn.CrossEntropyLoss",
    "class_weighting": "torch multiplies the entries of the smoothed target by the class weights",
    "element_weights": "torch.nn.functional.mse_loss takes weights of the predictions' own "
    "shape, and those of a spec are repeated along the axes before theirs; multiply the losses "
    "of reduction='none' by them",
    "average_last_axis": "torch reduces all axes at once",
    "scale": "torch has no factor; multiply the loss it gives",
    "dtype": "torch computes in the dtype of the predictions",
    "rounding": "torch rounds as its kernels do",
}

_SEVERAL_LABELS = (
    "torch ignores one label, and the spec has ignore_index={}: give all of them the same label."
)


def _effective(reduction: Any, given: Given) -> dict[str, Any]:
    """As in torch, `size_average` and `reduce` override `reduction`."""
    average, reduce = given.arguments["size_average"], given.arguments["reduce"]
    if average is None and reduce is None:
        return {"reduction": reduction}
    if reduce is not None and not reduce:
        return {"reduction": "none"}
    return {"reduction": "mean" if average is None or average else "sum"}


_SEVERAL_AXES = (
    "pos_weight of shape {shape} varies along {axes} axes, and that of a spec runs along one; give "
    "one number for each class, and if elements are to be weighted too, do it with weight."
)


def _check_axis(spec: Any) -> None:
    if isinstance(spec.pos_weight, tuple) and spec.axis is not None and spec.axis >= 0:
        refuse(
            f"torch aligns pos_weight to the last axes, and the spec counts axis={spec.axis} from "
            "the front: count it from the end, as in axis=-3 for images (N, C, H, W)."
        )


_CLASS_WEIGHTS = pair("class_weights", None, tensor=True)
_ELEMENT_WEIGHTS = pair("element_weights", None, tensor=True)
# torch's binary losses divide by the number of elements, whatever their weights are. torch knows no
# mask, so no call shows whether a masked element counts; in all losses it does not.
_UNCOUNTED_WEIGHTS = Lens(
    None,
    lambda weight, _: {} if weight is None else {"element_weights": weight, "divisor": "present"},
    lambda spec, _: spec.element_weights,
    tensor=True,
)
# So these divisors are the same in every call of torch, with weights and without.
_COUNTS: dict[str, tuple[Any, ...]] = {"divisor": ("present", "all")}
_IGNORED = one_label("ignore_index", -100, _SEVERAL_LABELS)
_DEPRECATED = unused(None)
"""`_effective` reads the two deprecated arguments; a spec is written without them."""
# torch 1.0 named the mean so, and torch still takes the name, with a warning.
_OLD_NAMES = {"elementwise_mean": "mean"}
_REDUCTION = Lens("mean", _effective, lambda spec, _: spec.reduction, renamed=_OLD_NAMES)
_REDUCTIONS = {"size_average": _DEPRECATED, "reduce": _DEPRECATED, "reduction": _REDUCTION}

_loss = partial(LibraryLoss, data=("input", "target"), reasons=_REASONS)


def _module_and_function(
    name: str, function: str, fixed: Loss, lenses: dict[str, Lens], **others: Any
) -> None:
    """Register a module and a function of the same arguments; specs are written as the module."""
    register(
        _loss(f"torch.nn.{name}", fixed, lenses, **others),
        _loss(f"torch.nn.functional.{function}", fixed, lenses, exported=False, **others),
    )


_module_and_function(
    "CrossEntropyLoss",
    "cross_entropy",
    CrossEntropyLoss(from_logits=True, axis=1, divisor="label_weights"),
    {
        "weight": _CLASS_WEIGHTS,
        "size_average": _DEPRECATED,
        "ignore_index": _IGNORED,
        "reduce": _DEPRECATED,
        "reduction": _REDUCTION,
        "label_smoothing": pair("label_smoothing", 0.0),
    },
)
_module_and_function(
    "NLLLoss",
    "nll_loss",
    NegativeLogLikelihoodLoss(axis=1, divisor="label_weights"),
    {
        "weight": _CLASS_WEIGHTS,
        "size_average": _DEPRECATED,
        "ignore_index": _IGNORED,
        "reduce": _DEPRECATED,
        "reduction": _REDUCTION,
    },
)
_module_and_function(
    "BCELoss",
    "binary_cross_entropy",
    BinaryCrossEntropyLoss(epsilon="torch"),
    {"weight": _UNCOUNTED_WEIGHTS, **_REDUCTIONS},
    requires={"from_logits": "torch.nn.BCELoss takes probabilities, and the spec logits."},
    covers=_COUNTS,
)
_module_and_function(
    "BCEWithLogitsLoss",
    "binary_cross_entropy_with_logits",
    BinaryCrossEntropyLoss(from_logits=True),
    {
        "weight": _UNCOUNTED_WEIGHTS,
        **_REDUCTIONS,
        "pos_weight": pos_weight(_SEVERAL_AXES, _check_axis),
    },
    requires={
        "from_logits": "torch.nn.BCEWithLogitsLoss takes logits, and the spec probabilities."
    },
    covers=COVERED | _COUNTS,
)
register(_loss("torch.nn.MSELoss", MeanSquaredError(), _REDUCTIONS, covers=_COUNTS))
# The function also takes weights. It does not broadcast them, and a spec does, so no spec is
# written as it. Guarded by test_weights_that_mse_loss_takes.
register(
    _loss(
        "torch.nn.functional.mse_loss",
        MeanSquaredError(),
        {**_REDUCTIONS, "weight": _ELEMENT_WEIGHTS},
        exported=False,
    )
)
_HUBER = {"reduction": pair("reduction", "mean", renamed=_OLD_NAMES), "delta": pair("delta", 1.0)}
register(_loss("torch.nn.HuberLoss", HuberLoss(), _HUBER, covers=_COUNTS))
# As for mse_loss, the function takes weights that it does not broadcast.
register(
    _loss(
        "torch.nn.functional.huber_loss",
        HuberLoss(),
        {**_HUBER, "weight": _ELEMENT_WEIGHTS},
        exported=False,
    )
)
_ABSOLUTE = Refusal(
    lambda beta, _: not beta,
    "{given.name}(beta=0) is the absolute error, and a spec is quadratic near 0; give a positive "
    "beta.",
)
# The smooth L1 loss is the Huber loss divided by its threshold.
_BETA = Lens(
    1.0,
    lambda beta, _: {"delta": beta, "scale": 1 / beta},
    lambda spec, _: spec.delta,
    (_ABSOLUTE,),
)
_module_and_function(
    "SmoothL1Loss",
    "smooth_l1_loss",
    HuberLoss(),
    {**_REDUCTIONS, "beta": _BETA},
    covers=_COUNTS,
)
