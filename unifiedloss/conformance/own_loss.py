"""Check somebody's loss function against the oracle: a run of all cases, or one case of a test."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from typing import Any

from unifiedloss import __version__, registry
from unifiedloss.conformance import trial, workers
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases_of_spec import KEYWORDS, loss_cases
from unifiedloss.conformance.judgement import expected_of, judge
from unifiedloss.conformance.own_function import OwnFunction
from unifiedloss.conformance.own_report import OwnReport
from unifiedloss.conformance.runner import Progress
from unifiedloss.conformance.snippets import of_function
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import SpecValueError
from unifiedloss.interop import from_native
from unifiedloss.text import quoted

SECONDS = 10.0
"""Seconds that a case may take."""

SECONDS_IN_ALL = 300.0
"""Seconds that all cases may take."""

MOST_ENDED = 3
"""If none of so many first cases leaves its process alive, the others are not run."""


def check_loss(
    function: Callable[..., Any] | str,
    spec: Any,
    backend: str,
    *,
    dtypes: Collection[str] = ("float32",),
    targets: str | None = None,
    without: Collection[str] = (),
    mode: str = "eager",
    seconds: float = SECONDS,
    seconds_in_all: float = SECONDS_IN_ALL,
    progress: Callable[[Progress], None] | None = None,
) -> OwnReport:
    """Run a loss function on the suite's cases, and compare it with the oracle of a spec.

    The function runs in a process of its own. If it raises, crashes or hangs, this is its result
    on that case, and a new process goes on with the next one. If it crashes or hangs on each of the
    first three cases, the others are not run. The cases are those of `loss_cases`.

    Args:
        function: ``function(predictions, targets)`` of the backend's tensors, or its name as
            "package.module:function"; the module may lie in the current folder. If it takes
            `sample_weight` or `mask` by keyword, the cases with them run too. An object has to
            pickle.
        spec: what the function claims to compute: a spec, or whatever `unifiedloss.from_native`
            reads, such as "torch.nn.CrossEntropyLoss()".
        backend: "numpy", "torch", "tensorflow", "jax", "keras (jax)", ...; "keras" is Keras on the
            backend that the environment variable KERAS_BACKEND names, TensorFlow by default.
        dtypes: the dtypes of the predictions.
        targets: "index" or "dense", for a loss with classes that takes only such targets.
        without: rules in which the function may differ, by their ids on the page Rules; the cases
            that prove one are left out.
        mode: a mode of the backend ("jit", "aot_eager", ...), which compiles each case.
        seconds: how long a case may take.
        seconds_in_all: how long all cases may take, without the import of the framework and of
            the function. The cases that are left are not run.
        progress: called with the progress after each case.

    Raises:
        SpecTypeError: the object is no function, or does not pickle; or `spec` is no loss.
        SpecValueError: the function cannot be imported; or an argument has another value, or the
            spec no case.
        MissingBackendError: the backend is not installed.
    """
    start = time.monotonic()
    spec = from_native(spec)
    target = target_of(backend)
    options: dict[str, Any] = {
        "dtypes": tuple(dtypes),
        "targets": targets,
        "without": tuple(without),
    }
    setting = trial.Setting(OwnFunction.of(function), spec, mode, options)
    # Refuses wrong arguments before a process starts.
    loss_cases(spec, keywords=KEYWORDS, **options)
    report = OwnReport(setting.function, spec, target, mode, unifiedloss=__version__)
    cases: list[Case] = []
    ended = 0
    for each in trial.run(setting, target, seconds=seconds, seconds_in_all=seconds_in_all):
        if isinstance(each, trial.Started):
            report.version, report.differentiates = each.version, each.differentiates
            report.keywords, cases = each.keywords, each.cases
            report.total = len(cases)
            continue
        number, answer = each
        case = cases[number]
        report.judgements.append(judge(case, expected_of(case), answer))
        ended += answer.ended
        if progress is not None:
            said = f"{case.name}: {answer.error}; a new process is needed" if answer.ended else ""
            progress(Progress(target.label, mode, number + 1, len(cases), said))
        if ended == number + 1 == MOST_ENDED:
            report.stopped = f"each of the first {MOST_ENDED} ended its process"
            break
    report.seconds = time.monotonic() - start
    return report


def check_loss_case(function: Callable[..., Any], case: Case, backend: str) -> None:
    """Run a loss function on one case in this process, for a parametrized test.

    Args:
        function: as in `check_loss`; it need not pickle.
        case: one of `loss_cases`.
        backend: as in `check_loss`; for Keras, the one it runs on in this process.

    Raises:
        AssertionError: the function differs from the oracle. The message says how, and holds code
            that reproduces it.
        MissingBackendError: the backend is not installed.
    """
    target = target_of(backend)
    adapter = registry.adapter(target.backend)
    mode = adapter.modes()["eager"]
    answer = trial.answer_of(adapter, mode, function, case)
    found = judge(case, expected_of(case), answer)
    if found.what:
        name = getattr(function, "__qualname__", repr(function))
        said = "\n".join(f"  {each}" for each, _ in found.what)
        rules = ", ".join(found.rules)
        code = of_function(target, f"function = {name}", case, found.expected)
        msg = f"{case.name} ({rules}):\n{said}\n\n{code}"
        raise AssertionError(msg)


def target_of(backend: Any) -> Target:
    """The one target that a name stands for.

    Raises:
        SpecValueError: there is none.
        MissingBackendError: it is not installed.
    """
    if not isinstance(backend, str):
        msg = f"backend must be a name such as 'torch', got {quoted(backend)}."
        raise SpecValueError(msg)
    name = backend
    if name == "keras":
        name = f"keras ({os.environ.get('KERAS_BACKEND', 'tensorflow')})"
    chosen, _ = workers.choose([name])
    return next(target for target in chosen if target.label == name)
