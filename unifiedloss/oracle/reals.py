r"""Real numbers that can be rounded correctly: rationals plus transcendental numbers.

Inputs are exact rationals. Every result is a `Real`: a rational plus
positive transcendental numbers (logarithms and shares of a softmax) times rational coefficients,

$$x = a + \sum_k b_k X_k .$$

The rational part stays exact. Each X_k is computed to a *relative* error, with any number of
digits. The number of digits rises until both ends of the interval round to the same number. Three
rules make this terminate:

- Rational results have exact ties, which no precision decides. They have no X_k left, so they are
  rounded from the fraction.
- A tiny X_k beside a tie of `a` needs only its sign: logits [100000, -0.00390625] would need 43,435
  digits otherwise. Below a size that follows from the denominator of `a`, the X_k are only a sticky
  bit and are never added.
- Equal X_k are merged before they are added, and logarithms of rationals are decomposed over
  coprime bases, so that terms cancel exactly.

If none of this decides a rounding, `Real.round` raises AssertionError; it never guesses.
"""

from __future__ import annotations

import math
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
from typing import NamedTuple

from unifiedloss.floats import Format
from unifiedloss.oracle.rounding import INFINITY, narrow, nearest

ZERO = Fraction(0)
ONE = Fraction(1)

_TRAPS = [InvalidOperation, DivisionByZero, Overflow]
_RADIUS = Context(prec=9, rounding=ROUND_UP, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
# The difference of two float64 numbers has at most 309 digits before the point and 1074 after it.
EXACT = Context(prec=1400, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[*_TRAPS, Inexact])

_DEEPEST_GAP = Decimal(-MIN_EMIN // 4)
"""Above this gap exp(-gap) is not evaluated, because it would underflow a Decimal."""
_BELOW_DEEPEST = Decimal((0, (1,), -(-MIN_EMIN // 10)))
"""An upper bound of exp(-gap) above `_DEEPEST_GAP`: 10^(-0.4 gap), because 0.4 < log10(e)."""

_FIRST_DIGITS = 28
_MORE_DIGITS = (50, 100, 200, 400, 800, 1600, 3200, 6400)
_SIMPLIFY_FROM = 100
"""From this many digits on, decompose logarithms of rationals first, because they may cancel."""

_ZERO = Decimal(0)
_ONE = Decimal(1)


class _Interval(NamedTuple):
    """All numbers that differ from `middle` by at most `radius`."""

    middle: Decimal
    radius: Decimal


@cache
def _context(digits: int) -> Context:
    return Context(
        prec=digits, rounding=ROUND_HALF_EVEN, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS
    )


@cache
def _outwards(digits: int) -> tuple[Context, Context]:
    """Contexts that round the ends of a ball down and up, with 20 extra digits."""
    low, high = _context(digits + 20).copy(), _context(digits + 20).copy()
    low.rounding, high.rounding = ROUND_FLOOR, ROUND_CEILING
    return low, high


@cache
def _ulps(count: int, digits: int) -> Decimal:
    """`count` times the largest relative distance of neighbouring decimals.

    Rounding to nearest errs by at most half of one such distance.
    """
    return Decimal(count).scaleb(1 - digits, _RADIUS)


def _log1p(s: Decimal, radius: Decimal, digits: int) -> _Interval:
    """log(1 + s) for s >= 0, to `digits` digits for any s, however small."""
    if not s:
        return _Interval(_ZERO, radius)
    context = _context(digits)
    depth = max(0, -s.adjusted())
    if depth > digits + 2:  # s - s^2/2 < log(1 + s) < s, and s < 10^-(digits + 2)
        log = context.plus(s)
    else:
        log = context.ln(_context(digits + depth + 3).add(_ONE, s))
    return _Interval(log, _RADIUS.fma(log, _ulps(2, digits), radius))


class _Atom:
    """A positive irrational number, computable to any number of digits."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: tuple[int, _Interval] | None = None

    def ball(self, digits: int) -> _Interval:
        """An interval that contains the number."""
        if self._known is None or self._known[0] != digits:
            self._known = digits, self._evaluate(digits)
        return self._known[1]

    def _evaluate(self, digits: int) -> _Interval:
        raise NotImplementedError


class NegativeLog(_Atom):
    """-log r of a rational 0 < r < 1."""

    __slots__ = ("ratio",)

    def __init__(self, ratio: Fraction) -> None:
        super().__init__()
        self.ratio = ratio

    def _evaluate(self, digits: int) -> _Interval:
        context = _context(digits)
        numerator, denominator = self.ratio.numerator, self.ratio.denominator
        rest = context.divide(Decimal(denominator - numerator), Decimal(denominator))
        depth = max(0, -rest.adjusted())
        if depth > digits + 2:  # x < -log(1 - x) < x + x^2 for small x = 1 - r
            log = rest
        else:
            ratio = _context(digits + depth + 3).divide(Decimal(numerator), Decimal(denominator))
            log = context.ln(ratio).copy_negate()
        return _Interval(log, _RADIUS.multiply(log, _ulps(2, digits)))


class Partition:
    """The sum of exp(-gap) over a row's classes. A gap is the distance to the largest logit.

    Attributes:
        gaps: the distinct gaps of the finite logits, exact, ascending; the first is 0.
        counts: the number of logits with each gap, divided by the greatest common divisor of
            these numbers.
    """

    __slots__ = ("_known", "counts", "gaps", "log_sum", "shares")

    def __init__(self, gaps: tuple[Decimal, ...], counts: tuple[int, ...]) -> None:
        self.gaps = gaps
        self.counts = counts
        self._known: tuple[int, _Sums] | None = None
        self.log_sum = _LogSum(self)
        self.shares: list[_Atom] = [
            _Shortfall(self),
            *(_Share(self, g) for g in range(1, len(gaps))),
        ]

    def sums(self, digits: int) -> _Sums:
        """The exponential of each group, and the sum over all classes but the first group."""
        if self._known is None or self._known[0] != digits:
            self._known = digits, self._evaluate(digits)
        return self._known[1]

    def _evaluate(self, digits: int) -> _Sums:
        context = _context(digits)
        terms = [_Interval(_ONE, _ZERO)]
        total, skipped = _ZERO, _ZERO
        for gap, count in zip(self.gaps[1:], self.counts[1:], strict=True):
            if gap > _DEEPEST_GAP:
                terms.append(_Interval(_ZERO, _BELOW_DEEPEST))
                skipped = _RADIUS.fma(_BELOW_DEEPEST, count, skipped)
                continue
            # Rounding a gap of magnitude 10^k costs k digits of the exponential.
            argument = _context(digits + max(gap.adjusted(), 0) + 3).plus(gap)
            power = context.exp(argument.copy_negate())
            terms.append(_Interval(power, _RADIUS.multiply(power, _ulps(1, digits))))
            total = context.fma(power, count, total)
        radius = _RADIUS.fma(total, _ulps(len(self.gaps) + 2, digits), skipped)
        return _Sums(terms, _Interval(total, radius))


class _Sums(NamedTuple):
    """exp(-gap) of each group of classes, and the sum over all classes but the first group."""

    terms: list[_Interval]
    others: _Interval


class _LogSum(_Atom):
    """log(n + S): the log of a partition whose n largest logits are equal."""

    __slots__ = ("partition",)

    def __init__(self, partition: Partition) -> None:
        super().__init__()
        self.partition = partition

    def _evaluate(self, digits: int) -> _Interval:
        others = self.partition.sums(digits).others
        n = self.partition.counts[0]
        middle = _context(digits).add(others.middle, n - 1) if n > 1 else others.middle
        return _log1p(middle, others.radius, digits)


class _Share(_Atom):
    """exp(-gap) / (n + S): the probability of a class below the largest logit."""

    __slots__ = ("group", "partition")

    def __init__(self, partition: Partition, group: int) -> None:
        super().__init__()
        self.partition = partition
        self.group = group

    def _evaluate(self, digits: int) -> _Interval:
        context = _context(digits)
        terms, others = self.partition.sums(digits)
        power = terms[self.group]
        share = context.divide(power.middle, context.add(others.middle, self.partition.counts[0]))
        # n + S >= 1, so the relative error of n + S is at most the absolute error of S.
        relative = _RADIUS.add(others.radius, _ulps(3, digits))
        return _Interval(share, _RADIUS.fma(share, relative, power.radius))


class _Shortfall(_Atom):
    """1/n - 1/(n + S) = S / (n (n + S)): 1/n minus the probability of a largest class."""

    __slots__ = ("partition",)

    def __init__(self, partition: Partition) -> None:
        super().__init__()
        self.partition = partition

    def _evaluate(self, digits: int) -> _Interval:
        context = _context(digits)
        others = self.partition.sums(digits).others
        n = self.partition.counts[0]
        shortfall = context.divide(
            others.middle, context.multiply(context.add(others.middle, n), n)
        )
        # The derivative by S is 1 / (n + S)^2 <= 1 / n^2.
        spread = _RADIUS.divide(others.radius, Decimal(n * n))
        return _Interval(shortfall, _RADIUS.fma(shortfall, _ulps(4, digits), spread))


class Product(_Atom):
    """The product of two positive irrational numbers."""

    __slots__ = ("factors",)

    def __init__(self, x: Real, y: Real) -> None:
        super().__init__()
        self.factors = x, y

    def _evaluate(self, digits: int) -> _Interval:
        x, y = (factor.ball(digits) for factor in self.factors)
        product = _context(digits).multiply(x.middle, y.middle)
        # |x y - x' y'| <= |x - x'| y + x |y - y'| + |x - x'| |y - y'|
        spread = _RADIUS.fma(
            x.radius, _RADIUS.add(y.middle, y.radius), _RADIUS.multiply(x.middle, y.radius)
        )
        return _Interval(product, _RADIUS.fma(product, _ulps(1, digits), spread))


# ------------------------------------------------------------------------------- real numbers


class Real:
    """A real number: a rational plus rational multiples of irrational atoms or of other `Real`s."""

    __slots__ = ("_known", "rational", "terms")

    def __init__(
        self, rational: Fraction, terms: tuple[tuple[Fraction, _Atom | Real], ...] = ()
    ) -> None:
        self.rational = rational
        self.terms = terms
        self._known: tuple[int, _Interval] | None = None

    def ball(self, digits: int) -> _Interval:
        """An interval that contains the number. It includes the rational part, rounded."""
        if self._known is None or self._known[0] != digits:
            self._known = digits, self._evaluate(digits)
        return self._known[1]

    def _evaluate(self, digits: int, *, rational: bool = True) -> _Interval:
        context = _context(digits)
        middle = size = radius = _ZERO
        if rational and self.rational:
            middle = context.divide(
                Decimal(self.rational.numerator), Decimal(self.rational.denominator)
            )
            size = middle.copy_abs()
        for coefficient, node in self.terms:
            inner = node.ball(digits)
            top, bottom = Decimal(coefficient.numerator), Decimal(coefficient.denominator)
            term = context.divide(context.multiply(top, inner.middle), bottom)
            middle = context.add(middle, term)
            size = _RADIUS.add(size, term.copy_abs())
            radius = _RADIUS.add(
                radius, _RADIUS.divide(_RADIUS.multiply(top.copy_abs(), inner.radius), bottom)
            )
        return _Interval(middle, _RADIUS.fma(size, _ulps(len(self.terms) + 2, digits), radius))

    def round(self, form: Format) -> float:
        """Round to the nearest number of a format, ties to even."""
        if not self.terms:
            return nearest(self.rational, form)
        ball = self.ball(_FIRST_DIGITS)
        if form.precision == 53:
            down, up = _outwards(_FIRST_DIGITS)
            low = float(down.subtract(*ball))
            if low == float(up.add(*ball)):
                return low + 0.0
        elif ball.middle and ball.radius.adjusted() <= ball.middle.adjusted() - 18:
            # The neighbours of the nearest float64 enclose the number. If both round to the same
            # number of the narrower format, so does the number itself.
            near = float(ball.middle)
            low = narrow(math.nextafter(near, -INFINITY), form)
            if low == narrow(math.nextafter(near, INFINITY), form):
                return low
        return self._round_slowly(form)

    def _round_slowly(self, form: Format) -> float:
        flat = self.flattened()
        for digits in _MORE_DIGITS:
            if digits >= _SIMPLIFY_FROM:
                flat = flat.simplified()
            if not flat.terms:
                return nearest(flat.rational, form)
            low, high = flat.ends(digits, form)
            if low == high:
                return low
        msg = (
            f"{_MORE_DIGITS[-1]} digits do not decide how to round {flat.rational} plus "
            f"{len(flat.terms)} irrational terms"
        )
        raise AssertionError(msg)

    def ends(self, digits: int, form: Format) -> tuple[float, float]:
        """Round the lower and the upper end of the interval, with the exact rational part."""
        ball = self._evaluate(digits, rational=False)
        largest = _RADIUS.add(ball.middle.copy_abs(), ball.radius)
        # Numbers and midpoints of all formats are multiples of 2^-1075. So `rational`, unless it is
        # one of them, is at least 2^-1075 / denominator away from each. A smaller irrational part
        # matters only at a tie, and there only its sign does.
        if largest.adjusted() < -(1080 + self.rational.denominator.bit_length()) * 0.30103 - 2:
            sign = self.known_sign(ball)
            if sign:
                low = nearest(self.rational, form, sign)
                return low, low
            return nearest(self.rational, form, -1), nearest(self.rational, form, 1)
        down, up = _outwards(digits)
        low_end, high_end = Fraction(down.subtract(*ball)), Fraction(up.add(*ball))
        return nearest(self.rational + low_end, form), nearest(self.rational + high_end, form)

    def known_sign(self, ball: _Interval) -> int:
        """The sign of the irrational part, or 0 if unknown.

        It is the sign of all coefficients if they agree, else the sign of the ball.
        """
        if all(coefficient > 0 for coefficient, _ in self.terms):
            return 1
        if all(coefficient < 0 for coefficient, _ in self.terms):
            return -1
        if ball.middle.copy_abs() > ball.radius:
            return 1 if ball.middle > 0 else -1
        return 0

    def sign(self) -> int:
        """The sign: -1, 0 or 1."""
        if not self.terms:
            return (self.rational > 0) - (self.rational < 0)
        flat = self.flattened()
        for digits in (_FIRST_DIGITS, *_MORE_DIGITS):
            if digits >= _SIMPLIFY_FROM:
                flat = flat.simplified()
            if not flat.terms:
                return flat.sign()
            if not flat.rational and (sign := flat.known_sign(_Interval(_ZERO, _ONE))):
                return sign
            ball = flat.ball(digits)
            if ball.middle.copy_abs() > ball.radius:
                return 1 if ball.middle > 0 else -1
        msg = (
            f"{_MORE_DIGITS[-1]} digits do not decide the sign of {flat.rational} plus "
            f"{len(flat.terms)} irrational terms"
        )
        raise AssertionError(msg)

    def flattened(self) -> Real:
        """The same number without nested sums, with one term per irrational number."""
        coefficients: dict[_Atom, Fraction] = {}
        rational = self.collect(ONE, coefficients)
        return Real(rational, tuple((b, x) for x, b in coefficients.items() if b))

    def collect(self, factor: Fraction, coefficients: dict[_Atom, Fraction]) -> Fraction:
        """Add `factor` times the irrational terms to the coefficients.

        Returns:
            `factor` times the rational part.
        """
        rational = self.rational * factor
        for coefficient, node in self.terms:
            if isinstance(node, Real):
                rational += node.collect(coefficient * factor, coefficients)
            else:
                coefficients[node] = coefficients.get(node, ZERO) + coefficient * factor
        return rational

    def simplified(self) -> Real:
        """Decompose the logarithms of rationals of a flattened number over coprime bases.

        The logs of coprime integers are linearly independent over the rationals, so logarithms that
        cancel, as in 2 log 2 - log 4, disappear here and only here.
        """
        logs = [(b, x) for b, x in self.terms if isinstance(x, NegativeLog)]
        bases = _coprime_bases({n for _, x in logs for n in x.ratio.as_integer_ratio()} - {1})
        rest = [(b, x) for b, x in self.terms if not isinstance(x, NegativeLog)]
        for base in bases:
            power = ZERO
            for b, x in logs:
                power += b * (_power(x.ratio.denominator, base) - _power(x.ratio.numerator, base))
            if power:
                rest.append((power, NegativeLog(Fraction(1, base))))
        return Real(self.rational, tuple(rest))


def _coprime_bases(numbers: set[int]) -> list[int]:
    """Pairwise coprime integers > 1 such that every number is a product of their powers."""
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
    """The exponent of the largest power of `base` that divides `number`."""
    power = 0
    while number % base == 0:
        number //= base
        power += 1
    return power
