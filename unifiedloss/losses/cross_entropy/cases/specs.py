"""The spec of most cases."""

from __future__ import annotations

from typing import Any

from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss


def spec_with(**fields: Any) -> CrossEntropyLoss:
    """A loss from logits without reduction, if the fields do not say otherwise."""
    defaults: dict[str, Any] = {"from_logits": True, "reduction": "none"}
    return CrossEntropyLoss(**defaults | fields)
