"""The page of a run of the conformance suite."""

from __future__ import annotations

from unifiedloss.conformance import tolerances
from unifiedloss.conformance.report import Report
from unifiedloss.reports import about
from unifiedloss.reports.model import Bars, Column, Content, Page, Section, Table, Text


def conform_page(report: Report, command: str | None = None) -> Page:
    """The page of a report of the suite.

    Args:
        report: the report.
        command: the command that made it.
    """
    facts = {
        "unifiedloss": report.unifiedloss,
        "Python": report.python,
        "machine": report.machine,
        **{row.backend: row.version for row in report.rows},
        "rounding": report.rounding,
        "strength": report.strength,
        "comparisons": f"{report.comparisons:,}",
        "data": "made by the suite, from fixed seeds",
        "time": f"{report.seconds:.0f} s",
        "date": about.now(),
    }
    sections = [
        Section("The rows", _rows(report)),
        Section("What failed", _failures(report)),
        Section("What was not checked", _absent(report)),
    ]
    return Page(
        title="Conformance report",
        verdict=_verdict(report),
        good=report.ok,
        about=facts,
        sections=[section for section in sections if section.content],
        command=command,
    )


def _verdict(report: Report) -> str:
    rows = len(report.rows)
    if report.ok:
        return f"Nothing differs in {report.comparisons:,} comparisons ({_count(rows, 'row')})."
    failed = [f"{row.backend}, {row.mode}" for row in report.rows if not row.ok]
    said = []
    if failed or not report.errors:
        named = f": {'; '.join(failed)}" if failed else ""
        said.append(f"{len(failed)} of {_count(rows, 'row')} failed{named}")
    if report.errors:
        said.append(f"not checked to the end: {', '.join(report.errors)}")
    return f"{'; '.join(said)}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _rows(report: Report) -> list[Content]:
    if not report.rows:
        return []
    columns = (
        *map(Column, ("backend", "mode", "cases", "left out", "compared", "programs", "failed")),
        Column("value, ulps", ".2f"),
        Column("gradient, ulps", ".2f"),
        Column("seconds", ".0f"),
    )
    table = Table(
        columns,
        tuple(
            (
                row.backend, row.mode, row.total.cases, row.left_out, row.total.comparisons,
                row.programs, row.total.failed, row.total.value_ulps, row.total.gradient_ulps,
                row.seconds,
            )
            for row in report.rows
        ),
    )  # fmt: skip
    exact = report.rounding == "exact"
    note = (
        "The largest distance from the oracle. Every bit must be right."
        if exact
        else "The largest distance from the oracle, in ulps of the magnitude. The line is the "
        "smallest limit of any case; a case of many terms has a larger one."
    )
    picture = Bars(
        "How far the results lie from the oracle",
        note,
        tuple(f"{row.backend}, {row.mode}" for row in report.rows),
        {
            "value": tuple(float(row.total.value_ulps) for row in report.rows),
            "gradient": tuple(float(row.total.gradient_ulps) for row in report.rows),
        },
        "ulps",
        None if exact else float(tolerances.LEAST),
        "limit",
    )
    return [table, picture]


def _failures(report: Report) -> list[Content]:
    content: list[Content] = [
        Text(f"{name} was not checked to the end: {why}") for name, why in report.errors.items()
    ]
    content += [
        Text(f"{row.backend}, {row.mode}: nothing was compared.")
        for row in report.rows
        if not row.total.comparisons
    ]
    for row, failure in report.failures:
        said = "; ".join(failure.what)
        content.append(Text(f"{row.backend}, {row.mode}, {failure.case}: {said}"))
        content.append(Text(failure.snippet, code=True))
    return content


def _absent(report: Report) -> list[Content]:
    content: list[Content] = [Text(f"{name}: {why}.") for name, why in report.absent.items()]
    content += [
        Text(f"{row.backend}, {row.mode}: {_count(cases, 'case')} not run: {reason}")
        for row in report.rows
        for reason, cases in row.not_held.items()
    ]
    return content
