"""The Keras adapter on each of Keras' backends.

Keras reads KERAS_BACKEND once in a process, so each backend runs tests/keras_checks.py and
tests/keras_interop_checks.py in its own process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKS = [Path(__file__).with_name(name) for name in ("keras_checks.py", "keras_interop_checks.py")]

FEWEST = {"all": 240, "test": 180}
"""The least number of checks of a backend at each strength, so that none is lost unnoticed."""

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Flags that halve the time of XLA's compiler on a CPU.

Keras on JAX compiles each operator of these checks; on TensorFlow exact losses are long programs.
The rows of tests/test_conformance.py and the run with --strength all compile with the default
flags.
"""


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.framework("keras", name))
        for name in ("numpy", "torch", "tensorflow", "jax")
    ],
)
@pytest.mark.timeout(600)
def test_keras_on(
    backend: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """Every check passes and none is skipped; deselected slow ones are counted."""
    report = tmp_path / "report.xml"
    strength = request.config.getoption("strength")
    environment = os.environ | {
        "KERAS_BACKEND": backend,
        # The child must not require all frameworks, because it runs Keras and one backend only.
        "UNIFIEDLOSS_REQUIRE_ALL": "0",
    }
    if backend in {"jax", "tensorflow"} and strength != "all":
        flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}"
        environment["XLA_FLAGS"] = flags.strip()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            *map(str, CHECKS),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKS[0].parents[1],
        env=environment,
        timeout=580,
    )
    if done.returncode:
        pytest.fail(
            f"Keras on {backend}:\n{_failures(done.stdout) or done.stdout + done.stderr}",
            pytrace=False,
        )
    root = ET.parse(report).getroot()  # noqa: S314 - the process above wrote it
    (suite,) = root.iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    slow = re.search(r"^(\d+) slow tests were deselected", done.stdout, re.MULTILINE)
    record_property("slow", int(slow[1]) if slow else 0)
    assert counts["tests"] >= FEWEST[strength]
    assert counts["failures"] == counts["errors"] == counts["skipped"] == 0


def _failures(output: str) -> str:
    """The part of pytest's output from the failures on, or an empty string."""
    return output[output.find("= FAILURES =") :] if "= FAILURES =" in output else ""


def test_failures_are_shown() -> None:
    """The failures of a child appear in this process's report."""
    output = "..F..\n==== FAILURES ====\n__ test_one __\nassert 1 == 2\n1 failed, 4 passed"
    assert _failures(output).startswith("= FAILURES =")
    assert "assert 1 == 2" in _failures(output)
    assert not _failures("ImportError: no module")
