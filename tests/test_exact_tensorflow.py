"""Exact mode on TensorFlow: NumPy's bits, eagerly and in graphs, and the refused calls.

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
from unifiedloss.adapters.tensorflow import exact  # noqa: E402
from unifiedloss.adapters.tensorflow.graph import TensorFlowOps  # noqa: E402
from unifiedloss.exact.graph import tiers  # noqa: E402

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
    shared = exact._tensor(aligned, "CPU:0")
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
        np.testing.assert_array_equal(exact._tensor(x, "CPU:0")[1:], x[1:])


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
    "the binary loss, which takes the same way, and the formulas in tests/test_exact_graph.py",
    only=["squared", "huber"],
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


def test_what_xla_has_no_form_of_is_refused() -> None:
    """Calls without an XLA form are refused by name at trace time, and the message says what to do.

    This holds inside a nested tf.function and for shapes that are unknown at trace time.
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
    unknown = [tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int64)]
    with pytest.raises(UnsupportedError, match="shapes that are unknown when it is traced"):
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


# ----------------------------------------------------------------------------------------- refusals


@every_mode
@pytest.mark.parametrize("name", ["targets", "sample_weight"])
def test_other_gradients_are_refused(mode: str, name: str) -> None:
    """A tape that watches targets or weights raises; the proposed tf.stop_gradient helps."""
    z, t, w = tf.constant(LOGITS), tf.constant(DENSE), tf.constant(WEIGHT)

    def function(x: Any, *, stop: bool) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, z])
            given = tf.stop_gradient(2 * x) if stop else 2 * x
            loss = MSE(z, given) if name == "targets" else MSE(z, t, sample_weight=given)
        return tape.gradient(loss, z)

    x = t if name == "targets" else w
    with pytest.raises(
        UnsupportedError, match=rf"a tape watches {name}; pass tf.stop_gradient\({name}\)"
    ):
        MODES[mode](lambda x: function(x, stop=False))(x)
    assert MODES[mode](lambda x: function(x, stop=True))(x).shape == (4, 3)


def test_other_gradients_around_a_function() -> None:
    """Around a tf.function, the gradients that are refused elsewhere are NaN, and not 0.

    They cannot raise, because TensorFlow asks a function for all its gradients, wanted or not.
    """
    loss = tf.function(lambda z, t, w: MSE(z, t, sample_weight=w))
    tensors = tf.constant(LOGITS), tf.constant(DENSE), tf.constant(WEIGHT)
    _, wanted = MSE.value_and_grad(LOGITS, DENSE, sample_weight=WEIGHT)
    for persistent in (False, True):
        slope, *others = gradients(loss, *tensors, persistent=persistent)
        assert bits(slope) == bits(wanted)
        assert others == [None, None]
    _, *others = gradients(loss, *tensors, watched=3)
    assert all(np.isnan(x).all() for x in others)


@pytest.mark.parametrize("mode", ["eager", "function", "function inside"])
def test_second_derivatives_are_refused(mode: str) -> None:
    """A second derivative raises if it is taken; an outer tape that could take it does not."""
    z, y = tf.constant(LOGITS), tf.constant(LABELS)
    loss = tf.function(lambda z: CE(z, y)) if mode == "function inside" else lambda z: CE(z, y)

    def twice(*, second: bool) -> Any:
        with tf.GradientTape() as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                value = loss(z)
            slope = inner.gradient(value, z)
        return outer.gradient(slope if second else value, z)

    run = MODES["function"] if mode == "function" else MODES["eager"]
    with pytest.raises(
        (UnsupportedError, tf.errors.InvalidArgumentError), match="has no second derivative"
    ):
        run(lambda: twice(second=True))()
    assert bits(run(lambda: twice(second=False))()) == bits(CE.value_and_grad(LOGITS, LABELS)[1])


def test_value_of_a_function_that_differentiates() -> None:
    """The loss of a compiled value_and_grad has a gradient; its gradient refuses to have one."""
    step = tf.function(lambda z: CE.value_and_grad(z, tf.constant(LABELS)))
    slope, *_ = gradients(lambda z: step(z)[0], tf.constant(LOGITS))
    assert bits(slope) == bits(CE.value_and_grad(LOGITS, LABELS)[1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="has no second derivative"):
        gradients(lambda z: step(z)[1], tf.constant(LOGITS))


def test_forward_mode_is_refused() -> None:
    """Forward mode raises, because TensorFlow derives it from the second derivative."""
    z = tf.constant(LOGITS)
    with pytest.raises(UnsupportedError), tf.autodiff.ForwardAccumulator(z, z) as accumulator:
        accumulator.jvp(CE(z, LABELS))


def test_bad_values() -> None:
    """They raise in eager calls; in a graph their loss and their row of the gradient are NaN."""
    spec, labels = CE.replace(reduction="none"), tf.constant([0, 7, 1, -1])
    with pytest.raises(BadValueError, match=r"targets\[1\] is 7"):
        spec(tf.constant(LOGITS), labels)
    value, slope = tf.function(spec.value_and_grad, autograph=False)(tf.constant(LOGITS), labels)
    bad = np.array([False, True, False, True])
    np.testing.assert_array_equal(np.isnan(value), bad)
    np.testing.assert_array_equal(np.isnan(slope), np.tile(bad[:, None], 3))
