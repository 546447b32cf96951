"""Say what stands between two losses of different kinds, and try it on the tensors of a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unifiedloss.errors import SpecValueError, UnsupportedError
from unifiedloss.interop.diff import changed, differing
from unifiedloss.interop.quirks.tensors import Tensors
from unifiedloss.interop.sides import Array, Input, Outcome, Side, number, run_spec
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.huber.spec import HuberLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Loss
from unifiedloss.text import brief

_SUM_OF_ONE = 1e-2
"""Up to this distance from 1, the probabilities of a row sum to 1 in any dtype."""


@dataclass(frozen=True, eq=False)
class Bridge:
    """A change of one loss that may make it agree with a loss of another kind.

    Attributes:
        rule: the name of the rule, or of several rules that go together.
        change: a description of the change.
        outcome: the result of the changed loss.
        of_a: whether the first loss was changed; otherwise it was the second.
        reason: a sentence that says what stands between the losses.
    """

    rule: str
    change: str
    outcome: Outcome
    of_a: bool
    reason: str


def two_kinds(near_a: Loss, near_b: Loss) -> str:
    """Say that two losses are of two kinds, and what this means if it is known."""
    kinds = " and a ".join(type(near).__name__ for near in (near_a, near_b))
    both = {type(near_a), type(near_b)}
    said = f"the losses are of two kinds: a {kinds}."
    if both == {BinaryCrossEntropyLoss, CrossEntropyLoss}:
        return (
            f"{said} The binary one asks of each element whether it is true, with a sigmoid for "
            "each; the other asks which one of the classes is true, with a softmax over all. They "
            "agree for two classes with the logits [0, z]."
        )
    return said


def bridges(a: Side, b: Side, near_a: Loss, near_b: Loss, x: Input) -> Iterator[Bridge]:
    """Try what is known to stand between two losses of different kinds."""
    for side, near, other, of_a in ((a, near_a, near_b, True), (b, near_b, near_a, False)):
        if isinstance(near, NegativeLogLikelihoodLoss) and isinstance(other, CrossEntropyLoss):
            yield from _log_probabilities(side, near, other, x, of_a=of_a)
        if isinstance(near, HuberLoss) and isinstance(other, MeanSquaredError):
            yield from _squared(near, other, x, of_a=of_a)


# ------------------------------------------------------------- log-probabilities that were no such


def _log_probabilities(
    side: Side,
    near: NegativeLogLikelihoodLoss,
    other: CrossEntropyLoss,
    x: Input,
    *,
    of_a: bool,
) -> Iterator[Bridge]:
    """Run a negative log-likelihood on the logarithms that the cross-entropy takes."""
    axis = Tensors.of(near, x).axis
    if axis is None:
        return
    letter, first = ("a", "b") if of_a else ("b", "a")
    with np.errstate(all="ignore"):
        given = x.predictions.astype(np.float64)
        if other.from_logits:
            rule = "log_softmax"
            shifted = given - given.max(axis, keepdims=True)
            logs = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
            if np.all(np.abs(np.exp(given).sum(axis) - 1) <= _SUM_OF_ONE):
                reason = (
                    "The exponentials of these predictions sum to 1, so that a log_softmax changes "
                    f"no value; it is part of {first}, and changes its gradient."
                )
            else:
                reason = (
                    f"{letter} takes log-probabilities, and the exponentials of these predictions "
                    "do not sum to 1: they are logits, and a log_softmax is missing."
                )
        else:
            rule, logs = "log", np.log(given)
            reason = f"{letter} takes log-probabilities, and {first} probabilities."
    inside = replace(
        x, predictions=logs.astype(x.predictions.dtype), own=(None, *x.own[1:])
    )  # the logarithms, in place of the tensor that was given
    try:
        outcome = side.outcome(inside)
    except UnsupportedError:
        outcome = run_spec(near, inside)
    change = f"{letter} of the {rule} of the predictions"
    outcome = _outside(outcome, given, logs, axis, rule)
    yield Bridge(rule, change, outcome, of_a, reason)
    for spec, fields, written in _with_shared(near, other, ()):
        outcome = _outside(run_spec(spec, inside), given, logs, axis, rule)
        yield Bridge(f"{rule}, {fields}", f"{change}, with {written}", outcome, of_a, reason)


def _outside(outcome: Outcome, given: Array, logs: Array, axis: int, rule: str) -> Outcome:
    """Turn the gradient to the logarithms into that to the predictions."""
    if outcome.gradient is None:
        return outcome
    inner = outcome.gradient.astype(np.float64)
    with np.errstate(all="ignore"):
        outer = (
            inner / given
            if rule == "log"
            else inner - np.exp(logs) * inner.sum(axis, keepdims=True)
        )
    return replace(outcome, gradient=outer.astype(outcome.gradient.dtype))


# --------------------------------------------------------------------- half of the squared error


def _squared(near: HuberLoss, other: MeanSquaredError, x: Input, *, of_a: bool) -> Iterator[Bridge]:
    """Run a Huber loss as the squared error: twice as large, and quadratic everywhere."""
    if x.predictions.shape != x.targets.shape or not x.predictions.size:
        return
    errors = np.abs(x.predictions.astype(np.float64) - x.targets.astype(np.float64))
    beyond, largest = int(np.sum(errors > near.delta)), float(np.max(errors))
    letter = "a" if of_a else "b"
    changes = {"scale": 2 * near.scale}
    if beyond:
        changes["delta"] = largest
    reason = (
        f"The Huber loss is half of the squared error up to delta={number(near.delta)}, and linear "
        f"beyond: here {beyond} of {errors.size} errors are larger."
    )
    try:
        spec = near.replace(**changes)
    except SpecValueError:  # an error is not finite
        return
    written = ", ".join(f"{name}={number(value)}" for name, value in changes.items())
    rule = ", ".join(changes)
    yield Bridge(rule, f"{letter} with {written}", run_spec(spec, x), of_a, reason)
    for shared, fields, others in _with_shared(spec, other, ("scale",)):
        outcome = run_spec(shared.replace(scale=2 * other.scale), x)
        change = f"{letter} with {written}, {others}"
        yield Bridge(f"{rule}, {fields}", change, outcome, of_a, reason)


def _with_shared(
    near: Loss, other: Loss, excluded: tuple[str, ...]
) -> Iterator[tuple[Loss, str, str]]:
    """Give a spec all the fields of the other that both have.

    Yield it with the names of the fields and their values, or nothing if none differs.
    """
    names = [
        name
        for name in differing(near, other)
        if name in near.declarations and name in other.declarations
        if name not in (*excluded, "rounding")
    ]
    made = changed(near, other, names)
    if names and made is not None:
        written = ", ".join(f"{name}={brief(getattr(other, name))}" for name in names)
        yield made, ", ".join(names), written
