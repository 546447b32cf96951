"""The generated table of docs/conformance.md, which ``make tables`` writes."""

from __future__ import annotations

import re

from tools import tables
from unifiedloss.conformance import run_roundings
from unifiedloss.owners import BUILT_IN


def test_table_of_conformance_is_generated() -> None:
    """The page Conformance has a row for each backend, and a run replaces the table as a whole."""
    text = tables.PAGE.read_text(encoding="utf-8")
    head, rows = text.split(tables.BEGIN)[1].split(tables.END)[0].split("|---|", 1)
    assert re.search(r"Measured on \d{4}-\d\d-\d\d", head)
    for backend in BUILT_IN:
        assert re.search(rf"^\| {backend}\b", rows, re.MULTILINE), backend
    reports = run_roundings(("native", "exact"), ["numpy"], ["huber"])
    new = tables.section(reports["native"], reports["exact"], "2026-01-02")
    replaced = tables.with_section(text, new)
    assert "Measured on 2026-01-02" in replaced
    assert rows not in replaced
    assert len(re.findall(r"^\| numpy", replaced, re.MULTILINE)) == 1
    assert replaced.partition(tables.BEGIN)[0] == text.partition(tables.BEGIN)[0]
    assert replaced.partition(tables.END)[2] == text.partition(tables.END)[2]
