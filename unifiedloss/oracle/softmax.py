"""The softmax of a row of logits, its gradient, and the softmax of whole tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.oracle.extended import NAN, NOTHING, negative_log
from unifiedloss.oracle.reals import EXACT, ONE, ZERO, Partition, Product, Real
from unifiedloss.oracle.rounding import INFINITY
from unifiedloss.oracle.tensors import Tensor
from unifiedloss.plan import class_axis


class SoftmaxRow:
    """One row of logits. At least one is finite, and the others are finite or -inf.

    Attributes:
        log_sum: log sum_j exp(z_j - max z).
        probabilities: p_c, one per class.
    """

    def __init__(self, logits: Sequence[float], partitions: dict[Any, Partition]) -> None:
        self._logits = logits
        self._largest = max(logits)
        counts = Counter(z for z in logits if z != -INFINITY)
        distinct = sorted(counts, reverse=True)
        common = math.gcd(*counts.values())
        groups: list[Real]
        if len(distinct) == 1:
            # All finite logits are equal: everything but one logarithm is rational.
            self.log_sum = negative_log(Fraction(1, common))
            groups = [Real(Fraction(1, common))]
        else:
            largest = Decimal(self._largest)
            gaps = tuple(EXACT.subtract(largest, Decimal(z)) for z in distinct)
            key = gaps, tuple(counts[z] // common for z in distinct)
            partition = partitions.get(key) or partitions.setdefault(key, Partition(*key))
            factor = Fraction(1, common)
            # Split log(common * sum), so that rows that differ only by a factor share a log.
            self.log_sum = Real(ZERO, ((ONE, partition.log_sum), *negative_log(factor).terms))
            groups = [Real(ZERO, ((factor, share),)) for share in partition.shares]
            groups[0] = Real(factor / partition.counts[0], ((-factor, partition.shares[0]),))
        group_of = dict(zip(distinct, groups, strict=True))
        self.probabilities = [NOTHING if z == -INFINITY else group_of[z] for z in logits]

    def gap(self, c: int) -> Fraction:
        """max z - z_c, for a finite z_c."""
        return Fraction(self._largest) - Fraction(self._logits[c])


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
    partitions: dict[Any, Partition] = {}
    for i in range(count // size):
        start = i // inner * size * inner + i % inner
        places = range(start, start + size * inner, inner)
        row = [logits.values[j] for j in places]
        if any(math.isnan(z) or z == INFINITY for z in row) or max(row) == -INFINITY:
            continue
        above = [ONE if upstream is None else Fraction(upstream[j]) for j in places]
        probabilities = SoftmaxRow(row, partitions).probabilities
        slopes = softmax_gradient(row, probabilities, above)
        for j, p, slope in zip(places, probabilities, slopes, strict=True):
            result.values[j] = p.round(form) if p.round(compute) >= compute.tiny else 0.0
            result.probabilities[j] = p.round(wide)
            result.gradient[j] = slope.round(form)
    return result


def softmax_gradient(
    row: Sequence[float], probabilities: Sequence[Real], above: Sequence[Fraction]
) -> list[Real]:
    """sum_j (u_c - u_j) p_c p_j for each class c, with equal products merged."""
    share = {z: p for z, p in zip(row, probabilities, strict=True) if z != -INFINITY}
    products: dict[tuple[float, float], Product] = {}
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
                products[key] = Product(share[key[0]], share[key[1]])
            if slope:
                terms.append((slope, products[key]))
        gradient.append(Real(ZERO, tuple(terms)))
    return gradient
