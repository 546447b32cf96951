"""Where losses differ: 43 differences that bite those who switch, each named by a diff, and the list of what no spec can say, run.

The rows are those of the table of disagreements that this library was made against; the numbers were measured there by calling the
frameworks directly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests.switching_grid import check_deviations
from unifiedloss.switching import LIBRARY_LOSSES
from unifiedloss.switching.diff import Diff, diff
from unifiedloss.switching.library_loss import Call
from unifiedloss.switching.quirk import keyed
from unifiedloss.switching.quirks import QUIRKS
from unifiedloss.switching.refusals import of_arguments
from unifiedloss.switching.sides import Input, Outcome, Side, side_of

ALL = pytest.mark.framework("numpy", "torch", "tensorflow", "keras", "jax")
NAN, ERROR = float("nan"), "error"

X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2])
ONE_HOT = np.eye(3, dtype=np.float32)[Y]
W = np.array([1, 0, 3, 1], np.float32)


def f32(values: Any) -> Any:
    """An array of float32."""
    return np.array(values, np.float32)


CE = "torch.nn.CrossEntropyLoss()"
WEIGHTED = "torch.nn.CrossEntropyLoss(weight=[1, 2, 4])"
BCE_LOGITS = "torch.nn.BCEWithLogitsLoss()"
SPARSE = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
IGNORING = "keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100)"
OPTAX = "optax.losses.softmax_cross_entropy_with_integer_labels"
TF_SPARSE = "tf.nn.sparse_softmax_cross_entropy_with_logits"
KERAS_MSE = "keras.losses.MeanSquaredError()"
FIT = ul.CrossEntropyLoss(
    from_logits=True, class_weights=(1, 2, 4), class_weighting="position", divisor="all"
)
"""What fit(class_weight=...) of Keras makes of the loss."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        number: its number there.
        a: one loss; so is `b`.
        b: the other.
        rule: the rule that the diff has to name.
        values: what the two give, on the row's own tensors where it has any, else on the example of the diff; their mean, where the row
            means it. None where the table gives no number.
        tensors: predictions, targets and sample weights, or a pair of these, one for each loss.
        gradients: whether `values` are first entries of gradients.
        backend: what Keras must run on.
    """

    number: int
    a: Any
    b: Any
    rule: str
    values: tuple[Any, Any] | None = None
    tensors: Any = None
    gradients: bool = False
    backend: str = "tensorflow"


SQUARES = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
STEPS = f32([[[1], [1]], [[2], [2]]])
BCE_KERAS = "keras{}.losses.BinaryCrossentropy()"
ROWS = [
    Row(1, WEIGHTED, FIT, "divisor", (0.878126, 1.975783), (X, Y)),
    Row(2, WEIGHTED, ul.CrossEntropyLoss(from_logits=True, axis=1, class_weights=(1, 2, 4), ignore_index=-100), "divisor",
        (1.975783, 0.878126), (X, ONE_HOT)),
    Row(3, SPARSE, "tf.compat.v1.losses.sparse_softmax_cross_entropy", "divisor", (0.483753, 0.645004), (X, Y, W)),
    Row(4, CE, OPTAX, "ignore_index", (0.971275, NAN), (X, np.array([0, 1, -100, 2]))),
    Row(5, IGNORING, "functools.partial(keras.losses.sparse_categorical_crossentropy, from_logits=True, ignore_class=-100)",
        "reduction", (0.549717, 0.412287), (X, np.array([0, -100, 1, 2]))),
    Row(6, CE, IGNORING, "on_empty", (NAN, 0.0), (X, np.full(4, -100))),
    Row(7, OPTAX, CE, "bad_index", (2.407606, ERROR), (X[:1], np.array([-1]))),
    Row(8, OPTAX, CE, "bad_index", (NAN, ERROR), (X[:1], np.array([3]))),
    # Three rows in which every class occurs, as scikit-learn asks for; two of them cost 1e-7.
    Row(9, "keras.losses.CategoricalCrossentropy()", "sklearn.metrics.log_loss", "epsilon", (16.1181 / 3, 15.9424 / 3),
        (f32([[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]]), np.array([0, 1, 2]))),
    Row(10, "torch.nn.BCELoss()", BCE_KERAS.format(""), "epsilon", (-1e12, 0.0), gradients=True),
    Row(11, BCE_KERAS.format("[jax]"), BCE_KERAS.format("[torch]"), "clip_tie", (-5e6, -1e7), gradients=True, backend="jax"),
    Row(12, "keras[torch].losses.SparseCategoricalCrossentropy()", "keras.losses.SparseCategoricalCrossentropy()", "renormalize",
        (0.693147, 1.098612), (f32([[2, 1, 1]]), np.array([0]))),
    Row(13, "keras.losses.CategoricalCrossentropy()", "keras[torch].losses.CategoricalCrossentropy()", "hidden_logits", (100.0, 16.1181)),
    Row(14, BCE_KERAS.format(""), BCE_KERAS.format("[torch]"), "hidden_logits_in_a_graph", (100.0, 15.942385)),
    Row(15, "keras[numpy].losses.BinaryCrossentropy(from_logits=True)", BCE_LOGITS, "clipped_sigmoid", (15.942385, 100.0),
        backend="numpy"),
    Row(16, CE, SPARSE, "axis", (3.050946, 1.407606), (SQUARES, np.array([[0, 1, 2], [0, 1, 2]]))),
    Row(17, "keras.losses.CategoricalCrossentropy(from_logits=True, axis=1, label_smoothing=0.3)",
        ul.CrossEntropyLoss(from_logits=True, axis=1, label_smoothing=0.3), "smoothing_axis"),
    Row(18, "torch.nn.CrossEntropyLoss(weight=[1, 2, 4], label_smoothing=0.1)",
        FIT.replace(label_smoothing=0.1, axis=1, divisor="label_weights", ignore_index=-100), "class_weighting",
        (0.795287, 0.507606), (X[:1], Y[:1])),
    Row(19, "torch.nn.MSELoss()", KERAS_MSE, "shapes", (1.333333, 0.0), (f32([[1], [2], [3]]), f32([1, 2, 3]))),
    Row(20, "optax.losses.sigmoid_binary_cross_entropy", BCE_LOGITS, "shapes", ((2, 2), ERROR), (f32([[1], [2]]), f32([0, 1]))),
    Row(21, 'torch.nn.MSELoss(reduction="sum")', 'keras.losses.MeanSquaredError(reduction="sum")', "average_last_axis", (30.0, 15.0)),
    Row(22, KERAS_MSE, "functools.partial(torch.nn.functional.mse_loss, weight=[1, 3])", "one_axis", (5.0, 3.25),
        ((f32([1, 2]), f32([0, 0]), f32([1, 3])), (f32([1, 2]), f32([0, 0])))),
    Row(23, 'keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")', ul.MeanSquaredError(average_last_axis=True),
        "mean_with_sample_weight", (9.75, 3.25)),
    Row(24, 'keras.losses.MeanSquaredError(reduction="none")', ul.MeanSquaredError(average_last_axis=True, reduction="none"),
        "weight_alignment", ([[1, 3], [4, 12]], [[1, 1], [12, 12]]), (STEPS, 0 * STEPS, f32([1, 3]))),
    Row(25, 'keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")', CE, "half_dtype", (10.0, 0.013483)),
    Row(26, 'keras.losses.MeanSquaredError(dtype="float16")', "torch.nn.MSELoss()", "half_dtype", (0.0, 0.25)),
    Row(27, 'keras.losses.MeanSquaredError(dtype="float16")', "torch.nn.MSELoss()", "half_dtype", (NAN, 1.0),
        (np.ones((70000, 1), np.float32), np.zeros((70000, 1), np.float32))),
    Row(28, OPTAX, CE, "offset", (0.3125, 0.313262)),
    Row(29, CE, ul.CrossEntropyLoss(from_logits=True, axis=1), "confident_row", (0.0, 3.05e-8)),
    Row(30, "optax.losses.softmax_cross_entropy", "optax.losses.safe_softmax_cross_entropy", "zero_times_infinity", (NAN, 0.126928)),
    Row(31, CE, "tf.nn.softmax_cross_entropy_with_logits", "target_sum", (-0.669518, -1.334759), gradients=True),
    Row(32, CE, IGNORING, "nan_in_ignored", (NAN, 0.0), (f32([[NAN, NAN, NAN], [2, 1, 0]]), np.array([-100, 0])), gradients=True),
    Row(33, "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=1)", "tf.nn.sigmoid_cross_entropy_with_logits",
        "gradient_at_zero", (1.0, 0.5), gradients=True),
    Row(34, "optax.losses.sigmoid_binary_cross_entropy", ul.BinaryCrossEntropyLoss(from_logits=True), "infinite_logit", (NAN, 0.0)),
    Row(35, "functools.partial(torch.nn.functional.mse_loss, weight=[1, 3])", "torch.nn.BCELoss(weight=[1, 3])", "divisor",
        (3.25, 1.386294), ((f32([1, 2]), f32([0, 0])), (f32([0.5, 0.5]), f32([1, 1])))),
    Row(36, "keras.losses.SparseCategoricalCrossentropy()", CE, "from_logits", (0.794514, 0.764189), (X, Y)),
    Row(37, "torch.nn.CrossEntropyLoss(label_smoothing=1.5)", "keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=1.5)",
        "smoothing_range", (ERROR, None), (X[:1], ONE_HOT[:1])),
    Row(38, CE, "tf.nn.softmax_cross_entropy_with_logits", "target_kind", (ERROR, 0.407606)),
    Row(39, CE, OPTAX, "float64", (np.float64, np.float32)),
    Row(40, TF_SPARSE, CE, "compiled_checks", (NAN, ERROR)),
    Row(41, CE, ul.CrossEntropyLoss(from_logits=True, axis=1, ignore_index=-100, divisor="all"), "divisor"),
    Row(42, CE, TF_SPARSE, "half_rounding"),
    Row(43, "optax.losses.softmax_cross_entropy", "tf.nn.softmax_cross_entropy_with_logits", "sign_of_zero", (-0.0, 0.0)),
]  # fmt: skip

HERE = [row for row in ROWS if row.backend == "tensorflow"]
ELSEWHERE = [row for row in ROWS if row.backend != "tensorflow"]


@cache
def found(a: Any, b: Any) -> Diff:
    """A diff, made once for the rows that share it."""
    return diff(a, b)


def outcomes(row: Row, difference: Any) -> tuple[Outcome, Outcome]:
    """What the two losses of a row make of its tensors, or of the diff's example."""
    if row.tensors is None:
        assert difference.example is not None, difference
        return difference.example.a, difference.example.b
    one, other = row.tensors if isinstance(row.tensors[0], tuple) else (row.tensors, row.tensors)
    return side_of(row.a).outcome(Input(*one)), side_of(row.b).outcome(Input(*other))


def check(outcome: Outcome, expected: Any, *, gradients: bool) -> None:
    """Whether an outcome is what the table has."""
    if expected == ERROR or expected is None:
        assert (outcome.value is None) == (expected == ERROR), outcome
        return
    assert outcome.value is not None, outcome
    if isinstance(expected, type):
        assert outcome.value.dtype == expected
    elif isinstance(expected, tuple):
        assert outcome.value.shape == expected
    elif isinstance(expected, list):
        np.testing.assert_allclose(outcome.value, expected)
    else:
        values = np.asarray(outcome.gradient if gradients else outcome.value, np.float64).ravel()
        value = values[0] if gradients or values.size == 1 else values.mean()
        # The table has six digits.
        np.testing.assert_allclose(
            float(value), expected, rtol=5e-5, atol=1e-7 if expected else 0.0
        )
        if expected == 0.0 and not gradients:
            assert np.signbit(value) == np.signbit(expected)


@ALL
@pytest.mark.parametrize("row", HERE, ids=lambda row: f"{row.number}-{row.rule}")
def test_row(row: Row) -> None:
    """The diff of two losses names the rule, and the numbers are those of the table."""
    difference = found(row.a, row.b)[row.rule]
    assert difference.a != difference.b
    if row.values is not None:
        for outcome, expected in zip(outcomes(row, difference), row.values, strict=True):
            check(outcome, expected, gradients=row.gradients)


@ALL
@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: f"{row.number}-{row.rule}")
def test_row_on_another_backend_of_keras(row: Row) -> None:
    """The diff names the rule here too; tests/keras_switching_checks.py compares the numbers where Keras runs on that framework."""
    difference = found(row.a, row.b)[row.rule]
    assert difference.a != difference.b


def test_every_row_is_there() -> None:
    """All 43, each once."""
    assert [row.number for row in ROWS] == list(range(1, 44))


@ALL
def test_means_of_batches() -> None:
    """Row 41: the mean of the means of two batches is not the mean of both, where the divisor counts what is not dropped."""
    labels = np.array([0, 1, 1, -100])
    side = side_of(CE)
    whole = side.outcome(Input(X, labels)).value
    parts = [side.outcome(Input(X[half], labels[half])).value for half in (slice(2), slice(2, 4))]
    np.testing.assert_allclose([np.mean(parts), whole], [0.525269, 0.652714], rtol=5e-6)
    by_count = side_of(found(CE, ROWS[40].b) and ROWS[40].b)
    parts = [
        by_count.outcome(Input(X[half], labels[half])).value for half in (slice(2), slice(2, 4))
    ]
    np.testing.assert_allclose(np.mean(parts), by_count.outcome(Input(X, labels)).value, rtol=1e-6)


@ALL
def test_half_rounding_in_bfloat16() -> None:
    """Row 42 is of bfloat16, which the diff shows in float16: NumPy has that of its own."""
    import tensorflow as tf
    import torch

    logits = [[1.0, 3.0, -1.0]]
    by_torch = torch.nn.CrossEntropyLoss()(
        torch.tensor(logits, dtype=torch.bfloat16), torch.tensor([1])
    )
    by_tf = tf.nn.sparse_softmax_cross_entropy_with_logits([1], tf.constant(logits, tf.bfloat16))
    assert [round(float(by_torch), 6), round(float(by_tf[0]), 6)] == [0.145508, 0.138672]
    example = found(CE, TF_SPARSE)["half_rounding"].example
    assert example is not None
    assert example.a.ran == example.b.ran == "native"


# ------------------------------------------------------------------------------------------- what no spec can say, in the list


def importable() -> list[Call]:
    """Every loss of the tables, with logits where it has the choice."""
    calls = []
    for name, native in LIBRARY_LOSSES.items():
        arguments: list[dict[str, Any]] = [{}]
        if "from_logits" in native.parameters:
            arguments.append({"from_logits": True})
        if name == "tf.nn.weighted_cross_entropy_with_logits":
            arguments = [{"pos_weight": 1.0}]
        calls += [
            Call(name, given, "tensorflow" if native.library == "keras" else None)
            for given in arguments
        ]
    return calls


@ALL
@pytest.mark.parametrize(
    "call", importable(), ids=lambda call: f"{call.name}-{len(call.arguments)}"
)
def test_list_of_deviations_is_true(call: Call) -> None:
    """A loss differs from its spec on the inputs of exactly those rules that are listed for it."""
    assert len(check_deviations(call, QUIRKS)) > 2


@ALL
@pytest.mark.parametrize("loss", ["SparseCategoricalCrossentropy", "CategoricalCrossentropy"])
def test_sample_weights_of_classes(loss: str) -> None:
    """One number per example scales the steps in Keras, a weight of 0 does not hide NaN, and an axis of length 1 is broadcast."""
    text = f"keras.losses.{loss}(from_logits=True)"
    listed = found(text, ul.from_native(text))
    for rule in ("weight_alignment", "nan_in_weightless", "weight_shape"):
        example = listed[rule].example
        assert example is not None
        assert example.a.ran == "native"
    aligned = listed["weight_alignment"].example
    assert aligned is not None
    assert [round(float(side.value), 5) for side in (aligned.a, aligned.b)] == [2.27404, 2.46724]  # type: ignore[arg-type]


@ALL
def test_class_without_weight_at_minus_infinity() -> None:
    """PyTorch multiplies the infinite loss of a label by its class weight of 0; a spec does not read it."""
    text = "torch.nn.CrossEntropyLoss(weight=[2.0, 0.0, 1.0])"
    example = found(text, ul.from_native(text))["weightless_infinity"].example
    assert example is not None
    assert example.a.ran == "native"
    assert np.isnan(example.a.value)  # type: ignore[arg-type]
    assert round(float(example.b.value), 6) == 0.407606  # type: ignore[arg-type]


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "weight": [{"weight": weights} for weights in ((2.0, 0.0, 1.0), (0.0, 0.0, 0.0))],
    "weights": [{"weights": weights} for weights in ((2.0, 0.0, 1.0), (0.0, 0.0, 0.0))],
    "pos_weight": [
        {"pos_weight": weight} for weight in (1e-9, 1e-40, (1.0, 2.0), (0.1, 2.0), (((2.0,),),))
    ],
    "label_smoothing": [{"label_smoothing": 0.1}],
    "ignore_index": [{"ignore_index": 2}],
    "ignore_class": [{"ignore_class": 2}],
    "epsilon": [{"epsilon": 0.0}],
    "normalize": [{"normalize": False}],
}
"""Arguments that some rules are about, by one that a loss must have."""


def settings() -> list[Call]:
    """Every loss with the arguments that some rules are about."""
    calls = []
    for call in importable():
        native = LIBRARY_LOSSES[call.name]
        found = [
            given
            for name, choices in SETTINGS.items()
            if name in native.parameters
            for given in choices
        ]
        if native.library == "tensorflow":
            # A tuple would be weights of one call.
            found = [given for given in found if "weights" not in given]
        if {"weight", "label_smoothing"} <= native.parameters.keys():
            found.append({"weight": (2.0, 0.0, 1.0), "label_smoothing": 0.1})
        if (
            native.loss in (ul.BinaryCrossEntropyLoss, ul.MeanSquaredError)
            and native.library == "torch"
        ):
            found += [
                {"weight": weights}
                for weights in ((1.0, 0.0), (0.0, 0.0), (0.1, 2.0))
                if "weight" in native.parameters
            ]
        if "reduction" in native.parameters:
            tensorflow = native.library == "tensorflow"
            found += [
                {"reduction": name}
                for name in (("weighted_sum", "weighted_mean") if tensorflow else ("sum",))
            ]
        calls += [Call(call.name, {**call.arguments, **given}, call.backend) for given in found]
    return [call for call in calls if side_of(call).spec is not None]


@ALL
def test_list_of_deviations_is_true_of_settings() -> None:
    """So it is of the rules that are about losses with certain arguments; each of them is tried."""
    rules = [quirk for quirk in QUIRKS if quirk.when is not None]
    seen: set[str] = set()
    for call in settings():
        plain = next(other for other in importable() if other.name == call.name)
        spec = side_of(plain).spec
        assert spec is not None
        # Those that the loss has in any case were tried above.
        seen |= check_deviations(call, [rule for rule in rules if not rule.concerns(spec, plain)])
    plain_sides = [(side_of(call).spec, call) for call in importable()]
    for rule in rules:
        assert rule.name in seen or any(
            spec and rule.concerns(spec, call) for spec, call in plain_sides
        ), rule.name


def test_listed_names_are_losses() -> None:
    """No entry of the list is about a loss that does not exist."""
    calls = importable()
    names = [
        keyed(Call(call.name, backend=backend))
        for call in calls
        for backend in ("numpy", "torch", "tensorflow", "jax")
    ]
    for quirk in QUIRKS:
        for prefix in quirk.libraries:
            assert any(name.startswith(prefix) for name in names), (quirk.name, prefix)
    assert len({refusal.name for refusal in of_arguments}) == len(of_arguments)


@pytest.mark.parametrize("refusal", of_arguments, ids=lambda refusal: refusal.name)
def test_refused_arguments_are_refused(refusal: Any) -> None:
    """What the list says no spec can say is not imported, and the nearest call is."""
    texts = {
        "mean_with_sample_weight": 'keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")',
        "half_dtype": 'keras.losses.MeanSquaredError(dtype="float16")',
        "smoothing_axis": "keras.losses.CategoricalCrossentropy(axis=1, label_smoothing=0.1)",
        "averaged_axis": "keras.losses.BinaryCrossentropy(axis=1)",
        "clipped_sigmoid": "keras[numpy].losses.BinaryCrossentropy(from_logits=True)",
        "smoothing_range": "torch.nn.CrossEntropyLoss(label_smoothing=1.5)",
    }
    side = side_of(texts[refusal.name])
    assert side.spec is None
    assert side.call is not None
    with pytest.raises((ul.UnsupportedError, ul.SpecValueError)):
        ul.from_native(texts[refusal.name])
    assert refusal.applies(side.call)
    assert not refusal.applies(refusal.closest(side.call))
    ul.from_native(refusal.closest(side.call))


# ------------------------------------------------------------------------------------------------------------ between specs

SPECS: list[ul.spec.AnyLoss] = [  # type: ignore[name-defined]
    ul.CrossEntropyLoss(from_logits=True),
    ul.CrossEntropyLoss(
        epsilon="keras",
        renormalize="before_clip",
        dtype="float32",
        on_empty="zero",
        divisor="present",
    ),
    ul.CrossEntropyLoss(
        from_logits=True,
        axis=1,
        class_weights=(1, 2),
        label_smoothing=0.1,
        ignore_index=(-1, 1),
        scale=2,
    ),
    ul.CrossEntropyLoss(
        from_logits=True,
        axis=2,
        class_weights=(1, 2, 3, 4),
        class_weighting="position",
        label_smoothing=0.2,
    ),
    ul.BinaryCrossEntropyLoss(),
    ul.BinaryCrossEntropyLoss(
        from_logits=True,
        pos_weight=(2, 3),
        axis=-2,
        element_weights=[[[1, 2], [3, 4]]],
        reduction="sum",
    ),
    ul.BinaryCrossEntropyLoss(
        epsilon=1e-3,
        epsilon_added=True,
        average_last_axis=True,
        label_smoothing=0.1,
        rounding="exact",
    ),
    ul.MeanSquaredError(),
    ul.MeanSquaredError(element_weights=(1, 0, 3), divisor="nonzero", scale=0.5, dtype="float64"),
    ul.NegativeLogLikelihoodLoss(
        class_weights=(1, 2, 4), ignore_index=-100, divisor="label_weights"
    ),
]


@pytest.mark.parametrize(
    ("a", "b"), list(combinations(SPECS, 2)), ids=lambda spec: type(spec).__name__
)
def test_no_difference_is_silent(a: Any, b: Any) -> None:
    """Every field in which two specs differ is listed, no other, and its example differs."""
    differences = ul.diff(a, b)
    shared = {field.name for field in fields(a)} & {field.name for field in fields(b)}
    expected = {name for name in shared if getattr(a, name) != getattr(b, name)}
    if type(a) is not type(b):
        expected.add("loss")
        for spec in (a, b):
            expected |= {
                field.name
                for field in fields(spec)
                if field.name not in shared and getattr(spec, field.name) != field.default
            }
    assert {difference.rule for difference in differences} == expected
    for difference in differences:
        assert difference.a != difference.b
        assert (difference.example is None) <= (
            difference.note is not None or difference.rule == "loss" or type(a) is not type(b)
        )


FIELDS = [
    (ul.CrossEntropyLoss(from_logits=True), "reduction", "sum"),
    (ul.CrossEntropyLoss(from_logits=True), "divisor", "all"),
    (ul.CrossEntropyLoss(from_logits=True), "axis", 1),
    (ul.CrossEntropyLoss(from_logits=True), "class_weights", (1, 2, 4)),
    (
        ul.CrossEntropyLoss(from_logits=True, class_weights=(1, 2), label_smoothing=0.1),
        "class_weighting",
        "position",
    ),
    (ul.CrossEntropyLoss(from_logits=True), "ignore_index", -100),
    (ul.CrossEntropyLoss(from_logits=True), "label_smoothing", 0.1),
    (ul.CrossEntropyLoss(from_logits=True), "on_empty", "zero"),
    (ul.CrossEntropyLoss(from_logits=True), "scale", 0.5),
    (ul.CrossEntropyLoss(from_logits=True), "dtype", "float32"),
    (ul.CrossEntropyLoss(), "epsilon", "keras"),
    (ul.CrossEntropyLoss(epsilon="keras", renormalize="before_clip"), "renormalize", "after_clip"),
    (ul.CrossEntropyLoss(), "from_logits", True),
    (ul.BinaryCrossEntropyLoss(), "from_logits", True),
    (ul.BinaryCrossEntropyLoss(), "epsilon", "torch"),
    (ul.BinaryCrossEntropyLoss(epsilon=1e-7), "epsilon_added", True),
    (ul.BinaryCrossEntropyLoss(from_logits=True), "pos_weight", 2.0),
    (ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=(1, 2)), "axis", -2),
    (ul.BinaryCrossEntropyLoss(reduction="sum"), "average_last_axis", True),
    (ul.BinaryCrossEntropyLoss(), "element_weights", (1, 2)),
    (ul.MeanSquaredError(reduction="sum"), "element_weights", 2.0),
    (ul.NegativeLogLikelihoodLoss(), "class_weights", (1, 2, 4)),
]


@pytest.mark.parametrize(("spec", "field", "value"), FIELDS, ids=lambda x: str(x)[:40])
def test_field_is_isolated(spec: Any, field: str, value: Any) -> None:
    """Where one field differs, a small input shows it with two outcomes that differ."""
    differences = ul.diff(spec, spec.replace(**{field: value}))
    assert [difference.rule for difference in differences] == [field]
    example = differences[field].example
    assert example is not None
    assert example.alone is None
    assert example.input.predictions.size <= 9


def test_what_is_the_same_has_no_difference() -> None:
    """A loss and itself, read from whatever it is written as."""
    nothing = ul.diff("torch.nn.MSELoss()", ul.MeanSquaredError())
    assert not [
        difference
        for difference in nothing
        if difference.rule in {field.name for field in fields(ul.MeanSquaredError)}
    ]
    same = ul.diff(ul.MeanSquaredError(), '{"loss": "mean_squared_error", "version": 1}')
    assert len(same) == 0
    assert "no difference" in str(same)
    assert "scale" not in same
    with pytest.raises(KeyError):
        same["scale"]


def test_text_of_a_difference() -> None:
    """Both sentences, the input, and both numbers."""
    text = str(ul.diff(ul.MeanSquaredError(), "ul.MeanSquaredError(reduction='sum')"))
    assert "a: MeanSquaredError()\nb: MeanSquaredError(reduction='sum')" in text
    assert 'b: "sum": the losses of all positions are added.' in text
    assert (
        "for predictions [1], targets [0], sample_weight [2]:\n  a gives 1 in float32\n  b gives 2 in float32"
        in text
    )


def test_unknown_losses_are_refused() -> None:
    """What is no loss is an error that says what is known."""
    with pytest.raises(ul.SpecValueError, match="no loss that is known"):
        ul.diff("torch.nn.L1Loss()", ul.MeanSquaredError())
    with pytest.raises(ul.SpecTypeError):
        ul.diff(object(), ul.MeanSquaredError())


def test_side_is_kept() -> None:
    """A side is compared as it is."""
    side = side_of(ul.MeanSquaredError())
    assert side_of(side) is side
    assert isinstance(side, Side)


def test_many_classes() -> None:
    """32,000 class weights are compared in a second or so, without an input of their square."""
    weights = np.linspace(1, 2, 32000)
    found_here = ul.diff(
        ul.CrossEntropyLoss(class_weights=weights),
        ul.CrossEntropyLoss(class_weights=weights, divisor="all"),
    )
    example = found_here["divisor"].example
    assert example is not None
    assert example.input.predictions.size <= 4 * 32000
    assert "32000 numbers from 1 to 2" in str(
        ul.explain(ul.CrossEntropyLoss(class_weights=weights)).rules["class_weights"]
    )


@ALL
def test_numbers_of_a_spec_in_place_of_a_loss_are_marked() -> None:
    """Where a loss itself takes no sample weights, its spec is run, and that is said."""
    text = str(found(CE, SPARSE)["divisor"])
    assert "a gives 0.407606006 in float32 (its spec does)" in text
    assert "b gives 0.815211892 in float32\n" in text


def test_losses_of_two_kinds() -> None:
    """The kind is a difference, and each field that one of them uses."""
    differences = ul.diff("torch.nn.MSELoss()", ul.CrossEntropyLoss(label_smoothing=0.1))
    assert [difference.rule for difference in differences] == ["loss", "label_smoothing"]
    assert differences["loss"].a == "Mean squared error."
    assert differences["label_smoothing"].a == "A MeanSquaredError has no such rule."
    assert differences["label_smoothing"].note is not None
