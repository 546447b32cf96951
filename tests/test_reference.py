"""The oracle against what it can be checked with: plain formulas, central differences, hand-worked ties, published numbers.

The plain formulas below are written a second time, from the definitions in the specs' docstrings: no shift, no log1p, no care for
rounding, but 100 digits. They know finite numbers only; special values are worked out by hand, one by one.
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

import pytest

from unifiedloss import reference
from unifiedloss.errors import DTypeError, EmptyMeanError, ShapeError, SpecValueError
from unifiedloss.floats import FORMATS, Format
from unifiedloss.reference import Reference, Tensor, evaluate, nearest, tensor
from unifiedloss.spec import AnyLoss, BinaryCrossEntropyLoss, CrossEntropyLoss, MeanSquaredError

NAN = math.nan
INF = math.inf
F32 = FORMATS["float32"]

LOGITS = [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, -1.0], [0.5, 0.5, 0.5]]
LABELS = [0, 1, 1, 2]


def labels(*values: int, dtype: str = "int64") -> Tensor:
    return tensor(list(values), dtype=dtype)


def same(found: Any, expected: Any) -> bool:
    """Equality in which NaN equals NaN and -0 does not equal +0."""
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if math.isnan(expected):
        return math.isnan(found)
    return bool(found == expected and math.copysign(1.0, found) == math.copysign(1.0, expected))


def assert_same(found: Any, expected: Any) -> None:
    assert same(found, expected), f"{found} is not {expected}"


# -------------------------------------------------------------------------------------------------------------------- rounding


def round_on_grid(value: Fraction, form: Format) -> float:
    """Rounding a second time: in units of the last place, by Python's own rounding of a Fraction to an integer."""
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
    """Numbers at, just above and just below midpoints and numbers of the format, in all its ranges."""
    exponents = [form.min_exponent - form.precision, form.min_exponent - 3, form.min_exponent - 1, form.min_exponent]
    exponents += [-3, 0, 1, form.max_exponent - 1, form.max_exponent]
    numbers = []
    for exponent in exponents:
        unit = Fraction(2) ** (max(exponent, form.min_exponent) - form.precision + 1)
        start = Fraction(2) ** exponent // unit
        stop = max(start, Fraction(2) ** (exponent + 1) // unit)
        for steps in (start, start + 1, stop - 1, rng.randint(int(start), int(stop))):
            for half in (Fraction(0), Fraction(1, 2), Fraction(rng.getrandbits(80), 2**80)):
                for off in (Fraction(0), Fraction(1, 2**90), -Fraction(1, 2**90), Fraction(1, 3)):
                    numbers.append((steps + half + off) * unit)
    return numbers + [-x for x in numbers]


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_agrees_with_rounding_on_the_grid(name: str) -> None:
    form, rng = FORMATS[name], random.Random(1)
    numbers = awkward_numbers(form, rng)
    assert len(numbers) > 800
    for number in numbers:
        assert_same(nearest(number, form), round_on_grid(number, form))
        if abs(number) < Fraction(FORMATS["float64"].largest):
            double = float(number)
            assert_same(reference._narrow(double, form), round_on_grid(Fraction(double), form))


@pytest.mark.parametrize("name", FORMATS)
def test_a_sticky_bit_is_a_number_below_all_resolution(name: str) -> None:
    form = FORMATS[name]
    tiny = Fraction(1, 2**2000)
    for number in awkward_numbers(form, random.Random(2)):
        for sign in (-1, 1):
            assert_same(nearest(number, form, sign), round_on_grid(number + sign * tiny, form))
    assert_same(nearest(Fraction(0), form, -1), 0.0)


def test_rounding_knows_the_places_where_frameworks_go_wrong() -> None:
    half, brain = FORMATS["float16"], FORMATS["bfloat16"]
    assert nearest(1 + Fraction(1, 2**11) + Fraction(1, 2**30), half) == 1.0009765625
    assert nearest(1 + Fraction(1, 2**8) + Fraction(1, 2**40), brain) == 1.0078125
    assert nearest(Fraction(65519999999, 10**6), half) == 65504.0
    assert nearest(Fraction(65520), half) == INF
    assert nearest(Fraction(-65520), half) == -INF
    assert nearest(Fraction(1e-40), F32) == 9.99994610111476e-41


# ----------------------------------------------------------------------------------------------- irrational numbers, enclosed


def atoms() -> dict[str, reference._Atom]:
    def partition(*logits: float) -> reference._Partition:
        distinct = sorted(set(logits), reverse=True)
        exact = [reference._EXACT.subtract(Decimal(distinct[0]), Decimal(z)) for z in distinct]
        return reference._Partition(tuple(exact), tuple(logits.count(z) for z in distinct))

    found: dict[str, reference._Atom] = {}
    for logits in ((0.0, -0.5), (0.0, 0.0, -3.25), (0.0, -1e-5, -40.0), (0.0, -200.0), (0.0, -5e-324), (7.0, 6.9, -1e5), (0.0, -1e17)):
        row = partition(*logits)
        found[f"log sum of {logits}"] = row.log_sum
        found |= {f"share {g} of {logits}": share for g, share in enumerate(row.shares)}
    for ratio in (Fraction(1, 2), Fraction(9, 10), 1 - Fraction(1, 2**53), 1 - Fraction(1, 10**40), Fraction(1, 10**300), Fraction(1e-5)):
        found[f"-log {float(ratio)!r}"] = reference._NegativeLog(ratio)
    return found


@pytest.mark.parametrize("name", atoms())
def test_every_ball_holds_the_number_and_is_small(name: str) -> None:
    atom = atoms()[name]
    exact = atom._evaluate(1000)
    with localcontext(Context(prec=2000, Emin=-(10**18) + 1, Emax=10**18 - 1)):
        for digits in (28, 50, 100, 400):
            ball = atom._evaluate(digits)
            assert abs(ball.middle - exact.middle) <= ball.radius + exact.radius
            assert 0 < ball.radius <= ball.middle * Decimal(10) ** (3 - digits)


def test_a_gap_beyond_decimals_is_a_positive_number_below_all_others() -> None:
    row = reference._Partition((Decimal(0), Decimal(2) * 10**308), (1, 1))
    for atom in (row.log_sum, *row.shares):
        middle, radius = atom.ball(28)
        assert middle == 0
        assert 0 < radius < Decimal("1e-10000000")


def test_logarithms_cancel_over_coprime_bases() -> None:
    def log(n: int, d: int) -> tuple[Fraction, reference._Atom]:
        return Fraction(1), reference._NegativeLog(Fraction(n, d))

    def power(n: Fraction, term: tuple[Fraction, reference._Atom]) -> tuple[Fraction, reference._Atom]:
        return n, term[1]

    assert not reference.Real(Fraction(0), (log(1, 4), power(Fraction(-2), log(1, 2)))).simplified().terms
    assert not reference.Real(Fraction(0), (log(1, 6), power(Fraction(-1), log(1, 2)), power(Fraction(-1), log(1, 3)))).simplified().terms
    assert reference.Real(Fraction(0), (log(1, 6), power(Fraction(-1), log(1, 2)))).simplified().terms
    rng = random.Random(3)
    numbers = {rng.choice([2, 3, 5, 7, 11]) ** rng.randint(1, 9) * rng.choice([1, 6, 35, 77]) for _ in range(30)}
    bases = reference._coprime_bases(set(numbers))
    assert all(math.gcd(a, b) == 1 for a, b in itertools.combinations(bases, 2))
    for number in numbers:
        assert math.prod(base ** reference._power(number, base) for base in bases) == number


def test_an_undecided_rounding_is_an_error_and_never_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    # (1 + e^-1)^2 = 1 + 2 e^-1 + e^-2: the logarithms cancel, and the oracle does not know it. What stays is a tie.
    once = CrossEntropyLoss(from_logits=True, reduction="sum")
    rows = tensor([[0.0, -1.0, -INF, -INF], [0.0, -1.0, -1.0, -2.0]])
    tie = 1 + 2.0**-24
    monkeypatch.setattr(reference, "_MORE_DIGITS", (50, 100, 400, 800))
    with pytest.raises(AssertionError, match="800 digits do not decide"):
        evaluate(once, rows, labels(0, 1), tensor([-2 * tie, tie], dtype="float64"), gradients=False)
    # No tie, no need to know.
    assert evaluate(once, rows, labels(0, 0), tensor([-2.0, 1.0]), gradients=False).loss == 0.0
    assert evaluate(once, rows, labels(0, 1), tensor([-2.0, 1.0]), gradients=False).loss == 1.0


# ---------------------------------------------------------------------------------------- the plain formulas, a second time


@dataclass(frozen=True)
class Case:
    """A call whose positions are rows (cross-entropy) or elements, with finite numbers only."""

    spec: AnyLoss
    predictions: Tensor
    targets: Tensor
    sample_weight: Tensor | None = None
    mask: Tensor | None = None
    upstream: Any = None

    def evaluate(self, terms: Any = "real") -> Reference:
        """The oracle's answer."""
        return evaluate(
            self.spec, self.predictions, self.targets, self.sample_weight, self.mask, terms=terms, upstream=self.upstream
        )


Numbers = Sequence[Decimal]


def plain_losses(case: Case, predictions: Numbers, targets: Numbers) -> tuple[list[Decimal], list[Decimal]]:
    """Per position: the loss and the weight, without sample weights. To be called in a context of many digits."""
    spec = case.spec
    if isinstance(spec, MeanSquaredError):
        return [(p - t) ** 2 for p, t in zip(predictions, targets, strict=True)], [Decimal(1)] * len(predictions)
    smoothing, epsilon = Decimal(spec.label_smoothing), Decimal(spec.epsilon)

    def log(p: Decimal) -> Decimal:
        return min(max(p, epsilon), 1 - epsilon).ln()

    if isinstance(spec, BinaryCrossEntropyLoss):
        losses = []
        for i, (x, t) in enumerate(zip(predictions, targets, strict=True)):
            weight = spec.pos_weight[i % len(spec.pos_weight)] if isinstance(spec.pos_weight, tuple) else spec.pos_weight
            q = Decimal(1 if weight is None else weight)  # type: ignore[arg-type]
            p = 1 / (1 + (-x).exp()) if spec.from_logits else x
            smooth = (1 - smoothing) * t + smoothing / 2
            losses.append(-(q * smooth * log(p) + (1 - smooth) * log(1 - p)))
        return losses, [Decimal(1)] * len(predictions)
    size = case.predictions.shape[-1]
    class_weights = [Decimal(w) for w in spec.class_weights or [1.0] * size]  # type: ignore[union-attr]
    losses, weights = [], []
    for i in range(len(predictions) // size):
        row = predictions[i * size : (i + 1) * size]
        if case.targets.dtype in FORMATS:
            dense = list(targets[i * size : (i + 1) * size])
        else:
            dense = [Decimal(int(c == targets[i])) for c in range(size)]
        total = sum(x.exp() for x in row)
        loss = Decimal(0)
        for c in range(size):
            p = row[c].exp() / total if spec.from_logits else row[c]
            loss -= class_weights[c] * ((1 - smoothing) * dense[c] + smoothing / size) * log(p)
        losses.append(loss)
        weighted = sum((w * t for w, t in zip(class_weights, dense, strict=True)), Decimal(0))
        weights.append(Decimal(1) if spec.class_weights is None else weighted)
    return losses, weights


def repeated(x: Tensor | None, values: Sequence[Any], count: int) -> list[Any]:
    return list(values) if x is None else [v for v in values for _ in range(count // len(values))]


def plain(case: Case, predictions: Numbers, targets: Numbers, sample_weight: Numbers) -> Decimal:
    """The loss, times the upstream gradient."""
    losses, weights = plain_losses(case, predictions, targets)
    count = len(losses)
    factors = repeated(case.sample_weight, sample_weight or [Decimal(1)] * count, count)
    mask = repeated(case.mask, case.mask.values if case.mask else [True] * count, count)
    ignored = getattr(case.spec, "ignore_index", None) or ()
    present = [m and case.targets.values[i] not in ignored for i, m in enumerate(mask)]
    # A weight of 0 switches its position off for good: a step away from 0 does not switch it on.
    switches = [1.0] * count if case.sample_weight is None else repeated(case.sample_weight, case.sample_weight.values, count)
    kept = [i for i in range(count) if present[i] and switches[i]]
    several = case.upstream if isinstance(case.upstream, list) else [1.0 if case.upstream is None else case.upstream] * count
    total = sum((Decimal(several[i]) * factors[i] * losses[i] for i in kept), Decimal(0))
    if case.spec.reduction != "mean":
        return total
    divisors: dict[str, Decimal] = {
        "weights": sum((factors[i] * weights[i] for i in kept), Decimal(0)),
        "present": Decimal(sum(present)),
        "nonzero": Decimal(sum(weights[i] != 0 for i in kept)),
        "all": Decimal(count),
    }
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


def check(case: Case, formula: Callable[[Case, Numbers, Numbers, Numbers], Decimal] = plain) -> None:
    """Compare the oracle with the plain formula, bit for bit, and with its central differences, to half a unit in the last place."""
    found = case.evaluate()
    with localcontext(Context(prec=100)):
        values = [[] if x is None else [Decimal(v) for v in x.values] for x in (case.predictions, case.targets, case.sample_weight)]
        if case.spec.reduction != "none":
            expected = formula(replace(case, upstream=None), values[0], values[1], values[2])
            half = case.predictions.dtype in ("float16", "bfloat16")
            form = F32 if half else FORMATS[case.predictions.dtype]
            assert_same(found.loss, round_on_grid(Fraction(expected), form))
        slopes = central_differences(case, formula)
        gradients = (found.grad_predictions, found.grad_targets, found.grad_sample_weight)
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
                # The difference quotient errs by about 1e-50, so a number this near to it is a nearest one.
                assert abs(Fraction(number) - Fraction(exact)) <= Fraction(form.ulp(number)) / 2 + Fraction(1, 10**40), (
                    f"gradient of {name}[{i}] is {number}, not {exact}, in {case}"
                )


def number(rng: random.Random, dtype: str, low: float, high: float) -> float:
    """A random number of the dtype, with as many digits as it has."""
    value = rng.uniform(low, high)
    unit = FORMATS[dtype].ulp(value) if dtype != "float64" else math.ulp(value)
    return min(max(math.floor(value / unit) * unit, low), high)


def numbers(rng: random.Random, dtype: str, low: float, high: float, *shape: int) -> Tensor:
    return Tensor([number(rng, dtype, low, high) for _ in range(math.prod(shape))], shape, dtype)


REDUCTIONS: list[dict[str, Any]] = [{"reduction": "none"}, {"reduction": "sum"}]
REDUCTIONS += [{"divisor": divisor} for divisor in ("weights", "present", "nonzero", "all")]
DTYPES = ["float64", "float32", "float16", "bfloat16"]


def with_companions(case: Case, rng: random.Random, count: int) -> Case:
    """The case with random weights (some 0, some negative where that is admitted), masks and upstream gradients."""
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
def test_cross_entropy_is_its_plain_formula(rule: dict[str, Any], kind: str, from_logits: bool) -> None:
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
        predictions = numbers(rng, dtype, -4.0, 4.0, n, k) if from_logits else numbers(rng, dtype, 0.002, 1.0, n, k)
        if kind == "index":
            targets = labels(*rng.choices([*range(k), k + 4], k=n - 1), 1)
        else:
            targets = numbers(rng, rng.choice(DTYPES), 0.0625, 1.5, n, k)
        check(with_companions(Case(spec, predictions, targets), rng, n))


@pytest.mark.parametrize("rule", REDUCTIONS, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("kind", ["bool", "int32", "float"])
@pytest.mark.parametrize("from_logits", [True, False], ids=["logits", "probabilities"])
def test_binary_cross_entropy_is_its_plain_formula(rule: dict[str, Any], kind: str, from_logits: bool) -> None:
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
        predictions = numbers(rng, dtype, -4.0, 4.0, *shape) if from_logits else numbers(rng, dtype, 0.002, 0.99, *shape)
        if kind == "float":
            targets = numbers(rng, rng.choice(DTYPES), 0.0625, 0.9375, *shape)
        else:
            targets = Tensor([rng.choice([False, True] if kind == "bool" else [0, 1]) for _ in range(4)], shape, kind)
        case = with_companions(Case(spec, predictions, targets), rng, 4)
        aligned = {
            name: x._replace(shape=shape) for name in ("sample_weight", "mask") if (x := getattr(case, name)) is not None
        }
        check(replace(case, **aligned))


@pytest.mark.parametrize("rule", REDUCTIONS, ids=lambda rule: "-".join(rule.values()))
@pytest.mark.parametrize("kind", ["bool", "int32", "float"])
def test_squared_error_is_its_plain_formula(rule: dict[str, Any], kind: str) -> None:
    rng = random.Random(f"{rule}{kind}")
    for dtype in DTYPES:
        predictions = numbers(rng, dtype, -8.0, 8.0, 5)
        if kind == "float":
            targets = numbers(rng, rng.choice(DTYPES), -4.0, 4.0, 5)
        else:
            targets = Tensor([rng.choice([False, True] if kind == "bool" else [-3, 0, 7]) for _ in range(5)], (5,), kind)
        check(with_companions(Case(MeanSquaredError(**rule), predictions, targets), rng, 5))


def test_per_position_losses_are_the_plain_formula_bit_for_bit() -> None:
    rng = random.Random(5)
    compared = 0
    for dtype, from_logits in itertools.product(DTYPES, (True, False)):
        n, k = 6, 4
        predictions = numbers(rng, dtype, -30.0, 30.0, n, k) if from_logits else numbers(rng, dtype, 0.001, 1.0, n, k)
        case = Case(
            CrossEntropyLoss(from_logits=from_logits, reduction="none", label_smoothing=0.05),
            predictions,
            labels(*(rng.randrange(k) for _ in range(n))),
        )
        found = case.evaluate()
        with localcontext(Context(prec=100)):
            losses, _ = plain_losses(case, [Decimal(x) for x in predictions.values], [Decimal(t) for t in case.targets.values])
        assert isinstance(found.loss, list)
        for loss, wide, exact in zip(found.loss, found.position_losses, losses, strict=True):
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
    """The divisor counts as a constant."""
    right = reference._Reduction.__init__

    def wrong(self: reference._Reduction, *arguments: Any) -> None:
        right(self, *arguments)
        self._weighted = False

    patch.setattr(reference._Reduction, "__init__", wrong)


def _rows_sum_to_one(patch: pytest.MonkeyPatch) -> None:
    """softmax - tau, though T is not 1."""
    right = reference._Call._from_logits

    def wrong(self: reference._Call, logits: Sequence[float], tau: dict[int, Fraction], weight: Any) -> reference._Position:
        position = right(self, logits, tau, weight)
        row = reference._Softmax(logits, {})
        gradient = [
            reference._combined([(Fraction(1), p), (Fraction(-1), reference.Real(tau.get(c, Fraction(0))))])
            for c, p in enumerate(row.probabilities)
        ]
        return position._replace(predictions=gradient)

    patch.setattr(reference._Call, "_from_logits", wrong)


def _no_chain_rule(patch: pytest.MonkeyPatch) -> None:
    """The derivative by the smoothed target is taken for the one by the target."""
    patch.setattr(reference._Call, "_by_target", lambda self, c, cost: reference._scaled(self.class_weights[c], cost))


def _no_pos_weight(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reference._Reduction, "_pos_weight", lambda *_: Fraction(1))


def _sigma_minus_target(patch: pytest.MonkeyPatch) -> None:
    """The gradient of the binary cross-entropy without the smoothing."""
    right = reference._Call._binary_logit
    patch.setattr(reference._Call, "_binary_logit", lambda self, z, yes, _: right(self, z, yes, 1 - yes / 3))


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
    check(case)
    spoil(monkeypatch)
    if spoil is _sigma_minus_target:  # its case is one where the two differ: pos_weight 3 and smoothing
        case = replace(case, spec=case.spec.replace(pos_weight=2.0))
    with pytest.raises(AssertionError, match="is not|gradient of"):
        check(case)


def test_the_check_catches_one_unit_in_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference._rounded

    def off(x: Any, form: Format) -> float:
        return right(x, form) + form.ulp(right(x, form))

    monkeypatch.setattr(reference, "_rounded", off)
    with pytest.raises(AssertionError, match="is not"):
        check(DENSE)
