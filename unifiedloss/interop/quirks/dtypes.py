"""The quirks about kinds of targets and about dtypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unifiedloss.floats import HALF_TYPES
from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.quirks import conditions
from unifiedloss.interop.quirks.probes import (
    as_given,
    bfloat16,
    every_class,
    labels,
    one_row,
    two_classes,
)
from unifiedloss.interop.quirks.quirk import Quirk, Rule
from unifiedloss.interop.quirks.tensors import NEAR_BOUND, Tensors, near
from unifiedloss.interop.sides import Input
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Categorical, Elementwise, Loss

_RESULT = "The result has the predictions' dtype; a mean or a sum of half types is float32."
_RESULTS = {
    "sklearn *": "The result is a Python float.",
    "* float64 float32 float16": "The result has the targets' dtype.",
    "* float16 float32": "The result has the predictions' dtype, and so has a mean or a sum of "
    "half types.",
    "*": "The result has the wider of both dtypes, the predictions' and the targets'.",
}
_IN_FLOAT32 = "Half types are computed in float32; means and sums are float32."
_ROUNDED_ONCE = "Half types are computed in float32 and rounded once; means and sums are float32."
_SUM = "A sum of half types is float32."
_OVERFLOWING_SUM = "A sum of half types has their dtype, and overflows in it."
_OVERFLOWING_MEAN = "A mean of half types overflows where their sum does."
_LABEL_TYPES = {
    "keras *": "Labels of uint64 are an error.",
    "torch *": "Labels are int64 or uint8; other integers are an error.",
    "*": "Labels are int32 or int64; other integers are an error.",
}


def _overflowing_rows(layout: Layout) -> list[Input]:
    """Two float16 rows whose losses are finite in float16, and whose sum is not."""
    return [layout.rows([(-40000.0, 20.0, 0.0)] * 2, [0, 0], dtype="float16")]


def _certain(layout: Layout) -> list[Input]:
    """float16 probabilities equal to their targets, 0 and 1."""
    return [layout.elements([p], [p], dtype="float16") for p in (0.0, 1.0)]


def _with_targets(layout: Layout, *dtypes: str) -> list[Input]:
    """Inputs whose predictions and targets have these dtypes, such as "float16 float32"."""
    made = []
    for predictions, targets in map(str.split, dtypes):
        if layout.elementwise:
            x = layout.elements([0.25], [1.0], dtype=predictions)
        else:
            x = layout.rows([(0.5, 0.25, 0.25)], [[0.5, 0.25, 0.25]], dtype=predictions)
        made.append(as_given(x, targets))
    return made


def _integers(layout: Layout) -> list[Input]:
    """Integer predictions."""
    if layout.elementwise:
        x = layout.elements([1.0, 0.0], [1.0, 0.5])
    else:
        x = layout.rows(np.eye(3).tolist(), labels(layout))
    return [replace(x, predictions=x.predictions.astype(np.int64))]


def _narrow_targets(x: Tensors) -> bool:
    return x.t.dtype.name in HALF_TYPES or x.t.dtype.itemsize < x.p.dtype.itemsize


QUIRKS = (
    Quirk(
        Rule("dense_targets", (Categorical,), kind="index"),
        "Dense targets are taken as well as class indices.",
        {
            "sklearn *": "Dense targets are an error, unless they are one-hot.",
            "*": "Dense targets are an error.",
        },
        lambda layout: _with_targets(layout, "float32 float32"),
        lambda x: x.dense and x.t.dtype.kind == "f",
    ),
    Quirk(
        Rule("index_targets", (Categorical,), kind="dense"),
        "Class indices are taken as well as dense targets.",
        {
            "* error": "Class indices are an error.",
            "*": "Class indices are taken for dense targets, and broadcast where their shape "
            "allows it.",
        },
        lambda layout: [as_given(layout.rows([(0.5, 0.25, 0.25)], [1]), "int64")],
        lambda x: x.labels,
    ),
    Quirk(
        Rule("label_types", (Categorical,), kind="index"),
        "Labels may have any integer dtype.",
        _LABEL_TYPES,
        lambda layout: [as_given(every_class(layout), dtype) for dtype in ("uint8", "int32")],
        lambda x: x.labels and x.t.dtype != np.int64,
    ),
    Quirk(
        Rule("label_types", (Categorical,), kind="index", case="uint64"),
        "Labels may have any integer dtype.",
        _LABEL_TYPES,
        lambda layout: [as_given(every_class(layout), "uint64")],
        lambda x: x.labels and x.t.dtype != np.int64,
    ),
    Quirk(
        Rule("bool_labels", (Categorical,), kind="index"),
        "Bools are no labels.",
        "Bools are the labels 0 and 1.",
        lambda layout: [as_given(two_classes(layout, [0, 1]), "bool")],
        lambda x: x.t.dtype.kind == "b" and not x.dense,
    ),
    Quirk(
        Rule("integer_targets", (Elementwise,)),
        "Targets may be integers or bools.",
        "Targets that are integers or bools are an error.",
        lambda layout: _with_targets(layout, "float32 int64"),
        lambda x: x.t.dtype.kind in "iub",
    ),
    Quirk(
        Rule("target_dtype", (Elementwise,)),
        "Targets may have another floating dtype than the predictions.",
        "Targets of another floating dtype than the predictions' are an error.",
        lambda layout: _with_targets(layout, "float32 float64"),
        lambda x: x.t.dtype.kind not in "iub" and x.t.dtype != x.p.dtype,
    ),
    Quirk(
        Rule("integer_predictions", (Loss,)),
        "Predictions are floating; integers are an error.",
        "Integers are taken as floating numbers.",
        _integers,
        lambda x: x.p.dtype.kind in "iub",
    ),
    Quirk(
        Rule("result_dtype", (Categorical,), kind="dense", of="dtype"),
        _RESULT,
        _RESULTS,
        lambda layout: _with_targets(
            layout, "float32 float64", "float16 float32", "float32 float16"
        ),
        None,
    ),
    Quirk(
        Rule("result_dtype", (CrossEntropyLoss,), "probabilities", "index", of="dtype"),
        _RESULT,
        "The result is a Python float.",
        lambda layout: [every_class(layout)],
        None,
    ),
    Quirk(
        Rule("result_dtype", (Elementwise,), of="dtype"),
        _RESULT,
        _RESULTS,
        lambda layout: _with_targets(
            layout, "float32 float64", "float16 float32", "float32 float16"
        ),
        None,
    ),
    Quirk(
        Rule("half_result", (Loss,), of="dtype"),
        "A mean or a sum of half types is float32.",
        {
            "* float64": "The result is a Python float.",
            "*": "A mean or a sum of half types has their dtype.",
        },
        lambda layout: [
            layout.elements([0.25], [1.0], dtype="float16")
            if layout.elementwise
            else every_class(layout, dtype="float16")
        ],
        None,
        when=lambda spec, _: spec.reduction != "none",
    ),
    Quirk(
        Rule("half_mean", (CrossEntropyLoss,), "logits"),
        _IN_FLOAT32,
        _OVERFLOWING_MEAN,
        _overflowing_rows,
        lambda x: x.half,
        when=lambda spec, _: spec.reduction == "mean",
    ),
    Quirk(
        Rule("half_mean", (NegativeLogLikelihoodLoss,)),
        _IN_FLOAT32,
        _OVERFLOWING_MEAN,
        _overflowing_rows,
        lambda x: x.half,
        when=lambda spec, _: spec.reduction == "mean",
    ),
    Quirk(
        Rule("half_mean", (CrossEntropyLoss,), "probabilities", of="digits", digits=1e-4),
        _IN_FLOAT32,
        "Half types are computed in that type.",
        lambda layout: [every_class(layout, dtype="float16")],
        lambda x: x.half,
        when=conditions.of_sklearn,
    ),
    Quirk(
        Rule("half_sum", (CrossEntropyLoss,), "logits"),
        _SUM,
        _OVERFLOWING_SUM,
        _overflowing_rows,
        lambda x: x.half,
        when=lambda spec, _: spec.reduction == "sum",
    ),
    Quirk(
        Rule("half_sum", (NegativeLogLikelihoodLoss,)),
        _SUM,
        _OVERFLOWING_SUM,
        _overflowing_rows,
        lambda x: x.half,
        when=lambda spec, _: spec.reduction == "sum",
    ),
    Quirk(
        Rule("half_sum", (BinaryCrossEntropyLoss,), "logits"),
        _SUM,
        _OVERFLOWING_SUM,
        lambda layout: [layout.elements([40000.0] * 2, [0.0] * 2, dtype="float16")],
        lambda x: x.half,
        when=lambda spec, _: spec.reduction == "sum",
    ),
    Quirk(
        Rule("half_sum", (BinaryCrossEntropyLoss,), "probabilities"),
        _SUM,
        _OVERFLOWING_SUM,
        # Each costs 100.
        lambda layout: [layout.elements([0.0] * 700, [1.0] * 700, dtype="float16")],
        lambda x: x.half,
        when=lambda spec, _: spec.reduction == "sum",
    ),
    Quirk(
        Rule("half_gradient", (BinaryCrossEntropyLoss,), "probabilities", of="gradient_only"),
        "Half types are computed in float32, the bounds of gradients too.",
        "1e-12, which bounds the denominator of the gradient, is 0 in float16: where p = t, 0 / 0 "
        "is NaN.",
        _certain,
        lambda x: x.half and x.dense and near(x.p[x.p == x.t], (0.0, 1.0), NEAR_BOUND),
        # Keras on the other backends is wrong not only in the gradient: "half_clip" covers that.
        when=lambda spec, call: (
            conditions.clipped(spec, call)
            and (call is None or call.library != "keras" or call.backend == "torch")
        ),
    ),
    Quirk(
        Rule("half_clip", (BinaryCrossEntropyLoss,), "probabilities"),
        "1 - 1e-7 is 1 in a half type, and 0 log 0 = 0: a probability of 1 costs 0 where the "
        "target is 1.",
        "1 - 1e-7 is 1 in a half type, and 0 times infinity NaN: a probability of 1 makes the loss "
        "NaN.",
        _certain,
        lambda x: x.half and near(x.p, (0.0, 1.0), NEAR_BOUND),
        when=lambda spec, call: (
            conditions.clipped(spec, call) and not conditions.smoothed(spec, call)
        ),
    ),
    Quirk(
        Rule("half_clip", (BinaryCrossEntropyLoss,), "probabilities", case="target 0"),
        "1 - 1e-7 is 1 in a half type: a probability of 1 whose target is 0 has an infinite loss.",
        "Logarithms are held at -100: a float16 probability of 1 whose target is 0 costs 100.",
        lambda layout: [layout.elements([1.0], [0.0], dtype="float16")],
        lambda x: x.half and near(x.p, (0.0, 1.0), NEAR_BOUND),
        when=lambda spec, _: spec.epsilon == "keras",
    ),
    Quirk(
        Rule("half_rounding", (CrossEntropyLoss,), "probabilities", of="digits"),
        _ROUNDED_ONCE,
        "Probabilities are divided and clipped in the half type.",
        lambda layout: [
            layout.rows(
                [[0.998 if c == row else 0.001 for c in range(3)] for row in range(3)],
                labels(layout),
                dtype="float16",
            )
        ],
        lambda x: x.half,
    ),
    Quirk(
        Rule("half_rounding", (BinaryCrossEntropyLoss,), "logits", of="digits"),
        _ROUNDED_ONCE,
        "The terms of the loss are rounded to the half type before they are added.",
        lambda layout: [
            layout.elements([z], [t], dtype="float16") for z, t in ((6.0, 1.0), (-6.0, 0.0))
        ],
        lambda x: x.half,
    ),
    Quirk(
        Rule("target_rounding", (CrossEntropyLoss,), "logits", "dense", of="digits", digits=1e-4),
        "Smoothed targets are not rounded to a narrower dtype than float32.",
        "Smoothed targets are rounded to the dtype that the targets have.",
        lambda layout: [as_given(one_row(layout, [1.0, 0.0, 0.0]), "float16")],
        _narrow_targets,
        when=conditions.smoothed,
    ),
    Quirk(
        Rule("target_rounding", (BinaryCrossEntropyLoss,), "logits", of="digits", digits=1e-4),
        "Losses are not rounded to the targets' dtype.",
        "Losses are rounded to the half type that the targets have.",
        lambda layout: _with_targets(layout, "float32 float16"),
        _narrow_targets,
    ),
    Quirk(
        Rule("target_rounding", (BinaryCrossEntropyLoss,), of="digits", case="smoothing"),
        "Smoothed targets are not rounded to a narrower dtype than float32.",
        "Smoothed targets are rounded to the half type of the predictions.",
        lambda layout: [layout.elements([p], [1.0], dtype="float16") for p in (6.0, 0.998)],
        _narrow_targets,
        when=conditions.smoothed,
    ),
    Quirk(
        Rule("bfloat16", (Categorical, MeanSquaredError)),
        "Predictions may be bfloat16.",
        {"onnx *": "bfloat16 is an error in onnxruntime.", "*": "bfloat16 is an error."},
        lambda layout: bfloat16(
            layout.elements([0.25], [1.0]) if layout.elementwise else every_class(layout)
        ),
        lambda x: "bfloat16" in (x.p.dtype.name, x.t.dtype.name),
        when=conditions.of_sklearn_or_onnx,
    ),
    Quirk(
        Rule("bool_weight", (Loss,)),
        "Sample weights are numbers; bools are an error, and belong in the mask.",
        "Bools are the sample weights 0 and 1.",
        lambda layout: [
            replace(
                layout.elements([0.25, 0.75], [1.0, 1.0]), sample_weight=np.array([True, False])
            )
            if layout.elementwise
            else replace(every_class(layout), sample_weight=np.array([True, True, False]))
        ],
        lambda x: x.w is not None and x.w.dtype.kind == "b",
    ),
)
"""The quirks about kinds of targets and about dtypes."""
