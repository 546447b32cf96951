"""Totals and divisors of pieces on NumPy arrays, and the loss that their sums give.

`unifiedloss.exact.limbs` describes the vectors. A `Job` names one of these computations, so that an
adapter can send it to the host from a compiled program.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss.divisors import EMPTY
from unifiedloss.errors import BadValueError, EmptyMeanError
from unifiedloss.exact import by_oracle, casts, kernel, limbs
from unifiedloss.exact.call import HostCall, exact_number
from unifiedloss.floats import FORMATS
from unifiedloss.inputs import Signature
from unifiedloss.oracle.rounding import nearest
from unifiedloss.plan import Plan, resolve, resolve_divisor
from unifiedloss.spec import Loss

Array = NDArray[Any]


class Job(NamedTuple):
    """A computation of this module, without its arrays.

    Attributes:
        kind: "totals" of (predictions, targets, sample_weight, mask), "divisor" of (targets,
            sample_weight, mask), or "result" of (totals,), or of the totals of a sum and a divisor.
        spec: the loss.
        dtypes: the dtypes of the tensors, None for one not given. They are part of the job, because
            arrays of bfloat16 may arrive widened.
        dtype: the dtype of the predictions; of a result, that of the loss.
    """

    kind: Literal["totals", "divisor", "result"]
    spec: Loss
    dtypes: tuple[str | None, ...]
    dtype: str

    @property
    def form(self) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of what `run` returns."""
        if self.kind == "result":
            return (), self.dtype
        kind = "divisor" if self.kind == "divisor" else self.spec.reduction
        terms = "float64" if self.dtype == "float64" else "float32"
        return (limbs.length(kind, terms),), "int64"

    def run(self, *arrays: Array | None) -> Array:
        """Compute the vector or the loss; what is no sum of totals gives NaN."""
        if self.kind == "result":
            entries, *divisor = (x for x in arrays if x is not None)
            over = exact_number(divisor[0]) if divisor else None
            try:
                value = result(self.spec, self.dtype, summed(entries), over)
            except (BadValueError, EmptyMeanError):
                value = np.nan
            return np.array(value, self.dtype)
        plan = plan_of(self, *(None if x is None else x.shape for x in arrays))
        compute: Any = totals if self.kind == "totals" else divisor_of
        vector: Array = compute(plan, *arrays)
        return vector


@lru_cache(4096)
def plan_of(job: Job, *shapes: tuple[int, ...] | None) -> Plan:
    """The plan of a job for arrays of these shapes."""
    signatures: Any = [
        None if dtype is None else Signature(shape, dtype)
        for shape, dtype in zip(shapes, job.dtypes, strict=True)
    ]
    if job.kind == "totals":
        return resolve(job.spec, *signatures)
    return resolve_divisor(job.spec, *signatures, dtype=job.dtype)


def summed(vectors: Array) -> Array:
    """The sum of vectors that are stacked as rows."""
    summed: Array = vectors.sum(0) if vectors.ndim == 2 else vectors
    return summed


def totals(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    mask: Array | None = None,
) -> limbs.Vector:
    """Compute the totals of a plan with the reduction "sum" or "mean".

    The arguments are those of `unifiedloss.exact.evaluate`.
    """
    given = targets, sample_weight, mask
    total, dtype = kernel.sum_of_terms(plan, predictions, *given)
    if plan.spec.reduction == "sum":
        return limbs.vector("sum", dtype, total)
    return limbs.vector("mean", dtype, total, _own_divisor(plan, *given))


def divisor_of(
    plan: Plan, targets: Array, sample_weight: Array | None = None, mask: Array | None = None
) -> limbs.Vector:
    """Compute the divisor of a plan of `unifiedloss.plan.resolve_divisor`."""
    own = _own_divisor(plan, targets, sample_weight, mask)
    return limbs.vector("divisor", "float64", own)


def _own_divisor(
    plan: Plan, targets: Array, sample_weight: Array | None, mask: Array | None
) -> limbs.Sum:
    """The divisor of a mean, which no prediction changes."""
    if plan.plain and plan.count is not None and not plan.average_last_axis:
        return limbs.units_of_divisor(Fraction(plan.count))
    if plan.element_weights is not None and plan.oracle_only:  # of an average
        harmless = np.broadcast_to(np.float32(0.5), targets.shape)
        found: Any = by_oracle.reduction(plan, harmless, targets, sample_weight, mask).divisor
    else:
        with np.errstate(all="ignore"):
            if plan.casts:
                targets, sample_weight = casts.read(plan, targets, sample_weight)
            divisor = HostCall(plan, None, targets, sample_weight, mask).divisor()
        found = divisor if isinstance(divisor, float) else divisor[1]()
    if isinstance(found, float) and not np.isfinite(found):
        return limbs.Sum(0, (1, 0, 0) if np.isnan(found) else (0, 1, 0))
    return limbs.units_of_divisor(Fraction(found))


def result(
    spec: Loss, dtype: str, entries: limbs.Vector, over: Fraction | float | None = None
) -> float:
    """Compute the loss of the sum of several totals, correctly rounded.

    Args:
        spec: a sum or a mean.
        dtype: the dtype of the terms, "float32" or "float64", and of the loss.
        entries: the sum of the vectors.
        over: what the totals of a sum are divided by, for a mean; NaN if it is no divisor.

    Raises:
        BadValueError: the check number is wrong.
        EmptyMeanError: the divisor is 0, under ``on_empty="error"``.
    """
    total, *rest = limbs.opened(spec.reduction if over is None else "sum", dtype, entries)
    divisor = rest[0] if rest else limbs.ONE
    if over is not None:
        if isinstance(over, float):  # NaN or infinite
            return np.nan
        divisor = limbs.units_of_divisor(over)
    by, special = divisor.special(), total.special()
    if by is None and divisor.units == 0:
        if spec.on_empty == "error":
            raise EmptyMeanError(EMPTY)
        return 0.0 if spec.on_empty == "zero" else np.nan
    if special is not None:
        return special if by is None else special / by
    if by is not None:
        return 0.0 if np.isinf(by) else np.nan
    size: Any = limbs.quotient(total._replace(units=abs(total.units)), dtype, divisor)
    rounded = nearest(size, FORMATS[dtype])
    return rounded if total.units >= 0 else 0.0 - rounded


def divisor_in_totals(entries: limbs.Vector) -> Fraction | float:
    """The divisor in the totals of a mean.

    Raises:
        BadValueError: the check number is wrong.
    """
    lengths = {limbs.length("mean", dtype): dtype for dtype in ("float32", "float64")}
    _, divisor = limbs.opened("mean", lengths[len(entries)], entries)
    return limbs.number(divisor)
