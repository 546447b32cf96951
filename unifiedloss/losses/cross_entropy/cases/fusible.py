"""Calls of the cross-entropy whose predictions the compiled program makes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Array, Fusible, rng_of
from unifiedloss.losses.cross_entropy.cases.specs import spec_with

_RULES = ("cross-entropy", "never-negative", "large-offsets")


def fusible() -> Iterator[Fusible]:
    """Hard labels of large logits, where a rounding of a logit is far larger than the loss."""
    hard = spec_with(from_logits=True)
    yield Fusible("cross-entropy", hard, _logits(16, 16), _best, _RULES)
    # XLA computes the largest logit of this many in a program of its own.
    ways = ("product with 1/3",)
    yield Fusible("cross-entropy, large", hard, _logits(64, 100), _best, _RULES, ways)
    yield Fusible("cross-entropy, one-hot", hard, _logits(16, 16), _one_hot, _RULES, ways)
    smoothed = spec_with(from_logits=True, label_smoothing=0.1, reduction="mean")
    rules = ("cross-entropy", "label-smoothing", "large-offsets")
    yield Fusible("cross-entropy, smoothed", smoothed, _logits(16, 16), _best, rules, ways)


def _logits(rows: int, classes: int) -> Array:
    """Rows with offsets of up to 3000; the loss of every second is below 1e-8."""
    rng = rng_of("fused/cross-entropy")
    offsets = rng.uniform(-3000, 3000, (rows, 1))
    logits = offsets + rng.normal(scale=3, size=(rows, classes))
    logits[::2, 1] += 40
    return logits.astype(np.float32)


def _best(logits: Array) -> Array:
    labels: Array = logits.argmax(1)
    return labels


def _one_hot(logits: Array) -> Array:
    return np.eye(logits.shape[1], dtype=np.float32)[_best(logits)]
