"""Make a failing call small, and write it as Python code to paste."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.fuzz.calls import Call
from tests.fuzz.numbers import Array
from unifiedloss.conformance.snippets import _literal
from unifiedloss.errors import UnifiedLossError
from unifiedloss.spec import Loss


def shrunk(call: Call, failures: Callable[[Call], list[str]], tries: int = 300) -> Call:
    """Return a smaller call that fails in the same way.

    Args:
        call: a call that fails.
        failures: describes what is wrong with a call.
        tries: how many calls to try at most.
    """
    kind = kind_of(failures(call))
    while True:
        for smaller in _smaller(call):
            if tries <= 0:
                return call
            tries -= 1
            if kind_of(failures(smaller)) == kind:
                call = smaller
                break
        else:
            return call


def kind_of(failures: list[str]) -> str:
    """The first failure without its numbers."""
    return re.sub(r"[-+]?[0-9][-+0-9.e]*|\[[^]]*\]", "#", failures[0])[:80] if failures else ""


def _smaller(call: Call) -> Iterator[Call]:
    """Yield calls with one thing less, the largest steps first."""
    for name in ("mask", "upstream", "sample_weight"):
        if getattr(call, name) is not None:
            yield dataclasses.replace(call, **{name: None})
    shape = call.predictions.shape
    if shape and shape[0] > 1:
        n = shape[0]
        for part in (slice(0, n // 2), slice(n // 2, n), slice(1, n), slice(0, n - 1)):
            yield _cut(call, part)
    for name in call.spec.changed():
        if name != "rounding":
            yield from _without(call, name)
    if call.dtype == "float64":
        with np.errstate(all="ignore"):
            yield dataclasses.replace(
                call, dtype="float32", predictions=call.predictions.astype(np.float32)
            )


def _without(call: Call, name: str) -> Iterator[Call]:
    try:
        spec = call.spec.replace(**{name: call.spec.declarations[name].default})
    except UnifiedLossError:
        return
    yield dataclasses.replace(call, spec=spec)


def _cut(call: Call, part: slice) -> Call:
    """Keep a part of the first axis, which may be an axis of positions or of classes."""
    n = call.predictions.shape[0]

    def cut(x: Any) -> Any:
        return x[part] if x is not None and x.ndim and x.shape[0] == n else x

    spec: Loss = call.spec
    changed = {}
    for name in call.spec.changed():
        value = getattr(spec, name)
        if len(call.predictions.shape) == 1 and isinstance(value, tuple) and len(value) == n:
            changed[name] = value[part]
    return dataclasses.replace(
        call,
        spec=spec.replace(**changed),
        predictions=cut(call.predictions),
        targets=cut(call.targets),
        sample_weight=cut(call.sample_weight),
        mask=cut(call.mask),
        upstream=cut(call.upstream) if spec.reduction == "none" else call.upstream,
    )


def snippet(call: Call, backend: str, mode: str) -> str:
    """Write code that makes the call in a backend."""
    arrays = {
        "targets": call.targets,
        "sample_weight": call.sample_weight,
        "mask": call.mask,
        "upstream": call.upstream,
    }
    lines = [
        f"# {call.name}, {backend}, mode {mode}",
        "import numpy as np",
        f"from unifiedloss import {type(call.spec).__name__}, registry",
        f"adapter = registry.adapter({backend.partition(' ')[0]!r})",
        f"spec = {call.spec!r}",
        f"predictions = adapter.tensor({_literal(call.predictions)}, {call.dtype!r})",
    ]
    for name, x in arrays.items():
        lines.append(f"{name} = {'None' if x is None else _tensor(np.asarray(x))}")
    lines.append(
        f"run = adapter.modes()[{mode!r}].run\n"
        "print(run(lambda p: adapter.value_and_grad(spec, p, targets, sample_weight, mask, "
        "upstream), predictions))"
    )
    return "\n".join(lines)


def _tensor(x: Array) -> str:
    if x.dtype.name == "bfloat16":
        return f"adapter.tensor({_literal(x.astype(np.float32))}, 'bfloat16')"
    return f"adapter.tensor({_literal(x)})"
