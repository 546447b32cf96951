"""The table of optax' losses: how each is read as a spec, and written from one."""

from __future__ import annotations

from unifiedloss.interop.lens import Lens, Refusal, class_axis, pair, unused
from unifiedloss.interop.library_loss import LibraryLoss, register
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.huber.spec import HuberLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_REASONS = {
    "reduction": "optax gives one loss per position and leaves the reduction to .mean() and .sum()",
    "axis": "optax takes a number as the axis",
    "label_smoothing": "optax smooths labels outside the loss, with optax.smooth_labels",
    "class_weights": "optax has no class weights; multiply the losses by class_weights[labels]",
    "ignore_index": "optax ignores no label",
    "from_logits": "optax's cross-entropies take logits",
    "pos_weight": "optax does not weight the positive term",
}


_WHERE = Refusal(
    lambda where, _: where is not None,
    "{given.name}(where=...) leaves classes out of the softmax, or positions out of the losses; a "
    "spec keeps every class, and takes positions to leave out as mask, given to the call. Leave "
    "where out.",
)
_SEVERAL_AXES = Refusal(
    lambda axis, _: isinstance(axis, bool) or not isinstance(axis, int),
    "{given.name}(axis={value!r}) spreads one softmax over several axes, and a spec has one class "
    "axis; reshape those axes into one.",
)


def _loss(
    name: str, fixed: Loss, lenses: dict[str, Lens] | None = None, *, exported: bool = True
) -> LibraryLoss:
    return LibraryLoss(
        f"optax.losses.{name}",
        fixed,
        lenses or {},
        aliases=(f"optax.{name}",),
        data=("logits", "labels", "predictions", "targets"),
        reasons=_REASONS,
        exported=exported,
    )


_SOFTMAX = CrossEntropyLoss(from_logits=True, axis=-1, reduction="none")
_AXIS = {"axis": class_axis(_SEVERAL_AXES), "where": unused(None, _WHERE)}

register(
    _loss("softmax_cross_entropy_with_integer_labels", _SOFTMAX, _AXIS),
    _loss("softmax_cross_entropy", _SOFTMAX, _AXIS),
    # It differs from the loss above only at infinite logits, where it computes what a spec does.
    # But it has no axis, so no spec is written as it.
    _loss("safe_softmax_cross_entropy", _SOFTMAX, exported=False),
    _loss(
        "sigmoid_binary_cross_entropy", BinaryCrossEntropyLoss(from_logits=True, reduction="none")
    ),
    _loss("squared_error", MeanSquaredError(reduction="none")),
    _loss("l2_loss", MeanSquaredError(scale=0.5, reduction="none")),
    _loss("huber_loss", HuberLoss(reduction="none"), {"delta": pair("delta", 1.0)}),
)
