"""Run cases on engines: a call split among processes gives what one process gives.

An engine splits tensors among processes, as torch.distributed does. Its adapter has a module
``engine`` with a function ``started(place)``: a context in which the process belongs to the engine.
The context gives an object with two methods. ``layouts(rank, axis)`` names the ways to split
predictions. ``step(function, inputs, upstream, layout)`` computes a loss and its gradients in one
of them, and returns both as whole tensors, with a list of what is wrong with their placements.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from unifiedloss import registry
from unifiedloss.conformance import checks, processes, tolerances
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases import all_cases
from unifiedloss.conformance.processes import Place
from unifiedloss.reference import Reference


class Failure(NamedTuple):
    """A case that failed.

    Attributes:
        case: its name.
        rounding: "native" or "exact".
        layout: how its predictions were split.
        what: what differed, in a sentence each.
    """

    case: str
    rounding: str
    layout: str
    what: tuple[str, ...]


class Outcome(NamedTuple):
    """What a run on an engine found.

    Attributes:
        comparisons: how many results were compared with the oracle's, in one process.
        failures: the cases that failed in some process.
    """

    comparisons: int
    failures: list[Failure]


Job = tuple[Case, Reference]
"""A case, and the oracle's result."""


def run(backend: str, size: int, cases: Iterable[Case]) -> Outcome:
    """Run cases on the engine of a backend, in several processes on this machine.

    Args:
        backend: whose adapter has the engine.
        size: the number of processes.
        cases: the cases.

    Raises:
        ProcessError: a process died.
    """
    return joined(processes.run(f"{__name__}:work", size, backend, jobs_of(cases)))


def jobs_of(cases: Iterable[Case]) -> list[Job]:
    """The cases with what the oracle expects."""
    return [(case, case.expected()) for case in cases]


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of all processes: each failure once."""
    failures = {failure: None for outcome in outcomes for failure in outcome.failures}
    return Outcome(outcomes[0].comparisons, list(failures))


def cases_of(step: int = 1) -> Iterator[Case]:
    """The cases for engines in both roundings, or every `step`th: those that compiled modes run."""
    able = [case for case in all_cases() if case.compiled and case.made is None]
    for case in able[::step]:
        yield case
        yield case.rounded("exact")


def work(place: Place, backend: str, jobs: Sequence[Job]) -> Outcome:
    """Run cases in a process of an engine."""
    adapter = registry.adapter(backend)
    module = importlib.import_module(f"unifiedloss.adapters.{backend}.engine")
    comparisons, failures = 0, []
    with module.started(place) as engine:
        for case, expected in jobs:
            plan = tolerances.plan_of(case)
            for name, layout in engine.layouts(case.predictions.ndim, plan.axis).items():
                outcome = _check(adapter, engine, layout, case, expected)
                comparisons += outcome.comparisons
                if outcome.failures:
                    what = tuple(outcome.failures)
                    failures.append(Failure(case.name, case.spec.rounding, name, what))
    return Outcome(comparisons, failures)


def _check(
    adapter: Any, engine: Any, layout: Any, case: Case, expected: Reference
) -> checks.CheckResult:
    step = checks.step_of(adapter, case)
    try:
        value, gradients, wrong = engine.step(*step, layout)
        outcome = checks.compare(adapter, case, expected, value, gradients)
    except Exception as error:  # noqa: BLE001 - any error fails this case, and the run goes on
        # All processes raise, because they compute the same; if one raises alone, the run is ended.
        outcome, wrong = checks.CheckResult(), [f"raised {type(error).__name__}: {error}"]
    outcome.failures += wrong
    return outcome
