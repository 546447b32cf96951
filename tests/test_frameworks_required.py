"""conftest.py counts the tests of each framework, so that a missing or untested one is seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

SUITE = """
    import pytest

    @pytest.mark.parametrize("name", [
        pytest.param(name, marks=pytest.mark.framework(name))
        for name in ("numpy", "torch", "tensorflow", "keras", "jax", "dask")
    ])
    def test_one(name):
        assert name
"""

# Inserted into our conftest.py, because the worker processes must see the same frameworks as the
# main process, whatever is installed here.
PRETENCE = """
import importlib.metadata
import importlib.util

_real = importlib.util.find_spec
_present = dict.fromkeys(("numpy", "torch", "tensorflow", "keras", "jax", "dask"), object())
_present |= dict.fromkeys({missing})
importlib.util.find_spec = lambda name, package=None: (
    _present[name] if name in _present else _real(name, package)
)
importlib.metadata.packages_distributions = lambda: dict.fromkeys(_present, ["pytest"])
"""


@pytest.fixture
def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run one passing test per framework under our conftest.py, with `missing` not installed."""

    def run(
        *arguments: str, missing: tuple[str, ...] = (), required: bool = False, tests: str = SUITE
    ) -> pytest.RunResult:
        monkeypatch.setenv("UNIFIEDLOSS_REQUIRE_ALL", "1" if required else "0")
        ours = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
        head, future, body = ours.partition("from __future__ import annotations\n")
        pytester.makeconftest(head + future + PRETENCE.format(missing=missing) + body)
        pytester.makepyfile(tests)
        # The plugins of hypothesis and zarr take longer to import than these runs.
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "xdist", *arguments)

    return run


def test_counts_are_printed(run: Callable[..., pytest.RunResult]) -> None:
    """The report counts the tests of each framework by outcome."""
    result = run()
    result.assert_outcomes(passed=6)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["torch * 1 passed, 0 failed, 0 skipped"])


def test_missing_is_skipped(run: Callable[..., pytest.RunResult]) -> None:
    """Without UNIFIEDLOSS_REQUIRE_ALL=1, the tests of a missing framework are skipped."""
    result = run(missing=("torch", "jax"))
    result.assert_outcomes(passed=4, skipped=2)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["jax * 0 passed, 0 failed, 1 skipped (not installed)"])


def test_missing_fails_where_all_are_required(run: Callable[..., pytest.RunResult]) -> None:
    """With UNIFIEDLOSS_REQUIRE_ALL=1, the run fails and names the missing framework."""
    result = run(missing=("torch",), required=True)
    result.assert_outcomes(passed=5, errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*not installed here: torch*"])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_untested_fails_where_all_are_required(
    run: Callable[..., pytest.RunResult], workers: str
) -> None:
    """With UNIFIEDLOSS_REQUIRE_ALL=1, an installed framework that no test reached fails it."""
    result = run("-n", workers, "-k", "not jax", required=True)
    result.stdout.fnmatch_lines(["torch * 1 passed*", "FAILED: *no test passed with jax"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_untested_passes_elsewhere(run: Callable[..., pytest.RunResult]) -> None:
    """Without UNIFIEDLOSS_REQUIRE_ALL=1, a framework that no test reached does not fail the run."""
    result = run("-k", "not jax")
    result.stdout.fnmatch_lines(["jax * 0 passed*"])
    assert result.ret == pytest.ExitCode.OK


def test_misspelt_framework_is_an_error(run: Callable[..., pytest.RunResult]) -> None:
    """A marker with an unknown name is an error, because no framework would count its test."""
    result = run(tests="import pytest\n@pytest.mark.framework('pytorch')\ndef test_one(): pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*names *pytorch*; known are*"])
