r"""What exact mode's in-graph form asks of a framework: a few array operations, and numbers that its compiler cannot see through.

XLA rewrites floating-point arithmetic: \((x + c) - c\) with a constant c becomes x, products are contracted into sums, in one use and not
in another, and subnormal numbers are 0. Sums and products that are to be rounded as written go through `Field`, which hides each
result behind an exclusive or with a zero that is not known before the program runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Array = Any


class GraphOps(Protocol):
    """Array operations on float64, int64 and int32, named after NumPy's. Python's operators work on the arrays as well."""

    def float64(self, x: Array) -> Array:
        """x in float64."""

    def float32(self, x: Array) -> Array:
        """x in float32."""

    def int64(self, x: Array) -> Array:
        """x in int64."""

    def int32(self, x: Array) -> Array:
        """x in int32; of wider integers the last bits."""

    def bits(self, x: Array) -> Array:
        """float64 as int64, float32 as int32, float16 and bfloat16 as int16: the same bytes."""

    def of_bits(self, x: Array, dtype: str) -> Array:
        """The inverse of `bits`."""

    def left(self, x: Array, places: int) -> Array:
        """Integers, shifted to the left."""

    def right(self, x: Array, places: int) -> Array:
        """Integers, shifted to the right, with their sign."""

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """x where the condition holds, else y."""

    def minimum(self, x: Array, y: Array) -> Array:
        """The smaller one, NaN if one is."""

    def maximum(self, x: Array, y: Array) -> Array:
        """The larger one, NaN if one is."""

    def rint(self, x: Array) -> Array:
        """Rounded to whole numbers, ties to even."""

    def log(self, x: Array) -> Array:
        """Natural logarithm."""

    def log1p(self, x: Array) -> Array:
        """log(1 + x)."""

    def isnan(self, x: Array) -> Array:
        """Whether it is NaN."""

    def sum(self, x: Array) -> Array:
        """Along the last axis, in any order."""

    def max(self, x: Array) -> Array:
        """Along the last axis."""

    def any(self, x: Array) -> Array:
        """Along the last axis."""

    def concatenate(self, arrays: list[Array]) -> Array:
        """Along the last axis."""

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        """x in another shape."""

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        """x, repeated to a shape."""

    def arange(self, n: int) -> Array:
        """int32."""

    def take(self, table: Array, index: Array) -> Array:
        """Entries of a table; the indices are in range."""

    def along(self, x: Array, index: Array) -> Array:
        """One entry of each row."""

    def moved(self, x: Array, source: int, destination: int) -> Array:
        """An axis moved elsewhere."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array that will be written to: whatever is in it."""

    def constant(self, x: Any, dtype: str) -> Array:
        """A Python number, or what is an array already, in a dtype."""

    def barrier(self, x: Array) -> Array:
        """x, computed once and kept, not once for each use."""

    def loop(self, goes_on: Any, step: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """While goes_on(*state): state = step(*state)."""

    def rows(self, x: Array, start: Array, count: int) -> Array:
        """Rows from start on."""

    def with_rows(self, x: Array, rows: Array, start: Array) -> Array:
        """x with rows replaced from start on."""


class Field:
    """float64 arithmetic in which every operation is carried out as written, and rounded once.

    Args:
        xp: the array operations.
        zero: an int64 that is 0, which the compiler must not know.
    """

    def __init__(self, xp: GraphOps, zero: Array) -> None:
        self.xp, self.zero = xp, zero

    def opaque(self, x: Array) -> Array:
        """x, which the compiler cannot trace back to what it was made of."""
        return self.xp.of_bits(self.xp.bits(x) ^ self.zero, "float64")

    def add(self, a: Array, b: Array) -> Array:
        """a + b, rounded."""
        return self.opaque(a + b)

    def mul(self, a: Array, b: Array) -> Array:
        """a b, rounded."""
        return self.opaque(a * b)

    def div(self, a: Array, b: Array) -> Array:
        """a / b, to an error of 2 u: XLA may multiply with a reciprocal."""
        return self.opaque(a / b)

    def kept(
        self, function: Callable[[], tuple[Array, ...]], shape: tuple[int, ...], count: int
    ) -> tuple[Array, ...]:
        """The float64 arrays of a shape that a function gives, computed once and stored.

        XLA would compute them anew for each use, and compile that. It does not enter a loop, of which it must not know that it is gone
        through once.
        """
        xp = self.xp
        nothing = [xp.broadcast(xp.constant(0.0, "float64"), shape)] * count
        first = xp.constant(0, "int64")

        def step(i: Array, *_: Array) -> tuple[Array, ...]:
            return i + 1, *(xp.broadcast(x, shape) for x in function())

        return xp.loop(lambda i, *_: i <= self.zero, step, (first, *nothing))[1:]

    def two_sum(self, a: Array, b: Array) -> tuple[Array, Array]:
        """a + b as a float64 and the error of that, exactly (Knuth)."""
        total = self.add(a, b)
        back = self.add(total, -a)
        return total, self.add(self.add(a, -self.add(total, -back)), self.add(b, -back))

    def _split(self, a: Array) -> tuple[Array, Array]:
        scaled = self.mul(a, 134217729.0)  # 2^27 + 1
        high = self.add(scaled, -self.add(scaled, -a))
        return high, self.add(a, -high)

    def two_prod(self, a: Array, b: Array) -> tuple[Array, Array]:
        """a b as a float64 and the error of that, exactly (Dekker, Veltkamp): no factor beyond 2^990, the product not below 2^-900."""
        product = self.mul(a, b)
        (a_high, a_low), (b_high, b_low) = self._split(a), self._split(b)
        rest = self.add(product, -self.mul(a_high, b_high))
        rest = self.add(rest, -self.mul(a_low, b_high))
        rest = self.add(rest, -self.mul(a_high, b_low))
        return product, self.add(self.mul(a_low, b_low), -rest)


def hidden_zero(xp: GraphOps, *arrays: Array) -> Array:
    """An int64 that is 0, made of numbers that are known when the program runs only.

    A float32 has 24 bits; as a float64, whatever it is, its last 16 are 0.
    """
    zero = None
    for x in arrays:
        wide = xp.float64(xp.float32(xp.reshape(x, (-1,))[:1]))
        found = xp.reshape(xp.bits(wide), ()) & 0xFFFF
        zero = found if zero is None else zero | found
    return zero
