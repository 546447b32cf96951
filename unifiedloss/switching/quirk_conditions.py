"""The settings of a loss that a rule of `unifiedloss.switching.quirks` is about, where it is not about all.

Each takes the spec of a loss, and its call; that is None where the loss is a spec.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unifiedloss.floats import FORMATS
from unifiedloss.switching.inputs import weights_of
from unifiedloss.switching.library_loss import Call


def weightless(spec: Any, _: Call | None) -> bool:
    """It has a weight of 0 among its own."""
    weights = weights_of(spec)
    return weights is not None and not np.all(np.asarray(weights))


def smoothed_weightless(spec: Any, call: Call | None) -> bool:
    """It has a weight of 0 among its own, and smooths labels."""
    return weightless(spec, call) and smoothed(spec, call)


def weighted(spec: Any, _: Call | None) -> bool:
    """It has weights of its own."""
    return weights_of(spec) is not None


def element_weighted(spec: Any, _: Call | None) -> bool:
    """It has several weights of its own."""
    return np.ndim(weights_of(spec)) > 0


def summed(spec: Any, _: Call | None) -> bool:
    """It is a sum."""
    return bool(spec.reduction == "sum")


def reduced(spec: Any, _: Call | None) -> bool:
    """It is one number."""
    return bool(spec.reduction != "none")


def averaged(spec: Any, _: Call | None) -> bool:
    """It is a mean."""
    return bool(spec.reduction == "mean")


def not_averaged_by_weights(spec: Any, call: Call | None) -> bool:
    """It is no mean that divides by the sum of the weights."""
    return not averaged_by_weights(spec, call)


def averaged_by_weights(spec: Any, _: Call | None) -> bool:
    """It is a mean that divides by the sum of the weights."""
    return bool(spec.reduction == "mean" and spec.divisor == "weights")


def smoothed(spec: Any, _: Call | None) -> bool:
    """It smooths labels."""
    return getattr(spec, "label_smoothing", 0.0) > 0


def ignoring(spec: Any, _: Call | None) -> bool:
    """It ignores a label that is not negative."""
    return max(spec.ignore_index or (-1,)) >= 0


def ignoring_any(spec: Any, _: Call | None) -> bool:
    """It ignores a label."""
    return bool(spec.ignore_index)


def adding_nothing(spec: Any, _: Call | None) -> bool:
    """It neither clips probabilities nor adds anything to them."""
    return bool(spec.epsilon == 0)


def clipped(spec: Any, _: Call | None) -> bool:
    """It clips probabilities, or their logarithms."""
    return bool(spec.epsilon != 0 and not spec.epsilon_added)


def clipped_otherwise(spec: Any, call: Call | None) -> bool:
    """It clips probabilities, and is no function of Keras' that does more wrong there than its gradient."""
    return clipped(spec, call) and (
        call is None or call.library != "keras" or call.backend == "torch"
    )


def clipped_unsmoothed(spec: Any, call: Call | None) -> bool:
    """It clips probabilities, or their logarithms, and smooths no labels."""
    return clipped(spec, call) and not smoothed(spec, call)


def clipped_as_keras(spec: Any, _: Call | None) -> bool:
    """It clips probabilities as Keras does."""
    return bool(spec.epsilon == "keras")


def last_axis(spec: Any, _: Call | None) -> bool:
    """It has the classes on the last axis."""
    return spec.axis in (None, -1)


def renormalizing(spec: Any, _: Call | None) -> bool:
    """It divides probabilities by the sum of their row."""
    return spec.renormalize is not None


def _pos_weights(spec: Any) -> Any:
    return np.ravel(1.0 if spec.pos_weight is None else spec.pos_weight)


def small_pos_weight(spec: Any, _: Call | None) -> bool:
    """It has a pos_weight that is small, and no subnormal number."""
    weights = _pos_weights(spec)
    return bool(np.any((weights >= FORMATS["float32"].tiny) & (weights < _SMALL)))


_SMALL = 2.0**-14
"""A float32 number near 1 keeps less than 3 digits of one below."""


def subnormal_pos_weight(spec: Any, _: Call | None) -> bool:
    """It has a pos_weight that is a subnormal number of float32."""
    weights = _pos_weights(spec)
    return bool(np.any((weights > 0) & (weights < FORMATS["float32"].tiny)))


def several_pos_weights(spec: Any, _: Call | None) -> bool:
    """It has several pos_weights."""
    return bool(_pos_weights(spec).size > 1)


def pos_weight_of_many_axes(spec: Any, call: Call | None) -> bool:
    """Its pos_weight is one number, and written with more than two axes."""
    return spec.pos_weight is not None and (
        call is None or np.ndim(call.arguments.get("pos_weight", 1.0)) > _TWO
    )


_TWO = 2


def of_sklearn(_: Any, call: Call | None) -> bool:
    """It is one of scikit-learn's; other losses make something else of the input that shows the rule."""
    return call is None or call.library == "sklearn"


def sum_of_sklearn(spec: Any, call: Call | None) -> bool:
    """It is one of scikit-learn's, and a sum."""
    return of_sklearn(spec, call) and summed(spec, call)


def of_sklearn_or_onnx(_: Any, call: Call | None) -> bool:
    """It is one of scikit-learn's or of ONNX; other losses round to the dtype that the input is about."""
    return call is None or call.library in ("sklearn", "onnx")


def of_an_object(_: Any, __: Call | None) -> bool:
    """It is an object that holds a dtype, of which its spec and its call tell nothing: `port_report` looks at it."""
    return False


def narrow_weights(spec: Any, call: Call | None) -> bool:
    """It holds weights that float32 rounds, large enough to show; or, in TensorFlow, several in a tensor, which has a dtype."""
    if call is not None and call.library == "tensorflow":
        return isinstance(getattr(spec, "pos_weight", None), tuple)
    held = (
        np.ravel(getattr(spec, name, None) or 0.0) for name in ("element_weights", "pos_weight")
    )
    return any(np.any((np.float32(weights) != weights) & (weights > _SMALL)) for weights in held)
