"""The result of a check of somebody's loss function, as text and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from unifiedloss.conformance.judgement import Judgement, RuleCount, by_rule
from unifiedloss.conformance.nearest_field import Explanation, explanations
from unifiedloss.conformance.own_function import OwnFunction
from unifiedloss.conformance.report import plain
from unifiedloss.conformance.snippets import of_function
from unifiedloss.conformance.workers import Target
from unifiedloss.spec import Loss

VERSION = 1
"""The version that `OwnReport.to_dict` writes."""


@dataclass
class OwnReport:
    """How a loss function compares with the oracle of a spec.

    Attributes:
        function: the function.
        spec: what it claims to compute.
        target: the backend, in its environment.
        mode: the backend's mode.
        version: the framework's version.
        differentiates: whether gradients were compared.
        keywords: which of "sample_weight" and "mask" the function takes.
        judgements: the outcome of each case that was run.
        total: the number of cases that fit the spec.
        seconds: the wall-clock time.
        unifiedloss: the version of this library.
        stopped: why cases were not run.
    """

    function: OwnFunction
    spec: Loss
    target: Target
    mode: str
    version: str = ""
    differentiates: bool = True
    keywords: tuple[str, ...] = ()
    judgements: list[Judgement] = field(default_factory=list)
    total: int = 0
    seconds: float = 0.0
    unifiedloss: str = ""
    stopped: str = "no time was left"

    @property
    def ok(self) -> bool:
        """Whether every case was run, and nothing differs."""
        return bool(self.judgements) and not self.not_run and not self.differing

    @property
    def not_run(self) -> int:
        """The number of cases that were not run."""
        return self.total - len(self.judgements)

    @property
    def differing(self) -> list[Judgement]:
        """The cases in which the function differs."""
        return [judgement for judgement in self.judgements if judgement.what]

    @cached_property
    def rules(self) -> list[RuleCount]:
        """The counts of each rule; those come first in which the largest part differs."""
        return by_rule(self.judgements)

    @cached_property
    def explanations(self) -> list[Explanation]:
        """The changes of one field of the spec that explain most of what differs."""
        return explanations(self.spec, self.judgements)

    def snippet(self, judgement: Judgement) -> str:
        """Code to paste that runs a case."""
        return of_function(self.target, self.function.code, judgement.case, judgement.expected)

    def summary(self, *, most: int = 3) -> str:
        """What differs, rule by rule, and the first cases with code that reproduces them.

        Args:
            most: how many cases are described.
        """
        lines = [
            f"{self.function.name} on {self.target.label} {self.version}, {self.mode}",
            f"as {self.spec!r}",
            "",
        ]
        differing = [count for count in self.rules if count.differ]
        # What every case proves says nothing about where the function differs.
        some = [count for count in differing if count.cases < len(self.judgements)]
        if differing:
            lines += [*_table(some or differing), ""]
        for judgement in self._shown(most):
            lines.append(f"{judgement.case.name}:")
            lines += [f"  {said}" for said, _ in judgement.what]
            lines += ["", *(f"  {line}".rstrip() for line in self.snippet(judgement).splitlines())]
            lines.append("")
        lines += [f"With {_change(each)}" for each in self.explanations[:3]]
        if not self.differentiates:
            lines.append(f"{self.target.label} computes no gradients, so none was compared.")
        if self.not_run:
            lines.append(f"{self.not_run} of {self.total} cases were not run: {self.stopped}.")
        lines.append(self.verdict)
        return "\n".join(lines)

    def _shown(self, most: int) -> list[Judgement]:
        """The smallest differing case of each of the rules that come first."""
        chosen: dict[str, Judgement] = {}
        for count in self.rules:
            cases = [each for each in self.differing if count.rule in each.rules]
            if cases and len(chosen) < most:
                smallest = min(cases, key=lambda each: each.case.predictions.size)
                chosen.setdefault(smallest.case.name, smallest)
        return list(chosen.values())

    @property
    def verdict(self) -> str:
        """The last line of the summary."""
        cases, differ = len(self.judgements), len(self.differing)
        others = sum(not count.differ for count in self.rules)
        if not differ:
            said = "nothing differs" if self.judgements else "nothing was compared"
        else:
            said = f"{differ} {'differs' if differ == 1 else 'differ'}"
        rules = f"; in {others} other rules nothing does" if differ and others else ""
        return f"{cases} cases of {len(self.rules)} rules: {said}{rules}."

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, with a version."""
        return {
            "version": VERSION,
            "ok": self.ok,
            "unifiedloss": self.unifiedloss,
            "loss": self.function.name,
            "spec": self.spec.to_dict(),
            "backend": self.target.label,
            "backend_version": self.version,
            "mode": self.mode,
            "gradients": self.differentiates,
            "keywords": list(self.keywords),
            "cases": len(self.judgements),
            "differ": len(self.differing),
            "not_run": self.not_run,
            "seconds": round(self.seconds, 3),
            "rules": [
                {name: plain(x) if isinstance(x, float) else x for name, x in vars(count).items()}
                for count in self.rules
            ],
            "explanations": [each._asdict() for each in self.explanations],
            "failures": [
                {
                    "case": judgement.case.name,
                    "rules": list(judgement.rules),
                    "what": [said for said, _ in judgement.what],
                    "snippet": self.snippet(judgement),
                }
                for judgement in self.differing
            ],
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def _table(counts: list[RuleCount]) -> list[str]:
    """The rules that differ, as text of at most 80 columns."""
    head = ("rule", "cases", "differ", "value", "gradient", "value ulps", "grad ulps")
    rows = [
        (
            count.rule,
            *map(str, (count.cases, count.differ, count.value_differs, count.gradient_differs)),
            ulps(count.value_ulps) if count.value_differs else "",
            ulps(count.gradient_ulps) if count.gradient_differs else "",
        )
        for count in counts
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            x.rjust(width) if place else x.ljust(width)
            for place, (x, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def ulps(distance: float) -> str:
    """A distance with three digits; "inf" where a result is no number and should be one."""
    return "inf" if math.isinf(distance) else f"{distance:.3g}"


def _change(each: Explanation) -> str:
    return (
        f"{each.field}={each.value!r} in the spec, {each.explained} of {each.tried} differing "
        "cases fit."
    )
