"""The quirks about the values of predictions, and about positions that are not read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.quirks import conditions
from unifiedloss.interop.quirks.probes import NAN_ROW, ROWS, f32, labels, one_row, weightless_class
from unifiedloss.interop.quirks.quirk import PREDICTIONS, Quirk, Rule
from unifiedloss.interop.quirks.tensors import LARGE_GAP, NEAR_BOUND, TINY, near, not_finite
from unifiedloss.interop.sides import Input
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Categorical, Elementwise, Loss

_LARGE_LOGIT = 1e3
"""Above this magnitude the "offset" quirk may cost digits."""

_FLOAT64 = {
    "tensorflow *": "The losses are rounded to float32, though float64 is returned.",
    "optax *": "Everything is float32, unless jax_enable_x64 is set.",
    "keras *": "A function of Keras' works in float32.",
}

_HIDDEN_LOGITS = "Where predictions came from is not looked at."

_OWN_ACTIVATIONS: tuple[tuple[type[Loss], str], ...] = (
    (CrossEntropyLoss, "softmax"),
    (BinaryCrossEntropyLoss, "sigmoid"),
)
"""The losses for which Keras looks for hidden logits, each with the activation that it applies."""

_WEIGHT_DTYPE = "The weights of a spec are computed with in the dtype of the predictions."


def _first_row(layout: Layout, *row: float) -> Input:
    """A batch of all classes with this row in place of the first one."""
    return layout.rows([row, *ROWS[1:]], labels(layout))


def _switched_off(layout: Layout) -> list[Input]:
    """NaN in an element or in a row with the sample weight 0."""
    if layout.elementwise:
        return [Input(f32([0.5], [np.nan]), f32([0.0], [0.0]), f32(1.0, 0.0))]
    return [
        layout.rows([ROWS[0], NAN_ROW], [0, 0], [1.0, 0.0]),
        layout.rows([*ROWS, NAN_ROW], [*labels(layout), 0], [1.0, 1.0, 1.0, 0.0]),
    ]


def _weightless_class(layout: Layout) -> list[Input]:
    """A row of NaN whose class has the weight 0."""
    found = weightless_class(layout)
    return [layout.rows([(2.0, 1.0, 0.0), NAN_ROW], found)] if found else []


def _infinite_class(layout: Layout) -> list[Input]:
    """A label whose class has the weight 0 and the logit -inf."""
    found = weightless_class(layout)
    if found is None:
        return []
    row = [-np.inf if c == found[1] else 0.0 for c in range(len(layout.weights))]
    return [layout.rows([(2.0, 1.0, 0.0), row], found)]


def _infinite_other_class(layout: Layout) -> list[Input]:
    """A logit of -inf in another class than the label's, with the class weight 0."""
    found = weightless_class(layout)
    if found is None:
        return []
    row = [{found[1]: -np.inf, found[0]: 2.0}.get(c, 0.0) for c in range(len(layout.weights))]
    return [layout.rows([row], found[:1])]


def _weightless_elements(layout: Layout, number: float) -> list[Input]:
    """Elements of 0.25, and this number in those whose weight is 0."""
    weights = np.asarray(layout.weights)
    predictions = np.where(weights == 0, number, 0.25).astype(np.float32)
    return [Input(predictions, np.ones_like(predictions))]


def _behind(way: str, where: str, layout: Layout) -> list[Input]:
    """Predictions that the loss's own activation computed from large logits."""
    if layout.elementwise:
        x, origin, activation = Input(f32([1.0]), f32([0.0])), f32([100.0]), "sigmoid([[100]])"
    else:
        x, origin = Input(f32([1.0, 0.0]), np.array([1])), f32([100.0, 0.0])
        activation = "softmax([[100, 0]])"
    note = f"the predictions come from {where}{activation}"
    return [replace(x, way=way, origin=origin, note=note)]


QUIRKS = (
    Quirk(
        Rule("zero_times_infinity", (Categorical,), "logits", "dense"),
        "0 log 0 = 0: a class with the logit -inf and the target 0 adds nothing.",
        "0 times infinity is NaN: a class with the logit -inf and the target 0 makes the loss NaN, "
        "where targets are dense.",
        lambda layout: [layout.rows([(2.0, -np.inf, 0.0)], [[1.0, 0.0, 0.0]])],
        lambda x: x.minus_infinity,
    ),
    Quirk(
        Rule("zero_times_infinity", (CrossEntropyLoss,), "logits", "index", case="labels"),
        "0 log 0 = 0: a class with the logit -inf and the target 0 adds nothing.",
        "0 times infinity is NaN: labels become one-hot rows, and a logit of -inf in another class "
        "makes the loss NaN.",
        lambda layout: [layout.rows([(2.0, -np.inf, 0.0)], [0])],
        lambda x: x.minus_infinity,
    ),
    Quirk(
        Rule("infinite_logit", (BinaryCrossEntropyLoss,), "logits"),
        "At an infinite logit the loss is 0 where the label agrees, and infinite where not.",
        "An infinite logit makes the loss NaN.",
        lambda layout: [layout.elements([np.inf], [target]) for target in (1.0, 0.0)],
        lambda x: np.isinf(x.p.astype(np.float64)).any(),
    ),
    Quirk(
        Rule("plus_infinity", (CrossEntropyLoss,), "logits", of="gradient"),
        "A row with the logit +inf is NaN.",
        "A logit of +inf makes the loss of the other classes infinite, and their gradient finite.",
        lambda layout: [layout.rows([(np.inf, 0.0, 0.0)], [label]) for label in (1, 0)],
        lambda x: np.isposinf(x.p.astype(np.float64)).any(),
    ),
    Quirk(
        Rule("offset", (CrossEntropyLoss,), "logits"),
        "An offset common to all logits of a row changes nothing.",
        "The row's largest logit is subtracted from one term alone, which costs digits of large "
        "ones (optax#1792).",
        lambda layout: [layout.rows([(100001.0, 100000.0, 0.0)], [0])],
        lambda x: x.largest > _LARGE_LOGIT,
    ),
    Quirk(
        Rule("confident_row", (CrossEntropyLoss,), "logits", of="digits"),
        "A confident row keeps its loss where the backend can hold it: NumPy and exact rounding "
        "do, the other kernels give 0.",
        "The loss of a confident row is 0: the logarithm of 1 + x is that of 1.",
        lambda layout: [layout.rows([(18.0, 0.0, 0.0)], [0])],
        lambda x: x.large_gap,
    ),
    Quirk(
        Rule("half_rounding", (CrossEntropyLoss,), "logits", of="digits"),
        "Half types are computed in float32 and rounded once; means and sums are float32.",
        "The log-softmax is rounded to the half type before the loss is formed.",
        lambda layout: [layout.rows([(1.0, 6.0, -1.0)], [1], dtype="float16")],
        lambda x: x.half,
    ),
    Quirk(
        Rule("half_mean", (MeanSquaredError,)),
        "Half types are computed in float32; means and sums are float32.",
        {
            "optax *": "The square of a half type overflows before it is halved.",
            "*": "Means and sums have the dtype of the predictions, and overflow in it.",
        },
        lambda layout: [layout.elements([300.0], [0.0], dtype="float16")],
        lambda x: x.half,
    ),
    Quirk(
        Rule("float64", (Categorical,), of="digits", digits=1e-9),
        "float64 predictions are computed in float64.",
        _FLOAT64,
        lambda layout: [one_row(layout, 0, "float64")],
        lambda x: x.p.dtype == np.float64,
    ),
    Quirk(
        Rule("float64_elements", (Elementwise,), of="digits", digits=1e-9),
        "float64 predictions are computed in float64.",
        _FLOAT64,
        lambda layout: [layout.elements([0.3], [1.0], dtype="float64")],
        lambda x: x.p.dtype == np.float64,
    ),
    Quirk(
        Rule("sign_of_zero", (Categorical,), "logits", of="sign"),
        "A loss of 0 is +0.",
        "A loss of 0 can be -0.",
        lambda layout: [layout.rows([(200.0, 0.0, 0.0)], [y]) for y in ([1.0, 0.0, 0.0], 0)],
        None,
    ),
    Quirk(
        Rule("probability_range", (BinaryCrossEntropyLoss,), "probabilities"),
        "A number outside [0, 1] is no probability: an error (NaN under tracing).",
        {
            "* number": "Numbers outside [0, 1] are clipped into it.",
            "* nan": "Numbers outside [0, 1] are taken as they are.",
        },
        lambda layout: [layout.elements([1.5], [1.0])],
        lambda x: x.bad_probability,
    ),
    Quirk(
        Rule("probability_range", (CrossEntropyLoss,), "probabilities"),
        "A number outside [0, 1] that is read is no probability: an error (NaN under tracing). "
        "Renormalizing reads whole rows.",
        {
            "sklearn *": "Every probability is checked, also one that is not read.",
            "* nan": "Numbers outside [0, 1] are divided by the sum of their row, whatever it is, "
            "and clipped.",
            "*": "Numbers outside [0, 1] are clipped into it.",
        },
        lambda layout: [
            *(layout.rows([(0.5, number, 0.7)], [0]) for number in (-0.2, np.inf)),
            _first_row(layout, 0.5, -0.2, 0.7),
            # 0 / 0 is NaN if the row is not clipped before it is divided.
            layout.rows([(0.0, -0.5, 0.5)], [0]),
        ],
        lambda x: x.bad_probability,
    ),
    Quirk(
        Rule("rounded_probability", (BinaryCrossEntropyLoss, CrossEntropyLoss), "probabilities"),
        "A probability beyond 1 by no more than rounding counts as 1.",
        {
            "* error": "A probability beyond 1 by the least is an error.",
            "* nan": "A probability beyond 1 is taken as it is: the logarithm of a negative number "
            "is NaN.",
        },
        lambda layout: [
            layout.elements([1.0 + 2.0**-23], [1.0])
            if layout.elementwise
            else _first_row(layout, 1.0 + 2.0**-23, 0.0, 0.0)
        ],
        lambda x: x.bad_probability,
    ),
    Quirk(
        Rule("nan_probability", (BinaryCrossEntropyLoss,), "probabilities", of="gradient"),
        "A probability or a target that is NaN makes the loss NaN, and its gradient.",
        {
            "* error *": "NaN is an error.",
            "*": "Clipping passes no gradient on to a probability that is NaN: it is 0.",
        },
        lambda layout: [layout.elements([p], [t]) for p, t in ((np.nan, 1.0), (0.25, np.nan))],
        lambda x: x.nan,
    ),
    Quirk(
        Rule("nan_probability", (CrossEntropyLoss,), "probabilities", of="gradient"),
        "A probability that is NaN makes the loss NaN where it is read, and its gradient.",
        {
            "* error": "NaN is an error wherever it is.",
            "*": "Clipping passes no gradient on to a probability that is NaN: it is 0.",
        },
        lambda layout: [_first_row(layout, np.nan, 0.5, 0.5)],
        lambda x: x.nan,
    ),
    Quirk(
        Rule("not_finite", (MeanSquaredError,)),
        "Numbers that are not finite follow the formula.",
        "Infinity and NaN are errors.",
        lambda layout: [layout.elements([np.inf], [1.0])],
        lambda x: x.not_finite,
    ),
    Quirk(
        Rule("subnormal", (BinaryCrossEntropyLoss,), "probabilities"),
        "Probabilities below the smallest normal number count as 0.",
        "Subnormal numbers have their own logarithms.",
        lambda layout: [layout.elements([1e-40], [1.0])],
        lambda x: x.subnormal,
    ),
    Quirk(
        Rule("subnormal", (CrossEntropyLoss,), "probabilities"),
        "Probabilities below the smallest normal number count as 0, and a row of zeros cannot be "
        "renormalized: it is NaN.",
        "A row is divided by its sum, also where that is a subnormal number.",
        lambda layout: [layout.rows([(1e-40, 0.0, 0.0)], [0])],
        lambda x: x.subnormal,
        when=lambda spec, _: spec.renormalize is not None,
    ),
    Quirk(
        Rule("zero_times_log", (BinaryCrossEntropyLoss,), "probabilities"),
        "0 log 0 = 0, also where nothing is added to a probability.",
        "0 times infinity is NaN: with epsilon=0 a probability of 0 or 1 makes the loss NaN, "
        "whatever the target is.",
        lambda layout: [layout.elements([0.0], [0.0])],
        lambda x: near(x.p, (0.0, 1.0), TINY),
        when=lambda spec, _: spec.epsilon == 0,
    ),
    Quirk(
        Rule("confident_element", (BinaryCrossEntropyLoss,), "logits", of="digits"),
        "A logit far on the side of its target keeps its loss.",
        "The loss of a logit far below 0, whose target is 0, is 0: it is a difference of two "
        "numbers that round to one.",
        lambda layout: [layout.elements([z], [t]) for z, t in ((-20.0, 0.0), (20.0, 1.0))],
        lambda x: x.largest > LARGE_GAP,
    ),
    Quirk(
        Rule("small_pos_weight", (BinaryCrossEntropyLoss,), "logits", of="digits"),
        "A small pos_weight keeps its digits.",
        "The factor of the positive term is 1 + (q - 1) t: a pos_weight q that is small beside 1 "
        "loses its digits, or is 0.",
        lambda layout: [layout.elements([1.0], [1.0])],
        lambda _: True,
        when=conditions.small_pos_weight,
    ),
    Quirk(
        Rule("subnormal_weight", (BinaryCrossEntropyLoss,), "logits", of="gradient_digits"),
        "A pos_weight below the smallest normal number counts as 0.",
        "A subnormal pos_weight has a gradient.",
        lambda layout: [layout.elements([1.0], [1.0])],
        lambda _: True,
        when=conditions.subnormal_pos_weight,
    ),
    Quirk(
        Rule("gradient_at_zero", (BinaryCrossEntropyLoss,), "logits", of="gradient_only"),
        "The gradient at the logit 0 is (1 - t' - q t') / 2.",
        "The gradient at the logit 0 is 1 - t, on one side of the true one: the parts of the "
        "formula have kinks there.",
        lambda layout: [layout.elements([0.0], [0.0])],
        lambda x: near(x.p, (0.0,), TINY),
    ),
    Quirk(
        Rule("clip_tie", (BinaryCrossEntropyLoss,), "probabilities", of="gradient_only"),
        "Exactly on the bound nothing is clipped, and the gradient is that of the formula.",
        "Exactly on the bound the gradient is half of the formula's.",
        lambda layout: [layout.elements([1e-7], [1.0])],
        lambda x: near(x.p, (0.0, 1.0), NEAR_BOUND),
    ),
    *(
        Quirk(
            Rule("hidden_logits", (loss,), predictions),
            _HIDDEN_LOGITS,
            "Predictions that came from a softmax or a sigmoid of Keras (of keras.ops, an "
            "activation or a layer), eagerly or in a tf.function, are set aside for the logits "
            f"that they came from, and the loss applies its own {own} to these.",
            partial(_behind, "run_behind_keras", "keras.ops."),
            lambda x: x.hidden_logits,
        )
        for loss, own in _OWN_ACTIVATIONS
        for predictions in PREDICTIONS
    ),
    *(
        Quirk(
            Rule("hidden_logits_in_a_graph", (loss,), predictions),
            _HIDDEN_LOGITS,
            f"In a tf.function, predictions that TensorFlow's own {own} gave, such as {name}, are "
            "set aside for the logits that they came from.",
            partial(_behind, "run_behind_operation", "a tf.function with "),
            None,
        )
        for (loss, own), name in zip(_OWN_ACTIVATIONS, ("tf.nn.softmax", "tf.sigmoid"), strict=True)
        for predictions in PREDICTIONS
    ),
    Quirk(
        Rule("weight_dtype", (Categorical,), kind="index"),
        _WEIGHT_DTYPE,
        "Class weights keep the dtype they were made in, float32 by default: with labels, "
        "predictions of another are an error.",
        lambda layout: [one_row(layout, 0, "float64")],
        None,
        when=conditions.weighted,
    ),
    Quirk(
        Rule("weight_dtype", (Categorical,), kind="index", case="models"),
        _WEIGHT_DTYPE,
        "A model keeps the dtype it was made for, float32 by default, in weights and inputs: "
        "predictions of another are an error.",
        lambda layout: [one_row(layout, 0, "float64")],
        None,
        # Never: an object holds the dtype, and only `port_report` has the object. So no probe can
        # show it, and no record can say who has it.
        when=lambda _, __: False,
        by_hand=lambda call: call.library == "onnx",
    ),
    Quirk(
        Rule("weight_dtype", (Elementwise,)),
        _WEIGHT_DTYPE,
        {
            "* error": "A tensor of positive weights keeps its dtype: float32 beside logits of "
            "another is an error.",
            "*": "The weights of a float32 loss are rounded to float32 whatever the predictions "
            "are.",
        },
        lambda layout: [
            Input(np.full(shape, 0.3), np.ones(shape))
            for shape in [
                np.shape(layout.weights) if layout.weights is not None else layout.tail or (1,)
            ]
        ],
        None,
        when=conditions.narrow_weights,
    ),
    Quirk(
        Rule("nan_in_ignored", (Categorical,), of="gradient_only"),
        "Nothing in an ignored position is read: its gradient is 0 even where it holds NaN.",
        "An ignored position that holds NaN has the gradient NaN.",
        lambda layout: [
            layout.rows([(2.0, 1.0, 0.0), NAN_ROW], [0, label])
            for label in [layout.ignored]
            if label is not None
        ],
        lambda x: x.labels and not_finite(x.p) and np.isin(x.t, x.spec.ignore_index or ()).any(),
    ),
    Quirk(
        Rule("nan_in_weightless", (CrossEntropyLoss, Elementwise)),
        "Nothing in a position with sample weight 0 is read.",
        {
            "sklearn *": "NaN is an error wherever it is.",
            "*": "0 times NaN is NaN: a position with sample weight 0 that holds NaN makes the "
            "loss NaN.",
        },
        _switched_off,
        lambda x: x.switched_off and x.not_finite,
    ),
    Quirk(
        Rule("nan_in_weightless", (NegativeLogLikelihoodLoss,), kind="index"),
        "The log-probability of a class with weight 0 is not read.",
        "0 times NaN is NaN: the log-probability of a class with weight 0 is read all the same.",
        _weightless_class,
        lambda x: x.switched_off and x.not_finite,
        when=conditions.weightless,
    ),
    Quirk(
        Rule("nan_in_weightless", (Elementwise,), case="elements"),
        "Nothing in an element with weight 0 is read.",
        "0 times NaN is NaN: an element with weight 0 is read all the same.",
        lambda layout: _weightless_elements(layout, np.nan) if np.any(layout.weights) else [],
        lambda x: x.switched_off and x.not_finite,
        when=conditions.weightless,
    ),
    Quirk(
        Rule("weightless_infinity", (CrossEntropyLoss,), "logits", "index"),
        "A label whose class has the weight 0 adds nothing, also where its logit is -inf.",
        "0 times infinity is NaN: a label whose class has the weight 0 and the logit -inf makes "
        "the loss NaN.",
        _infinite_class,
        lambda x: x.minus_infinity,
        when=conditions.weightless,
    ),
    Quirk(
        Rule("weightless_infinity", (CrossEntropyLoss,), "logits", "index", case="smoothing"),
        "A class with the weight 0 adds nothing to the smoothing, also where its logit is -inf.",
        "0 times infinity is NaN: a class with the weight 0 and the logit -inf makes the loss NaN, "
        "where labels are smoothed.",
        _infinite_other_class,
        lambda x: x.minus_infinity,
        when=lambda spec, call: (
            conditions.weightless(spec, call) and conditions.smoothed(spec, call)
        ),
    ),
    Quirk(
        Rule("weightless_mean", (Categorical,), kind="index", of="gradient_only"),
        "A mean with nothing to divide by has the gradient 0.",
        "A mean of positions whose classes have the weight 0 is 0 / 0, and its gradient NaN.",
        lambda layout: [one_row(layout, layout.weights.index(0.0))],
        lambda x: x.nothing_weighted,
        when=conditions.weightless,
    ),
    Quirk(
        Rule("weightless_mean", (Elementwise,), of="gradient_only"),
        "A mean with nothing to divide by has the gradient 0.",
        "A mean whose weights are 0 is 0 / 0, and its gradient NaN.",
        lambda layout: [] if np.any(layout.weights) else _weightless_elements(layout, 0.25),
        lambda x: x.nothing_weighted,
        when=conditions.weightless,
    ),
)
"""The quirks about the values of predictions, and about positions that are not read."""
