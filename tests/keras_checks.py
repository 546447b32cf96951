"""Checks of the Keras adapter; tests/test_keras.py runs this file once for each Keras backend.

The file is not named test_*, because a process can use one Keras backend only. Numbers are compared
with the NumPy adapter in float64, which shares no code with Keras.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_iris

import unifiedloss as ul
from unifiedloss import registry
from unifiedloss.adapters.keras.objects import KerasLoss
from unifiedloss.errors import (
    BadValueError,
    DTypeError,
    MixedBackendsError,
    ShapeError,
    SpecValueError,
    UnknownTensorError,
    UnsupportedError,
)

Array = NDArray[Any]

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Split the CPU into two devices to distribute to; this must happen before TensorFlow starts.
    (_cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
else:
    # When Keras saves a model it imports TensorFlow, if it can, to recognize TensorFlow's types.
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]

ADAPTER = registry.adapter("keras")
BACKEND = registry.adapter(keras.backend.backend())
COMPILES = BACKEND.name != "numpy"
"""Whether this backend trains; Keras on NumPy only predicts and evaluates."""

# Keras on NumPy finds the shape of an output by calling the model on memory as it happens to be
# (compute_output_spec in Keras 3.15), whose numbers may overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:keras.src.backend.numpy")

# Logits, labels and class weights on which the frameworks' losses differ.
X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2])
W = [1.0, 2.0, 4.0]

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(5, 4)) * 4).astype(np.float32)
LABELS = np.array([0, 3, 1, 1, 2])
PROBABILITIES = ul.softmax(LOGITS)
DENSE = RNG.random((5, 4)).astype(np.float32)
WEIGHTS = np.array([1.0, 0.0, 2.5, 3.0, 0.5], np.float32)
MASK = np.array([True, True, False, True, True])

CE, BCE, MSE = ul.CrossEntropyLoss, ul.BinaryCrossEntropyLoss, ul.MeanSquaredError

CASES: list[tuple[Any, Array, Array]] = [
    *(
        (CE(from_logits=True, reduction=reduction, **fields), LOGITS, LABELS)
        for reduction in ("mean", "sum", "none")
        for fields in (
            {},
            {"label_smoothing": 0.1},
            {"class_weights": [1, 2, 4, 0]},
            {"ignore_index": 1},
            {
                "class_weights": [1, 2, 4, 3],
                "label_smoothing": 0.2,
                "ignore_index": [-100, 3],
                "divisor": "present",
            },
        )
    ),
    (CE(), PROBABILITIES, LABELS),
    (CE(epsilon=1e-3, label_smoothing=0.1), PROBABILITIES, LABELS),
    (CE(class_weights=[1, 2, 3, 4], label_smoothing=0.1), PROBABILITIES, LABELS),
    (CE(from_logits=True), LOGITS, DENSE),
    (CE(from_logits=True, class_weights=[1, 2, 3, 4], label_smoothing=0.1), LOGITS, DENSE),
    (CE(), PROBABILITIES, DENSE),
    (BCE(from_logits=True), LOGITS, DENSE),
    (BCE(from_logits=True, pos_weight=3.0, label_smoothing=0.1), LOGITS, DENSE),
    (BCE(from_logits=True, pos_weight=[1, 2, 3, 4], divisor="nonzero"), LOGITS, DENSE > 0.5),
    (BCE(), PROBABILITIES, DENSE),
    (BCE(epsilon=1e-3, label_smoothing=0.1, reduction="sum"), PROBABILITIES, DENSE),
    (MSE(), LOGITS, DENSE),
    (MSE(reduction="none"), LOGITS, DENSE),
    (MSE(divisor="all"), LOGITS, LABELS[:, None] * np.array([1, -1, 2, 0])),
]


def tensor(x: Any) -> Any:
    """A tensor of Keras' backend that keeps the array's dtype, also 64 bits in JAX."""
    return BACKEND.convert(np.asarray(x), None)


def numpy(x: Any) -> Array:
    """The values of a tensor of Keras' backend."""
    return np.asarray(BACKEND.to_numpy(x))


def wide(x: Array) -> Array:
    """The array in float64 if it is floating, and unchanged otherwise."""
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def expected(
    spec: Any, predictions: Array, targets: Array, **companions: Any
) -> tuple[Array, Array]:
    """Loss and gradient by NumPy in float64."""
    value, gradient = spec.value_and_grad(wide(predictions), wide(targets), **companions)
    return value, gradient


def graph(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function under tf.function, jax.jit or torch.compile; on NumPy call it directly."""
    name = {"tensorflow": "function", "jax": "jit", "torch": "aot_eager", "numpy": "eager"}[
        BACKEND.name
    ]
    return ADAPTER.modes()[name].run(function, *arguments)


def eagerly(spec: Any, predictions: Any, targets: Any, **companions: Any) -> Any:
    """The loss of the Keras adapter in an eager call, where values can be read."""
    return ADAPTER.loss(spec, tensor(predictions), tensor(targets), **companions)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
@pytest.mark.parametrize(
    "array",
    [np.array(["a"] * 5), np.array([{}] * 5), np.array([1j] * 5), np.array([1] * 5, "M8[D]")],
)
def test_arrays_of_no_admitted_dtype(array: Array, shape: tuple[int, ...]) -> None:
    """The loss and the Keras object refuse arrays of other dtypes with NumPy's message."""
    array = array.reshape(shape)
    for spec, predictions in (
        (CE(from_logits=True), LOGITS),
        (MSE(), LOGITS[:, :1]),
        (MSE(), LOGITS[:, 0]),
    ):
        with pytest.raises(DTypeError) as plain:
            spec(predictions, array)
        z = tensor(predictions)
        for call, arguments in (
            (ADAPTER.loss, (spec, z, array)),
            (ADAPTER.value_and_grad, (spec, z, array)),
            (spec.to("keras"), (array, z)),
        ):
            with pytest.raises(DTypeError) as error:
                call(*arguments)
            assert str(error.value) == str(plain.value)
    with pytest.raises(DTypeError, match="sample_weight must be floating or integer"):
        CE(from_logits=True).to("keras")(tensor(LABELS), tensor(LOGITS), array)


def loss(spec: Any, predictions: Any, targets: Any, **companions: Any) -> Array:
    """The loss of the Keras adapter."""

    def step(p: Any) -> Any:
        return ADAPTER.loss(spec, p, np.asarray(targets), **companions)

    return numpy(_quickest(step, tensor(predictions)))


def differentiated(spec: Any, predictions: Any, targets: Any, **companions: Any) -> tuple[Any, Any]:
    """The loss and the gradient of the Keras adapter."""

    def step(p: Any) -> Any:
        return ADAPTER.value_and_grad(spec, p, np.asarray(targets), **companions)

    value, slope = _quickest(step, tensor(predictions))
    return value, slope


def _quickest(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function eagerly, but under jit on JAX, where eager calls take three times as long."""
    return graph(function, *arguments) if BACKEND.name == "jax" else function(*arguments)


def gradient(spec: Any, predictions: Any, targets: Any, **companions: Any) -> Array:
    """The gradient of the Keras adapter."""
    return numpy(differentiated(spec, predictions, targets, **companions)[1])


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("accompanied", [False, True])
def test_numbers_are_numpys(case: int, accompanied: bool) -> None:
    """Loss and gradient agree with NumPy's for every field, with and without weights and masks."""
    spec, predictions, targets = CASES[case]
    value, slope = _numbers(case)[accompanied]
    wanted, wanted_slope = expected(spec, predictions, targets, **_companions(case)[accompanied])
    np.testing.assert_allclose(numpy(value), wanted, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(numpy(slope), wanted_slope, rtol=2e-5, atol=1e-6)
    assert numpy(slope).dtype == np.float32


def _companions(case: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """No companions, and those of a case."""
    both = {"sample_weight": WEIGHTS, "mask": MASK}
    return {}, [both, {"sample_weight": WEIGHTS}, {"mask": MASK}][case % 3]


@cache
def _numbers(case: int) -> list[tuple[Any, Any]]:
    """Loss and gradient of a case, without and with companions; on JAX from one program."""
    spec, predictions, targets = CASES[case]

    def step(p: Any) -> Any:
        return [
            ADAPTER.value_and_grad(spec, p, targets, **companions)
            for companions in _companions(case)
        ]

    numbers: list[tuple[Any, Any]] = _quickest(step, tensor(predictions))
    return numbers


COMPILED = (4, 17, 20, 22, 26)


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_numbers_are_numpys(case: int) -> None:
    """Losses agree in a compiled graph too, where selects replace the checks of values."""
    compiled = _compiled()[COMPILED.index(case)]
    np.testing.assert_allclose(numpy(compiled), expected(*CASES[case])[0], rtol=2e-6, atol=1e-6)


@cache
def _compiled() -> list[Any]:
    """The losses of the compiled cases, from one program."""

    def losses(*tensors: Any) -> list[Any]:
        pairs = zip(COMPILED, tensors[::2], tensors[1::2], strict=True)
        return [ADAPTER.loss(CASES[case][0], p, t) for case, p, t in pairs]

    found: list[Any] = graph(losses, *(tensor(x) for case in COMPILED for x in CASES[case][1:]))
    return found


def operations(adapter: Any, spec: Any, predictions: Any, targets: Any) -> list[str]:
    """The operations of the program that this backend makes of a traced call, in order."""

    def call(p: Any, t: Any) -> Any:
        return adapter.loss(spec, p, t)

    if BACKEND.name == "jax":
        import jax

        return list(_primitives(jax.make_jaxpr(call)(predictions, targets).jaxpr))
    if BACKEND.name == "tensorflow":
        import tensorflow as tf

        traced = tf.function(call, autograph=False).get_concrete_function(predictions, targets)
        return [operation.type for operation in traced.graph.get_operations()]
    import torch
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    found: list[str] = []

    def compiler(program: Any, _: Any) -> Any:
        found.extend(str(node.target) for node in program.graph.nodes if node.op == "call_function")
        return make_boxed_func(program.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler)
    torch.compile(call, backend=backend, fullgraph=True, dynamic=False)(predictions, targets)
    return found


def _primitives(program: Any) -> Iterator[str]:
    """The primitives of a jaxpr, with those of the programs inside it in their place."""
    for equation in program.eqns:
        inside = [getattr(x, "jaxpr", x) for x in equation.params.values()]
        inside = [x for x in inside if hasattr(x, "eqns")]
        if inside:
            for part in inside:
                yield from _primitives(part)
        else:
            yield equation.primitive.name


@pytest.mark.parametrize(
    ("spec", "predictions", "targets"),
    [
        (ul.BinaryCrossEntropyLoss(from_logits=True), LOGITS, PROBABILITIES),
        (ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=3.0), LOGITS, PROBABILITIES),
        (ul.BinaryCrossEntropyLoss(label_smoothing=0.1), PROBABILITIES, PROBABILITIES),
        (ul.CrossEntropyLoss(), PROBABILITIES, LABELS),
        (ul.NegativeLogLikelihoodLoss(), LOGITS, LABELS),
    ],
)
@pytest.mark.slow(
    "one loss of each kind, and all on Keras' other backends",
    only=["spec1", "spec2"] if BACKEND.name == "torch" else [],
)
def test_compiled_call_is_the_backends(spec: Any, predictions: Array, targets: Array) -> None:
    """When traced, these calls are the same program as the adapter's below Keras.

    So few of Keras' calls are compiled once more. Cross-entropy from logits is not among them, and
    on TensorFlow the squared error is not: there Keras has operations of its own.
    """
    if not COMPILES:
        return
    tensors = BACKEND.tensor(predictions), BACKEND.tensor(targets)
    ours, below = (operations(adapter, spec, *tensors) for adapter in (ADAPTER, BACKEND))
    assert len(below) > 1
    assert sorted(ours) == sorted(below)


@pytest.mark.parametrize(
    ("spec", "predictions", "targets"), [CASES[4], CASES[16], CASES[20], CASES[22], CASES[25]]
)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes(spec: Any, predictions: Array, targets: Array, dtype: str) -> None:
    """float64 is computed in float64; half types are computed in float32 and rounded once."""
    if dtype == "float64":
        array = predictions.astype(dtype)
        given = tensor(array)
        targets = wide(targets)
    else:
        given = keras.ops.cast(tensor(predictions), dtype)
        array = numpy(given)
    # The modes enable x64 in JAX.
    run = ADAPTER.modes()["jit" if BACKEND.name == "jax" else "eager"].run
    value, slope = run(lambda p: ADAPTER.value_and_grad(spec, p, targets), given)
    wanted, wanted_slope = expected(spec, array, targets)
    assert ADAPTER.dtype_name(value.dtype) == ("float64" if dtype == "float64" else "float32")
    assert ADAPTER.dtype_name(slope.dtype) == dtype
    np.testing.assert_allclose(numpy(value), wanted, rtol=1e-13 if dtype == "float64" else 2e-6)
    close = {"float64": 1e-12, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(
        numpy(slope).astype(np.float64), wanted_slope, rtol=close, atol=close / 10
    )


def test_float64_targets_widen() -> None:
    """float64 targets beside float32 predictions are read exactly, also on JAX without x64."""
    targets = np.array([0.1, 0.7])
    value = numpy(ADAPTER.loss(MSE(), tensor(np.float32([0.1, 0.7])), targets))
    wanted = np.mean((np.float64(np.float32([0.1, 0.7])) - targets) ** 2)
    np.testing.assert_allclose(value, np.float32(wanted), rtol=1e-6)


def test_a_spec_that_names_its_dtype() -> None:
    """A spec with a dtype reads float64 NumPy arrays in it, which JAX without x64 refuses else."""
    spec = ul.MeanSquaredError(average_last_axis=True, dtype="float32")
    predictions, targets = LOGITS.astype(np.float64) / 3, DENSE.astype(np.float64)
    value = numpy(spec.to("keras")(targets, predictions))
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, spec(predictions, targets), rtol=1e-6)


@pytest.mark.parametrize("label", ["uint8", "int16", "uint32", "int64"])
def test_labels_of_every_integer_dtype(label: str) -> None:
    """Labels keep their value in every dtype, also in those that Keras lacks on torch."""
    value = loss(CE(from_logits=True, ignore_index=-100), X, Y.astype(label))
    np.testing.assert_allclose(value, 0.764189, rtol=1e-6)


# ---------------------------------------------------------------- where frameworks' losses disagree


def test_divisors_of_sample_weights() -> None:
    """A weighted mean divides by the sum of the weights unless another divisor is named.

    Keras divides by N, sklearn by the sum, TensorFlow 1 by a count.
    """
    weights = np.float32([1, 0, 3, 1])
    for divisor, wanted in (
        ("weights", 0.387003),
        ("present", 0.483753),
        ("all", 0.483753),
        ("nonzero", 0.645004),
    ):
        value = loss(CE(from_logits=True, divisor=divisor), X, Y, sample_weight=weights)
        np.testing.assert_allclose(value, wanted, rtol=2e-6)


def test_class_weights_divide_alike_for_both_kinds_of_target() -> None:
    """One-hot targets and indices have the same mean, while torch divides by N for one-hot ones.

    Keras' number for both needs Keras' divisor.
    """
    spec = CE(from_logits=True, class_weights=W)
    for targets in (Y, np.eye(3, dtype=np.float32)[Y]):
        np.testing.assert_allclose(loss(spec, X, targets), 0.878126, rtol=2e-6)
        np.testing.assert_allclose(
            loss(spec.replace(divisor="all"), X, targets), 1.975783, rtol=2e-6
        )


def test_ignored_labels() -> None:
    """Only labels in ignore_index are ignored, and they leave the divisor."""
    spec = CE(from_logits=True, ignore_index=-100)
    np.testing.assert_allclose(loss(spec, X, [0, 1, -100, 2]), 0.971275, rtol=2e-6)
    np.testing.assert_allclose(loss(spec, X, [0, -100, 1, 2]), 0.549717, rtol=2e-6)
    np.testing.assert_allclose(
        loss(spec.replace(divisor="all"), X, [0, -100, 1, 2]), 0.412287, rtol=2e-6
    )
    with pytest.raises(BadValueError, match=r"targets\[2\] is -100: not a class index in 0..2"):
        eagerly(CE(from_logits=True), X, [0, 1, -100, 2])


def test_everything_ignored() -> None:
    """A mean without positions is NaN or 0, as on_empty asks; its gradient is 0."""
    spec = CE(from_logits=True, ignore_index=1)
    nothing = np.ones(4, int)
    assert np.isnan(loss(spec, X, nothing))
    assert loss(spec.replace(on_empty="zero"), X, nothing) == 0
    assert not gradient(spec, X, nothing).any()


def test_bad_labels() -> None:
    """A bad label raises in eager calls; compiled, only its position and gradient are NaN."""
    spec = CE(from_logits=True)
    for label in (-1, -3, 3, 2**32 + 1):
        labels = np.array([0, 1, label, 2])
        for call in (eagerly, lambda spec, *xs: ADAPTER.value_and_grad(spec, *map(tensor, xs))):
            with pytest.raises(BadValueError, match=rf"targets\[2\] is {label}: not a class index"):
                call(spec, X, labels)
    if not COMPILES:
        return
    labels = tensor(np.array([0, -1, 3, -100], np.int32))
    value, (slope,) = ADAPTER.differentiate(
        lambda p: graph(lambda x, t: ADAPTER.loss(spec.replace(reduction="none"), x, t), p, labels),
        (tensor(X),),
        None,
    )
    np.testing.assert_array_equal(np.isnan(numpy(value)), [False, True, True, True])
    np.testing.assert_array_equal(np.isnan(numpy(slope)).all(1), [False, True, True, True])
    assert np.isfinite(numpy(slope)[0]).all()


def test_clipping() -> None:
    """epsilon clips to [epsilon, 1 - epsilon], with gradient 0 outside and -1/p on the bound.

    Without epsilon, p = 0 costs infinity.
    """
    probabilities = np.float32([[0, 0.5, 0.5]])
    clipped = CE(epsilon=1e-7)
    np.testing.assert_allclose(loss(clipped, probabilities, [0]), 16.118095, rtol=1e-6)
    assert not gradient(clipped, probabilities, [0]).any()
    assert np.isposinf(loss(CE(), probabilities, [0]))
    assert np.isneginf(gradient(CE(), probabilities, [0])[0, 0])
    bound = np.float32(2.0**-20)  # exact in float32
    slope = gradient(CE(epsilon=float(bound)), np.float32([[bound, 1 - bound]]), [0])
    np.testing.assert_allclose(slope, [[-1 / bound, 0]], rtol=1e-6)
    assert not gradient(BCE(epsilon=1e-7), np.float32([0, 1]), np.float32([1, 0])).any()


def test_nothing_is_renormalized() -> None:
    """Rows of probabilities are not renormalized, and a number that is no probability raises."""
    np.testing.assert_allclose(
        loss(CE(), np.float32([[0.4, 0.2, 0.2]]), [0]), -np.log(0.4), rtol=1e-6
    )
    with pytest.raises(BadValueError, match="from_logits=True"):
        eagerly(CE(), np.float32([[2, 1, 1]]), [0])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_numbers_given_are_used(compiled: bool) -> None:
    """The losses read the probabilities that they are given.

    Keras' own losses on TensorFlow find the softmax or sigmoid behind them and use its logits.
    """
    run = graph if compiled else lambda function, *arguments: function(*arguments)
    softmax, sigmoid = keras.ops.softmax, keras.ops.sigmoid
    hot = tensor(np.float32([[100, 0]]))
    second, no = tensor(np.array([1])), tensor(np.float32([[0, 1]]))
    logits = np.array([[3.0, 1.0]])
    of_softmax, of_sigmoid = CE(from_logits=True), BCE(from_logits=True)

    def losses(hot: Any, z: Any, second: Any, no: Any) -> list[Any]:
        # One program, because each takes a second to trace on torch.
        return [
            ADAPTER.loss(CE(), softmax(hot), second),
            ADAPTER.loss(BCE(), sigmoid(hot), no),
            ADAPTER.loss(of_softmax, softmax(z), second),
            ADAPTER.loss(of_sigmoid, sigmoid(z), no),
        ]

    *infinite, by_softmax, by_sigmoid = map(
        numpy, run(losses, hot, tensor(np.float32(logits)), second, no)
    )
    assert np.isposinf(infinite).all()
    for spec, value, targets, by_hand in (
        (of_softmax, by_softmax, second, ul.softmax(logits)),
        (of_sigmoid, by_sigmoid, no, 1 / (1 + np.exp(-logits))),
    ):
        np.testing.assert_allclose(value, spec(by_hand, wide(numpy(targets))), rtol=1e-6)


def test_binary_logits_of_any_size() -> None:
    """Logits are never clipped: 100 costs 100, where Keras' own loss on NumPy gives 15.942385."""
    spec = BCE(from_logits=True, reduction="none")
    np.testing.assert_allclose(loss(spec, np.float32([100, -100]), [0.0, 1.0]), [100, 100])
    assert (loss(spec, np.float32([100, -100]), [1.0, 0.0]) < 1e-40).all()
    np.testing.assert_allclose(
        loss(spec, np.float32([20, -20]), [1.0, 0.0]), np.exp(-20.0), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("pos_weight", "smoothing", "compiled"),
    [(None, 0.0, False), (3.0, 0.2, False), (None, 0.2, True), (3.0, 0.0, True)],
)
def test_binary_gradient(pos_weight: float | None, smoothing: float, compiled: bool) -> None:
    """The gradient is (1 - t' - q t') / 2 at logit 0 and sigma - t at infinite logits.

    Hand-written formulas give 0 or 1 at logit 0, and NaN at infinite logits.
    """
    spec = BCE(from_logits=True, pos_weight=pos_weight, label_smoothing=smoothing, reduction="sum")
    logits = np.tile(np.float32([0, 100, -100, np.inf, -np.inf]), (3, 1))
    targets = np.repeat(np.float32([[0], [0.25], [1]]), 5, axis=1)
    t, q = (1 - smoothing) * targets + smoothing / 2, 1.0 if pos_weight is None else pos_weight
    sigma = np.array([0.5, 1, 0, 1, 0])
    if compiled and COMPILES:

        def value(p: Any) -> Any:
            return graph(lambda x, t: ADAPTER.loss(spec, x, t), p, tensor(targets))

        _, (slope,) = ADAPTER.differentiate(value, (tensor(logits),), None)
        found = numpy(slope)
    else:
        found = gradient(spec, logits, targets)
    np.testing.assert_allclose(found, (1 - t) * sigma - q * t * (1 - sigma), rtol=1e-6, atol=1e-7)


def test_binary_loss_at_infinity() -> None:
    """An infinite logit costs 0 where the label agrees and infinity where it does not."""
    spec = BCE(from_logits=True, reduction="none")
    logits = np.float32([np.inf, -np.inf, np.inf, -np.inf, np.inf])
    targets = np.float32([1, 0, 0, 1, 0.5])
    np.testing.assert_array_equal(loss(spec, logits, targets), [0, 0, np.inf, np.inf, np.inf])


def test_class_axis_must_be_named() -> None:
    """With three or more axes the class axis must be named, because torch uses 1 and Keras -1."""
    logits = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    labels = np.array([[0, 1, 2], [2, 1, 0]])
    with pytest.raises(SpecValueError, match="torch uses axis=1"):
        eagerly(CE(from_logits=True), logits, labels)
    for axis, wanted in ((1, 3.050946), (-1, 1.407606)):
        np.testing.assert_allclose(
            loss(CE(from_logits=True, axis=axis), logits, labels), wanted, rtol=2e-6
        )


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_class_axis_in_the_middle(dense: bool, smoothing: float) -> None:
    """K is the extent of the class axis, wherever that is.

    Keras takes K from the last axis, and supports no other axis for indices on three backends.
    """
    logits = RNG.normal(size=(4, 3, 2)).astype(np.float32)
    targets = RNG.random((4, 3, 2)).astype(np.float32) if dense else RNG.integers(0, 3, (4, 2))
    spec = CE(from_logits=True, axis=1, label_smoothing=smoothing, class_weights=W)
    wanted, slope = expected(spec, logits, targets)
    np.testing.assert_allclose(loss(spec, logits, targets), wanted, rtol=2e-6)
    np.testing.assert_allclose(gradient(spec, logits, targets), slope, rtol=2e-5, atol=1e-7)


def test_smoothing_before_class_weights() -> None:
    """Targets are smoothed first and weighted after, as in torch."""
    spec = CE(from_logits=True, class_weights=W, label_smoothing=0.1, reduction="none")
    np.testing.assert_allclose(loss(spec, X, Y)[0], 0.795287, rtol=2e-6)


def test_squared_error_counts_elements() -> None:
    """The reduction is over elements, not over means of rows; weights multiply before it."""
    square = np.float32([[1, 2], [3, 4]])
    assert loss(MSE(reduction="sum"), square, np.zeros((2, 2), np.float32)) == 30
    weights = np.float32([1, 3])
    assert loss(MSE(), np.float32([1, 2]), np.zeros(2, np.float32), sample_weight=weights) == 3.25
    rows = np.float32([[1, 1], [2, 2]])
    zeros = np.zeros_like(rows)
    np.testing.assert_array_equal(
        loss(MSE(reduction="none"), rows, zeros, sample_weight=weights), [[1, 1], [12, 12]]
    )
    assert loss(MSE(), rows, zeros, sample_weight=weights) == 3.25


def test_labels_are_never_rounded() -> None:
    """Label 257 beside bfloat16 predictions is not cast to their dtype, as 256 (keras#15012)."""
    logits = np.zeros((1, 300), np.float32)
    logits[0, 257] = 10
    predictions = keras.ops.cast(tensor(logits), "bfloat16")
    np.testing.assert_allclose(
        numpy(CE(from_logits=True).to("keras")(np.array([257]), predictions)), 0.013483, rtol=1e-4
    )


def test_large_offsets() -> None:
    """Logits are shifted by their maximum before anything is rounded."""
    np.testing.assert_allclose(
        loss(CE(from_logits=True), np.float32([[1e5 + 1, 1e5]]), [0]), 0.3132617, rtol=1e-6
    )


@pytest.mark.parametrize("dense", [False, True])
def test_minus_infinity_is_probability_zero(dense: bool) -> None:
    """A logit of -inf for a class with target 0 is probability 0 and adds nothing to the loss."""
    logits = np.float32([[2, -np.inf, 0]])
    targets = np.float32([[1, 0, 0]]) if dense else np.array([0])
    np.testing.assert_allclose(loss(CE(from_logits=True), logits, targets), 0.126928, rtol=1e-5)
    np.testing.assert_allclose(
        gradient(CE(from_logits=True), logits, targets), [[-0.119203, 0, 0.119203]], rtol=1e-5
    )


def test_dense_gradient_of_any_row_sum() -> None:
    """The gradient of a row with sum 2 is 2 p - t; TensorFlow assumes sum 1 (tensorflow#60314)."""
    np.testing.assert_allclose(
        gradient(CE(from_logits=True), X[:1], np.float32([[2, 0, 0]]))[0, 0], -0.669518, rtol=1e-5
    )


def test_dropped_positions_hide_everything() -> None:
    """NaN and bad labels at dropped or zero-weighted positions do not reach loss or gradient."""
    logits = np.concatenate([X, np.full((2, 3), np.nan, np.float32)])
    labels = np.concatenate([Y, [77, -5]])
    keep = np.arange(6) < 4
    spec = CE(from_logits=True)
    for companions in ({"mask": keep}, {"sample_weight": keep.astype(np.float32)}):
        np.testing.assert_allclose(loss(spec, logits, labels, **companions), 0.764189, rtol=1e-6)
        slope = gradient(spec, logits, labels, **companions)
        assert not slope[4:].any()
        np.testing.assert_allclose(slope[:4], expected(spec, X, Y)[1], rtol=1e-5)


def test_empty_batch() -> None:
    """An empty batch has an empty loss, sum 0 and mean NaN; Keras' own mean is an array."""
    logits, labels = np.zeros((0, 3), np.float32), np.zeros(0, int)
    assert loss(CE(from_logits=True, reduction="none"), logits, labels).shape == (0,)
    assert loss(CE(from_logits=True, reduction="sum"), logits, labels) == 0
    assert np.isnan(loss(CE(from_logits=True), logits, labels))


def test_softmax() -> None:
    """softmax of Keras' tensors gives 0 for subnormal values, and no warning for a single class."""
    np.testing.assert_allclose(
        numpy(ADAPTER.softmax(tensor(LOGITS), None)), PROBABILITIES, rtol=1e-6
    )
    assert numpy(ADAPTER.softmax(tensor(np.float32([[100, 0]])), None))[0, 1] == 0
    with np.errstate(all="raise"):
        row = numpy(ADAPTER.softmax(tensor(np.float32([[np.inf, 0]])), None))
    assert np.isnan(row).any()
    np.testing.assert_array_equal(
        numpy(ADAPTER.softmax(tensor(np.float32([[7], [1]])), None)), [[1], [1]]
    )


def test_upstream_is_shaped_like_the_loss() -> None:
    """The upstream gradient may be a Keras variable; one that does not fit gives our message."""
    z, y = keras.Variable(X), tensor(Y.astype(np.int32))
    _, gradient = CE(from_logits=True).value_and_grad(z, y)
    for two in (2, np.array(2), tensor(np.float32(2)), keras.Variable(2.0)):
        _, doubled = CE(from_logits=True).value_and_grad(z, y, upstream=two)
        np.testing.assert_allclose(numpy(doubled), 2 * numpy(gradient), rtol=1e-6)
    with pytest.raises(
        ShapeError,
        match=r"upstream must have the shape of the loss \(\), got \(4,\); nothing is broadcast",
    ):
        CE(from_logits=True).value_and_grad(z, y, upstream=np.ones(4))
    with pytest.raises(
        ShapeError, match=r"upstream must have the shape of the loss \(4,\), got \(\)"
    ):
        CE(from_logits=True, reduction="none").value_and_grad(z, y, upstream=2.0)
    with pytest.raises(DTypeError, match="upstream must be floating or integer, got bool; cast it"):
        CE(from_logits=True).value_and_grad(z, y, upstream=True)
    with pytest.raises(UnsupportedError, match="symbolic"):
        CE(from_logits=True).value_and_grad(z, y, upstream=keras.KerasTensor(()))


def test_masked_arrays_are_refused() -> None:
    """A numpy.ma array is refused by name, because a loss would not see its mask."""
    labels = np.ma.masked_array(Y, [True, False, False, False])
    with pytest.raises(UnknownTensorError, match=r"targets is a numpy\.ma.*mask="):
        CE(from_logits=True)(keras.Variable(X), labels)
    with pytest.raises(UnknownTensorError, match=r"targets is a numpy\.ma.*mask="):
        CE(from_logits=True).to("keras")(labels, tensor(X))


def test_a_configuration_without_a_spec() -> None:
    """A saved configuration that lacks its spec is an error of this library."""
    loss = type(ul.MeanSquaredError().to("keras"))
    for config in ({}, {"spec": None}, {"spec": {}, "name": "x"}):
        with pytest.raises(ul.SerializationError):
            loss.from_config(config)


# -------------------------------------------------------------------------------- owners of tensors


def test_owners() -> None:
    """Variables and symbolic tensors belong to Keras, plain tensors to the backend; both mix."""
    variable, symbolic, plain = keras.Variable(X), keras.KerasTensor((None, 3)), tensor(X)
    assert registry.adapter_for(variable, variable) is ADAPTER
    assert registry.adapter_for(symbolic, symbolic) is ADAPTER
    assert registry.adapter_for(plain, plain) is BACKEND
    assert registry.adapter_for(variable, tensor(Y)) is ADAPTER
    assert registry.adapter_for(plain, keras.Variable(Y, dtype="int32", trainable=False)) is ADAPTER
    np.testing.assert_allclose(numpy(CE(from_logits=True)(variable, Y)), 0.764189, rtol=1e-6)
    np.testing.assert_allclose(
        numpy(CE(from_logits=True)(plain, keras.Variable(Y, dtype="int32", trainable=False))),
        0.764189,
        rtol=1e-6,
    )


def test_other_frameworks_are_refused() -> None:
    """A tensor of another framework than Keras' backend raises instead of being copied."""
    other = "jax" if BACKEND.name != "jax" else "torch"
    labels = registry.adapter(other).convert(Y.astype(np.int32), None)
    with pytest.raises(MixedBackendsError):
        CE(from_logits=True)(keras.Variable(X), labels)


def test_value_and_grad_of_variables() -> None:
    """value_and_grad differentiates at the value of a variable and leaves it unchanged."""
    variable = keras.Variable(X)
    value, slope = CE(from_logits=True).value_and_grad(variable, Y, upstream=2.0)
    np.testing.assert_allclose(numpy(value), 0.764189, rtol=1e-6)
    np.testing.assert_allclose(numpy(slope), 2 * expected(CE(from_logits=True), X, Y)[1], rtol=1e-5)
    np.testing.assert_array_equal(numpy(variable.value), X)
    with pytest.raises(UnsupportedError, match="symbolic"):
        CE(from_logits=True).value_and_grad(
            keras.KerasTensor((None, 3)), keras.KerasTensor((None,), "int32")
        )


# --------------------------------------------------------------------------------- symbolic tensors


def test_symbolic_loss_is_a_node_of_a_model(tmp_path: Path) -> None:
    """A spec called on inputs of a functional model becomes a node of it and is saved with it."""
    logits, labels, weights = keras.Input((3,)), keras.Input((), dtype="int32"), keras.Input(())
    spec = CE(from_logits=True, class_weights=W)
    mean = spec(logits, labels, sample_weight=weights)
    rows = spec.replace(reduction="none")(logits, labels)
    probabilities = ul.softmax(logits)
    assert isinstance(mean, keras.KerasTensor)
    assert (mean.shape, rows.shape, probabilities.shape) == ((), (None,), (None, 3))
    model = keras.Model([logits, labels, weights], [mean, rows, probabilities])
    path = str(tmp_path / "model.keras")
    model.save(path)
    for candidate in (model, keras.saving.load_model(path)):
        for n in (4, 3):
            w = np.float32([1, 0, 3, 1])[:n]
            given = tensor(X[:n]), tensor(Y[:n].astype(np.int32)), tensor(w)
            outputs = _quickest(lambda *x, candidate=candidate: candidate(list(x)), *given)
            wanted = (
                expected(spec, X[:n], Y[:n], sample_weight=w)[0],
                spec.replace(reduction="none")(wide(X[:n]), Y[:n]),
                ul.softmax(X[:n]),
            )
            for output, value in zip(outputs, wanted, strict=True):
                np.testing.assert_allclose(numpy(output), value, rtol=1e-6)


def test_symbolic_shapes_are_checked_when_the_model_is_built() -> None:
    """Symbolic tensors meet the same rules and messages, as far as their shapes are known."""
    logits = keras.Input((3,))
    with pytest.raises(ShapeError, match=r"\(None, 3\)"):
        CE(from_logits=True)(logits, keras.Input((2,), dtype="int32"))
    with pytest.raises(DTypeError, match="bool"):
        CE(from_logits=True)(logits, keras.Input((), dtype="bool"))
    with pytest.raises(SpecValueError, match="name the class axis"):
        ul.softmax(keras.Input((3, 4)))


def test_unknown_shapes() -> None:
    """Losses are right with extents that are unknown when the function is compiled."""
    if BACKEND.name != "tensorflow":
        return  # the other backends know every shape when they compile
    spec = CE(from_logits=True, label_smoothing=0.1)
    unknown = [tf.TensorSpec([None, None]), tf.TensorSpec([None], tf.int64), tf.TensorSpec([None])]
    compiled = tf.function(lambda p, t, w: spec.to("keras")(t, p, w), input_signature=unknown)
    for n in (4, 2):
        w = np.float32([1, 2, 0, 4])[:n]
        np.testing.assert_allclose(
            compiled(X[:n], Y[:n], w), expected(spec, X[:n], Y[:n], sample_weight=w)[0], rtol=1e-6
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="class indices must have"):
        compiled(X, Y[:2], np.float32([1, 2]))


# --------------------------------------------------------------------------------- the Keras object


def test_object_takes_true_before_predicted() -> None:
    """The Keras object takes y_true before y_pred, as arrays, lists or tensors."""
    compiled = CE(from_logits=True).to("keras")
    for y_true in (Y, Y.tolist(), tensor(Y)):
        np.testing.assert_allclose(numpy(compiled(y_true, tensor(X))), 0.764189, rtol=1e-6)
    weights = np.float32([1, 0, 3, 1])
    np.testing.assert_allclose(
        numpy(compiled(Y, tensor(X), sample_weight=weights)), 0.387003, rtol=2e-6
    )
    np.testing.assert_allclose(numpy(compiled(Y, tensor(X), weights[:, None])), 0.387003, rtol=2e-6)
    np.testing.assert_allclose(
        numpy(compiled.call(Y, tensor(X))), [0.407606, 1.407606, 0.142932, 1.098612], rtol=1e-5
    )


def test_object_squeezes_as_documented() -> None:
    """The object squeezes exactly in the cases that the docstring of KerasLoss lists."""
    index, binary, error = (
        spec.to("keras") for spec in (CE(from_logits=True), BCE(from_logits=True), MSE())
    )
    column = tensor(X[:, :1])
    flat = tensor(X[:, 0])
    ones = np.float32([1, 0, 1, 0])
    np.testing.assert_allclose(numpy(index(Y[:, None], tensor(X))), 0.764189, rtol=1e-6)
    for compiled in (binary, error):
        wanted = numpy(compiled(ones[:, None], column))
        for y_true, y_pred in (
            (ones, column),
            (ones.astype(int), column),
            (ones[:, None], flat),
            (ones, flat),
        ):
            np.testing.assert_allclose(numpy(compiled(y_true, y_pred)), wanted, rtol=1e-6)
    sequence = tensor(RNG.normal(size=(2, 3, 4)).astype(np.float32))
    steps = np.array([[0, 1, 2], [3, 2, 1]])
    last = CE(from_logits=True, axis=-1).to("keras")
    np.testing.assert_array_equal(
        numpy(last(steps[..., None], sequence)), numpy(last(steps, sequence))
    )
    for compiled, y_true, y_pred in (
        (index, Y.astype(np.float32), tensor(X)),
        (index, Y[None], tensor(X)),
        (error, ones, tensor(X)),
        (error, ones[:1], flat),
        (error, X[:1], tensor(X)),
        (binary, ones[:, None, None], flat),
    ):
        with pytest.raises(ShapeError):
            compiled(y_true, y_pred)


def test_floating_labels_are_an_error_that_helps() -> None:
    """Floating labels are read as dense targets, and the message says what to cast them to."""
    with pytest.raises(
        ShapeError, match=r"for class indices use an integer dtype and the shape \(4,\)"
    ):
        CE(from_logits=True).to("keras")(Y.astype(np.float32), tensor(X))


def test_object_is_saved_by_its_spec() -> None:
    """The object's config holds the spec; its name in saved Keras files must never change."""
    spec = CE(from_logits=True, class_weights=W, ignore_index=[-100, 5], divisor="present")
    compiled = spec.to("keras")
    assert keras.saving.get_registered_name(KerasLoss) == "unifiedloss>KerasLoss"
    assert compiled.get_config() == {"name": "cross_entropy", "spec": spec.to_dict()}
    copies = [
        keras.losses.deserialize(keras.losses.serialize(compiled)),
        pickle.loads(pickle.dumps(compiled)),  # noqa: S301 - written in the same line
        copy.deepcopy(compiled),
    ]
    for other in copies:
        assert isinstance(other, KerasLoss)
        assert other.spec == spec
        assert other.name == compiled.name
        np.testing.assert_allclose(numpy(other(Y, tensor(X))), numpy(compiled(Y, tensor(X))))
    assert (compiled.reduction, compiled.dtype) == ("mean", "float32")
    assert repr(compiled) == f"KerasLoss({spec!r})"


def test_global_mean_is_saved() -> None:
    """The config has it only where it is set, a copy keeps it, and one program has the mean."""
    spec = CE(from_logits=True)
    wanted = numpy(spec.to("keras")(Y, tensor(X)))
    compiled = spec.to("keras", global_mean=True)
    config = {"name": "cross_entropy", "spec": spec.to_dict(), "global_mean": True}
    assert compiled.get_config() == config
    for other in (
        keras.losses.deserialize(keras.losses.serialize(compiled)),
        pickle.loads(pickle.dumps(compiled)),  # noqa: S301 - written in the same line
        copy.deepcopy(compiled),
    ):
        assert other.global_mean
        np.testing.assert_array_equal(numpy(other(Y, tensor(X))), wanted)
    assert repr(compiled) == f"KerasLoss({spec!r}, global_mean=True)"
    assert not KerasLoss.from_config({"name": "a", "spec": spec.to_dict()}).global_mean


def test_global_mean_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec that is no mean, another backend, and processes that Keras does not reach."""
    with pytest.raises(SpecValueError, match="global_mean is for a mean"):
        CE(from_logits=True, reduction="sum").to("keras", global_mean=True)
    with pytest.raises(UnsupportedError, match=r"this is 'numpy': give each call divisor="):
        CE(from_logits=True).to("numpy", global_mean=True)
    if BACKEND.name == "torch":
        from unifiedloss.adapters.torch import processes

        monkeypatch.setattr(processes, "count", lambda: 3)
        with pytest.raises(UnsupportedError, match="does not reach the other 2 processes"):
            CE(from_logits=True).to("keras", global_mean=True)(Y, tensor(X))


# ----------------------------------------------------------------------------------------- training

FEATURES, SPECIES = load_iris(return_X_y=True)
FEATURES, SPECIES = FEATURES[::2].astype(np.float32), SPECIES[::2]
ONE_HOT = np.eye(3, dtype=np.float32)[SPECIES]
IS_FIRST = SPECIES == 0
EXAMPLE_WEIGHTS = np.linspace(0, 2, len(SPECIES), dtype=np.float32)
BATCH = 32  # three batches, the last of 11


class Linear:
    """A linear model trained by gradient descent in NumPy, to compare with the same in Keras."""

    def __init__(self, spec: Any, kernel: Array, bias: Array) -> None:
        self.spec, self.kernel, self.bias = spec, kernel.astype(np.float64), bias.astype(np.float64)

    def epoch(self, targets: Array, weights: Array | None, rate: float = 0.1) -> float:
        """Train for one epoch, and return the loss as Keras averages it."""
        total = 0.0
        for start in range(0, len(FEATURES), BATCH):
            part = slice(start, start + BATCH)
            x = wide(FEATURES[part])
            w = None if weights is None else weights[part]
            z = x @ self.kernel + self.bias
            value, slope = expected(self.spec, z, targets[part], sample_weight=w)
            total += float(value) * len(x)
            self.kernel -= rate * x.T @ slope
            self.bias -= rate * slope.sum(0)
        return total / len(FEATURES)


def linear(spec: Any, units: int, **settings: Any) -> keras.Model:
    """The same linear model in Keras."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
    model.compile(keras.optimizers.SGD(0.1), loss=spec.to("keras"), **settings)
    return model


TRAININGS: dict[str, tuple[Any, Array, int, dict[str, Any], dict[str, Any]]] = {
    "indices": (CE(from_logits=True), SPECIES, 3, {}, {}),
    "column": (CE(from_logits=True, label_smoothing=0.1), SPECIES[:, None], 3, {}, {}),
    "one-hot": (CE(from_logits=True), ONE_HOT, 3, {}, {"sample_weight": EXAMPLE_WEIGHTS}),
    "class_weight": (
        CE(from_logits=True),
        SPECIES,
        3,
        {},
        {"class_weight": {0: 1.0, 1: 2.0, 2: 4.0}},
    ),
    "ignored": (
        CE(from_logits=True, ignore_index=1),
        SPECIES,
        3,
        {"jit_compile": BACKEND.name == "jax"},
        {},
    ),
    "binary": (
        BCE(from_logits=True, pos_weight=2.0),
        IS_FIRST.astype(np.float32)[:, None],
        1,
        {},
        {},
    ),
    "squared": (
        MSE(),
        SPECIES.astype(np.float64)[:, None],
        1,
        {},
        {"sample_weight": EXAMPLE_WEIGHTS},
    ),
}
if BACKEND.name == "tensorflow":
    TRAININGS["eager"] = (
        CE(from_logits=True),
        SPECIES,
        3,
        {"run_eagerly": True},
        {"sample_weight": EXAMPLE_WEIGHTS},
    )
    TRAININGS["xla"] = (CE(from_logits=True), SPECIES, 3, {"jit_compile": True}, {})


@pytest.mark.parametrize("name", TRAININGS)
def test_training(name: str) -> None:
    """Loss and weights after an epoch, with a partial last batch, are NumPy's in float64."""
    spec, targets, units, settings, fitting = TRAININGS[name]
    model = linear(spec, units, **settings)
    reference = Linear(spec, *map(np.asarray, model.get_weights()))
    plain = targets[:, 0] if name == "column" else targets
    weights = fitting.get("sample_weight")
    if "class_weight" in fitting:
        weights = np.array([fitting["class_weight"][label] for label in targets])
    if COMPILES:
        history = model.fit(
            FEATURES, targets, batch_size=BATCH, shuffle=False, verbose=0, **fitting
        ).history
        np.testing.assert_allclose(history["loss"], [reference.epoch(plain, weights)], rtol=1e-5)
        np.testing.assert_allclose(model.get_weights()[0], reference.kernel, rtol=1e-3, atol=1e-4)
    if not COMPILES or name == "indices":
        evaluated = model.evaluate(
            FEATURES, targets, batch_size=BATCH, verbose=0, sample_weight=weights
        )
        np.testing.assert_allclose(evaluated, reference.epoch(plain, weights, rate=0.0), rtol=1e-4)


def test_targets_of_other_shapes_train() -> None:
    """Targets (N,) fit an output (N, 1), as in Keras' own losses; a metric runs beside the loss."""
    model = linear(BCE(from_logits=True), 1, metrics=["accuracy"])
    value, _ = model.evaluate(FEATURES, IS_FIRST.astype(np.int32), batch_size=75, verbose=0)
    wanted, _ = expected(BCE(from_logits=True), numpy(model(FEATURES))[:, 0], IS_FIRST)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_probabilities_train() -> None:
    """A model with a softmax at its end learns from its probabilities."""
    keras.utils.set_random_seed(0)
    # Of one scale, so that a few steps are enough from any start.
    features = (FEATURES - FEATURES.mean(0)) / FEATURES.std(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.5), loss=CE().to("keras"), metrics=["accuracy"])
    before = float(CE()(numpy(model(features)), SPECIES))
    if COMPILES:
        model.fit(features, SPECIES, epochs=8, batch_size=75, verbose=0)
    after, accuracy = model.evaluate(features, SPECIES, batch_size=75, verbose=0)
    np.testing.assert_allclose(after, float(CE()(numpy(model(features)), SPECIES)), rtol=1e-4)
    if COMPILES:
        assert after < 0.5 * before
        assert accuracy > 0.8


def test_bad_label_in_training() -> None:
    """A label out of range raises in an eager step, and makes the loss NaN in a compiled one."""
    with pytest.raises(BadValueError, match=r"is 3: not a class index in 0..2"):
        linear(CE(from_logits=True), 3, run_eagerly=True).evaluate(FEATURES, SPECIES + 1, verbose=0)
    if BACKEND.name in ("tensorflow", "jax"):  # steps on the other backends are always eager
        history = linear(CE(from_logits=True), 3).fit(FEATURES, SPECIES + 1, verbose=0).history
        assert np.isnan(history["loss"]).all()


def test_model_is_saved_with_its_loss(tmp_path: Path) -> None:
    """A loaded model is compiled with the same spec and evaluates to the same number."""
    spec = CE(from_logits=True, label_smoothing=0.1, class_weights=W)
    model = linear(spec, 3)
    path = str(tmp_path / "model.keras")
    before = model.evaluate(FEATURES, SPECIES, verbose=0)
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.loss.spec == spec
    assert loaded.evaluate(FEATURES, SPECIES, verbose=0) == before


def test_losses_of_several_outputs() -> None:
    """A model may have a weighted loss for each output, with its own targets and weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    outputs = {
        "species": keras.layers.Dense(3, name="species")(inputs),
        "width": keras.layers.Dense(1, name="width")(inputs),
    }
    model = keras.Model(inputs, outputs)
    specs = {"species": CE(from_logits=True), "width": MSE()}
    model.compile(
        "sgd",
        loss={name: spec.to("keras") for name, spec in specs.items()},
        loss_weights={"species": 1.0, "width": 0.5},
    )
    targets = {"species": SPECIES, "width": FEATURES[:, 3]}
    weights = {"species": EXAMPLE_WEIGHTS, "width": np.ones_like(EXAMPLE_WEIGHTS)}
    values = model.evaluate(
        FEATURES, targets, sample_weight=weights, batch_size=75, verbose=0, return_dict=True
    )
    predicted = {name: numpy(output) for name, output in model(FEATURES).items()}
    species, _ = expected(
        specs["species"], predicted["species"], SPECIES, sample_weight=EXAMPLE_WEIGHTS
    )
    width, _ = expected(specs["width"], predicted["width"][:, 0], FEATURES[:, 3])
    np.testing.assert_allclose(values["species_loss"], species, rtol=1e-4)
    np.testing.assert_allclose(values["loss"], species + 0.5 * width, rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy: str) -> None:
    """Half predictions give a float32 loss."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype=policy)])
    spec = CE(from_logits=True)
    model.compile("sgd", loss=spec.to("keras"))
    output = model(FEATURES)
    assert ADAPTER.dtype_name(output.dtype) == policy.removeprefix("mixed_")
    value = spec.to("keras")(SPECIES, output)
    assert ADAPTER.dtype_name(value.dtype) == "float32"
    np.testing.assert_allclose(numpy(value), expected(spec, numpy(output), SPECIES)[0], rtol=1e-6)
    # Under mixed_float16 Keras scales the loss up and the gradients down.
    if COMPILES and policy == "mixed_float16":
        assert np.isfinite(model.fit(FEATURES, SPECIES, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_masks_of_layers(weighted: bool) -> None:
    """A layer's mask drops time steps, whatever their labels, and the spec's divisor applies."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Masking()(inputs)))
    spec = CE(from_logits=True, axis=-1)
    model.compile("sgd", loss=spec.to("keras"))
    steps = FEATURES.reshape(25, 3, 4).copy()
    labels = SPECIES.reshape(25, 3).copy()
    kept = np.arange(75).reshape(25, 3) % 4 != 1
    steps[~kept] = 0
    labels[~kept] = 99
    weights = EXAMPLE_WEIGHTS[:25] if weighted else None
    wanted = expected(spec, numpy(model(steps)), labels, sample_weight=weights, mask=kept)[0]
    step = model.train_on_batch if COMPILES else model.test_on_batch
    np.testing.assert_allclose(step(steps, labels, sample_weight=weights), wanted, rtol=1e-5)


def test_loss_inside_a_layer() -> None:
    """add_loss takes the value of a spec."""

    class Penalty(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            self.add_loss(MSE()(x, keras.ops.zeros_like(x)))
            return x

    layer = Penalty()
    layer(tensor(X))
    np.testing.assert_allclose(numpy(layer.losses[0]), np.mean(X**2), rtol=1e-6)


@cache  # a second strategy would number its collectives as the first one does
def replicated(count: int) -> Any:
    """A strategy with logical CPUs as replicas."""
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])


def test_replicas_share_the_mean() -> None:
    """Two replicas under tf.distribute learn what one learns: each adds its share of the mean.

    Keras' own losses do the same.
    """
    if BACKEND.name != "tensorflow":
        return  # only TensorFlow has tf.distribute
    learnt = []
    for count in (1, 2):
        with replicated(count).scope():
            model = linear(CE(from_logits=True), 3)
        loss = model.fit(
            FEATURES[:64], SPECIES[:64], batch_size=32, shuffle=False, verbose=0
        ).history["loss"]
        learnt.append([loss, *model.get_weights()])
    for one, two in zip(*learnt, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_replicas_share_the_global_mean() -> None:
    """With `global_mean` replicas with unlike numbers of labels learn from the mean of all.

    The last batch has 11 rows, of which one replica has 6.
    """
    if BACKEND.name != "tensorflow":
        return
    spec, labels = CE(from_logits=True, ignore_index=-100), SPECIES.copy()
    labels[:12] = -100
    labels[33:46] = -100
    with replicated(2).scope():
        model = linear(spec, 3)
        model.compile(keras.optimizers.SGD(0.1), loss=spec.to("keras", global_mean=True))
    reference = Linear(spec, *map(np.asarray, model.get_weights()))
    fitting = {"sample_weight": EXAMPLE_WEIGHTS, "batch_size": BATCH, "shuffle": False}
    model.fit(FEATURES, labels, verbose=0, **fitting)
    reference.epoch(labels, EXAMPLE_WEIGHTS)
    np.testing.assert_allclose(model.get_weights()[0], reference.kernel, rtol=1e-3, atol=1e-4)


def test_columns() -> None:
    """A column (N, 1), into which Keras turns a pandas Series, is read as (N,)."""
    values = [
        linear(CE(from_logits=True), 3).evaluate(FEATURES, y_true, sample_weight=w, verbose=0)
        for y_true, w in ((SPECIES, EXAMPLE_WEIGHTS), (SPECIES[:, None], EXAMPLE_WEIGHTS[:, None]))
    ]
    assert values[0] == values[1]


def test_targets_may_change_their_rank() -> None:
    """Targets may alternate between (N,) and (N, 1).

    On TensorFlow their rank is unknown then, and Keras' own losses fail.
    """
    model = linear(MSE(), 1)
    values = [
        model.evaluate(FEATURES, SPECIES.reshape(shape), sample_weight=w, verbose=0)
        for shape, w in (
            ((75,), None),
            ((75, 1), None),
            ((75,), None),
            ((75,), EXAMPLE_WEIGHTS),
            ((75, 1), EXAMPLE_WEIGHTS),
        )
    ]
    np.testing.assert_allclose(values[:3], values[0])
    np.testing.assert_allclose(values[3], values[4])


# --------------------------------------------------------------------------------------- exact mode

EXACT = CE(from_logits=True, rounding="exact")


def bits(x: Any) -> bytes:
    """Shape, dtype and bytes of a tensor or array; bytes distinguish -0 and subnormal numbers."""
    array = x if isinstance(x, np.ndarray | np.generic) else numpy(x)
    return bytes(str((array.shape, array.dtype)), "ascii") + array.tobytes()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", [2, 12, 18, 20, 22, 26])
@pytest.mark.slow(
    "three kinds of loss, and all on Keras' other backends",
    only=["12-True", "18-True", "26-True"] if BACKEND.name == "torch" else [],
)
def test_exact_bits_are_numpys(case: int, compiled: bool) -> None:
    """Every kind of loss has NumPy's bits, with and without weights and a mask."""
    spec, predictions, targets = CASES[case]
    spec = spec.replace(rounding="exact")
    run = graph if compiled else lambda function, *arguments: function(*arguments)
    both = {}, {"sample_weight": WEIGHTS, "mask": MASK}

    def losses(p: Any) -> list[Any]:
        return [ADAPTER.loss(spec, p, targets, **companions) for companions in both]

    for companions, value in zip(both, run(losses, tensor(predictions)), strict=True):
        wanted, wanted_slope = spec.value_and_grad(predictions, targets, **companions)
        assert bits(value) == bits(wanted)
        if not compiled:
            again, slope = ADAPTER.value_and_grad(spec, tensor(predictions), targets, **companions)
            assert (bits(again), bits(slope)) == (bits(wanted), bits(wanted_slope))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_exact_half_predictions(dtype: str) -> None:
    """Half predictions give a float32 mean and a gradient that is rounded once."""
    given = keras.ops.cast(tensor(LOGITS), dtype)
    value, slope = ADAPTER.value_and_grad(EXACT, given, LABELS)
    wanted, wanted_slope = EXACT.value_and_grad(
        registry.adapter("numpy").tensor(numpy(given), dtype), LABELS
    )
    assert bits(value) == bits(wanted)
    assert ADAPTER.dtype_name(slope.dtype) == dtype
    assert bits(numpy(slope).astype(np.float64)) == bits(wanted_slope.astype(np.float64))


def test_exact_upstream_in_any_dtype() -> None:
    """value_and_grad takes all digits of the upstream gradient, where a tape would round it."""
    spec = ul.MeanSquaredError(reduction="sum", rounding="exact")
    p, t = np.float32([1, 2, 3]), np.zeros(3, np.float32)
    variable = keras.Variable(p)
    assert numpy(spec(variable, tensor(t))) == 14
    _, gradient = spec.value_and_grad(variable, tensor(t), upstream=1.00000006)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(gradient), spec.value_and_grad(p, t, upstream=1.00000006)[1]
    )


def test_exact_subnormal_numbers() -> None:
    """The subnormal loss of logits (100, 0), 3.8e-44, survives on every backend."""
    for run in (graph, lambda function, *arguments: function(*arguments)):
        loss = run(lambda z: ADAPTER.loss(EXACT, z, np.array([0])), tensor(np.float32([[100, 0]])))
        assert numpy(loss).view(np.uint32) == 27


@pytest.mark.parametrize("settings", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("name", ["indices", "column", "one-hot", "binary"])
def test_exact_training(name: str, settings: dict[str, Any]) -> None:
    """Keras trains with an exact loss, in its default mode and eagerly."""
    spec, targets, units, _, fitting = TRAININGS[name]
    exact = spec.replace(rounding="exact")
    model = linear(exact, units, **settings)
    reference = Linear(spec, *map(np.asarray, model.get_weights()))
    plain = targets[:, 0] if name == "column" else targets
    if COMPILES:
        history = model.fit(
            FEATURES, targets, batch_size=BATCH, shuffle=False, verbose=0, **fitting
        ).history
        np.testing.assert_allclose(
            history["loss"], [reference.epoch(plain, fitting.get("sample_weight"))], rtol=1e-5
        )
        np.testing.assert_allclose(model.get_weights()[0], reference.kernel, rtol=1e-3, atol=1e-4)
    evaluated = model.evaluate(FEATURES, targets, batch_size=len(FEATURES), verbose=0)
    outputs = numpy(
        keras.ops.convert_to_tensor(model.predict(FEATURES, batch_size=len(FEATURES), verbose=0))
    )
    # Keras multiplies the loss by the number of examples and divides it again, which rounds.
    np.testing.assert_allclose(evaluated, exact(outputs, plain), rtol=3e-7)


def test_exact_model_is_saved(tmp_path: Path) -> None:
    """A loaded model keeps its exact loss, as its compiled loss and as a node of the model."""
    model = linear(EXACT, 3)
    before = model.evaluate(FEATURES, SPECIES, batch_size=75, verbose=0)
    model.save(tmp_path / "compiled.keras")
    loaded = keras.saving.load_model(tmp_path / "compiled.keras")
    assert loaded.loss.spec == EXACT
    assert loaded.evaluate(FEATURES, SPECIES, batch_size=75, verbose=0) == before
    logits, labels = keras.Input((3,)), keras.Input((), dtype="int32")
    rows = EXACT.replace(reduction="none")(logits, labels)
    assert (rows.shape, EXACT(logits, labels).shape) == ((None,), ())
    keras.Model([logits, labels], [rows, EXACT(logits, labels)]).save(tmp_path / "node.keras")
    node = keras.saving.load_model(tmp_path / "node.keras")
    outputs = node([tensor(X), tensor(Y.astype(np.int32))])
    wanted = (EXACT.replace(reduction="none")(X, Y), EXACT(X, Y))
    assert [bits(x) for x in outputs] == [bits(x) for x in wanted]


def test_exact_bad_label() -> None:
    """A bad label raises in an eager step, and makes the loss NaN in a compiled one."""
    with pytest.raises(BadValueError, match=r"is 3: not a class index in 0..2"):
        linear(EXACT, 3, run_eagerly=True).evaluate(FEATURES, SPECIES + 1, verbose=0)
    if BACKEND.name in ("tensorflow", "jax"):
        history = linear(EXACT, 3).fit(FEATURES, SPECIES + 1, verbose=0).history
        assert np.isnan(history["loss"]).all()


def test_exact_further_derivatives_on_torch() -> None:
    """On torch, all derivatives but the first one to the predictions are native ones."""
    if BACKEND.name != "torch":
        return
    import torch

    def derivatives(rounding: str) -> list[Any]:
        spec = CE(from_logits=True, class_weights=W, divisor="weights", rounding=rounding)
        arrays = X, np.abs(X), X[:, 0] + 1
        z, t, w = (torch.tensor(x, requires_grad=True) for x in arrays)
        first = torch.autograd.grad(
            spec.to("keras")(t, z, sample_weight=w), (z, t, w), create_graph=True
        )
        jacrev = torch.func.jacrev
        hessian = jacrev(jacrev(lambda z: spec.to("keras")(t.detach(), z)))(z.detach())
        return [*first, *torch.autograd.grad(first[0], (z, t, w), tensor(X)), hessian]

    for found, wanted in zip(derivatives("exact"), derivatives("native"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6)


def test_exact_further_derivatives_on_tensorflow() -> None:
    """On TensorFlow too, the object has native gradients to weights and second derivatives."""
    if BACKEND.name != "tensorflow":
        return
    import tensorflow as tf

    def derivatives(rounding: str) -> list[Any]:
        loss = CE(from_logits=True, divisor="weights", rounding=rounding).to("keras")
        z, w = tensor(X), tensor(X[:, 0] + 1)
        with tf.GradientTape() as outer:
            outer.watch([z, w])
            with tf.GradientTape() as inner:
                inner.watch([z, w])
                value = loss(tensor(Y), z, sample_weight=w)
            slope, by_weight = inner.gradient(value, [z, w])
            total = tf.reduce_sum(slope**2)
        return [slope, by_weight, *outer.gradient(total, [z, w])]

    for found, wanted in zip(derivatives("exact"), derivatives("native"), strict=True):
        np.testing.assert_allclose(numpy(found), numpy(wanted), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["squared", "index"])
@pytest.mark.slow("the squared error, which takes the same way", only=["index"])
def test_exact_under_xla(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact loss under jit_compile is traced once, also where the last batch is shorter.

    Training has the same bits as without XLA, because the model only multiplies by powers of 2.
    Rows are not computed again in balls, which take long to compile.
    """
    if BACKEND.name != "tensorflow":
        return
    from unifiedloss.exact.graph.call import GraphCall

    monkeypatch.setattr(GraphCall, "mended", lambda _, found: found)
    spec, targets = (EXACT, Y[:3]) if kind == "index" else (MSE(rounding="exact"), X[:3])
    traces = []

    class Counted(KerasLoss):
        def __call__(self, *tensors: Any, **settings: Any) -> Any:
            traces.append(1)
            return super().__call__(*tensors, **settings)

    features, weights = np.float32([[1], [2], [-0.5]]), np.float32([0.3, 2, 0.7])
    found = []
    for jit_compile in (True, False):
        traces.clear()
        layer = keras.layers.Dense(3, use_bias=False, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((1,)), layer])
        optimizer = keras.optimizers.SGD(0.25)
        model.compile(optimizer, loss=Counted(spec), jit_compile=jit_compile)
        history = model.fit(
            features, targets, sample_weight=weights, batch_size=2, shuffle=False, verbose=0
        )
        found.append((history.history["loss"], layer.kernel.numpy().tobytes(), len(traces)))
    assert found[0] == found[1]


def test_exact_mixed_precision() -> None:
    """Training in mixed_float16, where Keras scales the loss up, gives finite losses."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="mixed_float16")])
    model.compile("sgd", loss=EXACT.to("keras"))
    if COMPILES:
        assert np.isfinite(model.fit(FEATURES, SPECIES, verbose=0).history["loss"]).all()


def test_exact_replicas() -> None:
    """Under tf.distribute each replica calls the host for its own part."""
    if BACKEND.name != "tensorflow":
        return
    with replicated(2).scope():
        model = linear(EXACT, 3)
    reference = Linear(EXACT.replace(rounding="native"), *map(np.asarray, model.get_weights()))
    part = slice(0, BATCH)
    history = model.fit(
        FEATURES[part], SPECIES[part], batch_size=BATCH, shuffle=False, verbose=0
    ).history
    value, _ = expected(
        reference.spec, wide(FEATURES[part]) @ reference.kernel + reference.bias, SPECIES[part]
    )
    np.testing.assert_allclose(history["loss"], [value], rtol=1e-5)
