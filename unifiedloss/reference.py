r"""The oracle: correctly rounded losses and gradients on Python's integers, fractions and decimals.

Every adapter is compared with it. `evaluate` computes the value and the closed-form gradients of a
loss, each *correctly rounded*: the number of the result's dtype nearest to the real number that the
spec defines, ties to even. It uses no framework and makes no floating-point rounding error.

How it computes a number: inputs are exact rationals. Every result is a `Real`: a rational plus
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

If none of this decides a rounding, `evaluate` raises AssertionError; it never guesses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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

from unifiedloss.checks import extents
from unifiedloss.errors import EmptyMeanError
from unifiedloss.floats import FORMATS, HALF_TYPES, INTEGER_TYPES, TORCH_LEAST_SPREAD, Format
from unifiedloss.plan import MAX_INTEGER_TARGET, Plan, Signature, class_axis, resolve
from unifiedloss.spec import Loss

NAN = math.nan
INFINITY = math.inf
ZERO = Fraction(0)
ONE = Fraction(1)


# ----------------------------------------------------------------------- rounding to a format


def nearest(value: Fraction, form: Format, sticky: int = 0) -> float:
    """Round a rational to the nearest number of a format, ties to even.

    Overflow gives an infinity, and every zero is +0.

    Args:
        value: the rational.
        form: the format to round to.
        sticky: -1 or 1 if the true number lies below or above `value` by less than the distance to
            any other number or midpoint of the format, so that it matters only at a tie.
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
    """Round a float64 to one of the formats, ties to even."""
    if value == 0.0 or math.isinf(value) or form.precision == 53:
        return value + 0.0
    if abs(value) > 2 * form.largest:  # the scaling below could overflow float64
        return math.copysign(INFINITY, value)
    exponent = math.frexp(value)[1] - 1
    shift = form.precision - 1 - max(exponent, form.min_exponent)
    rounded = math.ldexp(round(math.ldexp(value, shift)), -shift)
    return rounded + 0.0 if abs(rounded) <= form.largest else math.copysign(INFINITY, value)


# ----------------------------------------------------------------- decimals with known errors

_TRAPS = [InvalidOperation, DivisionByZero, Overflow]
_RADIUS = Context(prec=9, rounding=ROUND_UP, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=_TRAPS)
# The difference of two float64 numbers has at most 309 digits before the point and 1074 after it.
_EXACT = Context(prec=1400, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[*_TRAPS, Inexact])

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


class _NegativeLog(_Atom):
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


class _Partition:
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

    def __init__(self, partition: _Partition) -> None:
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

    def __init__(self, partition: _Partition, group: int) -> None:
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

    def __init__(self, partition: _Partition) -> None:
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


class _Product(_Atom):
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
        logs = [(b, x) for b, x in self.terms if isinstance(x, _NegativeLog)]
        bases = _coprime_bases({n for _, x in logs for n in x.ratio.as_integer_ratio()} - {1})
        rest = [(b, x) for b, x in self.terms if not isinstance(x, _NegativeLog)]
        for base in bases:
            power = ZERO
            for b, x in logs:
                power += b * (_power(x.ratio.denominator, base) - _power(x.ratio.numerator, base))
            if power:
                rest.append((power, _NegativeLog(Fraction(1, base))))
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


# --------------------------------------------------------- numbers that may be infinite or NaN
# Finite numbers are a Fraction or a Real. Infinities and NaN are floats and follow IEEE 754.

Extended = Fraction | float
Value = Real | float

_NOTHING = Real(ZERO)

# The constants of epsilon="torch", from torch.nn.BCELoss: ATen/native/Loss.cpp
_LARGEST_COST = Fraction(100)
_LEAST_SPREAD = Fraction(TORCH_LEAST_SPREAD)


def extended(value: float) -> Extended:
    """Convert a float to a Fraction if it is finite, else keep it."""
    return Fraction(value) if math.isfinite(value) else float(value)


def _sign(x: Extended | Value) -> float:
    """The sign as a float: NaN for NaN."""
    if isinstance(x, Real):
        return float(x.sign())
    if isinstance(x, float) and math.isnan(x):
        return x
    return float((x > 0) - (x < 0))


def times(x: Extended, y: Extended) -> Extended:
    """The product."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * y
    return _sign(x) * _sign(y) * INFINITY


def over(x: Extended, y: Extended) -> Extended:
    """The quotient; the divisor must not be 0."""
    if isinstance(y, Fraction):
        return times(x, 1 / y)
    if isinstance(x, Fraction):
        return ZERO if math.isinf(y) else NAN
    return NAN


def scaled(factor: Extended, x: Value) -> Value:
    """The product with a number that may be irrational."""
    if isinstance(factor, Fraction) and isinstance(x, Real):
        if factor == 1:
            return x
        if not factor:
            return _NOTHING
        if len(x.terms) > 4:
            return Real(ZERO, ((factor, x),))
        return Real(factor * x.rational, tuple((factor * b, node) for b, node in x.terms))
    return _sign(factor) * _sign(x) * INFINITY


def _combined(parts: Iterable[tuple[Extended, Value]]) -> Value:
    """The sum of factor times number over all parts."""
    rational, special = ZERO, 0.0
    # Merge equal numbers, because the total of a batch is long and may occur in every part.
    factors: dict[Real, Fraction] = {}
    for factor, x in parts:
        if not isinstance(factor, Fraction) or not isinstance(x, Real):
            # One of the two is a float, and so is the product.
            special += float(scaled(factor, x))  # type: ignore[arg-type]
        elif not x.terms:
            rational += factor * x.rational
        elif factor:
            factors[x] = factors[x] + factor if x in factors else factor
    if special != 0.0:
        return special
    return Real(rational, tuple((b, x) for x, b in factors.items() if b))


def round_value(x: Value, form: Format) -> float:
    """Round to the nearest number of a format."""
    return x.round(form) if isinstance(x, Real) else x


# -------------------------------------------------------------------- the losses, per position


class _Position(NamedTuple):
    """One position, before its sample weight.

    Attributes:
        loss: l_i.
        predictions: the derivatives of l_i by the position's predictions, in the order of the
            class axis.
        targets: the derivatives of l_i by the targets; empty for index targets.
        weight: W_i without the sample weight.
        bad: whether the position holds a bad value, so that all its numbers are NaN.
    """

    loss: Value
    predictions: list[Value]
    targets: list[Value]
    weight: Extended
    bad: bool = False


def _poisoned(size: int, weight: Extended = NAN, *, bad: bool = True) -> _Position:
    """A position whose loss and derivatives are NaN."""
    return _Position(NAN, [NAN] * size, [NAN] * size, weight, bad)


class _Softmax:
    """One row of logits. At least one is finite, and the others are finite or -inf.

    Attributes:
        log_sum: log sum_j exp(z_j - max z).
        probabilities: p_c, one per class.
    """

    def __init__(self, logits: Sequence[float], partitions: dict[Any, _Partition]) -> None:
        self._logits = logits
        self._largest = max(logits)
        counts = Counter(z for z in logits if z != -INFINITY)
        distinct = sorted(counts, reverse=True)
        common = math.gcd(*counts.values())
        groups: list[Real]
        if len(distinct) == 1:
            # All finite logits are equal: everything but one logarithm is rational.
            self.log_sum = _negative_log(Fraction(1, common))
            groups = [Real(Fraction(1, common))]
        else:
            largest = Decimal(self._largest)
            gaps = tuple(_EXACT.subtract(largest, Decimal(z)) for z in distinct)
            key = gaps, tuple(counts[z] // common for z in distinct)
            partition = partitions.get(key) or partitions.setdefault(key, _Partition(*key))
            factor = Fraction(1, common)
            # Split log(common * sum), so that rows that differ only by a factor share a log.
            self.log_sum = Real(ZERO, ((ONE, partition.log_sum), *_negative_log(factor).terms))
            groups = [Real(ZERO, ((factor, share),)) for share in partition.shares]
            groups[0] = Real(factor / partition.counts[0], ((-factor, partition.shares[0]),))
        group_of = dict(zip(distinct, groups, strict=True))
        self.probabilities = [_NOTHING if z == -INFINITY else group_of[z] for z in logits]

    def gap(self, c: int) -> Fraction:
        """max z - z_c, for a finite z_c."""
        return Fraction(self._largest) - Fraction(self._logits[c])


def _negative_log(ratio: Fraction) -> Real:
    """-log r for 0 < r <= 1."""
    return Real(ZERO, ((ONE, _NegativeLog(ratio)),)) if ratio != 1 else _NOTHING


class PositionRules:
    """Computes single positions of a plan, and caches what positions share.

    Exact mode uses it for the positions that its other tiers cannot decide.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.smoothing = Fraction(plan.label_smoothing)
        self.kept_target = 1 - self.smoothing
        self.spread = self.smoothing / plan.shared_by if plan.kind != "real" else ZERO
        self.class_weights = (
            None if plan.class_weights is None else [Fraction(w) for w in plan.class_weights]
        )
        low, gap = plan.bounds or (0.0, 0.0)
        self.lowest, self.highest = Fraction(low), 1 - Fraction(gap)
        self.added = Fraction(plan.epsilon_added)
        self.tiny = plan.tiny
        self.tiny_target = plan.tiny_target
        self._partitions: dict[Any, _Partition] = {}
        self._logs: dict[Fraction, Real] = {}

    # Reading of inputs

    def _is_bad_probability(self, p: float) -> bool:
        return p <= -self.tiny or p > self.plan.probability_limit

    def _share(self, p: float) -> Fraction:
        """Read a prediction that is neither bad nor NaN; below `tiny` it counts as 0."""
        return ZERO if abs(p) < self.tiny else Fraction(p)

    def _clipped(self, p: Fraction) -> tuple[Fraction, bool]:
        """Clip a probability to the bounds, and return whether that changed it."""
        clipped = min(max(p, self.lowest), self.highest)
        return clipped, clipped != p

    def _probability(self, p: float) -> tuple[Fraction, bool]:
        """Read and clip a prediction that is neither bad nor NaN.

        Returns:
            The probability, and whether `epsilon` clipped it.
        """
        return self._clipped(min(self._share(p), ONE))

    def _target(self, t: float) -> Fraction:
        """Read a target that is neither bad nor NaN; below `tiny_target` it counts as 0."""
        return ZERO if t < self.tiny_target else Fraction(t)

    def _log(self, p: Fraction) -> Value:
        """-log p for p >= 0."""
        if not p:
            return INFINITY
        if p not in self._logs:
            if p <= 1:
                self._logs[p] = _negative_log(p)
            else:
                self._logs[p] = Real(ZERO, ((-ONE, _NegativeLog(1 / p)),))
        return self._logs[p]

    # Cross-entropy

    def cross_entropy(self, predictions: Sequence[float], target: Sequence[float]) -> _Position:
        r"""One row of a cross-entropy.

        $$\ell = \sum_c \tau_c (-\log p_c), \qquad
        \frac{\partial \ell}{\partial z_c} = T p_c - \tau_c, \quad T = \sum_c \tau_c, \qquad
        \frac{\partial \ell}{\partial p_c} = -\frac{\tau_c}{p_c}, \qquad
        \frac{\partial \ell}{\partial t_c} = w_c (1 - \epsilon_s)(-\log p_c)$$

        Where class weights multiply positions, with $W = \sum_c w_c t_c$ and
        $\ell = W \sum_c t'_c (-\log p_c)$,

        $$\frac{\partial \ell}{\partial t_c}
        = w_c \sum_k t'_k (-\log p_k) + W (1 - \epsilon_s)(-\log p_c)$$
        """
        size = len(predictions)
        w = self.class_weights
        if self.plan.kind == "index":
            (label,) = target
            if not 0 <= label < size:
                return _poisoned(size)
            sparse = {int(label): ONE}
        else:
            if any(t <= -self.tiny_target or math.isinf(t) for t in target):
                return _poisoned(size)
            if any(math.isnan(t) for t in target):
                return _poisoned(size, ONE if w is None else NAN, bad=False)
            sparse = {c: t for c, t in enumerate(map(self._target, target)) if t}
        weight = ONE if w is None else sum((w[c] * t for c, t in sparse.items()), ZERO)
        smoothed = {c: self.kept_target * t for c, t in sparse.items()} if self.kept_target else {}
        if self.spread:
            smoothed = {c: smoothed.get(c, ZERO) + self.spread for c in range(size)}
        # All entries with t'_c != 0 are read, also those with the class weight 0.
        tau = smoothed
        if self.plan.class_weighting == "position":
            tau = {c: weight * t for c, t in smoothed.items()}
        elif w is not None:
            tau = {c: w[c] * t for c, t in smoothed.items()}
        if self.plan.log_probabilities:
            return self._from_log_probabilities(predictions, tau, weight)
        if self.plan.from_logits:
            position, costs = self._from_logits(predictions, tau, weight)
        elif self.plan.renormalize:
            position, costs = self._renormalized(predictions, tau, weight)
        else:
            position, costs = self._from_probabilities(predictions, tau, weight)
        if self.plan.kind == "index" or not costs:
            return position
        return position._replace(targets=self._by_targets(costs, smoothed, weight))

    def _from_log_probabilities(
        self, predictions: Sequence[float], tau: dict[int, Fraction], weight: Extended
    ) -> _Position:
        r"""One row of any numbers: $\ell = \sum_c \tau_c (-x_c)$.

        An entry with $\tau_c = 0$ is not read.
        """
        costs = [_value(extended(0.0 - x)) for x in predictions]
        loss = _combined((t, costs[c]) for c, t in tau.items() if t)
        gradient: list[Value] = [Real(-tau.get(c, ZERO)) for c in range(len(predictions))]
        targets: list[Value] = []
        if self.plan.kind == "dense":
            for c, cost in enumerate(costs):
                # The loss does not read an entry with tau_c = 0, but its derivative by t_c does,
                # unless the entry is infinite or NaN.
                read = tau.get(c) or isinstance(cost, Real)
                targets.append(self._by_target(c, cost if read else _NOTHING))
        return _Position(loss, gradient, targets, weight)

    def _from_logits(
        self, logits: Sequence[float], tau: dict[int, Fraction], weight: Extended
    ) -> tuple[_Position, list[Value]]:
        """One row of logits.

        Returns:
            The position without its derivatives by the targets, and the costs -log p_c. The next
            two methods return the same.
        """
        size = len(logits)
        if any(z != z or z == INFINITY for z in logits) or max(logits) == -INFINITY:
            return _poisoned(size, weight, bad=False), []
        row = _Softmax(logits, self._partitions)
        total = sum(tau.values(), ZERO)
        gradient: list[Value] = []
        for c, p in enumerate(row.probabilities):
            rational = total * p.rational - tau[c] if c in tau else total * p.rational
            gradient.append(
                Real(rational, tuple((total * b, node) for b, node in p.terms) if total else ())
            )
        loss: Value
        if any(t and logits[c] == -INFINITY for c, t in tau.items()):
            loss = INFINITY
        else:
            gaps = sum((t * row.gap(c) for c, t in tau.items() if t), ZERO)
            loss = Real(
                gaps, tuple((total * b, node) for b, node in row.log_sum.terms) if total else ()
            )
        costs: list[Value] = []
        if self.plan.kind == "dense":
            for c, z in enumerate(logits):
                if z == -INFINITY:
                    costs.append(INFINITY if tau.get(c) else _NOTHING)
                else:
                    costs.append(Real(row.gap(c), row.log_sum.terms))
        return _Position(loss, gradient, [], weight), costs

    def _from_probabilities(
        self, predictions: Sequence[float], tau: dict[int, Fraction], weight: Extended
    ) -> tuple[_Position, list[Value]]:
        """One row of probabilities."""
        size = len(predictions)
        if any(self._is_bad_probability(predictions[c]) for c in tau):
            return _poisoned(size), []
        gradient: list[Value] = [_NOTHING] * size
        costs: list[Value] = [_NOTHING] * size
        parts: list[tuple[Extended, Value]] = []
        for c, t in tau.items():
            if math.isnan(predictions[c]):
                gradient[c] = costs[c] = NAN
                parts.append((ONE, NAN))
                continue
            p, clipped = self._probability(predictions[c])
            if t:
                gradient[c] = _NOTHING if clipped else Real(-t / p) if p else -INFINITY
                costs[c] = self._log(p)
                parts.append((t, costs[c]))
            elif p:
                costs[c] = self._log(p)
        for c, number in enumerate(predictions if self.plan.kind == "dense" else ()):
            # The loss does not read entries outside tau, but their derivatives by t_c do, unless
            # the entry is NaN or not a probability.
            if c not in tau and not math.isnan(number) and not self._is_bad_probability(number):
                p, _ = self._probability(number)
                costs[c] = self._log(p) if p else _NOTHING
        return _Position(_combined(parts), gradient, [], weight), costs

    def _renormalized(
        self, predictions: Sequence[float], tau: dict[int, Fraction], weight: Extended
    ) -> tuple[_Position, list[Value]]:
        r"""One row of non-negative numbers, all of which are read.

        $$-\log q_c = -\log\mathrm{clip}(p_c / S) \quad\text{or}\quad
        -\log(\mathrm{clip}(p_c) / S), \qquad
        \frac{\partial \ell}{\partial p_k} = \frac{T}{S} - \frac{\tau_k}{p_k}$$

        For "before_clip" (the first form), S is the sum of p. T is the sum of $\tau_c$ over the
        unclipped classes, and only they have the term $\tau_k / p_k$. For "after_clip" (the second
        form), S is the sum of $\mathrm{clip}(p)$ and T the sum of all $\tau_c$. The derivative by a
        clipped class is 0, also in a row with a NaN.
        """
        size = len(predictions)
        if any(map(self._is_bad_probability, predictions)):
            return _poisoned(size), []
        first = self.plan.renormalize == "before_clip"
        if any(map(math.isnan, predictions)):
            position = _poisoned(size, weight, bad=False)
            if first:
                return position, []
            constant = [not math.isnan(p) and self._clipped(self._share(p))[1] for p in predictions]
            slopes: list[Value] = [_NOTHING if clipped else NAN for clipped in constant]
            return position._replace(predictions=slopes), []
        shares = [self._share(p) for p in predictions]
        if first:
            total = sum(shares, ZERO)
            if not total:
                return _poisoned(size, weight, bad=False), []
            clips = [self._clipped(p / total) for p in shares]
            probabilities = [q for q, _ in clips]
            moving = sum((t for c, t in tau.items() if not clips[c][1]), ZERO)
        else:
            clips = [self._clipped(p) for p in shares]
            total = sum((p for p, _ in clips), ZERO)
            probabilities = [p / total for p, _ in clips]
            moving = sum(tau.values(), ZERO)
        gradient: list[Value] = []
        for k, (p, (_, clipped)) in enumerate(zip(shares, clips, strict=True)):
            if clipped:
                gradient.append(Real(moving / total if first else ZERO))
            else:
                gradient.append(Real(moving / total - tau.get(k, ZERO) / p))
        costs = [self._log(q) for q in probabilities]
        loss = _combined((t, costs[c]) for c, t in tau.items())
        return _Position(loss, gradient, [], weight), costs

    def _by_targets(
        self, costs: list[Value], smoothed: dict[int, Fraction], weight: Extended
    ) -> list[Value]:
        """The derivatives by the targets. Every infinity in `costs` must be part of the loss."""
        if self.plan.class_weighting == "entries":
            return [self._by_target(c, cost) for c, cost in enumerate(costs)]
        assert self.class_weights is not None
        own = _combined((t, costs[c]) for c, t in smoothed.items() if t)
        through = times(weight, self.kept_target)
        return [
            _combined((factor, x) for factor, x in ((w, own), (through, cost)) if factor)
            for w, cost in zip(self.class_weights, costs, strict=True)
        ]

    def _by_target(self, c: int, cost: Value) -> Value:
        """w_c (1 - eps_s) (-log p_c); 0 where the factor is 0, even for p_c = 0."""
        factor = self.kept_target
        if self.class_weights is not None:
            factor = factor * self.class_weights[c]
        return _NOTHING if not factor and cost == INFINITY else scaled(factor, cost)

    # Binary cross-entropy

    def binary_cross_entropy(
        self, prediction: float, target: float, pos_weight: Fraction
    ) -> _Position:
        r"""One element, with a = -log p and b = -log(1 - p).

        $$\ell = q t' a + (1 - t') b, \qquad
        \frac{\partial \ell}{\partial z} = (1 - t') \sigma(z) - q t' \sigma(-z), \qquad
        \frac{\partial \ell}{\partial p} = \frac{1 - t'}{1 - p} - \frac{q t'}{p}, \qquad
        \frac{\partial \ell}{\partial t} = (1 - \epsilon_s)(q a - b)$$
        """
        if target <= -self.tiny_target or target > 1:
            return _poisoned(1)
        if math.isnan(target):
            return _poisoned(1, ONE, bad=False)
        smoothed = self.kept_target * self._target(target) + self.spread
        yes, no = pos_weight * smoothed, 1 - smoothed
        if self.plan.from_logits:
            if math.isnan(prediction):
                return _poisoned(1, ONE, bad=False)
            a, b, gradient = self._binary_logit(prediction, yes, no)
        else:
            if self._is_bad_probability(prediction):
                return _poisoned(1)
            if math.isnan(prediction):
                return _poisoned(1, ONE, bad=False)
            a, b, gradient = self._binary_probability(prediction, yes, no)
        # Drop an infinite logarithm whose coefficient is 0, because 0 log 0 = 0.
        a = _NOTHING if a == INFINITY and not yes else a
        b = _NOTHING if b == INFINITY and not no else b
        loss = _combined([(yes, a), (no, b)])
        by_target = _combined([(pos_weight, a), (-ONE, b)]) if self.kept_target else _NOTHING
        return _Position(loss, [gradient], [scaled(self.kept_target, by_target)], ONE)

    def _binary_probability(
        self, prediction: float, yes: Fraction, no: Fraction
    ) -> tuple[Value, Value, Value]:
        """-log p, -log(1 - p) and the derivative of the loss by p, under the rule of `epsilon`."""
        p, clipped = self._probability(prediction)
        if self.plan.clamped:
            slope = (p * no - (1 - p) * yes) / max(p * (1 - p), _LEAST_SPREAD)
            return self._clamped(self._log(p)), self._clamped(self._log(1 - p)), Real(slope)
        p, rest = p + self.added, 1 - p + self.added
        a, b = self._log(p), self._log(rest)
        if clipped:
            return a, b, _NOTHING
        if not p and yes:
            return a, b, -INFINITY
        if not rest and no:
            return a, b, INFINITY
        return a, b, Real((no / rest if no else ZERO) - (yes / p if yes else ZERO))

    def _clamped(self, cost: Value) -> Value:
        """min(cost, 100) for a cost -log p."""
        # -log p has no rational part, so -100 can take its place.
        if isinstance(cost, Real) and Real(-_LARGEST_COST, cost.terms).sign() < 0:
            return cost
        return Real(_LARGEST_COST)

    def _binary_logit(self, z: float, yes: Fraction, no: Fraction) -> tuple[Value, Value, Value]:
        """softplus(-z), softplus(z) and the derivative of the loss by the logit z."""
        if math.isinf(z):
            return (_NOTHING, INFINITY, Real(no)) if z > 0 else (INFINITY, _NOTHING, Real(-yes))
        row = _Softmax((z, 0.0), self._partitions)  # sigma(z) and sigma(-z) are a softmax
        a = Real(row.gap(0), row.log_sum.terms)
        b = Real(row.gap(1), row.log_sum.terms)
        return a, b, _combined([(no, row.probabilities[0]), (-yes, row.probabilities[1])])

    # Elementwise losses

    @staticmethod
    def averaged(elements: Sequence[_Position]) -> _Position:
        r"""The mean of the elements of a position, $\frac1m \sum_e \ell_e$."""
        if len(elements) == 1:
            return elements[0]
        share = Fraction(1, len(elements))
        loss = _combined((share, element.loss) for element in elements)
        by_predictions = [scaled(share, element.predictions[0]) for element in elements]
        return _Position(loss, by_predictions, [], ONE, any(element.bad for element in elements))

    def squared_error(self, prediction: float, target: float) -> _Position:
        r"""One element: $\ell = (p - t)^2$, with the derivatives $2(p - t)$ and $-2(p - t)$.

        Infinities follow the rules of IEEE 754.
        """
        if self.plan.targets_dtype in INTEGER_TYPES and abs(target) > MAX_INTEGER_TARGET:
            return _poisoned(1)
        if not math.isfinite(prediction) or not math.isfinite(target):
            difference = prediction - target
            return _Position(difference * difference, [difference], [-difference], ONE)
        exact = Fraction(prediction) - Fraction(target)
        return _Position(Real(exact * exact), [Real(2 * exact)], [Real(-2 * exact)], ONE)


# --------------------------------------------------------------------------------- full calls


class Tensor(NamedTuple):
    """Numbers in C order, with a shape and the name of their dtype. Made by `tensor`."""

    values: list[Any]
    shape: tuple[int, ...]
    dtype: str


def tensor(values: Any, shape: Sequence[int] | None = None, dtype: str = "float32") -> Tensor:
    """Make a tensor from a flat sequence with its shape, or from a number or nested lists.

    Raises:
        ValueError: the numbers do not fill the shape, or one is not a number of the dtype.
    """
    if shape is None:
        shape = []
        level = values
        while isinstance(level, list | tuple):
            shape.append(len(level))
            level = level[0] if level else 0.0
        values = [values]
        for _ in shape:
            values = [x for part in values for x in part]
    values = list(values)
    if len(values) != math.prod(shape):
        msg = f"{len(values)} numbers do not fill the shape {tuple(shape)}."
        raise ValueError(msg)
    if dtype in FORMATS:
        values = [float(x) for x in values]
        for x in values:
            if math.isfinite(x) and _narrow(x, FORMATS[dtype]) != x:
                msg = f"{x!r} is not a number of the dtype {dtype}; round it first."
                raise ValueError(msg)
    return Tensor(values, tuple(shape), dtype)


@dataclass(frozen=True)
class Reference:
    """The expected results of a call.

    Attributes:
        loss: in the result dtype: one float under "sum" and "mean", a flat list in C order under
            "none".
        grad_predictions: flat, in the predictions' dtype. If the spec names a dtype, each number is
            rounded to that dtype first.
        grad_targets: flat, in the targets' dtype, rounded the same way; None for targets that are
            not floating.
        grad_sample_weight: flat, in the weights' dtype, or float64 for integer weights; None
            without weights.
        position_losses: sample_weight_i * l_i of every position, in float64: the terms of the sum,
            before any rounding to the result dtype.
        divisor: the divisor of the mean, in float64; None for other reductions.
        bad_positions: the positions that hold a bad value.
    """

    loss: float | list[float]
    grad_predictions: list[float] | None
    grad_targets: list[float] | None
    grad_sample_weight: list[float] | None
    position_losses: list[float]
    divisor: float | None
    bad_positions: tuple[int, ...]


def evaluate(
    spec: Loss,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    terms: Literal["real", "rounded"] = "real",
    upstream: float | Sequence[float] | None = None,
    gradients: bool | Literal["predictions"] = True,
) -> Reference:
    r"""Compute the loss and its gradients, each number correctly rounded to its dtype.

    N is the sum of s_i l_i over all kept positions, s_i the sample weight, and D the divisor. The
    mean is N / D and, for an upstream gradient u,

    $$\frac{\partial}{\partial x} = \frac{u\, s_i}{D} \frac{\partial \ell_i}{\partial x}, \qquad
    \frac{\partial}{\partial s_i}
    = u \Bigl(\frac{\ell_i}{D} - \frac{N \omega_i}{D^2}\Bigr), \qquad
    \frac{\partial}{\partial t_{ic}}
    = u s_i \Bigl(\frac{1}{D} \frac{\partial \ell_i}{\partial t_{ic}} - \frac{N w_c}{D^2}\Bigr)$$

    where the terms with N exist only under the divisor "weights", and
    $\omega_i = \sum_c w_c t_{ic}$ (1 without class weights). Under "sum" D is 1 and constant; under
    "none" u is one number per position. Bad values do not raise an error; they give NaN. With
    element weights $v_e$, $\ell_i = v_i \ell'_i$ and $\omega_i = v_i$. Where the m losses along the
    last axis are averaged, $\ell_i = \frac1m \sum_e v_e \ell_e$ and
    $\omega_i = \frac1m \sum_e v_e$.

    Args:
        spec: the loss.
        predictions: the predictions.
        targets: the targets.
        sample_weight: weights, aligned to the leading axes.
        mask: bools, aligned to the leading axes.
        terms: the terms of a reduction: the "real" per-position losses, or the losses "rounded" to
            float32 (float64 for float64 predictions), as in exact mode. In both cases the gradients
            are those of the real loss.
        upstream: the upstream gradient: a number, or under "none" a flat list. Default: ones.
        gradients: False computes no gradient, "predictions" only the gradient with respect to the
            predictions. The others are None.

    Raises:
        EmptyMeanError: the divisor is 0, and the spec says ``on_empty="error"``.
        ShapeError, DTypeError, SpecValueError: as `unifiedloss.plan.resolve`.
        AssertionError: the largest number of digits does not decide a rounding.
    """
    call = _Reduction(spec, predictions, targets, sample_weight, mask)
    form = FORMATS[call.plan.result_dtype]
    by_predictions: list[float] | None = None
    by_targets: list[float] | None = None
    by_weight: list[float] | None = None
    if gradients:
        factors = call.factors(upstream)
        by_predictions = call.by_predictions(factors)
        if targets.dtype in FORMATS and gradients is True:
            by_targets = call.by_targets(factors)
        if sample_weight is not None and gradients is True:
            by_weight = call.by_sample_weight(factors)
    wide = FORMATS["float64"]
    mean = call.plan.spec.reduction == "mean"
    return Reference(
        loss=call.reduced(form, rounded=terms == "rounded"),
        grad_predictions=by_predictions,
        grad_targets=by_targets,
        grad_sample_weight=by_weight,
        position_losses=[round_value(loss, wide) for loss in call.losses],
        divisor=round_value(_value(call.divisor), wide) if mean else None,
        bad_positions=call.bad_positions(),
    )


@dataclass(frozen=True)
class Softmax:
    """The expected results of a softmax, each flat in C order.

    Attributes:
        values: in the logits' dtype.
        probabilities: in float64, also where the value is flushed to 0.
        gradient: with respect to the logits, in their dtype.
    """

    values: list[float]
    probabilities: list[float]
    gradient: list[float]


def softmax(
    logits: Tensor, axis: int | None = None, *, upstream: Sequence[float] | None = None
) -> Softmax:
    r"""Compute the softmax and its gradient, correctly rounded to the logits' dtype.

    $$p_c = \frac{e^{z_c}}{\sum_j e^{z_j}}, \qquad
    \frac{\partial}{\partial z_c} \sum_j u_j p_j = p_c \Bigl(u_c - \sum_j u_j p_j\Bigr)
    = \sum_j (u_c - u_j)\, p_c\, p_j$$

    A value that rounds to less than the smallest normal number of the compute dtype is 0. The
    gradient is that of the real softmax: the zeros would change it by less than that number too. A
    row with NaN or +inf, or with only -inf, is NaN.

    Args:
        logits: the logits.
        axis: the class axis, as for `unifiedloss.softmax`.
        upstream: the upstream gradient, flat. Default: ones.
    """
    form, wide = FORMATS[logits.dtype], FORMATS["float64"]
    compute = FORMATS["float32" if logits.dtype in HALF_TYPES else logits.dtype]
    axis = class_axis(axis, logits.shape)
    size, inner = logits.shape[axis], math.prod(logits.shape[axis + 1 :])
    count = len(logits.values)
    result = Softmax([NAN] * count, [NAN] * count, [NAN] * count)
    partitions: dict[Any, _Partition] = {}
    for i in range(count // size):
        start = i // inner * size * inner + i % inner
        places = range(start, start + size * inner, inner)
        row = [logits.values[j] for j in places]
        if any(math.isnan(z) or z == INFINITY for z in row) or max(row) == -INFINITY:
            continue
        above = [ONE if upstream is None else Fraction(upstream[j]) for j in places]
        probabilities = _Softmax(row, partitions).probabilities
        slopes = _softmax_gradient(row, probabilities, above)
        for j, p, slope in zip(places, probabilities, slopes, strict=True):
            result.values[j] = p.round(form) if p.round(compute) >= compute.tiny else 0.0
            result.probabilities[j] = p.round(wide)
            result.gradient[j] = slope.round(form)
    return result


def _softmax_gradient(
    row: Sequence[float], probabilities: Sequence[Real], above: Sequence[Fraction]
) -> list[Real]:
    """sum_j (u_c - u_j) p_c p_j for each class c, with equal products merged."""
    share = {z: p for z, p in zip(row, probabilities, strict=True) if z != -INFINITY}
    products: dict[tuple[float, float], _Product] = {}
    gradient = []
    for z, u in zip(row, above, strict=True):
        slopes: dict[float, Fraction] = {}
        for other, v in zip(row, above, strict=True):
            if z != -INFINITY and other != -INFINITY:
                slopes[other] = slopes.get(other, ZERO) + u - v
        if len(share) == 1:  # all probabilities are rational
            total = sum((slope * share[z].rational ** 2 for slope in slopes.values()), ZERO)
            gradient.append(Real(total))
            continue
        terms = []
        for other, slope in slopes.items():
            key = min(z, other), max(z, other)
            if key not in products:
                products[key] = _Product(share[key[0]], share[key[1]])
            if slope:
                terms.append((slope, products[key]))
        gradient.append(Real(ZERO, tuple(terms)))
    return gradient


def _total(parts: Iterable[tuple[Extended, Extended]]) -> Extended:
    """The sum of products."""
    total = _combined((factor, _value(x)) for factor, x in parts)
    return total.rational if isinstance(total, Real) else total


def _read_in(x: Tensor, dtype: str | None) -> Tensor:
    """Round a floating tensor to the dtype that the spec names.

    Numbers below the smallest normal number of either dtype become 0.
    """
    if dtype is None or x.dtype not in FORMATS or x.dtype == dtype:
        return x
    form, tiny = FORMATS[dtype], FORMATS[dtype].tiny
    if x.dtype != "float16":  # subnormal float16 numbers are normal in the wider dtypes
        tiny = max(tiny, FORMATS[x.dtype].tiny)
    rounded = [_narrow(v, form) if math.isfinite(v) else v for v in x.values]
    return Tensor([0.0 if abs(v) < tiny else v for v in rounded], x.shape, dtype)


def _in_turn(value: Value, dtype: str, own: str) -> float:
    """Round a number to the dtype that it was computed in, then to its tensor's own dtype."""
    rounded = round_value(value, FORMATS[dtype])
    return rounded if own == dtype or not math.isfinite(rounded) else _narrow(rounded, FORMATS[own])


def _flat(nested: Any, shape: tuple[int, ...]) -> list[Fraction]:
    """Broadcast nested tuples of weights to a shape, flat in C order.

    They are aligned to the last axes and repeated along axes of extent 1.
    """
    if not shape:
        return [Fraction(nested)]
    if len(extents(nested)) < len(shape):
        return _flat(nested, shape[1:]) * shape[0]
    parts = nested if len(nested) == shape[0] else nested * shape[0]
    return [v for part in parts for v in _flat(part, shape[1:])]


def _value(x: Extended) -> Value:
    return Real(x) if isinstance(x, Fraction) else x


def _signature(x: Tensor) -> Signature:
    return Signature(x.shape, x.dtype)


class _Reduction:
    """Computes all positions of a call, their reduction and its gradients.

    A position is one row of a cross-entropy or one element. Where the last axis is averaged, it is
    the `size` elements along that axis. This class calls rows and elements units.

    Attributes:
        units: one per row or element; None where it is dropped or zero-weighted.
        losses: s_i l_i of each position.
        divisor: D; 1 unless the mean is taken.
        empty: whether the mean has nothing to divide by.
    """

    def __init__(
        self,
        spec: Loss,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
    ) -> None:
        self.plan = resolve(
            spec,
            _signature(predictions),
            _signature(targets),
            None if sample_weight is None else _signature(sample_weight),
            None if mask is None else _signature(mask),
        )
        assert self.plan.count is not None
        self.size = predictions.shape[-1] if self.plan.average_last_axis else 1
        self.count = self.plan.count // self.size
        self._own_dtypes = predictions.dtype, targets.dtype
        read_in: str | None = getattr(spec, "dtype", None)
        self._predictions = _read_in(predictions, read_in)
        self._targets = _read_in(targets, read_in)
        self._own_weight = sample_weight
        self._weight = None if sample_weight is None else _read_in(sample_weight, read_in)
        self._call = PositionRules(self.plan)
        self._weights: list[Extended] = [ONE] * self.count
        if self._weight is not None:
            self._weights = [extended(w) for w in _repeated(self._weight, self.count)]
        each = [ONE] * self.plan.count
        if self.plan.element_weights is not None and self.plan.count:
            each = _flat(self.plan.element_weights, predictions.shape)
        self._shares = each if self.size == 1 else [v / self.size for v in each]
        self._scale = Fraction(self.plan.scale)
        masked = [True] * self.count if mask is None else _repeated(mask, self.count)
        ignored = frozenset(self.plan.ignored_labels)
        self._present = [
            bool(m) and not (ignored and targets.values[i] in ignored) for i, m in enumerate(masked)
        ]
        self.units = [self._unit(u, each[u]) for u in range(self.plan.count)]
        self.losses = [self._loss(i) for i in range(self.count)]
        self._mean = spec.reduction == "mean"
        self._weighted = self._mean and self.plan.divisor == "weights" and not self._counts_only
        self.divisor = self._divide_by() if self._mean else ONE
        self.empty = self.divisor == 0
        self.total = _combined((ONE, loss) for loss in self.losses)

    @property
    def _counts_only(self) -> bool:
        """Whether there are no weights at all, so that every W_i is 1."""
        plan = self.plan
        return self._weight is None and plan.class_weights is None and plan.element_weights is None

    def of(self, i: int) -> list[tuple[int, _Position]]:
        """The units of a position that are neither dropped nor zero-weighted."""
        indices = range(i * self.size, (i + 1) * self.size)
        return [(u, unit) for u in indices if (unit := self.units[u]) is not None]

    def _loss(self, i: int) -> Value:
        weight = times(self._weights[i], self._scale)
        parts = [(times(weight, self._shares[u]), unit.loss) for u, unit in self.of(i)]
        return scaled(*parts[0]) if len(parts) == 1 else _combined(parts)

    def bad_positions(self) -> tuple[int, ...]:
        """The positions that hold a bad value."""
        return tuple(i for i in range(self.count) if any(unit.bad for _, unit in self.of(i)))

    def entries(self, i: int) -> range:
        """The flat indices of a unit's predictions."""
        if self.plan.axis is None:
            return range(i, i + 1)
        shape, size = self._predictions.shape, self._predictions.shape[self.plan.axis]
        inner = math.prod(shape[self.plan.axis + 1 :])
        start = i // inner * size * inner + i % inner
        return range(start, start + size * inner, inner)

    def _unit(self, i: int, own: Fraction) -> _Position | None:
        weight = self._weights[i // self.size]
        if not self._present[i // self.size] or self._is_zero_weighted(weight, own):
            return None
        predictions = [self._predictions.values[j] for j in self.entries(i)]
        spec = self.plan.spec
        if weight < 0 and spec.reduction == "mean" and self.plan.divisor == "weights":
            return _poisoned(len(predictions))
        if self.plan.kind == "index":
            return self._call.cross_entropy(predictions, [self._targets.values[i]])
        if self.plan.kind == "dense":
            return self._call.cross_entropy(
                predictions, [self._targets.values[j] for j in self.entries(i)]
            )
        if self.plan.kind == "binary":
            return self._call.binary_cross_entropy(
                predictions[0], self._targets.values[i], self._pos_weight(i)
            )
        return self._call.squared_error(predictions[0], self._targets.values[i])

    def _is_zero_weighted(self, weight: Extended, own: Fraction) -> bool:
        """Whether a sample weight, or its product with the element weight, counts as 0.

        Both are rounded to the compute dtype. They count as 0 if their magnitude is below the
        smallest normal number of that dtype.
        """
        if (weight == ONE and own == ONE) or not math.isfinite(weight):
            return False
        form = FORMATS[self.plan.compute_dtype]
        rounded = nearest(Fraction(weight), form)
        if abs(rounded) < self.plan.tiny_weight:
            return True
        if not math.isfinite(rounded):
            return False
        return abs(nearest(Fraction(rounded) * own, form)) < self.plan.tiny_weight

    def _pos_weight(self, i: int) -> Fraction:
        weight = self.plan.pos_weight
        if isinstance(weight, tuple):
            shape = self._predictions.shape
            axis = self.plan.pos_weight_axis % len(shape)
            weight = weight[i // math.prod(shape[axis + 1 :]) % len(weight)]
        return ONE if weight is None else Fraction(weight)

    def _divide_by(self) -> Extended:
        rule = self.plan.divisor
        if rule == "all":
            return Fraction(self.count)
        if rule == "present" or self._counts_only:
            return Fraction(sum(self._present))
        kept = [i for i in range(self.count) if self.of(i)]
        weights = [times(self._weights[i], self._unit_weight(i)) for i in kept]
        if rule == "nonzero":
            return Fraction(sum(w != 0 for w in weights))
        return _total((ONE, w) for w in weights)

    def _unit_weight(self, i: int) -> Extended:
        """omega_i: W_i without the sample weight."""
        return _total((self._shares[u], unit.weight) for u, unit in self.of(i))

    # Values

    def reduced(self, form: Format, *, rounded: bool) -> float | list[float]:
        """The loss, rounded to a format."""
        if self.plan.spec.reduction == "none":
            return [round_value(loss, form) for loss in self.losses]
        if self.empty:
            if self.plan.spec.on_empty == "error":
                msg = f"the mean has nothing to divide by: divisor {self.plan.divisor!r} is 0."
                raise EmptyMeanError(msg)
            return 0.0 if self.plan.spec.on_empty == "zero" else NAN
        total = self.total
        if rounded:
            wide = self.plan.predictions_dtype == "float64"
            term_form = FORMATS["float64" if wide else "float32"]
            terms = [round_value(loss, term_form) for loss in self.losses]
            total = _combined((ONE, _value(extended(term))) for term in terms)
        return round_value(scaled(over(ONE, self.divisor), total), form)

    # Gradients

    def factors(self, upstream: float | Sequence[float] | None) -> list[Extended]:
        """u / D, one per position."""
        if self.empty:
            return [ZERO] * self.count
        if self.plan.spec.reduction == "none":
            several = [1.0] * self.count if upstream is None else upstream
            if not isinstance(several, Sequence) or len(several) != self.count:
                msg = (
                    f"upstream must be a flat sequence of {self.count} numbers under "
                    f"reduction='none', got {upstream!r}."
                )
                raise ValueError(msg)
            return [extended(u) for u in several]
        if isinstance(upstream, Sequence):
            msg = "upstream must be one number where the loss is reduced."
            raise ValueError(msg)  # noqa: TRY004
        factor = over(extended(1.0 if upstream is None else upstream), self.divisor)
        return [factor] * self.count

    def by_predictions(self, factors: list[Extended]) -> list[float]:
        """The gradient with respect to the predictions."""
        dtypes = self.plan.predictions_dtype, self._own_dtypes[0]
        return self._spread(dtypes, factors, lambda unit, c: [(self._scale, unit.predictions[c])])

    def by_targets(self, factors: list[Extended]) -> list[float]:
        """The gradient with respect to floating targets."""
        class_weights = self._call.class_weights

        def parts(unit: _Position, c: int) -> list[tuple[Extended, Value]]:
            own: list[tuple[Extended, Value]] = [(self._scale, unit.targets[c])]
            if self._weighted and class_weights is not None and class_weights[c]:
                own.append((times(-class_weights[c], over(ONE, self.divisor)), self.total))
            return own

        return self._spread((self.plan.targets_dtype, self._own_dtypes[1]), factors, parts)

    def _spread(
        self,
        dtypes: tuple[str, str],
        factors: list[Extended],
        parts: Callable[[_Position, int], list[tuple[Extended, Value]]],
    ) -> list[float]:
        """Derivatives by a tensor shaped like the predictions.

        Each is the factor times the weight times the sum of the parts.
        """
        gradient = [0.0] * len(self._predictions.values)
        for u, unit in enumerate(self.units):
            if unit is None or self.empty:
                continue
            i = u // self.size
            factor = times(times(factors[i], self._weights[i]), self._shares[u])
            for c, j in enumerate(self.entries(u)):
                own = parts(unit, c)
                (scale, x), more = own[0], own[1:]
                value = scaled(times(factor, scale), x)
                if more:
                    value = _combined([(ONE, value), *((times(factor, k), y) for k, y in more)])
                gradient[j] = _in_turn(value, *dtypes)
        return gradient

    def by_sample_weight(self, factors: list[Extended]) -> list[float]:
        """The gradient with respect to the sample weights, summed over all positions of each."""
        assert self._weight is not None
        assert self._own_weight is not None
        dtype = self._weight.dtype if self._weight.dtype in FORMATS else "float64"
        own_dtype = self._own_weight.dtype if self._own_weight.dtype in FORMATS else "float64"
        size = len(self._weight.values)
        parts: list[list[tuple[Extended, Value]]] = [[] for _ in range(size)]
        for i in range(self.count):
            if self.empty:
                break
            own = parts[i // (self.count // size)]
            units = self.of(i)
            scale = times(factors[i], self._scale)
            own += [(times(scale, self._shares[u]), unit.loss) for u, unit in units]
            if self._weighted and units:
                through_divisor = over(times(-ONE, self._unit_weight(i)), self.divisor)
                own.append((times(factors[i], through_divisor), self.total))
        return [_in_turn(_combined(own), dtype, own_dtype) for own in parts]


def _repeated(x: Tensor, count: int) -> list[Any]:
    """Repeat the numbers of a tensor over the trailing axes that it lacks."""
    if not count:
        return []
    repeats = count // len(x.values)
    return [value for value in x.values for _ in range(repeats)]
