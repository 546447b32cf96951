"""Say in which rules two losses differ, each with the smallest input that shows it.

A rule is a field of the specs, or one that no spec can say (`unifiedloss.switching.quirks`). For a field, inputs are tried from the
smallest on until one *isolates* it: the two losses differ there, and would not if this one field were the same. What is shown are the
numbers of the losses themselves where their libraries are installed. Where several fields always act together no input isolates one, and
the first loss is compared with itself, that field changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np

from unifiedloss.errors import MissingBackendError, SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.spec import AnyLoss, Categorical
from unifiedloss.switching import spec_of
from unifiedloss.switching.inputs import Layout, inputs, layouts, weights_of
from unifiedloss.switching.quirk import Quirk
from unifiedloss.switching.quirks import QUIRKS
from unifiedloss.switching.refusals import Refusal, refusal_of
from unifiedloss.switching.sentences import TITLES, sentence
from unifiedloss.switching.sides import (
    Input,
    Outcome,
    Side,
    run_spec,
    same,
    settings_of,
    shown,
    side_of,
)

INPUT_FIELDS = ("from_logits", "epsilon", "epsilon_added", "renormalize")
"""What makes probabilities of predictions. Where one of these contradicts the others of the other loss, they are changed together."""


@dataclass(frozen=True, eq=False)
class Example:
    """An input, and what two losses make of it.

    Attributes:
        input: the tensors.
        a: what the first loss makes of it.
        b: what the second makes of it.
        alone: None, or what stands for the second loss: the first one, this field changed.
    """

    input: Input
    a: Outcome
    b: Outcome
    alone: str | None = None

    @property
    def gradients(self) -> bool:
        """Whether the gradients are what differs, or differ as well."""
        return self.a.gradient is not None and self.b.gradient is not None and (
            same(self.a, self.b, gradients=False) or not same(self.a, self.b)
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Difference:
    """One rule in which two losses differ.

    Attributes:
        rule: the name of the field of a spec, or of a rule that no spec can say.
        a: what the first loss does, in a sentence.
        b: what the second does.
        example: the smallest input found that shows it; None where none did, or the libraries are not installed.
        note: what else is to be said.
    """

    rule: str
    a: str
    b: str
    example: Example | None = None
    note: str | None = None

    def __str__(self) -> str:
        lines = [self.rule, f"  a: {self.a}", f"  b: {self.b}"]
        if self.example is not None:
            x = self.example
            lines.append(f"  for {x.input}:")
            lines.append(f"  a gives {_told(x.a)}")
            lines.append(f"  {'b' if x.alone is None else x.alone} gives {_told(x.b)}")
            if x.gradients and x.a.gradient is not None and x.b.gradient is not None:
                lines.append(
                    f"  gradients {shown(x.a.gradient, dtype=False)} and {shown(x.b.gradient, dtype=False)}"
                )
        if self.note is not None:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


def _told(outcome: Outcome) -> str:
    told = str(outcome) if outcome.value is None else f"{outcome} in {outcome.value.dtype}"
    return f"{told} (its spec does)" if outcome.ran == "instead" else told


@dataclass(frozen=True, eq=False)
class Diff:
    """The rules in which two losses differ. ``str()`` says them; it is false where there are none, and is iterated over.

    Attributes:
        a: the first loss, as it was written.
        b: the second.
        differences: the rules, fields of the specs first.
        settings: what this process has changed in a library, so that a text would make another loss here, in sentences.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    settings: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __getitem__(self, rule: str) -> Difference:
        """The difference in a rule, by its name.

        Raises:
            KeyError: the two do not differ in it.
        """
        for difference in self.differences:
            if difference.rule == rule:
                return difference
        raise KeyError(rule)

    def __contains__(self, rule: object) -> bool:
        return any(difference.rule == rule for difference in self.differences)

    def __str__(self) -> str:
        head = "\n".join([f"a: {self.a}", f"b: {self.b}", *self.settings, ""])
        if not self.differences:
            return f"{head}\nThere is no difference: the rules are the same."
        rules = [difference.rule for difference in self.differences]
        told = (
            f"{head}They differ in {len(rules)} rule{'s' * (len(rules) > 1)}: {', '.join(rules)}."
        )
        return "\n\n".join([told, *map(str, self.differences)])


def diff(a: Any, b: Any) -> Diff:
    """The rules in which two losses differ, in words, each with the smallest input that shows it and both numbers.

    Args:
        a: a spec, a loss of another library, or the text of either, as `from_native` reads them. A loss that no spec computes is
            compared as well, by the spec nearest to it and by the rule that keeps it from being one.
        b: the same.

    Returns:
        An object that prints as text; each of its `differences` has the name of a rule, a sentence for either loss, and an example. The
        numbers come from the losses themselves where their library is installed (Keras: on the backend it runs on), else from their
        specs.

    Raises:
        SpecTypeError, SpecValueError: `a` or `b` is no loss that is known.

    Example:
        ```python
        import unifiedloss as ul

        found = ul.diff(ul.MeanSquaredError(), ul.MeanSquaredError(reduction="sum"))
        assert [difference.rule for difference in found] == ["reduction"]
        ```
    """
    one, other = side_of(a), side_of(b)
    return Diff(one.name, other.name, tuple(_differences(one, other)), settings_of(one, other))


def _differences(a: Side, b: Side) -> Iterator[Difference]:
    near_a, near_b = nearest(a), nearest(b)
    hidden: set[str] = set()
    for difference, stands_for in _refused(a, b, near_a, near_b):
        hidden.update(stands_for)
        yield difference
    if near_a is None or near_b is None:
        return
    if type(near_a) is not type(near_b):
        yield _of_losses(a, b, near_a, near_b)
    names = [name for name in differing(near_a, near_b) if name not in hidden]
    plain = hidden or a.spec is None or b.spec is None
    for group in groups(near_a, near_b, names):
        yield from _of_fields(a, b, near_a, near_b, group, run_objects=not plain)
    yield from _of_deviations(a, b, near_a, near_b)


# ------------------------------------------------------------------------------------------- fields


def differing(a: AnyLoss, b: AnyLoss) -> list[str]:
    """The fields in which two specs differ, those that only one of them has and uses included."""
    own, other = list(a.declarations), list(b.declarations)
    both = [name for name in own if name in other and getattr(a, name) != getattr(b, name)]
    if type(a) is type(b):
        return both
    return [*both, *_used(a, other), *_used(b, own)]


def _used(spec: AnyLoss, known: list[str]) -> list[str]:
    """The fields of a spec that another kind does not have, where they are used."""
    return [name for name in spec.declarations if name in spec.changed() and name not in known]


def groups(a: AnyLoss, b: AnyLoss, names: list[str]) -> list[tuple[str, ...]]:
    """The fields one by one, but those together that can only be changed together."""
    if type(a) is not type(b):
        return [(name,) for name in names]
    together = tuple(name for name in INPUT_FIELDS if name in names)
    if all(changed(*pair, (name,)) is not None for name in together for pair in ((a, b), (b, a))):
        return [(name,) for name in names]
    return [together, *((name,) for name in names if name not in together)]


def _of_fields(
    a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss, names: tuple[str, ...], *, run_objects: bool
) -> Iterator[Difference]:
    example = None
    if type(near_a) is type(near_b) and names != ("rounding",):
        example = _example(
            a,
            b,
            near_a.replace(rounding="native"),
            near_b.replace(rounding="native"),
            names,
            run_objects=run_objects,
        )
    for name in names:
        shown_with = None if name == names[0] else f"This goes with {names[0]}, which shows it."
        if type(near_a) is not type(near_b):
            shown_with = "The losses are of two kinds, so that no input shows this rule alone."
        elif name == names[0] and example is None:
            shown_with = "No small input shows it: it changes rounding alone, or nothing together with the other rules."
        yield Difference(
            name,
            _sentence(near_a, name),
            _sentence(near_b, name),
            example if name == names[0] else None,
            shown_with,
        )


def _example(
    a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss, names: tuple[str, ...], *, run_objects: bool
) -> Example | None:
    """What shows these fields best: two finite numbers, if there are any; rather of the two losses than of one, changed."""
    isolated, alone = (
        _isolated(a, b, near_a, near_b, names, run_objects=run_objects),
        _by_substitution(near_a, near_b, names),
    )
    if isolated is None or alone is None:
        return isolated or alone
    first, second = (_told_apart(example.a, example.b) for example in (isolated, alone))
    return alone if second is not None and second <= _GRADIENTS < (first or 0) else isolated


def _sentence(spec: AnyLoss, name: str) -> str:
    if name not in spec.declarations:
        return f"A {type(spec).__name__} has no such rule."
    return sentence(spec, name).plain


def changed(spec: AnyLoss, other: AnyLoss, names: Iterable[str]) -> AnyLoss | None:
    """A spec with some fields of another, or None where they contradict the rest."""
    try:
        return spec.replace(**{name: getattr(other, name) for name in names})
    except (SpecValueError, SpecTypeError):
        return None


def _isolated(
    a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss, names: tuple[str, ...], *, run_objects: bool
) -> Example | None:
    """The smallest input on which two losses differ, and would not if these fields were the same."""
    closed = changed(near_b, near_a, names)
    if closed is None:
        return None
    found: list[tuple[int, Input]] = []
    for x in inputs(near_a, near_b):
        one, other = run_spec(near_a, x), run_spec(near_b, x)
        rank = _told_apart(one, other)
        # Strictly: a dtype that differs still is a difference that is left.
        if (
            rank is not None
            and same(one, run_spec(closed, x))
            and _dtype(one) == _dtype(run_spec(closed, x))
        ):
            found.append((rank, x))
    examples = [
        Example(x, _by_spec(a, near_a, x), _by_spec(b, near_b, x))
        for _, x in sorted(found, key=itemgetter(0))
    ]
    if not run_objects or not examples:
        return examples[0] if examples else None
    second = None
    for example in examples[:_TRIED]:
        measured = _natively(a, b, example)
        if measured is not None and "instead" not in (measured.a.ran, measured.b.ran):
            return measured
        second = second or measured
    return second or examples[0]


def _by_spec(side: Side, spec: AnyLoss, x: Input) -> Outcome:
    """What the spec of a side makes of an input, marked where it stands for a loss of another library."""
    outcome = run_spec(spec, x)
    return outcome if side.call is None else replace(outcome, ran="instead")


_TRIED = 8
"""How many inputs are given to the losses themselves before one that only a spec takes will do."""


def _natively(a: Side, b: Side, example: Example) -> Example | None:
    """The numbers of the losses themselves, where they are those of their specs."""
    outcomes: list[Outcome] = []
    for side, expected in ((a, example.a), (b, example.b)):
        try:
            outcome = side.outcome(example.input)
        except (UnsupportedError, MissingBackendError):
            return None
        # Otherwise something else is at work here, which is a difference of its own.
        if not same(outcome, expected):
            return None
        outcomes.append(outcome)
    return Example(example.input, outcomes[0], outcomes[1])


def _by_substitution(a: AnyLoss, b: AnyLoss, names: tuple[str, ...]) -> Example | None:
    """The smallest input on which a loss differs from itself with these fields changed."""
    other = changed(a, b, names)
    if other is None:
        return None
    best: tuple[int, Input] | None = None
    for x in inputs(a, other):
        rank = _told_apart(run_spec(a, x), run_spec(other, x))
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, x)
    if best is None:
        return None
    written = ", ".join(f"{name}={getattr(other, name)!r}" for name in names)
    return Example(best[1], run_spec(a, best[1]), run_spec(other, best[1]), f"a with {written}")


def _dtype(outcome: Outcome) -> Any:
    return None if outcome.value is None else outcome.value.dtype


_NUMBERS, _GRADIENTS, _SPECIAL, _ERROR = range(4)
"""How well outcomes tell what differs: by finite values, by gradients alone, by NaN, infinities or dtypes, by an error of one."""


def _told_apart(a: Outcome, b: Outcome) -> int | None:
    """None where two outcomes are the same; else how well they tell what differs, the best being the least."""
    if same(a, b):
        return None if _dtype(a) == _dtype(b) else _SPECIAL
    if a.value is None or b.value is None:
        return _ERROR
    if same(a, b, gradients=False):
        return _GRADIENTS
    return _NUMBERS if np.all(np.isfinite(a.value)) and np.all(np.isfinite(b.value)) else _SPECIAL


def _of_losses(a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss) -> Difference:
    example = None
    for x in inputs(near_a, near_b) if _alike(near_a, near_b) else ():
        try:
            found = Example(x, a.outcome(x), b.outcome(x))
        except (UnsupportedError, MissingBackendError):
            continue
        if found.a.value is not None and found.b.value is not None and not same(found.a, found.b):
            example = found
            break
    return Difference("loss", f"{TITLES[near_a.name]}.", f"{TITLES[near_b.name]}.", example)


def _alike(a: AnyLoss, b: AnyLoss) -> bool:
    return isinstance(a, Categorical) == isinstance(b, Categorical)


# ----------------------------------------------------------------------- rules that no spec can say


def nearest(side: Side) -> AnyLoss | None:
    """The spec of a side, or the one that says all but what cannot be said."""
    if side.spec is not None or side.call is None:
        return side.spec
    refusal = refusal_of(side.call)
    if refusal is None:
        return None
    try:
        return spec_of(refusal.closest(side.call))
    except (UnsupportedError, SpecValueError, SpecTypeError):
        return None


def _refused(
    a: Side, b: Side, near_a: AnyLoss | None, near_b: AnyLoss | None
) -> Iterator[tuple[Difference, tuple[str, ...]]]:
    """The rules of arguments that no spec can say, and the fields they stand for."""
    seen: set[str] = set()
    for side in (a, b):
        if side.spec is not None or side.call is None:
            continue
        refusal = refusal_of(side.call)
        if refusal is None:
            texts = [
                one.refusal or (one.name if one.spec is None else "A spec computes it.")
                for one in (a, b)
            ]
            yield Difference("not_imported", texts[0], texts[1]), ()
        elif refusal.name not in seen:
            seen.add(refusal.name)
            texts = [refusal.sentence(one.call) for one in (a, b)]
            yield (
                Difference(refusal.name, texts[0], texts[1], _first(a, b, near_a, near_b, refusal)),
                refusal.fields,
            )


def _first(
    a: Side, b: Side, near_a: AnyLoss | None, near_b: AnyLoss | None, refusal: Refusal
) -> Example | None:
    """The first input on which two sides differ that arguments set apart."""
    for x in refusal.inputs(_layout(near_a, near_b)):
        found = _both(a, b, x)
        # An error of both, or of the wrong kind of input, shows nothing.
        if (
            found is not None
            and not same(found.a, found.b)
            and "ShapeError" not in f"{found.a.error}{found.b.error}"
        ):
            return found
    return None


def _both(a: Side, b: Side, x: Input) -> Example | None:
    try:
        return Example(x, a.outcome(x), b.outcome(x))
    except (UnsupportedError, MissingBackendError):
        return None


def _layout(a: AnyLoss | None, b: AnyLoss | None) -> Layout:
    if a is not None and b is not None and type(a) is type(b):
        layout = layouts(a, b)[0]
        labels: Any = (
            getattr(a, "ignore_index", None) or getattr(b, "ignore_index", None) or (None,)
        )
        weights = weights_of(a) if weights_of(a) is not None else weights_of(b)
        return replace(layout, ignored=labels[0], weights=weights)
    return Layout(elementwise=a is not None and not isinstance(a, Categorical))


def _of_deviations(a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss) -> Iterator[Difference]:
    """The rules of tensors that no spec can say, in which the two differ; shown where their libraries are installed."""
    if type(near_a) is not type(near_b):
        return
    layout = _layout(near_a, near_b)
    for quirk in QUIRKS:
        if not all(quirk.concerns(spec, None) for spec in (near_a, near_b)):
            continue
        concerned = [
            side.call is not None and quirk.concerns(spec, side.call) and quirk.has(side.call)
            for side, spec in ((a, near_a), (b, near_b))
        ]
        if not any(concerned):
            continue
        texts = [
            quirk.sentence(side.call if has else None)
            for side, has in zip((a, b), concerned, strict=True)
        ]
        examples = [found for x in quirk.inputs(layout) if (found := _both(a, b, x)) is not None]
        example = next(
            (found for found in examples if _is_active(quirk, found, near_a, near_b)), None
        )
        if example is None and (texts[0] == texts[1] or _shown_equal(examples, concerned)):
            continue
        yield Difference(quirk.name, texts[0], texts[1], example)


def _is_active(quirk: Quirk, found: Example, near_a: AnyLoss, near_b: AnyLoss) -> bool:
    """Whether the losses themselves differ, and at least one of them from its own spec."""
    if not quirk.differ(found.a, found.b):
        return False
    return any(
        outcome.ran == "native" and quirk.differ(outcome, run_spec(spec, found.input))
        for outcome, spec in ((found.a, near_a), (found.b, near_b))
    )


def _shown_equal(examples: list[Example], concerned: list[bool]) -> bool:
    """Whether both losses ran on what should show the rule, and did the same."""
    ran = [
        all(
            (one.ran == "native") or not has
            for one, has in zip((found.a, found.b), concerned, strict=True)
        )
        for found in examples
    ]
    return bool(examples) and all(ran)
