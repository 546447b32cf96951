"""All conformance cases: those of the losses, and which of them compiled modes run.

Each loss has its cases in the module `cases` of its folder, as a `LossCases` named `CASES`. It must
have `bad_calls`, the calls that fail with the same message in every backend. It should have
`edge_cases`, chosen by hand, of which compiled modes run every fourth, and `product_cases`, all
fields reduced so that each pair of values occurs. `LossCases` describes the other parts; `product`
makes products of fields, and `data` has small tensors. Nothing here names a loss, so a new loss
needs no edit in this folder.

Each case names the rules of the page Rules that it proves, by their ids: `case.proving` makes
edge cases of a rule, and `case.refused` bad calls. Cases of products and with random data derive
them from their fields; the id of a field's rule is its name with dashes.

Reports and golden files refer to cases by their names, so a name never changes, and neither does
the order of a loss's edge cases: a new one goes to the end of its function. Old names begin with a
number ("07 negative label, none") that has no meaning any more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from unifiedloss.conformance.case import BadCall, Case, LossCases, rules_of
from unifiedloss.conformance.fused import fused_cases
from unifiedloss.losses import ROWS, part

# To compile a case takes up to a thousand times as long as to run it. The variants of one rule are
# neighbours in the list of edge cases, so every fourth case covers each rule. Of a product, only as
# few cases are compiled as cover every value of every field.
_EVERY_EDGE = 4
_EVERY_REPRESENTATIVE = 12


def _traits(case: Case) -> set[tuple[str, Any]]:
    """The traits of a case: the value of each field, shapes, dtypes, and which inputs it has."""
    traits: dict[str, Any] = {name: getattr(case.spec, name) for name in case.spec.declarations}
    # Weights are random, so only their kind is a trait. Labels are tuples too, but of ints.
    for name, values in traits.items():
        if isinstance(values, tuple) and not all(isinstance(x, int) for x in values):
            traits[name] = "with zero" if 0 in values else "given"
    traits |= {
        "shape": case.predictions.shape,
        "dtype": case.dtype,
        "target_dtype": case.targets.dtype.name,
    }
    if case.sample_weight is not None:
        traits |= {"weight": case.sample_weight.ndim, "some weigh": bool(case.sample_weight.any())}
        traits["zero weight"] = bool((case.sample_weight == 0).any())
    if case.mask is not None:
        traits |= {"mask": case.mask.ndim, "some kept": bool(case.mask.any())}
    traits |= {"weighted": case.sample_weight is not None, "masked": case.mask is not None}
    traits["upstream"] = case.upstream is not None
    return set(traits.items())


def _cover(cases: Sequence[Case]) -> list[Case]:
    """A few cases that together have all traits of the given ones (greedy)."""
    missing = set[tuple[str, Any]]().union(*map(_traits, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(_traits(case) & missing))
        missing -= _traits(best)
        chosen.append(best)
    return chosen


def _loss_cases() -> list[LossCases]:
    return [part(row.name, "cases").CASES for row in ROWS]


def bad_calls() -> Iterator[BadCall]:
    """Calls of a loss that must raise the same error in every backend."""
    for loss in _loss_cases():
        yield from loss.bad_calls()


@cache
def all_cases() -> tuple[Case, ...]:
    """All cases, loss by loss, in a fixed order; compiled and representative ones are marked."""
    cases = tuple(case for loss in _loss_cases() for case in _marked(loss))
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases share a name"
    return cases


def cases_of(loss: str) -> list[Case]:
    """The cases of one loss, as they are in `all_cases`."""
    return list(_marked(part(loss, "cases").CASES))


def hard_cases() -> Iterator[Case]:
    """The cases that are hard to round correctly; their names begin with "hard/"."""
    for loss in _loss_cases():
        yield from loss.hard_cases()


def _marked(loss: LossCases) -> Iterable[Case]:
    """The cases of a loss, with the modes they run in. Other losses have no part in the choice."""
    edges, products = list(loss.edge_cases()), list(loss.product_cases())
    by_hand, rules = list(loss.marked_cases()), list(loss.rule_cases())
    at_random = list(loss.random_cases())
    chosen = edges[::_EVERY_EDGE]
    for _, group in itertools.groupby(products, key=lambda case: case.name.rpartition(" ")[0]):
        chosen += _cover(list(group))
    representative = {case.name for case in chosen[::_EVERY_REPRESENTATIVE]}
    representative |= {case.name for case in by_hand if case.representative}
    chosen += [case for case in by_hand if case.compiled] + rules[::_EVERY_EDGE]
    compiled = {case.name for case in chosen}
    of_backend = {case.name for case in edges[::_EVERY_EDGE][1::2]} - representative
    not_compiled = [case for case in (*products, *at_random) if case.name not in compiled]
    of_backend |= {case.name for case in not_compiled[1::2]}
    for case in (*edges, *by_hand, *rules, *products, *at_random):
        yield dataclasses.replace(
            case,
            compiled=case.name in compiled,
            representative=case.name in representative,
            of_backend=case.name in of_backend,
            rules=case.rules or rules_of(case),
        )
    yield from fused_cases(loss.fusible())
