"""Check anybody's loss function: `check_loss`, `check_loss_case` and ``conform --loss``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import unifiedloss as ul
from tests.rule_ids import rule_ids
from unifiedloss import registry
from unifiedloss.cli import app
from unifiedloss.conformance import OwnReport, check_loss, check_loss_case, loss_cases
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.judgement import expected_of, judge
from unifiedloss.conformance.own_function import OwnFunction, keywords_of
from unifiedloss.conformance.trial import answer_of
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import MissingBackendError, SpecTypeError, SpecValueError

TORCH = "torch.nn.CrossEntropyLoss()"
LOGITS = ul.CrossEntropyLoss(from_logits=True)
PADDED = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)

Write = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A function that writes code as the module `mine` into the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        Path("mine.py").write_text(code, encoding="utf-8")
        return "mine:loss"

    return write


def differing(report: OwnReport) -> dict[str, int]:
    """The number of differing cases of each rule that has some."""
    return {count.rule: count.differ for count in report.rules if count.differ}


def in_this_process(function: Callable[..., Any], spec: ul.Loss) -> OwnReport:
    """The report of `check_loss` on NumPy, without a worker, which takes a second to start."""
    adapter = registry.adapter("numpy")
    report = OwnReport(OwnFunction.of(function), spec, Target("numpy", "numpy"), "eager")
    for case in loss_cases(spec, keywords=keywords_of(function)):
        answer = answer_of(adapter, adapter.modes()["eager"], function, case)
        report.judgements.append(judge(case, expected_of(case), answer))
    report.total = len(report.judgements)
    return report


# ------------------------------------------------------------------------------- right and wrong


def test_a_right_function_passes() -> None:
    """A spec is a function of predictions and targets, and takes weights and masks."""
    spec = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, ignore_index=-100)
    report = check_loss(spec, spec, "numpy")
    assert report.ok, report.summary()
    assert report.keywords == ("sample_weight", "mask")
    assert report.total == len(report.judgements) == len(loss_cases(spec, keywords=report.keywords))
    assert not report.differentiates
    assert "nothing differs" in report.summary()
    assert json.loads(report.to_json())["ok"] is True


@pytest.mark.framework("torch")
def test_torch_differs_from_its_spec_only_where_it_is_known_to() -> None:
    """Nothing differs beside the rules that the scoreboard names."""
    name = "torch.nn.functional:cross_entropy"
    without = ["target-dtypes", "bad-target", "tiny-entries", "infinite-logits"]
    report = check_loss(name, TORCH, "torch", without=without)
    assert report.differentiates
    assert report.keywords == ()
    # The gradient of an ignored row of NaN is NaN.
    assert [each.case.name for each in report.differing] == ["edge/32 NaN logits ignored"]
    assert not report.differing[0].value_differs
    assert report.differing[0].gradient_differs
    assert not report.explanations


@pytest.mark.parametrize(
    ("wrong", "spec", "field", "value", "rule"),
    [
        ("label_smoothing", LOGITS.replace(label_smoothing=0.1), "label_smoothing", 0.0, None),
        ("divisor", PADDED, "divisor", "all", "divisor"),
        ("ignore_index", PADDED, "ignore_index", None, "ignore-index"),
        ("scale", ul.MeanSquaredError(), "scale", 0.5, None),
        ("reduction", ul.HuberLoss(), "reduction", "sum", None),
    ],
)
def test_a_wrong_field_is_found_and_named(
    wrong: str, spec: ul.Loss, field: str, value: Any, rule: str | None
) -> None:
    """The report names the field whose other value explains what differs, and the rule."""
    report = in_this_process(spec.replace(**{wrong: value}), spec)
    assert not report.ok
    best = report.explanations[0]
    assert (best.field, best.value) == (field, value)
    assert best.explained == best.tried
    assert f"With {field}={value!r} in the spec" in report.summary()
    if rule is not None:  # nearly all that differs is of this rule; the rest has bad values
        assert differing(report)[rule] > 0.8 * len(report.differing)
        assert len(report.differing) < len(report.judgements) / 2
    else:
        assert len(report.differing) > len(report.judgements) / 4


@pytest.mark.framework("torch")
def test_a_detached_gradient_is_found(module: Write) -> None:
    """The loss is right everywhere, and the gradient nowhere."""
    name = module(
        "from torch.nn.functional import mse_loss\n"
        "def loss(p, t):\n"
        "    return mse_loss(p, t) + (p.detach() - p).sum()\n"
    )
    report = check_loss(name, "torch.nn.MSELoss()", "torch", without=["bad-integer-target"])
    finite = [each for each in report.differing if "ieee-errors" not in each.case.rules]
    assert finite
    assert not any(each.value_differs for each in finite)
    assert all(each.gradient_differs for each in finite)
    row = next(count for count in report.rules if count.rule == "mean-squared-error")
    assert row.gradient_differs == len(report.differing) > row.value_differs
    assert row.gradient_ulps > 1e5


@pytest.mark.framework("torch")
@pytest.mark.slow("the snippets of adapters, which tests/test_conformance_catches.py runs")
def test_the_snippet_reproduces_a_failure(module: Write) -> None:
    """The code of a failure, pasted, prints the wrong loss and gradient."""
    name = module("def loss(p, t):\n    return 2 * ((p - t) ** 2).mean()\n")
    report = check_loss(name, "torch.nn.MSELoss()", "torch", without=["target-dtypes"])
    code = report.snippet(report.differing[0])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = re.search(r"loss: .*?tensor\(([\d.]+)", done.stdout)
    wanted = re.search(r"# should be ([\d.]+)", code)
    assert shown is not None
    assert wanted is not None
    assert float(shown[1]) == pytest.approx(2 * float(wanted[1]), rel=1e-3)
    assert "gradient:" in done.stdout


# ---------------------------------------------------------------------- crashes, hangs and errors


def test_crash_hang_and_error_are_results(module: Write) -> None:
    """Each is the result of its case, and all other cases run."""
    name = module(
        "import os, sys, time\n"
        "import numpy as np\n"
        "import unifiedloss as ul\n"
        "spec = ul.MeanSquaredError()\n"
        "def loss(p, t):\n"
        "    if t.dtype == np.bool_: os.abort()\n"
        "    if t.dtype == np.int8: time.sleep(60)\n"
        "    if t.dtype == np.uint8: sys.exit('out')\n"
        "    if np.isnan(p).any(): raise ValueError('a NaN\\nin two lines')\n"
        "    print('noise on stdout')\n"
        "    return spec(p, t)\n"
    )
    report = check_loss(name, "ul.MeanSquaredError()", "numpy", seconds=1)
    said = {each.case.name.rpartition(" of ")[2]: each.what[0][0] for each in report.differing}
    assert said.pop("bool") == "crashed: its process was killed by the signal SIGABRT"
    assert said.pop("int8") == "no answer within 1 s"
    assert said.pop("uint8") == "raised SystemExit: out"
    assert said
    assert set(said.values()) == {"raised ValueError: a NaN"}
    assert report.not_run == 0
    assert all(each.value_differs and each.gradient_differs for each in report.differing)
    assert len(report.differing) < report.total / 2


def test_a_function_that_always_crashes_is_given_up(module: Write) -> None:
    """Each crash is told at once, and after three the other cases are not run."""
    name = module("import os\ndef loss(p, t):\n    os.abort()\n")
    options = ["--loss", name, "--as", "ul.HuberLoss()", "--backend", "numpy", "--failures", "0"]
    done = CliRunner().invoke(app, ["conform", *options])
    assert done.exit_code == 1
    assert "cases were not run: each of the first 3 ended its process." in done.stdout
    told = [line for line in done.stderr.splitlines() if "crashed: its process was killed" in line]
    assert [line.partition(" of ")[0] for line in told] == ["1", "2", "3"]


def test_a_run_ends_in_time(module: Write) -> None:
    """What is left then is counted as not run, and the report is not ok."""
    name = module("import time\ndef loss(p, t):\n    time.sleep(60)\n")
    report = check_loss(name, "ul.HuberLoss()", "numpy", seconds=0.2, seconds_in_all=0.5)
    assert 0 < len(report.judgements) < report.total
    assert report.not_run == report.total - len(report.judgements)
    assert not report.ok
    assert f"{report.not_run} of {report.total} cases were not run" in report.summary()


def test_an_error_fits_a_bad_value_and_nothing_else() -> None:
    """Where a label is out of range, an error is right and so is NaN."""

    def refuses(*_: Any) -> Any:
        raise ValueError

    def gives_nan(*_: Any) -> Any:
        return np.float32(np.nan)

    cases = loss_cases("ul.CrossEntropyLoss(from_logits=True)")
    bad = [case for case in cases if "bad-label" in case.rules and case.expected().bad_positions]
    assert len(bad) >= 3
    for case in bad:
        check_loss_case(refuses, case, "numpy")
        check_loss_case(gives_nan, case, "numpy")
        with pytest.raises(AssertionError, match="bad-label"):
            check_loss_case(lambda *_: np.float32(0.5), case, "numpy")
    with pytest.raises(AssertionError, match="raised ValueError"):
        check_loss_case(refuses, cases[0], "numpy")


# ------------------------------------------------------------------------------- which function


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda *_: 0.0, SpecTypeError, "does not pickle"),
        (3, SpecTypeError, "must be a function"),
        ("mine.loss", SpecValueError, "'package.module:function', got 'mine.loss'"),
        ("mine:two words", SpecValueError, "'package.module:function'"),
        ("nowhere:loss", SpecValueError, "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_function_that_cannot_be_had(function: Any, error: type[Exception], words: str) -> None:
    """The error says why, and what to pass."""
    with pytest.raises(error, match=words):
        check_loss(function, "ul.HuberLoss()", "numpy")


def test_a_name_that_is_no_function() -> None:
    """The worker reports these errors."""
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        OwnFunction.of("math:nothing").load()
    with pytest.raises(TypeError, match=r"3\.14159.*no function"):
        OwnFunction.of("math:pi").load()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no GPU')", "cannot be imported: RuntimeError: no GPU"),
        ("import os; os._exit(3)", "its process ended with status 3"),
    ],
)
def test_a_module_that_fails_on_import(module: Write, code: str, words: str) -> None:
    """The module runs in the worker, which may die of it."""
    with pytest.raises(SpecValueError, match=words):
        check_loss(module(code), "ul.HuberLoss()", "numpy")


def test_a_function_of_the_program_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process can import what `__main__` defines."""

    def loss(*_: Any) -> Any:
        return 0.0

    monkeypatch.setattr(loss, "__module__", "__main__")
    with pytest.raises(SpecTypeError, match="defined in the program itself"):
        check_loss(loss, "ul.HuberLoss()", "numpy")


def test_other_wrong_arguments() -> None:
    """They are refused before a process starts."""
    spec = ul.HuberLoss()
    with pytest.raises(SpecValueError, match="no mode 'jit'"):
        check_loss(spec, spec, "numpy", mode="jit")
    with pytest.raises(SpecValueError, match="no backend 'nympy'"):
        check_loss(spec, spec, "nympy")
    with pytest.raises(SpecValueError, match="Did you mean 'target-dtypes'"):
        check_loss(spec, spec, "numpy", without=["target-dtype"])
    with pytest.raises(SpecValueError, match="dtypes must be of"):
        check_loss(spec, spec, "numpy", dtypes=["int8"])
    with pytest.raises(SpecValueError, match="targets must be of 'index', 'dense'"):
        check_loss(LOGITS, LOGITS, "numpy", targets="labels")
    with pytest.raises(SpecValueError, match="most have 3 classes"):
        loss_cases(LOGITS.replace(class_weights=(1.0,) * 77))
    with pytest.raises(SpecValueError, match="leave out fewer rules"):
        loss_cases(spec, without=["huber"])


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra."""
    from unifiedloss.conformance import workers

    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingBackendError, match=r"unifiedloss\[torch\]"):
        check_loss("mine:loss", TORCH, "torch")


# --------------------------------------------------------------------------------------- the cases


def test_cases_are_those_that_fit_the_spec() -> None:
    """Each has the spec, and tensors that it accepts; no two have the same."""
    for text in (TORCH, "torch.nn.BCELoss()", "torch.nn.MSELoss()", "optax.losses.huber_loss"):
        spec = ul.from_native(text)
        cases = loss_cases(text, keywords=("sample_weight", "mask"))
        assert len(cases) >= 10
        for case in cases:
            assert case.spec == spec
            assert case.dtype == "float32"
            assert set(case.rules) <= rule_ids()
            assert case.rules
            case.expected()  # which refuses what does not fit
        tensors = [
            tuple(
                None if x is None else (np.shape(x), np.asarray(x).tobytes())
                for x in (c.predictions, c.targets, c.sample_weight, c.mask, c.upstream)
            )
            for c in cases
        ]
        assert len({*zip(tensors, [c.targets.dtype.name for c in cases], strict=True)}) == len(
            cases
        )


def test_the_class_axis_is_moved() -> None:
    """A spec with axis 1 gets the inputs whose classes lie last, with the classes at axis 1."""
    last = {case.name: case for case in loss_cases(LOGITS.replace(axis=-1))}
    first = {case.name: case for case in loss_cases(LOGITS.replace(axis=1))}
    name = next(name for name in last if last[name].predictions.ndim > 2)
    moved = np.moveaxis(last[name].predictions, -1, 1)
    assert np.array_equal(moved, first[name].predictions)
    assert "axis" in first[name].rules
    assert "axis" not in last[name].rules


def test_ignored_labels_are_those_of_the_spec() -> None:
    """A label that a case ignores becomes the one that the spec ignores."""
    name = "edge/04 ignored label, weights"
    (case,) = (case for case in loss_cases(LOGITS.replace(ignore_index=7)) if case.name == name)
    assert case.targets.tolist() == [0, 1, 7, 2]
    assert {"ignore-index", "divisor"} <= set(case.rules)
    (case,) = (case for case in loss_cases(LOGITS) if case.name == name)
    assert case.targets.tolist() == [0, 1, -100, 2]
    assert "ignore-index" not in case.rules


def test_weights_only_for_a_function_that_takes_them() -> None:
    """Cases chosen by hand are left out without a weight; the others run unweighted."""
    plain, weighted = loss_cases(LOGITS), loss_cases(LOGITS, keywords=("sample_weight",))
    assert all(case.sample_weight is None and case.mask is None for case in plain)
    assert any(case.sample_weight is not None for case in weighted)
    names = {case.name for case in plain}
    assert "edge/32 NaN logits under weight 0" not in names
    assert any(name.startswith("product/") for name in names)


def test_dtypes_and_targets() -> None:
    """Other dtypes of predictions, and one kind of targets, on request."""
    assert {case.dtype for case in loss_cases(LOGITS, dtypes=("bfloat16",))} == {"bfloat16"}
    index = loss_cases(LOGITS, targets="index")
    dense = loss_cases(LOGITS, targets="dense")
    assert {case.targets.dtype.kind for case in index} <= {"i", "u"}
    assert {case.targets.dtype.kind for case in dense} == {"f"}


@pytest.mark.parametrize("case", loss_cases(PADDED)[::6], ids=lambda case: case.name)
def test_one_test_for_each_case(case: Case) -> None:
    """As the page Conformance shows it."""
    check_loss_case(PADDED, case, "numpy")


def test_the_failure_of_one_case() -> None:
    """The error has the case, its rules, what differs, and code to paste."""
    (case,) = (case for case in loss_cases(PADDED) if case.name == "edge/04 ignored label, weights")
    with pytest.raises(AssertionError) as caught:
        check_loss_case(PADDED.replace(divisor="all"), case, "numpy")
    message = str(caught.value)
    assert message.startswith("edge/04 ignored label, weights (divisor, ignore-index")
    assert "loss is 0.72845" in message
    assert "should be 0.97127" in message
    assert "adapter = registry.adapter('numpy')" in message


# ------------------------------------------------------------------------------- the command line


def run(*arguments: str) -> Any:
    """Run a command in this process; the function runs in a worker as always."""
    return CliRunner().invoke(app, ["conform", *arguments])


def test_conform_checks_a_function(module: Write, tmp_path: Path) -> None:
    """It prints a table of 80 columns and the first failures, and the exit status is 1."""
    module(
        "import unifiedloss as ul\nloss = ul.CrossEntropyLoss(from_logits=True, divisor='all')\n"
    )
    spec = "ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)"
    Path("spec.json").write_text(ul.from_native(spec).to_json(), encoding="utf-8")
    done = run(
        *("--loss", "mine:loss", "--as", "spec.json", "--backend", "numpy", "--targets", "index"),
        *("--json", "report.json"),
    )
    assert done.exit_code == 1, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("mine:loss on numpy ")
    table = lines[lines.index("") + 1 :]
    table = table[: table.index("")]
    assert table[0].split()[:3] == ["rule", "cases", "differ"]
    assert all(len(line) <= 80 for line in table)
    assert re.match(r"ignore-index +\d+ +\d+ +\d+ +\d+ +inf", table[1]) or "divisor" in table[1]
    assert any(re.match(r"\d+ cases of \d+ rules: \d+ differ; ", line) for line in lines)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["differ"] == len(report["failures"]) > 0
    assert report["loss"] == "mine:loss"
    assert all(failure["snippet"] for failure in report["failures"])


def test_conform_passes_with_a_right_function(module: Write) -> None:
    """The exit status is 0."""
    module("import unifiedloss as ul\nloss = ul.HuberLoss()\n")
    done = run("--loss", "mine:loss", "--as", "ul.HuberLoss()", "--backend", "numpy")
    assert done.exit_code == 0, done.output
    assert "nothing differs." in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--loss", "mine:loss", "--backend", "numpy"), "--as is missing"),
        (("--loss", "mine:loss", "--as", "ul.HuberLoss()"), "give --backend once"),
        (("--as", "ul.HuberLoss()"), "--as concerns a loss function of yours"),
        (("--loss", "mine:a", "--loss", "huber", "--as", "ul.HuberLoss()"), "one loss function"),
        (("--loss", "mine:a", "--as", "x", "--rounding", "exact"), "--rounding does not concern"),
        (("--loss", "m:a", "--as", "Huber(", "--backend", "numpy"), "Huber("),
    ],
)
def test_conform_refuses_options_that_do_not_fit(arguments: tuple[str, ...], words: str) -> None:
    """The exit status is 2, and the message says what to do."""
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


# --------------------------------------------------------------------------- every other framework


@pytest.mark.framework("jax", "tensorflow", "keras")
@pytest.mark.slow("the same machinery with NumPy and torch")
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "keras (jax)", "keras (tensorflow)"])
def test_other_backends(backend: str) -> None:
    """Our own loss passes in every backend, with its gradient."""
    spec = ul.MeanSquaredError()
    report = check_loss(spec, spec, backend, seconds=60)
    assert report.ok, report.summary()
    assert report.differentiates
    assert report.target.label == backend


@pytest.mark.framework("torch")
@pytest.mark.slow("eager mode")
def test_a_compiled_mode() -> None:
    """Each case is compiled."""
    report = check_loss(PADDED, PADDED, "torch", mode="aot_eager", seconds=60, targets="index")
    assert report.ok, report.summary()
    assert os.environ.get("KERAS_BACKEND") is None or report.mode == "aot_eager"
