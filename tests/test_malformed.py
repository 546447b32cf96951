"""Whatever comes in, each way in ends soon, in an error of this library with a short message."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import unifiedloss as ul
from unifiedloss import owners, registry
from unifiedloss.cli import app
from unifiedloss.conformance import Report
from unifiedloss.readers.files import Files

LONGEST = 1_000
"""The longest message: a sentence with a few lists of names and quotations."""

FEW = settings(
    max_examples=60,
    deadline=1_000,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def refused(way_in: Callable[..., Any], *given: Any) -> str:
    """The message of the error that a way in ends in."""
    with pytest.raises(ul.UnifiedLossError) as caught:
        way_in(*given)
    message = str(caught.value)
    assert len(message) < LONGEST
    message.encode()
    return message


def only_own_errors(way_in: Callable[..., Any], *given: Any) -> None:
    """Call a way in, which may succeed or raise an error of this library."""
    try:
        way_in(*given)
    except ul.UnifiedLossError as error:
        message = str(error)
    else:
        message = ""
    assert len(message) < LONGEST
    message.encode()


MSE = {"loss": "mean_squared_error", "version": 1}
DIGITS = "9" * 5_000
LONG = "x" * 1_000_000
EDGE = f"ul.CrossEntropyLoss(axis={'9' * 4_000})"

TEXTS = [
    "[" * 100_000,
    '{"loss":' * 100_000,
    '{"loss": "mean_squared_error", "version": 1, "element_weights": '
    + "[" * 400
    + "]" * 400
    + "}",
    f'{{"loss": "cross_entropy", "version": 1, "axis": {DIGITS}}}',
    f'{{"loss": "cross_entropy", "version": 1, "axis": {DIGITS[:4_000]}}}',
    f'{{"loss": "cross_entropy", "version": 1, "label_smoothing": {DIGITS[:390]}}}',
    f'{{"loss": "cross_entropy", "version": {DIGITS}}}',
    '{"loss": "cross_entropy", "version": 1, "label_smoothing": NaN}',
    '{"loss": "cross_entropy", "version": 1, "label_smoothing": 1e999}',
    '{"loss": "\\ud800", "version": 1}',
    '{"loss": "mean_squared_error", "version": 1, "\\ud800": 1}',
    f'{{"loss": "{LONG}", "version": 1}}',
    f'{{"loss": "mean_squared_error", "version": 1, "{LONG}": 1}}',
    f'{{"loss": "mean_squared_error", "version": 1, "reduction": "{LONG}"}}',
    f'{{"loss": "mean_squared_error", "version": 1, "reduction": {[1] * 10_000}}}',
    "{" + ", ".join(f'"{i}": 0' for i in [*range(40_000), 0]) + "}",
    '{"loss": "mean_squared_error", "version": 1}' * 2,
    '{"loss"\x00: 1}',
    LONG,
    "(" * 100_000,
    "-" * 100_000 + "1",
    "a" + ".b" * 50_000,
    "a" + "[0]" * 5_000,
    "f(" * 150 + ")" * 150,
    f"torch.nn.MSELoss(reduction='{LONG}')",
    f"torch.nn.{LONG}()",
    f"torch.nn.MSELoss({LONG}=1)",
    f"torch.nn.CrossEntropyLoss(label_smoothing={DIGITS})",
    f"torch.nn.CrossEntropyLoss(label_smoothing=0x{DIGITS})",
    f"torch.nn.CrossEntropyLoss(ignore_index=0x{DIGITS})",
    f"torch.nn.CrossEntropyLoss(label_smoothing=-0x{DIGITS})",
    f"torch.nn.CrossEntropyLoss(label_smoothing={'1+' * 20_000}1)",
    f"torch.nn.CrossEntropyLoss(weight={'[' * 150}{']' * 150})",
    f"keras[{LONG}].losses.MeanSquaredError()",
    f"keras.losses.MeanSquaredError(reduction='{LONG}')",
    f"keras.losses.CategoricalCrossentropy(axis=({'1,' * 10_000}))",
    f"sklearn.metrics.mean_squared_error(multioutput='{LONG}')",
    f"ul.{LONG}()",
    f"ul.CrossEntropyLoss(axis=0x{DIGITS})",
    EDGE,
    "torch.nn.MSELoss()\x00",
    "torch.nn.MSELoss(reduction='\ud800')",
    "\x1b[31mtorch",
    f'onnx.helper.make_node("{LONG}", ["x"], ["y"])',
    f'onnx.helper.make_node("SoftmaxCrossEntropyLoss", {["x"] * 10_000}, ["y"])',
    f'[onnx.helper.make_node("Relu", ["x"], ["y{LONG}"])] ',
    " " * 11_000_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=[str(place) for place in range(len(TEXTS))])
def test_hostile_text(text: str) -> None:
    """Deep, long and strange text is refused, wherever text is read."""
    refused(ul.from_native, text)
    refused(ul.from_json, text)
    refused(ul.explain, text)


def test_hostile_json_bytes() -> None:
    """Bytes that are no UTF-8 text, and what is no text at all."""
    for text in (b"\xff\xfe\xff", b"\x80{}", b"\x00", b"", bytearray(b"{}"), None, 1, MSE):
        refused(ul.from_json, text)


def _nested() -> list[Any]:
    itself: list[Any] = []
    itself.append(itself)
    return itself


@pytest.mark.parametrize(
    "data",
    [
        {**MSE, "element_weights": _nested()},
        {**MSE, "element_weights": [[1.0], _nested()]},
        {**MSE, "reduction": _nested()},
        {**MSE, "scale": 10**5_000},
        {**MSE, 3: 4},
        {**MSE, ("a",) * 10_000: 4},
        {**MSE, "version": 10**5_000},
        {**MSE, "version": -(10**5_000)},
        {**MSE, "loss": _nested()},
        {"loss": "cross_entropy", "version": 1, "ignore_index": [10**5_000]},
        {"loss": "cross_entropy", "version": 1, "class_weights": ["x" * 10_000]},
        {"loss": "cross_entropy", "version": 1, "class_weights": b"x" * 10_000},
        {"loss": "cross_entropy", "version": 1, "axis": -(2**63) - 1},
        [],
        "x",
    ],
    ids=range(15),
)
def test_hostile_dictionaries(data: Any) -> None:
    """Values that hold themselves, numbers without end and keys that are no strings."""
    refused(ul.from_dict, data)


@pytest.mark.parametrize(
    "data", [None, [], {}, {"version": 10**5_000}, {"version": 1, "rows": ["x"]}, {"version": 1}]
)
def test_hostile_reports(data: Any) -> None:
    """What is no report of a conformance run."""
    if isinstance(data, dict) and data.get("rows"):
        rest = ("errors", "absent", "rounding", "seconds", "unifiedloss", "python", "machine")
        data |= dict.fromkeys(rest)
    refused(Report.from_dict, data)


# ---------------------------------------------------------------------------------- at random

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = sorted({name for cls in ul.spec.LOSSES.values() for name in cls.declarations})
SPECS = st.fixed_dictionaries(
    {"loss": st.sampled_from(sorted(ul.spec.LOSSES)), "version": st.integers(1, 3)},
    optional=dict.fromkeys(FIELDS, VALUES),
)


@given(VALUES | SPECS)
@FEW
def test_any_dictionary(data: Any) -> None:
    """A spec with any values is read or refused, as a dictionary and as text."""
    only_own_errors(ul.from_dict, data)
    only_own_errors(ul.from_json, json.dumps(data))


PIECES = st.sampled_from(
    [*"()[]{},.=-+*'\"\\:\n\x00 ", "torch.nn.", "CrossEntropyLoss", "MSELoss", "weight", "1e9",
     "ul.", "keras[", "torch.tensor(", "functools.partial(", "onnx.helper.make_node(", "None",
     "True", "lambda", "**", "reduction", "label_smoothing", "f'", "{loss",
     '"SoftmaxCrossEntropyLoss"', "\ud800"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20))
@FEW
def test_any_text(text: str) -> None:
    """Any text is read or refused."""
    only_own_errors(ul.from_native, text)
    only_own_errors(ul.from_json, text)


# ---------------------------------------------------------------------------------- files

X = np.zeros((2, 3), np.float32)
Y = np.zeros(2, np.int64)


def header(shape: str, descr: str = "'<f4'") -> bytes:
    """The header of an .npy file that claims this shape and dtype."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def member(array: Any) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def archive(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """An .npz file of these members, beside good targets."""
    with zipfile.ZipFile(path, "w", compression) as opened:
        for name, content in ({"targets": member(Y)} | members).items():
            opened.writestr(f"{name}.npy", content)
    return path


MEMBERS = {
    "claims gigabytes": header("(8000000000, 3)"),
    "claims what wraps": header("(4294967296, 4294967296)"),
    "claims a negative extent": header("(-1, 3)"),
    "claims an extent of True": header("(True,)") + b"\0" * 4,
    "has a dtype of nothing": header("(2, 3)", "'nothing'"),
    "has nested fields": header("(2,)", "[('a', " * 30 + "'<f4'" + ")]" * 30),
    "is no literal": header("__import__('os').getpid()"),
    "is nested": header("(" * 5_000),
    "is longer than it says": member(X) + b"\0" * 8,
    "is cut": member(X)[:-4],
    "is text": b"hello",
    "is empty": b"",
    "is a pickle": member(np.array([{}], object)),
    "has a version of the future": b"\x93NUMPY\x09\x00" + header("(2,)")[8:],
}


def load(path: Path) -> dict[str, Any]:
    """Read all rows of a file."""
    with Files(path).open() as source:
        (block,) = source.blocks()
        return block.arrays


@pytest.mark.parametrize("kind", MEMBERS)
def test_hostile_arrays(kind: str, tmp_path: Path) -> None:
    """An array that claims to be another size, or that is none, is refused before it is read."""
    path = archive(tmp_path / "saved.npz", predictions=MEMBERS[kind])
    assert "the array 'predictions' in" in refused(load, path)
    done = CliRunner().invoke(app, ["compare", str(path)])
    assert done.exit_code == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.output


def test_a_zip_bomb(tmp_path: Path) -> None:
    """Compressed zeros of any size are read in blocks, and are no predictions for two targets."""
    bomb = header("(4000, 1000)") + b"\0" * 16_000_000
    path = archive(tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, predictions=bomb)
    assert path.stat().st_size < 20_000
    assert "have 4000 rows, and the targets have 2" in refused(load, path)


def test_archives_with_other_faults(tmp_path: Path) -> None:
    """Arrays that are there twice, names without end, and archives with damaged bytes."""
    path = archive(tmp_path / "twice.npz", predictions=member(X))
    with zipfile.ZipFile(path, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("predictions.npy", member(X))
    assert "two arrays 'predictions'" in refused(load, path)
    path = archive(tmp_path / "name.npz", predictions=member(X), **{"x" * 60_000: member(X)})
    assert set(load(path)) == {"predictions", "targets"}
    path = archive(tmp_path / "name.npz", predictions=member(X), **{"masks" * 9_000: member(X)})
    assert set(load(path)) == {"predictions", "targets"}
    path = archive(tmp_path / "name.npz", predictions=member(X), masks=member(X))
    assert "if it is the mask, say so with --mask-key masks" in refused(load, path)
    good = archive(tmp_path / "good.npz", zipfile.ZIP_DEFLATED, predictions=member(X))
    assert set(load(good)) == {"predictions", "targets"}
    data = good.read_bytes()
    for place in range(0, len(data), 5):
        damaged = tmp_path / "damaged.npz"
        damaged.write_bytes(data[:place] + bytes([data[place] ^ 0x3C]) + data[place + 1 :])
        only_own_errors(load, damaged)


def test_hostile_files_of_specs(tmp_path: Path) -> None:
    """A folder, bytes, an endless file and deep JSON in the place of a spec end in one message."""
    saved = archive(tmp_path / "saved.npz", predictions=member(X))
    names = []
    for name, content in {
        "bytes.json": b"\xff\xfe\x00",
        "deep.json": b"[" * 100_000,
        "number.json": b'{"loss": "cross_entropy", "version": 1, "axis": ' + b"9" * 5_000 + b"}",
        "long.json": b" " * 11_000_000,
    }.items():
        (tmp_path / name).write_bytes(content)
        names.append(str(tmp_path / name))
    (tmp_path / "folder.json").mkdir()
    names += [str(tmp_path / "folder.json"), str(tmp_path / "none.json"), "x" * 10_000 + ".json"]
    if Path("/dev/zero").exists():
        (tmp_path / "endless.json").symlink_to("/dev/zero")
        names.append(str(tmp_path / "endless.json"))
    commands = [["compare", str(saved), "--spec", name] for name in names]
    commands += [["explain", name] for name in names]
    commands += [["translate", names[1], "--to", "torch"], ["diff", names[1], names[2]]]
    for command in commands:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2, (command, done.output)
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr) < LONGEST
        assert isinstance(done.exception, SystemExit)


# ---------------------------------------------------------------------------------- entry points


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('x' * 1_000_000)",
        "import a_package_that_is_not_there",
        "raise SystemExit(3)",
        "adapter = ",
        "adapter = 1",
        "class adapter: pass",
        (
            "from unifiedloss.adapter import Adapter\n"
            "methods = dict.fromkeys(Adapter.__abstractmethods__, print)\n"
            "fields = dict(name='hostile', tensor_type=object, ops=print, kernels=print)\n"
            "adapter = type('A', (Adapter,), methods | fields | dict(__init__=lambda _: 1 / 0))"
        ),
        "",
    ],
)
def test_hostile_entry_points(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter of another package that cannot be imported is an error that names it."""
    (tmp_path / "hostile.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile", raising=False)
    entry = EntryPoint("hostile", "hostile:adapter", owners.ENTRY_POINTS)
    monkeypatch.setattr(owners, "entry_point", lambda _: entry)
    assert "The adapter 'hostile'" in refused(registry.adapter, "hostile")
    assert "hostile" not in registry._adapters
    sys.modules.pop("hostile", None)
