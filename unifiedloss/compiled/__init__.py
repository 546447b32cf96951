"""The compiled loops of exact mode's first tier, for float32 numbers.

The loops are an extension module, built once for each instruction set, and chosen when the process
first needs them. They are never needed: without them NumPy computes the same bits, only slower.

The environment variable ``UNIFIEDLOSS_COMPILED`` chooses a level: "numpy" for none, or "v2", "v3"
or "v4" for the x86-64 levels, or "neon". Without it the highest x86-64 level that the processor has
is taken; "neon" only if it is asked for, because conformance has not run on such a processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import SpecValueError

_BUILT = True
try:
    from unifiedloss.compiled import _loops
except ImportError:  # built without a compiler, or for another platform
    _BUILT = False

Array = NDArray[Any]
Memory = Any
"""An address, or an object with a buffer in C order. Python 3.11 has no type for the latter."""

VARIABLE = "UNIFIEDLOSS_COMPILED"
NUMPY = "numpy"
_BY_ITSELF = ("v2", "v3", "v4")
"""The levels that are taken without being asked for: conformance has run on such processors."""

_LARGEST_INTEGER = 1 << 24
"""float32 holds every integer up to this one."""

_chosen: str | None = None


def levels() -> list[str]:
    """The levels that this processor has, from low to high; "numpy" is always one."""
    return [NUMPY, *(_loops.levels() if _BUILT else ())]


def level() -> str:
    """The level in use.

    Raises:
        SpecValueError: ``UNIFIEDLOSS_COMPILED`` names a level that this machine lacks.
    """
    global _chosen  # noqa: PLW0603 - read once for the process
    if _chosen is None:
        wanted = os.environ.get(VARIABLE)
        known = levels()
        if wanted and wanted not in known:
            msg = f"{VARIABLE} is {wanted!r}, but this machine has only: {', '.join(known)}."
            raise SpecValueError(msg)
        _chosen = wanted or [name for name in known if name in (NUMPY, *_BY_ITSELF)][-1]
        if _chosen == NUMPY and not wanted:
            logging.getLogger("unifiedloss").info(
                "exact mode uses NumPy, because there are no compiled loops for this machine"
            )
    return _chosen


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    """Use another level inside a ``with`` block, for tests."""
    global _chosen  # noqa: PLW0603
    if name not in levels():
        msg = f"this machine has no level {name!r}, only: {', '.join(levels())}."
        raise SpecValueError(msg)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


class Soft(NamedTuple):
    """The targets of a cross-entropy that are not single classes of logits; see `struct soft`.

    Attributes:
        targets: (n, K), as the predictions of `Work`; None where labels say which target is 1.
        least: smaller targets count as 0.
        smoothing: the amount of label smoothing.
        class_weights: float64 (K,), multiply the smoothed targets; or None.
        by_position: whether class weights multiply rows instead, by their sum under the targets.
        clip: a `CLIP`, how predictions are read that are probabilities; None for logits.
    """

    targets: Array | None
    least: float
    smoothing: float
    class_weights: Array | None
    by_position: bool
    clip: Array | None = None


@dataclasses.dataclass(slots=True)
class Work:
    """What a loop reads and writes; see loops.h.

    Attributes:
        predictions: float32 (n, K), with the numbers of a row next to each other. For the
            cross-entropy also float16, or bfloat16 as its bits in uint16.
        targets: contiguous: labels (n,) of any integer type, or float32 numbers.
        todo: bool (n,), the positions to compute, or None for all.
        weight: float64 (n,), the weights of the losses, or None for 1. Like several factors, only
            for the cross-entropy; `Mixed` has those of the other losses.
        factor: float64 (n,) or one number, the factors of the slopes.
        factor_is_exact: whether the one factor is a power of two.
        divisor: the integer below 2^28 that the one factor is the inverse of, or 0.
        losses: float32 (n,), receives the losses; None if only their sum is wanted.
        slopes: (n, K) in C order, receives the gradient, or None.
        left: bool (n,), False; receives the positions of which nothing is computed.
        elements: int64, receives what is undecided elsewhere: row * K + class for a slope, ~row for
            a loss.
        threads: the most threads to use.
        loss_dtype: the dtype that losses are rounded to.
        slope_dtype: the dtype of the slopes; bfloat16 as its bits in uint16.
        soft: what the targets of a cross-entropy are, where they are not `targets` alone.
    """

    predictions: Array
    targets: Array
    todo: Array | None
    weight: Array | None
    factor: Array | float
    factor_is_exact: bool
    divisor: float
    losses: Array | None
    slopes: Array | None
    left: Array
    elements: Array
    threads: int = 1
    loss_dtype: str = "float32"
    slope_dtype: str = "float32"
    soft: Soft | None = None


class Total(NamedTuple):
    """What a loop found.

    Attributes:
        left: the number of positions in `Work.left`.
        high: the sum of the rounded losses, as high + low.
        low: the lower part of the sum.
        error: a bound of the error of the sum.
    """

    left: int
    high: float
    low: float
    error: float

    def plus(self, losses: list[float]) -> Total:
        """The total with further losses, rounded numbers like those of the loop."""
        infinite = [x for x in losses if not math.isfinite(x)]
        if infinite or not math.isfinite(self.high):
            return self._replace(high=sum(infinite, self.high))
        high = math.fsum([self.high, self.low, *losses])
        return self._replace(high=high, low=0.0, error=self.error + 2.0**-53 * abs(high))


def can_read(x: Array) -> bool:
    """Whether a loop can read the memory of an array. The memory may be read-only."""
    return x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative


def is_available() -> bool:
    """Whether the level in use has compiled loops."""
    return level() != NUMPY


def as_float32(numbers: Array) -> Array | None:
    """The same numbers in float32, or None where float32 does not hold one of them, or a NaN."""
    dtype = numbers.dtype
    if dtype == np.float32:
        return numbers if dtype.isnative else None
    if dtype.kind in "iu" and dtype.itemsize > 2 and numbers.size:
        if max(int(numbers.max()), -int(numbers.min())) > _LARGEST_INTEGER:
            return None
    elif dtype.kind not in "biuf":
        return None
    with np.errstate(over="ignore", under="ignore"):
        narrow = numbers.astype(np.float32)
    wide = dtype.kind == "f" and dtype.itemsize > 2
    return None if wide and not np.array_equal(narrow, numbers) else narrow


@cache
def _number_of(name: str) -> int:
    """The number by which the module knows a level."""
    return _loops.levels().index(name)


def level_number() -> int:
    """The number of the level in use, as the module counts."""
    return _number_of(level())


def xla_target() -> Any:
    """The capsule of the function that XLA's custom calls run."""
    return _loops.xla_target()


def end_xla(process: int) -> None:
    """Wait for the Python code of XLA's custom calls, at the end of the process.

    A forked child has none to wait for.

    Calls that need Python code after that give NaN, because the interpreter would stop their
    threads, and XLA would wait for those forever.
    """
    while _loops.xla_end() and os.getpid() == process:
        time.sleep(0.001)


LOSSES = ("cross_entropy", "binary_cross_entropy", "mean_squared_error", "huber")
"""The losses that have loops, in the order of call.h."""


FORMS = ("float32", "bfloat16", "float16")
"""The dtypes of numbers that loops read and write, in the order of loops.h."""


class Left(NamedTuple):
    """What a loop left undecided of a call.

    Attributes:
        positions: bool (n,), as `Work.left`; empty where a loop flags none.
        elements: int64, as `Work.elements`.
        total: the number of flagged positions, and the sum of the losses that are decided.
    """

    positions: Array
    elements: Array
    total: Total


def call(
    fixed: tuple[float, ...],
    upstream: float,
    predictions: Memory,
    targets: Memory,
    slopes: Memory,
    value: Memory,
    threads: int = 1,
) -> Left | None:
    """Compute a call without weights and masks, in any thread.

    Args:
        fixed: what the shapes and dtypes say: the number of the loss, n, K, the bytes of a label
            and whether it has a sign, the forms of the predictions and of the gradient, the
            parameter as for `elementwise`, and the divisor.
        upstream: the upstream gradient, from 2^-150 to 2^150 in size.
        predictions: numbers (n, K) in C order.
        targets: labels (n,), or float32 numbers.
        slopes: receives the gradient, (n, K); 0 for none.
        value: receives the loss, float32.
        threads: the most threads to use.

    Returns:
        None where the loss is written. Else what is left to compute.
    """
    arrays = predictions, targets, slopes, value
    left = _loops.call(level_number(), threads, *fixed, upstream, *arrays)
    return None if left is None else left_of(*left)


def left_of(
    positions: Any, elements: Any, count: int, high: float, low: float, error: float
) -> Left:
    """What a loop left, from the buffers of the module."""
    return Left(
        np.frombuffer(positions or b"", np.bool_),
        np.frombuffer(elements or b"", np.int64),
        Total(count, high, low, error),
    )


def address(x: Array | None) -> int:
    """The address of an array; 0 for None."""
    return 0 if x is None else int(x.__array_interface__["data"][0])


def form_of(numbers: Array) -> int:
    """The number by which the module knows the dtype of an array; uint16 are bits of bfloat16."""
    dtype = "bfloat16" if numbers.dtype == np.uint16 else numbers.dtype.name
    return FORMS.index(dtype)


def _factors(work: Work) -> tuple[int, float]:
    """The address of the factors and 1, or 0 and the one factor."""
    factor = work.factor
    return (0, factor) if isinstance(factor, float) else (address(factor), 1.0)


def cross_entropy(work: Work) -> tuple[Total, int]:
    """Compute the cross-entropy of rows of logits with class indices.

    Returns:
        The total, and the number of undecided elements, which may exceed the room for them.
    """
    rows, labels = work.predictions, work.targets
    left, found, *total = _loops.cross_entropy(
        level_number(),
        work.threads,
        form_of(rows),
        FORMS.index(work.loss_dtype),
        FORMS.index(work.slope_dtype),
        address(rows),
        *rows.shape,
        rows.strides[0] // rows.itemsize,
        address(labels),
        labels.itemsize,
        labels.dtype.kind == "i",
        address(work.todo),
        address(work.weight),
        *_factors(work),
        address(work.losses),
        address(work.slopes),
        address(work.left),
        address(work.elements),
        len(work.elements),
        *_of_soft(work.soft),
    )
    return Total(left, *total), found


def _of_soft(soft: Soft | None) -> tuple[float, ...]:
    """The arguments for targets that are not single classes."""
    if soft is None:
        return (0,) * 9
    targets = soft.targets
    form, stride = (0, 0) if targets is None else (form_of(targets), targets.shape[1])
    weights = address(soft.class_weights), soft.by_position, address(soft.clip)
    return 1, address(targets), form, stride, soft.least, soft.smoothing, *weights


def second_tier(
    predictions: Array,
    results: tuple[Array, Array, Array],
    factors: Array,
    divisor: Array,
    constants: Array,
    dtypes: tuple[str, str],
    soft: Soft | None = None,
) -> tuple[Array, Array]:
    """Compute single results of a cross-entropy in pairs of float64; see `struct second`.

    Args:
        predictions: as in `Work`, but float32.
        results: the row, the label of the row, and the column of each result, int64 (n,); the
            column of a loss is -1.
        factors: float64 (3, n); the results are multiplied by their product.
        divisor: float64 (3,), of the slopes: high part, low part and relative error.
        constants: float64, see pairs.h.
        dtypes: the dtypes to which losses and slopes are rounded.
        soft: as in `Work`, with float32 targets. There are only slopes then.

    Returns:
        The rounded results in float32, and which of them are undecided.
    """
    n = len(results[0])
    rounded, left = np.empty(n, np.float32), np.empty(n, bool)
    _loops.second_tier(
        level_number(),
        address(predictions),
        predictions.shape[1],
        predictions.strides[0] // 4,
        n,
        *map(address, (*results, factors, divisor, constants)),
        *map(FORMS.index, dtypes),
        *_of_soft(soft),
        address(rounded),
        address(left),
    )
    return rounded, left


def exact_sum(numbers: Array) -> Array:
    """The exact sum of a contiguous float32 array: 9 limbs, and 3 counts, int64 (12,).

    `unifiedloss.exact.limbs` describes limbs and counts.
    """
    found = _loops.exact_sum(level_number(), address(numbers), numbers.size)
    return np.frombuffer(found, np.int64)


def sum_of_losses(
    loss: str, predictions: Array, targets: Array, parameter: float, threads: int
) -> Array | None:
    """The exact sum of an elementwise loss, as in `exact_sum`; None if a loss is undecided.

    Args:
        loss: the name of the loop.
        predictions: float32, contiguous.
        targets: likewise.
        parameter: as for `elementwise`.
        threads: the most threads to use.
    """
    arrays = address(predictions), address(targets), predictions.size
    found = _loops.sum_of_losses(level_number(), threads, LOSSES.index(loss), *arrays, parameter)
    return None if found is None else np.frombuffer(found, np.int64)


def elementwise(loss: str, work: Work, parameter: float = 1.0) -> tuple[Total, int]:
    """Compute an elementwise loss.

    Args:
        loss: the name of the loop.
        work: with n rows of one prediction, and without `weight` and `factor` for each.
        parameter: delta of the Huber loss, pos_weight of the binary cross-entropy.

    Returns:
        The total, and 0, because a position has one element.
    """
    assert isinstance(work.factor, float)
    total = getattr(_loops, loss)(
        level_number(),
        work.threads,
        address(work.predictions),
        address(work.targets),
        len(work.predictions),
        address(work.todo),
        work.factor,
        work.factor_is_exact,
        work.divisor,
        parameter,
        address(work.losses),
        address(work.slopes),
        address(work.left),
    )
    return Total(*total), 0


NUMBERS = {
    **{name: i for i, name in enumerate((*FORMS, "float64", "uint8", "int8", "int32", "int64"))},
    "bool": 4,
}
"""The dtypes in which targets and factors are stored, by their numbers in loops.h."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """What `struct mixed` holds of a call besides memory; see loops.h.

    Attributes:
        loss: the name of the loop.
        n: the number of positions.
        size: the elements of a position, whose losses are averaged; else 1.
        read: the number of the dtype of the predictions' memory.
        target: the same for targets.
        form: the same for the gradient.
        loss_form: the dtype that losses are rounded to.
        stored: the dtype of the losses' memory; if it is not float32, they are not added.
        factor: the dtype of the factors' memory.
        parameter: as for `elementwise`.
        smoothing: the amount of smoothing.
        pos_weights: float64, along one axis, or None.
        inner: the number of elements from one of these to the next.
        loss_scale: multiplies every loss.
        numerator: multiplies every slope.
        over: divides every slope.
        numerator_is_exact: whether there are no factors, and the quotient is a power of two.
        weight_is_exact: whether the weights times `loss_scale` have no error.
        factor_is_exact: whether the factors times `numerator`, and `over`, have none.
        no_losses: whether only slopes are wanted.
        clip: a `CLIP`, or None for logits.
    """

    loss: str
    n: int
    size: int
    read: int
    target: int
    form: int
    loss_form: int
    stored: int
    factor: int = NUMBERS["float64"]
    parameter: float = 1.0
    smoothing: float = 0.0
    pos_weights: Array | None = None
    inner: int = 1
    loss_scale: float = 1.0
    numerator: float = 1.0
    over: float = 1.0
    numerator_is_exact: bool = False
    weight_is_exact: bool = False
    factor_is_exact: bool = False
    no_losses: bool = False
    clip: Array | None = None


CLIP = np.dtype(
    [
        ("rule", np.int64),
        ("bounds", np.float64, 2),
        ("costs", np.float64, 2),
        ("complements", np.float64, 2),
        ("added", np.float64),
        ("least", np.float64),
        ("shares", np.int64),
        ("gap", np.float64),
        ("tiny", np.float64),
        ("most", np.float64),
        ("factor_is_exact", np.int64),
    ]
)
"""A `struct clip` of loops.h."""

CLIPS = ("unclipped", "clipped", "clamped", "added", "logarithms")
"""Its rules, in their order."""

SHARES = (None, "before_clip", "after_clip")
"""When numbers are divided by the sum of their row, in the order of loops.h."""


def mixed(
    call: Mixed,
    predictions: int,
    targets: int,
    losses: int,
    slopes: int,
    left: int,
    *,
    todo: int = 0,
    weight: int = 0,
    factor: int = 0,
    threads: int = 1,
) -> Total:
    """Compute an elementwise loss of a call with more than float32 numbers.

    Memory is given by its addresses, 0 for none: that of `left` is zeros, and receives 1 for each
    position that is undecided.
    """
    return Total(
        *_loops.mixed(
            level_number(),
            threads,
            LOSSES.index(call.loss),
            call.n,
            call.size,
            call.read,
            call.target,
            call.form,
            call.loss_form,
            call.stored,
            call.factor,
            call.parameter,
            call.smoothing,
            address(call.pos_weights),
            1 if call.pos_weights is None else len(call.pos_weights),
            call.inner,
            call.loss_scale,
            call.numerator,
            call.over,
            call.numerator_is_exact,
            call.weight_is_exact,
            call.factor_is_exact,
            call.no_losses,
            address(call.clip),
            predictions,
            targets,
            todo,
            weight,
            factor,
            losses,
            slopes,
            left,
        )
    )


def run_native(*arguments: Any) -> tuple[int, float]:
    """Run a loop of native mode; see `unifiedloss.compiled.native`."""
    return _loops.native(level_number(), *arguments)


def run_wide(*arguments: Any) -> int:
    """Run a loop of float64 predictions; see `unifiedloss.compiled.wide`."""
    return _loops.wide(level_number(), *arguments)


def sum_in_pairs(numbers: Array) -> tuple[float, float, float]:
    """The sum of a contiguous float64 array: high part, low part, and a bound of its error."""
    return _loops.sum_in_pairs(level_number(), address(numbers), numbers.size)
