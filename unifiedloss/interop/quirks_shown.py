"""Which quirks the tensors of a call can show.

A quirk has a predicate over the tensors, which is true if the quirk may change the result for them.
`UNSEEN` lists the quirks without a predicate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.interop.inputs import weights_of
from unifiedloss.interop.sides import Array, Input
from unifiedloss.spec import Categorical, Loss

UNSEEN = frozenset(
    {
        "compiled_checks",
        "hidden_logits",
        "hidden_logits_in_a_graph",
        "sign_of_zero",
        "result_dtype",
        "half_result",
        "weight_dtype",
    }
)
"""The quirks that no tensor shows.

They depend on how a loss is compiled, where its predictions come from, or the dtype of its weights,
or they change only the sign of a zero or the dtype of a result.
"""

_LARGE_LOGIT = 1e3
"""Above this magnitude the "offset" quirk may cost digits."""

_LARGE_GAP = 5.0
"""Above this logit, or lead of one logit over the others, a loss is near 0 and may lose digits."""

_NEAR_BOUND = 1e-6
"""Up to this distance from 0 or 1, a probability may be clipped."""


@dataclass(frozen=True)
class _Tensors:
    """The tensors of a call and the spec they are for.

    Attributes:
        spec: the spec.
        p: predictions.
        t: targets.
        w: sample weights, or None.
        axis: the class axis, or None.
    """

    spec: Any
    p: Array
    t: Array
    w: Array | None
    axis: int | None

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


def _not_finite(x: Array) -> bool:
    return x.dtype.kind not in "iub" and not np.isfinite(x.astype(np.float64)).all()


def _largest(x: Array) -> float:
    return float(np.nanmax(np.abs(x.astype(np.float64)), initial=0.0))


def _near(x: Array, numbers: tuple[float, ...], distance: float) -> bool:
    return any(
        bool(np.any(np.abs(x.astype(np.float64) - number) <= distance)) for number in numbers
    )


def _row_sum_other_than_one(s: _Tensors) -> bool:
    if not s.dense or not s.k:
        return False
    tolerance = 16 * FORMATS[s.p.dtype.name].epsilon if s.p.dtype.name in FORMATS else 0.0
    return not np.all(np.abs(s.t.astype(np.float64).sum(axis=s.axis) - 1.0) <= tolerance)


def _large_gap(s: _Tensors) -> bool:
    if s.k <= 1:
        return True
    ordered = np.sort(s.p.astype(np.float64), axis=s.axis)
    return bool(np.any(ordered.take(-1, s.axis) - ordered.take(-2, s.axis) > _LARGE_GAP))


def _nothing_weighted(s: _Tensors) -> bool:
    """Whether every element, or the class of every label, has the weight 0."""
    weights = np.asarray(weights_of(s.spec) if weights_of(s.spec) is not None else 1.0)
    if s.axis is None:
        return not weights.any()
    return bool(
        s.labels
        and not np.any(s.bad)
        and not np.take(weights, s.t[(s.t >= 0) & (s.t < s.k)], mode="clip").any()
    )


def _aligned(s: _Tensors) -> bool:
    return s.w is not None and s.w.shape == s.positions[: s.w.ndim]


def _half(s: _Tensors) -> bool:
    return s.p.dtype.name in HALF_TYPES


def _outside_unit_interval(s: _Tensors) -> bool:
    return bool(((s.p < 0) | (s.p > 1)).any())


def _subnormal(s: _Tensors) -> bool:
    size = np.abs(s.p.astype(np.float64))
    return bool(((size > 0) & (size < FORMATS["float32"].tiny)).any())


def _always(_: _Tensors) -> bool:
    return True


_ELEMENTS: dict[str, Callable[[_Tensors], bool]] = {
    "shapes": lambda s: not s.dense,
    "target_range": lambda s: bool(((s.t < 0) | (s.t > 1)).any()),
    "infinite_logit": lambda s: bool(np.isinf(s.p.astype(np.float64)).any()),
    "weightless_target": lambda s: (
        s.w is not None and 0 in s.w and bool(((s.t < 0) | (s.t > 1)).any())
    ),
    "integer_targets": lambda s: s.t.dtype.kind in "iub",
    "one_axis": lambda s: s.p.ndim <= 1,
    "no_elements": lambda s: not s.p.size,
    "empty_last_axis": lambda s: bool(s.p.ndim) and s.p.shape[-1] == 0,
    "gradient_at_zero": lambda s: _near(s.p, (0.0,), FORMATS["float32"].tiny),
    "clip_tie": lambda s: _near(s.p, (0.0, 1.0), _NEAR_BOUND),
    "zero_times_log": lambda s: _near(s.p, (0.0, 1.0), FORMATS["float32"].tiny),
    "confident_element": lambda s: _largest(s.p) > _LARGE_GAP,
    "half_clip": lambda s: _half(s) and _near(s.p, (0.0, 1.0), _NEAR_BOUND),
    "half_gradient": lambda s: (
        _half(s) and s.dense and _near(s.p[s.p == s.t], (0.0, 1.0), _NEAR_BOUND)
    ),
    "number_of_axes": lambda s: s.p.ndim not in (1, 2),
    "small_pos_weight": _always,
    "subnormal_weight": _always,
    "pos_weight_axes": _always,
    "pos_weight_shape": _always,
    "element_weight_shape": lambda s: np.shape(weights_of(s.spec)) != s.p.shape,
    "float64_elements": lambda s: s.p.dtype == np.float64,
}

_CLASSES: dict[str, Callable[[_Tensors], bool]] = {
    "bad_index": lambda s: s.labels and bool(s.bad.any()),
    "weightless_label": lambda s: (
        s.labels and s.w is not None and s.w.shape == s.t.shape and bool(s.bad[s.w == 0].any())
    ),
    "four_axes": lambda s: s.p.ndim == 4,
    "label_order": lambda s: s.labels and bool(s.bad.any()),
    "missing_labels": lambda s: s.labels and np.unique(s.t).size < s.k,
    "label_shape": lambda s: s.labels and s.t.shape != s.positions,
    "label_column": lambda s: s.labels and s.t.ndim == s.p.ndim,
    "label_types": lambda s: s.labels and s.t.dtype != np.int64,
    "bool_labels": lambda s: s.t.dtype.kind == "b" and not s.dense,
    "label_dtype": lambda s: s.t.dtype.kind == "f" and not s.dense,
    "dense_targets": lambda s: s.dense and s.t.dtype.kind == "f",
    "index_targets": lambda s: s.labels,
    "dense_shape": lambda s: not s.dense and (s.t.dtype.kind == "f" or s.t.shape != s.positions),
    "dense_range": lambda s: (
        s.dense and s.t.dtype.kind == "f" and bool(((s.t < 0) | np.isinf(s.t)).any())
    ),
    "target_kind": lambda s: s.t.dtype.kind == "b" or (s.dense and s.t.dtype.kind in "iu"),
    "target_sum": _row_sum_other_than_one,
    "zero_times_infinity": lambda s: bool(np.isneginf(s.p.astype(np.float64)).any()),
    "weightless_infinity": lambda s: bool(np.isneginf(s.p.astype(np.float64)).any()),
    "plus_infinity": lambda s: bool(np.isposinf(s.p.astype(np.float64)).any()),
    "offset": lambda s: _largest(s.p) > _LARGE_LOGIT,
    "confident_row": _large_gap,
    "nan_in_ignored": lambda s: (
        s.labels and _not_finite(s.p) and bool(np.isin(s.t, s.spec.ignore_index or ()).any())
    ),
    "weight_of_ignored": lambda s: s.labels and s.w is not None and _not_finite(s.w),
    "ignored_dense": lambda s: s.dense,
    "no_classes": lambda s: s.k == 0,
    "class_weight_count": lambda s: np.size(weights_of(s.spec)) != s.k,
    "empty_batch": lambda s: not s.p.size or (s.w is not None and not s.w.any()),
    "one_example": lambda s: s.p.ndim == 1,
    "binary_probabilities": lambda s: s.p.ndim == 1 or s.p.shape[-1] == 1,
    "float64": lambda s: s.p.dtype == np.float64,
}

_ALL: dict[str, Callable[[_Tensors], bool]] = {
    "half_rounding": _half,
    "half_mean": _half,
    "half_sum": _half,
    "bfloat16": lambda s: "bfloat16" in (s.p.dtype.name, s.t.dtype.name),
    "target_rounding": lambda s: (
        s.t.dtype.name in HALF_TYPES or s.t.dtype.itemsize < s.p.dtype.itemsize
    ),
    "target_dtype": lambda s: s.t.dtype.kind not in "iub" and s.t.dtype != s.p.dtype,
    "integer_predictions": lambda s: s.p.dtype.kind in "iub",
    "probability_range": _outside_unit_interval,
    "rounded_probability": _outside_unit_interval,
    "nan_probability": lambda s: bool(
        np.isnan(s.p.astype(np.float64)).any() or np.isnan(s.t.astype(np.float64)).any()
    ),
    "not_finite": lambda s: _not_finite(s.p) or _not_finite(s.t),
    "subnormal": _subnormal,
    "nan_in_weightless": lambda s: s.switched_off and (_not_finite(s.p) or _not_finite(s.t)),
    "weightless_mean": _nothing_weighted,
    "weight_alignment": lambda s: s.w is not None and s.w.ndim < len(s.positions),
    "weight_shape": lambda s: s.w is not None and (not _aligned(s) or s.w.ndim != 1),
    "bool_weight": lambda s: s.w is not None and s.w.dtype.kind == "b",
    "negative_weight": lambda s: s.w is not None and bool((s.w < 0).any()),
    "infinite_weight": lambda s: s.w is not None and _not_finite(s.w),
}


def quirks_shown_by(spec: Loss, x: Input) -> set[str]:
    """The names of the quirks that may change the result for these tensors."""
    predicates, axis = _ALL | _ELEMENTS, None
    if isinstance(spec, Categorical):
        predicates = _ALL | _CLASSES
        axis = -1 if spec.axis is None else spec.axis
        if not -x.predictions.ndim <= axis < x.predictions.ndim:
            axis = -1
    if not x.predictions.ndim:
        axis = None
    tensors = _Tensors(spec, x.predictions, x.targets, x.sample_weight, axis)
    with np.errstate(all="ignore"):
        return {name for name, holds in predicates.items() if holds(tensors)}
