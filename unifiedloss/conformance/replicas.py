"""Run cases on engines that call a function in several replicas, each with a part of the rows.

So do `jax.shard_map`, `jax.pmap` and `tf.distribute.Strategy.run`. A replica computes the loss and
the gradient of its rows for the divisor of all, and its totals. Both must be those of the whole
call: compared with the oracle as a case in one piece is, in native mode within the bound, in exact
mode bit by bit. `unifiedloss.conformance.engines` runs cases on engines that split the tensors of
one call.

The module ``engine`` of an adapter has a function ``replicas(count)``: for each way to run that
many replicas in this process, by name, a function. ``run(body, arrays)`` calls
``body(add_up, *parts)`` in each replica, with its rows of the arrays (None stays None), and a
function that adds up a tensor over the replicas. The body returns tensors that all replicas have,
and last one that has its rows. `run` returns all of them as whole NumPy arrays, and a list of what
is wrong with their placements.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import registry
from unifiedloss.conformance import checks, tolerances
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.combine import cut_cases

_COPIES = 3
"""How often a row is repeated, so that 2, 3 and 4 replicas can share four rows."""

_FEW = ("a piece of weight 0", "a piece of padding", "weights of many digits")
"""The cases in which the parts differ most."""

AddUp = Callable[[Any], Any]
"""Adds up a tensor over the replicas."""

Step = Callable[..., tuple[Any, Any, Any]]
"""What a replica computes: ``step(adapter, spec, add_up, *tensors)`` returns the loss of the
totals, the sum of the losses, and the gradient of its rows."""


class Outcome(NamedTuple):
    """What a run found.

    Attributes:
        comparisons: how many results were compared with the oracle's.
        failures: what differed, by the names of the case, its rounding and the way.
    """

    comparisons: int
    failures: dict[tuple[str, str, str], list[str]]


def cases(*, every: bool) -> list[Case]:
    """The cases in both roundings: those of the group "combine" that have four rows.

    Args:
        every: whether to take all, and not only `_FEW`.
    """
    return [
        _repeated(case).rounded(rounding)
        for rounding in ("native", "exact")
        for case in cut_cases()
        if case.kind == "cut"
        and len(case.predictions) == 4
        and case.upstream is None
        and (every or case.name.endswith(_FEW))
        and case.cuts != (1, 3)  # other cuts of rows that another case has
        and not case.is_wide()
    ]


def _repeated(case: Case) -> Case:
    """A case in which each row stands several times."""

    def longer(x: Any) -> Any:
        return None if x is None else np.repeat(x, _COPIES, axis=0)

    targets = case.targets
    return Case(
        case.name,
        case.spec,
        longer(case.predictions),
        longer(targets.astype(np.int32) if targets.dtype.kind == "i" else targets),
        longer(case.sample_weight),
        longer(case.mask),
        rules=case.rules,
    )


def work(backend: str, count: int, chosen: Sequence[Case], step: Step | None = None) -> Outcome:
    """Run cases in as many replicas of this process.

    Args:
        backend: whose adapter has the engine.
        count: the number of replicas.
        chosen: the cases.
        step: what a replica computes; None for what it has to compute.
    """
    adapter = registry.adapter(backend)
    engine = importlib.import_module(f"unifiedloss.adapters.{backend}.engine")
    comparisons = 0
    failures: dict[tuple[str, str, str], list[str]] = {}
    for way, run in engine.replicas(count).items():
        for case in chosen:
            outcome = _check(adapter, run, case, step or right)
            comparisons += outcome.comparisons
            if outcome.failures:
                failures[case.name, case.spec.rounding, way] = outcome.failures
    return Outcome(comparisons, failures)


def right(adapter: Any, spec: Any, add_up: AddUp, *tensors: Any) -> tuple[Any, Any, Any]:
    """What a replica has to compute; see `Step`."""
    predictions, *rest = tensors
    divisor = None
    if spec.reduction == "mean":
        divisor = add_up(adapter.divisor_of(spec, *rest, predictions.dtype))
    value, gradient = adapter.value_and_grad(spec, *tensors, None, divisor)
    loss = adapter.result(spec, add_up(adapter.totals(spec, *tensors)))
    return loss, add_up(value), gradient


def _check(adapter: Any, run: Any, case: Case, step: Step) -> checks.CheckResult:
    outcome = checks.CheckResult()
    spec = case.spec

    def body(add_up: AddUp, *parts: Any) -> tuple[Any, Any, Any]:
        return step(adapter, spec, add_up, *parts)

    arrays = [case.predictions, case.targets, case.sample_weight, case.mask]
    try:
        *losses, gradient, wrong = run(body, arrays)
        expected = case.expected()
        result, total = (x.astype(tolerances.plan_of(case).result_dtype) for x in losses)
        slopes = {"predictions": adapter.tensor(gradient)}
        found = [checks.compare(adapter, case, expected, adapter.tensor(result), slopes)]
        # Each replica's loss is rounded, so their sum has no promised bits.
        native = replace(case, spec=spec.replace(rounding="native"))
        found.append(checks.compare(adapter, native, expected, adapter.tensor(total), {}))
    except Exception as error:  # noqa: BLE001 - any error fails this case, and the run goes on
        outcome.fail(f"raised {type(error).__name__}: {error}")
        return outcome
    for each in found:
        outcome.comparisons += each.comparisons
        outcome.failures += each.failures
    outcome.failures += wrong
    return outcome
