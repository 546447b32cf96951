"""Pieces of the text of a port report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unifiedloss.interop.sides import Array, number


def capitalized(gap: str) -> str:
    """A gap at the beginning of a sentence."""
    return f"The {gap}" if gap.startswith("value") else f"{gap[0].upper()}{gap[1:]}"


def result(value: Array | None, error: str | None, ran: str) -> str:
    """What a loss gives: its value, or its error."""
    text = str(error) if value is None else written(value)
    return f"{text} (its spec does)" if ran == "instead" else text


def written(value: Array) -> str:
    """A loss, or the range of several."""
    if value.size == 1:
        return f"{number(value.item())} in {value.dtype}"
    if not value.size:
        return "nothing"
    low, high = number(value.min()), number(value.max())
    return f"{value.dtype} of shape {value.shape}, from {low} to {high}"


def first_of(rules: Sequence[str]) -> str:
    """The first rules of a list, and how many more there are."""
    more = len(rules) - _NAMED
    first = ", ".join(rules[:_NAMED])
    return first if more <= 0 else f"{first}, and {more} more (--all names them)"


_NAMED = 4


def percents(a: Array | None, b: Array | None) -> str:
    """How far two losses are apart, relative to the first."""
    if a is None or b is None or a.size != 1 or b.size != 1:
        return ""
    p, q = float(a.item()), float(b.item())
    if not (np.isfinite(p) and np.isfinite(q) and p) or p == q:
        return ""
    return f"; that of b is {100 * abs(q - p) / abs(p):.3g} % {'above' if q > p else 'below'} a's"
