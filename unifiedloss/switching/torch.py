"""The losses of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unifiedloss.errors import UnsupportedError
from unifiedloss.spec import AnyLoss, CrossEntropyLoss
from unifiedloss.switching.tables import Native, register

_LEGACY = {"size_average": None, "reduce": None}


def _reduction(arguments: Mapping[str, Any]) -> str:
    """What `reduction` comes to: the old arguments win over it where one of them is given, as in torch."""
    average, reduce = arguments["size_average"], arguments["reduce"]
    if average is None and reduce is None:
        return str(arguments["reduction"])
    if reduce is not None and not reduce:
        return "none"
    return "mean" if average is None or average else "sum"


def _ignored(name: str, spec: Any) -> int:
    """The one label that torch ignores."""
    labels = spec.ignore_index or (-100,)
    if len(labels) > 1:
        msg = f"{name} ignores one label, and the spec has ignore_index={list(labels)}."
        raise UnsupportedError(msg)
    return int(labels[0])


def _cross_entropy(arguments: Mapping[str, Any], _backend: str | None) -> AnyLoss:
    return CrossEntropyLoss(
        from_logits=True,
        axis=1,
        class_weights=arguments["weight"],
        ignore_index=arguments["ignore_index"],
        label_smoothing=arguments["label_smoothing"],
        divisor="label_weights",
        reduction=_reduction(arguments),  # type: ignore[arg-type] # validated there
    )


def _from_cross_entropy(spec: CrossEntropyLoss) -> Mapping[str, Any]:
    return {
        "weight": spec.class_weights,
        "ignore_index": _ignored("torch.nn.CrossEntropyLoss", spec),
        "reduction": spec.reduction,
        "label_smoothing": spec.label_smoothing,
    }


register(
    Native(
        "torch.nn.CrossEntropyLoss",
        CrossEntropyLoss,
        {
            "weight": None,
            "size_average": None,
            "ignore_index": -100,
            "reduce": None,
            "reduction": "mean",
            "label_smoothing": 0.0,
        },
        _cross_entropy,
        _from_cross_entropy,
        tensors=("weight",),
    )
)
