"""Turn tensors of other libraries into plain numbers, tuples and NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Return a scalar as a Python number, an array as nested tuples, anything else unchanged.

    A number of a narrow dtype becomes the shortest decimal that rounds to it: 0.1, where float32
    holds 0.10000000149. The two are equal in float32, the dtype that such arrays are made for.
    """
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    to_numpy = getattr(value, "numpy", None)
    if callable(to_numpy):  # TensorFlow's eager tensors
        value = to_numpy()
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        return _tuples([_number(number) for number in array.ravel()], array.shape)
    return _number(value) if isinstance(value, np.generic) else value


def _number(number: Any) -> Any:
    # bfloat16 is not a numpy.floating: its kind is "V", that of raw bytes.
    return float(str(number)) if number.dtype.kind in "fV" else number.item()


def _tuples(numbers: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return numbers[0]
    step = len(numbers) // shape[0] if shape[0] else 0
    return tuple(_tuples(numbers[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0]))


def as_bfloat16(tensor: Any, array: Any) -> Any:
    """Return `array`, the NumPy copy of `tensor`, as bfloat16 if the tensor is bfloat16.

    PyTorch's adapter converts a bfloat16 tensor to float32, so the array no longer shows how
    results were rounded. NumPy has bfloat16 only after the package ml_dtypes is imported; without
    it, return the array unchanged.
    """
    if (
        str(getattr(tensor, "dtype", None)).rpartition(".")[2] != "bfloat16"
        or array.dtype != np.float32
    ):
        return array
    try:
        return array.astype(np.dtype("bfloat16"))
    except TypeError:
        return array
