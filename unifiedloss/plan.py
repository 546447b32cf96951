"""Join a spec with the shapes and dtypes of one call.

`resolve` returns a `Plan`, which holds everything an adapter has to know. Whatever can be checked
without reading a value is checked here and in `unifiedloss.shapes`, and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from unifiedloss import shapes
from unifiedloss.checks import extents
from unifiedloss.errors import DTypeError, ShapeError
from unifiedloss.floats import FORMATS, HALF_TYPES, INTEGER_TYPES, widest
from unifiedloss.inputs import Shape, Signature, same
from unifiedloss.messages import Message, describe
from unifiedloss.shapes import check_predictions_dtype, class_axis
from unifiedloss.spec import Categorical, ClassWeighting, Elementwise, Loss, Renormalize

__all__ = [
    "BEYOND_FLOAT64",
    "MAX_INTEGER_TARGET",
    "Clip",
    "Plan",
    "Signature",
    "as_read",
    "check_predictions_dtype",
    "check_upstream",
    "class_axis",
    "natively",
    "resolve",
    "resolve_divisor",
]

MAX_INTEGER_TARGET = 2**53
"""The largest magnitude of an integer target, because float64 holds every integer up to it."""

BEYOND_FLOAT64 = frozenset({"int64", "uint64"})
"""Integer dtypes that hold numbers beyond `MAX_INTEGER_TARGET`."""

_SMALLEST_EPSILON_ADDED = 2.0**-500
"""Arithmetic on pairs of float64 may lose a smaller `Plan.epsilon_added`."""


class Clip(NamedTuple):
    """The bounds of a clip of probabilities in the compute dtype, and the costs at these bounds.

    A probability p is clipped from below where ``p < low`` and from above where ``p > high``. Both
    bounds are rounded inwards, low up and high down, so that a comparison in the compute dtype has
    the result of the comparison of real numbers.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        costs: -log p at the real bounds, (at low, at high).
        complement_costs: -log(1 - p) at the real bounds, (at low, at high).
    """

    low: float
    high: float
    costs: tuple[float, float]
    complement_costs: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Plan:
    """A spec joined with the shapes and dtypes of one call: all that an adapter has to know.

    In the static weights (`class_weights`, `pos_weight`, `element_weights`), numbers below the
    smallest normal number of the compute dtype are replaced by 0. `label_smoothing` is 0 if the
    share of each answer is below it.

    Attributes:
        spec: the loss.
        kind: "index" or "dense" for losses with a class axis, "binary", or "real" for losses of any
            numbers.
        shape: the predictions' shape; None for an unknown rank, None entries for unknown extents.
        axis: the class axis, counted from the front where the rank is known (else -1); None for
            elementwise losses.
        classes: K; None if it is unknown, and for elementwise losses.
        positions: the shape of the per-position loss.
        predictions_dtype: the name of the predictions' dtype.
        targets_dtype: the name of the targets' dtype.
        gradient_dtype: the dtype of the predictions as they are given, and so of their gradient. It
            is another one than `predictions_dtype` where the spec names a dtype.
        casts: whether the spec names a dtype that a given tensor has not.
        compute_dtype: the widest of float32, the predictions' and floating targets' dtypes.
        result_dtype: the dtype of the returned loss.
        weight_rank: the number of leading axes that `sample_weight` covers; None without one.
        mask_rank: the number of leading axes that `mask` covers; None without one.
        unchecked: whether an extent is unknown, so that the adapter must compare shapes once they
            are known.
        count: the number of positions, or of elements if `average_last_axis`; None if an extent is
            unknown.
        ignored_labels: the labels that drop their position; none with dense targets.
        largest_target: every target from 0 to this number is valid; None for the squared error, and
            for class indices if K is unknown.
        plain: whether the call has no mask, no ignored labels and no weights except `pos_weight`,
            so that every divisor is the number of positions.
        class_weights: w_c, one per class.
        pos_weight: q.
        label_smoothing: the amount of smoothing.
        may_cancel: whether class weights can make the divisor of a mean 0 although positions are
            kept.
        tiny: the smallest magnitude of predictions that survives the cast to the compute dtype.
            JAX and TensorFlow read smaller numbers as 0, NumPy and torch do not. Probabilities
            below it count as 0.
        tiny_target: the same for targets. Smaller entries of dense and binary targets count as 0.
        tiny_weight: the same for sample weights. Weights of a smaller magnitude count as 0.
        divisor: what the mean divides by for this kind of target.
        scale: the factor of every loss.
        element_weights: the static weights of elements.
        average_last_axis: whether the losses along the last axis are averaged; `positions` then
            lacks that axis.
        log_probabilities: whether predictions are logarithms of probabilities.
        class_weighting: what class weights multiply; "entries" where there are none.
        bounds: (low, gap) if probabilities are clipped to the real interval [low, 1 - gap]; None if
            they are not, as where logarithms are clamped.
        epsilon_added: what is added to probabilities inside the logarithms.
        fast_paths: whether the spec changes only fields that the fast paths handle.
        oracle_only: whether exact mode leaves the whole call to the oracle, because an average has
            element weights, the added epsilon is close to the smallest numbers, or the tiers do not
            know a changed field.
        fused: whether a fused kernel of a framework, loss and reduction in one, computes this plan:
            every position counts once, and nothing is cast. The mean of such a kernel divides by
            the number of positions, too.
        why: the rounding and its reason, in words.
        by_auto: whether ``rounding="auto"`` chose the rounding.
    """

    # Plain fields and properties, because torch.compile traces through here and cannot enter the
    # lock in functools.cached_property.

    spec: Loss
    kind: Literal["index", "dense", "binary", "real"]
    shape: Shape | None
    axis: int | None
    classes: int | None
    positions: Shape | None
    predictions_dtype: str
    targets_dtype: str
    gradient_dtype: str
    casts: bool
    compute_dtype: str
    result_dtype: str
    weight_rank: int | None
    mask_rank: int | None
    unchecked: bool
    count: int | None
    ignored_labels: tuple[int, ...]
    largest_target: float | None
    plain: bool
    class_weights: tuple[float, ...] | None
    pos_weight: float | tuple[float, ...] | None
    label_smoothing: float
    may_cancel: bool
    tiny: float
    tiny_target: float
    tiny_weight: float
    divisor: Literal["weights", "present", "nonzero", "all"]
    scale: float
    element_weights: float | tuple[Any, ...] | None
    average_last_axis: bool
    log_probabilities: bool
    class_weighting: ClassWeighting
    bounds: tuple[float, float] | None
    epsilon_added: float
    fast_paths: bool
    oracle_only: bool
    fused: bool
    why: str
    by_auto: bool = False

    def __repr__(self) -> str:
        """The call in short, without the weights, which may be many."""
        return (
            f"Plan({self.spec!r}, {self.predictions_dtype} predictions of shape {self.shape}, "
            f"{self.targets_dtype} {self.kind} targets, computed in {self.compute_dtype}, "
            f"{self.why})"
        )

    @property
    def probabilities(self) -> bool:
        """Whether predictions are probabilities, or numbers to be renormalized to probabilities."""
        return self.spec.prediction_kind == "probabilities" and not self.from_logits

    @property
    def reads_all(self) -> bool:
        """Whether smoothing or `renormalize` makes a position depend on the cost of every class."""
        return bool(self.label_smoothing) or self.renormalize is not None

    @property
    def renormalize(self) -> Renormalize | None:
        """The field `renormalize`; None for losses without it."""
        return getattr(self.spec, "renormalize", None)

    @property
    def clamped(self) -> bool:
        """Whether logarithms are clamped at -100 and have torch's gradient."""
        return getattr(self.spec, "epsilon", 0.0) == "torch"

    @property
    def pos_weight_axis(self) -> int:
        """The axis along which a vector `pos_weight` runs."""
        axis: int | None = getattr(self.spec, "axis", None)
        return -1 if axis is None else axis

    @property
    def whole_axes(self) -> frozenset[int]:
        """The axes of predictions of known rank along which a call cannot be cut.

        Positions depend on all of the class axis and of an averaged last axis, and weights that the
        spec holds run along all of theirs.
        """
        assert self.shape is not None
        rank = len(self.shape)
        whole = set() if self.axis is None else {self.axis}
        if self.average_last_axis:
            whole.add(rank - 1)
        if isinstance(self.pos_weight, tuple):
            whole.add(self.pos_weight_axis % rank)
        several = enumerate(reversed(extents(self.element_weights)), 1)
        return frozenset(whole | {rank - place for place, extent in several if extent != 1})

    @property
    def from_logits(self) -> bool:
        """Whether the predictions are logits; False for losses without this field."""
        return getattr(self.spec, "from_logits", False)

    @property
    def rounding(self) -> Literal["native", "exact"]:
        """How the results are rounded: what the spec asks for, or what "auto" chose."""
        return "exact" if self.exact else "native"

    @property
    def exact(self) -> bool:
        """Whether losses and gradients must be correctly rounded."""
        return self.spec.rounding == "exact"

    @property
    def probability_limit(self) -> float:
        """The largest number that is accepted as a probability; larger ones are bad values.

        It is 1 + 4 eps of float32, or 1 + eps of a half type, because a softmax or sigmoid in
        float32 exceeds 1 by at most 4 eps, and float64 probabilities were often computed in
        float32. Predictions that are renormalized may have any finite size.
        """
        if self.renormalize is not None:
            return FORMATS[self.predictions_dtype].largest
        if self.predictions_dtype in HALF_TYPES:
            return 1.0 + FORMATS[self.predictions_dtype].epsilon
        return 1.0 + 4.0 * FORMATS["float32"].epsilon

    @property
    def clip(self) -> Clip | None:
        """The clip of `epsilon`, or None if nothing is clipped."""
        if self.bounds is None:
            return None
        low, gap = self.bounds
        return Clip(
            low=max(FORMATS[self.compute_dtype].ceil(low), self.tiny),
            high=_floor_of_one_minus(gap, self.compute_dtype),
            costs=(-math.log(low), 0.0 - math.log1p(-gap)),
            complement_costs=(-math.log1p(-low), -math.log(gap) if gap else math.inf),
        )

    def counts(self, weight: Any, product: Any = None) -> Any:
        """Whether positions with these weights are read. The others are zero-weighted.

        Args:
            weight: sample weights, or element weights where there are no sample weights: an array
                of any framework, in the compute dtype.
            product: sample weights times element weights; None unless there are both.
        """
        tiny = self.tiny_weight
        # NaN counts, because no comparison with it holds.
        counts = ~((weight < tiny) & (weight > -tiny))
        if product is None:
            return counts
        # Both are compared, because a large factor makes a tiny weight large, and some frameworks
        # read subnormal weights as 0 before they multiply.
        return counts & ~((product < tiny) & (product > -tiny))

    @property
    def shared_by(self) -> int:
        """Over how many answers smoothing spreads: K, or 2 for the binary cross-entropy."""
        if self.kind == "binary":
            return 2
        assert self.classes is not None
        return self.classes


def _bounds(epsilon: float | str, dtype: str) -> tuple[float, float] | None:
    """(low, gap) of the clip [low, 1 - gap] of probabilities of a dtype."""
    if epsilon == "sklearn":
        epsilon = FORMATS[dtype].epsilon
    elif epsilon == "keras":
        return FORMATS[dtype].nearest(1e-7), 1.0 - FORMATS[dtype].nearest(1.0 - 1e-7)
    if isinstance(epsilon, str) or not epsilon:
        return None
    return epsilon, epsilon


def _floor_of_one_minus(gap: float, dtype: str) -> float:
    """The largest number of the format that is at most the real number 1 - gap."""
    form = FORMATS[dtype]
    bound = form.floor(1.0 - gap)
    # 1.0 - gap is rounded to float64, perhaps up, past the real number. 1.0 - bound is exact by
    # Sterbenz' lemma for bound >= 0.5, so this compares real numbers.
    if 1.0 - bound < gap:
        bound -= form.ulp(math.nextafter(bound, 0.0))
    return bound


def resolve(
    spec: Loss,
    predictions: Signature,
    targets: Signature,
    sample_weight: Signature | None = None,
    mask: Signature | None = None,
) -> Plan:
    """Join a spec with the shapes and dtypes of one call.

    Every rule about shapes and dtypes is checked here, for all backends. Extents that are unknown
    under tracing are assumed to fit, and the plan is then marked `unchecked`.

    Raises:
        ShapeError: the shapes do not fit; the message names them and the fix.
        DTypeError: a tensor has a dtype that its rule does not allow.
        SpecValueError: a field does not fit these shapes (`axis` missing or out of range, a wrong
            number of class weights, ...).
    """
    check_predictions_dtype(predictions.dtype, targets.dtype)
    given_dtypes = [None if x is None else x.dtype for x in (predictions, targets, sample_weight)]
    computed_in: str | None = getattr(spec, "dtype", None)
    if computed_in is not None:
        predictions, targets = (
            _with_dtype(computed_in, predictions),
            _with_dtype(computed_in, targets),
        )
        sample_weight = None if sample_weight is None else _with_dtype(computed_in, sample_weight)
    if isinstance(spec, Categorical):
        kind = shapes.target_kind(targets.dtype)
        axis, classes, positions = shapes.classes(spec, predictions, targets, kind)
    else:
        assert isinstance(spec, Elementwise)
        kind = spec.target_kind
        axis, classes, positions = None, None, shapes.elements(spec, predictions, targets)
    shapes.check_companions(positions, sample_weight, mask)

    compute_dtype = widest(
        predictions.dtype, targets.dtype if targets.dtype in FORMATS else "float32"
    )
    tiny = FORMATS[compute_dtype].tiny
    reduced_half = spec.reduction != "none" and predictions.dtype in HALF_TYPES
    divisor: Any = spec.divisor
    if divisor == "label_weights":
        divisor = "all" if kind == "dense" else "weights"

    # getattr, because some losses lack these fields.
    averaged: bool = getattr(spec, "average_last_axis", False)
    class_weights = getattr(spec, "class_weights", None)
    element_weights = getattr(spec, "element_weights", None)
    scale: float = getattr(spec, "scale", 1.0)
    epsilon: Any = getattr(spec, "epsilon", 0.0)
    epsilon_added = epsilon if getattr(spec, "epsilon_added", False) else 0.0
    class_weighting: Any = getattr(spec, "class_weighting", "entries")
    ignored_labels = _ignored_labels(spec, kind, targets.dtype)

    known = all(_is_static(x.shape) for x in (predictions, targets, sample_weight, mask) if x)
    count = _count(predictions.shape if averaged else positions) if known else None
    unweighted = sample_weight is None and class_weights is None and element_weights is None
    # len(...) == 0, because torch.compile does not trace `not` of a tuple.
    plain = unweighted and mask is None and len(ignored_labels) == 0
    fast_paths = spec.fast_fields.issuperset(spec.changed_names)
    two_weights = element_weights is not None and averaged
    return Plan(
        spec=spec,
        kind=kind,  # type: ignore[arg-type]
        shape=predictions.shape,
        axis=axis,
        classes=classes,
        positions=positions,
        predictions_dtype=predictions.dtype,
        targets_dtype=targets.dtype,
        gradient_dtype=given_dtypes[0],  # type: ignore[arg-type]
        casts=any(x in FORMATS and x != computed_in for x in given_dtypes if computed_in and x),
        compute_dtype=compute_dtype,
        result_dtype="float32" if reduced_half else predictions.dtype,
        weight_rank=_rank(sample_weight),
        mask_rank=_rank(mask),
        unchecked=not known,
        count=count,
        ignored_labels=ignored_labels,
        largest_target=_largest_target(kind, classes, targets.dtype),
        plain=plain,
        class_weights=_flush_weights(class_weights, tiny),
        pos_weight=_flush_weights(getattr(spec, "pos_weight", None), tiny),
        label_smoothing=_flush_smoothing(spec, kind, classes, tiny),
        may_cancel=_may_cancel(spec, divisor, kind, class_weights, tiny),
        tiny=_tiny(compute_dtype, given_dtypes[0]),
        tiny_target=_tiny(compute_dtype, given_dtypes[1]),
        tiny_weight=_tiny(compute_dtype, given_dtypes[2]),
        divisor=divisor,
        scale=scale,
        element_weights=_flush_weights(element_weights, tiny),
        average_last_axis=averaged,
        log_probabilities=spec.prediction_kind == "log_probabilities",
        class_weighting="entries" if class_weights is None else class_weighting,
        bounds=None if epsilon_added else _bounds(epsilon, predictions.dtype),
        epsilon_added=epsilon_added,
        fast_paths=fast_paths,
        oracle_only=(two_weights or 0 < epsilon_added < _SMALLEST_EPSILON_ADDED or not fast_paths),
        fused=(
            plain
            and fast_paths
            and not averaged
            and scale == 1.0
            and computed_in is None
            and bool(count)
            and spec.rounding != "exact"
            and spec.reduction != "none"
            and predictions.dtype not in HALF_TYPES
            and spec.has_fused_kernel(kind, predictions.dtype, targets.dtype)
        ),
        why=f"{spec.rounding}: the spec says so",
    )


@lru_cache(4096)
def as_read(plan: Plan) -> Plan:
    """The plan of a call whose tensors have been cast to the dtype that the spec names."""
    return replace(plan, gradient_dtype=plan.predictions_dtype, casts=False)


@lru_cache(4096)
def natively(plan: Plan) -> Plan:
    """The plan of the same call with ``rounding="native"``.

    Exact mode takes from it every derivative but the first one to the predictions.
    """
    return replace(plan, spec=plan.spec.rounded("native"))


UNKNOWN_CLASSES = 1 << 31
"""Stands for K where a divisor is computed from class indices and no class has a weight."""


def resolve_divisor(
    spec: Loss,
    targets: Signature,
    sample_weight: Signature | None = None,
    mask: Signature | None = None,
    *,
    dtype: str,
) -> Plan:
    """Join a spec with the shapes and dtypes of a call that has no predictions.

    The divisor depends on nothing of the predictions but their dtype.

    Args:
        spec: the loss.
        targets: the targets; the predictions' shape follows from theirs.
        sample_weight: the sample weights, or None.
        mask: the mask, or None.
        dtype: the predictions' dtype.

    Raises:
        ShapeError, DTypeError, SpecValueError: as `resolve`.
    """
    shape = targets.shape
    if (
        isinstance(spec, Categorical)
        and shape is not None
        and shapes.target_kind(targets.dtype) == "index"
    ):
        axis = shapes.loss_axis(spec.axis, (*shape, None))
        weights: Any = spec.class_weights
        classes = UNKNOWN_CLASSES if weights is None else len(weights)
        shape = (*shape[:axis], classes, *shape[axis:])
    return resolve(spec, Signature(shape, dtype), targets, sample_weight, mask)


def check_upstream(plan: Plan, upstream: Signature) -> None:
    """Refuse an upstream gradient whose shape is not the loss's, or whose dtype is not real."""
    if upstream.dtype not in FORMATS and upstream.dtype not in INTEGER_TYPES:
        msg = f"upstream must be floating or integer, got {upstream.dtype}; cast it."
        raise DTypeError(msg)
    loss = plan.positions if plan.spec.reduction == "none" else ()
    if loss is not None and upstream.shape is not None and not same(loss, upstream.shape):
        raise ShapeError(Message.UPSTREAM.format(loss=describe(loss), got=describe(upstream.shape)))


def _with_dtype(dtype: str, x: Signature) -> Signature:
    return x._replace(dtype=dtype) if x.dtype in FORMATS else x


def _rank(signature: Signature | None) -> int | None:
    return None if signature is None or signature.shape is None else len(signature.shape)


def _is_static(shape: Shape | None) -> bool:
    return shape is not None and None not in shape


def _count(shape: Any) -> int | None:
    """The number of entries of a static shape; None if it is a symbol."""
    count = math.prod(shape)
    # Extents under torch.export are symbols. Do not compare them, because the result of the
    # comparison would become a constant of the program.
    return count if isinstance(count, int) else None


def _tiny(compute: str, given: str | None) -> float:
    """Smallest magnitude of the dtype `given` that survives the cast to the compute dtype.

    In a cast from float32 to float64, JAX and TensorFlow read subnormal numbers as 0. Subnormal
    float16 numbers are normal in float32.
    """
    tiny = FORMATS[compute].tiny
    return tiny if given not in FORMATS or given == "float16" else max(tiny, FORMATS[given].tiny)


def _flush_weights(weights: Any, tiny: float) -> Any:
    """Replace weights below `tiny` by 0, in a number or in nested tuples of numbers."""
    if weights is None or isinstance(weights, float):
        return 0.0 if weights is not None and weights < tiny else weights
    # For 32,000 weights, min() takes a tenth of the time of a comprehension.
    if not isinstance(weights[0], tuple) and min(weights) >= tiny:
        return weights
    return tuple(_flush_weights(weight, tiny) for weight in weights)


def _flush_smoothing(spec: Loss, kind: str, classes: int | None, tiny: float) -> float:
    """The amount of smoothing; 0 if the share of an answer, eps / K or eps / 2, is below `tiny`.

    An unknown K counts as 1.
    """
    label_smoothing: float = getattr(spec, "label_smoothing", 0.0)
    share = label_smoothing / (2 if kind == "binary" else classes or 1)
    return label_smoothing if share >= tiny else 0.0


def _may_cancel(
    spec: Loss, divisor: str, kind: str, class_weights: tuple[float, ...] | None, tiny: float
) -> bool:
    if class_weights is None or spec.reduction != "mean" or divisor not in ("weights", "nonzero"):
        return False
    return kind == "dense" or min(class_weights) < tiny


def _ignored_labels(spec: Loss, kind: str, dtype: str) -> tuple[int, ...]:
    labels: tuple[int, ...] = getattr(spec, "ignore_index", None) or ()
    if kind != "index":
        return ()
    # A uint8 label of 156 is not -100, though torch, TensorFlow and JAX compare the two as equal.
    return tuple(label for label in labels if label >= 0) if dtype.startswith("u") else labels


def _largest_target(kind: str, classes: int | None, dtype: str) -> float | None:
    if kind == "binary":
        return 1
    if kind == "dense":
        return FORMATS["float16"].largest  # a finite number that every format holds
    if kind == "real" or classes is None:
        return None
    # A dtype too narrow for K - 1 ends the range earlier.
    bits = int(dtype.lstrip("uint")) - (not dtype.startswith("u"))
    return min(classes, 1 << bits) - 1
