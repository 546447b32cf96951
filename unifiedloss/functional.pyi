"""Written by ``make stubs`` from the fields of the specs; do not edit."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from unifiedloss.inputs import Numbers, Tensor, TensorT
from unifiedloss.spec import (
    Bound,
    ClassWeighting,
    ComputedIn,
    Divisor,
    Epsilon,
    Loss,
    OnEmpty,
    Reduction,
    Renormalize,
    Rounding,
)

_Scalar = TypeVar("_Scalar", bound=np.generic)

@overload
def cross_entropy_loss(
    predictions: NDArray[_Scalar],
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    label_smoothing: float = 0.0,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    renormalize: Renormalize | None = None,
    class_weighting: ClassWeighting = "entries",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> NDArray[_Scalar] | _Scalar:
    r"""Evaluate a `CrossEntropyLoss` with these fields; see there for formula and rules.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a
            float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        sample_weight: number per position, shaped like the per-position loss or a leading part of
            that shape.
        mask: bool per position, aligned the same way; False drops the position.
        from_logits: False: predictions are probabilities. True: softmax is part of the loss.
        epsilon: probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the
            gradient is 0 where it clips. Only with ``from_logits=False``. "keras": 1e-7, with
            both bounds rounded to the predictions' dtype, as in Keras. "sklearn": the distance
            from 1 to the next larger number of the predictions' dtype.
        label_smoothing: the amount $\epsilon_s$ in [0, 1], spread evenly over the K classes.
            Smoothing that spreads $\epsilon$ over the K - 1 other classes, as in fairseq, is
            $\epsilon_s = \epsilon K / (K - 1)$.
        axis: the class axis. None: the last one where predictions have at most 2 axes; from 3
            axes up it must be named, because torch uses 1 and the others -1, and a square shape
            would hide a mistake. 1: axis 1, or axis 0 where predictions have one axis and are
            one example.
        class_weights: one non-negative number w_c per class. Numbers below the smallest normal
            one of the compute dtype count as 0 here, and also in `pos_weight`, smoothing
            shares, targets of the cross-entropies and sample weights.
        ignore_index: one or several ints; positions with these labels are dropped. Only for
            class indices: with dense targets a negative one has no effect, and one in 0..K-1 is
            an error.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i, which are
            sample_weight_i, times $\sum_c w_c t_{ic}$ where class weights are given. "present":
            the number of positions not dropped. "nonzero": the number of those with W_i != 0.
            "all": the number of all positions. "label_weights": "weights" for class indices and
            "all" for dense targets, as torch divides.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under
            tracing). Its gradient is 0.
        rounding: "native": within a derived bound of the exact result. "exact": the loss and
            its gradient to the predictions are correctly rounded, the same bits in every
            backend; every other derivative is native. "auto": one of the two, by a table over
            the backend, the device, the mode, the dtype and the form of a call; `Plan.rounding`
            and `Plan.why` tell which.
        renormalize: None, or predictions are non-negative numbers that are divided by their sum
            over the classes, "before_clip" or "after_clip". Under "after_clip" the predictions
            are clipped as they are, then divided by the sum of the clipped numbers. Only with
            an `epsilon`.
        class_weighting: what class weights multiply. "entries": the entries of the smoothed
            target, as above. "position": the whole loss of a position, by $\sum_c w_c t_c$, so
            that $\tau_{ic} = t'_{ic} \sum_k w_k t_{ik}$, as for ``class_weight`` of Keras'
            ``fit``. W_i is the same in both cases.
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights
            are cast to this dtype, and the loss has it. With ``rounding="exact"`` each is
            rounded once, the loss is that of the rounded numbers, and its gradient is rounded
            to this dtype first, then to the dtype of the predictions.
            As `divisor`, a number or a scalar tensor replaces the rule: the mean divides by it.

    Returns:
        The loss in nats (squared units for the squared error), a tensor of the predictions'
        framework: a scalar under "mean" and "sum", one number per position under "none".

    Raises:
        SpecValueError, SpecTypeError: a field is unknown, out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
            bad value.
    """

@overload
def cross_entropy_loss(
    predictions: TensorT,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    label_smoothing: float = 0.0,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    renormalize: Renormalize | None = None,
    class_weighting: ClassWeighting = "entries",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> TensorT: ...
@overload
def cross_entropy_loss(
    predictions: Numbers,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    label_smoothing: float = 0.0,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    renormalize: Renormalize | None = None,
    class_weighting: ClassWeighting = "entries",
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> Any: ...
@overload
def binary_cross_entropy_loss(
    predictions: NDArray[_Scalar],
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    pos_weight: float | Sequence[float] | None = None,
    axis: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    epsilon_added: bool = False,
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> NDArray[_Scalar] | _Scalar:
    r"""Evaluate a `BinaryCrossEntropyLoss` with these fields; see there for formula and rules.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a
            float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        sample_weight: number per position, shaped like the per-position loss or a leading part of
            that shape.
        mask: bool per position, aligned the same way; False drops the position.
        from_logits: False: predictions are probabilities. True: the sigmoid is part of the
            loss.
        epsilon: probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the
            gradient is 0 where it clips. Only with ``from_logits=False``. "keras" and
            "sklearn": as for `CrossEntropyLoss`. "torch": as in ``torch.nn.BCELoss``,
            logarithms are clamped at -100, and the gradient is $(p - t') / \max(p (1 - p),
            10^{-12})$, with $10^{-12}$ in float32; this is not the derivative of the clamped
            loss.
        pos_weight: the factor q of the positive term: a number, or one per entry of `axis`. It
            never counts in the divisor. Not with ``epsilon="torch"``.
        axis: the axis along which several numbers in `pos_weight` run. None: the last one where
            predictions have at most 2 axes; from 3 axes up it must be named, as for the
            cross-entropy.
        label_smoothing: the amount $\epsilon_s$ in [0, 1], spread evenly over the 2 answers.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i = sample weight
            times element weight. "present": the number of positions not dropped. "nonzero": the
            number of those whose weight is not 0. "all": the number of all positions.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under
            tracing). Its gradient is 0.
        rounding: "native": within a derived bound of the exact result. "exact": the loss and
            its gradient to the predictions are correctly rounded, the same bits in every
            backend; every other derivative is native. "auto": one of the two, by a table over
            the backend, the device, the mode, the dtype and the form of a call; `Plan.rounding`
            and `Plan.why` tell which.
        epsilon_added: whether epsilon is added inside the logarithms, $-\log(p + \epsilon)$ and
            $-\log(1 - p + \epsilon)$, instead of being a bound. Only with a number as
            `epsilon`.
        element_weights: None, or non-negative numbers that multiply the losses of elements: an
            array that broadcasts to the predictions, aligned to their *last* axes. They count
            in W_i, as sample weights do.
        average_last_axis: whether the losses along the last axis, multiplied by
            `element_weights`, are added and divided by their number, which leaves one loss per
            position. Positions then have the predictions' shape without that axis; at least one
            axis must remain.
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights
            are cast to this dtype, and the loss has it. With ``rounding="exact"`` each is
            rounded once, the loss is that of the rounded numbers, and its gradient is rounded
            to this dtype first, then to the dtype of the predictions.
            As `divisor`, a number or a scalar tensor replaces the rule: the mean divides by it.

    Returns:
        The loss in nats (squared units for the squared error), a tensor of the predictions'
        framework: a scalar under "mean" and "sum", one number per position under "none".

    Raises:
        SpecValueError, SpecTypeError: a field is unknown, out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
            bad value.
    """

@overload
def binary_cross_entropy_loss(
    predictions: TensorT,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    pos_weight: float | Sequence[float] | None = None,
    axis: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    epsilon_added: bool = False,
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> TensorT: ...
@overload
def binary_cross_entropy_loss(
    predictions: Numbers,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    from_logits: bool = False,
    epsilon: Epsilon = 0.0,
    pos_weight: float | Sequence[float] | None = None,
    axis: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    epsilon_added: bool = False,
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> Any: ...
@overload
def mean_squared_error(
    predictions: NDArray[_Scalar],
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> NDArray[_Scalar] | _Scalar:
    r"""Evaluate a `MeanSquaredError` with these fields; see there for formula and rules.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a
            float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        sample_weight: number per position, shaped like the per-position loss or a leading part of
            that shape.
        mask: bool per position, aligned the same way; False drops the position.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i = sample weight
            times element weight. "present": the number of positions not dropped. "nonzero": the
            number of those whose weight is not 0. "all": the number of all positions.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under
            tracing). Its gradient is 0.
        rounding: "native": within a derived bound of the exact result. "exact": the loss and
            its gradient to the predictions are correctly rounded, the same bits in every
            backend; every other derivative is native. "auto": one of the two, by a table over
            the backend, the device, the mode, the dtype and the form of a call; `Plan.rounding`
            and `Plan.why` tell which.
        element_weights: None, or non-negative numbers that multiply the losses of elements: an
            array that broadcasts to the predictions, aligned to their *last* axes. They count
            in W_i, as sample weights do.
        average_last_axis: whether the losses along the last axis, multiplied by
            `element_weights`, are added and divided by their number, which leaves one loss per
            position. Positions then have the predictions' shape without that axis; at least one
            axis must remain.
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights
            are cast to this dtype, and the loss has it. With ``rounding="exact"`` each is
            rounded once, the loss is that of the rounded numbers, and its gradient is rounded
            to this dtype first, then to the dtype of the predictions.
            As `divisor`, a number or a scalar tensor replaces the rule: the mean divides by it.

    Returns:
        The loss in nats (squared units for the squared error), a tensor of the predictions'
        framework: a scalar under "mean" and "sum", one number per position under "none".

    Raises:
        SpecValueError, SpecTypeError: a field is unknown, out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
            bad value.
    """

@overload
def mean_squared_error(
    predictions: TensorT,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> TensorT: ...
@overload
def mean_squared_error(
    predictions: Numbers,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> Any: ...
@overload
def negative_log_likelihood_loss(
    predictions: NDArray[_Scalar],
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
) -> NDArray[_Scalar] | _Scalar:
    r"""Evaluate a `NegativeLogLikelihoodLoss` with these fields; see there for formula and rules.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a
            float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        sample_weight: number per position, shaped like the per-position loss or a leading part of
            that shape.
        mask: bool per position, aligned the same way; False drops the position.
        axis: the class axis. None: the last one where predictions have at most 2 axes; from 3
            axes up it must be named, because torch uses 1 and the others -1, and a square shape
            would hide a mistake. 1: axis 1, or axis 0 where predictions have one axis and are
            one example.
        class_weights: one non-negative number w_c per class. Numbers below the smallest normal
            one of the compute dtype count as 0 here, and also in `pos_weight`, smoothing
            shares, targets of the cross-entropies and sample weights.
        ignore_index: one or several ints; positions with these labels are dropped. Only for
            class indices: with dense targets a negative one has no effect, and one in 0..K-1 is
            an error.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i, which are
            sample_weight_i, times $\sum_c w_c t_{ic}$ where class weights are given. "present":
            the number of positions not dropped. "nonzero": the number of those with W_i != 0.
            "all": the number of all positions. "label_weights": "weights" for class indices and
            "all" for dense targets, as torch divides.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under
            tracing). Its gradient is 0.
        rounding: "native": within a derived bound of the exact result. "exact": the loss and
            its gradient to the predictions are correctly rounded, the same bits in every
            backend; every other derivative is native. "auto": one of the two, by a table over
            the backend, the device, the mode, the dtype and the form of a call; `Plan.rounding`
            and `Plan.why` tell which.
        scale: a positive number that multiplies every loss, and no weight.
            As `divisor`, a number or a scalar tensor replaces the rule: the mean divides by it.

    Returns:
        The loss in nats (squared units for the squared error), a tensor of the predictions'
        framework: a scalar under "mean" and "sum", one number per position under "none".

    Raises:
        SpecValueError, SpecTypeError: a field is unknown, out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
            bad value.
    """

@overload
def negative_log_likelihood_loss(
    predictions: TensorT,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
) -> TensorT: ...
@overload
def negative_log_likelihood_loss(
    predictions: Numbers,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    axis: int | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_index: int | Iterable[int] | None = None,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    scale: float = 1.0,
) -> Any: ...
@overload
def huber_loss(
    predictions: NDArray[_Scalar],
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    delta: float = 1.0,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> NDArray[_Scalar] | _Scalar:
    r"""Evaluate a `HuberLoss` with these fields; see there for formula and rules.

    Args:
        predictions: floating tensor of any known framework; a Python number or list is read as a
            float64 NumPy array.
        targets: tensor of the same framework, NumPy array or list.
        sample_weight: number per position, shaped like the per-position loss or a leading part of
            that shape.
        mask: bool per position, aligned the same way; False drops the position.
        delta: the threshold $\delta$ from which on the loss is linear, from 2^-126 to 2^126.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i = sample weight
            times element weight. "present": the number of positions not dropped. "nonzero": the
            number of those whose weight is not 0. "all": the number of all positions.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under
            tracing). Its gradient is 0.
        rounding: "native": within a derived bound of the exact result. "exact": the loss and
            its gradient to the predictions are correctly rounded, the same bits in every
            backend; every other derivative is native. "auto": one of the two, by a table over
            the backend, the device, the mode, the dtype and the form of a call; `Plan.rounding`
            and `Plan.why` tell which.
        element_weights: None, or non-negative numbers that multiply the losses of elements: an
            array that broadcasts to the predictions, aligned to their *last* axes. They count
            in W_i, as sample weights do.
        average_last_axis: whether the losses along the last axis, multiplied by
            `element_weights`, are added and divided by their number, which leaves one loss per
            position. Positions then have the predictions' shape without that axis; at least one
            axis must remain.
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights
            are cast to this dtype, and the loss has it. With ``rounding="exact"`` each is
            rounded once, the loss is that of the rounded numbers, and its gradient is rounded
            to this dtype first, then to the dtype of the predictions.
            As `divisor`, a number or a scalar tensor replaces the rule: the mean divides by it.

    Returns:
        The loss in nats (squared units for the squared error), a tensor of the predictions'
        framework: a scalar under "mean" and "sum", one number per position under "none".

    Raises:
        SpecValueError, SpecTypeError: a field is unknown, out of range or of the wrong type.
        ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
            bad value.
    """

@overload
def huber_loss(
    predictions: TensorT,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    delta: float = 1.0,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> TensorT: ...
@overload
def huber_loss(
    predictions: Numbers,
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    delta: float = 1.0,
    reduction: Reduction = "mean",
    divisor: Divisor | float | Tensor = "weights",
    on_empty: OnEmpty = "nan",
    rounding: Rounding = "native",
    element_weights: float | Sequence[Any] | None = None,
    average_last_axis: bool = False,
    scale: float = 1.0,
    dtype: ComputedIn | None = None,
) -> Any: ...
@overload
def softmax(logits: TensorT, *, axis: int | None = None) -> TensorT:
    """Compute the probabilities of logits, $p_c = e^{z_c} / \\sum_j e^{z_j}$.

    Args:
        logits: floating tensor of any known framework, at least one axis.
        axis: the class axis. None: the last one, for at most 2 axes; with 3 or more axes it must
            be named.

    Returns:
        Probabilities of the shape and dtype of the logits. Half types are computed in float32 and
        rounded once. Results below the smallest normal number of the compute dtype are 0, because
        TensorFlow and JAX would read them as 0.

    Raises:
        DTypeError: the logits are not floating.
        SpecValueError, SpecTypeError: the axis is missing, out of range or no int.
        ShapeError: there is no class axis, or no class on it.
    """

@overload
def softmax(logits: Numbers, *, axis: int | None = None) -> Any: ...
def check(
    spec: Loss | Bound,
    predictions: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
) -> tuple[str, ...]:
    """Read the values, on any device, raise for the first bad one, and say what others suggest.

    In eager mode on the CPU every call of a loss does this already. Under tracing the values cannot
    be read, and on accelerators reading would block, so a bad value gives NaN there. This function
    then reports its position.

    Args:
        spec: the loss the tensors are meant for, or an object that `Loss.to` returned.
        predictions: tensor, as for the loss; so are `targets`, `sample_weight` and `mask`.
        targets: tensor.
        sample_weight: number per position.
        mask: bool per position.

    Returns:
        Hints, a sentence each, for example if predictions look like probabilities where the loss
        takes logits, or the arguments look swapped. Each is also a `UserWarning`. A hint is no
        error, because such values may be meant.

    Raises:
        BadValueError: a value is bad. The message names its position.
        EmptyMeanError: the mean's divisor is 0, under ``on_empty="error"``.
        ShapeError, DTypeError: the tensors do not fit.
        SpecTypeError: `spec` is no spec.
    """
