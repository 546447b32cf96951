"""A spec as text that torch.compile can trace, because operators take no objects."""

from __future__ import annotations

import ast
from functools import lru_cache
from typing import Any

from unifiedloss.serialization import from_dict
from unifiedloss.spec import Loss

_MAX_SPECS = 1024


def text_of(spec: Loss) -> str:
    """The spec as text, made with repr because torch.compile cannot trace the module json."""
    return repr({name: constant(value) for name, value in spec.to_dict().items()})


def constant(x: Any) -> Any:
    """`x` with its numbers made constant.

    Under ``dynamic=True`` torch.compile traces a spec's numbers as symbols, whose text is unknown.
    """
    if isinstance(x, list):
        return [constant(each) for each in x]
    if isinstance(x, float):
        numerator, denominator = x.as_integer_ratio()
        return numerator / denominator  # the same number, and constant
    if isinstance(x, int) and not isinstance(x, bool):
        return next(iter({x: None}))  # torch.compile makes a dictionary key constant
    return x


known_text = lru_cache(_MAX_SPECS)(text_of)


@lru_cache(_MAX_SPECS)
def spec_of(text: str) -> Loss:
    """The spec that `text_of` wrote."""
    return from_dict(ast.literal_eval(text))
