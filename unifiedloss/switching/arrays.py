"""Arguments of a loss as the literals a person would write."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A number, or an array as nested tuples; anything else as it is.

    A number of a narrow dtype is the shortest decimal that rounds to it: where 0.1 is written, float32 has 0.10000000149. Where float32 is
    computed in, and such arrays are made for that, the two are one.
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
    # bfloat16 too, which is no numpy.floating; its kind is that of raw bytes.
    return float(str(number)) if number.dtype.kind in "fV" else number.item()


def _tuples(numbers: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return numbers[0]
    step = len(numbers) // shape[0] if shape[0] else 0
    return tuple(_tuples(numbers[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0]))


def as_bfloat16(tensor: Any, array: Any) -> Any:
    """The array of a tensor, in bfloat16 where the tensor has that and NumPy too: where the package ml_dtypes is loaded.

    PyTorch hands such a tensor over in float32, in which nothing is rounded as it was.
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
