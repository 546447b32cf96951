"""The conditions under which a quirk applies to a loss, as the `when` of `Quirk`.

Each takes the spec of a loss and its call, and the call is None for a plain spec.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss.floats import FORMATS
from unifiedloss.interop.inputs import weights_of
from unifiedloss.interop.library_loss import Call


def weightless(spec: Any, _: Call | None) -> bool:
    """A class weight or element weight is 0."""
    weights = weights_of(spec)
    return weights is not None and not np.all(np.asarray(weights))


def smoothed_weightless(spec: Any, call: Call | None) -> bool:
    """A class weight is 0, and labels are smoothed."""
    return weightless(spec, call) and smoothed(spec, call)


def weighted(spec: Any, _: Call | None) -> bool:
    """The loss has class weights or element weights."""
    return weights_of(spec) is not None


def element_weighted(spec: Any, _: Call | None) -> bool:
    """The loss has an array of class weights or element weights."""
    return np.ndim(weights_of(spec)) > 0


def summed(spec: Any, _: Call | None) -> bool:
    """The reduction is a sum."""
    return bool(spec.reduction == "sum")


def reduced(spec: Any, _: Call | None) -> bool:
    """The reduction gives one number."""
    return bool(spec.reduction != "none")


def averaged(spec: Any, _: Call | None) -> bool:
    """The reduction is a mean."""
    return bool(spec.reduction == "mean")


def not_averaged_by_weights(spec: Any, call: Call | None) -> bool:
    """The reduction is not a mean that divides by the sum of the weights."""
    return not averaged_by_weights(spec, call)


def averaged_by_weights(spec: Any, _: Call | None) -> bool:
    """The reduction is a mean that divides by the sum of the weights."""
    return bool(spec.reduction == "mean" and spec.divisor == "weights")


def smoothed(spec: Any, _: Call | None) -> bool:
    """Labels are smoothed."""
    return getattr(spec, "label_smoothing", 0.0) > 0


def ignoring(spec: Any, _: Call | None) -> bool:
    """A label that is not negative is ignored."""
    return max(spec.ignore_index or (-1,)) >= 0


def ignoring_any(spec: Any, _: Call | None) -> bool:
    """Some label is ignored."""
    return bool(spec.ignore_index)


def adding_nothing(spec: Any, _: Call | None) -> bool:
    """Nothing is clipped or added to probabilities."""
    return bool(spec.epsilon == 0)


def clipped(spec: Any, _: Call | None) -> bool:
    """Probabilities or their logarithms are clipped."""
    return bool(spec.epsilon != 0 and not spec.epsilon_added)


def clipped_otherwise(spec: Any, call: Call | None) -> bool:
    """Probabilities are clipped, and the loss is not a Keras loss on another backend than torch.

    On the other backends not only the gradient of those is wrong: "half_clip" covers them.
    """
    return clipped(spec, call) and (
        call is None or call.library != "keras" or call.backend == "torch"
    )


def clipped_unsmoothed(spec: Any, call: Call | None) -> bool:
    """Probabilities or their logarithms are clipped, and labels are not smoothed."""
    return clipped(spec, call) and not smoothed(spec, call)


def clipped_as_keras(spec: Any, _: Call | None) -> bool:
    """Probabilities are clipped by Keras' rule."""
    return bool(spec.epsilon == "keras")


def last_axis(spec: Any, _: Call | None) -> bool:
    """The class axis is the last one."""
    return spec.axis in (None, -1)


def renormalizing(spec: Any, _: Call | None) -> bool:
    """Probabilities are divided by the sum of their row."""
    return spec.renormalize is not None


_SMALL = 2.0**-14
"""A smaller number keeps less than 3 digits when it is added to a float32 number near 1."""


def _pos_weights(spec: Any) -> Any:
    return np.ravel(1.0 if spec.pos_weight is None else spec.pos_weight)


def small_pos_weight(spec: Any, _: Call | None) -> bool:
    """A pos_weight is small, and not a subnormal number."""
    weights = _pos_weights(spec)
    return bool(np.any((weights >= FORMATS["float32"].tiny) & (weights < _SMALL)))


def subnormal_pos_weight(spec: Any, _: Call | None) -> bool:
    """A pos_weight is a subnormal number of float32."""
    weights = _pos_weights(spec)
    return bool(np.any((weights > 0) & (weights < FORMATS["float32"].tiny)))


def several_pos_weights(spec: Any, _: Call | None) -> bool:
    """There are several pos_weights."""
    return bool(_pos_weights(spec).size > 1)


def pos_weight_of_many_axes(spec: Any, call: Call | None) -> bool:
    """The pos_weight is one number, written with more than two axes."""
    return spec.pos_weight is not None and (
        call is None or np.ndim(call.arguments.get("pos_weight", 1.0)) > 2
    )


def of_sklearn(_: Any, call: Call | None) -> bool:
    """The loss is of scikit-learn; other losses read the input of the quirk in another way."""
    return call is None or call.library == "sklearn"


def sum_of_sklearn(spec: Any, call: Call | None) -> bool:
    """The loss is of scikit-learn, and a sum."""
    return of_sklearn(spec, call) and summed(spec, call)


def of_sklearn_or_onnx(_: Any, call: Call | None) -> bool:
    """The loss is of scikit-learn or ONNX; others round to the dtype of the input."""
    return call is None or call.library in ("sklearn", "onnx")


def of_an_object(_: Any, __: Call | None) -> bool:
    """Never: an object holds the dtype, and only `port_report` has the object."""
    return False


def narrow_weights(spec: Any, call: Call | None) -> bool:
    """The loss holds weights that float32 rounds, large enough to change its value.

    For TensorFlow: the pos_weights are a tensor, which has a dtype.
    """
    if call is not None and call.library == "tensorflow":
        return isinstance(getattr(spec, "pos_weight", None), tuple)
    held = (
        np.ravel(getattr(spec, name, None) or 0.0) for name in ("element_weights", "pos_weight")
    )
    return any(np.any((np.float32(weights) != weights) & (weights > _SMALL)) for weights in held)
