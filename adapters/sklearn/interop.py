"""scikit-learn's losses: read from metrics as calls, built from calls, and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn.metrics

from unifiedloss.interop.functions import Losses, read_function, with_arguments
from unifiedloss.interop.library_loss import Call

_FUNCTIONS = Losses("sklearn", sklearn)


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call of a metric with its arguments; None for anything else."""
    return read_function(_FUNCTIONS, obj, arguments)


def build(call: Call) -> Callable[..., Any]:
    """The metric, with the arguments of the call bound if there are any."""
    return with_arguments(_FUNCTIONS[call.name], call.arguments)


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, None]:
    """The value of the metric that the call was read from or makes; there is no gradient."""
    metric = build(call) if given is None else given
    value = metric(targets, predictions, sample_weight=sample_weight)
    return np.asarray(value), None
