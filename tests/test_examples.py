"""The examples print true claims: the same curves, and the same bits, in all frameworks.

tests/test_docs.py checks that they run. Here both run in one process, with a namespace each,
because a process spends most of its time importing the frameworks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
EXAMPLE = EXAMPLES / "switch_frameworks.py"
SAME_BITS = EXAMPLES / "same_bits.py"
FRAMEWORKS = ["NumPy", "PyTorch", "TensorFlow", "Keras", "JAX"]

all_frameworks = pytest.mark.framework("numpy", "torch", "tensorflow", "keras", "jax")


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder without a source tree, like a reader who has copied the example.

    But it begins as every process of a test run does.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept["PYTHONPATH"] = str(Path(__file__).with_name("startup"))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=kept,
        timeout=280,
    )


def tables(text: str) -> list[dict[str, list[float]]]:
    """Return the tables of the output, each as its rows by their first column."""
    found = []
    for head in re.finditer(r"^ +epoch (?P<names>.*)\n(?P<rows>(?:.+\n)+)", text, re.MULTILINE):
        assert head["names"].split() == FRAMEWORKS
        rows = {}
        for row in head["rows"].splitlines():
            label, *numbers = re.split(r"\s{2,}", row.strip())
            rows[label] = [float(number) for number in numbers]
        found.append(rows)
    return found


SWITCH = """
import dataclasses, runpy, sys, torch
example = runpy.run_path(sys.argv[1])
example["main"]()
print("END OF THE EXAMPLE")
torch.set_num_threads(1)
small = dataclasses.replace(example["digits"](), epochs=10)
small = dataclasses.replace(small, x=small.x[:50], y=small.y[:50])
assert example["compare"]("right", small, example["digits_quality"])
other = dataclasses.replace(small, loss_object=small.loss_object.replace(label_smoothing=1e-4))
assert not example["compare"]("wrong", other, example["digits_quality"])
"""
"""The example, and then its check, which must fail for a label smoothing of 1e-4."""


@all_frameworks
def test_curves_agree(ran: dict[Path, Ran]) -> None:
    """The curves fall and agree up to the rounding of float32; the check finds a difference."""
    done = ran[EXAMPLE]
    assert done.error == "", done.printed + done.error
    printed, _, checked = done.printed.partition("END OF THE EXAMPLE\n")
    digits, diabetes = tables(printed)
    for table, quality in ((digits, "accuracy"), (diabetes, "R squared")):
        curves = [numbers for label, numbers in table.items() if label.isdigit()]
        assert len(curves) == 10
        for numbers in (*curves, table["test loss"], table[quality]):
            assert len(numbers) == len(FRAMEWORKS)
            # 10 times the measured difference, and a tenth of the script's own limit. Both curves
            # start between 1 and 2.
            assert max(numbers) - min(numbers) < 2e-6
        assert all(later < earlier for earlier, later in zip(curves[0], curves[-1], strict=True))
    assert min(digits["accuracy"]) > 0.9
    assert min(diabetes["R squared"]) > 0.3
    assert printed.count("the curves agree") == 2
    assert printed.splitlines()[-1].startswith("Passed: ")
    assert checked.count("THE CURVES DISAGREE") == 1


four_frameworks = pytest.mark.framework("numpy", "torch", "tensorflow", "jax")
IN_FOUR = ["NumPy", "PyTorch", "TensorFlow", "JAX"]


def same_bits_rows(text: str) -> list[dict[str, list[str]]]:
    """Return the printed rows by framework, those of exact mode before those of native mode."""
    found = []
    for part in text.split('rounding="')[1:]:
        cells = [line.split() for line in part.splitlines()]
        found.append({name: rest for name, *rest in filter(None, cells) if name in IN_FOUR})
    return found


SAME = """
import runpy, sys
import numpy as np
example = runpy.run_path(sys.argv[1])
example["main"]()
print("END OF THE EXAMPLE")
frameworks, in_numpy = example["FRAMEWORKS"], example["in_numpy"]
frameworks.clear()
frameworks.update({"right": in_numpy, "as right": in_numpy})
assert example["compare"]("exact", example["digits"]())
frameworks["wrong"] = lambda _: in_numpy("native")
assert not example["compare"]("exact", example["digits"]())

def flipped(rounding):
    step, steps = in_numpy(rounding), []
    def nearly(logits, y):
        loss, gradient = step(logits, y)
        steps.append(loss)
        return (np.nextafter(loss, np.float32(0)) if len(steps) == 7 else loss), gradient
    return nearly

frameworks["wrong"] = flipped
example["main"]()
"""
"""The example, and then its check, which must fail for a native loss and for one wrong bit."""

BOTH = """
import contextlib, io, json, sys, traceback
found = []
for example, program in json.loads(sys.argv[1]):
    sys.argv[1:], error = [example], ""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(program, {"__name__": "__main__"})
        except BaseException:
            error = traceback.format_exc()
    found.append([out.getvalue(), error])
print(json.dumps(found))
"""
"""Runs each program with its example, and prints what each prints and how it ends."""


class Ran(NamedTuple):
    """What an example printed, and the traceback with which it ended."""

    printed: str
    error: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Ran]:
    """Both examples, with their checks."""
    programs = {EXAMPLE: SWITCH, SAME_BITS: SAME}
    given = json.dumps([(str(example), program) for example, program in programs.items()])
    done = run("-c", BOTH, given, folder=tmp_path_factory.mktemp("examples"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {example: Ran(*each) for example, each in zip(programs, found, strict=True)}


@four_frameworks
def test_same_bits(ran: dict[Path, Ran]) -> None:
    """Exact mode trains the same model in all four, on every machine; native mode does not.

    The check fails if one framework rounds natively, or is off by one bit in one step.
    """
    done = ran[SAME_BITS]
    printed, _, checked = done.printed.partition("END OF THE EXAMPLE\n")
    assert checked, done.printed + done.error
    exact, native = same_bits_rows(printed)
    assert list(exact) == list(native) == IN_FOUR
    for cells in exact.values():
        # Exact results are correctly rounded on every machine, so these hashes never change.
        assert cells == ["0.315796435", "0.9529", "d4e57db57cfe4f87", "6c1d99955c5b3935"]
    assert len({cells[2] for cells in native.values()}) > 1
    assert len({cells[3] for cells in native.values()}) > 1
    agreeing = re.findall(r"losses with the same bits in all: (\d+) of 300 steps", printed)
    assert agreeing[0] == "300"
    assert 0 < int(agreeing[1]) < 300
    assert printed.count("the weights are the same") == printed.count("the weights differ") == 1
    assert printed.splitlines()[-1] == (
        "Passed: the exact weights are the same bits; the native weights differ, as expected."
    )
    # The last run, with one wrong bit, ends the process.
    assert done.error.splitlines()[-1].startswith("SystemExit: ")
    assert "Exact mode gave different bits." in done.error
    assert "losses with the same bits in all: 299 of 300 steps" in checked


@all_frameworks
@pytest.mark.parametrize(
    ("example", "module", "install"),
    [
        (EXAMPLE, "torch", "pip install 'unifiedloss[torch]'"),
        (EXAMPLE, "jax", "pip install 'unifiedloss[jax]'"),
        (EXAMPLE, "sklearn", "pip install scikit-learn"),
        (SAME_BITS, "jax", "pip install 'unifiedloss[jax]'"),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else None,
)
@pytest.mark.slow(
    "one of each script's messages", only=["torch", "sklearn", "switch_frameworks-jax"]
)
def test_missing_framework_is_named(
    example: Path, module: str, install: str, tmp_path: Path
) -> None:
    """Without one of the frameworks the script fails, and names what to install."""
    code = """
import runpy, sys
class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[2]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden)
runpy.run_path(sys.argv[1])
"""
    done = run("-c", code, str(example), module, folder=tmp_path)
    assert done.returncode == 1
    assert install in done.stderr
