"""One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX.

``make stubs`` writes `__init__.pyi`, in which type checkers find the names that this module
collects at run time.
"""

from importlib import import_module as _import_module

from unifiedloss import functional as _functional
from unifiedloss import losses as _losses
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
from unifiedloss.functional import check, softmax
from unifiedloss.registry import backends
from unifiedloss.serialization import from_dict, from_json
from unifiedloss.spec import Loss

__version__ = "0.1.0"

for _row in _losses.ROWS:
    globals()[_row.spec] = _losses.spec_class(_row)
    globals()[_row.function] = getattr(_functional, _row.function)

_LAZY = {
    "diff": "unifiedloss.interop.diff",
    "explain": "unifiedloss.interop.explain",
    "from_native": "unifiedloss.interop",
    "port_report": "unifiedloss.interop.report",
}
"""Name -> module. Imported on first use, because training needs none of them."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(_import_module(_LAZY[name]), name)
    return value


__all__ = [
    "AdapterError",
    "BadValueError",
    "DTypeError",
    "EmptyMeanError",
    "Loss",
    "MissingBackendError",
    "MixedBackendsError",
    "SerializationError",
    "ShapeError",
    "SpecTypeError",
    "SpecValueError",
    "UnifiedLossError",
    "UnknownTensorError",
    "UnsupportedError",
    "__version__",
    "backends",
    "check",
    "diff",
    "explain",
    "from_dict",
    "from_json",
    "from_native",
    "port_report",
    "softmax",
]
__all__ += [name for row in _losses.ROWS for name in (row.spec, row.function)]
