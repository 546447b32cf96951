"""Measure exact mode for every way a loss is called: ``python -m tests.benchmarks.ways``.

    python -m tests.benchmarks.ways [--seconds S] [--only COLUMN]... [--json FILE] [--markdown FILE]

A row is a way to call a loss, and a column is a backend and a mode. A number is the processor time
of exact mode over that of this library's native mode, measured side by side: of the loss and its
gradient, or of another derivative where the row names one. The table says for which calls
``rounding="auto"`` takes exact, and the times are the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import unifiedloss as ul
from tests.benchmarks import calls, measure
from tests.benchmarks.pages import write_between
from tests.benchmarks.ratios import machine
from tests.benchmarks.worker import ENVIRONMENT, limit_threads
from unifiedloss import compiled
from unifiedloss.auto_rounding import Setting, planned
from unifiedloss.plan import Plan, Signature, resolve

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- ways: begin -->", "<!-- ways: end -->"

SHAPE = (512, 1000)

CE = ul.CrossEntropyLoss(from_logits=True)
BCE = ul.BinaryCrossEntropyLoss(from_logits=True)
MSE = ul.MeanSquaredError()

COLUMNS = {
    "numpy": ("NumPy", "numpy", "eager"),
    "torch": ("PyTorch", "torch", "eager"),
    "torch, no compiler": ("PyTorch, without the compiled part", "torch", "eager"),
    "torch, compiled": ("torch.compile", "torch", "compiled"),
    "tensorflow": ("TensorFlow", "tensorflow", "eager"),
    "tensorflow, graph": ("tf.function", "tensorflow", "graph"),
    "tensorflow, xla": ("tf.function, XLA", "tensorflow", "xla"),
    "jax": ("JAX, jit", "jax", "jit"),
}
"""The title, the backend and the mode of each column."""


@dataclass(frozen=True)
class Way:
    """A way to call a loss.

    Attributes:
        name: the title of the row.
        spec: the loss, native.
        dtype: of the predictions.
        targets: "labels", "shares" (numbers that add up to 1), "hard" (0 or 1) or "numbers".
        weighted: whether there are sample weights.
        upstream: the upstream gradient; "rows" for one per row.
        derivative: what is computed; a method of `calls.Caller`.
        rows: the rows that are measured.
    """

    name: str
    spec: ul.Loss
    dtype: str = "float32"
    targets: str = "labels"
    weighted: bool = False
    upstream: float | str | None = None
    derivative: str = "gradient"
    rows: int = SHAPE[0]

    @lru_cache(maxsize=1)  # noqa: B019 - the ways last as long as the process
    def arrays(self) -> list[np.ndarray | None]:
        """Predictions, targets, sample weights and the upstream gradient, as float32 holds them."""
        rng = np.random.default_rng(0)
        shape = (self.rows, SHAPE[1])
        z = rng.normal(0, 2, shape)
        if self.spec.prediction_kind != "logits" and not getattr(self.spec, "from_logits", False):
            if self.spec.prediction_kind == "log_probabilities":
                z = z - np.log(np.exp(z).sum(1, keepdims=True))
            elif isinstance(self.spec, ul.CrossEntropyLoss):
                z = np.exp(z) / np.exp(z).sum(1, keepdims=True)
            elif isinstance(self.spec, ul.BinaryCrossEntropyLoss):
                z = 1 / (1 + np.exp(-z))
        shares = rng.random(shape)
        targets = {
            "labels": rng.integers(0, SHAPE[1], self.rows),
            "shares": (shares / shares.sum(1, keepdims=True)).astype(np.float32),
            "hard": rng.integers(0, 2, shape).astype(np.float32),
            "numbers": rng.normal(0, 2, shape).astype(np.float32),
        }[self.targets]
        weights = rng.uniform(0.5, 1.5, self.rows).astype(np.float32) if self.weighted else None
        upstream: Any = self.upstream
        if upstream == "rows":
            upstream = rng.uniform(0.5, 1.5, self.rows)
        above = None if upstream is None else np.asarray(upstream, np.float32)
        return [z.astype(np.float32), targets, weights, above]


def _ways() -> Iterator[Way]:
    plain = (("CE", CE, "labels"), ("BCE", BCE, "hard"), ("MSE", MSE, "numbers"))
    for name, spec, targets in plain:
        for dtype in ("float32", "bfloat16", "float16", "float64"):
            yield Way(f"{name}, {dtype}", spec, dtype, targets)
        yield Way(f"{name}, float16, upstream 65536", spec, "float16", targets, upstream=65536.0)
    weights = tuple(np.random.default_rng(1).uniform(0.5, 1.5, SHAPE[1]).tolist())
    yield Way("CE, smoothing", CE.replace(label_smoothing=0.1))
    yield Way("CE, dense targets", CE, targets="shares")
    yield Way("CE, dense targets, smoothing", CE.replace(label_smoothing=0.1), targets="shares")
    yield Way("CE, `none`", CE.replace(reduction="none"), upstream="rows")
    yield Way("CE, class weights", CE.replace(class_weights=weights))
    yield Way("CE, sample weights", CE, weighted=True)
    yield Way("CE, upstream 0.3", CE, upstream=0.3)
    of_probabilities = ul.CrossEntropyLoss(epsilon=1e-7)
    yield Way("CE, probabilities", of_probabilities)
    yield Way("CE, dense probabilities", of_probabilities, targets="shares")
    keras = ul.CrossEntropyLoss(epsilon="keras", renormalize="before_clip")
    yield Way("CE, probabilities as in Keras", keras)
    yield Way("NLL", ul.NegativeLogLikelihoodLoss())
    yield Way("BCE, smoothing", BCE.replace(label_smoothing=0.1), targets="hard")
    binary = partial(ul.BinaryCrossEntropyLoss)
    yield Way("BCE, probabilities", binary(epsilon=1e-7), targets="hard")
    yield Way("BCE, probabilities as in torch", binary(epsilon="torch"), targets="hard")
    yield Way("Huber", ul.HuberLoss(), targets="numbers")
    yield Way(
        "MSE, average of the last axis", MSE.replace(average_last_axis=True), targets="numbers"
    )
    yield Way("MSE, scale", MSE.replace(scale=0.5), targets="numbers")
    two = MSE.replace(element_weights=weights)
    yield Way("MSE, two weights an element", two, targets="numbers", weighted=True)
    for title, derivative in calls.DERIVATIVES.items():
        targets = "shares" if derivative == "to_targets" else "labels"
        yield Way(f"CE, {title}", CE, targets=targets, derivative=derivative)
    yield Way("CE, unknown batch", CE, derivative="unknown_batch")


WAYS = tuple(_ways())


def plan_of(column: str, way: Way, rounding: Any) -> Plan:
    """The plan of a call."""
    _, backend, mode = COLUMNS[column]
    z, y, w, _ = way.arrays()
    assert z is not None
    assert y is not None
    rows = None if way.derivative == "unknown_batch" else way.rows
    given = [
        Signature((rows, *z.shape[1:]), way.dtype),
        Signature((rows, *y.shape[1:]), y.dtype.name),
        None if w is None else Signature((rows,), w.dtype.name),
    ]
    spec = way.spec.replace(rounding=rounding)
    signatures: Any = given
    setting = Setting(backend, mode=mode)
    return planned(spec, setting, lambda known: resolve(known, *signatures))


def chosen(column: str, way: Way) -> str:
    """The rounding that "auto" takes."""
    return plan_of(column, way, "auto").rounding


def measured(column: str, way: Way, seconds: float) -> dict[str, Any]:
    """One cell: what "auto" takes, and the ratio, or why there is none."""
    _, backend, mode = COLUMNS[column]
    caller = calls.CALLERS[backend](mode)
    make = getattr(caller, way.derivative, None)
    if make is None:
        return {"not": "there is no such call"}
    tensors = caller.tensors(way.arrays(), way.dtype)
    ours, native = (
        make(way.spec.replace(rounding=rounding), *tensors) for rounding in ("exact", "native")
    )
    for rounding, call in (("native", native), ("exact", ours)):
        try:
            call()
        except Exception as error:  # noqa: BLE001 - frameworks wrap the error of a trace
            return {"not": f"{rounding}: {error}"}
    timing = measure.side_by_side(ours, native, seconds)
    return {
        "auto": chosen(column, way),
        "ratio": timing.ratio,
        "ours": timing.ours,
        "native": timing.native,
    }


def work(column: str, seconds: float, file: Path) -> None:
    """Measure all ways of a column in this process."""
    limit_threads(COLUMNS[column][1], 1)
    cells = {}
    level = "numpy" if column.endswith("no compiler") else compiled.level()
    with compiled.forced(level):
        for way in WAYS:
            cells[way.name] = measured(column, way, seconds)
            file.write_text(json.dumps(cells), encoding="utf-8")


def run(column: str, seconds: float) -> dict[str, Any]:
    """Measure a column in a process of its own.

    Raises:
        SystemExit: the process failed; the message has its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "cells.json")
        command = [sys.executable, "-m", "tests.benchmarks.ways", "--seconds", str(seconds)]
        command += ["--only", column, "--work", str(file)]
        environment = os.environ | ENVIRONMENT
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"measuring {column} failed:\n{done.stdout}{done.stderr}")
        cells: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return cells


def page(found: dict[str, dict[str, Any]]) -> str:
    """The table, as Markdown."""
    about = machine()
    day = datetime.now(UTC).date().isoformat()
    lines = [f"Measured on {day}: {about['processor']}, level {about['level']}.", ""]
    lines += ["| | " + " | ".join(COLUMNS[column][0] for column in found) + " |"]
    lines.append("|---|" + "--:|" * len(found))
    for way in WAYS:
        cells = " | ".join(_cell(cells.get(way.name, {})) for cells in found.values())
        lines.append(f"| {way.name} | {cells} |")
    return "\n".join(lines)


def _digits(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _cell(cell: dict[str, Any]) -> str:
    """The ratio, in italics where "auto" is native; "refused" where exact mode is an error."""
    if "auto" not in cell:
        return "refused" if cell.get("not", "").startswith("exact") else ""
    found = _digits(cell["ratio"])
    return found if cell["auto"] == "exact" else f"*{found}*"


def main() -> None:
    """Measure, print the table, and write the files that the options name."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ways", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each cell")
    parser.add_argument("--only", action="append", choices=COLUMNS, help="measure this column")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the page with the markers")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    columns = arguments.only or list(COLUMNS)
    if arguments.work:
        work(columns[0], arguments.seconds, arguments.work)
        return
    found = {}
    for column in columns:
        found[column] = run(column, arguments.seconds)
        print(f"measured {column}", file=sys.stderr)
    print(page(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if arguments.markdown:
        write_between(arguments.markdown, BEGIN, END, page(found))


if __name__ == "__main__":
    main()
