"""One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX."""

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
from unifiedloss.spec import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    MeanSquaredError,
    NegativeLogLikelihoodLoss,
    from_dict,
    from_json,
)

__version__ = "0.1.0"

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
    "from_dict",
    "from_json",
    "mean_squared_error",
    "negative_log_likelihood_loss",
    "softmax",
]
