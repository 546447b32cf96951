"""The factor of gradient elements: upstream gradient times sample weight over divisor."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from unifiedloss.exact.balls import Ball
from unifiedloss.exact.call import Array, Bools, Floats, HostCall
from unifiedloss.exact.factors import are_powers_of_two
from unifiedloss.oracle.extended import extended, over, times
from unifiedloss.plan import MAX_INTEGER_TARGET


class Scale:
    """The factor u s_i / D of every slope.

    Args:
        call: the call.
        upstream: the upstream gradient, a number or one per position.
        divisor: the divisor of the mean.

    Attributes:
        upstream: the upstream gradient in float64.
        nothing: whether all gradients are 0, because the mean is empty.
        special: whether one of the factors is not finite, or is an integer that float64 may not
            hold.
    """

    def __init__(self, call: HostCall, upstream: Array, divisor: Any) -> None:
        self._call, self._given = call, upstream
        self.upstream: Floats = upstream.astype(np.float64)
        # 2^53 is included, because float64 rounds 2^53 + 1 to it.
        self._long: Any = False
        if upstream.dtype.kind in "iu":
            self._long = abs(self.upstream) >= MAX_INTEGER_TARGET
        self.nothing = isinstance(divisor, float) and divisor == 0.0
        self.special = (
            isinstance(divisor, float)
            or bool(np.any(self._long))
            or not np.isfinite(self.upstream).all()
        )
        self._special_divisor = divisor if isinstance(divisor, float) else None
        self.divisor: Ball = Ball(np.float64(1.0)) if isinstance(divisor, float) else divisor[0]
        self._exactly = None if isinstance(divisor, float) else divisor[1]
        self._fraction: Fraction | None = None

    def not_finite(self, n: int) -> tuple[Bools, Bools]:
        """Flag, of n positions, those with a NaN scale, and others that the oracle computes.

        The others have an infinite u or D, or an integer u that float64 may not hold.
        """
        divisor = 1.0 if self._special_divisor is None else self._special_divisor
        nan = np.isnan(self.upstream) | np.isnan(divisor)
        others = np.isinf(self.upstream) | np.isinf(divisor) | self._long
        return np.broadcast_to(nan, n), np.broadcast_to(~nan & others, n)

    @cached_property
    def power_of_two(self) -> bool:
        """Whether every scale is a power of two, so that a product with it is exact."""
        mean = self._call.divides
        weights = self._call.weight, self._call.element_weight
        parts = [self.upstream, *(x for x in weights if x is not None)]
        if mean:
            parts.append(np.atleast_1d(self.divisor.high))
        exact = not mean or (self.divisor.low == 0 and self.divisor.radius == 0)
        return bool(exact and all(map(are_powers_of_two, parts)))

    def float64(self, some: Any) -> Floats:
        """The scale of some positions, to a relative error of 4 u."""
        result: Any = self.upstream[some] if self.upstream.ndim else self.upstream
        if self._call.weight is not None:
            result = result * self._call.weight[some]
        scaled: Floats = result / self.divisor.high if self._call.divides else result
        return scaled

    def times(self, slope: Ball, chosen: Any) -> Ball:
        """Multiply slopes by the scales of their positions."""
        result = slope * Ball(
            self.upstream[chosen][:, None] if self.upstream.ndim else self.upstream
        )
        if self._call.weight is not None:
            result = result * Ball(self._call.weight[chosen][:, None])
        if self._call.element_weight is not None:
            result = result * Ball(self._call.element_weight[chosen][:, None])
        if self._call.plan.scale != 1.0:
            result = result * Ball(np.float64(self._call.plan.scale))
        return result / self.divisor if self._call.divides else result

    def exactly(self, i: int) -> Any:
        """The exact scale of a position: a Fraction, or a float where it is not finite."""
        factor = times(
            extended((self._given[i] if self._given.ndim else self._given).item()),
            self._call.weight_of(i),
        )
        factor = times(factor, Fraction(self._call.plan.scale))
        if self._special_divisor is not None:
            return over(factor, self._special_divisor)
        if self._fraction is None:
            assert self._exactly is not None
            self._fraction = self._exactly()
        return over(factor, self._fraction)
