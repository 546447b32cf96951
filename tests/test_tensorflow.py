"""The TensorFlow adapter: graphs, XLA, unknown shapes, autograph, variables, saved models.

Numbers are compared with the NumPy adapter in float64 or with values worked out by hand. The
conformance suite checks the rules that all backends share.
"""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul

tf = pytest.importorskip("tensorflow")

# Import after the check that TensorFlow is installed.
from unifiedloss import registry  # noqa: E402
from unifiedloss.adapters.tensorflow import kernels, shapes  # noqa: E402

pytestmark = pytest.mark.framework("tensorflow")

ADAPTER = registry.adapter("tensorflow")
MODES = ADAPTER.modes()
TRACED = [name for name, mode in MODES.items() if not mode.raises]
INF, NAN = np.inf, np.nan

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(6, 5))
PROBABILITIES = RNG.uniform(0.02, 0.98, size=(6, 5))
LABELS = np.array([0, 4, 2, 1, 1, 3])
DENSE = RNG.uniform(size=(6, 5))
WEIGHT = RNG.uniform(size=6)
MASK = np.array([True, False, True, True, True, True])

every_mode = pytest.mark.parametrize("mode", MODES)
every_traced_mode = pytest.mark.parametrize("mode", TRACED)


def value_and_grad(
    mode: str, spec: Any, predictions: Any, targets: Any, **companions: Any
) -> tuple[Any, Any]:
    """Loss and gradient as NumPy arrays, from a function of all tensors that runs in this mode."""

    def function(p: Any, t: Any, *rest: Any) -> Any:
        return spec.value_and_grad(p, t, **dict(zip(companions, rest, strict=True)))

    tensors = (predictions, targets, *companions.values())
    value, gradient = MODES[mode].run(function, *map(tf.convert_to_tensor, tensors))
    return value.numpy(), gradient.numpy()


def float32(*numbers: Any) -> Any:
    """A float32 array."""
    return np.array(numbers, np.float32)


# ------------------------------------------------------------------------------------------ numbers


def losses() -> Iterator[tuple[Any, Any, Any]]:
    """A spec for each code path of the adapter, with predictions and targets."""
    weights = [1.0, 2.0, 0.0, 0.5, 3.0]
    yield ul.CrossEntropyLoss(from_logits=True), LOGITS, LABELS
    yield ul.CrossEntropyLoss(from_logits=True, axis=0), LOGITS, np.array([0, 5, 2, 1, 3])
    yield (
        ul.CrossEntropyLoss(
            from_logits=True, label_smoothing=0.1, class_weights=weights, ignore_index=1
        ),
        LOGITS,
        LABELS,
    )
    yield (
        ul.CrossEntropyLoss(epsilon=0.1, class_weights=weights, divisor="nonzero"),
        PROBABILITIES,
        LABELS,
    )
    yield ul.CrossEntropyLoss(from_logits=True), LOGITS, DENSE
    yield (
        ul.CrossEntropyLoss(label_smoothing=0.1, class_weights=weights, reduction="sum"),
        PROBABILITIES,
        DENSE,
    )
    yield ul.BinaryCrossEntropyLoss(from_logits=True), LOGITS, DENSE
    yield (
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=weights, label_smoothing=0.1),
        LOGITS,
        DENSE,
    )
    yield ul.BinaryCrossEntropyLoss(pos_weight=2.0, reduction="none"), PROBABILITIES, DENSE
    yield ul.MeanSquaredError(), LOGITS, DENSE


@every_mode
@pytest.mark.parametrize("weighted", [False, True])
def test_same_numbers_as_numpy(mode: str, weighted: bool) -> None:
    """Losses and gradients agree with NumPy's in float64, with and without weights and a mask."""
    for spec, predictions, targets in losses():
        rows = len(targets) if targets.ndim == 1 else len(predictions)
        companions = {"sample_weight": WEIGHT[:rows], "mask": MASK[:rows]} if weighted else {}
        value, gradient = value_and_grad(mode, spec, predictions, targets, **companions)
        expected, slope = spec.value_and_grad(predictions, targets, **companions)
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=repr(spec))
        np.testing.assert_allclose(gradient, slope, rtol=1e-10, atol=1e-14, err_msg=repr(spec))


@every_mode
def test_dropped_positions_are_zero_whatever_they_hold(mode: str) -> None:
    """Loss and gradient are +0 at dropped and zero-weighted positions, whatever they hold."""
    spec = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100, reduction="none")
    predictions = float32([NAN, 1], [2, 1], [INF, -INF], [NAN, NAN])
    companions = {"sample_weight": float32(1, 1, 0, 1), "mask": np.array([True, True, True, False])}
    value, gradient = value_and_grad(
        mode, spec, predictions, np.array([-100, 0, 7, -3]), **companions
    )
    np.testing.assert_allclose(value[1], 0.3132617, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], [-0.2689414, 0.2689414], rtol=1e-6)
    for i in (0, 2, 3):
        assert value[i] == 0
        assert not np.signbit(value[i])
        assert not gradient[i].any()
        assert not np.signbit(gradient[i]).any()


@every_mode
def test_minus_infinite_logits(mode: str) -> None:
    """A logit of -inf is probability 0, also for a dense target of 0 (tf.nn: 0 * -inf is NaN)."""
    predictions = float32([2, -INF, 0], [-INF, 1, 2])
    for targets in (np.array([0, 0]), float32([1, 0, 0], [1, 0, 0])):
        value, gradient = value_and_grad(
            mode, ul.CrossEntropyLoss(from_logits=True, reduction="none"), predictions, targets
        )
        np.testing.assert_allclose(value, [0.1269280, INF], rtol=1e-6)
        expected = [[-0.1192029, 0, 0.1192029], [-1, 0.2689414, 0.7310586]]
        np.testing.assert_allclose(gradient, expected, rtol=1e-6)


@every_mode
@pytest.mark.parametrize("pos_weight", [None, 2.0])
def test_infinite_binary_logits(mode: str, pos_weight: float | None) -> None:
    """An infinite logit costs 0 if the label agrees, else infinity; the gradient is sigma - t.

    `pos_weight` multiplies the gradient of a positive label.
    """
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none", pos_weight=pos_weight)
    value, gradient = value_and_grad(
        mode, spec, float32(INF, -INF, INF, -INF, INF), float32(1, 0, 0, 1, 0.5)
    )
    np.testing.assert_array_equal(value, [0, 0, INF, INF, INF])
    np.testing.assert_array_equal(gradient, [0, 0, 1, -(pos_weight or 1), 0.5])


@every_mode
@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_binary_gradient_at_zero(mode: str, pos_weight: float | None) -> None:
    """At logit 0 the gradient is (1 - t - q t) / 2.

    tf.nn.weighted_cross_entropy_with_logits misses it, because it takes the slope of |z| at 0 as 0.
    """
    targets = float32(0, 0.25, 1)
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="sum", pos_weight=pos_weight)
    _, gradient = value_and_grad(mode, spec, float32(0, 0, 0), targets)
    np.testing.assert_allclose(gradient, (1 - targets - (pos_weight or 1) * targets) / 2, rtol=1e-6)


def test_binary_kernel_has_the_bits_of_tensorflows() -> None:
    """The unweighted kernel has the bits of tf.nn.sigmoid_cross_entropy_with_logits."""
    logits = tf.constant(np.r_[RNG.normal(size=999) * 20, 0.0], tf.float32)
    targets = tf.constant(np.r_[RNG.uniform(size=500), np.ones(250), np.zeros(250)], tf.float32)
    ours = kernels.binary_cross_entropy(logits, targets, None)
    theirs = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    assert ours.numpy().tobytes() == theirs.numpy().tobytes()


@every_mode
def test_dense_gradient_of_targets_that_do_not_sum_to_one(mode: str) -> None:
    """The gradient is p T - tau for a sum of targets T.

    tf.nn.softmax_cross_entropy_with_logits assumes T = 1 (tensorflow#60314).
    """
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="sum")
    value, gradient = value_and_grad(mode, spec, float32([2, 1, 0]), float32([2, 0, 0]))
    np.testing.assert_allclose(value, 0.8152119, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.6695181, 0.4894570, 0.1800612]], rtol=1e-6)


@every_mode
def test_probabilities_at_the_ends(mode: str) -> None:
    """Probabilities 0 and 1 give the right loss and gradient, never NaN.

    A subnormal float32, which TensorFlow flushes, counts as 0.
    """
    spec = ul.BinaryCrossEntropyLoss(reduction="none")
    value, gradient = value_and_grad(mode, spec, float32(0, 1, 0, 1, 1e-39), float32(0, 1, 1, 0, 1))
    np.testing.assert_array_equal(value, [0, 0, INF, INF, INF])
    np.testing.assert_array_equal(gradient, [1, -1, -INF, INF, -INF])


@every_mode
@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_every_integer_dtype_holds_labels(mode: str, dtype: str) -> None:
    """Labels of every integer dtype keep their value.

    TensorFlow's kernel takes int32 and int64 only, and tf.equal takes 200 in uint8 for -56.
    """
    predictions = RNG.normal(size=(3, 120)).astype(np.float32)
    labels = np.array([0, 100, 119], dtype)
    spec = ul.CrossEntropyLoss(
        from_logits=True, ignore_index=[-156, 0], reduction="sum", label_smoothing=0.1
    )
    value, _ = value_and_grad(mode, spec, predictions, labels)
    np.testing.assert_allclose(value, spec(predictions.astype(np.float64), labels), rtol=1e-5)
    value, _ = value_and_grad(
        mode, ul.MeanSquaredError(reduction="sum"), float32(1, 100, 110), labels
    )
    assert value == 1 + 81


@every_mode
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_predictions(mode: str, dtype: str) -> None:
    """Half types are computed in float32 and rounded once, and counts may exceed the largest half.

    tf.reduce_mean of 70000 float16 ones is NaN.
    """
    ones = tf.cast(tf.ones(70000), dtype)
    value, gradient = value_and_grad(mode, ul.MeanSquaredError(), ones, tf.zeros_like(ones))
    assert value == 1
    assert value.dtype == np.float32
    assert gradient.dtype == ones.numpy().dtype
    logits = tf.constant([[1.0, 3.0, -1.0]], dtype)
    value, _ = value_and_grad(
        mode, ul.CrossEntropyLoss(from_logits=True, reduction="none"), logits, np.array([1])
    )
    # tf.nn is 3 % off here in bfloat16.
    assert value[0] == np.float64(0.14293163847).astype(value.dtype)


def test_numpy_companions_keep_their_precision() -> None:
    """float64 targets beside float32 predictions are read in float64."""
    predictions, targets = float32(0.1), np.array([0.1])
    value = ul.MeanSquaredError(reduction="none")(tf.constant(predictions), targets)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, (np.float64(predictions) - 0.1) ** 2, rtol=1e-6)


# --------------------------------------------------------------------------------------- bad values


BAD = [
    (
        ul.CrossEntropyLoss(from_logits=True, reduction="none"),
        float32([2, 1], [1, 1], [0, 0]),
        np.array([0, 2, -1]),
    ),
    (
        ul.CrossEntropyLoss(reduction="none"),
        float32([0.5, 1], [1.2, 1], [-0.1, 0]),
        np.array([0, 0, 0]),
    ),
    (
        ul.CrossEntropyLoss(from_logits=True, reduction="none"),
        float32([2, 1], [1, 1], [0, 0]),
        float32([0, 1], [-1, 0], [INF, 0]),
    ),
    (
        ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none"),
        float32(1, 2, 3),
        float32(0.5, 1.5, -0.5),
    ),
    (ul.MeanSquaredError(reduction="none"), float32(1, 2, 3), np.array([1, 2**60, -(2**60)])),
    (
        ul.MeanSquaredError(reduction="none"),
        float32(1, 2, 3),
        np.array([1, 2**60, 2**64 - 1], np.uint64),
    ),
]


@pytest.mark.parametrize(("spec", "predictions", "targets"), BAD)
def test_bad_values(spec: Any, predictions: Any, targets: Any) -> None:
    """They raise in eager calls, with NumPy's message; traced, they poison only their position."""
    with pytest.raises(ul.BadValueError) as expected:
        spec(predictions, targets)
    with pytest.raises(ul.BadValueError) as raised:
        spec(tf.constant(predictions), tf.constant(targets))
    assert str(raised.value) == str(expected.value)
    for mode in TRACED:
        value, gradient = value_and_grad(mode, spec, predictions, targets)
        np.testing.assert_array_equal(np.isnan(value), [False, True, True])
        np.testing.assert_array_equal(
            np.isnan(gradient).reshape(3, -1).all(-1), [False, True, True]
        )


def test_infinities_and_bad_values_in_one_traced_mean() -> None:
    """Reduced losses, which a graph computes by a shorter path, poison only the bad positions."""
    z = float32([INF, -INF, 20], [-INF, 1, NAN], [1, 2, 3], [0, -INF, 0])
    cases = [
        (
            ul.BinaryCrossEntropyLoss(from_logits=True, reduction="sum"),
            float32([1, 0, 2], [0.5, -1, 0], [0, 0.5, 1], [0, 1, 0]),
        ),
        (
            ul.CrossEntropyLoss(from_logits=True, reduction="sum"),
            float32([1, 0, 0], [0, 0, 0], [0.5, -1, 0], [1, 0, 0.5]),
        ),
        (ul.CrossEntropyLoss(from_logits=True, reduction="sum"), np.array([0, 1, 3, 1])),
    ]
    sigma = 1 / (1 + np.exp([-1.0, -2.0, -3.0]))
    expected = [
        [[0, 0, NAN], [-0.5, NAN, NAN], sigma - [0, 0.5, 1], [0.5, -1, 0.5]],
        [[NAN] * 3, [NAN] * 3, [NAN] * 3, [-0.25, 0, 0.25]],
        [[NAN] * 3, [NAN] * 3, [NAN] * 3, [0.5, -1, 0.5]],
    ]
    for mode in TRACED:
        for (spec, targets), gradient in zip(cases, expected, strict=True):
            value, slope = value_and_grad(mode, spec, z, targets)
            assert np.isnan(value)
            np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-7)


@every_traced_mode
def test_traced_gradient_of_targets(mode: str) -> None:
    """The gradient by targets is -z for binary ones, -log p for dense ones, and 0 where 0 log 0."""
    z = float32([INF, -INF, 2])

    def slope(spec: Any, t: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(t)
            loss = spec(z, t)
        return tape.gradient(loss, t)

    binary = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="sum")
    gradient = MODES[mode].run(lambda t: slope(binary, t), tf.constant([[1.0, 0.0, 0.25]]))
    np.testing.assert_array_equal(gradient, [[0, 0, -2]])
    z = float32([1, -INF, 1])
    dense = ul.CrossEntropyLoss(from_logits=True, reduction="sum")
    gradient = MODES[mode].run(lambda t: slope(dense, t), tf.constant([[1.0, 0.0, 0.25]]))
    np.testing.assert_allclose(gradient, [[np.log(2), 0, np.log(2)]], rtol=1e-6)


def test_only_eager_values_on_the_cpu_are_read() -> None:
    """Values are not read in a graph or on an accelerator; on the CPU they are read as views."""
    x = tf.ones(3)
    assert ADAPTER.readable(x, None)
    # A graph captures x, but runs later.
    assert not tf.function(lambda: tf.constant(ADAPTER.readable(x)))()
    accelerated = type("Tensor", (), {"device": "/job:localhost/replica:0/task:0/device:GPU:0"})()
    assert not ADAPTER.readable(x, accelerated)
    for dtype in (tf.float32, tf.bfloat16, tf.bool, tf.uint64):
        array = ADAPTER.to_numpy(tf.cast(x, dtype))
        assert array.base is not None
        assert array.dtype == dtype.as_numpy_dtype


# ----------------------------------------------------------------------------------- unknown shapes


def unknown(x: Any, known: str) -> Any:
    """The signature of an array with only its rank, its last extents, or nothing known."""
    shape = {"rank": [None] * x.ndim, "extents": [None, *x.shape[1:]], "nothing": None}[known]
    return tf.TensorSpec(shape, x.dtype)


@pytest.mark.parametrize(
    ("known", "jit_compile"),
    [("extents", None), ("rank", None), ("nothing", None), ("nothing", True)],
)
@pytest.mark.slow("known ranks, and XLA where nothing is known", only=["extents", "nothing-None"])
def test_unknown_shapes(known: str, jit_compile: bool | None) -> None:
    """Tracing with unknown shapes gives the numbers of known shapes, with weights and masks too."""
    images, maps = RNG.uniform(0.1, 0.9, size=(6, 5, 2)), RNG.integers(0, 5, (6, 2))
    cases = [
        *losses(),
        (ul.CrossEntropyLoss(from_logits=True, axis=1, label_smoothing=0.1), images, maps),
        (ul.CrossEntropyLoss(axis=-2, class_weights=[1, 2, 3, 4, 5]), images, maps),
        (
            ul.CrossEntropyLoss(from_logits=True, axis=1, class_weights=[1, 2, 3, 4, 5]),
            images,
            images[::-1].copy(),
        ),
    ]
    step = 3 if jit_compile else 1  # XLA takes a second for each case
    for spec, predictions, targets in cases[::step]:
        rows = len(targets) if targets.ndim == 1 else len(predictions)
        arrays = (predictions, targets, WEIGHT[:rows], MASK[:rows])

        def function(p: Any, t: Any, w: Any, m: Any, spec: Any = spec) -> Any:
            return spec.value_and_grad(p, t, sample_weight=w, mask=m)

        signature = [unknown(x, known) for x in arrays]
        traced = tf.function(function, input_signature=signature, jit_compile=jit_compile)
        value, gradient = traced(*arrays)
        expected, slope = function(*arrays)
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=repr(spec))
        np.testing.assert_allclose(gradient, slope, rtol=1e-10, atol=1e-14, err_msg=repr(spec))


X, K3 = np.full((4, 3), 0.5), [1.0, 2.0]
MISFITS = {
    "one label short": (ul.CrossEntropyLoss(), X, np.zeros(3, int), {}),
    "one label too deep": (ul.CrossEntropyLoss(), X, np.zeros((4, 1), int), {}),
    "no classes": (ul.CrossEntropyLoss(), X[:, :0], np.zeros(4, int), {}),
    "no axis": (ul.CrossEntropyLoss(), X[0, 0], np.zeros((), int), {}),
    "axis out of range": (ul.CrossEntropyLoss(axis=2), X, np.zeros(4, int), {}),
    "class weights": (ul.CrossEntropyLoss(class_weights=K3), X, np.zeros(4, int), {}),
    "dense": (ul.CrossEntropyLoss(), X, X[:1], {}),
    "dense ignored": (ul.CrossEntropyLoss(ignore_index=2), X, X, {}),
    "elements": (ul.BinaryCrossEntropyLoss(), X, X[:, :1], {}),
    "pos weights": (ul.BinaryCrossEntropyLoss(pos_weight=K3), X, X, {}),
    "pos weights of a scalar": (ul.BinaryCrossEntropyLoss(pos_weight=K3), X[0, 0], X[0, 0], {}),
    "sample weight": (ul.MeanSquaredError(), X, X, {"sample_weight": np.ones((4, 1))}),
    "deep mask": (ul.MeanSquaredError(), X, X, {"mask": np.ones((4, 3, 1), bool)}),
}


def words(text: str) -> list[str]:
    """A message as a list of words, to compare eager messages with those of graphs.

    Graphs print shapes in brackets without commas, and count the class axis from the end.
    """
    axes = text.replace("axis -1", "axis 1")
    return "".join(c if c.isalnum() or c in "_=-" else " " for c in axes).split()


@pytest.mark.parametrize("name", MISFITS)
def test_unknown_shapes_that_do_not_fit(name: str) -> None:
    """A graph raises the eager message; XLA drops assertions, so there the loss is NaN."""
    spec, predictions, targets, companions = MISFITS[name]
    arrays = (predictions, targets, *companions.values())

    def function(p: Any, t: Any, *rest: Any) -> Any:
        return spec(p, t, **dict(zip(companions, rest, strict=True)))

    with pytest.raises(ul.UnifiedLossError) as known:
        function(*map(tf.constant, arrays))
    signature = [tf.TensorSpec(None, x.dtype) for x in arrays]
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        tf.function(function, input_signature=signature)(*arrays)
    text = str(raised.value).replace("\\'", "'")
    message = text.partition("assertion failed: ")[2].partition("\n")[0]
    # The advice after the message may depend on the shape.
    expected = str(known.value).partition("; remove the axis")[0].partition(". Under ")[0]
    assert words(message)[: len(words(expected))] == words(expected)
    try:
        value = tf.function(function, input_signature=signature, jit_compile=True)(*arrays)
    except tf.errors.InvalidArgumentError:
        return
    assert np.isnan(value)


def test_known_shapes_cost_no_check() -> None:
    """A graph with all shapes known holds no assertion."""
    concrete = tf.function(ul.CrossEntropyLoss(from_logits=True)).get_concrete_function(
        LOGITS, tf.constant(LABELS)
    )
    assert not [op for op in concrete.graph.get_operations() if op.type == "Assert"]


def test_layouts_without_a_known_rank() -> None:
    """Moving the class axis last and back works with an unknown rank."""
    x = RNG.normal(size=(2, 3, 4))
    for axis in (0, 1, 2, -1, -2, -3):
        function: Callable[[Any], Any] = lambda x, axis=axis: (  # noqa: E731 - a function per axis
            shapes.classes_last(x, axis),
            shapes.classes_back(shapes.classes_last(x, axis), axis),
        )
        last, back = tf.function(
            function, input_signature=[tf.TensorSpec(None, tf.float64)], autograph=False
        )(x)
        np.testing.assert_array_equal(last, np.moveaxis(x, axis, -1))
        np.testing.assert_array_equal(back, x)


# ---------------------------------------------------------------------------- tracing and autograph


@every_traced_mode
def test_errors_keep_class_and_message(mode: str) -> None:
    """Errors under autograph keep our class and message.

    autograph raises an error anew, with its class and a longer message.
    """
    for function in (
        ul.CrossEntropyLoss(),
        ul.CrossEntropyLoss().to("tensorflow"),
        ul.cross_entropy_loss,
    ):

        def step(p: Any, t: Any, function: Any = function) -> Any:
            return function(p, t)

        with pytest.raises(
            ul.ShapeError, match=r"need targets \(4,\), got \(3,\); one label per position"
        ):
            MODES[mode].run(step, tf.constant(X), tf.constant([0, 1, 2]))


FIRST_CALL = """
import tensorflow as tf, unifiedloss as ul
spec = ul.CrossEntropyLoss(from_logits=True, ignore_index=1)

@tf.function
def step(z, y):
    loss = (
        spec(z, y)
        + ul.cross_entropy_loss(ul.softmax(z), y, class_weights=[1.0, 2.0])
        + spec.to("tensorflow")(z, y)
    )
    value, gradient = spec.value_and_grad(z, y)
    return loss + value + tf.reduce_sum(ul.mean_squared_error(z, z) + gradient)

print(float(step(tf.constant([[1.0, 2.0]]), tf.constant([0]))) > 0)
"""


def test_autograph_leaves_our_code_as_written() -> None:
    """autograph does not rewrite our code, so a first call in a process gives no warning."""
    run = subprocess.run(
        [sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "True"
    assert "AutoGraph" not in run.stderr


def test_graphs_do_not_pile_up() -> None:
    """A mode traces at each run and frees its graphs; a new tf.custom_gradient would keep them."""
    graphs = type(tf.function(lambda: tf.constant(0)).get_concrete_function().graph)

    def alive() -> int:
        gc.collect()
        # Not isinstance, because it reads each object's __class__, and some packages' objects
        # give deprecation warnings then.
        return sum(issubclass(type(x), graphs) for x in gc.get_objects())

    def run() -> None:
        for loss in (
            ul.MeanSquaredError(),
            ul.BinaryCrossEntropyLoss(from_logits=True),
            ul.CrossEntropyLoss(from_logits=True),
        ):
            for companions in ({}, {"sample_weight": WEIGHT}):
                value_and_grad("function", loss, LOGITS, DENSE, **companions)

    run()
    before = alive()
    run()
    assert alive() <= before


@every_traced_mode
def test_no_retracing_for_another_batch(mode: str) -> None:
    """One trace serves every batch size, as in Keras' fit."""
    traces = []

    @tf.function(
        input_signature=[tf.TensorSpec([None, 5]), tf.TensorSpec([None], tf.int32)],
        jit_compile=mode == "xla",
    )
    def step(z: Any, y: Any) -> Any:
        traces.append(mode)
        return ul.cross_entropy_loss(z, y, from_logits=True)

    for rows in (6, 2, 1):
        expected = ul.cross_entropy_loss(LOGITS[:rows], LABELS[:rows], from_logits=True)
        np.testing.assert_allclose(
            step(LOGITS[:rows].astype(np.float32), LABELS[:rows].astype(np.int32)),
            expected,
            rtol=1e-6,
        )
    assert np.isnan(step(np.zeros((0, 5), np.float32), np.zeros(0, np.int32)))
    assert len(traces) == 1


# ---------------------------------------------------------------------------- what users do with it


def test_variables() -> None:
    """Variables are read like tensors, and a gradient reaches them."""
    logits, labels = tf.Variable(LOGITS), tf.Variable(LABELS)
    spec = ul.CrossEntropyLoss(from_logits=True)
    expected, slope = spec.value_and_grad(LOGITS, LABELS)
    for step in (
        lambda: spec(logits, labels),
        tf.function(lambda: spec(logits, labels), autograph=False),
    ):
        with tf.GradientTape() as tape:
            loss = step()
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(tape.gradient(loss, logits), slope, rtol=1e-10)
    np.testing.assert_allclose(spec.value_and_grad(logits, labels)[1], slope, rtol=1e-10)


def test_what_is_no_dense_tensor_is_refused() -> None:
    """Ragged, sparse and sliced tensors are refused by name, and strings and objects by dtype."""
    spec, z = ul.MeanSquaredError(), tf.ones((2, 2))
    for x in (
        tf.ragged.constant([[1.0, 2.0], [1.0]]),
        tf.sparse.from_dense(z),
        tf.IndexedSlices(z, tf.range(2)),
    ):
        for arguments in ((x, z), (z, x)):
            with pytest.raises(ul.UnknownTensorError, match=type(x).__name__):
                spec(*arguments)
    with pytest.raises(ul.DTypeError, match="got string"):
        spec(z, tf.constant([["a"] * 2] * 2))
    with pytest.raises(ul.DTypeError, match="got object"):
        spec(z, np.full((2, 2), None))


@pytest.mark.framework("torch")
def test_another_frameworks_tensors_are_refused() -> None:
    """Tensors of TensorFlow and PyTorch in one call are refused."""
    torch = pytest.importorskip("torch")
    for arguments in ((tf.ones(2), torch.ones(2)), (torch.ones(2), tf.ones(2))):
        with pytest.raises(ul.MixedBackendsError, match="one call has one framework"):
            ul.MeanSquaredError()(*arguments)


def test_loss_function_is_a_value() -> None:
    """The object from ``spec.to`` pickles, copies, compares and hashes by its spec."""
    loss = ul.CrossEntropyLoss(from_logits=True).to("tensorflow")
    for other in (
        pickle.loads(pickle.dumps(loss)),  # noqa: S301 - our own bytes
        copy.deepcopy(loss),
        ul.CrossEntropyLoss(from_logits=True).to("tensorflow"),
    ):
        assert other == loss
        assert hash(other) == hash(loss)
        np.testing.assert_allclose(other(LOGITS, LABELS), loss(LOGITS, LABELS))
    assert loss != ul.MeanSquaredError().to("tensorflow")
    assert loss != loss.spec
    assert repr(loss) == "LossFunction(CrossEntropyLoss(from_logits=True))"
    weighted = tf.function(loss)(
        tf.constant(LOGITS), tf.constant(LABELS), sample_weight=tf.constant(WEIGHT), mask=MASK
    )
    np.testing.assert_allclose(
        weighted, loss.spec(LOGITS, LABELS, sample_weight=WEIGHT, mask=MASK), rtol=1e-12
    )


class Model(tf.Module):  # type: ignore[misc, unused-ignore]
    """A linear layer with a loss as a member, and its training step."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.zeros((5, 5), tf.float64))
        self.loss = loss

    @tf.function(
        input_signature=[tf.TensorSpec([None, 5], tf.float64), tf.TensorSpec([None, 5], tf.float64)]
    )
    def step(self, x: Any, y: Any) -> Any:
        """Take one step of gradient descent, and return the loss before it."""
        with tf.GradientTape() as tape:
            loss = self.loss(x @ self.kernel, y)
        self.kernel.assign_sub(tape.gradient(loss, self.kernel))
        return loss


@pytest.mark.parametrize(
    "spec",
    [
        ul.CrossEntropyLoss(from_logits=True),
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=2),
        ul.MeanSquaredError(),
    ],
)
def test_training_and_saving(spec: Any, tmp_path: Any) -> None:
    """The loss falls from step to step, also in the saved and reloaded model."""
    model, x, y = Model(spec.to("tensorflow")), tf.constant(LOGITS / 4), tf.constant(DENSE)
    history = [float(model.step(x, y)) for _ in range(4)]
    tf.saved_model.save(model, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    history += [float(loaded.step(x, y)) for _ in range(4)]
    assert history == sorted(history, reverse=True)
    assert history[0] > history[-1]


@every_mode
def test_second_derivatives(mode: str) -> None:
    """The Hessian is diag(p) - p p' for a row and p (1 - p) for a binary logit, at 0 too."""
    logits = np.array([[0.0, 0.7, -1.2, 3.0]])
    p = ul.softmax(logits)[0]
    for spec, targets, expected in (
        (ul.CrossEntropyLoss(from_logits=True), np.array([1]), np.diag(p) - np.outer(p, p)),
        (ul.CrossEntropyLoss(from_logits=True), np.eye(4)[:1], np.diag(p) - np.outer(p, p)),
        (
            ul.BinaryCrossEntropyLoss(from_logits=True, reduction="sum"),
            np.array([[0.5, 1, 0, 0.25]]),
            np.diag(1 / (2 + 2 * np.cosh(logits[0]))),
        ),
    ):

        def hessian(z: Any, t: Any, spec: Any = spec) -> Any:
            with tf.GradientTape() as outer:
                outer.watch(z)
                _, gradient = spec.value_and_grad(z, t)
            return outer.jacobian(gradient, z)

        found = MODES[mode].run(hessian, tf.constant(logits), tf.constant(targets))
        np.testing.assert_allclose(found[0, :, 0], expected, rtol=1e-10, atol=1e-15)


def test_vectorized_map_and_forward_mode() -> None:
    """tf.vectorized_map and tf.autodiff.ForwardAccumulator work on the loss, with weights too."""
    spec = ul.BinaryCrossEntropyLoss(from_logits=True)
    z, t = tf.constant(LOGITS), tf.constant(DENSE)
    rows = tf.vectorized_map(lambda pair: spec(pair[0], pair[1], sample_weight=WEIGHT[:5]), (z, t))
    np.testing.assert_allclose(
        rows, [spec(a, b, sample_weight=WEIGHT[:5]) for a, b in zip(LOGITS, DENSE, strict=True)]
    )
    with tf.autodiff.ForwardAccumulator(z, t) as accumulator:
        loss = spec(z, t, sample_weight=WEIGHT)
    _, gradient = spec.value_and_grad(LOGITS, DENSE, sample_weight=WEIGHT)
    np.testing.assert_allclose(accumulator.jvp(loss), (gradient * DENSE).sum(), rtol=1e-10)


def test_upstream_gradient_in_any_dtype() -> None:
    """The upstream gradient may be a float64 NumPy array though the loss is float32."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    upstream = np.arange(6.0)
    _, gradient = spec.value_and_grad(
        tf.constant(LOGITS, tf.float32), tf.constant(LABELS), upstream=upstream
    )
    _, expected = spec.value_and_grad(LOGITS, LABELS, upstream=upstream)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_forward_mode(jit_compile: bool) -> None:
    """A ForwardAccumulator in a compiled program, or around it, has the derivative of eager."""
    spec = ul.MeanSquaredError()
    x, y = (
        tf.constant(np.eye(4, 3, dtype=np.float32)),
        tf.constant(np.full((4, 3), 0.3, np.float32)),
    )
    along = tf.reshape(tf.range(12, dtype=tf.float32), (4, 3))

    def loss(x: Any) -> Any:
        return spec(x, y)

    def jvp(function: Any, x: Any) -> Any:
        with tf.autodiff.ForwardAccumulator(x, along) as accumulator:
            value = function(x)
        return accumulator.jvp(value)

    wanted = float(jvp(loss, x))
    assert wanted != 0
    inside = tf.function(lambda x: jvp(loss, x), jit_compile=jit_compile)(x)
    around = jvp(tf.function(loss, jit_compile=jit_compile), x)
    np.testing.assert_allclose([inside, around], wanted, rtol=1e-6)
