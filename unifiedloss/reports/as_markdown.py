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

# An underscore within a word is no markup.
_MARKUP = re.compile(r"([\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_AT_START = re.compile(r"^(#{1,6}|[-+]|\d+[.)])(?=\s|$)|^[-=]+$")


def document(page: Page) -> str:
    """The page as Markdown."""
    facts = tuple((name, value) for name, value in page.about.items())
    parts = [
        f"# {escaped(page.title)}",
        f"**{page.mark} {escaped(page.verdict)}**",
        _table(Table((Column("about"), Column("")), facts)),
    ]
    if page.arrays:
        parts.append(_table(page.data))
    if page.command is not None:
        parts.append(_fenced(page.command, "console"))
    for section in page.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [text for each in section.content if (text := _content(each))]
    return "\n\n".join(parts) + "\n"


def _content(content: Content) -> str:
    if isinstance(content, Text):
        return _fenced(content.text, "python") if content.code else _paragraph(content.text)
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
    line = _MARKUP.sub(r"\\\1", line)
    # No link, and no mention of a user, is made of a name.
    return re.sub(r"(https?|www|@)(?=[:.\w])", r"\1&#8203;", line)


def _paragraph(text: str) -> str:
    """Text that begins no heading and no list."""
    return _AT_START.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", escaped(text))


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
    written = column.written(cell)
    if not (column.code and written):
        return escaped(written)
    # A bar ends a cell even in code.
    code = " ".join(clean(written).split()).replace("|", r"\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", code)), default=0) + 1)
    return f"{fence}{code}{fence}" if len(fence) == 1 else f"{fence} {code} {fence}"
