"""The first tier: float64, with a bound derived by hand."""

from __future__ import annotations

from typing import Any


def carry_out(call: Any, todo: Any, losses: Any, slopes: Any, scale: Any, dtype: str) -> Any:
    """Round what float64 decides, and say which positions are left."""
    return todo
