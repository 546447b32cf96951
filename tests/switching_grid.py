"""Losses of other libraries against the specs they are read as: what the tests of each library share.

The native call itself is run, and beside it the spec in one backend after the other. Both round at every step, so each may lie as far from
the real number as native mode may in the conformance suite (`unifiedloss.conformance.tolerances`: 12 + n/2 + K/2 ulps of the largest
term for n positions and K classes), and twice that from each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import from_native, registry, switching
from unifiedloss.conformance.tolerances import limit
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.spec import AnyLoss
from unifiedloss.switching.inputs import Layout, layouts, weights_of
from unifiedloss.switching.library_loss import Call
from unifiedloss.switching.quirk import Quirk
from unifiedloss.switching.quirks_shown import UNSEEN, quirks_shown_by
from unifiedloss.switching.sides import run_spec, side_of

Array = NDArray[Any]

BACKENDS = ("numpy", "torch", "tensorflow", "jax")


def plan_of(spec: AnyLoss, predictions: Array, targets: Array, sample_weight: Array | None) -> Plan:
    """The plan of a call with NumPy arrays."""
    signatures = (
        None if x is None else Signature(x.shape, x.dtype.name)
        for x in (predictions, targets, sample_weight)
    )
    return resolve(spec, *signatures)  # type: ignore[arg-type]


def computed(
    backend: str,
    spec: AnyLoss,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
) -> tuple[Array, Array]:
    """The spec's value, and the gradient of its sum, in one backend."""
    adapter = registry.adapter(backend)
    tensors = (
        None if x is None else adapter.tensor(x) for x in (predictions, targets, sample_weight)
    )
    value, gradient = adapter.value_and_grad(spec, *tensors)
    return np.asarray(adapter.to_numpy(value)), np.asarray(adapter.to_numpy(gradient))


def check(
    call: switching.Call,
    predictions: Array,
    targets: Array,
    sample_weight: Array | None = None,
    *,
    backends: tuple[str, ...] = BACKENDS,
    dtype: str | None = None,
    native: Any = None,
) -> None:
    """The native call and the spec it is read as agree, in value and gradient.

    Args:
        call: the native call.
        predictions: handed to both.
        targets: handed to both.
        sample_weight: handed to both.
        backends: where the spec is computed.
        dtype: in which the native call rounds, where that is not what the spec computes in.
        native: the object that is run; what is made of the call where there is none.
    """
    value_there, gradient_there = switching.run(call, predictions, targets, sample_weight, native)
    spec = switching.spec_of(call)
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
        row = (
            row.max(axis=plan.axis if plan.axis is not None else -1, keepdims=True, initial=0.0)
            if row.ndim
            else row
        )
        unit = (
            plan.scale
            * heaviest(spec, sample_weight)
            / (positions if spec.reduction == "mean" else 1)
        )
        close(
            f"the gradient of {call} in {backend}", gradient, gradient_there, epsilon * (unit + row)
        )


def check_round_trip(call: switching.Call) -> None:
    """A spec, written as a call, as text and as an object, and read back each time, is the spec it was."""
    spec = switching.spec_of(call)
    written = switching.call_of(spec, call.library, call.backend)
    assert switching.spec_of(written) == spec
    assert from_native(switching.build(written)) == spec
    text = str(written)
    assert (
        switching.spec_of(
            switching.Call(
                switching.parse(text).name, switching.parse(text).arguments, call.backend
            )
        )
        == spec
    )
    # The call itself is read from the object it makes, as it was written.
    assert switching.read(switching.build(call)) == call


def largest(x: Array) -> float:
    """The largest finite size in an array."""
    return float(np.max(np.abs(x[np.isfinite(x)]), initial=0.0))


def heaviest(spec: AnyLoss, sample_weight: Array | None) -> float:
    """The largest factor that weights put on a loss: those of the call, and those of the spec."""
    weights = [
        getattr(spec, name, None) for name in ("class_weights", "element_weights", "pos_weight")
    ]
    return float(
        np.prod(
            [
                max(1.0, largest(np.asarray(each)))
                for each in (sample_weight, *weights)
                if each is not None
            ]
        )
    )


def close(what: str, got: Array, native: Array, allowed: Any) -> None:
    """The same shape, the same infinities and NaN, and finite numbers that lie within what is allowed."""
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


def check_deviations(call: Call, listed: Iterable[Quirk]) -> set[str]:
    """A loss differs from its spec on what shows a rule where the rule is listed for it, and nowhere else; the names of those tried.

    Where it differs, the tensors have the sign by which a report tells the rule.
    """
    side = side_of(call)
    assert side.spec is not None
    labels: Any = getattr(side.spec, "ignore_index", None) or (None,)
    layout = Layout(
        tail=layouts(side.spec, side.spec)[0].tail,
        averaged=getattr(side.spec, "average_last_axis", False),
        ignored=labels[0],
        weights=weights_of(side.spec),
    )
    tried = set()
    for quirk in listed:
        if not quirk.concerns(side.spec, call):
            continue
        outcomes = [(x, side.outcome(x)) for x in quirk.inputs(layout)]
        if quirk.when is not None and not outcomes:  # it takes some weights of 0, or all of them
            continue
        shown = [
            x
            for x, outcome in outcomes
            if outcome.ran == "native" and quirk.differ(outcome, run_spec(side.spec, x))
        ]
        if any(outcome.ran == "native" for _, outcome in outcomes):
            tried.add(quirk.name)
        assert bool(shown) == quirk.has(call), (quirk.name, str(call))
        for x in shown:
            assert quirk.name in quirks_shown_by(side.spec, x) | UNSEEN, (
                quirk.name,
                str(call),
                str(x),
            )
    return tried
