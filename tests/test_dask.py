"""Losses of dask arrays: any chunks, every scheduler, and errors at the call or at the block."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import dask
import dask.array as da
import numpy as np
import pytest

import unifiedloss as ul
from tests.fuzz import calls, check
from unifiedloss import owners, registry
from unifiedloss.adapter import Mode
from unifiedloss.conformance import workers

RNG = np.random.default_rng(5)
Z = (3 * RNG.normal(size=(12, 7))).astype(np.float32)
Y = RNG.integers(0, 7, 12)
WEIGHT = RNG.uniform(0.5, 2, 12).astype(np.float32)
MASK = RNG.random(12) < 0.7
IMAGES = RNG.normal(size=(4, 5, 6, 3)).astype(np.float32)  # classes on axis 1
LABELS = RNG.integers(0, 5, (4, 6, 3))
CE = ul.CrossEntropyLoss(from_logits=True)
EXACT = CE.replace(rounding="exact")
CHUNKINGS = [(12, 7), (5, 3), ((1, 0, 11), (2, 2, 3))]


def cut(x: Any, chunks: Any, name: str = "") -> da.Array:
    """An array of NumPy in chunks."""
    return da.from_array(x, chunks=chunks, name=name or False)


def same_bits(got: Any, wanted: Any) -> None:
    """Compare the bits, the shapes and the dtypes of two arrays, of which one may be lazy."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    assert got.tobytes() == wanted.tobytes()


@pytest.fixture(autouse=True)
def in_this_thread() -> Iterator[None]:
    """Use the scheduler of one thread, in tests that name no other one."""
    with dask.config.set(scheduler="synchronous"):
        yield


# ------------------------------------------------------------------------------- the same numbers


class Cut(type(registry.adapter("dask"))):  # type: ignore[misc]
    """Cuts every array at random."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def tensor(self, x: Any, dtype: str | None = None) -> Any:
        """The array, in chunks of any sizes, also empty ones."""
        x = registry.adapter("numpy").tensor(np.asarray(x), dtype)
        return cut(x, tuple(self._chunks(extent) for extent in x.shape))

    def _chunks(self, extent: int) -> tuple[int, ...]:
        ends = sorted(self.rng.integers(0, extent + 1, int(self.rng.integers(0, 3))).tolist())
        return tuple(b - a for a, b in zip([0, *ends], [*ends, extent], strict=True))

    def modes(self) -> dict[str, Mode]:
        """A mode that computes what a call gives, so that a bad value raises."""

        def run(function: Any, *tensors: Any) -> Any:
            return dask.compute(function(*tensors))[0]

        return {"lazy": Mode(run, raises=True)}


def test_random_calls() -> None:
    """Random specs on arrays that are cut at random: the oracle's numbers and NumPy's errors.

    Of several bad values another one may be named, and an empty mean is told by its divisor.
    """
    failures = []
    for seed in range(100):
        call = calls.draw(seed)
        for what in check.failures(Cut(seed), "lazy", call):
            of_values = ("not a ", "must be finite", "must lie", "must be at most", "weights;")
            known = (*of_values, "the mean has nothing to divide by", "renormalize needs")
            if not (what.startswith("the message is") and any(part in what for part in known)):
                failures.append(f"{call.name}: {what}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=str)
def test_chunks_change_no_bit(chunks: Any) -> None:
    """Loss, losses, gradient and divisor in exact mode, with weights, a mask and an upstream."""
    rows = cut(Z, chunks).chunks[0]
    z, y, weight = cut(Z, chunks), cut(Y, 5), cut(WEIGHT, (rows,))
    for spec in (EXACT, EXACT.replace(class_weights=[0, 1, 2, 0, 1, 1, 3], label_smoothing=0.3)):
        given: Any = {"sample_weight": WEIGHT, "mask": MASK}
        lazy: Any = {"sample_weight": weight, "mask": MASK}
        same_bits(spec(z, y, **lazy), spec(Z, Y, **given))
        for upstream in (None, np.float32(0.3), np.int8(3)):
            found = spec.value_and_grad(z, Y, **lazy, upstream=upstream)
            wanted = spec.value_and_grad(Z, Y, **given, upstream=upstream)
            assert found[1].chunks == z.chunks
            for got, want in zip(found, wanted, strict=True):
                same_bits(got, want)
        divisor = spec.divisor_of(y, **lazy)
        for d in (divisor, divisor.compute(), 3, cut(np.array(0.7), ())):
            number = d.compute() if isinstance(d, da.Array) else d
            same_bits(spec(z, y, **lazy, divisor=d), spec(Z, Y, **given, divisor=number))
            found = spec.value_and_grad(z, y, **lazy, upstream=cut(np.array(2), ()), divisor=d)
            wanted = spec.value_and_grad(Z, Y, **given, upstream=2, divisor=number)
            for got, want in zip(found, wanted, strict=True):
                same_bits(got, want)
        none = spec.replace(reduction="none")
        assert none(z, y).chunks == (rows,)
        same_bits(none(z, y, **lazy), none(Z, Y, **given))
        found = none.value_and_grad(z, y, **lazy, upstream=cut(WEIGHT, 7))
        wanted = none.value_and_grad(Z, Y, **given, upstream=WEIGHT)
        for got, want in zip(found, wanted, strict=True):
            same_bits(got, want)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_classes_on_any_axis(axis: int) -> None:
    """The class axis may be any axis, and may be cut; the gradient has the given chunks."""
    z = np.moveaxis(IMAGES, 1, axis)
    weight = RNG.uniform(0.5, 2, LABELS.shape[:2]).astype(np.float32)
    mask = RNG.random(4) < 0.6
    given: Any = {"sample_weight": weight, "mask": mask}
    spec = EXACT.replace(axis=axis - 4)
    lazy = cut(z, (2, 3, 2, 2))
    for targets in (LABELS, ul.softmax(z, axis=axis)):
        t = cut(targets, 2)
        wanted = spec.value_and_grad(z, targets, **given)
        found = spec.value_and_grad(lazy, t, **given)
        assert found[1].chunks == lazy.chunks
        for got, want in zip(found, wanted, strict=True):
            same_bits(got, want)
    same_bits(ul.softmax(lazy, axis=axis), ul.softmax(z, axis=axis))
    assert ul.softmax(lazy, axis=axis).chunks == lazy.chunks


def test_weights_that_run_along_a_cut_axis() -> None:
    """Weights in the spec and an averaged axis need their axes whole, and get them so."""
    t = RNG.random((12, 7)).astype(np.float32)
    along = np.arange(7.0)
    for spec in (
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=along, rounding="exact"),
        ul.BinaryCrossEntropyLoss(
            from_logits=True, pos_weight=np.arange(12.0), axis=0, rounding="exact"
        ),
        ul.MeanSquaredError(element_weights=along, divisor="nonzero", rounding="exact"),
        ul.MeanSquaredError(element_weights=np.ones((12, 1)), average_last_axis=True),
        ul.HuberLoss(average_last_axis=True, reduction="sum", rounding="exact"),
    ):
        for reduction in (spec.reduction, "none"):
            each = spec.replace(reduction=reduction)
            wanted = each.value_and_grad(Z, t)
            for got, want in zip(each.value_and_grad(cut(Z, 3), t), wanted, strict=True):
                if spec.rounding == "exact":
                    same_bits(got, want)
                else:
                    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("rounding", ["native", "exact"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_totals_and_result(rounding: Any, reduction: Any) -> None:
    """Totals are a lazy vector, and add up with those of NumPy and of other dask arrays."""
    spec = CE.replace(rounding=rounding, reduction=reduction)
    parts = [spec.totals(cut(Z[:8], 3), Y[:8]), spec.totals(cut(Z[8:], 2), Y[8:])]
    assert all(isinstance(x, da.Array) and x.ndim == 1 for x in parts)
    assert parts[0].dtype == (np.int64 if rounding == "exact" else np.float64)
    wanted = spec.result(spec.totals(Z, Y))
    together = [sum(parts), da.stack(parts), parts[0] + spec.totals(Z[8:], Y[8:])]
    for totals in together:
        found = spec.result(totals)
        assert (found.shape, found.dtype) == ((), wanted.dtype)
        np.testing.assert_allclose(found, wanted, rtol=0 if rounding == "exact" else 1e-14)
    if reduction == "mean":
        same_bits(
            spec.divisor_of(cut(Y, 5), sample_weight=WEIGHT).shape,
            np.shape(spec.divisor_of(Y, sample_weight=WEIGHT)),
        )
        assert float(CE.divisor_of(cut(Y, 5), mask=cut(MASK, 4))) == MASK.sum()
        assert float(CE.divisor_of(Y, mask=cut(MASK, 4))) == MASK.sum()


def test_a_divisor_that_is_nan_or_infinite() -> None:
    """The call's own divisor may be NaN or infinite; a given one may not."""
    for special in (np.nan, np.inf):
        weight = WEIGHT.copy()
        weight[4] = special
        for spec in (CE, EXACT):
            wanted = spec.value_and_grad(Z, Y, sample_weight=weight)
            found = spec.value_and_grad(cut(Z, 5), Y, sample_weight=weight)
            for got, want in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(got, want)
        for wrong in (special, cut(np.array(special), ())):
            with pytest.raises(ul.BadValueError, match=r"divisor is (nan|inf)"):
                CE(cut(Z, 5), Y, divisor=wrong).compute()


# ------------------------------------------------------------------------------------- laziness


def unreadable(shape: tuple[int, ...], chunks: Any, dtype: Any) -> da.Array:
    """An array whose blocks raise when they are computed."""
    return da.map_blocks(_refuse, chunks=da.core.normalize_chunks(chunks, shape), dtype=dtype)


def _refuse() -> NoReturn:
    msg = "a block was computed"
    raise RuntimeError(msg)


def test_nothing_is_computed_at_the_call() -> None:
    """Each function gives lazy arrays of the right shape and dtype; blocks are read by compute."""
    z, y = unreadable(Z.shape, (5, 3), "float32"), unreadable(Y.shape, 5, "int64")
    weight, one = unreadable((12,), 6, "float32"), unreadable((), (), "float64")
    vector = unreadable((70,), 70, "int64")
    for spec in (CE, EXACT):
        none = spec.replace(reduction="none")
        divisor = one if spec is CE else vector
        lazy: list[Any] = [
            spec(z, y, sample_weight=weight),
            spec(z, Y, divisor=divisor),
            *spec.value_and_grad(z, y, sample_weight=weight),
            *spec.value_and_grad(z, y, upstream=one, divisor=divisor),
            none(z, y),
            *none.value_and_grad(z, y, upstream=weight),
            spec.totals(z, Y),
            spec.divisor_of(y),
            spec.result(spec.totals(z, y)),
            ul.softmax(z),
            spec.to("dask")(z, y),
        ]
        known: Any = [
            spec(Z, Y, sample_weight=WEIGHT),
            spec(Z, Y, divisor=2),
            *spec.value_and_grad(Z, Y),
            *spec.value_and_grad(Z, Y),
            none(Z, Y),
            *none.value_and_grad(Z, Y),
            spec.totals(Z, Y),
            spec.divisor_of(Y),
            spec.result(spec.totals(Z, Y)),
            ul.softmax(Z),
            spec(Z, Y),
        ]
        for got, want in zip(lazy, known, strict=True):
            assert isinstance(got, da.Array)
            assert (got.shape, got.dtype) == (np.shape(want), want.dtype)
            with pytest.raises(RuntimeError, match="a block was computed"):
                got.compute()


def test_one_read_of_each_block() -> None:
    """A loss with its gradient reads each block of predictions once."""
    reads: list[int] = []

    def read(block: Any) -> Any:
        reads.append(len(block))
        return block

    for spec in (CE, EXACT):
        z = cut(Z, (4, 7)).map_blocks(read, dtype=Z.dtype, meta=np.empty((0, 0), Z.dtype))
        dask.compute(*spec.value_and_grad(z, Y, sample_weight=WEIGHT))
        assert reads == [4, 4, 4]
        reads.clear()


# --------------------------------------------------------------------------------------- errors


class Given(NamedTuple):
    """Predictions and targets of a call."""

    z: Any
    y: Any


def test_shapes_and_dtypes_are_refused_at_the_call() -> None:
    """With NumPy's errors, and before anything is computed."""
    z, y = unreadable(Z.shape, (5, 3), "float32"), unreadable(Y.shape, 5, "int64")
    calls_of: list[Callable[[Given], Any]] = [
        lambda x: CE(x.z, x.y[:-1]),
        lambda x: CE(x.z.astype(int), x.y),
        lambda x: CE.replace(axis=2)(x.z, x.y),
        lambda x: CE(x.z, x.y, sample_weight=x.y > 0),
        lambda x: CE(x.z, x.y, mask=x.y),
        lambda x: CE(x.z, x.y, mask=(x.y > 0)[:3]),
        lambda x: CE.value_and_grad(x.z, x.y, upstream=x.y),
        lambda x: CE(x.z, x.y, divisor=-1),
        lambda x: CE(x.z, x.y, divisor=x.y),
        lambda x: EXACT(x.z, x.y, divisor=x.y),
        lambda x: CE.replace(reduction="sum").divisor_of(x.y),
        lambda x: CE.replace(reduction="none").totals(x.z, x.y),
        lambda x: CE.result(x.y),
        lambda x: EXACT.result(x.y),
        lambda x: ul.softmax(x.y),
        lambda x: ul.softmax(x.z, axis=4),
        lambda x: ul.softmax(x.z[:, :0]),
    ]
    for call in calls_of:
        with pytest.raises(ul.UnifiedLossError) as wanted:
            call(Given(Z, Y))
        with pytest.raises(wanted.type) as got:
            call(Given(z, y))
        assert str(got.value) == str(wanted.value)


def test_a_bad_value_has_its_position_in_the_whole() -> None:
    """NumPy's message, whichever block holds the value."""
    labels, negative = Y.copy(), WEIGHT.copy()
    labels[9], negative[7] = 7, -1
    probabilities = ul.softmax(Z)
    probabilities[8, 5] = 2
    image = LABELS.copy()
    image[3, 4, 2] = -5
    dense = ul.CrossEntropyLoss(label_smoothing=0.1)
    cases: list[tuple[Any, Any, Any, dict[str, Any]]] = [
        (CE, Z, labels, {}),
        (EXACT, Z, labels, {}),
        (CE, Z, Y, {"sample_weight": negative}),
        (dense, probabilities, Y, {}),
        (CE.replace(axis=1), IMAGES, image, {}),
        (CE.replace(reduction="none"), Z, labels, {}),
    ]
    for spec, predictions, targets, more in cases:
        z = cut(predictions, 3)
        with pytest.raises(ul.BadValueError) as wanted:
            spec(predictions, targets, **more)
        lazy = spec(z, targets, **more), spec.value_and_grad(z, targets, **more)[1]
        for compute in (*(x.compute for x in lazy), partial(ul.check, spec, z, targets, **more)):
            with pytest.raises(ul.BadValueError) as got:
                compute()
            assert str(got.value) == str(wanted.value)


def test_check_reads_the_blocks() -> None:
    """The first block that has a bad value is named, and hints hold for every block."""
    labels = Y.copy()
    labels[3], labels[10] = -1, 99
    for _ in range(3):
        with (
            dask.config.set(scheduler="threads"),
            pytest.raises(ul.BadValueError, match=r"targets\[3\] is -1"),
        ):
            ul.check(CE, cut(Z, (2, 4)), labels)
    assert ul.check(CE, cut(Z, (2, 4)), Y) == ()
    with pytest.warns(UserWarning, match="every row of predictions sums to 1"):
        ul.check(CE, cut(ul.softmax(Z), (2, 4)), Y)
    half = np.concatenate([ul.softmax(Z[:6]), Z[6:]])
    assert ul.check(CE, cut(half, (6, 4)), Y) == ()
    strict = CE.replace(on_empty="error", ignore_index=3)
    for spec in (strict, strict.replace(rounding="exact")):
        with pytest.raises(ul.EmptyMeanError, match="the divisor is 0"):
            ul.check(spec, cut(Z, 5), np.full(12, 3))
        ul.check(spec, cut(Z, 5), np.where(np.arange(12) < 11, 3, 0))  # pieces may be empty
        with pytest.raises(ul.EmptyMeanError):
            spec(cut(Z, 5), np.full(12, 3)).compute()
        with pytest.raises(ul.EmptyMeanError):
            spec.value_and_grad(cut(Z, 5), np.full(12, 3))[1].compute()


def test_chunks_of_unknown_size() -> None:
    """Rows chosen by a condition work if all arrays are chosen alike; else the fix is named."""
    some = Z[:, 0] > 0
    z, y = cut(Z, (5, 7)), cut(Y, 5)
    rows, labels = z[cut(some, 5)], y[cut(some, 5)]
    for spec in (CE, EXACT):
        wanted = spec.value_and_grad(Z[some], Y[some])
        for got, want in zip(spec.value_and_grad(rows, labels), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
        same_bits(EXACT(rows, labels), EXACT(Z[some], Y[some]))
        same_bits(EXACT.result(EXACT.totals(rows, labels)), EXACT(Z[some], Y[some]))
    with pytest.raises(ul.ShapeError, match=r"predictions\.compute_chunk_sizes\(\)"):
        CE(rows, Y[some])
    with pytest.raises(ul.ShapeError, match=r"targets\.compute_chunk_sizes\(\)"):
        CE(cut(Z[some], (3, 7)), labels)
    same_bits(EXACT(rows.compute_chunk_sizes(), Y[some]), EXACT(Z[some], Y[some]))
    rows = z[cut(some, 5)]
    with pytest.raises(ul.ShapeError, match="class indices must have"):
        CE(rows, y[cut(~some, 5)]).compute()
    labels = Y.copy()
    labels[np.flatnonzero(some)[-1]] = 50
    with pytest.raises(ul.BadValueError, match=r"in block \d of axis 0, .*targets\[\d\] is 50"):
        CE(rows, cut(labels, 5)[cut(some, 5)]).compute()


def test_what_is_no_array_of_a_known_type() -> None:
    """Blocks of an unknown type, masked blocks and delayed objects are refused at the call."""
    masked = da.ma.masked_array(cut(Z, 5), cut(Z > 0, 5))
    with pytest.raises(ul.UnknownTensorError, match=r"predictions is a numpy\.ma.*mask="):
        CE(masked, Y)
    with pytest.raises(ul.UnknownTensorError, match=r"Delayed\w*, which is no tensor"):
        CE(dask.delayed(Z), Y)
    with pytest.raises(ul.UnknownTensorError, match="targets is a list of tensors"):
        CE(cut(Z, 5), [cut(Y, 5)])


def test_nothing_of_its_own() -> None:
    """The adapter has no operations and no derivative, and says who has them."""
    adapter = registry.adapter("dask")
    with pytest.raises(ul.UnsupportedError, match=r"no operation 'exp'.*adapter of its own type"):
        adapter.ops.exp(1)
    with pytest.raises(ul.UnsupportedError, match="no operation 'cross_entropy'"):
        adapter.kernels.cross_entropy(1, 2)
    with pytest.raises(ul.UnsupportedError, match=r"spec\.value_and_grad"):
        adapter.differentiate(lambda x: x, (cut(Z, 5),), None)
    function = CE.to("dask")
    again = pickle.loads(pickle.dumps(function))  # noqa: S301 - the bytes are of this test
    assert again == function != EXACT.to("dask")
    assert isinstance(function(Z, Y), da.Array)
    assert float(function(Z, Y)) == pytest.approx(float(CE(Z, Y)), rel=1e-6)
    every = {target.label for target in workers.choose(None, every=True)[0]}
    assert every - {target.label for target in workers.choose(None)[0]} == {"dask"}
    assert [target.label for target in workers.choose(["dask"])[0]] == ["dask"]


def test_a_block_goes_to_the_adapter_of_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of another library's type are computed by the adapter that its package registers."""
    (tmp_path / "strange.py").write_text("import numpy\nclass Tensor(numpy.ndarray):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    strange: Any = importlib.import_module("strange")
    asked = []

    class Strange(type(registry.adapter("numpy"))):  # type: ignore[misc]
        name = "strange"
        tensor_type = strange.Tensor

        def totals(self, spec: Any, predictions: Any, *more: Any, **named: Any) -> Any:
            asked.append(type(predictions))
            return super().totals(spec, predictions, *more, **named)

    strange.Strange = Strange
    entry = EntryPoint("strange", "strange:Strange", owners.ENTRY_POINTS)
    monkeypatch.setattr(owners, "entry_point", lambda name: entry if name == "strange" else None)
    try:
        z = cut(Z, (5, 7)).map_blocks(
            lambda block: block.view(strange.Tensor),
            dtype=Z.dtype,
            meta=np.empty((0, 0), Z.dtype).view(strange.Tensor),
        )
        same_bits(EXACT(z, Y), EXACT(Z, Y))
        assert asked == [strange.Tensor] * 3
    finally:
        registry._adapters.pop("strange", None)
        for cls in [cls for cls in owners.by_type if cls.__module__ == "strange"]:
            del owners.by_type[cls]
        sys.modules.pop("strange", None)


# ----------------------------------------------------------------------------------- schedulers


def test_every_scheduler_gives_the_same_bits() -> None:
    """Threads, processes, and a cluster of two processes."""
    distributed: Any = importlib.import_module("distributed")
    z, weight = cut(Z, (5, 4)), cut(WEIGHT, 5)
    spec = EXACT.replace(label_smoothing=0.1)
    wanted = spec.value_and_grad(Z, Y, sample_weight=WEIGHT)
    labels = Y.copy()
    labels[8] = 9

    def compare(**options: Any) -> None:
        found = dask.compute(*spec.value_and_grad(z, Y, sample_weight=weight), **options)
        for got, want in zip(found, wanted, strict=True):
            same_bits(got, want)

    compare(scheduler="threads")
    compare(scheduler="processes", num_workers=1)
    with (
        dask.config.set(scheduler=None),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            worker_dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster),
    ):
        compare()
        with pytest.raises(ul.BadValueError, match=r"targets\[8\] is 9"):
            spec(z, labels).compute()


# ------------------------------------------------------------------------ arrays of other libraries


def test_arrays_of_xarray() -> None:
    """As predictions they give what the array inside gives; as companions they are read."""
    xarray: Any = importlib.import_module("xarray")
    inside = xarray.DataArray(Z, dims=("row", "class"))
    labels = xarray.DataArray(Y, dims="row")
    in_pieces = inside.chunk(row=5)
    wanted = EXACT.value_and_grad(Z, Y)
    for x in (inside, in_pieces):
        for targets in (Y, labels, labels.chunk(row=4)):
            found = EXACT.value_and_grad(x, targets)
            lazy = x is in_pieces or getattr(targets, "chunks", None) is not None
            for got, want in zip(found, wanted, strict=True):
                assert isinstance(got, da.Array) == lazy
                same_bits(got, want)
    assert isinstance(EXACT(inside, labels), np.float32)
    assert isinstance(EXACT(Z, labels), np.float32)
    assert isinstance(EXACT(Z, labels.chunk(row=4)), da.Array)
    same_bits(EXACT(Z, labels.chunk(row=4)), wanted[0])
    weight = xarray.DataArray(WEIGHT, dims="row")
    same_bits(
        EXACT(in_pieces, labels, sample_weight=weight, mask=weight > 1, divisor=weight.sum()),
        EXACT(Z, Y, sample_weight=WEIGHT, mask=WEIGHT > 1, divisor=WEIGHT.sum()),
    )
    same_bits(EXACT.totals(inside, labels), EXACT.totals(Z, Y))
    assert float(CE.divisor_of(labels.chunk(row=4))) == 12
    assert isinstance(ul.softmax(inside), np.ndarray)
    same_bits(ul.softmax(in_pieces), ul.softmax(Z))
    assert ul.check(CE, in_pieces, labels) == ul.check(CE, inside, labels) == ()
    with pytest.raises(ul.UnknownTensorError, match=r"Dataset, which no backend owns"):
        CE(xarray.Dataset({"z": inside}), Y)


def test_arrays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of zarr, h5py and mapped files are read block by block, when the loss is computed."""
    zarr: Any = importlib.import_module("zarr")
    h5py: Any = importlib.import_module("h5py")
    wanted = EXACT.value_and_grad(Z, Y)
    z = zarr.create_array(tmp_path / "z.zarr", shape=Z.shape, chunks=(5, 4), dtype="float32")
    y = zarr.create_array(tmp_path / "y.zarr", shape=Y.shape, chunks=(3,), dtype="int64")
    z[:], y[:] = Z, Y
    np.save(tmp_path / "z.npy", Z)
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")

    def refuse(*_: Any, **__: Any) -> NoReturn:
        msg = "the whole array was read"
        raise AssertionError(msg)

    with h5py.File(tmp_path / "data.h5", "w") as file, dask.config.set({"array.chunk-size": 128}):
        file["z"], file["y"] = Z, Y
        monkeypatch.setattr(np.memmap, "copy", refuse)
        monkeypatch.setattr(type(z), "__array__", refuse)
        monkeypatch.setattr(h5py.Dataset, "__array__", refuse)
        for predictions, targets in (
            (z, y),
            (z, Y),
            (file["z"], file["y"]),
            (cut(Z, 5), file["y"]),
        ):
            for got, want in zip(EXACT.value_and_grad(predictions, targets), wanted, strict=True):
                assert isinstance(got, da.Array)
                same_bits(got.compute(), want)
            assert len(EXACT.replace(reduction="none")(predictions, targets).chunks[0]) > 1
        loss = EXACT.to("dask")(mapped, Y)
        same_bits(loss.compute(), wanted[0])
        with pytest.raises(ul.DTypeError, match="predictions must be floating"):
            CE(y, Y)
    monkeypatch.undo()
    same_bits(EXACT(Z, y), wanted[0])
    assert isinstance(EXACT(Z, y), np.float32)
    with pytest.raises(ul.UnknownTensorError, match="which no backend owns"):
        CE(zarr.open_group(tmp_path / "group.zarr"), Y)
