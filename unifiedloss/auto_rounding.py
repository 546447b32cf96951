"""Chooses the rounding of a call whose spec has ``rounding="auto"``.

A call is native if a row of `TABLE` fits it, and exact otherwise. The rows read only what is known
before any value is: the setting of the call, and its plan. So the choice depends neither on values
and sizes nor on threads, the gradient asked for, or whether the compiled loops are built.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from unifiedloss import losses
from unifiedloss.plan import Plan
from unifiedloss.spec import Loss


class Setting(NamedTuple):
    """Where a call runs.

    Attributes:
        backend: the name of the adapter.
        device: "cpu", or "accelerator" for any other device.
        mode: "eager", "lazy", "compiled" (torch.compile), "jit", "graph" (tf.function), "xla"
            (tf.function with jit_compile), "export" (a program that is saved), or "transform"
            (torch.func inside torch.compile).
    """

    backend: str
    device: str = "cpu"
    mode: str = "eager"


class Row(NamedTuple):
    """One row of the table: calls that are native, and why.

    A field that is None fits every call.

    Attributes:
        what: what these calls have, as in "native: float64 predictions".
        exact: what ``rounding="exact"`` does with them.
        backend: the adapter.
        device: see `Setting`.
        mode: see `Setting`.
        form: what the plan has.
    """

    what: str
    exact: str
    backend: str | None = None
    device: str | None = None
    mode: str | None = None
    form: Callable[[Plan], bool] | None = None

    def fits(self, plan: Plan, setting: Setting) -> bool:
        """Whether this row decides about a call."""
        wanted = self.backend, self.device, self.mode
        if any(w is not None and w != x for w, x in zip(wanted, setting, strict=True)):
            return False
        return self.form is None or self.form(plan)


def _is_in_parts(plan: Plan) -> bool:
    """Whether no loop takes the calls of a plan whole, and XLA's native program is very fast.

    Natively the squared error and the Huber loss, and the cross-entropy of labels without
    smoothing, take about 2 ns for a prediction. Exact mode then takes as long to call the host as
    for the loss. In float64, and for all other losses, native mode takes longer.
    """
    from unifiedloss.exact import loops  # imported here because other settings do not need it

    labels = plan.kind == "index" and not plan.label_smoothing
    quick = plan.kind == "real" or (labels and plan.predictions_dtype != "float64")
    return quick and not loops.is_whole(plan)


def _has_slow_float64(plan: Plan) -> bool:
    """Whether the compiled part has no loop for a call with float64 predictions."""
    from unifiedloss.exact import wide  # imported here because other dtypes do not need it

    return plan.predictions_dtype == "float64" and not wide.takes(plan)


def _has_slow_probabilities(plan: Plan) -> bool:
    """Whether a position depends on several probabilities, and no compiled loop computes it."""
    several = plan.kind == "dense" or plan.reads_all
    if plan.axis is None or plan.from_logits or not several:
        return False
    if plan.targets_dtype == "float64" or not losses.has_part(plan.spec.name, "compiled"):
        return True
    return not losses.part(plan.spec.name, "compiled").takes(plan)


def _has_slow_weights(plan: Plan) -> bool:
    """Whether elements have two weights, and no loop takes them as an outer product."""
    from unifiedloss.exact import two_weights  # imported here because other calls do not need it

    two = plan.element_weights is not None and plan.weight_rank is not None
    return two and not plan.oracle_only and not two_weights.takes(plan)


TABLE = (
    Row("a device other than the CPU", "computes it on the host", device="accelerator"),
    Row("a program that is saved", "cannot be saved", mode="export"),
    Row("torch.func inside torch.compile", "is refused there", mode="transform"),
    Row(
        "shapes that are unknown in a program of JAX",
        "is refused there",
        backend="jax",
        form=lambda plan: plan.unchecked,
    ),
    Row(
        "labels or numbers in a program of JAX that no compiled loop takes whole",
        "is two to twelve times slower",
        backend="jax",
        mode="jit",
        form=_is_in_parts,
    ),
    Row(
        "a program that XLA compiles for TensorFlow",
        "is two to seventy times slower, or refused",
        backend="tensorflow",
        mode="xla",
    ),
    Row("float64 predictions in this form", "is a hundred times slower", form=_has_slow_float64),
    Row(
        "several probabilities of a position in this form",
        "is up to a hundred times slower",
        form=_has_slow_probabilities,
    ),
    Row(
        "two weights of an element in this form",
        "is two to seven times slower",
        form=_has_slow_weights,
    ),
    Row(
        "a rule that only the oracle computes",
        "is a thousand times slower",
        form=lambda plan: plan.oracle_only,
    ),
)
"""The calls that are native. The first row that fits gives the reason."""


def why_native(plan: Plan, setting: Setting) -> str:
    """Why a call is native, in words; empty if it is exact.

    Args:
        plan: the native plan of the call.
        setting: where it runs.
    """
    for row in TABLE:
        if row.fits(plan, setting):
            return f"native: {row.what}; rounding='exact' {row.exact}"
    return ""


def planned(
    spec: Loss,
    setting: Setting | None,
    plan_of: Callable[[Loss], Plan],
    reason: Callable[[Plan, Setting], str] = why_native,
) -> Plan:
    """The plan of a call, for whichever rounding its spec has.

    Args:
        spec: the spec.
        setting: where the call runs; only ``rounding="auto"`` needs it.
        plan_of: makes the plan of the call for a spec.
        reason: computes `why_native`, for compilers that cannot trace it.
    """
    if spec.rounding != "auto":
        return plan_of(spec)
    assert setting is not None
    plan = plan_of(spec.rounded("native"))
    why = reason(plan, setting)
    if why:
        return replace(plan, why=why, by_auto=True)
    why = f"exact: {plan.predictions_dtype} predictions on the CPU"
    return replace(plan_of(spec.rounded("exact")), why=why, by_auto=True)


def tell(spec: Loss, plan: Plan) -> None:
    """Log once for each spec and reason that ``rounding="auto"`` makes a call native.

    torch.compile cannot trace this, so calls inside of it are not logged.
    """
    if spec.rounding == "auto" and not plan.exact:
        _tell(spec, plan.why)


@cache
def _tell(spec: Loss, why: str) -> None:
    logging.getLogger("unifiedloss").info("rounding='auto' of %r is %s", spec, why)


def settled(adapter: Any, spec: Loss, *tensors: Any) -> Loss:
    """The spec with the rounding that the plan of its call has.

    Args:
        adapter: the adapter that carries out the call.
        spec: the spec.
        *tensors: predictions, targets, sample_weight and mask.
    """
    if spec.rounding != "auto":
        return spec
    plan: Plan = adapter.plan(spec, *adapter.to_tensors(*tensors))
    return spec.rounded(plan.rounding)
