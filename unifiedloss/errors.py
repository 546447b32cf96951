"""The errors unifiedloss raises.

Every one of them derives from `UnifiedLossError` and from the built-in exception a caller would expect, so both
``except UnifiedLossError`` and ``except ValueError`` work. Each takes one message and nothing else: tf.function rebuilds an
exception raised while it traces from its class and its message alone.
"""

from __future__ import annotations


class UnifiedLossError(Exception):
    """Base of every error this library raises on purpose."""

    # Not ValueError's or ImportError's own, though those do the same: tf.function rebuilds an exception only where it finds this
    # very one, and raises a StagingError in its place otherwise.
    __init__ = Exception.__init__


class SpecValueError(UnifiedLossError, ValueError):
    """A field of a spec has a value outside its range, or two fields contradict each other."""


class SpecTypeError(UnifiedLossError, TypeError):
    """A field of a spec has the wrong type."""


class SerializationError(UnifiedLossError, ValueError):
    """A dictionary or a JSON text does not describe a spec."""


class ShapeError(UnifiedLossError, ValueError):
    """The shapes of the tensors in one call do not fit. Nothing is squeezed and nothing is broadcast."""


class DTypeError(UnifiedLossError, TypeError):
    """A tensor has a dtype the rule does not admit. Nothing is cast silently."""


class BadValueError(UnifiedLossError, ValueError):
    """A tensor holds a value the loss is not defined for, such as a class index out of range."""


class EmptyMeanError(UnifiedLossError, ValueError):
    """The mean has nothing to divide by, and the spec says ``on_empty="error"``."""


class UnknownTensorError(UnifiedLossError, TypeError):
    """No known backend owns a tensor of this type."""


class MixedBackendsError(UnifiedLossError, TypeError):
    """The tensors of one call belong to two frameworks."""


class MissingBackendError(UnifiedLossError, ImportError):
    """A backend was asked for by name and its framework is not installed."""


class UnsupportedError(UnifiedLossError, ValueError):
    """The request is well formed, but this backend or this mode cannot carry it out."""


class AdapterError(UnifiedLossError, TypeError):
    """An adapter does not fill the contract of `unifiedloss.adapter.Adapter`."""
