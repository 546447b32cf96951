"""Check the oracle against plain formulas, central differences, worked-out ties, published numbers.

The plain formulas below are an independent second implementation of the definitions in the specs'
docstrings. They use 100 digits instead of a shift, log1p or careful rounding. They cover finite
numbers only; special values are worked out by hand.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from unifiedloss import reference
from unifiedloss.errors import DTypeError, EmptyMeanError, ShapeError, SpecValueError
from unifiedloss.floats import FORMATS, Format
from unifiedloss.losses.binary_cross_entropy import oracle as binary_cross_entropy
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy import oracle as cross_entropy
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.oracle import extended, reals, reduction
from unifiedloss.oracle.positions import Position, PositionRules
from unifiedloss.oracle.rounding import narrow, nearest
from unifiedloss.oracle.softmax import SoftmaxRow
from unifiedloss.reference import Reference, Tensor, evaluate, tensor
from unifiedloss.spec import Loss

NAN = math.nan
INF = math.inf
F32 = FORMATS["float32"]

LOGITS = [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, -1.0], [0.5, 0.5, 0.5]]
LABELS = [0, 1, 1, 2]


def labels(*values: int, dtype: str = "int64") -> Tensor:
    """Class indices, one per position."""
    return tensor(list(values), dtype=dtype)


def same(actual: Any, expected: Any) -> bool:
    """Compare numbers or lists, with NaN equal to NaN and -0 not equal to +0."""
    if isinstance(expected, list):
        return len(actual) == len(expected) and all(map(same, actual, expected))
    if math.isnan(expected):
        return math.isnan(actual)
    return bool(actual == expected and math.copysign(1.0, actual) == math.copysign(1.0, expected))


def assert_same(actual: Any, expected: Any) -> None:
    """Assert `same`, and show both sides."""
    assert same(actual, expected), f"{actual} is not {expected}"


# ----------------------------------------------------------------------------------------- rounding


def round_on_grid(value: Fraction, form: Format) -> float:
    """Round independently of the oracle, with Python's `round` of a Fraction of the last unit."""
    try:
        exponent = math.frexp(float(value))[1] - 1
    except OverflowError:
        return INF if value > 0 else -INF
    unit = Fraction(2) ** (max(exponent, form.min_exponent) - form.precision + 1)
    rounded = round(value / unit) * unit
    if abs(rounded) > Fraction(form.largest):
        return INF if value > 0 else -INF
    return float(rounded)


def awkward_numbers(form: Format, rng: random.Random) -> list[Fraction]:
    """Numbers at, just above and just below numbers of the format and their midpoints."""
    exponents = [
        form.min_exponent - form.precision,
        form.min_exponent - 3,
        form.min_exponent - 1,
        form.min_exponent,
    ]
    exponents += [-3, 0, 1, form.max_exponent - 1, form.max_exponent]
    numbers = []
    for exponent in exponents:
        unit = Fraction(2) ** (max(exponent, form.min_exponent) - form.precision + 1)
        start = Fraction(2) ** exponent // unit
        stop = max(start, Fraction(2) ** (exponent + 1) // unit)
        for steps in (start, start + 1, stop - 1, rng.randint(int(start), int(stop))):
            for half in (Fraction(0), Fraction(1, 2), Fraction(rng.getrandbits(80), 2**80)):
                offsets = (Fraction(0), Fraction(1, 2**90), -Fraction(1, 2**90), Fraction(1, 3))
                numbers.extend((steps + half + off) * unit for off in offsets)
    return numbers + [-x for x in numbers]


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_agrees_with_rounding_on_the_grid(name: str) -> None:
    """Two implementations of rounding agree at, above and below every kind of midpoint."""
    form, rng = FORMATS[name], random.Random(1)
    numbers = awkward_numbers(form, rng)
    assert len(numbers) > 800
    for number in numbers:
        assert_same(nearest(number, form), round_on_grid(number, form))
        if abs(number) < Fraction(FORMATS["float64"].largest):
            double = float(number)
            assert_same(narrow(double, form), round_on_grid(Fraction(double), form))
    largest = FORMATS["float64"].largest  # scaling it would overflow
    assert_same(narrow(largest, form), round_on_grid(Fraction(largest), form))
    assert_same(narrow(-largest, form), round_on_grid(Fraction(-largest), form))


@pytest.mark.parametrize("name", FORMATS)
def test_a_sticky_bit_is_a_number_below_all_resolution(name: str) -> None:
    """A sticky bit rounds like 2^-2000 added to the number."""
    form = FORMATS[name]
    tiny = Fraction(1, 2**2000)
    for number in awkward_numbers(form, random.Random(2)):
        for sign in (-1, 1):
            assert_same(nearest(number, form, sign), round_on_grid(number + sign * tiny, form))
    assert_same(nearest(Fraction(0), form, -1), 0.0)


def test_rounding_knows_the_places_where_frameworks_go_wrong() -> None:
    """Numbers that a cast through float32 rounds twice, and the overflow threshold, are right."""
    half, brain = FORMATS["float16"], FORMATS["bfloat16"]
    assert nearest(1 + Fraction(1, 2**11) + Fraction(1, 2**30), half) == 1.0009765625
    assert nearest(1 + Fraction(1, 2**8) + Fraction(1, 2**40), brain) == 1.0078125
    assert nearest(Fraction(65519999999, 10**6), half) == 65504.0
    assert nearest(Fraction(65520), half) == INF
    assert nearest(Fraction(-65520), half) == -INF
    assert nearest(Fraction(1e-40), F32) == 9.99994610111476e-41


# ----------------------------------------------------------------- enclosures of irrational numbers


def atoms() -> dict[str, reals._Atom]:
    """One irrational number of every kind, ordinary and extreme."""

    def partition(*logits: float) -> reals.Partition:
        distinct = sorted(set(logits), reverse=True)
        exact = [reals.EXACT.subtract(Decimal(distinct[0]), Decimal(z)) for z in distinct]
        return reals.Partition(tuple(exact), tuple(logits.count(z) for z in distinct))

    by_name: dict[str, reals._Atom] = {}
    for logits in (
        (0.0, -0.5),
        (0.0, 0.0, -3.25),
        (0.0, -1e-5, -40.0),
        (0.0, -200.0),
        (0.0, -5e-324),
        (7.0, 6.9, -1e5),
        (0.0, -1e17),
    ):
        row = partition(*logits)
        by_name[f"log sum of {logits}"] = row.log_sum
        by_name |= {f"share {g} of {logits}": share for g, share in enumerate(row.shares)}
    for ratio in (
        Fraction(1, 2),
        Fraction(9, 10),
        1 - Fraction(1, 2**53),
        1 - Fraction(1, 10**40),
        Fraction(1, 10**300),
        Fraction(1e-5),
    ):
        by_name[f"-log {float(ratio)!r}"] = reals.NegativeLog(ratio)
    return by_name


@pytest.mark.parametrize("name", atoms())
def test_every_ball_holds_the_number_and_is_small(name: str) -> None:
    """Against 1000 digits, the error bound holds, and it costs at most two digits."""
    atom = atoms()[name]
    exact = atom._evaluate(1000)
    with localcontext(Context(prec=2000, Emin=-(10**18) + 1, Emax=10**18 - 1)):
        for digits in (28, 50, 100, 400):
            ball = atom._evaluate(digits)
            assert abs(ball.middle - exact.middle) <= ball.radius + exact.radius
            assert 0 < ball.radius <= ball.middle * Decimal(10) ** (3 - digits)


def test_a_gap_beyond_decimals_is_a_positive_number_below_all_others() -> None:
    """Numbers too small even for a Decimal are enclosed too."""
    row = reals.Partition((Decimal(0), Decimal(2) * 10**308), (1, 1))
    for atom in (row.log_sum, *row.shares):
        middle, radius = atom.ball(28)
        assert middle == 0
        assert 0 < radius < Decimal("1e-10000000")


def test_logarithms_cancel_over_coprime_bases() -> None:
    """2 log 2 - log 4 and log 6 - log 2 - log 3 leave nothing; log 6 - log 2 leaves something."""

    def terms(*multiples: tuple[int, int]) -> Any:
        """The terms that are left of a sum of n log(d), for pairs of n and d."""
        logs = [(Fraction(n), reals.NegativeLog(Fraction(1, d))) for n, d in multiples]
        return reals.Real(Fraction(0), tuple(logs)).simplified().terms

    assert not terms((1, 4), (-2, 2))
    assert not terms((1, 6), (-1, 2), (-1, 3))
    assert terms((1, 6), (-1, 2))
    rng = random.Random(3)
    numbers = {
        rng.choice([2, 3, 5, 7, 11]) ** rng.randint(1, 9) * rng.choice([1, 6, 35, 77])
        for _ in range(30)
    }
    bases = reals._coprime_bases(set(numbers))
    assert all(math.gcd(a, b) == 1 for a, b in itertools.combinations(bases, 2))
    for number in numbers:
        assert math.prod(base ** reals._power(number, base) for base in bases) == number


def test_an_undecided_rounding_is_an_error_and_never_a_guess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The oracle raises where its digits run out at a tie."""
    # The logarithms cancel because (1 + e^-1)^2 = 1 + 2 e^-1 + e^-2, which the oracle does not
    # know. The rest is a tie.
    once = CrossEntropyLoss(from_logits=True, reduction="sum")
    rows = tensor([[0.0, -1.0, -INF, -INF], [0.0, -1.0, -1.0, -2.0]])
    tie = 1 + 2.0**-24
    monkeypatch.setattr(reals, "_MORE_DIGITS", (50, 100, 400, 800))
    with pytest.raises(AssertionError, match="800 digits do not decide"):
        evaluate(
            once, rows, labels(0, 1), tensor([-2 * tie, tie], dtype="float64"), gradients=False
        )
    # Without a tie the oracle need not know that.
    assert evaluate(once, rows, labels(0, 0), tensor([-2.0, 1.0]), gradients=False).loss == 0.0
    assert evaluate(once, rows, labels(0, 1), tensor([-2.0, 1.0]), gradients=False).loss == 1.0


# ------------------------------------------------------------------------------- the plain formulas


@dataclass(frozen=True)
class Case:
    """A call whose positions are rows (cross-entropy) or elements, with finite numbers only."""

    spec: Loss
    predictions: Tensor
    targets: Tensor
    sample_weight: Tensor | None = None
    mask: Tensor | None = None
    upstream: Any = None

    def evaluate(self, terms: Any = "real") -> Reference:
        """The oracle's answer."""
        return evaluate(
            self.spec,
            self.predictions,
            self.targets,
            self.sample_weight,
            self.mask,
            terms=terms,
            upstream=self.upstream,
        )


Numbers = Sequence[Decimal]


def plain_bounds(spec: Any, dtype: str) -> tuple[Decimal, Decimal]:
    """The lower and upper bound to which probabilities are clipped."""
    form, one = FORMATS[dtype], Decimal(1)
    if spec.epsilon == "keras":
        ends = [round_on_grid(end, form) for end in (Fraction(1e-7), 1 - Fraction(1e-7))]
        return Decimal(ends[0]), Decimal(ends[1])
    if spec.epsilon == "torch" or getattr(spec, "epsilon_added", False):
        return Decimal(0), one
    epsilon = (
        Decimal(2) ** (1 - form.precision) if spec.epsilon == "sklearn" else Decimal(spec.epsilon)
    )
    return epsilon, one - epsilon


def plain_losses(
    case: Case, predictions: Numbers, targets: Numbers
) -> tuple[list[Decimal], list[Decimal]]:
    """The loss and the weight of each row or element, without sample weights.

    Call it in a decimal context of many digits.
    """
    spec = case.spec
    if isinstance(spec, MeanSquaredError):
        losses = [(p - t) ** 2 for p, t in zip(predictions, targets, strict=True)]
    elif isinstance(spec, BinaryCrossEntropyLoss):
        losses = plain_binary(spec, case.predictions, predictions, targets)
    else:
        return plain_rows(spec, case, predictions, targets)
    weights = [Decimal(1)] * len(targets)
    if spec.element_weights is not None:
        wide = np.broadcast_to(np.array(spec.element_weights), case.predictions.shape)
        weights = [Decimal(v) for v in wide.ravel().tolist()]
        losses = [v * loss for v, loss in zip(weights, losses, strict=True)]
    if spec.average_last_axis:
        m = case.predictions.shape[-1]
        losses, weights = (
            [sum(x[i : i + m], Decimal(0)) / m for i in range(0, len(x), m)]
            for x in (losses, weights)
        )
    return losses, weights


def plain_binary(
    spec: BinaryCrossEntropyLoss, x: Tensor, predictions: Numbers, targets: Numbers
) -> list[Decimal]:
    """The binary cross-entropy of each element."""
    smoothing, (low, high) = Decimal(spec.label_smoothing), plain_bounds(spec, x.dtype)
    added = Decimal(spec.epsilon) if spec.epsilon_added else Decimal(0)
    weight: Any = 1 if spec.pos_weight is None else spec.pos_weight
    if isinstance(weight, tuple):
        axis = (-1 if spec.axis is None else spec.axis) % len(x.shape)
        weight = np.reshape(weight, [len(weight) if i == axis else 1 for i in range(len(x.shape))])
    weight = np.broadcast_to(weight, x.shape).ravel().tolist()

    def cost(p: Decimal) -> Decimal:
        if spec.epsilon == "torch":
            return min(-p.ln(), Decimal(100))
        return -(p + added).ln()

    losses = []
    for q, z, t in zip(weight, predictions, targets, strict=True):
        p = 1 / (1 + (-z).exp()) if spec.from_logits else min(max(z, low), high)
        smooth = (1 - smoothing) * t + smoothing / 2
        losses.append(Decimal(q) * smooth * cost(p) + (1 - smooth) * cost(1 - p))
    return losses


def plain_rows(
    spec: Any, case: Case, predictions: Numbers, targets: Numbers
) -> tuple[list[Decimal], list[Decimal]]:
    """The cross-entropy, or the negative log-likelihood, and the weight of each row."""
    size = case.predictions.shape[-1]
    class_weights = [Decimal(w) for w in spec.class_weights or [1.0] * size]
    likelihood = isinstance(spec, NegativeLogLikelihoodLoss)
    by_position = not likelihood and spec.class_weighting == "position" and spec.class_weights
    smoothing = Decimal(0 if likelihood else spec.label_smoothing)
    losses, weights = [], []
    for i in range(len(predictions) // size):
        row = predictions[i * size : (i + 1) * size]
        if case.targets.dtype in FORMATS:
            dense = list(targets[i * size : (i + 1) * size])
        else:
            dense = [Decimal(int(c == targets[i])) for c in range(size)]
        logs = row if likelihood else plain_logs(spec, case.predictions.dtype, row)
        weighted = sum((w * t for w, t in zip(class_weights, dense, strict=True)), Decimal(0))
        loss = Decimal(0)
        for w, t, log in zip(class_weights, dense, logs, strict=True):
            factor = weighted if by_position else w
            loss -= factor * ((1 - smoothing) * t + smoothing / size) * log
        losses.append(loss)
        weights.append(Decimal(1) if spec.class_weights is None else weighted)
    return losses, weights


def plain_logs(spec: CrossEntropyLoss, dtype: str, row: Numbers) -> list[Decimal]:
    """log p of a row of logits, or of probabilities after clipping and renormalizing."""
    if spec.from_logits:
        total = sum(x.exp() for x in row)
        return [(x.exp() / total).ln() for x in row]
    low, high = plain_bounds(spec, dtype)
    if spec.renormalize == "before_clip":
        row = [x / sum(row) for x in row]
    row = [min(max(x, low), high) for x in row]
    if spec.renormalize == "after_clip":
        row = [x / sum(row) for x in row]
    return [x.ln() for x in row]


def repeated(x: Tensor | None, values: Sequence[Any], count: int) -> list[Any]:
    """The values of a weight or mask, each repeated over the trailing axes that it lacks."""
    return list(values) if x is None else [v for v in values for _ in range(count // len(values))]


def plain(case: Case, predictions: Numbers, targets: Numbers, sample_weight: Numbers) -> Decimal:
    """The sum or mean of the losses, each times its upstream gradient."""
    losses, weights = plain_losses(case, predictions, targets)
    count = len(losses)
    factors = repeated(case.sample_weight, sample_weight or [Decimal(1)] * count, count)
    mask = repeated(case.mask, case.mask.values if case.mask else [True] * count, count)
    ignored = getattr(case.spec, "ignore_index", None) or ()
    present = [m and case.targets.values[i] not in ignored for i, m in enumerate(mask)]
    # Read zero weights from the case, because a position with weight 0 stays off while central
    # differences move its weight away from 0.
    switches = [1.0] * count
    if case.sample_weight is not None:
        switches = repeated(case.sample_weight, case.sample_weight.values, count)
    kept = [i for i in range(count) if present[i] and switches[i]]
    upstream = case.upstream
    if not isinstance(upstream, list):
        upstream = [1.0 if upstream is None else upstream] * count
    total = sum((Decimal(upstream[i]) * factors[i] * losses[i] for i in kept), Decimal(0))
    total *= Decimal(getattr(case.spec, "scale", 1.0))
    if case.spec.reduction != "mean":
        return total
    divisors: dict[str, Decimal] = {
        "weights": sum((factors[i] * weights[i] for i in kept), Decimal(0)),
        "present": Decimal(sum(present)),
        "nonzero": Decimal(sum(weights[i] != 0 for i in kept)),
        "all": Decimal(count),
    }
    divisors["label_weights"] = divisors["all" if case.targets.dtype in FORMATS else "weights"]
    return total / divisors[case.spec.divisor]


def central_differences(
    case: Case, formula: Callable[[Case, Numbers, Numbers, Numbers], Decimal]
) -> list[list[Decimal] | None]:
    """The gradients by predictions, floating targets and sample weights."""
    tensors = (case.predictions, case.targets, case.sample_weight)
    values = [[] if x is None else [Decimal(v) for v in x.values] for x in tensors]
    step = Decimal("1e-25")
    gradients: list[list[Decimal] | None] = []
    for x, own in zip(tensors, values, strict=True):
        if x is None or x.dtype not in FORMATS:
            gradients.append(None)
            continue
        slopes = []
        for i, value in enumerate(own):
            ends = []
            for moved in (value - step, value + step):
                own[i] = moved
                ends.append(formula(case, values[0], values[1], values[2]))
            own[i] = value
            slopes.append((ends[1] - ends[0]) / (2 * step))
        gradients.append(slopes)
    return gradients


def check(
    case: Case, formula: Callable[[Case, Numbers, Numbers, Numbers], Decimal] = plain
) -> None:
    """Compare the oracle's loss with the plain formula, and its gradients with central differences.

    The loss must agree bit for bit, and gradients to half a unit in the last place.
    """
    result = case.evaluate()
    with localcontext(Context(prec=100)):
        values = [
            [] if x is None else [Decimal(v) for v in x.values]
            for x in (case.predictions, case.targets, case.sample_weight)
        ]
        if case.spec.reduction != "none":
            expected = formula(replace(case, upstream=None), values[0], values[1], values[2])
            half = case.predictions.dtype in ("float16", "bfloat16")
            form = F32 if half else FORMATS[case.predictions.dtype]
            assert_same(result.loss, round_on_grid(Fraction(expected), form))
        slopes = central_differences(case, formula)
        gradients = (result.grad_predictions, result.grad_targets, result.grad_sample_weight)
        for name, x, gradient, slope in zip(
            ("predictions", "targets", "sample_weight"),
            (case.predictions, case.targets, case.sample_weight),
            gradients,
            slopes,
            strict=True,
        ):
            if slope is None:
                assert gradient is None, f"gradient of {name}"
                continue
            assert x is not None
            assert gradient is not None
            assert len(gradient) == len(slope)
            form = FORMATS[x.dtype]
            for i, (number, exact) in enumerate(zip(gradient, slope, strict=True)):
                # The difference quotient errs by about 1e-50, far less than the slack of 1e-40.
                bound = Fraction(form.ulp(number)) / 2 + Fraction(1, 10**40)
                error = abs(Fraction(number) - Fraction(exact))
                message = f"gradient of {name}[{i}] is {number}, not {exact}, in {case}"
                assert error <= bound, message


def number(rng: random.Random, dtype: str, low: float, high: float) -> float:
    """A random number that uses all digits of the dtype."""
    value = rng.uniform(low, high)
    unit = FORMATS[dtype].ulp(value) if dtype != "float64" else math.ulp(value)
    return min(max(math.floor(value / unit) * unit, low), high)


def numbers(rng: random.Random, dtype: str, low: float, high: float, *shape: int) -> Tensor:
    """A tensor of random numbers."""
    return Tensor([number(rng, dtype, low, high) for _ in range(math.prod(shape))], shape, dtype)


REDUCTIONS: list[dict[str, Any]] = [{"reduction": "none"}, {"reduction": "sum"}]
REDUCTIONS += [{"divisor": divisor} for divisor in ("weights", "present", "nonzero", "all")]
DTYPES = ["float64", "float32", "float16", "bfloat16"]


def with_companions(case: Case, rng: random.Random, count: int) -> Case:
    """The case with or without random weights, mask and upstream gradient.

    Some weights are 0, and some negative where that is allowed.
    """
    if rng.random() < 0.75:
        low = 0.25 if case.spec.reduction == "mean" else -2.0
        weight = numbers(rng, rng.choice(DTYPES), low, 2.0, count)
        if rng.random() < 0.5:
            weight.values[rng.randrange(count - 1)] = 0.0
        case = replace(case, sample_weight=weight)
    if rng.random() < 0.5:
        mask = [rng.random() < 0.6 for _ in range(count - 1)]
        case = replace(case, mask=Tensor([*mask, True], (count,), "bool"))
    if rng.random() < 0.5:
        upstream: Any = rng.uniform(-2, 2)
        if case.spec.reduction == "none":
            upstream = [rng.uniform(-2, 2) for _ in range(count)]
        case = replace(case, upstream=upstream)
    return case


@pytest.mark.parametrize("rule", REDUCTIONS, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("kind", ["index", "dense"])
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_cross_entropy_is_its_plain_formula(
    rule: dict[str, Any], kind: str, from_logits: bool
) -> None:
    """Value and all gradients agree, over the product of all fields."""
    rng = random.Random(f"{rule}{kind}{from_logits}")
    n, k = 3, 3
    for smoothing, weighted, epsilon in itertools.product((0.0, 0.1), (False, True), (0.0, 0.0625)):
        if epsilon and from_logits:
            continue
        dtype = rng.choice(DTYPES)
        spec = CrossEntropyLoss(
            from_logits=from_logits,
            label_smoothing=smoothing,
            epsilon=epsilon,
            class_weights=[rng.uniform(0, 3) for _ in range(k)] if weighted else None,
            ignore_index=k + 4 if kind == "index" else None,
            **rule,
        )
        predictions = (
            numbers(rng, dtype, -4.0, 4.0, n, k)
            if from_logits
            else numbers(rng, dtype, 0.002, 1.0, n, k)
        )
        if kind == "index":
            targets = labels(*rng.choices([*range(k), k + 4], k=n - 1), 1)
        else:
            targets = numbers(rng, rng.choice(DTYPES), 0.0625, 1.5, n, k)
        check(with_companions(Case(spec, predictions, targets), rng, n))


@pytest.mark.parametrize("rule", REDUCTIONS, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("kind", ["bool", "int32", "float"])
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_binary_cross_entropy_is_its_plain_formula(
    rule: dict[str, Any], kind: str, from_logits: bool
) -> None:
    """Value and all gradients agree, over the product of all fields."""
    rng = random.Random(f"{rule}{kind}{from_logits}")
    for smoothing, weighted, epsilon in itertools.product((0.0, 0.1), (0, 1, 2), (0.0, 0.0625)):
        if epsilon and from_logits:
            continue
        spec = BinaryCrossEntropyLoss(
            from_logits=from_logits,
            label_smoothing=smoothing,
            epsilon=epsilon,
            pos_weight=(None, rng.uniform(0, 3), [rng.uniform(0, 3), rng.uniform(0, 3)])[weighted],
            **rule,
        )
        dtype, shape = rng.choice(DTYPES), (2, 2)
        predictions = (
            numbers(rng, dtype, -4.0, 4.0, *shape)
            if from_logits
            else numbers(rng, dtype, 0.002, 0.99, *shape)
        )
        if kind == "float":
            targets = numbers(rng, rng.choice(DTYPES), 0.0625, 0.9375, *shape)
        else:
            choices = [False, True] if kind == "bool" else [0, 1]
            targets = Tensor([rng.choice(choices) for _ in range(4)], shape, kind)
        case = with_companions(Case(spec, predictions, targets), rng, 4)
        aligned = {
            name: x._replace(shape=shape)
            for name in ("sample_weight", "mask")
            if (x := getattr(case, name)) is not None
        }
        check(replace(case, **aligned))


@pytest.mark.parametrize("rule", REDUCTIONS, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("kind", ["bool", "int32", "float"])
def test_squared_error_is_its_plain_formula(rule: dict[str, Any], kind: str) -> None:
    """Value and all gradients agree, over the product of all fields."""
    rng = random.Random(f"{rule}{kind}")
    for dtype in DTYPES:
        predictions = numbers(rng, dtype, -8.0, 8.0, 5)
        if kind == "float":
            targets = numbers(rng, rng.choice(DTYPES), -4.0, 4.0, 5)
        else:
            choices = [False, True] if kind == "bool" else [-3, 0, 7]
            targets = Tensor([rng.choice(choices) for _ in range(5)], (5,), kind)
        check(with_companions(Case(MeanSquaredError(**rule), predictions, targets), rng, 5))


def test_per_position_losses_are_the_plain_formula_bit_for_bit() -> None:
    """Unreduced losses agree bit for bit in all four dtypes."""
    rng = random.Random(5)
    compared = 0
    for dtype, from_logits in itertools.product(DTYPES, (True, False)):
        n, k = 6, 4
        predictions = (
            numbers(rng, dtype, -30.0, 30.0, n, k)
            if from_logits
            else numbers(rng, dtype, 0.001, 1.0, n, k)
        )
        case = Case(
            CrossEntropyLoss(from_logits=from_logits, reduction="none", label_smoothing=0.05),
            predictions,
            labels(*(rng.randrange(k) for _ in range(n))),
        )
        result = case.evaluate()
        with localcontext(Context(prec=100)):
            losses, _ = plain_losses(
                case,
                [Decimal(x) for x in predictions.values],
                [Decimal(t) for t in case.targets.values],
            )
        assert isinstance(result.loss, list)
        for loss, wide, exact in zip(result.loss, result.position_losses, losses, strict=True):
            assert_same(loss, round_on_grid(Fraction(exact), FORMATS[dtype]))
            assert_same(wide, round_on_grid(Fraction(exact), FORMATS["float64"]))
            compared += 1
    assert compared == 48


DENSE = Case(
    CrossEntropyLoss(from_logits=True, label_smoothing=0.25, class_weights=[1.0, 2.0, 4.0]),
    tensor(LOGITS),
    tensor([[0.5, 0.25, 0.5], [0.125, 0.5, 1.0], [0.25, 0.25, 0.25], [1.0, 0.5, 0.0625]]),
    tensor([1.0, 0.5, 2.0, 1.5]),
)
BINARY = Case(
    BinaryCrossEntropyLoss(from_logits=True, label_smoothing=0.25, pos_weight=3.0),
    tensor([0.5, -1.0, 2.0]),
    tensor([0.25, 0.5, 0.75]),
)


def _detached(patch: pytest.MonkeyPatch) -> None:
    """Treat the divisor as a constant."""
    right = reduction.Reduction.__init__

    def wrong(self: reduction.Reduction, *arguments: Any) -> None:
        right(self, *arguments)
        self._weighted = False

    patch.setattr(reduction.Reduction, "__init__", wrong)


def _rows_sum_to_one(patch: pytest.MonkeyPatch) -> None:
    """Make the gradient softmax - tau though the targets' sum T is not 1."""
    right = cross_entropy._from_logits

    def wrong(
        self: PositionRules,
        logits: Sequence[float],
        tau: dict[int, Fraction],
        weight: Any,
    ) -> tuple[Position, Any]:
        position, costs = right(self, logits, tau, weight)
        row = SoftmaxRow(logits, {})
        gradient = [
            extended.combined(
                [(Fraction(1), p), (Fraction(-1), reals.Real(tau.get(c, Fraction(0))))]
            )
            for c, p in enumerate(row.probabilities)
        ]
        return position._replace(predictions=gradient), costs

    patch.setattr(cross_entropy, "_from_logits", wrong)


def _no_chain_rule(patch: pytest.MonkeyPatch) -> None:
    """Take the derivative by the smoothed target for the one by the target."""
    patch.setattr(
        cross_entropy,
        "_by_target",
        lambda self, c, cost: extended.scaled(self.class_weights[c], cost),
    )


def _no_pos_weight(patch: pytest.MonkeyPatch) -> None:
    """Forget the factor of the positive term."""
    patch.setattr(reduction.Reduction, "_pos_weight", lambda *_: Fraction(1))


def _sigma_minus_target(patch: pytest.MonkeyPatch) -> None:
    """Compute the coefficient 1 - t' of sigma(z) as 1 - q t' / 3, which is wrong unless q = 3."""
    right = binary_cross_entropy._binary_logit
    patch.setattr(
        binary_cross_entropy,
        "_binary_logit",
        lambda self, z, yes, _: right(self, z, yes, 1 - yes / 3),
    )


@pytest.mark.parametrize(
    ("case", "spoil"),
    [
        (DENSE, _detached),
        (DENSE, _rows_sum_to_one),
        (DENSE, _no_chain_rule),
        (BINARY, _no_pos_weight),
        (BINARY, _sigma_minus_target),
    ],
)
def test_the_check_catches_a_wrong_formula(
    case: Case, spoil: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check finds each of five wrong gradients, so it can fail."""
    check(case)
    spoil(monkeypatch)
    if spoil is _sigma_minus_target:  # changes nothing for the case's pos_weight of 3
        case = replace(case, spec=case.spec.replace(pos_weight=2.0))
    with pytest.raises(AssertionError, match=r"is not|gradient of"):
        check(case)


def test_the_check_catches_one_unit_in_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds a result that is off by one unit in the last place."""
    right = extended.round_value

    def off(x: Any, form: Format) -> float:
        return right(x, form) + form.ulp(right(x, form))

    monkeypatch.setattr(reduction, "round_value", off)
    with pytest.raises(AssertionError, match="is not"):
        check(DENSE)


# -------------------------------------------------------------------------------- published numbers


def test_cross_entropy_of_the_common_probe() -> None:
    """Numbers that torch, Keras, TensorFlow and scikit-learn give with their divisors agree."""
    rows = evaluate(
        CrossEntropyLoss(from_logits=True, reduction="none"), tensor(LOGITS), labels(*LABELS)
    )
    assert rows.loss == pytest.approx([0.407606, 1.407606, 0.142932, 1.098612], abs=5e-7)
    known: list[tuple[dict[str, Any], tuple[int, ...], list[float] | None, float]] = [
        ({}, (0, 1, 1, 2), None, 0.764189),
        ({"class_weights": [1, 2, 4]}, (0, 1, 1, 2), None, 0.878126),
        ({"class_weights": [1, 2, 4], "divisor": "all"}, (0, 1, 1, 2), None, 1.975783),
        ({}, (0, 1, 1, 2), [1, 0, 3, 1], 0.387003),
        ({"divisor": "all"}, (0, 1, 1, 2), [1, 0, 3, 1], 0.483753),
        ({"divisor": "present"}, (0, 1, 1, 2), [1, 0, 3, 1], 0.483753),
        ({"divisor": "nonzero"}, (0, 1, 1, 2), [1, 0, 3, 1], 0.645004),
        ({"ignore_index": -100}, (0, 1, -100, 2), None, 0.971275),
        ({"ignore_index": -100, "divisor": "all"}, (0, 1, -100, 2), None, 0.728456),
        ({"ignore_index": -100}, (0, -100, 1, 2), None, 0.549717),
        ({"ignore_index": -100, "divisor": "all"}, (0, -100, 1, 2), None, 0.412287),
    ]
    for fields, targets, weight, expected in known:
        found = evaluate(
            CrossEntropyLoss(from_logits=True, **fields),
            tensor(LOGITS),
            labels(*targets),
            None if weight is None else tensor(weight),
        )
        assert found.loss == pytest.approx(expected, abs=1e-6), fields


def test_smoothing_class_weights_and_unnormalised_targets() -> None:
    """Class weights with smoothing follow torch's rule; the sum T of the targets may be 2."""
    smoothed = CrossEntropyLoss(
        from_logits=True, label_smoothing=0.1, class_weights=[1, 2, 4], reduction="none"
    )
    for targets in (labels(0), tensor([[1.0, 0.0, 0.0]])):
        loss = evaluate(smoothed, tensor(LOGITS[:1]), targets).loss
        assert loss == pytest.approx([0.795287], abs=5e-7)
    spec = CrossEntropyLoss(from_logits=True, reduction="none")
    doubled = evaluate(spec, tensor(LOGITS[:1]), tensor([[2.0, 0.0, 0.0]]))
    assert doubled.loss == pytest.approx([0.815212], abs=5e-7)
    assert doubled.grad_predictions is not None
    assert doubled.grad_predictions[0] == pytest.approx(-0.669518, abs=5e-7)
    infinite = evaluate(spec, tensor([[2.0, -INF, 0.0]]), tensor([[1.0, 0.0, 0.0]]))
    assert infinite.loss == pytest.approx([0.126928], abs=5e-7)


def test_confident_and_shifted_rows() -> None:
    """The oracle is right where framework kernels lose digits.

    They round small losses to 0, lose the difference of large logits, or lose digits in half types.
    """
    rows = CrossEntropyLoss(from_logits=True, reduction="none")
    confident = evaluate(rows, tensor([[18.0, 0.0, 0.0]]), labels(0)).loss
    assert confident == pytest.approx([2 * math.exp(-18.0)], rel=1e-7)
    for offset in (0.0, 1e5, 1e7):
        shifted = evaluate(rows, tensor([[1.0 + offset, offset]]), labels(0)).loss
        assert shifted == [0.3132616877555847]
    assert evaluate(rows, tensor([[130.0, 129.0]], dtype="bfloat16"), labels(0)).loss == [0.3125]
    half = evaluate(rows, tensor([[1.0, 3.0, -1.0]], dtype="bfloat16"), labels(1)).loss
    assert half == [0.142578125]
    assert evaluate(rows, tensor([[100.0, 0.0]]), labels(0)).loss == [3.783505853677006e-44]


def test_squared_error_of_the_weighted_probe() -> None:
    """Weights multiply before any reduction, and are broadcast before they are summed."""
    predictions, targets, weight = tensor([1.0, 2.0]), tensor([0.0, 0.0]), tensor([1.0, 3.0])
    assert evaluate(MeanSquaredError(), predictions, targets, weight).loss == 3.25
    assert evaluate(MeanSquaredError(divisor="all"), predictions, targets, weight).loss == 6.5
    assert evaluate(MeanSquaredError(reduction="sum"), predictions, targets, weight).loss == 13.0
    assert (
        evaluate(MeanSquaredError(), tensor([1.0, 2.0]), tensor([0, 4], dtype="uint8")).loss == 2.5
    )
    per_row = evaluate(
        MeanSquaredError(),
        tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
        tensor([[0.0] * 3] * 2),
        weight,
    )
    assert per_row.loss == 3.25
    assert per_row.grad_sample_weight == [-0.5625, 0.1875]


def test_a_keras_epsilon_and_a_negative_logarithm_of_zero() -> None:
    """With Keras' clip, p = 0 gives Keras' number and a gradient of 0; without, infinities."""
    row, target = tensor([[0.0, 0.5, 0.5]]), labels(0)
    clipped = evaluate(CrossEntropyLoss(epsilon=1e-7), row, target)
    assert clipped.loss == pytest.approx(16.118095, abs=1e-6)
    assert_same(clipped.grad_predictions, [0.0, 0.0, 0.0])
    infinite = evaluate(CrossEntropyLoss(), row, target)
    assert_same(infinite.loss, INF)
    assert_same(infinite.grad_predictions, [-INF, 0.0, 0.0])


# ---------------------------------------------------------------------------- ties and sticky parts


ROWS = CrossEntropyLoss(from_logits=True, reduction="none")


def test_a_tie_beside_a_part_below_all_resolution() -> None:
    """A tiny part breaks a tie; brute force would need 43,435 digits to see it."""
    # 100000.00390625 lies half way between two float32, and log1p(e^-100000) > 0 rounds it up.
    assert evaluate(ROWS, tensor([[100000.0, -0.00390625]]), labels(1)).loss == [100000.0078125]
    assert evaluate(ROWS, tensor([[100000.0078125, -0.00390625]]), labels(1)).loss == [
        100000.015625
    ]
    # With two equal largest logits, log 2 is added and there is no tie.
    assert evaluate(ROWS, tensor([[100000.0, 100000.0, -0.00390625]]), labels(2)).loss == [
        100000.6953125
    ]
    # q |z| = 25165821 needs 25 bits; the even neighbour is below, but the tiny part rounds it up.
    binary = BinaryCrossEntropyLoss(from_logits=True, reduction="none", pos_weight=1.5)
    assert evaluate(binary, tensor([-16777214.0]), tensor([1.0])).loss == [25165822.0]
    assert evaluate(binary, tensor([-16777214.0]), tensor([1.0]), tensor([-1.0])).loss == [
        -25165822.0
    ]


def test_a_gradient_tie_beside_a_part_below_all_resolution() -> None:
    """Tiny parts break ties of 1 - p, of p -> 0 beside a rational, and of 1/2 - p."""
    # u (1 - p) lies just below half way between 1 + 2^-23 and 1 + 2^-22; a tie would go up to even.
    upstream = [1 + 3 * 2.0**-24]
    below, above = 1 + 2.0**-23, 1 + 2.0**-22
    for gap in (200.0, 1000.0, 1e5, 2.0**100):
        found = evaluate(ROWS, tensor([[gap, 0.0]]), labels(1), upstream=upstream)
        assert found.grad_predictions == [below, -below]
        binary = BinaryCrossEntropyLoss(from_logits=True, reduction="none")
        assert evaluate(
            binary, tensor([gap]), tensor([0.0]), upstream=upstream
        ).grad_predictions == [below]
        assert evaluate(
            binary, tensor([-gap]), tensor([1.0]), upstream=upstream
        ).grad_predictions == [-below]
    # T p - tau for p -> 0 is a little more than -tau.
    dense = evaluate(
        ROWS, tensor([[0.0, -1e4]]), tensor([[0.0, 1 + 3 * 2.0**-24]], dtype="float64")
    )
    assert dense.grad_predictions == [below, -below]
    # Two equal logits share it: each gets a little less than u / 2.
    halves = evaluate(ROWS, tensor([[1000.0, 1000.0, 0.0]]), labels(2), upstream=upstream)
    assert halves.grad_predictions == [below / 2, below / 2, -below]
    # Without a tiny part, the tie goes to even.
    assert evaluate(
        ROWS, tensor([[1.0, -INF]]), tensor([[0.0, 1.0]]), upstream=upstream
    ).grad_predictions == [
        above,
        -above,
    ]


def test_float64_logits_at_the_ends_of_their_range() -> None:
    """Logit differences that overflow float64, and the smallest ones, are right."""
    wide = tensor([[1e308, -1e308]], dtype="float64")
    assert_same(evaluate(ROWS, wide, labels(1)).loss, [INF])
    assert_same(evaluate(ROWS, wide, labels(0)).loss, [0.0])
    assert_same(evaluate(ROWS, wide, labels(0)).grad_predictions, [0.0, 0.0])
    largest = FORMATS["float64"].largest
    assert evaluate(ROWS, tensor([[largest, 0.0]], dtype="float64"), labels(1)).loss == [largest]
    # For a difference d of one subnormal number, l = log 2 +- d/2 and p = 1/2 -+ d/4.
    nearly = evaluate(
        ROWS, tensor([[0.0, 5e-324]], dtype="float64"), labels(0), upstream=[1 + 2.0**-52]
    )
    assert nearly.loss == [math.log(2)]
    assert nearly.grad_predictions == [-(0.5 + 2.0**-53), 0.5 + 2.0**-53]
    # u sigma(d) lies next to the float32 tie u / 2, and d decides the direction.
    for d, u, p in (
        (5e-324, 1 + 2.0**-24, 0.5 + 2.0**-24),
        (0.0, 1 + 2.0**-24, 0.5),
        (-5e-324, 1 + 3 * 2.0**-24, 0.5 + 2.0**-24),
        (0.0, 1 + 3 * 2.0**-24, 0.5 + 2.0**-23),
    ):
        sigma = SoftmaxRow((d, 0.0), {}).probabilities[0]
        assert reals.Real(Fraction(0), ((Fraction(u), sigma),)).round(F32) == p


def test_rational_ties_go_to_even() -> None:
    """Exact ties, which no precision decides, go to even: squared errors, equal logits, logit 0."""
    # 2 (p - t) u / D with D = 1 has 25 bits.
    mse = MeanSquaredError(reduction="none")
    for odd, even in ((2.0**24 + 1, 2.0**24), (2.0**24 + 3, 2.0**24 + 4)):
        found = evaluate(mse, tensor([odd / 2], dtype="float64"), tensor([0.0]))
        assert found.grad_targets == [-even]
        assert found.grad_predictions == [odd]
    # p = t gives exactly 0.
    binary = evaluate(BinaryCrossEntropyLoss(), tensor([0.25, 0.75]), tensor([0.25, 0.75]))
    assert_same(binary.grad_predictions, [0.0, 0.0])
    # (K - 1) / K in a row of equal logits.
    for dtype, k, gradient in (("bfloat16", 512, 1.0), ("float16", 4096, 1.0)):
        row = evaluate(ROWS, tensor([0.0] * k, (1, k), dtype), labels(k - 1))
        assert row.grad_predictions is not None
        assert row.grad_predictions[-1] == -gradient
        assert row.grad_predictions[0] == 1 / k
    uniform = evaluate(ROWS, tensor([[3.0] * 4]), tensor([[0.25] * 4]))
    assert_same(uniform.grad_predictions, [0.0] * 4)
    at_zero = evaluate(
        BinaryCrossEntropyLoss(from_logits=True, pos_weight=3.0), tensor([0.0]), tensor([0.5])
    )
    assert at_zero.grad_predictions == [(1 - 0.5 - 1.5) / 2]


def test_means_that_are_ties() -> None:
    """Means and sums are right where a rounded float64 sum is wrong."""
    mean = evaluate(MeanSquaredError(), tensor([1.0, 2.0**-12]), tensor([0.0, 0.0]))
    assert mean.loss == 0.5  # 1/2 + 2^-25 is a tie, and 1/2 is even
    above = evaluate(
        MeanSquaredError(reduction="sum"), tensor([1.0, 2.0**-12, 2.0**-40]), tensor([0.0] * 3)
    )
    assert above.loss == 1.0000001192092896  # 1 + 2^-24 + 2^-80
    huge = evaluate(
        MeanSquaredError(),
        tensor([1.25e154] * 2, dtype="float64"),
        tensor([0.0] * 2, dtype="float64"),
    )
    assert huge.loss == pytest.approx(1.5625e308)  # the sum overflows float64
    assert_same(
        evaluate(
            MeanSquaredError(reduction="sum"),
            tensor([1.25e154] * 2, dtype="float64"),
            tensor([0.0] * 2),
        ).loss,
        INF,
    )


def test_what_cancels_gives_zero() -> None:
    """Terms that cancel under weights of both signs give exactly 0."""
    weight = tensor([1.0, -1.0])
    total = CrossEntropyLoss(from_logits=True, reduction="sum")
    for a, b in (
        ([0.5, -1.0, 2.0], [0.5, -1.0, 2.0]),
        ([0.5, -1.0, 2.0], [3.5, 2.0, 5.0]),
        ([0.5, -1.0, 2.0], [5.0, 2.0, 3.5]),
    ):
        target = labels(a.index(2.0), b.index(max(b)))
        assert_same(evaluate(total, tensor([a, b]), target, weight).loss, 0.0)
    # log(2 e^0 + 2 e^-1) - log(e^0 + e^-1) = log 2
    doubled = tensor([[0.0, 0.0, -1.0, -1.0], [0.0, -1.0, -INF, -INF]])
    assert evaluate(total, doubled, labels(0, 0), weight).loss == 0.6931471824645996
    # 2 log 2 - log 4
    logs = evaluate(
        CrossEntropyLoss(reduction="sum"),
        tensor([[0.5], [0.25]]),
        labels(0, 0),
        tensor([2.0, -1.0]),
    )
    assert_same(logs.loss, 0.0)
    # The weighted mean of one row, or of equal rows, does not change with the weights.
    for rows in (1, 3):
        found = evaluate(
            CrossEntropyLoss(from_logits=True),
            tensor([[0.5, -1.0]] * rows),
            labels(*[0] * rows),
            tensor([1.5] * rows),
        )
        assert_same(found.grad_sample_weight, [0.0] * rows)


def test_terms_are_real_or_rounded() -> None:
    """A reduction adds up real or rounded terms, as asked; the sums are worked out by hand."""
    # l = 1 + 2^-11 + 2^-24 is a float32 tie.
    predictions, targets = tensor([1 + 2.0**-12] * 3), tensor([0.0] * 3)
    total = MeanSquaredError(reduction="sum")
    assert evaluate(total, predictions, targets).loss == 3 + 3 * 2.0**-11 + 2.0**-22
    assert evaluate(total, predictions, targets, terms="rounded").loss == 3 + 3 * 2.0**-11
    mean = MeanSquaredError()
    assert evaluate(mean, predictions, targets).loss == 1 + 2.0**-11
    real = evaluate(total, predictions, targets, terms="real")
    rounded = evaluate(total, predictions, targets, terms="rounded")
    assert real.grad_predictions == rounded.grad_predictions
    # Terms and result are float32 for half predictions, and float64 for float64 predictions.
    half = evaluate(
        total, tensor([1 + 2.0**-10] * 3, dtype="float16"), tensor([0.0] * 3), terms="rounded"
    )
    assert half.loss == 3 + 3 * 2.0**-9 + 3 * 2.0**-20
    wide = evaluate(
        total, tensor([1 + 2.0**-12] * 3, dtype="float64"), tensor([0.0] * 3), terms="rounded"
    )
    assert wide.loss == 3 + 3 * 2.0**-11 + 3 * 2.0**-24
    # A rounded term that overflows float32 is infinite, though the mean would not overflow.
    large = tensor([2.0**64, 0.0])
    assert evaluate(mean, large, tensor([0.0, 0.0])).loss == 2.0**127
    assert_same(evaluate(mean, large, tensor([0.0, 0.0]), terms="rounded").loss, INF)


def test_terms_differ_in_the_last_place_only() -> None:
    """A mean of rounded terms is the exact mean of the rounded losses."""
    rng = random.Random(11)
    different = 0
    for _ in range(40):
        case = Case(
            CrossEntropyLoss(from_logits=True),
            numbers(rng, "float32", -3.0, 3.0, 5, 3),
            labels(*rng.choices(range(3), k=5)),
        )
        rounded, real = case.evaluate("rounded").loss, case.evaluate("real").loss
        rows = evaluate(ROWS, case.predictions, case.targets).loss
        assert isinstance(real, float)
        assert isinstance(rounded, float)
        assert isinstance(rows, list)
        assert rounded == round_on_grid(sum(map(Fraction, rows), Fraction(0)) / 5, F32)
        assert abs(rounded - real) <= 2 * F32.ulp(real)
        different += rounded != real
    assert different > 0


# ----------------------------------------------------------------------------------- special values


def test_special_logits_in_a_row() -> None:
    """Infinite and NaN logits give the right loss and gradient, and leave other rows alone."""
    for row, label, loss, gradient in [
        ([2.0, -INF, 0.0], 0, 0.12692801654338837, None),
        ([-INF, 0.0, 0.0], 0, INF, [-1.0, 0.5, 0.5]),
        ([-INF, 0.0, -INF], 1, 0.0, [0.0, 0.0, 0.0]),
        ([-INF, -INF, -INF], 1, NAN, [NAN] * 3),
        ([INF, 0.0, 0.0], 0, NAN, [NAN] * 3),
        ([INF, 0.0, 0.0], 1, NAN, [NAN] * 3),
        ([0.0, NAN, 0.0], 0, NAN, [NAN] * 3),
    ]:
        one_hot = tensor([[float(c == label) for c in range(3)]])
        for targets in (labels(label), one_hot):
            found = evaluate(ROWS, tensor([row]), targets)
            assert_same(found.loss, [loss])
            assert found.bad_positions == ()
            if gradient is not None:
                assert_same(found.grad_predictions, gradient)
        # The other row's gradient does not change.
        both = evaluate(
            CrossEntropyLoss(from_logits=True), tensor([row, [0.0, 0.0, 0.0]]), labels(label, 0)
        )
        assert both.grad_predictions is not None
        assert_same(
            both.grad_predictions[3:],
            evaluate(ROWS, tensor([[0.0] * 3]), labels(0), upstream=[0.5]).grad_predictions,
        )


def test_dense_targets_by_special_logits() -> None:
    """0 log 0 = 0, in the loss and in the derivative by the target."""
    found = evaluate(ROWS, tensor([[0.0, -INF]]), tensor([[1.0, 0.0]]))
    assert_same(found.grad_targets, [0.0, 0.0])
    found = evaluate(ROWS, tensor([[0.0, -INF]]), tensor([[0.5, 0.5]]))
    assert_same(found.loss, [INF])
    assert_same(found.grad_predictions, [0.5, -0.5])
    assert_same(found.grad_targets, [0.0, INF])
    weighted = CrossEntropyLoss(from_logits=True, reduction="none", class_weights=[1.0, 0.0])
    assert_same(evaluate(weighted, tensor([[0.0, -INF]]), tensor([[0.5, 0.5]])).loss, [0.0])
    nothing = evaluate(ROWS, tensor([[1.0, 2.0]]), tensor([[0.0, 0.0]]))
    assert_same(nothing.loss, [0.0])
    assert_same(nothing.grad_predictions, [0.0, 0.0])


def test_special_binary_logits() -> None:
    """An infinite logit costs 0 if the label agrees, else infinity; the gradient is sigma - t."""
    spec = BinaryCrossEntropyLoss(from_logits=True, reduction="none")
    for z, t, loss, gradient, by_target in [
        (INF, 1.0, 0.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0, -INF),
        (INF, 0.25, INF, 0.75, -INF),
        (-INF, 0.0, 0.0, 0.0, 0.0),
        (-INF, 1.0, INF, -1.0, INF),
        (-INF, 0.25, INF, -0.25, INF),
        (NAN, 1.0, NAN, NAN, NAN),
        (0.0, NAN, NAN, NAN, NAN),
        (100.0, 0.0, 100.0, 1.0, -100.0),
    ]:
        found = evaluate(spec, tensor([z]), tensor([t]))
        assert_same(
            [found.loss, found.grad_predictions, found.grad_targets],
            [[loss], [gradient], [by_target]],
        )
        assert found.bad_positions == ()
    assert_same(evaluate(spec.replace(pos_weight=0.0), tensor([-INF]), tensor([1.0])).loss, [0.0])
    smoothed = evaluate(spec.replace(label_smoothing=0.5), tensor([INF]), tensor([1.0]))
    assert_same([smoothed.loss, smoothed.grad_predictions], [[INF], [0.25]])


def test_special_probabilities() -> None:
    """Probabilities of 0, 1, slightly above 1, subnormal or NaN; unread ones have no effect."""
    binary = BinaryCrossEntropyLoss(reduction="none")
    limit = 1 + 2.0**-21
    for p, t, loss, gradient in [
        (0.0, 1.0, INF, -INF),
        (0.0, 0.0, 0.0, 1.0),
        (1.0, 0.0, INF, INF),
        (1.0, 1.0, 0.0, -1.0),
        (limit, 1.0, 0.0, -1.0),
        (limit, 0.0, INF, INF),
        (1e-40, 1.0, INF, -INF),
        (-1e-40, 0.0, 0.0, 1.0),
        (NAN, 0.0, NAN, NAN),
    ]:
        found = evaluate(binary, Tensor([p], (1,), "float32"), tensor([t]))
        assert_same([found.loss, found.grad_predictions], [[loss], [gradient]])
        assert found.bad_positions == ()
    categorical = CrossEntropyLoss(reduction="none")
    for row, loss, gradient in [
        ([0.5, NAN], 0.6931471824645996, [-2.0, 0.0]),
        ([0.5, 7.0], 0.6931471824645996, [-2.0, 0.0]),
        ([0.5, -7.0], 0.6931471824645996, [-2.0, 0.0]),
        ([0.5, 0.0], 0.6931471824645996, [-2.0, 0.0]),
        ([NAN, 0.5], NAN, [NAN, 0.0]),
        ([0.0, 0.5], INF, [-INF, 0.0]),
        ([2.0**-149, 0.5], INF, [-INF, 0.0]),
        ([limit, 0.5], 0.0, [-1.0, 0.0]),
    ]:
        for targets in (labels(0), tensor([[1.0, 0.0]])):
            found = evaluate(categorical, tensor([row]), targets)
            assert_same([found.loss, found.grad_predictions], [[loss], gradient])
            assert found.bad_positions == ()
    # In float64 a probability of 1e-40 is a normal number.
    assert evaluate(binary, tensor([1e-40], dtype="float64"), tensor([1.0])).loss == [
        pytest.approx(92.10340371976183)
    ]
    # A class weight of 0 hides no NaN and no bad value, but 0 log 0 is 0.
    weighted = categorical.replace(class_weights=[0.0, 1.0])
    assert_same(evaluate(weighted, tensor([[NAN, 0.5]]), labels(0)).loss, [NAN])
    assert_same(evaluate(weighted, tensor([[-1.0, 0.5]]), labels(0)).bad_positions, [0])
    zero = evaluate(weighted, tensor([[0.0, 0.5]]), labels(0))
    assert_same([zero.loss, zero.grad_predictions], [[0.0], [0.0, 0.0]])
    # The derivative by a target of 0 is -log p for a valid p > 0, and 0 where p is not read.
    by_target = evaluate(
        categorical, tensor([[0.5, 0.25, 0.0, NAN, 7.0]]), tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    ).grad_targets
    assert_same(by_target, [0.6931471824645996, 1.3862943649291992, 0.0, 0.0, 0.0])


def test_the_clip_is_where_epsilon_says() -> None:
    """Probabilities strictly outside [epsilon, 1 - epsilon], as real numbers, are clipped."""
    spec = BinaryCrossEntropyLoss(epsilon=0.25, reduction="none")
    for p, gradient in [
        (0.25, -4.0),
        (0.125, 0.0),
        (0.0, 0.0),
        (0.75, -4 / 3),
        (0.875, 0.0),
        (1.0, 0.0),
        (1 + 2.0**-21, 0.0),
    ]:
        found = evaluate(spec, tensor([p]), tensor([1.0]))
        assert_same(found.grad_predictions, [round_on_grid(Fraction(gradient), F32)])
        assert found.loss == [pytest.approx(-math.log(min(max(p, 0.25), 0.75)), rel=1e-7)]
    # 1 - epsilon is not rounded to float32, so the loss at p = 1 is -log(1 - 1e-7), not 1.19e-7.
    keras = BinaryCrossEntropyLoss(epsilon=1e-7, reduction="none")
    assert evaluate(keras, tensor([1.0]), tensor([1.0])).loss == [
        pytest.approx(1.00000005e-7, rel=1e-7)
    ]


def test_squared_error_follows_ieee() -> None:
    """Infinities, NaN, overflow and underflow follow IEEE; integer targets reach 2^53."""
    spec = MeanSquaredError(reduction="none")
    for p, t, loss, gradient in [
        (INF, 0.0, INF, INF),
        (-INF, 0.0, INF, -INF),
        (0.0, INF, INF, -INF),
        (INF, INF, NAN, NAN),
        (INF, -INF, INF, INF),
        (NAN, 0.0, NAN, NAN),
        (3e38, -3e38, INF, INF),
        (1e-30, 0.0, 0.0, 2e-30),
    ]:
        prediction, target = (
            round_on_grid(Fraction(x), F32) if math.isfinite(x) else x for x in (p, t)
        )
        found = evaluate(
            spec, Tensor([prediction], (1,), "float32"), Tensor([target], (1,), "float32")
        )
        expected = round_on_grid(Fraction(prediction) * 2, F32) if gradient == 2e-30 else gradient
        assert_same(
            [found.loss, found.grad_predictions, found.grad_targets],
            [[loss], [expected], [-expected]],
        )
        assert found.bad_positions == ()
    for dtype, t in (("int64", 2**53), ("uint64", 2**53), ("int64", -(2**53))):
        assert evaluate(spec, tensor([0.0], dtype="float64"), tensor([t], dtype=dtype)).loss == [
            2.0**106
        ]


BAD: list[tuple[Loss, Tensor, Tensor]] = [
    (CrossEntropyLoss(from_logits=True), tensor(LOGITS[:2]), labels(3, 0)),
    (CrossEntropyLoss(from_logits=True), tensor(LOGITS[:2]), labels(-1, 0)),
    (
        CrossEntropyLoss(from_logits=True, ignore_index=-1),
        tensor(LOGITS[:2]),
        labels(2**64 - 1, 0, dtype="uint64"),
    ),
    (
        CrossEntropyLoss(from_logits=True),
        tensor(LOGITS[:2]),
        tensor([[1.0, -0.5, 0.5], [1.0, 0.0, 0.0]]),
    ),
    (
        CrossEntropyLoss(from_logits=True),
        tensor(LOGITS[:2]),
        tensor([[1.0, INF, 0.5], [1.0, 0.0, 0.0]]),
    ),
    (
        CrossEntropyLoss(from_logits=True),
        tensor(LOGITS[:2]),
        tensor([[1.0, -INF, NAN], [1.0, 0.0, 0.0]]),
    ),
    (CrossEntropyLoss(), tensor([[2.0, 0.5], [0.5, 0.5]]), labels(0, 0)),
    (CrossEntropyLoss(), tensor([[-0.5, 0.5], [0.5, 0.5]]), labels(0, 0)),
    (CrossEntropyLoss(), tensor([[INF, 0.5], [0.5, 0.5]]), labels(0, 0)),
    (CrossEntropyLoss(), tensor([[-(2.0**-126), 0.5], [0.5, 0.5]]), labels(0, 0)),
    (CrossEntropyLoss(label_smoothing=0.1), tensor([[0.5, 2.0], [0.5, 0.5]]), labels(0, 0)),
    (CrossEntropyLoss(epsilon=1e-7), tensor([[2.0, 0.5], [0.5, 0.5]]), labels(0, 0)),
    (BinaryCrossEntropyLoss(), tensor([1 + 5 * 2.0**-23, 0.5]), tensor([1.0, 1.0])),
    (
        BinaryCrossEntropyLoss(),
        tensor([1 + 2 * 2.0**-10, 0.5], dtype="float16"),
        tensor([1.0, 1.0]),
    ),
    (BinaryCrossEntropyLoss(), tensor([0.5, 0.5]), tensor([1.0 + 2.0**-23, 1.0])),
    (BinaryCrossEntropyLoss(from_logits=True), tensor([0.5, 0.5]), tensor([2, 1], dtype="int8")),
    (BinaryCrossEntropyLoss(from_logits=True), tensor([0.5, 0.5]), tensor([-1, 1], dtype="int8")),
    (BinaryCrossEntropyLoss(from_logits=True), tensor([0.5, 0.5]), tensor([-0.5, 1.0])),
    (MeanSquaredError(), tensor([0.5, 0.5]), tensor([2**53 + 1, 1], dtype="int64")),
    (MeanSquaredError(), tensor([0.5, 0.5]), tensor([2**64 - 1, 1], dtype="uint64")),
]


@pytest.mark.parametrize(("spec", "predictions", "targets"), BAD)
def test_a_bad_value_poisons_its_position(spec: Loss, predictions: Tensor, targets: Tensor) -> None:
    """A bad value gives NaN in its own position, and in others only through the divisor.

    At a dropped or zero-weighted position it has no effect.
    """
    size = len(predictions.values) // 2
    rows = evaluate(spec.replace(reduction="none"), predictions, targets)
    assert rows.bad_positions == (0,)
    assert isinstance(rows.loss, list)
    assert rows.grad_predictions is not None
    assert_same([rows.loss[0], rows.grad_predictions[:size]], [NAN, [NAN] * size])
    assert all(map(math.isfinite, [rows.loss[1], *rows.grad_predictions[size:]]))
    for divisor in ("weights", "all"):
        mean = evaluate(spec.replace(divisor=divisor), predictions, targets)
        assert_same(mean.loss, NAN)
        assert mean.grad_predictions is not None
        # Without weights the divisor is the count 2, so the other position's gradient is finite.
        halved = evaluate(
            spec.replace(reduction="none"), predictions, targets, upstream=[0.5, 0.5]
        ).grad_predictions
        assert_same(mean.grad_predictions, halved)
        # With weights the divisor is NaN.
        weighted = evaluate(spec.replace(divisor=divisor), predictions, targets, tensor([1.0, 1.0]))
        assert weighted.divisor is not None
        assert math.isnan(weighted.divisor) == (divisor == "weights")
    # Dropped and zero-weighted positions are not checked.
    good = evaluate(spec, predictions, targets, mask=tensor([False, True], dtype="bool"))
    assert good.bad_positions == ()
    # For half predictions the mean is float32 and the row's loss a half type, so allow 1e-3.
    assert good.loss == pytest.approx(rows.loss[1], rel=1e-3)
    assert_same(good.grad_predictions, [0.0] * size + rows.grad_predictions[size:])
    off = evaluate(spec, predictions, targets, tensor([0.0, 1.0]))
    assert_same([off.loss, off.grad_predictions], [good.loss, good.grad_predictions])
    assert_same(off.grad_sample_weight, [0.0, 0.0])


def test_a_negative_weight_is_bad_where_it_would_divide() -> None:
    """A negative weight is bad in a mean with divisor 'weights', and valid elsewhere."""
    predictions, targets, weight = tensor([1.0, 2.0]), tensor([0.0, 0.0]), tensor([-1.0, 3.0])
    found = evaluate(MeanSquaredError(), predictions, targets, weight)
    assert found.bad_positions == (0,)
    assert_same(found.loss, NAN)
    for spec, loss in (
        (MeanSquaredError(divisor="all"), 5.5),
        (MeanSquaredError(reduction="sum"), 11.0),
        (MeanSquaredError(reduction="none"), [-1.0, 12.0]),
    ):
        found = evaluate(spec, predictions, targets, weight)
        assert found.bad_positions == ()
        assert found.loss == loss


def test_weights_that_are_not_finite() -> None:
    """Infinite and NaN weights follow IEEE rules."""
    predictions, targets = tensor([1.0, 2.0, 0.0]), tensor([0.0, 0.0, 0.0])
    rows = evaluate(
        MeanSquaredError(reduction="none"), predictions, targets, tensor([INF, NAN, INF])
    )
    assert_same(rows.loss, [INF, NAN, NAN])
    assert_same(rows.grad_predictions, [INF, NAN, NAN])
    mean = evaluate(MeanSquaredError(), predictions, targets, tensor([INF, 1.0, 1.0]))
    assert_same(mean.loss, NAN)
    assert_same(mean.grad_predictions, [NAN, 0.0, 0.0])


# --------------------------------------------------------------------------------- shapes and rules


def test_the_empty_mean() -> None:
    """Every way for a divisor to be 0 gives the result that on_empty names."""
    off = tensor([False, False], dtype="bool")
    for fields, companions in [
        ({}, {"mask": off}),
        ({}, {"sample_weight": tensor([0.0, 0.0])}),
        ({"divisor": "present"}, {"mask": off}),
        ({"divisor": "nonzero"}, {"sample_weight": tensor([0.0, 0.0])}),
        ({"class_weights": [0.0, 1.0]}, {}),
        ({"class_weights": [0.0, 1.0], "divisor": "nonzero"}, {}),
        ({"ignore_index": 0}, {}),
    ]:
        spec = CrossEntropyLoss(from_logits=True, **fields)  # type: ignore[arg-type]
        arguments = tensor([[1.0, 2.0]] * 2), labels(0, 0)
        found = evaluate(spec, *arguments, **companions)
        assert_same([found.loss, found.grad_predictions], [NAN, [0.0] * 4])
        assert found.divisor == 0.0
        assert_same(evaluate(spec.replace(on_empty="zero"), *arguments, **companions).loss, 0.0)
        with pytest.raises(EmptyMeanError, match="nothing to divide by"):
            evaluate(spec.replace(on_empty="error"), *arguments, **companions)
    assert (
        evaluate(CrossEntropyLoss(from_logits=True, divisor="all", ignore_index=0), *arguments).loss
        == 0.0
    )
    # With a bad value the divisor is NaN, so the mean is not empty.
    poisoned = CrossEntropyLoss(from_logits=True, class_weights=[0.0, 1.0], on_empty="zero")
    assert_same(evaluate(poisoned, tensor([[1.0, 2.0]] * 2), labels(0, 2)).loss, NAN)


def test_an_empty_batch() -> None:
    """A batch without positions gives an empty list, a sum of 0 or an empty mean."""
    for spec, predictions, targets in [
        (
            CrossEntropyLoss(from_logits=True),
            Tensor([], (0, 3), "float32"),
            Tensor([], (0,), "int64"),
        ),
        (
            CrossEntropyLoss(from_logits=True),
            Tensor([], (0, 3), "float32"),
            Tensor([], (0, 3), "float32"),
        ),
        (
            BinaryCrossEntropyLoss(from_logits=True),
            Tensor([], (0,), "float32"),
            Tensor([], (0,), "float32"),
        ),
        (MeanSquaredError(), Tensor([], (2, 0), "float32"), Tensor([], (2, 0), "float32")),
    ]:
        weight = Tensor([1.0] * predictions.shape[0], predictions.shape[:1], "float32")
        found = evaluate(spec.replace(reduction="none"), predictions, targets, weight)
        assert (found.loss, found.grad_predictions) == ([], [])
        assert_same(found.grad_sample_weight, [0.0] * predictions.shape[0])
        assert_same(evaluate(spec.replace(reduction="sum"), predictions, targets, weight).loss, 0.0)
        assert_same(evaluate(spec, predictions, targets, weight).loss, NAN)
        assert_same(
            evaluate(spec.replace(on_empty="zero", divisor="all"), predictions, targets).loss, 0.0
        )


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dense", [False, True])
def test_the_class_axis(axis: int, dense: bool) -> None:
    """The numbers do not depend on the place of the class axis."""
    rng = random.Random(7)
    k, rest = 3, (2, 4)
    rows = [[number(rng, "float32", -3.0, 3.0) for _ in range(k)] for _ in range(8)]
    soft = [[number(rng, "float32", 0.0, 1.0) for _ in range(k)] for _ in range(8)]
    index = [rng.randrange(k) for _ in rows]
    front = axis % 3
    shape = (*rest[:front], k, *rest[front:])

    def moved(last: list[list[float]]) -> list[float]:
        places = itertools.product(*map(range, shape))
        return [
            last[a * 4 + b][c]
            for place in places
            for c in [place[front]]
            for a, b in [place[:front] + place[front + 1 :]]
        ]

    targets = Tensor(moved(soft), shape, "float32") if dense else Tensor(index, rest, "int64")
    spec = CrossEntropyLoss(
        from_logits=True, axis=axis, label_smoothing=0.1, class_weights=[1.0, 2.0, 3.0]
    )
    weight = tensor([1.0, 2.0])
    found = evaluate(spec, Tensor(moved(rows), shape, "float32"), targets, weight)
    flat_weight = tensor([1.0] * 4 + [2.0] * 4)
    flat = evaluate(
        spec.replace(axis=-1),
        tensor(rows),
        tensor(soft) if dense else tensor(index, dtype="int64"),
        flat_weight,
    )
    assert_same(found.loss, flat.loss)
    assert flat.grad_predictions is not None
    by_rows = [flat.grad_predictions[i * k : i * k + k] for i in range(8)]
    assert_same(found.grad_predictions, moved(by_rows))


def test_weights_and_masks_are_aligned_to_the_leading_axes() -> None:
    """A weight per row or one for all is broadcast, and its gradient summed over the repeats."""
    predictions, targets = tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), tensor([[0.0] * 3] * 2)
    per_row = evaluate(
        MeanSquaredError(reduction="none"), predictions, targets, tensor([1.0, 10.0])
    )
    assert per_row.loss == [1.0, 4.0, 9.0, 160.0, 250.0, 360.0]
    assert per_row.grad_sample_weight == [14.0, 77.0]
    scalar = evaluate(MeanSquaredError(), predictions, targets, tensor(3.0))
    assert scalar.loss == pytest.approx(91 / 6)
    assert_same(scalar.grad_sample_weight, [0.0])
    masked = evaluate(
        MeanSquaredError(), predictions, targets, mask=tensor([True, False], dtype="bool")
    )
    assert masked.loss == pytest.approx(14 / 3)
    assert_same(
        masked.grad_predictions, [round_on_grid(Fraction(x, 3), F32) for x in (2, 4, 6)] + [0.0] * 3
    )
    integers = evaluate(
        MeanSquaredError(reduction="sum"), predictions, targets, tensor([1, 2], dtype="int32")
    )
    assert integers.grad_sample_weight == [14.0, 77.0]


def test_labels_are_compared_as_numbers() -> None:
    """A uint8 label of 156 is not -100."""
    ignoring = CrossEntropyLoss(from_logits=True, ignore_index=[-100, 1], reduction="none")
    predictions = tensor([[0.0, 0.0, 0.0]] * 3)
    found = evaluate(ignoring, predictions, labels(156, 1, 0, dtype="uint8"))
    assert found.bad_positions == (0,)
    assert_same(found.loss, [NAN, 0.0, 1.0986123085021973])
    assert (
        evaluate(
            ignoring.replace(ignore_index=156), predictions, labels(156, 1, 0, dtype="uint8")
        ).bad_positions
        == ()
    )


def test_results_have_the_dtypes_of_the_spec() -> None:
    """Each result is rounded once, to its own dtype."""
    half = evaluate(
        CrossEntropyLoss(from_logits=True), tensor(LOGITS, dtype="bfloat16"), labels(*LABELS)
    )
    full = evaluate(CrossEntropyLoss(from_logits=True), tensor(LOGITS), labels(*LABELS))
    assert half.loss == full.loss
    assert half.grad_predictions != full.grad_predictions
    rows = evaluate(ROWS, tensor(LOGITS, dtype="bfloat16"), labels(*LABELS)).loss
    assert rows == [0.408203125, 1.40625, 0.142578125, 1.1015625]
    mixed = evaluate(
        MeanSquaredError(reduction="sum"),
        tensor([1.5]),
        tensor([1 / 3], dtype="float64"),
        tensor([2.0], dtype="float16"),
    )
    assert mixed.loss == round_on_grid(2 * (Fraction(3, 2) - Fraction(1 / 3)) ** 2, F32)
    assert mixed.grad_targets == [-float(4 * (Fraction(3, 2) - Fraction(1 / 3)))]
    assert mixed.grad_sample_weight == [
        round_on_grid((Fraction(3, 2) - Fraction(1 / 3)) ** 2, FORMATS["float16"])
    ]
    assert (
        evaluate(MeanSquaredError(), tensor([1.5]), tensor([1.0]), gradients=False).grad_predictions
        is None
    )


def plain_softmax(
    row: Sequence[float], above: Sequence[float]
) -> tuple[list[Decimal], list[Decimal]]:
    """p_c = e^z_c / sum e^z_j and p_c (u_c - sum_j u_j p_j), as written."""
    powers = [Decimal(z).exp() for z in row]
    p = [power / sum(powers) for power in powers]
    mean = sum(Decimal(u) * q for u, q in zip(above, p, strict=True))
    return p, [q * (Decimal(u) - mean) for u, q in zip(above, p, strict=True)]


def test_softmax_by_the_plain_formula() -> None:
    """Value and gradient are those of the formula, rounded once; subnormal values are 0."""
    rng = random.Random(5)
    for dtype, form in FORMATS.items():
        tiny = FORMATS["float64" if dtype == "float64" else "float32"].tiny
        for size in (1, 2, 5):
            rows = [
                [float(rng.choice((-87, -86, -9, -1, 0, 1, 2, 2.5))) for _ in range(size)]
                for _ in range(8)
            ]
            above = [
                [float(rng.choice((-2, -0.5, 0.25, 1))) for _ in range(size)] for _ in range(8)
            ]
            found = reference.softmax(
                tensor(rows, dtype=dtype), upstream=[u for row in above for u in row]
            )
            with localcontext(Context(prec=100)):
                plain = [plain_softmax(z, u) for z, u in zip(rows, above, strict=True)]
                values = [Fraction(p) for row, _ in plain for p in row]
                slopes = [
                    Fraction(g) if abs(g) > Decimal("1e-90") else Fraction(0)
                    for _, row in plain
                    for g in row
                ]
            assert_same(found.values, [nearest(p, form) if p >= tiny else 0.0 for p in values])
            assert_same(found.probabilities, [nearest(p, FORMATS["float64"]) for p in values])
            assert_same(found.gradient, [nearest(g, form) for g in slopes])


def test_softmax_by_special_logits() -> None:
    """A logit of -inf gets 0; a row of only -inf, or with +inf or NaN, is NaN, along any axis."""
    rows = [
        [0.0, -INF, 0.0],
        [-INF, -INF, -INF],
        [INF, 0.0, 1.0],
        [0.0, NAN, 1.0],
        [0.0, 88.0, 1e5],
    ]
    found = reference.softmax(tensor(rows), upstream=[1.0, 5.0, 2.0] * 5)
    assert_same(found.values, [0.5, 0.0, 0.5, *[NAN] * 9, 0.0, 0.0, 1.0])
    assert_same(found.gradient, [-0.25, 0.0, 0.25, *[NAN] * 9, 0.0, 0.0, 0.0])
    first = reference.softmax(tensor([list(column) for column in zip(*rows, strict=True)]), 0)
    assert_same(first.values[::5], found.values[:3])


def test_what_a_call_refuses() -> None:
    """Shapes, dtypes and numbers that do not fit are refused."""
    with pytest.raises(ShapeError):
        evaluate(MeanSquaredError(), tensor([[1.0], [2.0]]), tensor([1.0, 2.0]))
    with pytest.raises(DTypeError):
        evaluate(MeanSquaredError(), tensor([1], dtype="int32"), tensor([1.0]))
    with pytest.raises(SpecValueError):
        evaluate(CrossEntropyLoss(class_weights=[1.0]), tensor([[0.5, 0.5]]), labels(0))
    with pytest.raises(ValueError, match="is not a number of the dtype float16"):
        tensor([0.1], dtype="float16")
    with pytest.raises(ValueError, match="do not fill the shape"):
        tensor([1.0, 2.0], (3,))
    with pytest.raises(ValueError, match="flat sequence of 1 numbers"):
        evaluate(MeanSquaredError(reduction="none"), tensor([1.0]), tensor([1.0]), upstream=1.0)
    with pytest.raises(ValueError, match="one number"):
        evaluate(MeanSquaredError(), tensor([1.0]), tensor([1.0]), upstream=[1.0])


def test_the_decimal_context_of_the_caller_does_not_matter() -> None:
    """A caller's decimal context of three digits does not change the result."""
    with localcontext(Context(prec=3, Emin=-5, Emax=5)):
        check_row = evaluate(ROWS, tensor([[100.0, 0.0, 3.0]]), labels(1))
    assert check_row == evaluate(ROWS, tensor([[100.0, 0.0, 3.0]]), labels(1))
    assert check_row.loss == [100.0]
