"""Cases of the group "combine": a call cut into pieces gives what the whole gives.

Each case is a call of another group, or one chosen by hand, with the places where it is cut along
its first axis. The sum of the pieces' totals must have the loss of the whole, in two orders. The
gradients of the pieces, with the sum of their divisors as the divisor, must be those of the whole,
one after another. Both are compared with the oracle as a case without cuts is: in native mode
within the bound, in exact mode bit by bit. Other cases run through 2^24 positions, or are calls
that must be refused with the same message everywhere.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import registry
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.checks import extents
from unifiedloss.conformance import checks, tolerances
from unifiedloss.conformance.case import Case, rng_of
from unifiedloss.conformance.cases import all_cases
from unifiedloss.conformance.data import INF, NAN, ONE_HOT, P, W, X, Y, f32
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import UnifiedLossError
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.reference import Reference

Array = NDArray[Any]

_OF_EACH_LOSS = 3
"""Cases that are taken from the other groups, for each loss."""


@dataclass(frozen=True, eq=False)
class CutCase(Case):
    """A call in pieces.

    Attributes:
        cuts: where the pieces end, but for the last; equal neighbours make an empty piece.
        kind: "cut", "long", or the key of a call in `_REFUSED`.
    """

    cuts: tuple[int, ...] = ()
    kind: str = "cut"

    def expected(self) -> Any:
        """The oracle's result for the whole; None if there is none."""
        return super().expected() if self.kind == "cut" else None

    def pieces(self) -> list[slice]:
        """The rows of each piece."""
        ends = [*self.cuts, len(self.predictions)]
        return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@functools.cache
def cut_cases() -> tuple[CutCase, ...]:
    """All cases of the group, in a fixed order."""
    return (*_by_hand(), *_from_others(), *_long(), *_refusals())


# --------------------------------------------------------------------------------------- the cases


def _by_hand() -> Iterator[CutCase]:
    ce = CrossEntropyLoss(from_logits=True)
    cut = functools.partial(_case, rules=("pieces",))
    yield cut("class indices", ce, X, Y, cuts=(1,), compiled=True, representative=True)
    yield cut("three pieces", ce, X, Y, cuts=(1, 3), compiled=True)
    yield cut("empty pieces", ce, X, Y, cuts=(0, 2, 2, 4))
    yield cut("one piece", ce, X, Y, cuts=())
    yield cut("a sum", ce.replace(reduction="sum"), X, Y, cuts=(2,), compiled=True)
    # W is 0 throughout the second piece, and smoothing gives its rows a loss.
    smoothed = ce.replace(class_weights=(0, 1, 2), label_smoothing=0.5)
    yield cut("a piece of weight 0", smoothed, X, np.array([1, 2, 0, 0]), cuts=(2,), compiled=True)
    yield cut("dense, a piece of weight 0", smoothed, X, ONE_HOT[[1, 2, 0, 0]], cuts=(2,))
    ignoring = ce.replace(ignore_index=-100)
    padded = np.array([0, 1, -100, -100])
    yield cut("a piece of padding", ignoring, X, padded, cuts=(2,), compiled=True)
    for on_empty in ("nan", "zero"):
        dropped = np.full(4, -100)
        spec = ignoring.replace(on_empty=on_empty)
        yield cut(f"nothing counts, {on_empty}", spec, X, dropped, cuts=(1, 2))
    bad = X.copy()
    bad[0, 1], bad[2, 2] = NAN, -INF
    yield cut("NaN in one piece", ce, bad, Y, cuts=(1, 2))
    infinite = X.copy()
    infinite[3, 2] = -INF
    yield cut("an infinite loss in one piece", ce, infinite, Y, cuts=(1, 3))
    digits = f32(0.1, 0.7, 1.3, 0.011)
    yield cut("weights of many digits", ce, X, Y, digits, cuts=(1, 2), compiled=True)
    ends = f32(2.0**-126, 2.0**100, 1, 2.0**-126)
    yield cut("weights at both ends", ce, X, Y, ends, cuts=(1, 2, 3))
    weighted = NegativeLogLikelihoodLoss(class_weights=W, scale=2.5)
    yield cut("log-probabilities, scaled", weighted, np.log(P), Y, cuts=(3,))
    averaged = BinaryCrossEntropyLoss(from_logits=True, average_last_axis=True)
    weight = f32(1, 0, 2, 3)
    yield cut("averaged rows", averaged, X, ONE_HOT, weight, cuts=(1, 2), compiled=True)
    mask = np.array([True, False, True, True])
    squared = MeanSquaredError(element_weights=W, divisor="nonzero")
    yield cut("weighted elements", squared, X, ONE_HOT, None, mask, cuts=(2,))


def _case(name: str, spec: Any, predictions: Array, *rest: Any, **options: Any) -> CutCase:
    return CutCase(f"combine/{name}", spec, predictions, *rest, **options)


def _from_others() -> Iterator[CutCase]:
    """Cases of products and with random data, cut at random."""
    every = all_cases()
    for loss in dict.fromkeys(case.spec.name for case in every):
        able = [case for case in every if case.spec.name == loss and _is_divisible(case)]
        for number, case in enumerate(able[:: max(1, len(able) // _OF_EACH_LOSS)][:_OF_EACH_LOSS]):
            name = f"combine/{case.name}"
            rng = rng_of(name)
            rows = len(case.predictions)
            cuts = sorted(rng.integers(0, rows + 1, int(rng.integers(1, 4))).tolist())
            yield CutCase(
                **vars(case)
                | {
                    "name": name,
                    "rules": ("pieces",),
                    "compiled": number == 0,
                    "representative": False,
                    "of_backend": False,
                },
                cuts=tuple(cuts),
            )


def _is_divisible(case: Case) -> bool:
    """Whether a case can be cut along its first axis, and its divisor is a finite number."""
    spec: Any = case.spec
    weight = case.sample_weight
    rank = case.predictions.ndim
    axis = tolerances.plan_of(case).axis
    return (
        case.name.startswith(("product/", "rules/", "random/"))
        and spec.reduction != "none"
        and spec.on_empty != "error"
        and case.made is None
        and rank > 1
        and axis != 0
        and len(case.predictions) > 1
        and (weight is None or (weight.ndim > 0 and bool(np.isfinite(weight).all())))
        and (case.mask is None or case.mask.ndim > 0)
        and len(extents(getattr(spec, "element_weights", None))) < rank
        and not (getattr(spec, "average_last_axis", False) and rank == 2 and weight is None)
        and not (case.spec.rounding == "exact" and getattr(spec, "average_last_axis", False))
    )


def _long() -> Iterator[CutCase]:
    for reduction in ("mean", "sum"):
        spec = CrossEntropyLoss(from_logits=True, reduction=reduction)
        yield _case(f"2^24 positions, {reduction}", spec, X, Y, kind="long", rules=("pieces",))


def _refusals() -> Iterator[CutCase]:
    for kind, (spec, _) in _REFUSED.items():
        yield _case(f"refused: {kind}", spec, X, Y, kind=kind, rules=("pieces",))


_Call = Callable[[Adapter, Any], Any]
"""Makes a call that must be refused. Its arguments are an adapter and a spec."""


def _with_divisor(divisor: Any) -> _Call:
    def call(adapter: Adapter, spec: Any) -> Any:
        given = adapter.tensor(divisor) if isinstance(divisor, np.ndarray) else divisor
        x, y = adapter.tensor(X), adapter.tensor(Y)
        return adapter.loss(spec, x, y, None, None, given)

    return call


def _result_of(change: Callable[[Array], Array]) -> _Call:
    """The result of changed totals."""

    def call(adapter: Adapter, spec: Any) -> Any:
        totals = adapter.to_numpy(adapter.totals(spec, adapter.tensor(X), adapter.tensor(Y)))
        return adapter.result(spec, adapter.tensor(change(np.array(totals))))

    return call


def _totals(adapter: Adapter, spec: Any) -> Any:
    return adapter.totals(spec, adapter.tensor(X), adapter.tensor(Y))


def _divisor(adapter: Adapter, spec: Any) -> Any:
    return adapter.divisor_of(spec, adapter.tensor(Y))


_MEAN = CrossEntropyLoss(from_logits=True)
_SUM = _MEAN.replace(reduction="sum")
_NONE = _MEAN.replace(reduction="none")
_REFUSED: dict[str, tuple[Any, _Call]] = {
    "totals of none": (_NONE, _totals),
    "divisor of a sum": (_SUM, _divisor),
    "divisor with a sum": (_SUM, _with_divisor(4)),
    "divisor with none": (_NONE, _with_divisor(4)),
    "negative divisor": (_MEAN, _with_divisor(-1.0)),
    "negative divisor in a tensor": (_MEAN, _with_divisor(np.array(-2, np.float32))),
    "infinite divisor": (_MEAN, _with_divisor(INF)),
    "NaN as divisor": (_MEAN, _with_divisor(NAN)),
    "divisor 0 is an error": (_MEAN.replace(on_empty="error"), _with_divisor(0)),
    "a vector of divisors": (_MEAN, _with_divisor(np.ones(3, np.float32))),
    "a bool as divisor": (_MEAN, _with_divisor(divisor=True)),
    "a rule as divisor": (_MEAN, _with_divisor("present")),
    "totals of integers": (_MEAN, _result_of(lambda t: t.astype(np.int32))),
    "totals of another length": (_MEAN, _result_of(lambda t: t[:-1])),
}


# --------------------------------------------------------------------------------------- the checks


def check(adapter: Adapter, mode: Mode, case: CutCase, expected: Any) -> checks.CheckResult:
    """Run a case in a mode and compare its results with the oracle's."""
    outcome = checks.CheckResult()
    try:
        if case.kind == "cut":
            _check_cut(outcome, adapter, mode, case, expected)
        elif case.kind == "long":
            _check_long(outcome, adapter, mode, case)
        else:
            _check_refused(outcome, adapter, case)
    except Exception as error:  # noqa: BLE001 - any error fails this case, and the run goes on
        outcome.fail(f"raised {type(error).__name__}: {error}")
    return outcome


Piece = tuple[Any, Any, Any, Any]
"""The predictions, targets, sample weights and mask of a piece."""


def _tensors(adapter: Adapter, case: CutCase, rows: slice) -> Piece:
    weight, mask = case.sample_weight, case.mask
    return (
        adapter.tensor(case.predictions[rows], case.dtype),
        adapter.tensor(case.targets[rows]),
        None if weight is None else adapter.tensor(weight[rows]),
        None if mask is None else adapter.tensor(mask[rows]),
    )


def _run(mode: Mode, function: Callable[..., Any], pieces: Sequence[Piece], *more: Any) -> Any:
    """Call a function of pieces in a mode, which takes tensors alone."""
    given = [x for piece in pieces for x in piece if x is not None]

    def flat(*xs: Any) -> Any:
        rest = iter(xs)
        filled = [tuple(None if x is None else next(rest) for x in piece) for piece in pieces]
        return function(filled, *rest)

    return mode.run(flat, *given, *more)


def _check_cut(
    outcome: checks.CheckResult, adapter: Adapter, mode: Mode, case: CutCase, expected: Reference
) -> None:
    spec: Any = case.spec
    pieces = [_tensors(adapter, case, rows) for rows in case.pieces()]
    plan = tolerances.plan_of(case)
    mean = spec.reduction == "mean"

    def totals(pieces: list[Piece]) -> list[Any]:
        each = [adapter.totals(spec, *piece) for piece in pieces]
        # Not sum(...), because JAX narrows 64-bit arrays where a Python number is added.
        orders = [functools.reduce(operator.add, order) for order in (each, each[::-1])]
        found = [adapter.result(spec, order) for order in orders]
        if mean:
            divisors = [adapter.divisor_of(spec, *piece[1:], case.dtype) for piece in pieces]
            found.append(functools.reduce(operator.add, divisors))
        return found

    forward, backward, *divisors = _run(mode, totals, pieces)
    losses = [
        _as_loss(adapter, x, plan.result_dtype, exact=plan.exact) for x in (forward, backward)
    ]
    if (
        np.asarray(adapter.to_numpy(losses[0])).tobytes()
        != np.asarray(adapter.to_numpy(losses[1])).tobytes()
        and plan.exact
    ):
        outcome.fail("the order in which totals are added changes the loss")
    _compare(outcome, adapter, case, expected, losses[0], {})
    if not mean:
        return
    (divisor,) = divisors

    def at_once(pieces: list[Piece], d: Any) -> Any:
        (whole,) = pieces
        return adapter.loss(spec, *whole, d)

    loss = _run(mode, at_once, [_tensors(adapter, case, slice(None))], divisor)
    slopes = _slopes(adapter, mode, case, pieces, divisor)
    joined = np.concatenate([np.asarray(adapter.to_numpy(x)) for x in slopes])
    gradient = adapter.tensor(joined, case.dtype)
    _compare(outcome, adapter, case, expected, loss, {"predictions": gradient})


def _compare(
    outcome: checks.CheckResult,
    adapter: Adapter,
    case: CutCase,
    expected: Reference,
    loss: Any,
    gradients: dict[str, Any],
) -> None:
    found = checks.compare(adapter, case, expected, loss, gradients)
    outcome.comparisons += found.comparisons
    outcome.failures += found.failures
    outcome.value_distance = max(outcome.value_distance, found.value_distance)
    outcome.gradient_distance = max(outcome.gradient_distance, found.gradient_distance)


def _as_loss(adapter: Adapter, value: Any, dtype: str, *, exact: bool) -> Any:
    """A result in the dtype of the loss, which native results are wider than."""
    if exact or adapter.dtype_name(value.dtype) not in ("float32", "float64"):
        return value
    return adapter.tensor(np.asarray(adapter.to_numpy(value)), dtype)


def _slopes(
    adapter: Adapter, mode: Mode, case: CutCase, pieces: list[Piece], divisor: Any
) -> Sequence[Any]:
    """The gradients of all pieces."""
    spec = case.spec
    upstream = None if case.upstream is None else np.asarray(case.upstream, np.float32)
    if not adapter.differentiates:
        return [adapter.value_and_grad(spec, *piece, upstream, divisor)[1] for piece in pieces]
    predictions = tuple(piece[0] for piece in pieces)

    def total(filled: list[Piece], d: Any) -> Any:
        return functools.reduce(operator.add, [adapter.loss(spec, *p, d) for p in filled])

    def of_predictions(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *xs: run(
            [(x, *piece[1:]) for x, piece in zip(xs, pieces, strict=True)], divisor
        )

    above = None
    if upstream is not None:
        above = adapter.tensor(upstream, tolerances.plan_of(case).result_dtype)
    if mode.whole_step:

        def step(filled: list[Piece], d: Any) -> Any:
            xs = tuple(piece[0] for piece in filled)
            rest = [piece[1:] for piece in filled]

            def inner(*given: Any) -> Any:
                return total([(x, *r) for x, r in zip(given, rest, strict=True)], d)

            return adapter.differentiate(inner, xs, above)

        _, found = _run(mode, step, pieces, divisor)
        return tuple(found)
    compiled = of_predictions(lambda filled, d: _run(mode, total, filled, d))
    _, gradients = adapter.differentiate(compiled, predictions, above)
    return gradients


def _check_long(outcome: checks.CheckResult, adapter: Adapter, mode: Mode, case: CutCase) -> None:
    """Add the totals of one position 2^24 times, and those of another a thousand times.

    In float32, a count of 2^24 does not grow by 1.
    """
    spec: Any = case.spec
    many, few = ([_tensors(adapter, case, slice(i, i + 1))] for i in (0, 1))

    def totals(pieces: list[Piece]) -> Any:
        return adapter.totals(spec, *pieces[0])

    first, second = (np.array(adapter.to_numpy(_run(mode, totals, x))) for x in (many, few))
    state = first * first.dtype.type(1 << 24)  # what adding it 2^24 times gives
    for _ in range(1000):
        state = state + second
    got = float(adapter.to_numpy(adapter.result(spec, adapter.tensor(state))))
    none = registry.adapter("numpy").loss(
        spec.replace(reduction="none", rounding="exact"), case.predictions[:2], case.targets[:2]
    )
    total = float(none[0]) * (1 << 24) + float(none[1]) * 1000
    want = total / ((1 << 24) + 1000) if spec.reduction == "mean" else total
    outcome.comparisons += 1
    if not abs(got - want) <= 2e-7 * want:
        outcome.fail(f"the loss of 2^24 + 1000 positions is {got!r}, should be {want!r}")


def _check_refused(outcome: checks.CheckResult, adapter: Adapter, case: CutCase) -> None:
    outcome.comparisons += 1
    _, call = _REFUSED[case.kind]
    raised = []
    for each in (registry.adapter("numpy"), adapter):
        try:
            each.to_numpy(call(each, case.spec))  # a lazy result is computed here
        except UnifiedLossError as error:
            raised.append(f"{type(error).__name__}: {error}")
        else:
            raised.append("nothing")
    wanted, got = raised
    if wanted == "nothing" or got != wanted:
        outcome.fail(f"raises {got!r}, should raise {wanted!r}")


def run(name: str, adapter: Adapter, mode: str, rounding: str) -> checks.CheckResult:
    """Run one case of the group, by its name."""
    (case,) = (each for each in cut_cases() if each.name == name)
    rounded = replace(case, spec=case.spec.replace(rounding=rounding))
    return check(adapter, adapter.modes()[mode], rounded, rounded.expected())


def snippet(target: Target, mode: str, case: CutCase) -> str:
    """Code that runs a case again."""
    head = "" if target.on is None else f'import os\nos.environ["KERAS_BACKEND"] = {target.on!r}\n'
    return (
        f"{head}from unifiedloss import registry\n"
        "from unifiedloss.conformance import combine\n\n"
        f"adapter = registry.adapter({target.backend!r})\n"
        f"print(combine.run({case.name!r}, adapter, {mode!r}, {case.spec.rounding!r}).failures)\n"
    )
