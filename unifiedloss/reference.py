r"""The oracle: what every adapter is compared with, on Python's integers, fractions and decimals.

`evaluate` gives the value and the closed-form gradients of a loss, each *correctly rounded*: the number of the result's dtype that is
nearest to the real number the spec defines, ties to even. No framework and no floating-point rounding error has a hand in it.

How a number becomes known. Inputs are exact rationals. Every result is a `Real`: a rational, plus positive transcendental
numbers (logarithms and shares of a softmax) times rational coefficients,

$$x = a + \sum_k b_k X_k .$$

The rational part stays exact and each X_k is known to a *relative* error, to any number of digits. So the digits wanted are raised
until both ends of the interval round to the same number. Three things make that end:

- Rational results have exact ties, which no precision decides. They have no X_k left, and are rounded from the fraction.
- A tiny X_k beside a tie of `a` needs only its sign: logits [100000, -0.00390625] would need 43,435 digits otherwise. Below a size that
  follows from the denominator of `a` it is a sticky bit and is never added.
- Equal X_k are merged before they are added, and logarithms of rationals are broken down to coprime bases, so what cancels
  does so exactly.

Where none of this decides, `evaluate` raises AssertionError; it never guesses.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_CEILING,
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    ROUND_UP,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
)
from fractions import Fraction
from functools import cache
from typing import Any, Literal, NamedTuple

from unifiedloss.errors import EmptyMeanError
from unifiedloss.floats import FORMATS, INTEGER_TYPES, Format
from unifiedloss.spec import AnyLoss, Plan, Signature, resolve

NAN = math.nan
INFINITY = math.inf
ZERO = Fraction(0)
ONE = Fraction(1)

MAX_INTEGER_TARGET = 2**53
"""The largest integer target, in size, the squared error takes: up to here float64 holds every integer."""


# -------------------------------------------------------------------------------------------------------- rounding to a format


def nearest(value: Fraction, form: Format, sticky: int = 0) -> float:
    """The number of a format nearest to a rational, ties to even; overflow gives an infinity, and every zero is +0.

    Args:
        value: the rational.
        form: the format to round to.
        sticky: -1 or 1 if the number meant lies below or above `value` by less than the distance to any other number or midpoint of
            the format, so that it matters at a tie alone.
    """
    numerator, denominator = value.numerator, value.denominator
    if numerator < 0:
        return 0.0 - nearest(-value, form, -sticky)
    if numerator == 0:
        return 0.0
    exponent = numerator.bit_length() - denominator.bit_length()
    if (numerator << max(-exponent, 0)) < (denominator << max(exponent, 0)):
        exponent -= 1
    shift = form.precision - 1 - max(exponent, form.min_exponent)
    quotient, remainder = divmod(numerator << max(shift, 0), denominator << max(-shift, 0))
    twice = 2 * remainder - (denominator << max(-shift, 0))
    if twice > 0 or (twice == 0 and (sticky > 0 or (sticky == 0 and quotient % 2 == 1))):
        quotient += 1
    if quotient.bit_length() - shift > form.max_exponent + 1:
        return INFINITY
    return math.ldexp(quotient, -shift)


def _narrow(value: float, form: Format) -> float:
    """A float64 rounded to a format of at most 53 bits, ties to even."""
    if value == 0.0 or math.isinf(value):
        return value + 0.0
    exponent = math.frexp(value)[1] - 1
    shift = form.precision - 1 - max(exponent, form.min_exponent)
    rounded = math.ldexp(round(math.ldexp(value, shift)), -shift) if shift < 1024 else nearest(Fraction(value), form)
    return rounded + 0.0 if abs(rounded) <= form.largest else math.copysign(INFINITY, value)


# ------------------------------------------------------------------------------------------------ decimals with known errors

_TRAPS = [InvalidOperation, DivisionByZero, Overflow]
_WIDE_FLOOR = Context(prec=60, rounding=ROUND_FLOOR, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
_WIDE_CEILING = Context(prec=60, rounding=ROUND_CEILING, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
_RADIUS = Context(prec=9, rounding=ROUND_UP, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
# The difference of two float64 numbers has at most 309 digits before the point and 1074 behind it.
_EXACT = Context(prec=1400, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[*_TRAPS, Inexact])

_DEEPEST_GAP = Decimal(-MIN_EMIN // 4)
"""Beyond this gap exp(-gap) is not evaluated: it would leave the exponents a Decimal has."""
_BELOW_DEEPEST = Decimal((0, (1,), -(-MIN_EMIN // 10)))
"""An upper bound of exp(-gap) there: 0.4 < log10(e), so 10^(-0.4 gap) is one."""

_FIRST_DIGITS = 28
_MORE_DIGITS = (50, 100, 200, 400, 800, 1600, 3200, 6400)
_SIMPLIFY_FROM = 100
"""Where this many digits do not decide, logarithms of rationals may cancel: they are broken down before going on."""

_ZERO = Decimal(0)
_ONE = Decimal(1)


class _Ball(NamedTuple):
    """All numbers that differ from `middle` by at most `radius`."""

    middle: Decimal
    radius: Decimal


@cache
def _context(digits: int) -> Context:
    return Context(prec=digits, rounding=ROUND_HALF_EVEN, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)


@cache
def _ulp(digits: int) -> Decimal:
    """An upper bound of the relative distance of neighbouring decimals; rounding to nearest errs by half of it."""
    return Decimal((0, (1,), 1 - digits))


def _log1p(s: Decimal, radius: Decimal, digits: int) -> _Ball:
    """log(1 + s) for s >= 0, to `digits` digits however small s is."""
    if not s:
        return _Ball(_ZERO, radius)
    context, ulp = _context(digits), _ulp(digits)
    depth = max(0, -s.adjusted())
    if depth > digits + 2:  # s - s^2/2 < log(1 + s) < s, and s < 10^-(digits + 2)
        log = context.plus(s)
    else:
        log = context.ln(_context(digits + depth + 3).add(_ONE, s))
    return _Ball(log, _RADIUS.fma(log, 2 * ulp, radius))


class _Atom:
    """A positive real number that is not rational, known to any number of digits."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[int, _Ball] | None = None

    def ball(self, digits: int) -> _Ball:
        """Where the number lies."""
        if self._known is None or self._known[0] != digits:
            self._known = digits, self._evaluate(digits)
        return self._known[1]

    def _evaluate(self, digits: int) -> _Ball:
        raise NotImplementedError


class _NegativeLog(_Atom):
    """-log r of a rational 0 < r < 1."""

    __slots__ = ("ratio",)

    def __init__(self, ratio: Fraction) -> None:
        super().__init__()
        self.ratio = ratio

    def _evaluate(self, digits: int) -> _Ball:
        context, ulp = _context(digits), _ulp(digits)
        numerator, denominator = self.ratio.numerator, self.ratio.denominator
        rest = context.divide(Decimal(denominator - numerator), Decimal(denominator))
        depth = max(0, -rest.adjusted())
        if depth > digits + 2:  # x < -log(1 - x) < x + x^2 for small x = 1 - r
            log = rest
        else:
            log = -context.ln(_context(digits + depth + 3).divide(Decimal(numerator), Decimal(denominator)))
        return _Ball(log, _RADIUS.multiply(log, 2 * ulp))


class _Partition:
    """The sum over a row's classes of exp(-gap), where gap is the distance to the row's largest logit.

    Attributes:
        gaps: the different gaps of the finite logits, exact, ascending; the first is 0.
        counts: how many logits have each, divided by `common`, their greatest common divisor.
    """

    __slots__ = ("_known", "counts", "gaps", "log_sum", "shares")

    def __init__(self, gaps: tuple[Decimal, ...], counts: tuple[int, ...]) -> None:
        self.gaps = gaps
        self.counts = counts
        self._known: tuple[int, _Sums] | None = None
        self.log_sum = _LogSum(self)
        self.shares: list[_Atom] = [_Shortfall(self), *(_Share(self, g) for g in range(1, len(gaps)))]

    def sums(self, digits: int) -> _Sums:
        """The exponentials, and the sum of all but the first group."""
        if self._known is None or self._known[0] != digits:
            self._known = digits, self._evaluate(digits)
        return self._known[1]

    def _evaluate(self, digits: int) -> _Sums:
        context, ulp = _context(digits), _ulp(digits)
        terms = [_Ball(_ONE, _ZERO)]
        total, hidden = _ZERO, _ZERO
        for gap, count in zip(self.gaps[1:], self.counts[1:], strict=True):
            if gap > _DEEPEST_GAP:
                terms.append(_Ball(_ZERO, _BELOW_DEEPEST))
                hidden = _RADIUS.fma(_BELOW_DEEPEST, count, hidden)
                continue
            # A gap of magnitude 10^k loses k digits of the exponential when it is rounded.
            argument = _context(digits + max(gap.adjusted(), 0) + 3).plus(gap)
            power = context.exp(argument.copy_negate())
            terms.append(_Ball(power, _RADIUS.multiply(power, ulp)))
            total = context.fma(power, count, total)
        return _Sums(terms, _Ball(total, _RADIUS.fma(total, (len(self.gaps) + 2) * ulp, hidden)))


class _Sums(NamedTuple):
    """exp(-gap) of each group of classes, and the sum over all classes but the first group."""

    terms: list[_Ball]
    others: _Ball


class _LogSum(_Atom):
    """log(n + S): the log of a partition, whose largest n logits are equal."""

    __slots__ = ("partition",)

    def __init__(self, partition: _Partition) -> None:
        super().__init__()
        self.partition = partition

    def _evaluate(self, digits: int) -> _Ball:
        others = self.partition.sums(digits).others
        n = self.partition.counts[0]
        return _log1p(_context(digits).add(others.middle, n - 1) if n > 1 else others.middle, others.radius, digits)


class _Share(_Atom):
    """exp(-gap) / (n + S): the probability of one class that has not the largest logit."""

    __slots__ = ("group", "partition")

    def __init__(self, partition: _Partition, group: int) -> None:
        super().__init__()
        self.partition = partition
        self.group = group

    def _evaluate(self, digits: int) -> _Ball:
        context = _context(digits)
        terms, others = self.partition.sums(digits)
        power = terms[self.group]
        share = context.divide(power.middle, context.add(others.middle, self.partition.counts[0]))
        relative = _RADIUS.add(others.radius, 3 * _ulp(digits))  # n + S >= 1, so S's error is at most its relative one
        return _Ball(share, _RADIUS.fma(share, relative, power.radius))


class _Shortfall(_Atom):
    """1/n - 1/(n + S) = S / (n (n + S)): what the largest class lacks to 1/n."""

    __slots__ = ("partition",)

    def __init__(self, partition: _Partition) -> None:
        super().__init__()
        self.partition = partition

    def _evaluate(self, digits: int) -> _Ball:
        context = _context(digits)
        others = self.partition.sums(digits).others
        n = self.partition.counts[0]
        lack = context.divide(others.middle, context.multiply(context.add(others.middle, n), n))
        # The derivative by S is 1 / (n + S)^2 <= 1 / n^2.
        spread = _RADIUS.divide(others.radius, Decimal(n * n))
        return _Ball(lack, _RADIUS.fma(lack, 4 * _ulp(digits), spread))


# --------------------------------------------------------------------------------------------------------------- real numbers


class Real:
    """A real number: a rational, plus rational multiples of positive irrational numbers or of other such sums."""

    __slots__ = ("_known", "rational", "terms")

    def __init__(self, rational: Fraction, terms: tuple[tuple[Fraction, _Atom | Real], ...] = ()) -> None:
        self.rational = rational
        self.terms = terms
        self._known: tuple[int, _Ball] | None = None

    def ball(self, digits: int) -> _Ball:
        """Where the number lies; the rational part is included and rounded."""
        if self._known is None or self._known[0] != digits:
            self._known = digits, self._evaluate(digits)
        return self._known[1]

    def _evaluate(self, digits: int, *, rational: bool = True) -> _Ball:
        context = _context(digits)
        middle = size = radius = _ZERO
        if rational and self.rational:
            middle = context.divide(Decimal(self.rational.numerator), Decimal(self.rational.denominator))
            size = abs(middle)
        for coefficient, node in self.terms:
            inner = node.ball(digits)
            top, bottom = Decimal(coefficient.numerator), Decimal(coefficient.denominator)
            term = context.divide(context.multiply(top, inner.middle), bottom)
            middle = context.add(middle, term)
            size = _RADIUS.add(size, term.copy_abs())
            radius = _RADIUS.add(radius, _RADIUS.divide(_RADIUS.multiply(top.copy_abs(), inner.radius), bottom))
        return _Ball(middle, _RADIUS.fma(size, (len(self.terms) + 2) * _ulp(digits), radius))

    def round(self, form: Format) -> float:
        """The nearest number of a format, ties to even."""
        if not self.terms:
            return nearest(self.rational, form)
        ball = self.ball(_FIRST_DIGITS)
        if form.precision == 53:
            low = float(_WIDE_FLOOR.subtract(*ball))
            if low == float(_WIDE_CEILING.add(*ball)):
                return low + 0.0
        elif ball.middle and ball.radius.adjusted() < ball.middle.adjusted() - 20:
            # The nearest float64 and its two neighbours enclose the number; float64 to narrower formats is then one rounding.
            near = float(ball.middle)
            low = _narrow(math.nextafter(near, -INFINITY), form)
            if low == _narrow(math.nextafter(near, INFINITY), form):
                return low
        return self._round_slowly(form)

    def _round_slowly(self, form: Format) -> float:
        flat = self.flattened()
        for digits in _MORE_DIGITS:
            if digits >= _SIMPLIFY_FROM:
                flat = flat.simplified()
            if not flat.terms:
                return nearest(flat.rational, form)
            low, high = flat._ends(digits, form)
            if low == high:
                return low
        msg = f"{_MORE_DIGITS[-1]} digits do not decide how to round {flat.rational} plus {len(flat.terms)} irrational terms"
        raise AssertionError(msg)

    def _ends(self, digits: int, form: Format) -> tuple[float, float]:
        """What the lower and the upper end of the interval round to, the rational part taken exactly."""
        ball = self._evaluate(digits, rational=False)
        largest = _RADIUS.add(ball.middle.copy_abs(), ball.radius)
        # Numbers and midpoints of all formats are multiples of 2^-1075, so `rational`, if it is none, is at least
        # 2^-1075 / denominator away from each. What is smaller is felt at a tie alone, and there by its sign.
        if largest.adjusted() < -(1080 + self.rational.denominator.bit_length()) * 0.30103 - 2:
            sign = self._known_sign(ball)
            if sign:
                low = nearest(self.rational, form, sign)
                return low, low
            return nearest(self.rational, form, -1), nearest(self.rational, form, 1)
        low_end = Fraction(_WIDE_FLOOR_OF(digits).subtract(*ball))
        high_end = Fraction(_WIDE_CEILING_OF(digits).add(*ball))
        return nearest(self.rational + low_end, form), nearest(self.rational + high_end, form)

    def _known_sign(self, ball: _Ball) -> int:
        """The sign of the irrational part, 0 if unknown: that of all coefficients if they agree, else what the ball shows."""
        if all(coefficient > 0 for coefficient, _ in self.terms):
            return 1
        if all(coefficient < 0 for coefficient, _ in self.terms):
            return -1
        if ball.middle.copy_abs() > ball.radius:
            return 1 if ball.middle > 0 else -1
        return 0

    def sign(self) -> int:
        """-1, 0 or 1."""
        if not self.terms:
            return (self.rational > 0) - (self.rational < 0)
        flat = self.flattened()
        for digits in (_FIRST_DIGITS, *_MORE_DIGITS):
            if digits >= _SIMPLIFY_FROM:
                flat = flat.simplified()
            if not flat.terms:
                return flat.sign()
            if not flat.rational and (sign := flat._known_sign(_Ball(_ZERO, _ONE))):
                return sign
            ball = flat.ball(digits)
            if ball.middle.copy_abs() > ball.radius:
                return 1 if ball.middle > 0 else -1
        msg = f"{_MORE_DIGITS[-1]} digits do not decide the sign of {flat.rational} plus {len(flat.terms)} irrational terms"
        raise AssertionError(msg)

    def flattened(self) -> Real:
        """The same number with no sums inside, each irrational number standing once."""
        coefficients: dict[_Atom, Fraction] = {}
        return Real(self._collect(ONE, coefficients), tuple((b, x) for x, b in coefficients.items() if b))

    def _collect(self, factor: Fraction, coefficients: dict[_Atom, Fraction]) -> Fraction:
        rational = self.rational * factor
        for coefficient, node in self.terms:
            if isinstance(node, Real):
                rational += node._collect(coefficient * factor, coefficients)
            else:
                coefficients[node] = coefficients.get(node, ZERO) + coefficient * factor
        return rational

    def simplified(self) -> Real:
        """A flattened number with the logarithms of rationals over coprime bases: it has none left where they cancel.

        The logs of coprime integers are linearly independent over the rationals, so 2 log 2 - log 4 disappears here and only here.
        """
        logs = [(b, x) for b, x in self.terms if isinstance(x, _NegativeLog)]
        bases = _coprime_bases({n for _, x in logs for n in x.ratio.as_integer_ratio()} - {1})
        rest = [(b, x) for b, x in self.terms if not isinstance(x, _NegativeLog)]
        for base in bases:
            power = sum((b * (_power(x.ratio.denominator, base) - _power(x.ratio.numerator, base)) for b, x in logs), ZERO)
            if power:
                rest.append((power, _NegativeLog(Fraction(1, base))))
        return Real(self.rational, tuple(rest))


def _coprime_bases(numbers: set[int]) -> list[int]:
    """Integers > 1, each two of them coprime, of which every number is a product of powers."""
    bases: list[int] = []
    waiting = list(numbers)
    while waiting:
        number = waiting.pop()
        for i, base in enumerate(bases):
            common = math.gcd(number, base)
            if common > 1:
                bases.pop(i)
                waiting += [n for n in (common, number // common, base // common) if n > 1]
                break
        else:
            bases.append(number)
    return bases


def _power(number: int, base: int) -> int:
    """How often `base` divides `number`."""
    power = 0
    while number % base == 0:
        number //= base
        power += 1
    return power
