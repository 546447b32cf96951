"""Balls, as in `unifiedloss.exact.balls`, of arrays in a compiled program: double-double numbers with a proven bound of what they are off by.

The operations and their bounds are those of that module, which says why they hold; all that is new is `Field`, which keeps the compiler from
rewriting them, and exp of 0 and of what is far below 0: the one is exactly 1, the other a number that is known to be
positive and nothing else, so that it breaks ties in its direction. Bounds are computed in float64 with subnormal numbers flushed, and where
one might be lost that way it is set to `_LOST`.
"""

from __future__ import annotations

from dataclasses import dataclass

from unifiedloss.exact.balls import U, _ratio, _step_parts, _table
from unifiedloss.exact.graph_ops import Array, Field
from unifiedloss.exact.graph_rounding import to_bits, to_odd

_EXP_ERROR = 2.0**-90
_LOG_ERROR = 2.0**-80
_UNDERFLOW = 2.0**-900
_LOST = 2.0**-1000
_LOWEST = -590.0
_TAIL = 2.0**-852
"""exp of less than _LOWEST is between 0 and twice this. Above it, what a number's low part loses is no subnormal number."""

_SLACK = 1.0 + 2.0**-40
_STEPS = 64
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Ball:
    """All real numbers within `radius` of high + low; arrays that broadcast against each other, or Python's floats."""

    field: Field
    high: Array
    low: Array = 0.0
    radius: Array = 0.0

    def _new(self, high: Array, low: Array, radius: Array) -> Ball:
        return Ball(self.field, high, low, radius)

    def __add__(self, other: Ball) -> Ball:
        f = self.field
        where = f.xp.where
        total, error = f.two_sum(self.high, other.high)
        lows = f.add(self.low, other.low)
        rest = f.add(error, lows)
        lost = where(_nonzero(self.low, other.low), U * abs(lows), 0.0)
        lost = lost + where(_nonzero(error, lows), U * abs(rest), 0.0)
        high, low = f.two_sum(total, rest)
        return self._new(high, low, self.radius + other.radius + lost)

    def __neg__(self) -> Ball:
        return self._new(-self.high, -self.low, self.radius)

    def __sub__(self, other: Ball) -> Ball:
        return self + -other

    def __mul__(self, other: Ball) -> Ball:
        f = self.field
        where = f.xp.where
        high, error = f.two_prod(self.high, other.high)
        cross = f.add(f.mul(self.high, other.low), f.mul(self.low, other.high))
        high, low = f.two_sum(high, f.add(error, cross))
        size = abs(high)
        lost = where(_either(self.low, other.low), 9 * U * U * size, 0.0)
        lost = lost + where((size < _UNDERFLOW) & _nonzero(self.high, other.high), _LOST, 0.0)
        carried = self.radius * (abs(other.high) * (1 + 4 * U) + other.radius)
        carried = carried + other.radius * abs(self.high) * (1 + 4 * U)
        return self._new(high, low, carried + lost)

    def __truediv__(self, other: Ball) -> Ball:
        f = self.field
        where = f.xp.where
        first = f.div(self.high, other.high)
        product, error = f.two_prod(first, other.high)
        rest, more = f.two_sum(self.high, -product)
        tail = f.add(f.add(f.add(more, -error), self.low), -f.mul(first, other.low))
        remainder = f.add(rest, tail)
        high, low = f.two_sum(first, f.div(remainder, other.high))
        size = abs(high)
        lost = where((remainder != 0) | _either(self.low, other.low), 32 * U * U * size, 0.0)
        small = (size < _UNDERFLOW) | (abs(self.high) < _UNDERFLOW)
        lost = lost + where(small & (self.high != 0), _LOST / abs(other.high), 0.0)
        least = abs(other.high) * (1 - 4 * U) - other.radius
        carried = (self.radius + other.radius * size * (1 + 4 * U)) / least
        return self._new(high, low, where(least > 0, carried, float("inf")) + lost)

    def scaled(self, power: float) -> Ball:
        """Times a power of two, exactly."""
        return self._new(self.high * power, self.low * power, self.radius * power)

    def where(self, condition: Array, other: Ball | float) -> Ball:
        """This ball where the condition holds, else the other."""
        where = self.field.xp.where
        high, low, radius = (other.high, other.low, other.radius) if isinstance(other, Ball) else (other, 0.0, 0.0)
        return self._new(
            where(condition, self.high, high), where(condition, self.low, low), where(condition, self.radius, radius)
        )

    def apply(self, function) -> Ball:  # type: ignore[no-untyped-def]
        """The function of each of the three arrays, which have one shape."""
        return self._new(function(self.high), function(self.low), function(self.radius))

    def full(self, shape: tuple[int, ...]) -> Ball:
        """Broadcast to a shape."""
        xp = self.field.xp
        return self.apply(lambda x: xp.broadcast(xp.constant(x, "float64"), shape))

    def sum(self, shape: tuple[int, ...]) -> Ball:
        """The sum along the last axis of the shape, which stays with length 1."""
        xp = self.field.xp
        part = self.full(shape)
        n = shape[-1]
        while n > 1:
            half = n // 2
            odd = part.apply(lambda x, n=n: x[..., n - 1 :]) if n % 2 else None
            part = part.apply(lambda x, h=half: x[..., :h]) + part.apply(lambda x, h=half: x[..., h : 2 * h])
            if odd is not None:
                part = part._new(
                    *(
                        xp.concatenate([a, b])
                        for a, b in zip(
                            (part.high, part.low, part.radius), (odd.high, odd.low, odd.radius), strict=True
                        )
                    )
                )
            n = half + n % 2
        return part

    def exp(self) -> Ball:
        """e^x, for x <= 700; exactly 1 at 0, and positive, if nothing else, where it is too small."""
        f = self.field
        xp = f.xp
        deep = self.high < _LOWEST
        x = xp.where(deep, 0.0, self.high)
        more = xp.where(deep, 0.0, self.low)
        steps = xp.rint(f.mul(x, _STEPS / _LN2))
        first, second, third = _step_parts()
        rest, error = f.two_sum(x, -f.mul(steps, first))  # both products are exact, and so is this difference
        r = self._new(rest, error, 0.0) + self._new(-f.mul(steps, second), 0.0, 0.0)
        r = r + self._new(-f.mul(steps, third), 0.0, 0.0) + self._new(more, 0.0, 0.0)
        y = r.high
        tail = 1 / 3628800 + y / 39916800
        for divisor in (362880, 40320, 5040, 720, 120):
            tail = 1 / divisor + y * tail
        series = self._constant(*_ratio(1, 24)) + self._new(f.opaque(y * tail), 0.0, 0.0)
        for divisor in (6, 2, 1):
            series = series * r + self._constant(*_ratio(1, divisor))
        index = xp.int32(steps)
        table_high, table_low = (xp.constant(t, "float64") for t in _table())
        base = self._new(xp.take(table_high, index & (_STEPS - 1)), xp.take(table_low, index & (_STEPS - 1)), 0.0)
        result = base + base * (series * r)
        power = xp.of_bits(xp.int64((index >> 6) + 1023) << 52, "float64")
        high, low = f.mul(result.high, power), f.mul(result.low, power)
        wide = xp.where(self.radius < 2.0**-10, 1.01 * self.radius, float("inf"))
        exact = (x == 0) & (more == 0) & (self.radius == 0)
        radius = xp.where(exact, 0.0, abs(high) * (_EXP_ERROR + wide))
        high, low = xp.where(exact, 1.0, high), xp.where(exact, 0.0, low)
        # Between 0 and 2 _TAIL, and not 0.
        return self._new(
            xp.where(deep, _TAIL, high),
            xp.where(deep, 0.0, low),
            xp.where(deep, _TAIL * (1 - 2.0**-20), radius),
        )

    def _constant(self, high: float, low: float, radius: float) -> Ball:
        return self._new(high, low, radius)

    def log1p(self) -> Ball:
        """log(1 + x), for x >= 0."""
        f = self.field
        where = f.xp.where
        one = self._constant(1.0, 0.0, 0.0)
        small = self.high < 2.0**-6
        # Where it is not small: one step of Newton, y + log(1 + (x' - 1)) with x' = (1 + x) e^-y next to 1.
        whole = one + self.where(~small, 1.0)
        guess = f.opaque(f.xp.log(whole.high))
        off = whole * self._new(-guess, 0.0, 0.0).exp() - one
        large = self._new(guess, 0.0, 0.0) + off - (off * off).scaled(0.5)
        # Where it is: 2 artanh(w) with w = x / (2 + x), by its series in v = w^2 <= 2^-14.
        x = self.where(small, 2.0**-10)
        w = x / (self._constant(2.0, 0.0, 0.0) + x)
        v = w * w
        y = v.high
        tail = 1 / 15 + y / 17
        for divisor in (13, 11, 9, 7):
            tail = 1 / divisor + y * tail
        series = self._constant(*_ratio(1, 5)) + self._new(f.opaque(y * tail), 0.0, 0.0)
        series = series * v + self._constant(*_ratio(1, 3))
        series = series * v + one
        result = (w * series).scaled(2.0).where(small, large)
        carried = self.radius / (1.0 + self.high - self.radius)
        bound = abs(result.high) * _LOG_ERROR + where(carried >= 0, carried, float("inf"))
        # What is off by nearly all of itself stays positive: log(1 + x) is x, to x^2 / 2.
        tiny = self.high < 2.0**-500
        high, low = where(tiny, self.high, result.high), where(tiny, self.low, result.low)
        bound = where(tiny, self.radius + self.high * 2.0**-400, bound)
        return self._new(high, low, where(self.high == 0, carried, bound))

    def rounded(self, dtype: str) -> tuple[Array, Array]:
        """The bits of what all numbers of the ball round to, and where they do not all round to one."""
        xp = self.field.xp
        # Two additions that round, each by u of its result; none where there is no radius.
        wide = self.radius * _SLACK
        spread = wide + xp.where(wide != 0, (abs(self.low) + wide) * (4 * U), 0.0)
        first = to_bits(xp, to_odd(self.field, self.high, self.low - spread), dtype)
        last = to_bits(xp, to_odd(self.field, self.high, self.low + spread), dtype)
        known = (first == last) & (abs(self.high) < 2.0**1000) & (self.radius < 2.0**1000)
        return first, ~known


def _nonzero(a: Array, b: Array) -> Array:
    """Where neither is 0."""
    return (a != 0) & (b != 0)


def _either(a: Array, b: Array) -> Array:
    """Where one of them is not 0."""
    return (a != 0) | (b != 0)
