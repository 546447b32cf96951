"""Check the oracle on the rules for other libraries' losses.

The plain formulas and their central differences are those of `tests.test_reference`; the results
at special values are worked out by hand.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests.test_reference import (
    DTYPES,
    F32,
    INF,
    NAN,
    REDUCTIONS,
    Case,
    assert_same,
    check,
    labels,
    number,
    numbers,
    round_on_grid,
    with_companions,
)
from unifiedloss.errors import EmptyMeanError, ShapeError, SpecValueError
from unifiedloss.floats import FORMATS
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy import oracle as cross_entropy
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.oracle.positions import PositionRules
from unifiedloss.oracle.reduction import Reduction
from unifiedloss.reference import Tensor, evaluate, tensor
from unifiedloss.spec import Loss

RULES = [*REDUCTIONS, {"divisor": "label_weights"}]


def by_name(rule: dict[str, Any]) -> str:
    """The id of a test with these fields."""
    return "-".join(map(str, rule.values()))


# -------------------------------------------------------------------------------- by plain formulas


@pytest.mark.parametrize("rule", RULES, ids=by_name)
@pytest.mark.parametrize("kind", ["index", "dense"])
def test_rules_of_the_cross_entropy_are_their_plain_formula(
    rule: dict[str, Any], kind: str
) -> None:
    """Value and all gradients agree for log-likelihood, class weighting and renormalization."""
    rng = random.Random(f"{rule}{kind}")
    n, k = 3, 3
    weights = [rng.uniform(0, 3) for _ in range(k)]
    specs: list[tuple[Loss, float, float]] = [
        (NegativeLogLikelihoodLoss(**rule), -5.0, 5.0),
        (
            NegativeLogLikelihoodLoss(
                class_weights=weights, ignore_index=7 if kind == "index" else None, **rule
            ),
            -5.0,
            0,
        ),
        (CrossEntropyLoss(from_logits=True, scale=0.3, label_smoothing=0.1, **rule), -4.0, 4.0),
    ]
    for smoothing, weighting in itertools.product((0.0, 0.1), ("entries", "position")):
        common: dict[str, Any] = {
            "class_weights": weights,
            "class_weighting": weighting,
            "label_smoothing": smoothing,
        }
        specs += [
            (CrossEntropyLoss(from_logits=True, **common, **rule), -4.0, 4.0),
            (CrossEntropyLoss(epsilon="sklearn", scale=2.5, **common, **rule), 0.01, 0.99),
            (CrossEntropyLoss(epsilon=0.2, renormalize="before_clip", **common, **rule), 0.01, 5.0),
            (CrossEntropyLoss(epsilon=0.2, renormalize="after_clip", **common, **rule), 0.01, 1.5),
            (
                CrossEntropyLoss(epsilon="keras", renormalize="before_clip", **common, **rule),
                0.01,
                5.0,
            ),
        ]
    for spec, low, high in specs:
        targets = labels(*rng.choices([*range(k)], k=n))
        if kind == "dense":
            targets = numbers(rng, rng.choice(DTYPES), 0.0625, 1.5, n, k)
        predictions = numbers(rng, rng.choice(DTYPES), low, high, n, k)
        check(with_companions(Case(spec, predictions, targets), rng, n))


@pytest.mark.parametrize("rule", REDUCTIONS, ids=by_name)
def test_rules_of_the_binary_cross_entropy_are_their_plain_formula(rule: dict[str, Any]) -> None:
    """Value and all gradients agree for epsilons, the axis of pos_weight, scale and averages."""
    rng = random.Random(f"{rule}")
    shape = (2, 3, 2)
    three = [rng.uniform(0, 3) for _ in range(3)]
    common: dict[str, Any] = {"label_smoothing": 0.1, "scale": 1.75, **rule}
    specs = [
        BinaryCrossEntropyLoss(from_logits=True, pos_weight=three, axis=1, **common),
        BinaryCrossEntropyLoss(
            pos_weight=three, axis=-2, epsilon=0.0625, epsilon_added=True, **common
        ),
        BinaryCrossEntropyLoss(epsilon="keras", **common),
        BinaryCrossEntropyLoss(epsilon="sklearn", pos_weight=2.5, **common),
        BinaryCrossEntropyLoss(epsilon=0.1, element_weights=[[0.5], [1.5], [3.0]], **common),
        BinaryCrossEntropyLoss(
            epsilon=0.1, element_weights=[0.5, 1.5], average_last_axis=True, **common
        ),
    ]
    for spec in specs:
        dtype = rng.choice(DTYPES)
        predictions = numbers(rng, dtype, -4.0, 4.0, *shape)
        if not spec.from_logits:
            predictions = numbers(rng, dtype, 0.01, 0.98, *shape)
        targets = numbers(rng, rng.choice(DTYPES), 0.0625, 0.9375, *shape)
        check(accompanied(Case(spec, predictions, targets), rng))


@pytest.mark.parametrize("rule", REDUCTIONS, ids=by_name)
def test_weights_of_elements_and_averages_are_their_plain_formula(rule: dict[str, Any]) -> None:
    """Value and all gradients of the squared error agree."""
    rng = random.Random(f"{rule}")
    fields: list[dict[str, Any]] = [
        {"element_weights": 2.5},
        {"element_weights": [0.5, 0.0, 1.5]},
        {"element_weights": [[[1.0], [2.0]], [[3.0], [4.0]]], "scale": 0.3},
        {"average_last_axis": True},
        {
            "average_last_axis": True,
            "element_weights": [[0.0, 0.0, 0.0], [0.5, 2.0, 1.5]],
            "scale": 0.3,
        },
    ]
    for more in fields:
        predictions = numbers(rng, rng.choice(DTYPES), -8.0, 8.0, 2, 2, 3)
        targets = numbers(rng, rng.choice(DTYPES), -4.0, 4.0, 2, 2, 3)
        check(accompanied(Case(MeanSquaredError(**more, **rule), predictions, targets), rng))


def accompanied(case: Case, rng: random.Random) -> Case:
    """The case with or without weights, mask and upstream gradient, shaped like its positions."""
    shape = case.predictions.shape
    if case.spec.average_last_axis:  # type: ignore[union-attr]
        shape = shape[:-1]
    case = with_companions(case, rng, math.prod(shape))
    given = {
        name: x._replace(shape=shape)
        for name in ("sample_weight", "mask")
        if (x := getattr(case, name))
    }
    return replace(case, **given)


def test_the_clamp_has_the_gradient_torch_gives_it() -> None:
    """The loss uses the clamped logarithm, the gradient is (p - t') / max(p (1 - p), 1e-12)."""
    rng = random.Random(11)
    probabilities = [
        0.0,
        1.0,
        2.0**-126,
        1e-12,
        1e-13,
        0.5,
        0.3,
        1 - 2.0**-24,
        1 - 2.0**-45,
        1 - 2.0**-53,
        4e-44,
        3e-44,
        1e-300,
    ]
    least = Fraction(float(np.float32(1e-12)))  # torch's float32 constant, also for float64
    for smoothing, dtype in itertools.product((0.0, 0.1), ("float32", "float64")):
        values = [round_on_grid(Fraction(p), FORMATS[dtype]) for p in probabilities]
        for t in (0.0, 1.0, number(rng, dtype, 0.1, 0.9)):
            spec = BinaryCrossEntropyLoss(
                epsilon="torch", reduction="none", label_smoothing=smoothing
            )
            found = evaluate(
                spec, tensor(values, dtype=dtype), tensor([t] * len(values), dtype=dtype)
            )
            form, tiny = FORMATS[dtype], FORMATS[dtype].tiny
            assert isinstance(found.loss, list)
            assert found.grad_predictions is not None
            assert found.grad_targets is not None
            for i, value in enumerate(values):
                p = Fraction(value if value >= tiny else 0.0)
                yes = (1 - Fraction(smoothing)) * Fraction(t) + Fraction(smoothing) / 2
                with localcontext(Context(prec=400)):
                    a, b = (
                        Fraction(min(-_decimal(x).ln(), Decimal(100)) if x else 100)
                        for x in (p, 1 - p)
                    )
                slope = (p - yes) / max(p * (1 - p), least)
                by_target = (1 - Fraction(smoothing)) * (a - b)
                assert_same(found.loss[i], round_on_grid(yes * a + (1 - yes) * b, form))
                assert_same(found.grad_predictions[i], round_on_grid(slope, form))
                assert_same(found.grad_targets[i], round_on_grid(by_target, form))


def _decimal(x: Fraction) -> Decimal:
    return Decimal(x.numerator) / Decimal(x.denominator)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_named_dtype_is_what_everything_is_read_in(dtype: Any) -> None:
    """Results are those of tensors cast to the dtype that the spec names.

    Gradients are rounded to that dtype, and then to the dtype of each tensor.
    """
    rng = np.random.default_rng(3)
    for own in ("float64", "float32", "float16"):
        p, t, w = (rng.random((3, 2)).astype(own) for _ in range(3))
        w = w[:, 0]
        for spec in (
            CrossEntropyLoss(epsilon="keras", renormalize="before_clip"),
            BinaryCrossEntropyLoss(epsilon="keras", average_last_axis=True),
            MeanSquaredError(average_last_axis=True, divisor="present"),
        ):
            own_tensors = [Tensor(x.ravel().tolist(), x.shape, own) for x in (p, t, w)]
            cast = [Tensor(x.astype(dtype).ravel().tolist(), x.shape, dtype) for x in (p, t, w)]
            found, expected = (
                evaluate(spec.replace(dtype=dtype), *own_tensors),
                evaluate(spec, *cast),
            )
            assert_same(found.loss, expected.loss)
            for name in ("grad_predictions", "grad_targets", "grad_sample_weight"):
                narrowed = np.array(getattr(expected, name)).astype(dtype).astype(own)
                assert_same(getattr(found, name), narrowed.tolist())
    small = evaluate(
        BinaryCrossEntropyLoss(dtype="float32", reduction="none"),
        tensor([1e-40, 0.5], dtype="float64"),
        tensor([1, 0]),
    )
    assert_same(small.loss, [INF, round_on_grid(Fraction(math.log(2)), F32)])


POSITIONS = Case(
    CrossEntropyLoss(
        epsilon=0.3,
        renormalize="before_clip",
        class_weights=[0.5, 3.0],
        class_weighting="position",
        scale=2.0,
    ),
    tensor([[0.25, 1.5], [2.0, 2.5]]),
    tensor([[0.5, 0.25], [0.75, 1.0]]),
)
ELEMENTS = Case(
    BinaryCrossEntropyLoss(
        from_logits=True,
        pos_weight=[0.5, 3.0],
        axis=0,
        element_weights=[1.0, 2.5],
        average_last_axis=True,
    ),
    tensor([[0.25, 1.5], [2.0, 2.5]]),
    tensor([[0.5, 0.25], [0.75, 1.0]]),
    tensor([1.0, 3.0]),
)
WRONG: list[tuple[Case, Any, str, Any]] = [
    (
        POSITIONS,
        cross_entropy,
        "_by_targets",
        lambda rules, x, *_: [cross_entropy._by_target(rules, c, cost) for c, cost in enumerate(x)],
    ),
    (
        POSITIONS,
        PositionRules,
        "clipped",
        lambda self, p: (min(max(p, self.lowest), self.highest), False),
    ),
    (ELEMENTS, Reduction, "_unit_weight", lambda *_: Fraction(1)),
    (ELEMENTS, Reduction, "_pos_weight", lambda self, i: Fraction(self.plan.pos_weight[i % 2])),
]


@pytest.mark.parametrize(
    ("case", "of", "name", "wrong"), WRONG, ids=[name for _, _, name, _ in WRONG]
)
def test_the_check_catches_a_wrong_rule(
    case: Case, of: type, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check finds each wrong rule, so it can fail.

    The wrong rules are class weights that are constant by the targets, a clip that passes the
    gradient, averages with weight 1, and the wrong axis of pos_weight.
    """
    check(case)
    monkeypatch.setattr(of, name, wrong)
    with pytest.raises(AssertionError, match=r"is not|gradient of"):
        check(case)


# ----------------------------------------------------------------------------------- special values


def test_log_probabilities_are_any_numbers() -> None:
    """IEEE rules hold for entries with weight, others are not read; the gradient is -tau always."""
    spec = NegativeLogLikelihoodLoss(reduction="none")
    x = tensor([[-INF, -1.0, INF], [NAN, -1.0, -INF], [0.5, 2.0**127, -0.0]])
    for label, loss in ((0, [INF, NAN, -0.5]), (1, [1.0, 1.0, -(2.0**127)]), (2, [-INF, INF, 0.0])):
        found = evaluate(spec, x, labels(label, label, label))
        rounded = [round_on_grid(Fraction(v), F32) if math.isfinite(v) else v for v in loss]
        assert_same(found.loss, rounded)
        assert_same(found.grad_predictions, [-1.0 if c == label else 0.0 for c in range(3)] * 3)
        assert found.bad_positions == ()
    unread = evaluate(spec.replace(class_weights=[0.0, 2.0, 0.0]), x, tensor([[1.0, 0.5, 1.0]] * 3))
    assert_same(unread.loss, [1.0, 1.0, round_on_grid(-Fraction(x.values[7]), F32)])
    assert_same(unread.grad_predictions, [0.0, -1.0, 0.0] * 3)
    # The derivative by a target of 0 is -x, but 0 for an infinity or NaN, which is not read.
    dense = evaluate(spec, tensor([[-2.0, -INF, NAN, -0.25]]), tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert_same([dense.loss, dense.grad_targets], [[0.25], [2.0, 0.0, 0.0, 0.25]])
    both = evaluate(spec, tensor([[-INF, INF]]), tensor([[0.5, 0.5]]))
    assert_same(
        [both.loss, both.grad_predictions, both.grad_targets], [[NAN], [-0.5, -0.5], [INF, -INF]]
    )
    bad = evaluate(spec, tensor([[-1.0, -2.0]] * 2), labels(2, 0))
    assert bad.bad_positions == (0,)
    assert_same([bad.loss, bad.grad_predictions], [[NAN, 1.0], [NAN, NAN, -1.0, 0.0]])


def test_renormalized_rows_at_special_values() -> None:
    """Renormalizing reads every entry, allows numbers above 1, and gives NaN for a sum of 0.

    If the clip comes first, there is no sum of 0.
    """
    tiny = 2.0**-126
    rows = [
        [2.0, 1.0, 1.0],
        [0.0, 0.0, 0.0],
        [tiny / 2, 0.0, 0.0],
        [-tiny / 2, 1.0, 0.0],
        [NAN, 1.0, 1.0],
    ]
    rows += [[-tiny, 1.0, 1.0], [INF, 1.0, 1.0], [-INF, 1.0, 1.0], [2.0, 3e38, 3e38]]

    def rounded(v: float) -> float:
        return round_on_grid(Fraction(v), F32) if math.isfinite(v) else v

    x = tensor([[rounded(v) for v in row] for row in rows])
    for first in (True, False):
        spec = CrossEntropyLoss(
            epsilon=0.0625, renormalize="before_clip" if first else "after_clip", reduction="none"
        )
        found = evaluate(spec, x, labels(*[0] * len(rows)))
        assert found.bad_positions == (5, 6, 7)
        low = -math.log(0.0625)
        highest = -math.log(0.9375 / (3 * 0.9375))
        expected = [math.log(2), NAN, NAN, low, NAN, NAN, NAN, NAN, low]
        if not first:
            again = -math.log(0.0625 / (0.0625 + 0.9375 + 0.0625))
            expected = [highest, math.log(3), math.log(3), again, NAN, NAN, NAN, NAN, highest]
        assert found.loss == pytest.approx(expected, rel=1e-7, nan_ok=True)
        gradient = np.reshape(found.grad_predictions, (-1, 3))  # type: ignore[arg-type]
        # If the clip comes first, clipped entries have gradient 0, also beside a NaN.
        assert_same(gradient[4].tolist(), [NAN, NAN, NAN] if first else [NAN, 0.0, 0.0])
        gradient[4] = NAN
        assert_same(np.isnan(gradient).all(1).tolist(), np.isnan(expected).tolist())
        assert_same(gradient[0].tolist(), [-0.25, 0.25, 0.25] if first else [0.0, 0.0, 0.0])
        assert_same(gradient[3].tolist(), [0.0, 0.0, 0.0])


def test_clip_bounds_are_those_of_the_dtype() -> None:
    """Keras' bounds are 1e-7 and 1 - 1e-7 rounded to the dtype, scikit-learn's its epsilon."""
    for dtype, low, high in (
        ("float64", 1e-7, 1 - 1e-7),
        ("float32", float(np.float32(1e-7)), float(np.float32(1) - np.float32(1e-7))),
        ("float16", float(np.float16(1e-7)), 1.0),
        ("bfloat16", round_on_grid(Fraction(1e-7), FORMATS["bfloat16"]), 1.0),
    ):
        form = FORMATS[dtype]
        p = tensor([0.0, 1.0], dtype=dtype)
        spec = BinaryCrossEntropyLoss(epsilon="keras", reduction="none")
        wrong = evaluate(spec, p, tensor([1.0, 0.0]))
        assert_same(wrong.loss, [_log_of(low, form), _log_of(1.0 - high, form)])
        assert_same(wrong.grad_predictions, [0.0, INF if high == 1.0 else 0.0])
        right = evaluate(spec, p, tensor([0.0, 1.0]))
        assert_same(right.loss, [_log_of(Fraction(1) - Fraction(low), form), _log_of(high, form)])
        eps = form.epsilon
        assert_same(
            evaluate(spec.replace(epsilon="sklearn"), p, tensor([1.0, 0.0])).loss,
            [_log_of(eps, form)] * 2,
        )


def _log_of(p: float | Fraction, form: Any) -> float:
    with localcontext(Context(prec=60)):
        return INF if not p else round_on_grid(Fraction(-_decimal(Fraction(p)).ln()), form)


def test_an_added_epsilon_may_give_a_negative_loss() -> None:
    """With an added epsilon the loss -log(1 + epsilon) is negative, and no loss is infinite."""
    spec = BinaryCrossEntropyLoss(epsilon=0.25, epsilon_added=True, reduction="none")
    found = evaluate(
        spec, tensor([1.0, 0.0, 1 + 2.0**-22, 2.0**-127]), tensor([1.0, 1.0, 0.0, 0.0])
    )
    negative, positive = _log_of(1.25, F32), _log_of(0.25, F32)
    assert negative < 0
    assert_same(found.loss, [negative, positive, positive, negative])
    assert_same(
        found.grad_predictions, [round_on_grid(Fraction(x), F32) for x in (-0.8, -4.0, 4.0, 0.8)]
    )
    assert evaluate(spec, tensor([1.5, 0.5]), tensor([1.0, 1.0])).bad_positions == (0,)


def test_class_weights_of_positions_at_special_values() -> None:
    """A class weight of 0 does not hide a NaN, and turns an infinite loss into 0."""
    spec = CrossEntropyLoss(class_weights=[0.0, 2.0], class_weighting="position", reduction="none")
    p = tensor([[0.0, 1.0], [0.0, 1.0], [NAN, 1.0]])
    found = evaluate(spec, p, labels(0, 1, 0))
    assert_same(
        [found.loss, found.grad_predictions], [[0.0, 0.0, NAN], [0.0, 0.0, 0.0, -2.0, NAN, 0.0]]
    )
    smooth = evaluate(
        spec.replace(label_smoothing=0.5), p, tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    )
    assert_same(smooth.loss, [0.0, INF, NAN])
    assert_same(smooth.grad_predictions, [0.0, 0.0, -INF, -1.5, NAN, 0.0])
    assert smooth.grad_targets is not None
    assert_same(smooth.grad_targets[:4], [0.0, 0.0, INF, INF])
    assert_same(
        evaluate(
            spec.replace(reduction="mean"),
            p,
            labels(0, 0, 0),
            mask=tensor([True, False, False], dtype="bool"),
        ).loss,
        NAN,
    )


def test_elements_of_weight_zero_are_not_read() -> None:
    """Elements of weight 0 are not checked; a product of weights below 2^-126 counts as 0 too."""
    spec = BinaryCrossEntropyLoss(element_weights=[1.0, 0.0], reduction="none")
    x, t = tensor([[0.5, NAN], [0.5, 7.0]]), tensor([[1.0, -3.0], [1.0, NAN]])
    half = round_on_grid(Fraction(math.log(2)), F32)
    found = evaluate(spec, x, t, tensor([1.0, 2.0]))
    assert found.bad_positions == ()
    assert_same(found.loss, [half, 0.0, 2 * half, 0.0])
    assert_same(found.grad_predictions, [-2.0, 0.0, -4.0, 0.0])
    averaged = evaluate(spec.replace(average_last_axis=True), x, t)
    assert_same([averaged.loss, averaged.grad_predictions], [[half / 2] * 2, [-1.0, 0.0] * 2])
    mean = evaluate(spec.replace(reduction="mean"), x, t, tensor([1.0, 3.0]))
    assert_same([mean.loss, mean.divisor], [half, 4.0])
    assert mean.grad_sample_weight == [0.0, 0.0]
    rows = spec.replace(reduction="mean", average_last_axis=True)
    for divisor, expected in (("weights", 2.0), ("present", 2.0), ("all", 2.0), ("nonzero", 2.0)):
        found = evaluate(rows.replace(divisor=divisor), x, t, tensor([1.0, 3.0]))
        assert found.divisor == expected
    off = evaluate(spec.replace(element_weights=[1.0, 2.0**-60]), x, t, tensor([1.0, 2.0**-70]))
    assert off.bad_positions == (1,)
    with pytest.raises(EmptyMeanError):
        evaluate(MeanSquaredError(element_weights=0.0, on_empty="error"), x, t)


def test_a_bad_element_poisons_its_position() -> None:
    """Its position has a NaN loss, counts as bad, and has no gradient that is a number."""
    spec = BinaryCrossEntropyLoss(average_last_axis=True, reduction="none")
    found = evaluate(spec, tensor([[0.5, 2.0], [0.5, 0.5]]), tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert found.bad_positions == (0,)
    assert isinstance(found.loss, list)
    assert math.isnan(found.loss[0])
    assert_same(found.grad_predictions, [NAN, NAN, -1.0, 1.0])
    nan_target = evaluate(spec, tensor([[0.5, 0.5], [0.5, NAN]]), tensor([[1.0, NAN], [1.0, 0.0]]))
    assert nan_target.bad_positions == ()
    assert_same(nan_target.grad_predictions, [NAN, NAN, -1.0, NAN])


def test_rules_that_frameworks_publish() -> None:
    """The oracle gives the numbers that each framework gives."""
    x, one = tensor([[2.0, 1.0, 1.0]]), labels(0)
    # Keras renormalizes before the clip on JAX, and after it on TensorFlow.
    for order, expected in (("before_clip", 0.693147), ("after_clip", 1.098612)):
        spec = CrossEntropyLoss(epsilon="keras", renormalize=order)  # type: ignore[arg-type]
        assert evaluate(spec, x, one).loss == pytest.approx(expected, abs=1e-6)
    binary = tensor([0.0, 1.0]), tensor([1.0, 0.0])
    for epsilon, losses in (
        ("keras", [16.118095, 15.942385]),
        ("torch", [100, 100]),
        ("sklearn", [15.942385] * 2),
    ):
        spec_b = BinaryCrossEntropyLoss(epsilon=epsilon, reduction="none")  # type: ignore[arg-type]
        found = evaluate(spec_b, *binary)
        assert found.loss == pytest.approx(losses, abs=1e-6)
        if epsilon == "torch":
            assert found.grad_predictions == pytest.approx([-1e12, 1e12])
    row = tensor([[2.0, 1.0, 0.0]])
    for weighting, expected in (("entries", 0.795287), ("position", 0.507606)):  # torch, keras
        spec = CrossEntropyLoss(
            from_logits=True,
            class_weights=[1, 2, 4],
            label_smoothing=0.1,
            class_weighting=weighting,
            divisor="all",  # type: ignore[arg-type]
        )
        assert evaluate(spec, row, labels(0)).loss == pytest.approx(expected, abs=5e-7)
    logits = tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, -1.0], [0.5, 0.5, 0.5]])
    torch = CrossEntropyLoss(from_logits=True, class_weights=[1, 2, 4], divisor="label_weights")
    assert evaluate(torch, logits, labels(0, 1, 1, 2)).loss == pytest.approx(0.878126, abs=5e-7)
    hot = tensor(np.eye(3)[[0, 1, 1, 2]].tolist())
    assert evaluate(torch, logits, hot).loss == pytest.approx(1.975783, abs=5e-7)
    # torch.nn.functional.mse_loss divides by the sum of the weights.
    weighted = MeanSquaredError(element_weights=[1, 3])
    assert evaluate(weighted, tensor([1.0, 2.0]), tensor([0.0, 0.0])).loss == 3.25
    bce = BinaryCrossEntropyLoss(epsilon="torch", element_weights=[1, 3], divisor="all")
    assert evaluate(bce, tensor([0.5, 0.5]), tensor([1.0, 0.0])).loss == pytest.approx(
        1.386294, abs=5e-7
    )
    keras = MeanSquaredError(average_last_axis=True, reduction="sum")
    assert evaluate(keras, tensor([[1.0, 2.0], [3.0, 4.0]]), tensor([[0.0, 0.0]] * 2)).loss == 15.0
    assert evaluate(
        MeanSquaredError(scale=0.5, reduction="none"), tensor([3.0]), tensor([1.0])
    ).loss == [2.0]


def test_what_the_rules_refuse() -> None:
    """Shapes that do not fit the spec are refused."""
    x = tensor([[0.5, 0.5, 0.5]] * 2)
    with pytest.raises(SpecValueError, match="element_weights of shape"):
        evaluate(MeanSquaredError(element_weights=[1.0, 2.0]), x, x)
    with pytest.raises(SpecValueError, match="pos_weight has 2 entries, and axis 1"):
        evaluate(BinaryCrossEntropyLoss(pos_weight=[1.0, 2.0], axis=1), x, x)
    with pytest.raises(ShapeError, match="average_last_axis leaves no position"):
        evaluate(MeanSquaredError(average_last_axis=True), tensor([0.5]), tensor([0.5]))
