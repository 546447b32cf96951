"""Run one case on one backend in one mode, and compare the results with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import tolerances
from unifiedloss.conformance.case import BadCall, Case, SoftmaxCase
from unifiedloss.conformance.fused import WAYS
from unifiedloss.errors import BadValueError, EmptyMeanError, UnifiedLossError
from unifiedloss.floats import FORMATS, Format
from unifiedloss.plan import Plan, natively
from unifiedloss.reference import Reference, Softmax

Array = NDArray[Any]


@dataclass
class CheckResult:
    """The outcome of one case.

    Attributes:
        comparisons: the number of results compared with their expected values.
        failures: descriptions of what differed.
        value_distance: the largest distance of a loss, in ulps of its magnitude.
        gradient_distance: the same for gradients.
    """

    comparisons: int = 0
    failures: list[str] = field(default_factory=list)
    value_distance: float = 0.0
    gradient_distance: float = 0.0

    def fail(self, what: str) -> None:
        """Note a failure."""
        self.failures.append(what)


def check_case(
    adapter: Adapter, mode: Mode, case: Case | SoftmaxCase, expected: Any
) -> CheckResult:
    """Run a case and compare the loss or the softmax, its dtype and shape, and every gradient.

    Args:
        adapter: the backend's adapter.
        mode: one of its modes.
        case: the case.
        expected: the oracle's result.
    """
    if must_raise(mode, expected):
        outcome = CheckResult()
        _expect_error(outcome, adapter, mode, case, BadValueError)
        return outcome
    try:
        value, gradients = _evaluate(adapter, mode, case)
    except Exception as error:  # noqa: BLE001 - any error fails this case, and the run goes on
        outcome = CheckResult()
        outcome.fail(f"raised {type(error).__name__}: {_first_line(error)}")
        return outcome
    try:
        alone = alone_of(adapter, mode, [case])
    except Exception as error:  # noqa: BLE001 - as above
        outcome = CheckResult()
        outcome.fail(f"without its gradient: raised {type(error).__name__}: {_first_line(error)}")
        return outcome
    return compare(adapter, case, expected, value, gradients, *alone)


def alone_of(adapter: Adapter, mode: Mode, cases: Sequence[Case | SoftmaxCase]) -> list[Any]:
    """The losses of the cases whose predictions are made in the program, without gradients.

    Eager modes compute them in the same way with gradients, so there are none.
    """
    made = [case for case in cases if is_made(case)]
    if mode.raises or not made or not adapter.differentiates:
        return []
    steps = [step_of(adapter, case) for case in made]

    def losses(*tensors: Any) -> list[Any]:
        rest = iter(tensors)
        return [step.function(*(next(rest) for _ in step.inputs)) for step in steps]

    return list(mode.run(losses, *(x for step in steps for x in step.inputs.values())))


def is_made(case: Case | SoftmaxCase) -> bool:
    """Whether the program makes the case's predictions."""
    return isinstance(case, Case) and case.made is not None


def must_raise(mode: Mode, expected: Any) -> bool:
    """Whether a case must raise in this mode because of bad values."""
    return mode.raises and isinstance(expected, Reference) and bool(expected.bad_positions)


def compare(
    adapter: Adapter,
    case: Case | SoftmaxCase,
    expected: Any,
    value: Any,
    gradients: Mapping[str, Any],
    alone: Any = None,
) -> CheckResult:
    """Compare a case's results with the oracle's.

    Args:
        adapter: the backend's adapter.
        case: the case.
        expected: the oracle's result.
        value: the loss, or the softmax.
        gradients: the gradients, by the argument's name.
        alone: the loss, computed without gradients; None where no program computed it so.
    """
    if isinstance(case, SoftmaxCase):
        return _compare_softmax(adapter, case, expected, value, gradients)
    return _compare_loss(adapter, case, expected, value, gradients, alone)


def _compare_loss(
    adapter: Adapter,
    case: Case,
    expected: Reference,
    value: Any,
    gradients: Mapping[str, Any],
    alone: Any,
) -> CheckResult:
    outcome = CheckResult()
    plan = tolerances.plan_of(case)
    magnitudes = tolerances.magnitudes(case, plan)
    reduced = plan.spec.reduction != "none"
    shape = () if reduced else plan.positions
    kept = tolerances.kept(case, plan)
    kept_positions = np.asarray(kept.any(-1)) if plan.average_last_axis else kept
    for what, got in (("loss", value), ("loss without its gradient", alone)):
        if got is None:
            continue
        _compare(
            outcome, what, plan, adapter, got, plan.result_dtype, shape, expected.loss,
            magnitudes.loss, None if reduced else kept_positions,
        )  # fmt: skip
        # In float64, because a comparison of a half type's NaN warns.
        numbers = np.asarray(adapter.to_numpy(got), np.float64)
        if _is_hard(case, plan) and (numbers < 0).any():
            outcome.fail(f"{what} of hard labels is {numbers.min()!r}, below 0")
    kept_elements = np.broadcast_to(_expand(kept, plan), case.predictions.shape)
    if "predictions" in gradients:
        _compare(
            outcome, "gradient to the predictions", plan, adapter, gradients["predictions"],
            case.dtype, case.predictions.shape, expected.grad_predictions,
            magnitudes.grad_predictions, kept_elements,
        )  # fmt: skip
    if "source" in gradients and case.made is not None:
        back = WAYS[case.made.way].back
        slopes = np.asarray(expected.grad_predictions).reshape(case.predictions.shape)
        _compare(
            outcome, "gradient to what the predictions are made from", plan, adapter,
            gradients["source"], case.made.sources[0].dtype.name, case.predictions.shape,
            back(slopes), np.abs(back(magnitudes.grad_predictions).astype(np.float64)), None,
            rounded_to=min(
                (case.dtype, case.made.sources[0].dtype.name), key=lambda x: -FORMATS[x].epsilon
            ),
        )  # fmt: skip
    # In exact mode these are native, and their distances are no distances of exact results.
    others, plan = CheckResult(), natively(plan)
    if "targets" in gradients:
        _compare(
            others, "gradient to the targets", plan, adapter, gradients["targets"],
            case.targets.dtype.name, case.targets.shape, expected.grad_targets,
            magnitudes.grad_targets, kept_elements,
            defined=_defined(expected, kept_positions.shape, plan),
        )  # fmt: skip
    if "sample_weight" in gradients and case.sample_weight is not None:
        _compare(
            others, "gradient to the sample weights", plan, adapter, gradients["sample_weight"],
            case.sample_weight.dtype.name, case.sample_weight.shape, expected.grad_sample_weight,
            magnitudes.grad_sample_weight, None,
            defined=~np.isnan(case.sample_weight.astype(np.float64)),
        )  # fmt: skip
    outcome.comparisons += others.comparisons
    outcome.failures += others.failures
    if case.spec.rounding != "exact":
        outcome.gradient_distance = max(outcome.gradient_distance, others.gradient_distance)
    return outcome


def _defined(expected: Reference, shape: tuple[int, ...], plan: Plan) -> Array:
    """Where the gradient to the targets is defined: where the position's loss is not NaN."""
    number = ~np.isnan(np.reshape(np.array(expected.position_losses), shape))
    return number[..., None] if plan.average_last_axis else _expand(number, plan)


def _compare_softmax(
    adapter: Adapter,
    case: SoftmaxCase,
    expected: Softmax,
    value: Any,
    gradients: Mapping[str, Any],
) -> CheckResult:
    outcome = CheckResult()
    plan, shape = tolerances.plan_of_row(case), case.logits.shape
    magnitude, steepness = tolerances.softmax_magnitudes(case)
    exact = np.reshape(expected.values, shape)
    got = np.asarray(adapter.to_numpy(value)).astype(np.float64)
    if got.shape == shape:
        exact = tolerances.or_zero(
            got, exact, np.reshape(expected.probabilities, shape), magnitude, plan
        )
    _compare(
        outcome, "softmax", plan, adapter, value, case.dtype, shape, exact, magnitude, exact != 0,
        underflows=False,
    )  # fmt: skip
    if "logits" in gradients:
        _compare(
            outcome, "gradient to the logits", plan, adapter, gradients["logits"], case.dtype,
            shape, expected.gradient, steepness, None,
        )  # fmt: skip
    return outcome


def _is_hard(case: Case, plan: Plan) -> bool:
    """Whether no loss of the case can be negative: hard targets, and no negative weights.

    Log-probabilities may be any numbers, and epsilon may be added to a probability of 1.
    """
    if plan.log_probabilities or plan.kind == "real" or plan.scale < 0:
        return False
    if getattr(case.spec, "epsilon_added", False):
        return False
    with np.errstate(invalid="ignore"):  # a weight or a target may be NaN
        plain = case.sample_weight is None or bool((case.sample_weight >= 0).all())
        t = np.asarray(case.targets, np.float64)
        hard = plan.kind == "index" or bool(((t == 0) | (t == 1)).all())
    return plain and hard


def _expand(x: Array, plan: Plan) -> Array:
    return x if plan.axis is None else np.expand_dims(x, plan.axis)


class Step(NamedTuple):
    """A case's computation on a backend that differentiates.

    Attributes:
        function: the loss, or the softmax, of the inputs.
        inputs: the tensors to differentiate with respect to, by the argument's name.
        upstream: the upstream gradient; None for ones.
    """

    function: Callable[..., Any]
    inputs: dict[str, Any]
    upstream: Any


def step_of(adapter: Adapter, case: Case | SoftmaxCase) -> Step:
    """Build a case's computation with the backend's tensors."""
    if isinstance(case, SoftmaxCase):
        logits = adapter.tensor(case.logits, case.dtype)
        upstream = adapter.tensor(case.upstream, case.dtype)
        return Step(lambda z: adapter.softmax(z, case.axis), {"logits": logits}, upstream)
    targets = adapter.tensor(case.targets)
    weight = None if case.sample_weight is None else adapter.tensor(case.sample_weight)
    mask = None if case.mask is None else adapter.tensor(case.mask)
    made = case.made
    tensors = {
        "predictions": adapter.tensor(case.predictions, case.dtype),
        "targets": targets,
        "sample_weight": weight,
    }
    inputs = {name: tensors[name] for name in case.differentiated()}
    if made is not None:
        del inputs["predictions"]
        for i, x in enumerate(made.sources):
            inputs[f"source {i}" if i else "source"] = adapter.tensor(x)
    names = list(inputs)

    def loss(*tensors: Any) -> Any:
        given = dict(zip(names, tensors, strict=True))
        if made is not None:
            sources = [x for name, x in given.items() if name.startswith("source")]
            given["predictions"] = WAYS[made.way].make(adapter.ops, *sources)
        return adapter.loss(
            case.spec,
            given["predictions"],
            given.get("targets", targets),
            given.get("sample_weight", weight),
            mask,
        )

    return Step(loss, inputs, upstream_of(adapter, case))


def upstream_of(adapter: Adapter, case: Case) -> Any:
    """The upstream gradient of a case as a tensor; None for ones."""
    if case.upstream is None:
        return None
    result = tolerances.plan_of(case).result_dtype
    return adapter.tensor(np.asarray(case.upstream, np.float32), result)


def _evaluate(adapter: Adapter, mode: Mode, case: Case | SoftmaxCase) -> tuple[Any, dict[str, Any]]:
    """Compute the loss or the softmax, and the gradients by the argument's name."""
    if not adapter.differentiates:
        return _evaluate_without_gradients(adapter, mode, case)
    step = step_of(adapter, case)
    tensors = tuple(step.inputs.values())
    if mode.whole_step:
        value, gradients = mode.run(
            lambda *xs: adapter.differentiate(step.function, xs, step.upstream), *tensors
        )
    else:
        value, gradients = adapter.differentiate(
            lambda *xs: mode.run(step.function, *xs), tensors, step.upstream
        )
    return value, dict(zip(step.inputs, gradients, strict=True))


def _evaluate_without_gradients(
    adapter: Adapter, mode: Mode, case: Case | SoftmaxCase
) -> tuple[Any, dict[str, Any]]:
    """Do the same for a backend without automatic differentiation.

    A loss has its closed-form gradient there, and a softmax has none.
    """
    if isinstance(case, SoftmaxCase):
        logits = adapter.tensor(case.logits, case.dtype)
        return mode.run(lambda z: adapter.softmax(z, case.axis), logits), {}
    predictions, targets = (
        adapter.tensor(case.predictions, case.dtype),
        adapter.tensor(case.targets),
    )
    weight = None if case.sample_weight is None else adapter.tensor(case.sample_weight)
    mask = None if case.mask is None else adapter.tensor(case.mask)
    value, gradient = adapter.value_and_grad(
        case.spec, predictions, targets, weight, mask, upstream_of(adapter, case)
    )
    again = mode.run(lambda p, t: adapter.loss(case.spec, p, t, weight, mask), predictions, targets)
    if not np.array_equal(adapter.to_numpy(value), adapter.to_numpy(again), equal_nan=True):
        msg = f"value_and_grad gives the loss {value}, calling gives {again}"
        raise AssertionError(msg)
    return value, {"predictions": gradient}


def _compare(
    outcome: CheckResult,
    what: str,
    plan: Plan,
    adapter: Adapter,
    result: Any,
    dtype: str,
    shape: Any,
    expected: Any,
    magnitude: Any,
    kept: Array | None,
    defined: Array | None = None,
    *,
    underflows: bool = True,
    rounded_to: str | None = None,
) -> None:
    """Compare one result.

    Args:
        outcome: the outcome to add to.
        what: the result's name in messages.
        plan: the case's plan.
        adapter: the backend's adapter.
        result: the tensor.
        dtype: the expected dtype.
        shape: the expected shape.
        expected: the oracle's result, flat.
        magnitude: see `tolerances`.
        kept: where the position is neither dropped nor zero-weighted; for a softmax, where it is
            not 0 by its rule. Elsewhere the result must be +0. None for no such check.
        defined: where the result is defined; None for everywhere. The gradient to the targets is
            undefined where the loss is NaN.
        underflows: see `tolerances.distance`.
        rounded_to: the least precise dtype that the result was rounded to; None for its own.
    """
    outcome.comparisons += 1
    got_dtype = adapter.dtype_name(result.dtype)
    if got_dtype != dtype:
        outcome.fail(f"{what} has dtype {got_dtype}, should be {dtype}")
    got = np.asarray(adapter.to_numpy(result)).astype(np.float64)
    if got.shape != tuple(shape):
        outcome.fail(f"{what} has shape {got.shape}, should be {tuple(shape)}")
        return
    exact = np.asarray(expected, np.float64).reshape(got.shape)
    magnitude = np.broadcast_to(magnitude, got.shape)
    special = ~np.isfinite(exact)
    if defined is None:
        defined = np.ones(got.shape, bool)
    defined = np.broadcast_to(defined, got.shape)
    same = ~defined | np.where(
        special, (got == exact) | (np.isnan(got) & np.isnan(exact)), np.isfinite(got)
    )
    if not same.all():
        _fail_at(outcome, what, ~same, got, exact, "")
    if kept is not None:
        # Elsewhere the sign of zero counts, too: it must be +0.
        zero = kept | ((got == 0) & ~np.signbit(got))
        if not zero.all():
            why = " (the position is dropped or zero-weighted)" if underflows else ""
            _fail_at(outcome, what, ~zero, got, np.zeros_like(got), why)
    if what != "softmax" and plan.exact:
        _compare_bits(outcome, what, got, exact, FORMATS[dtype])
        return
    measured = defined & same & ~special
    if not measured.any():
        return
    distances = tolerances.distance(
        got, exact, magnitude, plan, rounded_to or dtype, underflows=underflows
    )[measured]
    largest = float(distances.max())
    if what.startswith(("loss", "softmax")):
        outcome.value_distance = max(outcome.value_distance, largest)
    else:
        outcome.gradient_distance = max(outcome.gradient_distance, largest)
    allowed = tolerances.limit(plan)
    if not largest <= allowed:  # also where it is NaN
        over = np.zeros(got.shape, bool)
        over[measured] = ~(distances <= allowed)
        why = f" ({largest:.3g} ulps of its magnitude, at most {allowed:.3g} are allowed)"
        _fail_at(outcome, what, over, got, exact, why)


def _compare_bits(outcome: CheckResult, what: str, got: Array, exact: Array, form: Format) -> None:
    """Compare every bit, the sign of zero included, because exact mode has one right result."""
    wrong_sign = (np.signbit(got) != np.signbit(exact)) & (exact == 0)
    wrong = (got != exact) & ~np.isnan(exact) | wrong_sign
    if wrong.any():
        finite = np.isfinite(exact) & np.isfinite(got)
        distances = [
            abs(g - e) / form.ulp(float(e)) for g, e in zip(got[finite], exact[finite], strict=True)
        ]
        largest = max(distances, default=0.0)
        if what.startswith("loss"):
            outcome.value_distance = max(outcome.value_distance, largest)
        else:
            outcome.gradient_distance = max(outcome.gradient_distance, largest)
        why = f" ({np.count_nonzero(wrong)} of {got.size} are not correctly rounded)"
        _fail_at(outcome, what, wrong, got, exact, why)


def _fail_at(
    outcome: CheckResult, what: str, wrong: Array, got: Array, exact: Array, why: str
) -> None:
    position = tuple(int(i) for i in np.argwhere(wrong)[0])
    name = f"{what}{list(position)}" if position else what
    outcome.fail(f"{name} is {float(got[position])!r}, should be {float(exact[position])!r}{why}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def check_refused(adapter: Adapter, mode: Mode, case: Case) -> CheckResult:
    """Make a call in exact mode that this mode must refuse, and check that it raises an error."""
    outcome = CheckResult(comparisons=1)
    try:
        value = adapter.to_numpy(_call(adapter, mode, case))
    except Exception as error:  # noqa: BLE001 - a compiler may wrap the refusal in its own error
        if "exact" not in _unwrapped(error):
            outcome.fail(
                f"raised {type(error).__name__}, which does not mention exact mode: "
                f"{_first_line(error)}"
            )
    else:
        outcome.fail(f"gave {value!r}, should refuse rounding='exact'")
    return outcome


def check_bad_call(adapter: Adapter, mode: Mode, call: BadCall | SoftmaxCase) -> CheckResult:
    """Make a call that must fail, and compare the error's class and message with NumPy's.

    If only the values show the mistake and this mode cannot read them, the loss must be NaN.
    """
    if must_be_nan(call, mode):
        (outcome,) = check_bad_values(adapter, mode, [call])
        return outcome
    outcome = CheckResult()
    _expect_error(outcome, adapter, mode, _case_of(call), UnifiedLossError)
    return outcome


def must_be_nan(call: BadCall | SoftmaxCase, mode: Mode) -> TypeGuard[BadCall]:
    """Whether only the values show the mistake of a call, and this mode cannot read them."""
    return isinstance(call, BadCall) and call.reads and not mode.raises


def check_bad_values(
    adapter: Adapter, mode: Mode, calls: Sequence[BadCall | SoftmaxCase]
) -> list[CheckResult]:
    """Make calls with bad values in one program, and check that each loss is NaN.

    Raises:
        Exception: the program fails.
    """
    steps = [_step_of_call(adapter, _case_of(call)) for call in calls]

    def losses(*tensors: Any) -> list[Any]:
        rest = iter(tensors)
        return [function(*(next(rest) for _ in inputs)) for function, inputs in steps]

    outcomes = []
    for value in mode.run(losses, *(x for _, inputs in steps for x in inputs)):
        outcomes.append(CheckResult(comparisons=1))
        got = adapter.to_numpy(value)
        if not np.isnan(got).any():
            outcomes[-1].fail(f"a bad value gave {got!r}, which holds no NaN")
    return outcomes


def _case_of(call: BadCall | SoftmaxCase) -> Case | SoftmaxCase:
    if isinstance(call, SoftmaxCase):
        return call
    return Case(call.name, call.spec, call.predictions, call.targets, call.sample_weight, call.mask)


def _call(adapter: Adapter, mode: Mode, case: Case | SoftmaxCase) -> Any:
    function, inputs = _step_of_call(adapter, case)
    return mode.run(function, *inputs)


def _step_of_call(
    adapter: Adapter, case: Case | SoftmaxCase
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The loss or the softmax without its gradient: a function, and the tensors it takes."""
    if isinstance(case, SoftmaxCase):
        return (lambda z: adapter.softmax(z, case.axis)), (adapter.tensor(case.logits),)
    predictions, targets = adapter.tensor(case.predictions), adapter.tensor(case.targets)
    if case.dtype == "bfloat16":
        predictions = adapter.tensor(case.predictions, case.dtype)
    weight = None if case.sample_weight is None else adapter.tensor(case.sample_weight)
    mask = None if case.mask is None else adapter.tensor(case.mask)
    return (lambda p, t: adapter.loss(case.spec, p, t, weight, mask)), (predictions, targets)


def _expect_error(
    outcome: CheckResult,
    adapter: Adapter,
    mode: Mode,
    case: Case | SoftmaxCase,
    least: type[UnifiedLossError],
) -> None:
    from unifiedloss import registry

    outcome.comparisons += 1
    numpy = registry.adapter("numpy")
    try:
        if isinstance(case, SoftmaxCase):
            numpy.softmax(case.logits, case.axis)
        else:
            numpy.loss(case.spec, case.predictions, case.targets, case.sample_weight, case.mask)
    except UnifiedLossError as error:
        wanted = error
    else:
        outcome.fail(f"NumPy accepts this call, and {least.__name__} was expected")
        return
    if not isinstance(wanted, least) and not isinstance(wanted, EmptyMeanError):
        outcome.fail(f"NumPy raises {type(wanted).__name__}, and {least.__name__} was expected")
    try:
        value = _call(adapter, mode, case)
    except Exception as error:  # noqa: BLE001 - the classes are compared below
        if mode.raises and type(error) is not type(wanted):
            outcome.fail(
                f"raised {type(error).__name__} ({_first_line(error)}), "
                f"should raise {type(wanted).__name__}"
            )
        elif mode.raises and str(error) != str(wanted):
            outcome.fail(f"the message is {str(error)!r}, should be {str(wanted)!r}")
        elif str(wanted) not in _unwrapped(error):
            # A compiler may wrap an error that it meets while tracing, but must keep its message.
            outcome.fail(f"the message is {_unwrapped(error)!r}, should hold {str(wanted)!r}")
    else:
        outcome.fail(
            f"gave {adapter.to_numpy(value)!r}, should raise {type(wanted).__name__}: {wanted}"
        )


def _unwrapped(error: BaseException) -> str:
    """The messages of an error and of its causes, with quotes unescaped.

    Compilers sometimes escape the quotes.
    """
    messages = []
    seen: BaseException | None = error
    while seen is not None:
        messages.append(str(seen))
        seen = seen.__cause__ or seen.__context__
    return "\n".join(messages).replace("\\'", "'")
