"""The goals of the measured rows: what must hold, and what is aimed at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.benchmarks.pairs import BOTH, FORWARD, LARGE, SMALL, WIDE

Row = dict[str, Any]

IMPORT_MUST, IMPORT_AIM = 15e-3, 5e-3


@dataclass(frozen=True)
class Goal:
    """The goal of a row: a limit that must hold, and a better one to aim at; None for no limit.

    Attributes:
        quantity: "ratio" of our time to the other, "extra" seconds that our call takes, "ours" for
            all seconds of our call, or "import" seconds of the import.
        must: the limit that must hold.
        aim: the limit to aim at.
    """

    quantity: str
    must: float | None
    aim: float | None

    def verdict(self, row: Row) -> str:
        """The verdict on a row: "aim", "must" or "short"; "" if nothing must hold."""
        value = row[self.quantity]
        if self.aim is not None and value <= self.aim:
            return "aim"
        if self.must is not None and value > self.must:
            return "short"
        return "" if self.must is None else "must"


def _ratio(must: float, aim: float) -> Goal:
    return Goal("ratio", must, aim)


def _extra(must: float, aim: float) -> Goal:
    """Microseconds more than the other call."""
    return Goal("extra", must * 1e-6, aim * 1e-6)


def _in_all(must: float, aim: float) -> Goal:
    """Microseconds of our call."""
    return Goal("ours", must * 1e-6, aim * 1e-6)


Limits = dict[tuple[tuple[int, int], str], Goal]

_NUMPY_SMALL: Limits = {(SMALL, FORWARD): _in_all(20, 10), (SMALL, BOTH): _in_all(30, 14)}

_NATIVE_NUMPY: Limits = {
    **_NUMPY_SMALL,
    (LARGE, FORWARD): _ratio(0.5, 0.35),
    (LARGE, BOTH): _ratio(0.4, 0.25),
    (WIDE, FORWARD): _ratio(0.3, 0.2),
    (WIDE, BOTH): _ratio(0.25, 0.15),
}
"""NumPy's native cross-entropy against PyTorch."""

EXACT: dict[tuple[str, str, str], Limits] = {
    ("torch", "eager", "cross-entropy, exact"): {
        (SMALL, FORWARD): _extra(10, 3),
        (SMALL, BOTH): _extra(20, 8),
        (LARGE, FORWARD): _ratio(0.95, 0.75),
        (LARGE, BOTH): _ratio(0.7, 0.5),
        (WIDE, FORWARD): _ratio(0.6, 0.45),
        (WIDE, BOTH): _ratio(0.45, 0.3),
        **{
            (shape, work): limit
            for shape in ((4096, 10), (1024, 64))
            for work, limit in ((FORWARD, _ratio(1.2, 0.8)), (BOTH, _ratio(0.9, 0.7)))
        },
    },
    ("numpy", "eager", "cross-entropy, exact"): {
        **_NUMPY_SMALL,
        (LARGE, FORWARD): _ratio(0.95, 0.72),
        (LARGE, BOTH): _ratio(0.6, 0.45),
        (WIDE, FORWARD): _ratio(0.6, 0.45),
        (WIDE, BOTH): _ratio(0.4, 0.27),
    },
    ("tensorflow", "eager", "cross-entropy, exact"): {
        (SMALL, FORWARD): _ratio(1.0, 0.3),
        (SMALL, BOTH): _ratio(1.0, 0.6),
        (LARGE, FORWARD): _ratio(0.35, 0.22),
        (LARGE, BOTH): _ratio(0.4, 0.28),
        (WIDE, FORWARD): _ratio(0.3, 0.2),
        (WIDE, BOTH): _ratio(0.35, 0.22),
    },
    ("tensorflow", "function", "cross-entropy, exact"): {
        (SMALL, FORWARD): _extra(160, 110),
        (SMALL, BOTH): _extra(220, 150),
        (LARGE, FORWARD): _ratio(0.4, 0.25),
        (LARGE, BOTH): _ratio(0.5, 0.38),
        (WIDE, FORWARD): _ratio(0.3, 0.2),
        (WIDE, BOTH): _ratio(0.65, 0.5),
    },
    ("jax", "jit", "cross-entropy, exact"): {
        (SMALL, FORWARD): _ratio(1.0, 0.9),
        (SMALL, BOTH): _ratio(1.0, 0.9),
        (LARGE, FORWARD): _ratio(1.2, 1.0),
        (LARGE, BOTH): _ratio(1.3, 1.05),
        (WIDE, FORWARD): _ratio(1.2, 1.0),
        (WIDE, BOTH): _ratio(1.2, 1.0),
    },
    ("torch", "compiled", "cross-entropy, exact"): {
        (SMALL, FORWARD): _extra(80, 45),
        (SMALL, BOTH): _extra(100, 50),
        (LARGE, FORWARD): _ratio(1.3, 1.1),
        (LARGE, BOTH): _ratio(0.6, 0.45),
    },
    ("torch", "eager", "binary cross-entropy, exact"): {
        (SMALL, FORWARD): _extra(20, 8),
        (SMALL, BOTH): _extra(25, 10),
        (LARGE, FORWARD): _ratio(0.8, 0.55),
        (LARGE, BOTH): _ratio(0.75, 0.5),
    },
    ("torch", "eager", "squared error, exact"): {
        (SMALL, FORWARD): _extra(20, 8),
        (SMALL, BOTH): _extra(25, 10),
        (LARGE, FORWARD): _ratio(0.95, 0.75),
        (LARGE, BOTH): _ratio(0.8, 0.6),
    },
    **{
        ("torch", "eager", f"cross-entropy, exact, {variant}"): {
            (LARGE, BOTH): _ratio(1.1, 0.85),
            (WIDE, BOTH): _ratio(0.65, 0.5),
        }
        for variant in ("upstream 0.3", "none")
    },
    **{
        ("torch", "eager", f"cross-entropy, exact, {variant}"): {
            (LARGE, FORWARD): _ratio(1.5, 1.0),
            (LARGE, BOTH): _ratio(1.5, 1.0),
        }
        for variant in ("class weights", "ignored labels")
    },
    ("torch", "eager", "cross-entropy, exact, deviation 30"): {
        (LARGE, FORWARD): _ratio(1.2, 1.0),
        (LARGE, BOTH): _ratio(1.2, 1.0),
    },
    ("torch", "eager", "cross-entropy, exact, two threads"): {
        (LARGE, FORWARD): _ratio(1.1, 0.8),
        (LARGE, BOTH): _ratio(0.8, 0.5),
        (WIDE, FORWARD): _ratio(0.7, 0.5),
        (WIDE, BOTH): _ratio(0.5, 0.3),
    },
}
"""Exact mode, by framework, mode and loss. A row that is not here is only reported."""


def goal(row: Row) -> Goal | None:
    """The goal of a row; None if the row is only reported."""
    place = (tuple(row["shape"]), row["work"])
    if ", exact" in row["loss"]:
        key = (row["framework"].partition(",")[0], row["mode"], row["loss"])
        return EXACT.get(key, {}).get(place)
    if row["framework"] == "numpy":
        return _numpy_goal(row)
    if tuple(row["shape"]) == SMALL:
        return _extra(5, 2)
    return _ratio(1.05, 1.0)


def _numpy_goal(row: Row) -> Goal | None:
    """The goal in NumPy, which has no losses: beside a library, a formula, or PyTorch."""
    large = tuple(row["shape"]) != SMALL
    if row["against"] == "torch":
        if row["loss"] != "cross-entropy":
            return None
        return _NATIVE_NUMPY[tuple(row["shape"]), row["work"]]
    if row["loss"] == "cross-entropy" and large:
        return Goal("ratio", 1 / 1.5, None)
    return _ratio(1.05, 1.0) if large else _extra(5, 2)


def judged_by(row: Row) -> str:
    """The quantity that decides on a row: the extra time on a small batch, else the ratio.

    On a small batch the extra time does not grow with the work.
    """
    rule = goal(row)
    if rule is not None:
        return rule.quantity
    return "extra" if tuple(row["shape"]) == SMALL else "ratio"
