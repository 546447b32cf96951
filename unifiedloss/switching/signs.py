"""The signs by which rules that no spec can say are told from the tensors of a call."""

from __future__ import annotations

import numpy as np

from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.spec import WITH_CLASSES, AnyLoss
from unifiedloss.switching.sides import Input


def signs(spec: AnyLoss, x: Input) -> set[str]:
    """The rules whose signs are in these tensors: what each of them is about is there."""
    p, t = x.predictions, x.targets
    dense = t.shape == p.shape
    held = {
        "half_rounding": p.dtype.name in HALF_TYPES,
        "float64": p.dtype == np.float64,
        "float64_elements": p.dtype == np.float64,
        "infinite_logit": bool(np.isinf(p).any()),
        "plus_infinity": bool(np.isposinf(p).any()),
        "zero_times_infinity": bool(np.isneginf(p).any()) and dense,
        "offset": bool(np.nanmax(np.abs(p), initial=0.0) > _LARGE),
        "target_kind": dense and t.dtype.kind in "iub",
        "label_dtype": not dense and t.dtype.kind == "f",
        "target_range": bool(dense and ((t < 0) | (t > 1)).any()),
        "probability_range": bool(((p < 0) | (p > 1)).any()),
        "shapes": not dense,
        "one_axis": p.ndim == 1,
        "weight_alignment": x.sample_weight is not None and x.sample_weight.ndim < p.ndim - 1,
        "empty_batch": not p.size,
        "no_elements": not p.size,
        "nan_in_weightless": bool(np.isnan(p).any()),
        "nan_probability": bool(np.isnan(p).any()),
        "subnormal": bool(((p > 0) & (p < FORMATS["float32"].tiny)).any()),
        "half_mean": p.dtype.name in HALF_TYPES,
        "dense_range": bool(dense and t.dtype.kind == "f" and (t < 0).any()),
        "one_example": p.ndim == 1,
        "weightless_mean": True,
        "nan_in_ignored": bool(np.isnan(p).any()),
    }
    if isinstance(spec, WITH_CLASSES):
        axis = -1 if spec.axis is None else spec.axis
        k = p.shape[axis] if -p.ndim <= axis < p.ndim else 0
        held["target_sum"] = bool(dense and np.any(np.abs(t.sum(axis=axis) - 1.0) > _UNNORMALIZED)) if k else False
        labels = not dense and t.dtype.kind in "iu"
        ignored = np.isin(t, np.asarray(spec.ignore_index or (), np.int64)) if labels else False
        held["bad_index"] = bool(labels and (((t < 0) | (t >= k)) & ~ignored).any())
        held["label_shape"] = labels and t.size < p.size // max(k, 1)
        held["label_column"] = labels and t.ndim == p.ndim
    return {name for name, is_held in held.items() if is_held}


_LARGE, _UNNORMALIZED = 1e3, 1e-3
