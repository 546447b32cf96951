"""Guess what was meant with an unknown name."""

from __future__ import annotations

from collections.abc import Iterable

_ELSEWHERE = {
    "weight": "class_weights",
    "weights": "class_weights",
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
"""Names that other libraries use, too unlike ours for `difflib` to find."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: " Did you mean 'torch'?", or nothing."""
    from difflib import get_close_matches  # only a mistake needs it

    known = list(known)
    lower = str(name).lower()
    found = [_ELSEWHERE.get(lower, lower)]
    if found[0] not in known:
        found = get_close_matches(lower, known, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
