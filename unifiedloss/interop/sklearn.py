"""The table of scikit-learn's metrics that are losses: read as specs, and written from specs."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from unifiedloss.interop.lens import Arguments, refuse
from unifiedloss.interop.library_loss import hand_written, register
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss

_REASONS = MappingProxyType(
    {
        "on_empty": "scikit-learn raises where the weights sum to 0",
        "divisor": "scikit-learn divides by the sum of the sample weights",
        "epsilon": "scikit-learn clips to the spacing of the predictions' dtype",
        "axis": "scikit-learn has the classes on the last of two axes",
        "from_logits": "scikit-learn's log_loss takes probabilities",
        "reduction": "scikit-learn gives one number",
    }
)

_DATA = ("y_true", "y_proba", "y_pred", "sample_weight")


def _log_loss(arguments: Arguments, _: str | None) -> Loss:
    if arguments["labels"] is not None:
        refuse(
            "sklearn.metrics.log_loss(labels=...) says which columns the labels mean, in sorted "
            "order; a spec takes the columns' numbers. Replace the labels by them, as in "
            "numpy.searchsorted(sorted(labels), y_true), and leave labels out."
        )
    normalize = arguments["normalize"]
    if normalize is not True and normalize is not False:
        refuse(f"sklearn.metrics.log_loss: normalize must be True or False, got {normalize!r}.")
    if not normalize:
        return CrossEntropyLoss(epsilon="sklearn", reduction="sum")
    return CrossEntropyLoss(epsilon="sklearn", on_empty="error")


def _squared(arguments: Arguments, _: str | None) -> Loss:
    multioutput = arguments["multioutput"]
    if multioutput != "uniform_average":
        refuse(
            f"sklearn.metrics.mean_squared_error(multioutput={multioutput!r}) gives each output "
            "its own mean or weight; a spec gives one. Use multioutput='uniform_average', or "
            "element_weights of a spec, which count in its divisor."
        )
    return MeanSquaredError(on_empty="error")


def _from_log_loss(spec: CrossEntropyLoss) -> dict[str, Any]:
    return {"normalize": spec.reduction != "sum"}


def _from_squared(_: MeanSquaredError) -> dict[str, Any]:
    return {}


register(
    hand_written(
        "sklearn.metrics.log_loss",
        CrossEntropyLoss,
        {"normalize": True, "labels": None},
        _log_loss,
        _from_log_loss,
        data=_DATA,
        reasons=_REASONS,
    ),
    hand_written(
        "sklearn.metrics.mean_squared_error",
        MeanSquaredError,
        {"multioutput": "uniform_average"},
        _squared,
        _from_squared,
        data=_DATA,
        reasons=_REASONS,
    ),
)
