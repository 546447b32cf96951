"""The table of scikit-learn's metrics that are losses: read as specs, and written from specs."""

from __future__ import annotations

from functools import partial
from typing import Any

from unifiedloss.checks import extents
from unifiedloss.interop.lens import Given, Lens, Refusal, choice, unused
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
    "element_weights": "scikit-learn takes one weight for each output",
}


_LABELS = Refusal(
    lambda labels, _: labels is not None,
    "{given.name}(labels=...) says which columns the labels mean, in sorted order; a spec takes "
    "the columns' numbers. Replace the labels by them, as in numpy.searchsorted(sorted(labels), "
    "y_true), and leave labels out.",
)
_NO_BOOL = Refusal(
    lambda normalize, _: not isinstance(normalize, bool),
    "{given.name}: normalize must be True or False, got {value!r}.",
)
_OTHER_OUTPUTS = Refusal(
    lambda multioutput, _: isinstance(multioutput, str) and multioutput != "uniform_average",
    "{given.name}(multioutput={value!r}) gives each output a mean of its own; a spec gives one. "
    "Use multioutput='uniform_average', or a list of one weight for each output.",
)
_NO_LIST = Refusal(
    lambda multioutput, _: not isinstance(multioutput, str) and len(extents(multioutput)) != 1,
    "{given.name}(multioutput={value!r}) is no list of one weight for each output; write one, or "
    "'uniform_average'.",
)


def _outputs(multioutput: Any, _: Given) -> dict[str, Any]:
    return {} if isinstance(multioutput, str) else {"element_weights": multioutput}


def _written(spec: Any, _: str | None) -> Any:
    weights = spec.element_weights
    return weights if len(extents(weights)) == 1 else "uniform_average"


_OUTPUTS = Lens("uniform_average", _outputs, _written, (_OTHER_OUTPUTS, _NO_LIST))

_NORMALIZE = {True: {"reduction": "mean", "on_empty": "error"}, False: {"reduction": "sum"}}

_loss = partial(
    LibraryLoss, data=("y_true", "y_proba", "y_pred", "sample_weight"), reasons=_REASONS
)

register(
    _loss(
        "sklearn.metrics.log_loss",
        CrossEntropyLoss(epsilon="sklearn"),
        {
            "normalize": choice(_NORMALIZE, _NO_BOOL),
            "labels": unused(None, _LABELS),
        },
    ),
    _loss(
        "sklearn.metrics.mean_squared_error",
        MeanSquaredError(on_empty="error"),
        {"multioutput": _OUTPUTS},
    ),
)
