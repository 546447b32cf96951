"""The quirks about sample weights, and about what a batch must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.quirks import conditions
from unifiedloss.interop.quirks.probes import ROWS, every_class, f32, labels, one_row, two_classes
from unifiedloss.interop.quirks.quirk import PREDICTIONS, Quirk, Rule
from unifiedloss.interop.quirks.tensors import not_finite
from unifiedloss.interop.sides import Input
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import Categorical, Loss


def _class_to_ignore(layout: Layout) -> list[Input]:
    """Dense targets of so few classes that the ignored label is not one of them."""
    if not layout.ignored or layout.ignored < 0 or layout.weights is not None:
        return []
    row = [1.0] + [0.0] * (layout.ignored - 1)
    return [replace(layout, classes=layout.ignored).rows([row], [row])]


def _infinite_weight(layout: Layout) -> list[Input]:
    if layout.elementwise:
        return [layout.elements([0.25, 0.75], [1.0, 1.0], [1.0, np.inf])]
    return [every_class(layout, [1.0, 1.0, np.inf])]


QUIRKS = (
    Quirk(
        Rule("ignored_dense", (CrossEntropyLoss,), "logits", "dense"),
        "With dense targets an ignored label that is no class has no effect.",
        "With dense targets an ignore_index that is not negative is an error.",
        _class_to_ignore,
        lambda x: x.dense,
        when=lambda spec, _: max(spec.ignore_index or (-1,)) >= 0,
    ),
    Quirk(
        Rule("weightless_label", (Categorical,)),
        "The label of a position with sample weight 0 is not read.",
        "Labels are checked also where the sample weight is 0.",
        lambda layout: [
            layout.rows([*ROWS, (0.5, 0.25, 0.25)], [*labels(layout), label], [1.0, 1.0, 1.0, 0.0])
            for label in (-1, layout.classes)
        ],
        lambda x: x.labels and x.w is not None and x.w.shape == x.t.shape and x.bad[x.w == 0].any(),
    ),
    Quirk(
        Rule("weightless_target", (BinaryCrossEntropyLoss,), "probabilities"),
        "The target of a position with sample weight 0 is not read.",
        "Targets are checked also where the sample weight is 0.",
        lambda layout: [layout.elements([0.25, 0.75], [1.5, 1.0], [0.0, 1.0])],
        lambda x: x.w is not None and 0 in x.w and x.bad_target,
    ),
    Quirk(
        Rule("four_axes", (CrossEntropyLoss,), "probabilities", "index"),
        "The gradient has the predictions' shape, whatever the number of axes.",
        "The gradient of predictions with four axes is an error: the memory of its array is not "
        "laid out as PyTorch asks for.",
        lambda layout: (
            [
                Input(
                    np.full((1, 2, 1, layout.classes), 1 / layout.classes, np.float32),
                    np.zeros((1, 2, 1), np.int64),
                )
            ]
            if layout.axis == -1
            else []
        ),
        lambda x: x.p.ndim == 4,
        when=lambda spec, _: spec.axis in (None, -1),
    ),
    Quirk(
        Rule("negative_weight", (Loss,)),
        'Under divisor="weights" a negative sample weight is an error (NaN under tracing).',
        "Sample weights may be negative, and so may their sum.",
        lambda layout: [
            layout.elements([0.25, 0.75], [1.0, 1.0], [3.0, -1.0])
            if layout.elementwise
            else every_class(layout, [3.0, -1.0, 1.0])
        ],
        lambda x: x.w is not None and (x.w < 0).any(),
        when=conditions.averaged_by_weights,
    ),
    Quirk(
        Rule("infinite_weight", (BinaryCrossEntropyLoss,), of="gradient"),
        "An infinite sample weight makes the gradient infinite.",
        "An infinite sample weight makes the gradient NaN.",
        _infinite_weight,
        lambda x: x.w is not None and not_finite(x.w),
        when=lambda spec, call: not conditions.averaged_by_weights(spec, call),
    ),
    Quirk(
        Rule("infinite_weight", (MeanSquaredError,), of="gradient"),
        "An infinite sample weight makes the mean NaN.",
        "An infinite sample weight is an error.",
        _infinite_weight,
        lambda x: x.w is not None and not_finite(x.w),
    ),
    *(
        Quirk(
            Rule("infinite_weight", (CrossEntropyLoss,), predictions, of="gradient"),
            "An infinite sample weight makes the gradient infinite.",
            {
                "* error": "An infinite sample weight is an error.",
                "*": "An infinite sample weight makes the gradient NaN.",
            },
            _infinite_weight,
            lambda x: x.w is not None and not_finite(x.w),
        )
        for predictions in PREDICTIONS
    ),
    Quirk(
        Rule("weight_of_ignored", (CrossEntropyLoss,), kind="index"),
        "The sample weight of an ignored label is not read.",
        "0 times NaN is NaN: a sample weight that is NaN makes the loss NaN, also that of an "
        "ignored label.",
        lambda layout: [
            layout.rows([(0.5, 0.25, 0.25), (0.25, 0.5, 0.25)], [0, label], [1.0, np.nan])
            for label in [layout.ignored]
            if label is not None
        ],
        lambda x: x.labels and x.w is not None and not_finite(x.w),
        when=lambda spec, _: spec.ignore_index,
    ),
    Quirk(
        Rule("label_order", (CrossEntropyLoss,), "probabilities"),
        "Labels are the numbers of columns.",
        "Labels stand for columns in their sorted order: 1 and 2, or -1 and 1, are the first and "
        "the second.",
        lambda layout: [two_classes(layout, targets) for targets in ([1, 2], [-1, 1])],
        lambda x: x.bad_label,
        when=conditions.of_sklearn,
    ),
    Quirk(
        Rule("binary_probabilities", (CrossEntropyLoss,), "probabilities"),
        "There is a probability for every class.",
        "One probability for each example is that of the second of two classes.",
        lambda _: [Input(p, np.array([0, 1])) for p in (f32(0.125, 0.75), f32([0.125], [0.75]))],
        lambda x: x.p.ndim == 1 or x.p.shape[-1] == 1,
        when=conditions.of_sklearn,
    ),
    Quirk(
        Rule("one_example", (Categorical,), kind="index"),
        "Predictions with one axis are one example, also under axis=1.",
        {"* error": "Predictions with one axis are an error."},
        lambda layout: [Input(one_row(layout, 0).predictions.reshape(-1), np.array(0))],
        lambda x: x.p.ndim == 1,
    ),
    Quirk(
        Rule("number_of_axes", (MeanSquaredError,)),
        "Predictions may have any number of axes.",
        "Predictions have one or two axes.",
        lambda _: [
            Input(np.full(shape, 0.25, np.float32), np.zeros(shape, np.float32))
            for shape in ((1, 1, 1), ())
        ],
        lambda x: x.p.ndim not in (1, 2),
        when=conditions.of_sklearn,
    ),
    Quirk(
        Rule("missing_labels", (CrossEntropyLoss,)),
        "A batch need not hold every class.",
        "A batch in which not every class occurs is an error, unless labels says which there are.",
        lambda layout: [layout.rows([(0.5, 0.25, 0.25)], [0])],
        lambda x: x.labels and np.unique(x.t).size < x.k,
    ),
)
"""The quirks about sample weights, and about what a batch must hold."""
