"""The number that a call is given as its divisor: reading it, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unifiedloss.errors import BadValueError, DTypeError, EmptyMeanError, SpecTypeError
from unifiedloss.lists import refuse
from unifiedloss.spec import Loss
from unifiedloss.text import quoted

Array = Any
Adapter = Any
"""An adapter, whose module imports those that use this one."""

SCALARS = (np.ndarray, np.generic)


def read_tensor(adapter: Adapter, divisor: Any) -> Array:
    """A divisor that is no Python number, as a NumPy array or a tensor of the adapter."""
    if isinstance(divisor, str):
        msg = (
            f"divisor is {quoted(divisor)}, and a call takes the number itself; the rule is a "
            f"field of the spec: spec.replace(divisor={quoted(divisor)})."
        )
        raise SpecTypeError(msg)
    if isinstance(divisor, bool | list | tuple):
        msg = f"divisor must be a number or a 0-d tensor, got {quoted(divisor)}."
        raise DTypeError(msg)
    if isinstance(divisor, SCALARS):
        return np.asarray(divisor)
    if not isinstance(divisor, adapter.tensor_type):
        refuse("divisor", divisor, adapter.name)
    tensor: Array = adapter.to_tensors(0.0, divisor)[1]
    return tensor


def check_number(spec: Loss, number: Any) -> None:
    """Refuse a divisor that is not finite or negative, or 0 where the spec says so."""
    if not 0 <= number < 2.0**1023:
        raise BadValueError(not_a_divisor(number))
    check_divisor(spec, number)


def check_divisor(spec: Loss, number: float) -> None:
    """Refuse the divisor of totals; one that is not finite comes from a bad value of a piece."""
    if number < 0:
        raise BadValueError(not_a_divisor(number))
    if number == 0 and spec.on_empty == "error":
        raise EmptyMeanError(EMPTY)


def not_a_divisor(number: float) -> str:
    """The message about a divisor that is negative or not finite."""
    shown: Any = "2^1023 or more" if math.inf > number >= 2**1023 else float(number)
    return (
        f"divisor is {shown}: a mean divides by a finite number that is not negative; give "
        "the sum of the divisors of all pieces, as spec.divisor_of has them."
    )


EMPTY = (
    "the mean has nothing to divide by: the divisor is 0; set on_empty to 'nan' or 'zero' to get a "
    "number."
)
