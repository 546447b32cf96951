r"""Sentences with formulas in them, written once and read as plain text or as LaTeX.

A formula is two strings, so that neither reading is made from the other: ``say("a mean over ", formula("sum_i s_i", r"\sum_i s_i"))``.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Phrase(NamedTuple):
    """One sentence or formula, in both readings."""

    text: str
    latex: str

    def __str__(self) -> str:
        return self.text


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape(text: str) -> str:
    """Plain text as LaTeX prints it."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def formula(text: str, latex: str | None = None) -> Phrase:
    """A formula inside a sentence; without LaTeX of its own, the text is the formula in both."""
    return Phrase(text, f"${text if latex is None else latex}$")


def code(text: str) -> Phrase:
    """A name or a value as it stands in a program."""
    return Phrase(text, rf"\texttt{{{escape(text)}}}")


def say(*parts: str | Phrase) -> Phrase:
    """A sentence made of plain text, formulas and names."""
    phrases = [part if isinstance(part, Phrase) else Phrase(part, escape(part)) for part in parts]
    return Phrase(
        "".join(phrase.text for phrase in phrases), "".join(phrase.latex for phrase in phrases)
    )


def number(value: float) -> str:
    """A number as text: all its digits, and none behind the point where it is whole."""
    text = repr(float(value))
    return text.removesuffix(".0")


def number_latex(value: float) -> str:
    """The same in a formula: 1e-07 as a power of ten."""
    mantissa, power, exponent = number(value).partition("e")
    if not power:
        return mantissa
    factor = "" if mantissa == "1" else rf"{mantissa} \cdot "
    return rf"{factor}10^{{{int(exponent)}}}"


MOST_SHOWN = 20
"""More weights than this are told by their number, their ends and their range."""


def value(given: object) -> str:
    """The value of a field as text."""
    if isinstance(given, str):
        return f'"{given}"'
    if isinstance(given, bool) or given is None:
        return str(given)
    if isinstance(given, float):
        return number(given)
    if isinstance(given, tuple):
        return _array(given)
    return str(given)


def _array(given: tuple[object, ...]) -> str:
    leaves = re.findall(r"[^\s(),]+", str(given))
    if len(leaves) > MOST_SHOWN:
        numbers = [float(leaf) for leaf in leaves]
        return (
            f"{len(leaves)} numbers from {number(min(numbers))} to {number(max(numbers))}, "
            f"the first {number(numbers[0])}, the last {number(numbers[-1])}"
        )
    inside = ", ".join(value(element) for element in given)
    return f"({inside},)" if len(given) == 1 else f"({inside})"
