"""The data types of a call inside a compiled program, and which plans support one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from unifiedloss import losses
from unifiedloss.exact.graph.ops import Array, Field, GraphOps
from unifiedloss.exact.graph.rounding import from_bits
from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan


class Found(NamedTuple):
    """The results of a tier.

    Attributes:
        terms: bits of the rounded losses, int32 (n, 1), or (n, k) without classes.
        slopes: the gradient, (n, k), or None.
        left: rows with an undecided number, (n, 1). Undecided numbers in `terms` and `slopes` are
            not valid.
    """

    terms: Array
    slopes: Array | None
    left: Array


class Block(NamedTuple):
    """Rows of a call.

    All arrays are (n, 1), except `x`, `t`, class weights (1, k) and weights per element. Missing
    arrays are None.
    """

    x: Array
    kept: Array
    bad: Array
    label: Array | None = None
    at_label: Array | None = None
    t: Array | None = None
    own_weight: Array | None = None
    weight: Array | None = None
    pos_weight: Array | None = None
    class_weights: Array | None = None
    upstream: Array | None = None
    divisor: Array | None = None
    divisor_low: Array | None = None
    divisor_radius: Array | None = None
    empty: Array | None = None


@dataclass(frozen=True)
class Form:
    """The settings that are fixed when the program is traced."""

    plan: Plan
    field: Field
    width: int
    term_dtype: str
    gradient: bool

    @property
    def xp(self) -> GraphOps:
        """The array operations."""
        return self.field.xp

    @property
    def elementwise(self) -> bool:
        """Whether each element of a row is a position."""
        return self.plan.axis is None

    @property
    def dtype(self) -> str:
        """The dtype of the predictions and of the gradient."""
        return self.plan.predictions_dtype

    @property
    def mean(self) -> bool:
        """Whether there is a divisor."""
        return self.plan.spec.reduction == "mean"


def read(xp: GraphOps, x: Array, dtype: str) -> Array:
    """Convert numbers to float64 without flushing subnormal ones."""
    if dtype in FORMATS and dtype != "float64":
        return from_bits(xp, xp.int32(xp.bits(x)), dtype)
    return xp.float64(x)


def numbers(form: Form, c: Block) -> Array:
    """Dense or binary targets; numbers below `plan.tiny_target` count as 0."""
    t = read(form.xp, c.t, form.plan.targets_dtype)
    return form.xp.where(t < form.plan.tiny_target, 0.0, t)


# ----------------------------------------------------------------------------- supported plans


def why_not(plan: Plan) -> str | None:
    """Name the part of a plan that compiled programs do not support, or return None."""
    if plan.unchecked or plan.shape is None or any(extent is None for extent in plan.shape):
        return "shapes that are unknown when it is traced"
    if plan.predictions_dtype == "float64":
        return "float64 predictions"
    if plan.log_probabilities:
        return "log-probabilities"
    if not losses.has_part(plan.spec.name, "graph"):
        return f"the loss {plan.spec.name}"
    if plan.kind != "real" and not plan.from_logits:
        return "probabilities"
    if not plan.fast_paths:
        return f"all of the fields {', '.join(plan.spec.changed())}"
    along = isinstance(plan.pos_weight, tuple) and plan.pos_weight_axis != -1
    for rule, used in (
        ("scale", plan.scale != 1.0),
        ("dtype", plan.casts),
        ("element_weights", plan.element_weights is not None),
        ("average_last_axis", plan.average_last_axis),
        ("class_weighting", plan.class_weighting == "position"),
        ("axis of pos_weight", along),
    ):
        if used:
            return f"the rule {rule}"
    if plan.targets_dtype == "uint64" or (plan.kind == "real" and plan.targets_dtype == "int64"):
        return f"{plan.targets_dtype} targets"
    weighs = plan.spec.reduction == "mean" and plan.divisor in ("weights", "nonzero")
    if plan.kind == "dense" and plan.class_weights is not None and weighs:
        return "a mean over the class weights of dense targets"
    return None


def fits(dtype: str | None) -> bool:
    """Whether float64 holds all sample weights, or upstream gradients, of a dtype."""
    return dtype not in ("int64", "uint64")
