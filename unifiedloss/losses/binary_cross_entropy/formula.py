"""The formula of the binary cross-entropy, in words."""

from __future__ import annotations

import math

from unifiedloss.formulas import (
    clipped,
    element_name,
    element_weights,
    equals,
    factor,
    smoothed_target,
)
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.formula import logarithm_of_bound
from unifiedloss.text import Text, escape, formula, number, number_latex, value

TITLE = "Binary cross-entropy"


def lines(spec: BinaryCrossEntropyLoss) -> list[Text]:
    """The formula of an element, and the definitions of its symbols."""
    scale, scale_latex = factor(spec)
    smoothed = "'" if spec.label_smoothing else ""
    q, q_latex = ("", "") if spec.pos_weight is None else ("q ", r"q\,")
    v, v_latex = ("", "") if spec.element_weights is None else ("v ", r"v\,")
    yes, no, yes_latex, no_latex = _logarithms(spec)
    name, name_latex = element_name(spec)
    t, no_t = f"t{smoothed}", f"(1 - t{smoothed})"
    logarithms_latex = rf"{q_latex}{t} {yes_latex} + {no_t} {no_latex}"
    lines = [
        equals(
            name, f"{scale}{v}(-({q}{t} {yes} + {no_t} {no}))",
            name_latex, rf"{scale_latex}{v_latex}\bigl(-({logarithms_latex})\bigr)",
            formula("t"), " the target",
        ),
        _binary_probability(spec),
    ]  # fmt: skip
    if spec.epsilon == "torch":
        gradient = rf"{scale_latex}{v_latex}\frac{{p - {t}}}{{\max(p (1 - p), 10^{{-12}})}}"
        lines.append(
            equals(
                f"d{name}/dp", f"{scale}{v}(p - {t}) / max(p (1 - p), 1e-12)",
                rf"\partial {name_latex} / \partial p", gradient, "not the derivative",
            )
        )  # fmt: skip
    lines += smoothed_target(spec.label_smoothing, "2", "t", "t")
    if spec.pos_weight is not None:
        lines.append(
            equals("q", value(spec.pos_weight), "q", rf"\text{{{escape(value(spec.pos_weight))}}}")
        )
    return [*lines, *element_weights(spec)]


def _logarithms(spec: BinaryCrossEntropyLoss) -> tuple[str, str, str, str]:
    """Write the logarithms of p and 1 - p, both as text, then both as LaTeX."""
    if spec.epsilon_added:
        text, latex = number(float(spec.epsilon)), number_latex(float(spec.epsilon))
        return (
            f"log(p + {text})", f"log(1 - p + {text})",
            rf"\log (p + {latex})", rf"\log (1 - p + {latex})",
        )  # fmt: skip
    if spec.epsilon == "torch":
        return (
            "max(log p, -100)", "max(log(1 - p), -100)",
            r"\max(\log p, -100)", r"\max(\log (1 - p), -100)",
        )  # fmt: skip
    return "log p", "log(1 - p)", r"\log p", r"\log (1 - p)"


def _binary_probability(spec: BinaryCrossEntropyLoss) -> Text:
    if spec.from_logits:
        return equals(
            "p", "1 / (1 + exp(-z))", "p", r"\frac{1}{1 + e^{-z}}",
            formula("z"), " the prediction, a logit",
        )  # fmt: skip
    x = (formula("x"), " the prediction, a probability")
    if spec.epsilon_added or spec.epsilon == "torch" or not spec.epsilon:
        return equals("p", "x", "p", "x", *x)
    clip, latex = clipped("x", spec.epsilon)
    return equals("p", clip, "p", latex, *x)


def special_values(spec: BinaryCrossEntropyLoss) -> list[Text]:
    """Say how the loss treats infinities, NaN, zeros and invalid targets."""
    zero = Text.of(formula("0 log 0 = 0", r"0 \log 0 = 0"), ", in value and gradient.")
    special = _special_logits() if spec.from_logits else _special_probabilities(spec)
    targets = Text.of("A target outside [0, 1] is an error (NaN under tracing).")
    return [zero, special, targets]


def _special_logits() -> Text:
    return Text.of(
        "An infinite logit: the loss is 0 where the label agrees and infinite where not, "
        "the gradient ",
        formula("p - t'"),
        "; a NaN logit gives NaN.",
    )


def _special_probabilities(spec: BinaryCrossEntropyLoss) -> Text:
    return Text.of(
        f"{_logarithm_of_zero(spec)} A probability below 0, or above 1 by more than rounding, is "
        "an error (NaN under tracing)."
    )


def _logarithm_of_zero(spec: BinaryCrossEntropyLoss) -> str:
    at_zero = "The logarithm of a probability of 0 counts as"
    if spec.epsilon == "torch":
        return f"{at_zero} -100."
    if not spec.epsilon:
        return f"{at_zero} -inf: infinite loss where the target gives it weight."
    if spec.epsilon_added:
        return f"{at_zero} {math.log(float(spec.epsilon)):.6g}."
    at_one = ""
    if spec.epsilon == "keras":
        at_one = ", that of 1 - p at the probability 1 as -15.942 in float32"
    return f"{at_zero} {logarithm_of_bound(spec.epsilon)}{at_one}, with the gradient 0."
