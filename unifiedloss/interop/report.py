"""Run two losses on the same tensors, and find the first position and the rules that differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unifiedloss import registry
from unifiedloss.errors import ShapeError, SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.floats import FORMATS, HALF_TYPES
from unifiedloss.hints import hints
from unifiedloss.interop.arrays import as_bfloat16
from unifiedloss.interop.attempts import Attempt, attempts_of, closing_rules
from unifiedloss.interop.diff import nearest, rules
from unifiedloss.interop.distance import Gap, coarsest, gap_of, rounding_limit
from unifiedloss.interop.kinds import two_kinds
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
from unifiedloss.owners import backend_of


@dataclass(frozen=True, eq=False)
class PortReport:
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

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that close the gap, each by itself."""
        return tuple(attempt.rule for attempt in self.attempts if attempt.gap.closed)

    @property
    def same(self) -> bool:
        """Whether the losses differ by rounding at most."""
        return self.gap.closed

    def __str__(self) -> str:
        lines = [
            f"a: {self.a}",
            f"b: {self.b}",
            "",
            f"a gives {_result(self.value_a, self.error_a, self.ran_a)}",
            f"b gives {_result(self.value_b, self.error_b, self.ran_b)}",
        ]
        reasons = (self.reason_a, self.reason_b)
        for letter, reason in zip("ab", reasons, strict=True):
            if reason is not None:
                lines.append(f"{letter} itself was not run: {reason}")
        lines += [setting for setting in self.settings if setting not in reasons]
        lines += self.converted
        lines += self.hints
        if self.value_a is None and self.value_b is None:
            return "\n".join([*lines, "Both are errors: there are no numbers to compare."])
        if self.widened:
            lines.append(
                "In the half type of the predictions only rounding is left; "
                "what follows is of their specs in float32."
            )
        gap = str(self.gap)
        lines.append(f"The {gap}." if gap.startswith("value") else f"{gap[0].upper()}{gap[1:]}.")
        if self.same and not self.unseen:
            return "\n".join([*lines, "Only rounding is left."])
        if self.same:
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


def _result(value: Array | None, error: str | None, ran: str) -> str:
    text = str(error) if value is None else _written(value)
    return f"{text} (its spec does)" if ran == "instead" else text


def _written(value: Array) -> str:
    if value.size == 1:
        return f"{number(value.item())} in {value.dtype}"
    if not value.size:
        return "nothing"
    low, high = number(value.min()), number(value.max())
    return f"{value.dtype} of shape {value.shape}, from {low} to {high}"


def port_report(
    a: Any, b: Any, predictions: Any, targets: Any, sample_weight: Any = None, mask: Any = None
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

    Returns:
        An object that prints as text: both values and their distance in units in the last place;
        the first position that differs; and which single rule, made the same in both losses, closes
        the gap. If only rounding is left, the text says so, and names the rules in which the losses
        differ all the same.

    Raises:
        SpecTypeError, SpecValueError: `a` or `b` is not a known loss.
        UnsupportedError: a loss that no spec computes cannot be run here.
        ShapeError: nested lists are not an array, for example if rows have different lengths.

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
        own=(predictions, targets, sample_weight),
    )
    given, first, second = x, one.outcome(x), other.outcome(x)
    gap = gap_of(first, second)
    widened = _widened(one, other, x) if gap.closed else None
    if widened is not None:
        one, other, x = widened
        gap = gap_of(one.outcome(x), other.outcome(x))
    row, losses = (None, None) if gap.closed else _first_row(one, other, x)
    attempts = () if gap.closed else tuple(attempts_of(one, other, x))
    one_closes = gap.closed or any(attempt.gap.closed for attempt in attempts)
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
        losses_of_row=losses,
        attempts=attempts,
        together=() if one_closes else closing_rules(one, other, x),
        unseen=rules(one, other) if gap.closed else (),
        untried=None if one_closes else _untried(one, other, attempts),
        widened=widened is not None,
        converted=(*_read_as(x), *_converted(first, second)),
        hints=_hints(one, other, given),
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


def _converted(first: Outcome, second: Outcome) -> list[str]:
    """Say what was converted for each loss."""
    return [
        f"For {letter}, {said}."
        for letter, outcome in (("a", first), ("b", second))
        for said in outcome.converted
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


def _first_row(
    a: Side, b: Side, x: Input
) -> tuple[tuple[int, ...] | None, tuple[float, float] | None]:
    """Find the first position whose losses differ, and return its index and its two losses."""
    outcomes = [_per_position(side, x) for side in (a, b)]
    values = [None if outcome is None else outcome.value for outcome in outcomes]
    if values[0] is None or values[1] is None:
        return None, None
    first, second = _common(values[0], values[1])
    if first.shape != second.shape:
        return None, None
    p, q = first.astype(np.float64), second.astype(np.float64)
    tolerance = rounding_limit(first, second) * FORMATS[coarsest(first, second)].epsilon
    differs = ~np.isclose(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)
    if not differs.any():
        return None, None
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    return index, (float(p[index]), float(q[index]))


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
