"""The command line: what it prints, what it refuses, and with which status it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import unifiedloss as ul


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    code = "import sys; from unifiedloss.cli import main; sys.argv[0] = 'unifiedloss'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Logits and labels in a file."""
    rng = np.random.default_rng(0)
    path = tmp_path / "saved.npz"
    np.savez(path, predictions=rng.normal(size=(16, 5)).astype(np.float32), targets=rng.integers(5, size=16))
    return path


def test_help_is_quick() -> None:
    """Help and version import no framework."""
    started = time.monotonic()
    assert "conform" in run("--help").stdout
    assert time.monotonic() - started < 5
    assert run("--version").stdout.strip().endswith(ul.__version__)


@pytest.mark.framework("numpy")
def test_conform_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    """One backend, one loss: the table, the status, the file."""
    path = tmp_path / "report.json"
    done = run("conform", "--backend", "numpy", "--loss", "mean_squared_error", "--json", str(path))
    assert done.returncode == 0, done.stderr
    for word in ("backend", "comparisons", "failures", "numpy", "eager", "nothing differs"):
        assert word in done.stdout
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [row["backend"] for row in report["rows"]] == ["numpy"]
    assert report["rows"][0]["comparisons"] > 50


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("conform", "--backend", "mxnet"), "there is no backend 'mxnet'"),
        (("conform", "--loss", "hinge"), "there is no loss 'hinge'"),
        (("conform", "--rounding", "exact"), "not available yet"),
        (("compare", "nothing.npz"), "there is no file nothing.npz"),
        (("compare", "{saved}", "--loss", "hinge", "--from-logits"), "'loss' must be one of"),
        (("compare", "{saved}"), "not a probability. If these are logits, set from_logits=True"),
        (("compare", "{saved}", "--from-logits", "--label-smoothing", "2"), "label_smoothing must lie in"),
        (("compare", "{saved}", "--loss", "mean_squared_error"), "targets must have the shape"),
        (("compare", "{saved}", "--loss", "mean_squared_error", "--axis", "1"), "'axis' is not a field"),
        (("compare", "{array}", "--from-logits"), "has no array 'predictions'"),
        (("compare", "{text}", "--from-logits"), "is no npz file"),
    ],
)
def test_refusals(arguments: tuple[str, ...], words: str, saved: Path, tmp_path: Path) -> None:
    """What is wrong is said in a line, without a traceback, and the status is 1."""
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    names = {"saved": saved, "array": tmp_path / "array.npy", "text": tmp_path / "text.npz"}
    done = run(*(argument.format(**names) for argument in arguments))
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert words in said
    assert "Traceback" not in said


@pytest.mark.framework("numpy", "torch")
def test_compare(saved: Path, tmp_path: Path) -> None:
    """A loss over saved data, by options and by a spec in a file: the same value, within the bound, in each backend."""
    spec = tmp_path / "spec.json"
    spec.write_text(ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1).to_json(), encoding="utf-8")
    with np.load(saved) as file:
        value = ul.cross_entropy_loss(file["predictions"], file["targets"], from_logits=True, label_smoothing=0.1)
    only = ("--backend", "numpy", "--backend", "torch")
    for options in (("--from-logits", "--label-smoothing", "0.1"), ("--spec", str(spec))):
        done = run("compare", str(saved), *options, *only)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "oracle" in done.stdout
        for name in ("numpy", "torch"):
            (line,) = (line for line in done.stdout.splitlines() if f" {name} " in line)
            assert f"{value:.9f}"[:7] in line
            assert "yes" in line
