"""The losses of tf.nn and tf.compat.v1.losses agree with their specs in every backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.interop_grid import BACKENDS, check, check_round_trip, computed
from unifiedloss import from_native, interop
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop import Call

pytestmark = [pytest.mark.framework("torch", "tensorflow", "jax", "keras")]

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(4, 3)) * 4).astype(np.float32)
LABELS = np.array([0, 1, 1, 2])
DENSE = RNG.dirichlet(np.ones(3), 4).astype(np.float32)
ANSWERS = RNG.random((4, 3)).astype(np.float32)
PROBABILITIES = RNG.random((4, 3)).astype(np.float32)
IMAGES = (RNG.normal(size=(2, 3, 3)) * 4).astype(np.float32)
DENSE_IMAGES = np.moveaxis(RNG.dirichlet(np.ones(3), (2, 3)), -1, 1).astype(np.float32)
WEIGHTS = np.array([1.0, 0.0, 3.0, 1.0], np.float32)

NN, V1 = "tf.nn.", "tf.compat.v1.losses."
NONZERO, ALL, MEAN, SUM, NONE = (
    "weighted_sum_by_nonzero_weights",
    "weighted_sum_over_batch_size",
    "weighted_mean",
    "weighted_sum",
    "none",
)


def call(name: str, **arguments: Any) -> Call:
    """Return the call of a loss with these arguments."""
    return Call(name, interop.find(name).bind([], arguments))


GRID: list[tuple[Any, ...]] = [
    (call(NN + "sparse_softmax_cross_entropy_with_logits"), LOGITS, LABELS),
    (call(NN + "softmax_cross_entropy_with_logits"), LOGITS, DENSE),
    (call(NN + "softmax_cross_entropy_with_logits", axis=1), IMAGES, DENSE_IMAGES),
    (call(NN + "softmax_cross_entropy_with_logits", axis=0), LOGITS.T, DENSE.T),
    (call(NN + "sigmoid_cross_entropy_with_logits"), LOGITS, ANSWERS),
    *(
        (call(NN + "weighted_cross_entropy_with_logits", pos_weight=weight), LOGITS, ANSWERS)
        for weight in (3.0, (1.0, 0.0, 3.0), ((1.0,), (2.0,), (3.0,), (0.5,)))
    ),
    *(
        (
            call(V1 + "sparse_softmax_cross_entropy", reduction=reduction, weights=scale),
            LOGITS,
            LABELS,
            weights,
        )
        for reduction in (NONZERO, ALL, MEAN, SUM, NONE)
        for scale, weights in ((1.0, WEIGHTS), (2.5, None))
    ),
    (call(V1 + "sparse_softmax_cross_entropy", weights=0.5), LOGITS, LABELS, WEIGHTS),
    (call(V1 + "softmax_cross_entropy"), LOGITS, DENSE),
    (call(V1 + "softmax_cross_entropy", label_smoothing=0.1, weights=3), LOGITS, DENSE, WEIGHTS),
    (
        call(V1 + "softmax_cross_entropy", label_smoothing=1.0, reduction=NONE),
        LOGITS,
        DENSE,
        WEIGHTS,
    ),
    (call(V1 + "sigmoid_cross_entropy"), LOGITS, ANSWERS),
    (
        call(V1 + "sigmoid_cross_entropy", label_smoothing=0.1, reduction=MEAN),
        LOGITS,
        ANSWERS,
        WEIGHTS,
    ),
    (call(V1 + "sigmoid_cross_entropy", weights=2.0, reduction=SUM), LOGITS, ANSWERS, WEIGHTS),
    (call(V1 + "log_loss"), PROBABILITIES, ANSWERS),
    (call(V1 + "log_loss", epsilon=0.1, reduction=NONE), PROBABILITIES, ANSWERS, WEIGHTS),
    (call(V1 + "log_loss", epsilon=0, weights=2.0), PROBABILITIES, ANSWERS, WEIGHTS),
    (call(V1 + "mean_squared_error"), LOGITS, ANSWERS),
    (call(V1 + "mean_squared_error", reduction=ALL), LOGITS, ANSWERS, WEIGHTS),
    (call(V1 + "mean_squared_error", weights=0.5, reduction=NONE), LOGITS, ANSWERS, ANSWERS),
]


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
@pytest.mark.slow("the same specs in the frameworks that compile no eager call", only=["jax"])
def test_grid(backend: str) -> None:
    """Every loss agrees with its spec in float32, over its arguments."""
    for native, *tensors in GRID:
        check(native, *tensors, backends=(backend,))


@pytest.mark.parametrize("backend", ["numpy", "torch", "tensorflow"])
def test_float64(backend: str) -> None:
    """Every loss agrees in float64, within float32 tolerances for tf.compat.v1.losses.

    There log_loss and mean_squared_error cast to float32; the others reduce in float32.
    """
    for native, predictions, targets, *weights in GRID:
        wide = targets if targets.dtype.kind == "i" else targets.astype(np.float64)
        dtype = "float32" if native.name.startswith(V1) else None
        # TensorFlow's gradient of a softmax loss is right only if dense targets sum to 1.
        if "softmax" in native.name and targets.dtype.kind == "f":
            wide = wide / wide.sum(native.arguments.get("axis", -1), keepdims=True)
        positive = native.arguments.get("pos_weight")
        function = None if positive is None else weighted(np.float64(positive))
        check(
            native,
            predictions.astype(np.float64),
            wide,
            *weights,
            backends=(backend,),
            dtype=dtype,
            native=function,
        )


def weighted(pos_weight: Any) -> Any:
    """Return TensorFlow's function with pos_weight as a tensor, which needs the logits' dtype."""
    return partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=tf.constant(pos_weight))


def rows(*row: float) -> Any:
    """Return one row in float32."""
    return np.array([row], np.float32)


SPARSE, SOFT = (
    call(NN + "sparse_softmax_cross_entropy_with_logits"),
    call(NN + "softmax_cross_entropy_with_logits"),
)
SIGMOID = call(NN + "sigmoid_cross_entropy_with_logits")
WEIGHTED = call(NN + "weighted_cross_entropy_with_logits", pos_weight=3.0)
LOG = call(V1 + "log_loss", reduction=NONE)
INF, NAN = np.inf, np.nan

SPECIAL: list[tuple[Any, ...]] = [
    *(
        (SPARSE, rows(*row), np.array([label]))
        for label in (0, 1)
        for row in (
            (2.0, -INF, 0.0),
            (-INF, 2.0, 0.0),
            (-INF, -INF, -INF),
            (INF, 1.0, 0.0),
            (NAN, 1.0, 0.0),
            (1e5 + 1, 1e5, 0.0),
            (1e7 + 1, 1e7, 0.0),
            (18.0, 0.0, 0.0),
            (88.0, 0.0, 0.0),
            (200.0, 0.0, 0.0),
        )
    ),
    *(
        (SOFT, rows(*row), rows(0.0, 1.0, 0.0))
        for row in ((NAN, 1.0, 0.0), (-INF, -INF, -INF), (1e7 + 1, 1e7, 0.0), (200.0, 0.0, 0.0))
    ),
    *(
        (SIGMOID, rows(100.0, -100.0, 0.0, 1e-8, NAN), np.full((1, 5), t, np.float32))
        for t in (0.0, 0.5, 1.0)
    ),
    *(
        (WEIGHTED, rows(100.0, -100.0, 1e-8, NAN), np.full((1, 4), t, np.float32))
        for t in (0.0, 0.5, 1.0)
    ),
    # log_loss next to p = 1: 1 - p is exact, and the added epsilon decides the loss.
    *(
        (
            LOG,
            rows(0.0, 1.0, 1e-7, 1e-10, 1 - 2.0**-24, 1 - 2.0**-23, 0.5, NAN),
            np.full((1, 8), t, np.float32),
        )
        for t in (0.0, 0.5, 1.0)
    ),
    # A divisor of 0 gives 0. An empty batch gives 0, or an empty array without a reduction.
    *(
        (
            call(V1 + "sparse_softmax_cross_entropy", reduction=reduction),
            LOGITS,
            LABELS,
            0 * WEIGHTS,
        )
        for reduction in (NONZERO, ALL, MEAN, SUM)
    ),
    *(
        (call(V1 + "sparse_softmax_cross_entropy", reduction=reduction), LOGITS[:0], LABELS[:0])
        for reduction in (NONZERO, ALL, MEAN, SUM, NONE)
    ),
    (SPARSE, LOGITS[:0], LABELS[:0]),
    (SOFT, LOGITS[:0], DENSE[:0]),
]


@pytest.mark.parametrize("backend", ["numpy", "torch", "tensorflow", "jax"])
def test_special_values(backend: str) -> None:
    """TensorFlow and the spec agree at infinities, NaN, p near 0 and 1, and for empty batches."""
    for native, *tensors in SPECIAL:
        check(native, *tensors, backends=(backend,))


# Call, predictions, targets; the value of TensorFlow, and the value of the spec. docs/switching.md
# names the rules behind them.
DEVIATIONS: list[tuple[Any, ...]] = [
    (SOFT, rows(2.0, -INF, 0.0), rows(1.0, 0.0, 0.0), [NAN], [0.12692805]),
    (SIGMOID, rows(INF, -INF), rows(1.0, 0.0), [[NAN, NAN]], [[0.0, 0.0]]),
    (SIGMOID, rows(INF), rows(0.0), [[NAN]], [[INF]]),
    (WEIGHTED, rows(-INF), rows(1.0), [[NAN]], [[INF]]),
    (
        call(V1 + "log_loss", epsilon=0, reduction=NONE),
        rows(0.0, 1.0),
        rows(0.0, 1.0),
        [[NAN, NAN]],
        [[0.0, 0.0]],
    ),
]
GRADIENTS: list[tuple[Any, ...]] = [
    (
        SOFT,
        rows(2.0, 1.0, 0.0),
        rows(2.0, 0.0, 0.0),
        [[-1.334759, 0.24472848, 0.09003057]],
        [[-0.669518, 0.489457, 0.180061]],
    ),
    (WEIGHTED, rows(0.0, 0.0), rows(0.0, 1.0), [[1.0, 0.0]], [[0.5, -1.5]]),
]


@pytest.mark.parametrize(("native", "predictions", "targets", "theirs", "ours"), DEVIATIONS)
def test_deviating_value(
    native: Call, predictions: Any, targets: Any, theirs: Any, ours: Any
) -> None:
    """If no spec can express a value of TensorFlow, both values are the listed ones."""
    value, _ = interop.run(native, predictions, targets)
    np.testing.assert_allclose(value, theirs)
    np.testing.assert_allclose(
        computed("tensorflow", interop.spec_of(native), predictions, targets)[0], ours, rtol=1e-6
    )


@pytest.mark.parametrize(("native", "predictions", "targets", "theirs", "ours"), GRADIENTS)
def test_deviating_gradient(
    native: Call, predictions: Any, targets: Any, theirs: Any, ours: Any
) -> None:
    """TensorFlow's gradient is wrong for dense targets with another sum than 1, and at z = 0."""
    value_there, gradient_there = interop.run(native, predictions, targets)
    np.testing.assert_allclose(gradient_there, theirs, rtol=1e-6)
    value, gradient = computed("tensorflow", interop.spec_of(native), predictions, targets)
    np.testing.assert_allclose(value, value_there, rtol=1e-6)
    np.testing.assert_allclose(gradient, ours, rtol=1e-5)


def test_weighted_nan() -> None:
    """TensorFlow multiplies NaN by a weight of 0; a spec does not read a zero-weighted position."""
    native = call(V1 + "mean_squared_error", reduction=NONE)
    predictions, targets, weights = rows(NAN, 1.0), rows(0.0, 0.0), rows(0.0, 1.0)
    value, gradient = interop.run(native, predictions, targets, weights)
    np.testing.assert_array_equal(value, [[NAN, 1.0]])
    np.testing.assert_array_equal(gradient, [[NAN, 2.0]])
    value, gradient = computed("tensorflow", interop.spec_of(native), predictions, targets, weights)
    np.testing.assert_array_equal(value, [[0.0, 1.0]])
    np.testing.assert_array_equal(gradient, [[0.0, 2.0]])


@pytest.mark.parametrize(
    "native", list({str(native): native for native, *_ in GRID}.values()), ids=str
)
def test_round_trip(native: Call) -> None:
    """Every spec of the grid is written as a loss of TensorFlow and read back."""
    check_round_trip(native)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tf.nn.weighted_cross_entropy_with_logits", "needs its pos_weight"),
        (
            "tf.nn.weighted_cross_entropy_with_logits(pos_weight=[[1.0, 2.0], [3.0, 4.0]])",
            "runs along one axis",
        ),
        ("tf.compat.v1.losses.log_loss(weights=0.0)", "scale of a spec is positive"),
        ("tf.compat.v1.losses.log_loss(weights=-1.0)", "scale of a spec is positive"),
        ("tf.compat.v1.losses.mean_squared_error(weights=[1.0, 2.0])", "sample_weight"),
        (
            "tf.compat.v1.losses.mean_squared_error(reduction='mean')",
            "weighted_sum_over_batch_size",
        ),
    ],
)
def test_refused(text: str, words: str) -> None:
    """An argument that no spec can express is an error that names the rule."""
    with pytest.raises(UnsupportedError, match=words):
        from_native(text)


def test_objects() -> None:
    """Functions and partials are read, tensors as arguments too; tensors of the call are errors."""
    import tensorflow as tf

    weighted = tf.nn.weighted_cross_entropy_with_logits
    weight = tf.constant([[0.1], [2.0]])
    spec = from_native(weighted, pos_weight=weight)
    assert (
        spec
        == from_native(partial(weighted, pos_weight=weight))
        == from_native(partial(weighted), pos_weight=weight)
    )
    assert spec.pos_weight == (0.1, 2.0)
    assert spec.axis == -2
    assert from_native(weighted, pos_weight=np.float32(0.1)).pos_weight == 0.1
    reduction = tf.compat.v1.losses.Reduction.MEAN
    assert (
        from_native(tf.compat.v1.losses.log_loss, reduction=reduction, scope="loss").divisor
        == "weights"
    )
    with pytest.raises(SpecTypeError, match="given to the call"):
        from_native(tf.nn.sigmoid_cross_entropy_with_logits, labels=tf.constant([1.0]))
    with pytest.raises(SpecTypeError, match="no loss that is known"):
        from_native(tf.nn.relu)


def test_exports() -> None:
    """A spec is written as TensorFlow's own function, or the error names what TensorFlow has."""
    import tensorflow as tf

    from unifiedloss import BinaryCrossEntropyLoss, CrossEntropyLoss

    spec = CrossEntropyLoss(from_logits=True, axis=-1, reduction="none")
    assert spec.to_native("tensorflow") is tf.nn.sparse_softmax_cross_entropy_with_logits
    assert (
        spec.replace(axis=1).to_native("tensorflow").func is tf.nn.softmax_cross_entropy_with_logits
    )
    weighted = BinaryCrossEntropyLoss(
        from_logits=True, pos_weight=[1, 2], axis=-2, reduction="none"
    )
    function = weighted.to_native("tensorflow")
    x = np.zeros((2, 1), np.float32)
    np.testing.assert_allclose(
        function(labels=x + 1, logits=x), [[np.log(2)], [2 * np.log(2)]], rtol=1e-6
    )
    assert weighted.to_native("tensorflow", code=True) == (
        "functools.partial(tf.nn.weighted_cross_entropy_with_logits, "
        "pos_weight=tf.constant([[1.0], [2.0]]))"
    )
    for changes, words in (
        ({"class_weights": [1, 2, 3]}, "no class weights"),
        ({"ignore_index": -100}, "ignore no label"),
        ({"reduction": "mean"}, "gives 0 where nothing is left"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            spec.replace(**changes).to_native("tensorflow")
    with pytest.raises(UnsupportedError, match="one loss per position"):
        weighted.replace(reduction="sum").to_native("tensorflow")
