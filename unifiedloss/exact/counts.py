"""What exact mode's tiers left to the next one, for tests and measurements."""

from __future__ import annotations

from collections import Counter

undecided: Counter[str] = Counter()
"""What the first tier left undecided since this was cleared.

"elements" of gradients and whole "rows" went to the balls, and "oracle" counts what these left.
"""

skipped_tiers: set[str] = set()
"""Tests put "fast" and "balls" here, so that every element takes the path of the rare ones."""
