"""All positions of a call, their reduction, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from unifiedloss.checks import extents
from unifiedloss.errors import EmptyMeanError
from unifiedloss.floats import FORMATS, Format
from unifiedloss.oracle.extended import (
    NAN,
    Extended,
    Value,
    as_value,
    combined,
    extended,
    over,
    round_value,
    scaled,
    times,
)
from unifiedloss.oracle.positions import Position, PositionRules, poisoned
from unifiedloss.oracle.reals import ONE, ZERO, Real
from unifiedloss.oracle.rounding import narrow, nearest
from unifiedloss.oracle.tensors import Tensor
from unifiedloss.plan import Signature, resolve
from unifiedloss.spec import Loss


def _total(parts: Iterable[tuple[Extended, Extended]]) -> Extended:
    """The sum of products."""
    total = combined((factor, as_value(x)) for factor, x in parts)
    return total.rational if isinstance(total, Real) else total


def _read_in(x: Tensor, dtype: str | None, *, exactly: bool) -> Tensor:
    """Round a floating tensor to the dtype that the spec names.

    Unless it is done `exactly`, numbers below the smallest normal number of either dtype become 0.
    """
    if dtype is None or x.dtype not in FORMATS or x.dtype == dtype:
        return x
    form, tiny = FORMATS[dtype], FORMATS[dtype].tiny
    if x.dtype != "float16":  # subnormal float16 numbers are normal in the wider dtypes
        tiny = max(tiny, FORMATS[x.dtype].tiny)
    rounded = [narrow(v, form) if math.isfinite(v) else v for v in x.values]
    if not exactly:
        rounded = [0.0 if abs(v) < tiny else v for v in rounded]
    return Tensor(rounded, x.shape, dtype)


def _in_turn(value: Value, dtype: str, own: str) -> float:
    """Round a number to the dtype that it was computed in, then to its tensor's own dtype."""
    rounded = round_value(value, FORMATS[dtype])
    return rounded if own == dtype or not math.isfinite(rounded) else narrow(rounded, FORMATS[own])


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


def _signature(x: Tensor) -> Signature:
    return Signature(x.shape, x.dtype)


class Reduction:
    """Computes all positions of a call, their reduction and its gradients.

    A position is one row of a cross-entropy or one element. Where the last axis is averaged, it is
    the `size` elements along that axis. This class calls rows and elements units.

    Attributes:
        units: one per row or element; None where it is dropped or zero-weighted.
        losses: s_i l_i of each position.
        divisor: D; 1 unless the mean is taken, or the divisor of a sum is given.
        empty: whether the mean has nothing to divide by.
    """

    def __init__(
        self,
        spec: Loss,
        predictions: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        mask: Tensor | None,
        divisor: Extended | None = None,
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
        exactly = self.plan.exact
        self._predictions = _read_in(predictions, read_in, exactly=exactly)
        self._targets = _read_in(targets, read_in, exactly=exactly)
        self._own_weight = sample_weight
        self._weight = (
            None if sample_weight is None else _read_in(sample_weight, read_in, exactly=exactly)
        )
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
        if self.size > 1:
            for i in range(self.count):
                self._poison(i)
        self.losses = [self._loss(i) for i in range(self.count)]
        self._mean = spec.reduction == "mean"
        self._weighted = self._mean and self.plan.divisor == "weights" and not self._counts_only
        self.divisor = divisor if divisor is not None else self._divide_by() if self._mean else ONE
        self.empty = self.divisor == 0
        self.total = combined((ONE, loss) for loss in self.losses)

    @property
    def _counts_only(self) -> bool:
        """Whether there are no weights at all, so that every W_i is 1."""
        plan = self.plan
        return self._weight is None and plan.class_weights is None and plan.element_weights is None

    def of(self, i: int) -> list[tuple[int, Position]]:
        """The units of a position that are neither dropped nor zero-weighted."""
        indices = range(i * self.size, (i + 1) * self.size)
        return [(u, unit) for u in indices if (unit := self.units[u]) is not None]

    def _loss(self, i: int) -> Value:
        weight = times(self._weights[i], self._scale)
        parts = [(times(weight, self._shares[u]), unit.loss) for u, unit in self.of(i)]
        return scaled(*parts[0]) if len(parts) == 1 else combined(parts)

    def _poison(self, i: int) -> None:
        """Make all derivatives of an averaged position NaN if it has a bad value or a NaN target.

        A NaN prediction makes only its own derivative NaN, as the formula says.
        """
        units = self.of(i)
        if any(unit.bad or math.isnan(self._targets.values[u]) for u, unit in units):
            for u, unit in units:
                by_targets: list[Value] = [NAN] * len(unit.targets)
                self.units[u] = unit._replace(predictions=[NAN], targets=by_targets)

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

    def _unit(self, i: int, own: Fraction) -> Position | None:
        weight = self._weights[i // self.size]
        if not self._present[i // self.size] or self._is_zero_weighted(weight, own):
            return None
        predictions = [self._predictions.values[j] for j in self.entries(i)]
        spec = self.plan.spec
        if weight < 0 and spec.reduction == "mean" and self.plan.divisor == "weights":
            return poisoned(len(predictions))
        if self.plan.kind == "dense":
            targets = [self._targets.values[j] for j in self.entries(i)]
        else:
            targets = [self._targets.values[i]]
        return self._call.position(predictions, targets, self._pos_weight(i))

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
            terms = self.terms("float64" if wide else "float32")
            total = combined((ONE, as_value(extended(term))) for term in terms)
        return round_value(scaled(over(ONE, self.divisor), total), form)

    def terms(self, dtype: str) -> list[float]:
        """The losses of the positions, each rounded to a dtype."""
        return [round_value(loss, FORMATS[dtype]) for loss in self.losses]

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

        def parts(unit: Position, c: int) -> list[tuple[Extended, Value]]:
            own: list[tuple[Extended, Value]] = [(self._scale, unit.targets[c])]
            if self._weighted and class_weights is not None and class_weights[c]:
                own.append((times(-class_weights[c], over(ONE, self.divisor)), self.total))
            return own

        return self._spread((self.plan.targets_dtype, self._own_dtypes[1]), factors, parts)

    def _spread(
        self,
        dtypes: tuple[str, str],
        factors: list[Extended],
        parts: Callable[[Position, int], list[tuple[Extended, Value]]],
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
                    value = combined([(ONE, value), *((times(factor, k), y) for k, y in more)])
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
        return [_in_turn(combined(own), dtype, own_dtype) for own in parts]


def _repeated(x: Tensor, count: int) -> list[Any]:
    """Repeat the numbers of a tensor over the trailing axes that it lacks."""
    if not count:
        return []
    repeats = count // len(x.values)
    return [value for value in x.values for _ in range(repeats)]
