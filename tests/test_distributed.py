"""torch.distributed: DTensors, DDP and FSDP2 give what one process gives, and faults are found.

The processes run functions of tests/distributed_jobs.py, which say what is checked.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from unifiedloss.conformance import engines, processes
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.engines import Outcome

pytestmark = pytest.mark.framework("torch")

JOBS = "tests.distributed_jobs"
# As tests/distributed_jobs.py has them, which imports torch.
MISTAKES = ("mean of means", "missing world size", "divided twice")

_STEP = 8
"""Every so many of the cases run in `make test`."""


@cache
def _of_classes() -> list[Case]:
    """Some cases of logits and a class axis."""
    able = [
        case
        for case in engines.cases_of()
        if case.spec.name == "cross_entropy"
        and case.spec.rounding == "native"
        and getattr(case.spec, "from_logits", False)
    ]
    return able[::6]


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """What two processes found."""
    cases, of_classes = (engines.jobs_of(x) for x in (engines.cases_of(_STEP), _of_classes()))
    results: list[dict[str, Any]] = processes.run(f"{JOBS}:everything", 2, cases, of_classes)
    return results


def test_cases_give_what_one_process_gives(found: Any) -> None:
    """Loss, gradients and placements, split by rows and by classes."""
    outcome = engines.joined([each["cases"] for each in found])
    assert outcome.failures == []
    assert outcome.comparisons > 150


@pytest.mark.slow("every eighth case, in two processes")
@pytest.mark.parametrize(("size", "step"), [(2, 1), (3, 3), (4, 3)])
def test_more_cases_give_what_one_process_gives(size: int, step: int) -> None:
    """Three processes have uneven parts, and four are meshes of two axes too."""
    outcome = engines.run("torch", size, engines.cases_of(step))
    assert outcome.failures == []
    assert outcome.comparisons > 600


@pytest.mark.slow("two processes")
@pytest.mark.parametrize("size", [3, 4])
def test_calls_in_more_processes(size: int) -> None:
    """What tests/distributed_jobs.py says about calls holds in more than two processes."""
    assert processes.run(f"{JOBS}:check", size) == [None] * size


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_training_steps_equal_those_of_one_process(kind: str, found: Any) -> None:
    """Gradients within the bound, losses and gradients of exact mode to the bit."""
    assert [each["train"][kind] for each in found] == [[], []]


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_training_steps_are_found(kind: str, mistake: str, found: Any) -> None:
    """The comparison of steps fails for each mistake, at the first step and for each parameter."""
    for each in found:
        wrong = each["train"][f"{kind} {mistake}"]
        assert len([what for what in wrong if "step 0: the gradient" in what]) == 4


@pytest.mark.slow("two processes")
@pytest.mark.parametrize("size", [3, 4])
def test_training_steps_of_more_processes(size: int) -> None:
    """DDP and FSDP2 are right, and each mistake is found."""
    for each in processes.run(f"{JOBS}:train", size):
        assert [name for name, wrong in each.items() if not wrong] == ["DDP", "FSDP2"]


def test_a_dropped_maximum_is_found(found: Any) -> None:
    """Each process keeps the largest logit of its own classes: the sums do not belong together."""
    failed = _failed(engines.joined([each["without_max"] for each in found]))
    assert len(failed) > len(_of_classes()) / 2


def test_smoothing_by_local_classes_is_found(found: Any) -> None:
    """The cases with smoothing fail, and no others."""
    failed = _failed(engines.joined([each["local_classes"] for each in found]))
    smoothed = {case.name for case in _of_classes() if getattr(case.spec, "label_smoothing", 0.0)}
    assert failed
    assert failed <= smoothed


def _failed(outcome: Outcome) -> set[str]:
    """The cases that failed where the classes are split, after a check that no others did."""
    assert {failure.layout for failure in outcome.failures} == {"classes"}
    return {failure.case for failure in outcome.failures}
