"""Calls that must fail."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import BadCall, refused
from unifiedloss.conformance.data import ONE_HOT, X, Y, f32, ints
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss


def bad_calls() -> Iterator[BadCall]:
    """All of them."""
    z, y, t = X, Y, ONE_HOT
    ce = CrossEntropyLoss(from_logits=True)
    cube = np.zeros((2, 3, 3), np.float32)
    yield refused("strict-shapes")("labels as a column", ce, z, y[:, None])
    yield refused("target-kind")("labels one-hot in integers", ce, z, t.astype(np.int64))
    yield refused("strict-shapes")("too few labels", ce, z, y[:3])
    yield refused("strict-shapes")("labels broadcast", ce, z, y[:1])
    yield refused("strict-shapes")("dense targets of another shape", ce, z, t[:, :2])
    yield refused("target-dtypes")("bool labels", ce, z, y > 0)
    yield refused("floating-predictions")("integer predictions", ce, z.astype(np.int32), y)
    yield refused("axis")("axis not named", ce, cube, np.zeros((2, 3), np.int64))
    yield refused("axis")("axis out of range", CrossEntropyLoss(axis=2), z, y)
    yield refused("strict-shapes")("scalar predictions", ce, np.array(1.0, np.float32), np.array(0))
    yield refused("strict-shapes")("no classes", ce, np.zeros((4, 0), np.float32), y)
    yield refused("class-weights")(
        "too many class weights", ce.replace(class_weights=(1, 2, 3, 4)), z, y
    )
    yield refused("ignore-index")("dense with an ignored class", ce.replace(ignore_index=1), z, t)
    yield refused("weight-dtypes")("mask of numbers", ce, z, y, None, np.ones(4, np.float32))
    yield refused("weight-dtypes")("bool sample weights", ce, z, y, np.ones(4, bool))
    for name, labels in (
        ("-1", ints(0, -1, 1, 2)),
        ("3", ints(0, 1, 3, 2)),
        ("-100", ints(-100, 1, 0, 2)),
    ):
        yield refused("bad-label", "bad-values")(f"label {name}", ce, z, labels, reads=True)
    yield refused("bad-probability", "bad-values")(
        "logits as probabilities", CrossEntropyLoss(), z, y, reads=True
    )
    renormalized = CrossEntropyLoss(epsilon="keras", renormalize="before_clip")
    yield refused("bad-probability", "renormalize")(
        "logits that are divided by their sum", renormalized, z, y, reads=True
    )
    yield refused("bad-target", "bad-values")(
        "negative dense target", ce, z, t - np.float32(0.5), reads=True
    )
    yield refused("negative-weights", "bad-values")(
        "negative weight", ce, z, y, f32(1, -1, 1, 1), reads=True
    )
    yield refused("on-empty")(
        "nothing to divide by", ce.replace(on_empty="error"), z, y, f32(0, 0, 0, 0), reads=True
    )
