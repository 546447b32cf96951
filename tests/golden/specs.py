"""List specs of all classes: each value of each field alone, and seeded combinations of fields."""

from __future__ import annotations

import json
import random
from typing import Any

import unifiedloss as ul

_SHARED: dict[str, tuple[Any, ...]] = {
    "reduction": ("mean", "sum", "none"),
    "divisor": ("weights", "present", "nonzero", "all"),
    "on_empty": ("nan", "zero", "error"),
    "rounding": ("native", "exact"),
}
_SCALED: dict[str, tuple[Any, ...]] = {
    "scale": (0.5, 1, 2.0, 1e-30),
    "dtype": ("float32", "float64"),
}
_PROBABILITIES: dict[str, tuple[Any, ...]] = {
    "from_logits": (True, False),
    "epsilon": (1e-7, 0.25, 0, "keras", "sklearn"),
    "label_smoothing": (0.1, 1, 0, 1e-40),
}
_CLASSES: dict[str, tuple[Any, ...]] = {
    "axis": (-1, 0, 1, -2),
    "class_weights": ([1, 2.5], (0.25, 0, 3), [1]),
    "ignore_index": (-100, 0, [3, -100, 3], [], {7}),
    "divisor": ("weights", "label_weights", "present", "nonzero", "all"),
}
_ELEMENTS: dict[str, tuple[Any, ...]] = {
    "element_weights": (2, [1, 0.5], [[1, 2], [3, 0.5]], [[[1]], [[2]]]),
    "average_last_axis": (True, False),
}

FIELDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "CrossEntropyLoss": _PROBABILITIES
    | _SHARED
    | _CLASSES
    | {"renormalize": ("before_clip", "after_clip"), "class_weighting": ("entries", "position")}
    | _SCALED,
    "BinaryCrossEntropyLoss": _PROBABILITIES
    | {
        "epsilon": (*_PROBABILITIES["epsilon"], "torch"),
        "epsilon_added": (True, False),
        "pos_weight": (3, 0.5, [2], (1, 2.5), [0, 1]),
        "axis": (-1, 0, 1, -3),
    }
    | _ELEMENTS
    | _SHARED
    | _SCALED,
    "MeanSquaredError": _ELEMENTS | _SHARED | _SCALED,
    "NegativeLogLikelihoodLoss": _SHARED | _CLASSES,
}
"""Values for each field of each class. "renormalize" and "epsilon_added" also need an epsilon."""

_NEEDS = {"renormalize": "epsilon='keras', ", "epsilon_added": "epsilon=1e-07, "}
_COMBINATIONS = 20
"""How many combinations are drawn for each class."""

_SHARE = 0.45
"""The probability that a field is part of a combination."""


def texts() -> list[str]:
    """Return the calls that make the specs, in a fixed order."""
    found = []
    for cls, fields in FIELDS.items():
        found.append(f"{cls}()")
        for name, values in fields.items():
            needed = _NEEDS.get(name, "")
            found += [f"{cls}({needed}{name}={value!r})" for value in values]
        found += _combinations(cls, fields)
    return list(dict.fromkeys(found))


def _combinations(cls: str, fields: dict[str, tuple[Any, ...]]) -> list[str]:
    """Return calls with several fields drawn at random, without those that the class refuses."""
    rng = random.Random(cls)
    found: list[str] = []
    while len(found) < _COMBINATIONS:
        chosen = {
            name: values[int(rng.random() * len(values))]
            for name, values in fields.items()
            if rng.random() < _SHARE
        }
        text = f"{cls}({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"
        try:
            read(text)
        except ul.SpecValueError:
            continue
        found.append(text)
    return found


def read(text: str) -> Any:
    """Return the spec that a call makes."""
    return eval(text, dict(vars(ul)))  # noqa: S307 - the texts are ours


def make() -> str:
    """Return the text of the file: for each call the JSON and the repr of its spec.

    Both have the canonical value of every field.
    """
    rows = {}
    for text in texts():
        spec = read(text)
        for again in (
            ul.from_json(spec.to_json()),
            ul.from_dict(spec.to_dict()),
            read(repr(spec)),
            spec.replace(),
        ):
            assert again == spec, text
            assert hash(again) == hash(spec), text
            assert repr(again) == repr(spec), text
        rows[text] = {"json": spec.to_json(), "repr": repr(spec)}
    return lines(rows)


def lines(rows: dict[str, Any]) -> str:
    """Return a dictionary as JSON with one entry a line, so that a diff shows the entry."""
    written = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items()]
    return "{\n" + ",\n".join(written) + "\n}\n"
