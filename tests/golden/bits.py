"""Compute the bits of exact mode in NumPy, which no version may change."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from unifiedloss import registry
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases import all_cases, hard_cases
from unifiedloss.errors import UnifiedLossError

_SHOWN = 15
"""One case in this many, chosen by its name, is kept with its full bits, to show a difference."""


PROBE = "NumPy's exponential"
"""The entry that detects a machine on which NumPy's exponential has other last bits."""


def rows() -> dict[str, list[str]]:
    """Return digests of the inputs, the loss and the gradient of each case, for some with the bits.

    Only cases whose dtype NumPy has here are included.
    """
    adapter = registry.adapter("numpy")
    held = set(adapter.dtypes())
    every = (*all_cases(), *hard_cases())
    return {PROBE: [_probe()]} | {
        case.name: _row(adapter, case.rounded("exact")) for case in every if case.dtype in held
    }


def may_differ(case: Case) -> bool:
    """Return whether the inputs depend on the last bit of an exponential, and so on the machine."""
    return case.name.startswith(("rules/", "product/", "random/")) and case.is_wide()


def _probe() -> str:
    return _digest(_bits(np.exp(np.linspace(-20.0, 20.0, 20001))))[:8]


def _row(adapter: Any, case: Case) -> list[str]:
    given = (case.predictions, case.targets, case.sample_weight, case.mask, case.upstream)
    described = "|".join(
        [repr(case.spec), case.dtype, *("" if x is None else _bits(x) for x in given)]
    )
    inputs = _digest(described)[:8]
    predictions = adapter.tensor(case.predictions, case.dtype)
    rest = (case.targets, case.sample_weight, case.mask)
    upstream = case.upstream
    if upstream is not None and case.spec.reduction != "none":
        upstream = np.asarray(upstream, np.float32)
    try:
        value, gradient = adapter.value_and_grad(case.spec, predictions, *rest, upstream)
        loss = adapter.loss(case.spec, predictions, *rest)
    except UnifiedLossError as error:
        return [inputs, type(error).__name__]
    found = [_bits(value), _bits(gradient)]
    assert _bits(loss) == found[0], f"{case.name}: the two ways to the loss give different bits"
    is_shown = int(_digest(case.name)[:8], 16) % _SHOWN == 0
    return [inputs, *(_digest(x)[:16] for x in found), *(found if is_shown else [])]


def _bits(x: Any) -> str:
    """Return the dtype, the shape, and each element in hexadecimal; all NaN are written alike."""
    array = np.asarray(x)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    unsigned = np.ascontiguousarray(array).view(f"<u{array.dtype.itemsize}").reshape(-1)
    digits = 2 * array.dtype.itemsize
    written = [
        "nan" if bad else f"{int(word):0{digits}x}"
        for word, bad in zip(unsigned, (array != array).reshape(-1), strict=True)
    ]
    return f"{array.dtype.name}{list(array.shape)} {' '.join(written)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
