"""`compare` over files that are larger than a block.

Each backend's process reads the blocks itself. The loss is the result of the added totals, and the
gradients of a mean are those with the divisor of the whole. NumPy is the reference, in each process
for the gradients of its block, so no gradient of the size of the files is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import evaluation, registry
from unifiedloss.conformance import blocks, compare, tolerances, workers
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.compare import Line, Truth
from unifiedloss.errors import BadValueError, UnsupportedError
from unifiedloss.evaluation.sums import Sums, sums_of
from unifiedloss.exact import limbs
from unifiedloss.plan import Plan
from unifiedloss.readers.files import ARGUMENTS, Block, Files, Source
from unifiedloss.spec import Loss

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Whole:
    """What all processes know about all rows, for one rounding.

    Attributes:
        spec: the loss.
        files: the files.
        state: what tells that they are unchanged.
        rows: the rows of a block.
        truth: the true loss; NaN under "none".
        divisor: what a mean divides by, as `divisor_of` gives it for the reference; else None.
        factor: what the magnitudes of a sum are multiplied by.
    """

    spec: Loss
    files: Files
    state: dict[Path, Any]
    rows: int
    truth: float
    divisor: Any
    factor: float


def compare_files(
    spec: Loss,
    source: Source,
    backends: Sequence[str] | None = None,
    roundings: Sequence[str] = compare.ROUNDINGS,
) -> tuple[dict[str, Truth], list[Line]]:
    """Run a loss over the same files in several backends; see `compare.compare`.

    Files of one block are read as a whole.
    """
    rows = source.rows_of_block(compare.BLOCK)
    if source.rows <= rows:
        (block,) = source.blocks()
        source.check_unchanged()
        return compare.compare(spec, block.arrays, backends, roundings)
    evaluation.check(_summed(spec), source)
    case = _case(spec, source.read(0, rows))
    targets, absent = workers.choose(backends)
    targets = [target for target in targets if not target.wide or case.is_wide()]
    parallel = compare.needs(_arrays(case)).parallel(len(targets))
    lines = [Line(label, error=why, absent=True) for label, why in absent.items()]
    truths, shared = {}, []
    for rounding in roundings:
        started = time.perf_counter()
        whole, by = _whole(spec.replace(rounding=rounding), source, rows)
        seconds = time.perf_counter() - started
        truths[rounding] = Truth(by, np.asarray(whole.truth), np.empty(0), seconds)
        shared.append(whole)
    tasks = [(target, {"job": "compare_blocks"}) for target in targets]
    lines += compare.lines_of(workers.work(tasks, shared, parallel))
    source.check_unchanged()
    return truths, compare.in_order(lines)


def _summed(spec: Loss) -> Loss:
    """A spec that has totals."""
    return spec.summed if spec.reduction == "none" else spec


def _case(spec: Loss, block: Block) -> Case:
    given: dict[str, Any] = block.arrays
    predictions = given["predictions"]
    return Case("compare", spec, dtype=predictions.dtype.name, **given)


def _arrays(case: Case) -> dict[str, Array]:
    given = zip(ARGUMENTS, compare.arguments(case), strict=True)
    return {name: array for name, array in given if array is not None}


def _whole(spec: Loss, source: Source, rows: int) -> tuple[Whole, str]:
    """Read all blocks once, for the true loss and the divisor of a mean; and name the reference."""
    numpy: Any = registry.adapter("numpy")
    sums, terms, divisor = Sums(), np.zeros(2), None
    mean = spec.reduction == "mean"
    for block in source.blocks(rows):
        case = _case(spec, block)
        reference = compare.reference(case)
        sums += sums_of(_summed(reference.spec), _arrays(reference), block.start)
        if mean and sums.first is None:
            predictions, *rest = compare.arguments(reference)
            own = numpy.divisor_of(reference.spec, *rest, dtype=predictions.dtype.name)
            divisor = own if divisor is None else divisor + own
            terms += tolerances.divisor_terms(case, tolerances.plan_of(case))
    if sums.first is not None:
        raise BadValueError(sums.first.message)
    truth, factor = np.nan, 1.0
    if sums.totals is not None and spec.reduction != "none":
        truth = float(numpy.result(reference.spec, sums.totals))
    if mean:
        factor = blocks.factor_of(tolerances.plan_of(case), case.predictions.shape, terms)
    whole = Whole(spec, source.files, source.state(), rows, truth, divisor, factor)
    return whole, compare.source_of(reference.spec)


# ---------------------------------------------------------------------- in the worker's process


def measure(shared: list[Whole], task: dict[str, Any], send: Callable[..., None]) -> None:
    """Run the loss in one backend with each rounding, and send the results (a worker's job)."""
    adapter = registry.adapter(task["target"].backend)
    for whole in shared:
        run = functools.partial(_line, adapter, whole)
        compare.send_line(send, whole.spec.rounding, run, alone=len(shared) == 1)


def _line(adapter: Any, whole: Whole) -> dict[str, Any]:
    """The results of a backend, over all blocks."""
    found = _Found(whole)
    with whole.files.open() as source:
        source.check_unchanged(whole.state)
        for block in source.blocks(whole.rows):
            found.add(adapter, _case(whole.spec, block))
        source.check_unchanged(whole.state)
    return found.line(adapter)


class _Found:
    """The distances of one backend, over the blocks that were added.

    Attributes:
        whole: what is known about all rows.
        plan: the plan of the first block, whose bound applies to each.
        far: the largest distances of the loss and of the gradient, in ulps of the magnitude.
        ulps: the largest distance of a loss, in its own ulps.
        equal: how many elements of the gradient have the bits of the truth, and how many there are.
        alike: whether all losses have the bits of the truth, those of the blocks too.
        losses: the sum of unreduced losses, and how many there are.
        totals: the sum of the totals.
        size: the magnitude of the sum.
        seconds: the time of the calls for loss and gradient.
    """

    def __init__(self, whole: Whole) -> None:
        self.whole = whole
        self.plan: Plan | None = None
        self.far = [0.0, 0.0]
        self.ulps = self.seconds = self.size = 0.0
        self.equal, self.alike, self.losses = [0, 0], True, [0.0, 0]
        self.totals: Array | None = None

    def add(self, adapter: Any, case: Case) -> None:
        """Run a backend on a block, and compare it with NumPy."""
        whole, spec = self.whole, self.whole.spec
        if case.dtype not in adapter.dtypes():
            raise UnsupportedError(compare.cannot_hold(case.dtype))
        plan = tolerances.plan_of(case)
        self.plan = self.plan or plan
        tensors = compare.tensors_of(adapter, case)
        divisor = whole.divisor
        if divisor is not None:
            divisor = adapter.tensor(divisor) if plan.exact else _number(divisor)
        started = time.perf_counter()
        run = next(iter(adapter.modes().values())).run
        value, gradient = run(
            lambda *xs: adapter.value_and_grad(spec, *xs, *tensors[2:], None, divisor), *tensors[:2]
        )
        value, gradient = (np.asarray(adapter.to_numpy(x)) for x in (value, gradient))
        self.seconds += time.perf_counter() - started
        reference = compare.reference(case)
        numpy: Any = registry.adapter("numpy")
        true_value, true_gradient = numpy.value_and_grad(
            reference.spec, *compare.arguments(reference), None, whole.divisor
        )
        sizes = _sizes(case)
        far, equal = blocks.in_gradient_of(case, plan, sizes, whole.factor, gradient, true_gradient)
        self.far[1] = max(self.far[1], far)
        self.equal = [self.equal[0] + equal, self.equal[1] + gradient.size]
        with np.errstate(all="ignore"):
            self._compare(plan, value, np.asarray(true_value), sizes.loss * whole.factor)
        if spec.reduction == "none":
            self.losses = [self.losses[0] + float(value.sum(dtype=np.float64)),
                           self.losses[1] + value.size]  # fmt: skip
            return
        totals = np.array(adapter.to_numpy(adapter.totals(spec, *tensors)))
        self.totals = totals if self.totals is None else self.totals + totals
        self.size += float(sizes.loss)

    def _compare(self, plan: Plan, value: Array, truth: Array, magnitude: Array) -> None:
        """Compare losses in their dtype with the truth."""
        got, truth = value.astype(np.float64), truth.astype(np.float64)
        far = tolerances.distance(got, truth, magnitude, plan, plan.result_dtype)
        self.far[0] = max(self.far[0], blocks.farthest(got, truth, far))
        self.ulps = max(self.ulps, compare.ulps(got, truth, plan.result_dtype))
        self.alike = self.alike and bool(blocks.same(got, truth).all())

    def line(self, adapter: Any) -> dict[str, Any]:
        """The line of the table."""
        plan = self.plan
        assert plan is not None
        if self.totals is None:
            value = self.losses[0] / self.losses[1] if self.losses[1] else float("nan")
        else:
            result = adapter.result(self.whole.spec, adapter.tensor(self.totals))
            got = np.asarray(adapter.to_numpy(result)).astype(plan.result_dtype)
            with np.errstate(all="ignore"):
                magnitude = np.asarray(self.size * self.whole.factor)
            self._compare(plan, got, np.asarray(self.whole.truth), magnitude)
            value = float(got)
        equal, size = self.equal
        within = max(self.far) <= tolerances.limit(plan)
        return {
            "value": value,
            "value_ulps": self.ulps,
            "gradient_equal": equal / size if size else 1.0,
            "gradient_ulps": self.far[1],
            # Every bit of an exact result must be right, even the sign of a zero.
            "within": (self.alike and equal == size) if plan.exact else within,
            "milliseconds": self.seconds * 1e3,
        }


def _number(divisor: Any) -> float:
    """A divisor, which an exact reference gives as a vector, as a number."""
    return float(limbs.divisor_in(divisor) if np.ndim(divisor) else divisor)


def _sizes(case: Case) -> tolerances.Magnitudes:
    """The magnitudes of a block, of its sum or of its losses."""
    if case.spec.reduction == "mean":
        case = dataclasses.replace(case, spec=case.spec.summed)
    return tolerances.magnitudes(case, tolerances.plan_of(case))
