"""The types of arrays in `jax.shard_map`: over which mesh axes their values differ.

With ``check_vma=True`` JAX tracks these axes, and calls such an array *varying* over them. It takes
the results of a host callback or of a custom call for equal on all devices, which they are not if
the arguments differ. Elsewhere no array is varying, and these functions change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import AxisType, get_abstract_mesh

_cast: Any = partial(lax.pcast, to="varying") if hasattr(lax, "pcast") else vars(lax)["pvary"]
"""Types an array as varying over mesh axes, by its name in this version of JAX."""


def axes(*arrays: Any) -> frozenset[str]:
    """The mesh axes over which any of these arrays varies; None counts as no array."""
    return frozenset[str]().union(*(_axes_of(x) for x in arrays if isinstance(x, Tracer)))


def _axes_of(x: Any) -> frozenset[str]:
    form: Any = jax.typeof(x)
    if hasattr(form, "manual_axis_type"):
        found: frozenset[str] = form.manual_axis_type.varying
        return found
    return frozenset(getattr(form, "vma", ()))  # before JAX 0.10


def is_whole() -> bool:
    """Whether one device has all of what is traced now, so that XLA splits nothing."""
    kinds = set(get_abstract_mesh().axis_types)
    return kinds == {AxisType.Manual} or jax.device_count() == 1


def varying(x: Any, over: frozenset[str]) -> Array:
    """`x`, typed as varying over these axes too. Its derivative sums over the axes added."""
    missing = tuple(sorted(over - axes(x)))
    made: Array = _cast(x, missing) if missing else x
    return made


def alike(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The arrays, each typed as varying over the axes over which any of them varies."""
    over = axes(*arrays)
    return tuple(x if x is None else varying(x, over) for x in arrays) if over else tuple(arrays)
