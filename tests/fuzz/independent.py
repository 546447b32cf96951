"""A second oracle, written from the page Rules alone, for calls whose numbers are all finite.

It shares no code with the library's oracle: numbers are fractions, logarithms and exponentials come
from mpmath (torch's dependency sympy brings it along) with 2500 bits, and a result is right if the
real number lies within half a unit of its last place.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
from mpmath import mp, mpf

from tests.fuzz.calls import Call
from unifiedloss.floats import FORMATS, Format
from unifiedloss.reference import Reference

KNOWN = frozenset(
    {
        "reduction", "divisor", "on_empty", "rounding", "axis", "class_weights", "ignore_index",
        "scale", "element_weights", "average_last_axis", "from_logits", "epsilon",
        "label_smoothing", "renormalize", "class_weighting", "pos_weight", "epsilon_added", "delta",
    }
)  # fmt: skip
"""The fields that it computes; a call with another one is left to the library's oracle alone.

The field `dtype` is left out, because it rounds the inputs.
"""

_BITS = 2500
_MOST = 700  # e^-700 is far above 2^-2500

Number = Any
"""A Fraction, or a number of mpmath."""


class _Beyond(Exception):  # noqa: N818 - no error: the call is one that this module leaves out
    """The call holds something that this module does not compute."""


def differences(call: Call, expected: Reference) -> list[str]:
    """Describe where the library's oracle is wrong; an empty list if it is right or not known."""
    if (
        not KNOWN.issuperset(call.spec.changed())
        or expected.bad_positions
        or not call.predictions.size
    ):
        return []
    mp.prec = _BITS
    try:
        return _Sum(call).differences(expected)
    except _Beyond:
        return []


def _fraction(x: Any) -> Fraction:
    value = x if isinstance(x, int) else float(x)
    if not math.isfinite(value):
        raise _Beyond
    return Fraction(value)


def _real(x: Number) -> mpf:
    return mpf(x.numerator) / mpf(x.denominator) if isinstance(x, Fraction) else mpf(x)


def _is_right(got: float, real: Number, form: Format) -> bool:
    """Whether a result is the number of its dtype nearest to a real one, ties to even."""
    x = _real(real)
    limit = mpf(2) ** form.max_exponent * (2 - mpf(2) ** -form.precision)
    if math.isinf(got):
        return bool((x if got > 0 else -x) >= limit)
    if math.isnan(got) or abs(x) >= limit:
        return False
    gap = abs(mpf(got) - x)
    half = mpf(form.ulp(got)) / 2
    # Below a power of two, numbers are twice as dense.
    power = math.frexp(got)[0] in (0.5, -0.5) and abs(got) > form.tiny and abs(x) < abs(got)
    half = half / 2 if power else half
    slack = mpf(2) ** -_FEW
    if abs(gap - half) <= half * slack:
        return gap != half or power or Fraction(got) / Fraction(form.ulp(got)) % 2 == 0
    return bool(gap < half)


_FEW = _BITS - 400


def _rounded(real: Number, form: Format) -> Fraction:
    """The nearest number of a format, ties to even."""
    x = _real(real)
    if x == 0:
        return Fraction(0)
    exponent = max(int(mp.floor(mp.log(abs(x), 2))), form.min_exponent) - form.precision + 1
    scaled = x / mpf(2) ** exponent
    found = Fraction(int(mp.nint(scaled))) * Fraction(2) ** exponent
    if abs(found) > Fraction(form.largest):
        raise _Beyond
    return found


class _Sum:
    """A call: its positions, the divisor, and the gradient."""

    def __init__(self, call: Call) -> None:
        self.call, spec = call, call.spec
        wide = "float64" in (call.dtype, call.targets.dtype.name)
        self.form = FORMATS["float64" if wide else "float32"]
        self.shape = call.predictions.shape
        categorical = hasattr(spec, "class_weights")
        self.axis = getattr(spec, "axis", None) if categorical else None
        if categorical and self.axis is None:
            self.axis = -1
        self.averaged = getattr(spec, "average_last_axis", False)
        self.index = categorical and call.targets.dtype.kind in "iu"

    def tiny(self, dtype: str) -> Fraction:
        """The size below which a number of a dtype counts as 0."""
        least = FORMATS["float32"] if dtype in ("float32", "bfloat16") else FORMATS["float64"]
        if dtype == "float16" or self.form.name == "float32" or dtype not in FORMATS:
            least = self.form
        return Fraction(least.tiny)

    def flushed(self, x: Any) -> Fraction:
        """A number of the spec, 0 where it counts as 0."""
        value = _fraction(x)
        return value if abs(value) >= Fraction(self.form.tiny) else Fraction(0)

    def rows(self) -> list[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
        """Each position, with the indices of the predictions that belong to it."""
        axes = [range(n) for n in self.shape]
        every = list(itertools.product(*axes))
        if self.axis is None:
            return [(i, [i]) for i in every]
        axis = self.axis % len(self.shape)
        groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for i in every:
            groups.setdefault(i[:axis] + i[axis + 1 :], []).append(i)
        return sorted(groups.items())

    def weight(self, i: tuple[int, ...]) -> Fraction:
        """The sample weight of a position."""
        s = self.call.sample_weight
        if s is None:
            return Fraction(1)
        at = i[:-1] if self.averaged else i
        x = s[at[: s.ndim]]
        return _fraction(x.item() if s.dtype.kind in "iu" else x)

    def own_weight(self, i: tuple[int, ...]) -> Fraction:
        """The weight of an element, by the spec."""
        v = getattr(self.call.spec, "element_weights", None)
        if v is None:
            return Fraction(1)
        array = np.asarray(v, np.float64)
        return self.flushed(np.broadcast_to(array, self.shape)[i])

    def is_present(self, i: tuple[int, ...]) -> bool:
        """Whether a position is not dropped."""
        call = self.call
        at = i[:-1] if self.averaged else i
        if call.mask is not None and not call.mask[at[: call.mask.ndim]]:
            return False
        ignored = getattr(call.spec, "ignore_index", None) or ()
        return not (self.index and int(call.targets[i]) in ignored)

    def counts(self, s: Fraction, v: Fraction) -> bool:
        """Whether a position is not zero-weighted."""
        dtype = "float64" if self.call.sample_weight is None else self.call.sample_weight.dtype.name
        tiny = self.tiny(dtype)
        near = Fraction(1, 2**30)
        for x in (abs(s), abs(s * v)):
            if x and abs(x / tiny - 1) < near:
                raise _Beyond  # which side it is on depends on the roundings of a product
        return abs(s) >= tiny and abs(s * v) >= tiny

    def differences(self, expected: Reference) -> list[str]:
        """See the function `differences`."""
        spec = self.call.spec
        scale = _fraction(getattr(spec, "scale", 1.0))
        last = self.shape[-1] if self.averaged else 1
        losses: dict[tuple[int, ...], Number] = {}
        weights: dict[tuple[int, ...], Number] = {}
        slopes: dict[tuple[int, ...], Number] = {}
        present: dict[tuple[int, ...], bool] = {}
        kept: dict[tuple[int, ...], bool] = {}
        for i, entries in self.rows():
            at = i[:-1] if self.averaged else i
            losses.setdefault(at, Fraction(0))
            weights.setdefault(at, Fraction(0))
            present[at] = self.is_present(i)
            s = self.weight(i) if present[at] else Fraction(0)
            v = self.own_weight(i)
            on = present[at] and self.counts(s, v)
            kept[at] = kept.get(at, False) or on
            if not on:
                slopes.update(dict.fromkeys(entries, Fraction(0)))
                continue
            loss, each, omega = self.position(i, entries)
            losses[at] = losses[at] + _times(loss, s * v * scale / last)
            weights[at] = weights[at] + omega * s * v / last
            slopes.update(
                (j, _times(x, s * v * scale / last)) for j, x in zip(entries, each, strict=True)
            )
        order = sorted(losses)
        divisor = self.divisor(order, weights, present, kept)
        return self.compared(expected, [losses[i] for i in order], slopes, divisor)

    def divisor(self, order: Any, weights: Any, present: Any, kept: Any) -> Fraction:
        """The divisor of the mean; 1 for other reductions."""
        spec = self.call.spec
        rule = spec.divisor
        if spec.reduction != "mean":
            return Fraction(1)
        if rule == "label_weights":
            rule = "weights" if self.index else "all"
        if rule == "all":
            return Fraction(len(order))
        if rule == "present":
            return Fraction(sum(present.values()))
        if rule == "nonzero":
            return Fraction(sum(bool(kept[i] and weights[i] != 0) for i in order))
        unweighted = self.call.sample_weight is None and all(
            getattr(spec, name, None) is None for name in ("class_weights", "element_weights")
        )
        if unweighted:
            return Fraction(sum(present.values()))
        return sum((weights[i] for i in order if kept[i]), Fraction(0))

    def compared(
        self, expected: Reference, losses: list[Number], slopes: Any, divisor: Fraction
    ) -> list[str]:
        """Compare the losses and the gradient."""
        call, spec = self.call, self.call.spec
        none = spec.reduction == "none"
        half = call.dtype in ("float16", "bfloat16")
        result = FORMATS["float32" if half and not none else call.dtype]
        found = []
        if none:
            got = expected.loss
            assert isinstance(got, list)
            found += [
                f"independent: loss {i} is {g!r}, should be {mp.nstr(_real(x), 25)}"
                for i, (g, x) in enumerate(zip(got, losses, strict=True))
                if not _is_right(g, x, result)
            ]
        elif divisor:
            terms = losses
            if spec.rounding == "exact":
                term = FORMATS["float64" if call.dtype == "float64" else "float32"]
                terms = [_rounded(x, term) for x in losses]
            total: Number = sum(terms, Fraction(0))
            value = _times(total, 1 / divisor)
            assert isinstance(expected.loss, float)
            if not _is_right(expected.loss, value, result):
                found.append(
                    f"independent: the loss is {expected.loss!r}, should be {mp.nstr(value, 25)}"
                )
        elif spec.on_empty != "error":
            wanted = 0.0 if spec.on_empty == "zero" else math.nan
            if not np.array_equal(expected.loss, wanted, equal_nan=True):
                found.append(f"independent: an empty mean is {expected.loss!r}")
        upstream = None if call.upstream is None else np.asarray(call.upstream)
        form = FORMATS[call.dtype]
        gradient = expected.grad_predictions or []
        for g, i in zip(gradient, itertools.product(*map(range, self.shape)), strict=True):
            u = Fraction(1)
            if upstream is not None:
                axis = None if self.axis is None else self.axis % len(self.shape)
                at = i if axis is None else i[:axis] + i[axis + 1 :]
                at = at[:-1] if self.averaged else at
                x = upstream[at] if none else upstream[()]
                u = _fraction(x.item() if upstream.dtype.kind in "iu" else x)
            real = _times(slopes[i], u / divisor) if divisor else Fraction(0)
            if not _is_right(g, real, form):
                found.append(
                    f"independent: gradient {i} is {g!r}, should be {mp.nstr(_real(real), 25)}"
                )
        return found

    # ------------------------------------------------------------------------------- positions

    def position(
        self, i: tuple[int, ...], entries: list[tuple[int, ...]]
    ) -> tuple[Number, list[Number], Fraction]:
        """The loss of a position, its derivatives, and its weight W without sample weights."""
        x = [_fraction(self.call.predictions[j]) for j in entries]
        if self.axis is None:
            t = self.call.targets[i]
            t = Fraction(int(t)) if self.call.targets.dtype.kind in "iub" else _fraction(t)
            loss, slope = self.element(i, x[0], t)
            return loss, [slope], Fraction(1)
        return self.row(i, x, entries)

    def targets(self, i: tuple[int, ...], entries: list[tuple[int, ...]]) -> list[Fraction]:
        """The targets of a row, before smoothing."""
        if self.index:
            return [Fraction(int(k == int(self.call.targets[i]))) for k in range(len(entries))]
        tiny = self.tiny(self.call.targets.dtype.name)
        numbers = [_fraction(self.call.targets[j]) for j in entries]
        return [t if t >= tiny else Fraction(0) for t in numbers]

    def row(self, i: Any, x: list[Fraction], entries: Any) -> Any:
        """A row of a categorical loss."""
        spec: Any = self.call.spec
        count = len(entries)
        t = self.targets(i, entries)
        w = [Fraction(1)] * count
        if spec.class_weights is not None:
            w = [self.flushed(c) for c in spec.class_weights]
        inner = sum((a * b for a, b in zip(w, t, strict=True)), Fraction(0))
        omega = inner if spec.class_weights is not None else Fraction(1)
        smoothed = self.smoothed(t, count)
        tau = [a * b for a, b in zip(w, smoothed, strict=True)]
        if getattr(spec, "class_weighting", "") == "position" and spec.class_weights is not None:
            tau = [inner * b for b in smoothed]
        if spec.prediction_kind == "log_probabilities":
            return -sum(a * b for a, b in zip(tau, x, strict=True)), [-a for a in tau], omega
        if spec.from_logits:
            return (*_from_logits(x, tau), omega)
        return (*self.from_probabilities(x, tau), omega)

    def smoothed(self, t: list[Fraction], count: int) -> list[Fraction]:
        """(1 - eps) t + eps / count."""
        amount = _fraction(getattr(self.call.spec, "label_smoothing", 0.0))
        if amount / count < Fraction(self.form.tiny):
            return t
        return [(1 - amount) * v + amount / count for v in t]

    def bounds(self) -> tuple[Fraction, Fraction] | None:
        """The bounds of the clip."""
        spec: Any = self.call.spec
        form = FORMATS[self.call.dtype]
        if spec.epsilon == "keras":
            low = _rounded(Fraction(1e-7), form)
            return low, _rounded(1 - Fraction(1e-7), form)
        epsilon = form.epsilon if spec.epsilon == "sklearn" else spec.epsilon
        if epsilon == "torch" or not epsilon or getattr(spec, "epsilon_added", False):
            return None
        return Fraction(epsilon), 1 - Fraction(epsilon)

    def from_probabilities(self, x: list[Fraction], tau: list[Fraction]) -> Any:
        """The cross-entropy of probabilities."""
        spec: Any = self.call.spec
        tiny = self.tiny(self.call.dtype)
        p = [v if v >= tiny else Fraction(0) for v in x]
        total = Fraction(1)
        bounds = self.bounds()
        if spec.renormalize is None:
            p = [min(v, Fraction(1)) for v in p]
        elif spec.renormalize == "before_clip":
            total = sum(p, Fraction(0))
            if not total:
                raise _Beyond
            p = [v / total for v in p]
        inside = [bounds is None or bounds[0] <= v <= bounds[1] for v in p]
        if bounds is not None:
            p = [min(max(v, bounds[0]), bounds[1]) for v in p]
        if spec.renormalize == "after_clip":
            total = sum(p, Fraction(0))
            loss = sum(_times(_log(total) - _log(v), a) for v, a in zip(p, tau, strict=True))
            whole = sum(tau, Fraction(0)) / total
            each = zip(p, tau, inside, strict=True)
            return loss, [whole - a / v if on else Fraction(0) for v, a, on in each]
        if any(a and not v for v, a in zip(p, tau, strict=True)):
            raise _Beyond  # an infinite loss
        loss = sum((_times(-_log(v), a) for v, a in zip(p, tau, strict=True) if a), mpf(0))
        flowing = Fraction(0)
        if spec.renormalize is not None:
            flowing = sum((a for a, on in zip(tau, inside, strict=True) if on), Fraction(0)) / total
        return loss, [
            flowing - (a / v / total if on and a else Fraction(0))
            for v, a, on in zip(p, tau, inside, strict=True)
        ]

    def element(self, i: tuple[int, ...], x: Fraction, t: Fraction) -> Any:
        """An element of an elementwise loss."""
        spec: Any = self.call.spec
        if spec.target_kind == "real":
            e = x - t
            if not hasattr(spec, "delta"):
                return e * e, 2 * e
            delta = _fraction(spec.delta)
            if abs(e) <= delta:
                return e * e / 2, e
            return delta * (abs(e) - delta / 2), delta if e > 0 else -delta
        if t < self.tiny(self.call.targets.dtype.name):
            t = Fraction(0)
        q = Fraction(1) if spec.pos_weight is None else None
        if isinstance(spec.pos_weight, tuple):
            q = self.flushed(spec.pos_weight[i[-1 if spec.axis is None else spec.axis]])
        elif q is None:
            q = self.flushed(spec.pos_weight)
        (smooth,) = self.smoothed([t], 2)
        one, zero = q * smooth, 1 - smooth
        if not spec.from_logits:
            return self.probability(x, one, zero, smooth)
        if abs(x) > _MOST:
            raise _Beyond
        z = _real(x)
        sigma = 1 / (1 + mp.exp(-z))
        other = 1 / (1 + mp.exp(z))
        loss = _times(mp.log1p(mp.exp(-z)), one) + _times(mp.log1p(mp.exp(z)), zero)
        return loss, _times(sigma, zero) - _times(other, one)

    def probability(self, x: Fraction, one: Fraction, zero: Fraction, smooth: Fraction) -> Any:
        """The binary cross-entropy of a probability."""
        spec: Any = self.call.spec
        p = min(x if x >= self.tiny(self.call.dtype) else Fraction(0), Fraction(1))
        if spec.epsilon == "torch":
            least = Fraction(float(np.float32(1e-12)))
            costs = [min(-_log(v), mpf(100)) if v else mpf(100) for v in (p, 1 - p)]
            loss = _times(costs[0], one) + _times(costs[1], zero)
            return loss, (p - smooth) / max(p * (1 - p), least)
        added = Fraction(spec.epsilon) if spec.epsilon_added else Fraction(0)
        bounds = self.bounds()
        inside = bounds is None or bounds[0] <= p <= bounds[1]
        if bounds is not None:
            p = min(max(p, bounds[0]), bounds[1])
        above, below = p + added, 1 - p + added
        if (one and not above) or (zero and not below):
            raise _Beyond
        loss, slope = mpf(0), Fraction(0)
        if one:
            loss, slope = loss - _times(_log(above), one), slope - one / above
        if zero:
            loss, slope = loss - _times(_log(below), zero), slope + zero / below
        return loss, slope if inside else Fraction(0)


def _times(x: Number, factor: Fraction) -> Number:
    return x * factor if isinstance(x, Fraction) else x * _real(factor)


def _log(x: Fraction) -> mpf:
    return mp.log(_real(x)) if x != 1 else mpf(0)


def _from_logits(z: list[Fraction], tau: list[Fraction]) -> tuple[Number, list[Number]]:
    """The cross-entropy of logits: nothing is subtracted that would not cancel for real."""
    if max(z) - min(z) > _MOST:
        raise _Beyond
    loss: Number = mpf(0)
    e = [mp.exp(_real(v - max(z))) for v in z]
    whole = mp.fsum(e)
    for k, a in enumerate(tau):
        others = [mp.exp(_real(v - z[k])) for c, v in enumerate(z) if c != k]
        loss = loss + _times(mp.log1p(mp.fsum(others)), a)
    slopes = [
        mp.fsum(_times(e[k], tau[c]) - _times(e[c], tau[k]) for c in range(len(z)) if c != k)
        / whole
        for k in range(len(z))
    ]
    return loss, slopes
