"""Arguments that are no tensors: Python numbers, lists and columns of tables."""

from __future__ import annotations

from itertools import chain
from typing import Any, NoReturn

import numpy as np

from unifiedloss.errors import MixedBackendsError, ShapeError, UnknownTensorError
from unifiedloss.messages import foreign
from unifiedloss.owners import backend_of, is_host_data

_ARRAYS = (np.ndarray, np.generic)
_PLAIN_PYTHON = (list, tuple, int, float)
_IN_LISTS = (int, float, complex, str, bytes, *_ARRAYS)
"""The types of elements that numpy.asarray may read from a list.

The dtype of the resulting array may still be refused.
"""

_NUMBERS = frozenset({int, float, bool})
_LISTS = frozenset({list, tuple})


def read_list(name: str, x: Any, dtype: Any, backend: str) -> np.ndarray[Any, Any]:
    """A Python number, a (nested) list, or a column of a table as a NumPy array.

    Args:
        name: the name of the argument.
        x: what is given for it.
        dtype: the dtype of the array; None for that of the numbers.
        backend: the backend that carries out the call.
    """
    if not isinstance(x, _PLAIN_PYTHON) and not _is_read_by_numpy(name, x):
        refuse(name, x, backend)
    if isinstance(x, list | tuple):
        foreign_element = _foreign_element(x)
        if foreign_element:
            _refuse_in_list(name, *foreign_element)
    try:
        return np.asarray(x, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        msg = f"{name} cannot be read as an array of numbers: {error}."
        raise ShapeError(msg) from error


def refuse(name: str, x: Any, backend: str) -> NoReturn:
    """Refuse an argument that is no tensor of the backend and that NumPy does not read."""
    owner = backend_of(x, name)  # raises if no backend owns the type
    if owner in (backend, "numpy"):
        msg = (
            f"{name} is a {class_of(x)}, which is no tensor; pass a tensor, a NumPy array, a "
            "number or a list."
        )
        raise UnknownTensorError(msg)
    raise MixedBackendsError(foreign(name, owner, backend))


def refuse_masked(name: str, x: Any) -> NoReturn:
    """Refuse a masked array of NumPy."""
    msg = (
        f"{name} is a {class_of(x)}, whose mask would be ignored; pass its data, and a mask= that "
        "is True where a position counts (a numpy.ma mask is False there)."
    )
    raise UnknownTensorError(msg)


def _is_read_by_numpy(name: str, x: Any) -> bool:
    """Whether an argument belongs to no framework and NumPy reads it."""
    return is_host_data(x, name) and backend_of(x, name) == "numpy"


def _foreign_element(x: list[Any] | tuple[Any, ...]) -> tuple[Any] | tuple[()]:
    """Return ``(element,)`` for the first element that NumPy must not read; () if there is none.

    The list may be nested. Without this check, numpy.asarray would silently copy tensors from any
    device and detach them from their gradients.
    """
    # Look at each level of nesting at once, because that is several times as fast as element by
    # element, and most lists hold only numbers.
    level: Any = x
    types = set(map(type, level))
    while types and types <= _LISTS:
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    if types <= _NUMBERS:
        return ()
    for element in x:
        if isinstance(element, list | tuple):
            inner = _foreign_element(element)
            if inner:
                return inner
        elif not isinstance(element, _IN_LISTS):
            return (element,)
    return ()


def _refuse_in_list(name: str, element: Any) -> NoReturn:
    class_name = class_of(element)
    try:
        owner = backend_of(element, name)
    except UnknownTensorError:
        msg = (
            f"{name} is a list that holds a {class_name}, which is no number; pass numbers, or one "
            "array of them."
        )
        raise UnknownTensorError(msg) from None
    msg = (
        f"{name} is a list of tensors (a {class_name}, of {owner}); stack them into one tensor "
        "first."
    )
    raise UnknownTensorError(msg)


def class_of(x: Any) -> str:
    """The name of the class of `x`, with its module."""
    return f"{type(x).__module__}.{type(x).__qualname__}"
