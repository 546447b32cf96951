"""The generated table of docs/conformance.md, and the speeds that README.md quotes."""

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


def test_speeds_of_the_readme() -> None:
    """README.md quotes the ratios of docs/performance.md."""
    root = tables.PAGE.parents[1]
    quoted = (root / "README.md").read_text(encoding="utf-8").split("| predictions |")[1]
    measured = (root / "docs/performance.md").read_text(encoding="utf-8")
    backends = ("PyTorch", "TensorFlow, function", "JAX, jit", "NumPy")
    for shape in ("(4096, 1000)", "(512, 32000)"):
        row = next(line for line in quoted.splitlines() if line.startswith(f"| {shape} |"))
        ratios = [cell.strip() for cell in row.split("|")[2:-1]]
        section = measured.split(f"### Predictions of shape {shape}")[1].split("###")[0]
        for backend, ratio in zip(backends, ratios, strict=True):
            line = next(
                x
                for x in section.splitlines()
                if x.startswith(f"| {backend} | cross-entropy, exact |")
            )
            with_gradient = line.split("|")[5].rpartition(":")[2].strip(" *")
            assert ratio == with_gradient, (shape, backend)
