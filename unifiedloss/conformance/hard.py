r"""Make the cases that are hard to round correctly: results next to, or on, a midpoint of floats.

Such results are rare: a random float32 result lies within \(2^{-26}\) of an ulp of a midpoint once
in \(3 \cdot 10^7\) times. A search among some \(10^8\) random rows found these cases, or they are
derived.
The hard cases of a loss are in the module `hard` of its folder, or in its module `cases`.

These cases test exact mode. For native mode they are ordinary calls, and it has enough of those.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss.conformance.case import Case

HELD: dict[str, Any] = {
    "float16": np.float16,
    "bfloat16": np.float32,
    "float32": np.float32,
    "float64": np.float64,
}
"""The NumPy dtype that holds the numbers of each dtype."""

PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""The bits of a significand of each dtype."""

PROBABILITIES = (
    0.6841573119163513,
    0.728446900844574,
    0.5355257391929626,
    0.2499999850988388,
    0.24805448949337006,
    0.10057907551527023,
    0.23348142206668854,
    0.18487399816513062,
)
"""float32 probabilities. Of the first three, log p lies within 3e-7 of an ulp of a midpoint.

Of the next two, 1 / p, and of the last three, 1 / (1 - p), lie within 5e-8. No quotient of two
float32 numbers comes much nearer.
"""

SUBNORMAL_GAPS = {
    "float16": (9.75, 16, 17.5),
    "bfloat16": (88, 92, 92.5),
    "float32": (88, 100, 104),
    "float64": (709, 740, 746),
}
"""Differences of logits at which losses and slopes are subnormal, by the dtype."""

TIE = "a tie broken by next to nothing"


def hard_case(
    name: str, spec: Any, dtype: str, predictions: Any, targets: Any, **more: Any
) -> Case:
    """Make a hard case, named "hard/<name>, <dtype>"; `more` are further attributes of the case."""
    predictions = np.array(predictions, HELD[dtype])
    return Case(
        f"hard/{name}, {dtype}",
        spec,
        predictions,
        np.array(targets),
        dtype=dtype,
        rules=("rounding",),
        **more,
    )
