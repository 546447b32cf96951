"""Faults that are known and not mended yet; calls that meet them are left out."""

from __future__ import annotations

import numpy as np

from tests.fuzz.calls import Call
from unifiedloss.conformance.tolerances import plan_of
from unifiedloss.errors import UnifiedLossError
from unifiedloss.floats import FORMATS


def fault(backend: str, mode: str, call: Call, *, wide: bool = False) -> str | None:
    """The known fault that a call meets; None for no fault."""
    if "jax" in backend and not wide and getattr(call.spec, "dtype", None) == "float64":
        return "JAX computes in float64 only with x64"
    try:
        plan = plan_of(call)
    except UnifiedLossError:
        return None
    exact = plan.exact
    below = "numpy" not in backend and "jax" not in backend
    upstream = call.upstream
    if exact and below and upstream is not None and upstream.dtype.name != plan.result_dtype:
        return "exact: the upstream gradient is rounded to the loss's dtype"
    weight = None
    if call.sample_weight is not None:
        weight = call.sample_weight.astype(np.float64)
    if exact and weight is not None and np.isnan(weight).any() and plan.class_weights is not None:
        return "exact: a NaN weight is hidden by a class weight of 0"
    if plan.element_weights is not None and weight is not None:
        tiny = FORMATS["float32"].tiny
        if ((np.abs(weight) < tiny) & (weight != 0)).any() or np.max(plan.element_weights) > 1e30:
            return "a subnormal sample weight beside element_weights"
    if exact and mode == "xla" and not np.isfinite(call.predictions.astype(np.float64)).all():
        return "exact: special values in XLA"
    if plan.average_last_axis and not np.isfinite(call.targets.astype(np.float64)).all():
        return "a row averaged over its last axis with a bad element"
    if plan.average_last_axis and not np.isfinite(call.predictions.astype(np.float64)).all():
        return "a row averaged over its last axis with a bad element"
    return None
