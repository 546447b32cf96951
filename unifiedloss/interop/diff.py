"""List the rules in which two losses differ, each with the smallest input that shows it.

A rule is a field of the specs, or a quirk that no spec expresses (`unifiedloss.interop.quirks`).
For a field, try inputs from the smallest on until one *isolates* it: the two losses differ on it,
and would agree if this one field were the same. If several fields always act together, no input
isolates one of them; then compare the first loss with itself, with that field changed. The numbers
come from the losses themselves if their libraries are installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np

from unifiedloss.errors import MissingBackendError, SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.interop import spec_of
from unifiedloss.interop.inputs import Layout, inputs, layouts, weights_of
from unifiedloss.interop.quirks import QUIRKS, Quirk, joined
from unifiedloss.interop.refusals import Refusal, refusal_of
from unifiedloss.interop.sentences import sentence, title
from unifiedloss.interop.sides import (
    Input,
    Outcome,
    Side,
    run_spec,
    same,
    same_gradients,
    settings_of,
    shown,
    side_of,
)
from unifiedloss.spec import Categorical, Loss
from unifiedloss.text import brief

INPUT_FIELDS = ("from_logits", "epsilon", "epsilon_added", "renormalize")
"""Fields that turn predictions into probabilities.

If one of them contradicts the others of the other loss, change all of them together.
"""


@dataclass(frozen=True, eq=False)
class Example:
    """An input and the outcomes of two losses on it.

    Attributes:
        input: the tensors.
        a: the outcome of the first loss.
        b: the outcome of the second loss.
        alone: None, or a description of the loss that replaces the second one: the first loss with
            this field changed.
    """

    input: Input
    a: Outcome
    b: Outcome
    alone: str | None = None

    @property
    def gradients(self) -> bool:
        """Whether the gradients differ, alone or together with the values."""
        return not same_gradients(self.a, self.b)


@dataclass(frozen=True, eq=False)
class Difference:
    """One rule in which two losses differ.

    Attributes:
        rule: the name of a field of the specs, or of a quirk that no spec expresses.
        a: a sentence that says what the first loss does.
        b: a sentence that says what the second loss does.
        example: the smallest input found that shows the difference; None if no input did, or if the
            libraries are not installed.
        note: a remark, or None.
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
            lines.append(f"  a gives {_written(x.a)}")
            lines.append(f"  {'b' if x.alone is None else x.alone} gives {_written(x.b)}")
            if x.gradients and x.a.gradient is not None and x.b.gradient is not None:
                first, second = (shown(y, dtype=False) for y in (x.a.gradient, x.b.gradient))
                lines.append(f"  gradients {first} and {second}")
        if self.note is not None:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


def _written(outcome: Outcome) -> str:
    text = str(outcome) if outcome.value is None else f"{outcome} in {outcome.value.dtype}"
    return f"{text} (its spec does)" if outcome.ran == "instead" else text


@dataclass(frozen=True, eq=False)
class Diff:
    """The rules in which two losses differ.

    ``str()`` describes them. Iterate over the object for its differences; it is false if there are
    none.

    Attributes:
        a: the first loss, as it was written.
        b: the second loss, as it was written.
        differences: the rules in which they differ: those of arguments that no spec expresses, then
            the fields of the specs, then quirks.
        settings: sentences about global settings of a library that this process has changed, and
            that change which loss a text makes.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    settings: tuple[str, ...] = ()

    @property
    def ranked(self) -> tuple[Difference, ...]:
        """The differences, those first that usual batches see.

        Fields come before quirks: first what changes every batch or those with padding, then what
        changes rare ones. Of several quirks, those come first whose example has two numbers.
        """
        return tuple(sorted(self.differences, key=_bite))

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __getitem__(self, rule: str) -> Difference:
        """Return the difference in a rule, by the name of the rule.

        Raises:
            KeyError: the losses do not differ in it.
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
        plural = "s" if len(rules) > 1 else ""
        summary = f"{head}They differ in {len(rules)} rule{plural}: {', '.join(rules)}."
        return "\n\n".join([summary, *map(str, self.differences)])


_USUAL = (
    "loss", "from_logits", "ignore_index", "divisor", "class_weighting", "axis", "reduction",
    "label_smoothing", "class_weights", "pos_weight", "delta", "scale", "element_weights",
    "average_last_axis", "epsilon", "renormalize", "epsilon_added",
)  # fmt: skip
"""Fields in the order in which usual batches see them. Others are seen by few."""


def by_use(rules: Sequence[str]) -> list[str]:
    """The names of rules, those first that usual batches see."""
    return sorted(rules, key=lambda rule: _USUAL.index(rule) if rule in _USUAL else len(_USUAL))


def _bite(difference: Difference) -> tuple[int, int, int]:
    """The place of a difference in `Diff.ranked`."""
    rule, example = difference.rule, difference.example
    rank = None if example is None else _rank(example.a, example.b)
    place = _USUAL.index(rule) if rule in _USUAL else len(_USUAL)
    is_quirk = any(rule == quirk.name for quirk in QUIRKS)
    return int(is_quirk), place, len(_RANKS) if rank is None else rank


def diff(a: Any, b: Any) -> Diff:
    """List the rules in which two losses differ, each with the smallest input that shows it.

    Args:
        a: a spec, a loss of another library, or the text of either, as `from_native` reads them. A
            loss that no spec computes is compared by the nearest spec and by the rule that no spec
            expresses.
        b: the same for the second loss.

    Returns:
        An object that prints as text. Each of its `differences` has the name of a rule, a sentence
        for either loss, and an example with both numbers. The numbers come from the losses
        themselves if their library is installed (for Keras: on the backend it runs on), else from
        their specs.

    Raises:
        SpecTypeError, SpecValueError: `a` or `b` is not a known loss.

    Example:
        ```python
        import unifiedloss as ul

        found = ul.diff(ul.MeanSquaredError(), ul.MeanSquaredError(reduction="sum"))
        assert [difference.rule for difference in found] == ["reduction"]
        ```
    """
    one, other = side_of(a), side_of(b)
    return Diff(one.name, other.name, tuple(_differences(one, other)), settings_of(one, other))


def rules(a: Side, b: Side) -> tuple[str, ...]:
    """The names of the rules in which two losses differ, as `diff` lists them.

    This takes less time, because only quirks need examples.
    """
    if a == b:
        return ()
    near_a, near_b = nearest(a), nearest(b)
    refused = list(_refused(a, b, near_a, near_b))
    names = [difference.rule for difference, _ in refused]
    if near_a is None or near_b is None:
        return tuple(names)
    hidden = {name for _, stands_for in refused for name in stands_for}
    if type(near_a) is not type(near_b):
        names.append("loss")
    fields = [name for name in differing(near_a, near_b) if name not in hidden]
    names += [name for group in groups(near_a, near_b, fields) for name in group]
    return *names, *(difference.rule for difference in _of_quirks(a, b, near_a, near_b))


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
    exact_specs = not hidden and a.spec is not None and b.spec is not None
    for group in groups(near_a, near_b, names):
        yield from _of_fields(a, b, near_a, near_b, group, run_objects=exact_specs)
    yield from _of_quirks(a, b, near_a, near_b)


# ------------------------------------------------------------------------------------------- fields


def differing(a: Loss, b: Loss) -> list[str]:
    """List the fields in which two specs differ.

    A field that only one of them has is listed if its value is not the default.
    """
    shared = [name for name in a.declarations if name in b.declarations]
    differ = [name for name in shared if getattr(a, name) != getattr(b, name)]
    if type(a) is type(b):
        return differ
    return [*differ, *_set_fields(a, shared), *_set_fields(b, shared)]


def _set_fields(spec: Loss, excluded: list[str]) -> list[str]:
    """List the fields of a spec that are not at their defaults, without the excluded ones."""
    changes = spec.changed()
    return [name for name in spec.declarations if name in changes and name not in excluded]


def groups(a: Loss, b: Loss, names: list[str]) -> list[tuple[str, ...]]:
    """Group fields that can only be changed together; every other field is a group by itself."""
    if type(a) is not type(b):
        return [(name,) for name in names]
    together = tuple(name for name in INPUT_FIELDS if name in names)
    if all(changed(*pair, (name,)) is not None for name in together for pair in ((a, b), (b, a))):
        return [(name,) for name in names]
    return [together, *((name,) for name in names if name not in together)]


def _of_fields(
    a: Side, b: Side, near_a: Loss, near_b: Loss, names: tuple[str, ...], *, run_objects: bool
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
        first = name == names[0]
        note = None if first else f"This goes with {names[0]}, which shows it."
        if type(near_a) is not type(near_b):
            note = "The losses are of two kinds, so that no input shows this rule alone."
        elif first and example is None:
            note = (
                "No small input shows it: "
                "it changes rounding alone, or nothing together with the other rules."
            )
        texts = _sentence(near_a, name), _sentence(near_b, name)
        yield Difference(name, *texts, example if first else None, note)


def _example(
    a: Side, b: Side, near_a: Loss, near_b: Loss, names: tuple[str, ...], *, run_objects: bool
) -> Example | None:
    """Choose the example that shows these fields best.

    Prefer the outcomes of the two losses to those of one loss with changed fields, unless only the
    latter differ in finite numbers.
    """
    isolated = _isolated(a, b, near_a, near_b, names, run_objects=run_objects)
    substituted = _by_substitution(near_a, near_b, names)
    if isolated is None or substituted is None:
        return isolated or substituted
    first, second = (_rank(example.a, example.b) for example in (isolated, substituted))
    if second is not None and second <= _GRADIENTS < (first or 0):
        return substituted
    return isolated


def _sentence(spec: Loss, name: str) -> str:
    if name not in spec.declarations:
        return f"A {type(spec).__name__} has no such rule."
    return sentence(spec, name).plain


def changed(spec: Loss, other: Loss, names: Iterable[str]) -> Loss | None:
    """Copy some fields of another spec; return None if they contradict the other fields."""
    try:
        return spec.replace(**{name: getattr(other, name) for name in names})
    except (SpecValueError, SpecTypeError):
        return None


def _isolated(
    a: Side, b: Side, near_a: Loss, near_b: Loss, names: tuple[str, ...], *, run_objects: bool
) -> Example | None:
    """Find the smallest input on which two losses differ only because of these fields.

    They would agree if these fields were the same.
    """
    closed = changed(near_b, near_a, names)
    if closed is None:
        return None
    ranked: list[tuple[int, Input]] = []
    for x in inputs(near_a, near_b):
        first, second = run_spec(near_a, x), run_spec(near_b, x)
        rank = _rank(first, second)
        # Compare dtypes too: if they still differ, the fields do not close the difference.
        if (
            rank is not None
            and same(first, run_spec(closed, x))
            and _dtype(first) == _dtype(run_spec(closed, x))
        ):
            ranked.append((rank, x))
    examples = [
        Example(x, _by_spec(a, near_a, x), _by_spec(b, near_b, x))
        for _, x in sorted(ranked, key=itemgetter(0))
    ]
    if not run_objects or not examples:
        return examples[0] if examples else None
    partly_run = None
    for example in examples[:_MOST_RUN]:
        measured = _run_example(a, b, example)
        if measured is not None and "instead" not in (measured.a.ran, measured.b.ran):
            return measured
        partly_run = partly_run or measured
    return partly_run or examples[0]


def _by_spec(side: Side, spec: Loss, x: Input) -> Outcome:
    """Run the spec of a side; mark the outcome if the spec replaces another library's loss."""
    outcome = run_spec(spec, x)
    return outcome if side.call is None else replace(outcome, ran="instead")


_MOST_RUN = 8
"""Run the losses themselves on this many inputs at most; then take the outcomes of the specs."""


def _run_example(a: Side, b: Side, example: Example) -> Example | None:
    """Run the losses themselves; return None if they do not confirm the outcomes of their specs."""
    outcomes: list[Outcome] = []
    for side, expected in ((a, example.a), (b, example.b)):
        try:
            outcome = side.outcome(example.input)
        except (UnsupportedError, MissingBackendError):
            return None
        # A loss that differs from its spec here shows another rule, not these fields.
        if not same(outcome, expected):
            return None
        outcomes.append(outcome)
    return Example(example.input, outcomes[0], outcomes[1])


def _by_substitution(a: Loss, b: Loss, names: tuple[str, ...]) -> Example | None:
    """Find the smallest input on which a loss differs from itself with these fields changed."""
    other = changed(a, b, names)
    if other is None:
        return None
    best: tuple[int, Input] | None = None
    for x in inputs(a, other):
        rank = _rank(run_spec(a, x), run_spec(other, x))
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, x)
    if best is None:
        return None
    written = ", ".join(f"{name}={brief(getattr(other, name))}" for name in names)
    return Example(best[1], run_spec(a, best[1]), run_spec(other, best[1]), f"a with {written}")


def _dtype(outcome: Outcome) -> Any:
    return None if outcome.value is None else outcome.value.dtype


_NUMBERS, _GRADIENTS, _SPECIAL, _ERROR = _RANKS = range(4)
"""Ranks of examples, the best first.

Finite values differ; only gradients differ; one value is NaN or infinite, or only dtypes differ;
one loss is an error.
"""


def _rank(a: Outcome, b: Outcome) -> int | None:
    """Rank how well two outcomes show a difference; return None if they are the same."""
    if same(a, b):
        return None if _dtype(a) == _dtype(b) else _SPECIAL
    if a.value is None or b.value is None:
        return _ERROR
    if same(a, b, gradients=False):
        return _GRADIENTS
    return _NUMBERS if np.all(np.isfinite(a.value)) and np.all(np.isfinite(b.value)) else _SPECIAL


def _of_losses(a: Side, b: Side, near_a: Loss, near_b: Loss) -> Difference:
    example = None
    same_shapes = isinstance(near_a, Categorical) == isinstance(near_b, Categorical)
    for x in inputs(near_a, near_b) if same_shapes else ():
        tried = _run_both(a, b, x)
        if tried is None or tried.a.value is None or tried.b.value is None:
            continue
        if not same(tried.a, tried.b):
            example = tried
            break
    return Difference("loss", f"{title(near_a)}.", f"{title(near_b)}.", example)


# --------------------------------------------------------------------- rules that no spec expresses


def nearest(side: Side) -> Loss | None:
    """Return the spec of a side; if none computes its loss, the spec of all its other rules."""
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
    a: Side, b: Side, near_a: Loss | None, near_b: Loss | None
) -> Iterator[tuple[Difference, tuple[str, ...]]]:
    """Yield the rules of arguments that no spec expresses, with the fields that they replace."""
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
            example = _example_of_refusal(a, b, near_a, near_b, refusal)
            yield Difference(refusal.name, texts[0], texts[1], example), refusal.fields


def _example_of_refusal(
    a: Side, b: Side, near_a: Loss | None, near_b: Loss | None, refusal: Refusal
) -> Example | None:
    """Find the first input on which two losses differ in a rule that no spec expresses."""
    for x in refusal.inputs(layout_of(near_a, near_b)):
        example = _run_both(a, b, x)
        # Two errors show no difference, and a ShapeError only shows that the input does not fit.
        if (
            example is not None
            and not same(example.a, example.b)
            and "ShapeError" not in f"{example.a.error}{example.b.error}"
        ):
            return example
    return None


def _run_both(a: Side, b: Side, x: Input) -> Example | None:
    try:
        return Example(x, a.outcome(x), b.outcome(x))
    except (UnsupportedError, MissingBackendError):
        return None


def layout_of(a: Loss | None, b: Loss | None) -> Layout:
    """Return the layout of inputs that two losses accept."""
    if a is not None and b is not None and type(a) is type(b):
        layout = layouts(a, b)[0]
        labels: Any = (
            getattr(a, "ignore_index", None) or getattr(b, "ignore_index", None) or (None,)
        )
        weights = weights_of(a) if weights_of(a) is not None else weights_of(b)
        return replace(layout, ignored=labels[0], weights=weights)
    return Layout(elementwise=a is not None and not isinstance(a, Categorical))


def _of_quirks(a: Side, b: Side, near_a: Loss, near_b: Loss) -> Iterator[Difference]:
    """Yield the quirks in which the two losses differ, with examples if the libraries run here.

    Quirks of one name are one difference, with the sentences of all and the first example.
    """
    named: dict[str, list[Difference]] = {}
    for difference in _each_quirk(a, b, near_a, near_b):
        named.setdefault(difference.rule, []).append(difference)
    for name, found in named.items():
        texts = joined(each.a for each in found), joined(each.b for each in found)
        examples = (each.example for each in found if each.example is not None)
        yield Difference(name, *texts, next(examples, None))


def _each_quirk(a: Side, b: Side, near_a: Loss, near_b: Loss) -> Iterator[Difference]:
    if type(near_a) is not type(near_b):
        return
    layout = layout_of(near_a, near_b)
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
        tried = [_run_both(a, b, x) for x in quirk.probes(layout)]
        examples = [example for example in tried if example is not None]
        active = (each for each in examples if _is_active(quirk, each, near_a, near_b))
        example = next(active, None)
        if example is None and (texts[0] == texts[1] or _all_ran(examples, concerned)):
            continue
        yield Difference(quirk.name, texts[0], texts[1], example)


def _is_active(quirk: Quirk, example: Example, near_a: Loss, near_b: Loss) -> bool:
    """Tell whether the losses differ, and at least one of them differs from its own spec."""
    if not quirk.differ(example.a, example.b):
        return False
    return any(
        outcome.ran == "native" and quirk.differ(outcome, run_spec(spec, example.input))
        for outcome, spec in ((example.a, near_a), (example.b, near_b))
    )


def _all_ran(examples: list[Example], concerned: list[bool]) -> bool:
    """Tell whether every concerned loss ran itself on all inputs that should show the quirk."""
    if not examples:
        return False
    return all(
        outcome.ran == "native" or not has
        for example in examples
        for outcome, has in zip((example.a, example.b), concerned, strict=True)
    )
