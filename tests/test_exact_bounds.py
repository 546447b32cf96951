"""The error bounds of exact mode at the inputs that use them up, and the rounding of intervals.

Each test fails if a bound is too small, a margin is missing, or a range is not checked. Random
inputs almost never come near these bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import exact
from unifiedloss.exact import rounding
from unifiedloss.exact.balls import U, two_sum
from unifiedloss.floats import FORMATS
from unifiedloss.oracle.rounding import nearest
from unifiedloss.plan import Signature, resolve

pytestmark = pytest.mark.framework("numpy")

DIGITS = Context(prec=60)
PARAMETERS = pytest.mark.parametrize("dtype", list(FORMATS))


def midpoints(dtype: str) -> Iterator[tuple[float, float]]:
    """Some numbers of a format, even and odd ones of both signs, and half an ulp of each."""
    form = FORMATS[dtype]
    random = np.random.default_rng(form.precision)
    for _ in range(40):
        mantissa = int(random.integers(2 ** (form.precision - 1), 2**form.precision))
        exponent = int(random.integers(-8, 5))
        for sign in (1.0, -1.0):
            yield sign * mantissa * 2.0**exponent, 2.0 ** (exponent - 1)


# ------------------------------------------------------------------------ the rounding of a ball


def balls_that_reach_midpoints(dtype: str) -> tuple[Any, Any, Any]:
    """Balls (high, low, radius) that a midpoint of the format belongs to, at the very end.

    The ends are computed in float64, so an end may lie on the wrong side of the midpoint before it
    is moved outwards. The radius of every second ball was rounded down, by some thousand
    operations.
    """
    random = np.random.default_rng(1)
    found = []
    for number, half in midpoints(dtype):
        for side in (1.0, -1.0):
            off = half * 2.0 ** -float(random.integers(20, 52)) * random.uniform(1, 2)
            low = side * half + off * random.choice([-1.0, 1.0])
            found.append((number, low, abs(low - side * half)))  # exact (Sterbenz)
            found.append((number, side * half * 0.75, half * 0.25 * (1 - 2.0**-41)))
    high, low, radius = np.array(found).T
    return high, low, radius


@PARAMETERS
def test_an_interval_that_reaches_a_midpoint_is_undecided(dtype: str) -> None:
    """Of a ball that ends at a midpoint, no end is rounded, because the other side may be right."""
    assert rounding.decide(*balls_that_reach_midpoints(dtype), dtype)[1].all()


@PARAMETERS
def test_an_interval_beside_a_midpoint_is_decided(dtype: str) -> None:
    """A ball that ends before the midpoint is rounded, and to the oracle's number."""
    for number, half in midpoints(dtype):
        for side in (1.0, -1.0):
            for low in (side * half * (1 - 2.0**-10), side * half * (1 + 2.0**-10)):
                radius = abs(low - side * half) * (1 - 2.0**-30)
                ball = (np.array([x]) for x in (number, low, radius))
                rounded, undecided = rounding.decide(*ball, dtype)
                assert not undecided[0]
                assert rounded[0] == nearest(Fraction(number) + Fraction(low), FORMATS[dtype])


def test_rounding_to_odd() -> None:
    """A sum that float64 does not hold becomes the neighbour with an odd mantissa, on one side."""
    random = np.random.default_rng(0)
    high = random.uniform(1, 2, 400) * random.choice([-1.0, 1.0], 400)
    low = high * 2.0 ** -random.uniform(53, 100, 400) * random.choice([-1.0, 1.0], 400)
    low[::8] = 0.0
    high, low = two_sum(high, low)
    for total, x, y in zip(rounding._to_odd(high, low), high, low, strict=True):
        exact_sum = Fraction(x) + Fraction(y)
        if y == 0:
            assert total == x
            continue
        assert int(np.float64(total).view(np.int64)) % 2 == 1
        away = np.nextafter(total, np.inf if exact_sum > Fraction(total) else -np.inf)
        between = sorted((Fraction(total), Fraction(away)))
        assert between[0] < exact_sum < between[1]


# --------------------------------------------------------------------- the first tier's own bounds


def slope_of(spec: ul.CrossEntropyLoss, z: Any, t: Any, **more: Any) -> Any:
    """The gradient in exact mode, for predictions in float32."""
    spec = spec.replace(from_logits=True, reduction="none", rounding="exact")
    return spec.value_and_grad(np.array(z, np.float32), np.array(t), **more)[1]


def test_the_shift_of_dense_logits_errs_in_proportion_to_the_largest() -> None:
    """z - m loses digits of a small z: up to u m, which e^(z - m) has as a relative error.

    The upstream gradient puts the slope between a midpoint of float32 and what float64 computes.
    """
    largest = 300.0
    for small in (0.6, 0.9, 1.1, 1.4):
        z = np.float32(small * 2.0**-45)
        rounded = Fraction(float(z) - largest)
        error = float(rounded - (Fraction(float(z)) - Fraction(largest)))
        assert abs(error) > 50 * U
        share = DIGITS.exp(DIGITS.subtract(Decimal(float(z)), Decimal(largest)))
        share = DIGITS.divide(share, DIGITS.add(1, share))
        weight = 2.0**149
        middle = Decimal("12345.5") * Decimal(2.0**-149)
        # The right slope is below the midpoint where the error makes it larger, and the reverse.
        wanted = DIGITS.multiply(middle, Decimal(1 - error / 2))
        upstream = float(DIGITS.divide(DIGITS.divide(wanted, share), Decimal(weight)))
        slope = slope_of(
            ul.CrossEntropyLoss(),
            [[largest, z]],
            [[1.0, 0.0]],
            sample_weight=np.array([weight]),
            upstream=np.array([upstream]),
        )
        right = DIGITS.multiply(DIGITS.multiply(share, Decimal(weight)), Decimal(upstream))
        assert slope[0, 1] == nearest(Fraction(right), FORMATS["float32"])


def test_weights_may_not_lift_an_exponential_that_underflowed() -> None:
    """An exponential below 2^-1022 may be 0, so its row leaves float64 if weights make it matter.

    Processors that flush subnormal numbers to 0 give this 0, as the replaced exponential does.
    """

    def flushing(x: Any, out: Any) -> Any:
        np.exp(x, out=out)
        out[out < 2.0**-1022] = 0.0
        return out

    spec = ul.CrossEntropyLoss(
        from_logits=True, reduction="none", rounding="exact", class_weights=(2.0**150, 1.0)
    )
    z, y, weight = np.array([[-299.0, -709.0]], np.float32), np.array([0]), np.array([2.0**150])
    plan = resolve(
        spec,
        Signature(z.shape, "float32"),
        Signature(y.shape, "int64"),
        Signature(weight.shape, "float64"),
    )
    for upstream in (2.0**150, -(2.0**150)):
        _, slope = exact.evaluate(
            plan, z, y, weight, None, np.array([upstream]), gradient=True, exp=flushing
        )
        assert slope is not None
        scale = Decimal(2.0**150) ** 2 * Decimal(upstream)
        share = DIGITS.multiply(DIGITS.exp(Decimal(-410)), scale)
        assert abs(share) > Decimal(2.0**-149)
        assert slope[0, 1] == nearest(Fraction(share), FORMATS["float32"])


def test_float64_targets_may_not_lift_an_exponential_that_underflowed() -> None:
    """The share e^-740 has six digits in float64, and a target of 2^1000 makes it a normal float32.

    Every other weight of the call is 1.
    """
    loss = ul.CrossEntropyLoss(from_logits=True, reduction="none", rounding="exact")
    z, t = np.array([[0.0, -740.0]], np.float32), np.array([[2.0**1000, 0.0]])
    value, slope = loss.value_and_grad(z, t)
    share = DIGITS.multiply(DIGITS.exp(Decimal(-740)), Decimal(2.0**1000))
    right = nearest(Fraction(share), FORMATS["float32"])
    assert right > 1e-30
    assert value[0] == slope[0, 1] == -slope[0, 0] == right
