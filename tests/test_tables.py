"""The generated tables of docs/conformance.md and docs/scoreboard.md, and README.md's speeds."""

from __future__ import annotations

import re

import pytest

from tests.rule_ids import rule_ids
from tools import scoreboard, tables
from tools.native_losses import LOSSES
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


@pytest.mark.framework("torch", "tensorflow", "keras", "jax")
def test_scoreboard_has_the_installed_versions_and_every_loss() -> None:
    """The page Scoreboard is of these versions, and has a row for each loss of the tool."""
    text = scoreboard.PAGE.read_text(encoding="utf-8")
    tables_of_page = text.split(scoreboard.BEGIN)[1].split(scoreboard.END)[0]
    assert re.search(r"Measured on \d{4}-\d\d-\d\d", tables_of_page)
    assert scoreboard.versions() in " ".join(tables_of_page.split()), "run `make scoreboard`"
    first = tables_of_page.partition("###")[0]
    found = re.findall(r"^\| `([^`]+)` \| ([a-z ()]+) \| \d+ \|", first, re.MULTILINE)
    assert found == scoreboard.rows(), "run `make scoreboard`"
    headings = re.findall("^### (.+)$", tables_of_page, re.MULTILINE)
    assert headings == list(dict.fromkeys(loss.text for loss in LOSSES))
    rules = re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    assert set(rules) <= rule_ids()


def test_scoreboard_is_made_from_runs() -> None:
    """Its part of the page says what a loss does, rule by rule; a run replaces it as a whole."""
    loss = next(each for each in LOSSES if each.text == "sklearn.metrics.log_loss")
    report = scoreboard.checked(loss)
    new = scoreboard.section([(loss, report)], "2026-01-02")
    cases, differ = len(report.judgements), len(report.differing)
    assert f"| `sklearn.metrics.log_loss` | numpy | {cases} | {differ} | " in new
    above = r"`probabilities-above-1` \| \d \| 2 \| an error \(2\); first error: `ValueError: y_p"
    assert re.search(above, new)
    assert re.search(r"`result-dtype` \| \d+ \| \d+ \| float64 in place of float32 \(", new)
    lines = scoreboard.lines_of(report)
    assert sum(line.differ for line in lines) == differ  # each case once
    assert all(0 < line.differ <= line.cases for line in lines)
    page = f"before\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\nafter\n"
    replaced = scoreboard.with_section(page, new)
    assert replaced.startswith(f"before\n{scoreboard.BEGIN}\n\nMeasured on 2026-01-02")
    assert replaced.endswith(f"|\n\n{scoreboard.END}\nafter\n")
    assert "old" not in replaced
    with pytest.raises(ValueError, match="needs the lines"):
        scoreboard.with_section("no markers", new)
