"""Write the tables of docs/scoreboard.md: ``make scoreboard``.

Each loss of `tools.native_losses` runs on the conformance cases of the spec that it is read as. It
takes some minutes, most of them to start a process for each loss.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
import platform
import re
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.native_losses import LOSSES, NativeLoss
from tools.quirks import PACKAGES, version_of
from unifiedloss.conformance import OwnReport, check_loss
from unifiedloss.conformance.judgement import Judgement
from unifiedloss.conformance.own_report import ulps
from unifiedloss.conformance.workers import jax_cache

PAGE = Path(__file__).parent.parent / "docs" / "scoreboard.md"
BEGIN, END = "<!-- scoreboard: begin -->", "<!-- scoreboard: end -->"

SECONDS, SECONDS_IN_ALL = 120.0, 1800.0
"""For a case and for a loss. JAX compiles each operation for each shape."""

_MOST_DEEDS = 3


def versions() -> str:
    """The packages whose losses are run, with their versions."""
    return ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)


def rows() -> list[tuple[str, str]]:
    """The first two columns of the first table: each loss, and the backend that it runs on."""
    return [(loss.text, loss.backend) for loss in LOSSES]


def checked(loss: NativeLoss) -> OwnReport:
    """Run a loss on the cases of its spec."""
    return check_loss(
        loss,
        loss.spec,
        loss.backend,
        targets=loss.targets,
        seconds=SECONDS,
        seconds_in_all=SECONDS_IN_ALL,
    )


class Line(NamedTuple):
    """A line of a loss's table: a rule, and the differing cases that are counted for it.

    Attributes:
        rules: its id, and those of rules in which the same cases differ.
        cases: how many cases prove it.
        differ: how many differing cases are counted for it.
        deeds: what the loss does there, in words that are the same for all errors.
        message: the first error, as Markdown; empty if there is none.
        value_ulps: the largest distance of a loss in these cases; None if no loss differs.
        gradient_ulps: the same for gradients.
    """

    rules: tuple[str, ...]
    cases: int
    differ: int
    deeds: str
    message: str
    value_ulps: float | None
    gradient_ulps: float | None


def lines_of(report: OwnReport) -> list[Line]:
    """The rules in which a loss differs, so that each differing case is counted once.

    The rule comes next of which the largest part differs, and that has most differing cases left.
    Rules that every case proves say nothing. Cases that prove no other count for the loss's own.
    """
    proved: Counter[str] = Counter()
    for judgement in report.judgements:
        proved.update({*judgement.case.rules, *judgement.rules})
    own = report.spec.name.replace("_", "-")
    differing: dict[str, list[Judgement]] = {}
    for judgement in report.differing:
        some = [rule for rule in judgement.rules if proved[rule] < len(report.judgements)]
        for rule in some or [own]:
            differing.setdefault(rule, []).append(judgement)
    found = []
    left = list(report.differing)
    while left:
        remaining = {
            rule: [each for each in judgements if each in left]
            for rule, judgements in differing.items()
        }

        def weight(rule: str, remaining: dict[str, list[Judgement]] = remaining) -> float:
            return len(remaining[rule]) * len(differing[rule]) / proved[rule]

        best = max(sorted(remaining), key=weight)
        rules = [rule for rule in sorted(remaining) if differing[rule] == differing[best]]
        found.append(_line(tuple(rules), proved[best], remaining[best]))
        left = [each for each in left if each not in remaining[best]]
    return found


def _line(rules: tuple[str, ...], cases: int, judgements: list[Judgement]) -> Line:
    values = [each.value_ulps for each in judgements if each.value_differs and each.answer.value]
    gradients = [
        each.gradient_ulps for each in judgements if each.gradient_differs and each.answer.gradient
    ]
    deeds, message = _deeds(judgements)
    return Line(
        rules,
        cases,
        len(judgements),
        deeds,
        message,
        max(values, default=None),
        max(gradients, default=None),
    )


def _deeds(judgements: Sequence[Judgement]) -> tuple[str, str]:
    """What a loss does in these cases: the most frequent first, with the number of cases."""
    counted: Counter[str] = Counter()
    first = ""
    for judgement in judgements:
        found = dict(_deed(said) for said, _ in judgement.what)
        counted.update(found.keys())
        first = first or next((message for message in found.values() if message), "")
    parts = [f"{deed} ({number})" for deed, number in counted.most_common(_MOST_DEEDS)]
    more = len(counted) - _MOST_DEEDS
    return "; ".join([*parts, *([f"{more} more"] if more > 0 else [])]), first


_DIFFERENCE = re.compile(
    r"(?P<what>loss|gradient)(?: to the predictions)?(?:\[[^]]*\])? is (?P<got>[^,\s]+), "
    r"should be (?P<exact>[^,\s]+)"
)


def _deed(said: str) -> tuple[str, str]:
    """A difference without its numbers, and the message of an error for the first of its kind."""
    found = _DIFFERENCE.match(said)
    if found:
        got, exact = _word(found["got"]), _word(found["exact"])
        if got == exact:
            return f"another {found['what']}", ""
        return f"{found['what']} {got} in place of {exact}", ""
    raised = re.match(r"(?P<of>the gradient )?raised (?P<name>\w+):? ?(?P<message>.*)", said)
    if raised:
        text = f"{raised['name']}: {raised['message']}".removesuffix(": ")
        of = "an error of the gradient" if raised["of"] else "an error"
        return of, "`" + text.replace("`", "'").replace("|", "/") + "`"
    typed = re.search(r"has dtype (\w+), should be (\w+)", said)
    if typed:
        return f"{typed[1]} in place of {typed[2]}", ""
    shaped = re.search(r"has shape (\(.*?\)), should be (\(.*?\))$", said)
    if shaped:
        return f"the shape {shaped[1]} in place of {shaped[2]}", ""
    if ", below 0" in said:
        return "a loss below 0", ""
    return said, ""


def _word(number: str) -> str:
    if number == "nan":
        return "NaN"
    if number in ("inf", "-inf"):
        return number
    return "0" if float(number) == 0 else "a number"


def section(reports: Sequence[tuple[NativeLoss, OwnReport]], date: str) -> str:
    """The part of the page between its markers, as Markdown."""
    cases = sum(len(report.judgements) for _, report in reports)
    machine = f"{platform.system()} {platform.machine()}"
    head = (
        f"Measured on {date}, on {machine}, with Python {platform.python_version()}, "
        f"{versions()}: {len(reports)} losses, {cases:,} calls."
    )
    text = [
        *textwrap.wrap(head, 100, break_on_hyphens=False, break_long_words=False),
        "",
        "| loss | on | cases | differ | value ulps | gradient ulps |",
        "|---|---|---:|---:|---:|---:|",
        *(_summary(loss, report) for loss, report in reports),
        "",
    ]
    for name, group in itertools.groupby(reports, key=lambda each: each[0].text):
        text += _of_loss(name, list(group))
    return "\n".join(text).rstrip()


def _summary(loss: NativeLoss, report: OwnReport) -> str:
    fitting = [each for each in report.judgements if not each.what]
    value = max((each.value_ulps for each in fitting), default=0.0)
    gradient = max((each.gradient_ulps for each in fitting), default=0.0)
    measured = any(each.answer.gradient is not None for each in report.judgements)
    return (
        f"| `{loss.text}` | {loss.backend} | {len(report.judgements)} | {len(report.differing)} | "
        f"{ulps(value)} | {ulps(gradient) if measured else '-'} |"
    )


def _of_loss(name: str, reports: list[tuple[NativeLoss, OwnReport]]) -> list[str]:
    """The section of a loss: its specs, and its table by rules."""
    specs: dict[str, list[str]] = {}
    for loss, report in reports:
        specs.setdefault(report.spec.source(), []).append(loss.keras or loss.backend)
    alone = len(specs) == 1
    text = [f"### {name}", ""]
    for source, on in specs.items():
        where = "" if alone else f" on {_names(on)}"
        text += [f"Read as `{source}`{where}.", ""]
    for loss, _ in reports:
        if loss.refusal is not None:
            text += [f"On {loss.keras} no spec is the same: {loss.refusal}.", ""]
    grouped: dict[tuple[tuple[str, ...], int, int, str], list[tuple[str, Line]]] = {}
    for loss, report in reports:
        for line in lines_of(report):
            grouped.setdefault(line[:4], []).append((loss.keras or loss.backend, line))
    if not grouped:
        return [*text, "Nothing differs.", ""]
    several = len(reports) > 1
    on_head, on_line = (" on |", "---|") if several else ("", "")
    head = f"| rule |{on_head} cases | differ | what it does | value ulps | gradient ulps |"
    text += [head, f"|---|{on_line}---:|---:|---|---:|---:|"]
    for (rules, cases, differ, deeds), found in grouped.items():
        names = [on for on, _ in found]
        on = f" {'all' if len(names) == len(reports) else _names(names)} |" if several else ""
        message = next((line.message for _, line in found if line.message), "")
        ids = ", ".join(f"`{rule}`" for rule in rules)
        first = f"; first error{f' on {names[0]}' if several else ''}: {message}"
        does = f"{deeds}{first}" if message else deeds
        value, gradient = (
            _largest(getattr(line, name) for _, line in found)
            for name in ("value_ulps", "gradient_ulps")
        )
        text.append(f"| {ids} |{on} {cases} | {differ} | {does} | {value} | {gradient} |")
    return [*text, ""]


def _largest(distances: Iterable[float | None]) -> str:
    given = [each for each in distances if each is not None]
    return ulps(max(given)) if given else "-"


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


def with_section(text: str, new: str) -> str:
    """The page with this text between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not (begin and end):
        msg = f"{PAGE.name} needs the lines {BEGIN} and {END}."
        raise ValueError(msg)
    return f"{before}{begin}\n{new}\n\n{end}{after}"


def main() -> None:
    """Run every loss, and write the page."""
    reports = []
    with tempfile.TemporaryDirectory(prefix="unifiedloss-jax-") as folder:
        os.environ.update(jax_cache(Path(folder)))
        for loss in LOSSES:
            report = checked(loss)
            if report.not_run:
                sys.exit(f"{loss.text} on {loss.backend}: {report.verdict} The page is as it was.")
            print(f"{loss.text} on {loss.backend}: {report.verdict}", flush=True)
            reports.append((loss, report))
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_section(text, section(reports, today)), encoding="utf-8")


if __name__ == "__main__":
    main()
