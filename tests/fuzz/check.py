"""Run a random call in a backend, and compare everything with the oracle.

Losses and gradients are compared as the conformance suite compares them (`checks.compare`), in
exact mode by their bits. Errors are compared with NumPy's: the same class and the same message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.calls import Call
from tests.fuzz.numbers import Array
from unifiedloss import registry
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import checks, tolerances
from unifiedloss.errors import BadValueError, EmptyMeanError, UnifiedLossError
from unifiedloss.exact.graph import form
from unifiedloss.floats import FORMATS
from unifiedloss.reference import Reference

Evaluate = Callable[[Call], tuple[Any, dict[str, Any]]]
"""Computes the loss of a call, and its gradients by the argument's name."""


def failures(
    adapter: Adapter, mode_name: str, call: Call, program: Evaluate | None = None
) -> list[str]:
    """Run a call, and describe what is wrong with its results; an empty list if nothing is.

    Args:
        adapter: the backend's adapter.
        mode_name: the name of one of its modes.
        call: the call.
        program: how the call is computed; default: as the mode says.
    """
    mode = adapter.modes()[mode_name]
    with warnings.catch_warnings():
        # A loss that warns tells its caller of a mistake that nobody made.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return _failures(adapter, mode, call, program)
        except WrongError as wrong:
            return [str(wrong)]
        except Exception as error:  # noqa: BLE001 - such as a warning, or an error of NumPy
            where = traceback.extract_tb(error.__traceback__)[-1]
            return [f"{type(error).__name__} in {Path(where.filename).name}, {where.name}: {error}"]


def _failures(adapter: Adapter, mode: Mode, call: Call, program: Evaluate | None) -> list[str]:
    if program is not None and mode.raises:
        msg = "a program is for modes that compile."
        raise ValueError(msg)
    error = _error_of_numpy(call)
    if error is not None and (mode.raises or not isinstance(error, BadValueError | EmptyMeanError)):
        return _wrong_error(adapter, mode, call, error)
    lenient = call
    if not mode.raises and call.spec.on_empty == "error":
        # Where nothing can be raised, an empty mean is NaN.
        lenient = dataclasses.replace(call, spec=call.spec.replace(on_empty="nan"))
    expected = lenient.expected()
    if call.spec.rounding == "exact" and not mode.exact and _is_refused(call):
        return checks.check_refused(adapter, mode, call).failures
    try:
        value, gradients = evaluate(adapter, mode, call) if program is None else program(call)
    except Exception as raised:  # noqa: BLE001 - any error is a finding
        return [f"raised {type(raised).__name__}: {str(raised).splitlines()[:1]}"]
    found = checks.compare(adapter, call, expected, value, gradients).failures
    if found and call.spec.rounding == "native":
        if _leaves_range(call, expected) or _is_beside_a_bound(call):
            return []
        found = [what for what in found if not _underflows(what)]
        if _loses_a_target(call, expected):
            found = [what for what in found if not re.search(r"is nan, should be -?inf", what)]
    return found


def _error_of_numpy(call: Call) -> UnifiedLossError | None:
    """The error that NumPy raises; checked against the oracle, which decides if there is one."""
    numpy = registry.adapter("numpy")
    raised: UnifiedLossError | None = None
    try:
        numpy.loss(
            call.spec,
            numpy.tensor(call.predictions, call.dtype),
            call.targets,
            call.sample_weight,
            call.mask,
        )
    except UnifiedLossError as error:
        raised = error
    classes = _classes_of_oracle(call)
    if (type(raised) if raised else None) not in classes:
        names = ", ".join(cls.__name__ if cls else "no error" for cls in classes)
        got = "nothing" if raised is None else f"{type(raised).__name__}: {raised}"
        msg = f"NumPy raises {got}; the oracle says {names}"
        raise WrongError(msg)
    return raised


class WrongError(AssertionError):
    """NumPy raises another error than the oracle."""


def _classes_of_oracle(call: Call) -> tuple[type[UnifiedLossError] | None, ...]:
    """The classes of errors that the oracle allows; None for no error."""
    try:
        expected = call.expected()
    except EmptyMeanError:
        lenient = dataclasses.replace(call, spec=call.spec.replace(on_empty="nan"))
        return (BadValueError,) if lenient.expected().bad_positions else (EmptyMeanError,)
    except UnifiedLossError as error:
        return (type(error),)
    return (BadValueError,) if expected.bad_positions else (None,)


def _wrong_error(adapter: Adapter, mode: Mode, call: Call, wanted: UnifiedLossError) -> list[str]:
    """Make a call that must fail, with and without the gradient, and compare the errors."""
    targets, weight, mask, upstream = _companions(adapter, call)
    predictions = adapter.tensor(call.predictions, call.dtype)

    def value(p: Any) -> Any:
        return adapter.loss(call.spec, p, targets, weight, mask)

    def value_and_gradient(p: Any) -> Any:
        return adapter.value_and_grad(call.spec, p, targets, weight, mask, upstream)[0]

    found = []
    for function in (value, value_and_gradient) if mode.raises else (value,):
        try:
            got = mode.run(function, predictions)
        except Exception as error:  # noqa: BLE001 - the classes are compared
            if mode.raises and type(error) is not type(wanted):
                found.append(
                    f"raised {type(error).__name__} ({error}), NumPy {type(wanted).__name__}"
                )
            elif str(wanted) not in checks._unwrapped(error):
                found.append(f"the message is {str(error)!r}, NumPy's {str(wanted)!r}")
        else:
            found.append(
                f"gave {adapter.to_numpy(got)!r}, NumPy raises {type(wanted).__name__}: {wanted}"
            )
    return found


def _companions(adapter: Adapter, call: Call) -> list[Any]:
    """Targets, weights, mask and upstream gradient, as tensors or as NumPy arrays."""
    upstream = None if call.upstream is None else np.asarray(call.upstream)
    arrays = (call.targets, call.sample_weight, call.mask, upstream)
    if call.as_numpy:
        return list(arrays)
    return [None if x is None else adapter.tensor(x) for x in arrays]


def _is_refused(call: Call) -> bool:
    weight = call.sample_weight
    return form.why_not(tolerances.plan_of(call)) is not None or not form.fits(
        None if weight is None else weight.dtype.name
    )


def evaluate(adapter: Adapter, mode: Mode, call: Call) -> tuple[Any, dict[str, Any]]:
    """Compute the loss, and the gradients by the argument's name.

    If the upstream gradient has the dtype of the loss, it goes through the framework's own
    differentiation, to every argument; else through `value_and_grad`, to the predictions.
    """
    targets, weight, mask, upstream = _companions(adapter, call)
    own = call.upstream is None or call.upstream.dtype.name == _result_dtype(call)
    if adapter.differentiates and ((own and not call.as_numpy) or not mode.whole_step):
        upstream = None if call.upstream is None else adapter.tensor(np.asarray(call.upstream))
        plain = dataclasses.replace(call, upstream=None)
        step = checks.step_of(adapter, plain)
        tensors = tuple(step.inputs.values())
        if mode.whole_step:
            value, gradients = mode.run(
                lambda *xs: adapter.differentiate(step.function, xs, upstream), *tensors
            )
        else:
            value, gradients = adapter.differentiate(
                lambda *xs: mode.run(step.function, *xs), tensors, upstream
            )
        return value, dict(zip(step.inputs, gradients, strict=True))
    value, gradient = mode.run(
        lambda p: adapter.value_and_grad(call.spec, p, targets, weight, mask, upstream),
        adapter.tensor(call.predictions, call.dtype),
    )
    return value, {"predictions": gradient}


def program_of(adapter: Adapter, mode_name: str, call: Call) -> Evaluate:
    """Compile a call once, for all calls with its spec, shapes and dtypes."""
    spec = call.spec
    here = [x is not None for x in _companions(adapter, call)]

    def function(predictions: Any, *given: Any) -> Any:
        rest = iter(given)
        targets, weight, mask, upstream = (next(rest) if is_here else None for is_here in here)
        return adapter.value_and_grad(spec, predictions, targets, weight, mask, upstream)

    run = adapter.modes()[mode_name].run
    if adapter.name == "tensorflow":  # its modes trace a function at each run
        import tensorflow as tf

        compiled = tf.function(function, autograph=False, jit_compile=mode_name == "xla" or None)
        run = adapter.modes()["eager"].run
    else:
        compiled = function

    def evaluate_in_program(other: Call) -> tuple[Any, dict[str, Any]]:
        tensors = [x for x in _companions(adapter, other) if x is not None]
        value, gradient = run(compiled, adapter.tensor(other.predictions, other.dtype), *tensors)
        return value, {"predictions": gradient}

    return evaluate_in_program


def _result_dtype(call: Call) -> str | None:
    with contextlib.suppress(UnifiedLossError):
        return tolerances.plan_of(call).result_dtype
    return None


def _leaves_range(call: Call, expected: Reference) -> bool:
    """Whether a native computation may overflow, or lose a factor to underflow.

    The bound of native results is for calls whose products stay within the compute dtype.
    """
    plan = tolerances.plan_of(call)
    compute, result = FORMATS[plan.compute_dtype], FORMATS[plan.result_dtype]
    sizes = tolerances.magnitudes(call, plan)
    with np.errstate(all="ignore"):
        terms = np.abs(np.array(expected.position_losses, np.float64))
        every = [terms, sizes.loss, sizes.grad_predictions, sizes.grad_targets]
        if sizes.grad_sample_weight is not None:
            every.append(sizes.grad_sample_weight)
        largest = max((_largest(x) for x in every), default=0.0)
    divisor = 1.0 if expected.divisor is None else abs(expected.divisor)
    if np.isfinite(divisor) and 0 < divisor < 2.0**-20:
        return True
    for factor in (call.upstream, call.sample_weight):
        if factor is not None:
            size = np.abs(np.asarray(factor).astype(np.float64))
            if ((size > 0) & (size < FORMATS["float32"].tiny * 2.0**30)).any():
                return True
    narrow = min(result.largest, FORMATS[call.dtype].largest)
    for x in (call.targets, call.sample_weight):
        if x is not None and x.dtype.name in FORMATS:
            narrow = min(narrow, FORMATS[x.dtype.name].largest)
    return largest * max(divisor, 1.0) > compute.largest / 1024 or largest > narrow / 2


def _is_beside_a_bound(call: Call) -> bool:
    """Whether a quotient lies so near to a bound of the clip that its rounding decides the side.

    A native quotient of a probability and the sum of its row is rounded before it is compared.
    """
    plan = tolerances.plan_of(call)
    if plan.renormalize != "before_clip" or plan.clip is None:
        return False
    x = call.predictions.astype(np.float64)
    with np.errstate(all="ignore"):
        quotient = x / x.sum(plan.axis, keepdims=True)
        margin = FORMATS[plan.compute_dtype].epsilon * (4 + (plan.classes or 0))
        near = [
            np.abs(quotient - bound) <= margin * bound for bound in (plan.clip.low, plan.clip.high)
        ]
    return bool(np.any(near))


def _underflows(failure: str) -> bool:
    """Whether a failure is no more than a factor lost to underflow, times a large number."""
    numbers = re.search(r" is (\S+), should be (\S+)", failure)
    if numbers is None:
        return False
    got, exact = map(float, numbers.groups())
    return abs(got - exact) <= FORMATS["float32"].tiny * 2.0**30 and "dropped" not in failure


def _loses_a_target(call: Call, expected: Reference) -> bool:
    """Whether a dense target times the upstream gradient over the divisor may read as 0.

    Beside a probability of 0 its derivative is then 0 times infinity (rule zero-log-zero).
    """
    if call.targets.dtype.name not in FORMATS:
        return False
    factor = 1.0 if call.upstream is None else np.abs(np.asarray(call.upstream, np.float64)).min()
    product = np.abs(call.targets.astype(np.float64)) * factor / (expected.divisor or 1.0)
    tiny = FORMATS["float32"].tiny
    return bool(((product > 0) & (product < tiny) & (call.predictions == 0)).any())


def _largest(x: Array) -> float:
    finite = np.asarray(x)[np.isfinite(x)]
    return float(finite.max()) if finite.size else 0.0
