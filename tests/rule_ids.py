"""Read the ids of the rules off docs/rules.md."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs/rules.md"


@cache
def rule_ids() -> frozenset[str]:
    """Return all ids, which stand in bold code in front of their rules.

    Raises:
        ValueError: two rules have the same id.
    """
    found: list[str] = re.findall(r"\*\*`([a-z0-9-]+)`\*\*", PAGE.read_text(encoding="utf-8"))
    ids = frozenset(found)
    if len(ids) < len(found):
        twice = sorted(rule for rule in ids if found.count(rule) > 1)
        msg = f"{PAGE.name} has two rules named {', '.join(twice)}."
        raise ValueError(msg)
    return ids
