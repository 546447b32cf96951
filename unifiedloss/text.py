r"""Text with formulas, both as plain text and as LaTeX.

Write a formula in both forms, because neither can be derived from the other:
``Text.of("a mean over ", formula("sum_i s_i", r"\sum_i s_i"))``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MOST_SHOWN = 20
"""Arrays with more numbers are described by their length, range, first and last number."""


class Text(NamedTuple):
    """A sentence or a formula, as plain text and as LaTeX."""

    plain: str
    latex: str

    def __str__(self) -> str:
        return self.plain

    @classmethod
    def of(cls, *parts: str | Text) -> Text:
        """Join strings, formulas and names."""
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
    """Escape the special characters of LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in plain)


def formula(plain: str, latex: str | None = None) -> Text:
    """Return a formula inside a sentence; `latex` defaults to the plain text."""
    return Text(plain, f"${plain if latex is None else latex}$")


def code(plain: str) -> Text:
    """Return a name or a value, set as code."""
    return Text(plain, rf"\texttt{{{escape(plain)}}}")


def number(given: float) -> str:
    """Return a number with all its digits, and an integer without ".0"."""
    return repr(float(given)).removesuffix(".0")


def number_latex(given: float) -> str:
    """Return a number as LaTeX, with a power of ten for a number such as 1e-07."""
    mantissa, power, exponent = number(given).partition("e")
    if not power:
        return mantissa
    factor = "" if mantissa == "1" else rf"{mantissa} \cdot "
    return rf"{factor}10^{{{int(exponent)}}}"


def value(given: object) -> str:
    """Return the value of a field as text."""
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
    """Put a text on one line of a message, and cut it after 76 characters if it is long."""
    line = " ".join(given.split())
    return line if len(line) <= 80 else f"{line[:76]} ..."
