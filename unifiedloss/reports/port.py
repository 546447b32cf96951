"""The page of a `PortReport`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unifiedloss.interop.attempts import Attempt
from unifiedloss.interop.distance import distances
from unifiedloss.interop.report import PortReport
from unifiedloss.reports import about
from unifiedloss.reports.curves import curves as curves_of
from unifiedloss.reports.distances import pictures
from unifiedloss.reports.model import Bars, Cell, Column, Content, Page, Section, Table, Text


def port_page(
    report: PortReport,
    curves: Mapping[str, Sequence[float]] | None = None,
    command: str | None = None,
) -> Page:
    """The page of a port report.

    Args:
        report: the report.
        curves: the losses of trainings, step by step, by the name of each; see `curves`.
        command: the command that made the report.
    """
    named = about.named_in(f"{report.a} {report.b}")
    facts = about.system() | about.versions({"numpy"} | named)
    facts |= _counts(report)
    facts["date"] = about.now()
    sections = [
        Section("The two losses", _losses(report)),
        Section("The tensors of each", _layout(report)),
        Section("The distance", _distance(report)),
        Section("Position by position", _positions(report)),
        Section("Which rule closes the gap", _attempts(report)),
        Section("What each loss does", _rules(report)),
    ]
    if curves:
        sections.append(Section("The trainings", curves_of(curves)))
    return Page(
        title="Port report",
        verdict=report.verdict,
        good=report.same and report.value_a is not None,
        about=facts,
        sections=[section for section in sections if section.content],
        arrays=() if report.tensors is None else report.tensors.arrays,
        command=command,
    )


def _layout(report: PortReport) -> list[Content]:
    """How the tensors of the two losses differ, and what the second gives with its own."""
    content: list[Content] = [Text(sentence) for sentence in report.layout]
    if report.gap_own is not None:
        content.append(Text(f"With its own tensors b differs: {report.gap_own}."))
    return content


def _counts(report: PortReport) -> dict[str, str]:
    tensors = report.tensors
    if tensors is None:
        return {}
    a, b = about.counts(tensors.counts_a), about.counts(tensors.counts_b)
    return {"positions": a} if a == b else {"positions of a": a, "positions of b": b}


_RAN = {"native": "itself", "instead": "its spec, in its place", "spec": "the spec"}


def _losses(report: PortReport) -> list[Content]:
    columns = (
        Column("side"),
        Column("loss", code=True),
        Column("value", ""),
        Column("dtype"),
        Column("what ran"),
    )
    rows: list[tuple[Cell, ...]] = []
    for letter, name, value, error, ran in (
        ("a", report.a, report.value_a, report.error_a, report.ran_a),
        ("b", report.b, report.value_b, report.error_b, report.ran_b),
    ):
        shown: Cell = error
        if value is not None:
            shown = float(value.item()) if value.size == 1 else f"of shape {value.shape}"
        dtype = None if value is None else value.dtype.name
        rows.append((letter, name, _short(shown, dtype), dtype, _RAN.get(ran, ran)))
    said = [
        *(
            f"{letter} itself was not run: {reason}"
            for letter, reason in (("a", report.reason_a), ("b", report.reason_b))
            if reason is not None
        ),
        *report.layout,
        *(s for s in report.settings if s not in (report.reason_a, report.reason_b)),
        *report.converted,
        *report.hints,
    ]
    return [Table(columns, tuple(rows)), *map(Text, said)]


def _short(value: Cell, dtype: str | None) -> Cell:
    """The shortest decimals that give a value back in its dtype."""
    if isinstance(value, float) and dtype in ("float16", "float32"):
        return float(str(np.dtype(dtype).type(value)))
    return value


def _distance(report: PortReport) -> list[Content]:
    gap = report.gap
    if report.value_a is None or report.value_b is None:
        return [Text("There is no distance, because a loss is an error.")]
    columns = (
        Column("of the"),
        Column(f"distance in ulps of {gap.dtype}", ".4g"),
        Column("rounding, up to"),
        Column("verdict"),
    )
    rows: list[tuple[Cell, ...]] = [
        ("loss", gap.value, gap.limit, _verdict(within=gap.value <= gap.limit))
    ]
    if gap.gradient is not None:
        within = gap.gradient <= gap.gradient_limit
        rows.append(("gradient", gap.gradient, gap.gradient_limit, _verdict(within=within)))
    content: list[Content] = [Table(columns, tuple(rows))]
    if report.widened:
        content.append(
            Text(
                "In the half type of the predictions only rounding is left; this is of their "
                "specs in float32."
            )
        )
    if report.row is not None and report.losses_of_row is not None:
        first, second = report.losses_of_row
        content.append(
            Text(
                f"The first position that differs is {list(report.row)}: a gives {first:.9g}, and "
                f"b gives {second:.9g}."
            )
        )
    if report.unseen:
        content.append(
            Text(
                "The losses also differ in rules that these tensors do not show: "
                f"{', '.join(report.unseen)}."
            )
        )
    return content


def _verdict(*, within: bool) -> str:
    return "rounding" if within else "differs"


def _positions(report: PortReport) -> list[Content]:
    a, b = report.losses_a, report.losses_b
    if a is None or b is None:
        return [Text("The losses have no positions in common that could be compared.")]
    if report.gap.dtype is None:
        return []
    ulps = distances(a, b, report.gap.dtype)
    unit = f"ulps of {report.gap.dtype}"
    return list(pictures(a, b, ulps, report.gap.limit, unit))


def _attempts(report: PortReport) -> list[Content]:
    if report.gap.closed:
        return []
    content: list[Content] = []
    if report.untried is not None:
        content.append(Text(report.untried))
    elif report.together:
        together = ", ".join(report.together)
        content.append(Text(f"No single rule closes the gap; together these do: {together}."))
    elif not report.rules:
        content.append(Text("No rule closes the gap, and all of them together do not."))
    shown = _shown(report)
    if shown:
        content += [_table(shown), _bars(report, shown)]
    unseen = [each.rule for each in report.attempts if each not in shown]
    if unseen:
        content.append(
            Text(f"The losses differ in these rules too, and these tensors do not see it: "
                 f"{', '.join(unseen)}.")
        )  # fmt: skip
    return content


def _shown(report: PortReport) -> list[Attempt]:
    """The attempts with rules that the tensors see, those first that close the gap."""
    return sorted(report.seen, key=lambda each: (not each.gap.closed, each.gap.value))


def _table(shown: list[Attempt]) -> Table:
    columns = (
        Column("rule", code=True),
        Column("closes the gap"),
        Column("made the same", code=True),
        Column("loss before"),
        Column("loss after"),
        Column("gap left, loss", ".4g"),
        Column("gap left, gradient", ".4g"),
        Column("why"),
    )
    rows = tuple(
        (
            each.rule, "yes" if each.gap.closed else "no", each.change, _scalar(each.before),
            _scalar(each.after), each.gap.value, each.gap.gradient, each.reason,
        )
        for each in shown
    )  # fmt: skip
    return Table(columns, rows).without_empty()


def _rules(report: PortReport) -> list[Content]:
    """What each loss does, for the rules that were tried."""
    named = {name for each in _shown(report) for name in each.rule.split(", ")}
    rows = tuple((name, *texts) for name, texts in report.sentences.items() if name in named)
    return [Table((Column("rule", code=True), Column("a"), Column("b")), rows)] if rows else []


def _scalar(value: Any) -> float | None:
    if value is None or value.size != 1:
        return None
    return float(value.item())


def _bars(report: PortReport, shown: list[Attempt]) -> Bars:
    gaps = [report.gap, *(each.gap for each in shown)]
    series = {"loss": tuple(float(gap.value) for gap in gaps)}
    gradients = [gap.gradient for gap in gaps if gap.gradient is not None]
    if len(gradients) == len(gaps):
        series["gradient"] = tuple(map(float, gradients))
    unit = report.gap.dtype or next((gap.dtype for gap in gaps if gap.dtype), "float64")
    return Bars(
        "What each rule leaves of the gap",
        "The gap as it is, and the gap that is left when one rule is made the same in both.",
        ("as they are", *(f"the same {each.rule}" for each in shown)),
        series,
        f"distance in ulps of {unit}",
        float(report.gap.limit),
        "rounding",
        log=True,
    )
