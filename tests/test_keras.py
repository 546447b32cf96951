"""The Keras adapter on each of Keras' backends.

KERAS_BACKEND is read once in a process, so every backend gets a process of its own, which runs tests/keras_checks.py and
tests/keras_switching_checks.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

CHECKS = [
    Path(__file__).with_name(name) for name in ("keras_checks.py", "keras_switching_checks.py")
]

FEWEST = 205
"""A run of fewer checks than this has lost some."""


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.framework("keras", name))
        for name in ("numpy", "torch", "tensorflow", "jax")
    ],
)
@pytest.mark.timeout(600)
def test_keras_on(backend: str, tmp_path: Path) -> None:
    """Every check passes and none is left out."""
    report = tmp_path / "report.xml"
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
        # Whether all frameworks were reached is counted here and not by a process that is meant to reach two.
        env=os.environ | {"KERAS_BACKEND": backend, "UNIFIEDLOSS_REQUIRE_ALL": "0"},
        timeout=580,
    )
    if done.returncode:
        pytest.fail(
            f"Keras on {backend}:\n{_failures(done.stdout) or done.stdout + done.stderr}",
            pytrace=False,
        )
    (suite,) = ET.parse(report).getroot().iter("testsuite")  # noqa: S314 - written by the process above
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts["tests"] >= FEWEST
    assert counts["failures"] == counts["errors"] == counts["skipped"] == 0


def _failures(output: str) -> str:
    """What pytest prints of the failures, without the line of dots before them."""
    return output[output.find("= FAILURES =") :] if "= FAILURES =" in output else ""


def test_failures_are_shown() -> None:
    """A failing check is read in this process's report, not looked for in a child's."""
    output = "..F..\n==== FAILURES ====\n__ test_one __\nassert 1 == 2\n1 failed, 4 passed"
    assert _failures(output).startswith("= FAILURES =")
    assert "assert 1 == 2" in _failures(output)
    assert not _failures("ImportError: no module")
