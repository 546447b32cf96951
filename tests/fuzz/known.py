"""Calls that a backend does not take, and known faults; the fuzz leaves them out."""

from __future__ import annotations

import numpy as np

from tests.fuzz.calls import Call


def fault(backend: str, call: Call, *, wide: bool = False) -> str | None:
    """The known fault that a call meets; None for no fault."""
    if "jax" in backend and not wide and getattr(call.spec, "dtype", None) == "float64":
        return "JAX computes in float64 only with x64"
    if _has_infinite_weights(call):
        return "the result of a weight that is infinite in the compute dtype is not promised"
    return None


def _has_infinite_weights(call: Call) -> bool:
    """Whether a sample weight overflows, beside element weights that may be 0 (rules.md)."""
    weight = call.sample_weight
    if weight is None or getattr(call.spec, "element_weights", None) is None:
        return False
    with np.errstate(over="ignore"):
        read = np.asarray(weight, np.float64).astype(np.float32)
    return bool(np.isinf(read).any())
