"""The page of `unifiedloss evaluate`: a loss over files."""

from __future__ import annotations

import math

from unifiedloss.described import Described
from unifiedloss.evaluation import Evaluation, Summary
from unifiedloss.evaluation.sums import Counts
from unifiedloss.reports import about
from unifiedloss.reports.files import Data
from unifiedloss.reports.model import Bars, Cell, Column, Content, Page, Section, Table, Text

_GROUPS = 500
"""The groups that the table shows."""
_BARS = 30
"""The groups that the picture shows."""


def evaluate_page(found: Evaluation, data: Data | None = None, command: str | None = None) -> Page:
    """The page of an evaluation.

    Args:
        found: the result.
        data: the arrays with their hashes; without it the page has their shapes and dtypes.
        command: the command that made it.
    """
    total = found.total
    facts = about.system() | about.versions({"numpy"})
    facts["positions"] = about.counts(Counts(total.positions, total.dropped))
    facts["time"] = f"{found.seconds:.3g} s"
    facts["date"] = about.now()
    if data is None:
        arrays = [
            Described(name, tuple(n or 0 for n in each.shape or ()), str(each.dtype), None)
            for name, each in found.arrays.items()
        ]
        data = Data(tuple(arrays), None, "not computed")
    sections = [
        Section("The loss", [Text(repr(found.spec), code=True), _totals(total)]),
        Section("By group", _groups(found)),
    ]
    return Page(
        title="Evaluation",
        verdict=_verdict(total),
        good=False if total.bad else None if math.isnan(total.loss) else True,
        about=facts,
        sections=[section for section in sections if section.content],
        arrays=data.arrays,
        no_hash=data.why_no_hash,
        command=command,
    )


def _verdict(total: Summary) -> str:
    if total.bad:
        values = "1 value is bad" if total.bad == 1 else f"{total.bad:,} values are bad"
        return f"There is no loss, because {values}. The first: {total.first_bad}"
    counted = total.positions - total.dropped
    return f"The loss is {total.loss:.9g} over {counted:,} positions, and no value is bad."


_COLUMNS = (
    Column("loss"),
    Column("perplexity"),
    Column("divisor"),
    Column("positions"),
    Column("dropped"),
    Column("bad"),
)


def _cells(each: Summary) -> tuple[Cell, ...]:
    return (each.loss, each.perplexity, each.divisor, each.positions, each.dropped, each.bad)


def _totals(total: Summary) -> Table:
    rows = zip((column.name for column in _COLUMNS), _cells(total), strict=True)
    return Table(
        (Column("what"), Column("number")), tuple(row for row in rows if row[1] is not None)
    )


def _groups(found: Evaluation) -> list[Content]:
    if not found.groups:
        return []
    groups = [(str(key), each) for key, each in found.groups.items()]
    table = Table(
        (Column("group"), *_COLUMNS),
        tuple((key, *_cells(each)) for key, each in groups[:_GROUPS]),
        more=max(0, len(groups) - _GROUPS),
    )
    mean = Text(f"The mean of the groups' losses is {found.mean_of_groups:.9g}.")
    finite = [(key, each) for key, each in groups if math.isfinite(each.loss)]
    if not finite:
        return [table, mean]
    highest = sorted(finite, key=lambda group: -group[1].loss)[:_BARS]
    note = "The line is the loss of all."
    if len(highest) < len(groups):
        note = f"The {len(highest)} groups with the highest loss, of {len(groups):,}. {note}"
    total = found.total.loss
    picture = Bars(
        "The loss of each group",
        note,
        tuple(key for key, _ in highest),
        {"loss": tuple(each.loss for _, each in highest)},
        "loss",
        total if math.isfinite(total) else None,
        "all",
    )
    return [picture, table, mean]
