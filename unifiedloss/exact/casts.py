"""The casts of a spec that names a dtype, rounded once and without losing subnormal numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.exact.rounding import bits_of, stored, to_format
from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan

Array = NDArray[Any]


def read(plan: Plan, *arrays: Array | None) -> tuple[Any, ...]:
    """Cast floating arrays to the dtype of the plan's spec; others stay as they are."""
    spec: Any = plan.spec
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return tuple(x if x is None else _cast(x, spec.dtype) for x in arrays)


def _cast(x: Array, dtype: str) -> Array:
    return x.astype(dtype) if x.dtype.name in FORMATS else x


def returned(plan: Plan, slopes: Array, out: Array | None) -> Array:
    """The gradient in the dtype of the predictions as given, in `out` if that is given."""
    dtype = plan.gradient_dtype
    with np.errstate(all="ignore"):
        rounded = stored(to_format(slopes.astype(np.float64), dtype), dtype)
    if out is None:
        return rounded
    out.view(bits_of(dtype))[...] = rounded
    return out
