"""The results of a run of the suite, and their JSON form."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from unifiedloss.errors import SerializationError
from unifiedloss.notebook import Shown
from unifiedloss.text import quoted, shortened

VERSION = 1
"""The version that `Report.to_dict` writes."""


@dataclass
class Tally:
    """Counts of cases and comparisons, and the largest distances from the oracle.

    Distances are in ulps of the magnitude (see `tolerances`).

    Attributes:
        cases: the number of cases run, including the calls that must fail.
        comparisons: the number of results compared with their expected values.
        failed: the number of cases that failed.
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
    """A case that failed.

    Attributes:
        case: the case's name.
        loss: the loss's name.
        what: descriptions of what differed.
        snippet: Python code that reproduces the failure when pasted.
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
        version: the framework's version; for Keras also that of the framework below it.
        mode: "eager", "jit", ...
        total: the tally of all cases.
        losses: the tally of each loss, by its name.
        not_held: the number of cases whose dtype the backend lacks, by the reason.
        left_out: the number of cases that only other rows run. Compiled modes run a part of the
            cases of eager mode, because each case takes a compilation; "jax (x64)" runs only the
            cases with float64 numbers.
        failures: the cases that failed.
        programs: the number of compiled programs; several cases may share one.
        seconds: the wall-clock time of the row.
        processor_seconds: the processor time of the row.
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
        """Whether something was compared and nothing failed."""
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
        """Build the row that `to_dict` described."""
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
            # Older reports lack both.
            programs=data.get("programs", 0),
            processor_seconds=data.get("processor_seconds", 0.0),
        )


def _tally_to_dict(tally: Tally) -> dict[str, Any]:
    return {name: plain(value) for name, value in vars(tally).items()}


def _tally_from_dict(data: Mapping[str, Any]) -> Tally:
    counts = {name: int(data[name]) for name in ("cases", "comparisons", "failed")}
    return Tally(
        **counts, value_ulps=float(data["value_ulps"]), gradient_ulps=float(data["gradient_ulps"])
    )


def plain(x: float) -> float | str:
    """Return a number for JSON, as a string if it is infinite or NaN, because JSON has neither.

    float() reads both forms.
    """
    return x if math.isfinite(x) else str(x)


@dataclass
class Report(Shown):
    """The results of a run of the suite, row by row.

    Attributes:
        rows: one per backend and mode.
        errors: backends that could not be checked to the end, with the reason; each is a failure.
        absent: what was not checked, with what this machine lacks: backends that are not installed
            and were not requested by name, and modes ("torch, inductor").
        rounding: "native" or "exact".
        strength: how much was run: "full", "test" or "quick".
        seconds: the wall-clock time of the run.
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
        """Whether every backend was checked, every row compared something, and nothing failed."""
        return bool(self.rows) and all(row.ok for row in self.rows) and not self.errors

    @property
    def comparisons(self) -> int:
        """The number of results compared in all rows."""
        return sum(row.total.comparisons for row in self.rows)

    @property
    def failures(self) -> list[tuple[Row, Failure]]:
        """Every failure with the row it belongs to."""
        return [(row, failure) for row in self.rows for failure in row.failures]

    def summary(self) -> str:
        """Summarize the run in a few lines: every failure, and how much was compared."""
        lines = [f"{name} was not checked to the end: {why}" for name, why in self.errors.items()]
        lines += [
            f"{row.backend}, {row.mode}: nothing was compared"
            for row in self.rows
            if not row.total.comparisons
        ]
        for row, failure in self.failures:
            lines.append(
                f"{row.backend}, {row.mode}, {failure.case}: {'; '.join(failure.what)}\n"
                f"{failure.snippet}"
            )
        if not self.rows and not self.errors:
            lines.append("no backend was checked")
        verdict = "nothing differs" if self.ok else f"{len(self.failures)} cases failed"
        lines.append(f"{self.comparisons} comparisons in {len(self.rows)} rows: {verdict}.")
        return "\n".join(lines)

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
    def from_dict(cls, data: Mapping[str, Any] | Any) -> Self:
        """Build the report that `to_dict` described.

        Raises:
            SerializationError: the data are not a report, or a report of a later version.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            msg = (
                f"The key 'version' must be an int from 1 to {VERSION}, got {quoted(version)}: "
                "this is not a report, or a later unifiedloss wrote it."
            )
            raise SerializationError(msg)
        try:
            return cls(
                rows=[Row.from_dict(row) for row in data["rows"]],
                errors=data["errors"],
                absent=data["absent"],
                rounding=data["rounding"],
                strength=data.get("strength", "full"),
                seconds=data["seconds"],
                unifiedloss=data["unifiedloss"],
                python=data["python"],
                machine=data["machine"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"{type(error).__name__}: {shortened(str(error))}"
            msg = f"The dictionary is not a report: {why}."
            raise SerializationError(msg) from error

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)
