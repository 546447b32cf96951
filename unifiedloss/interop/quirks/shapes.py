"""The quirks about shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unifiedloss.interop.inputs import Layout, weights_of
from unifiedloss.interop.quirks import conditions
from unifiedloss.interop.quirks.probes import every_class, f32, one_row, sequences
from unifiedloss.interop.quirks.quirk import PREDICTIONS, Quirk, Rule
from unifiedloss.interop.sides import Input
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.spec import Categorical, Elementwise

_SQUEEZED = "An axis of length 1 at the end is squeezed or added."
_WHEN_EMPTY = "An empty batch has one mean, which on_empty says."


def _nothing(layout: Layout) -> Input:
    """An empty batch with a class axis."""
    return Input(np.zeros((0, layout.classes), np.float32), np.zeros(0, np.int64))


def _one_row_for_two(layout: Layout) -> list[Input]:
    """One dense row for two rows of predictions, and targets without the axis of one class."""
    x = layout.rows([(2.0, 1.0, 0.0), (0.0, 1.0, 2.0)], [[1.0, 0.0, 0.0]] * 2)
    targets = x.targets.take([0], axis=x.targets.shape.index(2))
    return [Input(x.predictions, targets), Input(f32([0.5], [0.5]), f32(1.0, 1.0))]


def _unaligned_weights(layout: Layout) -> list[Input]:
    """Sample weights of shape (2, 1), and a weight for every element or one for all of a batch."""
    if not layout.elementwise:
        batch = replace(every_class(layout), sample_weight=np.array(2.0, np.float32))
        return [*sequences(layout, [1.0], [3.0]), batch]
    steps = f32([[0.25]] * 3, [[0.5]] * 3)
    elements = f32([0.25, 0.5], [0.75, 0.5])
    return [
        Input(steps, 0 * steps, f32([1.0], [3.0])),
        Input(elements, 0 * elements, f32([1.0, 3.0], [2.0, 1.0])),
    ]


QUIRKS = (
    Quirk(
        Rule("shapes", (Elementwise,)),
        "Predictions and targets have one shape; nothing is squeezed or broadcast.",
        {
            "keras *": _SQUEEZED,
            "sklearn *": _SQUEEZED,
            "*": "Shapes broadcast: (2, 1) against (2,) is (2, 2).",
        },
        lambda _: [Input(f32([0.25], [0.75]), f32(0.25, 0.75))],
        lambda x: not x.dense,
    ),
    Quirk(
        Rule("label_shape", (Categorical,), kind="index"),
        "There is one label per position; nothing is squeezed or broadcast.",
        {
            "onnx *": "Fewer labels than rows are accepted, and only their rows count.",
            "*": "Fewer labels than rows broadcast.",
        },
        lambda layout: [
            Input(
                layout.rows([(2.0, 1.0, 0.0), (0.0, 1.0, 2.0)], [0, 0]).predictions,
                np.zeros(1, np.int64),
            )
        ],
        lambda x: x.labels and x.t.shape != x.positions,
    ),
    Quirk(
        Rule("dense_shape", (Categorical,), kind="dense"),
        "Dense targets have the predictions' shape; nothing is broadcast.",
        {
            "keras *": _SQUEEZED,
            "*": "Dense targets broadcast: one row is that of every row of the predictions.",
        },
        _one_row_for_two,
        lambda x: not x.dense and (x.t.dtype.kind == "f" or x.t.shape != x.positions),
    ),
    Quirk(
        Rule("label_column", (Categorical,), kind="index"),
        "Labels have the predictions' shape without the class axis.",
        "An axis of length 1 at the end of the labels is squeezed.",
        lambda layout: [
            Input(one_row(layout, 0).predictions, np.zeros((1, 1), np.int64)),
            Input(every_class(layout).predictions, every_class(layout).targets[..., None]),
        ],
        lambda x: x.labels and x.t.ndim == x.p.ndim,
    ),
    Quirk(
        Rule("one_axis", (Elementwise,)),
        "An average over the last axis needs an axis that is left.",
        "Predictions with one axis are averaged to one number before they are weighted.",
        lambda _: [
            Input(f32(0.25, 0.75), f32(1.0, 1.0), weight) for weight in (None, f32(1.0, 3.0))
        ],
        lambda x: x.p.ndim <= 1,
    ),
    Quirk(
        Rule("weight_alignment", (CrossEntropyLoss, Elementwise)),
        "Sample weights align to the first axes: one number per example is repeated over its "
        "steps.",
        {
            "sklearn *": "Predictions have two axes at most.",
            "*": "Sample weights broadcast to the last axes: one number per example scales the "
            "steps.",
        },
        lambda layout: (
            [
                Input(steps, 0 * steps, f32(1.0, 3.0))
                for steps in [f32([[0.25], [0.25]], [[0.5], [0.5]])]
            ]
            if layout.elementwise
            else sequences(layout, 1.0, 3.0)
        ),
        lambda x: x.w is not None and x.w.ndim < len(x.positions),
    ),
    Quirk(
        Rule("weight_shape", (CrossEntropyLoss, Elementwise)),
        "Sample weights have the shape of the per-position loss or a leading part of it.",
        {
            "sklearn *": "Sample weights have one axis: one for each example.",
            "*": "Sample weights broadcast, axes of length 1 included.",
        },
        _unaligned_weights,
        lambda x: x.unaligned,
    ),
    Quirk(
        Rule("empty_batch", (Categorical,)),
        _WHEN_EMPTY,
        {
            "keras *": "An empty batch gives an empty array.",
            "onnx error *": "An empty batch fails; rows without positions give 0.",
            "onnx 0 *": "An empty batch gives 0.",
        },
        lambda layout: [
            _nothing(layout),
            *(
                [Input(np.zeros((2, layout.classes, 0), np.float32), np.zeros((2, 0), np.int64))]
                if layout.axis in (-1, 1)
                else []
            ),
        ],
        lambda x: not x.p.size or (x.w is not None and not x.w.any()),
    ),
    Quirk(
        Rule("no_elements", (Elementwise,)),
        _WHEN_EMPTY,
        "An empty batch gives an empty array.",
        lambda _: [Input(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32))],
        lambda x: not x.p.size,
    ),
    Quirk(
        Rule("empty_batch", (CrossEntropyLoss,), "probabilities", case="sum"),
        "An empty batch, or one whose sample weights are all 0, has the sum 0.",
        "An empty batch, or one whose sample weights are all 0, is an error.",
        lambda layout: [_nothing(layout), every_class(layout, [0.0, 0.0, 0.0])],
        lambda x: not x.p.size or (x.w is not None and not x.w.any()),
        when=lambda spec, call: conditions.of_sklearn(spec, call) and spec.reduction == "sum",
    ),
    Quirk(
        Rule("empty_last_axis", (Elementwise,)),
        "An average over the last axis needs elements.",
        "An average over no elements is NaN.",
        lambda _: [Input(np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32))],
        lambda x: x.p.ndim and x.p.shape[-1] == 0,
    ),
    *(
        Quirk(
            Rule("no_classes", (CrossEntropyLoss,), predictions),
            "Predictions without classes are an error.",
            "Predictions without classes give 0, NaN or an infinite loss.",
            lambda _: [
                Input(np.zeros((1, 0), np.float32), targets)
                for targets in (np.zeros((1, 0), np.float32), np.zeros(1, np.int64))
            ],
            lambda x: x.k == 0,
        )
        for predictions in PREDICTIONS
    ),
    Quirk(
        Rule("class_weight_count", (Categorical,)),
        "There is one class weight for each class.",
        "There may be more class weights than classes.",
        lambda _: [Input(f32([0.0]), np.zeros(1, np.int64))],
        lambda x: np.size(weights_of(x.spec)) != x.k,
        when=conditions.weighted,
    ),
    Quirk(
        Rule("element_weight_shape", (Elementwise,)),
        "Weights of elements align to the last axes, and are repeated over the others.",
        "Weights of elements have the predictions' shape.",
        lambda layout: [
            Input(np.full((2, *shape), 0.25, np.float32), np.ones((2, *shape), np.float32))
            for shape in [np.shape(layout.weights)]
            if shape
        ],
        lambda x: np.shape(weights_of(x.spec)) != x.p.shape,
        when=lambda spec, _: np.ndim(weights_of(spec)) > 0,
    ),
    Quirk(
        Rule("pos_weight_shape", (BinaryCrossEntropyLoss,), "logits"),
        "There is one pos_weight for each entry of its axis.",
        "Predictions broadcast to the pos_weights.",
        lambda _: [Input(f32([0.5]), f32([1.0]))],
        lambda _: True,
        when=lambda spec, _: conditions.pos_weights(spec).size > 1,
    ),
    Quirk(
        Rule("pos_weight_axes", (BinaryCrossEntropyLoss,), "logits", of="shape"),
        "The losses have the predictions' shape.",
        "A pos_weight with more axes than the predictions gives the losses as many.",
        lambda layout: [layout.elements([1.0], [1.0])],
        lambda _: True,
        # One number, written with more than two axes.
        when=lambda spec, call: (
            spec.pos_weight is not None
            and (call is None or np.ndim(call.arguments.get("pos_weight", 1.0)) > 2)
        ),
    ),
)
"""The quirks about shapes."""
