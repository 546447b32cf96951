"""Checks of field values: each takes a field's name and a value, and returns the canonical value.

A check raises `SpecTypeError` for a value of the wrong type and `SpecValueError` for one that is
out of range. The message starts with the name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.text import quoted

Check = Callable[[str, Any], Any]
"""Takes a field's name and the value given for it; returns the canonical value."""

_INT64 = range(-(2**63), 2**63)

_MOST_AXES = 64
"""As many axes as an array of NumPy can have."""


def optional(check: Check) -> Check:
    """Admit None, and every value that `check` admits."""
    return lambda name, value: None if value is None else check(name, value)


def boolean(name: str, value: object) -> bool:
    """Admit True and False, but not 0 and 1."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, got {_typed(value)}."
        raise SpecTypeError(msg)
    return value


def one_of(*choices: str) -> Check:
    """Admit one of these strings."""
    listed = ", ".join(map(repr, choices))

    def check(name: str, value: object) -> str:
        if not isinstance(value, str):
            msg = f"{name} must be one of {listed}, got {_typed(value)}."
            raise SpecTypeError(msg)
        if value not in choices:
            msg = f"{name} must be one of {listed}, got {quoted(value)}."
            raise SpecValueError(msg)
        return str(value)

    return check


def rule_of_divisor(*choices: str) -> Check:
    """Admit one of these strings, and say where the divisor itself is given."""
    known = one_of(*choices)

    def check(name: str, value: object) -> str:
        if not isinstance(value, str):
            listed = ", ".join(map(repr, choices))
            msg = (
                f"{name} must be one of {listed}, got {_typed(value)}. It is the rule by which the "
                f"mean divides; the number itself is given to the call: spec(..., {name}=number)."
            )
            raise SpecTypeError(msg)
        return str(known(name, value))

    return check


def number(name: str, value: object) -> float:
    """A finite float, from a number or from a scalar of any library."""
    value = value if isinstance(value, Real) else _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name} must be a number, got {_typed(value)}."
        raise SpecTypeError(msg)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        msg = f"{name} must be finite, got {quoted(value)}."
        raise SpecValueError(msg)
    return result + 0.0  # -0.0 becomes 0.0, so that equal specs print the same


def non_negative(name: str, value: object) -> float:
    """A number from 0 up."""
    result = number(name, value)
    if result < 0.0:
        msg = f"{name} must not be negative, got {quoted(value)}."
        raise SpecValueError(msg)
    return result


def positive(name: str, value: object) -> float:
    """A number above 0."""
    result = number(name, value)
    if result <= 0.0:
        msg = f"{name} must be positive, got {quoted(value)}."
        raise SpecValueError(msg)
    return result


def unit_interval(name: str, value: object) -> float:
    """A number in [0, 1]."""
    result = number(name, value)
    if not 0.0 <= result <= 1.0:
        msg = f"{name} must lie in [0, 1], got {quoted(value)}."
        raise SpecValueError(msg)
    return result


def clip_bound(*presets: str) -> Check:
    """Admit a number in [0, 0.5), or the name of a preset."""

    def check(name: str, value: object) -> float | str:
        if isinstance(value, str):
            if value not in presets:
                listed = ", ".join(map(repr, presets))
                msg = (
                    f"{name} must be a number in [0, 0.5) or one of {listed}, got {quoted(value)}."
                )
                raise SpecValueError(msg)
            return str(value)
        result = number(name, value)
        if not 0.0 <= result < 0.5:
            msg = (
                f"{name} must lie in [0, 0.5), as probabilities are clipped to "
                f"[{name}, 1 - {name}], got {quoted(value)}."
            )
            raise SpecValueError(msg)
        return result

    return check


def integer(name: str, value: object) -> int:
    """A Python int that fits in int64, from an integer or an integer scalar of any library."""
    result = _integer(name, value)
    if result not in _INT64:
        msg = f"{name} must fit in int64, got {quoted(result)}."
        raise SpecValueError(msg)
    return result


def _integer(name: str, value: object) -> int:
    value = value if isinstance(value, Integral) else _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        msg = f"{name} must be an int, got {_typed(value)}."
        raise SpecTypeError(msg)
    return operator.index(value)


def labels(name: str, value: object) -> tuple[int, ...] | None:
    """One int64 label or several, sorted and without duplicates; None for an empty sequence."""
    elements = _sequence(name, value)
    elements = [value] if elements is None else elements
    result = sorted({_integer(name, element) for element in elements})
    for label in result:
        if label not in _INT64:
            msg = f"{name} must fit in int64, as labels are compared as int64, got {quoted(label)}."
            raise SpecValueError(msg)
    return tuple(result) or None


def weights(name: str, value: object) -> tuple[float, ...]:
    """Non-negative numbers, one per class."""
    elements = _sequence(name, value)
    if elements is None:
        msg = f"{name} must be a sequence of numbers, one per class, got {_typed(value)}."
        raise SpecTypeError(msg)
    if not elements:
        raise SpecValueError(_empty(name))
    return tuple(non_negative(f"{name}[{i}]", element) for i, element in enumerate(elements))


def weight_or_weights(name: str, value: object) -> float | tuple[float, ...]:
    """A non-negative number, or several."""
    elements = _sequence(name, value)
    return non_negative(name, value) if elements is None else weights(name, elements)


def nested_weights(name: str, value: Any, axes: int = 0) -> float | tuple[Any, ...]:
    """Non-negative numbers in an array of any rank, as nested tuples of one shape.

    `axes` counts the sequences around the value.
    """
    if axes > _MOST_AXES:
        msg = f"{name.partition('[')[0]} must have at most {_MOST_AXES} axes."
        raise SpecValueError(msg)
    to_list = getattr(value, "tolist", None)
    if callable(to_list):  # NumPy arrays, torch and JAX tensors
        value = to_list()
    elif callable(getattr(value, "numpy", None)):  # TensorFlow's eager tensors
        value = value.numpy().tolist()
    if not isinstance(value, list | tuple):
        return non_negative(name, value)
    if not value:
        raise SpecValueError(_empty(name))
    nested = tuple(
        nested_weights(f"{name}[{i}]", element, axes + 1) for i, element in enumerate(value)
    )
    if len({extents(element) for element in nested}) > 1:
        msg = f"{name} must be an array, got nested sequences of different lengths."
        raise SpecValueError(msg)
    return nested


def extents(nested: Any) -> tuple[int, ...]:
    """The shape of an array that is written as nested tuples."""
    if not isinstance(nested, tuple):
        return ()
    return (len(nested), *(extents(nested[0]) if nested else ()))


def _typed(value: object) -> str:
    return f"{quoted(value)} of type {type(value).__name__}"


def _empty(name: str) -> str:
    return f"{name} must not be empty; leave it out for no weights."


def _scalar(value: Any) -> object:
    """The Python number that a tensor of rank 0 holds; any other value is returned as it is."""
    # TensorFlow's tensors have no `item`, but their NumPy arrays do. A traced tensor has no value
    # yet, and raises.
    try:
        if value.shape == ():
            return (value if hasattr(value, "item") else value.numpy()).item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        pass
    return value


def _sequence(name: str, value: object) -> list[object] | None:
    """The elements of a list, tuple, set or one-dimensional array; None for anything else."""
    to_list = getattr(value, "tolist", None)
    to_numpy: Any = getattr(value, "numpy", None)
    if callable(to_list):  # NumPy arrays and scalars, torch and JAX tensors
        value = to_list()
    elif callable(to_numpy):  # TensorFlow's eager tensors
        value = to_numpy().tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    elements = list(value)
    if any(isinstance(element, list | tuple) for element in elements):
        msg = f"{name} must have one axis, got nested sequences."
        raise SpecValueError(msg)
    return elements
