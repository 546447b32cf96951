"""Compile several cases as one program, because a compiled mode spends most of its time compiling.

One program of 16 cases takes much less time than 16 programs, and gives the same bits. If a group
does not compile or any of its results differs, its cases run one by one. So each failure belongs to
one case, and has a snippet that reproduces it.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import checks
from unifiedloss.conformance.case import BadCall, Case, SoftmaxCase

SIZE = 16
"""Largest number of cases in a program."""

Checked = tuple[Case | SoftmaxCase, Any]
"""A case and the oracle's result."""

Call = BadCall | SoftmaxCase
"""A call that must fail."""


def is_grouped(adapter: Adapter, mode: Mode) -> bool:
    """Whether a mode's cases are compiled together; an eager mode compiles none."""
    return adapter.differentiates and not mode.raises


def split(cases: Sequence[Checked]) -> list[list[Checked]]:
    """Split the cases into groups of at most `SIZE` by a hash of their names.

    So a new case changes only its own group. A group has one dtype of predictions, because an
    adapter may configure its framework for a dtype.
    """
    by_dtype: dict[str, list[Checked]] = defaultdict(list)
    for case, expected in cases:
        by_dtype[case.dtype].append((case, expected))
    return [group for same in by_dtype.values() for group in _halve(same, 0)]


def _halve(cases: list[Checked], bit: int) -> Iterator[list[Checked]]:
    """Halve the cases by one bit of the hash after another, until each part is small enough."""
    if len(cases) <= SIZE or bit == 32:
        yield cases
        return
    halves: tuple[list[Checked], list[Checked]] = ([], [])
    for checked in cases:
        halves[zlib.crc32(checked[0].name.encode()) >> bit & 1].append(checked)
    for half in halves:
        if half:
            yield from _halve(half, bit + 1)


def check(adapter: Adapter, mode: Mode, group: Sequence[Checked]) -> list[checks.CheckResult]:
    """Check a group's cases in one program, or one by one if that fails.

    Args:
        adapter: the backend's adapter.
        mode: one of its modes.
        group: the cases.

    Returns:
        The outcome of each case, in the group's order.
    """
    if len(group) == 1:
        return _one_by_one(adapter, mode, group)
    try:
        cases = [case for case, _ in group]
        results = _evaluate(adapter, mode, cases)
        alone = iter(checks.alone_of(adapter, mode, cases))
        together = []
        for (case, expected), result in zip(group, results, strict=True):
            loss = next(alone, None) if checks.is_made(case) else None
            together.append(checks.compare(adapter, case, expected, *result, loss))
    except Exception:  # noqa: BLE001 - running one by one shows which case fails
        return _one_by_one(adapter, mode, group)
    return _settled(together, lambda: _one_by_one(adapter, mode, group), cases)


def split_calls(mode: Mode, calls: Sequence[Call]) -> list[list[Call]]:
    """Split calls that must fail into groups: those that must give NaN here as `split` does cases.

    An error ends a program, so each of the other calls is alone.
    """
    by_dtype: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if checks.must_be_nan(call, mode):
            by_dtype[call.predictions.dtype.name].append(call)
    return [
        *([call] for call in calls if not checks.must_be_nan(call, mode)),
        *(same[i : i + SIZE] for same in by_dtype.values() for i in range(0, len(same), SIZE)),
    ]


def check_calls(adapter: Adapter, mode: Mode, calls: Sequence[Call]) -> list[checks.CheckResult]:
    """Check a group of `split_calls` in one program, or one by one if that fails."""

    def one_by_one() -> list[checks.CheckResult]:
        return [checks.check_bad_call(adapter, mode, call) for call in calls]

    if len(calls) == 1:
        return one_by_one()
    try:
        together = checks.check_bad_values(adapter, mode, calls)
    except Exception:  # noqa: BLE001 - as in `check`
        return one_by_one()
    return _settled(together, one_by_one, calls)


def _settled(
    together: list[checks.CheckResult],
    one_by_one: Callable[[], list[checks.CheckResult]],
    group: Sequence[Case | Call],
) -> list[checks.CheckResult]:
    """The outcomes of a group; if any of them is a failure, those of its members alone."""
    if not any(outcome.failures for outcome in together):
        return together
    separate = one_by_one()
    if not any(outcome.failures for outcome in separate):
        # A case that fails only together with others is a failure, too, because a training step
        # compiles a loss together with much else.
        names = ", ".join(repr(member.name) for member in group)
        for outcome, grouped in zip(separate, together, strict=True):
            for what in grouped.failures:
                outcome.fail(
                    f"{what}; the case passes alone, and fails only in one program with {names}"
                )
    return separate


def _one_by_one(adapter: Adapter, mode: Mode, group: Sequence[Checked]) -> list[checks.CheckResult]:
    return [checks.check_case(adapter, mode, case, expected) for case, expected in group]


def _evaluate(
    adapter: Adapter, mode: Mode, cases: Sequence[Case | SoftmaxCase]
) -> list[tuple[Any, dict[str, Any]]]:
    """Compute each case's loss or softmax, and its gradients by the argument's name."""
    steps = [checks.step_of(adapter, case) for case in cases]
    tensors = [x for step in steps for x in step.inputs.values()]

    def by_step(flat: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Split a sequence with one entry per input into each step's part."""
        rest = iter(flat)
        return [tuple(next(rest) for _ in step.inputs) for step in steps]

    def differentiate(*xs: Any) -> list[Any]:
        return [
            adapter.differentiate(step.function, inputs, step.upstream)
            for step, inputs in zip(steps, by_step(xs), strict=True)
        ]

    if mode.whole_step:
        results = mode.run(differentiate, *tensors)
    else:
        results = _differentiate_compiled(adapter, mode, steps, tensors, by_step)
    return [
        (value, dict(zip(step.inputs, gradients, strict=True)))
        for step, (value, gradients) in zip(steps, results, strict=True)
    ]


def _differentiate_compiled(
    adapter: Adapter, mode: Mode, steps: Sequence[checks.Step], tensors: Sequence[Any], by_step: Any
) -> list[tuple[Any, tuple[Any, ...]]]:
    """Compile only the losses, and take the gradients through the compiled function.

    The sum of the losses is differentiated, each times its upstream gradient, so that each loss
    receives exactly that upstream gradient.
    """
    values: list[Any] = []

    def losses(*xs: Any) -> list[Any]:
        return [step.function(*inputs) for step, inputs in zip(steps, by_step(xs), strict=True)]

    def total(*xs: Any) -> Any:
        values.extend(mode.run(losses, *xs))
        return sum(
            adapter.ops.sum(value if step.upstream is None else value * step.upstream)
            for value, step in zip(values, steps, strict=True)
        )

    _, gradients = adapter.differentiate(total, tuple(tensors), None)
    return list(zip(values, by_step(gradients), strict=True))
