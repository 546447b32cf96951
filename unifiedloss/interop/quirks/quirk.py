"""A `Quirk`: one rule of other libraries' losses that no field of a spec can express."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.quirks.tensors import Tensors
from unifiedloss.interop.sides import Array, Input, Outcome, kinds_of, same
from unifiedloss.spec import Loss

Predictions = Literal["logits", "probabilities"]

PREDICTIONS: tuple[Predictions, ...] = ("logits", "probabilities")
"""For a rule that `diff` names only between losses that take the same kind of predictions."""

Of = Literal[
    "value", "gradient", "gradient_only", "digits", "gradient_digits", "sign", "dtype", "shape"
]

When = Callable[[Any, Call | None], object]
"""Whether a quirk applies to a loss, by its spec and its call; a plain spec has no call."""

RECORDED = Path(__file__).with_name("recorded.json")
"""What each loss did at the probes of each quirk it has; ``make quirks`` writes it."""


@dataclass(frozen=True)
class Rule:
    """The name of a rule, the losses it applies to, and what is compared.

    Attributes:
        name: the name of the rule in a difference.
        losses: the spec classes the rule applies to.
        predictions: "logits" or "probabilities" if the rule applies only to such predictions.
        kind: "index" or "dense" if the rule applies only to losses that take such targets.
        of: what is compared: values ("value"), values and gradients ("gradient", or "gradient_only"
            if the values never differ), the leading digits of either, the sign of the values, their
            dtype, or their shape.
        digits: the relative difference up to which digits count as equal.
        case: tells quirks of one loss with the same name apart in the record.
    """

    name: str
    losses: tuple[type[Loss], ...]
    predictions: Predictions | None = None
    kind: Literal["index", "dense"] | None = None
    _: KW_ONLY
    of: Of = "value"
    digits: float = 1e-3
    case: str = ""


@dataclass(frozen=True, eq=False)
class Quirk:
    """What losses do about one rule that no field of a spec can express.

    `recorded.json` says which losses have the quirk: those that differ from their spec at a probe.
    The entry of a loss has a word for its outcome at each probe (see `words`), which tells apart
    what different libraries do.

    Attributes:
        rule: the rule.
        spec: what a spec does, in a sentence.
        answers: what a loss with the quirk does, in a sentence. If losses do different things, map
            patterns of the library's name and the recorded words, such as "* nan nan" or "onnx *",
            to sentences; the first pattern that fits decides.
        probes: makes the inputs on which a loss with the quirk differs from its spec, the smallest
            first.
        shown_by: whether the quirk may change the result for the tensors of a call; None if tensors
            do not show it, because it depends on how the loss is compiled or where its predictions
            come from, or changes only a dtype or the sign of a zero.
        when: which settings the rule applies to; None for all.
        by_hand: which losses have the quirk, where a probe cannot tell; None to read the record.
    """

    rule: Rule
    spec: str
    answers: str | Mapping[str, str]
    probes: Callable[[Layout], Iterable[Input]]
    shown_by: Callable[[Tensors], object] | None
    _: KW_ONLY
    when: When | None = None
    by_hand: Callable[[Call], bool] | None = None

    @property
    def name(self) -> str:
        """The name of the rule in a difference."""
        return self.rule.name

    @property
    def key(self) -> str:
        """The name of the quirk in the record."""
        return f"{self.name}: {self.rule.case}" if self.rule.case else self.name

    def concerns(self, spec: Loss, call: Call | None) -> bool:
        """Whether the rule applies to this loss and its settings."""
        rule = self.rule
        if not isinstance(spec, rule.losses):
            return False
        if self.when is not None and not self.when(spec, call):
            return False
        from_logits = getattr(spec, "from_logits", None)
        if rule.predictions is not None and from_logits is not (rule.predictions == "logits"):
            return False
        return rule.kind is None or call is None or rule.kind in kinds_of(call.name)

    def has(self, call: Call) -> bool:
        """Whether the loss of a call has this quirk."""
        return self._words(call) is not None

    def sentence(self, call: Call | None) -> str:
        """What the loss of a call does, or a spec if `call` is None."""
        words = None if call is None else self._words(call)
        if call is None or words is None:
            return self.spec
        return self.answer(call, words)

    def answer(self, call: Call, words: str) -> str:
        """What a loss with these words for its outcomes does, in a sentence.

        Raises:
            LookupError: no pattern fits, so the library does something that `answers` lacks.
        """
        if isinstance(self.answers, str):
            return self.answers
        sentence = self._answered(call.library, words)
        if sentence is None:
            msg = f"{self.key}: {call} gives {words!r}, and `answers` has no sentence for it."
            raise LookupError(msg)
        return sentence

    def _answered(self, library: str, words: str) -> str | None:
        if isinstance(self.answers, str):
            return self.answers
        fits = (said for at, said in self.answers.items() if fnmatchcase(f"{library} {words}", at))
        return next(fits, None)

    def recorded_answers(self) -> dict[str, list[str]]:
        """What losses with the quirk do, and the names of those that the record knows to do it."""
        found: dict[str, list[str]] = {}
        for name, quirks in recorded().items():
            if self.key in quirks:
                library = Call(name).library.partition("[")[0]
                sentence = self._answered(library, quirks[self.key]) or self.spec
                found.setdefault(sentence, []).append(name)
        if self.by_hand is not None:
            answers = [self.answers] if isinstance(self.answers, str) else self.answers.values()
            found |= {sentence: ["those in which `diff` finds it"] for sentence in answers}
        return found

    def _words(self, call: Call) -> str | None:
        if self.by_hand is not None:
            return "" if self.by_hand(call) else None
        losses = recorded()
        # A loss that is refused with from_logits=True was not run so. What holds for both kinds of
        # predictions is recorded without the argument.
        quirks = losses.get(entry(call)) or losses.get(keyed(call), {})
        return quirks.get(self.key)

    def shown(self, spec: Loss, x: Input) -> bool:
        """Whether the quirk may change the result of a spec's loss for these tensors."""
        if self.shown_by is None or not isinstance(spec, self.rule.losses):
            return False
        with np.errstate(all="ignore"):
            return bool(self.shown_by(Tensors.of(spec, x)))

    def words(self, outcomes: Iterable[Outcome]) -> str:
        """Describe the outcomes of the probes, each in a word.

        "error", "empty", "nan", "inf", "0", "number", or the name of a dtype if dtypes are
        compared; "-" if the library's loss was not run.
        """
        return " ".join(map(self._word, outcomes))

    def _word(self, outcome: Outcome) -> str:
        x = outcome.value
        if outcome.ran != "native":
            return "-"
        if x is None:
            return "error"
        if self.rule.of == "dtype":
            return x.dtype.name
        if not x.size:
            return "empty"
        values = x.astype(np.float64)
        if np.isnan(values).any():
            return "nan"
        if np.isinf(values).any():
            return "inf"
        return "number" if values.any() else "0"

    def differ(self, a: Outcome, b: Outcome) -> bool:
        """Whether two outcomes differ in the quantity that `of` names."""
        if self.rule.of in ("value", "gradient", "gradient_only"):
            return not same(a, b, gradients=self.rule.of != "value")
        if a.value is None or b.value is None:
            return False
        if self.rule.of == "dtype":
            return bool(a.value.dtype != b.value.dtype)
        if self.rule.of == "shape":
            return a.value.shape != b.value.shape
        pair: tuple[Array | None, Array | None] = (a.value, b.value)
        if self.rule.of == "gradient_digits":
            pair = (a.gradient, b.gradient)
        first, second = pair
        if first is None or second is None or first.size != second.size:
            return False
        x, y = (np.asarray(each, np.float64).ravel() for each in (first, second))
        if self.rule.of == "sign":
            return bool(np.any(np.signbit(x) != np.signbit(y)))
        digits = self.rule.digits
        if first.dtype == second.dtype != np.float64:
            digits = max(digits, 1e-6)
        return not np.allclose(x, y, rtol=digits, atol=0.0, equal_nan=True)


def keyed(call: Call) -> str:
    """The name of a call, with the backend of Keras: "keras[torch].losses.MeanSquaredError"."""
    if call.library != "keras":
        return call.name
    return call.name.replace("keras", f"keras[{call.backend or 'tensorflow'}]", 1)


def entry(call: Call) -> str:
    """The name of a call in the record: `keyed`, and whether predictions are logits."""
    return f"{keyed(call)}(from_logits=True)" if call.arguments.get("from_logits") else keyed(call)


@functools.cache
def recorded() -> dict[str, dict[str, str]]:
    """The recorded quirks of each loss, with the words for its outcomes."""
    losses: dict[str, dict[str, str]] = json.loads(RECORDED.read_text(encoding="utf-8"))["losses"]
    return losses
