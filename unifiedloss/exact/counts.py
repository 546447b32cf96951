"""Counts how often exact mode leaves its first tier, for tests and measurements."""

from __future__ import annotations

from collections import Counter

undecided: Counter[str] = Counter()
"""What the tiers left undecided since this counter was cleared.

"elements" counts single gradient elements and "rows" counts full rows that the first tier left to
the balls. "oracle" counts the numbers that the oracle computed.
"""

skipped_tiers: set[str] = set()
"""Tiers to skip. Tests add "fast" and "balls" to send every element to the later tiers."""
