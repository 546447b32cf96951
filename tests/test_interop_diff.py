"""The diff of two losses names each difference.

ROWS are known differences between libraries. Their numbers were measured by calling the
frameworks directly.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests.rule_ids import rule_ids
from unifiedloss import compiled
from unifiedloss.interop.diff import Diff, Difference, Example, diff, rules
from unifiedloss.interop.sides import Input, Outcome, Side, side_of

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
"""The loss that fit(class_weight=...) of Keras computes."""

OVER_ALL = ul.CrossEntropyLoss(from_logits=True, axis=1, ignore_index=-100, divisor="all")
"""torch's loss, but with all positions as the divisor."""


@dataclass(frozen=True)
class Row:
    """One known difference between two losses.

    Attributes:
        about: the id, on the page Rules, of the rule that the two losses have in their own way.
        a: one loss.
        b: the other loss.
        rule: the rule that the diff must name.
        values: the outcomes of the two, on `tensors` if given, else on the example of the diff. A
            number is compared with the mean of several losses. None if no outcome is compared.
        tensors: predictions, targets and sample weights, or a pair of these, one for each loss.
        gradients: whether `values` are the first entries of the gradients.
        backend: the backend that Keras must run on.
    """

    about: str
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
    # torch divides a weighted mean by the sum of weights, Keras by the number of examples.
    Row("divisor", WEIGHTED, FIT, "divisor", (0.878126, 1.975783), (X, Y)),
    # torch divides by the sum of weights for class indices, and by the count for dense targets.
    Row("label-weights", WEIGHTED, ul.CrossEntropyLoss(
        from_logits=True, axis=1, class_weights=(1, 2, 4), ignore_index=-100,
    ), "divisor", (1.975783, 0.878126), (X, ONE_HOT)),
    # Keras divides by the number of examples, TensorFlow 1 by the number of nonzero weights.
    Row("divisor", SPARSE, "tf.compat.v1.losses.sparse_softmax_cross_entropy", "divisor",
        (0.483753, 0.645004), (X, Y, W)),
    # torch ignores the label -100 by default.
    Row("ignore-index", CE, OPTAX, "ignore_index", (0.971275, NAN), (X, np.array([0, 1, -100, 2]))),
    # An ignored label leaves the divisor in Keras' class; in a mean of its function it counts.
    Row("reduction", IGNORING,
        "functools.partial(keras.losses.sparse_categorical_crossentropy, from_logits=True, "
        "ignore_class=-100)",
        "reduction", (0.549717, 0.412287), (X, np.array([0, -100, 1, 2]))),
    # If all labels are ignored, torch gives NaN and Keras 0.
    Row("on-empty", CE, IGNORING, "on_empty", (NAN, 0.0), (X, np.full(4, -100))),
    # Optax wraps the label -1 and gives NaN for a label past the last class; torch raises.
    Row("label-order", OPTAX, CE, "bad_index", (2.407606, ERROR), (X[:1], np.array([-1]))),
    Row("label-order", OPTAX, CE, "bad_index", (NAN, ERROR), (X[:1], np.array([3]))),
    # A probability of 0 is clipped to 1e-7 in Keras, to the spacing of the dtype in scikit-learn.
    # scikit-learn needs all three classes, so there are two more rows, whose loss is 1e-7.
    Row("epsilon", "keras.losses.CategoricalCrossentropy()", "sklearn.metrics.log_loss", "epsilon",
        (16.1181 / 3, 15.9424 / 3),
        (f32([[0, 0.5, 0.5], [0, 1, 0], [0, 0, 1]]), np.array([0, 1, 2]))),
    # torch clamps the logarithm and divides by at least 1e-12; Keras' clip has a gradient of 0.
    Row("epsilon-presets",
        "torch.nn.BCELoss()", BCE_KERAS.format(""), "epsilon", (-1e12, 0.0), gradients=True),
    # At a bound of the clip, JAX halves the gradient.
    Row("epsilon-tie",
        BCE_KERAS.format("[jax]"), BCE_KERAS.format("[torch]"), "clip_tie", (-5e6, -1e7),
        gradients=True, backend="jax"),
    # For class indices, Keras renormalizes before the clip on torch, after it on TensorFlow.
    Row("renormalize", "keras[torch].losses.SparseCategoricalCrossentropy()",
        "keras.losses.SparseCategoricalCrossentropy()", "renormalize",
        (0.693147, 1.098612), (f32([[2, 1, 1]]), np.array([0]))),
    # Keras on TensorFlow finds the logits behind a softmax or sigmoid, and uses them.
    Row("from-logits", "keras.losses.CategoricalCrossentropy()",
        "keras[torch].losses.CategoricalCrossentropy()", "hidden_logits", (100.0, 16.1181)),
    Row("from-logits",
        BCE_KERAS.format(""), BCE_KERAS.format("[torch]"), "hidden_logits_in_a_graph",
        (100.0, 15.942385)),
    # Keras on NumPy clips the sigmoid of the logits.
    Row("from-logits", "keras[numpy].losses.BinaryCrossentropy(from_logits=True)", BCE_LOGITS,
        "clipped_sigmoid", (15.942385, 100.0), backend="numpy"),
    # The classes are on axis 1 in torch, on the last axis in Keras.
    Row("axis",
        CE, SPARSE, "axis", (3.050946, 1.407606), (SQUARES, np.array([[0, 1, 2], [0, 1, 2]]))),
    # Keras smooths by the length of the last axis, even if another axis has the classes.
    Row("label-smoothing",
        "keras.losses.CategoricalCrossentropy(from_logits=True, axis=1, label_smoothing=0.3)",
        ul.CrossEntropyLoss(from_logits=True, axis=1, label_smoothing=0.3), "smoothing_axis"),
    # Class weights multiply entries of the smoothed target in torch, losses of positions in Keras.
    Row("class-weighting", "torch.nn.CrossEntropyLoss(weight=[1, 2, 4], label_smoothing=0.1)",
        FIT.replace(label_smoothing=0.1, axis=1, divisor="label_weights", ignore_index=-100),
        "class_weighting", (0.795287, 0.507606), (X[:1], Y[:1])),
    # Different shapes: torch broadcasts (3, 1) with (3,), and Keras squeezes.
    Row("strict-shapes", "torch.nn.MSELoss()", KERAS_MSE, "shapes", (1.333333, 0.0),
        (f32([[1], [2], [3]]), f32([1, 2, 3]))),
    # Optax broadcasts (2, 1) with (2,), and torch raises.
    Row("strict-shapes",
        "optax.losses.sigmoid_binary_cross_entropy", BCE_LOGITS, "shapes", ((2, 2), ERROR),
        (f32([[1], [2]]), f32([0, 1]))),
    # Keras averages the last axis before it sums.
    Row("average-last-axis",
        'torch.nn.MSELoss(reduction="sum")', 'keras.losses.MeanSquaredError(reduction="sum")',
        "average_last_axis", (30.0, 15.0)),
    # Keras averages a single axis to one number before it applies the weights.
    Row("average-last-axis",
        KERAS_MSE, "functools.partial(torch.nn.functional.mse_loss, weight=[1, 3])", "one_axis",
        (5.0, 3.25), ((f32([1, 2]), f32([0, 0]), f32([1, 3])), (f32([1, 2]), f32([0, 0])))),
    # Keras divides by the sum of the weights before they are broadcast.
    Row("leading-weights", 'keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")',
        ul.MeanSquaredError(average_last_axis=True), "mean_with_sample_weight", (9.75, 3.25)),
    # Keras aligns sample weights to the last axis, a spec to the first.
    Row("leading-weights", 'keras.losses.MeanSquaredError(reduction="none")',
        ul.MeanSquaredError(average_last_axis=True, reduction="none"), "weight_alignment",
        ([[1, 3], [4, 12]], [[1, 1], [12, 12]]), (STEPS, 0 * STEPS, f32([1, 3]))),
    # Keras casts class indices to the dtype of the loss: 257 becomes 256 in bfloat16.
    Row("target-dtypes",
        'keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="bfloat16")',
        CE, "half_dtype", (10.0, 0.013483)),
    # A count of 70000 is infinite in float16, and so is a sum of 70000 ones.
    Row("half-dtypes",
        'keras.losses.MeanSquaredError(dtype="float16")', "torch.nn.MSELoss()", "half_dtype",
        (0.0, 0.25)),
    Row("half-dtypes",
        'keras.losses.MeanSquaredError(dtype="float16")', "torch.nn.MSELoss()", "half_dtype",
        (NAN, 1.0), (np.ones((70000, 1), np.float32), np.zeros((70000, 1), np.float32))),
    # Optax subtracts the logit from the normalizer without a shift, so large logits lose digits.
    Row("large-offsets", OPTAX, CE, "offset", (0.3125, 0.313262)),
    # log(1 + x) rounds to 0 for a small x, where log1p keeps it.
    Row("rounding",
        CE, ul.CrossEntropyLoss(from_logits=True, axis=1), "confident_row", (0.0, 3.05e-8)),
    # 0 * inf in a dense target: NaN, or guarded.
    Row("zero-log-zero",
        "optax.losses.softmax_cross_entropy", "optax.losses.safe_softmax_cross_entropy",
        "zero_times_infinity", (NAN, 0.126928)),
    # TensorFlow's gradient assumes that dense targets sum to 1.
    Row("gradient-logits",
        CE, "tf.nn.softmax_cross_entropy_with_logits", "target_sum", (-0.669518, -1.334759),
        gradients=True),
    # A NaN at an ignored position reaches the gradient in torch, and not in Keras.
    Row("dropped", CE, IGNORING, "nan_in_ignored", (NAN, 0.0),
        (f32([[NAN, NAN, NAN], [2, 1, 0]]), np.array([-100, 0])), gradients=True),
    # TensorFlow's weighted loss is written with max(z, 0) and abs(z): a wrong gradient at z = 0.
    Row("gradient-binary",
        "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=1)",
        "tf.nn.sigmoid_cross_entropy_with_logits", "gradient_at_zero", (1.0, 0.5), gradients=True),
    # An infinite logit gives inf - inf in Optax, and 0 in a spec if the target agrees.
    Row("infinite-binary-logits", "optax.losses.sigmoid_binary_cross_entropy",
        ul.BinaryCrossEntropyLoss(from_logits=True), "infinite_logit", (NAN, 0.0)),
    # In torch, a weighted squared error divides by the sum of weights, a weighted BCE by the count.
    Row("divisor", "functools.partial(torch.nn.functional.mse_loss, weight=[1, 3])",
        "torch.nn.BCELoss(weight=[1, 3])", "divisor", (3.25, 1.386294),
        ((f32([1, 2]), f32([0, 0])), (f32([0.5, 0.5]), f32([1, 1])))),
    # By default, Keras takes probabilities, torch logits.
    Row("from-logits",
        "keras.losses.SparseCategoricalCrossentropy()", CE, "from_logits", (0.794514, 0.764189),
        (X, Y)),
    # torch refuses label smoothing above 1, Keras computes.
    Row("label-smoothing", "torch.nn.CrossEntropyLoss(label_smoothing=1.5)",
        "keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=1.5)",
        "smoothing_range", (ERROR, None), (X[:1], ONE_HOT[:1])),
    # torch refuses dense targets of an integer dtype, TensorFlow takes them.
    Row("target-kind",
        CE, "tf.nn.softmax_cross_entropy_with_logits", "target_kind", (ERROR, 0.407606)),
    # Optax computes float64 inputs in float32, because JAX has no float64 by default.
    Row("result-dtype", CE, OPTAX, "float64", (np.float64, np.float32)),
    # TensorFlow gives NaN for a bad label under XLA, and torch raises.
    Row("bad-values", TF_SPARSE, CE, "compiled_checks", (NAN, ERROR)),
    # The mean of the means of two batches is not the mean of both; see test_means_of_batches.
    Row("divisor", CE, OVER_ALL, "divisor"),
    # torch and TensorFlow round at different steps in a half dtype.
    Row("half-dtypes", CE, TF_SPARSE, "half_rounding"),
    # A loss of 0 has a negative sign in Optax.
    Row("sign-of-zero",
        "optax.losses.softmax_cross_entropy", "tf.nn.softmax_cross_entropy_with_logits",
        "sign_of_zero", (-0.0, 0.0)),
]  # fmt: skip

HERE = [row for row in ROWS if row.backend == "tensorflow"]
ELSEWHERE = [row for row in ROWS if row.backend != "tensorflow"]


@cache
def found(a: Any, b: Any) -> Diff:
    """Return the diff of two losses, made once for all rows that share it."""
    return diff(a, b)


def outcomes(row: Row, difference: Any) -> tuple[Outcome, Outcome]:
    """Return the outcomes of both losses of a row, on its tensors or the example of the diff."""
    if row.tensors is None:
        assert difference.example is not None, difference
        return difference.example.a, difference.example.b
    one, other = row.tensors if isinstance(row.tensors[0], tuple) else (row.tensors, row.tensors)
    return side_of(row.a).outcome(Input(*one)), side_of(row.b).outcome(Input(*other))


def check(outcome: Outcome, expected: Any, *, gradients: bool) -> None:
    """Assert that an outcome is the expected one.

    Args:
        outcome: the outcome of a loss.
        expected: ERROR, None for any value without an error, a dtype, a shape as a tuple, an array
            as a list, or a number.
        gradients: compare the first entry of the gradient.
    """
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
        # The expected numbers have six digits.
        np.testing.assert_allclose(
            float(value), expected, rtol=5e-5, atol=1e-7 if expected else 0.0
        )
        if expected == 0.0 and not gradients:
            assert np.signbit(value) == np.signbit(expected)


@ALL
@pytest.mark.parametrize("row", HERE, ids=lambda row: f"{row.about}-{row.rule}")
def test_row(row: Row) -> None:
    """The diff of two losses names the rule, and their outcomes are the expected ones."""
    difference = found(row.a, row.b)[row.rule]
    assert difference.a != difference.b
    if row.values is not None:
        for outcome, expected in zip(outcomes(row, difference), row.values, strict=True):
            check(outcome, expected, gradients=row.gradients)


@ALL
@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: f"{row.about}-{row.rule}")
def test_row_on_another_backend_of_keras(row: Row) -> None:
    """The diff names the rule although Keras runs on TensorFlow here.

    tests/keras_interop_checks.py compares the numbers where Keras runs on that backend.
    """
    difference = found(row.a, row.b)[row.rule]
    assert difference.a != difference.b


def test_rows_are_about_rules() -> None:
    """Each difference is about a rule of the page Rules."""
    assert {row.about for row in ROWS} <= rule_ids()


@ALL
def test_means_of_batches() -> None:
    """The mean of two batch means is the mean of both only if the divisor counts all positions."""
    labels = np.array([0, 1, 1, -100])
    side = side_of(CE)
    halves = (slice(2), slice(2, 4))
    both = side.outcome(Input(X, labels)).value
    parts = [side.outcome(Input(X[half], labels[half])).value for half in halves]
    np.testing.assert_allclose([np.mean(parts), both], [0.525269, 0.652714], rtol=5e-6)
    assert found(CE, OVER_ALL)
    by_count = side_of(OVER_ALL)
    parts = [by_count.outcome(Input(X[half], labels[half])).value for half in halves]
    np.testing.assert_allclose(np.mean(parts), by_count.outcome(Input(X, labels)).value, rtol=1e-6)


@ALL
def test_half_rounding_in_bfloat16() -> None:
    """torch and TensorFlow round differently in bfloat16; the example of the diff has float16.

    NumPy has float16 itself, and bfloat16 only with ml_dtypes.
    """
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


# ---------------------------------------------------------------------------------- between specs

SPECS: list[ul.spec.Loss] = [  # type: ignore[name-defined]
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
    """The diff lists exactly the fields that differ, each with an example or a note."""
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
    """If one field differs, the diff has a small example in which only this field matters."""
    differences = ul.diff(spec, spec.replace(**{field: value}))
    assert [difference.rule for difference in differences] == [field]
    example = differences[field].example
    assert example is not None
    assert example.alone is None
    assert example.input.predictions.size <= 9


def test_what_is_the_same_has_no_difference() -> None:
    """A loss and its spec have no difference in a field, and a spec and its JSON have none."""
    names = {field.name for field in fields(ul.MeanSquaredError)}
    differences = ul.diff("torch.nn.MSELoss()", ul.MeanSquaredError())
    assert not [difference for difference in differences if difference.rule in names]
    same = ul.diff(ul.MeanSquaredError(), '{"loss": "mean_squared_error", "version": 1}')
    assert len(same) == 0
    assert "no difference" in str(same)
    assert "scale" not in same
    with pytest.raises(KeyError):
        same["scale"]


def test_text_of_a_difference() -> None:
    """The text of a diff has both losses, both sentences, the example and both numbers."""
    text = str(ul.diff(ul.MeanSquaredError(), "ul.MeanSquaredError(reduction='sum')"))
    assert "a: MeanSquaredError()\nb: MeanSquaredError(reduction='sum')" in text
    assert 'b: "sum": the losses of all positions are added.' in text
    assert (
        "for predictions [1], targets [0], sample_weight [2]:\n"
        "  a gives 1 in float32\n  b gives 2 in float32" in text
    )


@ALL
@pytest.mark.parametrize("row", ROWS[::3], ids=lambda row: row.rule)
def test_a_report_agrees_with_the_diff(row: Row) -> None:
    """A report calls two losses the same only where the diff finds no difference."""
    names = tuple(difference.rule for difference in found(row.a, row.b))
    assert rules(side_of(row.a), side_of(row.b)) == names
    examples = [difference.example for difference in found(row.a, row.b)]
    for example in [example for example in examples if example is not None][:2]:
        x = example.input
        report = ul.port_report(row.a, row.b, x.predictions, x.targets, x.sample_weight)
        lines = str(report).splitlines()
        assert report.unseen == (names if report.same else ())
        assert ("Only rounding is left." in lines) == (report.same and not names)
        assert "inf ulps" not in str(report)
        assert "The rules of both are the same" not in str(report) or not names


def test_gradients_are_shown_where_they_differ() -> None:
    """A difference has both gradients exactly where they differ."""
    a = ul.MeanSquaredError()
    example = ul.diff(a, a.replace(scale=2))["scale"].example
    assert example is not None
    assert example.gradients
    same = Example(example.input, example.a, replace(example.b, gradient=example.a.gradient))
    assert not same.gradients
    text = str(Difference("scale", "", "", same))
    assert "gradients" not in text
    assert "gradients" in str(Difference("scale", "", "", example))


@ALL
@pytest.mark.parametrize(
    "loss",
    [
        "torch.nn.NLLLoss()",
        "onnx.NegativeLogLikelihoodLoss()",
        "torch.nn.CrossEntropyLoss(weight=[2, 0, 1], label_smoothing=0.1)",
    ],
)
def test_each_rule_is_listed_once(loss: str) -> None:
    """`explain` lists each sentence once, and `diff` each rule, with all its sentences."""
    deviations = [(name, str(text)) for name, text in ul.explain(loss).deviations]
    assert len(set(deviations)) == len(deviations)
    assert [name for name, _ in deviations].count("label_types") == 1
    differences = found(loss, ul.from_native(loss))
    rules = [difference.rule for difference in differences]
    assert len(set(rules)) == len(rules)
    if "smoothing" in loss:
        assert "a label whose class" in differences["weightless_infinity"].a
        assert "labels are smoothed" in differences["weightless_infinity"].a


def test_long_arguments_are_shortened() -> None:
    """Weights are shortened where a text names a loss, and compared in full."""
    weights = [n / 7 for n in range(3000)]
    loss = "torch.nn.CrossEntropyLoss(weight={})"
    a, b = side_of(loss.format(weights)), side_of(loss.format([*weights[:-1], 2.0]))
    assert rules(a, b) == ("class_weights",)
    report = ul.port_report(a, b, np.zeros((2, 3000), np.float32), np.zeros(2, int))
    for said in (diff(a, b), report, ul.explain(a)):
        assert "(0.0, 0.14285714285714285, <2,998 more>)" in str(said)
        assert max(map(len, str(said).splitlines())) < 500


def test_unknown_losses_are_refused() -> None:
    """A diff of an unknown loss is an error."""
    with pytest.raises(ul.SpecValueError, match="another kind of loss"):
        ul.diff("torch.nn.L1Loss()", ul.MeanSquaredError())
    with pytest.raises(ul.SpecTypeError):
        ul.diff(object(), ul.MeanSquaredError())


def test_side_is_kept() -> None:
    """side_of returns a Side unchanged."""
    side = side_of(ul.MeanSquaredError())
    assert side_of(side) is side
    assert isinstance(side, Side)


def test_many_classes() -> None:
    """32,000 class weights are compared in about a second, with an input that stays small."""
    weights = np.linspace(1, 2, 32000)
    differences = ul.diff(
        ul.CrossEntropyLoss(class_weights=weights),
        ul.CrossEntropyLoss(class_weights=weights, divisor="all"),
    )
    example = differences["divisor"].example
    assert example is not None
    assert example.input.predictions.size <= 4 * 32000
    assert "32000 numbers from 1 to 2" in str(
        ul.explain(ul.CrossEntropyLoss(class_weights=weights)).rules["class_weights"]
    )


@ALL
def test_numbers_of_a_spec_in_place_of_a_loss_are_marked() -> None:
    """If a loss takes no sample weights, the diff runs its spec and says so."""
    text = str(found(CE, SPARSE)["divisor"])
    # NumPy's path and its compiled loops round differently.
    value = "0.407606006" if compiled.level() == compiled.NUMPY else "0.407605976"
    assert f"a gives {value} in float32 (its spec does)" in text
    assert "b gives 0.815211892 in float32\n" in text


def test_losses_of_two_kinds() -> None:
    """For losses of two kinds, the diff lists the kind and each field that is not its default."""
    differences = ul.diff("torch.nn.MSELoss()", ul.CrossEntropyLoss(label_smoothing=0.1))
    assert [difference.rule for difference in differences] == ["loss", "label_smoothing"]
    assert differences["loss"].a == "Mean squared error."
    assert differences["label_smoothing"].a == "A MeanSquaredError has no such rule."
    assert differences["label_smoothing"].note is not None
