r"""The array operations that exact mode needs inside a compiled program, and opaque arithmetic.

XLA rewrites floating-point arithmetic: it simplifies \((x + c) - c\) with a constant c to x, it
contracts products into sums in one use and not in another, and it flushes subnormal numbers to 0.
`Field` protects the sums and products that must be rounded as written: it combines each result by
exclusive or with a zero that is unknown before the program runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Array = Any


class GraphOps(Protocol):
    """Array operations on float64, int64 and int32, named after NumPy's.

    Python's operators work on the arrays as well.
    """

    def float64(self, x: Array) -> Array:
        """Cast x to float64."""

    def float32(self, x: Array) -> Array:
        """Cast x to float32."""

    def int64(self, x: Array) -> Array:
        """Cast x to int64."""

    def int32(self, x: Array) -> Array:
        """Cast x to int32; wider integers keep their last bits."""

    def bits(self, x: Array) -> Array:
        """Bitcast float64 to int64, float32 to int32, float16 and bfloat16 to int16."""

    def of_bits(self, x: Array, dtype: str) -> Array:
        """Bitcast integers to a dtype: the inverse of `bits`."""

    def left(self, x: Array, places: int) -> Array:
        """Shift integers to the left."""

    def right(self, x: Array, places: int) -> Array:
        """Shift integers to the right arithmetically, which keeps the sign."""

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """Select x where the condition holds, else y."""

    def minimum(self, x: Array, y: Array) -> Array:
        """The elementwise minimum; NaN if one operand is NaN."""

    def maximum(self, x: Array, y: Array) -> Array:
        """The elementwise maximum; NaN if one operand is NaN."""

    def rint(self, x: Array) -> Array:
        """Round to integers, ties to even."""

    def log(self, x: Array) -> Array:
        """The natural logarithm."""

    def log1p(self, x: Array) -> Array:
        """The logarithm of 1 + x."""

    def equal(self, x: Array, y: Array) -> Array:
        """Where x equals y; one of them is an array.

        Not the operator, because in TensorFlow it compares identities in graphs of TensorFlow 1
        and where tensor equality is switched off.
        """
        return x == y

    def differs(self, x: Array, y: Array) -> Array:
        """Where x does not equal y; two Python numbers give a bool."""
        return x != y

    def isnan(self, x: Array) -> Array:
        """Where x is NaN."""

    def sum(self, x: Array) -> Array:
        """Sum along the last axis, in any order; the axis stays with length 1."""

    def max(self, x: Array) -> Array:
        """The maximum along the last axis, which stays with length 1."""

    def any(self, x: Array) -> Array:
        """Whether any is True along the last axis, which stays with length 1."""

    def concatenate(self, arrays: list[Array]) -> Array:
        """Concatenate along the last axis."""

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Reshape x."""

    def broadcast(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Broadcast x to a shape."""

    def arange(self, n: int) -> Array:
        """The integers from 0 to n - 1, int32."""

    def take(self, table: Array, index: Array) -> Array:
        """Entries of a table at indices, which are in range."""

    def along(self, x: Array, index: Array) -> Array:
        """One entry of each row, at the row's index."""

    def moved(self, x: Array, source: int, destination: int) -> Array:
        """Move an axis."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array with arbitrary content, to be overwritten."""

    def constant(self, x: Any, dtype: str) -> Array:
        """Convert a Python number or an array to an array of a dtype."""

    def barrier(self, x: Array) -> Array:
        """Compute x once and store it, instead of once per use."""

    def loop(self, goes_on: Any, step: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run state = step(*state) while goes_on(*state) holds."""

    def rows(self, x: Array, start: Array, count: int) -> Array:
        """Take `count` rows from `start` on."""

    def with_rows(self, x: Array, rows: Array, start: Array) -> Array:
        """Replace rows of x from `start` on."""


class Field:
    """float64 arithmetic that the compiler executes as written, with one rounding per operation.

    Args:
        xp: the array operations.
        zero: an int64 that is 0. The compiler must not know its value.
    """

    def __init__(self, xp: GraphOps, zero: Array) -> None:
        self.xp, self.zero = xp, zero

    def opaque(self, x: Array) -> Array:
        """Hide from the compiler how x was computed."""
        return self.xp.of_bits(self.xp.bits(x) ^ self.zero, "float64")

    def add(self, a: Array, b: Array) -> Array:
        """Return a + b, rounded once."""
        return self.opaque(a + b)

    def mul(self, a: Array, b: Array) -> Array:
        """Return a b, rounded once."""
        return self.opaque(a * b)

    def div(self, a: Array, b: Array) -> Array:
        """Return a / b to an error of 2 u, because XLA may multiply by a reciprocal."""
        return self.opaque(a / b)

    def kept(
        self, function: Callable[[], tuple[Array, ...]], shape: tuple[int, ...], count: int
    ) -> tuple[Array, ...]:
        """Compute the `count` float64 arrays of a function once and store them.

        Otherwise XLA would compile and compute them again for each use. XLA does not move
        computations out of a loop, so the function runs inside a loop of one step. The number of
        steps depends on `zero`, because XLA must not know that there is only one.
        """
        xp = self.xp
        initial = [xp.broadcast(xp.constant(0.0, "float64"), shape)] * count
        first = xp.constant(0, "int64")

        def step(i: Array, *_: Array) -> tuple[Array, ...]:
            return i + 1, *(xp.broadcast(x, shape) for x in function())

        return xp.loop(lambda i, *_: i <= self.zero, step, (first, *initial))[1:]

    def two_sum(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return a + b in float64 and its exact rounding error (Knuth)."""
        total = self.add(a, b)
        back = self.add(total, -a)
        return total, self.add(self.add(a, -self.add(total, -back)), self.add(b, -back))

    def _split(self, a: Array) -> tuple[Array, Array]:
        scaled = self.mul(a, 134217729.0)  # 2^27 + 1
        high = self.add(scaled, -self.add(scaled, -a))
        return high, self.add(a, -high)

    def two_prod(self, a: Array, b: Array) -> tuple[Array, Array]:
        """Return a b in float64 and its exact rounding error (Dekker, Veltkamp).

        The error is exact if no factor is above 2^990 and the product is not below 2^-900.
        """
        product = self.mul(a, b)
        (a_high, a_low), (b_high, b_low) = self._split(a), self._split(b)
        rest = self.add(product, -self.mul(a_high, b_high))
        rest = self.add(rest, -self.mul(a_low, b_high))
        rest = self.add(rest, -self.mul(a_high, b_low))
        return product, self.add(self.mul(a_low, b_low), -rest)


def hidden_zero(xp: GraphOps, *arrays: Array) -> Array:
    """An int64 that is 0, computed from numbers that are unknown until the program runs.

    A float32 has 24 significant bits, so the last 16 bits of its float64 value are always 0.
    """
    zero = None
    for x in arrays:
        wide = xp.float64(xp.float32(xp.reshape(x, (-1,))[:1]))
        last_bits = xp.reshape(xp.bits(wide), ()) & 0xFFFF
        zero = last_bits if zero is None else zero | last_bits
    return zero
