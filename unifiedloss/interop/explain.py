"""Explain a loss as plain text and LaTeX: formula, divisor, rules and special values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.quirks import rules_of
from unifiedloss.interop.sentences import TITLES, sentences, special_values
from unifiedloss.interop.sides import side_of
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Loss
from unifiedloss.text import (
    Text,
    code,
    escape,
    formula,
    number,
    number_latex,
    value,
)


@dataclass(frozen=True)
class Explanation:
    """The meaning of a loss in words and formulas.

    ``str()`` gives plain text; `latex` is a LaTeX fragment that needs the package amsmath.

    Attributes:
        title: the loss, as it was written.
        formulas: the loss of a position, the definitions of its symbols, then the reduction.
        rules: a sentence for each field of the spec, by the name of the field.
        special: sentences about infinities, NaN, invalid labels and empty batches.
        deviations: the rules in which a loss of another library deviates from its spec, as pairs of
            a name and a sentence.
    """

    title: Text
    formulas: tuple[Text, ...]
    rules: Mapping[str, Text]
    special: tuple[Text, ...]
    deviations: tuple[tuple[str, Text], ...] = ()

    def __str__(self) -> str:
        width = max(map(len, self.rules))
        return "\n".join(
            (
                self.title.plain,
                "",
                "Formula",
                *(f"  {line.plain}" for line in self.formulas),
                "",
                "Rules",
                *(f"  {name:{width}}  {rule.plain}" for name, rule in self.rules.items()),
                "",
                "Special values",
                *(f"  {phrase.plain}" for phrase in self.special),
                *(["", "What no spec can say, and this loss does"] if self.deviations else []),
                *(f"  {name}: {phrase.plain}" for name, phrase in self.deviations),
            )
        )

    @property
    def latex(self) -> str:
        """Return LaTeX: paragraphs, formulas in an align environment, rules in a list."""
        return "\n".join(
            (
                rf"\paragraph{{{self.title.latex}}}",
                r"\begin{align*}",
                " \\\\\n".join(line.latex for line in self.formulas),
                r"\end{align*}",
                r"\paragraph{Rules}",
                r"\begin{description}",
                *(
                    rf"\item[\texttt{{{escape(name)}}}] {rule.latex}"
                    for name, rule in self.rules.items()
                ),
                r"\end{description}",
                r"\paragraph{Special values}",
                r"\begin{itemize}",
                *(rf"\item {phrase.latex}" for phrase in self.special),
                r"\end{itemize}",
                *self._latex_of_deviations(),
            )
        )

    def _latex_of_deviations(self) -> list[str]:
        if not self.deviations:
            return []
        return [
            r"\paragraph{What no spec can say, and this loss does}",
            r"\begin{description}",
            *(
                rf"\item[\texttt{{{escape(name)}}}] {phrase.latex}"
                for name, phrase in self.deviations
            ),
            r"\end{description}",
        ]


def explain_spec(spec: Loss) -> Explanation:
    """Explain a spec."""
    return Explanation(
        title=Text.of(f"{TITLES[spec.name]}: ", code(repr(spec))),
        formulas=tuple(_formulas(spec)),
        rules=sentences(spec),
        special=tuple(special_values(spec)),
    )


def _equals(left: str, right: str, left_latex: str, right_latex: str, *after: str | Text) -> Text:
    """Write one line of the formula: an equation, and what its symbols mean."""
    words = Text.of(*after)
    latex = f"{left_latex} &= {right_latex}"
    if not after:
        return Text(f"{left} = {right}", latex)
    return Text(f"{left} = {right},  {words.plain}", rf"{latex}, && \text{{{words.latex}}}")


def _formulas(spec: Loss) -> list[Text]:
    if isinstance(spec, CrossEntropyLoss):
        lines = _cross_entropy(spec)
    elif isinstance(spec, NegativeLogLikelihoodLoss):
        lines = _likelihood(spec)
    elif isinstance(spec, BinaryCrossEntropyLoss):
        lines = _binary(spec)
    else:
        assert isinstance(spec, MeanSquaredError)
        lines = _squared(spec)
    return [*lines, *_averaged(spec), *_reduced(spec)]


def _factor(spec: Loss) -> tuple[str, str]:
    """Write the scale in front of a loss, as text and as LaTeX."""
    scale = getattr(spec, "scale", 1.0)
    return ("", "") if scale == 1.0 else (f"{number(scale)} * ", rf"{number_latex(scale)} \cdot ")


def _cross_entropy(spec: CrossEntropyLoss) -> list[Text]:
    scale, scale_latex = _factor(spec)
    return [
        _equals(
            "l_i",
            f"{scale}sum_c tau_ic (-log p_ic)",
            r"\ell_i",
            rf"{scale_latex}\sum_c \tau_{{ic}} (-\log p_{{ic}})",
        ),
        *_probabilities(spec),
        *_weighted_target(spec),
        *_smoothed(spec.label_smoothing, "K", "t_ic", "t_{ic}"),
    ]


def _likelihood(spec: NegativeLogLikelihoodLoss) -> list[Text]:
    return [
        _equals(
            "l_i", "sum_c tau_ic (-x_ic)", r"\ell_i", r"\sum_c \tau_{ic} (-x_{ic})",
            formula("x"), " the predictions, log-probabilities",
        ),
        *_weighted_target(spec),
    ]  # fmt: skip


def _clipped(inside: str, epsilon: float | str) -> tuple[str, str]:
    """Write the clip of a probability, as text and as LaTeX. RN rounds to the nearest float."""
    if epsilon == "keras":
        low_latex = r"\operatorname{RN}(10^{-7})"
        high_latex = r"\operatorname{RN}(1 - 10^{-7})"
        return (
            f"clip({inside}, RN(1e-07), RN(1 - 1e-07))",
            rf"\operatorname{{clip}}({inside}, {low_latex}, {high_latex})",
        )
    if epsilon == "sklearn":
        return (
            f"clip({inside}, eps, 1 - eps)",
            rf"\operatorname{{clip}}({inside}, \varepsilon, 1 - \varepsilon)",
        )
    text, latex = number(float(epsilon)), number_latex(float(epsilon))
    return (
        f"clip({inside}, {text}, 1 - {text})",
        rf"\operatorname{{clip}}({inside}, {latex}, 1 - {latex})",
    )


def _probabilities(spec: CrossEntropyLoss) -> list[Text]:
    if spec.from_logits:
        return [
            _equals(
                "p_ic", "exp(z_ic) / sum_k exp(z_ik)",
                "p_{ic}", r"\frac{e^{z_{ic}}}{\sum_k e^{z_{ik}}}",
                formula("z"), " the predictions, logits",
            )
        ]  # fmt: skip
    x = (formula("x"), " the predictions")
    if spec.renormalize == "before_clip":
        clip, latex = _clipped("r_{ic}", spec.epsilon)
        return [
            _equals("p_ic", clip.replace("{ic}", "ic"), "p_{ic}", latex),
            _equals("r_ic", "x_ic / sum_k x_ik", "r_{ic}", r"\frac{x_{ic}}{\sum_k x_{ik}}", *x),
        ]
    if spec.renormalize == "after_clip":
        clip, latex = _clipped("x_{ic}", spec.epsilon)
        return [
            _equals("p_ic", "r_ic / sum_k r_ik", "p_{ic}", r"\frac{r_{ic}}{\sum_k r_{ik}}"),
            _equals("r_ic", clip.replace("{ic}", "ic"), "r_{ic}", latex, *x),
        ]
    x = (formula("x"), " the predictions, probabilities")
    if not spec.epsilon:
        return [_equals("p_ic", "x_ic", "p_{ic}", "x_{ic}", *x)]
    clip, latex = _clipped("x_{ic}", spec.epsilon)
    return [_equals("p_ic", clip.replace("{ic}", "ic"), "p_{ic}", latex, *x)]


def _weighted_target(spec: CrossEntropyLoss | NegativeLogLikelihoodLoss) -> list[Text]:
    smoothed = "'" if getattr(spec, "label_smoothing", 0.0) else ""
    entry, latex = f"t{smoothed}_ic", f"t{smoothed}_{{ic}}"
    target = (
        formula("t_ic = 1", "t_{ic} = 1"),
        " where ",
        formula("c"),
        " is the class index, else 0; or the dense target",
    )
    if spec.class_weights is None:
        return [_equals("tau_ic", entry, r"\tau_{ic}", latex, *target)]
    weights = Text.of(formula("w"), " = ", code(value(spec.class_weights)), "; ")
    if getattr(spec, "class_weighting", "entries") == "position":
        return [
            _equals(
                "tau_ic", f"{entry} sum_k w_k t_ik",
                r"\tau_{ic}", rf"{latex} \sum_k w_k t_{{ik}}",
                weights, *target,
            )
        ]  # fmt: skip
    return [_equals("tau_ic", f"w_c {entry}", r"\tau_{ic}", f"w_c {latex}", weights, *target)]


def _smoothed(amount: float, answers: str, entry: str, entry_latex: str) -> list[Text]:
    """Define the smoothed target, if there is label smoothing."""
    if not amount:
        return []
    text, latex = number(amount), number_latex(amount)
    name, name_latex = entry.replace("t", "t'", 1), entry_latex.replace("t", "t'", 1)
    after = (formula("K"), " the number of classes") if answers == "K" else ()
    return [
        _equals(
            name, f"(1 - {text}) {entry} + {text} / {answers}",
            name_latex, rf"(1 - {latex}) {entry_latex} + \frac{{{latex}}}{{{answers}}}", *after,
        )
    ]  # fmt: skip


def _element(spec: Loss) -> tuple[str, str]:
    """Name an elementwise loss: l_ij if the last axis is averaged afterwards, else l_i."""
    if getattr(spec, "average_last_axis", False):
        return "l_ij", r"\ell_{ij}"
    return "l_i", r"\ell_i"


def _binary(spec: BinaryCrossEntropyLoss) -> list[Text]:
    scale, scale_latex = _factor(spec)
    smoothed = "'" if spec.label_smoothing else ""
    q, q_latex = ("", "") if spec.pos_weight is None else ("q ", r"q\,")
    v, v_latex = ("", "") if spec.element_weights is None else ("v ", r"v\,")
    yes, no, yes_latex, no_latex = _logarithms(spec)
    name, name_latex = _element(spec)
    t, no_t = f"t{smoothed}", f"(1 - t{smoothed})"
    logarithms_latex = rf"{q_latex}{t} {yes_latex} + {no_t} {no_latex}"
    lines = [
        _equals(
            name, f"{scale}{v}(-({q}{t} {yes} + {no_t} {no}))",
            name_latex, rf"{scale_latex}{v_latex}\bigl(-({logarithms_latex})\bigr)",
            formula("t"), " the target",
        ),
        _binary_probability(spec),
    ]  # fmt: skip
    if spec.epsilon == "torch":
        gradient = rf"{scale_latex}{v_latex}\frac{{p - {t}}}{{\max(p (1 - p), 10^{{-12}})}}"
        lines.append(
            _equals(
                f"d{name}/dp", f"{scale}{v}(p - {t}) / max(p (1 - p), 1e-12)",
                rf"\partial {name_latex} / \partial p", gradient, "not the derivative",
            )
        )  # fmt: skip
    lines += _smoothed(spec.label_smoothing, "2", "t", "t")
    if spec.pos_weight is not None:
        lines.append(
            _equals("q", value(spec.pos_weight), "q", rf"\text{{{escape(value(spec.pos_weight))}}}")
        )
    return [*lines, *_element_weights(spec)]


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
        return _equals(
            "p", "1 / (1 + exp(-z))", "p", r"\frac{1}{1 + e^{-z}}",
            formula("z"), " the prediction, a logit",
        )  # fmt: skip
    x = (formula("x"), " the prediction, a probability")
    if spec.epsilon_added or spec.epsilon == "torch" or not spec.epsilon:
        return _equals("p", "x", "p", "x", *x)
    clip, latex = _clipped("x", spec.epsilon)
    return _equals("p", clip, "p", latex, *x)


def _element_weights(spec: BinaryCrossEntropyLoss | MeanSquaredError) -> list[Text]:
    if spec.element_weights is None:
        return []
    text = value(spec.element_weights)
    return [
        _equals(
            "v", text, "v", rf"\text{{{escape(text)}}}",
            "repeated over the leading axes of the predictions",
        )
    ]  # fmt: skip


def _squared(spec: MeanSquaredError) -> list[Text]:
    scale, scale_latex = _factor(spec)
    v, v_latex = ("", "") if spec.element_weights is None else ("v ", r"v\,")
    name, name_latex = _element(spec)
    return [
        _equals(
            name, f"{scale}{v}(x - t)^2", name_latex, f"{scale_latex}{v_latex}(x - t)^2",
            formula("x"), " the prediction, ", formula("t"), " the target",
        ),
        *_element_weights(spec),
    ]  # fmt: skip


def _averaged(spec: Loss) -> list[Text]:
    if not getattr(spec, "average_last_axis", False):
        return []
    return [
        _equals(
            "l_i", "sum_j l_ij / n", r"\ell_i", r"\frac{1}{n} \sum_j \ell_{ij}",
            formula("n"), " the length of the last axis",
        )
    ]  # fmt: skip


_COUNTS = {
    "present": "the number of positions not dropped",
    "nonzero": "the number of positions not dropped with a weight that is not 0",
    "all": "the number of all positions, dropped ones included",
}


def _reduced(spec: Loss) -> list[Text]:
    """Write the reduction, from the losses of positions to the value returned."""
    weight = (formula("s_i"), " the sample weight, 1 where none is given")
    if spec.reduction == "none":
        return [_equals("L_i", "s_i l_i", "L_i", r"s_i \ell_i", *weight)]
    if spec.reduction == "sum":
        return [_equals("L", "sum_i s_i l_i", "L", r"\sum_i s_i \ell_i", *weight)]
    return [
        _equals("L", "sum_i s_i l_i / D", "L", r"\frac{1}{D} \sum_i s_i \ell_i", *weight),
        *_divided(spec),
    ]


def _divided(spec: Loss) -> list[Text]:
    """Define D, the divisor of the mean."""
    if spec.divisor in ("present", "all"):
        return [_count(spec.divisor)]
    weight, latex = _position_weight(spec)
    each = _equals("W_i", weight, "W_i", latex)
    if spec.divisor == "nonzero":
        return [_count("nonzero"), each]
    positions: tuple[str | Text, ...] = ("over the positions not dropped",)
    if spec.divisor == "label_weights":
        positions = (
            "over the positions not dropped; for dense targets ",
            formula("D"),
            " is the number of all positions",
        )
    return [_equals("D", "sum_i W_i", "D", r"\sum_i W_i", *positions), each]


def _count(divisor: str) -> Text:
    return _equals("D", _COUNTS[divisor], "D", rf"\text{{{_COUNTS[divisor]}}}")


def _position_weight(spec: Loss) -> tuple[str, str]:
    """Write W_i, the weight of a position in the divisor, as text and as LaTeX."""
    if getattr(spec, "class_weights", None) is not None:
        return "s_i sum_c w_c t_ic", r"s_i \sum_c w_c t_{ic}"
    weighted = getattr(spec, "element_weights", None) is not None
    if weighted and not getattr(spec, "average_last_axis", False):
        return "s_i v_i", "s_i v_i"
    return "s_i", "s_i"


def explain(loss: Any) -> Explanation:
    """Explain what a loss computes: its formula, its divisor, its rules and its special values.

    Args:
        loss: a spec, a loss of another library, or the text of either, as `from_native` reads them.

    Returns:
        An object that prints as plain text and has `latex`, a LaTeX fragment for the package
        amsmath. More than 20 class weights are shortened to their number, their range, and the
        first and last of them.

    Raises:
        UnsupportedError: no spec computes what this loss does. The message names the rule.
        SpecTypeError, SpecValueError: `loss` is not a known loss.

    Example:
        ```python
        import unifiedloss as ul

        explanation = ul.explain("torch.nn.CrossEntropyLoss(label_smoothing=0.1)")
        assert "(1 - 0.1) t_ic + 0.1 / K" in str(explanation)
        ```
    """
    side = side_of(loss)
    if side.spec is None:
        raise UnsupportedError(side.refusal)
    explanation = explain_spec(side.spec)
    if side.call is None:
        return explanation
    title = Text.of(code(side.name), ", as a spec ", code(repr(side.spec)))
    return replace(explanation, title=title, deviations=tuple(rules_of(side.spec, side.call)))
