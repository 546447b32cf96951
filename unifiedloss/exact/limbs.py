r"""Exact sums as int64 vectors that plain addition merges.

A sum of finite floats is an integer times \(2^{L}\), where L is the exponent of the smallest
subnormal number. The vector holds this integer in *limbs* of 32 bits: limb i counts
\(2^{32 i + L}\), and the last limb has the sign. Then come three counts, of NaN, of +inf and of
-inf. The last entry is a *check number*: the sum of r_j times entry j modulo \(2^{64}\), with fixed
odd r_j. All of this is linear, so the sum of two vectors is the vector of both sums. An average of
vectors, or a narrowed one, has the wrong check number.

| vector | parts | float32 terms | float64 terms |
|---|---|---|---|
| totals of a sum | total, counts, check | 13 | 70 |
| totals of a mean | total, counts, divisor, counts, check | 82 | 139 |
| a divisor | divisor, counts, check | 70 | 70 |

The length depends on the spec and the dtype of the predictions alone. A divisor is always counted
in the unit of float64. The page Exactness derives how many vectors may be added.

The idea is that of the small superaccumulator of R. M. Neal, "Fast exact summation using small and
large superaccumulators" (2015).
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss import compiled
from unifiedloss.errors import BadValueError, DTypeError, ShapeError, UnsupportedError
from unifiedloss.inputs import Shape
from unifiedloss.messages import describe

Vector = NDArray[np.int64]

_LAYOUT = 1
"""The version of the layout. The check numbers depend on it, so vectors saved by one are refused by
another."""

_BITS = 32
_MASK = (1 << _BITS) - 1


class _Form(NamedTuple):
    """How numbers of a format are counted: in limbs, from the exponent `low` on."""

    low: int
    limbs: int


_FORMS = {"float32": _Form(-149, 9), "float64": _Form(-1074, 66)}
_DIVISOR = _FORMS["float64"]
_COUNTS = 3

_BLOCK = 1 << 16
"""Terms per block, so that the temporaries of a block stay in the processor's cache."""

_PASSES = 3
"""Passes of `_extracted` before the rest is added by integers."""


def length(kind: str, dtype: str) -> int:
    """The length of a vector.

    Args:
        kind: "sum" or "mean" for totals, "divisor" for a divisor.
        dtype: the dtype of the terms, "float32" or "float64".
    """
    parts = {"sum": [dtype], "mean": [dtype, "float64"], "divisor": ["float64"]}[kind]
    return sum(_FORMS[part].limbs + _COUNTS for part in parts) + 1


# ------------------------------------------------------------------------------------ exact sums


class Sum(NamedTuple):
    """An exact sum.

    Attributes:
        units: the sum of the finite terms, in units of the format's smallest number.
        specials: how many terms are NaN, +inf and -inf.
    """

    units: int
    specials: tuple[int, int, int] = (0, 0, 0)

    def special(self) -> float | None:
        """The sum if it is NaN or infinite; None if it is finite."""
        nan, positive, negative = self.specials
        if nan or (positive and negative):
            return math.nan
        if positive or negative:
            return math.inf if positive else -math.inf
        return None


def sum_of(terms: NDArray[Any]) -> Sum:
    """The exact sum of a float32 or float64 array, in units of its dtype's smallest number."""
    low = _FORMS[terms.dtype.name].low
    terms = terms.reshape(-1)
    if terms.dtype == np.float32 and compiled.is_available():
        return sum_in(compiled.exact_sum(np.require(terms, requirements=("C", "A"))))
    units = 0
    specials = np.zeros(_COUNTS, np.int64)
    for start in range(0, len(terms), _BLOCK):
        with np.errstate(invalid="ignore"):  # NumPy warns where it widens a signalling NaN
            block = terms[start : start + _BLOCK].astype(np.float64)
        finite = np.isfinite(block)
        if not finite.all():
            specials += [np.isnan(block).sum(), np.isposinf(block).sum(), np.isneginf(block).sum()]
            block = block[finite]
        units += _units(block, low)
    nan, positive, negative = specials.tolist()
    return Sum(units, (nan, positive, negative))


def sum_in(found: Vector) -> Sum:
    """The sum of float32 numbers in the limbs and counts of the compiled part."""
    limbs = _FORMS["float32"].limbs
    nan, positive, negative = found[limbs:].tolist()
    return Sum(_integer(found[:limbs]), (nan, positive, negative))


def _units(x: NDArray[np.float64], low: int) -> int:
    """The exact sum of finite numbers, each a multiple of 2**low, in that unit."""
    total = 0
    growth = max(len(x) - 1, 1).bit_length() + 2
    for _ in range(_PASSES):
        largest = float(np.abs(x).max(initial=0.0))
        if largest == 0.0:
            return total
        exponent = math.frexp(largest)[1] + growth
        if not (exponent < 1000 and exponent > -900):
            break
        total += _in_units(_extracted(x, exponent), low)
    return total + _slow_units(x[x != 0], low)


def _extracted(x: NDArray[np.float64], exponent: int) -> float:
    """Take the leading bits off all numbers, and return their exact sum.

    Adding and subtracting 1.5 * 2**exponent rounds a number to a multiple of 2**(exponent - 52).
    The numbers are below 2**(exponent - growth), where growth is 2 more than the bits of their
    count, so the sum of all multiples, in any order, is below 2**53 of that unit: it is exact. So
    is the difference that stays in `x`, because it is a multiple of the number's own unit and
    smaller than the number.
    """
    offset = 1.5 * 2.0**exponent
    leading = x + offset
    leading -= offset
    x -= leading
    return float(leading.sum())


def _in_units(x: float, low: int) -> int:
    numerator, denominator = x.as_integer_ratio()
    shift = -low - (denominator.bit_length() - 1)
    return numerator << shift if shift >= 0 else numerator >> -shift


def _slow_units(x: NDArray[np.float64], low: int) -> int:
    """`_units` by integers, one Python addition for each exponent that occurs."""
    mantissas, exponents = np.frexp(x)
    integers = np.ldexp(mantissas, 53).astype(np.int64)
    total = 0
    for exponent in np.unique(exponents).tolist():
        chosen = integers[exponents == exponent]
        # The two halves of each integer, because the sum of whole ones could leave int64.
        units = (int((chosen >> 27).sum()) << 27) + int((chosen & ((1 << 27) - 1)).sum())
        shift = exponent - 53 - low
        total += units << shift if shift >= 0 else units >> -shift
    return total


# ---------------------------------------------------------------------------------------- vectors


def vector(kind: str, dtype: str, *sums: Sum) -> Vector:
    """The vector of a total, a total and a divisor, or a divisor.

    Args:
        kind: as for `length`.
        dtype: as for `length`.
        *sums: the sums that it holds, in this order.
    """
    forms = [_DIVISOR if kind == "divisor" or i else _FORMS[dtype] for i in range(len(sums))]
    parts = [_limbs(each, form) for each, form in zip(sums, forms, strict=True)]
    entries = np.concatenate([*parts, np.zeros(1, np.int64)])
    entries[-1] = _check_number(kind, dtype, entries[:-1])
    return entries


def _limbs(each: Sum, form: _Form) -> Vector:
    size = form.limbs * _BITS // 8
    # The last limb has 64 bits, so that a sum of many large terms has room.
    raw = each.units.to_bytes(size + 4, "little", signed=True)
    limbs = np.empty(form.limbs + _COUNTS, np.int64)
    limbs[: form.limbs - 1] = np.frombuffer(raw, np.uint32, form.limbs - 1)
    limbs[form.limbs - 1] = np.frombuffer(raw[size - 4 :], np.int64)[0]
    limbs[form.limbs :] = each.specials
    return limbs


def _check_number(kind: str, dtype: str, entries: Vector) -> int:
    # Products and sums of int64 arrays are modulo 2**64 in NumPy.
    return int((entries * _odd_numbers(kind, dtype)).sum())


@cache
def _odd_numbers(kind: str, dtype: str) -> Vector:
    """The r_j of a kind of vector, from a hash, which is the same everywhere and forever."""
    form = "float64" if kind == "divisor" else dtype
    made = [
        hashlib.sha256(f"unifiedloss totals {_LAYOUT} {kind} {form} {j}".encode()).digest()[:8]
        for j in range(length(kind, dtype) - 1)
    ]
    return np.frombuffer(b"".join(made), "<i8").astype(np.int64) | 1


def opened(kind: str, dtype: str, entries: Vector) -> list[Sum]:
    """The sums in a vector, or in the sum of several vectors.

    Raises:
        BadValueError: the check number is wrong.
    """
    if int(entries[-1]) != _check_number(kind, dtype, entries[:-1]):
        what = "divisor" if kind == "divisor" else "totals"
        msg = (
            f"{what} of this spec have a check number, and this one is wrong: the vector was "
            "averaged, narrowed or cut, or belongs to a spec of another reduction, or to another "
            "version of unifiedloss; merge vectors by adding them."
        )
        raise BadValueError(msg)
    found, start = [], 0
    forms = {"sum": [_FORMS[dtype]], "mean": [_FORMS[dtype], _DIVISOR], "divisor": [_DIVISOR]}[kind]
    for form in forms:
        units = _integer(entries[start : start + form.limbs])
        start += form.limbs
        nan, positive, negative = entries[start : start + _COUNTS].tolist()
        found.append(Sum(units, (nan, positive, negative)))
        start += _COUNTS
    return found


def _integer(limbs: Vector) -> int:
    """The integer that limbs stand for, which may have carries, and signs after a subtraction."""
    last = int(limbs[-1]) << _BITS * (len(limbs) - 1)
    low = (limbs[:-1] & _MASK).astype(np.uint32)
    carries = limbs[:-1] >> _BITS
    units = last + int.from_bytes(low.tobytes(), "little")
    if carries.any():
        for i, carry in enumerate(carries.tolist(), 1):
            units += carry << _BITS * i
    return units


def check_form(what: str, shape: Shape | None, dtype: str, lengths: tuple[int, ...]) -> None:
    """Refuse a tensor that is no vector of one of these lengths, or no stack of such vectors."""
    if dtype != "int64":
        msg = (
            f"{what} of rounding='exact' are int64, got {dtype}: they were averaged or narrowed, "
            "or are of a spec with rounding='native'; merge them by adding int64 vectors."
        )
        raise DTypeError(msg)
    if shape is not None and not (
        len(shape) in (1, 2) and (shape[-1] is None or shape[-1] in lengths)
    ):
        msg = (
            f"{what} of this spec have {' or '.join(map(str, lengths))} entries, got shape "
            f"{describe(shape)}; pass the sum of what a spec of the same reduction and rounding "
            "returned."
        )
        raise ShapeError(msg)


# ---------------------------------------------------------------------------------------- divisors


def divisor(x: Fraction | float) -> Vector:
    """The vector of a divisor: a number that is not negative, an infinity or NaN."""
    if isinstance(x, float) and not math.isfinite(x):
        return vector("divisor", "float64", Sum(0, (1, 0, 0) if math.isnan(x) else (0, 1, 0)))
    return vector("divisor", "float64", units_of_divisor(Fraction(x)))


def divisor_of_number(x: float) -> Vector:
    """The vector of a Python number, exactly."""
    return _divisor_of_number(x).copy()  # some frameworks share the memory of what they are given


@lru_cache(256)
def _divisor_of_number(x: float) -> Vector:
    return divisor(Fraction(x))


def divisor_in(entries: Vector) -> Fraction | float:
    """The divisor in a vector, or in the sum of several vectors.

    Raises:
        BadValueError: the check number is wrong.
    """
    return _divisor_in(entries.tobytes())


@lru_cache(256)  # the pieces of a batch have one divisor, and small ones cost less than reading it
def _divisor_in(entries: bytes) -> Fraction | float:
    (found,) = opened("divisor", "float64", np.frombuffer(entries, np.int64))
    return number(found)


def counted_by_divisor() -> tuple[float, ...]:
    """What each limb of a divisor counts; the counts and the check number come after the limbs."""
    return tuple(2.0 ** (_BITS * i + _DIVISOR.low) for i in range(_DIVISOR.limbs))


def units_of_divisor(x: Fraction) -> Sum:
    """A finite divisor as a sum.

    Raises:
        UnsupportedError: it is no multiple of 2**-1074.
    """
    units = x * Fraction(2) ** -_DIVISOR.low
    if units.denominator != 1:
        msg = (
            "rounding='exact' has totals only where the divisor is a multiple of 2^-1074: not for "
            "products of float64 weights below that, nor for element_weights where the average "
            "over the last axis makes them fractions; use rounding='native'."
        )
        raise UnsupportedError(msg)
    return Sum(int(units))


class Ratio(NamedTuple):
    """A quotient that is not reduced, which takes longer than to round it."""

    numerator: int
    denominator: int


def quotient(total: Sum, dtype: str, divisor: Sum) -> Ratio:
    """A total over a divisor; both are finite, the total is not negative."""
    return Ratio(total.units << _FORMS[dtype].low - _DIVISOR.low, divisor.units)


ONE = Sum(1 << -_DIVISOR.low)
"""The divisor 1."""


def number(each: Sum, dtype: str = "float64") -> Fraction | float:
    """The sum as a number."""
    special = each.special()
    return each.units * Fraction(2) ** _FORMS[dtype].low if special is None else special
