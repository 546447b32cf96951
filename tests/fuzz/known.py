"""Calls that a backend does not take, and known faults; the fuzz leaves them out."""

from __future__ import annotations

from tests.fuzz.calls import Call


def fault(backend: str, call: Call, *, wide: bool = False) -> str | None:
    """The known fault that a call meets; None for no fault."""
    if "jax" in backend and not wide and getattr(call.spec, "dtype", None) == "float64":
        return "JAX computes in float64 only with x64"
    return None
