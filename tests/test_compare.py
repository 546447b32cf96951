"""The command `compare` on large arrays: mapped files, memory, blocks, and killed processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import unifiedloss as ul
from tests.fake_adapters import Install, fake  # noqa: F401 - a fixture
from tests.test_cli import saved  # noqa: F401 - a fixture
from unifiedloss import conformance
from unifiedloss.cli import app
from unifiedloss.conformance import blocks, compare, tolerances, workers
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.compare_blocks import compare_files
from unifiedloss.readers import memory
from unifiedloss.readers.files import Files, Source


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Save logits and labels to two files, which are large enough to be mapped."""
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(9000, 2)).astype(np.float32), rng.integers(2, size=9000)
    paths = [tmp_path / "predictions.npy", tmp_path / "targets.npy"]
    for path, array in zip(paths, arrays, strict=True):
        np.save(path, array)
    return [str(path) for path in paths]


def test_compare_two_files(
    pair: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two .npy files, with weights beside them, and their size is said beforehand."""
    monkeypatch.setattr(compare, "_ORACLE_ELEMENTS", 10)
    np.save(tmp_path / "w.npy", np.arange(9000) % 3.0)
    options = ["--from-logits", "--backend", "numpy", "--rounding", "native"]
    weighted = [*options, "--sample-weight", str(tmp_path / "w.npy")]
    done = CliRunner().invoke(app, ["compare", *pair, *weighted])
    assert done.exit_code == 0, done.output
    logits, labels = (np.load(path) for path in pair)
    spec = ul.CrossEntropyLoss(from_logits=True)
    value = spec(logits, labels, sample_weight=np.arange(9000) % 3.0)
    assert f"{value:.9g}" in done.output
    said = "predictions (9000, 2) float32, targets (9000,) int64, sample_weight (9000,) float64"
    assert f"{said}: 216 kB. Each backend takes about 601 MB of memory" in done.output


def test_compare_refuses_what_memory_does_not_hold(
    pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays that do not fit are refused before they are read, with both sizes."""
    monkeypatch.setattr(compare, "available", lambda: 10**8)
    options = ["--from-logits", "--backend", "numpy"]
    done = CliRunner().invoke(app, ["compare", *pair, *options])
    assert done.exit_code == 2
    assert "about 601 MB of memory for each backend, and 100 MB are free" in done.output


def test_as_many_processes_as_memory_holds() -> None:
    """The processes that run at a time fit the memory, and one runs if its size is unknown."""
    arrays = {"predictions": np.zeros((10, 2), np.float16), "targets": np.zeros(10, np.int64)}
    needs = compare.needs(arrays)
    assert needs.arrays == 120
    assert needs.process > 600_000_000
    assert compare.Needs(1, 100, 250).parallel(1) == 1
    assert compare.Needs(1, 100, 199).parallel(8) == 1
    assert compare.Needs(1, 100, None).parallel(1) == 1
    with pytest.raises(ul.errors.UnsupportedError, match="take fewer rows"):
        compare.Needs(1, 100, 99).parallel(8)


@pytest.mark.parametrize(
    ("meminfo", "groups", "expected"),
    [
        ({"MemAvailable": 3000}, {}, 3000 * 1024),
        ({"MemAvailable": 3000}, {"memory.max": "max", "memory.current": "5"}, 3000 * 1024),
        (
            {"MemAvailable": 3000},
            {
                "memory.max": "1000000",
                "memory.current": "900000",
                "memory.stat": "anon 1\ninactive_file 50000\n",
            },
            150_000,
        ),
    ],
)
def test_free_memory(
    meminfo: dict[str, int], groups: dict[str, str], expected: int, tmp_path: Path
) -> None:
    """The free memory is that of the system or of the group of a container, if that is less."""
    for folder in ("proc/self", "sys/fs/cgroup/mine"):
        (tmp_path / folder).mkdir(parents=True)
    lines = "".join(f"{name}: {kilobytes} kB\n" for name, kilobytes in meminfo.items())
    (tmp_path / "proc/meminfo").write_text(lines, encoding="ascii")
    (tmp_path / "proc/self/cgroup").write_text("0::/mine\n", encoding="ascii")
    for name, text in groups.items():
        (tmp_path / "sys/fs/cgroup/mine" / name).write_text(text, encoding="ascii")
    assert memory.available(tmp_path) == expected
    assert (memory.available() or 1) > 0
    assert [memory.size(n) for n in (7, 1500, 42_000_000, 999_999)] == [
        "7 bytes", "1.5 kB", "42 MB", "1 MB",
    ]  # fmt: skip


def test_compare_needs_the_memory_of_a_block(pair: list[str]) -> None:
    """The memory does not grow with the files."""
    files = Files(Path(pair[0]), {"targets": Path(pair[1])})
    with files.open() as source:
        at_once = compare.needs_of(source)
        source.rows_of_block = lambda _: 10  # type: ignore[method-assign]
        in_blocks = compare.needs_of(source)
    assert at_once.arrays == 9000 * (2 * 4 + 8)
    assert in_blocks.arrays == 10 * (2 * 4 + 8)
    assert in_blocks.process < at_once.process


IN_BLOCKS: list[Any] = [
    ul.CrossEntropyLoss(from_logits=True),
    ul.CrossEntropyLoss(from_logits=True, class_weights=(1, 2, 3), ignore_index=1),
    ul.CrossEntropyLoss(from_logits=True, reduction="none"),
    ul.CrossEntropyLoss(epsilon="keras", renormalize="before_clip"),
    ul.MeanSquaredError(reduction="sum", scale=2),
    ul.MeanSquaredError(average_last_axis=True),
    ul.BinaryCrossEntropyLoss(from_logits=True, dtype="float32"),
]


@pytest.mark.framework("numpy", "torch")
@pytest.mark.parametrize("spec", IN_BLOCKS, ids=range(len(IN_BLOCKS)))
def test_compare_in_blocks(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of several blocks give the lines of the files as a whole."""
    monkeypatch.setattr(compare, "_ORACLE_ELEMENTS", 10)
    rng = np.random.default_rng(2)
    predictions = rng.random((50, 3)).astype(np.float32)
    targets: Any = rng.random((50, 3)).astype(np.float32)
    if spec.name == "cross_entropy":
        targets = rng.integers(3, size=50)
        predictions /= 1 if spec.from_logits else predictions.sum(1, keepdims=True)
    weight = rng.random(50).astype(np.float32)
    np.savez(
        tmp_path / "x.npz", predictions=predictions, targets=targets, sample_weight=weight,
        mask=rng.random(50) < 0.8,
    )  # fmt: skip
    found = []
    for rows in (100, 7):
        monkeypatch.setattr(Source, "rows_of_block", lambda *_, rows=rows: rows)
        with Files(tmp_path / "x.npz").open() as source:
            # One loss in torch too, because its process takes seconds to start.
            backends = ["numpy", "torch"] if spec == IN_BLOCKS[0] else ["numpy"]
            found.append(compare_files(spec, source, backends))
    (truths, whole), (other_truths, in_blocks) = found
    assert list(truths) == list(other_truths)
    assert [(x.backend, x.rounding) for x in whole] == [(x.backend, x.rounding) for x in in_blocks]
    for one, other in zip(whole, in_blocks, strict=True):
        assert one.error is other.error is None
        assert one.within
        assert other.within, other
        assert other.value == pytest.approx(one.value, rel=1e-6)
        assert other.gradient_equal > 0.1
        if one.rounding == "exact":
            assert (other.value, other.value_ulps, other.gradient_equal) == (one.value, 0, 1)
            # What is true does not depend on the blocks.
            if spec.reduction != "none":
                assert other_truths["exact"].loss == truths["exact"].loss


@pytest.mark.parametrize("kind", ["Nudging", "Doubling"])
def test_compare_in_blocks_finds_a_fault(
    kind: str,
    fake: Install,  # noqa: F811
    pair: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong backend is found in blocks too, and a bad value has its row among all."""
    name = fake(kind)
    monkeypatch.setattr(Source, "rows_of_block", lambda *_: 4000)
    options = ["--from-logits", "--backend", name, "--backend", "numpy", "--rounding", "exact"]
    done = CliRunner().invoke(app, ["compare", *pair, *options])
    assert done.exit_code == 1
    assert " NO " in done.output
    assert " yes " in done.output
    labels = np.load(pair[1])
    labels[8000] = 5
    np.save(pair[1], labels)
    done = CliRunner().invoke(app, ["compare", *pair, *options])
    assert done.exit_code == 2
    assert "targets[8000] is 5" in done.output


SPLIT: list[tuple[Any, dict[str, Any]]] = [
    (ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, class_weights=(1, 2, 3)), {}),
    (ul.CrossEntropyLoss(from_logits=True, axis=0, ignore_index=1), {}),
    (ul.CrossEntropyLoss(from_logits=True, reduction="none"), {}),
    (ul.MeanSquaredError(element_weights=(1, 2, 0), divisor="nonzero"), {"dense": True}),
    (ul.MeanSquaredError(average_last_axis=True, divisor="present"), {"dense": True}),
    (ul.MeanSquaredError(average_last_axis=True, reduction="sum"), {"dense": True}),
    (ul.MeanSquaredError(element_weights=[[1, 2, 3]] * 7), {"dense": True}),
]


@pytest.mark.parametrize(("spec", "options"), SPLIT)
def test_blocks_add_up(spec: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distances of a case do not depend on the blocks in which they are taken."""
    rng = np.random.default_rng(5)
    axis = getattr(spec, "axis", None)
    predictions = rng.normal(size=(3, 7) if axis == 0 else (7, 3)).astype(np.float32)
    targets = rng.normal(size=(7, 3)) if options else rng.integers(3, size=7)
    weight, mask = rng.random(7).astype(np.float32), np.arange(7) != 2
    case = Case("blocks", spec, predictions, targets.astype(np.float32) if options else targets,
                weight, mask)  # fmt: skip
    plan = tolerances.plan_of(case)
    truth = case.expected()
    gradient = np.asarray(truth.grad_predictions).reshape(predictions.shape)
    loss = np.asarray(truth.loss, np.float64)
    if spec.reduction == "none":
        loss = loss.reshape(7)
    off = 1 + 1e-4 * rng.random(predictions.shape)
    sizes = tolerances.magnitudes(case, plan)
    far = tolerances.distance(gradient * off, gradient, sizes.grad_predictions, plan, "float32")
    far_loss = tolerances.distance(loss * 1.001, loss, sizes.loss, plan, plan.result_dtype)
    for elements in (2, 5, 100):
        monkeypatch.setattr(blocks, "ELEMENTS", elements)
        found = blocks.distances(case, plan, loss * 1.001, gradient * off, loss, gradient)
        assert found.gradient == pytest.approx(float(far.max()), rel=1e-9)
        assert found.loss == pytest.approx(float(np.max(far_loss)), rel=1e-9)
        assert found.equal == int(np.sum(gradient * off == gradient.astype(np.float32)))


def test_a_killed_process_is_said_to_be_killed(
    fake: Install,  # noqa: F811
    saved: Path,  # noqa: F811
) -> None:
    """A process that a signal ends is reported with it, in `compare` and in `conform`."""
    assert workers.ended(7) == "ended with status 7"
    assert workers.ended(-15) == "was killed by the signal SIGTERM"
    name = fake("Killed")
    words = "was killed by the signal SIGKILL; probably it ran out of memory"
    with np.load(saved) as file:
        arrays = dict(file)
    spec = ul.CrossEntropyLoss(from_logits=True)
    _, (line,) = compare.compare(spec, arrays, [name], ["native"])
    assert words in str(line.error)
    assert not line.absent
    report = conformance.run([name], ["mean_squared_error"])
    assert words in report.errors[name]
