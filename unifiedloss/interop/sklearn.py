"""The table of scikit-learn's metrics that are losses: read as specs, and written from specs."""

from __future__ import annotations

from functools import partial
from typing import Any

from unifiedloss.interop.lens import Given, choice, refuse, unused
from unifiedloss.interop.library_loss import LibraryLoss, register
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError

_REASONS = {
    "on_empty": "scikit-learn raises where the weights sum to 0",
    "divisor": "scikit-learn divides by the sum of the sample weights",
    "epsilon": "scikit-learn clips to the spacing of the predictions' dtype",
    "axis": "scikit-learn has the classes on the last of two axes",
    "from_logits": "scikit-learn's log_loss takes probabilities",
    "reduction": "scikit-learn gives one number",
}


def _check_labels(labels: Any, given: Given) -> None:
    if labels is not None:
        refuse(
            f"{given.name}(labels=...) says which columns the labels mean, in sorted order; a spec "
            "takes the columns' numbers. Replace the labels by them, as in "
            "numpy.searchsorted(sorted(labels), y_true), and leave labels out."
        )


def _check_normalize(normalize: Any, given: Given) -> None:
    if normalize is not True and normalize is not False:
        refuse(f"{given.name}: normalize must be True or False, got {normalize!r}.")


def _check_outputs(multioutput: Any, given: Given) -> None:
    if multioutput != "uniform_average":
        refuse(
            f"{given.name}(multioutput={multioutput!r}) gives each output its own mean or weight; "
            "a spec gives one. Use multioutput='uniform_average', or element_weights of a spec, "
            "which count in its divisor."
        )


_NORMALIZE = {True: {"reduction": "mean", "on_empty": "error"}, False: {"reduction": "sum"}}

_loss = partial(
    LibraryLoss, data=("y_true", "y_proba", "y_pred", "sample_weight"), reasons=_REASONS
)

register(
    _loss(
        "sklearn.metrics.log_loss",
        CrossEntropyLoss(epsilon="sklearn"),
        {
            "normalize": choice(_NORMALIZE, _check_normalize),
            "labels": unused(None, _check_labels),
        },
    ),
    _loss(
        "sklearn.metrics.mean_squared_error",
        MeanSquaredError(on_empty="error"),
        {"multioutput": unused("uniform_average", _check_outputs)},
    ),
)
