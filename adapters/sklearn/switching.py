"""scikit-learn's own losses: read from what a user holds, made from a written call, and run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn import metrics

from unifiedloss.switching.arrays import plain
from unifiedloss.switching.calls import Call
from unifiedloss.switching.tables import find

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sklearn.metrics.log_loss": metrics.log_loss,
    "sklearn.metrics.mean_squared_error": metrics.mean_squared_error,
}


def read(obj: Any, /, **arguments: Any) -> Call | None:
    """The call that a metric and the arguments given with it make; None for anything else."""
    for name, function in _FUNCTIONS.items():
        if obj is function:
            return Call(name, find(name).bind([], {key: plain(value) for key, value in arguments.items()}))
    return None


def build(call: Call) -> Callable[..., Any]:
    """The metric itself, with the arguments of the call filled in where there are any."""
    function = _FUNCTIONS[call.name]
    return partial(function, **call.arguments) if call.arguments else function


def run(call: Call, predictions: Any, targets: Any, sample_weight: Any = None) -> tuple[Any, None]:
    """The value of the native call itself; there is no gradient."""
    value = build(call)(targets, predictions, sample_weight=sample_weight)
    return np.asarray(value), None
