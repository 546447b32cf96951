"""Compiles several cases as one program, since most of a compiled mode's time is the compiler's.

A program of 16 cases takes well less time than 16 programs, and gives the same bits. Where a group does not compile, or where
something in it differs, its cases run one by one: so a failure has a case, and a snippet that shows it.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import checks
from unifiedloss.conformance.cases import Case, SoftmaxCase

SIZE = 16
"""The most cases in a program."""

Checked = tuple[Case | SoftmaxCase, Any]
"""A case, and what the oracle says of it."""


def is_grouped(adapter: Adapter, mode: Mode) -> bool:
    """Whether a mode's cases are compiled together: an eager mode, which can raise, compiles none."""
    return adapter.differentiates and not mode.raises


def split(cases: Sequence[Checked]) -> list[list[Checked]]:
    """The cases in groups of at most `SIZE`, by a hash of their names: another case changes its own group alone.

    A group has one dtype of predictions, because an adapter may set its framework up for a dtype.
    """
    apart: dict[str, list[Checked]] = defaultdict(list)
    for case, expected in cases:
        apart[case.dtype].append((case, expected))
    return [group for same in apart.values() for group in _halved(same, 0)]


def _halved(cases: list[Checked], bit: int) -> Iterator[list[Checked]]:
    """Halves by one bit of the hash after the other, until they are small enough."""
    if len(cases) <= SIZE or bit == 32:
        yield cases
        return
    halves: tuple[list[Checked], list[Checked]] = ([], [])
    for checked in cases:
        halves[zlib.crc32(checked[0].name.encode()) >> bit & 1].append(checked)
    for half in halves:
        if half:
            yield from _halved(half, bit + 1)


def check(adapter: Adapter, mode: Mode, group: Sequence[Checked]) -> list[checks.CheckResult]:
    """Check a group's cases in one program, or one by one where that fails.

    Args:
        adapter: the backend's adapter.
        mode: one of its modes.
        group: the cases.

    Returns:
        What came of each case, in their order.
    """
    if len(group) == 1:
        return _one_by_one(adapter, mode, group)
    try:
        results = _evaluate(adapter, mode, [case for case, _ in group])
        together = [
            checks.compare(adapter, case, expected, *result)
            for (case, expected), result in zip(group, results, strict=True)
        ]
    except Exception:  # noqa: BLE001 - which case it is that fails, they show one by one
        return _one_by_one(adapter, mode, group)
    if not any(outcome.failures for outcome in together):
        return together
    alone = _one_by_one(adapter, mode, group)
    if not any(outcome.failures for outcome in alone):
        # Right alone and wrong in company is wrong, too: a training step is one program with much else in it.
        names = ", ".join(repr(case.name) for case, _ in group)
        for outcome, found in zip(alone, together, strict=True):
            for what in found.failures:
                outcome.fail(f"{what}; not alone, only in one program with {names}")
    return alone


def _one_by_one(adapter: Adapter, mode: Mode, group: Sequence[Checked]) -> list[checks.CheckResult]:
    return [checks.check_case(adapter, mode, case, expected) for case, expected in group]


def _evaluate(
    adapter: Adapter, mode: Mode, cases: Sequence[Case | SoftmaxCase]
) -> list[tuple[Any, dict[str, Any]]]:
    """Each case's loss or softmax, and its gradients by the name of the argument."""
    steps = [checks.step_of(adapter, case) for case in cases]
    tensors = [x for step in steps for x in step.inputs.values()]

    def apart(flat: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Each step's own part of what belongs to all inputs."""
        rest = iter(flat)
        return [tuple(next(rest) for _ in step.inputs) for step in steps]

    if mode.whole_step:
        results = mode.run(
            lambda *xs: [
                adapter.differentiate(step.function, own, step.upstream)
                for step, own in zip(steps, apart(xs), strict=True)
            ],
            *tensors,
        )
    else:
        results = _through(adapter, mode, steps, tensors, apart)
    return [
        (value, dict(zip(step.inputs, found, strict=True)))
        for step, (value, found) in zip(steps, results, strict=True)
    ]


def _through(
    adapter: Adapter, mode: Mode, steps: Sequence[checks.Step], tensors: Sequence[Any], apart: Any
) -> list[tuple[Any, tuple[Any, ...]]]:
    """The losses, and the gradients through the compiled losses.

    Their sum is what is differentiated, each times its upstream gradient, so that this is the gradient each of them gets.
    """
    values: list[Any] = []

    def losses(*xs: Any) -> list[Any]:
        return [step.function(*own) for step, own in zip(steps, apart(xs), strict=True)]

    def total(*xs: Any) -> Any:
        values.extend(mode.run(losses, *xs))
        return sum(
            adapter.ops.sum(value if step.upstream is None else value * step.upstream)
            for value, step in zip(values, steps, strict=True)
        )

    _, gradients = adapter.differentiate(total, tuple(tensors), None)
    return list(zip(values, apart(gradients), strict=True))
