r"""Text with formulas, both as plain text and as LaTeX.

Write a formula in both forms, because neither can be derived from the other:
``Text.of("a mean over ", formula("sum_i s_i", r"\sum_i s_i"))``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MOST_SHOWN = 20
"""Arrays with more numbers are described by their length, range, first and last number."""

_BRIEF = 60
"""The most characters of a tuple that `brief` writes in full."""


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


MOST_QUOTED = 200
"""A message quotes at most this many characters of what a caller gave."""


MOST_CHARACTERS = 10_000_000
"""A longer text is not read. It holds 500,000 weights, and takes a second."""


def too_long(given: str | bytes) -> str:
    """Return the message about a text that is longer than `MOST_CHARACTERS`."""
    return (
        f"the text has {len(given):,} characters, and at most {MOST_CHARACTERS:,} are read; "
        "a spec is shorter."
    )


def shortened(given: str) -> str:
    """Put a text on one line of a message, and cut it after 76 characters if it is long.

    Characters that a terminal does not print are escaped.
    """
    # No more than can be shown is looked at, because the text may have millions of characters.
    line = " ".join(given[: 4 * MOST_QUOTED].split())
    cut = len(line) > 80 or len(given) > 4 * MOST_QUOTED
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line[: 76 if cut else 80])
    return f"{line} ..." if cut else line


def shortened_path(path: object) -> str:
    """Put the name of a file on one line of a message, and cut its beginning if it is long."""
    line = str(path)
    cut = "" if len(line) <= 80 else "..."
    return cut + shortened(line[-76:])


def quoted(given: object) -> str:
    """Return the repr of a value for a message, cut after 200 characters.

    A value whose repr fails, such as an int of 5,000 digits, is described.
    """
    if isinstance(given, str | bytes | bytearray):
        text = repr(given[: MOST_QUOTED + 1])
    else:
        try:
            # A list has at least one character for each element.
            some = type(given) in (list, tuple)
            text = repr(given[: MOST_QUOTED + 1] if some else given)  # type: ignore[index]
        except Exception:  # noqa: BLE001 - the repr of anyone's class may raise anything
            text = f"a value of type {type(given).__name__}"
            if isinstance(given, int):
                text = f"an int of {given.bit_length()} bits"
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED - 4]} ..."


def brief(value: object) -> str:
    """The repr of a value, with all but the first entries of a long tuple left out.

    A shortened one is no valid source text, so that nobody takes it for the whole value.
    """
    text = repr(value)
    if not isinstance(value, tuple) or len(text) <= _BRIEF:
        return text
    shown = 1 if isinstance(value[0], tuple) else 2
    more = [f"<{len(value) - shown:,} more>"] if len(value) > shown else []
    return f"({', '.join([*map(brief, value[:shown]), *more])})"
