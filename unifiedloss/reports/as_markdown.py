"""Write a page as Markdown, as forges and issue trackers show it; it has no pictures."""

from __future__ import annotations

import re

from unifiedloss.reports.model import (
    Cell,
    Column,
    Content,
    Histogram,
    Page,
    Picture,
    Table,
    Text,
    clean,
)

_AT_START = re.compile(r"^(\s*)([#>+*-]|\d+[.)])")
_INSIDE = re.compile(r"([\\`*_\[\]|~$])")


def document(page: Page) -> str:
    """The page as Markdown."""
    facts = tuple((name, value) for name, value in page.about.items())
    parts = [
        f"# {escaped(page.title)}",
        f"**{page.mark} {escaped(page.verdict)}**",
        _table(Table((Column("about"), Column("")), facts)),
    ]
    if page.arrays is not None:
        parts.append(_table(page.arrays))
    if page.command is not None:
        parts.append(_fenced(page.command, "console"))
    for section in page.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [text for each in section.content if (text := _content(each))]
    return "\n\n".join(parts) + "\n"


def _content(content: Content) -> str:
    if isinstance(content, Text):
        return _fenced(content.text, "python") if content.code else escaped(content.text)
    if isinstance(content, Table):
        more = f"\n\n{content.more:,} more rows are left out." if content.more else ""
        return _table(content) + more
    if isinstance(content, Histogram):
        rows = tuple(zip(content.labels, content.counts, strict=True))
        return _table(Table((Column(content.x_label), Column("positions")), rows))
    assert isinstance(content, Picture)
    return ""  # its numbers stand in a table


def escaped(text: str) -> str:
    """Text in which no character is markup, in one line."""
    line = " ".join(clean(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _INSIDE.sub(r"\\\1", line)
    # No link and no mention of a user is made of a name.
    line = re.sub(r"(https?|www|@)(?=[:.\w])", lambda found: f"{found[1]}&#8203;", line)
    return _AT_START.sub(_escaped_start, line)


def _escaped_start(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2][:-1]}\\{found[2][-1]}"


def _fenced(code: str, language: str) -> str:
    """Code in a fence that is longer than any in it."""
    code = clean(code)
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _table(table: Table) -> str:
    header = [escaped(column.name) for column in table.columns]
    rows = [
        [_cell(column, cell) for column, cell in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]
    right = [table.numeric(number) for number in range(len(table.columns))]
    widths = [
        max(3, *(len(row[number]) for row in [header, *rows]))
        for number in range(len(table.columns))
    ]

    def line(cells: list[str]) -> str:
        placed = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(placed)} |"

    rule = ["-" * (width - 1) + (":" if to_right else "-")
            for width, to_right in zip(widths, right, strict=True)]  # fmt: skip
    return "\n".join([line(header), line(rule), *map(line, rows)])


def _cell(column: Column, cell: Cell) -> str:
    written = escaped(column.written(cell))
    if column.code and written:
        return f"<code>{written}</code>"
    return written
