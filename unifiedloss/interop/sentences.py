"""Say in a sentence what each field of a spec means at its value.

`unifiedloss.explain` prints the sentences of all fields under the formula; `unifiedloss.diff`
compares those of two specs. Every sentence begins with the value, so no two values of a field have
the same sentence.
"""

from __future__ import annotations

import math

from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Loss
from unifiedloss.text import Text, code, formula, value


def sentence(spec: Loss, field: str) -> Text:
    """Say what the field means at its value.

    Args:
        spec: the loss.
        field: the name of one of its fields.
    """
    given = getattr(spec, field)
    meaning = spec.declarations[field].meaning(spec, given)
    return Text.of(code(value(given)), ": ", meaning, ".")


def sentences(spec: Loss) -> dict[str, Text]:
    """Return a sentence for every field, in the order of the fields."""
    return {field: sentence(spec, field) for field in spec.declarations}


TITLES = {
    "cross_entropy": "Cross-entropy",
    "binary_cross_entropy": "Binary cross-entropy",
    "mean_squared_error": "Mean squared error",
    "negative_log_likelihood": "Negative log-likelihood",
}


def special_values(spec: Loss) -> list[Text]:
    """Say how the loss treats infinities, NaN, zeros, invalid labels and empty batches."""
    texts = [*_special_predictions(spec), *_special_targets(spec), *_special_positions(spec)]
    if isinstance(spec, MeanSquaredError | BinaryCrossEntropyLoss):
        return texts
    any_sum = "Rows of dense targets need not sum to 1"
    if not getattr(spec, "from_logits", False):
        return [*texts, Text.of(f"{any_sum}.")]
    gradient = formula("T p_c - tau_c", r"T p_c - \tau_c")
    return [
        *texts,
        Text.of(f"{any_sum}: with the sum T the gradient at the logits is ", gradient, "."),
    ]


def _special_predictions(spec: Loss) -> list[Text]:
    if isinstance(spec, MeanSquaredError):
        return [
            Text.of(
                "Infinite and NaN predictions and targets: "
                "the loss is what the formula gives, infinite or NaN."
            )
        ]
    zero = Text.of(formula("0 log 0 = 0", r"0 \log 0 = 0"), ", in value and gradient.")
    if isinstance(spec, CrossEntropyLoss | BinaryCrossEntropyLoss):
        return [zero, _special_logits(spec) if spec.from_logits else _special_probabilities(spec)]
    return [
        Text.of(
            "A log-probability of -inf costs infinitely much where the target gives it weight, "
            "and nothing elsewhere."
        ),
        Text.of("Entries whose target is 0 are not read."),
    ]


def _special_logits(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> Text:
    if isinstance(spec, BinaryCrossEntropyLoss):
        return Text.of(
            "An infinite logit: the loss is 0 where the label agrees and infinite where not, "
            "the gradient ",
            formula("p - t'"),
            "; a NaN logit gives NaN.",
        )
    return Text.of(
        "A logit of -inf is the probability 0, with a finite gradient; "
        "a row with +inf, with NaN, or with -inf alone is NaN."
    )


def _special_probabilities(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> Text:
    refused = (
        " A probability below 0, or above 1 by more than rounding, is an error (NaN under tracing)."
    )
    if isinstance(spec, CrossEntropyLoss) and spec.renormalize is not None:
        refused = " A negative prediction is an error (NaN under tracing)."
    return Text.of(f"{_logarithm_of_zero(spec)}{refused}")


def _logarithm_of_zero(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> str:
    at_zero = "The logarithm of a probability of 0 counts as"
    if spec.epsilon == "torch":
        return f"{at_zero} -100."
    if not spec.epsilon:
        return f"{at_zero} -inf: infinite loss where the target gives it weight."
    if isinstance(spec, BinaryCrossEntropyLoss) and spec.epsilon_added:
        return f"{at_zero} {math.log(float(spec.epsilon)):.6g}."
    if isinstance(spec, CrossEntropyLoss) and spec.renormalize == "after_clip":
        return "A prediction of 0 counts as the bound it is clipped to, with the gradient 0."
    if spec.epsilon == "keras":
        at_one = ", that of 1 - p at the probability 1 as -15.942 in float32"
        if isinstance(spec, CrossEntropyLoss):
            at_one = ""
        return f"{at_zero} -16.118{at_one}, with the gradient 0."
    if spec.epsilon == "sklearn":
        return f"{at_zero} -15.942 in float32 and -36.044 in float64, with the gradient 0."
    return f"{at_zero} {math.log(float(spec.epsilon)):.6g}, with the gradient 0."


def _special_targets(spec: Loss) -> list[Text]:
    if isinstance(spec, MeanSquaredError):
        return []
    if isinstance(spec, BinaryCrossEntropyLoss):
        return [Text.of("A target outside [0, 1] is an error (NaN under tracing).")]
    return [
        Text.of(
            "A class index outside 0..K-1 that is not ignored is an error (NaN under tracing); "
            "it never wraps."
        ),
    ]


def _special_positions(spec: Loss) -> list[Text]:
    texts = [
        Text.of(
            "Positions that are masked or have sample weight 0 have loss and gradient 0, "
            "and nothing in them is read."
        ),
        Text.of("Shapes must fit: nothing is squeezed and nothing is broadcast."),
    ]
    empty = {"none": "an empty array", "sum": "0"}.get(spec.reduction)
    if empty is None:
        empty = {"nan": "NaN", "zero": "0", "error": "an error"}[spec.on_empty]
    return [*texts, Text.of(f"An empty batch gives {empty}.")]
