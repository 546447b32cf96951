"""Written by ``make stubs`` from the rows of unifiedloss.losses; do not edit."""

from unifiedloss.errors import AdapterError as AdapterError
from unifiedloss.errors import BadValueError as BadValueError
from unifiedloss.errors import DTypeError as DTypeError
from unifiedloss.errors import EmptyMeanError as EmptyMeanError
from unifiedloss.errors import MissingBackendError as MissingBackendError
from unifiedloss.errors import MixedBackendsError as MixedBackendsError
from unifiedloss.errors import SerializationError as SerializationError
from unifiedloss.errors import ShapeError as ShapeError
from unifiedloss.errors import SpecTypeError as SpecTypeError
from unifiedloss.errors import SpecValueError as SpecValueError
from unifiedloss.errors import UnifiedLossError as UnifiedLossError
from unifiedloss.errors import UnknownTensorError as UnknownTensorError
from unifiedloss.errors import UnsupportedError as UnsupportedError
from unifiedloss.functional import binary_cross_entropy_loss as binary_cross_entropy_loss
from unifiedloss.functional import check as check
from unifiedloss.functional import cross_entropy_loss as cross_entropy_loss
from unifiedloss.functional import huber_loss as huber_loss
from unifiedloss.functional import mean_squared_error as mean_squared_error
from unifiedloss.functional import negative_log_likelihood_loss as negative_log_likelihood_loss
from unifiedloss.functional import softmax as softmax
from unifiedloss.interop import from_native as from_native
from unifiedloss.interop.diff import diff as diff
from unifiedloss.interop.explain import explain as explain
from unifiedloss.interop.report import port_report as port_report
from unifiedloss.losses.binary_cross_entropy.spec import (
    BinaryCrossEntropyLoss as BinaryCrossEntropyLoss,
)
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss as CrossEntropyLoss
from unifiedloss.losses.huber.spec import HuberLoss as HuberLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError as MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import (
    NegativeLogLikelihoodLoss as NegativeLogLikelihoodLoss,
)
from unifiedloss.registry import backends as backends
from unifiedloss.serialization import from_dict as from_dict
from unifiedloss.serialization import from_json as from_json
from unifiedloss.spec import Loss as Loss

__version__: str
__all__ = [
    "AdapterError",
    "BadValueError",
    "BinaryCrossEntropyLoss",
    "CrossEntropyLoss",
    "DTypeError",
    "EmptyMeanError",
    "HuberLoss",
    "Loss",
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
    "huber_loss",
    "mean_squared_error",
    "negative_log_likelihood_loss",
    "port_report",
    "softmax",
]
