"""Make the explanations of specs, and the list of public names with their parameters."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import unifiedloss as ul

from .specs import lines, read

EXPLAINED = (
    "CrossEntropyLoss()",
    "CrossEntropyLoss(from_logits=True)",
    (
        "CrossEntropyLoss(from_logits=True, axis=1, class_weights=[1, 2.5], ignore_index=-100, "
        "divisor='label_weights')"
    ),
    (
        "CrossEntropyLoss(from_logits=True, axis=1, ignore_index=-100, label_smoothing=0.1, "
        "divisor='label_weights')"
    ),
    "CrossEntropyLoss(from_logits=True, ignore_index=[3, -1], reduction='sum', rounding='exact')",
    (
        "CrossEntropyLoss(from_logits=True, class_weights=[1, 2], class_weighting='position', "
        "label_smoothing=0.1)"
    ),
    "CrossEntropyLoss(epsilon=1e-07, reduction='none', scale=0.5)",
    (
        "CrossEntropyLoss(epsilon='keras', renormalize='before_clip', axis=-1, on_empty='zero', "
        "dtype='float32')"
    ),
    "CrossEntropyLoss(epsilon='keras', renormalize='after_clip', divisor='present')",
    "CrossEntropyLoss(epsilon='sklearn', on_empty='error')",
    "CrossEntropyLoss(from_logits=True, axis=1)",
    "CrossEntropyLoss(from_logits=True, axis=-1, reduction='none')",
    "BinaryCrossEntropyLoss()",
    "BinaryCrossEntropyLoss(from_logits=True)",
    "BinaryCrossEntropyLoss(from_logits=True, pos_weight=3, divisor='all')",
    (
        "BinaryCrossEntropyLoss(from_logits=True, pos_weight=[1, 2], axis=-3, "
        "element_weights=[1, 0.5], divisor='all')"
    ),
    "BinaryCrossEntropyLoss(epsilon='torch', divisor='all')",
    "BinaryCrossEntropyLoss(epsilon=1e-07, epsilon_added=True, divisor='nonzero', scale=2)",
    (
        "BinaryCrossEntropyLoss(epsilon='keras', average_last_axis=True, label_smoothing=0.1, "
        "divisor='present', on_empty='zero')"
    ),
    "BinaryCrossEntropyLoss(epsilon=0.25, rounding='exact', reduction='sum')",
    "BinaryCrossEntropyLoss(epsilon='sklearn', dtype='float64', reduction='none')",
    "MeanSquaredError()",
    "MeanSquaredError(element_weights=[[1, 2], [3, 0.5]], reduction='none')",
    (
        "MeanSquaredError(average_last_axis=True, divisor='present', on_empty='zero', scale=0.5, "
        "dtype='float32')"
    ),
    "MeanSquaredError(element_weights=2, divisor='nonzero', on_empty='error', rounding='exact')",
    "NegativeLogLikelihoodLoss()",
    (
        "NegativeLogLikelihoodLoss(axis=1, class_weights=[1, 2], ignore_index=-100, "
        "divisor='label_weights')"
    ),
    "NegativeLogLikelihoodLoss(reduction='sum', on_empty='zero', rounding='exact')",
)
"""Specs in which every field differs from its default at least once."""

_NATIVE = (
    "torch.nn.CrossEntropyLoss(label_smoothing=0.1)",
    "torch.nn.BCELoss()",
    "keras.losses.BinaryCrossentropy()",
    "tf.compat.v1.losses.log_loss",
    "optax.losses.sigmoid_binary_cross_entropy",
    "sklearn.metrics.log_loss",
)

_WITH_LATEX = 4
"""One explanation in this many is also kept as LaTeX."""


def explanations() -> str:
    """Return the text of the file: explanations of the specs and of losses of other libraries."""
    found = []
    for number, text in enumerate((*EXPLAINED, *_NATIVE)):
        explained = ul.explain(text if text in _NATIVE else read(text))
        found += [f"==== {text}", "", str(explained), ""]
        if number % _WITH_LATEX == 0:
            found += ["-- LaTeX", "", explained.latex, ""]
    return "\n".join(found)


def paths() -> list[str]:
    """Return the import paths that docs/api.md renders, and all public names of the package."""
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    rendered = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    errors = [name for name in vars(ul.errors) if name.endswith("Error")]
    return sorted(
        {
            *rendered,
            *(f"unifiedloss.{name}" for name in ul.__all__),
            *(f"unifiedloss.errors.{name}" for name in errors),
        }
    )


def names() -> str:
    """Return the text of the file: parameters of public names, and members of classes."""
    return lines({path: _outline(path) for path in paths()})


def found_at(path: str) -> Any:
    """Return the object at an import path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError:
        return importlib.import_module(path)


def _outline(path: str) -> dict[str, Any]:
    obj = found_at(path)
    found: dict[str, Any] = {}
    if callable(obj) and not (isinstance(obj, type) and issubclass(obj, Exception)):
        found["parameters"] = _parameters(obj)
    if isinstance(obj, type):
        found["bases"] = [base.__name__ for base in obj.__mro__[1:-1]]
        if not issubclass(obj, Exception):
            members = [name for name in dir(obj) if not name.startswith("_")]
            found["members"] = {name: _parameters(getattr(obj, name)) for name in members}
    return found


def _parameters(obj: Any) -> str:
    """Return the parameters with their defaults and without their types; "" if not a function."""
    if not callable(obj):
        return ""
    try:
        signature = inspect.signature(obj)
    except ValueError:
        return ""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))
