"""Reads the arrays of one exact call into rows and classifies the positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import BadValueError
from unifiedloss.exact import counts, limbs
from unifiedloss.exact.balls import Ball, U
from unifiedloss.exact.sums import Sum, products
from unifiedloss.floats import FORMATS
from unifiedloss.oracle.extended import extended, round_value, scaled, times
from unifiedloss.oracle.positions import Position, PositionRules, averaged
from unifiedloss.plan import BEYOND_FLOAT64, MAX_INTEGER_TARGET, Plan

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

Divisor = tuple[Ball, Callable[[], Fraction]] | float
"""A ball around the divisor of a mean, and a function that returns the exact divisor.

A float instead where the divisor is 0, infinite or NaN.
"""

LARGEST_SHARE = 2.0**100
"""Largest prediction that balls divide by the sum of its row. The oracle takes larger ones."""


class HostCall:
    """A call as a matrix: one row per position, the class axis last.

    Attributes:
        rows: predictions, shape (n, K). For elementwise losses K is 1, or the length of the
            averaged last axis.
        targets: labels (n,), or numbers (n, K).
        read: the predictions that the losses depend on: `rows`, or only the entries at the labels,
            (n, 1), where no other entry matters.
        weight: sample weights, float64 (n,), or None. Element weights where there are none.
        element_weight: element weights beside sample weights, float64 (n,), or None.
        present: positions that are not dropped.
        kept: positions that are neither dropped nor zero-weighted.
        divides: whether the sum is divided: by its own divisor, or by one that is given.
        nan: positions that are poisoned by a bad value or by a NaN that is read.
        special: positions with infinities or other values outside the domain of the formulas.
        exp: the exponential of the first tier.
        threads: the most threads of the compiled loops; None for the number of the environment.

    Without predictions, only the divisor can be computed.
    """

    def __init__(
        self,
        plan: Plan,
        predictions: Array | None,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        exp: Callable[..., Any] = np.exp,
        threads: int | None = None,
        divisor: Divisor | None = None,
    ) -> None:
        self.plan = plan
        self.exp = exp
        self.threads = threads
        self._given_divisor = divisor
        self.divides = plan.spec.reduction == "mean" or divisor is not None
        self._blind = predictions is None
        self.shape: tuple[int, ...] = plan.shape if predictions is None else predictions.shape  # type: ignore[assignment]
        axis = len(self.shape) - 1 if plan.average_last_axis else plan.axis
        self.positions = self.shape if axis is None else _without(self.shape, axis)
        if predictions is None:
            width = 1 if axis is None else self.shape[axis]
            # Only the shape of these rows is read, and they take no memory.
            self.rows = np.broadcast_to(np.int8(0), (math.prod(self.positions), width))
        else:
            self.rows = self._in_rows(plain(predictions))
        n = len(self.rows)
        targets = plain(targets)
        self.targets: Array = targets.reshape(n) if plan.kind == "index" else self._in_rows(targets)
        self.present = np.ones(n, bool) if mask is None else self._per_position(mask)
        for label in plan.ignored_labels:
            self.present = self.present & (self.targets != label)
        self.weight = (
            None
            if sample_weight is None
            else self._per_position(plain(sample_weight).astype(np.float64))
        )
        self.element_weight: Floats | None = None
        if plan.element_weights is not None:
            each = np.asarray(plan.element_weights, np.float64)
            each = np.broadcast_to(each, self.positions).reshape(-1)
            if self.weight is None:
                self.weight = each
            else:
                self.element_weight = each
        self.kept = self.present
        if self.weight is not None:
            # Compare in the compute dtype, where smaller numbers count as 0.
            rounded = self.weight.astype(plan.compute_dtype)
            product = None
            if self.element_weight is not None:
                product = _product_in(rounded, self.element_weight, plan.tiny_weight)
            self.kept = self.present & plan.counts(rounded, product)
        # Integer weights that float64 does not hold. The oracle computes their positions.
        self._long_weight = None
        if sample_weight is not None and sample_weight.dtype in (np.int64, np.uint64):
            integers = self._per_position(plain(sample_weight))
            if ((integers > MAX_INTEGER_TARGET) | (integers < -MAX_INTEGER_TARGET)).any():
                self._long_weight = integers
        self.pos_weight = self._pos_weight()
        self.read = self.rows
        if self.of_labels and not self._blind:
            self.read = np.take_along_axis(self.rows, self.labels[:, None], 1)
        self.bad, self.nan, self.special = self._classified()
        self._oracle: PositionRules | None = None
        self._known: dict[int, Position] = {}

    @property
    def of_labels(self) -> bool:
        """Whether a loss depends only on the prediction at its label.

        True for index targets with probabilities or log-probabilities, unless the rule reads all.
        """
        return self.plan.kind == "index" and not self.plan.reads_all and not self.plan.from_logits

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """Labels as class indices; 0 where a label is bad or its position is dropped."""
        known = self.kept & (self.targets >= 0) & (self.targets < self.rows.shape[1])
        return np.where(known, self.targets, 0).astype(np.intp)

    def _in_rows(self, x: Array) -> Array:
        if self.plan.axis is None:
            return x.reshape(-1, self.shape[-1] if self.plan.average_last_axis else 1)
        moved = x if self.plan.axis == x.ndim - 1 else np.moveaxis(x, self.plan.axis, -1)
        return moved.reshape(-1, moved.shape[-1])

    def _per_position(self, x: Array) -> Array:
        aligned = x.reshape(x.shape + (1,) * (len(self.positions) - x.ndim))
        return np.broadcast_to(aligned, self.positions).reshape(-1)

    def _pos_weight(self) -> Floats | None:
        if self.plan.pos_weight is None:
            return None
        weight = np.asarray(self.plan.pos_weight, np.float64)
        if weight.ndim:
            axis = self.plan.pos_weight_axis % len(self.shape)
            weight = weight.reshape(-1, *[1] * (len(self.shape) - axis - 1))
        return self._in_rows(np.broadcast_to(weight, self.shape))

    # ------------------------------------------------------------------------- special positions

    def _classified(self) -> tuple[Bools, Bools, Bools]:
        """Flag the kept positions that hold a bad value, are poisoned, or need the oracle."""
        plan, rows = self.plan, self.rows
        n = len(rows)
        bad, nan, special = (np.zeros(n, bool) for _ in range(3))
        if self.weight is not None:
            special |= ~np.isfinite(self.weight)
            if self._long_weight is not None:
                # float64 rounds 2^53 + 1 to 2^53.
                special |= np.abs(self.weight) >= MAX_INTEGER_TARGET
            if plan.spec.reduction == "mean" and plan.divisor == "weights":
                bad |= (self.weight < 0) & self.kept
        if plan.kind == "index":
            bad |= (self.targets < 0) | (self.targets >= rows.shape[1])
        elif plan.kind == "dense":
            t, least = self.targets, -np.float64(plan.tiny_target)
            # Two quick passes suffice for good targets; a NaN is no smallest or largest number.
            quick = t.size > 0 and t.dtype != np.float16
            if not (quick and t.min() > least and t.max() < np.inf):
                bad |= ((t <= least) | np.isinf(t)).any(1)
                nan |= np.isnan(t).any(1)
        elif plan.kind == "binary":
            t = self.targets
            if t.dtype != bool:
                bad |= ((t <= -np.float64(plan.tiny_target)) | (t > 1)).any(1)
                nan |= np.isnan(t).any(1)
        elif plan.targets_dtype in BEYOND_FLOAT64:
            t = self.targets
            bad |= ((t > MAX_INTEGER_TARGET) | (t < -MAX_INTEGER_TARGET)).any(1)
        if self._blind:
            pass  # the divisor depends on no prediction
        elif plan.kind == "real":
            special |= ~np.isfinite(rows).all(1)
            if self.targets.dtype.kind not in "iub":
                nan |= np.isnan(self.targets).any(1)
                special |= ~np.isfinite(self.targets).all(1)
        elif plan.log_probabilities:
            special |= ~np.isfinite(self.read).all(1)
        elif plan.from_logits:
            pass  # `odd_logits` checks them later
        else:
            bad |= self._reads_bad_probability()
            special |= self._holds_special_probability()
        bad &= self.kept
        return bad, (nan | bad) & self.kept, special & self.kept & ~nan & ~bad

    def _holds_special_probability(self) -> Bools:
        """Flag positions with a value outside the formulas' domain, whether or not it is read."""
        plan = self.plan
        smallest, largest = self.read.min(1), self.read.max(1)
        low, gap = plan.bounds or (0.0, 0.0)
        least = 0.0 if low > 0 or plan.epsilon_added or plan.clamped else plan.tiny
        most = LARGEST_SHARE if plan.renormalize else 1.0
        special: Bools = ~((smallest >= np.float64(least)) & (largest <= np.float64(most)))
        if plan.renormalize:
            special |= largest < np.float64(plan.tiny)
        elif plan.kind == "binary" and not gap and not plan.epsilon_added and not plan.clamped:
            special |= largest == 1
        return special

    def _reads_bad_probability(self) -> Bools:
        """Flag positions that read a number outside the range of probabilities."""
        plan = self.plan
        outside: Bools = (self.read <= -np.float64(plan.tiny)) | (
            self.read > np.float64(plan.probability_limit)
        )
        if plan.kind == "dense" and not plan.reads_all and outside.any():
            outside &= ~(self.targets < np.float64(plan.tiny_target))
        return np.asarray(outside.any(1))

    def odd_logits(self, chosen: Any) -> tuple[Bools, Bools]:
        """Flag, of some positions, those poisoned by their logits and those that need the oracle.

        Call this only for the positions that `fast` leaves. Positions that `fast` decides have
        ordinary logits, so most calls skip this check.
        """
        plan = self.plan
        if not plan.from_logits:
            return np.zeros(len(chosen), bool), np.zeros(len(chosen), bool)
        rows = self.rows[chosen]
        largest = rows.max(1)  # NaN if the row has one
        if plan.average_last_axis:
            return np.zeros(len(rows), bool), ~np.isfinite(rows).all(1)
        if plan.axis is None:
            return np.isnan(largest), np.isinf(largest)
        nan = ~(np.abs(largest) < np.inf)
        # A class with the logit -inf has probability 0. The loss is infinite if the target has it.
        infinite = (rows == -np.inf).any(1) & ~nan
        if plan.kind == "index" and not plan.label_smoothing:
            infinite &= rows[np.arange(len(rows)), self.labels[chosen]] == -np.inf
        return nan, infinite

    # ----------------------------------------------------------------------------------- divisor

    def divisor(self) -> Divisor:
        """The divisor of the mean: a ball and the exact value, or a float if 0, infinite or NaN."""
        plan = self.plan
        rule = plan.divisor
        counted = self.weight is None and plan.class_weights is None
        if rule == "all":
            return _count(len(self.rows))
        if rule == "present" or counted:
            return _count(int(np.count_nonzero(self.present)))
        own = self._own_weights()
        if self.element_weight is not None:
            own = (self.element_weight[:, None], own[1])
        weight = np.ones(len(self.rows)) if self.weight is None else self.weight
        if rule == "nonzero":
            nonzero = (
                self.bad
                | np.isnan(weight)
                | np.isnan(own[0]).any(1)
                | np.logical_and.reduce([f != 0 for f in own]).any(1)
            )
            return _count(int(np.count_nonzero(nonzero & self.kept)))
        if self.bad.any():
            return np.nan
        factors = [weight[:, None]]
        if plan.class_weights is not None:
            factors = [*own, *factors]
        elif self.element_weight is not None:
            factors = [own[0], *factors]
        if not self.kept.all():
            factors = [f[self.kept] for f in factors]
        if not all(np.isfinite(f).all() for f in factors):
            return float(np.sum(np.prod(np.stack(np.broadcast_arrays(*factors)), axis=0)))
        if self._long_weight is not None:
            factors[-1] = self._long_weight[self.kept][:, None].astype(object)
        wide = np.broadcast_arrays(*factors)
        terms = None if self._long_weight is not None else products(*wide)
        if terms is None:
            each = zip(*(f.ravel().tolist() for f in wide), strict=True)
            total = sum((math.prod(map(Fraction, x), start=Fraction(1)) for x in each), Fraction(0))
            return (_ball(total), lambda: total) if total else 0.0
        weights = Sum(terms)
        ball = weights.ball()
        return (ball, weights.fraction) if ball.high else 0.0

    def divisor_of_mean(self) -> Any:
        """The divisor, which may be given; 1 for the reductions "sum" and "none"."""
        if self._given_divisor is not None:
            return self._given_divisor
        return self.divisor() if self.divides else (Ball(np.float64(1.0)), lambda: Fraction(1))

    def _own_weights(self) -> tuple[Floats, Floats]:
        """Two factors. Their product, summed over the last axis, is W_i without sample weight."""
        w = self.plan.class_weights
        n = len(self.rows)
        if w is None:
            one = np.ones((n, 1))
            return one, one
        each = np.asarray(w)
        if self.plan.kind == "index":
            return each[self.labels][:, None], np.ones((n, 1))
        return np.broadcast_to(each, self.rows.shape), self.numbers(slice(None))

    # ----------------------------------------------------------------------------------- targets

    def numbers(self, some: Any) -> Floats:
        """Dense or binary targets, float64 (n, K); numbers below `plan.tiny_target` count as 0."""
        t: Floats = self.targets[some].astype(np.float64)
        t[t < self.plan.tiny_target] = 0.0
        return t

    def of_classes(self, some: Any) -> Floats:
        """Targets per class, (n, K); one-hot for index targets."""
        if self.plan.kind == "index":
            is_label = self.targets[some][:, None] == np.arange(self.rows.shape[1])
            one_hot: Floats = is_label.astype(np.float64)
            return one_hot
        return self.numbers(some)

    def label_weights(self, some: Any) -> Ball:
        """The class weights of the labels of some positions, (n, 1)."""
        each: Any = self.own_class_weight(self.labels[some])
        return Ball(np.broadcast_to(each, len(some))[:, None])

    def own_class_weight(self, labels: Any) -> Floats | float:
        """The class weights of labels."""
        w = self.plan.class_weights
        return 1.0 if w is None else np.asarray(w)[labels]

    def class_weight_of(self, some: Any, labels: Any) -> Floats | float:
        """Class weight times sample weight of some positions, to a relative error of u."""
        own = self.own_class_weight(labels)
        return own if self.weight is None else own * self.weight[some]

    def tau(self, some: Any) -> tuple[Floats, float]:
        """The weighted, smoothed targets (n, K), and their relative error."""
        plan = self.plan
        t = self.of_classes(some)
        error = 0.0
        if plan.label_smoothing:
            t = (1.0 - plan.label_smoothing) * t + plan.label_smoothing / plan.shared_by
            error += 4 * U
        if plan.class_weights is not None:
            t = t * np.asarray(plan.class_weights)
            error += U
        return t, error

    def binary_targets(self, some: Any) -> tuple[Floats, Floats, float]:
        """q t' and 1 - t' of binary targets, and their relative error."""
        t = self.numbers(some)[:, 0]
        yes, no, error = t, 1.0 - t, U
        if self.plan.label_smoothing:
            keep, share = 1.0 - self.plan.label_smoothing, self.plan.label_smoothing / 2
            yes, no, error = keep * yes + share, keep * no + share, 5 * U
        if self.pos_weight is not None:
            yes, error = yes * self.pos_weight[some][:, 0], error + U
        return yes, no, error

    @cached_property
    def hard(self) -> bool:
        """Whether all binary targets are 0 or 1, without smoothing or pos_weight."""
        plain = not self.plan.label_smoothing and self.pos_weight is None
        return plain and bool(((self.targets == 0) | (self.targets == 1)).all())

    # -------------------------------------------------------------------------------- the oracle

    def _position(self, i: int) -> Position:
        if i not in self._known:
            if len(self._known) > 64:
                self._known.clear()
            self._oracle = self._oracle or PositionRules(self.plan)
            self._known[i] = self._computed(self._oracle, i)
        return self._known[i]

    def _computed(self, oracle: PositionRules, i: int) -> Position:
        row = self.rows[i].astype(np.float64).tolist()
        if self.plan.kind == "index":
            return oracle.position(row, [int(self.targets[i])])
        targets = self.targets[i].tolist()
        if self.plan.kind == "dense":
            return oracle.position(row, targets)
        weights = [1.0] * len(row) if self.pos_weight is None else self.pos_weight[i].tolist()
        elements = zip(row, targets, weights, strict=True)
        return averaged([oracle.position([x], [t], Fraction(q)) for x, t, q in elements])

    def weight_of(self, i: int) -> Any:
        """The exact sample weight: a Fraction, or a float where it is not finite."""
        if self._long_weight is not None:
            weight: Any = Fraction(int(self._long_weight[i]))
        else:
            weight = Fraction(1) if self.weight is None else extended(float(self.weight[i]))
        other = self.element_weight
        return weight if other is None else times(weight, Fraction(float(other[i])))

    def oracle_loss(self, i: int, dtype: str) -> float:
        """The loss of a position times its sample weight, by the oracle."""
        counts.undecided["oracle"] += 1
        factor = times(self.weight_of(i), Fraction(self.plan.scale))
        loss = scaled(factor, self._position(i).loss)
        return round_value(loss, FORMATS[dtype])

    def oracle_slope(self, i: int, c: int, scale: Any) -> float:
        """An element of the gradient, by the oracle."""
        counts.undecided["oracle"] += 1
        slope = scaled(scale.exactly(i), self._position(i).predictions[c])
        return round_value(slope, FORMATS[self.plan.predictions_dtype])


def _product_in(weight: Array, other: Floats, tiny: float) -> Array:
    """0 where the product of weights, rounded to the dtype of the first, is below tiny, else 1."""
    product = weight.astype(np.float64) * other
    if weight.dtype == np.float64:
        return np.where(np.abs(product) < tiny, 0.0, 1.0)
    # The tie below `tiny` rounds up, to the even number. The product in float64 is itself rounded,
    # so those beside that tie are compared exactly.
    middle = tiny - FORMATS[weight.dtype.name].ulp(tiny) / 2
    large = ~(np.abs(product) < middle)
    for i in np.flatnonzero(np.abs(np.abs(product) - middle) <= middle * 2.0**-40):
        exactly = abs(Fraction(float(weight[i])) * Fraction(float(other[i])))
        large[i] = exactly >= Fraction(middle)
    return large.astype(np.float64)


def call_of_rows(
    plan: Plan, rows: Array, targets: Array, divisor: Divisor, weight: Array | None = None
) -> HostCall:
    """Some rows of a call as a call of their own."""
    if plan.average_last_axis:
        return HostCall(plan, rows, targets, None, None, divisor=divisor)
    # The plan knows the class axis by its number, so keep the rank.
    between = (1,) * (0 if plan.axis is None else plan.axis - 1)
    width = () if plan.axis is None else rows.shape[1:]
    rows = rows.reshape(len(rows), *between, *width)
    targets = targets.reshape(len(rows), *between, *(width if plan.kind == "dense" else ()))
    return HostCall(plan, rows, targets, weight, None, divisor=divisor)


def exact_number(divisor: Array) -> Fraction | float:
    """A given divisor, exactly; NaN for one that divides nothing."""
    try:
        x = limbs.divisor_in(divisor) if divisor.ndim else extended(plain(divisor).item())
    except BadValueError:
        return np.nan
    return x if x >= 0 else np.nan


def plain(x: Array) -> Array:
    """Convert an array to a native NumPy dtype and byte order."""
    if x.dtype.kind not in "fiub":  # bfloat16 of ml_dtypes
        return x.astype(np.float32)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _count(n: int) -> Divisor:
    return (Ball(np.float64(n)), lambda: Fraction(n)) if n else 0.0


@lru_cache(256)
def known_divisor(x: Fraction | float) -> Divisor:
    """The divisor of this value."""
    if isinstance(x, float) or not x:
        return float(x)
    high = float(x) if x < 2**1000 else 0.0
    return (Ball(np.float64(high)) if x == high else _ball(x)), lambda: x


def _ball(x: Fraction) -> Ball:
    if not 2.0**-1000 < abs(x) < 2.0**1000:
        # float64 may not hold the number, so the ball only has its sign.
        return Ball(np.float64(1.0 if x > 0 else -1.0), np.float64(0.0), np.float64(np.inf))
    high = float(x)
    low = float(x - Fraction(high))
    return Ball(np.float64(high), np.float64(low), np.float64(abs(low) * 2.0**-50 + 2.0**-1060))
