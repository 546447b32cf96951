"""What a report holds: a page of sections with texts, tables and pictures.

A page is built once. `as_html`, `as_markdown` and `as_json` write it. Numbers stay numbers here, so
that JSON has all their digits; a column says how people read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from unifiedloss.described import Described

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: its characters. Nothing in them is markup.
        code: whether it is code, whose lines stay as they are.
    """

    text: str
    code: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its title, and its key in JSON.
        digits: how a float is written, as a format specification.
        code: whether its cells are code, such as names and hashes.
    """

    name: str
    digits: str = ".9g"
    code: bool = False

    def written(self, cell: Cell) -> str:
        """A cell as people read it; None is empty."""
        if cell is None:
            return ""
        if isinstance(cell, float):
            return format(cell, self.digits) if math.isfinite(cell) else str(cell)
        return str(cell)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: its columns.
        rows: the cells of each row.
        more: how many rows were left out.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: int = 0

    def without_empty(self) -> Table:
        """The table without the columns in which no row has anything."""
        kept = [
            number
            for number in range(len(self.columns))
            if any(row[number] is not None for row in self.rows)
        ]
        columns = tuple(self.columns[number] for number in kept)
        return Table(columns, tuple(tuple(row[n] for n in kept) for row in self.rows), self.more)

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers, which stand right-aligned."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A picture; `plots` draws each kind.

    Attributes:
        title: what it shows.
        note: how to read it, and what was left out.
    """

    title: str
    note: str


@dataclass(frozen=True)
class Scatter(Picture):
    """Points, and the diagonal on which both numbers are equal."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Histogram(Picture):
    """Counts of distances in classes that double.

    Attributes:
        labels: the name of each class.
        counts: how many distances lie in it.
        limit: the place between two classes up to which a distance is rounding; None if unknown.
    """

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    x_label: str
    limit: int | None


@dataclass(frozen=True)
class Map(Picture):
    """Distances over the positions of a batch.

    Attributes:
        cells: the largest distance of each cell, row by row.
        limit: the largest distance that is rounding.
        x_label: the axis from left to right.
        y_label: the axis from top to bottom; empty for a strip.
        x_extent: the number of positions from left to right.
        y_extent: the number of positions from top to bottom.
    """

    cells: tuple[tuple[float, ...], ...]
    limit: float
    x_label: str
    y_label: str
    x_extent: int
    y_extent: int


@dataclass(frozen=True)
class Bars(Picture):
    """A bar for each name.

    Attributes:
        names: the names.
        values: for each series, by its name, one number for each name.
        x_label: what the numbers are.
        limit: where a line stands; None for no line.
        limit_label: what the line means.
        log: whether the axis is logarithmic; a bar of 0 is empty then.
    """

    names: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]
    x_label: str
    limit: float | None = None
    limit_label: str = ""
    log: bool = False


@dataclass(frozen=True)
class Lines(Picture):
    """Numbers over steps.

    Attributes:
        steps: for each curve, by its name, its steps.
        values: for each curve its numbers.
        y_label: what the numbers are.
        log: whether the axis is logarithmic.
    """

    steps: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[float, ...]]
    y_label: str
    log: bool = False


Content: TypeAlias = Text | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    content: Sequence[Content]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what was done.
        verdict: the result in one line.
        good: whether it is good; None if it is neither.
        about: what a reviewer asks first, by name.
        sections: the numbers.
        arrays: the data; empty where they are unknown.
        no_hash: why the data have no hash.
        command: the command that made it; None in Python.
    """

    title: str
    verdict: str
    good: bool | None
    about: Mapping[str, str]
    sections: Sequence[Section]
    arrays: tuple[Described, ...] = ()
    no_hash: str = ""
    command: str | None = None

    @property
    def data(self) -> Table:
        """The data as a table."""
        columns = (Column("array"), Column("shape"), Column("dtype"), Column("SHA-256", code=True))
        return Table(
            columns,
            tuple(
                (each.name, str(each.shape), each.dtype, each.sha256 or self.no_hash)
                for each in self.arrays
            ),
        )

    @property
    def mark(self) -> str:
        """The verdict as a sign, so that it does not depend on colours."""
        return "·" if self.good is None else "✓" if self.good else "✗"


def clean(text: str) -> str:
    """Text with characters that cannot be shown written as Python escapes them."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else _escaped(character)
        for character in text
    )


def brief(number: float) -> str:
    """A positive number in a few characters, as an axis has it: 16.4k, 1M, 1e-06."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= number < 1e15:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
