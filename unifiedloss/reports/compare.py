"""The page of `unifiedloss compare`: one loss in several backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unifiedloss.conformance.compare import Line, Truth
from unifiedloss.reports import about
from unifiedloss.reports.files import Data
from unifiedloss.reports.model import Bars, Column, Content, Page, Section, Table, Text
from unifiedloss.spec import Loss


def compare_page(
    spec: Loss,
    data: Data,
    truths: Mapping[str, Truth],
    lines: Sequence[Line],
    command: str | None = None,
) -> Page:
    """The page of a comparison.

    Args:
        spec: the loss.
        data: the arrays.
        truths: what the results were measured against, by rounding.
        lines: the results.
        command: the command that made it.
    """
    present = [line for line in lines if not line.absent]
    named = {name for line in present for name in about.named_in(line.backend)}
    facts = about.system() | about.versions({"numpy"} | named)
    facts["positions"] = about.counts(data.counts)
    facts["measured against"] = ", ".join(dict.fromkeys(x.source for x in truths.values()))
    facts["date"] = about.now()
    bad = [f"{line.backend}, {line.rounding or 'any rounding'}" for line in present
           if not line.within]  # fmt: skip
    if not present:
        verdict = "Nothing was compared."
    elif bad:
        verb = "does" if len(bad) == 1 else "do"
        verdict = f"{len(bad)} of {len(present)} results {verb} not hold: {'; '.join(bad)}."
    else:
        verdict = f"All {len(present)} results lie within the bound."
    sections = [
        Section("The loss", [Text(repr(spec), code=True)]),
        Section("The backends", _results(lines)),
        Section("What gave no result", _errors(lines)),
    ]
    return Page(
        title="Comparison of backends",
        verdict=verdict,
        good=bool(present) and not bad,
        about=facts,
        sections=[section for section in sections if section.content],
        arrays=data.arrays,
        no_hash=data.why_no_hash,
        command=command,
    )


def _results(lines: Sequence[Line]) -> list[Content]:
    found = [line for line in lines if line.error is None]
    if not found:
        return []
    columns = (
        Column("backend"),
        Column("rounding"),
        Column("value"),
        Column("ulps", ".3g"),
        Column("gradient, % equal", ".2f"),
        Column("gradient, ulps", ".3g"),
        Column("within the bound"),
        Column("ms", ".3g"),
    )
    table = Table(
        columns,
        tuple(
            (
                line.backend, line.rounding, line.value, line.value_ulps,
                100 * line.gradient_equal, line.gradient_ulps, "yes" if line.within else "NO",
                line.milliseconds,
            )
            for line in found
        ),
    )  # fmt: skip
    return [table, *_picture(found)]


def _picture(found: list[Line]) -> list[Content]:
    note = (
        "The loss in ulps of the loss, and the farthest element of the gradient in ulps of its "
        "magnitude."
    )
    exact = [line for line in found if line.rounding == "exact"]
    drawn = found
    if exact and not any(line.value_ulps or line.gradient_ulps for line in exact):
        drawn = [line for line in found if line.rounding != "exact"]
        note += " All exact results are the truth, and are not drawn."
    if not drawn:
        return []
    return [
        Bars(
            "How far the results lie from the truth",
            note,
            tuple(f"{line.backend}, {line.rounding}" for line in drawn),
            {
                "loss": tuple(line.value_ulps for line in drawn),
                "gradient": tuple(line.gradient_ulps for line in drawn),
            },
            "ulps",
            log=True,
        )
    ]


def _errors(lines: Sequence[Line]) -> list[Content]:
    return [
        Text(
            f"{line.backend if line.rounding is None else f'{line.backend}, {line.rounding}'}: "
            f"{line.error}"
        )
        for line in lines
        if line.error is not None
    ]
