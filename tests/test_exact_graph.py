"""The formulas of exact mode in a compiled program, in NumPy: what no host decides is decided.

A result that they leave undecided is NaN under TensorFlow's XLA, where there is no host.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests.graph_numpy import NumPyOps, evaluate
from unifiedloss import exact, registry
from unifiedloss.exact.graph import form, tiers
from unifiedloss.exact.graph.ops import Field
from unifiedloss.exact.graph.sums import exact_sum

pytestmark = pytest.mark.framework("numpy")

PLAN = registry.adapter("numpy").plan
INF, NAN = np.inf, np.nan

LOSSES: dict[str, Any] = {
    "index": ul.CrossEntropyLoss(from_logits=True, class_weights=(0, 2.5, 1), rounding="exact"),
    "smoothed": ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, rounding="exact"),
    "dense": ul.CrossEntropyLoss(from_logits=True, rounding="exact"),
    "binary": ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact"),
    "binary, weighted": ul.BinaryCrossEntropyLoss(
        from_logits=True, pos_weight=0.0, label_smoothing=0.25, rounding="exact"
    ),
    "squared": ul.MeanSquaredError(rounding="exact"),
    "huber": ul.HuberLoss(delta=0.1, rounding="exact"),
}
ROWS = np.float32(
    [
        [INF, -INF, 1e-40],
        [-INF, 0, 2],
        [-INF, -INF, 5],
        [-INF, INF, -INF],
        [NAN, 1, 0],
        [2.0**-149, -(2.0**-149), 0],
        [1e-20, 3e38, -3e38],
        [-800, 200, 88],
        [0.25, 1.5, -3],
        [18, 0, -1e5],
    ]
)
WEIGHTS = {
    "none": None,
    "float32": np.float32([1, 3e38, 2.0**-126, 1e-30, 1, 0.3, 1e30, 1e-37, 1e-40, 0.7]),
    "float64": np.array([1, 1e250, 1e-300, 1e200, 2, 1e-100, 1e-200, 1e100, 1e-310, 0.7]),
}


def targets(name: str, seed: int) -> Any:
    """Labels, or targets that agree with the infinite predictions and deny them."""
    random = np.random.default_rng(seed)
    if name in ("index", "smoothed"):
        return random.integers(0, 3, len(ROWS))
    chosen = random.choice(np.float32([0, 1, 0.5, 0.25, 1e-40, 1e-30]), ROWS.shape)
    if name in ("squared", "huber"):
        chosen[random.random(ROWS.shape) < 0.1] = INF
        chosen[random.random(ROWS.shape) < 0.1] = NAN
    return chosen


def same(got: Any, wanted: Any) -> None:
    """Assert that two results have the same numbers."""
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(x, np.float64), np.asarray(y, np.float64))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", LOSSES)
def test_special_values_and_wide_weights(name: str, weights: str) -> None:
    """The numbers are the host's: infinities, subnormal numbers, NaN, and weights of all sizes."""
    weight = WEIGHTS[weights]
    for seed, reduction in enumerate(("none", "sum", "mean", "none")):
        spec = LOSSES[name].replace(reduction=reduction, divisor="nonzero")
        t = targets(name, seed)
        plan = PLAN(spec, ROWS, t, weight, None)
        assert form.why_not(plan) is None
        shape: Any = plan.positions if reduction == "none" else ()
        upstream = np.full(shape, (1.00000006, -0.3, 2.0**-140, 0.0)[seed])
        wanted = exact.evaluate(plan, ROWS, t, weight, None, upstream, gradient=True)
        same(evaluate(plan, ROWS, t, weight, None, upstream), wanted)


@pytest.mark.parametrize("name", LOSSES)
def test_special_values_hide_in_no_sum(name: str) -> None:
    """Each finite row alone has the host's mean and gradient, and so has a NaN weight."""
    for row in (5, 7, 8, 9):
        x, t = ROWS[row : row + 1], targets(name, 3)[row : row + 1]
        t = t if name in ("index", "smoothed") else np.nan_to_num(t, posinf=1)
        for weight in (None, np.float32([1e-30]), np.float32([NAN])):
            plan = PLAN(LOSSES[name].replace(on_empty="zero"), x, t, weight, None)
            wanted = exact.evaluate(plan, x, t, weight, None, gradient=True)
            same(evaluate(plan, x, t, weight), wanted)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("tiny", [1e-30, -1e-30, 2.0**-126])
def test_a_tie_that_a_tiny_term_breaks(reduction: Any, tiny: float) -> None:
    """A sum half way between two float32 goes where its tiny term points, also divided by three."""
    p = np.float32([1, 1, 0] if reduction == "sum" else [1, 1, 1])
    half = 2.0**-24 * (1 if reduction == "sum" else 1.5)
    weight = np.float32([1, half, 1] if reduction == "sum" else [1.5, 1.5 + 2 * half, tiny])
    if reduction == "sum":
        p[2], weight[2] = 1, tiny
    spec = ul.MeanSquaredError(reduction=reduction, divisor="all", rounding="exact")
    t = np.zeros(3, np.float32)
    plan = PLAN(spec, p, t, weight, None)
    same(
        evaluate(plan, p, t, weight), exact.evaluate(plan, p, t, weight, None, None, gradient=True)
    )


def test_undecided_results_are_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no tier decides is NaN, never a number that may be wrong."""
    x, t = np.float32([1, 2]), np.zeros(2, np.float32)
    spec = ul.MeanSquaredError(rounding="exact")
    # float64 cannot hold the sum of these weights as it is needed.
    weight = np.array([1e300, 1])
    value, gradient = evaluate(PLAN(spec, x, t, weight, None), x, t, weight)
    assert np.isnan(value)
    assert np.isnan(gradient).all()
    monkeypatch.setattr(tiers, "skipped_tiers", {"float64", "balls"})
    value, gradient = evaluate(PLAN(spec, x, t, None, None), x, t)
    assert np.isnan(value)
    assert np.isnan(gradient).all()


@pytest.mark.parametrize("spread", [1, 40, 250])
def test_sums_of_terms_of_all_sizes(spread: int) -> None:
    """The ball holds the exact sum, and shows its sign and its side of what float64 holds."""
    random = np.random.default_rng(spread)
    xp = NumPyOps()
    for n in (1, 2, 3, 50, 3000):
        x = random.normal(size=n) * 2.0 ** random.integers(-spread, spread + 1, n)
        x[n // 2 :] = -x[: n - n // 2] if n % 3 == 0 else x[n // 2 :]
        ball = exact_sum(Field(xp, np.int64(0)), x[None], n)
        off = sum(map(Fraction, x), Fraction(0)) - Fraction(ball.high.item())
        off -= Fraction(ball.low.item())
        assert abs(off) <= Fraction(ball.radius.item())
        assert ball.radius.item() <= abs(ball.low.item()) * 2.0**-50
