"""Run two losses on the same tensors, and find the first position and the rules that differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unifiedloss import registry
from unifiedloss.errors import (
    ShapeError,
    SpecTypeError,
    SpecValueError,
    UnifiedLossError,
    UnsupportedError,
)
from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.hints import hints
from unifiedloss.interop.arrays import as_bfloat16
from unifiedloss.interop.attempts import Attempt, attempts_of, closing_rules, remedy_of
from unifiedloss.interop.diff import by_use, nearest, rules
from unifiedloss.interop.distance import Gap, coarsest, gap_of, rounding_limit
from unifiedloss.interop.kinds import two_kinds
from unifiedloss.interop.layouts import batch_of
from unifiedloss.interop.report_text import capitalized, first_of, percents, result, written
from unifiedloss.interop.sentences import sentence
from unifiedloss.interop.sides import (
    Array,
    Input,
    Outcome,
    Side,
    number,
    run_spec,
    settings_of,
    side_of,
    unreduced,
)
from unifiedloss.interop.tensors import Tensors, tensors_of
from unifiedloss.notebook import Shown
from unifiedloss.owners import backend_of


@dataclass(frozen=True, eq=False)
class PortReport(Shown):
    """The results of two losses on the same tensors, and the rules that close their gap.

    ``str()`` describes them.

    Attributes:
        a: the first loss, as it was written.
        b: the second loss, as it was written.
        value_a: the value of the first loss; None after an error.
        value_b: the same for the second.
        gradient_a: the gradient of the first loss with respect to the predictions; None after an
            error, or if its library computes no gradients.
        gradient_b: the same for the second.
        error_a: the error that the first loss raised, or None.
        error_b: the same for the second.
        ran_a: "native" if the first loss itself was run; "instead" if its spec was run in its
            place, because its library is not installed or refused the tensors, or because Keras
            runs on another backend; "spec" for a spec.
        ran_b: the same for the second.
        reason_a: a sentence that says why the spec of the first loss was run in its place, or None.
        reason_b: the same for the second.
        settings: sentences about global settings of a library that this process has changed, and
            that change which loss a text makes.
        gap: the distance between the two results.
        row: the index of the first position whose losses differ, along the axes of the unreduced
            loss; None if no position differs, or if the losses have no common positions.
        losses_of_row: the losses of that position, or None.
        attempts: the changes that were tried to close the gap, in the order of the fields.
        together: the rules that close the gap only together, fields first; empty if a single rule
            closes it, or if all together do not.
        unseen: if only rounding is left, the rules in which the losses differ, as `diff` names
            them, although these tensors do not show it.
        untried: a sentence that says why no rule, or no other rule, was tried; None if one was.
        widened: whether the rules differ by less than the rounding of the half type of the
            predictions. The gap and everything after it then compare the specs in float32.
        converted: sentences about tensors that were converted before a loss got them, and about
            the rule because of which they were.
        hints: sentences about what the tensors suggest, as `check` gives them, each with the losses
            that it concerns: rows that sum to 1 where logits are expected, one class, swapped
            arguments. A hint is no difference, and no error.
        losses_a: the losses of all positions of the first loss, in float64; None if they have no
            positions in common.
        losses_b: the same for the second.
        layout: sentences about the layout of the tensors of each loss, and about numbers in which
            the tensors of the second loss differ from those of the first.
        value_b_own: the value of the second loss with its own tensors, if their numbers are others
            than those of the first; else None. All else is on the tensors of the first.
        gap_own: the distance between the results of each loss on its own tensors, or None.
        sentences: what each loss does, for the rules that were tried and are fields.
        divisors: what either mean divides by on these tensors; None if one is no mean.
        remedy: a sentence with the loss that b should be to equal a; None if there is none.
        tensors: shapes, dtypes and hashes of the tensors, and how many positions each loss counts.
        rules: the rules that close the gap, each by itself.
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
    converted: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    losses_a: Array | None = None
    losses_b: Array | None = None
    layout: tuple[str, ...] = ()
    value_b_own: Array | None = None
    gap_own: Gap | None = None
    sentences: dict[str, tuple[str, str]] = field(default_factory=dict)
    divisors: tuple[float, float] | None = None
    remedy: str | None = None
    tensors: Tensors | None = None

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that close the gap, each by itself."""
        return tuple(attempt.rule for attempt in self.attempts if attempt.gap.closed)

    @property
    def seen(self) -> tuple[Attempt, ...]:
        """The attempts with rules that the tensors see, or that close the gap with others."""
        chosen = {*self.rules, *self.together}
        return tuple(each for each in self.attempts if each.seen or each.rule in chosen)

    @property
    def same(self) -> bool:
        """Whether the losses differ by rounding at most, also each on its own tensors."""
        return self.gap.closed and (self.gap_own is None or self.gap_own.closed)

    @property
    def verdict(self) -> str:
        """What the report says, in one sentence."""
        if self.value_a is None and self.value_b is None:
            return "Both losses are errors on these tensors."
        if self.same:
            return "The losses are the same on these tensors: only rounding is left."
        if self.gap.closed:
            return "The losses are the same on the same tensors, but those of a and b differ."
        if self.rules:
            return f"The losses differ, and one rule closes the gap: {' or '.join(self.rules)}."
        if self.together:
            rules = ", ".join(self.together)
            return f"The losses differ in several rules, which close the gap together: {rules}."
        return "The losses differ, and no rule that is known closes the gap."

    @property
    def brief(self) -> str:
        """The report with the verdict first, and only the rules that these tensors see."""
        lines = [self.verdict, *self.hints, ""]
        for letter, name, value, error, ran in (
            ("a", self.a, self.value_a, self.error_a, self.ran_a),
            ("b", self.b, self.value_b, self.error_b, self.ran_b),
        ):
            lines += [f"{letter}: {name}", f"   gives {result(value, error, ran)}"]
        reasons = (self.reason_a, self.reason_b)
        for letter, reason in zip("ab", reasons, strict=True):
            if reason is not None:
                lines.append(f"{letter} itself was not run: {reason}")
        lines += self._on_tensors()
        if self.gap.closed:
            if self.unseen:
                lines.append(f"Not seen by these tensors: {first_of(by_use(self.unseen))}.")
            return "\n".join(lines)
        lines.append(f"{capitalized(str(self.gap))}{percents(self.value_a, self.value_b)}.")
        if self.divisors is not None and self.divisors[0] != self.divisors[1]:
            first, second = map(number, self.divisors)
            lines.append(f"On this batch a divides by {first}, and b by {second}.")
        if self.row is not None and self.losses_of_row is not None:
            first, second = map(number, self.losses_of_row)
            lines.append(
                f"The first position that differs: {list(self.row)}, {first} and {second}."
            )
        seen = self.seen
        for attempt in sorted(seen, key=lambda each: not each.gap.closed):
            lines += ["", *self._attempt(attempt)]
        if self.remedy is not None:
            lines += ["", self.remedy]
        unseen = [each.rule for each in self.attempts if each not in seen]
        if unseen:
            lines += ["", f"Not seen by these tensors: {first_of(by_use(unseen))}."]
        if self.untried is not None:
            lines += ["", self.untried]
        return "\n".join(lines)

    def _attempt(self, attempt: Attempt) -> list[str]:
        verdict = "closes the gap" if attempt.gap.closed else "does not close it alone"
        lines = [f"{attempt.rule}: {attempt.change} {verdict}."]
        if attempt.after is not None:
            lines.append(f"  {attempt.effect[0].upper()}{attempt.effect[1:]}")
        for name in attempt.rule.split(", "):
            for letter, text in zip("ab", self.sentences.get(name, ()), strict=False):
                lines.append(f"  {letter}: {text}")
        if attempt.reason is not None:
            lines.append(f"  {attempt.reason}")
        return lines

    def _on_tensors(self) -> list[str]:
        """What is said about the tensors before the losses are compared."""
        lines = [*self.layout]
        if self.gap_own is not None:
            own = "an error" if self.value_b_own is None else written(self.value_b_own)
            lines.append(
                f"With its own tensors b gives {own}: {self.gap_own}. The rest is on those of a, "
                "which show what the losses alone do."
            )
        reasons = (self.reason_a, self.reason_b)
        lines += [setting for setting in self.settings if setting not in reasons]
        return [*lines, *self.converted]

    def __str__(self) -> str:
        lines = [
            f"a: {self.a}",
            f"b: {self.b}",
            "",
            f"a gives {result(self.value_a, self.error_a, self.ran_a)}",
            f"b gives {result(self.value_b, self.error_b, self.ran_b)}",
        ]
        reasons = (self.reason_a, self.reason_b)
        for letter, reason in zip("ab", reasons, strict=True):
            if reason is not None:
                lines.append(f"{letter} itself was not run: {reason}")
        lines += [*self._on_tensors(), *self.hints]
        if self.value_a is None and self.value_b is None:
            return "\n".join([*lines, "Both are errors: there are no numbers to compare."])
        if self.widened:
            lines.append(
                "In the half type of the predictions only rounding is left; "
                "what follows is of their specs in float32."
            )
        lines.append(f"{capitalized(str(self.gap))}.")
        if self.gap.closed and not self.unseen:
            return "\n".join([*lines, "Only rounding is left."])
        if self.gap.closed:
            unseen = ", ".join(self.unseen)
            lines.append(f"They differ in rules that change nothing here but rounding: {unseen}.")
            return "\n".join([*lines, "On these tensors only rounding is left."])
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


def port_report(
    a: Any,
    b: Any,
    predictions: Any,
    targets: Any,
    sample_weight: Any = None,
    mask: Any = None,
    *,
    predictions_b: Any = None,
    targets_b: Any = None,
) -> PortReport:
    """Run two losses on the same tensors, and find the rules that make their results differ.

    Args:
        a: a spec, a loss of another library, or the text of either, as `from_native` reads them. An
            object is run unchanged; text is run as the loss that its library makes of it.
        b: the same for the second loss.
        predictions: floating tensor of any known framework, or nested lists. A loss gets a tensor
            of its own framework unchanged. For a spec, and for a loss of another framework, it is
            read as a NumPy array. NumPy has bfloat16 only if the package ml_dtypes is loaded;
            without it, a bfloat16 tensor of torch is read in float32.
        targets: likewise. Labels become one-hot rows for a loss that takes no labels, and integers
            get the dtype that a loss takes. The report says which tensors were converted, unless
            only the framework changed.
        sample_weight: weights of positions, or None. For a loss that takes none, its spec is run.
        mask: True where a position counts, or None. No loss of another library takes a mask: the
            spec is run in its place, and the report says so.
        predictions_b: the predictions of the second loss, if it has its own: the same batch with
            the class axis elsewhere, or what the ported model computed. Where one tensor serves
            both losses, and the labels show that its class axis is that of one of them, it is
            moved for the other, and the report says so.
        targets_b: likewise, such as one-hot rows beside labels.

    Returns:
        An object that prints as text: both values and their distance in units in the last place;
        the first position that differs; and which single rule, made the same in both losses, closes
        the gap. If only rounding is left, the text says so, and names the rules in which the losses
        differ all the same.

    Raises:
        SpecTypeError, SpecValueError: `a` or `b` is not a known loss.
        UnsupportedError: a loss that no spec computes cannot be run here.
        ShapeError: nested lists are not an array, for example if rows have different lengths; or
            the tensors of the second loss are no layout of a batch of the same size.

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
    of_a = _input(predictions, targets, sample_weight, mask)
    separate = predictions_b is not None or targets_b is not None
    of_b = None
    if separate:
        of_b = _input(
            predictions if predictions_b is None else predictions_b,
            targets if targets_b is None else targets_b,
            sample_weight,
            mask,
        )
    batch = batch_of(side_of(a), side_of(b), of_a, of_b)
    one, other, x = batch.a, batch.b, batch.x
    given, first, second = x, one.outcome(x), other.outcome(x)
    own = None if batch.own is None else other.outcome(batch.own)
    gap = gap_of(first, second)
    widened = _widened(one, other, x) if gap.closed else None
    if widened is not None:
        one, other, x = widened
        gap = gap_of(one.outcome(x), other.outcome(x))
    losses = _common_losses(one, other, x)
    row = None if gap.closed or losses is None else _first_row(*losses)
    attempts = () if gap.closed else tuple(attempts_of(one, other, x))
    one_closes = gap.closed or any(attempt.gap.closed for attempt in attempts)
    together = () if one_closes else closing_rules(one, other, x)
    return PortReport(
        a=one.name,
        b=other.name,
        value_a=first.value,
        value_b=second.value,
        gradient_a=first.gradient,
        gradient_b=second.gradient,
        error_a=first.error,
        error_b=second.error,
        ran_a=first.ran,
        ran_b=second.ran,
        reason_a=first.reason,
        reason_b=second.reason,
        settings=settings_of(one, other),
        gap=gap,
        row=row,
        losses_of_row=None if losses is None or row is None else _at(losses, row),
        attempts=attempts,
        together=together,
        unseen=rules(one, other) if gap.closed else (),
        untried=None if one_closes else _untried(one, other, attempts),
        widened=widened is not None,
        converted=(*_read_as(x), *_converted(first, second, batch.said)),
        hints=_hints(one, other, given),
        losses_a=None if losses is None else losses[0].astype(np.float64),
        losses_b=None if losses is None else losses[1].astype(np.float64),
        layout=batch.said,
        value_b_own=None if own is None else own.value,
        gap_own=None if own is None else gap_of(first, own),
        sentences=_sentences(one, other, attempts),
        divisors=None if gap.closed else _divisors(one, other, x),
        remedy=None if gap.closed else remedy_of(one, other, attempts, together),
        tensors=tensors_of(batch, of_a, of_b),
    )


def _divisors(a: Side, b: Side, x: Input) -> tuple[float, float] | None:
    """What either mean divides by; None if one is no mean, or has none here."""
    found = []
    for side in (a, b):
        spec = nearest(side)
        if spec is None or spec.reduction != "mean":
            return None
        try:
            with np.errstate(all="ignore"):
                divisor = spec.replace(rounding="native").divisor_of(
                    x.targets,
                    sample_weight=x.sample_weight,
                    mask=x.mask,
                    dtype=x.predictions.dtype.name,
                )
        except UnifiedLossError:
            return None
        found.append(float(divisor))
    return found[0], found[1]


def _sentences(a: Side, b: Side, attempts: tuple[Attempt, ...]) -> dict[str, tuple[str, str]]:
    """What each loss does, for the fields among the rules that were tried."""
    near_a, near_b = nearest(a), nearest(b)
    names = [name for attempt in attempts for name in attempt.rule.split(", ")]
    return {
        name: (sentence(near_a, name).plain, sentence(near_b, name).plain)
        for name in names
        if near_a is not None
        and near_b is not None
        and name in near_a.declarations
        and name in near_b.declarations
    }


def _input(predictions: Any, targets: Any, sample_weight: Any, mask: Any) -> Input:
    return Input(
        _array("predictions", predictions),
        _array("targets", targets),
        _array("sample_weight", sample_weight),
        mask=_array("mask", mask),
        own=(predictions, targets, sample_weight),
    )


def _widened(a: Side, b: Side, x: Input) -> tuple[Side, Side, Input] | None:
    """Return the specs and the tensors in float32 if a half type hides the difference, else None.

    Return them only if the specs differ in float32 while the float32 value of each spec agrees with
    its value on the given tensors, up to the rounding of the half type.
    """
    near_a, near_b = nearest(a), nearest(b)
    if x.predictions.dtype.name not in HALF_TYPES:
        return None
    if near_a is None or near_b is None or type(near_a) is not type(near_b):
        return None
    targets = x.targets.astype(np.float32) if x.targets.dtype.name in HALF_TYPES else x.targets
    wide = replace(
        x, predictions=x.predictions.astype(np.float32), targets=targets, own=(None, None, None)
    )
    first, second = run_spec(near_a, wide), run_spec(near_b, wide)
    if gap_of(first, second).closed or not all(
        gap_of(run_spec(near, x), each).closed for near, each in ((near_a, first), (near_b, second))
    ):
        return None
    return Side(a.name, near_a), Side(b.name, near_b), wide


def _untried(a: Side, b: Side, attempts: tuple[Attempt, ...]) -> str | None:
    """Say why no rule, or no other rule, was tried; None if rules were."""
    near_a, near_b = nearest(a), nearest(b)
    for side, near in ((a, near_a), (b, near_b)):
        if near is None:
            return f"No rule was tried, as no spec is near {side.name}: {side.refusal}"
    if near_a is not None and near_b is not None and type(near_a) is not type(near_b):
        return f"No {'other ' if attempts else ''}rule was tried, as {two_kinds(near_a, near_b)}"
    if attempts:
        return None
    differ = rules(a, b)
    if differ:
        return (
            "No rule was tried: each loss differs from its spec, and the specs from each other, by "
            f"rounding at most. The losses differ in these rules: {', '.join(differ)}."
        )
    return (
        "The rules of both are the same; this comes from what one of them does with these values."
    )


def _read_as(x: Input) -> list[str]:
    """Say which of the given tensors NumPy has no dtype for."""
    arrays = (x.predictions, x.targets, x.sample_weight)
    return [
        f"For all but losses of its framework, {name} was read in float32, as NumPy has no "
        "bfloat16 here; import ml_dtypes before to keep it."
        for name, own, array in zip(
            ("predictions", "targets", "sample_weight"), x.own, arrays, strict=True
        )
        if array is not None
        and array.dtype == np.float32
        and str(getattr(own, "dtype", "")).endswith("bfloat16")
    ]


def _converted(first: Outcome, second: Outcome, layout: tuple[str, ...]) -> list[str]:
    """Say what was converted for each loss, but for what the layout says."""
    told = any("one-hot rows" in sentence for sentence in layout)
    return [
        f"For {letter}, {said}."
        for letter, outcome in (("a", first), ("b", second))
        for said in outcome.converted
        if not (told and "one-hot rows" in said)
    ]


def _hints(a: Side, b: Side, x: Input) -> tuple[str, ...]:
    """Say what the tensors suggest, and for which of the losses."""
    found: dict[str, list[str]] = {}
    for letter, near in (("a", nearest(a)), ("b", nearest(b))):
        for said in () if near is None else hints(near, x.predictions, x.targets):
            found.setdefault(said, []).append(letter)
    return tuple(f"Hint for {' and '.join(of)}: {said}" for said, of in found.items())


def _array(name: str, tensor: Any) -> Any:
    """Convert a tensor of any framework, a number or nested lists to a NumPy array."""
    if tensor is None or isinstance(tensor, np.ndarray | list | tuple | int | float):
        try:
            return None if tensor is None else np.asarray(tensor)
        except ValueError as error:  # rows have different lengths
            msg = f"{name} cannot be read as an array of numbers: {error}"
            raise ShapeError(msg) from error
    adapter: Any = registry.adapter(backend_of(tensor, name))
    return as_bfloat16(tensor, np.asarray(adapter.to_numpy(tensor)))


def _common_losses(a: Side, b: Side, x: Input) -> tuple[Array, Array] | None:
    """The losses of the positions of both sides; None if they have no positions in common."""
    outcomes = [_per_position(side, x) for side in (a, b)]
    values = [None if outcome is None else outcome.value for outcome in outcomes]
    if values[0] is None or values[1] is None:
        return None
    first, second = _common(values[0], values[1])
    return (first, second) if first.shape == second.shape else None


def _first_row(first: Array, second: Array) -> tuple[int, ...] | None:
    """The index of the first position whose losses differ by more than rounding."""
    p, q = first.astype(np.float64), second.astype(np.float64)
    tolerance = rounding_limit(first, second) * FORMATS[coarsest(first, second)].epsilon
    differs = ~np.isclose(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
    return tuple(int(i) for i in np.argwhere(differs)[0]) if differs.any() else None


def _at(losses: tuple[Array, Array], row: tuple[int, ...]) -> tuple[float, float]:
    return float(losses[0][row]), float(losses[1][row])


def _common(a: Array, b: Array) -> tuple[Array, Array]:
    """Average the last axes of the loss with more axes, so both have one number per position."""
    while a.ndim > b.ndim:
        a = a.mean(axis=-1)
    while b.ndim > a.ndim:
        b = b.mean(axis=-1)
    return a, b


def _per_position(side: Side, x: Input) -> Outcome | None:
    """Compute the loss of every position with the library if it can do so, else with the spec."""
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
