"""Code to paste that shows a failure: it makes the same call as `checks`, and prints what came out beside what should have."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry
from unifiedloss.adapter import Adapter
from unifiedloss.conformance import tolerances
from unifiedloss.conformance.cases import BadCall, Case, SoftmaxCase
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import UnifiedLossError
from unifiedloss.reference import Reference, Softmax

Array = NDArray[Any]

_SHOWN = 60
"""Expected numbers that stand in a comment. An array of thousands is a constant in the cases, and the rest of it is like its beginning."""


def of_case(
    adapter: Adapter, target: Target, mode: str, case: Case | SoftmaxCase, expected: Any
) -> str:
    """The snippet of a case."""
    if isinstance(case, SoftmaxCase):
        return _of_softmax(adapter, target, mode, case, expected)
    return _of_loss(adapter, target, mode, case, expected)


def _of_loss(adapter: Adapter, target: Target, mode: str, case: Case, expected: Reference) -> str:
    error = _error(case) if adapter.modes()[mode].raises and expected.bad_positions else None
    lines = _head(adapter, target, mode, case)
    inputs = case.differentiated() if adapter.differentiates else ["predictions"]
    if case.upstream is None:
        lines.append("upstream = None")
    else:
        result = tolerances.plan_of(case).result_dtype
        lines.append(
            f"upstream = adapter.tensor({_literal(np.asarray(case.upstream, np.float32))}, {result!r})"
        )
    lines += ["", *_loss(inputs)]
    given = ", ".join(inputs)
    if error is not None:
        lines.append(f"# should raise {type(error).__name__}: {error}")
    if not adapter.differentiates:
        lines += [
            "value, gradient = adapter.value_and_grad(spec, predictions, targets, sample_weight, mask, upstream)",
            "gradients = (gradient,)",
        ]
    elif adapter.modes()[mode].whole_step:
        lines.append(
            f"value, gradients = mode.run(lambda *xs: adapter.differentiate(loss, xs, upstream), {given})"
        )
    else:
        lines.append(
            f"value, gradients = adapter.differentiate(lambda *xs: mode.run(loss, *xs), ({given},), upstream)"
        )
    results: dict[str, Any] = {"predictions": expected.grad_predictions}
    results |= {"targets": expected.grad_targets, "sample_weight": expected.grad_sample_weight}
    lines += ["", f'print("loss:", adapter.to_numpy(value))  # should be {_shown(expected.loss)}']
    for i, name in enumerate(inputs):
        lines.append(
            f'print("gradient to {name}:", adapter.to_numpy(gradients[{i}]))  # should be {_shown(results[name])}'
        )
    return "\n".join(lines) + "\n"


def _of_softmax(
    adapter: Adapter, target: Target, mode: str, case: SoftmaxCase, expected: Softmax
) -> str:
    lines = _softmax_head(
        adapter,
        target,
        mode,
        case,
        f"upstream = adapter.tensor({_typed(case.upstream, case.dtype)})",
    )
    if not adapter.differentiates:
        lines.append("value = mode.run(softmax, logits)")
    elif adapter.modes()[mode].whole_step:
        lines.append(
            "value, (gradient,) = mode.run(lambda z: adapter.differentiate(softmax, (z,), upstream), logits)"
        )
    else:
        lines.append(
            "value, (gradient,) = adapter.differentiate(lambda z: mode.run(softmax, z), (logits,), upstream)"
        )
    lines += [
        "",
        f'print("softmax:", adapter.to_numpy(value))  # should be {_shown(expected.values)}',
    ]
    if adapter.differentiates:
        shown = _shown(expected.gradient)
        lines.append(
            f'print("gradient to the logits:", adapter.to_numpy(gradient))  # should be {shown}'
        )
    return "\n".join(lines) + "\n"


def of_bad_call(adapter: Adapter, target: Target, mode: str, call: BadCall | SoftmaxCase) -> str:
    """The snippet of a call that must fail."""
    if isinstance(call, SoftmaxCase):
        error = _error(call)
        lines = _softmax_head(adapter, target, mode, call)
        lines.append(f"# should raise {type(error).__name__}: {error}")
        lines.append("print(adapter.to_numpy(mode.run(softmax, logits)))")
        return "\n".join(lines) + "\n"
    case = Case(call.name, call.spec, call.predictions, call.targets, call.sample_weight, call.mask)
    error = _error(case)
    lines = [*_head(adapter, target, mode, case), "", *_loss(["predictions", "targets"])]
    if call.reads and not adapter.modes()[mode].raises:
        lines.append("# should hold NaN")
    else:
        lines.append(f"# should raise {type(error).__name__}: {error}")
    lines.append("print(adapter.to_numpy(mode.run(loss, predictions, targets)))")
    return "\n".join(lines) + "\n"


def _error(case: Case | BadCall | SoftmaxCase) -> UnifiedLossError | None:
    """What NumPy raises, and so every backend should."""
    numpy = registry.adapter("numpy")
    try:
        if isinstance(case, SoftmaxCase):
            numpy.softmax(case.logits, case.axis)
        else:
            numpy.loss(case.spec, case.predictions, case.targets, case.sample_weight, case.mask)
    except UnifiedLossError as error:
        raised: UnifiedLossError = error
        return raised
    return None


def _head(adapter: Adapter, target: Target, mode: str, case: Case) -> list[str]:
    lines = [
        *_setting(adapter, target, mode, case.name, type(case.spec).__name__),
        f"spec = {case.spec!r}",
        f"predictions = adapter.tensor({_typed(case.predictions, case.dtype)})",
        f"targets = adapter.tensor({_literal(case.targets)})",
    ]
    for name, x in (("sample_weight", case.sample_weight), ("mask", case.mask)):
        lines.append(f"{name} = {'None' if x is None else f'adapter.tensor({_literal(x)})'}")
    return lines


def _softmax_head(
    adapter: Adapter, target: Target, mode: str, case: SoftmaxCase, *more: str
) -> list[str]:
    return [
        *_setting(adapter, target, mode, case.name),
        f"logits = adapter.tensor({_typed(case.logits, case.dtype)})",
        *more,
        *("", "def softmax(z):", f"    return adapter.softmax(z, {case.axis!r})", "", ""),
    ]


def _setting(adapter: Adapter, target: Target, mode: str, name: str, *imported: str) -> list[str]:
    from unifiedloss import __version__

    lines = [
        f"# unifiedloss {__version__}, {target.label} {adapter.version()}, mode {mode}: {name}"
    ]
    if target.environment:
        lines.append("import os")
        lines.append("")
        lines += [f"os.environ[{key!r}] = {value!r}" for key, value in target.environment.items()]
        lines.append("")
    names = ", ".join((*imported, "registry"))
    lines += ["import numpy as np", "", f"from unifiedloss import {names}", "", _adapter(adapter)]
    return [*lines, f"mode = adapter.modes()[{mode!r}]"]


def _typed(x: Array, dtype: str) -> str:
    """An array as code, and its dtype where NumPy does not have it."""
    return _literal(x) if x.dtype.name == dtype else f"{_literal(x)}, {dtype!r}"


def _adapter(adapter: Adapter) -> str:
    """How to get at the adapter: by name, or, for one that is not registered, by its class."""
    try:
        if registry.adapter(adapter.name) is adapter:
            return f"adapter = registry.adapter({adapter.name!r})"
    except UnifiedLossError:
        pass
    cls = type(adapter)
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls or cls.__module__ == "__main__":
        return f"adapter = {cls.__name__}()  # from {cls.__module__}"
    return f"from {cls.__module__} import {cls.__qualname__.partition('.')[0]}\n\nadapter = {cls.__qualname__}()"


def _loss(inputs: Sequence[str]) -> list[str]:
    """The loss as a function of the tensors that are differentiated by; the others are read from around it."""
    call = "adapter.loss(spec, predictions, targets, sample_weight, mask)"
    return [f"def loss({', '.join(inputs)}):", f"    return {call}", "", ""]


def _literal(x: Array) -> str:
    """An array as code. A constant one by its shape and the number, so that thousands of entries stay readable."""
    dtype = x.dtype.name
    if x.size > 8 and (x.ravel() == x.flat[0]).all():
        return f"np.full({x.shape}, {_number(x.flat[0].item())}, {dtype!r})"
    if not x.size:
        return f"np.zeros({x.shape}, {dtype!r})"
    return f"np.array({_nested(x.tolist())}, {dtype!r})"


def _nested(x: Any) -> str:
    return f"[{', '.join(map(_nested, x))}]" if isinstance(x, list) else _number(x)


def _number(x: Any) -> str:
    """repr, with the names NumPy gives to what Python writes as nan and inf."""
    text = repr(x)
    return text.replace("nan", "np.nan").replace("inf", "np.inf") if isinstance(x, float) else text


def _shown(x: float | Sequence[float] | None) -> str:
    if x is None or isinstance(x, float):
        return repr(x)
    more = f" and {len(x) - _SHOWN} more" if len(x) > _SHOWN else ""
    return f"[{', '.join(map(repr, x[:_SHOWN]))}]{more}"
