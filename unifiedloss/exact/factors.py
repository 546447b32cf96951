"""What the first tier asks of weights, upstream gradients, divisors and scales."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

_REACH = 2.0**150
"""The first tier takes factors from 1 / _REACH to _REACH in size.

The range includes all float32 numbers, subnormal ones too.
"""


def is_in_reach(x: float) -> bool:
    """Whether one number has a size from 1 / _REACH to _REACH; 0 has not."""
    return 1 / _REACH <= abs(x) <= _REACH


def are_in_reach(x: Any) -> bool:
    """Whether every number is 0 or has a size from 1 / _REACH to _REACH."""
    size = np.abs(np.asarray(x, np.float64))
    return bool(((size == 0) | (size >= 1 / _REACH) & (size <= _REACH)).all())


def is_power_of_two(x: float) -> bool:
    """Whether one number is a power of two, so that products with it are exact."""
    return abs(math.frexp(x)[0]) == 0.5


def are_powers_of_two(x: Any) -> bool:
    """Whether every number is a power of two."""
    return bool((np.abs(np.frexp(x)[0]) == 0.5).all())
