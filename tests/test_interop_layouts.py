"""Two losses on one batch in two layouts: `port_report` and the command `why`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import unifiedloss as ul
from unifiedloss.cli import app
from unifiedloss.errors import ShapeError

RNG = np.random.default_rng(4)
IMAGES = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
LAST = np.ascontiguousarray(np.moveaxis(IMAGES, 1, -1))
LABELS = RNG.integers(3, size=(2, 4, 5))
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
SECOND = ul.CrossEntropyLoss(from_logits=True, axis=1)
FINAL = ul.CrossEntropyLoss(from_logits=True, axis=-1)
TORCH = "torch.nn.CrossEntropyLoss()"


def test_the_layout_of_one_tensor_is_found() -> None:
    """The labels say which axis holds the classes; the other loss gets the tensor moved."""
    for predictions, letter in ((IMAGES, "b"), (LAST, "a")):
        report = ul.port_report(SECOND, FINAL, predictions, LABELS)
        assert report.same
        axes = (1, 3) if letter == "b" else (3, 1)
        said = (
            f"The class axis of the tensors is {axes[0]}; for {letter} it was moved to {axes[1]}."
        )
        assert report.layout == (said,)
        assert said in str(report)
        expected = SECOND.value_and_grad(IMAGES, LABELS)[1]
        expected = expected if letter == "b" else np.moveaxis(expected, 1, -1)
        for gradient in (report.gradient_a, report.gradient_b):
            assert gradient is not None
            assert np.allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_a_square_batch_has_no_layout_of_its_own() -> None:
    """Where the labels fit both axes nothing is moved, and the axis is the rule that differs."""
    square, labels = RNG.normal(size=(2, 3, 3)), RNG.integers(3, size=(2, 3))
    report = ul.port_report(SECOND, FINAL, square, labels)
    assert report.layout == ()
    assert report.rules == ("axis",)
    moved = ul.port_report(SECOND, FINAL, square, labels, predictions_b=np.moveaxis(square, 1, 2))
    assert moved.same


def test_layouts_of_two_axes() -> None:
    """The class axis may be 0 in one and 1 in the other, also where both are equally long."""
    first, second = (ul.CrossEntropyLoss(from_logits=True, axis=axis) for axis in (0, 1))
    last = ul.CrossEntropyLoss(from_logits=True)
    for shape in ((3, 5), (3, 3)):
        x, labels = RNG.normal(size=shape).astype(np.float32), RNG.integers(3, size=shape[1])
        for other in (second, last):
            report = ul.port_report(first, other, x, labels, predictions_b=x.T.copy())
            assert report.same, str(report)
            assert report.gap_own is None
    x, labels = RNG.normal(size=(3, 5)), RNG.integers(3, size=5)
    assert ul.port_report(first, second, x, labels).same


def test_one_tensor_given_twice() -> None:
    """It is no other layout, so the axis is the rule that differs."""
    square, labels = RNG.normal(size=(3, 3, 3)), RNG.integers(3, size=(3, 3))
    report = ul.port_report(SECOND, FINAL, square, labels, predictions_b=square)
    assert report.rules == ("axis",)
    assert report.layout == ()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_rows_in_another_layout(smoothing: float) -> None:
    """The rule that differs is found, whatever the layouts."""
    other = FINAL.replace(label_smoothing=smoothing)
    report = ul.port_report(SECOND, other, IMAGES, LABELS, predictions_b=LAST, targets_b=ONE_HOT)
    assert report.same == (not smoothing)
    assert report.rules == (("label_smoothing",) if smoothing else ())
    assert report.gap_own is None
    assert report.layout == (
        "The class axis is 1 in the tensors of a, and 3 in those of b.",
        "The targets of b are the one-hot rows of the labels of the other.",
    )


def test_other_numbers_are_told_apart_from_rules() -> None:
    """The predictions of a port differ a little; the losses are compared on those of a."""
    off = LAST * np.float32(1 + 1e-3)
    other = FINAL.replace(label_smoothing=0.1)
    report = ul.port_report(SECOND, other, IMAGES, LABELS, predictions_b=off)
    assert report.rules == ("label_smoothing",)
    assert report.value_b_own is not None
    assert report.value_b_own == other(off, LABELS)
    assert report.value_b is not None
    assert report.value_b == pytest.approx(other(LAST, LABELS), rel=1e-6)
    assert report.gap_own is not None
    assert not report.gap_own.closed
    assert "predictions of a and b differ in 120 of 120 numbers" in report.layout[1]
    assert "With its own tensors b gives" in report.brief
    near = ul.port_report(SECOND, FINAL, IMAGES, LABELS, predictions_b=LAST * np.float32(1 + 2e-7))
    assert near.same
    far = ul.port_report(SECOND, FINAL, IMAGES, LABELS, predictions_b=off)
    assert not far.same
    assert far.verdict.endswith("but those of a and b differ.")
    shuffled = ul.port_report(
        SECOND, FINAL, IMAGES, LABELS, predictions_b=LAST[::-1], targets_b=LABELS[::-1]
    )
    assert shuffled.value_b_own == pytest.approx(shuffled.value_a, rel=1e-6)
    assert not shuffled.same
    labels = LABELS.copy()
    labels[1, 2, 3] = (labels[1, 2, 3] + 1) % 3
    wrong = ul.port_report(SECOND, FINAL, IMAGES, LABELS, targets_b=labels, predictions_b=LAST)
    assert "The targets of a and b differ in 1 of 40 numbers" in wrong.layout[-1]
    assert "[1, 2, 3]" in wrong.layout[-1]


def test_tensors_that_are_no_layout_are_refused() -> None:
    """Another batch is no other layout."""
    with pytest.raises(ShapeError, match="must be one batch"):
        ul.port_report(SECOND, FINAL, IMAGES, LABELS, predictions_b=LAST[:1])


@pytest.mark.framework("torch")
def test_a_library_runs_in_its_own_layout() -> None:
    """The loss of torch itself runs on the moved tensors."""
    report = ul.port_report(TORCH, FINAL, LAST, LABELS)
    assert report.ran_a == "native"
    assert report.same
    assert report.losses_a is not None
    assert report.losses_b is not None
    assert np.allclose(report.losses_a, report.losses_b, rtol=1e-5)


# ---------------------------------------------------------------------------------- why


def why(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["why", *map(str, arguments)])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A batch with padding, in two layouts."""
    labels = LABELS.copy()
    labels[0, 0] = -100
    np.savez(tmp_path / "a.npz", predictions=IMAGES, targets=labels)
    np.savez(tmp_path / "b.npz", predictions=LAST, targets=labels)
    np.save(tmp_path / "p.npy", IMAGES)
    np.save(tmp_path / "t.npy", labels)
    return tmp_path


PADDED: Any = FINAL.replace(ignore_index=-100)


@pytest.mark.framework("torch")
def test_why(files: Path) -> None:
    """The verdict comes first, with what each loss does; the status says whether they differ."""
    done = why(TORCH, PADDED.to_json(), files / "a.npz", files / "b.npz")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("The losses are the same on these tensors: only rounding")
    wrong = PADDED.replace(label_smoothing=0.1, divisor="all")
    done = why(TORCH, wrong.to_json(), files / "a.npz", "--all")
    assert done.exit_code == 1
    done = why(TORCH, wrong.to_json(), files / "a.npz")
    assert done.exit_code == 1, done.output
    first, *_ = done.stdout.splitlines()
    verdict = "The losses differ in several rules, which close the gap together: "
    assert first == f"{verdict}label_smoothing, divisor."
    assert "On this batch a divides by " in done.stdout
    ours = PADDED.replace(label_smoothing=0.0, divisor="label_weights").source()
    assert f"b should be ul.{ours}." in done.stdout
    assert "  b: 0.1: this share of every target is spread" in done.stdout
    assert "It moves the loss from" in done.stdout
    assert "predictions (2, 3, 4, 5) float32" in done.stderr
    done = why(TORCH, PADDED.replace(divisor="all").to_json(), files / "p.npy", "--targets",
               files / "t.npy", "--rows", "1")  # fmt: skip
    assert done.exit_code == 1, done.output
    assert done.stdout.startswith("The losses differ, and one rule closes the gap: divisor.")
    assert "Of these the first 1 rows are read." in done.stderr


def test_errors_of_why(files: Path) -> None:
    """Each is one message, and the status is 2."""
    for arguments, words in (
        ((TORCH, "torch.nn.Nothing()", files / "a.npz"), "Nothing"),
        ((TORCH, TORCH, files / "none.npz"), "there is no file"),
        ((TORCH, TORCH, files / "p.npy"), "--targets FILE"),
        ((SECOND.to_json(), FINAL.to_json(), files / "a.npz", files / "p.npy"), "--targets FILE"),
    ):
        done = why(*arguments)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
