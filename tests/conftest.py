"""Pytest hooks that skip, deselect and count tests, by framework and by strength.

A test, or one of its parameters, declares the frameworks that it needs with
``@pytest.mark.framework("torch")``. If a framework is not installed, the test is skipped, so that
the suite runs on any machine. With ``UNIFIEDLOSS_REQUIRE_ALL=1``, which every change has to pass,
the test fails instead. The run then also fails if no test passed with some framework, because a
suite that compared nothing must not pass.

A test that repeats in a slow compiler what a quicker test covers is marked
``@pytest.mark.slow("what stays")``. Such tests run with ``--strength all`` (``make test-all``).
Otherwise they are deselected, and counted at the end of the run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unifiedloss.conformance.workers import jax_cache

FRAMEWORKS = ("numpy", "torch", "tensorflow", "keras", "jax", "dask")

LONGEST = (
    "test_conformance.py",
    "test_keras.py",
    "test_exact_tensorflow.py",
    "test_jax.py",
    "test_docs.py",
    "test_examples.py",
)
"""The files that take minutes.

They come first, so that at the end no process runs one of them while the others idle.
"""

# Set before any framework loads, and inherited by child processes. It hides TensorFlow's start-up
# messages and changes no result.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Two test processes share two cores, and the threads of OpenMP spin while they wait for each other.
# Tests of several threads set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Each process of inductor's pool imports torch, which takes longer than these small programs.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# Child processes and the workers of pytest-xdist begin with tests/startup/sitecustomize.py.
_STARTUP = str(Path(__file__).with_name("startup"))
if _STARTUP not in (_folders := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_STARTUP, *_folders]))


def installed(framework: str) -> bool:
    """Whether the framework is installed; this does not import it."""
    return importlib.util.find_spec(framework) is not None


def all_required() -> bool:
    """Whether a missing framework is a failure."""
    return os.environ.get("UNIFIEDLOSS_REQUIRE_ALL", "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --strength; its default comes from the environment.

    Child processes of tests inherit the strength there.
    """
    parser.addoption(
        "--strength",
        choices=("test", "all"),
        default=os.environ.get("UNIFIEDLOSS_STRENGTH", "test"),
        help="test: without the slow tests; all: with them",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and start counting."""
    os.environ["UNIFIEDLOSS_STRENGTH"] = config.getoption("strength")
    config.addinivalue_line(
        "markers",
        "slow(what_stays, only=[...]): run with --strength all; "
        "`only` lists words of the parameters' ids",
    )
    config.addinivalue_line(
        "markers", "framework(name, ...): needs these frameworks; skipped, or failed, without them"
    )
    # Only the main process of pytest-xdist sees the results of all workers.
    if not hasattr(config, "workerinput"):
        _share_compiled_programs(config)
        config.pluginmanager.register(_Frameworks(), "unifiedloss-frameworks")
        config.pluginmanager.register(_Summary(), "unifiedloss-summary")


def is_slow(item: pytest.Item) -> bool:
    """Whether a test is marked slow, in general or for its parameters."""
    for mark in item.iter_markers("slow"):
        if not (mark.args and isinstance(mark.args[0], str)):
            msg = f"{item.nodeid}: the slow marker says what stays in the quicker run"
            raise pytest.UsageError(msg)
        only, callspec = mark.kwargs.get("only"), getattr(item, "callspec", None)
        if only is None or (callspec is not None and any(word in callspec.id for word in only)):
            return True
    return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect slow tests unless they are requested, and put the longest files first."""
    by_name = any("::" in argument for argument in config.args)
    if config.getoption("strength") != "all" and not by_name:
        slow = [item for item in items if is_slow(item)]
        items[:] = [item for item in items if not is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        # A worker of pytest-xdist passes the count to the main process. Without workers this is
        # the main process.
        if hasattr(config, "workeroutput"):
            config.workeroutput["slow"] = len(slow)
        config.stash[_SLOW] = len(slow)
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


def _share_compiled_programs(config: pytest.Config) -> None:
    """Let all processes of this run, child processes included, share JAX's compilation cache."""
    # An outer run or the user may have set it already.
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.TemporaryDirectory(prefix="unifiedloss-jax-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ.update(jax_cache(Path(folder.name)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Record the frameworks that a test needs, and skip or fail it if one is missing."""
    names = list(
        dict.fromkeys(name for mark in item.iter_markers("framework") for name in mark.args)
    )
    unknown = [name for name in names if name not in FRAMEWORKS]
    if unknown:
        pytest.fail(
            f"the framework marker names {unknown}; known are {list(FRAMEWORKS)}", pytrace=False
        )
    # As properties, because pytest-xdist sends these to the main process with the report.
    item.user_properties.extend(("framework", name) for name in names)
    missing = [name for name in names if not installed(name)]
    if missing and all_required():
        pytest.fail(
            f"UNIFIEDLOSS_REQUIRE_ALL is set, and not installed here: {', '.join(missing)}",
            pytrace=False,
        )
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


_SLOW = pytest.StashKey[int]()


class _Summary:
    """Prints the number of deselected slow tests and the times of the conformance rows."""

    def __init__(self) -> None:
        self.slow = 0
        self.of_workers = 0
        self.rows: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Read the count of a run without workers."""
        self.slow = session.config.stash.get(_SLOW, 0)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Read the count of a worker: each collects all tests."""
        self.of_workers = max(self.of_workers, getattr(node, "workeroutput", {}).get("slow", 0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the rows that the tests of the conformance suite report."""
        if report.when == "call":
            self.rows += [str(row) for key, row in report.user_properties if key == "row"]
            # Tests that run pytest in a child process report what the child deselected.
            self.slow += sum(int(str(n)) for key, n in report.user_properties if key == "slow")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the rows and the number of slow tests."""
        if self.rows:
            terminalreporter.section("conformance: cases, programs, processor seconds")
            for row in self.rows:
                terminalreporter.line(row)
        if self.slow + self.of_workers:
            terminalreporter.section("slow")
            terminalreporter.line(
                f"{self.slow + self.of_workers} slow tests were deselected; "
                "run them with --strength all, or make test-all"
            )


class _Frameworks:
    """Counts each framework's passed, failed and skipped tests, and prints the counts."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def pytest_report_header(self) -> str:
        """List the installed frameworks before the first test runs."""
        distributions = importlib.metadata.packages_distributions()
        versions = [
            f"{name} {importlib.metadata.version(distributions[name][0])}"
            if installed(name)
            else f"{name} missing"
            for name in FRAMEWORKS
        ]
        return f"frameworks: {', '.join(versions)}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count each test once: after its call, or after a set-up that failed or skipped it."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            for key, name in report.user_properties:
                if key == "framework":
                    self.counts[str(name), report.outcome] += 1

    def untested(self) -> list[str]:
        """The frameworks that no test passed with."""
        return [name for name in FRAMEWORKS if not self.counts[name, "passed"]]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that must reach every framework and did not."""
        if all_required() and not session.config.option.collectonly and self.untested():
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the counts of each framework."""
        if not self.counts and not all_required():
            return
        terminalreporter.section("frameworks")
        for name in FRAMEWORKS:
            numbers = ", ".join(
                f"{self.counts[name, outcome]} {outcome}"
                for outcome in ("passed", "failed", "skipped")
            )
            terminalreporter.line(
                f"{name:<11} {numbers}{'' if installed(name) else ' (not installed)'}"
            )
        if all_required() and self.untested():
            terminalreporter.line(
                "FAILED: UNIFIEDLOSS_REQUIRE_ALL is set, and no test passed with "
                f"{', '.join(self.untested())}"
            )
