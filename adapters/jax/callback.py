"""Calling back to the host from a compiled program, with arrays as they are.

- The callback is NumPy and nothing else: JAX called from within a callback can wait for itself. The part of `jax.pure_callback` that is
  JAX's own does (0.10), with more than 100 KiB where the process may use a single processor. So on CPUs the callback is the one that is
  handed XLA's buffers as they are, and writes its results there; that also saves two copies.
- Elsewhere numbers travel as bits. Results are bitcast, because a cast would flush subnormal numbers. What has 64 bits is two uint32,
  because where x64 is off the thread that calls back would narrow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from unifiedloss import host

NumPyArray = NDArray[Any]

buffer_callback: Any
try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError:  # it is called experimental
    buffer_callback = None


def on_host(
    function: Callable[[list[NumPyArray], list[Any]], None],
    forms: Sequence[jax.ShapeDtypeStruct],
    *arrays: Any,
) -> tuple[Array, ...]:
    """Call a function of arrays to fill and arrays to read, either with mapped axes in front, on NumPy's.

    Of an array that is not mapped, those axes have the extent 1. What is None stays None.
    """
    if buffer_callback is not None and jax.default_backend() == "cpu":
        return tuple(
            buffer_callback(partial(_in_place, function), forms, vmap_method="expand_dims")(*arrays)
        )
    bits = jax.pure_callback(
        partial(
            _with_copies,
            function,
            forms,
            [None if x is None else (x.dtype, x.ndim) for x in arrays],
        ),
        [_packed_form(form) for form in forms],
        *(None if x is None else _packed(x) for x in arrays),
        vmap_method="expand_dims",
    )
    return tuple(
        lax.bitcast_convert_type(x, form.dtype) for x, form in zip(bits, forms, strict=True)
    )


def _in_place(function: Callable[..., None], _: Any, results: Sequence[Any], *arrays: Any) -> None:
    host.run(
        function,
        [np.asarray(x) for x in results],
        [None if x is None else np.asarray(x) for x in arrays],
    )


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
    mapped = np.broadcast_shapes(
        *(
            x.shape[: x.ndim - kind[1]]
            for x, kind in zip(arrays, kinds, strict=True)
            if x is not None
        )
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
    """Unsigned integers of the same size, and pairs of them for 64 bits."""
    return (
        x[..., None].view(np.uint32)
        if x.dtype.itemsize == 8
        else x.view(f"uint{8 * x.dtype.itemsize}")
    )
