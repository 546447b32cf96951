"""Compare one loss over saved predictions and targets in every installed backend.

Each backend runs in its own process, with native and with exact rounding.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry
from unifiedloss.conformance import blocks, tolerances, workers
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.mapped import Mapped
from unifiedloss.conformance.saved import ARRAYS, load_files
from unifiedloss.errors import UnsupportedError
from unifiedloss.floats import FORMATS
from unifiedloss.readers.memory import available, size
from unifiedloss.spec import Loss

Array = NDArray[Any]

__all__ = ["ROUNDINGS", "Line", "Truth", "compare", "load_files", "measure"]

ROUNDINGS = ("native", "exact")

_ORACLE_ELEMENTS = 200_000
"""Largest number of predictions for the oracle; above it NumPy is the reference.

The oracle takes 40 microseconds for each prediction and rounding.
"""

_COPIES = 12
"""Arrays of the predictions' shape that the hungriest process holds at one time.

Measured with float32 cross-entropies and squared errors.
"""

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
    """The memory that a comparison of these arrays takes."""
    total = sum(array.nbytes for array in arrays.values())
    # Frameworks compute in float32 at least.
    numbers = arrays["predictions"].size * max(arrays["predictions"].itemsize, 4)
    return Needs(total, _PROCESS + total + _COPIES * numbers, available())


def described(arrays: dict[str, Array]) -> str:
    """The arrays with their shapes and dtypes."""
    return ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items())


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
    if len(roundings) > 1 and not case.has_exact_mode():
        roundings = ("native",)
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
        for message in workers.work(tasks, shared, parallel):
            label = message.target.label
            if message.content is not None:
                lines.append(Line(label, **message.content["line"]))
            elif message.death:
                lines.append(Line(label, error=message.death))
    in_order = sorted(workers.all_targets(), key=lambda t: (t.backend != "numpy", t.label))
    order = [target.label for target in in_order]
    # The sort is stable, so the lines of one backend keep their order.
    return truths, sorted(lines, key=lambda line: order.index(line.backend))


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
    arrays = {name: getattr(case, name) for name in ARRAYS}
    files = {
        name: Mapped.of(array, folder / name) for name, array in arrays.items() if array is not None
    }
    opened: dict[str, Any] = {name: file.open() for name, file in files.items()}
    return dataclasses.replace(case, **opened), files


def _truth(case: Case) -> Truth:
    plan = tolerances.plan_of(case)
    started = time.perf_counter()
    if case.predictions.size <= _ORACLE_ELEMENTS:
        expected = case.expected()
        loss = np.asarray(expected.loss, np.float64)
        if plan.spec.reduction == "none":
            loss = loss.reshape(tuple(n or 0 for n in plan.positions or ()))
        gradient = np.asarray(expected.grad_predictions).reshape(case.predictions.shape)
        return Truth("oracle", loss, gradient, time.perf_counter() - started)
    numpy = registry.adapter("numpy")
    case = _cast_to_named_dtype(case)
    # Exact results need an exact reference; the conformance suite checks that NumPy's is right.
    # A preset of epsilon depends on the predictions' dtype, so they must not become float64.
    exact = plan.exact or isinstance(getattr(case.spec, "epsilon", 0.0), str)
    spec = case.spec.replace(rounding="exact") if exact else case.spec
    predictions = case.predictions if exact else case.predictions.astype(np.float64)
    loss, gradient = numpy.value_and_grad(
        spec, predictions, case.targets, case.sample_weight, case.mask
    )
    source = "exact NumPy" if exact else "float64 NumPy"
    loss = np.asarray(loss).astype(np.float64)
    return Truth(source, loss, np.asarray(gradient), time.perf_counter() - started)


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
        line: dict[str, Any] = {"rounding": case.spec.rounding}
        try:
            if case.dtype not in adapter.dtypes():
                send(event="line", line={"error": f"cannot hold {case.dtype}."})
                return
            line |= _line(adapter, case, truth)
        except UnsupportedError as error:
            line |= {
                "error": str(error),
                "absent": case.spec.rounding == "exact" and len(shared) > 1,
            }
        except Exception as error:  # noqa: BLE001 - one backend's failure is a line of the table
            line |= {"error": f"{type(error).__name__}: {error}"}
        send(event="line", line=line)


def _line(adapter: Any, case: Case, truth: Truth) -> dict[str, Any]:
    plan = tolerances.plan_of(case)
    tensors = [adapter.tensor(case.predictions, case.dtype), adapter.tensor(case.targets)]
    tensors += [None if x is None else adapter.tensor(x) for x in (case.sample_weight, case.mask)]
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
    ulp = np.vectorize(FORMATS[plan.result_dtype].ulp, otypes=[np.float64])(truth.loss)
    with np.errstate(invalid="ignore"):
        ulps = blocks.farthest(value, truth.loss, np.abs(value - truth.loss) / ulp)
    if plan.exact:
        # Every bit must be right, even the sign of a zero.
        within = bool(blocks.same(value, truth.loss).all()) and found.equal == gradient.size
    else:
        within = found.loss <= bound and found.gradient <= bound
    return {
        "value": float(value.mean()) if value.size else float("nan"),
        "value_ulps": ulps,
        "gradient_equal": found.equal / gradient.size if gradient.size else 1.0,
        "gradient_ulps": found.gradient,
        "within": within,
        "milliseconds": float(np.median(times)) * 1e3,
    }
