"""The command `evaluate`: the loss of files in blocks is that of the call on all rows."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import unifiedloss as ul
from unifiedloss.cli import app
from unifiedloss.errors import FileError, ShapeError, SpecValueError, UnsupportedError
from unifiedloss.evaluation import cluster, evaluate, groups
from unifiedloss.readers.files import Files

ROWS = 1003

SPECS: list[Any] = [
    ul.CrossEntropyLoss(from_logits=True),
    ul.CrossEntropyLoss(from_logits=True, ignore_index=1, class_weights=(1, 2, 0, 1, 3)),
    ul.CrossEntropyLoss(from_logits=True, reduction="sum", label_smoothing=0.1, scale=2.5),
    ul.CrossEntropyLoss(from_logits=True, divisor="present"),
    ul.CrossEntropyLoss(from_logits=True, divisor="nonzero", ignore_index=(0, 1)),
    ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=(1, 2, 3, 4, 5)),
    ul.MeanSquaredError(average_last_axis=True),
    ul.MeanSquaredError(element_weights=(1, 0, 2, 3, 4), divisor="nonzero"),
    ul.HuberLoss(delta=0.5, reduction="sum"),
]


def arrays(spec: Any, *, weighted: bool, rows: int = ROWS) -> dict[str, Any]:
    """Arrays of a loss."""
    rng = np.random.default_rng(11)
    predictions = rng.normal(size=(rows, 5)).astype(np.float32)
    targets = rng.random((rows, 5)).astype(np.float32)
    if spec.name == "cross_entropy":
        targets = rng.integers(5, size=rows)
    made = {"predictions": predictions, "targets": targets}
    if weighted:
        made["sample_weight"] = (rng.random(rows) * (rng.random(rows) < 0.8)).astype(np.float32)
        made["mask"] = rng.random(rows) < 0.9
    return made


def called(spec: Any, given: dict[str, Any], rows: Any = slice(None)) -> float:
    """The loss of some rows in one call."""
    predictions, targets, *_ = (given[name][rows] for name in ("predictions", "targets"))
    rest = {name: given[name][rows] for name in ("sample_weight", "mask") if name in given}
    return float(spec(predictions, targets, **rest))


@pytest.mark.parametrize("rounding", ["native", "exact"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_the_loss_of_all_rows(spec: Any, weighted: bool, rounding: str, tmp_path: Path) -> None:
    """Exact: the same bits, whatever the blocks. Native: within the rounding of float32."""
    spec = spec.replace(rounding=rounding)
    given = arrays(spec, weighted=weighted)
    np.savez(tmp_path / "saved.npz", **given, lang=np.arange(ROWS) % 3)
    files = Files(tmp_path / "saved.npz", by="lang")
    expected = called(spec, given)
    for rows in (None, 90):
        found = evaluate(spec, files, rows=rows)
        assert found.groups is not None
        assert list(found.groups) == [0, 1, 2]
        each = {-1: found.total, **found.groups}
        for key, summary in each.items():
            wanted = expected
            if key >= 0:
                wanted = called(spec, given, np.arange(ROWS) % 3 == key)
            if rounding == "exact":
                assert summary.loss == wanted
            else:
                assert summary.loss == pytest.approx(wanted, rel=2e-6)
        counts = found.total
        per_row = 1 if spec.name == "cross_entropy" or getattr(spec, "average_last_axis", 0) else 5
        assert counts.positions == ROWS * per_row
        dropped = np.zeros(ROWS, bool) if not weighted else ~given["mask"]
        for label in getattr(spec, "ignore_index", None) or ():
            dropped = dropped | (given["targets"] == label)
        assert counts.dropped == np.count_nonzero(dropped) * per_row
        rest = {name: given[name] for name in ("sample_weight", "mask") if name in given}
        if spec.reduction == "mean":
            wanted = spec.replace(rounding="native").divisor_of(given["targets"], **rest)
            assert counts.divisor == pytest.approx(float(wanted), rel=1e-9)
        else:
            assert counts.divisor is None
        is_plain = spec.name == "cross_entropy" and spec.reduction == "mean"
        assert (counts.perplexity is not None) == is_plain
        assert counts.bad == 0
        assert counts.first_bad is None
    assert sum(each.positions for each in found.groups.values()) == counts.positions
    mean = np.mean([each.loss for each in found.groups.values()])
    assert found.mean_of_groups == pytest.approx(mean, rel=1e-12)
    assert evaluate(spec, Files(tmp_path / "saved.npz")).mean_of_groups is None


def test_bad_values_are_counted(tmp_path: Path) -> None:
    """The loss is NaN; the number of bad positions and the first of all rows are told."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    given = arrays(spec, weighted=False)
    given["targets"][[500, 501, 900]] = (7, -1, 5)
    np.savez(tmp_path / "saved.npz", **given, lang=np.arange(ROWS) // 502)
    for rows in (None, 100, 7):
        found = evaluate(spec, Files(tmp_path / "saved.npz", by="lang"), rows=rows)
        assert np.isnan(found.total.loss)
        assert found.total.divisor is None
        assert found.total.bad == 3
        assert found.total.first_bad is not None
        assert found.total.first_bad.startswith("targets[500] is 7: not a class index in 0..4")
        assert found.groups is not None
        assert [each.bad for each in found.groups.values()] == [2, 1]
        second = found.groups[1].first_bad
        assert second is not None
        assert second.startswith("targets[900] is 5")
    # Elements of rows, and probabilities whose axis is reduced.
    probabilities = np.full((6, 3), 0.3, np.float32)
    probabilities[4, 1], probabilities[5, 2] = 1.5, -2
    dense = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    np.savez(tmp_path / "p.npz", predictions=probabilities, targets=dense)
    found = evaluate(ul.CrossEntropyLoss(), Files(tmp_path / "p.npz"), rows=2)
    assert found.total.bad == 2
    assert found.total.first_bad is not None
    assert found.total.first_bad.startswith("predictions[4, 1] is 1.5: not a probability")
    found = evaluate(ul.BinaryCrossEntropyLoss(), Files(tmp_path / "p.npz"), rows=4)
    assert (found.total.bad, found.total.positions) == (2, 18)


def test_a_bad_label_beside_a_bad_probability(tmp_path: Path) -> None:
    """Both are counted, in one row and in two."""
    for labels, bad in (([1, 9], 2), ([-9, 0], 1), ([9, 9], 2)):
        np.savez(
            tmp_path / "x.npz",
            predictions=np.array([[0.5, 1.5], [0.5, 0.5]]),
            targets=np.array(labels),
        )
        for spec in (ul.CrossEntropyLoss(), ul.CrossEntropyLoss(epsilon="keras")):
            found = evaluate(spec, Files(tmp_path / "x.npz")).total
            assert found.bad == bad
            assert found.first_bad is not None
            assert found.first_bad.startswith("targets[")


def test_groups_of_infinite_losses(tmp_path: Path) -> None:
    """Their mean is NaN, without a warning."""
    np.savez(
        tmp_path / "x.npz",
        predictions=np.array([np.inf, np.inf, 1, 2]),
        targets=np.zeros(4),
        sample_weight=np.array([1.0, -1, 1, 1]),
        g=np.arange(4) % 2,
    )
    found = evaluate(ul.MeanSquaredError(divisor="all"), Files(tmp_path / "x.npz", by="g"))
    assert found.mean_of_groups is not None
    assert np.isnan(found.mean_of_groups)
    assert found.groups is not None
    assert [each.loss for each in found.groups.values()] == [np.inf, -np.inf]


def test_what_does_not_fit_is_refused_before_a_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes, dtypes, reductions and axes."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    np.savez(tmp_path / "saved.npz", **arrays(spec, weighted=False))
    files = Files(tmp_path / "saved.npz")
    monkeypatch.setattr("unifiedloss.readers.files.Source.read", None)
    with pytest.raises(SpecValueError, match="use reduction 'mean' or 'sum'"):
        evaluate(spec.replace(reduction="none"), files)
    with pytest.raises(SpecValueError, match="have 5 classes"):
        evaluate(spec.replace(class_weights=(1, 2)), files)
    np.savez(tmp_path / "t.npz", predictions=np.zeros((4, 4)), targets=np.zeros(4, int))
    with pytest.raises(ShapeError, match="save the arrays with the positions first"):
        evaluate(spec.replace(axis=0), Files(tmp_path / "t.npz"))
    np.savez(tmp_path / "f.npz", predictions=np.zeros((3, 4)), targets=np.zeros(3, bool))
    with pytest.raises(ul.UnifiedLossError, match="bool"):
        evaluate(spec, Files(tmp_path / "f.npz"))


def test_no_rows(tmp_path: Path) -> None:
    """Files without rows have the loss of an empty batch."""
    np.savez(tmp_path / "x.npz", predictions=np.zeros((0, 4)), targets=np.zeros(0, int))
    spec = ul.CrossEntropyLoss(from_logits=True, on_empty="zero", rounding="exact")
    np.savez(
        tmp_path / "g.npz", predictions=np.zeros((0, 4)), targets=np.zeros(0, int), g=np.zeros(0)
        .astype(int),
    )  # fmt: skip
    for files in (Files(tmp_path / "x.npz"), Files(tmp_path / "g.npz", by="g")):
        assert evaluate(spec, files).total.loss == 0
    assert evaluate(spec, Files(tmp_path / "g.npz", by="g")).groups == {}
    with pytest.raises(ul.errors.EmptyMeanError):
        evaluate(spec.replace(on_empty="error"), Files(tmp_path / "x.npz"))


@pytest.mark.parametrize("rows", [None, 10])
def test_one_weight_for_all_rows(rows: int | None, tmp_path: Path) -> None:
    """An array without axes belongs to every block."""
    spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact", divisor="present")
    given = arrays(spec, weighted=False)
    np.savez(tmp_path / "x.npz", **given, sample_weight=np.float32(0.3), mask=np.ones((), bool))
    np.savez(tmp_path / "y.npz", **given)
    np.save(tmp_path / "w.npy", np.float32(0.3))
    wanted = spec(given["predictions"], given["targets"], sample_weight=np.float32(0.3))
    assert evaluate(spec, Files(tmp_path / "x.npz"), rows=rows).total.loss == wanted
    files = Files(tmp_path / "y.npz", {"sample_weight": tmp_path / "w.npy"})
    assert evaluate(spec, files, rows=rows).total.loss == wanted


def test_too_many_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column of identities is refused."""
    monkeypatch.setattr(groups, "MOST", 100)
    spec = ul.CrossEntropyLoss(from_logits=True)
    np.savez(tmp_path / "x.npz", **arrays(spec, weighted=False), id=np.arange(ROWS))
    with pytest.raises(UnsupportedError, match="more than 100 groups"):
        evaluate(spec, Files(tmp_path / "x.npz", by="id"))


def test_groups_of_text(tmp_path: Path) -> None:
    """Text, bytes and bool name groups, also in a file of their own."""
    spec = ul.MeanSquaredError()
    given = arrays(spec, weighted=False, rows=6)
    np.savez(tmp_path / "x.npz", **given, b=np.array([b"x", b"y"] * 3), flag=np.arange(6) < 2)
    np.save(tmp_path / "g.npy", np.array(["de", "en", "fr", "en", "de", "de"]))
    for by, names in (("b", ["x", "y"]), ("flag", [False, True])):
        found = evaluate(spec, Files(tmp_path / "x.npz", by=by)).groups
        assert found is not None
        assert list(found) == names
    found = evaluate(spec, Files(tmp_path / "x.npz", by=str(tmp_path / "g.npy"))).groups
    assert found is not None
    assert {key: each.positions for key, each in found.items()} == {"de": 15, "en": 10, "fr": 5}


def test_a_change_while_it_runs(tmp_path: Path) -> None:
    """A file that grows newer gives no number."""
    spec = ul.MeanSquaredError()
    np.savez(tmp_path / "x.npz", **arrays(spec, weighted=False))

    def change(done: int, rows: int) -> None:  # noqa: ARG001
        np.savez(tmp_path / "x.npz", **arrays(spec, weighted=True))

    with pytest.raises(FileError, match="changed while it was read"):
        evaluate(spec, Files(tmp_path / "x.npz"), progress=change)


# ---------------------------------------------------------------------------------- the command


def command(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Logits and labels in a file."""
    path = tmp_path / "saved.npz"
    spec = SPECS[0]
    np.savez(
        path, **arrays(spec, weighted=False), lang=np.array(["de", "en", "fr"])[np.arange(ROWS) % 3]
    )
    return path


def test_the_command(saved: Path, tmp_path: Path) -> None:
    """It prints the numbers, and writes them with all their digits."""
    spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
    (tmp_path / "spec.json").write_text(spec.to_json())
    out = tmp_path / "out.json"
    texts = [
        "torch.nn.CrossEntropyLoss()", "ul.CrossEntropyLoss(from_logits=True)",
        spec.to_json(), str(tmp_path / "spec.json"),
    ]  # fmt: skip
    for text in texts:
        done = command(text, saved, "--rounding", "exact", "--by", "lang", "--json", out)
        assert done.exit_code == 0, done.output
        assert "predictions (1003, 5) float32, targets (1003,) int64: 28.1 kB." in done.stderr
        written = json.loads(out.read_text(encoding="utf-8"))
        whole = evaluate(spec, Files(saved))
        assert written["loss"] == whole.total.loss
        assert [each["group"] for each in written["groups"]] == ["de", "en", "fr"]
        assert f"{whole.total.loss:.9g}" in done.stdout
        for word in ("perplexity", "divisor", "positions", "dropped", "bad", "group", "fr"):
            assert word in done.stdout
        assert max(map(len, done.stdout.splitlines()[1:])) <= 80
        assert (ul.from_dict(written["spec"]) == spec) == (not text.startswith("torch"))
        assert [*tmp_path.glob(".*")] == []


def test_the_status_of_bad_values(saved: Path) -> None:
    """The status is 1, and the first bad value is told."""
    with np.load(saved) as file:
        given = dict(file)
    given["targets"][3] = 9
    np.savez(saved, **given)
    done = command("torch.nn.CrossEntropyLoss()", saved)
    assert done.exit_code == 1
    assert "The first bad value: targets[3] is 9" in done.stdout


def test_errors_of_the_command(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends in one message and the status 2, before the work if that can be known."""
    good = "torch.nn.CrossEntropyLoss()"
    monkeypatch.setattr(cluster, "_PATIENCE", 0.3)
    for arguments, words in (
        ((good, tmp_path / "none.npz"), "there is no file"),
        (("torch.nn.Nothing()", saved), "Nothing"),
        ((good, saved, "--by", "nothing"), "has no array 'nothing'"),
        ((good, saved, "--rounding", "none"), "rounding"),
        ((good, saved, "--targets-key", "lang"), "targets"),
        ((good, saved, "--json", tmp_path / "no" / "x.json"), "there is no folder"),
        ((good, saved, "--dask", "tcp://127.0.0.1:1"), "no dask scheduler answers"),
        ((good, saved, "--dask", "tcp://no-port"), "no dask scheduler answers"),
        ((good, saved, "--dask", "scheduler"), "no dask scheduler answers"),
    ):
        done = command(*arguments)
        assert done.exit_code == 2, (arguments, done.output)
        assert words in done.stderr
        assert "Traceback" not in done.output


def test_many_groups_are_not_all_printed(saved: Path) -> None:
    """The table has fifty, and says how many more there are."""
    with np.load(saved) as file:
        given = dict(file)
    np.savez(saved, **given, id=np.arange(ROWS) % 60)
    done = command("torch.nn.CrossEntropyLoss()", saved, "--by", "id", "--block", "100")
    assert done.exit_code == 0, done.output
    assert "10 groups more; --json FILE writes them all." in done.stdout


INTERRUPTIBLE = """
import signal

# A shell that runs the tests in the background has their children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from unifiedloss.cli import main

main()
"""


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_nothing(way: signal.Signals, tmp_path: Path) -> None:
    """A run that is ended writes no file, and the next one gives the loss."""
    spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
    given = arrays(spec, weighted=False, rows=20_000)
    np.savez(tmp_path / "x.npz", **given)
    arguments = ["evaluate", spec.to_json(), "x.npz", "--json", "out.json"]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments, "--block", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert child.stderr is not None
    assert child.stderr.readline()  # it has begun
    time.sleep(0.2)
    child.send_signal(way)
    status = child.wait(60)
    child.stderr.close()
    assert status != 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "unifiedloss", *arguments], cwd=tmp_path, check=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["loss"] == called(spec, given)


# ---------------------------------------------------------------------------------- a cluster


def test_a_cluster_gives_the_same_bits(tmp_path: Path) -> None:
    """Blocks on a cluster, of which a worker is killed in the middle."""
    from distributed import Client, LocalCluster

    spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
    given = arrays(spec, weighted=True, rows=6000)
    np.savez(tmp_path / "x.npz", **given, lang=np.arange(6000) % 7)
    files = Files(tmp_path / "x.npz", by="lang")
    here = evaluate(spec, files, rows=50)
    killed: list[int] = []
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as processes,
        Client(processes) as client,
    ):
        pids = list(client.run(__import__("os").getpid).values())

        def kill(done: int, rows: int) -> None:
            if 0 < done < rows and not killed:
                killed.append(done)
                __import__("os").kill(pids[0], signal.SIGKILL)

        there = evaluate(spec, files, rows=50, cluster=processes.scheduler_address, progress=kill)
        assert killed
        assert (there.total, there.groups) == (here.total, here.groups)
        # The error of a task is that of a run here.
        wrong = Files(tmp_path / "x.npz")
        with wrong.open() as source:
            state = dict.fromkeys(source.state())
            source._before = state
            with pytest.raises(FileError, match="changed while it was read"):
                cluster.sums_on(processes.scheduler_address, spec, source, 1000, None)


# ---------------------------------------------------------------------------------- memory

PEAK = """
import sys
from pathlib import Path

import unifiedloss as ul
from unifiedloss.evaluation import evaluate
from unifiedloss.readers.files import Files

spec = ul.CrossEntropyLoss(from_logits=True, rounding=sys.argv[1])
found = evaluate(spec, Files(Path("p.npy"), {"targets": Path("t.npy")}))
status = Path("/proc/self/status").read_text()
print(found.total.loss, status.partition("VmHWM:")[2].split()[0])
"""
"""Prints the loss, and the largest memory of the process in kB."""


def peak(folder: Path, rows: int, rounding: str) -> tuple[float, int]:
    """The loss of so many rows of 1,000 zeros, and the peak memory of its process in bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (rows, 1000)}
    )
    with (folder / "p.npy").open("wb") as opened:
        opened.write(header.getvalue())
        opened.truncate(len(header.getvalue()) + 4000 * rows)  # zeros that take no disk
    np.save(folder / "t.npy", np.zeros(rows, np.int64))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, rounding], cwd=folder, check=True, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    loss, kilobytes = done.stdout.split()
    return float(loss), int(kilobytes) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process took")
@pytest.mark.parametrize("rounding", ["native", "exact"])
@pytest.mark.parametrize(
    "rows",
    [
        50_000,
        pytest.param(750_000, marks=pytest.mark.slow("a file of 200 MB")),
    ],
)
def test_memory_does_not_grow_with_the_file(rows: int, rounding: str, tmp_path: Path) -> None:
    """A file of 200 MB, or of 3 GB, takes at most 200 MB more than one of 1,000 rows."""
    _, few = peak(tmp_path, 1000, rounding)
    loss, many = peak(tmp_path, rows, rounding)
    assert loss == pytest.approx(np.log(1000), rel=1e-6)
    assert many - few < min(200_000_000, 4000 * rows / 3)
