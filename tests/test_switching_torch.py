"""PyTorch's losses against the specs they are read as: every argument, value and gradient, in every backend."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.switching_grid import BACKENDS, check
from unifiedloss import switching

pytestmark = [pytest.mark.framework("torch", "tensorflow", "jax", "keras")]

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(4, 3, 2)) * 3).astype(np.float32)
LABELS = np.array([[0, 1], [-100, 2], [2, -100], [1, 0]])
KEPT_LABELS = np.array([[0, 1], [1, 2], [2, 0], [1, 0]])
DENSE = RNG.dirichlet(np.ones(3), size=(4, 2)).transpose(0, 2, 1).astype(np.float32)
LOG_PROBABILITIES = np.log(RNG.dirichlet(np.ones(3), size=(4, 2)).transpose(0, 2, 1)).astype(np.float32)
PROBABILITIES = RNG.random((4, 3, 2)).astype(np.float32)
# Where torch clamps: the corners, and what is next to them.
PROBABILITIES[0, :, 0] = 0.0, 1.0, 2e-38
PROBABILITIES[1, :, 0] = 1.0, 0.0, 1 - 2.0**-24
ANSWERS = np.round(RNG.random((4, 3, 2)), 1).astype(np.float32)
ANSWERS[:2, :, 0] = [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]

REDUCTIONS = ("mean", "sum", "none")
W = (0.5, 0.0, 2.0)
ELEMENTS = tuple(
    tuple(tuple(float(number) for number in row) for row in block) for block in RNG.integers(0, 4, (4, 3, 2))
)


def calls(name: str, **choices: Any) -> list[switching.Call]:
    """One call for each combination of arguments, in each reduction."""
    choices["reduction"] = REDUCTIONS
    native = switching.find(name)
    combinations = (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
    return [switching.Call(name, native.bind([], arguments)) for arguments in combinations]


ELEMENT_WEIGHTS = (None, 2.0, (1.0, 3.0), ((1.0,), (0.0,), (2.5,)))
GRID = [
    *(
        (call, LOGITS, LABELS if call.arguments.get("ignore_index") is None else KEPT_LABELS)
        for call in calls(
            "torch.nn.CrossEntropyLoss", weight=(None, W), ignore_index=(-100, 1), label_smoothing=(0.0, 0.1, 1.0)
        )
    ),
    *(
        (call, LOGITS, DENSE)
        for call in calls("torch.nn.CrossEntropyLoss", weight=(None, W), label_smoothing=(0.0, 0.1))
    ),
    *(
        (call, LOG_PROBABILITIES, LABELS if call.arguments.get("ignore_index") is None else KEPT_LABELS)
        for call in calls("torch.nn.NLLLoss", weight=(None, W), ignore_index=(-100, 1))
    ),
    *((call, PROBABILITIES, ANSWERS) for call in calls("torch.nn.BCELoss", weight=ELEMENT_WEIGHTS)),
    *(
        (call, LOGITS, ANSWERS)
        for call in calls(
            "torch.nn.BCEWithLogitsLoss",
            weight=ELEMENT_WEIGHTS,
            pos_weight=(None, 3.0, (0.5, 2.0), ((1.0,), (0.0,), (3.0,))),
        )
    ),
    *((call, LOGITS, ANSWERS) for call in calls("torch.nn.MSELoss")),
    *((call, LOGITS, ANSWERS) for call in calls("torch.nn.functional.mse_loss", weight=(None, ELEMENTS))),
]


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
def test_grid(backend: str) -> None:
    """In float32, every combination of arguments."""
    for call, predictions, targets in GRID:
        check(call, predictions, targets, backends=(backend,))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_grid_in_float64(backend: str) -> None:
    """In float64, where a bound of some hundred ulps leaves nothing but the same formula."""
    for call, predictions, targets in GRID:
        wide = targets if targets.dtype.kind == "i" else targets.astype(np.float64)
        check(call, predictions.astype(np.float64), wide, backends=(backend,))
