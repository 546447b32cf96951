"""scikit-learn's losses, which have no gradient, agree with their specs in every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.interop_grid import BACKENDS, check, check_round_trip, computed
from unifiedloss import CrossEntropyLoss, MeanSquaredError, from_native, interop
from unifiedloss.errors import BadValueError, EmptyMeanError, SpecTypeError, UnsupportedError
from unifiedloss.interop import Call

pytestmark = [
    pytest.mark.framework("torch", "tensorflow", "jax", "keras"),
    # scikit-learn warns and computes, and the tests compare its result.
    pytest.mark.filterwarnings("ignore:The y_prob values do not sum to one:UserWarning"),
]

RNG = np.random.default_rng(0)
PREDICTIONS = (RNG.normal(size=(4, 3)) * 4).astype(np.float32)
PROBABILITIES = RNG.dirichlet(np.ones(3), 4).astype(np.float32)
LABELS = np.array([0, 1, 1, 2])
ANSWERS = RNG.random((4, 3)).astype(np.float32)
WEIGHTS = np.array([1.0, 0.0, 3.0, 1.0], np.float32)

LOG, SUMMED = (
    Call("sklearn.metrics.log_loss"),
    Call("sklearn.metrics.log_loss", {"normalize": False}),
)
SQUARED = Call("sklearn.metrics.mean_squared_error")
OUTPUTS = Call("sklearn.metrics.mean_squared_error", {"multioutput": (0.3, 0.0, 0.7)})

# Probabilities of 0 are clipped to the spacing of the dtype: 15.94 in float32, 36.04 in float64.
CORNERS = np.array([[0.0, 0.5, 0.5], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], np.float32)

GRID: list[tuple[Any, ...]] = [
    *(
        (native, PROBABILITIES, LABELS, *weights)
        for native in (LOG, SUMMED)
        for weights in ((), (WEIGHTS,))
    ),
    (LOG, ANSWERS, LABELS, WEIGHTS),
    (LOG, CORNERS, np.array([0, 1, 2])),
    (SUMMED, CORNERS, np.array([0, 2, 1])),
    (SQUARED, PREDICTIONS, ANSWERS),
    (SQUARED, PREDICTIONS, ANSWERS, WEIGHTS),
    (SQUARED, PREDICTIONS[:, 0], ANSWERS[:, 0], WEIGHTS),
    (SQUARED, PREDICTIONS, np.arange(12).reshape(4, 3)),
    (OUTPUTS, PREDICTIONS, ANSWERS),
    (OUTPUTS, PREDICTIONS, ANSWERS, WEIGHTS),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
@pytest.mark.slow("the same specs in the frameworks that compile no eager call", only=["jax"])
def test_grid(backend: str, dtype: str) -> None:
    """Every loss agrees with its spec over its arguments."""
    if backend == "jax" and dtype == "float64":
        import jax

        with jax.enable_x64(True):  # noqa: FBT003 - has no keyword
            check_grid(backend, dtype)
    else:
        check_grid(backend, dtype)


def check_grid(backend: str, dtype: str) -> None:
    """Check the grid in one backend and dtype."""
    for native, predictions, targets, *weights in GRID:
        own = targets.astype(dtype) if targets.dtype.kind == "f" else targets
        check(native, predictions.astype(dtype), own, *weights, backends=(backend,))


def test_clip_of_float16() -> None:
    """In float16, p = 0 is clipped to the spacing 2**-10, and scikit-learn rounds to float16."""
    predictions, targets = np.array([[0.0, 1.0], [1.0, 0.0]], np.float16), np.array([0, 1])
    assert interop.run(LOG, predictions, targets)[0] == 6.9296875
    value, _ = computed("numpy", interop.spec_of(LOG), predictions, targets)
    np.testing.assert_allclose(value, 10 * np.log(2), rtol=1e-6)


def test_nothing_to_divide_by() -> None:
    """If all weights are 0, scikit-learn and the spec raise."""
    for native, predictions, targets in (
        (LOG, PROBABILITIES, LABELS),
        (SQUARED, PREDICTIONS, ANSWERS),
    ):
        with pytest.raises(ValueError, match="non-zero"):
            interop.run(native, predictions, targets, 0 * WEIGHTS)
        with pytest.raises(EmptyMeanError):
            computed("numpy", interop.spec_of(native), predictions, targets, 0 * WEIGHTS)


def test_what_is_refused_by_both_or_one() -> None:
    """scikit-learn refuses NaN and missing classes, a spec negative weights, and both p > 1."""
    with pytest.raises(ValueError, match="NaN"):
        interop.run(SQUARED, np.array([np.nan, 1.0]), np.array([0.0, 1.0]))
    assert np.isnan(
        computed("numpy", interop.spec_of(SQUARED), np.array([np.nan, 1.0]), np.array([0.0, 1.0]))[
            0
        ]
    )
    beyond = np.array([[1.5, 0.0], [0.0, 1.0]], np.float32)
    with pytest.raises(ValueError, match="greater than 1"):
        interop.run(LOG, beyond, np.array([0, 1]))
    with pytest.raises(BadValueError):
        computed("numpy", interop.spec_of(LOG), beyond, np.array([0, 1]))
    # scikit-learn assigns labels to columns by their order, so every class must occur; for a spec,
    # a label is the index of a column.
    with pytest.raises(ValueError, match="different number of classes"):
        interop.run(LOG, PROBABILITIES[:2], LABELS[:2])
    assert np.isfinite(computed("numpy", interop.spec_of(LOG), PROBABILITIES[:2], LABELS[:2])[0])
    negative = np.array([1.0, -0.5, 1.0, 1.0], np.float32)
    assert np.isfinite(interop.run(SQUARED, PREDICTIONS, ANSWERS, negative)[0])
    with pytest.raises(BadValueError):
        computed("numpy", interop.spec_of(SQUARED), PREDICTIONS, ANSWERS, negative)


@pytest.mark.parametrize("native", [LOG, SUMMED, SQUARED, OUTPUTS], ids=str)
def test_round_trip(native: Call) -> None:
    """Every spec of these metrics is written as a metric and read back."""
    check_round_trip(native)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sklearn.metrics.log_loss(labels=['cat', 'dog'])", "leave labels out"),
        ("sklearn.metrics.log_loss(normalize=1)", "True or False"),
        ("sklearn.metrics.mean_squared_error(multioutput='raw_values')", "uniform_average"),
        ("sklearn.metrics.mean_squared_error(multioutput=[[0.3, 0.7]])", "no list of one weight"),
    ],
)
def test_refused(text: str, words: str) -> None:
    """An argument that no spec can express is an error that names the rule."""
    with pytest.raises(UnsupportedError, match=words):
        from_native(text)


def test_objects() -> None:
    """Functions and partials are read; tensors of the call and other functions are errors."""
    from sklearn import metrics

    assert from_native(partial(metrics.log_loss, normalize=False)) == from_native(
        metrics.log_loss, normalize=False
    )
    assert from_native(metrics.mean_squared_error) == MeanSquaredError(on_empty="error")
    with pytest.raises(SpecTypeError, match="given to the call"):
        from_native(metrics.log_loss, sample_weight=[1.0, 2.0])
    with pytest.raises(UnsupportedError, match="leave labels out"):
        from_native(metrics.log_loss, labels=np.array([0, 1]))
    with pytest.raises(SpecTypeError, match=r"sklearn.metrics.hinge_loss is another kind of loss"):
        from_native(metrics.hinge_loss)


def test_exports() -> None:
    """A spec is written as scikit-learn's own function, or the error names what it has."""
    from sklearn import metrics

    spec = CrossEntropyLoss(epsilon="sklearn", on_empty="error")
    assert spec.to_native("sklearn") is metrics.log_loss
    assert spec.to_native("sklearn", code=True) == "sklearn.metrics.log_loss"
    summed = spec.replace(reduction="sum", on_empty="nan").to_native("sklearn", code=True)
    assert summed == "functools.partial(sklearn.metrics.log_loss, normalize=False)"
    for changes, words in (
        ({"epsilon": 0.0}, "clips to the spacing"),
        ({"on_empty": "nan"}, "raises where the weights sum to 0"),
        ({"reduction": "none"}, "gives one number"),
        ({"divisor": "all"}, "sum of the sample weights"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            spec.replace(**changes).to_native("sklearn")
