"""The adapter for arrays of dask: it computes no losses, and hands blocks to other adapters.

A call on arrays in chunks is a call in pieces. Each piece goes to the adapter of its own type, such
as NumPy's. The totals of the pieces are added, and their sum gives the loss of the whole; the
divisor of a mean is that of the whole, never that of a piece. Nothing is computed when a loss is
called, and errors about shapes and dtypes are raised then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar, NoReturn

import dask.array as da
import numpy as np

from unifiedloss import registry, totals
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.dask import objects
from unifiedloss.adapters.dask.grid import Grid, on_disk, once, positions_of, wrapped
from unifiedloss.auto_rounding import Setting
from unifiedloss.errors import BadValueError, UnsupportedError
from unifiedloss.plan import Plan, check_upstream
from unifiedloss.spec import Loss

Array = Any


class _Nothing:
    """Stands for the operations and kernels that this adapter lacks."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # Python and its tools ask for such a name
            raise AttributeError(name)
        msg = (
            f"the backend 'dask' has no operation {name!r}, because it computes no loss itself: "
            "each block goes to the adapter of its own type."
        )
        raise UnsupportedError(msg)


class DaskAdapter(Adapter):
    """Carry out calls on arrays of dask, block by block, with the adapters of the blocks."""

    name = "dask"
    tensor_type = da.Array
    ops: ClassVar[Any] = _Nothing()
    kernels: ClassVar[Any] = _Nothing()
    computes = False
    differentiates = False

    def version(self) -> str:
        return version("dask")

    def dtypes(self) -> tuple[str, ...]:
        return registry.adapter("numpy").dtypes()

    def dtype_name(self, dtype: Any) -> str:
        return np.dtype(dtype).name

    def shape(self, x: Array) -> tuple[int | None, ...]:
        return tuple(None if math.isnan(extent) else extent for extent in x.shape)

    def convert(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        return wrapped(x)

    def keep_numpy(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        return x  # `Grid` cuts it as the predictions are cut

    def tensor(self, x: np.ndarray[Any, Any], dtype: str | None = None) -> Array:
        """The array in small chunks, so that the conformance suite sees several."""
        return wrapped(registry.adapter("numpy").tensor(x, dtype), 2)

    def readable(self, *tensors: Array | None) -> bool:
        return False

    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        return np.asarray(x.compute() if isinstance(x, da.Array) else x)

    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        msg = (
            "dask cannot differentiate a function; use spec.value_and_grad, which gives the "
            "gradient in the chunks of the predictions."
        )
        raise UnsupportedError(msg)

    def bind(self, spec: Loss) -> objects.LossFunction:
        return objects.LossFunction(spec)

    def modes(self) -> dict[str, Mode]:
        return {"lazy": Mode(lambda function, *tensors: function(*tensors), raises=True)}

    def plan(
        self,
        spec: Loss,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> Plan:
        # Not cached, because unknown extents are NaN, which equals nothing.
        return self._resolve(spec, predictions, targets, sample_weight, mask)

    def setting(self, *tensors: Array | None) -> Setting:
        blocks = [getattr(x, "_meta", x) for x in tensors if x is not None]
        on_host = all(isinstance(x, np.ndarray) for x in blocks)
        return Setting(self.name, "cpu" if on_host else "accelerator", "lazy")

    def _as_tensor(self, name: str, x: Any, reference: Array | None, list_dtype: Any) -> Array:
        if on_disk(x) or isinstance(x, np.memmap):
            return x
        return super()._as_tensor(name, x, reference, list_dtype)

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        """As in the base class; arrays of NumPy and on disk stay what they are.

        The adapter of the blocks is looked up too, so that blocks of an unknown type are refused
        before they are computed.
        """
        tensors = super().to_tensors(predictions, *companions)
        blocks = [x if x is None else getattr(x, "_meta", 0.0) for x in tensors]
        owner = registry.adapter_for(*(blocks if len(blocks) > 1 else (blocks[0], 0.0))[:4])
        owner.to_tensors(*blocks)
        return tensors

    # ---------------------------------------------------------------------------------------- calls

    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Array:
        other, call = _opened(predictions, targets, sample_weight, mask)
        if other is not None:
            predictions, targets, sample_weight, mask = call
            return other.loss(spec, predictions, targets, sample_weight, mask, divisor)
        tensors = self.to_tensors(*call)
        plan = self.plan(spec, *tensors)
        spec = spec.rounded(plan.rounding)
        given = self._given(spec, divisor)
        grid = Grid.of_call(plan, _named(*tensors))
        if spec.reduction == "none":
            work = partial(_in_own_adapter, "loss", spec)
            return grid.each(work, positions_of(plan), _dtype(plan.result_dtype))
        return self._finished(plan, self._totals(grid, plan, given), given)

    def value_and_grad(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        upstream: Any = None,
        divisor: Any = None,
    ) -> tuple[Array, Array]:
        other, (*call, upstream) = _opened(predictions, targets, sample_weight, mask, upstream)
        if other is not None:
            predictions, targets, sample_weight, mask = call
            tensors = predictions, targets, sample_weight, mask
            return other.value_and_grad(spec, *tensors, upstream, divisor)
        *call, upstream = self.to_tensors(*call, upstream)
        plan = self.plan(spec, *call)
        spec = spec.rounded(plan.rounding)
        given = self._given(spec, divisor)
        if upstream is not None:
            check_upstream(plan, self.signature(upstream))
        grid = Grid.of_call(plan, _named(*call, upstream))
        by = given
        if spec.reduction == "mean" and given is None:
            by = self._own_divisor(plan, *call)
        lazy, constant = (by, None) if isinstance(by, da.Array) else (None, by)
        summed = spec if given is None else spec.summed
        work = partial(_value_and_grad, spec, summed, constant, own=given is None)
        pairs = grid.pairs(work, lazy)
        gradient = pairs.along(1, tuple(range(call[0].ndim)), call[0].dtype)
        if spec.reduction == "none":
            return pairs.along(0, positions_of(plan), _dtype(plan.result_dtype)), gradient
        if plan.exact:
            return self._finished(plan, pairs.vectors(0, *_form(summed, plan)), given), gradient
        value = pairs.vectors(0, None, "float64")
        return once(partial(_cast, plan.result_dtype), plan.result_dtype, value), gradient

    def totals(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Array:
        other, tensors = _opened(predictions, targets, sample_weight, mask)
        if other is not None:
            return other.totals(spec, *tensors)
        totals.refuse_none(spec)
        tensors = self.to_tensors(*tensors)
        plan = self.plan(spec, *tensors)
        return self._totals(Grid.of_call(plan, _named(*tensors)), plan, None)

    def divisor_of(
        self,
        spec: Loss,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        dtype: Any = "float32",
    ) -> Array:
        totals.refuse_other_reductions(spec, "divisor_of")
        name = totals.dtype_name(self, dtype)
        _, (targets, sample_weight, mask) = _opened(targets, sample_weight, mask)
        _, *tensors = self.to_tensors(0.0, targets, sample_weight, mask)
        return self._divisor(spec.piece, name, *tensors)

    def result(self, spec: Loss, summed: Any) -> Array:
        totals.refuse_none(spec)
        _, (summed,) = _opened(summed)
        (summed,) = self.to_tensors(summed)
        spec = totals.settled_by(spec, self.signature(summed))
        if spec.rounding == "exact":
            from unifiedloss.exact import parts  # not needed by native mode

            dtype = parts.result_dtype(self, spec, summed)
        else:
            totals.check_totals(spec, self.signature(summed))
            dtype = "float64"
        if summed.ndim == 2:
            summed = summed.sum(axis=0, dtype=summed.dtype)
        return once(partial(_result, spec, dtype), dtype, summed)

    def check(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> tuple[str, ...]:
        """Read the blocks, and raise for a bad value of the first one that has any.

        Return what holds for each block: the suggestions that all of them give.
        """
        other, tensors = _opened(predictions, targets, sample_weight, mask)
        if other is not None:
            return other.check(spec, *tensors)
        tensors = self.to_tensors(*tensors)
        plan = self.plan(spec, *tensors)
        spec = spec.rounded(plan.rounding)
        grid = Grid.of_call(plan, _named(*tensors))
        findings = grid.findings(partial(_finding, spec.piece)).compute().ravel()
        for finding in findings:
            if isinstance(finding, BadValueError):
                raise finding
        if spec.reduction == "mean" and spec.on_empty == "error":
            dtype = self.signature(tensors[0]).dtype
            divisor = self._divisor(spec.piece, dtype, *tensors[1:])
            self._given(spec, divisor.compute())  # which raises if it is 0
        hints = [finding for finding in findings if finding is not None]
        first = hints[0] if hints else ()
        return tuple(hint for hint in first if all(hint in each for each in hints))

    def softmax(self, logits: Any, axis: int | None) -> Array:
        other, (logits,) = _opened(logits)
        if other is not None:
            return other.softmax(logits, axis)
        (logits,) = self.to_tensors(logits)
        _, axis = self.softmax_of(logits, axis)
        every = tuple(range(logits.ndim))
        grid = Grid({"logits": logits}, {"logits": every}, frozenset({axis}))
        return grid.each(partial(_softmax, axis), every, logits.dtype)

    # ----------------------------------------------------------------------------------- the graphs

    def _given(self, spec: Loss, divisor: Any) -> Any:
        """A divisor that is given, as a number, a vector of NumPy or a lazy array; else None."""
        if divisor is None:
            return None
        totals.refuse_other_reductions(spec, "divisor")
        _, (divisor,) = _opened(divisor)
        if spec.rounding == "exact":
            from unifiedloss.exact import parts  # not needed by native mode

            return parts.read(self, spec, divisor)
        number, tensor = totals.read(self, spec, divisor)
        return tensor if number is None else number

    def _totals(self, grid: Grid, plan: Plan, given: Any) -> Array:
        """The totals of all pieces; those of a sum if the divisor is given."""
        spec = plan.spec if given is None else plan.spec.summed
        return grid.vectors(partial(_in_own_adapter, "totals", spec), *_form(spec, plan))

    def _finished(self, plan: Plan, summed: Array, given: Any) -> Array:
        """The loss of totals, over the divisor that is given, if there is one."""
        spec, dtype = plan.spec, plan.result_dtype
        if given is None:
            return once(partial(_result, spec, dtype), dtype, summed)
        if isinstance(given, da.Array):
            return once(partial(_result_over, spec, dtype), dtype, summed, given)
        return once(partial(_result_over, spec, dtype, divisor=given), dtype, summed)

    def _own_divisor(self, plan: Plan, predictions: Array, *companions: Array | None) -> Any:
        """The divisor of the whole call: a number if the shapes tell it, else a lazy array."""
        if plan.plain and plan.count is not None:
            positions: Any = plan.positions
            number = math.prod(positions)
            return self.exact_divisor(number) if plan.exact else number
        return self._divisor(plan.spec.piece, self.signature(predictions).dtype, *companions)

    def _divisor(self, spec: Loss, dtype: str, *companions: Array | None) -> Array:
        """The divisor of targets, sample weights and a mask, beside predictions of a dtype."""
        targets, sample_weight, mask = companions
        plan = self.plan_of_divisor(spec, targets, sample_weight, mask, dtype)
        grid = Grid.of_call(plan, _named(None, *companions))
        work = partial(_divisor_of, spec.rounded(plan.rounding), dtype)
        if not plan.exact:
            return grid.vectors(work, None, "float64")
        from unifiedloss.exact import limbs  # not needed by native mode

        return grid.vectors(work, limbs.length("divisor", "float64"), "int64")


def _form(spec: Loss, plan: Plan) -> tuple[int, str]:
    """The length and the dtype of totals."""
    if spec.rounding != "exact":
        return (2 if spec.reduction == "mean" else 1), "float64"
    from unifiedloss.exact import limbs  # not needed by native mode

    terms = "float64" if plan.predictions_dtype == "float64" else "float32"
    return limbs.length(spec.reduction, terms), "int64"


def _dtype(name: str) -> Any:
    return registry.adapter("numpy").ops.dtype(name)


def _named(*tensors: Array | None) -> dict[str, Array | None]:
    """The arguments of a call by their names."""
    names = ("predictions", "targets", "sample_weight", "mask", "upstream")
    return dict(zip(names, tensors, strict=False))


def _opened(*tensors: Any) -> tuple[Adapter | None, tuple[Any, ...]]:
    """The arrays inside arrays of xarray, and the adapter of those if none of them is dask's."""
    opened = tuple(x.data if _is_labelled(x) else x for x in tensors)
    if all(x is y for x, y in zip(opened, tensors, strict=True)):
        return None, tensors
    if any(isinstance(x, da.Array) or on_disk(x) for x in opened):
        return None, opened
    padded = (*opened, 0.0)
    return registry.adapter_for(*padded[:2], *opened[2:4]), opened


def _is_labelled(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "xarray" and hasattr(x, "dtype")


# -------------------------------------------------------------------------- what runs in the tasks


def _owner(predictions: Any, targets: Any, sample_weight: Any = None, mask: Any = None) -> Adapter:
    return registry.adapter_for(predictions, targets, sample_weight, mask)


def _in_own_adapter(method: str, spec: Loss, **blocks: Array) -> Any:
    """Call a method of the adapter that the blocks of a piece belong to."""
    return getattr(_owner(**blocks), method)(spec, **blocks)


def _value_and_grad(
    spec: Loss,
    summed: Loss,
    constant: Any,
    upstream: Any = None,
    divisor: Any = None,
    *,
    own: bool,
    **blocks: Array,
) -> tuple[Array, Array]:
    """The share of a piece in the loss, and its gradient.

    In exact mode the share are the totals of `summed`. In native mode it is the loss of the piece
    over the divisor of the whole, which takes no second pass. Under "none" it is the losses.
    """
    owner = _owner(**blocks)
    by = constant if divisor is None else divisor
    special = _special(spec, by) if own else None
    if special is None:
        value, gradient = owner.value_and_grad(spec, **blocks, upstream=upstream, divisor=by)
    else:
        above = (1.0 if upstream is None else upstream) / special
        value, gradient = owner.value_and_grad(spec.summed, **blocks, upstream=above)
        with np.errstate(all="ignore"):
            value = value / special
    if spec.reduction == "none":
        return value, gradient
    if spec.rounding == "exact":
        return owner.totals(summed, **blocks), gradient
    return owner.ops.cast(value, owner.wide(value)), gradient


def _special(spec: Loss, divisor: Any) -> float | None:
    """A call's own divisor if it is NaN or infinite, which no call takes as a given one."""
    if divisor is None:
        return None
    if spec.rounding == "exact":
        from unifiedloss.exact import limbs  # not needed by native mode

        divisor = limbs.divisor_in(np.asarray(divisor))
    return None if np.isfinite(float(divisor)) else float(divisor)


def _divisor_of(spec: Loss, dtype: str, targets: Array, **companions: Array) -> Array:
    return _owner(0.0, targets, **companions).divisor_of(spec, targets, **companions, dtype=dtype)


def _result(spec: Loss, dtype: str, summed: Array) -> Array:
    owner = _owner(0.0, summed)
    with np.errstate(all="ignore"):
        return owner.ops.cast(owner.result(spec, summed), dtype)


def _cast(dtype: str, value: Array) -> Array:
    with np.errstate(all="ignore"):
        return _owner(0.0, value).ops.cast(value, dtype)


def _result_over(spec: Loss, dtype: str, summed: Array, divisor: Any) -> Array:
    with np.errstate(all="ignore"):
        return totals.result_over(_owner(0.0, summed), spec, dtype, summed, divisor)


def _finding(spec: Loss, **blocks: Array) -> Any:
    """What a check of a piece finds: hints, an error, or None if the piece is empty."""
    owner = _owner(**blocks)
    hints = owner.check(spec, **blocks)
    return hints if all(blocks["predictions"].shape) else None


def _softmax(axis: int, logits: Array) -> Array:
    return _owner(logits, 0.0).softmax(logits, axis)


ADAPTER = DaskAdapter()
