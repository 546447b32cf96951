r"""Double-double arithmetic in NumPy in which every result carries a proven error bound.

A `Ball` is the set of all real numbers within `radius` of high + low, with
\(|low| \le u\,|high|\) and \(u = 2^{-53}\). Each operation returns a ball that contains its result
for all numbers of its operands' balls: it propagates the radii of the operands and adds its own
rounding error. The bounds of the rounding errors, relative to the result (for sums: to the sum of
the magnitudes):

- a + b: 4 u^2, or 0 where both low parts are 0. TwoSum of the high parts; two float64 additions of
  the lower parts.
- a b: 9 u^2, or 0 where both low parts are 0. TwoProd; the omitted product of the low parts, and
  three roundings of size at most 3 u.
- a / b: 16 u^2, or 0 where the remainder is 0. A quotient and one correction of it.
- exp: 2^-90. The argument is reduced to 2^-7.5 with an error of 2^-107; the series is in
  double-double up to r^4, in float64 from r^5 / 120 on.
- log1p: 2^-80. One Newton step on exp, or the series of the inverse hyperbolic tangent below 2^-6.

Tests compare exp and log1p with the oracle and find errors well below these bounds. Exact
operations return the radius 0, because only an exact number can be recognized as a tie. For this
reason no radius may underflow to 0: each operation that multiplies a radius adds `_FLOOR`, which is
more than a few subnormal roundings lose.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

U = 2.0**-53
EXP_ERROR = 2.0**-90
LOG_ERROR = 2.0**-80

UNDERFLOW = 2.0**-900
"""Below this size a product's rounding error may not be a float64 number."""
LOST = 2.0**-1000
"""Added to the radius of products and quotients below `UNDERFLOW`, to cover the lost error."""
_FLOOR = 2.0**-1070
"""Added to radii that were multiplied, so that none underflows to 0."""

_LOWEST = -690.0
"""Below this argument exp is not evaluated: the result is above 0 and below `_TAIL`."""
_TAIL = 2.0**-995


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a + b in float64 and its exact rounding error (Knuth)."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _split(a: Any) -> tuple[Any, Any]:
    scaled = 134217729.0 * a  # 2^27 + 1
    high = scaled - (scaled - a)
    return high, a - high


def two_prod(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a b in float64 and its exact rounding error (Dekker, Veltkamp).

    The error is exact if no factor is above 2^990 and the product is not below 2^-900.
    """
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return product, a_low * b_low - (
        ((product - a_high * b_high) - a_low * b_high) - a_high * b_low
    )


class Ball(NamedTuple):
    """All real numbers within `radius` of high + low; the three arrays broadcast together."""

    high: Any
    low: Any = 0.0
    radius: Any = 0.0

    def __add__(self, other: Ball) -> Ball:  # type: ignore[override]
        total, error = two_sum(self.high, other.high)
        lows = self.low + other.low
        rest = error + lows
        # Each of the two float64 additions errs by at most u times its result, and is exact where
        # one of its operands is 0.
        lost = np.where((self.low != 0) & (other.low != 0), U * np.abs(lows), 0.0)
        lost = lost + np.where((error != 0) & (lows != 0), U * np.abs(rest), 0.0)
        return Ball(*two_sum(total, rest), self.radius + other.radius + lost)

    def __neg__(self) -> Ball:
        return Ball(-self.high, -self.low, self.radius)

    def __sub__(self, other: Ball) -> Ball:
        return self + -other

    def __mul__(self, other: Ball) -> Ball:  # type: ignore[override]
        high, error = two_prod(self.high, other.high)
        cross = self.high * other.low + self.low * other.high
        exact = (self.low == 0) & (other.low == 0)
        high, low = two_sum(high, error + cross)
        size = np.abs(high)
        lost = np.where(exact, 0.0, 9 * U * U * size)
        lost = lost + np.where((size < UNDERFLOW) & (self.high != 0) & (other.high != 0), LOST, 0.0)
        carried = self.radius * (np.abs(other.high) * (1 + 4 * U) + other.radius)
        carried = carried + other.radius * np.abs(self.high) * (1 + 4 * U)
        exact = (self.radius == 0) & (other.radius == 0) | self.is_0() | other.is_0()
        return Ball(high, low, np.where(exact, 0.0, carried + _FLOOR) + lost)

    def __truediv__(self, other: Ball) -> Ball:
        first = self.high / other.high
        product, error = two_prod(first, other.high)
        rest, more = two_sum(self.high, -product)
        remainder = rest + ((more - error) + self.low - first * other.low)
        exact = (remainder == 0) & (self.low == 0) & (other.low == 0)
        high, low = two_sum(first, remainder / other.high)
        size = np.abs(high)
        lost = np.where(exact, 0.0, 16 * U * U * size)
        small = (size < UNDERFLOW) | (np.abs(self.high) < UNDERFLOW)
        lost = lost + np.where(small & (self.high != 0), LOST / np.abs(other.high), 0.0)
        least = np.abs(other.high) * (1 - 4 * U) - other.radius
        carried = (self.radius + other.radius * size * (1 + 4 * U) + _FLOOR) / least + _FLOOR
        carried = np.where((self.radius == 0) & (other.radius == 0) | self.is_0(), 0.0, carried)
        return Ball(high, low, np.where(least > 0, carried, np.inf) + lost)

    def is_0(self) -> Any:
        """Where the ball is exactly 0; False for a product that underflowed."""
        return (self.high == 0) & (self.radius == 0)

    def scaled(self, power: float) -> Ball:
        """Multiply by a power of two, exactly if nothing underflows."""
        return Ball(self.high * power, self.low * power, self.radius * power)

    def where(self, condition: Any, other: Ball) -> Ball:
        """Select this ball where the condition holds, else the other."""
        return Ball(*(np.where(condition, x, y) for x, y in zip(self, other, strict=True)))

    def at(self, index: Any) -> Ball:
        """The balls at an index."""
        shape = np.broadcast_shapes(*(np.shape(x) for x in self))
        return Ball(*(np.broadcast_to(x, shape)[index] for x in self))

    def sum(self) -> Ball:
        """Sum along the last axis, which stays with length 1."""
        shape = np.broadcast_shapes(*(np.shape(x) for x in self))
        part = Ball(*(np.broadcast_to(x, shape) for x in self))
        if shape[-1] == 0:
            return Ball(*(np.zeros((*shape[:-1], 1)) for _ in self))
        while (n := part.high.shape[-1]) > 1:
            half = n // 2
            folded = part.at((..., slice(half))) + part.at((..., slice(half, 2 * half)))
            if n % 2:
                pairs = zip(folded, part, strict=True)
                part = Ball(*(np.concatenate([x, y[..., -1:]], -1) for x, y in pairs))
            else:
                part = folded
        return part

    def exp(self) -> Ball:
        """e^x, for x <= 700."""
        x, more, radius = self
        deep = x < _LOWEST
        x = np.where(deep, 0.0, x)
        steps = np.rint(x * (STEPS / LN2))
        first, second, third = step_parts()
        # The products with `first` and `second` are exact, and so is this difference.
        rest, error = two_sum(x, -steps * first)
        r = Ball(rest, error) + Ball(-steps * second)
        r = r + Ball(-steps * third) + Ball(np.where(deep, 0.0, more))
        y = r.high
        tail = 1 / 3628800 + y / 39916800
        for divisor in (362880, 40320, 5040, 720, 120):
            tail = 1 / divisor + y * tail
        series = ratio(1, 24) + Ball(y * tail)
        for divisor in (6, 2, 1):
            series = series * r + ratio(1, divisor)
        index = steps.astype(np.int64)
        table_high, table_low = table_of_powers()
        base = Ball(table_high[index & (STEPS - 1)], table_low[index & (STEPS - 1)])
        result = base + base * (series * r)
        power = (index >> 6).astype(np.int32)
        high = np.where(deep, 0.0, np.ldexp(result.high, power))
        low = np.where(deep, 0.0, np.ldexp(result.low, power))
        wide = np.where(radius < 2.0**-10, 1.01 * radius, np.inf)
        # Below 2^-985 the low part is subnormal and has fewer digits.
        bound = np.abs(high) * (EXP_ERROR + wide) + np.where(high < UNDERFLOW, _FLOOR, 0.0)
        # exp(0) = 1 is exact, because the shares of equal logits are rational and may be ties.
        one = (self.high == 0) & (self.low == 0) & (radius == 0)
        return Ball(high, low, np.where(one, 0.0, np.where(deep, _TAIL, bound)))

    def log1p(self) -> Ball:
        """log(1 + x), for x >= 0."""
        small = self.high < 2.0**-6
        # x not small: one Newton step, y + log(1 + (x' - 1)) with x' = (1 + x) e^-y next to 1.
        one_plus_x = Ball(1.0) + self.where(~small, Ball(1.0))
        guess = np.log(one_plus_x.high)
        off = one_plus_x * Ball(-guess).exp() - Ball(1.0)
        large = Ball(guess) + off - (off * off).scaled(0.5)
        # x small: 2 artanh(w) with w = x / (2 + x), by its series in v = w^2 <= 2^-14.
        x = self.where(small, Ball(2.0**-10))
        w = x / (Ball(2.0) + x)
        v = w * w
        y = v.high
        tail = y * (1 / 7 + y * (1 / 9 + y * (1 / 11 + y * (1 / 13 + y * (1 / 15 + y / 17)))))
        series = ratio(1, 5) + Ball(tail)
        series = series * v + ratio(1, 3)
        series = series * v + Ball(1.0)
        result = (w * series).scaled(2.0).where(small, large)
        # The effect of the operand's own radius: the slope of log1p is 1 / (1 + x). The operations
        # above propagate it too, but more pessimistically, so their radius is not used.
        carried = self.radius / (1.0 + self.high - self.radius)
        carried = np.where(carried >= 0, carried, np.inf) + np.where(self.radius != 0, _FLOOR, 0.0)
        bound = (
            np.abs(result.high) * LOG_ERROR
            + carried
            + np.where(result.high < UNDERFLOW, _FLOOR, 0.0)
        )
        return Ball(result.high, result.low, np.where(self.high == 0, carried, bound))

    def negative_log(self, complement: Ball) -> Ball:
        """-log x for 0 < x <= 1. Pass 1 - x too, because near 1 it holds the digits."""
        near = self.high > 0.98
        x = self.where(near, Ball(1.0))
        close = (complement.where(near, Ball(0.0)) / x).log1p()
        # Near 1: -log x = log(1 / x) = log1p((1 - x) / x). Elsewhere that argument is large, so
        # split off the power of two, which is exact, and use the mantissa in [1/2, 1).
        _, exponents = np.frexp(self.high)
        mantissa = Ball(*(np.ldexp(part, -exponents) for part in self))
        far = Ball(-exponents.astype(np.float64)) * _log_2()
        far = far + ((Ball(1.0) - mantissa) / mantissa).log1p()
        return close.where(near, far)


def exp_in_two(x: Floats, more: Floats) -> tuple[Floats, Floats]:
    """e^(x + more) for x <= 0 as two float64 to a relative error of 2^-64; 0 below `_LOWEST`.

    For long rows, where balls are too slow. The argument is reduced to r of at most 2^-7.5. r^2 / 2
    and all later terms are computed in float64, which errs by 3 u of 2^-16 there.
    """
    deep = x < _LOWEST
    x = np.where(deep, 0.0, x)
    steps = np.rint(x * (STEPS / LN2))
    first, second, third = step_parts()
    r, lost = two_sum(x - steps * first, -steps * second)  # the first difference is exact
    lost = lost - steps * third + more
    series = 1 / 5040 + r / 40320
    for divisor in (720, 120, 24, 6, 2):
        series = 1 / divisor + r * series
    square = r * r * series
    index = steps.astype(np.int64)
    table_high, table_low = table_of_powers()
    base, base_low = table_high[index & (STEPS - 1)], table_low[index & (STEPS - 1)]
    product, error = two_prod(base, r)
    high, rest = two_sum(base, product)
    high, low = two_sum(
        high, rest + error + base * (square + lost * (1.0 + r)) + base_low * (1.0 + r)
    )
    power = (index >> 6).astype(np.int32)
    return np.where(deep, 0.0, np.ldexp(high, power)), np.where(deep, 0.0, np.ldexp(low, power))


STEPS = 64
LN2 = 0.6931471805599453


@cache
def _digits() -> Context:
    return Context(prec=60)


def _ball_of(x: Decimal) -> Ball:
    high = float(x)
    return Ball(high, float(_digits().subtract(x, Decimal(high))), abs(high) * 2.0**-106)


@cache
def ratio(numerator: int, denominator: int) -> Ball:
    """A ball around a fraction, with the radius 0 where float64 holds it."""
    high = numerator / denominator
    if high * denominator == numerator and not denominator & (denominator - 1):
        return Ball(high)
    return _ball_of(_digits().divide(Decimal(numerator), Decimal(denominator)))


@cache
def _log_2() -> Ball:
    return _ball_of(_digits().ln(Decimal(2)))


def log_2_over(steps: int) -> Ball:
    """A ball around ln 2 / steps."""
    return _ball_of(_digits().divide(_digits().ln(Decimal(2)), Decimal(steps)))


@cache
def step_parts(steps: int = STEPS) -> tuple[float, float, float]:
    """Split ln 2 / steps into three parts.

    The first two have so few bits that their products with integers below 2^20 are exact.
    """
    context = _digits()
    rest = context.divide(context.ln(Decimal(2)), Decimal(steps))
    parts = []
    for _ in range(2):
        _, exponent = np.frexp(float(rest))
        unit = 2.0 ** (int(exponent) - 32)
        part = float(np.floor(float(rest) / unit)) * unit
        parts.append(part)
        rest = context.subtract(rest, Decimal(part))
    return parts[0], parts[1], float(rest)


@cache
def table_of_powers(steps: int = STEPS) -> tuple[Floats, Floats]:
    """The table of 2^(j / steps) for all j from 0 on below steps, as high and low parts."""
    context = _digits()
    step = context.divide(context.ln(Decimal(2)), Decimal(steps))
    balls = [_ball_of(context.exp(context.multiply(step, Decimal(j)))) for j in range(steps)]
    return np.array([b.high for b in balls]), np.array([b.low for b in balls])
