"""Host callbacks from a compiled program that keep every bit of the arrays.

- The callback uses NumPy alone, because JAX called within a callback can deadlock (jax#24255). In
  JAX 0.10 the code of `jax.pure_callback` does so itself, with more than 100 KiB if the process may
  use a single processor. So on CPUs the callback is `buffer_callback`, which reads XLA's buffers
  and writes its results into them. That also saves two copies.
- On other devices, arrays travel as unsigned integers of the same bits, because a cast of the
  results would flush subnormal numbers. A 64-bit number travels as two uint32, because the thread
  that calls back would narrow it if x64 is off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from unifiedloss import host
from unifiedloss.adapters.jax import manual
from unifiedloss.compiled import threads

NumPyArray = NDArray[Any]

buffer_callback: Any
try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # experimental, so it may move or vanish
    buffer_callback = None


def on_host(
    function: Callable[[list[NumPyArray], list[Any]], None],
    forms: Sequence[jax.ShapeDtypeStruct],
    *arrays: Any,
) -> tuple[Array, ...]:
    """Call a function of NumPy arrays on the host.

    Its arguments are a list of arrays to fill and a list of arrays to read. Both have the axes
    mapped by vmap in front, with the extent 1 if an array is not mapped. None stays None. In
    `jax.shard_map` each device calls it, and the results vary as the arrays do.

    Args:
        function: the function.
        forms: shapes and dtypes of the arrays to fill, without mapped axes.
        *arrays: the arrays to read, or None.
    """
    axes = manual.axes(*arrays)
    if buffer_callback is not None and jax.default_backend() == "cpu":
        call = buffer_callback(partial(_in_place, function), forms, vmap_method="expand_dims")
        return tuple(manual.varying(x, axes) for x in call(*arrays))
    kinds = [None if x is None else (x.dtype, x.ndim) for x in arrays]
    bits = jax.pure_callback(
        partial(_with_copies, function, forms, kinds),
        [_packed_form(form) for form in forms],
        *(None if x is None else _packed(x) for x in arrays),
        vmap_method="expand_dims",
    )
    return tuple(
        manual.varying(lax.bitcast_convert_type(x, form.dtype), axes)
        for x, form in zip(bits, forms, strict=True)
    )


def on_each(
    function: Callable[[list[NumPyArray], list[Any]], None],
    forms: Sequence[jax.ShapeDtypeStruct],
    *arrays: Any,
    together: Callable[[list[NumPyArray], list[Any]], None] | None = None,
) -> tuple[Array, ...]:
    """As `on_host`, and the function is called for each index of the axes mapped by vmap.

    Args:
        function: see `on_host`, as for the following.
        forms: shapes and dtypes of the arrays to fill.
        *arrays: the arrays to read.
        together: is called once in its place if vmap maps an axis, with arrays that have one axis
            of all examples in front.
    """
    ranks = [None if x is None else x.ndim for x in arrays]
    return on_host(partial(_for_each_index, function, together, ranks), forms, *arrays)


def run_job(job: Any, arrays: Sequence[Any]) -> Array:
    """Run a job of `unifiedloss.exact.pieces` on the host."""
    shape, dtype = job.form
    form = jax.ShapeDtypeStruct(shape, np.dtype(dtype))
    (found,) = on_each(partial(_fill_job, job), [form], *arrays)
    return found


def _fill_job(job: Any, results: list[NumPyArray], arrays: list[Any]) -> None:
    results[0][...] = job.run(*arrays)


def _for_each_index(
    function: Callable[..., None],
    together: Callable[..., None] | None,
    ranks: Sequence[int | None],
    results: list[NumPyArray],
    arrays: list[Any],
) -> None:
    pairs: Any = list(zip(arrays, ranks, strict=True))
    if all(x is None or x.ndim == r for x, r in pairs):  # no vmap; a small loss takes less time
        function(results, arrays)
        return
    mapped = np.broadcast_shapes(*(x.shape[: x.ndim - r] for x, r in pairs if x is not None))
    given = [
        None if x is None else np.broadcast_to(x, mapped + x.shape[x.ndim - r :]) for x, r in pairs
    ]
    if together is not None and 0 not in mapped:
        size, axes = math.prod(mapped), len(mapped)
        both = [
            [None if x is None else x.reshape(size, *x.shape[axes:]) for x in some]
            for some in (results, given)
        ]
        together(*both)
        return
    for i in np.ndindex(mapped):
        at = (*i, ...)
        function([x[at] for x in results], [None if x is None else x[at] for x in given])


def _in_place(function: Callable[..., None], _: Any, results: Sequence[Any], *arrays: Any) -> None:
    into = [np.asarray(x) for x in results]
    given = [None if x is None else np.asarray(x) for x in arrays]
    with threads.subnormals_kept():
        host.run(function, into, given)


def _with_copies(
    function: Callable[..., None],
    forms: Sequence[jax.ShapeDtypeStruct],
    kinds: Sequence[Any],
    *packed: Any,
) -> list[NumPyArray]:
    arrays = [
        None if x is None else _unpacked(np.asarray(x), kind[0])
        for x, kind in zip(packed, kinds, strict=True)
    ]
    pairs = zip(arrays, kinds, strict=True)
    mapped = np.broadcast_shapes(
        *(x.shape[: x.ndim - kind[1]] for x, kind in pairs if x is not None)
    )
    results = [np.empty((*mapped, *form.shape), form.dtype) for form in forms]
    host.run(function, results, arrays)
    return [_as_bits(x) for x in results]


def _unpacked(x: NumPyArray, dtype: Any) -> NumPyArray:
    return x.view(dtype)[..., 0] if dtype.itemsize == 8 else x.view(dtype)


def _packed(x: Any) -> Array:
    if x.dtype == bool:
        return jnp.asarray(x)
    return lax.bitcast_convert_type(
        x, jnp.uint32 if x.dtype.itemsize == 8 else f"uint{8 * x.dtype.itemsize}"
    )


def _packed_form(form: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    pair = form.dtype.itemsize == 8
    return jax.ShapeDtypeStruct(
        (*form.shape, 2) if pair else form.shape,
        np.dtype("uint32" if pair else f"uint{8 * form.dtype.itemsize}"),
    )


def _as_bits(x: NumPyArray) -> NumPyArray:
    """The bits as unsigned integers of the same size, or as pairs of uint32 for 64 bits."""
    if x.dtype.itemsize == 8:
        return x[..., None].view(np.uint32)
    return x.view(f"uint{8 * x.dtype.itemsize}")
