"""The commands that read losses as text: translate, diff and explain."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import unifiedloss as ul
from unifiedloss.cli import app
from unifiedloss.interop.quirks import QUIRKS, described

TORCH = "torch.nn.CrossEntropyLoss(label_smoothing=0.1)"


@pytest.mark.parametrize(
    ("loss", "to", "line", "status"),
    [
        (TORCH, "torch", TORCH, 0),
        (
            TORCH,
            "keras",
            "keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)",
            1,
        ),
        ("optax.losses.squared_error", "torch", 'torch.nn.MSELoss(reduction="none")', 0),
        ("ul.MeanSquaredError()", "json", '{"loss": "mean_squared_error", "version": 1}', 0),
        ('{"loss": "mean_squared_error", "version": 1}', "torch", "torch.nn.MSELoss()", 0),
        (
            "torch.nn.MSELoss(reduction='sum')",
            "unifiedloss",
            "ul.MeanSquaredError(reduction='sum')",
            0,
        ),
    ],
)
def test_translate(loss: str, to: str, line: str, status: int) -> None:
    """Stdout has only the translated line.

    If the line loses a rule, stderr names the rule and the status is 1.
    """
    done = CliRunner().invoke(app, ["translate", loss, "--to", to])
    assert done.exit_code == status, done.output
    assert done.stdout.splitlines() == [line]
    assert bool(done.stderr) == bool(status)
    if status:
        assert "ignore_index is not the same:" in done.stderr
        assert "positions with the label -100 are dropped" in done.stderr
        assert "as written: None: no label is ignored" in done.stderr


@pytest.mark.framework("torch")
@pytest.mark.parametrize(
    ("loss", "line"),
    [
        ("BinaryCrossEntropyLoss(from_logits=True)", "BCEWithLogitsLoss()"),
        (
            "BinaryCrossEntropyLoss(from_logits=True, element_weights=[1.0, 3.0])",
            "BCEWithLogitsLoss(weight=torch.tensor([1.0, 3.0]))",
        ),
        ('BinaryCrossEntropyLoss(epsilon="torch")', "BCELoss()"),
        ("MeanSquaredError()", "MSELoss()"),
        ("HuberLoss(delta=2.0)", "HuberLoss(delta=2.0)"),
        ("HuberLoss(delta=2.0, scale=0.5)", "SmoothL1Loss(beta=2.0)"),
    ],
)
@pytest.mark.parametrize("divisor", ["present", "all"])
def test_divisors_that_no_call_of_torch_shows(loss: str, line: str, divisor: str) -> None:
    """Without a mask both divisors are the number of elements, which torch's losses divide by.

    Where the line is read back with another divisor, stderr says so.
    """
    spec = ul.from_native(f"ul.{loss}").replace(divisor=divisor)
    done = CliRunner().invoke(app, ["translate", spec.to_json(), "--to", "torch"])
    assert (done.exit_code, done.stdout.strip()) == (0, f"torch.nn.{line}")
    same = ul.from_native(done.stdout.strip()).divisor == divisor
    assert ("divisor is the same in every call of torch:" in done.stderr) is not same
    x, t = torch.tensor([[0.25, 0.5], [0.875, 0.75]]), torch.tensor([[0.0, 1.0], [1.0, 0.5]])
    torch.testing.assert_close(spec.to_native("torch")(x, t), spec(x, t))
    assert ul.from_native(spec.to_native("torch", code=True)).divisor in ("weights", "present")


def test_translated_line_is_read_back() -> None:
    """Each translated line can be read back as a loss."""
    for to in ("torch", "keras", "tensorflow", "optax", "sklearn", "onnx", "unifiedloss", "json"):
        written = CliRunner().invoke(app, ["translate", TORCH, "--to", to]).stdout.strip()
        done = CliRunner().invoke(app, ["translate", written, "--to", "json"])
        assert done.exit_code == 0, written


@pytest.mark.framework("numpy")
def test_diff() -> None:
    """The output has the rules and the numbers, and the status is 1 if anything differs."""
    done = CliRunner().invoke(
        app, ["diff", "ul.MeanSquaredError()", "ul.MeanSquaredError(scale=0.5)"]
    )
    assert done.exit_code == 1
    assert "scale\n  a: 1: losses are not scaled." in done.stdout
    assert "a gives 1 in float32\n  b gives 0.5 in float32" in done.stdout
    same = CliRunner().invoke(
        app, ["diff", "ul.MeanSquaredError()", '{"loss": "mean_squared_error", "version": 1}']
    )
    assert same.exit_code == 0
    assert "There is no difference" in same.stdout


def test_explain(tmp_path: Path) -> None:
    """The output is plain text or LaTeX, and the spec may come from a file."""
    done = CliRunner().invoke(app, ["explain", TORCH])
    assert done.exit_code == 0
    assert "t'_ic = (1 - 0.1) t_ic + 0.1 / K" in done.stdout
    assert "label_smoothing  0.1: this share of every target" in done.stdout
    latex = CliRunner().invoke(app, ["explain", TORCH, "--latex"]).stdout
    assert r"\begin{align*}" in latex
    path = tmp_path / "spec.json"
    path.write_text(ul.MeanSquaredError(scale=0.5).to_json())
    assert "l_i = 0.5 * (x - t)^2" in CliRunner().invoke(app, ["explain", str(path)]).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "__import__('os').system('touch here')"], "nothing is evaluated"),
        (["explain", "torch.nn.CrossEntropyLoss(weight=open('x'))"], "nothing is evaluated"),
        (["explain", "torch.nn.MSELoss("], "is not one Python expression"),
        (["diff", "torch.nn.L1Loss()", "ul.MeanSquaredError()"], "is another kind of loss"),
        (["translate", TORCH, "--to", "pytorch"], "Did you mean 'torch'?"),
        (
            ["translate", "torch.nn.CrossEntropyLoss(weight=[1, 2], smoothing=1)", "--to", "keras"],
            "Did you mean 'label_smoothing'?",
        ),
        (
            ["translate", "optax.softmax_cross_entropy(where=True)", "--to", "torch"],
            "Leave where out.",
        ),
        (["explain", "nowhere.json"], "cannot read the spec in nowhere.json"),
        (["explain", '{"loss": "cross_entropy", "version": 9}'], "upgrade unifiedloss"),
    ],
)
def test_losses_that_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's message is printed without a traceback, and the text is never evaluated."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_explain_a_rule() -> None:
    """The name of a field is explained as well as a loss."""
    for rule, words in (("divisor", "what the mean divides by"), ("ignore_index", "dropped")):
        done = CliRunner().invoke(app, ["explain", rule])
        assert done.exit_code == 0, done.output
        assert words in done.stdout


def test_explain_a_quirk() -> None:
    """The name of a quirk is explained too: what specs do, and what each loss does instead."""
    done = CliRunner().invoke(app, ["explain", "bad_index"])
    assert done.exit_code == 0, done.output
    _, of_spec, *rest = done.stdout.splitlines()
    assert of_spec == "a spec: A label outside 0..K-1 is an error (NaN under tracing)."
    at = rest.index("Negative labels count from the end.")
    assert rest[at + 1] == "  onnx.NegativeLogLikelihoodLoss, onnx.SoftmaxCrossEntropyLoss"
    for name in {quirk.name for quirk in QUIRKS}:
        assert len(described(name)) > 2, name


@pytest.mark.framework("torch")
def test_diff_tells_the_rules_that_bite(tmp_path: Path) -> None:
    """Three rules come first; with a batch, those that it sees, with what they do to the loss."""
    a = "torch.nn.CrossEntropyLoss()"
    b = "ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, divisor='all', axis=-1)"
    done = CliRunner().invoke(app, ["diff", a, b])
    assert done.exit_code == 1
    heads = [line for line in done.stdout.splitlines() if re.fullmatch(r"[a-z_]+", line)]
    assert heads == ["ignore_index", "divisor", "axis"]
    assert "rules more, which fewer see: label_smoothing, " in done.stdout
    told = CliRunner().invoke(app, ["diff", a, b, "--all"])
    assert len([x for x in told.stdout.splitlines() if re.fullmatch(r"[a-z_]+", x)]) > 10
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "x.npz",
        predictions=rng.normal(size=(8, 3)).astype(np.float32),
        targets=rng.integers(3, size=8),
    )
    done = CliRunner().invoke(app, ["diff", a, b, str(tmp_path / "x.npz")])
    heads = [line for line in done.stdout.splitlines() if re.fullmatch(r"[a-z_]+", line)]
    assert heads == ["label_smoothing"]
    assert "  on this batch: it moves the loss from " in done.stdout
    assert "rules that this batch does not see: ignore_index, divisor, axis, " in done.stdout
