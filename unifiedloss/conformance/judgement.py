"""Compare what somebody's loss function gave on a case with the oracle, and count rule by rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unifiedloss.conformance import checks, tolerances
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.trial import Answer, Result
from unifiedloss.errors import EmptyMeanError
from unifiedloss.reference import Reference
from unifiedloss.spec import Categorical

_OWN_RULES = {" has dtype ": "result-dtype", ", below 0": "never-negative"}
"""Differences that are of one rule, whatever the case proves, by words of their descriptions."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """How a function's answer to a case differs from the oracle's.

    Attributes:
        case: the case.
        answer: what the function gave.
        expected: the oracle's result; None if the spec demands an error (``on_empty="error"``).
        what: what differs, each with the rules that it counts for.
        value_differs: whether the loss differs, or there is none.
        gradient_differs: whether the gradient differs, or there is none.
        value_ulps: the distance of the loss, in ulps of its magnitude (see `tolerances`); infinite
            where one of the two is no finite number and the other is another.
        gradient_ulps: the same for the gradient.
    """

    case: Case
    answer: Answer
    expected: Reference | None
    what: tuple[tuple[str, tuple[str, ...]], ...] = ()
    value_differs: bool = False
    gradient_differs: bool = False
    value_ulps: float = 0.0
    gradient_ulps: float = 0.0

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules in which the function differs on this case."""
        return tuple(dict.fromkeys(rule for _, rules in self.what for rule in rules))


class _Arrays:
    """The two methods of an adapter that a comparison calls, for `_Typed` arrays."""

    @staticmethod
    def dtype_name(dtype: str) -> str:
        return dtype

    @staticmethod
    def to_numpy(x: _Typed) -> Any:
        return x.array


@dataclass(frozen=True, eq=False)
class _Typed:
    array: Any
    dtype: str


def _typed(result: Result) -> _Typed:
    # -0.0 + 0.0 is 0.0, because nobody promises the sign of zero for somebody else's loss.
    return _Typed(result.array + 0.0, result.dtype)


def expected_of(case: Case) -> Reference | None:
    """The oracle's result; None if the spec demands an error for the mean of nothing."""
    try:
        return case.expected()
    except EmptyMeanError:
        return None


def judge(case: Case, expected: Reference | None, answer: Answer) -> Judgement:
    """Compare an answer with the oracle's result.

    For a bad value, such as a label out of range, an exception is right, and so is NaN. The sign
    of zero is not compared.
    """
    refuses = expected is None or bool(expected.bad_positions)
    rules = case.rules
    if refuses:
        rules = ("on-empty",) if expected is None else _bad(case)
    if answer.value is None:
        if refuses and answer.raised:
            return Judgement(case, answer, expected)
        missing = ((str(answer.error), rules),)
        return Judgement(case, answer, expected, missing, value_differs=True, gradient_differs=True)
    if expected is None:
        if np.isnan(answer.value.array).any():
            return Judgement(case, answer, expected)
        said = f"loss is {answer.value.array.tolist()!r}, should be an error or NaN"
        return Judgement(case, answer, expected, ((said, rules),), value_differs=True)
    value = _typed(answer.value)
    value_found = _compared(case, expected, value, None)
    what = [(said, _rules_of(said, rules)) for said in value_found.failures]
    gradient_found = checks.CheckResult()
    if not refuses and answer.gradient_error is not None:
        what.append((f"the gradient {answer.gradient_error}", rules))
    elif not refuses and answer.gradient is not None:
        gradient_found = _compared(case, expected, value, _typed(answer.gradient))
        del gradient_found.failures[: len(value_found.failures)]
        what += [(said, _rules_of(said, rules)) for said in gradient_found.failures]
    no_gradient = not refuses and answer.gradient_error is not None
    return Judgement(
        case,
        answer,
        expected,
        tuple(what),
        value_differs=bool(value_found.failures),
        gradient_differs=bool(gradient_found.failures) or no_gradient,
        value_ulps=_distance(value_found.failures, value_found.value_distance),
        gradient_ulps=_distance(gradient_found.failures, gradient_found.gradient_distance),
    )


def _bad(case: Case) -> tuple[str, ...]:
    """The rules about bad values that a case with one proves."""
    named = tuple(x for x in case.rules if x.startswith("bad-") or x == "negative-weights")
    if named or not (isinstance(case.spec, Categorical) and case.targets.dtype.kind in "iu"):
        return named or ("bad-values",)
    labels = case.targets[tolerances.kept(case, plan := tolerances.plan_of(case))]
    valid = ((labels >= 0) & (labels < (plan.classes or 0))).all()
    return ("bad-values",) if valid else ("bad-label", "bad-values")


def _compared(
    case: Case, expected: Reference, value: _Typed, gradient: _Typed | None
) -> checks.CheckResult:
    gradients: Mapping[str, Any] = {} if gradient is None else {"predictions": gradient}
    arrays: Any = _Arrays()
    with np.errstate(all="ignore"):
        return checks.compare(arrays, case, expected, value, gradients)


def _rules_of(said: str, rules: tuple[str, ...]) -> tuple[str, ...]:
    return next(((rule,) for words, rule in _OWN_RULES.items() if words in said), rules)


def _distance(failures: Iterable[str], distance: float) -> float:
    """The distance; infinite if a failure is one that no distance measures."""
    measured = ("ulps of its magnitude", "not correctly rounded", *_OWN_RULES)
    known = all(any(words in said for words in measured) for said in failures)
    return distance if known else math.inf


@dataclass
class RuleCount:
    """How often a function differs in the cases of one rule.

    Attributes:
        rule: its id on the page Rules.
        cases: the number of cases that prove it.
        differ: in how many of them the function differs.
        value_differs: in how many the loss differs, or there is none.
        gradient_differs: in how many the gradient differs, or there is none.
        value_ulps: the largest distance of a loss.
        gradient_ulps: the largest distance of a gradient's element.
        first: the first case that differs; None if none does.
    """

    rule: str
    cases: int = 0
    differ: int = 0
    value_differs: int = 0
    gradient_differs: int = 0
    value_ulps: float = 0.0
    gradient_ulps: float = 0.0
    first: str | None = None


def by_rule(judgements: Iterable[Judgement]) -> list[RuleCount]:
    """Count each rule: first those in which the largest part of the cases differs."""
    counts: dict[str, RuleCount] = {}
    for judgement in judgements:
        differing = judgement.rules
        for rule in dict.fromkeys((*judgement.case.rules, *differing)):
            count = counts.setdefault(rule, RuleCount(rule))
            count.cases += 1
            count.value_ulps = max(count.value_ulps, judgement.value_ulps)
            count.gradient_ulps = max(count.gradient_ulps, judgement.gradient_ulps)
            if rule in differing:
                count.differ += 1
                count.value_differs += judgement.value_differs
                count.gradient_differs += judgement.gradient_differs
                count.first = count.first or judgement.case.name
    return sorted(counts.values(), key=lambda x: (-x.differ / x.cases, -x.differ, x.rule))
