"""Check the values of a call, and raise for the first bad one.

Values of every backend are checked as NumPy arrays, which are views of CPU tensors, so that the
same bad call fails with the same error and message everywhere. Under tracing and on accelerators no
value is checked; The pipelines give NaN instead, by the same rules. Dropped and
zero-weighted positions are skipped. The order is weights, targets, predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import BadValueError, EmptyMeanError
from unifiedloss.floats import FORMATS
from unifiedloss.plan import BEYOND_FLOAT64, MAX_INTEGER_TARGET, UNKNOWN_CLASSES, Plan

Array = NDArray[Any]


def check(
    plan: Plan,
    predictions: Array | None,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
) -> None:
    """Raise for the first bad value of a call.

    Args:
        plan: from `unifiedloss.plan.resolve`.
        predictions: values as a NumPy array, in the dtype of the tensor; so are the others. None if
            only the divisor is computed.
        targets: values.
        sample_weight: values or None.
        mask: values or None.

    Raises:
        BadValueError: a value is bad. The message names its position.
        EmptyMeanError: the mean's divisor is 0, under ``on_empty="error"``.
    """
    targets, sample_weight = _read_in(plan, targets), _read_in(plan, sample_weight)
    if plan.probabilities and predictions is not None:
        predictions = _read_in(plan, predictions)
    refuse_empty = plan.spec.on_empty == "error" and plan.spec.reduction == "mean"
    if not refuse_empty and sample_weight is None and trivially_valid(plan, predictions, targets):
        return
    # A weight may be too large for the compute dtype, and ml_dtypes warns where a NaN in bfloat16
    # is compared.
    with np.errstate(over="ignore", invalid="ignore"):
        _check(plan, predictions, targets, sample_weight, mask, refuse_empty=refuse_empty)


def _check(
    plan: Plan,
    predictions: Array | None,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
    *,
    refuse_empty: bool,
) -> None:
    """See `check`."""
    chosen = _choose(plan, predictions, targets, sample_weight, mask)
    for found in _findings(plan, predictions, targets, sample_weight, chosen):
        if found.bad.any():
            raise BadValueError(found.message())
    if refuse_empty:
        _check_empty(plan, targets, sample_weight, chosen.present, chosen.kept)


class Finding(NamedTuple):
    """A rule about values, and where it is broken.

    Attributes:
        bad: where.
        values: the values, which may have only the leading axes of `bad`.
        name: the argument.
        why: what the rule says.
    """

    bad: Array
    values: Array
    name: str
    why: str

    def place(self) -> tuple[int, ...]:
        """Where the first bad value lies."""
        return tuple(int(i) for i in np.argwhere(self.bad)[0][: self.values.ndim])

    def message(self, shown: tuple[int, ...] | None = None) -> str:
        """The message about the first bad value, at the place that is shown."""
        place = self.place()
        value = self.values[place]
        number = str(int(value)) if self.values.dtype.kind in "iub" else f"{float(value):.9g}"
        shown = place if shown is None else shown
        where = f"[{', '.join(map(str, shown))}]" if shown else ""
        return f"{self.name}{where} is {number}: {self.why}"


class Bad(NamedTuple):
    """The bad values of a call.

    Attributes:
        positions: the number of positions that hold one.
        first: the first rule that is broken; None if there is none.
    """

    positions: int
    first: Finding | None


def bad_values(
    plan: Plan,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
) -> Bad:
    """Count the positions that `check` would refuse, and find the first of them."""
    targets, sample_weight = _read_in(plan, targets), _read_in(plan, sample_weight)
    if plan.probabilities:
        predictions = _read_in(plan, predictions)
    with np.errstate(over="ignore", invalid="ignore"):
        chosen = _choose(plan, predictions, targets, sample_weight, mask)
        every: Any = np.zeros(chosen.kept.shape, bool)
        first: Finding | None = None
        for found in _findings(plan, predictions, targets, sample_weight, chosen):
            if found.bad.any():
                of_positions = found.bad.ndim == every.ndim
                every |= found.bad if of_positions else found.bad.any(plan.axis)
                first = first or found
        if plan.average_last_axis:
            every = every.any(-1)
    return Bad(int(np.count_nonzero(every)), first)


def dropped(plan: Plan, predictions: Array, targets: Array, mask: Array | None) -> int:
    """The number of positions that a mask or an ignored label drops."""
    if mask is None and not plan.ignored_labels:
        return 0
    present: Any = _present(plan, targets, mask, _position_shape(plan, predictions))
    if plan.average_last_axis:
        present = present.any(-1)
    return int(present.size - np.count_nonzero(present))


class _Chosen(NamedTuple):
    """Which positions count.

    Attributes:
        present: those that are not dropped.
        kept: those that are neither dropped nor zero-weighted.
        weight: the sample weights in the compute dtype; None without any.
    """

    present: Array
    kept: Array
    weight: Array | None


def _choose(
    plan: Plan,
    predictions: Array | None,
    targets: Array,
    sample_weight: Array | None,
    mask: Array | None,
) -> _Chosen:
    if predictions is None:
        shape = targets.shape if plan.kind == "index" else _position_shape(plan, targets)
    else:
        shape = _position_shape(plan, predictions)
    present = _present(plan, targets, mask, shape)
    if sample_weight is None and plan.element_weights is None:
        return _Chosen(present, present, None)
    # The cast to the compute dtype may overflow. Weights too small for it count as 0.
    with np.errstate(over="ignore"):
        given = np.ones((), bool) if sample_weight is None else sample_weight
        weight = _align(given.astype(plan.compute_dtype), shape)
        product = None
        if plan.element_weights is not None:
            product = weight * np.asarray(plan.element_weights, plan.compute_dtype)
    kept = present & plan.counts(weight, product)
    return _Chosen(present, kept, None if sample_weight is None else weight)


def _present(plan: Plan, targets: Array, mask: Array | None, shape: tuple[int, ...]) -> Array:
    present: Array = np.ones(shape, bool) if mask is None else _align(mask, shape)
    for label in plan.ignored_labels:
        present = present & (targets != label)
    return present


def _findings(
    plan: Plan,
    predictions: Array | None,
    targets: Array,
    sample_weight: Array | None,
    chosen: _Chosen,
) -> Iterator[Finding]:
    """The rules in the order in which they are told: weights, targets, predictions."""
    weighted_mean = plan.divisor == "weights" and plan.spec.reduction == "mean"
    if sample_weight is not None and weighted_mean:
        why = "a weighted mean needs non-negative weights; use another divisor, or reduction 'sum'."
        assert chosen.weight is not None
        yield Finding(chosen.kept & (chosen.weight < 0), sample_weight, "sample_weight", why)
    yield from _in_targets(plan, targets, chosen.kept)
    if plan.probabilities and predictions is not None:
        yield from _in_probabilities(plan, predictions, targets, chosen.kept)


def _read_in(plan: Plan, x: Array | None) -> Any:
    """A floating array in the dtype that the spec names, because the loss reads it so."""
    dtype: str | None = getattr(plan.spec, "dtype", None)
    if dtype is None or x is None or x.dtype.name not in FORMATS or x.dtype.name == dtype:
        return x
    with np.errstate(over="ignore"):  # a large float64 number is infinite in float32
        return x.astype(dtype)


_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _within(x: Array, limit: float) -> bool:
    """Whether one pass shows that all numbers lie in [0, limit]. False may mean "not certain".

    Read as unsigned integers, the bits of non-negative floats have the order of the floats. The
    bits of negative floats, NaN and negative integers are larger. So one maximum over the bits is
    enough, whereas comparisons take four passes.
    """
    dtype = x.dtype
    if dtype.kind == "b":
        return True
    if not dtype.isnative:
        return False
    if dtype.kind not in "iu":
        limit = _bits(limit, dtype)
    return bool(np.maximum.reduce(x.view(_UNSIGNED[dtype.itemsize]), axis=None, initial=0) <= limit)


@cache
def _bits(limit: float, dtype: np.dtype[Any]) -> int:
    """A number's bits in a dtype, read as an unsigned integer."""
    return int(np.asarray(limit).astype(dtype).view(_UNSIGNED[dtype.itemsize]))


def trivially_valid(plan: Plan, predictions: Array | None, targets: Array) -> bool:
    """Whether one cheap pass shows that no target and no prediction is bad.

    Dropped positions are included. `predictions` may be None unless they are probabilities, because
    other predictions are never bad.
    """
    if plan.kind == "real":
        return plan.targets_dtype not in BEYOND_FLOAT64
    if plan.largest_target is None or not _within(targets, plan.largest_target):
        return False
    return not plan.probabilities or (predictions is not None and _within(predictions, 1))


def _position_shape(plan: Plan, predictions: Array) -> tuple[int, ...]:
    if plan.axis is None:
        return predictions.shape
    return predictions.shape[: plan.axis] + predictions.shape[plan.axis + 1 :]


def _align(x: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)


def in_the_whole(message: str, starts: Mapping[str, Sequence[int]]) -> str:
    """The message of `check` about a block of a call, with the position in the whole call.

    Args:
        message: what a `BadValueError` of the block says.
        starts: for each argument, where the block starts on each of its axes.
    """
    name, bracket, rest = message.partition("[")
    if not bracket or name not in starts:
        return message
    inside, _, rest = rest.partition("]")
    position = [int(i) + start for i, start in zip(inside.split(","), starts[name], strict=True)]
    return f"{name}[{', '.join(map(str, position))}]{rest}"


# The limits below are np.float64, because NumPy would round a Python float to the array's dtype,
# and the smallest normal float64 rounds to 0 in float32.


def _in_targets(plan: Plan, targets: Array, kept: Array) -> Iterator[Finding]:
    if plan.kind == "index":
        unknown = plan.classes == UNKNOWN_CLASSES
        bad = targets < 0 if unknown else (targets < 0) | (targets >= plan.shared_by)
        why = (
            f"not a class index{'' if unknown else f' in 0..{plan.shared_by - 1}'}; "
            "indices never wrap. "
            "To drop positions with this label, name it as ignore_index."
        )
        yield Finding(kept & bad, targets, "targets", why)
    elif plan.kind == "dense":
        bad = (targets <= -np.float64(plan.tiny_target)) | np.isinf(targets)
        why = "dense targets must be finite and not negative."
        yield Finding(_along(plan, kept) & bad, targets, "targets", why)
    elif plan.kind == "binary":
        if targets.dtype != bool:
            bad = (targets <= -np.float64(plan.tiny_target)) | (targets > 1)
            yield Finding(kept & bad, targets, "targets", "binary targets must lie in [0, 1].")
    elif targets.dtype.kind in "iu":
        bad = (targets > MAX_INTEGER_TARGET) | (targets < -MAX_INTEGER_TARGET)
        why = "integer targets must be at most 2^53 in size; cast them to float64."
        yield Finding(kept & bad, targets, "targets", why)


def _along(plan: Plan, x: Array) -> Array:
    assert plan.axis is not None
    return np.expand_dims(x, plan.axis)


def _in_probabilities(
    plan: Plan, predictions: Array, targets: Array, kept: Array
) -> Iterator[Finding]:
    outside = (predictions <= -np.float64(plan.tiny)) | (
        predictions > np.float64(plan.probability_limit)
    )
    if not outside.any():
        return
    read = np.broadcast_to(_along(plan, kept) if plan.axis is not None else kept, predictions.shape)
    if not plan.reads_all and plan.kind == "index":
        # A bad label names no class, so no probability is read for it.
        known = kept & (targets >= 0) & (targets < plan.shared_by)
        index = np.where(known, targets, 0).astype(np.int64)
        is_target = np.zeros(predictions.shape, bool)
        np.put_along_axis(is_target, _along(plan, index), _along(plan, known), axis=plan.axis)
        read = read & is_target
    elif not plan.reads_all and plan.kind == "dense":
        read = read & ~(targets < np.float64(plan.tiny_target))
    why = "not a probability. If these are logits, set from_logits=True."
    if plan.renormalize is not None:
        why = (
            "renormalize needs finite, non-negative numbers. If these are logits, set "
            "from_logits=True."
        )
    yield Finding(outside & read, predictions, "predictions", why)


def _check_empty(
    plan: Plan,
    targets: Array,
    sample_weight: Array | None,
    present: Array,
    kept: Array,
) -> None:
    # If the divisor is the sum of the weights, no weight is negative, so the sum is 0 only if all
    # are 0. Look for a factor of 0, not for a product of 0, because a product of nonzero factors
    # may underflow. NaN is not 0.
    nonzero = kept
    if plan.class_weights is not None:
        has_weight = np.asarray(plan.class_weights) != 0
        if plan.kind == "index":
            nonzero = has_weight[np.where(kept, targets, 0).astype(np.int64)]
        else:
            entries = np.moveaxis(~(targets < np.float64(plan.tiny_target)), plan.axis or 0, -1)
            nonzero = (entries & has_weight).any(-1)
        if sample_weight is not None:
            nonzero = nonzero | np.isnan(_align(sample_weight, kept.shape).astype(np.float64))
        nonzero = nonzero & kept
    rule = plan.divisor
    if rule == "all":
        empty = not kept.size
    elif rule == "present":
        empty = not present.any()
    else:
        empty = not nonzero.any()
    if empty:
        msg = (
            f"the mean has nothing to divide by: divisor {rule!r} is 0 for a per-position loss of "
            f"shape {kept.shape}. Every position is dropped or has weight 0; set on_empty to 'nan' "
            "or 'zero' to get a number."
        )
        raise EmptyMeanError(msg)
