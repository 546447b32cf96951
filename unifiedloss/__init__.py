"""One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX."""

from typing import TYPE_CHECKING

from unifiedloss.errors import (
    AdapterError,
    BadValueError,
    DTypeError,
    EmptyMeanError,
    MissingBackendError,
    MixedBackendsError,
    SerializationError,
    ShapeError,
    SpecTypeError,
    SpecValueError,
    UnifiedLossError,
    UnknownTensorError,
    UnsupportedError,
)
from unifiedloss.functional import (
    binary_cross_entropy_loss,
    check,
    cross_entropy_loss,
    mean_squared_error,
    negative_log_likelihood_loss,
    softmax,
)
from unifiedloss.registry import backends
from unifiedloss.serialization import from_dict, from_json
from unifiedloss.spec import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    MeanSquaredError,
    NegativeLogLikelihoodLoss,
)

if TYPE_CHECKING:
    from unifiedloss.switching import from_native
    from unifiedloss.switching.diff import diff
    from unifiedloss.switching.explain import explain
    from unifiedloss.switching.report import port_report

__version__ = "0.1.0"

_LAZY = {
    "diff": "unifiedloss.switching.diff",
    "explain": "unifiedloss.switching.explain",
    "from_native": "unifiedloss.switching",
    "port_report": "unifiedloss.switching.report",
}
"""Name -> module. Imported on first use, because training needs none of them."""


if not TYPE_CHECKING:  # because of it a type checker would accept every misspelled name

    def __getattr__(name: str) -> object:
        if name not in _LAZY:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_LAZY[name]), name)
        return value


__all__ = [
    "AdapterError",
    "BadValueError",
    "BinaryCrossEntropyLoss",
    "CrossEntropyLoss",
    "DTypeError",
    "EmptyMeanError",
    "MeanSquaredError",
    "MissingBackendError",
    "MixedBackendsError",
    "NegativeLogLikelihoodLoss",
    "SerializationError",
    "ShapeError",
    "SpecTypeError",
    "SpecValueError",
    "UnifiedLossError",
    "UnknownTensorError",
    "UnsupportedError",
    "__version__",
    "backends",
    "binary_cross_entropy_loss",
    "check",
    "cross_entropy_loss",
    "diff",
    "explain",
    "from_dict",
    "from_json",
    "from_native",
    "mean_squared_error",
    "negative_log_likelihood_loss",
    "port_report",
    "softmax",
]
