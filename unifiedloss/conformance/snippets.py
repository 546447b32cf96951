"""Write code to paste that reproduces a failure.

A snippet makes the same call as `checks`, and prints each result beside the expected one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry
from unifiedloss.adapter import Adapter
from unifiedloss.conformance import combine, tolerances
from unifiedloss.conformance.case import BadCall, Case, SoftmaxCase
from unifiedloss.conformance.combine import CutCase
from unifiedloss.conformance.fused import WAYS
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import UnifiedLossError
from unifiedloss.reference import Reference, Softmax

Array = NDArray[Any]

_SHOWN = 60
"""Largest number of expected values in a comment.

Only constant arrays of the cases are longer, and the rest of their results is like the beginning.
"""


def of_case(
    adapter: Adapter, target: Target, mode: str, case: Case | SoftmaxCase, expected: Any
) -> str:
    """Write the snippet of a case."""
    if isinstance(case, SoftmaxCase):
        return _of_softmax(adapter, target, mode, case, expected)
    if isinstance(case, CutCase):
        return combine.snippet(target, mode, case)
    return _of_loss(adapter, target, mode, case, expected)


def _of_loss(adapter: Adapter, target: Target, mode: str, case: Case, expected: Reference) -> str:
    error = _error(case) if adapter.modes()[mode].raises and expected.bad_positions else None
    lines = _head(adapter, target, mode, case)
    inputs = case.differentiated() if adapter.differentiates else ["predictions"]
    made = case.made if adapter.differentiates else None
    if made is not None:
        sources = [f"source_{i}" if i else "source" for i in range(len(made.sources))]
        inputs = [*sources, *inputs[1:]]
        for name, x in zip(sources, made.sources, strict=True):
            lines.append(f"{name} = adapter.tensor({_literal(x)})")
    if case.upstream is None:
        lines.append("upstream = None")
    else:
        result = tolerances.plan_of(case).result_dtype
        upstream = _literal(np.asarray(case.upstream, np.float32))
        lines.append(f"upstream = adapter.tensor({upstream}, {result!r})")
    lines += ["", *_loss(inputs)]
    if made is not None:
        making = f"WAYS[{made.way!r}].make(adapter.ops, {', '.join(sources)})"
        lines.insert(-3, f"    predictions = {making}")
        lines.insert(lines.index(""), "from unifiedloss.conformance.fused import WAYS")
    given = ", ".join(inputs)
    if error is not None:
        lines.append(f"# should raise {type(error).__name__}: {error}")
    if not adapter.differentiates:
        lines.append(
            "value, gradient = adapter.value_and_grad("
            "spec, predictions, targets, sample_weight, mask, upstream)"
        )
        lines.append("gradients = (gradient,)")
    elif adapter.modes()[mode].whole_step:
        lines.append(
            "value, gradients = mode.run("
            f"lambda *xs: adapter.differentiate(loss, xs, upstream), {given})"
        )
    else:
        lines.append(
            "value, gradients = adapter.differentiate("
            f"lambda *xs: mode.run(loss, *xs), ({given},), upstream)"
        )
    results: dict[str, Any] = {"predictions": expected.grad_predictions}
    results |= {"targets": expected.grad_targets, "sample_weight": expected.grad_sample_weight}
    lines += ["", f'print("loss:", adapter.to_numpy(value))  # should be {_shown(expected.loss)}']
    if made is not None:
        shape = case.predictions.shape
        back = WAYS[made.way].back(np.reshape(np.asarray(expected.grad_predictions), shape))
        results["source"] = back.astype(np.float64).ravel().tolist()
    for i, name in enumerate(inputs):
        if name not in results:  # a matrix, or a temperature
            continue
        lines.append(
            f'print("gradient to {name}:", adapter.to_numpy(gradients[{i}]))'
            f"  # should be {_shown(results[name])}"
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
            "value, (gradient,) = mode.run("
            "lambda z: adapter.differentiate(softmax, (z,), upstream), logits)"
        )
    else:
        lines.append(
            "value, (gradient,) = adapter.differentiate("
            "lambda z: mode.run(softmax, z), (logits,), upstream)"
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
    """Write the snippet of a call that must fail."""
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


def of_function(target: Target, code: str, case: Case, expected: Reference | None) -> str:
    """Write the snippet of a case that a loss function of somebody else runs.

    Args:
        target: the backend.
        code: lines that make `function`.
        case: the case.
        expected: the oracle's result; None if the call must fail.
    """
    lines = [f"# {case.name}"]
    if target.environment:
        lines += ["import os", ""]
        lines += [f"os.environ[{key!r}] = {value!r}" for key, value in target.environment.items()]
        lines.append("")
    lines += ["import numpy as np", "", "from unifiedloss import registry", *code.splitlines(), ""]
    lines.append(f"adapter = registry.adapter({target.backend!r})")
    lines.append(f"predictions = adapter.tensor({_typed(case.predictions, case.dtype)})")
    lines.append(f"targets = adapter.tensor({_literal(case.targets)})")
    given = ["targets"]
    for name, x in (("sample_weight", case.sample_weight), ("mask", case.mask)):
        if x is not None:
            lines.append(f"{name} = adapter.tensor({_literal(x)})")
            given.append(f"{name}={name}")
    bad = expected is None or bool(expected.bad_positions)
    loss = "an error or NaN" if bad else _shown(expected.loss) if expected else ""
    call = f"function(predictions, {', '.join(given)})"
    lines += [f'print("loss:", {call})', f"# should be {loss}"]
    if expected is None or bad or expected.grad_predictions is None:
        return "\n".join(lines) + "\n"
    upstream = "None"
    if case.upstream is not None:
        result = tolerances.plan_of(case).result_dtype
        upstream = f"adapter.tensor({_literal(np.asarray(case.upstream, np.float32))}, {result!r})"
    lines += [
        "_, (gradient,) = adapter.differentiate(",
        f"    lambda p: {call.replace('predictions', 'p', 1)}, (predictions,), {upstream}",
        ")",
        'print("gradient:", gradient)',
        f"# should be {_shown(expected.grad_predictions)}",
    ]
    return "\n".join(lines) + "\n"


def _error(case: Case | BadCall | SoftmaxCase) -> UnifiedLossError | None:
    """The error that NumPy raises, and that every backend must raise; None if there is none."""
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
        f"spec = {case.spec.source()}",
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

    backend = f"{target.label} {adapter.version()}"
    lines = [f"# unifiedloss {__version__}, {backend}, mode {mode}: {name}"]
    if target.environment:
        lines.append("import os")
        lines.append("")
        lines += [f"os.environ[{key!r}] = {value!r}" for key, value in target.environment.items()]
        lines.append("")
    names = ", ".join((*imported, "registry"))
    lines += ["import numpy as np", "", f"from unifiedloss import {names}", "", _adapter(adapter)]
    return [*lines, f"mode = adapter.modes()[{mode!r}]"]


def _typed(x: Array, dtype: str) -> str:
    """An array as code, followed by its dtype if NumPy lacks it (bfloat16)."""
    return _literal(x) if x.dtype.name == dtype else f"{_literal(x)}, {dtype!r}"


def _adapter(adapter: Adapter) -> str:
    """Code that gets the adapter: by name, or by its class if it is not registered."""
    try:
        if registry.adapter(adapter.name) is adapter:
            return f"adapter = registry.adapter({adapter.name!r})"
    except UnifiedLossError:
        pass
    cls = type(adapter)
    importable: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        importable = getattr(importable, part, None)
    if importable is not cls or cls.__module__ == "__main__":
        return f"adapter = {cls.__name__}()  # from {cls.__module__}"
    outer = cls.__qualname__.partition(".")[0]
    return f"from {cls.__module__} import {outer}\n\nadapter = {cls.__qualname__}()"


def _loss(inputs: Sequence[str]) -> list[str]:
    """The loss as a function of the inputs to differentiate by; the others are globals."""
    call = "adapter.loss(spec, predictions, targets, sample_weight, mask)"
    return [f"def loss({', '.join(inputs)}):", f"    return {call}", "", ""]


def _literal(x: Array) -> str:
    """An array as code: ``np.full`` for constants, because they may have thousands of entries."""
    dtype = x.dtype.name
    if x.size > 8 and (x.ravel() == x.flat[0]).all():
        return f"np.full({x.shape}, {_number(x.flat[0].item())}, {dtype!r})"
    if not x.size:
        return f"np.zeros({x.shape}, {dtype!r})"
    return f"np.array({_nested(x.tolist())}, {dtype!r})"


def _nested(x: Any) -> str:
    return f"[{', '.join(map(_nested, x))}]" if isinstance(x, list) else _number(x)


def _number(x: Any) -> str:
    """repr, with np.nan and np.inf for nan and inf."""
    text = repr(x)
    return text.replace("nan", "np.nan").replace("inf", "np.inf") if isinstance(x, float) else text


def _shown(x: float | Sequence[float] | None) -> str:
    if x is None or isinstance(x, float):
        return repr(x)
    more = f" and {len(x) - _SHOWN} more" if len(x) > _SHOWN else ""
    return f"[{', '.join(map(repr, x[:_SHOWN]))}]{more}"
