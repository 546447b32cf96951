"""What the written formulas of the losses share. Each loss writes its own in `formula`."""

from __future__ import annotations

from typing import Any

from unifiedloss.spec import Loss
from unifiedloss.text import Text, escape, formula, number, number_latex, value


def equals(left: str, right: str, left_latex: str, right_latex: str, *after: str | Text) -> Text:
    """Write one line of the formula: an equation, and what its symbols mean."""
    words = Text.of(*after)
    latex = f"{left_latex} &= {right_latex}"
    if not after:
        return Text(f"{left} = {right}", latex)
    return Text(f"{left} = {right},  {words.plain}", rf"{latex}, && \text{{{words.latex}}}")


def factor(spec: Loss) -> tuple[str, str]:
    """Write the scale in front of a loss, as text and as LaTeX."""
    scale = getattr(spec, "scale", 1.0)
    return ("", "") if scale == 1.0 else (f"{number(scale)} * ", rf"{number_latex(scale)} \cdot ")


def clipped(inside: str, epsilon: float | str) -> tuple[str, str]:
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


def smoothed_target(amount: float, answers: str, entry: str, entry_latex: str) -> list[Text]:
    """Define the smoothed target, if there is label smoothing."""
    if not amount:
        return []
    text, latex = number(amount), number_latex(amount)
    name, name_latex = entry.replace("t", "t'", 1), entry_latex.replace("t", "t'", 1)
    after = (formula("K"), " the number of classes") if answers == "K" else ()
    return [
        equals(
            name, f"(1 - {text}) {entry} + {text} / {answers}",
            name_latex, rf"(1 - {latex}) {entry_latex} + \frac{{{latex}}}{{{answers}}}", *after,
        )
    ]  # fmt: skip


def element_name(spec: Loss) -> tuple[str, str]:
    """Name an elementwise loss: l_ij if the last axis is averaged afterwards, else l_i."""
    if getattr(spec, "average_last_axis", False):
        return "l_ij", r"\ell_{ij}"
    return "l_i", r"\ell_i"


def element_weights(spec: Any) -> list[Text]:
    """Define the element weights, if there are any."""
    if spec.element_weights is None:
        return []
    text = value(spec.element_weights)
    return [
        equals(
            "v", text, "v", rf"\text{{{escape(text)}}}",
            "repeated over the leading axes of the predictions",
        )
    ]  # fmt: skip


def any_row_sum(spec: Any) -> Text:
    """Say that rows of dense targets need not sum to 1."""
    any_sum = "Rows of dense targets need not sum to 1"
    if not getattr(spec, "from_logits", False):
        return Text.of(f"{any_sum}.")
    gradient = formula("T p_c - tau_c", r"T p_c - \tau_c")
    return Text.of(f"{any_sum}: with the sum T the gradient at the logits is ", gradient, ".")
