"""Compare a loss of another library with the spec it is read as, for the tests of each library.

The checks run the native call, and its spec in each backend. Both round at every step. Each may
therefore be as far from the real number as native mode in the conformance suite, and twice that
from the other. `unifiedloss.conformance.tolerances` has this bound: 12 + n/2 + K/2 ulps of the
largest term for n positions and K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import from_native, interop, registry
from unifiedloss.conformance.tolerances import limit
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.spec import Loss

Array = NDArray[Any]

BACKENDS = ("numpy", "torch", "tensorflow", "jax")


def plan_of(spec: Loss, predictions: Array, targets: Array, sample_weight: Array | None) -> Plan:
    """Return the plan of a call with NumPy arrays."""
    signatures = (
        None if x is None else Signature(x.shape, x.dtype.name)
        for x in (predictions, targets, sample_weight)
    )
    return resolve(spec, *signatures)  # type: ignore[arg-type]


def computed(
    backend: str,
    spec: Loss,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
) -> tuple[Array, Array]:
    """Return the value of a spec, and the gradient of its sum, in one backend."""
    adapter = registry.adapter(backend)
    tensors = (
        None if x is None else adapter.tensor(x) for x in (predictions, targets, sample_weight)
    )
    value, gradient = adapter.value_and_grad(spec, *tensors)
    return np.asarray(adapter.to_numpy(value)), np.asarray(adapter.to_numpy(gradient))


def check(
    call: interop.Call,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    *,
    backends: tuple[str, ...] = BACKENDS,
    dtype: str | None = None,
    native: Any = None,
) -> None:
    """Assert that a native call and the spec it is read as agree in value and gradient.

    Args:
        call: the native call.
        predictions: an argument of both.
        targets: an argument of both.
        sample_weight: an argument of both.
        backends: the backends that compute the spec.
        dtype: the dtype in which the native call rounds, by default the spec's compute dtype.
        native: the object to run, by default the one that the call makes.
    """
    value_there, gradient_there = interop.run(call, predictions, targets, sample_weight, native)
    spec = interop.spec_of(call)
    plan = plan_of(spec, predictions, targets, sample_weight)
    epsilon = np.finfo(dtype or plan.compute_dtype).eps * 2 * limit(plan)
    positions = plan.count or 1
    for backend in backends:
        value, gradient = computed(backend, spec, predictions, targets, sample_weight)
        term = 1.0 + largest(predictions) + largest(value_there)
        term *= plan.scale * (positions if spec.reduction == "sum" else 1)
        close(
            f"{call} in {backend}",
            value,
            value_there,
            epsilon * term * heaviest(spec, sample_weight),
        )
        if gradient_there is None:
            continue
        row = np.abs(np.where(np.isfinite(gradient_there), gradient_there, 0.0))
        if row.ndim:
            axis = -1 if plan.axis is None else plan.axis
            row = row.max(axis=axis, keepdims=True, initial=0.0)
        divisor = positions if spec.reduction == "mean" else 1
        unit = plan.scale * heaviest(spec, sample_weight) / divisor
        close(
            f"the gradient of {call} in {backend}", gradient, gradient_there, epsilon * (unit + row)
        )


def check_round_trip(call: interop.Call) -> None:
    """Assert that the spec of a call is read back the same from a call, from text and an object."""
    spec = interop.spec_of(call)
    written = interop.call_of(spec, call.library, call.backend)
    assert interop.spec_of(written) == spec
    assert from_native(interop.build(written)) == spec
    parsed = interop.parse(str(written))
    again = interop.Call(parsed.name, parsed.arguments, call.backend)
    assert interop.spec_of(again) == spec
    # The object that a call makes is read as the same call.
    assert interop.read(interop.build(call)) == call


def largest(x: Array) -> float:
    """Return the largest finite magnitude in an array."""
    return float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0))


def heaviest(spec: Loss, sample_weight: Array | None) -> float:
    """Return the largest factor, at least 1, that the weights of call and spec give a loss."""
    weights = [
        sample_weight,
        *(getattr(spec, name, None) for name in ("class_weights", "element_weights", "pos_weight")),
    ]
    factors = [max(1.0, largest(np.asarray(each))) for each in weights if each is not None]
    return float(np.prod(factors))


def close(what: str, got: Array, native: Array, allowed: Any) -> None:
    """Assert the same shape, infinities and NaN, and finite numbers within `allowed`."""
    assert got.shape == native.shape, (
        f"{what}: shape {got.shape}, and the native call has {native.shape}"
    )
    got, native = np.asarray(got, np.float64), np.asarray(native, np.float64)
    finite = np.isfinite(got) & np.isfinite(native)
    with np.errstate(invalid="ignore"):
        same = np.where(
            finite,
            np.abs(got - native) <= allowed,
            (got == native) | (np.isnan(got) & np.isnan(native)),
        )
    assert same.all(), f"{what}:\n{got}\nand the native call gives\n{native}"
