"""Random calls: a spec and tensors that mostly fit it, drawn from a seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz import fields, numbers
from tests.fuzz.numbers import FLOATS, INTEGERS, Array, pick
from unifiedloss import reference
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.tolerances import plan_of
from unifiedloss.errors import UnifiedLossError
from unifiedloss.floats import FORMATS
from unifiedloss.losses import ROWS, spec_class
from unifiedloss.spec import Categorical, Elementwise, Loss

SHAPES: tuple[tuple[int, ...], ...] = (
    (), (1,), (0,), (4,), (2, 3), (3, 1), (0, 3), (1, 4), (4, 3), (2, 0), (2, 3, 4), (2, 1, 3),
)  # fmt: skip
"""Few, so that compiled programs are used again: empty ones, one class, one element."""

LARGE: tuple[tuple[int, ...], ...] = ((96, 3), (300,))
"""From 256 elements on, JAX computes exact mode in the compiled program."""


@dataclass(frozen=True, eq=False)
class Call(Case):
    """A case whose upstream gradient is an array of any dtype; `name` is its seed.

    Attributes:
        as_numpy: whether targets, weights, mask and upstream gradient stay NumPy arrays beside
            predictions of another framework.
    """

    as_numpy: bool = False

    def expected(self) -> reference.Reference:
        """The oracle's result."""
        upstream: Any = self.upstream
        if upstream is not None:
            flat = [_python(x) for x in np.asarray(upstream).ravel().tolist()]
            upstream = flat if self.spec.reduction == "none" else flat[0]
        weight, mask = self.sample_weight, self.mask
        return reference.evaluate(
            self.spec,
            _tensor(self.predictions, self.dtype),
            _tensor(self.targets),
            None if weight is None else _tensor(weight),
            None if mask is None else _tensor(mask),
            terms="rounded" if self.spec.rounding == "exact" else "real",
            upstream=upstream,
        )


def _python(x: Any) -> Any:
    """A number of Python's own: NumPy leaves those of bfloat16 as they are."""
    return x if isinstance(x, bool | int | float) else float(x)


def _tensor(x: Array, dtype: str | None = None) -> reference.Tensor:
    return reference.tensor(
        [_python(v) for v in x.ravel().tolist()], x.shape, dtype or x.dtype.name
    )


def draw(seed: int, losses: tuple[str, ...] = (), rounding: str = "", shapes: str = "all") -> Call:
    """Draw the call of a seed.

    Args:
        seed: the same seed gives the same call.
        losses: names of losses; default: all.
        rounding: "native" or "exact"; default: either.
        shapes: "small", "large" (hundreds of elements), or "all".
    """
    rng = np.random.default_rng(seed)
    row = pick(rng, [row for row in ROWS if not losses or row.name in losses])
    rounding = rounding or str(pick(rng, ("native", "exact")))
    wild = rounding == "exact" and rng.random() < 0.7
    large = shapes == "large" or (shapes == "all" and rng.random() < 0.1)
    shape = pick(rng, LARGE if large else SHAPES)
    spec = fields.draw(rng, spec_class(row), shape, rounding, wild=wild)
    dtype = str(pick(rng, FLOATS))
    axis = _axis(spec, shape)
    predictions = _predictions(rng, spec, shape, dtype, axis, wild=wild)
    targets = _targets(rng, spec, predictions, axis, wild=wild)
    positions = _positions(spec, shape, axis)
    weight, mask, upstream = _companions(rng, spec, positions, wild=wild)
    if rng.random() < 0.05:
        targets, weight, mask = _mismatched(rng, targets, weight, mask)
    if dtype == "bfloat16":  # as a case has it
        predictions = predictions.astype(np.float32)
    call = Call(
        f"fuzz/{seed}",
        spec,
        _laid_out(rng, predictions),
        _laid_out(rng, targets),
        weight,
        mask,
        dtype=dtype,
        as_numpy=rng.random() < 0.2,
    )
    return dataclasses.replace(call, upstream=_fitting(call, upstream, rng))


def _axis(spec: Loss, shape: tuple[int, ...]) -> int | None:
    """The class axis; the last one where the spec's does not fit."""
    if not isinstance(spec, Categorical) or not shape:
        return None
    axis = -1 if spec.axis is None else spec.axis
    return axis % len(shape) if -len(shape) <= axis < len(shape) else len(shape) - 1


def _positions(spec: Loss, shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    if axis is not None:
        return shape[:axis] + shape[axis + 1 :]
    return shape[:-1] if getattr(spec, "average_last_axis", False) else shape


def _predictions(
    rng: np.random.Generator,
    spec: Loss,
    shape: tuple[int, ...],
    dtype: str,
    axis: int | None,
    *,
    wild: bool,
) -> Array:
    if spec.prediction_kind != "probabilities" or getattr(spec, "from_logits", False):
        x = numbers.real(rng, shape, dtype, wild=wild)
        if rng.random() < 0.2:  # large offsets
            with np.errstate(all="ignore"):
                x = numbers.rounded(x.astype(np.float64) + 10.0 ** float(rng.integers(8)), dtype)
        return x
    x = numbers.probabilities(rng, shape, dtype, axis, bad=rng.random() < 0.15)
    if getattr(spec, "renormalize", None) is not None and rng.random() < 0.5:
        x = numbers.rounded(x.astype(np.float64) * 2.0 ** float(rng.integers(-10, 10)), dtype)
    return x


def _targets(
    rng: np.random.Generator,
    spec: Loss,
    predictions: Array,
    axis: int | None,
    *,
    wild: bool,
    dtype: str = "",
) -> Array:
    """Draw targets, of a dtype that the loss takes; by default of any."""
    shape = predictions.shape
    bad = rng.random() < 0.05
    if isinstance(spec, Elementwise) and spec.target_kind == "real":
        dtype = dtype or str(pick(rng, (*FLOATS, *INTEGERS, "bool")))
        if dtype in FORMATS:
            x = numbers.real(rng, shape, dtype, wild=wild)
            if rng.random() < 0.4:  # beside the predictions
                x = numbers.rounded(
                    predictions.astype(np.float64) + rng.choice([0, 0, 1, -0.5, 1e-9], shape), dtype
                )
            return x
        if dtype == "bool":
            return rng.random(shape) < 0.5
        info = np.iinfo(dtype)
        x = rng.integers(max(-5, info.min), 6, shape)
        if wild and bad:
            x = np.where(rng.random(shape) < 0.5, info.max, x)
        return x.astype(dtype)
    if isinstance(spec, Elementwise):
        dtype = dtype or str(pick(rng, (*FLOATS, *INTEGERS, "bool")))
        if dtype in FORMATS:
            return numbers.probabilities(rng, shape, dtype, None, bad=bad)
        return (rng.integers(0, 2 + bad, shape)).astype(dtype)
    dtype = dtype or str(pick(rng, FLOATS if rng.random() < 0.5 else INTEGERS))
    if dtype in FORMATS:
        x = numbers.probabilities(rng, shape, dtype, axis, bad=bad)
        if axis is not None and shape[axis] and rng.random() < 0.3:  # one-hot
            label = np.expand_dims(
                rng.integers(0, shape[axis], _positions(spec, shape, axis)), axis
            )
            classes = np.arange(shape[axis]).reshape((-1,) + (1,) * (len(shape) - axis - 1))
            x = numbers.rounded((classes == label) * float(pick(rng, (1, 1, 0.5, 3))), dtype)
        return x
    count = max(shape[axis], 1) if axis is not None else 1
    most = min(count, int(np.iinfo(dtype).max))
    labels = np.asarray(rng.integers(0, most, _positions(spec, shape, axis)))
    strange = [k for k in getattr(spec, "ignore_index", None) or () if _holds(dtype, k)]
    if bad:
        strange += [k for k in (-1, count, 156, -100, 255, 2**40) if _holds(dtype, k)]
    if strange:
        chosen = np.array([int(pick(rng, strange)) for _ in range(labels.size)], object)
        at = rng.random(labels.shape) < 0.4
        labels = np.where(at, chosen.reshape(labels.shape), labels.astype(object))
    return np.asarray(labels).astype(dtype)


def _holds(dtype: str, label: int) -> bool:
    info = np.iinfo(dtype)
    return bool(info.min <= label <= info.max)


def _companions(
    rng: np.random.Generator, spec: Loss, positions: tuple[int, ...], *, wild: bool
) -> tuple[Array | None, Array | None, Array | None]:
    weight = mask = upstream = None
    if rng.random() < 0.5:
        leading = positions[: int(rng.integers(len(positions) + 1))]
        if rng.random() < 0.5:
            leading = positions
        if rng.random() < 0.02:
            leading = (2, *leading)
        dtype = str(pick(rng, (*FLOATS, *INTEGERS)))
        weight = numbers.counts(rng, leading, dtype, wild=wild, negative=rng.random() < 0.15)
    if rng.random() < 0.35:
        leading = positions[: int(rng.integers(len(positions) + 1))]
        mask = rng.random(leading) < float(pick(rng, (0.0, 0.5, 0.8)))
        mask = np.asarray(mask)
    if rng.random() < 0.6:
        shape = positions if spec.reduction == "none" else ()
        upstream = _upstream(rng, shape, str(pick(rng, (*FLOATS, *INTEGERS))), wild=wild)
    return weight, mask, upstream


def _upstream(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, *, wild: bool) -> Array:
    """Draw finite upstream gradients."""
    if dtype not in FORMATS:
        return np.asarray(rng.integers(0, 5, shape)).astype(dtype)
    x = numbers.real(rng, shape, dtype, wild=wild)
    return np.where(np.isfinite(x.astype(np.float64)), x, numbers.numpy_dtype(dtype).type(1.25))


def again(call: Call, seed: int) -> Call:
    """Draw other values for a call, with the same spec, shapes and dtypes.

    A compiled program of the one is that of the other.
    """
    rng = np.random.default_rng(seed)
    spec, shape = call.spec, call.predictions.shape
    wild = spec.rounding == "exact" and rng.random() < 0.7
    axis = _axis(spec, shape)
    predictions = _predictions(rng, spec, shape, call.dtype, axis, wild=wild)
    targets = _targets(rng, spec, predictions, axis, wild=wild, dtype=call.targets.dtype.name)
    weight, mask, upstream = call.sample_weight, call.mask, call.upstream
    if weight is not None:
        name = weight.dtype.name
        weight = numbers.counts(rng, weight.shape, name, wild=wild, negative=rng.random() < 0.15)
    if mask is not None:
        mask = np.asarray(rng.random(mask.shape) < float(pick(rng, (0.0, 0.5, 0.8))))
    if upstream is not None:
        name = np.asarray(upstream).dtype.name
        upstream = _upstream(rng, np.shape(upstream), name, wild=wild)
    if call.dtype == "bfloat16":
        predictions = predictions.astype(np.float32)
    return dataclasses.replace(
        call,
        name=f"{call.name}/{seed}",
        predictions=predictions,
        targets=targets,
        sample_weight=weight,
        mask=mask,
        upstream=upstream,
    )


def _laid_out(rng: np.random.Generator, x: Array) -> Array:
    """The same array, sometimes with another layout in memory or with swapped bytes."""
    way = int(rng.integers(16))
    if way == 0:
        return np.asfortranarray(x)
    if way == 1 and x.ndim:
        return np.repeat(x, 2, axis=-1)[..., ::2]
    if way == 2 and x.ndim:
        return x[::-1].copy()[::-1]
    if way == 3 and x.dtype.kind in "fiu":
        return x.astype(x.dtype.newbyteorder())
    return x


def _mismatched(
    rng: np.random.Generator, targets: Array, weight: Array | None, mask: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """Spoil one shape or dtype, so that every backend has to refuse the call."""
    way = int(rng.integers(6))
    if way == 0:
        targets = targets[..., None]
    elif way == 1 and targets.ndim:
        targets = targets[:-1]
    elif way == 2:
        targets = targets.astype(bool)
    elif way == 3:
        to = np.float32 if targets.dtype.kind in "iub" else np.int64
        with np.errstate(invalid="ignore"):
            targets = targets.astype(to)
    elif way == 4:
        mask = np.ones(targets.shape, str(pick(rng, ("int8", "float32"))))
    else:
        weight = np.ones(targets.shape, bool) if weight is None else weight.astype(bool)
    return targets, weight, mask


def _fitting(call: Call, upstream: Array | None, rng: np.random.Generator) -> Array | None:
    """Round half of the upstream gradients to the dtype of the loss, as backward passes have it."""
    try:
        result = plan_of(call).result_dtype
    except UnifiedLossError:
        return None
    if upstream is None or rng.random() < 0.5:
        return upstream
    x = numbers.rounded(upstream.astype(np.float64), result)
    finite = np.isfinite(x.astype(np.float64))
    return np.where(finite, x, numbers.numpy_dtype(result).type(1.25))
