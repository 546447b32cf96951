"""Values that are not bad but suggest a mistake give a hint, and never an error."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.hints import hints

RNG = np.random.default_rng(1)
Z = RNG.normal(size=(6, 3)).astype(np.float32)
P = ul.softmax(Z)
Y = np.array([0, 1, 2, 0, 1, 2])
ONE_HOT = np.eye(3, dtype=np.float32)[Y]
LOGITS = ul.CrossEntropyLoss(from_logits=True)
BINARY = ul.BinaryCrossEntropyLoss(from_logits=True)
NLL = ul.NegativeLogLikelihoodLoss()

HINTS: list[tuple[Any, Any, Any, str]] = [
    (LOGITS, P, Y, "set from_logits=False"),
    (LOGITS, P.astype(np.float16), Y, "set from_logits=False"),
    (LOGITS.replace(axis=0), P.T.copy(), Y, "set from_logits=False"),
    (LOGITS, Z[:, :1], 0 * Y, "one class on axis 1"),
    (ul.CrossEntropyLoss(), P[:, :1], 0 * Y, "one class on axis 1"),
    (NLL, P, Y, "take the logarithm before"),
    (NLL, Z, Y, "a log_softmax is missing"),
    (ul.CrossEntropyLoss(), ONE_HOT, P, "arguments swapped?"),
    (LOGITS, ONE_HOT, P, "arguments swapped?"),
    (LOGITS, Z, np.ones_like(Z), "targets of the binary cross-entropy"),
    (BINARY, P, np.float32(Z > 0), "set from_logits=False"),
    (BINARY, Z, ONE_HOT, "targets of the categorical cross-entropy"),
    (ul.BinaryCrossEntropyLoss(), ONE_HOT[:, 0], P[:, 0], "arguments swapped?"),
]


@pytest.mark.parametrize(("spec", "predictions", "targets", "says"), HINTS)
def test_hints(spec: Any, predictions: Any, targets: Any, says: str) -> None:
    """`check` returns the hint and warns; the loss itself computes and says nothing."""
    with pytest.warns(UserWarning, match=re.escape(says)) as caught:
        found = ul.check(spec, predictions, targets)
    assert [str(each.message) for each in caught] == list(found)
    assert len(found) == 1
    assert says in found[0]
    assert found == hints(spec, predictions, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec(predictions, targets)


@pytest.mark.parametrize(
    ("spec", "predictions", "targets"),
    [
        (LOGITS, Z, Y),
        (LOGITS, 0 * Z, Y),
        (LOGITS, Z, P),
        (LOGITS, ONE_HOT * 5, Y),
        (ul.CrossEntropyLoss(), P, Y),
        (ul.CrossEntropyLoss(), P, ONE_HOT),
        (NLL, np.log(P), Y),
        (BINARY, Z, np.float32(P > 0.3)),
        (BINARY, 0 * Z, np.float32(Z > 0)),
        (ul.BinaryCrossEntropyLoss(), P, P),
        (ul.MeanSquaredError(), ONE_HOT, P),
        (ul.HuberLoss(), P, ONE_HOT),
        (LOGITS, Z[:0], Y[:0]),
    ],
)
def test_no_hint(spec: Any, predictions: Any, targets: Any) -> None:
    """Values as they are meant give no hint."""
    assert ul.check(spec, predictions, targets) == ()


def test_tensors_that_do_not_fit() -> None:
    """There are no hints where the error says more."""
    assert hints(LOGITS, P, ONE_HOT[:3]) == ()
