"""The porting report measures the gap of two losses, and names the differing rule and position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.interop.distance import Gap, gap_of
from unifiedloss.interop.sides import Outcome

RNG = np.random.default_rng(4)
LOGITS = RNG.normal(size=(32, 5)).astype(np.float32)
LABELS = RNG.integers(5, size=32)
WEIGHT = RNG.random(32).astype(np.float32)
P = RNG.random((16, 4)).astype(np.float32)
YES = RNG.integers(2, size=(16, 4)).astype(np.float32)
CE = ul.CrossEntropyLoss(from_logits=True)
SOFT = (np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)).astype(np.float32)
SQUARE = LOGITS[:4, :5].reshape(1, 4, 5).repeat(5, 1)[:, :5]
LABELS_WITH_IGNORED = np.where(np.arange(32) % 5 == 3, -100, LABELS)

CHANGES: list[tuple[Any, dict[str, Any], tuple[Any, ...], tuple[str, ...]]] = [
    (CE, {"label_smoothing": 0.1}, (LOGITS, LABELS), ("label_smoothing",)),
    (CE, {"class_weights": (1, 2, 3, 4, 5)}, (LOGITS, LABELS), ("class_weights",)),
    (CE, {"divisor": "all"}, (LOGITS, LABELS, WEIGHT), ("divisor",)),
    (CE, {"reduction": "sum"}, (LOGITS, LABELS), ("reduction",)),
    (CE, {"reduction": "none"}, (LOGITS, LABELS), ("reduction",)),
    (CE, {"scale": 0.5}, (LOGITS, LABELS), ("scale",)),
    (CE, {"ignore_index": -100}, (LOGITS, LABELS_WITH_IGNORED), ("ignore_index",)),
    (CE, {"from_logits": False, "epsilon": "keras"}, (SOFT, LABELS), ("from_logits, epsilon",)),
    (CE.replace(axis=1), {"axis": 2}, (SQUARE, np.tile(np.arange(5), (1, 1))), ("axis",)),
    (ul.BinaryCrossEntropyLoss(), {"label_smoothing": 0.2}, (P, YES), ("label_smoothing",)),
    (
        ul.BinaryCrossEntropyLoss(reduction="sum"),
        {"average_last_axis": True},
        (P, YES),
        ("average_last_axis",),
    ),
    (ul.MeanSquaredError(), {"element_weights": (1, 2, 3, 4)}, (P, YES), ("element_weights",)),
]


@pytest.mark.parametrize(
    ("spec", "change", "tensors", "rules"),
    CHANGES,
    ids=lambda x: str(x)[:30] if isinstance(x, dict) else "",
)
def test_the_changed_rule_is_found(
    spec: Any, change: dict[str, Any], tensors: tuple[Any, ...], rules: tuple[str, ...]
) -> None:
    """If one rule is changed, the report names it alone, in either order of the losses."""
    changed = spec.replace(**change)
    for a, b in ((spec, changed), (changed, spec)):
        report = ul.port_report(a, b, *tensors)
        assert not report.same
        assert report.rules == rules
        assert report.together == ()
        assert f"{rules[0]}: b with " in str(report)
        assert "closes the gap" in str(report)


def test_only_rounding_is_left() -> None:
    """Specs that differ only in rounding, or in rules without effect, count as the same."""
    report = ul.port_report(CE, CE.replace(rounding="exact"), LOGITS, LABELS)
    assert report.same
    assert report.attempts == ()
    assert report.rules == ()
    assert report.gap.gradient is not None
    assert report.gap.gradient < 8
    assert report.unseen == ("rounding",)
    assert str(report).endswith(
        "They differ in rules that change nothing here but rounding: rounding.\n"
        "On these tensors only rounding is left."
    )
    equal = ul.port_report(CE, CE, LOGITS, LABELS)
    assert equal.unseen == ()
    assert str(equal).endswith("gradients by 0 ulps of float32.\nOnly rounding is left.")
    without_weights = ul.port_report(
        CE, CE.replace(divisor="all", label_smoothing=1e-9), LOGITS, LABELS
    )
    assert without_weights.unseen == ("label_smoothing", "divisor")


def test_several_rules_together() -> None:
    """If two differing rules matter, none closes the gap alone, and the report names both."""
    report = ul.port_report(
        CE, CE.replace(label_smoothing=0.1, scale=2, on_empty="zero"), LOGITS, LABELS
    )
    assert report.rules == ()
    assert report.together == ("label_smoothing", "scale")
    assert "together these do: label_smoothing, scale." in str(report)
    assert [attempt.rule for attempt in report.attempts] == ["label_smoothing", "on_empty", "scale"]


@pytest.mark.framework("torch", "tensorflow")
def test_a_field_together_with_what_no_spec_can_say() -> None:
    """A field and a deviation close the gap together: float32 weights, and rows that sum to 2."""
    smoothed = CE.replace(
        axis=1, ignore_index=-100, label_smoothing=0.1, class_weights=(1, 2, 3, 4, 5)
    )
    smoothed = smoothed.replace(divisor="label_weights")
    weighted = "torch.nn.CrossEntropyLoss(weight=[1, 2, 3, 4, 5])"
    report = ul.port_report(weighted, smoothed, LOGITS.astype(np.float64), LABELS)
    assert report.error_a is not None
    assert (report.rules, report.together) == ((), ("label_smoothing", "weight_dtype"))
    dense, each = (
        "tf.nn.softmax_cross_entropy_with_logits",
        CE.replace(label_smoothing=0.1, reduction="none"),
    )
    for a, b in ((dense, each), (each, dense)):
        report = ul.port_report(a, b, LOGITS, 2 * SOFT)
        assert (report.rules, report.together) == ((), ("label_smoothing", "target_sum"))


@pytest.mark.framework("torch")
def test_a_rule_does_not_hide_in_a_half_type() -> None:
    """Smoothing is named, though it moves losses by few ulps of float16, under one of bfloat16."""
    import ml_dtypes
    import torch

    plain, smoothed = (
        "torch.nn.CrossEntropyLoss()",
        "torch.nn.CrossEntropyLoss(label_smoothing=0.1)",
    )
    report = ul.port_report(plain, smoothed, LOGITS.astype(np.float16), LABELS)
    assert report.gap.gradient is not None
    assert report.gap.gradient < 64
    assert report.rules == ("label_smoothing",)
    logits = torch.tensor(LOGITS).bfloat16()
    report = ul.port_report(plain, smoothed, logits, LABELS)
    assert report.value_a is not None
    assert report.value_a.dtype == ml_dtypes.bfloat16
    assert float(report.value_a) == torch.nn.CrossEntropyLoss()(logits, torch.tensor(LABELS)).item()
    assert report.widened
    assert not report.same
    assert report.rules == ("label_smoothing",)
    assert "of their specs in float32" in str(report)
    assert ul.port_report(plain, ul.from_native(plain), logits, LABELS).same


@pytest.mark.framework("tensorflow")
def test_dtype_that_an_object_holds() -> None:
    """The dtype of a weight tensor or a model is named, though the text of its call lacks it."""
    import functools

    import tensorflow as tf

    weighted = functools.partial(
        tf.nn.weighted_cross_entropy_with_logits, pos_weight=tf.constant(0.1)
    )
    assert ul.port_report(
        weighted, ul.from_native(weighted), np.array([0.3]), np.ones(1)
    ).rules == ("weight_dtype",)
    spec = ul.from_native("onnx.SoftmaxCrossEntropyLoss()")
    model = spec.to_native("onnx")
    assert ul.port_report(model, spec, LOGITS.astype(np.float64), LABELS).rules == ("weight_dtype",)
    assert ul.port_report(model, spec, LOGITS, LABELS).same


def test_first_bad_row() -> None:
    """The report has the first position that differs, with both losses there."""
    report = ul.port_report(
        CE.replace(ignore_index=(3, 4)), CE, LOGITS, np.array([0, 1, 2, 4, *[3] * 28])
    )
    assert report.row == (3,)
    assert report.losses_of_row is not None
    assert report.losses_of_row[0] == 0.0
    np.testing.assert_allclose(report.losses_of_row[1], CE(LOGITS[3:4], [4]), rtol=1e-6)
    assert "The first position that differs is [3]: 0 and " in str(report)
    elements = ul.port_report(
        ul.MeanSquaredError(), ul.MeanSquaredError(element_weights=(1, 1, 2, 1)), P, YES
    )
    assert elements.row == (0, 2)


def test_errors_are_outcomes() -> None:
    """If one loss raises, the report has its error, and names the rule that avoids it."""
    report = ul.port_report(CE, CE.replace(ignore_index=-100), LOGITS[:2], [0, -100])
    assert report.value_a is None
    assert report.error_a is not None
    assert report.error_a.startswith("BadValueError: targets[1] is -100")
    assert report.gap.value == np.inf
    assert report.rules == ("ignore_index",)


@pytest.mark.framework("torch", "jax", "tensorflow", "keras")
def test_native_losses_on_their_own_tensors() -> None:
    """torch and TensorFlow on torch's tensors differ only by rounding, or by the changed rules."""
    import torch

    tensors = torch.tensor(LOGITS, requires_grad=True), torch.tensor(LABELS)
    same = ul.port_report(
        torch.nn.CrossEntropyLoss(),
        "keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
        *tensors,
    )
    assert same.same
    assert same.value_a is not None
    assert same.value_b is not None
    other = ul.port_report(
        torch.nn.CrossEntropyLoss(label_smoothing=0.2),
        "tf.nn.softmax_cross_entropy_with_logits",
        *tensors,
    )
    assert other.together == ("label_smoothing", "reduction")
    assert other.row == (0,)


@pytest.mark.framework("torch", "jax")
def test_what_no_spec_can_say_is_found() -> None:
    """Deviations are named: Optax without a shift of large logits, and torch's 0 * inf."""
    shifted = LOGITS.copy()
    shifted[7] += 1e5
    report = ul.port_report(
        'torch.nn.CrossEntropyLoss(reduction="none")',
        "optax.losses.softmax_cross_entropy_with_integer_labels",
        shifted,
        LABELS,
    )
    assert report.rules == ("offset",)
    assert report.row == (7,)
    assert "offset: b as its spec has it closes the gap" in str(report)
    zeros = np.eye(5, dtype=np.float32)[LABELS]
    masked = np.where((zeros == 0) & (np.arange(5) == 4), -np.inf, LOGITS).astype(np.float32)
    report = ul.port_report(
        CE.replace(axis=1, ignore_index=-100), "torch.nn.CrossEntropyLoss()", masked, zeros
    )
    assert report.rules == ("zero_times_infinity",)


@pytest.mark.framework("keras", "tensorflow")
def test_refused_arguments_are_tried() -> None:
    """For a loss without a spec, the report tries its closest call and names the rule."""
    many = np.full((70000, 1), 0.5, np.float32)
    report = ul.port_report(
        'keras.losses.MeanSquaredError(dtype="float16")', ul.MeanSquaredError(), many, 0 * many
    )
    assert report.rules[0] == "half_dtype"
    assert report.value_a == 0.0
    assert report.value_b == 0.25


def test_lists_that_are_no_array() -> None:
    """Lists of different lengths are a ShapeError, not an error of NumPy."""
    with pytest.raises(ul.ShapeError, match="predictions cannot be read as an array of numbers"):
        ul.port_report(CE, CE, [[1.0, 2.0], [1.0]], [0, 1])


def test_distances() -> None:
    """The unit is an ulp of the coarser dtype: at 1 for small losses, at the largest gradient."""
    one = Outcome(np.float32(1.0) + np.zeros((), np.float32), np.full(3, 1e-3, np.float32))
    next_to = Outcome(
        np.nextafter(np.float32(1), np.float32(2)) + np.zeros((), np.float32),
        np.full(3, 1.001e-3, np.float32),
    )
    gap = gap_of(one, next_to)
    assert gap.value == pytest.approx(1.0)
    assert gap.gradient is not None
    assert gap.gradient > 1000
    assert not gap.closed
    assert gap_of(one, Outcome(np.array(np.nan))).value == np.inf
    assert gap_of(Outcome(np.array([np.nan, 1.0])), Outcome(np.array([np.nan, 1.0]))).closed
    assert gap_of(Outcome(error="a"), Outcome(error="b")).closed
    assert str(Gap(0.0, None)) == "values differ by 0 ulps"


def test_what_is_said_where_no_rule_is_tried() -> None:
    """Without rules to try, the report claims neither equal rules nor rounding.

    Such are losses of two kinds, a loss without a close spec, and errors of both losses.
    """
    kinds = ul.port_report(ul.BinaryCrossEntropyLoss(), ul.MeanSquaredError(), P, YES)
    assert not kinds.same
    assert str(kinds).endswith("of two kinds: a BinaryCrossEntropyLoss and a MeanSquaredError.")
    zeros = np.zeros((2, 3), np.float32)
    assert ul.port_report(ul.MeanSquaredError(), CE, zeros, zeros).unseen[0] == "loss"
    far = "torch.nn.BCEWithLogitsLoss(pos_weight=[[1, 2], [3, 4]])"
    text = str(ul.port_report(far, "torch.nn.BCEWithLogitsLoss()", P[:2, :2], YES[:2, :2]))
    assert "The rules of both are the same" not in text
    assert "varies along 2 axes" in text
    errors = str(
        ul.port_report(ul.MeanSquaredError(), ul.MeanSquaredError(reduction="sum"), P, YES[0])
    )
    assert errors.endswith("Both are errors: there are no numbers to compare.")
    assert "rounding" not in errors


LOG_P = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
NLL = ul.NegativeLogLikelihoodLoss()
SQUARED, HUBER = ul.MeanSquaredError(), ul.HuberLoss()
KINDS: list[tuple[Any, Any, Any, Any, str, str]] = [
    (CE, NLL, LOGITS, LABELS, "log_softmax", "a log_softmax is missing"),
    (CE, NLL, LOG_P, LABELS, "log_softmax", "sum to 1, so that a log_softmax changes no value"),
    (CE.replace(reduction="sum"), NLL, LOGITS, LABELS, "log_softmax, reduction", "is missing"),
    (ul.CrossEntropyLoss(), NLL, np.exp(LOG_P), LABELS, "log", "and a probabilities"),
    (SQUARED, HUBER, 10 * P, YES, "scale, delta", "errors are larger"),
    (SQUARED, HUBER, P, YES, "scale", "here 0 of 64 errors are larger"),
    (SQUARED.replace(scale=3), HUBER.replace(reduction="sum"), P, YES, "scale, reduction", "half"),
]


@pytest.mark.parametrize(("a", "b", "predictions", "targets", "rule", "words"), KINDS)
def test_what_stands_between_two_kinds(
    a: Any, b: Any, predictions: Any, targets: Any, rule: str, words: str
) -> None:
    """What makes two kinds of losses agree is tried and named, in either order."""
    for report in (
        ul.port_report(a, b, predictions, targets),
        ul.port_report(b, a, predictions, targets),
    ):
        assert not report.same
        assert report.rules == (rule,)
        assert report.untried is None
        assert str(report.attempts[-1].reason) in str(report)
    assert words in str(ul.port_report(a, b, predictions, targets))


def test_two_kinds_that_never_agree() -> None:
    """Where nothing makes two kinds agree, the report says what each of them asks."""
    hot = np.eye(5, dtype=np.float32)[LABELS]
    text = str(ul.port_report(CE, ul.BinaryCrossEntropyLoss(from_logits=True), LOGITS, hot))
    assert "with a sigmoid for each; the other asks which one of the classes is true" in text
    nan = ul.port_report(SQUARED, HUBER, P, np.full_like(YES, np.nan))
    assert nan.same
    assert nan.unseen == ("loss",)
    smoothed = CE.replace(label_smoothing=0.1)
    text = str(ul.port_report(smoothed, NLL, LOGITS, LABELS))
    assert text.endswith(
        "No other rule was tried, as the losses are of two kinds: a CrossEntropyLoss and a "
        "NegativeLogLikelihoodLoss."
    )


def test_no_infinite_number_of_ulps() -> None:
    """What no number of ulps measures is said in words."""
    one, many = Outcome(np.ones(1), np.ones(3)), Outcome(np.ones(3), np.ones(3))
    nan, steep = Outcome(np.full(1, np.nan), np.ones(3)), Outcome(np.ones(1), np.full(3, np.inf))
    element = "an element of the gradient of one alone is finite"
    zero = "differ by 0 ulps of float64"
    for other, words in (
        (many, f"one has 1 value and the other 3 values, gradients {zero}"),
        (nan, f"the value of one alone is finite, gradients {zero}"),
        (Outcome(error="E: no"), "one of them is an error"),
        (steep, f"values {zero}, and {element}"),
    ):
        assert str(gap_of(one, other)) == words
        assert not gap_of(one, other).closed
    ignoring = CE.replace(ignore_index=-100)
    text = str(ul.port_report(CE, ignoring, LOGITS[:2], [0, -100]))
    assert "inf ulps" not in text
    assert "One of them is an error." in text


@pytest.mark.framework("torch", "tensorflow", "keras")
def test_values_and_gradients_have_one_unit() -> None:
    """Ulps are those of the coarsest dtype, and a difference in the dtype alone is named."""
    double = LOGITS.astype(np.float64)
    sparse = "keras.losses.SparseCategoricalCrossentropy(from_logits=True)"
    report = ul.port_report("torch.nn.CrossEntropyLoss()", sparse, double, LABELS)
    assert report.gap.dtype == "float32"
    assert report.gap.gradient is not None
    assert report.gap.gradient < 8
    assert "dtype" in report.unseen
    assert str(report).endswith("On these tensors only rounding is left.")


@pytest.mark.framework("torch", "tensorflow", "keras")
def test_an_object_gets_the_very_tensors() -> None:
    """A loss is run on the tensors of its framework that were given, with what they carry."""
    import keras
    import tensorflow as tf
    import torch

    loss = keras.losses.CategoricalCrossentropy()
    targets = tf.constant([[0.0, 1.0]])
    predictions = keras.ops.softmax(tf.constant([[40.0, 0.0]]))
    for a in (loss, "keras.losses.CategoricalCrossentropy()"):
        report = ul.port_report(a, ul.from_native(loss), predictions, targets)
        assert report.value_a == loss(targets, predictions).numpy() == 40.0
        assert report.gradient_a is None
        assert report.rules == ("hidden_logits",)
    plain = ul.port_report(loss, ul.from_native(loss), predictions.numpy(), targets)
    assert plain.value_a == pytest.approx(16.118095)
    scores = torch.tensor(LOGITS, requires_grad=True)
    labels = torch.tensor(LABELS, dtype=torch.int32)
    sparse = "keras.losses.CategoricalCrossentropy(from_logits=True)"
    report = ul.port_report(torch.nn.CrossEntropyLoss(), sparse, scores, labels)
    assert report.converted == (
        "For a, targets were converted from int32 to int64 (label_types).",
        "For b, labels were converted to one-hot rows (index_targets).",
    )
    assert all(sentence in str(report) for sentence in report.converted)
    smoothed = CE.replace(label_smoothing=0.1)
    report = ul.port_report(torch.nn.CrossEntropyLoss(), smoothed, scores, labels.long())
    assert report.converted == ()


@pytest.mark.framework("torch", "jax")
def test_what_was_converted_is_said() -> None:
    """The report says which tensors got another dtype, and because of which rule."""
    double, answers = P.astype(np.float64), YES.astype(np.int64)
    report = ul.port_report(
        "optax.losses.squared_error", "torch.nn.MSELoss(reduction='none')", double, answers
    )
    assert report.converted == (
        "For a, predictions were converted from float64 to float32 (float64_elements).",
        "For b, targets were converted from int64 to float64 (integer_targets).",
    )


def test_a_rule_of_arguments_may_be_unseen() -> None:
    """A rule that no spec can express is listed as unseen if these tensors do not show it."""
    report = ul.port_report(
        "keras.losses.MeanSquaredError(reduction='mean_with_sample_weight')",
        ul.MeanSquaredError(),
        P,
        P,
    )
    assert report.same
    assert report.unseen[0] == "mean_with_sample_weight"


def test_numbers_of_a_spec_in_place_of_a_loss_are_marked() -> None:
    """If a loss itself cannot be run, the report has the number of its spec and says so."""
    report = ul.port_report("torch.nn.MSELoss()", ul.MeanSquaredError(), P, YES, WEIGHT[:16])
    assert (report.ran_a, report.ran_b) == ("instead", "spec")
    lines = str(report).splitlines()
    assert lines[3].endswith("in float32 (its spec does)")
    assert lines[4].endswith("in float32")


@pytest.mark.framework("torch")
def test_a_mask_is_for_specs() -> None:
    """Both specs take a mask; a loss that takes none is replaced by its spec, and marked."""
    keep = np.arange(32) % 3 != 0
    report = ul.port_report(CE, CE.replace(divisor="all"), LOGITS, LABELS, mask=keep)
    assert report.rules == ("divisor",)
    np.testing.assert_allclose(report.value_a, CE(LOGITS[keep], LABELS[keep]), rtol=1e-6)
    text = "torch.nn.CrossEntropyLoss()"
    native = ul.port_report(text, ul.from_native(text), LOGITS, LABELS, mask=keep)
    assert native.same
    assert (native.ran_a, native.ran_b) == ("instead", "spec")
    assert "a itself was not run: torch.nn.CrossEntropyLoss takes no mask" in str(native)
    weighted = ul.port_report(text, text, LOGITS, LABELS, WEIGHT)
    assert weighted.reason_a == weighted.reason_b
    assert "takes no sample weights" in str(weighted.reason_a)
    with pytest.raises(ul.UnsupportedError, match="takes no mask"):
        ul.port_report(
            "torch.nn.CrossEntropyLoss(label_smoothing=1.5)", CE, LOGITS, LABELS, mask=keep
        )


@pytest.mark.framework("torch")
def test_a_bound_spec_is_a_spec() -> None:
    """A loss that `to` bound to a framework is compared as its spec."""
    report = ul.port_report(CE.to("torch"), CE.replace(label_smoothing=0.1), LOGITS, LABELS)
    assert report.rules == ("label_smoothing",)
    assert (report.ran_a, report.a) == ("spec", repr(CE))


DEVIATIONS: list[tuple[str, Any, Any, str]] = [
    (
        "tf.nn.softmax_cross_entropy_with_logits",
        LOGITS,
        2 * np.eye(5, dtype=np.float32)[LABELS],
        "target_sum",
    ),
    (
        "tf.nn.softmax_cross_entropy_with_logits",
        LOGITS,
        np.eye(5, dtype=np.float32)[:1],
        "dense_shape",
    ),
    (
        "torch.nn.NLLLoss()",
        np.full((1000, 3), -300, np.float16),
        np.zeros(1000, np.int64),
        "half_mean",
    ),
    (
        "torch.nn.BCELoss()",
        np.array([0, 1], np.float16),
        np.array([0, 1], np.float16),
        "half_gradient",
    ),
    (
        'torch.nn.BCELoss(reduction="sum")',
        np.zeros(700, np.float16),
        np.ones(700, np.float16),
        "half_sum",
    ),
    (
        "keras.losses.SparseCategoricalCrossentropy()",
        np.array([[0.5, -0.2, 0.7]], np.float32),
        [0],
        "probability_range",
    ),
    (
        "functools.partial(tf.compat.v1.losses.log_loss, epsilon=0.0)",
        np.zeros(2, np.float32),
        np.zeros(2, np.float32),
        "zero_times_log",
    ),
    ("sklearn.metrics.log_loss", np.array([[0.9, 0.1], [0.2, 0.8]]), [1, 2], "label_order"),
    ("sklearn.metrics.mean_squared_error", np.array([0.5, np.inf]), [0.0, 0.0], "not_finite"),
    (
        "torch.nn.CrossEntropyLoss(weight=[1, 0, 2], label_smoothing=0.1)",
        np.array([[2, -np.inf, 0]], np.float32),
        [0],
        "weightless_infinity",
    ),
]


@pytest.mark.framework("torch", "tensorflow", "keras")
@pytest.mark.parametrize(
    ("loss", "predictions", "targets", "rule"),
    DEVIATIONS,
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_deviation_that_the_tensors_show_is_named(
    loss: str, predictions: Any, targets: Any, rule: str
) -> None:
    """The report names the one deviation that the tensors show, with its sentence."""
    report = ul.port_report(loss, ul.from_native(loss), predictions, targets)
    assert report.rules == (rule,)
    (attempt,) = report.attempts
    assert attempt.reason is not None
    assert f"\n  {attempt.reason}" in str(report)
    explained = " ".join(str(text) for _, text in ul.explain(loss).deviations)
    assert all(sentence in explained for sentence in attempt.reason.split(" Or: "))


ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]


@pytest.mark.parametrize(
    ("a", "b", "predictions", "targets", "letters", "says"),
    [
        (CE, CE.replace(label_smoothing=0.1), SOFT, LABELS, "a and b", "every row of predictions"),
        (CE, ul.CrossEntropyLoss(), SOFT, LABELS, "a", "set from_logits=False"),
        (CE, CE, LOGITS[:, :1], 0 * LABELS, "a and b", "there is one class"),
        (ul.CrossEntropyLoss(), ul.MeanSquaredError(), ONE_HOT, SOFT, "a", "arguments swapped?"),
        ("torch.nn.NLLLoss()", ul.CrossEntropyLoss(), SOFT, LABELS, "a", "take the logarithm"),
    ],
)
@pytest.mark.framework("torch")
def test_hints_of_a_report(
    a: Any, b: Any, predictions: Any, targets: Any, letters: str, says: str
) -> None:
    """A report says what the tensors suggest, and of which loss; nothing else of it changes."""
    report = ul.port_report(a, b, predictions, targets)
    (hint,) = report.hints
    assert hint.startswith(f"Hint for {letters}: ")
    assert says in hint
    assert hint in str(report).splitlines()
    assert (report.error_a, report.error_b) == (None, None)
    assert ul.port_report(CE, CE, LOGITS, LABELS).hints == ()
