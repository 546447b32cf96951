"""Optax' losses agree with the specs they are read as, in every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.interop_grid import BACKENDS, check, check_round_trip, computed
from unifiedloss import CrossEntropyLoss, HuberLoss, MeanSquaredError, from_native, interop
from unifiedloss.errors import BadValueError, SpecTypeError, UnsupportedError
from unifiedloss.interop import Call

pytestmark = [pytest.mark.framework("torch", "tensorflow", "jax", "keras")]

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(2, 3, 3)) * 4).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 3))
DENSE = RNG.dirichlet(np.ones(3), (2, 3)).astype(np.float32)
ANSWERS = RNG.random((2, 3, 3)).astype(np.float32)
INF, NAN = np.inf, np.nan


def call(name: str, **arguments: Any) -> Call:
    """Return the call of a loss with these arguments."""
    native = interop.find(f"optax.{name}")
    return Call(native.name, native.bind([], arguments))


def rows(*row: float) -> Any:
    """Return one row in float32."""
    return np.array([row], np.float32)


INDEX, SOFT = call("softmax_cross_entropy_with_integer_labels"), call("softmax_cross_entropy")
SAFE, SIGMOID = call("safe_softmax_cross_entropy"), call("sigmoid_binary_cross_entropy")
SQUARED, HALVED = call("squared_error"), call("l2_loss")

GRID: list[tuple[Any, ...]] = [
    (INDEX, LOGITS, LABELS),
    (call("softmax_cross_entropy_with_integer_labels", axis=1), LOGITS, LABELS),
    (INDEX, LOGITS, LABELS.astype(np.uint8)),
    (SOFT, LOGITS, DENSE),
    (call("softmax_cross_entropy", axis=1), LOGITS, np.moveaxis(DENSE, -1, 1)),
    (SOFT, LOGITS, 2 * DENSE),
    (SAFE, LOGITS, DENSE),
    (SIGMOID, LOGITS, ANSWERS),
    (SIGMOID, LOGITS, ANSWERS > 0.5),
    (SQUARED, LOGITS, ANSWERS),
    (HALVED, LOGITS, ANSWERS),
]

SPECIAL: list[tuple[Any, ...]] = [
    *(
        (INDEX, rows(*row), np.array([label]))
        for label in (0, 1)
        for row in (
            (2.0, -INF, 0.0),
            (-INF, -INF, -INF),
            (NAN, 1.0, 0.0),
            (18.0, 0.0, 0.0),
            (200.0, 0.0, 0.0),
        )
    ),
    *(
        (SAFE, rows(*row), rows(1.0, 0.0, 0.0))
        for row in ((2.0, -INF, 0.0), (NAN, 1.0, 0.0), (200.0, 0.0, 0.0))
    ),
    *((SOFT, rows(*row), rows(1.0, 0.0, 0.0)) for row in ((1e7 + 1, 1e7, 0.0), (NAN, 1.0, 0.0))),
    *(
        (SIGMOID, rows(100.0, -100.0, 0.0, 1e-8, NAN), np.full((1, 5), t, np.float32))
        for t in (0.0, 0.5, 1.0)
    ),
    (SQUARED, rows(300.0, NAN, INF, INF, 1e30), rows(0.0, 1.0, 0.0, INF, 0.0)),
    (SQUARED, LOGITS[:0], ANSWERS[:0]),
]


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
@pytest.mark.slow("the same specs in the frameworks that compile no eager call", only=["jax"])
def test_grid(backend: str) -> None:
    """Every loss agrees with its spec in float32, over its arguments and at special values."""
    for native, *tensors in [*GRID, *SPECIAL]:
        check(native, *tensors, backends=(backend,))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_float64(backend: str) -> None:
    """Every loss agrees with its spec in float64, if JAX has float64 enabled."""
    import jax

    with jax.enable_x64(True):  # noqa: FBT003 - has no keyword
        for native, predictions, targets in GRID:
            wide = targets.astype(np.float64) if targets.dtype.kind == "f" else targets
            check(native, predictions.astype(np.float64), wide, backends=(backend,))


# Call, predictions, targets; the value of Optax, and the value of the spec.
DEVIATIONS: list[tuple[Any, ...]] = [
    (SOFT, rows(2.0, -INF, 0.0), rows(1.0, 0.0, 0.0), [NAN], [0.12692805]),
    (INDEX, rows(INF, 1.0, 0.0), np.array([1]), [INF], [NAN]),
    (SIGMOID, rows(INF, -INF), rows(1.0, 0.0), [[NAN, NAN]], [[0.0, 0.0]]),
    # Optax subtracts the logit from the normalizer without a shift: at 1e7, 0.3132617 rounds to 0.
    (INDEX, rows(1e7 + 1, 1e7), np.array([0]), [0.0], [0.3132617]),
]


@pytest.mark.parametrize(("native", "predictions", "targets", "theirs", "ours"), DEVIATIONS)
def test_deviating_value(
    native: Call, predictions: Any, targets: Any, theirs: Any, ours: Any
) -> None:
    """If no spec can express a value of Optax, both values are the listed ones."""
    np.testing.assert_allclose(interop.run(native, predictions, targets)[0], theirs)
    np.testing.assert_allclose(
        computed("jax", interop.spec_of(native), predictions, targets)[0], ours, rtol=1e-6
    )


@pytest.mark.parametrize(("label", "value"), [(-1, 2.407606), (3, NAN), (-4, NAN)])
def test_bad_label(label: int, value: float) -> None:
    """Optax wraps a negative label, or gives NaN with a finite gradient; a spec refuses both."""
    predictions, targets = rows(2.0, 1.0, 0.0), np.array([label])
    got, gradient = interop.run(INDEX, predictions, targets)
    np.testing.assert_allclose(got, [value], rtol=1e-6)
    assert np.isfinite(gradient).all()
    with pytest.raises(BadValueError):
        computed("jax", interop.spec_of(INDEX), predictions, targets)


@pytest.mark.parametrize(
    "native", list({str(native): native for native, *_ in GRID}.values()), ids=str
)
def test_round_trip(native: Call) -> None:
    """Every spec of the grid is written as a loss of Optax and read back."""
    check_round_trip(native)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optax.softmax_cross_entropy(axis=(1, 2))", "one class axis"),
        ("optax.softmax_cross_entropy(axis=None)", "one class axis"),
        ("optax.softmax_cross_entropy_with_integer_labels(axis=[0, 1])", "one class axis"),
        ("optax.softmax_cross_entropy(where=[1, 0])", "every class"),
    ],
)
def test_refused(text: str, words: str) -> None:
    """An argument that no spec can express is an error that names the rule."""
    with pytest.raises(UnsupportedError, match=words):
        from_native(text)


def test_objects() -> None:
    """Functions and partials are read; tensors of the call and other functions are errors."""
    import optax

    spec = CrossEntropyLoss(from_logits=True, axis=1, reduction="none")
    assert from_native(optax.softmax_cross_entropy, axis=1) == spec
    assert (
        from_native(partial(optax.losses.softmax_cross_entropy_with_integer_labels, axis=1)) == spec
    )
    assert from_native(optax.huber_loss, delta=2.0) == HuberLoss(delta=2.0, reduction="none")
    assert from_native(optax.l2_loss) == MeanSquaredError(scale=0.5, reduction="none")
    with pytest.raises(UnsupportedError, match="every class"):
        from_native(optax.softmax_cross_entropy, where=np.array([True, False]))
    with pytest.raises(SpecTypeError, match="given to the call"):
        from_native(optax.l2_loss, targets=np.zeros(3))
    with pytest.raises(SpecTypeError, match="log_cosh is another kind of loss"):
        from_native(optax.log_cosh)


def test_exports() -> None:
    """A spec is written as Optax' own function, or the error names what Optax has."""
    import optax

    spec = CrossEntropyLoss(from_logits=True, axis=-1, reduction="none")
    assert spec.to_native("optax") is optax.losses.softmax_cross_entropy_with_integer_labels
    assert MeanSquaredError(scale=0.5, reduction="none").to_native("optax") is optax.losses.l2_loss
    written = spec.replace(axis=1).to_native("optax", code=True)
    assert (
        written
        == "functools.partial(optax.losses.softmax_cross_entropy_with_integer_labels, axis=1)"
    )
    for changes, words in (
        ({"label_smoothing": 0.1}, "smooth_labels"),
        ({"class_weights": [1, 2, 3]}, "no class weights"),
        ({"reduction": "mean"}, "one loss per position"),
        ({"axis": None}, "takes a number"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            spec.replace(**changes).to_native("optax")
