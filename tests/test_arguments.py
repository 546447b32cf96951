"""Every backend checks the arguments of a call and refuses bad ones with the same messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import registry

BACKENDS = [
    pytest.param(name, marks=pytest.mark.framework(name))
    for name in ("numpy", "torch", "tensorflow", "jax")
]

X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2], np.int32)
DENSE = ul.softmax(X)
CE = ul.CrossEntropyLoss(from_logits=True)

# Calls on the fast paths of the backends, and one on the general path.
CALLS: list[tuple[Any, Any]] = [
    (CE, Y),
    (CE, Y.astype(np.int64)),
    (CE.replace(label_smoothing=0.1), Y),
    (ul.BinaryCrossEntropyLoss(from_logits=True), DENSE),
    (ul.MeanSquaredError(), DENSE),
]

SHAPE = "upstream must have the shape of the loss"
DTYPE = "upstream must be floating or integer"

UPSTREAMS: list[tuple[str, Any, type[Exception], str]] = [
    ("mean", np.ones(4), ul.ShapeError, rf"{SHAPE} \(\), got \(4,\); nothing is broadcast\."),
    ("sum", [2.0], ul.ShapeError, rf"{SHAPE} \(\), got \(1,\); nothing is broadcast\."),
    ("none", 2.0, ul.ShapeError, rf"{SHAPE} \(4,.*\), got \(\); nothing is broadcast\."),
    ("none", np.ones((4, 1)), ul.ShapeError, rf"{SHAPE} \(4,.*\), got \(4, 1\)"),
    ("mean", True, ul.DTypeError, rf"{DTYPE}, got bool; cast it\."),
    ("mean", 1j, ul.UnifiedLossError, "upstream"),
    ("sum", np.array(1j), ul.DTypeError, rf"{DTYPE}, got complex128; cast it\."),
    ("none", np.array([True, False, True, True]), ul.DTypeError, f"{DTYPE}, got bool"),
    ("sum", np.array("1"), ul.DTypeError, f"{DTYPE}, got str"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spec", "targets"), CALLS, ids=repr)
def test_upstream_is_shaped_like_the_loss(backend: str, spec: Any, targets: Any) -> None:
    """An upstream gradient of another shape or kind is refused, as a number, list or tensor."""
    adapter = registry.adapter(backend)
    z, t = adapter.tensor(X), adapter.tensor(targets)
    for reduction, upstream, error, message in UPSTREAMS:
        with pytest.raises(error, match=message):
            spec.replace(reduction=reduction).value_and_grad(z, t, upstream=upstream)
    with pytest.raises(ul.ShapeError, match=SHAPE):
        spec.value_and_grad(z, t, upstream=adapter.tensor(np.ones(4, np.float32)))
    with pytest.raises(ul.DTypeError, match=f"{DTYPE}, got bool"):
        spec.value_and_grad(z, t, upstream=adapter.tensor(np.array([True])[0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("spec", "targets"), CALLS, ids=repr)
def test_upstream_in_every_form(backend: str, spec: Any, targets: Any) -> None:
    """Numbers, scalar arrays, lists and tensors of any real dtype scale the gradient alike."""
    adapter = registry.adapter(backend)
    z, t = adapter.tensor(X), adapter.tensor(targets)

    def gradient(reduction: Any, upstream: Any) -> Any:
        return adapter.to_numpy(
            spec.replace(reduction=reduction).value_and_grad(z, t, upstream=upstream)[1]
        )

    for reduction in ("mean", "sum"):
        expected = 2 * gradient(reduction, None)
        for two in (2, 2.0, np.float64(2), np.array(2), adapter.tensor(np.array(2, np.float32))):
            np.testing.assert_allclose(gradient(reduction, two), expected, rtol=1e-6, atol=1e-7)
    shape = spec.replace(reduction="none")(X, targets).shape
    above = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    factor = above[:, None] if above.ndim == 1 else above
    expected = gradient("none", None) * factor
    for several in (
        above,
        above.tolist(),
        above.astype(np.float64),
        adapter.tensor(above.astype(np.float32)),
    ):
        np.testing.assert_allclose(gradient("none", several), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.framework("tensorflow")
def test_upstream_of_unknown_shape() -> None:
    """A TensorFlow graph checks a shape unknown at trace time when it runs."""
    tf: Any = pytest.importorskip("tensorflow")
    spec = CE.replace(reduction="none")
    signature = [tf.TensorSpec([None, 3]), tf.TensorSpec([None], tf.int32), tf.TensorSpec(None)]

    @tf.function(autograph=False, input_signature=signature)  # type: ignore[untyped-decorator]
    def gradient(z: Any, y: Any, upstream: Any) -> Any:
        return spec.value_and_grad(z, y, upstream=upstream)[1]

    above = np.float32([1, 2, 3, 4])
    _, expected = spec.value_and_grad(X, Y, upstream=above)
    np.testing.assert_allclose(gradient(X, Y, above), expected, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match=SHAPE):
        gradient(X, Y, above[:1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_arrays_are_refused(backend: str) -> None:
    """A numpy.ma array is refused by name, because a loss would not see its mask.

    The message says to pass the mask as `mask=`.
    """
    adapter = registry.adapter(backend)
    hidden = np.array([True, False, False, False])
    masked = {
        "predictions": np.ma.masked_array(X, np.broadcast_to(hidden[:, None], X.shape)),
        "targets": np.ma.masked_array(Y, hidden),
        "sample_weight": np.ma.masked_array(np.ones(4), hidden),
        "mask": np.ma.masked_array(~hidden, hidden),
        "upstream": np.ma.masked_array(1.0, mask=True),
    }
    plain: dict[str, Any] = {"predictions": adapter.tensor(X), "targets": adapter.tensor(Y)}
    for name, x in masked.items():
        message = f"{name} is a numpy.ma.*MaskedArray, .*mask="
        with pytest.raises(ul.UnknownTensorError, match=message):
            adapter.value_and_grad(CE, **(plain | {name: x}))
        if name == "upstream":
            continue
        with pytest.raises(ul.UnknownTensorError, match=message):
            adapter.loss(CE, **(plain | {name: x}))
        with pytest.raises(ul.UnknownTensorError, match=message):
            CE(**(plain | {name: x}))
        with pytest.raises(ul.UnknownTensorError, match=message):
            ul.check(CE, **(plain | {name: x}))
    with pytest.raises(ul.UnknownTensorError, match=r"logits is a numpy\.ma"):
        adapter.softmax(masked["predictions"], None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("axis", "shown"), [(1.0, "1.0 of type float"), (True, "True of type bool")]
)
def test_softmax_axis_is_an_int(backend: str, axis: Any, shown: str) -> None:
    """1.0 and True are refused, also after a call with axis 1, to which they are equal."""
    logits = registry.adapter(backend).tensor(X)
    assert tuple(ul.softmax(logits, axis=np.int64(1)).shape) == X.shape
    with pytest.raises(ul.SpecTypeError, match=f"axis must be an int, got {shown}"):
        ul.softmax(logits, axis=axis)


class Column:
    """A column of a table, as pandas, polars, xarray and pyarrow have it: NumPy can read it."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """The numbers."""
        return np.array(self.values, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_columns_of_tables_accompany_tensors(backend: str) -> None:
    """Labels, weights and masks may be columns of tables, and dense targets whole tables."""
    adapter = registry.adapter(backend)
    z, weight, mask = adapter.tensor(X), np.array([1.0, 2, 0, 3]), Y > 0
    for targets in (Y, DENSE):
        expected = CE(z, adapter.tensor(targets), sample_weight=weight, mask=mask)
        columns = {"sample_weight": Column(weight), "mask": Column(mask)}
        assert float(CE(z, Column(targets), **columns)) == float(expected)
    each = CE.replace(reduction="none")
    _, wanted = each.value_and_grad(z, Y, upstream=weight)
    _, gradient = each.value_and_grad(z, Column(Y), upstream=Column(weight))
    np.testing.assert_array_equal(adapter.to_numpy(gradient), adapter.to_numpy(wanted))
    with pytest.raises(ul.UnknownTensorError, match=r"predictions is a .*Column, which no backend"):
        CE(Column(X), z)
    with pytest.raises(ul.DTypeError, match="object"):
        CE(z, Column(["a", None, "b", "c"]))


def test_series_of_pandas() -> None:
    """A Series is read whatever its index says, and missing numbers are refused."""
    pandas = pytest.importorskip("pandas")
    labels = pandas.Series(Y, index=[7, 3, 5, 1])
    assert CE(X, labels) == CE(X, Y)
    # NumPy reads the missing number as NaN or as an object, by the version of pandas.
    with pytest.raises((ul.ShapeError, ul.DTypeError)):
        CE(X, pandas.Series([0, None, 1, 2], dtype="Int64"))


def test_check_takes_specs_alone() -> None:
    """`check` takes a spec or an object from `spec.to`, and refuses anything else by name."""
    with pytest.raises(ul.BadValueError, match=r"targets\[3\] is 7"):
        ul.check(CE.to("numpy"), X, np.array([0, 1, 1, 7]))
    impostor = type("Impostor", (), {"spec": "a spec"})()
    for loss in (
        impostor,
        ul.cross_entropy_loss,
        "torch.nn.CrossEntropyLoss()",
        ul.CrossEntropyLoss,
        None,
    ):
        with pytest.raises(
            ul.SpecTypeError, match=r"spec must be a spec, .* got .*; ul\.from_native converts"
        ):
            ul.check(loss, X, Y)  # type: ignore[arg-type]


P = np.full((4, 3), 0.25, np.float32)
LEAST = float(np.finfo(np.float32).tiny)
VALUES: dict[str, tuple[Any, Any, Any, dict[str, Any], str | None]] = {
    # name: spec, predictions, targets, companions, the message of the error or None
    "a label at K - 1": (CE, X, np.array([0, 1, 2, 2]), {}, None),
    "a label at K": (CE, X, np.array([0, 1, 2, 3]), {}, r"targets\[3\] is 3: .* index in 0\.\.2;"),
    "an integer target at the limit": (
        ul.MeanSquaredError(),
        np.ones(2),
        np.array([-(2**53), 2**53]),
        {},
        None,
    ),
    "an integer target beyond": (
        ul.MeanSquaredError(),
        np.ones(2),
        np.array([-(2**53) - 1, 0]),
        {},
        r"targets\[0\] is -9007199254740993",
    ),
    "a bad label under the smallest weight that counts": (
        CE,
        X,
        np.array([9, 1, 2, 0]),
        {"sample_weight": np.array([LEAST, 1, 1, 1], np.float32)},
        r"targets\[0\] is 9",
    ),
    "a probability at minus the smallest number": (
        ul.CrossEntropyLoss(),
        np.array([[-LEAST, 1.0]], np.float32),
        [0],
        {},
        r"predictions\[0, 0\] is -1\.17549435e-38",
    ),
    "a binary target at minus the smallest number": (
        ul.BinaryCrossEntropyLoss(),
        P[0],
        np.array([0, -LEAST, 1], np.float32),
        {},
        r"targets\[1\] is -1\.17549435e-38",
    ),
    "an unread probability, dense": (
        ul.CrossEntropyLoss(),
        np.array([[7.0, 0.5]]),
        np.array([[0.0, 1.0]]),
        {},
        None,
    ),
    "a probability under the smallest target that is read": (
        ul.CrossEntropyLoss(),
        np.array([[7, 0.5]], np.float32),
        np.array([[LEAST, 1.0]], np.float32),
        {},
        r"predictions\[0, 0\] is 7",
    ),
    "an unread probability, smoothed": (
        ul.CrossEntropyLoss(label_smoothing=0.1),
        np.array([[7.0, 0.5]]),
        np.array([[0.0, 1.0]]),
        {},
        r"predictions\[0, 0\] is 7",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_at_their_limits(name: str) -> None:
    """The first number beyond a limit is refused and named, and the last one within is not."""
    spec, predictions, targets, companions, message = VALUES[name]
    if message is None:
        spec(predictions, targets, **companions)
    else:
        with pytest.raises(ul.BadValueError, match=message):
            spec(predictions, targets, **companions)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("targets", "empty"),
    [
        ([[0, 0], [1, 0], [0, 0.5]], False),
        ([[0, 1], [0, 0], [0, 0]], True),
        ([[LEAST, 1], [0, 1], [0, 1]], False),
        ([[LEAST / 2, 1], [0, 1], [0, 1]], True),
    ],
)
def test_an_empty_mean_of_dense_targets(axis: int, targets: Any, empty: bool) -> None:
    """A mean of dense targets is empty where no target has a class whose weight is not 0."""
    spec = CE.replace(axis=axis, class_weights=(3, 0), on_empty="error", divisor="nonzero")
    t = np.array(targets, np.float32)
    z, t = (np.moveaxis(x, 1, axis) for x in (X[:3, :2], t))
    if empty:
        with pytest.raises(ul.EmptyMeanError):
            spec(z, t)
    else:
        assert np.isfinite(spec(z, t))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [ul.MeanSquaredError, ul.HuberLoss])
def test_named_dtype_reads_subnormal_numbers_as_0(backend: str, loss: Any) -> None:
    """Numbers that are subnormal in the dtype that a spec names are 0 in every framework.

    So are the gradients that would be as small. The conformance suite cannot see them, because its
    bound admits what a framework loses to underflow.
    """
    spec = loss(reduction="sum", dtype="float32")
    small = np.array([0.75 * 2.0**-126, -0.75 * 2.0**-126])
    adapter = registry.adapter(backend)
    for p, t in ((small, np.zeros(2)), (np.zeros(2), small)):
        _, gradient = adapter.value_and_grad(spec, p, t)
        assert adapter.to_numpy(gradient).tolist() == [0, 0]
