"""Find the rules that close the gap of two losses on the same tensors.

Try each field in which the specs differ: give the second spec this field of the first. If the
losses then agree, this is the rule that closes the gap. Try quirks too, which no spec expresses: if
a loss differs from its own spec on these tensors, replace the loss by its spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.diff import changed, differing, groups, nearest
from unifiedloss.interop.distance import Gap, gap_of
from unifiedloss.interop.kinds import bridges
from unifiedloss.interop.library_loss import call_of, closest
from unifiedloss.interop.quirks import QUIRKS, Quirk, rules_of
from unifiedloss.interop.refusals import refusal_of
from unifiedloss.interop.sides import (
    Array,
    Input,
    Outcome,
    Side,
    number,
    run_spec,
    side_of,
    weight_dtype,
)
from unifiedloss.owners import BUILT_IN
from unifiedloss.spec import Loss
from unifiedloss.text import brief


@dataclass(frozen=True, eq=False)
class Attempt:
    """One rule, made the same in both losses.

    Attributes:
        rule: the name of a field of the specs, of several fields that go together, or of a rule
            that no spec expresses.
        change: a description of the change.
        gap: the distance that remains after the change.
        reason: a sentence that says what the loss does and no spec expresses, or what stands
            between two kinds of losses; None for a field.
        seen: whether the change alone changes the result on these tensors by more than rounding.
        before: the value of the loss that is changed; None after an error.
        after: its value after the change; None after an error.
    """

    rule: str
    change: str
    gap: Gap
    reason: str | None = None
    seen: bool = True
    before: Array | None = None
    after: Array | None = None

    @property
    def effect(self) -> str:
        """What the change does to the loss on these tensors."""
        sizes = [x for x in (self.before, self.after) if x is not None and x.size == 1]
        if len(sizes) < 2:
            return "it changes the losses of positions."
        before, after = (number(x.item()) for x in sizes)
        if before == after:
            return f"it leaves the loss at {before}, and changes the gradient."
        return f"it moves the loss from {before} to {after}."


def attempts_of(a: Side, b: Side, x: Input) -> list[Attempt]:
    """Make each rule that differs the same in both losses, and measure the remaining gap."""
    near_a, near_b = nearest(a), nearest(b)
    if near_a is None or near_b is None:
        return []
    attempts = _by_arguments(a, b, near_a, near_b, x)
    if type(near_a) is type(near_b):
        attempts += _by_fields(a, b, near_a, near_b, x)
        attempts += _by_quirks(a, b, near_a, near_b, x)
    else:
        attempts += _by_bridges(a, b, near_a, near_b, x)
    return attempts


def _by_bridges(a: Side, b: Side, near_a: Loss, near_b: Loss, x: Input) -> list[Attempt]:
    """Try what is known to stand between two kinds of losses, up to the first that closes."""
    attempts = []
    for bridge in bridges(a, b, near_a, near_b, x):
        other = b if bridge.of_a else a
        gap = gap_of(bridge.outcome, other.outcome(x))
        attempts.append(Attempt(bridge.rule, bridge.change, gap, bridge.reason))
        if gap.closed:
            break
    return attempts


def _by_fields(a: Side, b: Side, near_a: Loss, near_b: Loss, x: Input) -> list[Attempt]:
    """Give b each field of a in turn; try none if the specs agree on these tensors."""
    if gap_of(run_spec(near_a, x), run_spec(near_b, x)).closed:
        return []
    first, attempts = a.outcome(x), []
    for group in _groups(near_a, near_b):
        made_same = changed(near_b, near_a, group)
        if made_same is None:
            continue
        rules = ", ".join(group)
        fields = ", ".join(f"{name}={brief(getattr(near_a, name))}" for name in group)
        change = f"b with {fields}"
        second = _with_fields(b, near_b, made_same, x)
        if second is None:
            rules = f"{rules}, {_quirk_names(b, near_b, x)[0]}"
            change = f"b as its spec has it, with {fields}"
            second = run_spec(made_same, x)
        before = b.outcome(x)
        attempts.append(
            Attempt(
                rules,
                change,
                gap_of(first, second),
                seen=not gap_of(before, second).closed,
                before=before.value,
                after=second.value,
            )
        )
    return attempts


def _with_fields(side: Side, near: Loss, made_same: Loss, x: Input) -> Outcome | None:
    """Run a loss with changed fields.

    If the loss differs from its spec on these tensors, run the library's loss with the changed
    fields, because it may still differ. Return None if the library has no such loss.
    """
    if side.call is None or not _differs_from_spec(side, near, x):
        return run_spec(made_same, x)
    try:
        return side_of(call_of(made_same, side.call.library, side.call.backend)).outcome(x)
    except UnsupportedError:
        return None


def _differs_from_spec(side: Side, near: Loss, x: Input) -> bool:
    """Tell whether a library's loss differs from its spec on these tensors."""
    if side.call is None or side.spec is None:
        return False
    outcome = side.outcome(x)
    return outcome.ran == "native" and not gap_of(outcome, run_spec(near, x)).closed


def _groups(a: Loss, b: Loss) -> list[tuple[str, ...]]:
    """Group the fields that differ, without `rounding`, which changes numbers by rounding only."""
    return groups(a, b, [name for name in differing(a, b) if name != "rounding"])


def closing_rules(a: Side, b: Side, x: Input) -> tuple[str, ...]:
    """Find a set of rules that closes the gap and none of which can be left out.

    Return no rules if all of them together do not close the gap.
    """
    near_a, near_b = nearest(a), nearest(b)
    if near_a is None or near_b is None or type(near_a) is not type(near_b):
        return ()
    quirks = {
        letter: _quirk_names(side, near, x)[0]
        for letter, side, near in (("a", a, near_a), ("b", b, near_b))
        if _differs_from_spec(side, near, x)
    }
    # "a" or "b" stands for the quirks of that loss, a tuple for a group of fields.
    needed: list[str | tuple[str, ...]] = [*quirks, *_groups(near_a, near_b)]

    def fields_of(rules: list[str | tuple[str, ...]]) -> list[str]:
        return [name for group in rules if isinstance(group, tuple) for name in group]

    def closes(rules: list[str | tuple[str, ...]]) -> bool:
        made_same = changed(near_b, near_a, fields_of(rules))
        if made_same is None:
            return False
        first = run_spec(near_a, x) if "a" in rules else a.outcome(x)
        second = run_spec(made_same, x) if "b" in rules else _with_fields(b, near_b, made_same, x)
        return second is not None and gap_of(first, second).closed

    if not closes(needed):
        return ()
    for rule in list(needed):
        rest = [other for other in needed if other != rule]
        if closes(rest):
            needed = rest
    names = [name for letter, name in quirks.items() if letter in needed]
    return (*fields_of(needed), *dict.fromkeys(names))


def _by_quirks(a: Side, b: Side, near_a: Loss, near_b: Loss, x: Input) -> list[Attempt]:
    """Replace each loss that differs from its spec on these tensors by its spec."""
    attempts = []
    for side, spec, other, letter in ((a, near_a, b, "a"), (b, near_b, a, "b")):
        if _differs_from_spec(side, spec, x):
            names, reason = _quirk_names(side, spec, x)
            before, after = side.outcome(x), run_spec(spec, x)
            gap = gap_of(after, other.outcome(x))
            change = f"{letter} as its spec has it"
            values = before.value, after.value
            attempts.append(Attempt(names, change, gap, reason, True, *values))  # noqa: FBT003
    return attempts


def remedy_of(a: Side, b: Side, attempts: Sequence[Attempt], together: Sequence[str]) -> str | None:
    """A sentence with the loss that b should be to equal a.

    Args:
        a: the first loss.
        b: the second loss.
        attempts: the rules that were tried.
        together: the rules that close the gap only together.

    Returns:
        None if a rule that closes the gap is no field.
    """
    near_a, near_b = nearest(a), nearest(b)
    alone = next((each.rule.split(", ") for each in attempts if each.gap.closed), [])
    names = list(together) or alone
    if near_a is None or near_b is None or not names:
        return None
    if not all(name in near_a.declarations and name in near_b.declarations for name in names):
        return None
    made = changed(near_b, near_a, names)
    if made is None:
        return None
    if b.moved is not None:
        made = made.replace(axis=b.moved.axis)
    ours = f"ul.{made.source()}"
    if b.call is None:
        return f"b should be {ours}."
    try:
        found = closest(made, b.call.library, b.call.backend)
    except UnsupportedError:
        found = None
    if found is not None and not {*found.changes} & {*names}:
        return f"b should be {found.call}."
    bound = "" if b.call.library not in BUILT_IN else f".to({b.call.library!r})"
    return f"No loss of {b.call.library} has this rule; {ours}{bound} has it."


def _quirk_names(side: Side, near: Loss, x: Input) -> tuple[str, str | None]:
    """Name the quirks that can explain why a loss differs from its spec, and say what they do.

    If the tensors show none, name all quirks of the loss, without a sentence.
    """
    assert side.call is not None
    shown = _quirks_shown(side, x)
    names = [name for name, _ in shown or rules_of(near, side.call)] or ["unlisted"]
    sentences = dict.fromkeys(text for _, text in shown)
    return " or ".join(dict.fromkeys(names)), " Or: ".join(sentences) or None


def _quirks_shown(side: Side, x: Input) -> list[tuple[str, str]]:
    """List the quirks of a loss that these tensors can show, with their sentences."""
    assert side.call is not None
    assert side.spec is not None
    narrow_weights = weight_dtype(side) not in (None, x.predictions.dtype.name)
    # A quirk of gradients only cannot explain why the values differ.
    gap = gap_of(side.outcome(x), run_spec(side.spec, x))
    values_differ = gap.value > gap.limit
    kind = _kind(side.adapted(x))
    return [
        (quirk.name, quirk.sentence(side.call))
        for quirk in QUIRKS
        if (quirk.shown(side.spec, x) or (narrow_weights and quirk.name == "weight_dtype"))
        and (kind is None or quirk.rule.kind in (None, kind))
        and _concerns(quirk, side)
        and quirk.has(side.call)
        and not (values_differ and quirk.rule.of == "gradient_only")
    ]


def _concerns(quirk: Quirk, side: Side) -> bool:
    """Tell whether a quirk concerns a loss with its settings.

    Skip the condition of "weight_dtype", because the object knows the dtype of its weights and its
    call does not.
    """
    assert side.spec is not None
    when = None if quirk.name == "weight_dtype" else quirk.when
    return replace(quirk, when=when).concerns(side.spec, side.call)


def _kind(x: Input) -> str | None:
    """Return the kind of the targets, "index" or "dense".

    Return None if the shapes fit neither, or if the predictions have no axis besides the classes.
    """
    if x.predictions.ndim <= 1:
        return None
    if x.targets.shape == x.predictions.shape:
        return "dense"
    if x.targets.ndim == x.predictions.ndim - 1 and x.targets.dtype.kind in "iu":
        return "index"
    return None


def _by_arguments(a: Side, b: Side, near_a: Loss, near_b: Loss, x: Input) -> list[Attempt]:
    """Replace each loss that no spec computes by the nearest spec."""
    attempts = []
    for side, spec, other, letter in ((a, near_a, b, "a"), (b, near_b, a, "b")):
        refusal = None if side.call is None or side.spec is not None else refusal_of(side.call)
        if refusal is not None:
            gap = gap_of(run_spec(spec, x), other.outcome(x))
            change = f"{letter} without it, as {spec!r}"
            attempts.append(Attempt(refusal.name, change, gap, refusal.sentence(side.call)))
    return attempts
