"""Port a loss: run two losses on real tensors, find the first row that differs, and the one rule that closes the gap.

Each field in which their specs differ is tried: the second spec with this field of the first. If the losses then agree, the rule is found.
What no spec can say is tried too: where a loss differs from its own spec on these tensors, and the specs agree, it is at work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unifiedloss import registry
from unifiedloss.errors import ShapeError, SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.owners import backend_of
from unifiedloss.spec import AnyLoss
from unifiedloss.switching.arrays import as_bfloat16
from unifiedloss.switching.diff import changed, differing, groups, nearest
from unifiedloss.switching.library_loss import call_of
from unifiedloss.switching.quirk import Quirk
from unifiedloss.switching.quirks import QUIRKS, rules_of
from unifiedloss.switching.quirks_shown import quirks_shown_by
from unifiedloss.switching.refusals import refusal_of
from unifiedloss.switching.sides import (
    Array,
    Input,
    Outcome,
    Side,
    number,
    run_spec,
    settings_of,
    side_of,
    unreduced,
    weight_dtype,
)

_FEW_ULPS = 64
"""What the kernels of two frameworks may be apart in a mean of many terms, in units in the last place of its largest term or of 1."""

_FEW_HALF_ULPS = 4
"""The same of half types, which most kernels round to once or twice: 64 of them are 6% in float16 and 50% in bfloat16."""


@dataclass(frozen=True, eq=False)
class Gap:
    """How far two outcomes are apart.

    Attributes:
        value: the largest distance of values, in units in the last place of the coarser dtype (at 1, for numbers below 1); infinite where
            one is an error, or NaN or infinite and the other is not, or they have different sizes.
        gradient: the same of gradients; None where there are none to compare.
        limit: how large a distance of values counts as rounding.
        gradient_limit: the same of gradients.
    """

    value: float
    gradient: float | None
    limit: int = _FEW_ULPS
    gradient_limit: int = _FEW_ULPS

    @property
    def closed(self) -> bool:
        """Whether only rounding is left."""
        return self.value <= self.limit and (
            self.gradient is None or self.gradient <= self.gradient_limit
        )

    def __str__(self) -> str:
        gradient = "" if self.gradient is None else f", gradients by {self.gradient:.3g} ulps"
        return f"values differ by {self.value:.3g} ulps{gradient}"


@dataclass(frozen=True, eq=False)
class Attempt:
    """One rule, made the same in both losses.

    Attributes:
        rule: the field of a spec, several that go together, or a rule that no spec can say.
        change: what was changed, in words.
        gap: what is left of the difference.
        reason: what the loss does that no spec can say, in a sentence; None for a field of a spec.
    """

    rule: str
    change: str
    gap: Gap
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class PortReport:
    """What two losses make of the same tensors. ``str()`` says it.

    Attributes:
        a: the first loss, as it was written.
        b: the second.
        value_a: the value of the first; None after an error, which `error_a` holds. So are `value_b` and `error_b`.
        value_b: the value of the second.
        gradient_a: its gradient with respect to the predictions; None where its library has none. So is `gradient_b`.
        gradient_b: that of the second.
        error_a: what the first raised.
        error_b: what the second raised.
        ran_a: "native" where the first computed it itself, "instead" where its spec did in its place, as its library is not installed,
            or refused, or Keras runs on another framework; "spec" for a spec.
        ran_b: the same of the second.
        reason_a: why its spec did in its place, in a sentence; None where it did not.
        reason_b: the same of the second.
        settings: what this process has changed in a library, so that a text would make another loss here, in sentences.
        gap: how far they are apart.
        row: the index of the first position whose losses differ, along the axes of the per-position loss; None where none does, or where
            the losses cannot be told position by position.
        losses_of_row: the losses of that position.
        attempts: what was tried to close the gap, in the order of the fields.
        together: the rules that close it only together, where none does alone, fields first; empty where one does, or where all do not.
        unseen: the rules in which the two differ all the same, where only rounding is left: these tensors do not show them.
        untried: where nothing was tried, why, in a sentence; else None.
        widened: whether the two are no further apart than rounding in the half type of the predictions, and their rules are: what is
            said of the gap is then of their specs in float32.
        rules: the rules of those attempts that closed it, each by itself.
    """

    a: str
    b: str
    value_a: Array | None
    value_b: Array | None
    gradient_a: Array | None
    gradient_b: Array | None
    error_a: str | None
    error_b: str | None
    ran_a: str
    ran_b: str
    reason_a: str | None
    reason_b: str | None
    settings: tuple[str, ...]
    gap: Gap
    row: tuple[int, ...] | None
    losses_of_row: tuple[float, float] | None
    attempts: tuple[Attempt, ...]
    together: tuple[str, ...]
    unseen: tuple[str, ...]
    untried: str | None
    widened: bool = False

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that close the gap, each by itself."""
        return tuple(attempt.rule for attempt in self.attempts if attempt.gap.closed)

    @property
    def same(self) -> bool:
        """Whether the losses differ by rounding alone."""
        return self.gap.closed

    def __str__(self) -> str:
        lines = [
            f"a: {self.a}",
            f"b: {self.b}",
            "",
            f"a gives {_said(self.value_a, self.error_a, self.ran_a)}",
            f"b gives {_said(self.value_b, self.error_b, self.ran_b)}",
            *(
                f"{letter} itself was not run: {reason}"
                for letter, reason in (("a", self.reason_a), ("b", self.reason_b))
                if reason is not None
            ),
            *(
                setting
                for setting in self.settings
                if setting not in (self.reason_a, self.reason_b)
            ),
        ]
        if self.value_a is None and self.value_b is None:
            return "\n".join([*lines, "Both are errors: there are no numbers to compare."])
        if self.widened:
            lines.append(
                "In the half type of the predictions only rounding is left; what follows is of their specs in float32."
            )
        one_failed = self.value_a is None or self.value_b is None
        lines.append("One of them is an error." if one_failed else f"The {self.gap}.")
        if self.same:
            unseen = (
                f"They differ in rules that these tensors do not show: {', '.join(self.unseen)}."
            )
            return "\n".join([*lines, *([unseen] if self.unseen else []), "Only rounding is left."])
        if self.row is not None and self.losses_of_row is not None:
            first, second = map(number, self.losses_of_row)
            lines.append(
                f"The first position that differs is {list(self.row)}: {first} and {second}."
            )
        lines.append("")
        for attempt in self.attempts:
            verdict = "closes the gap" if attempt.gap.closed else "does not close it"
            lines.append(f"{attempt.rule}: {attempt.change} {verdict} ({attempt.gap}).")
            if attempt.reason is not None:
                lines.append(f"  {attempt.reason}")
        if self.untried is not None:
            lines.append(self.untried)
        elif self.together:
            lines.append(
                f"No single rule closes the gap; together these do: {', '.join(self.together)}."
            )
        elif not self.rules:
            lines.append("No rule closes the gap, and all of them together do not.")
        return "\n".join(lines)


def _said(value: Array | None, error: str | None, ran: str) -> str:
    told = str(error) if value is None else _written(value)
    return f"{told} (its spec does)" if ran == "instead" else told


def _written(value: Array) -> str:
    if value.size == 1:
        return f"{number(value.item())} in {value.dtype}"
    return (
        f"{value.dtype} of shape {value.shape}, from {number(value.min())} to {number(value.max())}"
        if value.size
        else "nothing"
    )


def port_report(
    a: Any, b: Any, predictions: Any, targets: Any, sample_weight: Any = None, mask: Any = None
) -> PortReport:
    """Run two losses on the same tensors, and find what sets them apart.

    Args:
        a: a spec, a loss of another library, or the text of either, as `from_native` reads them. An object is run as it is; of text, that
            is run which a person would make of it.
        b: the same.
        predictions: floating tensor of any known framework, or nested lists. It is read as a NumPy array, and each library is given its
            own tensors. Where the package ml_dtypes is not loaded NumPy has no bfloat16, and such a tensor of torch is read in float32.
        targets: likewise. Labels become one-hot rows for a loss that takes no labels.
        sample_weight: weights of positions, or None. Of losses that take none, the spec is run.
        mask: True where a position counts, or None. No loss of another library takes one: of each, the spec is run, and the report says so.

    Returns:
        An object that prints as text: both values and how far they are apart, in units in the last place; the first position that
        differs; and, tried one by one, which single rule, made the same in both, closes the gap. If only rounding is left it says so.

    Raises:
        SpecTypeError, SpecValueError: `a` or `b` is no loss that is known.
        UnsupportedError: a loss that no spec computes cannot be run here.
        ShapeError: lists are no array, as where rows have different lengths.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        spec = ul.CrossEntropyLoss(from_logits=True)
        report = ul.port_report(spec, spec.replace(label_smoothing=0.1), logits, [0, 1])
        assert report.rules == ("label_smoothing",)
        ```
    """
    one, other = side_of(a), side_of(b)
    x = Input(
        _array("predictions", predictions),
        _array("targets", targets),
        _array("sample_weight", sample_weight),
        mask=_array("mask", mask),
    )
    first, second = one.outcome(x), other.outcome(x)
    gap = gap_of(first, second)
    hidden = _widened(one, other, x) if gap.closed else None
    if hidden is not None:
        one, other, x = hidden
        gap = gap_of(one.outcome(x), other.outcome(x))
    row, losses = (None, None) if gap.closed else _first_row(one, other, x)
    attempts = () if gap.closed else tuple(_attempts(one, other, x))
    alone = gap.closed or any(attempt.gap.closed for attempt in attempts)
    return PortReport(
        one.name, other.name, first.value, second.value, first.gradient, second.gradient, first.error, second.error,
        first.ran, second.ran, first.reason, second.reason, settings_of(one, other),
        gap, row, losses, attempts, () if alone else _together(one, other, x),
        _unseen(one, other) if gap.closed else (), None if gap.closed or attempts else _untried(one, other), hidden is not None,
    )  # fmt: skip


def _widened(a: Side, b: Side, x: Input) -> tuple[Side, Side, Input] | None:
    """The specs, and the tensors in float32, where rules set the losses apart by less than a half type tells; else None."""
    near_a, near_b = nearest(a), nearest(b)
    if (
        x.predictions.dtype.name not in HALF_TYPES
        or near_a is None
        or type(near_a) is not type(near_b)
    ):
        return None
    assert near_b is not None
    targets = x.targets.astype(np.float32) if x.targets.dtype.name in HALF_TYPES else x.targets
    wide = replace(x, predictions=x.predictions.astype(np.float32), targets=targets)
    first, second = run_spec(near_a, wide), run_spec(near_b, wide)
    if gap_of(first, second).closed or not all(
        gap_of(run_spec(near, x), each).closed for near, each in ((near_a, first), (near_b, second))
    ):
        return None
    return Side(a.name, near_a), Side(b.name, near_b), wide


def _unseen(a: Side, b: Side) -> tuple[str, ...]:
    """The rules in which two losses differ, by their specs or by the arguments that no spec can say."""
    near_a, near_b = nearest(a), nearest(b)
    refused = dict.fromkeys(name for name in map(_refused, (a, b)) if name is not None)
    if a.name == b.name:
        return ()
    if near_a is None or near_b is None:
        return tuple(refused)
    kinds = () if type(near_a) is type(near_b) else ("loss",)
    return (*refused, *kinds, *differing(near_a, near_b))


def _refused(side: Side) -> str | None:
    """The rule of a loss's arguments that keeps it from being a spec; None for a spec."""
    if side.spec is not None or side.call is None:
        return None
    refusal = refusal_of(side.call)
    return "not_imported" if refusal is None else refusal.name


def _untried(a: Side, b: Side) -> str:
    """Why no rule was tried."""
    near_a, near_b = nearest(a), nearest(b)
    for side, near in ((a, near_a), (b, near_b)):
        if near is None:
            return f"No rule was tried, as no spec is near {side.name}: {side.refusal}"
    if type(near_a) is not type(near_b):
        kinds = " and a ".join(type(near).__name__ for near in (near_a, near_b))
        return f"No rule was tried, as the losses are of two kinds: a {kinds}."
    return (
        "The rules of both are the same; this comes from what one of them does with these values."
    )


def _array(name: str, tensor: Any) -> Any:
    """Any framework's tensor as a NumPy array."""
    if tensor is None or isinstance(tensor, np.ndarray | list | tuple | int | float):
        try:
            return None if tensor is None else np.asarray(tensor)
        except ValueError as error:  # lists of different lengths
            msg = f"{name} cannot be read as an array of numbers: {error}"
            raise ShapeError(msg) from error
    adapter: Any = registry.adapter(backend_of(tensor, name))
    return as_bfloat16(tensor, np.asarray(adapter.to_numpy(tensor)))


# ---------------------------------------------------------------------------------------- distances


def gap_of(a: Outcome, b: Outcome) -> Gap:
    """How far two outcomes are apart."""
    if a.value is None or b.value is None:
        return Gap(0.0 if a.value is None and b.value is None else float("inf"), None)
    gradient, limit = None, _FEW_ULPS
    if a.gradient is not None and b.gradient is not None:
        gradient, limit = _ulps(a.gradient, b.gradient), _limit(a.gradient, b.gradient)
    return Gap(_ulps(a.value, b.value), gradient, _limit(a.value, b.value), limit)


def _limit(a: Array, b: Array) -> int:
    """How many units in the last place of the coarser dtype count as rounding."""
    return _FEW_HALF_ULPS if {a.dtype.name, b.dtype.name} & {*HALF_TYPES} else _FEW_ULPS


def _ulps(a: Array, b: Array) -> float:
    """The largest distance, in units in the last place of the coarser dtype; at 1, or at the largest number, where that is larger.

    What a kernel makes of one row is as exact as the largest of its terms, and a mean as exact as the largest of its rows.
    """
    if a.size != b.size:
        return float("inf")
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    special = ~(np.isfinite(x) & np.isfinite(y))
    if not np.all((x == y) | ~special | (np.isnan(x) & np.isnan(y))):
        return float("inf")
    x, y = x[~special], y[~special]
    if not x.size:
        return 0.0
    epsilon = max(
        FORMATS[array.dtype.name].epsilon for array in (a, b) if array.dtype.name in FORMATS
    )
    return float(np.max(np.abs(x - y)) / (epsilon * _scale(x, y)))


def _scale(x: Array, y: Array) -> float:
    """The number at which one unit in the last place is taken."""
    largest = float(max(np.max(np.abs(x)), np.max(np.abs(y))))
    # A gradient of a mean over many rows is small as a whole; a loss near 0 is the difference of numbers near 1.
    return largest if 0.0 < largest < _SMALL or largest > 1.0 else 1.0


_SMALL = 2.0**-6


# ---------------------------------------------------------------------------------------- positions


def _first_row(
    a: Side, b: Side, x: Input
) -> tuple[tuple[int, ...] | None, tuple[float, float] | None]:
    """The first position whose losses differ, and its losses."""
    outcomes = [_per_position(side, x) for side in (a, b)]
    values = [None if outcome is None else outcome.value for outcome in outcomes]
    if values[0] is None or values[1] is None:
        return None, None
    first, second = _common(values[0], values[1])
    if first.shape != second.shape:
        return None, None
    p, q = first.astype(np.float64), second.astype(np.float64)
    tolerance = _limit(first, second) * max(
        FORMATS[array.dtype.name].epsilon
        for array in (first, second)
        if array.dtype.name in FORMATS
    )
    bad = ~np.isclose(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not bad.any():
        return None, None
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return index, (float(p[index]), float(q[index]))


def _common(a: Array, b: Array) -> tuple[Array, Array]:
    """The losses of both on the positions they share: those of elements are averaged where the other has one per row."""
    while a.ndim > b.ndim:
        a = a.mean(axis=-1)
    while b.ndim > a.ndim:
        b = b.mean(axis=-1)
    return a, b


def _per_position(side: Side, x: Input) -> Outcome | None:
    """The losses of all positions: the library's own where it can be asked for them, else those of the spec."""
    spec = nearest(side)
    if spec is None:
        return None
    each = spec.replace(reduction="none")
    if side.call is None:
        return run_spec(each, x)
    try:
        outcome = unreduced(side).outcome(x)
        if outcome.value is not None:
            return outcome
    except (UnsupportedError, SpecTypeError, SpecValueError):
        pass
    return run_spec(each, x)


# ----------------------------------------------------------------------------------------- attempts


def _attempts(a: Side, b: Side, x: Input) -> list[Attempt]:
    """Each rule that differs, made the same, and what is left then."""
    near_a, near_b = nearest(a), nearest(b)
    if near_a is None or near_b is None:
        return []
    found = [*_by_arguments(a, b, near_a, near_b, x)]
    if type(near_a) is type(near_b):
        found += _by_fields(a, b, near_a, near_b, x)
        found += _by_deviations(a, b, near_a, near_b, x)
    return found


def _by_fields(a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss, x: Input) -> list[Attempt]:
    if gap_of(run_spec(near_a, x), run_spec(near_b, x)).closed:
        return []  # the rules of specs are not what sets the two apart here
    first, found = a.outcome(x), []
    for group in _groups(near_a, near_b):
        made_same = changed(near_b, near_a, group)
        if made_same is None:
            continue
        rules, change = (
            list(group),
            "b with " + ", ".join(f"{name}={getattr(near_a, name)!r}" for name in group),
        )
        second = _with_fields(b, near_b, made_same, x)
        if second is None:
            rules.append(_deviation(b, near_b, x)[0])
            change, second = (
                change.replace("b with", "b as its spec has it, with"),
                run_spec(made_same, x),
            )
        found.append(Attempt(", ".join(rules), change, gap_of(first, second)))
    return found


def _with_fields(side: Side, near: AnyLoss, made_same: AnyLoss, x: Input) -> Outcome | None:
    """What comes of a loss whose fields were changed.

    Where it does what its spec does not, it takes a loss of its library to tell whether it still does; None where that has none.
    """
    if side.call is None or not _deviates(side, near, x):
        return run_spec(made_same, x)
    try:
        return side_of(call_of(made_same, side.call.library, side.call.backend)).outcome(x)
    except UnsupportedError:
        return None


def _deviates(side: Side, near: AnyLoss, x: Input) -> bool:
    """Whether a loss does on these tensors what its spec does not."""
    if side.call is None or side.spec is None:
        return False
    own = side.outcome(x)
    return own.ran == "native" and not gap_of(own, run_spec(near, x)).closed


def _groups(a: AnyLoss, b: AnyLoss) -> list[tuple[str, ...]]:
    """The fields that differ and that change numbers by more than rounding."""
    return groups(a, b, [name for name in differing(a, b) if name != "rounding"])


def _together(a: Side, b: Side, x: Input) -> tuple[str, ...]:
    """The rules that close it only together, none of which can be left out; nothing where all of them do not."""
    near_a, near_b = nearest(a), nearest(b)
    if near_a is None or near_b is None or type(near_a) is not type(near_b):
        return ()
    own = {letter: _deviation(side, near, x)[0] for letter, side, near in (("a", a, near_a), ("b", b, near_b))
           if _deviates(side, near, x)}  # fmt: skip
    needed: list[str | tuple[str, ...]] = [*own, *_groups(near_a, near_b)]

    def closes(rules: list[str | tuple[str, ...]]) -> bool:
        made_same = changed(
            near_b, near_a, [name for group in rules if isinstance(group, tuple) for name in group]
        )
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
    fields = [name for group in needed if isinstance(group, tuple) for name in group]
    return (*fields, *dict.fromkeys(name for letter, name in own.items() if letter in needed))


def _by_deviations(a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss, x: Input) -> list[Attempt]:
    """What the losses themselves do otherwise than their specs, on these tensors."""
    found = []
    for side, spec, other, letter in ((a, near_a, b, "a"), (b, near_b, a, "b")):
        if _deviates(side, spec, x):
            names, reason = _deviation(side, spec, x)
            left = gap_of(run_spec(spec, x), other.outcome(x))
            found.append(Attempt(names, f"{letter} as its spec has it", left, reason))
    return found


def _deviation(side: Side, near: AnyLoss, x: Input) -> tuple[str, str | None]:
    """The rule by which a loss does what its spec does not, and what it does; where no sign tells them apart, all it may be."""
    assert side.call is not None
    rules = told(side, x)
    names = [name for name, _ in rules or rules_of(near, side.call)] or ["unlisted"]
    return " or ".join(dict.fromkeys(names)), " Or: ".join(
        dict.fromkeys(text for _, text in rules)
    ) or None


def told(side: Side, x: Input) -> list[tuple[str, str]]:
    """The rules that can be at work where a loss differs from its spec, told by what the tensors hold."""
    assert side.call is not None
    assert side.spec is not None
    own, expected = side.outcome(x), run_spec(side.spec, x)
    held = quirks_shown_by(side.spec, x)
    if weight_dtype(side) not in (None, x.predictions.dtype.name):
        held = held | {"weight_dtype"}
    # A rule of gradients alone is not what sets values apart.
    gap = gap_of(own, expected)
    values = gap.value > gap.limit
    kind = _kind(side.adapted(x))
    return [
        (quirk.name, quirk.sentence(side.call))
        for quirk in QUIRKS
        if quirk.name in held
        and (kind is None or quirk.kind in (None, kind))
        and _concerns(quirk, side)
        and quirk.has(side.call)
        and not (values and quirk.of == "gradient" and quirk.name in _OF_GRADIENTS)
    ]


def _concerns(quirk: Quirk, side: Side) -> bool:
    """Whether a loss takes what a rule is about; of the dtype of its weights the object tells more than its call."""
    assert side.spec is not None
    when = None if quirk.name == "weight_dtype" else quirk.when
    return replace(quirk, when=when).concerns(side.spec, side.call)


def _kind(x: Input) -> str | None:
    """The kind of targets, "index" or "dense"; None where their shape is that of neither, or there is no axis beside the classes."""
    if x.predictions.ndim <= 1:
        return None
    if x.targets.shape == x.predictions.shape:
        return "dense"
    return (
        "index"
        if x.targets.ndim == x.predictions.ndim - 1 and x.targets.dtype.kind in "iu"
        else None
    )


_OF_GRADIENTS = frozenset(
    {
        "target_sum",
        "gradient_at_zero",
        "clip_tie",
        "half_gradient",
        "nan_in_ignored",
        "weightless_mean",
    }
)
"""Rules about gradients, and never about values."""


def _by_arguments(a: Side, b: Side, near_a: AnyLoss, near_b: AnyLoss, x: Input) -> list[Attempt]:
    """The rule of arguments that no spec can say, taken away."""
    found = []
    for side, spec, other, letter in ((a, near_a, b, "a"), (b, near_b, a, "b")):
        refusal = None if side.call is None or side.spec is not None else refusal_of(side.call)
        if refusal is not None:
            left = gap_of(run_spec(spec, x), other.outcome(x))
            found.append(
                Attempt(
                    refusal.name,
                    f"{letter} without it, as {spec!r}",
                    left,
                    refusal.sentence(side.call),
                )
            )
    return found
