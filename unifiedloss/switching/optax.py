"""The losses of optax."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from unifiedloss.spec import (
    AnyLoss,
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    Loss,
    MeanSquaredError,
)
from unifiedloss.switching.library_loss import Arguments, LibraryLoss, refuse, register

_DATA = ("logits", "labels", "predictions", "targets")

_REASONS = MappingProxyType(
    {
        "reduction": "optax gives one loss per position and leaves the reduction to .mean() and .sum().",
        "axis": "optax takes a number.",
        "label_smoothing": "optax smooths labels on their own, with optax.smooth_labels.",
        "class_weights": "optax has no class weights; multiply the losses by class_weights[labels].",
        "ignore_index": "optax ignores no label.",
        "from_logits": "optax's cross-entropies take logits.",
        "pos_weight": "optax does not weight the positive term.",
    }
)


def _softmax(name: str, arguments: Arguments) -> AnyLoss:
    if arguments["where"] is not None:
        refuse(
            f"{name}(where=...) leaves classes out of the softmax, or positions out of the losses; a spec keeps every class, and takes "
            "positions to leave out as mask, given to the call. Leave where out."
        )
    axis = arguments["axis"]
    if isinstance(axis, bool) or not isinstance(axis, int):
        refuse(
            f"{name}(axis={axis!r}) spreads one softmax over several axes, and a spec has one class axis; "
            "reshape those axes into one."
        )
    return CrossEntropyLoss(from_logits=True, axis=axis, reduction="none")


def _from_softmax(spec: CrossEntropyLoss) -> dict[str, Any]:
    return {"axis": -1 if spec.axis is None else spec.axis}


def _always(spec: AnyLoss) -> Callable[..., AnyLoss]:
    """What a function without arguments is read as."""
    return lambda *_: spec


def _no_arguments(_: Any) -> dict[str, Any]:
    return {}


def _native(
    name: str,
    loss: type[Loss],
    to_spec: Any,
    from_spec: Any,
    parameters: dict[str, Any],
    *,
    exported: bool = True,
) -> LibraryLoss:
    full = f"optax.losses.{name}"
    return LibraryLoss(
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
    _native(
        "softmax_cross_entropy_with_integer_labels",
        CrossEntropyLoss,
        _softmax,
        _from_softmax,
        _AXIS,
    ),
    _native("softmax_cross_entropy", CrossEntropyLoss, _softmax, _from_softmax, _AXIS),
    # Differs from the one above at infinite logits alone, where it is what a spec says, but has no axis.
    _native(
        "safe_softmax_cross_entropy",
        CrossEntropyLoss,
        _always(CrossEntropyLoss(from_logits=True, axis=-1, reduction="none")),
        _no_arguments,
        {},
        exported=False,
    ),
    _native(
        "sigmoid_binary_cross_entropy",
        BinaryCrossEntropyLoss,
        _always(BinaryCrossEntropyLoss(from_logits=True, reduction="none")),
        _no_arguments,
        {},
    ),
    _native(
        "squared_error",
        MeanSquaredError,
        _always(MeanSquaredError(reduction="none")),
        _no_arguments,
        {},
    ),
    _native(
        "l2_loss",
        MeanSquaredError,
        _always(MeanSquaredError(scale=0.5, reduction="none")),
        _no_arguments,
        {},
    ),
)
