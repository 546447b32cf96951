"""The batch of the fits in tests/test_replicas.py; the pieces have different numbers of labels."""

from __future__ import annotations

import numpy as np

_RNG = np.random.default_rng(0)

ROWS, CLASSES = 12, 6
FEATURES = np.eye(ROWS, dtype=np.float32)
LOGITS = _RNG.normal(size=(ROWS, CLASSES)).astype(np.float32)
LABELS = _RNG.integers(0, CLASSES, ROWS)
LABELS[[0, 1, 2, 3, 7]] = -100
WEIGHTS = _RNG.uniform(0.5, 2, ROWS).astype(np.float32)
