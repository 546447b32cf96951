"""The tensors of the oracle: flat lists of numbers with a shape and a dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from unifiedloss.floats import FORMATS
from unifiedloss.oracle.rounding import narrow


class Tensor(NamedTuple):
    """Numbers in C order, with a shape and the name of their dtype. Made by `tensor`."""

    values: list[Any]
    shape: tuple[int, ...]
    dtype: str


def tensor(values: Any, shape: Sequence[int] | None = None, dtype: str = "float32") -> Tensor:
    """Make a tensor from a flat sequence with its shape, or from a number or nested lists.

    Raises:
        ValueError: the numbers do not fill the shape, or one is not a number of the dtype.
    """
    if shape is None:
        shape = []
        level = values
        while isinstance(level, list | tuple):
            shape.append(len(level))
            level = level[0] if level else 0.0
        values = [values]
        for _ in shape:
            values = [x for part in values for x in part]
    values = list(values)
    if len(values) != math.prod(shape):
        msg = f"{len(values)} numbers do not fill the shape {tuple(shape)}."
        raise ValueError(msg)
    if dtype in FORMATS:
        values = [float(x) for x in values]
        for x in values:
            if math.isfinite(x) and narrow(x, FORMATS[dtype]) != x:
                msg = f"{x!r} is not a number of the dtype {dtype}; round it first."
                raise ValueError(msg)
    return Tensor(values, tuple(shape), dtype)
