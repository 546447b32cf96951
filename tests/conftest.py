"""Which frameworks the tests reached, and what it means when one is missing.

A test that needs a framework says so with ``@pytest.mark.framework("torch")``, or one of its parameters does. Where that
framework is not installed the test is skipped, so the suite runs on any machine. With ``UNIFIEDLOSS_REQUIRE_ALL=1``, which
is how a change is accepted, it fails instead, and so does the whole run if some framework had no test that passed: a suite
that compared nothing must not be green.

A test that repeats in a slow compiler what a quicker test shows says so with ``@pytest.mark.slow("what stays")``. Such tests run
with ``--strength all`` (``make test-all``), and otherwise are deselected and counted at the end of the run.
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

FRAMEWORKS = ("numpy", "torch", "tensorflow", "keras", "jax")

LONGEST = (
    "test_conformance.py",
    "test_keras.py",
    "test_exact_tensorflow.py",
    "test_jax.py",
    "test_docs.py",
    "test_examples.py",
)
"""The files that take minutes. They come first, so that no process is left alone with one of them at the end."""

# Before any framework loads, and inherited by child processes. It hides start-up chatter and changes no number.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def installed(framework: str) -> bool:
    """Whether the framework can be imported here, found out without importing it."""
    return importlib.util.find_spec(framework) is not None


def all_required() -> bool:
    """Whether a missing framework is a failure."""
    return os.environ.get("UNIFIEDLOSS_REQUIRE_ALL", "") not in ("", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare how much is run; the child processes of tests read it from the environment."""
    parser.addoption(
        "--strength",
        choices=("test", "all"),
        default=os.environ.get("UNIFIEDLOSS_STRENGTH", "test"),
        help="test: each thing once; all: what only repeats in a slow compiler, too",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers and start counting."""
    os.environ["UNIFIEDLOSS_STRENGTH"] = config.getoption("strength")
    config.addinivalue_line(
        "markers",
        "slow(what_stays, only=[...]): run with --strength all; `only` names words of the parameters' ids",
    )
    config.addinivalue_line(
        "markers", "framework(name, ...): needs these frameworks; skipped, or failed, without them"
    )
    # The workers of pytest-xdist report to the main process, and only there is the whole run known.
    if not hasattr(config, "workerinput"):
        _share_compiled_programs(config)
        config.pluginmanager.register(_Frameworks(), "unifiedloss-frameworks")
        config.pluginmanager.register(_Summary(), "unifiedloss-summary")


def is_slow(item: pytest.Item) -> bool:
    """Whether a test is marked slow, all of it or with its parameters."""
    for mark in item.iter_markers("slow"):
        if not (mark.args and isinstance(mark.args[0], str)):
            msg = f"{item.nodeid}: the slow marker says what stays in the quicker run"
            raise pytest.UsageError(msg)
        only, callspec = mark.kwargs.get("only"), getattr(item, "callspec", None)
        if only is None or (callspec is not None and any(word in callspec.id for word in only)):
            return True
    return False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless it is asked for, and put the longest files first."""
    by_name = any("::" in argument for argument in config.args)
    if config.getoption("strength") != "all" and not by_name:
        slow = [item for item in items if is_slow(item)]
        items[:] = [item for item in items if not is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        # A worker of pytest-xdist tells its main process; without workers, this is the main process.
        if hasattr(config, "workeroutput"):
            config.workeroutput["slow"] = len(slow)
        config.stash[_SLOW] = len(slow)
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


def _share_compiled_programs(config: pytest.Config) -> None:
    """Let all processes of this run, workers and the children of tests, compile each program of JAX once."""
    if (
        "JAX_COMPILATION_CACHE_DIR" in os.environ
    ):  # by the run this one is a part of, or by whoever started it
        return
    folder = tempfile.TemporaryDirectory(prefix="unifiedloss-jax-", ignore_cleanup_errors=True)
    config.add_cleanup(folder.cleanup)
    os.environ.update(jax_cache(Path(folder.name)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the frameworks a test needs, and skip it or fail it where one is missing."""
    names = list(
        dict.fromkeys(name for mark in item.iter_markers("framework") for name in mark.args)
    )
    unknown = [name for name in names if name not in FRAMEWORKS]
    if unknown:
        pytest.fail(
            f"the framework marker names {unknown}; known are {list(FRAMEWORKS)}", pytrace=False
        )
    # As properties, because these travel with the report from the process that ran the test.
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
    """Says at the end how much was left out, and where the conformance runs' time went."""

    def __init__(self) -> None:
        self.slow = 0
        self.rows: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Read the count of a run without workers."""
        self.slow = session.config.stash.get(_SLOW, 0)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Read the count of a worker: each collects all tests."""
        self.slow = max(self.slow, getattr(node, "workeroutput", {}).get("slow", 0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the rows that the tests of the conformance suite have read."""
        if report.when == "call":
            self.rows += [str(row) for key, row in report.user_properties if key == "row"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print both."""
        if self.rows:
            terminalreporter.section("conformance: cases, programs, processor seconds")
            for row in self.rows:
                terminalreporter.line(row)
        if self.slow:
            terminalreporter.section("slow")
            terminalreporter.line(
                f"{self.slow} slow tests were deselected; run them with --strength all, or make test-all"
            )


class _Frameworks:
    """Counts what every framework's tests came to, and says so at the end of the run."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def pytest_report_header(self) -> str:
        """Say which frameworks are here before the first test runs."""
        distributions = importlib.metadata.packages_distributions()
        versions = [
            f"{name} {importlib.metadata.version(distributions[name][0])}"
            if installed(name)
            else f"{name} missing"
            for name in FRAMEWORKS
        ]
        return f"frameworks: {', '.join(versions)}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test once: when its body has run, or when its set-up failed or skipped it."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            for key, name in report.user_properties:
                if key == "framework":
                    self.counts[str(name), report.outcome] += 1

    def untested(self) -> list[str]:
        """The frameworks that no test passed with."""
        return [name for name in FRAMEWORKS if not self.counts[name, "passed"]]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a run that had to reach every framework and did not."""
        if all_required() and not session.config.option.collectonly and self.untested():
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print how many tests each framework had."""
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
                f"FAILED: UNIFIEDLOSS_REQUIRE_ALL is set, and no test passed with {', '.join(self.untested())}"
            )
