"""The cases of the whole suite with a rounding, and the oracle's results, once in a process.

The oracle takes most of the time of a check in this process. So the tests of an adapter that call
`check_adapter` several times ask it once for each case.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from unifiedloss.conformance.case import BadCall, Case, SoftmaxCase
from unifiedloss.conformance.cases import all_cases, hard_cases
from unifiedloss.conformance.combine import cut_cases
from unifiedloss.conformance.softmax import softmax_cases

_Checked = TypeVar("_Checked", bound=Case | BadCall | SoftmaxCase)


@cache
def cases_with(rounding: str) -> tuple[Case | SoftmaxCase, ...]:
    """All cases of the suite with this rounding."""
    hard = hard_cases() if rounding == "exact" else ()
    every = (*all_cases(), *hard, *softmax_cases(), *cut_cases())
    chosen = (rounded(case, rounding) for case in every)
    return tuple(case for case in chosen if case is not None)


@cache
def expected_of(case: Case | SoftmaxCase) -> Any:
    """The oracle's result for a case of the suite."""
    return case.expected()


def rounded(case: _Checked, rounding: str) -> _Checked | None:
    """Return the same call with this rounding, or None if it has no exact mode.

    A softmax has none, because it is not a loss.
    """
    if isinstance(case, SoftmaxCase):
        return case if rounding == "native" else None
    return replace(case, spec=case.spec.replace(rounding=rounding))
