"""The host kernel of exact mode: one call on NumPy arrays, from the plan to correctly rounded numbers.

Ziv's strategy, in three tiers. `fast` computes in float64 with a bound derived by hand, for the kinds of loss that are used most. What that
leaves undecided, and every other kind, is computed in double-double `balls`, which carry their bound along. What they leave undecided
(exact ties of irrational appearance, mostly) goes to the oracle, which raises its precision until the rounding is known. Each
tier rounds only what it can prove. Plans with a rule that the tiers do not know are the oracle's as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import reference
from unifiedloss.exact import fast, formulas
from unifiedloss.exact.balls import Ball, U, two_sum
from unifiedloss.exact.rounding import decide, stored
from unifiedloss.exact.sums import Sum, products, quotient
from unifiedloss.floats import FORMATS
from unifiedloss.spec import BEYOND_FLOAT64, MAX_INTEGER_TARGET, Plan

Array = NDArray[Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_Divisor = tuple[Ball, Callable[[], Fraction]] | float

_BLOCK = 1 << 13
"""Elements that go through the balls at a time: their temporaries stay in the processor's cache."""

_LARGEST_SHARE = 2.0**100
"""Numbers up to it that are divided by their sum are for the balls."""

undecided: Counter[str] = Counter()
"""What the first tier has left undecided since this was cleared: "elements" of gradients, whole "rows", and what the "oracle" got."""

skipped_tiers: set[str] = set()
"""For tests: "fast" and "balls" leave everything undecided, so that every element takes the path of the rare ones."""


def evaluate(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | float | None = None,
    *,
    gradient: bool,
    exp: Callable[..., Any] = np.exp,
    room: Array | None = None,
) -> tuple[Array, Array | None]:
    """The loss of a plan and, where asked for, its gradient with respect to the predictions.

    Bad values are not raised: those positions are NaN. So is an empty mean under ``on_empty="error"``.

    Args:
        plan: from `unifiedloss.spec.resolve`, every extent known.
        predictions: in the plan's dtype; bfloat16 as an array of ml_dtypes' type, or widened to float32. So are floating targets.
        targets: labels or numbers.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the gradient that arrives from above: a number, or under "none" an array shaped like the loss. Default: ones.
        gradient: whether the gradient is wanted.
        exp: the exponential of the first tier, ``exp(x, out=x)`` on float64, where an adapter has a faster one than NumPy's. It may err by
            2 u as NumPy's may.
        room: memory for the gradient, if it is to be written there: an array like the predictions, in C order.

    Returns:
        The loss in the result dtype and the gradient in the predictions' dtype, in C order; bfloat16 as its bits in uint16.
    """
    if plan.extended:
        value, slope = _by_oracle(
            plan, predictions, targets, sample_weight, mask, upstream, gradient=gradient
        )
        return value, slope if slope is None or room is None else _written(room, slope)
    with np.errstate(all="ignore"):
        return Call(plan, predictions, targets, sample_weight, mask, exp).carried_out(
            upstream, room, gradient=gradient
        )


def evaluate_some(
    plan: Plan,
    positions: NDArray[np.intp],
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
    upstream: Array | float | None = None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """What `evaluate` finds of some positions of a call, for programs that have found the others themselves.

    Args:
        plan: see `evaluate`, and so are the arrays.
        positions: which positions, counted over all of the loss's axes.
        predictions: all of them.
        targets: all of them.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the gradient that arrives from above.
        gradient: whether the gradient is wanted.

    Returns:
        The rounded losses of the positions, before any reduction, and the rows of the gradient, (positions, K), bfloat16 as its bits.
    """
    with np.errstate(all="ignore"):
        return Call(plan, predictions, targets, sample_weight, mask).some(
            positions, upstream, gradient=gradient
        )


def reduce_terms(
    plan: Plan,
    losses: Array,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
) -> Array:
    """The reduced loss of a call whose rounded losses, one per position, are known."""
    with np.errstate(all="ignore"):
        call = Call(plan, predictions, targets, sample_weight, mask)
        divisor = call.divisor_of_mean()
        return stored(np.asarray(call.reduced(losses.reshape(-1), divisor)), plan.result_dtype)


def _by_oracle(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    upstream: Array | float | None,
    *,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """What `evaluate` returns, by the oracle alone."""
    spec = plan.spec.replace(on_empty="nan") if plan.spec.on_empty == "error" else plan.spec
    above: Any = None
    if upstream is not None:
        each = np.asarray(upstream, np.float64)
        above = each.ravel().tolist() if plan.spec.reduction == "none" else each.item()
    found = reference.evaluate(
        spec,
        _tensor(predictions, plan.predictions_dtype),
        _tensor(targets, plan.targets_dtype),
        None if sample_weight is None else _tensor(sample_weight),
        None if mask is None else _tensor(mask),
        terms="rounded",
        upstream=above,
        gradients="predictions" if gradient else False,
    )
    shape: Any = plan.positions if plan.spec.reduction == "none" else ()
    loss = stored(np.asarray(found.loss, np.float64).reshape(shape), plan.result_dtype)
    if found.grad_predictions is None:
        return loss, None
    return loss, stored(
        np.reshape(found.grad_predictions, predictions.shape), plan.predictions_dtype
    )


def _written(room: Array, x: Array) -> Array:
    """An array in memory that was given for it, whose dtype may be that of which x holds the bits."""
    room = room.view(x.dtype)
    room[...] = x
    return room


def _tensor(x: Array, dtype: str | None = None) -> reference.Tensor:
    """An array as the oracle takes it; without a dtype named, in that of its numbers as NumPy knows them."""
    x = _plain(x)
    return reference.Tensor(x.ravel().tolist(), x.shape, x.dtype.name if dtype is None else dtype)


class Call:
    """The positions of a call in a row, their class axis last.

    Attributes:
        rows: predictions, shape (n, K); K = 1 for elementwise losses, or the elements that are averaged.
        targets: labels (n,), or numbers (n, K).
        read: those predictions that losses depend on: `rows`, or what stands at the labels, (n, 1), where nothing else matters.
        weight: sample weights, float64 (n,), or None.
        present: which positions are not dropped.
        kept: which are neither dropped nor of weight 0.
        nan: which are NaN because of a bad value or of a NaN that is read.
        special: which hold infinities or other things that the formulas do not take.
        exp: the exponential of the first tier.
    """

    def __init__(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        exp: Callable[..., Any] = np.exp,
    ) -> None:
        self.plan = plan
        self.exp = exp
        self.shape = predictions.shape
        axis = predictions.ndim - 1 if plan.averaged else plan.axis
        self.positions = predictions.shape if axis is None else _without(predictions.shape, axis)
        self.rows = self._in_rows(_plain(predictions))
        n = len(self.rows)
        targets = _plain(targets)
        self.targets: Array = targets.reshape(n) if plan.kind == "index" else self._in_rows(targets)
        self.present = np.ones(n, bool) if mask is None else self._per_position(mask)
        for label in plan.ignored_labels:
            self.present = self.present & (self.targets != label)
        self.weight = (
            None
            if sample_weight is None
            else self._per_position(_plain(sample_weight).astype(np.float64))
        )
        if plan.element_weights is not None:  # and no sample weights, or the plan would be extended
            self.weight = np.broadcast_to(
                np.asarray(plan.element_weights, np.float64), self.positions
            ).reshape(-1)
        self.kept = self.present
        if self.weight is not None:
            # Told in the compute dtype, where a number that is too small counts as 0.
            self.kept = self.present & ~(
                np.abs(self.weight.astype(plan.compute_dtype)) < plan.tiny_weight
            )
        # Integer weights that float64 does not hold; what they touch is for the oracle.
        self._long_weight = None
        if sample_weight is not None and sample_weight.dtype in (np.int64, np.uint64):
            whole = self._per_position(_plain(sample_weight))
            if ((whole > MAX_INTEGER_TARGET) | (whole < -MAX_INTEGER_TARGET)).any():
                self._long_weight = whole
        self.pos_weight = self._pos_weight()
        self.read = (
            np.take_along_axis(self.rows, self.labels[:, None], 1) if self.of_labels else self.rows
        )
        self.bad, self.nan, self.special = self._classified()
        self._oracle: reference.PositionRules | None = None
        self._known: dict[int, Any] = {}

    @property
    def of_labels(self) -> bool:
        """Whether a loss depends on the prediction at the label alone: that of a probability, or of its logarithm."""
        return self.plan.kind == "index" and not self.plan.reads_all and not self.plan.from_logits

    @cached_property
    def labels(self) -> NDArray[np.intp]:
        """Labels as an index, 0 where they are bad or dropped."""
        known = self.kept & (self.targets >= 0) & (self.targets < self.rows.shape[1])
        return np.where(known, self.targets, 0).astype(np.intp)

    def _in_rows(self, x: Array) -> Array:
        if self.plan.axis is None:
            return x.reshape(-1, self.shape[-1] if self.plan.averaged else 1)
        moved = x if self.plan.axis == x.ndim - 1 else np.moveaxis(x, self.plan.axis, -1)
        return moved.reshape(-1, moved.shape[-1])

    def _per_position(self, x: Array) -> Array:
        wide = np.broadcast_to(
            x.reshape(x.shape + (1,) * (len(self.positions) - x.ndim)), self.positions
        )
        return wide.reshape(-1)

    def _pos_weight(self) -> Floats | None:
        if self.plan.pos_weight is None:
            return None
        weight = np.asarray(self.plan.pos_weight, np.float64)
        if weight.ndim:
            axis = self.plan.pos_weight_axis % len(self.shape)
            weight = weight.reshape(-1, *[1] * (len(self.shape) - axis - 1))
        return self._in_rows(np.broadcast_to(weight, self.shape))

    # ---------------------------------------------------------------------------------------------------- what is special

    def _classified(self) -> tuple[Bools, Bools, Bools]:
        """Which kept positions hold a bad value, which are NaN through and through, and which are for the oracle."""
        plan, rows = self.plan, self.rows
        n = len(rows)
        bad, nan, special, bad_weight = (np.zeros(n, bool) for _ in range(4))
        if self.weight is not None:
            special |= ~np.isfinite(self.weight) | (
                np.abs(self.weight) > MAX_INTEGER_TARGET if self._long_weight is not None else False
            )
            if plan.spec.reduction == "mean" and plan.divisor == "weights":
                bad_weight = (self.weight < 0) & self.kept
                bad |= bad_weight
        if plan.kind == "index":
            bad |= (self.targets < 0) | (self.targets >= rows.shape[1])
        elif plan.kind == "dense":
            t = self.targets
            bad |= ((t <= -np.float64(plan.tiny_target)) | np.isinf(t)).any(1)
            nan |= np.isnan(t).any(1)
        elif plan.kind == "binary":
            t = self.targets
            if t.dtype != bool:
                bad |= ((t <= -np.float64(plan.tiny_target)) | (t > 1)).any(1)
                nan |= np.isnan(t).any(1)
        elif plan.targets_dtype in BEYOND_FLOAT64:
            t = self.targets
            bad |= ((t > MAX_INTEGER_TARGET) | (t < -MAX_INTEGER_TARGET)).any(1)
        if plan.kind == "regression":
            special |= ~np.isfinite(rows).all(1)
            if self.targets.dtype.kind not in "iub":
                special |= ~np.isfinite(self.targets).all(1)
        elif plan.log_probabilities:
            special |= ~np.isfinite(self.read).all(1)
        elif plan.from_logits:
            pass  # see `_odd_logits`
        else:
            bad |= self._reads_no_probability()
            special |= self._holds_odd_probability()
        bad &= self.kept
        if (
            plan.averaged
        ):  # one element that is NaN does not make the gradients of its neighbours so
            return bad, bad_weight, (special | nan | bad) & self.kept & ~bad_weight
        return bad, (nan | bad) & self.kept, special & self.kept & ~nan & ~bad

    def _holds_odd_probability(self) -> Bools:
        """Which positions hold something out of the ordinary, for the oracle to find out whether it is read."""
        plan = self.plan
        smallest, largest = self.read.min(1), self.read.max(1)
        low, gap = plan.bounds or (0.0, 0.0)
        least = 0.0 if low > 0 or plan.added or plan.clamped else plan.tiny
        most = _LARGEST_SHARE if plan.renormalize else 1.0
        odd: Bools = ~((smallest >= np.float64(least)) & (largest <= np.float64(most)))
        if plan.renormalize:
            odd |= largest < np.float64(plan.tiny)
        elif plan.kind == "binary" and not gap and not plan.added and not plan.clamped:
            odd |= largest == 1
        return odd

    def _reads_no_probability(self) -> Bools:
        """Which positions read a number that is no probability."""
        plan = self.plan
        outside: Bools = (self.read <= -np.float64(plan.tiny)) | (
            self.read > np.float64(plan.probability_limit)
        )
        if plan.kind == "dense" and not plan.reads_all and outside.any():
            outside &= ~(self.targets < np.float64(plan.tiny_target))
        return np.asarray(outside.any(1))

    def _odd_logits(self, chosen: Any) -> tuple[Bools, Bools]:
        """Of some positions, which are NaN because of their logits, and which are for the oracle.

        Asked of those that `fast` leaves: what it decides is in order, so that most calls need not look at all.
        """
        plan, rows = self.plan, self.rows[chosen]
        if not plan.from_logits:
            return np.zeros(len(rows), bool), np.zeros(len(rows), bool)
        largest = rows.max(1)  # NaN where there is one
        if plan.averaged:
            return np.zeros(len(rows), bool), ~np.isfinite(rows).all(1)
        if plan.axis is None:
            return np.isnan(largest), np.isinf(largest)
        nan = ~(np.abs(largest) < np.inf)
        # -inf among finite logits: its class has no part in the softmax, and an infinite loss where the target wants it.
        endless = (rows == -np.inf).any(1) & ~nan
        if plan.kind == "index" and not plan.smoothing:
            endless &= rows[np.arange(len(rows)), self.labels[chosen]] == -np.inf
        return nan, endless

    # ----------------------------------------------------------------------------------------------------------- divisor

    def _divisor(self) -> _Divisor:
        """A ball around the divisor of the mean and the divisor itself; a float where it is 0, infinite or NaN."""
        plan = self.plan
        rule = plan.divisor
        counted = self.weight is None and plan.class_weights is None
        if rule == "all":
            return _count(len(self.rows))
        if rule == "present" or counted:
            return _count(int(np.count_nonzero(self.present)))
        own = self._own_weights()
        weight = np.ones(len(self.rows)) if self.weight is None else self.weight
        if rule == "nonzero":
            nonzero = (
                self.bad
                | np.isnan(own[0]).any(1)
                | np.logical_and.reduce([f != 0 for f in own]).any(1)
            )
            return _count(int(np.count_nonzero(nonzero & self.kept)))
        if self.bad.any():
            return np.nan
        factors = [f[self.kept] for f in (*own, weight[:, None])]
        if not all(np.isfinite(f).all() for f in factors):
            return float(np.sum(np.prod(np.stack(np.broadcast_arrays(*factors)), axis=0)))
        if self._long_weight is not None:
            factors[-1] = self._long_weight[self.kept][:, None].astype(object)
        wide = np.broadcast_arrays(*factors)
        terms = None if self._long_weight is not None else products(*wide)
        if terms is None:
            each = zip(*(f.ravel().tolist() for f in wide), strict=True)
            total = sum((Fraction(a) * Fraction(b) * Fraction(c) for a, b, c in each), Fraction(0))
            return (_ball(total), lambda: total) if total else 0.0
        found = Sum(terms)
        ball = found.ball()
        return (ball, found.fraction) if ball.high else 0.0

    def _own_weights(self) -> tuple[Floats, Floats]:
        """Two factors whose product, summed over the last axis, is W_i without the sample weight."""
        w = self.plan.class_weights
        n = len(self.rows)
        if w is None:
            one = np.ones((n, 1))
            return one, one
        each = np.asarray(w)
        if self.plan.kind == "index":
            return each[self.labels][:, None], np.ones((n, 1))
        return np.broadcast_to(each, self.rows.shape), self.numbers(slice(None))

    # -------------------------------------------------------------------------------------------------------------- targets

    def numbers(self, some: Any) -> Floats:
        """Targets of a cross-entropy that are numbers, float64 (n, K); what is too small counts as 0."""
        t: Floats = self.targets[some].astype(np.float64)
        t[t < self.plan.tiny_target] = 0.0
        return t

    def _of_classes(self, some: Any) -> Floats:
        """Targets of a cross-entropy for each class, (n, K)."""
        if self.plan.kind == "index":
            hot: Floats = (self.targets[some][:, None] == np.arange(self.rows.shape[1])).astype(
                np.float64
            )
            return hot
        return self.numbers(some)

    def _label_weights(self, some: Any) -> Ball:
        each: Any = self.own_class_weight(self.labels[some])
        return Ball(np.broadcast_to(each, len(some))[:, None])

    def own_class_weight(self, labels: Any) -> Floats | float:
        """The class weights of labels."""
        w = self.plan.class_weights
        return 1.0 if w is None else np.asarray(w)[labels]

    def class_weight_of(self, some: Any, labels: Any) -> Floats | float:
        """The class weights of labels times the sample weights of their positions, to u."""
        own = self.own_class_weight(labels)
        return own if self.weight is None else own * self.weight[some]

    def tau(self, some: Any) -> tuple[Floats, float]:
        """The weighted, smoothed targets (n, K), and their relative error."""
        plan = self.plan
        t = self._of_classes(some)
        error = 0.0
        if plan.smoothing:
            t = (1.0 - plan.smoothing) * t + plan.smoothing / plan.shared_by
            error += 4 * U
        if plan.class_weights is not None:
            t = t * np.asarray(plan.class_weights)
            error += U
        return t, error

    def sides(self, some: Any) -> tuple[Floats, Floats, float]:
        """q t' and 1 - t' of binary targets, and their relative error."""
        t = self.numbers(some)[:, 0]
        yes, no, error = t, 1.0 - t, U
        if self.plan.smoothing:
            keep, share = 1.0 - self.plan.smoothing, self.plan.smoothing / 2
            yes, no, error = keep * yes + share, keep * no + share, 5 * U
        if self.pos_weight is not None:
            yes, error = yes * self.pos_weight[some][:, 0], error + U
        return yes, no, error

    @cached_property
    def hard(self) -> bool:
        """Whether binary targets are 0 and 1 alone, and so are their weights."""
        plain = not self.plan.smoothing and self.pos_weight is None
        return plain and bool(((self.targets == 0) | (self.targets == 1)).all())

    # ------------------------------------------------------------------------------------------------------------ the tiers

    def carried_out(
        self, upstream: Any, room: Array | None, *, gradient: bool
    ) -> tuple[Array, Array | None]:
        """What `evaluate` returns."""
        plan = self.plan
        none = plan.spec.reduction == "none"
        divisor = self.divisor_of_mean()
        losses = self._room_for_losses()
        form = self._slope_form
        room = None if room is None else room.view(form)
        slopes = self._room_for_slopes(form, room) if gradient else None
        self._positions_into(
            losses, slopes, self._scale(upstream, divisor) if gradient else None, self._term_dtype
        )
        reduced = (
            losses.reshape(self.positions).astype(np.float64, copy=False)
            if none
            else self.reduced(losses, divisor)
        )
        return stored(np.asarray(reduced), plan.result_dtype), self._back(slopes, room)

    def some(
        self, positions: NDArray[np.intp], upstream: Any, *, gradient: bool
    ) -> tuple[Array, Array | None]:
        """What `evaluate_some` returns."""
        divisor = self.divisor_of_mean()
        losses = self._room_for_losses()
        slopes = (
            np.zeros(self.rows.shape, self._slope_form) if gradient else None
        )  # memory that is not touched costs nothing
        only = np.zeros(len(self.rows), bool)
        only[positions] = True
        self._positions_into(
            losses,
            slopes,
            self._scale(upstream, divisor) if gradient else None,
            self._term_dtype,
            only,
        )
        return losses[positions], None if slopes is None else slopes[positions]

    @property
    def _term_dtype(self) -> str:
        if self.plan.spec.reduction == "none":
            return self.plan.result_dtype
        return "float64" if self.plan.predictions_dtype == "float64" else "float32"

    @property
    def _slope_form(self) -> np.dtype[Any]:
        return np.dtype(
            "uint16" if self.plan.predictions_dtype == "bfloat16" else self.plan.predictions_dtype
        )

    def _room_for_losses(self) -> Array:
        # float32 holds what is rounded to it, and to narrower types.
        return np.zeros(len(self.rows), np.float64 if self._term_dtype == "float64" else np.float32)

    def _scale(self, upstream: Any, divisor: Any) -> Scale:
        u = np.asarray(1.0 if upstream is None else upstream, np.float64)
        return Scale(self, u.reshape(-1) if u.ndim else u, divisor)

    def divisor_of_mean(self) -> Any:
        """The divisor; of a sum and of single losses it is 1."""
        mean = self.plan.spec.reduction == "mean"
        return self._divisor() if mean else (Ball(np.float64(1.0)), lambda: Fraction(1))

    def _room_for_slopes(self, dtype: np.dtype[Any], room: Array | None) -> Array:
        """Where the gradient is made, row by row; 0 where nothing will be written."""
        if room is None or not self._classes_last:
            return _aligned_zeros(self.rows.shape, dtype)
        rows = room.reshape(self.rows.shape)
        if not self.kept.all():
            rows[~self.kept] = 0
        return rows

    @property
    def _classes_last(self) -> bool:
        return self.plan.axis in (None, len(self.shape) - 1)

    def _back(self, slopes: Array | None, room: Array | None) -> Array | None:
        if slopes is None or self._classes_last:
            return None if slopes is None else slopes.reshape(self.shape)
        moved = np.moveaxis(slopes.reshape(*self.positions, self.rows.shape[1]), -1, self.plan.axis)  # type: ignore[arg-type]
        if room is None:
            return np.ascontiguousarray(moved)
        room[...] = moved
        return room

    def reduced(self, losses: Array, divisor: Any) -> float:
        """The sum or the mean of rounded losses."""
        mean = self.plan.spec.reduction == "mean"
        if mean and isinstance(divisor, float) and divisor == 0.0:
            return 0.0 if self.plan.spec.on_empty == "zero" else np.nan
        if not np.isfinite(losses).all():
            total = float(np.sum(losses[~np.isfinite(losses)]))
            if not isinstance(divisor, float):
                return total * float(np.sign(divisor[0].high))
            return total / divisor
        if isinstance(divisor, float):
            return 0.0 if np.isinf(divisor) else np.nan
        ball, exactly = divisor
        return quotient(Sum(losses), ball, exactly, self.plan.result_dtype)

    def _positions_into(
        self,
        losses: Array,
        slopes: Array | None,
        scale: Scale | None,
        dtype: str,
        only: Bools | None = None,
    ) -> None:
        plan = self.plan
        form = plan.predictions_dtype
        nothing = scale is not None and scale.nothing
        if nothing:
            if slopes is not None:
                slopes[...] = 0
            scale = slopes = None
        self._spoil(self.nan, losses, slopes)
        todo = self.kept & ~self.nan & ~self.special
        special = self.special.copy()
        if only is not None:
            todo, special = todo & only, special & only
        if scale is not None and scale.special:
            nan, endless = scale.not_finite(len(todo))
            special |= todo & endless
            # Where the factor is NaN so is every slope, in a training that has diverged all of them: no work for the oracle.
            lost = todo & nan
            self._finite_into(lost, special, losses, None, None, dtype)
            if slopes is not None:
                slopes[lost] = stored(np.full(1, np.nan), form)
            todo &= ~(nan | endless)
        self._finite_into(todo, special, losses, slopes, scale, dtype)
        for i in np.flatnonzero(special).tolist():
            losses[i] = self.oracle_loss(i, dtype)
            if slopes is not None and scale is not None:
                slopes[i] = stored(
                    np.array([self.oracle_slope(i, c, scale) for c in range(slopes.shape[1])]), form
                )

    def _finite_into(
        self,
        todo: Bools,
        special: Bools,
        losses: Array,
        slopes: Array | None,
        scale: Scale | None,
        dtype: str,
    ) -> None:
        """Positions whose scale is finite, or whose slopes are not wanted. What is for the oracle is noted in `special`."""
        left = (
            todo
            if "fast" in skipped_tiers
            else fast.carry_out(self, todo, losses, slopes, scale, dtype)
        )
        chosen = np.flatnonzero(left)
        if not len(chosen):
            return
        nan, odd = self._odd_logits(chosen)
        self._spoil(chosen[nan], losses, slopes)
        special[chosen[odd]] = True
        chosen = chosen[~(nan | odd)]
        step = max(1, _BLOCK // max(1, self.read.shape[1]))
        for start in range(0, len(chosen), step):
            self.block(chosen[start : start + step], losses, slopes, scale, dtype)

    def _spoil(self, which: Any, losses: Array, slopes: Array | None) -> None:
        losses[which] = np.nan
        if slopes is not None:
            slopes[which] = stored(np.full(1, np.nan), self.plan.predictions_dtype)

    def block(
        self, chosen: Any, losses: Array, slopes: Array | None, scale: Scale | None, dtype: str
    ) -> None:
        """Some positions, by balls, and what they leave undecided by the oracle."""
        undecided["rows"] += len(chosen)
        form = self.plan.predictions_dtype
        loss, slope = self._balls(chosen)
        if self.plan.averaged:
            count = Ball(np.float64(self.rows.shape[1]))
            loss, slope = loss.sum() / count, slope / count
        if self.weight is not None:
            loss = loss * Ball(self.weight[chosen][:, None])
        if self.plan.scale != 1.0:
            loss = loss * Ball(np.float64(self.plan.scale))
        rounded, doubtful = _decided(loss, (len(chosen), 1), dtype)
        losses[chosen] = rounded[:, 0]
        for i in chosen[doubtful[:, 0]]:
            losses[i] = self.oracle_loss(i, dtype)
        if slopes is None or scale is None:
            return
        rounded, doubtful = _decided(
            scale.times(slope, chosen), (len(chosen), self.read.shape[1]), form
        )
        labels = self.labels[chosen] if self.of_labels else None
        for row, c in np.argwhere(doubtful):
            rounded[row, c] = self.oracle_slope(
                chosen[row], c if labels is None else labels[row], scale
            )
        if labels is None:
            slopes[chosen] = stored(rounded, form)
        else:
            slopes[chosen] = 0
            slopes[chosen, labels] = stored(rounded[:, 0], form)

    def resolve(self, i: int, columns: Any, slopes: Array, scale: Scale) -> None:
        """Some elements of the gradient of one row of logits with a class index."""
        undecided["elements"] += len(columns)
        logits = self.rows[i].astype(np.float64)
        label, top = int(self.targets[i]), int(logits.argmax())
        others = formulas.partition(logits, top)
        total = Ball(np.float64(1.0)) + others
        own = Ball(np.float64(self.own_class_weight(label)))
        form = self.plan.predictions_dtype
        for c in columns:
            gap = Ball(*two_sum(logits[c], -logits[top]))
            at_top = c == top
            share = (
                (others if c == label else Ball(np.float64(1.0))) if at_top else gap.exp()
            ) / total
            # At the label p - 1; where it is the largest logit, from what the others have.
            slope = (
                -share
                if at_top and c == label
                else share - Ball(np.float64(1.0))
                if c == label
                else share
            )
            found, doubtful = _decided(scale.times(slope * own, np.array([i])), (1, 1), form)
            value = self.oracle_slope(i, int(c), scale) if doubtful[0, 0] else found[0, 0]
            slopes[i, c] = stored(np.array([value]), form)[0]

    def _balls(self, chosen: Any) -> tuple[Ball, Ball]:
        plan = self.plan
        rows = self.read[chosen].astype(np.float64)
        if plan.kind == "regression":
            return formulas.squared_error(rows, self.targets[chosen].astype(np.float64))
        if plan.kind == "binary":
            pos_weight = None if self.pos_weight is None else self.pos_weight[chosen]
            yes, no = formulas.binary_targets(plan, self.numbers(chosen), pos_weight)
            if plan.from_logits:
                return formulas.binary_cross_entropy(rows, yes, no)
            return formulas.binary_cross_entropy_of_probabilities(plan, rows, yes, no)
        tau = (
            self._label_weights(chosen)
            if self.of_labels
            else formulas.weighted_targets(plan, self._of_classes(chosen))
        )
        if plan.log_probabilities:
            return formulas.negative_log_likelihood(rows, tau)
        if plan.from_logits:
            return formulas.cross_entropy(rows, tau)
        of_probabilities = (
            formulas.cross_entropy_of_shares
            if plan.renormalize
            else formulas.cross_entropy_of_probabilities
        )
        return of_probabilities(plan, rows, tau)

    # --------------------------------------------------------------------------------------------------------- the oracle

    def _position(self, i: int) -> Any:
        if i not in self._known:
            if len(self._known) > 64:
                self._known.clear()
            oracle = self._oracle = self._oracle or reference.PositionRules(self.plan)
            row = self.rows[i].astype(np.float64).tolist()
            if self.plan.kind == "index":
                found = oracle.cross_entropy(row, [int(self.targets[i])])
            elif self.plan.kind == "dense":
                found = oracle.cross_entropy(row, self.targets[i].astype(np.float64).tolist())
            else:
                found = oracle.averaged([self._element(oracle, i, c, x) for c, x in enumerate(row)])
            self._known[i] = found
        return self._known[i]

    def _element(self, oracle: reference.PositionRules, i: int, c: int, prediction: float) -> Any:
        target = self.targets[i, c].item()
        if self.plan.kind == "regression":
            return oracle.squared_error(prediction, target)
        q = Fraction(1) if self.pos_weight is None else Fraction(float(self.pos_weight[i, c]))
        return oracle.binary_cross_entropy(prediction, float(target), q)

    def weight_of(self, i: int) -> Any:
        """The sample weight, exactly, or as a float where it is not finite."""
        if self._long_weight is not None:
            return Fraction(int(self._long_weight[i]))
        return Fraction(1) if self.weight is None else reference.extended(float(self.weight[i]))

    def oracle_loss(self, i: int, dtype: str) -> float:
        """A position's loss times its sample weight, by the oracle."""
        undecided["oracle"] += 1
        factor = reference.times(self.weight_of(i), Fraction(self.plan.scale))
        return reference.round_value(
            reference.scaled(factor, self._position(i).loss), FORMATS[dtype]
        )

    def oracle_slope(self, i: int, c: int, scale: Scale) -> float:
        """An element of the gradient, by the oracle."""
        undecided["oracle"] += 1
        slope = self._position(i).predictions[c]
        return reference.round_value(
            reference.scaled(scale.exactly(i), slope), FORMATS[self.plan.predictions_dtype]
        )


class Scale:
    """u s_i / D: what every slope is multiplied with.

    Attributes:
        nothing: whether all gradients are 0: an empty mean.
        special: whether one of the factors is not finite.
    """

    def __init__(self, call: Call, upstream: Floats, divisor: Any) -> None:
        self._call, self.upstream = call, upstream
        self.nothing = isinstance(divisor, float) and divisor == 0.0
        self.special = isinstance(divisor, float) or not np.isfinite(upstream).all()
        self._odd = divisor if isinstance(divisor, float) else None
        self.divisor: Ball = Ball(np.float64(1.0)) if isinstance(divisor, float) else divisor[0]
        self._exactly = None if isinstance(divisor, float) else divisor[1]
        self._fraction: Fraction | None = None

    def not_finite(self, n: int) -> tuple[Bools, Bools]:
        """Of n positions, those whose scale is NaN, and those for which it, or its divisor, is infinite."""
        divisor = 1.0 if self._odd is None else self._odd
        nan = np.isnan(self.upstream) | np.isnan(divisor)
        endless = ~nan & (np.isinf(self.upstream) | np.isinf(divisor))
        return np.broadcast_to(nan, n), np.broadcast_to(endless, n)

    @cached_property
    def power_of_two(self) -> bool:
        """Whether every scale is a power of two, so that a product with it is exact."""
        mean = self._call.plan.spec.reduction == "mean"
        parts = [self.upstream] + ([] if self._call.weight is None else [self._call.weight])
        if mean:
            parts.append(np.atleast_1d(self.divisor.high))
        exact = not mean or (self.divisor.low == 0 and self.divisor.radius == 0)
        return bool(exact and all((np.abs(np.frexp(x)[0]) == 0.5).all() for x in parts))

    def float64(self, some: Any) -> Floats:
        """The scale of some positions, to a relative error of 4 u."""
        result: Any = self.upstream[some] if self.upstream.ndim else self.upstream
        if self._call.weight is not None:
            result = result * self._call.weight[some]
        scaled: Floats = (
            result if self._call.plan.spec.reduction != "mean" else result / self.divisor.high
        )
        return scaled

    def times(self, slope: Ball, chosen: Any) -> Ball:
        """Slopes times the scales of their positions."""
        result = slope * Ball(
            self.upstream[chosen][:, None] if self.upstream.ndim else self.upstream
        )
        if self._call.weight is not None:
            result = result * Ball(self._call.weight[chosen][:, None])
        if self._call.plan.scale != 1.0:
            result = result * Ball(np.float64(self._call.plan.scale))
        return result if self._call.plan.spec.reduction != "mean" else result / self.divisor

    def exactly(self, i: int) -> Any:
        """The scale of a position, as a fraction, or as a float where it is not finite."""
        factor = reference.times(
            reference.extended(float(self.upstream[i] if self.upstream.ndim else self.upstream)),
            self._call.weight_of(i),
        )
        factor = reference.times(factor, Fraction(self._call.plan.scale))
        if self._odd is not None:
            return reference.over(factor, self._odd)
        if self._fraction is None:
            assert self._exactly is not None
            self._fraction = self._exactly()
        return reference.over(factor, self._fraction)


def _decided(ball: Ball, shape: tuple[int, ...], dtype: str) -> tuple[Floats, Bools]:
    if "balls" in skipped_tiers:
        return np.zeros(shape), np.ones(shape, bool)
    high, low, radius = (np.array(np.broadcast_to(x, shape), np.float64) for x in ball)
    return decide(high, low, radius, dtype)


def _aligned_zeros(shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Zeros that begin at a multiple of 64 bytes: such memory TensorFlow and JAX take over as it is, and other memory they copy."""
    size = shape[0] * shape[1] * dtype.itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    zeros: Array = room[start : start + size].view(dtype).reshape(shape)
    return zeros


def _plain(x: Array) -> Array:
    """An array in a dtype of NumPy's own, in this machine's byte order."""
    if x.dtype.kind not in "fiub":  # ml_dtypes' bfloat16
        return x.astype(np.float32)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _count(n: int) -> _Divisor:
    return (Ball(np.float64(n)), lambda: Fraction(n)) if n else 0.0


def _ball(x: Fraction) -> Ball:
    if (
        not 2.0**-1000 < abs(x) < 2.0**1000
    ):  # float64 may not hold it, and nothing but its sign is said of it
        return Ball(np.float64(1.0 if x > 0 else -1.0), np.float64(0.0), np.float64(np.inf))
    high = float(x)
    low = float(x - Fraction(high))
    return Ball(np.float64(high), np.float64(low), np.float64(abs(low) * 2.0**-50 + 2.0**-1060))
