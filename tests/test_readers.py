"""Readers of files: every format gives the same rows, and a faulty file gives an error."""

from __future__ import annotations

import io
import itertools
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import safetensors.numpy
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unifiedloss as ul
from unifiedloss.errors import FileError
from unifiedloss.readers import FORMATS, memory, open_reader
from unifiedloss.readers.files import Files

Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(rows: int = 10) -> Arrays:
    """Predictions, targets and weights."""
    rng = np.random.default_rng(3)
    return {
        "predictions": rng.normal(size=(rows, 4)).astype(np.float32),
        "targets": rng.integers(4, size=rows),
        "sample_weight": rng.random(rows),
        "mask": rng.random(rows) < 0.7,
    }


def save_parquet(path: Path, given: Arrays) -> None:
    """Save with a column of lists for an array of two axes."""
    columns = {
        name: pa.array(x)
        if x.ndim == 1
        else pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
        for name, x in given.items()
    }
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=4)


def save_zarr(path: Path, given: Arrays) -> None:
    """Save a group of arrays in chunks."""
    group = zarr.open_group(path, mode="w")
    for name, x in given.items():
        group.create_array(name, data=x, chunks=(3, *x.shape[1:]))


def save_hdf5(path: Path, given: Arrays) -> None:
    """Save arrays at the root."""
    with h5py.File(path, "w") as file:
        for name, x in given.items():
            file[name] = x


SAVERS: dict[str, Callable[[Path, Arrays], None]] = {
    ".npz": lambda path, given: np.savez(path, **given),
    ".safetensors": lambda path, given: safetensors.numpy.save_file(given, path),
    ".parquet": save_parquet,
    ".zarr": save_zarr,
    ".h5": save_hdf5,
}
"""The formats of several arrays. Tests of .npy are below."""


@pytest.fixture(params=SAVERS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each format."""
    path = tmp_path / f"saved{request.param}"
    SAVERS[request.param](path, arrays())
    return path


def test_every_format_has_a_reader() -> None:
    """The formats of these tests are all."""
    assert {*SAVERS, ".npy", ".hdf5"} == {*FORMATS}


def test_rows_of_every_format(saved: Path) -> None:
    """Any span of rows is read, one after another and back."""
    reader = open_reader(saved)
    try:
        for name, expected in arrays().items():
            column = reader.columns[name]
            assert (column.shape, column.dtype) == (expected.shape, expected.dtype)
            for start, stop in ((0, 3), (3, 10), (5, 6), (0, 10), (9, 10), (2, 7)):
                got = column.read(start, stop)
                assert got.dtype == expected.dtype
                assert np.array_equal(got, expected[start:stop])
    finally:
        reader.close()


@given(
    cuts=st.lists(st.integers(0, 12), max_size=5),
    kind=st.sampled_from(["<f4", ">f4", "<f2", "<f8", "<i2", "|b1", "<u8"]),
    rest=st.sampled_from([(), (3,), (2, 3), (0,)]),
    order=st.sampled_from("CF"),
    suffix=st.sampled_from([".npy", ".npz"]),
)
@settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_numpys_formats(
    cuts: list[int], kind: str, rest: tuple[int, ...], order: Any, suffix: str, tmp_path: Path
) -> None:
    """Byte orders, both orders of axes, and arrays without numbers."""
    rng = np.random.default_rng(0)
    x = np.asarray((rng.random((12, *rest)) * 100).astype(kind), order=order)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, x)
    else:
        np.savez_compressed(path, x=x)
    reader = open_reader(path)
    (column,) = reader.columns.values()
    ends = sorted({0, 12, *cuts})
    parts = [column.read(a, b) for a, b in itertools.pairwise(ends)]
    reader.close()
    joined = np.concatenate(parts)
    assert joined.dtype == x.dtype.newbyteorder("=")
    assert joined.flags.c_contiguous
    assert np.array_equal(joined, x)


def test_half_types(tmp_path: Path) -> None:
    """Safetensors has bfloat16, and leaves out what no loss reads."""
    path = tmp_path / "half.safetensors"
    given = {
        "predictions": np.array([[0.5, 1.5], [2, -1]], ml_dtypes.bfloat16),
        "targets": np.array([0, 1], np.int16),
        "eight": np.ones(3, ml_dtypes.float8_e4m3fn),
        "last": np.arange(3.0),
    }
    safetensors.numpy.save_file(given, path)
    columns = open_reader(path).columns
    assert sorted(columns) == ["last", "predictions", "targets"]
    assert columns["predictions"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(columns["predictions"].read(1, 2), given["predictions"][1:])
    assert np.array_equal(columns["last"].read(0, 3), given["last"])


def test_lists_of_parquet(tmp_path: Path) -> None:
    """Lists of one length are rows; other lengths and missing values are refused with their row."""
    path = tmp_path / "lists.parquet"

    def read(column: Any) -> Any:
        pyarrow.parquet.write_table(pa.table({"x": column}), path, row_group_size=2)
        reader = open_reader(path)
        try:
            found = reader.columns["x"]
            return found.shape, found.read(0, found.shape[0])
        finally:
            reader.close()

    shape, values = read(pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert shape == (3, 2)
    assert np.array_equal(values, [[1, 2], [3, 4], [5, 6]])
    nested = pa.array([[[1, 2], [3, 4]]] * 3, pa.list_(pa.list_(pa.int32(), 2), 2))
    assert read(nested)[0] == (3, 2, 2)
    with pytest.raises(FileError, match="a list of another length than 2 in row 2"):
        read(pa.array([[1.0, 2.0], [3.0, 4.0], [5.0]]))
    with pytest.raises(FileError, match="no value in row 1"):
        read(pa.array([1.0, None, 3.0]))
    with pytest.raises(FileError, match="no value in row 2"):
        read(pa.array([[1.0, 2.0], [3.0, 4.0], None], pa.list_(pa.float64(), 2)))
    with pytest.raises(FileError, match="no value in row 1"):
        read(pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float64(), 2)))


def test_types_of_parquet(tmp_path: Path) -> None:
    """A dictionary is read as its values, and a type that is not read is named."""
    path = tmp_path / "types.parquet"
    names = pa.array(["a", "b", "a"], pa.dictionary(pa.int32(), pa.string()))
    days = pa.array([1, 2, 3], pa.date32())
    zeros = [0.0, 0.0, 0.0]
    pyarrow.parquet.write_table(
        pa.table({"predictions": zeros, "targets": zeros, "names": names, "days": days}), path
    )
    with Files(path, by="names").open() as source:
        (block,) = source.blocks()
        assert block.group is not None
        assert block.group.tolist() == ["a", "b", "a"]
    with pytest.raises(FileError, match=r"'days' in .* has the type date32"):
        Files(path, by="days").open()
    with pytest.raises(FileError, match=r"'days' in .* has the type date32"):
        Files(path, keys={"targets": "days"}).open()


# ---------------------------------------------------------------------------------- faulty files


def outcome(path: Path) -> str:
    """The message of the error, or "read" if all rows were read."""
    try:
        reader = open_reader(path)
        try:
            for column in reader.columns.values():
                column.read(0, column.shape[0])
        finally:
            reader.close()
    except ul.UnifiedLossError as error:
        message = str(error)
    else:
        return "read"
    assert len(message) < 1_000
    return message


def test_a_foreign_file(saved: Path, tmp_path: Path) -> None:
    """Text, nothing, a folder or a missing file under the name of each format."""
    suffix = saved.suffix
    for name, content in (("text", b"hello" * 100), ("empty", b"")):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        assert name + suffix in outcome(path)
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert f"folder{suffix}" in outcome(folder)
    assert "there is no file" in outcome(tmp_path / f"none{suffix}")


def test_a_cut_file(saved: Path) -> None:
    """A file that ends anywhere before its end gives no rows."""
    if saved.is_dir():
        (chunk,) = saved.glob("predictions/c/0/0")
        chunk.write_bytes(chunk.read_bytes()[:-9])
        assert "is damaged" in outcome(saved)
        return
    data = saved.read_bytes()
    for end in {1, len(data) // 3, len(data) // 2, len(data) - 1}:
        saved.write_bytes(data[:end])
        assert outcome(saved) != "read", end


def test_damaged_npz(tmp_path: Path) -> None:
    """A changed number of a compressed or a stored member is found by its checksum."""
    for save in (np.savez, np.savez_compressed):
        path = tmp_path / "x.npz"
        save(path, x=np.arange(1000.0))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        assert "is damaged" in outcome(path)


def test_a_file_of_another_suffix(tmp_path: Path) -> None:
    """The message lists the formats."""
    (tmp_path / "x.csv").write_text("1,2")
    assert "has the suffix '.csv'; files are read with .npy, .npz," in outcome(tmp_path / "x.csv")


def test_a_missing_library(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    library = {
        ".safetensors": "safetensors", ".parquet": "pyarrow", ".zarr": "zarr", ".h5": "h5py",
    }.get(saved.suffix)  # fmt: skip
    if library is None:
        assert outcome(saved) == "read"  # NumPy reads it
        return
    monkeypatch.setitem(__import__("sys").modules, library, None)
    assert "pip install 'unifiedloss[files]'" in outcome(saved)


def test_a_whole_member_that_memory_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an array in column-major order has to be read at once."""
    np.savez(tmp_path / "x.npz", x=np.asarray(np.ones((30, 40)), order="F"))
    monkeypatch.setattr(memory, "available", lambda: 1000)
    assert "takes 9.6 kB, and 1 kB of memory are free" in outcome(tmp_path / "x.npz")


# ---------------------------------------------------------------------------------- several files


def test_arguments_from_several_files(saved: Path, tmp_path: Path) -> None:
    """An argument has its own file, or its own name in the main one."""
    np.save(tmp_path / "t.npy", arrays()["targets"][::-1])
    files = Files(saved, {"targets": tmp_path / "t.npy"}, {"sample_weight": "mask"})
    with files.open() as source:
        assert source.rows == 10
        (block,) = source.blocks()
        assert np.array_equal(block.arrays["targets"], arrays()["targets"][::-1])
        assert block.arrays["sample_weight"].dtype == bool
        assert sorted(source.unused) == ["sample_weight", "targets"]


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    """A missing array, a wrong key and an argument that is misspelt are named."""
    path = tmp_path / "x.npz"

    def refused(keys: dict[str, str] | None = None, by: str | None = None, **given: Any) -> str:
        np.savez(path, **given)
        with pytest.raises(FileError) as caught:
            Files(path, {}, keys or {}, by).open()
        return str(caught.value)

    x, y = np.zeros((3, 2)), np.zeros(3, int)
    assert "Did you mean 'prediction'?" in refused(prediction=x, targets=y)
    assert "Name the array of the targets with --targets-key." in refused(predictions=x, labels=y)
    wrong = refused({"targets": "y"}, predictions=x, targets=y)
    assert "no array 'y'; its arrays are 'predictions', 'targets'" in wrong
    misspelt = refused(predictions=x, targets=y, sample_weights=y)
    assert "say so with --sample-weight-key sample_weights" in misspelt
    assert "have 2 rows" not in refused(predictions=x, targets=y[:2])
    assert "3 rows, and the targets have 2" in refused(predictions=x, targets=y[:2])
    assert "has no array 'lang'" in refused(by="lang", predictions=x, targets=y)
    assert "one integer, bool or text for each row" in refused(
        by="z", predictions=x, targets=y, z=x
    )
    assert "a scalar" in refused(predictions=np.float32(1), targets=y)
    np.save(tmp_path / "p.npy", x)
    with pytest.raises(FileError, match="--targets FILE"):
        Files(tmp_path / "p.npy").open()


def test_other_arrays_are_told(tmp_path: Path) -> None:
    """Arrays that are not read are listed, and are no fault."""
    np.savez(tmp_path / "x.npz", predictions=np.zeros((3, 2)), targets=np.zeros(3, int), id=1)
    with Files(tmp_path / "x.npz").open() as source:
        assert source.unused == ["id"]


def test_a_file_that_changes(saved: Path) -> None:
    """A change of any byte between the opening and the end is noticed."""
    with Files(saved).open() as source:
        source.read(0, 5)
        source.check_unchanged()
        inside = next(saved.glob("targets/c/*")) if saved.is_dir() else saved
        found = inside.stat()
        os.utime(inside, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))
        with pytest.raises(FileError, match="changed while it was read"):
            source.check_unchanged()


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """Neither a signal nor wrong numbers, but an error."""
    path = tmp_path / "p.npy"
    np.save(path, np.zeros((1000, 100), np.float32))
    reader = open_reader(path)
    (column,) = reader.columns.values()
    column.read(0, 10)
    with path.open("r+b") as opened:
        opened.truncate(5000)
    with pytest.raises(FileError, match="it was cut"):
        column.read(900, 1000)


def test_streams_take_the_memory_of_a_block(tmp_path: Path) -> None:
    """A member of an archive is not read as a whole."""
    path = tmp_path / "zeros.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 100)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("predictions.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(400):
            member.write(bytes(10**6))
    reader = open_reader(path)
    column = reader.columns["predictions"]
    assert column.shape == (10**6, 100)
    tracemalloc.start()
    assert not column.read(0, 1000).any()
    assert not column.read(1000, 2000).any()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    reader.close()
    assert most < 5_000_000
