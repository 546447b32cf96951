r"""Cases of the squared error that are hard to round correctly.

\(d^2 w\) is one unit of its last place away from a midpoint for
\(w \equiv (2^{b-1} \pm 1) / d^2\) modulo \(2^b\).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Case
from unifiedloss.conformance.data import f32
from unifiedloss.conformance.hard import PRECISION, hard_case
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError

_EACH = MeanSquaredError(reduction="none")
_MEAN = MeanSquaredError(reduction="mean")
# d^2 w and d w u lie within 2^-26 of an ulp of a midpoint, at d, w and u of these integers / 2^23.
_SQUARES = ((15834249, 14117636), (12456753, 14225696))
_PRODUCTS = (
    (9513525, 10500550, 10846296),
    (13096730, 16088190, 13572184),
    (9114473, 12610029, 16611832),
)


def hard_cases() -> Iterator[Case]:
    """The hard cases."""
    yield from _next_to_a_midpoint()
    yield from _on_a_midpoint()
    yield from _rounded_twice()
    yield from _sums()
    yield from _at_the_ends_of_the_range()


def _next_to_a_midpoint() -> Iterator[Case]:
    d, w = (np.ldexp(f32(*column), -23) for column in zip(*_SQUARES, strict=True))
    yield hard_case("searched, squared error", _EACH, "float32", d, 0 * d, sample_weight=w)
    d, w, u = (np.ldexp(f32(*column), -23) for column in zip(*_PRODUCTS, strict=True))
    yield hard_case(
        "searched, slope of the squared error",
        _EACH,
        "float32",
        d,
        0 * d,
        sample_weight=w,
        upstream=u,
        compiled=True,
    )
    # The product has 159 bits and lies one unit of its last place away from a midpoint.
    errors = [134217729.0, 134217731, 134217735]
    w = np.array([9007198986305537.0, 5671199520820793, 8166877459162927])
    name = "a product next to a tie"
    yield hard_case(name, _EACH, "float64", errors, np.zeros(3), sample_weight=w)


def _on_a_midpoint() -> Iterator[Case]:
    """Results that are midpoints themselves: more precision never decides how to round them."""
    for dtype, bits in PRECISION.items():
        floats = np.float64 if dtype == "float64" else np.float32
        ulp = 2.0 ** (1 - bits)
        # 2 (p - t) has one bit too many, and the tie goes up or down to even. p - t itself is exact
        # in float64, or as the sum of two float64 numbers.
        p, t = [1 + ulp, 1 + 3 * ulp, 1 + ulp], np.array([-1, -1, 1 + ulp], floats)
        yield hard_case("slope of the squared error", _EACH, dtype, p, t)
        if dtype not in ("float32", "float64"):
            continue
        # Means of 1 and 1 + ulp, and of 1 + ulp and 1 + 2 ulp.
        for terms in ([1, 1 + ulp], [1 + ulp, 1 + 2 * ulp]):
            name, weight = f"a mean, {terms[0] > 1}", np.array(terms, floats)
            mean = MeanSquaredError(divisor="all")
            yield hard_case(name, mean, dtype, [1, 1], np.zeros(2, floats), sample_weight=weight)


def _rounded_twice() -> Iterator[Case]:
    """Results that are wrong in a half type if they are rounded to float32 first."""
    p, t = [-1.3876953125, 2.896484375, 2.673828125], [2.61328125, 0.89599609375, -5.328125]
    targets = np.array(t, np.float16)
    yield hard_case("rounded twice, squared error", _EACH, "float16", p, targets)
    # float64 weights give a loss of 1 + 2^-p, a midpoint, and of slightly more and less.
    for dtype, bits in (("float16", 11), ("bfloat16", 8)):
        weight = np.array([1 + 2.0**-bits + 2.0**-40, 1 + 2.0**-bits, 1 + 2.0**-bits - 2.0**-40])
        name = "rounded twice, weight"
        yield hard_case(name, _EACH, dtype, [1, 1, 1], f32(0, 0, 0), sample_weight=weight)


def _sums() -> Iterator[Case]:
    """Sums that must not round their terms, and divisors that float64 cannot hold."""
    total, terms = MeanSquaredError(reduction="sum"), [1, 2.0**-12, 2.0**-40]
    yield hard_case("a sum that a tiny term decides", total, "float32", terms, f32(0, 0, 0))
    weights = np.array([1.0, 2.0**-60, 2.0**-60])
    for dtype, zeros in (("float64", np.zeros(3)), ("float32", f32(0, 0, 0))):
        name = "a divisor of more than 53 bits"
        yield hard_case(name, _MEAN, dtype, [1, 3, 5], zeros, sample_weight=weights)


def _at_the_ends_of_the_range() -> Iterator[Case]:
    """Subnormal results, and results that overflow."""
    tiny = 2.0**-149
    errors, name = [3 * tiny, 2.0**-75, 2.0**-74], "subnormal results, squared error"
    yield hard_case(name, _EACH, "float32", errors, f32(tiny, 0, 0))
    # The largest float16 is 65504, and results from 65520 on round to infinity.
    weight, zeros = f32(65519.99609375, 65520, 65504), f32(0, 0, 0)
    yield hard_case("overflow", _EACH, "float16", [1, 1, 1], zeros, sample_weight=weight)
    squares, far = [255.875, 256.0, 0.0], f32(0, 0, 65520)
    yield hard_case("overflow, squared error", _EACH, "float16", squares, far)
    weight = 2.0**64 * np.array([1 - 2.0**-25 - 2.0**-50, 1 - 2.0**-25])
    errors = [2.0**32, 2.0**32]
    yield hard_case("overflow", _EACH, "float32", errors, f32(0, 0), sample_weight=weight)
