"""The quirks about the values of targets."""

from __future__ import annotations

import numpy as np

from unifiedloss.interop.quirks.probes import every_class, one_row
from unifiedloss.interop.quirks.quirk import PREDICTIONS, Quirk, Rule
from unifiedloss.interop.sides import Input
from unifiedloss.losses.binary_cross_entropy.spec import BinaryCrossEntropyLoss
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.spec import Categorical

QUIRKS = (
    Quirk(
        Rule("bad_index", (Categorical,)),
        "A label outside 0..K-1 is an error (NaN under tracing).",
        {
            "* nan nan": "Labels -1 to -K count from the end; any other that is no class gives "
            "NaN, with a finite gradient.",
            "* error error": "Negative labels count from the end.",
            "* 0 0": "A label that is no class costs 0.",
            "* error 0": "A negative label costs 0.",
        },
        lambda layout: [one_row(layout, label) for label in (-1, layout.classes, -100)],
        lambda x: x.bad_label,
    ),
    Quirk(
        Rule("compiled_checks", (Categorical,), kind="index"),
        "A label outside 0..K-1 is an error where values can be read, and NaN in loss and gradient "
        "under tracing.",
        "A label outside 0..K-1 is an error, and under XLA NaN.",
        lambda layout: [
            Input(
                one_row(layout, 0).predictions,
                one_row(layout, layout.classes).targets,
                way="run_compiled",
                note="in a tf.function with jit_compile=True",
            )
        ],
        None,
    ),
    Quirk(
        Rule("target_kind", (Categorical,), kind="dense"),
        "Integer targets are class indices, floating ones rows of a dense target.",
        "Dense targets may be integers.",
        lambda layout: [
            Input(x.predictions, x.targets.astype(np.int64))
            for x in [one_row(layout, [1.0, 0.0, 0.0])]
        ],
        lambda x: x.t.dtype.kind == "b" or (x.dense and x.t.dtype.kind in "iu"),
    ),
    Quirk(
        Rule("label_dtype", (Categorical,), kind="index"),
        "A floating target is a dense one; labels are integers.",
        {
            "sklearn *": "Floating labels are taken where they are whole.",
            "*": "Floating labels are cut off: 1.7 is class 1.",
        },
        lambda layout: [
            Input(one_row(layout, 0).predictions, one_row(layout, 0).targets + np.float32(1.7)),
            Input(every_class(layout).predictions, every_class(layout).targets.astype(np.float64)),
        ],
        lambda x: x.t.dtype.kind == "f" and not x.dense,
    ),
    Quirk(
        Rule("target_sum", (Categorical,), "logits", "dense", of="gradient_only"),
        "A dense row with the sum T has the gradient T p - t.",
        "The gradient is p - t, as if every dense row had the sum 1.",
        lambda layout: [one_row(layout, [2.0, 0.0, 0.0])],
        lambda x: x.row_sum_other_than_one,
    ),
    *(
        Quirk(
            Rule("target_range", (BinaryCrossEntropyLoss,), predictions),
            "A target outside [0, 1] is an error (NaN under tracing).",
            "Targets outside [0, 1] are taken as they are.",
            lambda layout: [layout.elements([0.5], [1.5])],
            lambda x: x.bad_target,
        )
        for predictions in PREDICTIONS
    ),
    Quirk(
        Rule("dense_range", (CrossEntropyLoss,), kind="dense"),
        "A negative or infinite entry of a dense target is an error (NaN under tracing).",
        "Negative and infinite entries of dense targets are taken as they are.",
        lambda layout: [one_row(layout, row) for row in ([-1.0, 1.0, 1.0], [np.inf, 0.0, 0.0])],
        lambda x: x.dense and x.t.dtype.kind == "f" and ((x.t < 0) | np.isinf(x.t)).any(),
    ),
)
"""The quirks about the values of targets."""
