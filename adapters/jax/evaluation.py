"""Exact mode on JAX arrays, on the host or in a compiled program.

- Untraced arrays go to the kernel of `unifiedloss.exact` as they are. After many calls with the
  same plan, they go to a compiled program instead, if `program` has one for the plan.
- Under tracing, a custom call (`ffi`) or a host callback runs the compiled loops, or `program`
  computes the loss in float64: what is fastest for the plan. A callback computes all that has no
  program, too. It runs through the axes mapped by vmap index by index.
- If several devices are known to share the rows, each computes its own; see `rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache, partial
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from numpy.typing import NDArray

from unifiedloss import host
from unifiedloss.adapters.jax import callback, exported, ffi, manual, ops, program, rows
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan, Signature, resolve

NumPyArray = NDArray[Any]


def evaluate(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for.

    Args:
        plan: the plan of the call.
        *arrays: predictions, targets, sample_weight, mask, upstream, divisor; the last four may be
            None.
        gradient: whether to compute the gradient too.
    """
    compute = with_values if is_concrete(*arrays) else _traced
    return compute(plan, *arrays, gradient=gradient)


def with_values(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    """`evaluate` arrays of which `is_concrete` is true."""
    compute = _traced if _is_worth_compiling(plan, arrays) else _on_host
    return compute(plan, *arrays, gradient=gradient)


_MANY = 1 << 26
"""Elements of calls with the same plan that the host computes before a program is compiled.

The host takes about as long for them as compiling takes.
"""


def _is_worth_compiling(plan: Plan, arrays: tuple[Any, ...]) -> bool:
    """Whether so many calls had this plan that a compiled program is faster than the host."""
    if arrays[5] is not None or ffi.takes(plan) or _is_faster_on_host(plan):
        return False
    large = program.holds(plan, arrays[:5]) and (program.elements(plan) or 0) >= program.LEAST
    return large and next(_elements(plan)) >= _MANY


@lru_cache(maxsize=4096)
def _elements(plan: Plan) -> Iterator[int]:
    """For each call with this plan, the number of elements in all calls before."""
    return count(0, max(1, program.elements(plan) or 0))


def is_concrete(*arrays: Any) -> bool:
    """Whether no array is traced and each is on a single device."""
    return all(
        x is None
        or isinstance(x, np.ndarray)
        or (isinstance(x, Array) and not isinstance(x, Tracer) and len(x.sharding.device_set) == 1)
        for x in arrays
    )


def _on_host(plan: Plan, *arrays: Any, gradient: bool = False) -> tuple[Array, ...]:
    given = [None if x is None else np.asarray(x) for x in arrays]
    found = _exact().evaluate(plan, *given, gradient=gradient)
    results = [np.asarray(x) for x in found if x is not None]
    results = [x.view(jnp.bfloat16) if x.dtype == np.uint16 else x for x in results]
    predictions = arrays[0]
    if isinstance(predictions, Array) and predictions.committed:
        return tuple(jax.device_put(results, predictions.device))
    if sum(x.nbytes for x in results) <= _SMALL:
        return tuple(jnp.array(x) for x in results)
    return tuple(jax.device_put(results))  # in the memory of the results, unlike jnp.array


_SMALL = 1 << 16
"""Bytes of results that jnp.array copies in less time than jax.device_put takes them over."""


@cache
def _exact() -> Any:
    """`unifiedloss.exact`, imported in a thread that keeps the subnormal numbers of its tables.

    It is imported here, because native mode does not need it.
    """

    def imported() -> Any:
        from unifiedloss import exact

        return exact

    return host.run(imported)


# ----------------------------------------------------------------------------------- under tracing


def _traced(plan: Plan, *arrays: Any, gradient: bool) -> tuple[Array, ...]:
    if plan.unchecked:
        raise UnsupportedError(exported.NO_EXPORT)
    split, place = rows.split_of(plan, *arrays[:2]), rows.sharding(arrays[0])
    arrays = manual.alike(arrays) if split is None else rows.placed(split, arrays)
    with in_width(*arrays) if split is None else ops.x64():  # totals have 64 bits
        value, *slopes = _compiled(plan, gradient, split, *arrays)
    if place is not None and any(place.spec):
        slopes = [rows.move(x, place) for x in slopes]
    return value, *slopes


# A callback takes arrays on several devices only in a compiled program. Within another trace this
# is inlined.
@partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _compiled(
    plan: Plan, gradient: bool, split: rows.Split | None, *arrays: Any
) -> tuple[Array, ...]:
    if split is not None:
        return rows.run(plan, split, arrays, _in_program, gradient=gradient)
    *tensors, divisor = arrays
    if exported.has_choice(plan, divisor is not None):
        exactly = partial(_in_width, plan, gradient)
        return exported.exact_unless_exported(exactly, plan, _forms(plan, gradient), *tensors)
    return _in_program(plan, gradient, *arrays)


def _in_width(plan: Plan, gradient: bool, *tensors: Any) -> tuple[Array, ...]:
    with in_width(*tensors):
        return _in_program(plan, gradient, *tensors, None)


def _in_program(plan: Plan, gradient: bool, *arrays: Any) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for, where one program has all rows."""
    *tensors, divisor = arrays
    together = partial(_fill_rows, plan) if _is_row(plan) and divisor is None else None
    fill = partial(_fill, plan)
    by_callback = partial(callback.on_each, fill, _forms(plan, gradient), together=together)
    if divisor is not None:  # the others know no divisor that is given
        return by_callback(*arrays)
    if ffi.holds(plan, tensors):
        return ffi.run(plan, tensors, gradient=gradient)
    faster = _is_faster_on_host(plan) and manual.is_whole()
    if not faster and program.holds(plan, tensors) and not rows.is_elsewhere(tensors[0]):
        return program.run(plan, tensors, gradient=gradient, on_host=by_callback)
    return by_callback(*arrays)


def _forms(plan: Plan, gradient: bool) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the loss, and of the gradient if it is wanted."""
    dtypes = [jnp.dtype(plan.result_dtype), jnp.dtype(plan.gradient_dtype)][: 1 + gradient]
    shapes = [plan.positions if plan.spec.reduction == "none" else (), plan.shape]
    return [jax.ShapeDtypeStruct(s, dtype) for s, dtype in zip(shapes, dtypes, strict=False)]


_WORTH_A_CALLBACK = {"labels": 1 << 18, "others": 1 << 15}
"""Elements from which on a callback to a compiled loop is faster than `program`.

The callback takes up to a millisecond, and 5 to 10 ns an element. The program takes 10 ns for one
of a cross-entropy with labels, and 40 to 200 for others.
"""


def _is_faster_on_host(plan: Plan) -> bool:
    """Whether a compiled loop computes a plan on the host in less time than `program`."""
    if plan.count is None or jax.default_backend() != "cpu":
        return False
    kind = "labels" if plan.kind == "index" and not plan.label_smoothing else "others"
    large = (program.elements(plan) or 0) >= _WORTH_A_CALLBACK[kind]
    return large and bool(_exact().has_loop(plan))


def in_width(*arrays: Any) -> AbstractContextManager[None]:
    """The context in which these arrays keep their bits; any of them may be None."""
    wide = any(x is not None and x.dtype.itemsize == 8 for x in arrays)
    return ops.x64() if wide else nullcontext()


def _fill(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """Run the kernel."""
    value, *slopes = results
    out = slopes[0] if slopes else None
    found, _ = _exact().evaluate(plan, *arrays, gradient=out is not None, out=out)
    value[...] = found.view(value.dtype)


def _is_row(plan: Plan) -> bool:
    """Whether a call is one row, whose mean is its loss."""
    single = plan.count == 1 and plan.axis is not None and plan.plain
    return single and not plan.casts and plan.predictions_dtype == plan.result_dtype


def _fill_rows(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """Run the kernel once for many calls that are a row each."""
    value, *slopes = results
    predictions, targets, upstream = arrays[0], arrays[1], arrays[4]
    rows = len(predictions)
    of_rows = _of_rows(plan, rows)
    found, gradient = _exact().evaluate(
        of_rows,
        predictions.reshape(of_rows.shape),
        targets.reshape(rows) if plan.kind == "index" else targets.reshape(of_rows.shape),
        upstream=None if upstream is None else upstream.reshape(rows),
        gradient=bool(slopes),
    )
    value[...] = found.reshape(value.shape)
    if slopes:
        slopes[0][...] = gradient.reshape(slopes[0].shape)


@lru_cache(maxsize=4096)
def _of_rows(plan: Plan, rows: int) -> Plan:
    """The plan of many calls that are a row each, without a reduction."""
    shape = (rows, plan.classes)
    targets = (rows,) if plan.kind == "index" else shape
    spec = plan.spec.replace(axis=1, reduction="none")
    return resolve(
        spec, Signature(shape, plan.predictions_dtype), Signature(targets, plan.targets_dtype)
    )


def on_host(job: Any, *arrays: Any) -> Array:
    """Run a job of `unifiedloss.exact.pieces`, also in a compiled program."""
    if is_concrete(*arrays):
        given = [None if x is None else np.asarray(x) for x in arrays]
        with ops.x64():
            return jnp.asarray(host.run(job.run, *given))
    split = rows.split_of_job(job, arrays)
    if split is not None:
        arrays = rows.placed(split, rows.with_predictions(job, arrays))
    with ops.x64():
        found: Array = _on_host_compiled(job, split, *arrays)
    return found


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _on_host_compiled(job: Any, split: Any, *arrays: Any) -> Array:
    given = [None if x is None else exported.never(lax.stop_gradient(x)) for x in arrays]
    return callback.run_job(job, given) if split is None else rows.run_job(job, split, given)


def reciprocal(plan: Plan, divisor: Any) -> Array:
    """1 over a divisor that a call is given, rounded; NaN if it is no divisor."""
    one, job = _result_of_one(plan)
    return on_host(job, one, divisor)


@lru_cache(maxsize=4096)
def _result_of_one(plan: Plan) -> tuple[NumPyArray, Any]:
    """The totals of a sum that is 1, and the job that divides them."""

    def made() -> tuple[NumPyArray, Any]:
        from unifiedloss.exact import limbs, pieces

        dtype = plan.result_dtype
        one = limbs.vector("sum", dtype, limbs.sum_of(np.ones(1, dtype)))
        return one, pieces.Job("result", plan.spec, (), dtype)

    return host.run(made)
