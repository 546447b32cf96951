"""The formula of the Huber loss, in words."""

from __future__ import annotations

from unifiedloss.formulas import element_name, element_weights, equals, factor
from unifiedloss.losses.huber.spec import HuberLoss
from unifiedloss.text import Text, formula, number, number_latex

TITLE = "Huber loss"


def lines(spec: HuberLoss) -> list[Text]:
    """The formula of an element, and the definitions of its symbols."""
    scale, scale_latex = factor(spec)
    v, v_latex = ("", "") if spec.element_weights is None else ("v ", r"v\,")
    name, name_latex = element_name(spec)
    delta, latex = number(spec.delta), number_latex(spec.delta)
    near = rf"\tfrac12 e^2 & |e| \le {latex}"
    far = rf"{latex} \, (|e| - \tfrac12 \cdot {latex}) & |e| > {latex}"
    return [
        equals(
            name, f"{scale}{v}(e^2 / 2 if |e| <= {delta}, else {delta} (|e| - {delta} / 2))",
            name_latex, rf"{scale_latex}{v_latex}\begin{{cases}} {near} \\ {far} \end{{cases}}",
        ),
        equals(
            "e", "x - t", "e", "x - t",
            formula("x"), " the prediction, ", formula("t"), " the target",
        ),
        *element_weights(spec),
    ]  # fmt: skip


def special_values(spec: HuberLoss) -> list[Text]:  # noqa: ARG001 - as for other losses
    """Say how the loss treats infinities and NaN."""
    return [
        Text.of(
            "An infinite error costs infinitely much, and its gradient is the threshold; a NaN "
            "prediction or target gives NaN."
        )
    ]
