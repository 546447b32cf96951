"""One loss over saved predictions and targets, rounded natively and exactly, in every installed backend, each in a process of its own."""

from __future__ import annotations

import dataclasses
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry
from unifiedloss.conformance import tolerances, workers
from unifiedloss.conformance.cases import Case
from unifiedloss.errors import BadValueError, UnsupportedError
from unifiedloss.floats import FORMATS
from unifiedloss.spec import AnyLoss

Array = NDArray[Any]

ROUNDINGS = ("native", "exact")

_ORACLE_ELEMENTS = 200_000
"""Predictions up to which the oracle is asked, which takes 40 microseconds for each and rounding; past that NumPy stands in for it."""

_ARRAYS = ("predictions", "targets", "sample_weight", "mask")
_TIMED = 5


@dataclass(frozen=True)
class Truth:
    """What the results with one rounding are measured against.

    Attributes:
        source: "oracle"; for inputs too large for it "float64 NumPy", or "exact NumPy" where results are rounded exactly.
        loss: the loss, rounded to the result's dtype by the oracle.
        gradient: the gradient to the predictions.
        seconds: how long it took.
    """

    source: str
    loss: Array
    gradient: Array
    seconds: float


@dataclass(frozen=True)
class Line:
    """What one backend made of the data, with one rounding.

    Attributes:
        backend: "torch", "keras (jax)".
        rounding: "native" or "exact"; None where the line is about the backend as such, with an error.
        value: the loss; under "none" the mean of the per-position losses.
        value_ulps: the distance of the loss from the truth, in ulps of the result (its largest, under "none").
        gradient_equal: the share of gradient elements with the bits of the truth.
        gradient_ulps: the largest distance of a gradient element, in ulps of its magnitude (see `tolerances`).
        within: whether loss and gradient lie within the bound of the conformance suite, which allows exact results no difference.
        milliseconds: the median time of a call for loss and gradient.
        error: why there is no result, or None.
        absent: whether that is no failure, because the backend is not installed, or has no exact mode, and neither was asked for by name.
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


def load(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file.

    Raises:
        BadValueError: the file is missing, is no npz file, or holds other arrays than ``predictions``, ``targets`` and, where wanted,
            ``sample_weight`` and ``mask``.
    """
    save = "save it with numpy.savez(file, predictions=..., targets=...)"
    if not path.exists():
        msg = f"there is no file {path}."
        raise BadValueError(msg)
    found: dict[str, Array] = {}
    name = ""
    try:
        # Asked first: of a file that is no archive NumPy says to allow pickles, which run whatever code is in them.
        archive = _is_archive(path)
        if archive:
            with np.load(path, allow_pickle=False) as file:
                for name in file.files:
                    array = file[name]
                    if isinstance(
                        array, np.ndarray
                    ):  # a member that was not saved by NumPy comes as bytes
                        found[name] = array
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror or error}."
        raise BadValueError(msg) from error
    except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        msg = f"the array {name!r} in {path} is damaged, or holds Python objects and not numbers; {save}."
        raise BadValueError(msg) from error
    if not archive:
        msg = f"{path} is no .npz file; {save}."
        raise BadValueError(msg)
    for name in ("predictions", "targets"):
        if name not in found:
            names = ", ".join(map(repr, found)) or "no named arrays"
            msg = f"{path} has no array {name!r}, but {names}; {save}."
            raise BadValueError(msg)
    for name in found:
        if name not in _ARRAYS:
            msg = f"{path} has an array {name!r}, and only {', '.join(map(repr, _ARRAYS))} are read; leave it out."
            raise BadValueError(msg)
    return found


def _is_archive(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open(
        "rb"
    ) as opened:  # given the path, zipfile would keep to itself why a file cannot be read
        return zipfile.is_zipfile(opened)


def compare(
    spec: AnyLoss,
    arrays: dict[str, Array],
    backends: Sequence[str] | None = None,
    roundings: Sequence[str] = ROUNDINGS,
) -> tuple[dict[str, Truth], list[Line]]:
    """Run a loss over the same data in several backends.

    Args:
        spec: the loss. Its own rounding is not looked at.
        arrays: ``predictions``, ``targets`` and, where wanted, ``sample_weight`` and ``mask``.
        backends: as for `unifiedloss.conformance.run`.
        roundings: "native", "exact" or both.

    Returns:
        What the results with each rounding are measured against, and a line for each backend and rounding.

    Raises:
        UnifiedLossError: the arrays do not fit the loss or hold a bad value, or a backend that is asked for is unknown or missing.
    """
    predictions = arrays["predictions"]
    case = Case(
        "compare", spec, predictions, arrays["targets"], arrays.get("sample_weight"), arrays.get("mask"),
        dtype=predictions.dtype.name,
    )  # fmt: skip
    if len(roundings) > 1 and not case.has_exact_mode():
        roundings = ("native",)
    cases = {rounding: case.rounded(rounding) for rounding in roundings}
    registry.adapter("numpy").check(
        spec, case.predictions, case.targets, case.sample_weight, case.mask
    )
    truths = {rounding: _truth(rounded) for rounding, rounded in cases.items()}
    targets, absent = workers.choose(backends)
    targets = [target for target in targets if not target.wide or case.is_wide()]
    lines = [Line(label, error=why, absent=True) for label, why in absent.items()]
    shared = [(cases[rounding], truths[rounding]) for rounding in roundings]
    for message in workers.work([(target, {"job": "compare"}) for target in targets], shared):
        label = message.target.label
        if message.content is not None:
            lines.append(Line(label, **message.content["line"]))
        elif message.death:
            lines.append(Line(label, error=message.death))
    order = [
        target.label
        for target in sorted(workers.all_targets(), key=lambda t: (t.backend != "numpy", t.label))
    ]
    # A backend's own lines stay in the order in which they came.
    return truths, sorted(lines, key=lambda line: order.index(line.backend))


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
    case = _read(case)
    # Nothing approximate can stand in where every bit counts. That NumPy's own bits are right is what the conformance suite checks.
    # Nor another dtype where the clip is that of the predictions' own.
    exact = plan.exact or isinstance(getattr(case.spec, "epsilon", 0.0), str)
    spec = case.spec.replace(rounding="exact") if exact else case.spec
    predictions = case.predictions if exact else case.predictions.astype(np.float64)
    loss, gradient = numpy.value_and_grad(
        spec, predictions, case.targets, case.sample_weight, case.mask
    )
    source = "exact NumPy" if exact else "float64 NumPy"
    loss, gradient = (np.asarray(x).astype(np.float64) for x in (loss, gradient))
    return Truth(source, loss, gradient, time.perf_counter() - started)


def _read(case: Case) -> Case:
    """The same call with its tensors in the dtype that the spec names, if it names one, which then is no rule any more."""
    dtype = getattr(case.spec, "dtype", None)
    if dtype is None:
        return case
    targets, weight = (
        x.astype(dtype) if x is not None and x.dtype.name in FORMATS else x
        for x in (case.targets, case.sample_weight)
    )
    assert targets is not None
    return dataclasses.replace(
        case, spec=case.spec.replace(dtype=None), predictions=case.predictions.astype(dtype), targets=targets,
        sample_weight=weight, dtype=dtype,
    )  # fmt: skip


def measure(
    shared: list[tuple[Case, Truth]], task: dict[str, Any], send: Callable[..., None]
) -> None:
    """A worker's job: run the loss in one backend, with each rounding, and send what came out."""
    adapter = registry.adapter(task["target"].backend)
    for case, truth in shared:
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
        # Reading waits for a framework that is still computing. On the CPU it is a view.
        return adapter.to_numpy(value), adapter.to_numpy(gradient)

    value, gradient = (np.asarray(x).astype(np.float64) for x in call())
    times = []
    for _ in range(_TIMED):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    sizes = tolerances.magnitudes(case, plan)
    far = _largest(
        value,
        truth.loss,
        tolerances.distance(value, truth.loss, sizes.loss, plan, plan.result_dtype),
    )
    steep = _largest(
        gradient,
        truth.gradient,
        tolerances.distance(gradient, truth.gradient, sizes.grad_predictions, plan, case.dtype),
    )
    bound = tolerances.limit(plan)
    ulp = np.vectorize(FORMATS[plan.result_dtype].ulp, otypes=[np.float64])(truth.loss)
    with np.errstate(invalid="ignore"):
        ulps = _largest(value, truth.loss, np.abs(value - truth.loss) / ulp)
    rounded = truth.gradient.astype(case.predictions.dtype).astype(np.float64)
    equal = _same(gradient, rounded)
    # What is exact is right or it is not, to the sign of a zero.
    within = (
        bool(_same(value, truth.loss).all() and equal.all())
        if plan.exact
        else far <= bound and steep <= bound
    )
    return {
        "value": float(value.mean()) if value.size else float("nan"),
        "value_ulps": ulps,
        "gradient_equal": float(equal.mean()) if equal.size else 1.0,
        "gradient_ulps": steep,
        "within": within,
        "milliseconds": float(np.median(times)) * 1e3,
    }


def _same(got: Array, exact: Array) -> NDArray[np.bool_]:
    """Which numbers have the same bits; every NaN is one."""
    same: NDArray[np.bool_] = (got == exact) & (np.signbit(got) == np.signbit(exact)) | (
        np.isnan(got) & np.isnan(exact)
    )
    return same


def _largest(got: Array, exact: Array, distances: Array) -> float:
    """The largest distance: 0 where both numbers are NaN or the same infinity, infinite where only one of them is that."""
    same = (got == exact) | (np.isnan(got) & np.isnan(exact))
    special = ~np.isfinite(got) | ~np.isfinite(exact)
    return float(np.max(np.where(same, 0.0, np.where(special, np.inf, distances)), initial=0.0))
