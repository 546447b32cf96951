"""Measure what the losses cost beside each framework's own, as ratios: ``make bench``.

    python -m tests.benchmarks.ratios [--quick] [--only FRAMEWORK]... [--shape N,K]...
        [--json FILE] [--markdown FILE]

Each framework runs in its own process, on one processor and one thread (PyTorch once more on two),
and the two calls of a pair run in turns; see `worker` and `measure`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.benchmarks.goals import IMPORT_AIM, IMPORT_MUST, Goal, Row, goal, judged_by
from tests.benchmarks.pages import write_between
from tests.benchmarks.pairs import BOTH, CASES, FORWARD
from tests.benchmarks.worker import ENVIRONMENT
from unifiedloss import compiled

ROOT = Path(__file__).resolve().parents[2]

WORKERS = (
    "numpy",
    "torch",
    "torch, two threads",
    "tensorflow",
    "jax",
    "keras-tensorflow",
    "keras-torch",
    "keras-jax",
    "keras-numpy",
)

TITLES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "torch, two threads": "PyTorch, two threads",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "keras-tensorflow": "Keras on TensorFlow",
    "keras-torch": "Keras on PyTorch",
    "keras-jax": "Keras on JAX",
    "keras-numpy": "Keras on NumPy",
}
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

# ---------------------------------------------------------------------------------------- measuring


def measure(worker: str, seconds: float, shapes: list[tuple[int, int]]) -> dict[str, Any]:
    """Run one worker and read its results.

    Raises:
        SystemExit: the worker failed; the message has its output.
    """
    environment = os.environ | ENVIRONMENT
    if worker.startswith("keras-"):
        environment["KERAS_BACKEND"] = worker.removeprefix("keras-")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.worker",
            worker,
            str(seconds),
            str(file),
            json.dumps(shapes),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"measuring {TITLES[worker]} failed:\n{done.stdout}{done.stderr}")
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return results


def import_seconds(times: int) -> float:
    """The least processor time of ``import unifiedloss`` after NumPy, over several processes."""
    code = """
import time, numpy
start = time.process_time()
import unifiedloss
print(time.process_time() - start)
"""
    command = [sys.executable, "-c", code]
    # Not from the root, where Python would import the sources and not the installed package.
    with tempfile.TemporaryDirectory() as folder:
        runs = [subprocess.check_output(command, cwd=folder, text=True) for _ in range(times + 1)]
        return min(map(float, runs))


def machine() -> dict[str, str]:
    """Describe how fast the machine is, without names that identify it."""
    model = platform.processor() or platform.machine()
    memory = ""
    if sys.platform == "linux":
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        match = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
        model = match[1].strip() if match else model
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "memory": memory,
        "system": platform.system(),
        "python": platform.python_version(),
        "level": compiled.level(),
    }


# ----------------------------------------------------------------------------------------- printing


def duration(seconds: float) -> str:
    """A time with its unit and three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-9)} ns"


def _three(number: float) -> str:
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def quantity(row: Row, suffix: str = "") -> str:
    """The ratio, the extra microseconds or our time, whichever decides on a row."""
    if judged_by(row) == "ratio":
        return f"{row['ratio' + suffix]:.2f}"
    if judged_by(row) == "ours":
        return f"{duration(row['ours' + suffix])} in all"
    extra = row["extra" + suffix] * 1e6
    return f"{extra:+.1f} µs" if abs(extra) < 99.95 else f"{extra:+.0f} µs"


_STYLES = {"short": "bold red", "aim": "green", "must": "", "": "dim"}


def show(console: Console, worker: str, rows: list[Row]) -> None:
    """Print the rows of one framework."""
    table = Table(title=TITLES[worker], title_justify="left")
    for name in ("loss", "shape", "work", "mode", "against"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "theirs", "median", "least", "must", "aim"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    for row in rows:
        rule = goal(row)
        verdict = rule.verdict(row) if rule else ""
        call = (row["loss"], str(tuple(row["shape"])))
        call += (row["work"], row["mode"], row["against"])
        times = (duration(row["ours"]), duration(row["native"]))
        measured = (quantity(row), quantity(row, "_least"))
        limits = (_limit(rule, "must"), _limit(rule, "aim"))
        table.add_row(*call, *times, *measured, *limits, verdict, style=_STYLES[verdict])
    console.print(table)


def _limit(rule: Goal | None, name: str) -> str:
    value = getattr(rule, name) if rule else None
    if value is None:
        return ""
    return f"{value:.2f}" if rule and rule.quantity == "ratio" else f"{value * 1e6:.0f} µs"


def summary(results: dict[str, Any]) -> Iterator[str]:
    """One line with the number of rows per verdict, and one for each row that falls short."""
    rows = [row for found in results["frameworks"].values() for row in found["rows"]]
    judged = [(row, rule) for row in rows if (rule := goal(row)) is not None]
    short = [(row, rule) for row, rule in judged if rule.verdict(row) == "short"]
    aim = sum(rule.verdict(row) == "aim" for row, rule in judged)
    yield (
        f"{len(judged)} rows have a goal: {aim} reach what is aimed at, "
        f"{len(short)} fall short of what must hold"
    )
    for row, rule in short:
        yield (
            f"  {TITLES[row['framework']]}, {row['mode']}, {row['loss']}, "
            f"{tuple(row['shape'])}, {row['work']}, against {row['against']}: {quantity(row)} "
            f"(at most {_limit(rule, 'must')})"
        )


# ----------------------------------------------------------------------------------------- the page


def page(results: dict[str, Any]) -> str:
    """The measured part of docs/performance.md, as Markdown."""
    rows = [row for found in results["frameworks"].values() for row in found["rows"]]
    about = results["machine"]
    versions = {
        name: v for found in results["frameworks"].values() for name, v in found["versions"].items()
    }
    processor = f"{about['processor']}, {about['cores']} cores of which one is used, "
    processor += f"compiled loops of level {about['level']}"
    memory = f", {about['memory']} of memory" if about["memory"] else ""
    software = [f"{about['system']}", f"Python {about['python']}"]
    software += [f"{name} {version}" for name, version in sorted(versions.items())]
    lines = [f"Measured on {results['date']}: {processor}{memory}; {', '.join(software)}."]
    for shape in dict.fromkeys(tuple(case.shape) for case in CASES):
        chosen = [row for row in rows if tuple(row["shape"]) == shape]
        if chosen:
            lines += ["", f"### Predictions of shape {shape}", "", *_grid(chosen)]
    verdict = Goal("import", IMPORT_MUST, IMPORT_AIM).verdict(results)
    took = f"`import unifiedloss` after NumPy: {duration(results['import'])}"
    goals = f"must be at most {duration(IMPORT_MUST)}, aimed at {duration(IMPORT_AIM)}"
    lines += ["", "### What exact mode leaves undecided", "", *rates(results)]
    lines += ["", "### Import", "", f"{took}; {goals}: {_WORDS[verdict]}.", "", "### In short", ""]
    first, *short = summary(results)
    lines += [f"{first}{':' if short else '.'}", "", *(f"- {line.strip()}" for line in short)]
    return "\n".join(lines).rstrip()


def rates(results: dict[str, Any]) -> Iterator[str]:
    """For each shape, a line with the share of exact results that the first tier left undecided."""
    for found in results["frameworks"].get("numpy", {}).get("undecided", ()):
        left = found["left"]
        elements, rows, oracle = (left.get(name, 0) for name in ("elements", "rows", "oracle"))
        yield (
            f"- Predictions of shape {tuple(found['shape'])}: "
            f"{elements} of {found['elements']} elements and {rows} of {found['rows']} rows; "
            f"{oracle} of them went on to the oracle."
        )


_WORDS = {"aim": "reached", "must": "holds", "short": "falls short"}


def _grid(rows: list[Row]) -> Iterator[str]:
    """One line per framework, mode, loss and other call; one column per work."""
    yield f"| | loss | against | {FORWARD} | {BOTH} |"
    yield "|---|---|---|--:|--:|"
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = (row["framework"], row["mode"], row["loss"], row["against"])
        cells.setdefault(key, {})[row["work"]] = _cell(row)
    for (framework, mode, loss, against), found in cells.items():
        name = TITLES[framework] + ("" if mode == "eager" else f", {mode}")
        columns = " | ".join(found.get(work, "") for work in (FORWARD, BOTH))
        yield f"| {name} | {loss} | {against} | {columns} |"


def _cell(row: Row) -> str:
    """Both times and the quantity that decides, in bold if it falls short."""
    rule = goal(row)
    value = quantity(row)
    if rule is not None and rule.verdict(row) == "short":
        value = f"**{value}**"
    return f"{duration(row['ours'])} / {duration(row['native'])}: {value}"


def main() -> None:
    """Measure, print the tables, and write the files that the options name."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.ratios", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a tenth of the time for each pair: about how it stands",
    )
    parser.add_argument(
        "--only", action="append", choices=WORKERS, help="measure this framework; may be repeated"
    )
    parser.add_argument(
        "--shape", action="append", metavar="N,K", help="measure this shape; may be repeated"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the tables between the markers of this page",
    )
    arguments = parser.parse_args()

    known = list(dict.fromkeys(case.shape for case in CASES))
    shapes = [tuple(map(int, shape.split(","))) for shape in arguments.shape or ()] or known
    if not set(shapes) <= set(known):
        parser.error(f"--shape: known are {', '.join(f'{n},{k}' for n, k in known)}")
    console = Console(width=None if sys.stdout.isatty() else 170)
    seconds = 0.1 if arguments.quick else 1.0
    results: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "frameworks": {},
    }
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for worker in arguments.only or WORKERS:
            task = progress.add_task(f"measuring {TITLES[worker]}", total=None)
            found = measure(worker, seconds, shapes)  # type: ignore[arg-type]
            results["frameworks"][worker] = found
            progress.remove_task(task)
            show(console, worker, found["rows"])
    results["import"] = import_seconds(5 if arguments.quick else 20)
    console.print(
        f"import unifiedloss after NumPy: {duration(results['import'])} (must 15 ms, aim 5 ms)"
    )
    for line in (*rates(results), *summary(results)):
        console.print(line, highlight=False, soft_wrap=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if arguments.markdown:
        write_between(arguments.markdown, BEGIN, END, page(results))


if __name__ == "__main__":
    main()
