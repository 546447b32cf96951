"""The four floating-point formats of predictions, and rounding to them in a chosen direction.

Works on Python floats (float64) with the standard library alone, so that the spec can compute clip
bounds without a framework. `unifiedloss.reference` rounds real numbers to these formats.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Format(NamedTuple):
    """A binary floating-point format of IEEE 754 shape.

    Attributes:
        name: name of the dtype, the same in all five frameworks.
        precision: significand bits, the hidden one included.
        min_exponent: exponent e of the smallest normal number 2^e.
        max_exponent: exponent e of the largest binade [2^e, 2^(e+1)).
    """

    name: str
    precision: int
    min_exponent: int
    max_exponent: int

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number."""
        return math.ldexp(1.0, 1 - self.precision)

    @property
    def tiny(self) -> float:
        """The smallest positive normal number."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return math.ldexp(2.0 - self.epsilon, self.max_exponent)

    def ulp(self, value: float) -> float:
        """The distance between neighbouring numbers at `value`, subnormal numbers included."""
        exponent = self.min_exponent
        if math.isfinite(value) and value != 0.0:
            exponent = max(math.frexp(value)[1] - 1, self.min_exponent)
        return math.ldexp(1.0, min(exponent, self.max_exponent) - self.precision + 1)

    def floor(self, value: float) -> float:
        """The largest number of this format that is at most the finite `value`."""
        if value < -self.largest:
            return -math.inf
        step = self.ulp(value)
        return min(math.floor(value / step) * step, self.largest)

    def ceil(self, value: float) -> float:
        """The smallest number of this format that is at least the finite `value`."""
        return -self.floor(-value)

    def nearest(self, value: float) -> float:
        """The number of this format nearest to a finite `value` that is not a tie."""
        low, high = self.floor(value), self.ceil(value)
        return low if value - low < high - value else high


FORMATS: dict[str, Format] = {
    "float16": Format("float16", 11, -14, 15),
    "bfloat16": Format("bfloat16", 8, -126, 127),
    "float32": Format("float32", 24, -126, 127),
    "float64": Format("float64", 53, -1022, 1023),
}

HALF_TYPES = frozenset({"float16", "bfloat16"})

INTEGER_TYPES = frozenset(
    {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"},
)


def widest(*names: str) -> str:
    """The name of the most precise of float32 and the given floating formats."""
    return "float64" if "float64" in names else "float32"


TORCH_LEAST_SPREAD = 9.999999960041972e-13
"""Smallest divisor in torch's binary cross-entropy of probabilities.

It is 1e-12 rounded to float32, in float64 computations too.
"""
