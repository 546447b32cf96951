"""Compare one loss over saved predictions and targets in every installed backend.

Each backend runs in its own process, with native and with exact rounding.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry
from unifiedloss.conformance import blocks, tolerances, workers
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.mapped import Mapped
from unifiedloss.errors import UnsupportedError
from unifiedloss.floats import FORMATS
from unifiedloss.readers.files import ARGUMENTS, Source
from unifiedloss.readers.memory import available, size
from unifiedloss.spec import Loss

Array = NDArray[Any]

ROUNDINGS = ("native", "exact")

_ORACLE_ELEMENTS = 200_000
"""Largest number of predictions for the oracle; above it NumPy is the reference.

The oracle takes 40 microseconds for each prediction and rounding.
"""

_COPIES = 12
"""Arrays of the predictions' shape that the hungriest process holds at one time.

Measured with float32 cross-entropies and squared errors.
"""

BLOCK = 1 << 25
"""Bytes of predictions in a block. Smaller files are called as a whole."""

_PROCESS = 600_000_000
"""The bytes of a process that has imported a framework."""

_TIMED = 5


@dataclass(frozen=True)
class Truth:
    """The reference for the results with one rounding.

    Attributes:
        source: "oracle"; for inputs too large for it "float64 NumPy", or "exact NumPy" if results
            are rounded exactly.
        loss: the loss; the oracle rounds it to the result's dtype.
        gradient: the gradient to the predictions, in float64, or in their dtype if it is exact.
        seconds: how long its computation took.
    """

    source: str
    loss: Array
    gradient: Array
    seconds: float


@dataclass(frozen=True)
class Line:
    """The results of one backend with one rounding.

    Attributes:
        backend: "torch", "keras (jax)".
        rounding: "native" or "exact"; None if an error concerns the backend with any rounding.
        value: the loss; under "none" the mean of the per-position losses.
        value_ulps: the distance of the loss from the truth, in ulps of the result; under "none" the
            largest distance.
        gradient_equal: the fraction of gradient elements with the same bits as the truth.
        gradient_ulps: the largest distance of a gradient element, in ulps of its magnitude (see
            `tolerances`).
        within: whether loss and gradient lie within the bound of the conformance suite. Exact
            results must equal the truth.
        milliseconds: the median time of a call for loss and gradient.
        error: why there is no result, or None.
        absent: whether the error is no failure: the backend is not installed, or has no exact mode,
            and the caller did not ask for it by name.
    """

    backend: str
    rounding: str | None = None
    value: float = float("nan")
    value_ulps: float = float("nan")
    gradient_equal: float = float("nan")
    gradient_ulps: float = float("nan")
    within: bool = False
    milliseconds: float = float("nan")
    error: str | None = None
    absent: bool = False


@dataclass(frozen=True)
class Needs:
    """The memory that a comparison takes.

    Attributes:
        arrays: the bytes of all arrays.
        process: the bytes that a process takes for them at most, about.
        free: the bytes that are free; None if the system does not say.
    """

    arrays: int
    process: int
    free: int | None

    def parallel(self, processes: int) -> int:
        """How many processes run at a time: as many as there are cores, and as memory holds.

        Raises:
            UnsupportedError: memory does not hold one.
        """
        most = min(processes, os.cpu_count() or 1)
        if self.free is None:
            return max(1, most)
        if self.process > self.free:
            msg = (
                f"these arrays have {size(self.arrays)}, to compare them takes about "
                f"{size(self.process)} of memory for each backend, and {size(self.free)} are free; "
                "take fewer rows."
            )
            raise UnsupportedError(msg)
        return max(1, min(most, self.free // self.process))


def needs(arrays: dict[str, Array]) -> Needs:
    """The memory that a comparison of these arrays takes, at once."""
    total = sum(array.nbytes for array in arrays.values())
    # Frameworks compute in float32 at least.
    numbers = arrays["predictions"].size * max(arrays["predictions"].itemsize, 4)
    return Needs(total, _PROCESS + total + _COPIES * numbers, available())


def needs_of(source: Source) -> Needs:
    """The memory that a comparison of files takes, which are read in blocks."""
    rows = min(source.rows, source.rows_of_block(BLOCK))
    block = {}
    for name, column in source.columns.items():
        shape = (rows, *column.shape[1:]) if column.shape else ()
        block[name] = np.broadcast_to(np.empty((), column.dtype), shape)  # takes no memory
    return needs(block)


def compare(
    spec: Loss,
    arrays: dict[str, Array],
    backends: Sequence[str] | None = None,
    roundings: Sequence[str] = ROUNDINGS,
) -> tuple[dict[str, Truth], list[Line]]:
    """Run a loss over the same data in several backends.

    Args:
        spec: the loss. `roundings` replaces its own rounding.
        arrays: ``predictions``, ``targets`` and, optionally, ``sample_weight`` and ``mask``.
        backends: as for `unifiedloss.conformance.run`.
        roundings: "native", "exact" or both.

    Returns:
        The truth for each rounding, and a line for each backend and rounding.

    Raises:
        UnifiedLossError: the arrays do not fit the loss or hold a bad value, or a backend in
            `backends` is unknown or missing.
    """
    predictions = arrays["predictions"]
    case = Case(
        "compare",
        spec,
        predictions,
        arrays["targets"],
        arrays.get("sample_weight"),
        arrays.get("mask"),
        dtype=predictions.dtype.name,
    )
    targets, absent = workers.choose(backends)
    targets = [target for target in targets if not target.wide or case.is_wide()]
    parallel = needs(arrays).parallel(len(targets))
    registry.adapter("numpy").check(
        spec, case.predictions, case.targets, case.sample_weight, case.mask
    )
    lines = [Line(label, error=why, absent=True) for label, why in absent.items()]
    truths: dict[str, Truth] = {}
    # The truths outlive the folder: a mapped file stays readable after it is removed.
    with tempfile.TemporaryDirectory(prefix="unifiedloss-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        case, files = _in_files(case, folder)
        shared: list[_Shared] = []
        for rounding in roundings:
            truth = _truth(case.rounded(rounding))
            gradient = Mapped.of(truth.gradient, folder / f"{rounding}.gradient")
            truths[rounding] = dataclasses.replace(truth, gradient=gradient.open())
            told = dataclasses.replace(truth, gradient=np.empty(0))
            shared.append(_Shared(case.rounded(rounding).spec, case.dtype, files, told, gradient))
        tasks = [(target, {"job": "compare"}) for target in targets]
        lines += lines_of(workers.work(tasks, shared, parallel))
    return truths, in_order(lines)


def lines_of(messages: Iterable[workers.WorkerMessage]) -> Iterator[Line]:
    """The lines that the workers send, and one for each worker that dies."""
    for message in messages:
        label = message.target.label
        if message.content is not None:
            yield Line(label, **message.content["line"])
        elif message.death:
            yield Line(label, error=message.death)


def in_order(lines: list[Line]) -> list[Line]:
    """The lines by backends, NumPy first. Those of one backend keep their order."""
    targets = sorted(workers.all_targets(), key=lambda t: (t.backend != "numpy", t.label))
    order = [target.label for target in targets]
    return sorted(lines, key=lambda line: order.index(line.backend))


@dataclass(frozen=True)
class _Shared:
    """What all workers read about one rounding: arrays in files, so that none is copied."""

    spec: Loss
    dtype: str
    files: dict[str, Mapped]
    truth: Truth
    gradient: Mapped

    def open(self) -> tuple[Case, Truth]:
        """The case and the truth, with mapped arrays."""
        arrays: dict[str, Any] = {name: file.open() for name, file in self.files.items()}
        case = Case("compare", self.spec, dtype=self.dtype, **arrays)
        return case, dataclasses.replace(self.truth, gradient=self.gradient.open())


def _in_files(case: Case, folder: Path) -> tuple[Case, dict[str, Mapped]]:
    """Write the arrays of a case to files that are not mapped from one, and map them."""
    arrays = {name: getattr(case, name) for name in ARGUMENTS}
    files = {
        name: Mapped.of(array, folder / name) for name, array in arrays.items() if array is not None
    }
    opened: dict[str, Any] = {name: file.open() for name, file in files.items()}
    return dataclasses.replace(case, **opened), files


def _truth(case: Case) -> Truth:
    started = time.perf_counter()
    if case.predictions.size <= _ORACLE_ELEMENTS:
        expected = case.expected()
        loss = np.asarray(expected.loss, np.float64)
        if case.spec.reduction == "none":
            plan = tolerances.plan_of(case)
            loss = loss.reshape(tuple(n or 0 for n in plan.positions or ()))
        gradient = np.asarray(expected.grad_predictions).reshape(case.predictions.shape)
        return Truth("oracle", loss, gradient, time.perf_counter() - started)
    numpy = registry.adapter("numpy")
    case = reference(case)
    loss, gradient = numpy.value_and_grad(
        case.spec, case.predictions, case.targets, case.sample_weight, case.mask
    )
    loss = np.asarray(loss).astype(np.float64)
    source = source_of(case.spec)
    return Truth(source, loss, np.asarray(gradient), time.perf_counter() - started)


def reference(case: Case) -> Case:
    """The call of NumPy that is the truth for a case that is too large for the oracle."""
    case = _cast_to_named_dtype(case)
    # Exact results need an exact reference; the conformance suite checks that NumPy's is right.
    # A preset of epsilon depends on the predictions' dtype, so they must not become float64.
    epsilon = getattr(case.spec, "epsilon", 0.0)
    if case.spec.rounding == "exact" or isinstance(epsilon, str):
        return case.rounded("exact")
    return dataclasses.replace(case, predictions=case.predictions.astype(np.float64))


def source_of(spec: Loss) -> str:
    """The name of a truth that is NumPy's."""
    return "exact NumPy" if spec.rounding == "exact" else "float64 NumPy"


def _cast_to_named_dtype(case: Case) -> Case:
    """Cast the inputs to the dtype that the spec names, if any, and drop it from the spec."""
    dtype = getattr(case.spec, "dtype", None)
    if dtype is None:
        return case
    targets, weight = (
        x.astype(dtype) if x is not None and x.dtype.name in FORMATS else x
        for x in (case.targets, case.sample_weight)
    )
    assert targets is not None
    return dataclasses.replace(
        case,
        spec=case.spec.replace(dtype=None),
        predictions=case.predictions.astype(dtype),
        targets=targets,
        sample_weight=weight,
        dtype=dtype,
    )


def measure(shared: list[_Shared], task: dict[str, Any], send: Callable[..., None]) -> None:
    """Run the loss in one backend with each rounding, and send the results (a worker's job)."""
    adapter = registry.adapter(task["target"].backend)
    for case, truth in (each.open() for each in shared):
        run = functools.partial(_line, adapter, case, truth)
        send_line(send, case.spec.rounding, run, alone=len(shared) == 1)


def send_line(
    send: Callable[..., None], rounding: str, run: Callable[[], dict[str, Any]], *, alone: bool
) -> None:
    """Run a loss in one backend with one rounding, and send the line.

    Args:
        send: sends a message.
        rounding: the rounding.
        run: runs the loss.
        alone: whether this is the only rounding, so that a missing exact mode is a failure.
    """
    line: dict[str, Any] = {"rounding": rounding}
    try:
        line |= run()
    except UnsupportedError as error:
        line |= {"error": str(error), "absent": rounding == "exact" and not alone}
    except Exception as error:  # noqa: BLE001 - one backend's failure is a line of the table
        line |= {"error": f"{type(error).__name__}: {error}"}
    send(event="line", line=line)


def tensors_of(adapter: Any, case: Case) -> list[Any]:
    """The arguments of a case as tensors; None for those that it lacks."""
    predictions, *rest = arguments(case)
    made = [None if x is None else adapter.tensor(x) for x in rest]
    return [adapter.tensor(predictions, case.dtype), *made]


def arguments(case: Case) -> tuple[Any, ...]:
    """The arguments of a case; None for those that it lacks."""
    return tuple(getattr(case, name) for name in ARGUMENTS)


def cannot_hold(dtype: str) -> str:
    """The message about a dtype that a backend does not have."""
    return f"cannot hold {dtype}."


def ulps(value: Array, truth: Array, dtype: str) -> float:
    """The largest distance of losses from the truth, in ulps of the truth in their dtype."""
    ulp = np.vectorize(FORMATS[dtype].ulp, otypes=[np.float64])(truth)
    with np.errstate(invalid="ignore"):
        return blocks.farthest(value, truth, np.abs(value - truth) / ulp)


def _line(adapter: Any, case: Case, truth: Truth) -> dict[str, Any]:
    if case.dtype not in adapter.dtypes():
        raise UnsupportedError(cannot_hold(case.dtype))
    plan = tolerances.plan_of(case)
    tensors = tensors_of(adapter, case)
    run = next(iter(adapter.modes().values())).run

    def call() -> tuple[Array, Array]:
        value, gradient = run(
            lambda p, t: adapter.value_and_grad(case.spec, p, t, *tensors[2:]), *tensors[:2]
        )
        # Converting waits for a framework that is still computing. On the CPU it makes no copy.
        return adapter.to_numpy(value), adapter.to_numpy(gradient)

    value, gradient = call()
    value = np.asarray(value).astype(np.float64)
    times = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    found = blocks.distances(case, plan, value, gradient, truth.loss, truth.gradient)
    bound = tolerances.limit(plan)
    if plan.exact:
        # Every bit must be right, even the sign of a zero.
        within = bool(blocks.same(value, truth.loss).all()) and found.equal == gradient.size
    else:
        within = found.loss <= bound and found.gradient <= bound
    return {
        "value": float(value.mean()) if value.size else float("nan"),
        "value_ulps": ulps(value, truth.loss, plan.result_dtype),
        "gradient_equal": found.equal / gradient.size if gradient.size else 1.0,
        "gradient_ulps": found.gradient,
        "within": within,
        "milliseconds": float(np.median(times)) * 1e3,
    }
