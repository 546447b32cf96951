"""Exact mode with a dtype that the spec names: inputs are rounded to it once, and so is the result.

The conformance cases "edge/39 ..." hold every backend to the oracle.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import unifiedloss as ul

SPECS = (
    ul.MeanSquaredError(),
    ul.HuberLoss(scale=0.7, reduction="sum"),
    ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none"),
    ul.CrossEntropyLoss(from_logits=True, divisor="weights"),
)


@pytest.mark.parametrize("to", ["float32", "float64"])
@pytest.mark.parametrize("given", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_results_are_those_of_tensors_that_were_cast_before(given: Any, to: Any) -> None:
    """The loss has the named dtype. The gradient is rounded to it, and then to the given one."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(6, 5)).astype(given)
    z[0, 0] = 6e-8 if given is np.float16 else 1e-40  # subnormal, in float32 too
    weight = rng.random(6)
    labels, numbers = rng.integers(0, 5, 6), (rng.random((6, 5)) < 0.5).astype(given)
    for spec in SPECS:
        t = labels if isinstance(spec, ul.CrossEntropyLoss) else numbers
        exact = spec.replace(rounding="exact")
        loss, gradient = exact.replace(dtype=to).value_and_grad(z, t, sample_weight=weight)
        read = (x.astype(to) if x is not labels else x for x in (z, t))
        right, slopes = exact.value_and_grad(*read, sample_weight=weight.astype(to))
        assert loss.dtype == to
        assert loss.tobytes() == right.tobytes()
        assert gradient.dtype == given
        assert gradient.tobytes() == slopes.astype(given).tobytes()


def test_small_numbers_are_not_lost() -> None:
    """A float32 number that float64 holds as a normal one is read as it is."""
    p = np.array([1e-40], np.float32)
    spec = ul.MeanSquaredError(dtype="float64", rounding="exact")
    assert spec(p, np.zeros(1, np.float32)) == float(p[0]) ** 2 > 0
