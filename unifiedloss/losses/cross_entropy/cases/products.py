"""Products of fields, and random cases."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from unifiedloss.conformance.case import Array, Case, rng_of, round_to
from unifiedloss.conformance.product import (
    COMMON,
    Row,
    companions,
    draws,
    fields_of,
    product,
    rule_rows,
    shares,
    source,
)
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss

_VARIANTS: dict[int, Any] = {1: "before_clip", 2: "after_clip", 3: "position"}
"""The order of `renormalize`, or the class weighting, of the variants of the product "rows"."""


def product_cases() -> Iterator[Case]:
    """Logits and probabilities, labels and dense targets, with each pair of fields and dtypes."""
    for from_logits in (True, False):
        for kind in ("index", "dense"):
            axes = COMMON | {
                "shape": (
                    ((4, 3), None),
                    ((2, 5, 3), -1),
                    ((2, 3, 2, 2), 1),
                    ((5,), None),
                    ((3, 7), 0),
                    ((1, 1), None),
                ),
                "class_weights": (None, "given", "with zero"),
                "label_smoothing": (0.0, 0.1, 1.0),
                "epsilon": (0.0,) if from_logits else (0.0, 1e-7, 0.2),
                "ignore_index": (None, -100, (-1, 1)) if kind == "index" else (None, -100),
                "target_dtype": ("int64", "int32", "uint8")
                if kind == "index"
                else ("float32", "float64"),
            }
            yield from product(
                f"{source(from_logits)} {kind}", axes, 11, partial(_case, from_logits, kind)
            )


def _case(from_logits: bool, kind: str, name: str, row: Row) -> Case:
    rng = rng_of(name)
    shape, axis = row["shape"]
    at = len(shape) - 1 if axis is None else axis % len(shape)
    classes = shape[at]
    positions = shape[:at] + shape[at + 1 :]
    predictions = rng.normal(scale=3, size=shape)
    if not from_logits:
        predictions = shares(predictions, at)
    if kind == "index":
        targets = rng.integers(classes, size=positions)
        if row["ignore_index"] is not None and row["target_dtype"] != "uint8":
            ignored = row["ignore_index"] if isinstance(row["ignore_index"], int) else -1
            targets = np.where(rng.random(positions) < 0.3, ignored, targets)
        targets = np.asarray(targets)
    else:
        targets = shares(rng.normal(size=shape), at) * (rng.random(shape) < 0.8)
    weights = None
    if row["class_weights"]:
        weights = rng.uniform(0.5, 2, classes)
        if row["class_weights"] == "with zero":
            weights[0] = 0.0
    spec = CrossEntropyLoss(
        from_logits=from_logits,
        axis=axis,
        class_weights=weights,
        **fields_of(row, "label_smoothing", "epsilon", "ignore_index"),
    )
    common = companions(rng, row, positions)
    return Case(
        name,
        spec,
        round_to(predictions, row["dtype"]),
        targets.astype(row["target_dtype"]),
        **common,
    )


def rule_cases() -> Iterator[Case]:
    """Probabilities divided by their sum, and class weights outside the smoothing."""
    for name, row in rule_rows("rows", _VARIANTS):
        yield _rule_case(name, row)


def _rule_case(name: str, row: Row) -> Case:
    rng = rng_of(name)
    shape: tuple[int, ...] = row["shape"]
    variant = _VARIANTS[row["variant"]]
    positions = shape[:1] + shape[2:]
    targets: Array = rng.integers(shape[1], size=positions)
    if row["kind"] == "dense":
        targets = shares(rng.normal(size=shape), 1).astype(np.float32)
    fields = fields_of(row, "label_smoothing", "scale") | {
        "axis": 1,
        "class_weights": rng.uniform(0.5, 2, shape[1]),
    }
    predictions = rng.uniform(0.05, 3, size=shape)
    if variant == "position":
        spec = CrossEntropyLoss(from_logits=True, class_weighting="position", **fields)
    else:
        spec = CrossEntropyLoss(epsilon="keras", renormalize=variant, **fields)
        predictions = np.minimum(predictions, 0.9) if variant == "after_clip" else predictions
    return Case(
        name, spec, round_to(predictions, row["dtype"]), targets, **companions(rng, row, positions)
    )


def random_cases() -> Iterator[Case]:
    """Dense targets and labels."""
    for draw in draws(range(2, 40, 4)):
        spec = CrossEntropyLoss(from_logits=True, reduction=draw.reduction)
        targets = shares(draw.predictions.astype(np.float64), 1).astype(np.float32)
        yield Case(draw.name, spec, draw.predictions, targets, dtype=draw.dtype)
    for draw in draws(range(3, 40, 4)):
        spec = CrossEntropyLoss(from_logits=True, reduction=draw.reduction)
        shape = draw.predictions.shape
        labels: Array = draw.rng.integers(shape[1], size=shape[:1])
        yield Case(draw.name, spec, draw.predictions, labels, dtype=draw.dtype)
