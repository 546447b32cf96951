"""Guess which known name an unknown one stands for."""

from __future__ import annotations

from collections.abc import Iterable

from unifiedloss.text import MOST_QUOTED

_FOREIGN_NAMES: dict[str, str | tuple[str, ...]] = {
    "weight": ("class_weights", "element_weights"),
    "weights": ("class_weights", "element_weights"),
    "beta": "delta",
    "ignore_class": "ignore_index",
    "dim": "axis",
    "class_axis": "axis",
    "size_average": "reduction",
    "reduce": "reduction",
    "smoothing": "label_smoothing",
    "eps": "epsilon",
    "ce": "cross_entropy",
    "bce": "binary_cross_entropy",
    "mse": "mean_squared_error",
    "l2": "mean_squared_error",
    "nll": "negative_log_likelihood",
    "tf": "tensorflow",
    "np": "numpy",
}
"""Names that other libraries use, too unlike ours for `difflib` to find; the first known fits."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: " Did you mean 'torch'?", or ""."""
    from difflib import get_close_matches  # here, because only an error needs it

    known = list(known)
    if not isinstance(name, str) or len(name) > MOST_QUOTED:
        return ""  # comparing takes time, and no name is so long
    lower = name.lower()
    foreign = _FOREIGN_NAMES.get(lower, lower)
    meant = (foreign,) if isinstance(foreign, str) else foreign
    matches = [each for each in meant if each in known]
    if not matches:
        spellings = {each.lower(): each for each in known}
        matches = [spellings[each] for each in get_close_matches(lower, spellings, n=1)]
    return f" Did you mean {matches[0]!r}?" if matches else ""
