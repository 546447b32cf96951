"""Sums along the last axis inside a compiled program: exact, or in float64 in a fixed order."""

from __future__ import annotations

import math
from typing import Any

from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.ops import Array, Field, GraphOps
from unifiedloss.exact.graph.rounding import power_of_two

_FOLDED = 16
"""At most this many partial sums are added in any order at the end of `tree_sum`."""


def height(k: int) -> int:
    """The most additions that a term passes through in `tree_sum`."""
    additions = 0
    while k > _FOLDED and k >= 32:
        additions += 5
        k = k // 32 + k % 32
    return additions + max(k - 1, 0)


def tree_sum(xp: GraphOps, x: Array, k: int) -> Array:
    """Sum along the last axis, of length k, which stays with length 1.

    Each round adds 32 slices in pairs, until few partial sums are left.
    """
    while k > _FOLDED and k >= 32:
        size = k // 32
        parts = [x[..., i * size : (i + 1) * size] for i in range(32)]
        rest = x[..., 32 * size :]
        while len(parts) > 1:
            parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        x = xp.concatenate([parts[0], rest]) if k % 32 else parts[0]
        k = size + k % 32
    return xp.sum(x)


_LAYERS = 40
"""At most this many layers are split off. They reach from 2^900 to the lowest unit."""

_LOWEST = -840
"""The lowest exponent of an offset. Units are 2^-52 of it, and must be no subnormal numbers, which
the compiler flushes."""


def exact_sum(field: Field, x: Array, n: int | Array) -> GraphBall:
    """Sum along the last axis, of length n, as a ball (..., 1).

    n may be an int32 that is known only when the program runs.

    The radius is 0 where three float64 hold all digits of the sum and two are enough for it, and
    else next to the smallest of the three.

    The terms are split into layers that are multiples of a unit so large that their sums are exact
    in any order. Most sums have two layers, and terms of very different sizes have more.
    """
    xp = field.xp
    largest = xp.max(abs(x))
    inside = (largest < 2.0**900) & (largest > 2.0**-700)
    exponent = xp.where(inside, xp.right(xp.bits(largest), 52) - 1023, 0)
    if isinstance(n, int):
        bits: Any = math.ceil(math.log2(max(n, 2))) + 2
    else:
        n = xp.float64(n)
        bits = xp.right(xp.bits(n + 1.0), 52) - 1023 + 3
    zero = xp.where(inside, 0.0, 0.0)

    def step(i: Array, x: Array, exponent: Array, *sums: Array) -> tuple[Array, ...]:
        high, low, rest, lost = sums
        exponent = xp.maximum(exponent + bits, _LOWEST)
        offset = 1.5 * power_of_two(xp, exponent)
        part = field.add(field.add(x, offset), -offset)
        high, error = field.two_sum(high, xp.sum(part))
        low, error = field.two_sum(low, error)
        rest, error = field.two_sum(rest, error)
        return i + 1, field.add(x, -part), exponent - 53, high, low, rest, lost + abs(error)

    def goes_on(i: Array, x: Array, exponent: Array, *_: Array) -> Array:
        left = xp.any(xp.differs(x, 0)) & (exponent > _LOWEST)
        return (i < _LAYERS) & xp.any(xp.reshape(left, (-1,)))

    # Two layers outside of the loop, which keeps the compiler from fusing them with what is before.
    state = step(*step(xp.constant(0, "int32"), x, exponent, zero, zero, zero, zero))
    _, x, exponent, high, low, rest, lost = xp.loop(goes_on, step, state)
    high, low = field.two_sum(high, low)
    low, error = field.two_sum(low, rest)
    high, low = field.two_sum(high, low)
    radius = (abs(error) + lost) * (1 + 2.0**-40)
    radius = radius + xp.where(xp.any(xp.differs(x, 0)), n * power_of_two(xp, exponent), 0.0)
    known = inside | xp.equal(largest, 0)
    return GraphBall(field, high, low, xp.where(known, radius, float("inf")))
