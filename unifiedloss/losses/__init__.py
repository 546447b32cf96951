"""The losses. Each has a folder here, with a row in `ROWS`.

The folder of a loss holds all that is known about it. The machinery around it (plans, the
pipeline, exact mode, the oracle, the conformance suite) names no loss: it reaches the parts of a
loss by its row.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A loss.

    Attributes:
        name: the name of the loss in dictionaries and on the command line, and of its folder.
        spec: the name of its spec's class.
        function: the name of the function that builds the spec and evaluates it.
    """

    name: str
    spec: str
    function: str


ROWS = (
    Row("cross_entropy", "CrossEntropyLoss", "cross_entropy_loss"),
    Row("binary_cross_entropy", "BinaryCrossEntropyLoss", "binary_cross_entropy_loss"),
    Row("mean_squared_error", "MeanSquaredError", "mean_squared_error"),
    Row("negative_log_likelihood", "NegativeLogLikelihoodLoss", "negative_log_likelihood_loss"),
    Row("huber", "HuberLoss", "huber_loss"),
)


@cache
def part(name: str, module: str) -> Any:
    """Import and return one module of a loss's folder.

    Args:
        name: the name of the loss.
        module: the name of the module, such as "spec".
    """
    return importlib.import_module(f"unifiedloss.losses.{name}.{module}")


@cache
def has_part(name: str, module: str) -> bool:
    """Whether the folder of a loss has this module: a loss may do without "exact" and "graph"."""
    return importlib.util.find_spec(f"unifiedloss.losses.{name}.{module}") is not None


def spec_class(row: Row) -> type[Any]:
    """The class of a loss's spec."""
    found: type[Any] = getattr(part(row.name, "spec"), row.spec)
    return found
