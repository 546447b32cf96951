"""The errors unifiedloss raises.

Each derives from `UnifiedLossError` and from the built-in exception that a caller expects, so both
``except UnifiedLossError`` and ``except ValueError`` work. Each takes one message and nothing else,
because tf.function rebuilds an exception raised during tracing from its class and message alone.
"""

from __future__ import annotations


class UnifiedLossError(Exception):
    """Base of every error this library raises on purpose."""

    # Set explicitly, although ValueError's and ImportError's own do the same: tf.function rebuilds
    # an exception only if its __init__ is exactly this one. Otherwise it raises a StagingError.
    __init__ = Exception.__init__


class SpecValueError(UnifiedLossError, ValueError):
    """A field of a spec has a value outside its range, or two fields contradict each other."""


class SpecTypeError(UnifiedLossError, TypeError):
    """A field of a spec has the wrong type."""


class SerializationError(UnifiedLossError, ValueError):
    """A dictionary or a JSON text does not describe a spec."""


class ShapeError(UnifiedLossError, ValueError):
    """The shapes of the tensors in one call do not fit.

    Nothing is squeezed and nothing is broadcast.
    """


class DTypeError(UnifiedLossError, TypeError):
    """A tensor has a dtype that the rule does not allow. Nothing is cast silently."""


class BadValueError(UnifiedLossError, ValueError):
    """A tensor holds a value that the loss is undefined for, such as a class index out of range."""


class EmptyMeanError(UnifiedLossError, ValueError):
    """The divisor of the mean is 0, and the spec says ``on_empty="error"``."""


class UnknownTensorError(UnifiedLossError, TypeError):
    """No known backend owns a tensor of this type."""


class MixedBackendsError(UnifiedLossError, TypeError):
    """The tensors of one call belong to two frameworks."""


class MissingBackendError(UnifiedLossError, ImportError):
    """A backend was asked for by name and its framework is not installed."""


class UnsupportedError(UnifiedLossError, ValueError):
    """The request is valid, but this backend or this mode does not support it."""


class AdapterError(UnifiedLossError, TypeError):
    """An adapter does not fulfil the contract of `unifiedloss.adapter.Adapter`."""


class FileError(UnifiedLossError, ValueError):
    """A file of arrays is missing, damaged or of another kind, or changed while it was read."""
