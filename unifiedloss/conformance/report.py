"""What a run of the suite found."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from unifiedloss.errors import SerializationError

VERSION = 1
"""The version `Report.to_dict` writes."""


@dataclass
class Tally:
    """What was done, and the largest distances from the oracle, in ulps of the magnitude (see `tolerances`).

    Attributes:
        cases: how many cases were run, calls that must fail included.
        comparisons: how many results were compared with what they should be.
        failed: how many of the cases failed.
        value_ulps: the largest distance of a loss.
        gradient_ulps: the largest distance of a gradient's element.
    """

    cases: int = 0
    comparisons: int = 0
    failed: int = 0
    value_ulps: float = 0.0
    gradient_ulps: float = 0.0

    def add(
        self, comparisons: int, *, failed: bool, value_ulps: float, gradient_ulps: float
    ) -> None:
        """Count one case."""
        self.cases += 1
        self.comparisons += comparisons
        self.failed += failed
        self.value_ulps = max(self.value_ulps, value_ulps)
        self.gradient_ulps = max(self.gradient_ulps, gradient_ulps)


@dataclass(frozen=True)
class Failure:
    """A case that did not come out as it should.

    Attributes:
        case: its name.
        loss: the loss's name.
        what: what differed, in words.
        snippet: Python code to paste, which shows it.
    """

    case: str
    loss: str
    what: tuple[str, ...]
    snippet: str


@dataclass
class Row:
    """One backend in one mode.

    Attributes:
        backend: "torch", "keras (jax)", "jax (x64)".
        version: of the framework; of both for Keras.
        mode: "eager", "jit", ...
        total: all that was done.
        losses: the same by the loss's name.
        not_held: how many cases the backend has no dtype for, by the reason.
        left_out: how many cases are left to another row: compiled modes run a part of what eager mode runs, as each case takes a
            compilation, and "jax (x64)" only what has float64 numbers in it.
        failures: the cases that failed.
        programs: how many programs were compiled; several cases may share one.
        seconds: how long it took.
        processor_seconds: how much of a processor's time it took.
    """

    backend: str
    version: str
    mode: str
    total: Tally = field(default_factory=Tally)
    losses: dict[str, Tally] = field(default_factory=dict)
    not_held: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    failures: list[Failure] = field(default_factory=list)
    programs: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether something was compared and all of it was right."""
        return bool(self.total.comparisons) and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "backend": self.backend,
            "version": self.version,
            "mode": self.mode,
            **_tally_to_dict(self.total),
            "not_held": self.not_held,
            "left_out": self.left_out,
            "programs": self.programs,
            "seconds": round(self.seconds, 3),
            "processor_seconds": round(self.processor_seconds, 3),
            "losses": {name: _tally_to_dict(tally) for name, tally in self.losses.items()},
            "failures": [vars(failure) | {"what": list(failure.what)} for failure in self.failures],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The row that `to_dict` described."""
        return cls(
            backend=data["backend"],
            version=data["version"],
            mode=data["mode"],
            total=_tally_from_dict(data),
            losses={name: _tally_from_dict(tally) for name, tally in data["losses"].items()},
            not_held=dict(data["not_held"]),
            left_out=data["left_out"],
            failures=[
                Failure(x["case"], x["loss"], tuple(x["what"]), x["snippet"])
                for x in data["failures"]
            ],
            seconds=data["seconds"],
            # Reports from before they were counted have neither.
            programs=data.get("programs", 0),
            processor_seconds=data.get("processor_seconds", 0.0),
        )


def _tally_to_dict(tally: Tally) -> dict[str, Any]:
    return {name: _plain(value) for name, value in vars(tally).items()}


def _tally_from_dict(data: Mapping[str, Any]) -> Tally:
    counts = {name: int(data[name]) for name in ("cases", "comparisons", "failed")}
    return Tally(
        **counts, value_ulps=float(data["value_ulps"]), gradient_ulps=float(data["gradient_ulps"])
    )


def _plain(x: float) -> float | str:
    """A number for JSON, which has no infinity and no NaN; float() reads both ways of writing it."""
    return x if math.isfinite(x) else str(x)


@dataclass
class Report:
    """What a run of the suite found, row by row.

    Attributes:
        rows: one per backend and mode.
        errors: backends that could not be checked to the end, and why; each is a failure.
        absent: backends that are not installed and were not asked for by name, and what is missing.
        rounding: "native" or "exact".
        strength: how much was run: "full", "test" or "quick".
        seconds: how long the run took.
        unifiedloss: the version of this library.
        python: the version of Python.
        machine: the machine's system and processor.
    """

    rows: list[Row] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rounding: str = "native"
    strength: str = "full"
    seconds: float = 0.0
    unifiedloss: str = ""
    python: str = field(default_factory=platform.python_version)
    machine: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")

    @property
    def ok(self) -> bool:
        """Whether every backend was checked, every row compared something, and nothing was wrong."""
        return bool(self.rows) and all(row.ok for row in self.rows) and not self.errors

    @property
    def comparisons(self) -> int:
        """How many results were compared in all."""
        return sum(row.total.comparisons for row in self.rows)

    @property
    def failures(self) -> list[tuple[Row, Failure]]:
        """Every failure with the row it belongs to."""
        return [(row, failure) for row in self.rows for failure in row.failures]

    def summary(self) -> str:
        """The run in a few lines: what failed, or how much was compared."""
        lines = [f"{name} was not checked to the end: {why}" for name, why in self.errors.items()]
        lines += [
            f"{row.backend}, {row.mode}: nothing was compared"
            for row in self.rows
            if not row.total.comparisons
        ]
        for row, failure in self.failures:
            lines.append(
                f"{row.backend}, {row.mode}, {failure.case}: {'; '.join(failure.what)}\n{failure.snippet}"
            )
        if not self.rows and not self.errors:
            lines.append("no backend was checked")
        found = "nothing differs" if self.ok else f"{len(self.failures)} cases failed"
        return "\n".join(
            [*lines, f"{self.comparisons} comparisons in {len(self.rows)} rows: {found}."]
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, with a version."""
        return {
            "version": VERSION,
            "ok": self.ok,
            "unifiedloss": self.unifiedloss,
            "python": self.python,
            "machine": self.machine,
            "rounding": self.rounding,
            "strength": self.strength,
            "seconds": round(self.seconds, 3),
            "rows": [row.to_dict() for row in self.rows],
            "errors": self.errors,
            "absent": self.absent,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The report that `to_dict` described.

        Raises:
            SerializationError: it is no report, or one of a later version.
        """
        version = data.get("version")
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            msg = f"The key 'version' must be an int from 1 to {VERSION}, got {version!r}: no report, or one of a later unifiedloss."
            raise SerializationError(msg)
        try:
            return cls(
                rows=[Row.from_dict(row) for row in data["rows"]],
                strength=data.get("strength", "full"),
                **{
                    name: data[name]
                    for name in (
                        "errors",
                        "absent",
                        "rounding",
                        "seconds",
                        "unifiedloss",
                        "python",
                        "machine",
                    )
                },
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = f"The dictionary is no report: {type(error).__name__}: {error}."
            raise SerializationError(msg) from error

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)
