"""Conditions under which several quirks apply to a loss, as the `when` of `Quirk`.

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


def weighted(spec: Any, _: Call | None) -> bool:
    """The loss has class weights or element weights."""
    return weights_of(spec) is not None


def averaged_by_weights(spec: Any, _: Call | None) -> bool:
    """The reduction is a mean that divides by the sum of the weights."""
    return bool(spec.reduction == "mean" and spec.divisor == "weights")


def smoothed(spec: Any, _: Call | None) -> bool:
    """Labels are smoothed."""
    return getattr(spec, "label_smoothing", 0.0) > 0


def clipped(spec: Any, _: Call | None) -> bool:
    """Probabilities or their logarithms are clipped."""
    return bool(spec.epsilon != 0 and not spec.epsilon_added)


def of_sklearn(_: Any, call: Call | None) -> bool:
    """The loss is of scikit-learn; other losses read the probe of the quirk in another way."""
    return call is None or call.library == "sklearn"


def of_sklearn_or_onnx(_: Any, call: Call | None) -> bool:
    """The loss is of scikit-learn or ONNX; others round to the dtype of the probe."""
    return call is None or call.library in ("sklearn", "onnx")


SMALL = 2.0**-14
"""A smaller number keeps less than 3 digits when it is added to a float32 number near 1."""


def pos_weights(spec: Any) -> Any:
    """The weights of the positive term, as an array with one axis."""
    return np.ravel(1.0 if spec.pos_weight is None else spec.pos_weight)


def small_pos_weight(spec: Any, _: Call | None) -> bool:
    """A pos_weight is small, and not a subnormal number."""
    weights = pos_weights(spec)
    return bool(np.any((weights >= FORMATS["float32"].tiny) & (weights < SMALL)))


def subnormal_pos_weight(spec: Any, _: Call | None) -> bool:
    """A pos_weight is a subnormal number of float32."""
    weights = pos_weights(spec)
    return bool(np.any((weights > 0) & (weights < FORMATS["float32"].tiny)))


def narrow_weights(spec: Any, call: Call | None) -> bool:
    """The loss holds weights that float32 rounds, large enough to change its value.

    For TensorFlow: the pos_weights are a tensor, which has a dtype.
    """
    if call is not None and call.library == "tensorflow":
        return isinstance(getattr(spec, "pos_weight", None), tuple)
    held = (
        np.ravel(getattr(spec, name, None) or 0.0) for name in ("element_weights", "pos_weight")
    )
    return any(np.any((np.float32(weights) != weights) & (weights > SMALL)) for weights in held)
