"""Find the one field of a spec whose other value explains how somebody's loss function differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from unifiedloss.conformance.judgement import Judgement, expected_of, judge
from unifiedloss.errors import UnifiedLossError
from unifiedloss.spec import Loss

_TRIED = 24
"""Cases of each kind, differing and not, on which a value is tried; evenly spread."""

_OTHERS: dict[str, tuple[Any, ...]] = {
    "reduction": ("mean", "sum", "none"),
    "divisor": ("weights", "label_weights", "present", "nonzero", "all"),
    "from_logits": (False, True),
    "ignore_index": (None, (-100,), (0,)),
    "epsilon": (0.0, "keras", "torch", "sklearn"),
    "class_weighting": ("entries", "position"),
    "average_last_axis": (False, True),
    "renormalize": (None, "before_clip", "after_clip"),
}
"""Values that a loss may have in place of the field's; of other fields, the default."""


class Explanation(NamedTuple):
    """A field with another value under which a function differs less.

    Attributes:
        field: its name.
        value: the other value.
        explained: of the differing cases tried, those that fit with the other value.
        tried: the number of differing cases tried.
    """

    field: str
    value: Any
    explained: int
    tried: int


def explanations(spec: Loss, judgements: Sequence[Judgement]) -> list[Explanation]:
    """The changes of one field with which the function fits more cases, the best first.

    A change counts if it explains at least half of the differing cases in which the function gave
    a loss or raised an error, and if the cases that fit go on to fit. Where one explains all, those
    that explain less are left out.
    """
    answered = [
        x
        for x in judgements
        if x.expected is not None and (x.answer.value is not None or x.answer.raised)
    ]
    differing = _spread([x for x in answered if x.value_differs or x.gradient_differs])
    fitting = _spread([x for x in answered if not x.what])
    found = []
    for field, value in _changes(spec):
        try:
            changed = spec.replace(**{field: value})
        except UnifiedLossError:
            continue
        explained = sum(_fits(changed, x) for x in differing)
        if 2 * explained >= max(len(differing), 1) and all(_fits(changed, x) for x in fitting):
            found.append(Explanation(field, value, explained, len(differing)))
    found.sort(key=lambda x: -x.explained)
    complete = [x for x in found if x.explained == x.tried]
    return complete or found


def _spread(judgements: list[Judgement]) -> list[Judgement]:
    return judgements[:: max(1, -(-len(judgements) // _TRIED))]


def _changes(spec: Loss) -> Iterator[tuple[str, Any]]:
    for name, field in spec.declarations.items():
        if name == "rounding":
            continue
        now = getattr(spec, name)
        for value in dict.fromkeys((field.default, *_OTHERS.get(name, ()))):
            if value != now:
                yield name, value
    # Half of the square, or twice the half.
    scale: float | None = getattr(spec, "scale", None)
    if scale is not None:
        yield from (("scale", factor * scale) for factor in (0.5, 2.0, -1.0))


def _fits(spec: Loss, judgement: Judgement) -> bool:
    case = dataclasses.replace(judgement.case, spec=spec)
    if case.upstream is not None and spec.reduction != judgement.case.spec.reduction == "none":
        return False  # the gradient that was computed has one upstream gradient for each position
    if spec.reduction == "none" and isinstance(case.upstream, float):
        return False
    try:
        found = judge(case, expected_of(case), judgement.answer)
    except UnifiedLossError:  # the other spec does not accept these shapes
        return False
    return not (found.value_differs or found.gradient_differs)
