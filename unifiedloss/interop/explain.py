"""Explain a loss as plain text and LaTeX: formula, divisor, rules and special values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unifiedloss import losses
from unifiedloss.errors import UnsupportedError
from unifiedloss.formulas import equals
from unifiedloss.interop.quirks import rules_of
from unifiedloss.interop.sentences import sentences, special_values, title
from unifiedloss.interop.sides import side_of
from unifiedloss.spec import Loss
from unifiedloss.text import (
    Text,
    code,
    escape,
    formula,
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
        title=Text.of(f"{title(spec)}: ", code(repr(spec))),
        formulas=tuple(_formulas(spec)),
        rules=sentences(spec),
        special=tuple(special_values(spec)),
    )


def _formulas(spec: Loss) -> list[Text]:
    lines: list[Text] = losses.part(spec.name, "formula").lines(spec)
    return [*lines, *_averaged(spec), *_reduced(spec)]


def _averaged(spec: Loss) -> list[Text]:
    if not getattr(spec, "average_last_axis", False):
        return []
    return [
        equals(
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
        return [equals("L_i", "s_i l_i", "L_i", r"s_i \ell_i", *weight)]
    if spec.reduction == "sum":
        return [equals("L", "sum_i s_i l_i", "L", r"\sum_i s_i \ell_i", *weight)]
    return [
        equals("L", "sum_i s_i l_i / D", "L", r"\frac{1}{D} \sum_i s_i \ell_i", *weight),
        *_divided(spec),
    ]


def _divided(spec: Loss) -> list[Text]:
    """Define D, the divisor of the mean."""
    if spec.divisor in ("present", "all"):
        return [_count(spec.divisor)]
    weight, latex = _position_weight(spec)
    each = equals("W_i", weight, "W_i", latex)
    if spec.divisor == "nonzero":
        return [_count("nonzero"), each]
    positions: tuple[str | Text, ...] = ("over the positions not dropped",)
    if spec.divisor == "label_weights":
        positions = (
            "over the positions not dropped; for dense targets ",
            formula("D"),
            " is the number of all positions",
        )
    return [equals("D", "sum_i W_i", "D", r"\sum_i W_i", *positions), each]


def _count(divisor: str) -> Text:
    return equals("D", _COUNTS[divisor], "D", rf"\text{{{_COUNTS[divisor]}}}")


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
