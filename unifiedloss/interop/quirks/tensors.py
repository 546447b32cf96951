"""The tensors of a call, as the quirks look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.interop.inputs import weights_of
from unifiedloss.interop.sides import Array, Input
from unifiedloss.spec import Categorical, Loss

TINY = FORMATS["float32"].tiny

NEAR_BOUND = 1e-6
"""Up to this distance from 0 or 1, a probability may be clipped."""

LARGE_GAP = 5.0
"""Above this logit, or lead of one logit over the others, a loss is near 0 and may lose digits."""


@dataclass(frozen=True)
class Tensors:
    """The tensors of a call and the spec they are for.

    Attributes:
        spec: the spec.
        p: predictions.
        t: targets.
        w: sample weights, or None.
        axis: the class axis, or None.
        hidden_logits: whether Keras keeps the logits of the predictions, or they come from an
            activation.
    """

    spec: Any
    p: Array
    t: Array
    w: Array | None
    axis: int | None
    hidden_logits: bool = False

    @classmethod
    def of(cls, spec: Loss, x: Input) -> Tensors:
        """The tensors of an input; a class axis that the predictions lack is the last one."""
        rank, axis = x.predictions.ndim, None
        if isinstance(spec, Categorical) and rank:
            axis = -1 if spec.axis is None or not -rank <= spec.axis < rank else spec.axis
        hidden = x.origin is not None or hasattr(x.own[0], "_keras_logits")
        return cls(spec, x.predictions, x.targets, x.sample_weight, axis, hidden)

    @property
    def k(self) -> int:
        """The number of classes; 0 without a class axis."""
        return 0 if self.axis is None else self.p.shape[self.axis]

    @property
    def dense(self) -> bool:
        """Whether targets have the predictions' shape."""
        return self.t.shape == self.p.shape

    @property
    def labels(self) -> bool:
        """Whether targets are class indices."""
        return self.axis is not None and not self.dense and self.t.dtype.kind in "iu"

    @property
    def bad(self) -> Array:
        """Which labels are outside 0..K-1 and not ignored."""
        ignored = np.isin(self.t, np.asarray(self.spec.ignore_index or (), np.int64))
        return np.asarray(((self.t < 0) | (self.t >= self.k)) & ~ignored)

    @property
    def bad_label(self) -> bool:
        """Whether some label is outside 0..K-1 and not ignored."""
        return self.labels and bool(self.bad.any())

    @property
    def bad_target(self) -> bool:
        """Whether some target is outside [0, 1]."""
        return bool(((self.t < 0) | (self.t > 1)).any())

    @property
    def bad_probability(self) -> bool:
        """Whether some prediction is outside [0, 1]."""
        return bool(((self.p < 0) | (self.p > 1)).any())

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the losses."""
        axis = self.axis
        if axis is None and getattr(self.spec, "average_last_axis", False):
            axis = -1
        if axis is None or not self.p.ndim:
            return self.p.shape
        return tuple(np.delete(self.p.shape, axis))

    @property
    def switched_off(self) -> bool:
        """Whether a sample weight, class weight or element weight is 0."""
        weights = weights_of(self.spec)
        return bool(self.w is not None and np.any(self.w == 0)) or (
            weights is not None and 0 in np.ravel(weights)
        )

    @property
    def nothing_weighted(self) -> bool:
        """Whether every element, or the class of every label, has the weight 0."""
        weights = np.asarray(1.0 if weights_of(self.spec) is None else weights_of(self.spec))
        if self.axis is None:
            return not weights.any()
        if not self.labels or np.any(self.bad):
            return False
        classes = self.t[(self.t >= 0) & (self.t < self.k)]
        return not np.take(weights, classes, mode="clip").any()

    @property
    def unaligned(self) -> bool:
        """Whether there are sample weights, and not one for each entry of the first axis."""
        w = self.w
        return w is not None and (w.ndim != 1 or w.shape != self.positions[: w.ndim])

    @property
    def row_sum_other_than_one(self) -> bool:
        """Whether some dense row does not sum to 1."""
        if not self.dense or not self.k:
            return False
        name = self.p.dtype.name
        tolerance = 16 * FORMATS[name].epsilon if name in FORMATS else 0.0
        sums = self.t.astype(np.float64).sum(axis=self.axis)
        return not np.all(np.abs(sums - 1.0) <= tolerance)

    @property
    def large_gap(self) -> bool:
        """Whether in some row one logit is far above the others."""
        if self.axis is None or self.k <= 1:
            return True
        ordered = np.sort(self.p.astype(np.float64), axis=self.axis)
        lead = ordered.take(-1, self.axis) - ordered.take(-2, self.axis)
        return bool(np.any(lead > LARGE_GAP))

    @property
    def half(self) -> bool:
        """Whether predictions have a half type."""
        return self.p.dtype.name in HALF_TYPES

    @property
    def subnormal(self) -> bool:
        """Whether some prediction is a subnormal number of float32."""
        size = np.abs(self.p.astype(np.float64))
        return bool(((size > 0) & (size < TINY)).any())

    @property
    def minus_infinity(self) -> bool:
        """Whether some prediction is -inf."""
        return bool(np.isneginf(self.p.astype(np.float64)).any())

    @property
    def not_finite(self) -> bool:
        """Whether some prediction or target is infinite or NaN."""
        return not_finite(self.p) or not_finite(self.t)

    @property
    def nan(self) -> bool:
        """Whether some prediction or target is NaN."""
        return any(bool(np.isnan(x.astype(np.float64)).any()) for x in (self.p, self.t))

    @property
    def largest(self) -> float:
        """The largest magnitude of a prediction."""
        return float(np.nanmax(np.abs(self.p.astype(np.float64)), initial=0.0))


def not_finite(x: Array) -> bool:
    """Whether some number is infinite or NaN."""
    return x.dtype.kind not in "iub" and not np.isfinite(x.astype(np.float64)).all()


def near(x: Array, numbers: tuple[float, ...], distance: float) -> bool:
    """Whether some entry is at most this far from one of the numbers."""
    return any(
        bool(np.any(np.abs(x.astype(np.float64) - number) <= distance)) for number in numbers
    )
