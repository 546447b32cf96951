"""Sums along the last axis inside a compiled program: exact, or in float64 in a fixed order."""

from __future__ import annotations

import math

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


def exact_sum(field: Field, x: Array, n: int) -> GraphBall:
    """Sum along the last axis, of length n, as a ball (..., 1).

    The radius is 0 where two parts hold all digits of the sum. The terms are split into parts that
    are multiples of a unit so large that their sums are exact in any order.
    """
    xp = field.xp
    largest = xp.max(abs(x))
    inside = (largest < 2.0**900) & (largest > 2.0**-700)
    exponent = xp.where(inside, xp.right(xp.bits(largest), 52) - 1023, 0)
    bits = math.ceil(math.log2(max(n, 2))) + 2
    sums = []
    for _ in range(2):
        exponent = exponent + bits
        offset = 1.5 * power_of_two(xp, exponent)
        part = field.add(field.add(x, offset), -offset)
        sums.append(xp.sum(part))
        x = field.add(x, -part)
        exponent = exponent - 53
    unit = power_of_two(xp, exponent)
    radius = xp.where(xp.any(xp.differs(x, 0)), n * unit, 0.0)
    return GraphBall(
        field, *field.two_sum(*sums), xp.where(inside | xp.equal(largest, 0), radius, float("inf"))
    )
