"""Runs of the suite: processes that die, hang or print, missing backends, reports, and snippets."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fake_adapters import Install, fake  # noqa: F401 - a fixture
from unifiedloss import (
    MissingBackendError,
    SerializationError,
    SpecValueError,
    conformance,
    registry,
)
from unifiedloss.adapter import Mode
from unifiedloss.adapters.numpy import NumPyAdapter
from unifiedloss.conformance import Failure, Progress, Report, Row, Tally, checks, runner, workers
from unifiedloss.conformance.cases import all_cases
from unifiedloss.conformance.combine import cut_cases

LOSS = ["mean_squared_error"]


# ------------------------------------------------------------------------------------- processes


def test_wrong_backend_fails_with_a_snippet_that_shows_it(fake: Install) -> None:  # noqa: F811
    """A third-party adapter is found and run, and its wrong results are reported.

    Each snippet, when pasted, prints the wrong number beside the right one.
    """
    name = fake("Doubling")
    report = conformance.run([name], LOSS)
    assert not report.ok
    assert not report.errors
    (row,) = report.rows
    assert (row.backend, row.mode) == (name, "eager")
    # Twice the loss differs wherever the loss is finite and not 0. A bad value still raises.
    whole = {case.name: case.expected() for case in all_cases() if case.spec.name in LOSS}
    # Pieces of a sum are added without a call of the loss itself.
    pieces = {
        case.name: case.expected()
        for case in cut_cases()
        if case.spec.name in LOSS and case.kind == "cut" and case.spec.reduction == "mean"
    }
    expected = whole | pieces
    sizes = {
        name: np.abs(np.asarray(x.loss)) for name, x in expected.items() if not x.bad_positions
    }
    wrong = {name for name, size in sizes.items() if (np.isfinite(size) & (size > 1e-3)).any()}
    assert len(wrong) > 30
    assert {failure.case for failure in row.failures} == wrong
    assert row.total.failed == len(row.failures) == row.losses["mean_squared_error"].failed
    scalars = [failure for failure in row.failures if not sizes[failure.case].ndim]
    for failure in scalars[:3]:
        loss = expected[failure.case].loss
        assert failure.what[0].startswith("loss is")
        assert f"# should be {loss!r}" in failure.snippet
        done = subprocess.run(
            [sys.executable, "-c", failure.snippet], capture_output=True, text=True, check=True
        )
        assert float(done.stdout.splitlines()[0].removeprefix("loss: ")) == pytest.approx(
            2 * loss, rel=1e-2
        )
        assert failure.snippet in report.summary()


def test_worker_that_dies_is_a_failure(fake: Install) -> None:  # noqa: F811
    """A process that dies fails only its own backend; the report names the case and its stderr."""
    name = fake("Dying")
    report = conformance.run([name, "numpy"], LOSS)
    assert not report.ok
    assert [row.backend for row in report.rows] == ["numpy"]
    assert report.rows[0].ok
    assert set(report.errors) == {name}
    for words in (
        "it was at 'edge/",
        "in mode 'eager'",
        "ended with status 7",
        "the stack smashed itself",
    ):
        assert words in report.errors[name]
    assert "the stack smashed itself" in report.summary()


def test_worker_may_print(fake: Install) -> None:  # noqa: F811
    """A framework's own output does not disturb the worker's messages."""
    report = conformance.run([fake("Noisy")], LOSS)
    assert report.ok
    assert report.comparisons == conformance.run(["numpy"], LOSS).comparisons


def test_worker_that_hangs_is_a_failure(
    fake: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """A process that sends no message for too long is killed."""
    monkeypatch.setenv("HANGING", str(tmp_path / "alive"))
    # 4 seconds are far more than a busy machine needs to start a process.
    monkeypatch.setattr(workers, "SILENCE", 4.0)
    name = fake("Hanging")
    report = conformance.run([name], LOSS)
    assert not report.ok
    assert "said nothing for 4 s" in report.errors[name]
    _stops(tmp_path / "alive")


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("SIGINT", "Hanging"),
        ("SIGTERM", "Hanging"),
        # Elsewhere a worker ends with a killed run only when Python can run its threads.
        ("SIGKILL", "Holding" if sys.platform == "linux" else "Hanging"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_workers_end_with_the_run(
    how: str, kind: str, fake: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    """A run that is interrupted or killed leaves no process behind, whatever a worker computes."""
    alive = tmp_path / "alive"
    monkeypatch.setenv("HANGING", str(alive))
    # A shell's background jobs ignore SIGINT, and children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    call = f"conformance.run([{fake(kind)!r}], {LOSS!r})"
    code = f"{heed}; from unifiedloss import conformance; {call}"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        while not alive.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(getattr(signal, how))
    assert process.returncode != 0
    _stops(alive)


def _stops(alive: Path) -> None:
    """Fail unless the process that keeps touching this file ends within 20 seconds."""
    for _ in range(40):
        with contextlib.suppress(FileNotFoundError):
            alive.unlink()
        time.sleep(0.5)
        if not alive.exists():
            return
    pytest.fail("the worker is still running")


def test_worker_is_no_command() -> None:
    """The worker's module, run by hand, names the command to run instead."""
    done = subprocess.run(
        [sys.executable, "-m", "unifiedloss.conformance"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "unifiedloss conform" in done.stderr


def test_which_mode_runs_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """The complete mode runs all cases; another mode the compiled ones and those that must raise.

    Keras' modes leave out the cases that belong to the backend below, and compile none in pieces.
    """

    class Both(type(registry.adapter("numpy"))):  # type: ignore[misc]
        def modes(self) -> dict[str, Mode]:
            eager = super().modes()["eager"]
            return {"eager": eager, "traced": eager._replace(raises=False, complete=True)}

    monkeypatch.setattr(checks, "check_case", lambda *_: checks.CheckResult(comparisons=1))
    every = runner.expected(["cross_entropy"])
    run: dict[str, dict[str, set[str]]] = {}
    for target in (workers.Target("both", "both"), workers.Target("keras (both)", "both", "numpy")):
        run[target.label] = noted = {"eager": set(), "traced": set()}

        def note(mode: str, name: str, *_: object, noted: dict[str, set[str]] = noted) -> None:
            noted[mode].add(name)

        list(runner.check(Both(), target, runner.Work(every, []), note))
    bad = {case.name for case, reference in every if reference and reference.bad_positions}
    compiled = {case.name for case, _ in every if case.compiled}
    assert bad - compiled
    assert run["both"]["eager"] == bad | compiled
    assert run["both"]["traced"] == {case.name for case, _ in every}
    of_backend = {case.name for case, _ in every if case.of_backend}
    assert of_backend & compiled
    assert of_backend - compiled
    assert run["keras (both)"]["eager"] == bad | (compiled - of_backend)
    cut = {case.name for case in cut_cases()}
    spared = (of_backend - compiled) | cut
    assert run["keras (both)"]["traced"] == run["both"]["traced"] - spared


def test_mode_without_its_compiler_is_absent() -> None:
    """A mode that this machine cannot run is reported with the reason, and the others are run."""

    class Half(type(registry.adapter("numpy"))):  # type: ignore[misc]
        def modes(self) -> dict[str, Mode]:
            eager = super().modes()["eager"]
            return {"eager": eager, "traced": eager._replace(missing="no compiler")}

    report = conformance.check_adapter(Half(), losses=LOSS)
    assert [row.mode for row in report.rows] == ["eager"]
    assert report.absent == {"numpy, traced": "no compiler"}
    assert report.ok
    alone = conformance.check_adapter(Half(), losses=LOSS, modes=["traced"])
    assert not alone.rows
    assert not alone.ok
    assert alone.absent == report.absent


def test_programs_of_jax_are_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All workers of a run share one cache; if the user has set one, they use it."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folders = {
        workers.environment(target.environment, tmp_path)["JAX_COMPILATION_CACHE_DIR"]
        for target in workers.all_targets()
    }
    assert folders == {str(tmp_path / "jax")}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "theirs")
    environment = workers.environment({}, tmp_path)
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "theirs"


def test_progress_comes_to_the_end() -> None:
    """The callback is called once for every case, in order."""
    steps: list[Progress] = []
    report = conformance.run(["numpy"], LOSS, progress=steps.append)
    assert all(b.done == a.done + 1 for a, b in pairwise(steps))
    assert steps[-1].done == steps[-1].total - 1 == report.rows[0].total.cases - 1
    assert {(step.backend, step.mode) for step in steps} == {("numpy", "eager")}


# ------------------------------------------------------------------------------------- arguments


def test_missing_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing framework is an error if it is requested by name, and otherwise only listed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch" else real(name, *rest),
    )
    targets, absent = workers.choose(None)
    assert "torch" in absent
    assert "keras (torch)" in absent
    assert not {"torch", "keras (torch)"} & {target.label for target in targets}
    for name in ("torch", "keras (torch)"):
        with pytest.raises(
            MissingBackendError,
            match=r"asked for, and torch is not installed.*unifiedloss\[torch\]",
        ):
            workers.choose([name])
    with pytest.raises(MissingBackendError):
        workers.choose(["numpy", "torch"])


@pytest.mark.framework("keras", "jax", "torch")
def test_one_process_per_backend_of_keras() -> None:
    """The name of Keras selects every framework below it, a row's label only one."""
    labels = [target.label for target in workers.choose(["keras"])[0]]
    assert set(labels) >= {"keras (jax)", "keras (torch)", "keras (numpy)"}
    (target,), _ = workers.choose(["keras (torch)"])
    assert target.environment["KERAS_BACKEND"] == "torch"
    (jax, wide), _ = workers.choose(["jax"])
    assert (jax.wide, wide.wide, wide.environment["JAX_ENABLE_X64"]) == (False, True, "1")


def test_refusals() -> None:
    """An unknown name raises an error that lists the known ones, before anything runs."""
    for arguments, message in (
        ({"backends": ["mxnet"]}, "there is no backend 'mxnet'; known are numpy, torch, "),
        ({"backends": []}, "no backend is asked for"),
        ({"losses": ["hinge"]}, "there is no loss 'hinge'; known are cross_entropy, "),
        ({"rounding": "up"}, "rounding must be 'native'"),
        (
            {"backends": ["numpy"], "losses": LOSS, "modes": ["jit"]},
            "has the mode 'jit': numpy has eager.",
        ),
    ):
        with pytest.raises(SpecValueError, match=re.escape(message)):
            conformance.run(**arguments)  # type: ignore[arg-type]
    with pytest.raises(SpecValueError, match=r"has no mode 'jit'; it has eager[.]$"):
        conformance.check_adapter(registry.adapter("numpy"), modes=["jit"])
    with pytest.raises(SpecValueError, match=r"it has eager[.] Did you mean 'eager'[?]"):
        conformance.check_adapter(registry.adapter("numpy"), modes=["Eager"])


def test_assert_conforms() -> None:
    """A correct adapter passes; a wrong one raises an error with the snippet of each failure."""
    adapter = registry.adapter("numpy")
    conformance.assert_conforms(adapter, losses=LOSS)

    class Wrong(type(adapter)):  # type: ignore[misc]
        def value_and_grad(self, *arguments: object) -> object:
            value, gradient = super().value_and_grad(*arguments)
            return value, -gradient

    with pytest.raises(
        AssertionError, match=r"(?s)gradient to the predictions.*adapter = Wrong\(\)"
    ) as caught:
        conformance.assert_conforms(Wrong(), losses=LOSS)
    assert "edge/22 one axis, weighted" in str(caught.value)


def test_comparing_nothing_fails() -> None:
    """A run that compares nothing fails, and its summary says so."""
    report = conformance.check_adapter(registry.adapter("numpy"), cases=[])
    assert not report.ok
    assert "nothing was compared" in report.summary()
    assert not Report().ok
    assert "no backend was checked" in Report().summary()


# --------------------------------------------------------------------------------------- reports


def test_report_is_read_back() -> None:
    """Every field survives JSON, even an infinite distance."""
    tally = Tally(3, 5, 1, float("inf"), 0.5)
    failures = [Failure("edge/a", "x", ("loss is 1",), "import x\n")]
    row = Row(
        "torch", "2", "eager", tally, {"x": tally}, {"no float64": 2}, 7, failures, 9, 1.25, 2.5
    )
    report = Report(
        [row], {"jax": "died"}, {"keras (jax)": "missing"}, "native", "quick", 2.5, "0.1.0"
    )
    again = Report.from_dict(json.loads(report.to_json()))
    assert again == report
    assert not again.ok
    assert json.loads(report.to_json())["ok"] is False


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": 0},
        {"version": None},
        {"rows": [{}]},
        {"rows": None},
        {"machine": ...},
    ],
    ids=str,
)
def test_no_report_is_refused(change: dict[str, object]) -> None:
    """Data of a later version, or data that are no report, raise a SerializationError."""
    data = Report().to_dict() | change
    with pytest.raises(SerializationError):
        Report.from_dict({name: value for name, value in data.items() if value is not ...})


# -------------------------------------------------------------------------------------- snippets

# Makes the snippets of a few cases in a process with the right backend, and prints them as JSON.
MAKE = """
import json, sys
from unifiedloss import registry
from unifiedloss.conformance import cases, snippets, softmax, workers
label, mode, *names = sys.argv[1:]
target = next(target for target in workers.all_targets() if target.label == label)
adapter = registry.adapter(target.backend)
every = (*cases.all_cases(), *softmax.softmax_cases())
bad = (*cases.bad_calls(), *softmax.bad_softmax_calls())
made = [snippets.of_case(adapter, target, mode, c, c.expected()) for c in every if c.name in names]
made += [snippets.of_bad_call(adapter, target, mode, c) for c in bad if c.name in names]
print(json.dumps(made))
"""
# Runs each snippet in an empty module, and prints their outputs as JSON.
PASTE = """
import contextlib, io, json, sys
said = []
for snippet in json.load(sys.stdin):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(snippet, {"__name__": "__main__"})
    except Exception as error:
        printed.write(f"{type(error).__name__}: {error}")
    said.append(printed.getvalue())
print(json.dumps(said), file=sys.__stdout__)
"""
NAMES = (
    "edge/03 sample weights, weights",
    "edge/42 bfloat16, none",
    "edge/30 NaN, dense, smoothing 0.1",
    "edge/06 empty batch, sum",
    "random/2026.000",
    "label 3",
    "labels as a column",
    "softmax/gaps, bfloat16",
    "softmax/no classes",
)
SNIPPETS = [
    pytest.param("numpy", "eager", marks=pytest.mark.framework("numpy")),
    pytest.param("torch", "aot_eager", marks=pytest.mark.framework("torch")),
    pytest.param("tensorflow", "function", marks=pytest.mark.framework("tensorflow")),
    pytest.param("jax (x64)", "jit", marks=pytest.mark.framework("jax")),
    pytest.param("keras (torch)", "eager", marks=pytest.mark.framework("keras", "torch")),
]


@pytest.mark.parametrize(("label", "mode"), SNIPPETS)
@pytest.mark.slow("eager snippets, and those of a mode under jit", only=["torch", "tensorflow"])
def test_snippets_run_as_pasted(label: str, mode: str) -> None:
    """A snippet selects the backend, makes the suite's call, and prints the result to compare."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("KERAS_BACKEND", "JAX_ENABLE_X64")
    }
    (target,), _ = workers.choose([label])
    made = _answer([MAKE, label, mode, *NAMES], "", kept | dict(target.environment))
    assert len(made) == len(NAMES)
    said = _answer([PASTE], json.dumps(made), kept)
    compared = 0
    for snippet, text in zip(made, said, strict=True):
        if "# should raise" in snippet:
            ((error, message),) = re.findall(r"# should raise (\w+): (.*)", snippet)
            assert message in text
            assert error in text  # a compiler may wrap it in its own error
            continue
        if "# should hold NaN" in snippet:
            assert "nan" in text
            continue
        wanted = re.findall(r"# should be (.*)", snippet)
        # Each printing line of the snippet prints a name and a value.
        got = re.split(r"(?:loss|softmax|gradient to [\w ]+): ", text)[1:]
        assert len(got) == len(wanted) >= 1 + ("gradient to" in snippet)
        for a, b in zip(got, wanted, strict=True):
            printed = np.array(a.replace("[", " ").replace("]", " ").split(), np.float64)
            special = {"nan": np.nan, "inf": np.inf}
            exact = np.atleast_1d(np.array(eval(b, special), np.float64))  # noqa: S307 - numbers
            assert printed.size == exact.size
            assert np.allclose(printed, exact, rtol=1e-2, atol=1e-5, equal_nan=True)
            compared += printed.size
    assert compared > 20


def _answer(arguments: list[str], given: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        input=given,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: list[str] = json.loads(done.stdout.splitlines()[-1])
    return answer


class _WithoutFloat16(NumPyAdapter):
    """An adapter whose framework has no float16, for any tensor."""

    name = "fake"

    def dtypes(self) -> tuple[str, ...]:
        return ("float32", "float64")

    def tensor(self, x: Any, dtype: str | None = None) -> Any:
        assert "float16" not in (np.asarray(x).dtype.name, dtype)
        return super().tensor(x, dtype)


def test_a_backend_without_float16_conforms() -> None:
    """Cases with targets or weights in a dtype that a backend lacks are not held against it."""
    cases = [case for case in all_cases() if "float16" in case.dtypes()]
    beside = [case for case in cases if case.dtype != "float16"]
    assert beside
    report = runner.check_adapter(_WithoutFloat16(), cases=[*beside, all_cases()[0]])
    assert report.ok, report.summary()
    (row,) = report.rows
    assert row.not_held == {"no float16": len(beside)}
    assert row.total.cases == 1
