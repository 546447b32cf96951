"""The losses as functions: each builds its spec from keywords and calls it.

Rules, formulas and errors stand at the spec classes in `unifiedloss.spec`; the keywords here are their fields, with the same defaults.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

from unifiedloss import registry
from unifiedloss.errors import SpecTypeError
from unifiedloss.spec import (
    AnyLoss,
    BinaryCrossEntropyLoss,
    ClassWeighting,
    ComputedIn,
    CrossEntropyLoss,
    Divisor,
    Epsilon,
    Loss,
    MeanSquaredError,
    NegativeLogLikelihoodLoss,
    Numbers,
    OnEmpty,
    Reduction,
    Renormalize,
    Rounding,
    TensorT,
    as_written,
    checked_axis,
)

_specs: dict[tuple[Any, ...], AnyLoss] = {}
_MAX_SPECS = 1024


def _spec(cls: type[AnyLoss], **fields: Any) -> AnyLoss:
    """The spec with these fields, remembered where every field is a scalar.

    The key has the types as well: 1, 1.0 and True are equal, and only one of them is a bool. Sequences are not remembered, whose elements'
    types the key would not tell. (Not functools.lru_cache, which torch.compile does not trace without a warning.)
    """
    values = tuple(fields.values())
    key = (cls, values, tuple(map(type, values)))
    try:
        return _specs[key]
    except (KeyError, TypeError):  # not yet remembered, or not hashable
        spec = cls(**fields)
    if all(value is None or isinstance(value, str | int | float) for value in values):
        if len(_specs) >= _MAX_SPECS:
            _specs.clear()
        _specs[key] = spec
    return spec


@overload
def cross_entropy_loss(
    predictions: TensorT,
    targets: object,
    *,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    renormalize: Renormalize | None = None,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    class_weighting: ClassWeighting = "entries",
    ignore_index: int | Iterable[int] | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> TensorT: ...
@overload
def cross_entropy_loss(
    predictions: Numbers,
    targets: object,
    *,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    renormalize: Renormalize | None = None,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    class_weighting: ClassWeighting = "entries",
    ignore_index: int | Iterable[int] | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> Any: ...
@as_written
def cross_entropy_loss(
    predictions: Any,
    targets: object,
    *,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    renormalize: Renormalize | None = None,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    class_weighting: ClassWeighting = "entries",
    ignore_index: int | Iterable[int] | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> Any:
    """Categorical cross-entropy; the formula and the rules stand at `CrossEntropyLoss`.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        from_logits, epsilon, renormalize, axis, class_weights, class_weighting, ignore_index: see `CrossEntropyLoss`.
        label_smoothing, reduction, divisor, on_empty, rounding, scale, dtype: see `CrossEntropyLoss`.
        sample_weight: number per position, shaped like the per-position loss or a leading part of that shape.
        mask: bool per position, aligned the same way; False drops the position.

    Returns:
        The loss in nats: a scalar under "mean" and "sum", per position under "none"; a tensor of the predictions' framework.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a bad value.
    """
    spec = _spec(
        CrossEntropyLoss,
        from_logits=from_logits,
        epsilon=epsilon,
        renormalize=renormalize,
        axis=axis,
        class_weights=class_weights,
        class_weighting=class_weighting,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        divisor=divisor,
        on_empty=on_empty,
        rounding=rounding,
        scale=scale,
        dtype=dtype,
    )
    return registry.adapter_for(predictions, targets, sample_weight, mask).loss(
        spec, predictions, targets, sample_weight, mask
    )


@overload
def binary_cross_entropy_loss(
    predictions: TensorT,
    targets: object,
    *,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    epsilon_added: bool = False,
    pos_weight: float | Sequence[float] | None = None,
    axis: int | None = None,
    element_weights: float | Sequence[Any] | None = None,
    label_smoothing: float = 0.0,
    average_last_axis: bool = False,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> TensorT: ...
@overload
def binary_cross_entropy_loss(
    predictions: Numbers,
    targets: object,
    *,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    epsilon_added: bool = False,
    pos_weight: float | Sequence[float] | None = None,
    axis: int | None = None,
    element_weights: float | Sequence[Any] | None = None,
    label_smoothing: float = 0.0,
    average_last_axis: bool = False,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> Any: ...
@as_written
def binary_cross_entropy_loss(
    predictions: Any,
    targets: object,
    *,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    epsilon_added: bool = False,
    pos_weight: float | Sequence[float] | None = None,
    axis: int | None = None,
    element_weights: float | Sequence[Any] | None = None,
    label_smoothing: float = 0.0,
    average_last_axis: bool = False,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> Any:
    """Binary cross-entropy, elementwise; the formula and the rules stand at `BinaryCrossEntropyLoss`.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        from_logits, epsilon, epsilon_added, pos_weight, axis, element_weights, label_smoothing: see `BinaryCrossEntropyLoss`.
        average_last_axis, reduction, divisor, on_empty, rounding, scale, dtype: see `BinaryCrossEntropyLoss`.
        sample_weight: number per position, shaped like the per-position loss or a leading part of that shape.
        mask: bool per position, aligned the same way; False drops the position.

    Returns:
        The loss in nats: a scalar under "mean" and "sum", per position under "none"; a tensor of the predictions' framework.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a bad value.
    """
    spec = _spec(
        BinaryCrossEntropyLoss,
        from_logits=from_logits,
        epsilon=epsilon,
        epsilon_added=epsilon_added,
        pos_weight=pos_weight,
        axis=axis,
        element_weights=element_weights,
        label_smoothing=label_smoothing,
        average_last_axis=average_last_axis,
        reduction=reduction,
        divisor=divisor,
        on_empty=on_empty,
        rounding=rounding,
        scale=scale,
        dtype=dtype,
    )
    return registry.adapter_for(predictions, targets, sample_weight, mask).loss(
        spec, predictions, targets, sample_weight, mask
    )


@overload
def mean_squared_error(
    predictions: TensorT,
    targets: object,
    *,
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> TensorT: ...
@overload
def mean_squared_error(
    predictions: Numbers,
    targets: object,
    *,
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> Any: ...
@as_written
def mean_squared_error(
    predictions: Any,
    targets: object,
    *,
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
    sample_weight: object = None,
    mask: object = None,
) -> Any:
    """Mean squared error; the formula and the rules stand at `MeanSquaredError`.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        element_weights, average_last_axis, reduction, divisor, on_empty, rounding, scale, dtype: see `MeanSquaredError`.
        sample_weight: number per position, shaped like the per-position loss or a leading part of that shape.
        mask: bool per position, aligned the same way; False drops the position.

    Returns:
        The squared error: a scalar under "mean" and "sum", per position under "none"; a tensor of the predictions' framework.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a bad value.
    """
    spec = _spec(
        MeanSquaredError,
        element_weights=element_weights,
        average_last_axis=average_last_axis,
        reduction=reduction,
        divisor=divisor,
        on_empty=on_empty,
        rounding=rounding,
        scale=scale,
        dtype=dtype,
    )
    return registry.adapter_for(predictions, targets, sample_weight, mask).loss(
        spec, predictions, targets, sample_weight, mask
    )


@overload
def negative_log_likelihood_loss(
    predictions: TensorT,
    targets: object,
    *,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    sample_weight: object = None,
    mask: object = None,
) -> TensorT: ...
@overload
def negative_log_likelihood_loss(
    predictions: Numbers,
    targets: object,
    *,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    sample_weight: object = None,
    mask: object = None,
) -> Any: ...
@as_written
def negative_log_likelihood_loss(
    predictions: Any,
    targets: object,
    *,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    sample_weight: object = None,
    mask: object = None,
) -> Any:
    """Negative log-likelihood of log-probabilities; the formula and the rules stand at `NegativeLogLikelihoodLoss`.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        axis, class_weights, ignore_index, reduction, divisor, on_empty, rounding: see `NegativeLogLikelihoodLoss`.
        sample_weight: number per position, shaped like the per-position loss or a leading part of that shape.
        mask: bool per position, aligned the same way; False drops the position.

    Returns:
        The loss in nats: a scalar under "mean" and "sum", per position under "none"; a tensor of the predictions' framework.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a bad value.
    """
    spec = _spec(
        NegativeLogLikelihoodLoss,
        axis=axis,
        class_weights=class_weights,
        ignore_index=ignore_index,
        reduction=reduction,
        divisor=divisor,
        on_empty=on_empty,
        rounding=rounding,
    )
    return registry.adapter_for(predictions, targets, sample_weight, mask).loss(
        spec, predictions, targets, sample_weight, mask
    )


@overload
def softmax(logits: TensorT, *, axis: int | None = None) -> TensorT: ...
@overload
def softmax(logits: Numbers, *, axis: int | None = None) -> Any: ...
@as_written
def softmax(logits: Any, *, axis: int | None = None) -> Any:
    r"""The probabilities of logits, $p_c = e^{z_c} / \sum_j e^{z_j}$.

    Args:
        logits: floating tensor of any known framework, at least one axis.
        axis: the class axis. None: the last one where there are at most 2 axes; from 3 axes up it must be named.

    Returns:
        Probabilities of the shape and dtype of the logits. Half types are computed in float32 and rounded once. Results below the smallest
        normal number of the compute dtype are 0, since TensorFlow and JAX would read them as 0.

    Raises:
        DTypeError: the logits are not floating.
        SpecValueError, SpecTypeError: the axis is missing, out of range or no int.
        ShapeError: there is no class axis, or no class on it.
    """
    return registry.adapter(registry.backend_of(logits, "logits")).softmax(
        logits, checked_axis(axis)
    )


@as_written
def check(
    spec: AnyLoss, predictions: Any, targets: Any, *, sample_weight: Any = None, mask: Any = None
) -> None:
    """Read the values, on whichever device they are, and raise for the first bad one.

    A call of the loss does this by itself in eager mode on the CPU. Under tracing and on accelerators, where reading would mean
    waiting, a bad value gives NaN instead; this function finds the place.

    Args:
        spec: the loss the tensors are meant for; what `Loss.to` made of one is read as it.
        predictions: tensor, as for the loss; so are `targets`, `sample_weight` and `mask`.
        targets: tensor.
        sample_weight: number per position.
        mask: bool per position.

    Raises:
        BadValueError: naming position and value.
        EmptyMeanError: under ``on_empty="error"``, where the mean's divisor is 0.
        ShapeError, DTypeError: the tensors do not fit.
        SpecTypeError: `spec` is no spec.
    """
    spec = getattr(spec, "spec", spec)  # what `Loss.to` made
    if not isinstance(spec, Loss):
        msg = (
            f"spec must be a spec, such as ul.CrossEntropyLoss(from_logits=True), got {spec!r} of type "
            f"{type(spec).__name__}; ul.from_native makes one of a loss of another library."
        )
        raise SpecTypeError(msg)
    registry.adapter_for(predictions, targets, sample_weight, mask).check(
        spec, predictions, targets, sample_weight, mask
    )
