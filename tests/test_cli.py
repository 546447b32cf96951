"""The command line: its output, its errors and its exit statuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import unifiedloss as ul
from tests.fake_adapters import Install, fake  # noqa: F401 - a fixture
from unifiedloss import compiled
from unifiedloss.cli import app
from unifiedloss.compiled import threads
from unifiedloss.conformance import Report, compare


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "unifiedloss", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save logits and labels to a file."""
    rng = np.random.default_rng(0)
    path = tmp_path / "saved.npz"
    np.savez(
        path,
        predictions=rng.normal(size=(16, 5)).astype(np.float32),
        targets=rng.integers(5, size=16),
    )
    return path


def test_help_is_quick() -> None:
    """Help takes less than a second of processor time, and loads no framework."""
    spent = []
    for _ in range(3):
        before = os.times().children_user
        assert "conform" in run("--help").stdout
        spent.append(os.times().children_user - before)
    assert min(spent) < 1
    names = ["torch", "tensorflow", "keras", "jax", "unifiedloss.adapters.numpy"]
    code = (
        "import sys; from unifiedloss import cli, conformance; "
        f"print([m for m in {names!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_each_help_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command's help fits 80 columns, names no type of Python, and has a line that runs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez(
        "batch.npz",
        predictions=rng.normal(size=(16, 5)).astype(np.float32),
        targets=rng.integers(5, size=16),
    )
    shown = CliRunner().invoke(app, [name, "--help"], terminal_width=80).stdout
    head, _, examples = shown.partition("Examples:\n")
    assert max(map(len, head.splitlines())) <= 80
    assert "list[" not in head
    assert "<bool>" not in head
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "unifiedloss"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code in (0, 1), done.output
        assert done.stdout


def test_version() -> None:
    """The command prints the library's version."""
    assert run("--version").stdout.strip() == f"unifiedloss {ul.__version__}"


@pytest.mark.parametrize("module", ["unifiedloss", "unifiedloss.cli"])
def test_running_the_package_is_the_command(module: str) -> None:
    """``python -m`` runs the command line."""
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"unifiedloss {ul.__version__}"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_named(missing: str) -> None:
    """If a package of the extra "cli" is missing, the command says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; from unifiedloss.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'unifiedloss[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.framework("numpy", "torch")
def test_backends_are_listed() -> None:
    """The command lists names and versions, and the level of the compiled loops."""
    # In this process, because most of its tests have imported the frameworks.
    done = CliRunner().invoke(app, ["backends"])
    assert done.exit_code == 0
    *lines, last = done.stdout.splitlines()
    count = threads.number()
    assert last == f"compiled loops: {compiled.level()}, {count} thread{'s' * (count > 1)}"
    versions = dict(line.split() for line in lines if line.strip())
    assert versions["numpy"] == np.__version__
    assert "torch" in versions


@pytest.mark.framework("numpy")
def test_conform_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    """A run of one backend and one loss prints a table, exits with 0 and writes the file."""
    path = tmp_path / "report.json"
    done = run("conform", "--backend", "numpy", "--loss", "mean_squared_error", "--json", str(path))
    assert done.returncode == 0, done.stderr
    for word in ("backend", "compared", "programs", "failed", "numpy", "eager"):
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.splitlines()[-1].endswith("nothing differs.")
    # Without a terminal there are no progress bars: stderr has the expected time and the rows.
    first, line = done.stderr.splitlines()
    assert re.fullmatch(r"Checking 1 backend: at most \d+ minutes on two cores\.", first)
    assert re.fullmatch(r"1 of 1: numpy, eager: \d+ cases, 0 failures, \d+ s", line)
    assert re.search(r"^\d+ comparisons in 1 row, \d+ s: ", done.stdout, re.MULTILINE)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [row["backend"] for row in report["rows"]] == ["numpy"]
    assert report["rows"][0]["comparisons"] > 50


@pytest.mark.framework("numpy", "torch")
def test_quick_conform_says_so(tmp_path: Path) -> None:
    """A quick run compiles fewer cases and says so; its table fits 80 columns."""
    path = tmp_path / "report.json"
    only = ("--backend", "numpy", "--backend", "torch", "--loss", "mean_squared_error")
    done = run("conform", "--quick", *only, "--json", str(path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Checking 2 backends, quick: at most ")
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert report.strength == "quick"
    assert [(row.backend, row.mode) for row in report.rows] == [
        ("numpy", "eager"),
        ("torch", "eager"),
        ("torch", "aot_eager"),
    ]
    eager, compiled = report.rows[1:]
    assert not eager.left_out
    assert 0 < compiled.total.cases < eager.total.cases
    assert compiled.programs


def test_conform_fails_with_a_wrong_backend(fake: Install, tmp_path: Path) -> None:  # noqa: F811
    """The status is 1, and the table, the snippets and the file have every failure."""
    name, path = fake("Doubling"), tmp_path / "report.json"
    done = run("conform", "--backend", name, "--loss", "mean_squared_error", "--json", str(path))
    assert done.returncode == 1
    report = Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
    assert report.failures
    for _, failure in report.failures:
        assert failure.case in done.stdout
        assert failure.snippet.strip() in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
    assert line.split()[6] == str(len(report.failures))
    assert f"{len(report.failures)} cases failed" in done.stdout


def test_conform_fails_with_a_backend_that_dies(fake: Install) -> None:  # noqa: F811
    """The status is 1, and the end of the process's stderr is printed."""
    done = run("conform", "--backend", fake("Dying"), "--loss", "mean_squared_error")
    assert done.returncode == 1
    assert "the stack smashed itself" in done.stdout
    assert "the run failed" in done.stdout


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    """The status is 2, and one line says why."""
    path = tmp_path / "missing" / "report.json"
    done = run("conform", "--backend", "numpy", "--loss", "mean_squared_error", "--json", str(path))
    assert done.returncode == 2
    assert "cannot write" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("conform", "--backend", "mxnet"),
            (
                "there is no backend 'mxnet'; known are numpy, torch, tensorflow, keras, "
                "keras (jax), keras (numpy), keras (tensorflow), keras (torch), jax, jax (x64), "
                "dask."
            ),
        ),
        (("conform", "--backend", "pytorch"), "dask. Did you mean 'torch'?"),
        (("conform", "--backend", "Keras (Jax)"), "dask. Did you mean 'keras (jax)'?"),
        (("conform", "--loss", "hinge"), "there is no loss 'hinge'"),
        (("conform", "--loss", "mse"), "softmax. Did you mean 'mean_squared_error'?"),
        (("conform", "--rounding", "up"), "rounding must be 'native', 'exact' or 'auto', got 'up'"),
        (("compare", "nothing.npz"), "there is no file nothing.npz"),
        (("compare", "nothing.npy", "{array}"), "there is no file nothing.npy"),
        (("compare", "{array}", "{saved}"), "the predictions have 3 rows, and the targets have 16"),
        (("compare", "{array}", "{text_npy}"), "it is damaged, or is no .npy file"),
        (("compare", "{saved}", "--mask", "{array}"), "rows, and the mask have 3"),
        (("compare", "{saved}", "--loss", "hinge", "--from-logits"), "'loss' must be one of"),
        (("compare", "{saved}"), "not a probability. If these are logits, set from_logits=True"),
        (
            ("compare", "{saved}", "--from-logits", "--label-smoothing", "2"),
            "label_smoothing must lie in",
        ),
        (("compare", "{saved}", "--loss", "mean_squared_error"), "targets must have the shape"),
        (("compare", "{saved}", "--loss", "mse"), "got 'mse'. Did you mean 'mean_squared_error'?"),
        (
            ("compare", "{saved}", "--loss", "mean_squared_error", "--from-logits"),
            (
                "--from-logits does not apply to the loss mean_squared_error; its options are "
                "--reduction, --divisor, --on-empty, --rounding."
            ),
        ),
        (
            ("compare", "{saved}", "--pos-weight", "1"),
            "--pos-weight does not apply to the loss cross_entropy; its",
        ),
        (
            ("compare", "{array}", "--from-logits"),
            "array.npy holds one array, the predictions; name the file of the targets",
        ),
        (
            ("compare", "{text}", "--from-logits"),
            "text.npz is no .npz file; save it with numpy.savez(file, ",
        ),
        (
            ("compare", "{cut}", "--from-logits"),
            "cut.npz is no .npz file; save it with numpy.savez(file, ",
        ),
        (
            ("compare", "{folder}", "--from-logits"),
            "folder has the suffix ''; files are read with .npy, .npz, .safetensors,",
        ),
        (("compare", "{pickled}", "--from-logits"), "the array 'predictions' in "),
        (
            ("compare", "{pickled}", "--from-logits"),
            "is damaged, or holds Python objects and not numbers; save it with",
        ),
        (("compare", "{flipped}", "--from-logits"), "the array 'predictions' in "),
        (
            ("compare", "{zipped}", "--from-logits"),
            "has no array 'predictions'; its arrays are none.",
        ),
        (
            ("compare", "{more}", "--from-logits"),
            "has an array 'sample_weights', which is not read",
        ),
        (("compare", "{integers}", "--from-logits"), "predictions must be floating (float16"),
        (("compare", "{words}", "--from-logits"), "predictions must be floating (float16"),
        (("compare", "{far}", "--from-logits"), "targets[1] is 7: not a class index in 0..4"),
        (
            ("compare", "{saved}", "--from-logits", "--rounding", "upwards"),
            "rounding must be one of 'native', 'exact'",
        ),
        (
            ("compare", "{saved}", "--from-logits", "--class-weights", "1,x"),
            "'1,x' is no list of numbers",
        ),
        (
            ("compare", "{saved}", "--from-logits", "--class-weights", "1,2"),
            "class_weights has 2 entries",
        ),
        (
            ("compare", "{saved}", "--from-logits", "--backend", "mxnet"),
            "there is no backend 'mxnet'",
        ),
        (
            ("compare", "{saved}", "--spec", "nothing.json"),
            "cannot read the spec in nothing.json: No such file",
        ),
        (("compare", "{saved}", "--spec", "{saved}"), "cannot read the spec"),
        (("compare", "{saved}", "--spec", "{text}"), "text.npz: The text is not JSON"),
        (("compare", "{saved}", "--spec", "{later}"), "cannot read the spec in "),
        (("compare", "{saved}", "--spec", "{later}"), "later.json: The key 'version' is 99"),
        (("compare", "{saved}", "--spec", "{{}}"), "The key 'loss' is missing"),
        (
            ("compare", "{saved}", "--spec", "{{}}", "--loss", "cross_entropy", "--axis", "0"),
            "leave out --loss, --axis",
        ),
    ],
)
def test_refusals(arguments: tuple[str, ...], words: str, files: dict[str, Path]) -> None:
    """An error is one line without a traceback, and the status is 2."""
    done = CliRunner().invoke(app, [argument.format(**files) for argument in arguments])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert words in " ".join(done.output.split())
    # `compare` says the size of the arrays before it starts.
    sized = "of memory" in done.output.partition("Error: ")[0]
    assert len(done.output.strip().splitlines()) == 1 + sized
    assert "allow_pickle" not in done.output


@pytest.mark.framework("numpy", "torch")
def test_unknown_mode() -> None:
    """The message lists the modes of the requested backends only."""
    only = ("--backend", "torch", "--backend", "numpy", "--loss", "mean_squared_error")
    done = run("conform", *only, "--mode", "Inductor")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: no backend that was run has the mode 'Inductor': numpy has eager; "
        "torch has eager, aot_eager, inductor. Did you mean 'inductor'?"
    )


@pytest.mark.parametrize("arguments", [("conform", "--rounding", "up"), ("compare", "nothing.npz")])
def test_no_traceback_reaches_the_user(arguments: tuple[str, ...]) -> None:
    """An error of the real process is one line on stderr, too."""
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout


def rows(output: str) -> dict[tuple[str, str], list[str]]:
    """The cells of a comparison's table, by the first two: backend and rounding."""
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in output.splitlines()
        if line.startswith("│")
    ]
    return {(backend, rounding): rest for backend, rounding, *rest in cells}


@pytest.fixture
def files(saved: Path, tmp_path: Path) -> dict[str, Path]:
    """Write files with every mistake that a file can have, and return them by name."""
    with np.load(saved) as file:
        z, y = file["predictions"], file["targets"]
    np.save(tmp_path / "array.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("no archive", encoding="utf-8")
    (tmp_path / "text_npy.npy").write_text("no array", encoding="utf-8")
    (tmp_path / "cut.npz").write_bytes(saved.read_bytes()[:200])
    np.savez(tmp_path / "pickled.npz", predictions=np.array([{}]), targets=y)
    np.savez(tmp_path / "more.npz", predictions=z, targets=y, sample_weights=y)
    np.savez(tmp_path / "integers.npz", predictions=z.astype(np.int32), targets=y)
    np.savez(tmp_path / "words.npz", predictions=np.array(["a"] * 16), targets=y)
    np.savez(tmp_path / "far.npz", predictions=z, targets=np.where(np.arange(16) == 1, 7, y))
    content = bytearray(saved.read_bytes())
    content[200] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "zipped.npz", "w") as archive:
        archive.writestr("predictions", "no array")
    (tmp_path / "folder").mkdir()
    (tmp_path / "later.json").write_text(
        '{"loss": "cross_entropy", "version": 99}', encoding="utf-8"
    )
    return {path.stem: path for path in tmp_path.iterdir()}


@pytest.mark.framework("numpy", "torch")
def test_compare(saved: Path, tmp_path: Path) -> None:
    """A loss given by options or by a file has the same value in each backend.

    Native results are within the bound, and exact results are equal.
    """
    spec = tmp_path / "spec.json"
    spec.write_text(
        ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1).to_json(), encoding="utf-8"
    )
    with np.load(saved) as file:
        value = ul.cross_entropy_loss(
            file["predictions"], file["targets"], from_logits=True, label_smoothing=0.1
        )
    only = ("--backend", "numpy", "--backend", "torch")
    for options in (("--from-logits", "--label-smoothing", "0.1"), ("--spec", str(spec))):
        done = run("compare", str(saved), *options, *only)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "measured against: oracle" in done.stdout
        table = rows(done.stdout)
        assert list(table) == [
            (name, rounding) for name in ("numpy", "torch") for rounding in ("native", "exact")
        ]
        for cells in table.values():
            assert cells[0].startswith(f"{value:.9f}"[:7])
            assert cells[4] == "yes"
        exact = [table[name, "exact"] for name in ("numpy", "torch")]
        assert exact[0][:5] == exact[1][:5]
        assert exact[0][1:4] == ["0", "100.00 %", "0"]
        # Native gradients are not all equal to the oracle's, or this comparison would show nothing.
        assert "100.00 %" not in (table["numpy", "native"][2], table["torch", "native"][2])


@pytest.mark.parametrize("rounding", ["native", "exact"])
def test_compare_one_rounding(rounding: str, saved: Path, tmp_path: Path) -> None:
    """The option --rounding selects the rows, and overrides the rounding of a spec in a file."""
    spec = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1)
    path = tmp_path / "spec.json"
    for options in (("--from-logits", "--label-smoothing", "0.1"), ("--spec", str(path))):
        path.write_text(spec.replace(rounding="exact").to_json(), encoding="utf-8")
        done = CliRunner().invoke(
            app, ["compare", str(saved), *options, "--rounding", rounding, "--backend", "numpy"]
        )
        assert done.exit_code == 0, done.output
        assert list(rows(done.output)) == [("numpy", rounding)]
        assert f"{spec.replace(rounding=rounding)!r}, measured against: oracle" in done.output


OPTIONS = [
    (
        ul.CrossEntropyLoss(
            from_logits=True,
            class_weights=(1, 2, 1, 1, 0.5),
            ignore_index=(-100, 3),
            divisor="present",
            axis=1,
        ),
        (
            "--from-logits --class-weights 1,2,1,1,0.5 --ignore-index -100 --ignore-index 3 "
            "--divisor present --axis 1"
        ),
    ),
    (
        ul.BinaryCrossEntropyLoss(
            epsilon=1e-3, pos_weight=2.5, label_smoothing=0.2, reduction="sum"
        ),
        (
            "--loss binary_cross_entropy --epsilon 1e-3 --pos-weight 2.5 --label-smoothing 0.2 "
            "--reduction sum"
        ),
    ),
    (
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=(1, 2, 3, 4, 5)),
        "--loss binary_cross_entropy --from-logits --pos-weight 1,2,3,4,5",
    ),
    (
        ul.MeanSquaredError(on_empty="zero", rounding="exact"),
        "--loss mean_squared_error --on-empty zero --rounding exact",
    ),
]


@pytest.mark.parametrize(("spec", "options"), OPTIONS, ids=[options for _, options in OPTIONS])
def test_options_make_the_spec(spec: ul.CrossEntropyLoss, options: str, tmp_path: Path) -> None:
    """Every field has its option, and weights and masks in the file are used."""
    rng = np.random.default_rng(1)
    p = rng.uniform(size=(6, 5)).astype(np.float32)
    t = (
        rng.integers(5, size=6)
        if spec.name == "cross_entropy"
        else rng.uniform(size=(6, 5)).astype(np.float32)
    )
    weight, mask = rng.uniform(size=6).astype(np.float32), np.array([True, False] * 3)
    path = tmp_path / "saved.npz"
    np.savez(path, predictions=p, targets=t, sample_weight=weight, mask=mask)
    done = CliRunner().invoke(app, ["compare", str(path), *options.split(), "--backend", "numpy"])
    assert done.exit_code == 0, done.output
    assert repr(spec) in done.output
    table = rows(done.output)
    assert len(table) == (2 if "--rounding" not in options else 1)
    for (_, rounding), (value, *_) in table.items():
        expected = spec.replace(rounding=rounding)(p, t, sample_weight=weight, mask=mask)
        assert float(value) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.framework("numpy", "keras", "jax")
def test_compare_in_every_backend(saved: Path) -> None:
    """Each backend has its rows; JAX with 64 bits runs only for float64 inputs."""
    with np.load(saved) as file:
        arrays = dict(file)
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    only = ["numpy", "jax", "keras (numpy)"]
    truths, lines = compare.compare(spec, arrays, only)
    assert [(line.backend, line.rounding) for line in lines] == [
        (name, r) for name in only for r in ("native", "exact")
    ]
    assert list(truths) == ["native", "exact"]
    for line in lines:
        assert line.rounding is not None
        truth = truths[line.rounding]
        assert truth.loss.shape == (16,)
        assert line.within
        assert line.milliseconds > 0
        assert line.value == pytest.approx(truth.loss.mean(), rel=1e-6)
        if line.rounding == "exact":
            assert (line.value_ulps, line.gradient_equal, line.gradient_ulps) == (0, 1, 0)
        else:
            assert 0 <= line.value_ulps < 8
            assert 0 < line.gradient_equal <= 1
    _, lines = compare.compare(
        spec, arrays | {"predictions": arrays["predictions"].astype(np.float64)}, ["jax"]
    )
    assert [line.backend for line in lines] == ["jax"] * 2 + ["jax (x64)"] * 2
    assert all(line.within for line in lines)


def test_compare_keeps_the_two_answers_apart() -> None:
    """Each rounding has its own reference, and in this example the two differ.

    Native results are compared with the exact sum, exact ones with the sum of rounded terms.
    """
    arrays = {
        "predictions": np.array([[2, 0], [2, 0], [0, 0]], np.float32),
        "targets": np.zeros(3, np.int64),
    }
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="sum")
    truths, (native, exact) = compare.compare(spec, arrays, ["numpy"])
    assert truths["native"].loss != truths["exact"].loss
    assert native.within
    assert exact.within
    assert exact.value == truths["exact"].loss


@pytest.mark.framework("numpy")
def test_compare_fails_for_one_bit(fake: Install, saved: Path) -> None:  # noqa: F811
    """An error of one ulp passes in native mode and fails in exact mode."""
    name = fake("Nudging")
    done = run("compare", str(saved), "--from-logits", "--backend", name)
    assert done.returncode == 1
    table = rows(done.stdout)
    assert table[name, "native"][4] == "yes"
    assert table[name, "exact"][1:5] == ["1", "100.00 %", "0", "NO"]


def test_compare_without_an_exact_mode(fake: Install, saved: Path) -> None:  # noqa: F811
    """A backend without exact mode is only noted; with --rounding exact it is a failure."""
    name = fake("Inexact")
    done = run("compare", str(saved), "--from-logits", "--backend", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(rows(done.stdout)) == [(name, "native")]
    assert f"{name}, exact: the backend '{name}' has no exact mode" in done.stdout
    done = run("compare", str(saved), "--from-logits", "--backend", name, "--rounding", "exact")
    assert done.returncode == 1
    assert "has no exact mode" in done.stdout


def test_compare_large_inputs_with_numpy(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For large inputs NumPy replaces the oracle, in float64 or exact, and the output says so."""
    command = ["compare", str(saved), "--from-logits", "--backend", "numpy"]
    with np.load(saved) as file:
        oracle, _ = compare.compare(ul.CrossEntropyLoss(from_logits=True), dict(file), ["numpy"])
        monkeypatch.setattr(compare, "_ORACLE_ELEMENTS", 10)
        numpy, _ = compare.compare(ul.CrossEntropyLoss(from_logits=True), dict(file), ["numpy"])
    assert [truth.source for truth in oracle.values()] == ["oracle", "oracle"]
    assert [truth.source for truth in numpy.values()] == ["float64 NumPy", "exact NumPy"]
    assert np.allclose(oracle["native"].gradient, numpy["native"].gradient, rtol=1e-6, atol=0)
    assert oracle["exact"].loss == numpy["exact"].loss
    assert np.array_equal(oracle["exact"].gradient, numpy["exact"].gradient)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "measured against: float64 NumPy, exact NumPy" in done.output
    assert "The oracle would take minutes" in done.output


@pytest.mark.parametrize(
    ("kind", "words"),
    [("Doubling", " NO "), ("NotANumber", " NO "), ("Dying", "ended with status 7")],
)
def test_compare_fails_with_a_wrong_backend(
    kind: str,
    words: str,
    fake: Install,  # noqa: F811
    saved: Path,
) -> None:
    """The status is 1 if a value is wrong, NaN or missing."""
    name = fake(kind)
    arguments = ("--from-logits", "--reduction", "none") if kind == "Dying" else ("--from-logits",)
    done = run("compare", str(saved), *arguments, "--backend", name, "--backend", "numpy")
    assert done.returncode == 1
    assert words in done.stdout
    table = rows(done.stdout)
    assert [table["numpy", rounding][4] for rounding in ("native", "exact")] == ["yes", "yes"]


def test_compare_does_not_fail_for_what_is_not_installed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that is not installed is listed, and is no failure."""
    targets = [target for target in compare.workers.all_targets() if target.label == "numpy"]
    monkeypatch.setattr(
        compare.workers, "choose", lambda _: (targets, {"torch": "torch is not installed"})
    )
    done = CliRunner().invoke(app, ["compare", str(saved), "--from-logits"])
    assert done.exit_code == 0, done.output
    assert "torch: torch is not installed" in done.output
