"""Compare large results block by block, so that the memory does not grow with them.

The magnitudes of `tolerances` take a dozen float64 arrays of the predictions' shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.conformance import tolerances
from unifiedloss.conformance.case import Case
from unifiedloss.plan import Plan

Array = NDArray[Any]

ELEMENTS = 2**18
"""The number of predictions in a block, about."""


@dataclasses.dataclass(frozen=True)
class Distances:
    """The distances of one result from the truth.

    Attributes:
        loss: the largest distance of the loss, in ulps of its magnitude.
        gradient: the same for an element of the gradient.
        equal: the number of elements of the gradient with the same bits as the truth.
    """

    loss: float
    gradient: float
    equal: int


def distances(
    case: Case, plan: Plan, value: Array, gradient: Array, true_value: Array, true_gradient: Array
) -> Distances:
    """Compare a loss and its gradient with the truth; the values are float64."""
    factor = _factor(case, plan)
    unreduced = plan.spec.reduction == "none"
    largest, in_gradient, equal = 0.0, 0.0, 0
    total = 0.0
    for block, where, positions in _split(case, plan):
        sizes = tolerances.magnitudes(block, tolerances.plan_of(block))
        farthest_here, count = in_gradient_of(
            case, plan, sizes, factor, gradient[where], true_gradient[where]
        )
        in_gradient, equal = max(in_gradient, farthest_here), equal + count
        if unreduced:
            result, truth = value[positions], true_value[positions]
            far = tolerances.distance(result, truth, sizes.loss, plan, plan.result_dtype)
            largest = max(largest, farthest(result, truth, far))
        else:
            total += float(sizes.loss)
    if not unreduced:
        with np.errstate(all="ignore"):
            magnitude = np.asarray(total * factor)
        far = tolerances.distance(value, true_value, magnitude, plan, plan.result_dtype)
        largest = farthest(value, true_value, far)
    return Distances(largest, in_gradient, equal)


def in_gradient_of(
    case: Case,
    plan: Plan,
    sizes: tolerances.Magnitudes,
    factor: float,
    gradient: Array,
    true_gradient: Array,
) -> tuple[float, int]:
    """The largest distance of an element of a gradient, and how many elements have equal bits.

    Args:
        case: the case, or a block of it.
        plan: the plan of the whole case.
        sizes: the magnitudes of the part, of a sum.
        factor: what they are multiplied by, from `factor_of`.
        gradient: the part of the result.
        true_gradient: the part of the truth.
    """
    exact = true_gradient.astype(np.float64)
    # Rounding to float64 and then to the dtype of the predictions is what a result has.
    rounded = exact.astype(case.predictions.dtype).astype(np.float64)
    got = gradient.astype(np.float64)
    with np.errstate(all="ignore"):
        magnitude = sizes.grad_predictions * factor
    far = tolerances.distance(got, exact, magnitude, plan, case.dtype)
    return farthest(got, exact, far), int(np.count_nonzero(same(got, rounded)))


def _factor(case: Case, plan: Plan) -> float:
    """What the magnitudes of a sum are multiplied by to be those of the reduction."""
    if plan.spec.reduction != "mean":
        return 1.0
    parts = [
        tolerances.divisor_terms(block, tolerances.plan_of(block))
        for block, _, _ in _split(case, plan, reduction="mean")
    ]
    return factor_of(plan, case.predictions.shape, np.sum(parts, axis=0))


def factor_of(plan: Plan, shape: tuple[int, ...], parts: Array) -> float:
    """What the magnitudes of a sum are multiplied by to be those of a mean.

    Args:
        plan: the plan of the mean.
        shape: the predictions' shape.
        parts: the sum of `tolerances.divisor_terms` of all blocks.
    """
    divisor, condition = tolerances.divisor_of(*parts)
    # The divisor of a mean counts each of the averaged elements, and that of a sum does not.
    averaged = shape[-1] if plan.average_last_axis else 1
    with np.errstate(all="ignore"):
        return float(np.float64(averaged * condition) / divisor)


def _split(
    case: Case, plan: Plan, reduction: str | None = None
) -> Iterator[tuple[Case, tuple[slice, ...], slice]]:
    """Cut a case along the first axis of its positions.

    Yields:
        A case whose reduction is a sum unless it was "none" or is given; where it lies in the
        predictions; and where its losses lie.
    """
    if reduction is None:
        reduction = "none" if plan.spec.reduction == "none" else "sum"
    whole = dataclasses.replace(case, spec=case.spec.replace(reduction=reduction))
    axis = 1 if plan.axis == 0 else 0
    shape = case.predictions.shape
    weights = getattr(case.spec, "element_weights", None)
    if len(shape) <= axis or shape[axis] <= 1 or _along(weights, len(shape), axis):
        yield whole, (), slice(None)
        return
    step = max(1, ELEMENTS * shape[axis] // max(1, case.predictions.size))
    for start in range(0, shape[axis], step):
        part = slice(start, start + step)
        where = (slice(None),) * axis + (part,)
        dense = case.targets.shape == shape
        block = dataclasses.replace(
            whole,
            predictions=np.asarray(case.predictions[where]),
            targets=np.asarray(case.targets[where if dense else part]),
            sample_weight=_cut(case.sample_weight, part),
            mask=_cut(case.mask, part),
        )
        yield block, where, part


def _cut(x: Array | None, part: slice) -> Array | None:
    return x if x is None or not x.ndim else np.asarray(x[part])


def _along(weights: Any, rank: int, axis: int) -> bool:
    """Whether weights of elements differ along this axis of the predictions."""
    shape = np.shape(weights)
    place = len(shape) - rank + axis
    return weights is not None and place >= 0 and shape[place] > 1


def same(got: Array, exact: Array) -> NDArray[np.bool_]:
    """Which numbers have the same bits; all NaN count as the same."""
    found: NDArray[np.bool_] = (got == exact) & (np.signbit(got) == np.signbit(exact)) | (
        np.isnan(got) & np.isnan(exact)
    )
    return found


def farthest(got: Array, exact: Array, far: Array) -> float:
    """The largest distance: 0 for two NaN or equal infinities, infinite if only one is special."""
    alike = (got == exact) | (np.isnan(got) & np.isnan(exact))
    special = ~np.isfinite(got) | ~np.isfinite(exact)
    return float(np.max(np.where(alike, 0.0, np.where(special, np.inf, far)), initial=0.0))
