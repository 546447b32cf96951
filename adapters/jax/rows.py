"""Exact mode on arrays whose rows are shared by several devices: each computes its own.

A host callback in a program that XLA splits would get all rows on one device. So the call runs in
`jax.shard_map`. What a mean divides by is summed over the devices first. Then each device computes
the gradient of its rows, and the exact sum of their losses as a vector of integers
(`unifiedloss.exact.limbs`). These are summed too, and rounded once. So only a few hundred integers
travel, the gradient is shared as the predictions are, and all bits are those of one device.

It takes arrays of which this is known: arrays that are not traced, and arrays whose types name
their mesh axes (`jax.sharding.AxisType.Explicit`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec, get_abstract_mesh, reshard
from numpy.typing import NDArray

from unifiedloss import host
from unifiedloss.adapters.jax import callback, ops
from unifiedloss.checks import extents
from unifiedloss.inputs import Inputs, Signature
from unifiedloss.plan import Plan, resolve

NumPyArray = NDArray[Any]
Evaluate = Callable[..., tuple[Array, ...]]


class Split(NamedTuple):
    """How devices share the positions of a call.

    Attributes:
        mesh: the mesh of the devices.
        axes: for each axis of the predictions the names of the mesh axes that share it.
        lacking: the axis of the predictions that positions lack: the class axis, or the averaged
            one; None if they have all.
        dense: whether the targets have all axes of the predictions.
    """

    mesh: Any
    axes: tuple[tuple[str, ...], ...]
    lacking: int | None
    dense: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All mesh axes that share an axis of the predictions."""
        return tuple(name for names in self.axes for name in names)

    @property
    def predictions(self) -> PartitionSpec:
        """How the predictions are shared."""
        return PartitionSpec(*(names or None for names in self.axes))

    @property
    def positions(self) -> PartitionSpec:
        """How per-position losses are shared."""
        axes = enumerate(self.axes)
        return PartitionSpec(*(names or None for axis, names in axes if axis != self.lacking))

    def specs(self, arrays: Sequence[Any]) -> list[PartitionSpec]:
        """How each array is shared.

        Args:
            arrays: predictions, targets, sample_weight, mask, upstream, and others, which no device
                has a part of. Any may be None.
        """
        targets = self.predictions if self.dense else self.positions
        shared = [self.predictions, targets, *[self.positions] * 3]
        shared += [PartitionSpec()] * (len(arrays) - len(shared))
        return [
            PartitionSpec() if x is None else PartitionSpec(*spec[: x.ndim])
            for x, spec in zip(arrays, shared, strict=False)
        ]


def split_of(plan: Plan, predictions: Any, targets: Any) -> Split | None:
    """How devices share the positions of a call; None if they do not, or if that is not known.

    A class axis that devices share is exchanged for rows if these can be divided so.

    Args:
        plan: the plan of the call.
        predictions: the predictions; None in a call for a divisor.
        targets: the targets.
    """
    reference = targets if predictions is None else predictions
    found = sharding(reference)
    if found is None or plan.unchecked or plan.shape is None or not _adds_up(plan):
        return None
    if is_elsewhere(reference):
        return None  # the caller computes on other devices, and jax.shard_map would refuse these
    axes = _axes(found.spec, reference.ndim)
    dense = plan.kind != "index"
    if predictions is None and not dense:
        assert plan.axis is not None
        axes.insert(plan.axis, ())
    split = _split(plan, found.mesh, _by_rows(plan, axes, dict(found.mesh.shape)))
    return split if math.prod(found.mesh.shape[name] for name in split.names) > 1 else None


def split_of_job(job: Any, arrays: Sequence[Any]) -> Split | None:
    """`split_of` a job of `unifiedloss.exact.pieces`, which has no plan yet."""
    if job.kind == "result" or sharding(arrays[0]) is None:
        return None
    plan = _pieces().plan_of(job, *(None if x is None else x.shape for x in arrays))
    return split_of(plan, *with_predictions(job, arrays)[:2])


def with_predictions(job: Any, arrays: Sequence[Any]) -> Sequence[Any]:
    """The arrays of a job after its predictions, which are None in a job for a divisor."""
    return (None, *arrays) if job.kind == "divisor" else arrays


def sharding(x: Any) -> Any:
    """The sharding of an array over a mesh; None if there is none, or if it is not known."""
    if not isinstance(x, Tracer):
        found: Any = getattr(x, "sharding", None)
        return found if isinstance(found, NamedSharding) else None
    found = jax.typeof(x).sharding
    kinds = set(found.mesh.axis_types)
    return found if kinds == {AxisType.Explicit} else None


def is_elsewhere(x: Any) -> bool:
    """Whether an array is shared over another mesh than the one that is set.

    JAX computes nothing of it then, and a callback can.
    """
    found, context = sharding(x), get_abstract_mesh()
    if found is None or context.empty:
        return False
    return bool(context != getattr(found.mesh, "abstract_mesh", found.mesh))


def beside(plan: Plan, inputs: Inputs) -> Inputs:
    """The tensors of a call, each shared as the predictions are, where types name mesh axes.

    JAX refuses a select of two arrays that are shared in different ways.
    """
    predictions = inputs.predictions
    found = sharding(predictions) if isinstance(predictions, Tracer) else None
    if found is None or plan.shape is None:
        return inputs
    split = _split(plan, found.mesh, _axes(found.spec, predictions.ndim))
    return Inputs(*placed(split, inputs))


def beside_losses(plan: Plan, found: Any, predictions: Any, targets: Any) -> Any:
    """A result for each position, or one for all, placed as the losses of exact mode are."""
    split = split_of(plan, predictions, targets)
    if split is None or plan.spec.reduction != "none":
        return found
    return move(found, NamedSharding(split.mesh, split.positions))


def _split(plan: Plan, mesh: Any, axes: list[tuple[str, ...]]) -> Split:
    assert plan.shape is not None
    lacking = len(plan.shape) - 1 if plan.average_last_axis else plan.axis
    return Split(mesh, tuple(axes), lacking, plan.kind != "index")


def _axes(spec: PartitionSpec, rank: int) -> list[tuple[str, ...]]:
    """For each axis of an array the names of the mesh axes that share it."""
    axes = [_names(entry) for entry in spec]
    return axes + [()] * (rank - len(axes))


def _names(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _adds_up(plan: Plan) -> bool:
    """Whether the totals of the devices give the loss, and int64 limbs hold every divisor."""
    if plan.spec.reduction != "mean":
        return True
    if plan.may_cancel and not plan.from_logits:
        # If the divisor is 0, the loss is NaN only for a bad prediction, which totals do not tell
        # from another NaN.
        return False
    two_weights = plan.weight_rank is not None and (
        plan.class_weights is not None or plan.element_weights is not None
    )
    averaged = plan.average_last_axis and plan.element_weights is not None
    return not averaged and not (two_weights and plan.compute_dtype == "float64")


def _by_rows(
    plan: Plan, axes: list[tuple[str, ...]], sizes: dict[str, int]
) -> list[tuple[str, ...]]:
    """The mesh axes of a split in which each device has whole rows."""
    assert plan.shape is not None
    whole = _whole_axes(plan, len(plan.shape))
    moved = tuple(name for axis in whole for name in axes[axis])
    axes = [() if axis in whole else names for axis, names in enumerate(axes)]
    for axis, extent in enumerate(plan.shape) if moved else ():
        parts = math.prod(sizes[name] for name in (*axes[axis], *moved))
        if axis not in whole and extent and extent % parts == 0:
            axes[axis] = (*axes[axis], *moved)
            break
    return axes


def _whole_axes(plan: Plan, rank: int) -> set[int]:
    """The axes of the predictions of which a device needs all: those with one weight per entry."""
    if plan.axis is not None:
        return {plan.axis}
    last = max(len(extents(plan.element_weights)), int(plan.average_last_axis))
    along = {plan.pos_weight_axis % rank} if isinstance(plan.pos_weight, tuple) else set()
    return along | set(range(rank - last, rank))


def placed(split: Split, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The arrays of a call, moved to where a split has them; see `Split.specs`."""
    with ops.x64():  # so that 64-bit arrays keep their dtype
        return tuple(
            x if x is None else move(x, NamedSharding(split.mesh, spec))
            for x, spec in zip(arrays, split.specs(arrays), strict=True)
        )


def move(x: Any, sharding: Any) -> Any:
    """An array in another sharding."""
    if not isinstance(x, Tracer):
        return jax.device_put(x, sharding)
    # Where types name no mesh axes, XLA moves the array.
    return reshard(x, sharding) if set(sharding.mesh.axis_types) == {AxisType.Explicit} else x


# ----------------------------------------------------------------------- what each device computes


def run(
    plan: Plan, split: Split, arrays: Sequence[Any], evaluate: Evaluate, *, gradient: bool
) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for.

    Args:
        plan: the plan of the call.
        split: how devices share it.
        arrays: predictions, targets, sample_weight, mask, upstream and divisor, as `placed` has
            them; the last four may be None.
        evaluate: computes the rows of a device without a reduction:
            ``evaluate(plan, gradient, *arrays)``.
        gradient: whether to compute the gradient too.
    """

    def local(*arrays: Any) -> tuple[Array, ...]:
        if plan.spec.reduction == "none":
            return evaluate(_plan_of_rows(plan.spec, arrays), gradient, *arrays)
        return _reduced(plan, split, arrays, gradient=gradient)

    loss = split.positions if plan.spec.reduction == "none" else PartitionSpec()
    return _on_rows(local, split, arrays, (loss, split.predictions)[: 1 + gradient])


def run_job(job: Any, split: Split, arrays: Sequence[Any]) -> Array:
    """The totals or the divisor of all devices; see `unifiedloss.exact.pieces.Job`.

    Args:
        job: the job.
        split: how devices share its arrays.
        arrays: predictions or None, targets, sample_weight and mask, as `placed` has them.
    """
    given = slice(1 if job.kind == "divisor" else 0, None)

    def local(*arrays: Any) -> tuple[Array]:
        return (lax.psum(callback.run_job(job, arrays[given]), split.names),)

    return _on_rows(local, split, arrays, (PartitionSpec(),))[0]


def _on_rows(
    local: Evaluate, split: Split, arrays: Sequence[Any], results: tuple[PartitionSpec, ...]
) -> tuple[Array, ...]:
    """Call a function on the rows of each device. What is None stays None."""
    given = [x is not None for x in arrays]

    def filled(*present: Any) -> tuple[Array, ...]:
        rest = iter(present)
        return local(*(next(rest) if x_is_given else None for x_is_given in given))

    specs = split.specs(arrays)
    found: tuple[Array, ...] = jax.shard_map(
        filled,
        mesh=split.mesh,
        in_specs=tuple(spec for spec, here in zip(specs, given, strict=True) if here),
        out_specs=results,
    )(*(x for x in arrays if x is not None))
    return found


def _plan_of_rows(spec: Any, arrays: Sequence[Any]) -> Plan:
    signatures: Any = [None if x is None else Signature(x.shape, x.dtype.name) for x in arrays[:4]]
    return resolve(spec, *signatures)


def _reduced(
    plan: Plan, split: Split, arrays: Sequence[Any], *, gradient: bool
) -> tuple[Array, ...]:
    """The loss of all devices, and the gradient of the rows of this one."""
    *tensors, upstream, divisor = arrays
    spec: Any = plan.spec
    if spec.reduction == "mean":
        dtypes = [None if x is None else x.dtype.name for x in tensors[1:]]
        job = _pieces().Job("divisor", spec.piece, tuple(dtypes), plan.predictions_dtype)
        divisor = lax.psum(callback.run_job(job, tensors[1:]), split.names)
    job = _pieces().Job("totals", spec.summed, (), plan.result_dtype)
    forms = [jax.ShapeDtypeStruct(*job.form)]
    if gradient:
        forms.append(jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype))
    fill = partial(_fill_piece, _plan_of_rows(spec.summed, arrays))
    totals, *slopes = callback.on_each(fill, forms, *tensors, upstream, divisor)
    whole = lax.psum(totals, split.names), divisor
    value = callback.run_job(_pieces().Job("result", spec, (), plan.result_dtype), whole)
    return value, *slopes


def _fill_piece(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """Compute the totals of a piece and, if there is room for it, its gradient."""
    *tensors, upstream, divisor = arrays
    totals, *slopes = results
    totals[...] = _pieces().totals(plan, *tensors)
    if slopes:
        _kernel().evaluate(plan, *tensors, upstream, divisor, gradient=True, out=slopes[0])


@cache
def _pieces() -> Any:
    """`unifiedloss.exact.pieces`, which native mode does not need."""

    def imported() -> Any:
        from unifiedloss.exact import pieces

        return pieces

    return host.run(imported)


@cache
def _kernel() -> Any:
    def imported() -> Any:
        from unifiedloss.exact import kernel

        return kernel

    return host.run(imported)
