"""The cases of the negative log-likelihood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unifiedloss.conformance.case import (
    Array,
    BadCall,
    Case,
    Fusible,
    LossCases,
    proving,
    refused,
    rng_of,
    round_to,
)
from unifiedloss.conformance.data import (
    F32_TINY,
    INF,
    MASKED_DENSE,
    NAN,
    ONE_HOT,
    P,
    W,
    X,
    Y,
    f32,
    ints,
)
from unifiedloss.conformance.product import (
    companions,
    fields_of,
    rule_rows,
    shares,
)
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss

weighted_case = proving("log-probabilities", "label-weights")
masked_case = proving("label-weights", "dropped", "divisor")
special_case = proving("log-probabilities", "gradient-log-probabilities", "what-is-read")
empty_case = proving("on-empty", "what-is-read")
zero_weighted_case = proving("zero-weighted")
bad_label_case = proving("bad-label", "bad-values")
nan_weight_case = proving("nan-targets-and-weights", "on-empty")
axis_case = proving("axis", "half-dtypes")


def _nll(**fields: Any) -> NegativeLogLikelihoodLoss:
    return NegativeLogLikelihoodLoss(**{"reduction": "none"} | fields)


def marked_cases() -> Iterator[Case]:
    """Any number may be a log-probability, and entries without weight are not read."""
    mean, both = {"reduction": "mean"}, {"compiled": True, "representative": True}
    logs = np.log(P)
    spec = _nll(class_weights=W, divisor="label_weights", ignore_index=-100, **mean)
    yield weighted_case(
        "log-probabilities, index", spec, logs, ints(0, 1, -100, 2), f32(1, 2, 3, 0), **both
    )
    yield weighted_case("log-probabilities, one-hot", spec, logs, ONE_HOT)
    odd = f32([-INF, -1, INF], [NAN, -1, -INF], [0.5, 2.0**127, -0.0])
    every, each = np.vstack([odd] * 3), np.repeat(ints(0, 1, 2), 3)
    yield special_case("log-probabilities, special", _nll(), every, each)
    tiny = F32_TINY
    soft = f32(
        [0, 1, 0], [0, 0.5, 0.25], [0.25, 0, 2], [tiny / 2, 1, 0], [1, -tiny / 2, 0], [tiny, 0, 1]
    )
    yield special_case("log-probabilities, special, dense", _nll(), every[:6], soft, compiled=True)
    hidden = _nll(class_weights=(0, 2, 0))
    yield special_case("log-probabilities, class weight 0, index", hidden, every, each)
    yield special_case(
        "log-probabilities, class weight 0, dense", hidden, odd, np.ones((3, 3), np.float32)
    )
    yield empty_case("log-probabilities, empty mean", hidden.replace(**mean), odd, ints(0, 2, 0))
    yield zero_weighted_case(
        "log-probabilities, NaN under weight 0", _nll(**mean), odd, ints(1, 0, 2), f32(1, 0, 2)
    )
    yield bad_label_case(
        "log-probabilities, bad label",
        _nll(class_weights=W, **mean),
        logs,
        ints(0, 3, 1, 2),
        compiled=True,
    )
    cube = -np.arange(18, dtype=np.float32).reshape(2, 3, 3)
    spec = _nll(axis=1, class_weights=W)
    yield axis_case(
        "log-probabilities, axis 1", spec, cube, ints([0, 1, 2], [2, 0, 1]), dtype="bfloat16"
    )
    yield axis_case("log-probabilities, one example under axis 1", spec, logs[0], np.array(2))
    hiding = _nll(class_weights=(0, 1, 1), divisor="nonzero", on_empty="zero", **mean)
    yield nan_weight_case(
        "log-probabilities, NaN sample weight of class weight 0",
        hiding,
        logs[:1],
        ints(0),
        f32(NAN),
    )
    spec = _nll(divisor="label_weights", **mean)
    for name, rule in (("", spec), (" and class weights", spec.replace(class_weights=W))):
        yield masked_case(f"log-probabilities, masked label weights{name}", rule, *MASKED_DENSE)


def rule_cases() -> Iterator[Case]:
    """Pairs of fields."""
    for name, row in rule_rows("rows", (0,)):
        rng = rng_of(name)
        shape: tuple[int, ...] = row["shape"]
        positions = shape[:1] + shape[2:]
        targets: Array = rng.integers(shape[1], size=positions)
        if row["kind"] == "dense":
            targets = shares(rng.normal(size=shape), 1).astype(np.float32)
        weights: Any = rng.uniform(0.5, 2, shape[1])
        predictions = -rng.uniform(0.05, 3, size=shape)
        yield Case(
            name,
            NegativeLogLikelihoodLoss(axis=1, class_weights=weights, **fields_of(row)),
            round_to(predictions, row["dtype"]),
            targets,
            **companions(rng, row, positions),
        )


def bad_calls() -> Iterator[BadCall]:
    """Calls that must fail."""
    z, y = X, Y
    yield refused("strict-shapes")(
        "labels one too many, log-probabilities", NegativeLogLikelihoodLoss(), z, y[:3]
    )
    yield refused("bad-label", "bad-values")(
        "label 3, log-probabilities", NegativeLogLikelihoodLoss(), z, ints(0, 1, 3, 2), reads=True
    )


def fusible() -> Iterator[Fusible]:
    """Log-probabilities."""
    rng = rng_of("fused/log-probabilities")
    labels = rng.integers(16, size=16)
    wanted = -np.exp(rng.normal(size=(16, 16))).astype(np.float32)
    yield Fusible("log-probabilities", _nll(), wanted, lambda _: labels, ("log-probabilities",))


CASES = LossCases(
    bad_calls=bad_calls,
    marked_cases=marked_cases,
    rule_cases=rule_cases,
    fusible=fusible,
)
