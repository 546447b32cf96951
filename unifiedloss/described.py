r"""What an array is, for those who must know that they have the same: shape, dtype and SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np


class Described(NamedTuple):
    """An array.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: the name of its dtype.
        sha256: the hash of its content in hexadecimal digits (see `sha256`); None if it was not
            computed, or if the array holds Python objects.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str | None


def described(name: str, array: Any) -> Described:
    """Describe a NumPy array."""
    return Described(name, array.shape, array.dtype.name, sha256(array.shape, array.dtype, [array]))


def sha256(shape: tuple[int, ...], dtype: Any, pieces: Iterable[Any]) -> str | None:
    r"""Hash an array that comes in pieces along its first axis.

    The hash is that of the line ``"<dtype> <shape>\n"``, such as ``"float32 (4, 3)\n"``, and of the
    elements in C order, each little-endian. So it depends neither on the format of a file nor on
    the pieces. An array of Python objects has none.
    """
    if dtype.hasobject:
        return None
    found = hashlib.sha256(f"{dtype.name} {tuple(shape)}\n".encode())
    for piece in pieces:
        little = np.ascontiguousarray(piece, dtype.newbyteorder("<"))
        found.update(little.reshape(-1).view(np.uint8).data)
    return found.hexdigest()
