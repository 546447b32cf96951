"""What the specs of losses of probabilities share: sentences of fields, and a check."""

from __future__ import annotations

from typing import Any

from unifiedloss.errors import SpecValueError
from unifiedloss.text import Text, formula, number, number_latex


def from_logits_sentence(squash: str) -> Any:
    """Say what `from_logits` means, where softmax or sigmoid is the loss's own function."""

    def sentence(spec: Any) -> Text:
        if spec.from_logits:
            return Text.of(f"predictions are logits, and the {squash} is part of the loss")
        if getattr(spec, "renormalize", None):
            return Text.of("predictions are non-negative numbers, normalized to probabilities")
        return Text.of(
            f"predictions are probabilities, taken as they are: no {squash}, no division by "
            "their sum"
        )

    return sentence


_CLIPPED = {
    "keras": Text.of(
        "probabilities are clipped to ",
        formula("[1e-07, 1 - 1e-07]", r"[10^{-7}, 1 - 10^{-7}]"),
        ", both bounds rounded to the predictions' dtype; the gradient is 0 where it clips",
    ),
    "sklearn": Text.of(
        "probabilities are clipped to ",
        formula("[eps, 1 - eps]", r"[\varepsilon, 1 - \varepsilon]"),
        ", eps the distance from 1 to the next larger number of the predictions' dtype; the "
        "gradient is 0 where it clips",
    ),
    "torch": Text.of(
        "probabilities are not clipped, but logarithms are clamped at -100, and the gradient is ",
        formula("(p - t') / max(p (1 - p), 1e-12)", r"(p - t') / \max(p (1 - p), 10^{-12})"),
        ", which is not the derivative of the clamped loss",
    ),
}


def epsilon_sentence(spec: Any) -> Text:
    """Say how `epsilon` changes probabilities or their logarithms."""
    given = spec.epsilon
    if isinstance(given, str):
        return _CLIPPED[given]
    if not given:
        cost = "" if spec.from_logits else ", and -log 0 is infinite"
        return Text.of(f"nothing is clipped{cost}")
    if getattr(spec, "epsilon_added", False):
        return Text.of("added to probabilities inside the logarithms")
    bounds = formula(
        f"[{number(given)}, 1 - {number(given)}]",
        f"[{number_latex(given)}, 1 - {number_latex(given)}]",
    )
    return Text.of(
        "probabilities are clipped to ",
        bounds,
        "; the gradient is 0 outside the bounds, but not at a bound",
    )


def label_smoothing_sentence(shared: str) -> Any:
    """Say over what `label_smoothing` spreads its share."""

    def sentence(spec: Any) -> Text:
        if not spec.label_smoothing:
            return Text.of("targets are used as they are")
        return Text.of(f"this share of every target is spread evenly over the {shared}")

    return sentence


def refuse_clipped_logits(spec: Any) -> None:
    """Refuse an `epsilon` beside ``from_logits=True``."""
    if spec.from_logits and spec.epsilon:
        msg = (
            f"epsilon={spec.epsilon!r} clips probabilities, and from_logits=True has none to clip; "
            "leave epsilon out, as logits need no clipping."
        )
        raise SpecValueError(msg)
