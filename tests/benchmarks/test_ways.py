"""Test the table of all ways to call a loss, and that the page says what "auto" takes."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import calls, ways

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def test_page_says_what_auto_takes() -> None:
    """A number in italics is a call that "auto" makes native, and the others are exact."""
    text = PAGE.read_text(encoding="utf-8").partition(ways.BEGIN)[2].partition(ways.END)[0]
    head, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    titles = [cell.strip() for cell in head.strip("|").split("|")][1:]
    columns = {title: column for column, (title, _, _) in ways.COLUMNS.items()}
    assert list(columns) == titles
    assert len(lines) == len(ways.WAYS)
    measured = 0
    for line, way in zip(lines, ways.WAYS, strict=True):
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert name == way.name
        for title, cell in zip(titles, cells, strict=True):
            if cell not in ("", "refused"):
                rounding = ways.chosen(columns[title], way)
                assert cell.startswith("*") == (rounding == "native"), (title, name)
                measured += 1
    assert measured > 200


def test_every_derivative_has_a_call() -> None:
    """A row without a call in any framework would be empty."""
    for way in ways.WAYS:
        assert any(hasattr(caller, way.derivative) for caller in calls.CALLERS.values())
