"""The formula of the squared error, in words."""

from __future__ import annotations

from unifiedloss.formulas import element_name, element_weights, equals, factor
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.text import Text, formula

TITLE = "Mean squared error"


def lines(spec: MeanSquaredError) -> list[Text]:
    """The formula of an element, and the definitions of its symbols."""
    scale, scale_latex = factor(spec)
    v, v_latex = ("", "") if spec.element_weights is None else ("v ", r"v\,")
    name, name_latex = element_name(spec)
    return [
        equals(
            name, f"{scale}{v}(x - t)^2", name_latex, f"{scale_latex}{v_latex}(x - t)^2",
            formula("x"), " the prediction, ", formula("t"), " the target",
        ),
        *element_weights(spec),
    ]  # fmt: skip


def special_values(spec: MeanSquaredError) -> list[Text]:  # noqa: ARG001 - as for other losses
    """Say how the loss treats infinities and NaN."""
    return [
        Text.of(
            "Infinite and NaN predictions and targets: "
            "the loss is what the formula gives, infinite or NaN."
        )
    ]
