"""Test the command that ``make bench`` runs: it measures, applies the goals, writes the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import goals, pairs, ratios
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.pages import write_between

ROOT = Path(__file__).resolve().parents[2]


def row(**changes: Any) -> goals.Row:
    """A row in the form that a worker writes."""
    return {
        "framework": "torch",
        "loss": "cross-entropy",
        "shape": [4096, 1000],
        "work": "forward",
        "mode": "eager",
        "against": "torch.nn.functional",
        "ours": 1e-3,
        "native": 1e-3,
        "ratio": 1.0,
        "extra": 0.0,
        "ratio_least": 1.0,
        "extra_least": 0.0,
    } | changes


def test_a_slower_call_is_found_slower() -> None:
    """A call with twice the work takes about twice the time, and a call beside itself the same."""

    def once() -> float:
        return sum(range(20_000))

    double = side_by_side(lambda: (once(), once()), once, 0.2)
    assert 1.5 < double.ratio < 2.7
    assert double.extra > 0
    assert 0.7 < side_by_side(once, once, 0.2).ratio < 1.4


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"ratio": 0.99}, "aim"),
        ({"ratio": 1.04}, "must"),
        ({"ratio": 1.06}, "short"),
        ({"shape": [32, 10], "ratio": 1.9, "extra": 1.9e-6}, "aim"),
        ({"shape": [32, 10], "ratio": 1.9, "extra": 4.9e-6}, "must"),
        ({"shape": [32, 10], "ratio": 1.9, "extra": 5.1e-6}, "short"),
        ({"framework": "numpy", "against": "scipy", "ratio": 0.66}, "must"),
        ({"framework": "numpy", "against": "scipy", "ratio": 0.67}, "short"),
        ({"framework": "numpy", "against": "torch", "ratio": 0.35}, "aim"),
        ({"framework": "numpy", "against": "torch", "ratio": 0.5}, "must"),
        ({"framework": "numpy", "against": "torch", "ratio": 0.51}, "short"),
        ({"framework": "numpy", "against": "torch", "shape": [32, 10], "ours": 21e-6}, "short"),
        ({"loss": "cross-entropy, exact", "ratio": 0.95}, "must"),
        ({"loss": "cross-entropy, exact", "ratio": 0.96}, "short"),
        ({"loss": "cross-entropy, exact", "mode": "compiled", "ratio": 1.1}, "aim"),
        (
            {
                "framework": "torch, two threads",
                "loss": "cross-entropy, exact, two threads",
                "ratio": 1.2,
            },
            "short",
        ),
        (
            {
                "framework": "numpy",
                "against": "torch",
                "work": "with gradient",
                "shape": [512, 32000],
                "ratio": 0.25,
            },
            "must",
        ),
    ],
)
def test_goals(changes: dict[str, Any], verdict: str) -> None:
    """Each goal has its limits, and a row above them falls short."""
    judged = row(**changes)
    goal = goals.goal(judged)
    assert goal is not None
    assert goal.verdict(judged) == verdict


def test_every_goal_has_a_row() -> None:
    """The table of goals names only rows that are measured, so that no goal is lost."""
    names = {
        framework: {
            (case.name, case.shape)
            for threads in (1, 2)
            for case in pairs.cases_of(framework, threads)
        }
        for framework in pairs.FRAMEWORKS
    }
    for (framework, _, loss), limits in goals.EXACT.items():
        for shape, _ in limits:
            assert (loss, shape) in names[framework]


def test_no_goal_beside_another_framework() -> None:
    """NumPy's elementwise losses have no goal beside PyTorch's, which the table only reports."""
    assert goals.goal(row(framework="numpy", against="torch", loss="squared error")) is None


def test_page_is_replaced_between_the_markers(tmp_path: Path) -> None:
    """The new table replaces the text between the markers, with rows that fall short in bold."""
    page = tmp_path / "performance.md"
    page.write_text(
        f"before\n\n{ratios.BEGIN}\noutdated\n{ratios.END}\n\nafter\n", encoding="utf-8"
    )
    rows = [row(), row(work="with gradient", ratio=1.23)]
    results = {
        "date": "2026-01-01",
        "machine": {
            "processor": "P",
            "cores": "2",
            "memory": "8 GiB",
            "system": "Linux",
            "python": "3.11",
            "level": "v3",
        },
        "frameworks": {"torch": {"versions": {"torch": "2.6"}, "rows": rows}},
        "import": 6e-3,
    }
    for _ in range(2):  # writing the page again changes nothing
        write_between(page, ratios.BEGIN, ratios.END, ratios.page(results))
        text = page.read_text(encoding="utf-8")
        assert text.startswith("before\n\n<!--")
        assert text.endswith("-->\n\nafter\n")
        assert "outdated" not in text
        cells = "1.00 ms / 1.00 ms: 1.00 | 1.00 ms / 1.00 ms: **1.23**"
        assert f"| PyTorch | cross-entropy | torch.nn.functional | {cells} |" in text
        assert "6.00 ms" in text
        assert text.count("(at most 1.05)") == 1


def test_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    """A page without markers is refused and stays as it is."""
    page = tmp_path / "page.md"
    page.write_text("text", encoding="utf-8")
    with pytest.raises(SystemExit, match="needs the lines"):
        write_between(page, ratios.BEGIN, ratios.END, "")
    assert page.read_text(encoding="utf-8") == "text"


def test_published_page_has_numbers() -> None:
    """The page in docs/ has the tables of a run, for every framework and every shape."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    measured = text[text.index(ratios.BEGIN) : text.index(ratios.END)]
    titles = ratios.TITLES.values()
    assert [title for title in titles if f"\n| {title}" not in measured] == []
    for shape in ("(32, 10)", "(4096, 1000)", "(512, 32000)"):
        assert f"### Predictions of shape {shape}" in measured


@pytest.mark.framework("numpy", "torch")
def test_command_measures(tmp_path: Path) -> None:
    """For one framework and one shape, the command prints the table and writes the file."""
    file = tmp_path / "results.json"
    options = ("--quick", "--only", "numpy", "--shape", "32,10", "--json", str(file))
    command = [sys.executable, "-m", "tests.benchmarks.ratios", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scikit-learn" in done.stdout
    assert "import unifiedloss after NumPy" in done.stdout
    results = json.loads(file.read_text(encoding="utf-8"))
    assert {r["loss"] for r in results["frameworks"]["numpy"]["rows"]} == {
        case.name for case in pairs.cases_of("numpy") if case.shape == pairs.SMALL
    }
    for found in results["frameworks"]["numpy"]["rows"]:
        assert 0 < found["ours_least"] <= found["ours"] < 1
        assert 0 < found["native_least"] <= found["native"] < 1
    assert 0 < results["import"] < 1
