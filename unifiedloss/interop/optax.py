"""The table of optax' losses: how each is read as a spec, and written from one."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from unifiedloss.interop.lens import Arguments, refuse
from unifiedloss.interop.library_loss import LibraryLoss, hand_written, register
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_DATA = ("logits", "labels", "predictions", "targets")

_REASONS = MappingProxyType(
    {
        "reduction": "optax gives one loss per position and leaves the reduction to .mean() and "
        ".sum()",
        "axis": "optax takes a number as the axis",
        "label_smoothing": "optax smooths labels outside the loss, with optax.smooth_labels",
        "class_weights": "optax has no class weights; multiply the losses by class_weights[labels]",
        "ignore_index": "optax ignores no label",
        "from_logits": "optax's cross-entropies take logits",
        "pos_weight": "optax does not weight the positive term",
    }
)


def _softmax(name: str, arguments: Arguments) -> Loss:
    if arguments["where"] is not None:
        refuse(
            f"{name}(where=...) leaves classes out of the softmax, or positions out of the losses; "
            "a spec keeps every class, and takes positions to leave out as mask, given to the "
            "call. Leave where out."
        )
    axis = arguments["axis"]
    if isinstance(axis, bool) or not isinstance(axis, int):
        refuse(
            f"{name}(axis={axis!r}) spreads one softmax over several axes, and a spec has one "
            "class axis; reshape those axes into one."
        )
    return CrossEntropyLoss(from_logits=True, axis=axis, reduction="none")


def _from_softmax(spec: CrossEntropyLoss) -> dict[str, Any]:
    return {"axis": -1 if spec.axis is None else spec.axis}


def _always(spec: Loss) -> Callable[..., Loss]:
    """The `to_spec` of a function without arguments."""
    return lambda *_: spec


def _no_arguments(_: Any) -> dict[str, Any]:
    return {}


def _entry(
    name: str,
    loss: type[Loss],
    to_spec: Any,
    from_spec: Any,
    parameters: dict[str, Any],
    *,
    exported: bool = True,
) -> LibraryLoss:
    full = f"optax.losses.{name}"
    return hand_written(
        full,
        loss,
        parameters,
        lambda arguments, _: to_spec(full, arguments),
        from_spec,
        aliases=(f"optax.{name}",),
        data=_DATA,
        reasons=_REASONS,
        exported=exported,
    )


_AXIS = {"axis": -1, "where": None}

register(
    _entry(
        "softmax_cross_entropy_with_integer_labels",
        CrossEntropyLoss,
        _softmax,
        _from_softmax,
        _AXIS,
    ),
    _entry("softmax_cross_entropy", CrossEntropyLoss, _softmax, _from_softmax, _AXIS),
    # It differs from the loss above only at infinite logits, where it computes what a spec does.
    # But it has no axis, so no spec is written as it.
    _entry(
        "safe_softmax_cross_entropy",
        CrossEntropyLoss,
        _always(CrossEntropyLoss(from_logits=True, axis=-1, reduction="none")),
        _no_arguments,
        {},
        exported=False,
    ),
    _entry(
        "sigmoid_binary_cross_entropy",
        BinaryCrossEntropyLoss,
        _always(BinaryCrossEntropyLoss(from_logits=True, reduction="none")),
        _no_arguments,
        {},
    ),
    _entry(
        "squared_error",
        MeanSquaredError,
        _always(MeanSquaredError(reduction="none")),
        _no_arguments,
        {},
    ),
    _entry(
        "l2_loss",
        MeanSquaredError,
        _always(MeanSquaredError(scale=0.5, reduction="none")),
        _no_arguments,
        {},
    ),
)
