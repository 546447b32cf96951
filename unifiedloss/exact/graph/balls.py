"""Balls for compiled programs: double-double numbers with a proven error bound.

`unifiedloss.exact.balls` derives the operations and their bounds. The differences are:

- `Field` keeps the compiler from rewriting the operations.
- The bound of a division is twice as wide, because `Field` divides to 2 u only.
- exp(0) is exactly 1. exp of numbers far below 0 is only known to be positive, so that it breaks
  ties upwards.
- Bounds are computed in float64 with subnormal numbers flushed. A bound that might be lost that way
  is set to `LOST`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from unifiedloss.exact.balls import (
    EXP_ERROR,
    LN2,
    LOG_ERROR,
    LOST,
    STEPS,
    UNDERFLOW,
    U,
    ratio,
    step_parts,
    table_of_powers,
)
from unifiedloss.exact.graph.ops import Array, Field, GraphOps
from unifiedloss.exact.graph.rounding import power_of_two, to_bits, to_odd

_LOWEST = -590.0
_TAIL = 2.0**-852
"""exp of an argument below `_LOWEST` is between 0 and twice this number.

Above `_LOWEST` the rounding errors of the low part are not subnormal.
"""

_ONE_BY_ONE = 128
"""`sum` adds up to this many columns one by one. It splits more into slices of sqrt(k) columns."""

_SLACK = 1.0 + 2.0**-40


@dataclass(frozen=True)
class GraphBall:
    """All real numbers within `radius` of high + low.

    The three parts are arrays that broadcast together, or Python floats.
    """

    field: Field
    high: Array
    low: Array = 0.0
    radius: Array = 0.0

    def _new(self, high: Array, low: Array, radius: Array) -> GraphBall:
        return GraphBall(self.field, high, low, radius)

    def __add__(self, other: GraphBall) -> GraphBall:
        f = self.field
        where = f.xp.where
        total, error = f.two_sum(self.high, other.high)
        lows = f.add(self.low, other.low)
        rest = f.add(error, lows)
        lost = where(_nonzero(f.xp, self.low, other.low), U * abs(lows), 0.0)
        lost = lost + where(_nonzero(f.xp, error, lows), U * abs(rest), 0.0)
        high, low = f.two_sum(total, rest)
        return self._new(high, low, self.radius + other.radius + lost)

    def __neg__(self) -> GraphBall:
        return self._new(-self.high, -self.low, self.radius)

    def __sub__(self, other: GraphBall) -> GraphBall:
        return self + -other

    def __mul__(self, other: GraphBall) -> GraphBall:
        f = self.field
        where = f.xp.where
        high, error = f.two_prod(self.high, other.high)
        cross = f.add(f.mul(self.high, other.low), f.mul(self.low, other.high))
        high, low = f.two_sum(high, f.add(error, cross))
        size = abs(high)
        lost = where(_either(f.xp, self.low, other.low), 9 * U * U * size, 0.0)
        lost = lost + where((size < UNDERFLOW) & _nonzero(f.xp, self.high, other.high), LOST, 0.0)
        carried = self.radius * (abs(other.high) * (1 + 4 * U) + other.radius)
        carried = carried + other.radius * abs(self.high) * (1 + 4 * U) + self._least(other)
        return self._new(high, low, carried + lost)

    def __truediv__(self, other: GraphBall) -> GraphBall:
        f = self.field
        where = f.xp.where
        first = f.div(self.high, other.high)
        product, error = f.two_prod(first, other.high)
        rest, more = f.two_sum(self.high, -product)
        tail = f.add(f.add(f.add(more, -error), self.low), -f.mul(first, other.low))
        remainder = f.add(rest, tail)
        high, low = f.two_sum(first, f.div(remainder, other.high))
        size = abs(high)
        lost = where(
            f.xp.differs(remainder, 0) | _either(f.xp, self.low, other.low), 32 * U * U * size, 0.0
        )
        small = (size < UNDERFLOW) | (abs(self.high) < UNDERFLOW)
        lost = lost + where(small & f.xp.differs(self.high, 0), LOST / abs(other.high), 0.0)
        least = abs(other.high) * (1 - 4 * U) - other.radius
        floor = self._least(other)
        carried = (self.radius + other.radius * size * (1 + 4 * U) + floor) / least + floor
        return self._new(high, low, where(least > 0, carried, float("inf")) + lost)

    def _least(self, other: GraphBall) -> Array:
        """The number that keeps a radius from underflowing to 0, which would claim exactness.

        It is a normal number, because XLA flushes subnormal ones.
        """
        return self.field.xp.where(_either(self.field.xp, self.radius, other.radius), LOST, 0.0)

    def scaled(self, power: float) -> GraphBall:
        """Multiply by a power of two, exactly."""
        return self._new(self.high * power, self.low * power, self.radius * power)

    def shifted(self, power: Array) -> GraphBall:
        """Multiply by 2^power, exactly, for a last product before it is rounded.

        Numbers that overflow every dtype of a result become 2^600, and those that underflow
        2^-700, with their sign.
        """
        xp = self.field.xp
        size = abs(self.high)
        exponent = xp.right(xp.bits(size), 52) - 1023 + power
        known = xp.differs(size, 0) & (self.radius < 0.5 * size)
        large, small = known & (exponent > 600), known & (exponent < -700)
        moderate = xp.where(
            large | small, power - power, xp.maximum(xp.minimum(power, 2000), -2000)
        )
        half = xp.right(moderate, 1)
        factors = power_of_two(xp, half), power_of_two(xp, moderate - half)
        end = xp.where(large, 2.0**600, 2.0**-700)
        end = xp.where(self.high < 0, -end, end)
        # Parts below the smallest normal number are flushed.
        lost = (abs(self.low) * factors[0] * factors[1] < 2.0**-1000) | (exponent < -900)
        lost = lost & (xp.differs(self.low, 0) | xp.differs(self.radius, 0))
        shifted = self.apply(lambda x: x * factors[0] * factors[1])
        return self._new(
            xp.where(large | small, end, shifted.high),
            xp.where(large | small, 0.0, shifted.low),
            xp.where(large | small, 0.0, shifted.radius + xp.where(lost, LOST, 0.0)),
        )

    def where(self, condition: Array, other: GraphBall | float) -> GraphBall:
        """Select this ball where the condition holds, else the other."""
        where = self.field.xp.where
        if not isinstance(other, GraphBall):
            other = self._number(other)
        return self._new(
            where(condition, self.high, other.high),
            where(condition, self.low, other.low),
            where(condition, self.radius, other.radius),
        )

    def apply(self, function: Callable[[Array], Array]) -> GraphBall:
        """Apply a function to each of the three arrays."""
        return self._new(function(self.high), function(self.low), function(self.radius))

    def full(self, shape: tuple[int, ...]) -> GraphBall:
        """Broadcast the three arrays to a shape."""
        xp = self.field.xp
        return self.apply(lambda x: xp.broadcast(xp.constant(x, "float64"), shape))

    def kept(self, shape: tuple[int, ...]) -> GraphBall:
        """Broadcast to a shape, compute once and store."""
        full = self.full(shape)
        return self._new(*self.field.kept(lambda: (full.high, full.low, full.radius), shape, 3))

    def sum(self, shape: tuple[int, ...]) -> GraphBall:
        """Sum a matrix of that shape along the last axis, which stays with length 1.

        Slices are added to slices, one by one.
        """
        part, (n, k) = self.kept(shape), shape
        while k > 1:
            width = math.isqrt(k) if k > _ONE_BY_ONE else 1
            part, k = _sum_of_slices(part, n, k, width), width
        return part

    def exp(self, shape: tuple[int, ...]) -> GraphBall:
        """e^x of a shape, for x <= 700.

        The result is exactly 1 at 0. Below `_LOWEST` it is only known to be positive.
        """
        f = self.field
        xp = f.xp
        x = self.full(shape)
        deep = x.high < _LOWEST
        high, low = xp.where(deep, 0.0, x.high), xp.where(deep, 0.0, x.low)
        steps = xp.rint(f.mul(high, STEPS / LN2))
        first, second, third = step_parts()
        # The products with `first` and `second` are exact, and so is this difference.
        rest, error = f.two_sum(high, -f.mul(steps, first))
        r = self._new(rest, error, 0.0) + self._number(-f.mul(steps, second))
        r = r + self._number(-f.mul(steps, third)) + self._number(low)
        series = self._series(r)

        def scaled_result() -> tuple[Array, Array]:
            index = xp.int32(steps)
            highs, lows = (
                xp.take(xp.constant(t, "float64"), index & (STEPS - 1)) for t in table_of_powers()
            )
            base = self._new(highs, lows, 0.0)
            result = base + base * (series * r)
            power = power_of_two(xp, xp.right(index, 6))
            return f.mul(result.high, power), f.mul(result.low, power)

        high_result, low_result = f.kept(scaled_result, shape, 2)
        wide = xp.where(x.radius < 2.0**-10, 1.01 * x.radius, float("inf"))
        exact = xp.equal(high, 0) & xp.equal(low, 0) & xp.equal(x.radius, 0)
        radius = xp.where(exact, 0.0, abs(high_result) * (EXP_ERROR + wide))
        high_result = xp.where(exact, 1.0, high_result)
        low_result = xp.where(exact, 0.0, low_result)
        # Below _LOWEST the ball lies between 0 and 2 _TAIL and does not contain 0.
        return self._new(
            xp.where(deep, _TAIL, high_result),
            xp.where(deep, 0.0, low_result),
            xp.where(deep, _TAIL * (1 - 2.0**-20), radius),
        )

    def _series(self, r: GraphBall) -> GraphBall:
        """(e^r - 1) / r, as a loop, so that XLA compiles the step only once."""
        f = self.field
        xp = f.xp
        y = r.high
        tail = 1 / 3628800 + y / 39916800
        for divisor in (362880, 40320, 5040, 720, 120):
            tail = 1 / divisor + y * tail
        start = self._constant(*ratio(1, 24)) + self._number(f.opaque(y * tail))
        divisors = [ratio(1, divisor) for divisor in (6, 2, 1)]
        highs, lows = (xp.constant([d[part] for d in divisors], "float64") for part in (0, 1))

        def step(i: Array, high: Array, low: Array) -> tuple[Array, ...]:
            coefficient = self._new(xp.take(highs, i), xp.take(lows, i), 0.0)
            total = self._new(high, low, 0.0) * r + coefficient
            return i + 1, total.high, total.low

        _, high, low = xp.loop(
            lambda i, *_: i < len(divisors), step, (xp.constant(0, "int32"), start.high, start.low)
        )
        return self._new(high, low, 0.0)

    def _number(self, x: Array) -> GraphBall:
        return self._new(x, 0.0, 0.0)

    def _constant(self, high: float, low: float, radius: float) -> GraphBall:
        return self._new(high, low, radius)

    def log1p(self, shape: tuple[int, ...]) -> GraphBall:
        """log(1 + x) of a shape, for x >= 0."""
        f = self.field
        where = f.xp.where
        one = self._constant(1.0, 0.0, 0.0)
        small = self.high < 2.0**-6
        one_plus_x = one + self.where(~small, 1.0)
        guess = f.opaque(f.xp.log(one_plus_x.high))
        inverse = self._number(-guess).exp(shape)

        def logarithm() -> tuple[Array, Array]:
            # x not small: one Newton step, y + log(1 + (x' - 1)) with x' = (1 + x) e^-y next to 1.
            off = one_plus_x * inverse - one
            large = self._number(guess) + off - (off * off).scaled(0.5)
            # x small: 2 artanh(w) with w = x / (2 + x), by its series in v = w^2 <= 2^-14.
            x = self.where(small, 2.0**-10)
            w = x / (self._constant(2.0, 0.0, 0.0) + x)
            v = w * w
            y = v.high
            tail = 1 / 15 + y / 17
            for divisor in (13, 11, 9, 7):
                tail = 1 / divisor + y * tail
            series = self._constant(*ratio(1, 5)) + self._number(f.opaque(y * tail))
            series = series * v + self._constant(*ratio(1, 3))
            series = series * v + one
            result = (w * series).scaled(2.0).where(small, large)
            return result.high, result.low

        high, low = f.kept(logarithm, shape, 2)
        result = self._new(high, low, 0.0)
        carried = self.radius / (1.0 + self.high - self.radius)
        bound = abs(result.high) * LOG_ERROR + where(carried >= 0, carried, float("inf"))
        # Keep the result positive where the radius is nearly x: log(1 + x) is x up to x^2 / 2.
        tiny = self.high < 2.0**-500
        high, low = where(tiny, self.high, result.high), where(tiny, self.low, result.low)
        bound = where(tiny, self.radius + self.high * 2.0**-400, bound)
        return self._new(high, low, where(f.xp.equal(self.high, 0), carried, bound))

    def rounded(self, dtype: str) -> tuple[Array, Array]:
        """Round the ball to a dtype.

        Returns:
            The bits of the result, and where the numbers of the ball do not all round to it.
        """
        first, _, known = self.ends(dtype)
        return first, ~known

    def ends(self, dtype: str) -> tuple[Array, Array, Array]:
        """Round the lowest and the highest number of the ball to a dtype.

        Returns:
            The bits of both, and where they are surely the same.
        """
        xp = self.field.xp
        # Two additions round, each by u of its result. A radius of 0 stays 0.
        wide = self.radius * _SLACK
        spread = wide + xp.where(xp.differs(wide, 0), (abs(self.low) + wide) * (4 * U), 0.0)
        first = to_bits(xp, to_odd(self.field, self.high, self.low - spread), dtype)
        last = to_bits(xp, to_odd(self.field, self.high, self.low + spread), dtype)
        inside = (abs(self.high) < 2.0**1000) & (self.radius < 2.0**1000)
        return first, last, xp.equal(first, last) & inside


def _nonzero(xp: GraphOps, a: Array, b: Array) -> Array:
    """Where neither number is 0."""
    return xp.differs(a, 0) & xp.differs(b, 0)


def _either(xp: GraphOps, a: Array, b: Array) -> Array:
    """Where at least one number is not 0."""
    return xp.differs(a, 0) | xp.differs(b, 0)


def _sum_of_slices(ball: GraphBall, n: int, k: int, width: int) -> GraphBall:
    """Sum the slices of `width` columns of an (n, k) ball to one slice, (n, width)."""
    xp = ball.field.xp
    count = -(-k // width)
    shape = n, count * width

    def slices(x: Array) -> Array:
        if count * width > k:
            padding = xp.broadcast(xp.constant(0.0, "float64"), (n, count * width - k))
            x = xp.concatenate([x, padding])
        return xp.reshape(xp.moved(xp.reshape(x, (n, count, width)), 1, 0), (count, n * width))

    parts = ball.full((n, k)).apply(slices)

    def step(i: Array, *total: Array) -> tuple[Array, ...]:
        one = parts.apply(lambda x: xp.rows(x, i, 1))
        new = GraphBall(ball.field, *total) + one
        return i + 1, new.high, new.low, new.radius

    zeros = [xp.broadcast(xp.constant(0.0, "float64"), (1, n * width))] * 3
    _, *total = xp.loop(
        lambda i, *_: i < shape[1] // width, step, (xp.constant(0, "int32"), *zeros)
    )
    return GraphBall(ball.field, *total).apply(lambda x: xp.reshape(x, (n, width)))
