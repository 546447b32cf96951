"""Check the building blocks of exact mode in compiled programs, for the tests of each framework."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from tests.test_exact_bounds import balls_that_reach_midpoints
from unifiedloss.exact.balls import U
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import exp64
from unifiedloss.exact.graph.ops import Field, GraphOps, hidden_zero
from unifiedloss.exact.graph.rounding import from_bits, to_bits, to_odd
from unifiedloss.exact.graph.sums import exact_sum, height, tree_sum
from unifiedloss.floats import FORMATS
from unifiedloss.oracle.rounding import nearest

Run = Callable[..., list[Any]]
"""Compile a function of arrays, call it with the arrays, and return its results."""

HALVES = ("float16", "bfloat16")


def check_all(xp: GraphOps, run: Run) -> None:
    """Check all building blocks, in two programs."""
    random = np.random.default_rng(0)
    a, b = (random.normal(size=2000) * 2.0 ** random.integers(-60, 60, 2000) for _ in range(2))
    b[:500] = a[:500] * random.normal(size=500)
    a[-4:], b[-4:] = [1, 1, 2.0**53, -1], [2.0**-60, -1, 1, 2.0**-53]
    # Make `a` a factor of a product that is added, which a compiler may contract to an FMA.
    c = np.trunc(random.normal(size=2000) * 2**20)
    values = _hard_to_round(random)
    points = np.concatenate(
        [random.uniform(-708, 300, 400), np.arange(-300, 300, 7) * np.log(2) / 2, [0, -708, 1e-300]]
    )
    small = np.concatenate([2.0 ** random.uniform(-1000, 0, 200), random.uniform(0, 1e6, 100)])
    size = 1000
    probe = np.ones((3 * size, size))
    for row in range(3 * size):
        probe[row, [3, 517, 996][row // size]], probe[row, row % size] = 2.0**60, -(2.0**60)

    at_midpoints = [balls_that_reach_midpoints(dtype) for dtype in ("float32", *HALVES)]

    def first(a: Any, b: Any, c: Any, values: Any, *ends: Any) -> tuple[Any, ...]:
        f = Field(xp, hidden_zero(xp, a, b))
        product = a * c
        total = exact_sum(f, xp.reshape(a, (1, -1)), 2000)
        return (
            *f.two_sum(f.opaque(product), b),
            *f.two_prod(a, b),
            to_odd(f, a, b * 2.0**-200),
            total.high,
            total.low,
            total.radius,
            *(to_bits(xp, values, dtype) for dtype in ("float32", *HALVES)),
            from_bits(xp, to_bits(xp, values, "float32"), "float32"),
            *(
                GraphBall(f, *ends[3 * i : 3 * i + 3]).rounded(dtype)[1]
                for i, dtype in enumerate(("float32", *HALVES))
            ),
        )

    def second(points: Any, small: Any, probe: Any) -> tuple[Any, ...]:
        return (
            exp64(xp, points),
            xp.log1p(small),
            xp.log(1 + small),
            tree_sum(xp, probe, size),
        )

    ends = [x for ball in at_midpoints for x in ball]
    results = run(first, a, b, c, values, *ends)
    results, undecided = results[:-3], results[-3:]
    assert all(each.all() for each in undecided)
    total, rest, product, error, odd, high, low, radius, *bits, back = results
    for i in range(2000):
        x, y = Fraction(a[i]), Fraction(b[i])
        assert total[i] == float(Fraction(a[i] * c[i]) + y)
        assert Fraction(total[i]) + Fraction(rest[i]) == Fraction(a[i] * c[i]) + y
        assert product[i] == float(x * y)
        assert Fraction(product[i]) + Fraction(error[i]) == x * y
    even = (a.view(np.int64) & 1) == 0
    outwards = np.sign(a) == np.sign(b)
    np.testing.assert_array_equal(
        odd.view(np.int64), a.view(np.int64) + np.where(even, np.where(outwards, 1, -1), 0)
    )
    exact = sum(map(Fraction, a), Fraction(0))
    off = abs(Fraction(high.item()) + Fraction(low.item()) - exact)
    assert off <= Fraction(radius.item()) <= abs(exact) * 2**-60
    for patterns, dtype in zip(bits, ("float32", *HALVES), strict=True):
        wanted = [nearest(Fraction(v), FORMATS[dtype]) for v in values]
        got = _read(patterns, dtype)
        assert got.tolist() == wanted
        assert not np.signbit(got[got == 0]).any()
        if dtype == "float32":
            finite = np.isfinite(got)
            assert back[finite].tolist() == got[finite].tolist()

    exp, log1p, log, sums = run(second, points, small, probe)
    digits = Context(prec=40)
    _check_errors(exp, [digits.exp(Decimal(x)) for x in points], 3 * U)
    _check_errors(log1p, [_log1p(digits, x) for x in small], 10 * U)
    logs = [digits.ln(Decimal(1 + x)) if 1 + x > 1 else Decimal(0) for x in small]
    _check_errors(log, logs, 10 * U)
    for place in range(3):
        distinct = np.unique(sums[place * size : (place + 1) * size])
        assert len(distinct) <= height(size) + 1


def _log1p(digits: Context, x: float) -> Decimal:
    if x > 1e-18:
        return digits.ln(digits.add(1, Decimal(x)))
    # Here 1 + x needs more digits than the context has, so use x - x^2 / 2.
    return digits.multiply(Decimal(x), Decimal(1 - x / 2))


def _hard_to_round(random: np.random.Generator) -> Any:
    """Numbers next to midpoints, at the ends of each format, subnormal ones, and random ones."""
    near = []
    for dtype in ("float32", *HALVES):
        form = FORMATS[dtype]
        unit = form.epsilon
        for start in (1.0, form.tiny, form.largest, 3 * form.tiny):
            middle = start * (1 + unit / 2)
            near += [middle * factor for factor in (1, 1 + 2.0**-50, 1 - 2.0**-50)]
            near.append(start * (1 + 1.5 * unit))
        least = form.tiny * form.epsilon
        near += [least * k / 4 for k in range(1, 12)]
        near += [least * (0.5 + 2.0**-50), form.tiny * (1 - 2.0**-12)]
    others = random.normal(size=200) * 2.0 ** random.integers(-160, 120, 200)
    values = np.concatenate([near, others, [0.0, 1e300, 1e-300]])
    return np.concatenate([values, -values])


def _read(bits: Any, dtype: str) -> Any:
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    form = np.float32 if dtype == "float32" else np.float16
    return bits.astype(np.uint32 if dtype == "float32" else np.uint16).view(form).astype(np.float64)


def _check_errors(results: Any, exact: list[Decimal], bound: float) -> None:
    errors = [
        abs(Decimal(float(x)) - e) / abs(e) if e else abs(Decimal(float(x)))
        for x, e in zip(results, exact, strict=True)
    ]
    assert max(errors) <= bound
