r"""Sentences with formulas in them, readable as plain text and as LaTeX.

A formula is given in both readings, because neither can be derived from the other:
``Text.of("a mean over ", formula("sum_i s_i", r"\sum_i s_i"))``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MOST_SHOWN = 20
"""Longer arrays of weights are described by their length, range and ends."""


class Text(NamedTuple):
    """A sentence or a formula, in both readings."""

    plain: str
    latex: str

    def __str__(self) -> str:
        return self.plain

    @classmethod
    def of(cls, *parts: str | Text) -> Text:
        """Join plain text, formulas and names."""
        texts = [part if isinstance(part, Text) else cls(part, escape(part)) for part in parts]
        return cls("".join(x.plain for x in texts), "".join(x.latex for x in texts))


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


def escape(plain: str) -> str:
    """Plain text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(character, character) for character in plain)


def formula(plain: str, latex: str | None = None) -> Text:
    """A formula inside a sentence. Without LaTeX of its own, the plain text serves as both."""
    return Text(plain, f"${plain if latex is None else latex}$")


def code(plain: str) -> Text:
    """A name or a value as a program writes it."""
    return Text(plain, rf"\texttt{{{escape(plain)}}}")


def number(given: float) -> str:
    """A number with all its digits, without ".0" where it is whole."""
    return repr(float(given)).removesuffix(".0")


def number_latex(given: float) -> str:
    """A number as LaTeX, 1e-07 as a power of ten."""
    mantissa, power, exponent = number(given).partition("e")
    if not power:
        return mantissa
    factor = "" if mantissa == "1" else rf"{mantissa} \cdot "
    return rf"{factor}10^{{{int(exponent)}}}"


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


def shortened(given: str) -> str:
    """A text on one line, cut where it is long, for a message."""
    line = " ".join(given.split())
    return line if len(line) <= 80 else f"{line[:76]} ..."
