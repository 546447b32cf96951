"""Exact mode on TensorFlow: NumPy's bits, eagerly and in graphs, and every further derivative.

The conformance suite checks that NumPy's bits are right, and runs this adapter on every rule.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests import graph_primitives
from unifiedloss.errors import BadValueError, UnsupportedError

tf = pytest.importorskip("tensorflow")

# Import after the check that TensorFlow is installed.
from unifiedloss import registry  # noqa: E402
from unifiedloss.adapters.tensorflow import callback, further  # noqa: E402
from unifiedloss.adapters.tensorflow.graph import TensorFlowOps  # noqa: E402
from unifiedloss.exact.graph import call, tiers  # noqa: E402

pytestmark = pytest.mark.framework("tensorflow")

ADAPTER = registry.adapter("tensorflow")
NUMPY = registry.adapter("numpy")
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(4, 3)).astype(np.float32) * 4
LABELS = np.array([0, 2, 1, 1])
DENSE = RNG.random((4, 3)).astype(np.float32)
WEIGHT = np.float32([1, 0, 2.5, 0.3])
MASK = np.array([True, True, False, True])

CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
BCE = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")
MSE = ul.MeanSquaredError(rounding="exact")
WEIGHTED = CE.replace(class_weights=(1, 0.5, 2))

MODES = {"eager": lambda f: f, "function": lambda f: tf.function(f, autograph=False)}
every_mode = pytest.mark.parametrize("mode", MODES)


def bits(*tensors: Any) -> list[bytes]:
    """Shapes, dtypes and bytes of tensors or arrays; bytes distinguish -0 and subnormal numbers."""
    arrays = [np.asarray(ADAPTER.to_numpy(x) if tf.is_tensor(x) else x) for x in tensors]
    return [bytes(str((x.shape, x.dtype)), "ascii") + x.tobytes() for x in arrays]


def both(mode: str, spec: Any, *tensors: Any, **further: Any) -> tuple[list[bytes], list[bytes]]:
    """The bits of loss and gradient on TensorFlow and on NumPy.

    The function takes the tensors as arguments and closes over the further ones.
    """
    here = MODES[mode](lambda *xs: spec.value_and_grad(*xs, **further))(
        *map(tf.convert_to_tensor, tensors)
    )
    arrays = [ADAPTER.to_numpy(x) if tf.is_tensor(x) else x for x in tensors]
    return bits(*here), bits(*spec.value_and_grad(*arrays, **further))


def gradients(
    function: Callable[..., Any], *tensors: Any, watched: int = 1, persistent: bool = False
) -> Any:
    """The gradients of a function by its tensors, of which a tape watches the first few."""
    with tf.GradientTape(persistent=persistent) as tape:
        for x in tensors[:watched]:
            tape.watch(x)
        value = function(*tensors)
    return tape.gradient(value, tensors)


# ------------------------------------------------------------------------------------------ numbers


@every_mode
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.slow(
    "one half format and float32 in a function, and every format in eager calls",
    only=["float64-f", "mean-float16-f", "none-float16-f", "none-bfloat16-f", "mean-float32-f"],
)
def test_bits_are_numpys(mode: str, dtype: str, reduction: str) -> None:
    """Loss and gradient have NumPy's bits for every dtype and kind, with weights and masks."""
    for loss, targets in (
        (CE, LABELS),
        (CE.replace(label_smoothing=0.1), DENSE),
        (BCE, DENSE),
        (MSE, DENSE),
    ):
        predictions = tf.cast(LOGITS, dtype)
        spec = loss.replace(reduction=reduction)
        for companions in ({}, {"sample_weight": WEIGHT, "mask": MASK}):
            here, there = both(mode, spec, predictions, targets, **companions)
            assert here == there


@every_mode
def test_upstream_gradients(mode: str) -> None:
    """The gradient includes the upstream before it is rounded; a later product has other bits."""
    for upstream in (1.0, 0.3, -0.0, 2.0**-120):
        here, there = both(mode, CE, LOGITS, LABELS, upstream=np.float32(upstream))
        assert here == there
    for upstream in (np.float32([1, 0.3, -2, 1e30]), np.ones(4, np.float32)):
        here, there = both(mode, CE.replace(reduction="none"), LOGITS, LABELS, upstream=upstream)
        assert here == there
    for wide in (1.00000006, np.float16(0.1), np.int64(2**53 + 1)):
        here, there = both(mode, CE, LOGITS, LABELS, upstream=wide)
        assert here == there
    half, wide = LOGITS.astype(np.float16), np.float32([1.4777e-7, 1.0002, -3, 70000])
    here, there = both(mode, CE.replace(reduction="none"), half, LABELS, upstream=wide)
    assert here == there
    _, once = CE.value_and_grad(LOGITS, LABELS)
    _, scaled = CE.value_and_grad(LOGITS, LABELS, upstream=np.float32(0.3))
    assert bits(once * np.float32(0.3)) != bits(scaled)


@every_mode
def test_subnormal_numbers(mode: str) -> None:
    """Subnormal results survive, though TensorFlow flushes them in callbacks, casts and sums."""
    spec = CE.replace(reduction="none")
    value, slope = MODES[mode](spec.value_and_grad)(tf.constant([[100.0, 0.0]]), tf.constant([0]))
    assert bits(value) == bits(np.array([27], np.uint32).view(np.float32))  # 3.8e-44
    assert bits(slope) == bits(np.array([[27 + 2**31, 27]], np.uint32).view(np.float32))
    here, there = both(
        mode, MSE.replace(reduction="sum"), np.float32([3e-42, 1e-20]), np.float32([1e-42, 0])
    )
    assert here == there
    assert here[1] == bits((np.float32([3e-42, 1e-20]) - np.float32([1e-42, 0])) * 2)[0]


@every_mode
def test_arrays_in_any_order_of_memory(mode: str) -> None:
    """NumPy arrays beside the tensors may be strided, transposed or byte-swapped."""
    strided = np.asfortranarray(np.repeat(DENSE, 2, 0))[::2]
    loss = MODES[mode](lambda z: BCE(z, strided, sample_weight=WEIGHT.astype(">f4")[::-1]))(
        tf.constant(LOGITS)
    )
    assert bits(loss) == bits(BCE(LOGITS, DENSE, sample_weight=WEIGHT[::-1].copy()))


@every_mode
def test_results_are_tensors_like_others(mode: str) -> None:
    """Results of every size can be used further; on misaligned memory TensorFlow aborts."""
    for n in (0, 1, 5, 1000):
        z = tf.zeros((n, 1))
        loss, slope = MODES[mode](
            lambda z: MSE.replace(reduction="none").value_and_grad(z, tf.ones_like(z))
        )(z)
        joined = tf.concat([loss[1:], slope[:1]], 0)[:, 0]
        np.testing.assert_array_equal(joined, [1] * max(n - 1, 0) + [-2] * min(n, 1))


def test_memory_that_tensorflow_cannot_use_is_copied() -> None:
    """Unaligned, strided and read-only arrays are copied to tensors; aligned ones are shared."""
    block = np.zeros(400, np.uint8)
    start = -block.ctypes.data % 64
    aligned = block[start : start + 64].view(np.float32)
    shared = callback._tensor(aligned, "CPU:0")
    aligned[3] = 7
    assert shared[3] == 7
    read_only = aligned.copy()
    read_only.flags.writeable = False
    for x in (
        block[start + 4 : start + 68].view(np.float32),
        aligned[::2],
        read_only,
        np.float32(2)[None][0:0],
    ):
        np.testing.assert_array_equal(callback._tensor(x, "CPU:0")[1:], x[1:])


# ------------------------------------------------------------------------------------------- graphs


class Model(tf.Module):  # type: ignore[misc, unused-ignore]
    """A linear layer and its training step."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.reshape(tf.range(9.0), (3, 3)) / 8)
        self.loss = loss

    def step(self, x: Any, y: Any) -> Any:
        """Take one step of gradient descent, and return the loss before it."""
        with tf.GradientTape() as tape:
            loss = self.loss(x @ self.kernel, y)
        self.kernel.assign_sub(0.25 * tape.gradient(loss, self.kernel))
        return loss


@pytest.mark.parametrize(("spec", "targets"), [(CE, LABELS), (BCE, DENSE)])
def test_training(spec: Any, targets: Any) -> None:
    """The loss falls, and compiled and eager steps give the same losses and weights bit for bit."""
    history = {}
    for mode, run in MODES.items():
        model = Model(spec.to("tensorflow"))
        step = run(model.step)
        history[mode] = [
            bits(step(tf.constant(LOGITS), tf.constant(targets)), model.kernel.value())
            for _ in range(3)
        ]
        before = spec(LOGITS @ Model(None).kernel.numpy(), targets)
        assert spec(LOGITS @ model.kernel.numpy(), targets) < before
    assert history["eager"] == history["function"]


@pytest.mark.parametrize("shape", [None, [None, None]])
def test_shapes_that_are_known_when_it_runs(shape: Any) -> None:
    """One graph serves every batch, also of unknown rank, and raises the errors of native mode."""
    specs = [
        tf.TensorSpec(shape),
        tf.TensorSpec(shape and shape[:1], tf.int64),
        tf.TensorSpec(shape and shape[:1]),
    ]
    compiled = tf.function(
        lambda z, y, w: CE.value_and_grad(z, y, sample_weight=w), input_signature=specs
    )
    for n in (4, 2, 0):
        arguments = LOGITS[:n], LABELS[:n], WEIGHT[:n]
        assert bits(*compiled(*arguments)) == bits(
            *CE.value_and_grad(*arguments[:2], sample_weight=arguments[2])
        )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="class indices must have the predictions"
    ):
        compiled(LOGITS, LABELS[:2], WEIGHT)
    if shape is None:  # for an unknown rank the default class axis is the last one
        assert bits(compiled(LOGITS[None], LABELS[None], WEIGHT[:1])[0]) == bits(CE(LOGITS, LABELS))


def test_shapes_of_results() -> None:
    """Results in a graph have all static extents that follow from the inputs."""
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int64)])
    def function(z: Any, y: Any) -> Any:
        loss, slope = CE.replace(reduction="none").value_and_grad(z, y)
        seen.extend([loss.shape.as_list(), slope.shape.as_list(), CE(z, y).shape.as_list()])
        return loss

    function(LOGITS, LABELS)
    assert seen == [[None], [None, 3], []]


XLA = partial(tf.function, jit_compile=True, autograph=False)


def test_primitives_under_xla() -> None:
    """Under XLA, sums, products and roundings are exact, and functions are within their bounds."""
    graph_primitives.check_all(
        TensorFlowOps(), lambda f, *arrays: [x.numpy() for x in XLA(f)(*map(tf.constant, arrays))]
    )


def test_bits_under_xla() -> None:
    """The bits are NumPy's, whether float64 decides a row or leaves it to the balls.

    Rows have all scales, ties, and equal, subnormal, infinite and NaN logits.
    """
    random = np.random.default_rng(1)
    x = (random.normal(size=(60, 7)) * random.choice([1, 4, 30, 100], (60, 1))).astype(np.float32)
    x[0], x[1], x[2], x[3], x[4] = 0, 1.5, -1e5, 1e-40, [1e5, *[-0.00390625] * 6]
    x[5, ::2], x[6], x[7, 0], x[8, 0] = -np.inf, -np.inf, np.inf, np.nan
    x[9] = random.normal(0, 400, 7)
    y = random.integers(0, 7, 60)
    y[4] = 1
    spec = CE.replace(reduction="none", class_weights=[1, 0.5, 2, 1, 0.25, 1, 3], ignore_index=5)
    compiled = XLA(spec.value_and_grad)(tf.constant(x), tf.constant(y))
    assert bits(*compiled) == bits(*spec.value_and_grad(x, y))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.slow("the cast to bfloat16", only=["float32"])
def test_predictions_made_under_xla(dtype: str) -> None:
    """Predictions that the program makes in more digits have the loss of their rounded values."""
    wide = np.random.default_rng(0).normal(scale=3, size=(4, 8)) * (1 + 2.0**-30)
    source = tf.constant(wide, tf.float64 if dtype == "float32" else tf.float32)
    spec = ul.MeanSquaredError(reduction="none", rounding="exact")

    def made(x: Any) -> Any:
        return tf.cast(x * tf.constant(1 / 3, x.dtype), dtype)

    def loss(x: Any) -> Any:
        return spec(made(x), tf.zeros((4, 8)))

    assert bits(XLA(loss)(source)) == bits(spec(made(source), tf.zeros((4, 8))))


@pytest.mark.slow("test_bits_under_xla, and test_training without XLA")
def test_training_under_xla() -> None:
    """A training step under XLA lowers the loss, and its gradient by the logits has NumPy's bits.

    It starts from zeros, that is, from equal logits in every row. The gradient of the kernel is not
    compared, because XLA adds up the model's matrix product in another order than NumPy.
    """
    model = Model(CE.to("tensorflow"))
    model.kernel.assign(tf.zeros((3, 3)))
    x, y = tf.constant(LOGITS), tf.constant(LABELS)

    def step() -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            logits = x @ model.kernel
            loss = model.loss(logits, y)
        slope, gradient = tape.gradient(loss, [logits, model.kernel])
        model.kernel.assign_sub(0.125 * gradient)
        return loss, slope, logits

    compiled = XLA(step)
    losses = []
    for _ in range(3):
        loss, slope, logits = compiled()
        assert bits(loss, slope) == bits(*CE.value_and_grad(logits.numpy(), LABELS))
        losses.append(float(loss))
    assert losses[0] == np.float32(np.log(3))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    "spec",
    [
        BCE.replace(reduction="none"),
        MSE.replace(reduction="sum"),
        ul.HuberLoss(delta=0.5, rounding="exact"),
    ],
    ids=["binary", "squared", "huber"],
)
@pytest.mark.slow(
    "the squared error, which takes the same way, and the formulas in tests/test_exact_graph.py",
    only=["binary", "huber"],
)
def test_elementwise_losses_under_xla(monkeypatch: pytest.MonkeyPatch, spec: Any) -> None:
    """The balls alone give NumPy's bits: infinite values, and weights of very different sizes."""
    monkeypatch.setattr(tiers, "skipped_tiers", {"float64"})
    special = np.float32([[np.inf, -np.inf, 1e-40], [np.inf, np.inf, np.nan], [1e-20, 3e38, -800]])
    targets = np.float32([[1, 0, 0.5], [0.25, 0, 1], [0.5, 1, 0]])
    x, t = np.concatenate([LOGITS, special]), np.concatenate([DENSE, targets])
    upstream: Any = np.float64(1.00000006)
    if spec.reduction == "none":
        upstream = np.full(x.shape, upstream)
    weight = np.array([*WEIGHT, 1e30, 1e-30, 1e-300], np.float64)
    given = {"sample_weight": weight, "upstream": upstream}
    compiled = XLA(lambda x, t: spec.value_and_grad(x, t, **given))
    pair = compiled(tf.constant(x), tf.constant(t))
    wanted = spec.value_and_grad(x, t, **given)
    for got, right in zip(pair, wanted, strict=True):
        np.testing.assert_array_equal(got, right)


def unknown_batch(spec: Any, targets: Any) -> None:
    """Check one graph for batches of any size under XLA: its loss and gradient have NumPy's bits.

    The gradient is that of a tape, for an upstream gradient that is computed again.
    """
    traces = []
    form = [(None, 3), (None, *targets.shape[1:]), (None,), (None,)]
    dtypes = [tf.float32, targets.dtype.name, tf.float32, tf.bool]

    def step(z: Any, t: Any, w: Any, m: Any) -> Any:
        traces.append(1)
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = spec(z, t, sample_weight=w, mask=m)
        return loss, tape.gradient(loss, z)

    compiled = XLA(step, input_signature=list(map(tf.TensorSpec, form, dtypes)))
    random = np.random.default_rng(2)
    for count in (4, 3):
        chosen = random.integers(0, 4, count)
        given = {"sample_weight": WEIGHT[chosen], "mask": MASK[chosen]}
        z, t = random.normal(size=(count, 3)).astype(np.float32), targets[chosen]
        upstream = np.ones(z.shape, np.float32) if spec.reduction == "none" else None
        right = spec.value_and_grad(z, t, **given, upstream=upstream)
        assert bits(*compiled(*map(tf.constant, (z, t, *given.values())))) == bits(*right)
    assert len(traces) == 1


def test_unknown_batch_under_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """One trace serves each batch size; float64 decides all rows, so that it compiles faster."""
    monkeypatch.setattr(call.GraphCall, "mended", lambda _, found: found)
    unknown_batch(BCE.replace(pos_weight=(1, 2, 0.5), reduction="none"), DENSE)


@pytest.mark.slow("the compilation by XLA; test_unknown_batch_under_xla")
@pytest.mark.parametrize(
    ("spec", "targets"),
    [
        (WEIGHTED, LABELS),
        (CE.replace(label_smoothing=0.1, reduction="sum"), DENSE),
        (BCE.replace(pos_weight=(1, 2, 0.5)), DENSE),
        (MSE.replace(reduction="none"), DENSE),
        (ul.HuberLoss(delta=0.5, divisor="all", rounding="exact"), DENSE),
    ],
)
def test_unknown_batch_with_balls_under_xla(spec: Any, targets: Any) -> None:
    """Every kind of loss and reduction, with the balls compiled too."""
    unknown_batch(spec, targets)


def test_what_xla_has_no_form_of_is_refused() -> None:
    """Calls without an XLA form are refused by name at trace time, and the message says what to do.

    This holds inside a nested tf.function and for classes whose number is unknown at trace time.
    """
    z, y = tf.constant(LOGITS), tf.constant(LABELS)
    probabilities = ul.CrossEntropyLoss(from_logits=False, rounding="exact")
    for what, function, tensors in (
        ("probabilities", lambda z, y: probabilities(tf.nn.softmax(z), y), (z, y)),
        (
            "float64 predictions",
            lambda z, y: tf.function(CE.value_and_grad)(tf.cast(z, tf.float64), y),
            (z, y),
        ),
        ("an empty batch", CE.to("tensorflow"), (z[:0], y[:0])),
        ("int64 sample weights", lambda z, y: CE(z, y, sample_weight=y), (z, y)),
    ):
        with pytest.raises(
            UnsupportedError,
            match=f"no form that XLA compiles for {what}; trace with jit_compile=False",
        ):
            XLA(function)(*tensors)
    unknown = [tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64)]
    with pytest.raises(UnsupportedError, match="a number of classes that is unknown when it is"):
        XLA(CE.to("tensorflow"), input_signature=unknown)(z, y)
    assert not ADAPTER.modes()["xla"].exact


def test_graphs_do_not_pile_up() -> None:
    """Graphs are freed: tf.custom_gradient and tf.numpy_function keep only what is made once."""
    graphs = type(tf.function(lambda: tf.constant(0)).get_concrete_function().graph)

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(x), graphs) for x in gc.get_objects())

    def run() -> None:
        both("function", CE, LOGITS, LABELS)
        gradients(tf.function(lambda z: BCE(z, tf.constant(DENSE))), tf.constant(LOGITS))

    run()
    before = alive()
    run()
    run()
    assert alive() == before


@every_mode
def test_jacobians_and_maps(mode: str) -> None:
    """Jacobians and tf.vectorized_map have NumPy's bits; TensorFlow loops over the host calls."""
    z, y = tf.constant(LOGITS), tf.constant(LABELS)

    def jacobian() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(z)
            losses = CE.replace(reduction="none")(z, y)
        return tape.jacobian(losses, z)

    def of_mean() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = CE(z, y)
        return tape.jacobian(loss, z)

    assert bits(MODES[mode](of_mean)()) == bits(CE.value_and_grad(LOGITS, LABELS)[1])
    slopes = MODES[mode](jacobian)().numpy()
    _, slope = CE.replace(reduction="none").value_and_grad(LOGITS, LABELS)
    assert bits(slopes[range(4), range(4)]) == bits(slope)
    mapped = MODES[mode](
        lambda: tf.vectorized_map(lambda row: CE(row[0], row[1]), (z[:, None], y[:, None]))
    )()
    assert bits(mapped) == bits(CE.replace(reduction="none")(LOGITS, LABELS))


def test_gradient_taken_elsewhere() -> None:
    """An eager loss can be differentiated in a graph, and a graph's loss eagerly."""
    z, y = tf.constant(LOGITS), tf.constant(LABELS)
    _, wanted = CE.value_and_grad(LOGITS, LABELS, upstream=np.float32(0.3))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        losses = [CE(z, y), tf.function(lambda z: CE(z, y))(z)]
    upstream = tf.constant(0.3)
    assert bits(tf.function(lambda: tape.gradient(losses[0], z, upstream))()) == bits(wanted)
    for loss in losses:
        assert bits(tape.gradient(loss, z, upstream)) == bits(wanted)


# ------------------------------------------------------------------------------ further derivatives

DIRECTION = tf.constant(np.random.default_rng(5).normal(size=(4, 3)), tf.float32)
Loss = Callable[..., Any]


def forward(loss: Loss, z: Any, *others: Any) -> Any:
    """The derivative in a direction, in forward mode."""
    with tf.autodiff.ForwardAccumulator(z, DIRECTION) as accumulator:
        value = loss(z, *others)
    return accumulator.jvp(value)


def forward_over_reverse(loss: Loss, z: Any, *others: Any) -> Any:
    """The product of the Hessian and a direction, a ForwardAccumulator over a tape."""
    with tf.autodiff.ForwardAccumulator(z, DIRECTION) as accumulator:
        slope = gradients(loss, z, *others)[0]
    return accumulator.jvp(slope)


def forward_over_forward(loss: Loss, z: Any, *others: Any) -> Any:
    """The second derivative in a direction, by two nested ForwardAccumulators."""
    return forward(lambda z: forward(loss, z, *others), z)


def reverse_over_forward(loss: Loss, z: Any, *others: Any) -> Any:
    """The product of the Hessian and a direction, a tape over a ForwardAccumulator."""
    return gradients(lambda z: forward(loss, z, *others), z)[0]


def nested(loss: Loss, *tensors: Any) -> list[Any]:
    """Gradients to all floating tensors, of a function of such gradients: every second one."""
    watched = [x for x in tensors if x.dtype.is_floating]
    with tf.GradientTape() as outer:
        outer.watch(watched)
        with tf.GradientTape() as inner:
            inner.watch(watched)
            value = loss(*tensors)
        slopes = inner.gradient(value, watched)
        total = sum(tf.reduce_sum(tf.sin(3 * x)) for x in slopes)
    return [*slopes[1:], *outer.gradient(total, watched)]


def third(loss: Loss, z: Any, *others: Any) -> Any:
    """A third derivative, by three tapes."""

    def second(z: Any) -> Any:
        def first(z: Any) -> Any:
            return tf.reduce_sum(gradients(loss, z, *others)[0] * DIRECTION)

        return tf.reduce_sum(gradients(first, z)[0] * DIRECTION)

    return gradients(second, z)[0]


def hessian(loss: Loss, z: Any, *others: Any) -> Any:
    """All second derivatives, by the Jacobian of the gradient."""
    with tf.GradientTape() as outer:
        outer.watch(z)
        slope = gradients(loss, z, *others)[0]
    return outer.jacobian(slope, z)


def same_as_native(spec: Any, derivative: Callable[..., Any], run: Any, *tensors: Any) -> None:
    """Check a derivative of an exact loss of (predictions, targets, weights) against the native."""
    here, there = (
        tf.nest.flatten(
            run(partial(derivative, lambda z, t, w=None, s=each: s(z, t, sample_weight=w)))(
                *tensors
            )
        )
        for each in (spec, spec.replace(rounding="native"))
    )
    for x, wanted in zip(here, there, strict=True):
        np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-6)
    assert any(np.any(x) for x in here)


TENSORS = tf.constant(LOGITS), tf.constant(DENSE), tf.constant(WEIGHT)
INDEXED = TENSORS[0], tf.constant(LABELS), TENSORS[2]


@every_mode
@pytest.mark.slow("tests of fewer derivatives in both modes", only=["function"])
def test_every_derivative(mode: str) -> None:
    """Forward mode and all nestings are those of native mode, weights and targets included.

    Forward mode comes first, where TensorFlow records nothing while the graph of the derivative is
    made. The divisor of a mean is differentiated too.
    """
    run = MODES[mode]
    spec = BCE.replace(divisor="weights", pos_weight=1.5)
    of_labels = (hessian,) if mode == "eager" else (nested, hessian, third, reverse_over_forward)
    for derivative in (forward, forward_over_reverse, nested):
        same_as_native(spec, derivative, run, *TENSORS)
    for derivative in of_labels:
        same_as_native(WEIGHTED, derivative, run, *INDEXED)


@every_mode
@pytest.mark.parametrize("rounding", ["exact", "native"])
@pytest.mark.slow(
    "the native loss in a graph, and tests of other derivatives", only=["exact", "-e"]
)
def test_forward_over_forward(rounding: str, mode: str) -> None:
    """Nested accumulators give the second derivative of a loss with comparisons and a reused value.

    Without `unifiedloss.adapters.tensorflow.further.whole`, TensorFlow fails in a graph at each
    comparison, and is wrong in eager calls where an intermediate tensor is used twice
    (tensorflow#127753).
    """
    spec, z, t = (
        (BCE, *TENSORS[:2]) if mode == "eager" else (ul.CrossEntropyLoss(), TENSORS[1], INDEXED[1])
    )
    spec = spec.replace(rounding=rounding)
    twice = MODES[mode](lambda z: forward_over_forward(lambda z: spec(z, t), z))(z)
    product = forward_over_reverse(lambda z: spec(z, t), z)
    np.testing.assert_allclose(twice, tf.reduce_sum(product * DIRECTION), rtol=1e-4)


@pytest.mark.parametrize("derivative", [forward, reverse_over_forward, forward_over_reverse])
@pytest.mark.slow("forward mode, and a tape over it", only=["forward_over_reverse"])
def test_derivatives_in_a_graph(derivative: Any) -> None:
    """Forward mode and tapes in either order within a tf.function."""
    same_as_native(CE, derivative, MODES["function"], *INDEXED[:2])


@pytest.mark.slow("test_gradients_to_others, and test_derivatives_in_a_graph")
def test_derivatives_around_a_function() -> None:
    """Around a tf.function, tapes and accumulators differentiate by all that it is given."""
    for derivative in (forward, nested):
        same_as_native(
            WEIGHTED, lambda loss, *xs, d=derivative: d(tf.function(loss), *xs), partial, *INDEXED
        )


@pytest.mark.slow("the compilation by XLA; test_every_derivative without it")
@pytest.mark.parametrize(
    "derivative", [forward, forward_over_reverse, reverse_over_forward, nested, third, hessian]
)
def test_every_derivative_under_xla(derivative: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without XLA. Rows are not computed again in balls, because these compile for long."""
    monkeypatch.setattr(call.GraphCall, "mended", lambda _, found: found)
    same_as_native(WEIGHTED, derivative, XLA, *INDEXED)


@every_mode
@pytest.mark.parametrize("name", ["targets", "sample_weight"])
def test_gradients_to_others(mode: str, name: str) -> None:
    """Targets and weights have native gradients, beside the exact one to the predictions."""
    z, t, w = TENSORS
    _, wanted = MSE.value_and_grad(LOGITS, DENSE, sample_weight=WEIGHT)
    watched = t if name == "targets" else w

    def both_gradients(spec: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([z, watched])
            loss = spec(z, t, sample_weight=w)
        return tape.gradient(loss, z), tape.gradient(loss, watched)

    slope, other = MODES[mode](lambda: both_gradients(MSE))()
    assert bits(slope) == bits(wanted)
    _, native = both_gradients(MSE.replace(rounding="native"))
    np.testing.assert_allclose(other, native, rtol=1e-6, atol=1e-7)
    around = gradients(tf.function(lambda z, t, w: MSE(z, t, sample_weight=w)), *TENSORS, watched=3)
    assert bits(around[0]) == bits(wanted)
    np.testing.assert_array_equal(around[1 if name == "targets" else 2], other)


@every_mode
@pytest.mark.slow("eager calls", only=["function"])
def test_derivatives_with_a_divisor(mode: str) -> None:
    """A given divisor, as a number and as the vector of a piece, divides every derivative."""
    z, y, w = INDEXED
    vector = CE.divisor_of(y, sample_weight=w)
    for divisor in (tf.constant(7.0), vector):
        given = 7.0 if divisor is not vector else float(WEIGHT.sum())
        found, wanted = (
            run(
                lambda z, w, s=spec, d=d: nested(
                    lambda z, w: s(z, y, sample_weight=w, divisor=d), z, w
                )
            )(z, w)
            for spec, d, run in (
                (CE, divisor, MODES[mode]),
                (CE.replace(rounding="native"), given, MODES["eager"]),
            )
        )
        for x, right in zip(found, wanted, strict=True):
            np.testing.assert_allclose(x, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "index"])
@pytest.mark.slow("labels, which take the same way", only=["dense"])
def test_no_native_call_for_value_and_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native loss runs only where a further derivative is asked for; a counter in it says so.

    In graphs TensorFlow builds such derivatives by itself. Around a tf.function it also runs the
    gradients to all floating arguments, so the one in that place takes labels alone.
    """
    ran, results = [], further.NativeLoss.results

    def counted(self: Any, *tensors: Any) -> list[Any]:
        def count(x: Any) -> Any:
            ran.append(1)
            return x

        (loss,) = results(self, *tensors)
        same = tf.numpy_function(count, [loss], loss.dtype, stateful=False)
        return [loss + tf.ensure_shape(same - loss, loss.shape)]

    monkeypatch.setattr(further.NativeLoss, "results", counted)
    spec = WEIGHTED.replace(scale=2.0)  # of no other test, whose graphs do not count

    def loss(z: Any, t: Any, w: Any = None) -> Any:
        return spec(z, t, sample_weight=w)

    def step(*tensors: Any, persistent: bool = False) -> Any:
        return gradients(loss, *tensors, persistent=persistent)[0]

    slope = tf.function(spec.value_and_grad, autograph=False)
    tensors = INDEXED if kind == "index" else TENSORS
    for persistent in (False, True):
        step(*tensors, persistent=persistent)
        tf.function(partial(step, persistent=persistent), autograph=False)(*tensors)
    spec.value_and_grad(*tensors[:2])
    gradients(tf.function(loss), *INDEXED[:2])
    gradients(lambda z, t: slope(z, t)[0], *INDEXED[:2])
    assert not ran
    gradients(lambda z, t: slope(z, t)[1], *INDEXED[:2])
    assert ran


def test_value_of_a_function_that_differentiates() -> None:
    """The value of a compiled value_and_grad has the exact gradient, also where others are NaN."""
    step = tf.function(lambda z: CE.value_and_grad(z, tf.constant(LABELS)))
    rows = np.array(LOGITS)
    rows[1, 0] = -np.inf
    for z in (LOGITS, rows):
        slope, *_ = gradients(lambda z: step(z)[0], tf.constant(z))
        assert bits(slope) == bits(CE.value_and_grad(z, LABELS)[1])


def test_bad_values() -> None:
    """They raise in eager calls; in a graph their loss and their row of the gradient are NaN."""
    spec, labels = CE.replace(reduction="none"), tf.constant([0, 7, 1, -1])
    with pytest.raises(BadValueError, match=r"targets\[1\] is 7"):
        spec(tf.constant(LOGITS), labels)
    value, slope = tf.function(spec.value_and_grad, autograph=False)(tf.constant(LOGITS), labels)
    bad = np.array([False, True, False, True])
    np.testing.assert_array_equal(np.isnan(value), bad)
    np.testing.assert_array_equal(np.isnan(slope), np.tile(bad[:, None], 3))


def test_one_example_keeps_its_class_axis() -> None:
    """The graph of the native derivative, traced for a batch first, is for all ranks."""
    spec = ul.CrossEntropyLoss(from_logits=True, axis=1, reduction="sum", rounding="exact")
    for shape in ((2, 3), (3,)):
        z, t = tf.random.normal(shape), tf.fill(shape, 1 / 3)
        slopes = []
        for rounding in ("exact", "native"):
            with tf.GradientTape() as tape:
                tape.watch(t)
                loss = spec.replace(rounding=rounding)(z, t)
            slopes.append(tape.gradient(loss, t).numpy())
        np.testing.assert_allclose(*slopes, rtol=1e-5)
