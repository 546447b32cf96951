"""The formula of the categorical cross-entropy, in words."""

from __future__ import annotations

import math
from typing import Any

from unifiedloss.formulas import clipped, equals, factor, smoothed_target
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.text import Text, code, formula, value

TITLE = "Cross-entropy"


BAD_INDEX = Text.of(
    "A class index outside 0..K-1 that is not ignored is an error (NaN under tracing); it "
    "never wraps."
)
"""What a label that is no class gives."""


def lines(spec: CrossEntropyLoss) -> list[Text]:
    """The formula of a position, and the definitions of its symbols."""
    scale, scale_latex = factor(spec)
    return [
        equals(
            "l_i",
            f"{scale}sum_c tau_ic (-log p_ic)",
            r"\ell_i",
            rf"{scale_latex}\sum_c \tau_{{ic}} (-\log p_{{ic}})",
        ),
        *_probabilities(spec),
        *weighted_target(spec),
        *smoothed_target(spec.label_smoothing, "K", "t_ic", "t_{ic}"),
    ]


def _probabilities(spec: CrossEntropyLoss) -> list[Text]:
    if spec.from_logits:
        return [
            equals(
                "p_ic", "exp(z_ic) / sum_k exp(z_ik)",
                "p_{ic}", r"\frac{e^{z_{ic}}}{\sum_k e^{z_{ik}}}",
                formula("z"), " the predictions, logits",
            )
        ]  # fmt: skip
    x = (formula("x"), " the predictions")
    if spec.renormalize == "before_clip":
        clip, latex = clipped("r_{ic}", spec.epsilon)
        return [
            equals("p_ic", clip.replace("{ic}", "ic"), "p_{ic}", latex),
            equals("r_ic", "x_ic / sum_k x_ik", "r_{ic}", r"\frac{x_{ic}}{\sum_k x_{ik}}", *x),
        ]
    if spec.renormalize == "after_clip":
        clip, latex = clipped("x_{ic}", spec.epsilon)
        return [
            equals("p_ic", "r_ic / sum_k r_ik", "p_{ic}", r"\frac{r_{ic}}{\sum_k r_{ik}}"),
            equals("r_ic", clip.replace("{ic}", "ic"), "r_{ic}", latex, *x),
        ]
    x = (formula("x"), " the predictions, probabilities")
    if not spec.epsilon:
        return [equals("p_ic", "x_ic", "p_{ic}", "x_{ic}", *x)]
    clip, latex = clipped("x_{ic}", spec.epsilon)
    return [equals("p_ic", clip.replace("{ic}", "ic"), "p_{ic}", latex, *x)]


def weighted_target(spec: Any) -> list[Text]:
    """Define the weighted target tau."""
    smoothed = "'" if getattr(spec, "label_smoothing", 0.0) else ""
    entry, latex = f"t{smoothed}_ic", f"t{smoothed}_{{ic}}"
    target = (
        formula("t_ic = 1", "t_{ic} = 1"),
        " where ",
        formula("c"),
        " is the class index, else 0; or the dense target",
    )
    if spec.class_weights is None:
        return [equals("tau_ic", entry, r"\tau_{ic}", latex, *target)]
    weights = Text.of(formula("w"), " = ", code(value(spec.class_weights)), "; ")
    if getattr(spec, "class_weighting", "entries") == "position":
        return [
            equals(
                "tau_ic", f"{entry} sum_k w_k t_ik",
                r"\tau_{ic}", rf"{latex} \sum_k w_k t_{{ik}}",
                weights, *target,
            )
        ]  # fmt: skip
    return [equals("tau_ic", f"w_c {entry}", r"\tau_{ic}", f"w_c {latex}", weights, *target)]


def special_values(spec: CrossEntropyLoss) -> list[Text]:
    """Say how the loss treats infinities, NaN, zeros and invalid labels."""
    zero = Text.of(formula("0 log 0 = 0", r"0 \log 0 = 0"), ", in value and gradient.")
    special = _special_logits() if spec.from_logits else _special_probabilities(spec)
    return [zero, special, BAD_INDEX]


def _special_logits() -> Text:
    return Text.of(
        "A logit of -inf is the probability 0, with a finite gradient; "
        "a row with +inf, with NaN, or with -inf alone is NaN."
    )


def _special_probabilities(spec: CrossEntropyLoss) -> Text:
    refused = (
        " A probability below 0, or above 1 by more than rounding, is an error (NaN under tracing)."
    )
    if spec.renormalize is not None:
        refused = " A negative prediction is an error (NaN under tracing)."
    return Text.of(f"{_logarithm_of_zero(spec)}{refused}")


def _logarithm_of_zero(spec: CrossEntropyLoss) -> str:
    at_zero = "The logarithm of a probability of 0 counts as"
    if not spec.epsilon:
        return f"{at_zero} -inf: infinite loss where the target gives it weight."
    if spec.renormalize == "after_clip":
        return "A prediction of 0 counts as the bound it is clipped to, with the gradient 0."
    return f"{at_zero} {logarithm_of_bound(spec.epsilon)}, with the gradient 0."


def logarithm_of_bound(epsilon: float | str) -> str:
    """The logarithm of the lower bound of probabilities, as text."""
    if epsilon == "keras":
        return "-16.118"
    if epsilon == "sklearn":
        return "-15.942 in float32 and -36.044 in float64"
    return f"{math.log(float(epsilon)):.6g}"
