"""The formula of the negative log-likelihood, in words."""

from __future__ import annotations

from unifiedloss.formulas import equals, factor
from unifiedloss.losses.cross_entropy.formula import BAD_INDEX, weighted_target
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.text import Text, formula

TITLE = "Negative log-likelihood"


def lines(spec: NegativeLogLikelihoodLoss) -> list[Text]:
    """The formula of a position, and the definitions of its symbols."""
    scale, scale_latex = factor(spec)
    return [
        equals(
            "l_i", f"{scale}sum_c tau_ic (-x_ic)",
            r"\ell_i", rf"{scale_latex}\sum_c \tau_{{ic}} (-x_{{ic}})",
            formula("x"), " the predictions, log-probabilities",
        ),
        *weighted_target(spec),
    ]  # fmt: skip


def special_values(spec: NegativeLogLikelihoodLoss) -> list[Text]:  # noqa: ARG001 - as for others
    """Say how the loss treats infinities and invalid labels."""
    return [
        Text.of(
            "A log-probability of -inf costs infinitely much where the target gives it weight, "
            "and nothing elsewhere."
        ),
        Text.of("Entries whose target is 0 are not read."),
        BAD_INDEX,
    ]
