"""Edge cases of numbers that some frameworks flush to 0, of the empty mean, and of NaN weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unifiedloss.conformance.case import Case, proving
from unifiedloss.conformance.data import F32_TINY, INF, NAN, ONE_HOT, P, W, X, Y, f32, ints
from unifiedloss.conformance.product import source
from unifiedloss.losses.cross_entropy.cases.specs import spec_with

weight_case = proving("tiny-sample-weights", "zero-weighted")
entry_case = proving("tiny-entries")
smoothing_case = proving("tiny-smoothing")
wide_case = proving("float64-targets", "tiny-probabilities")
product_case = proving("product-of-weights")
empty_case = proving("gradient-empty-mean", "on-empty")
nan_case = proving("nan-targets-and-weights")
bad_label_case = proving("bad-label", "bad-values")

_MEAN = {"reduction": "mean"}


_NAN_ROW = np.vstack([f32([NAN, 0, INF]), X[1:]])
_BAD_P = np.vstack([f32([7, NAN, 0]), P[1:]])


def tiny_cases() -> Iterator[Case]:
    """All of them."""
    yield from _weights()
    yield from _targets()
    yield from _products_of_weights()
    yield from _empty_means()
    yield from _nan_weights()


def _weights() -> Iterator[Case]:
    """Tiny sample weights."""
    half, tiny = F32_TINY / 2, F32_TINY
    for dtype, small in (("float32", half), ("float64", 1e-50), ("float64", 1e-40)):
        weight = np.array([small, 1, -small, 2], dtype)
        for divisor in ("weights", "nonzero", "present"):
            spec = spec_with(divisor=divisor, **_MEAN)
            yield weight_case(
                f"weight {small:.3g} of {dtype} is 0, {divisor}",
                spec,
                _NAN_ROW,
                ints(7, 1, 9, 2),
                weight,
            )
        spec = spec_with(from_logits=False, reduction="sum")
        yield weight_case(
            f"weight {small:.3g} of {dtype} is 0, probabilities",
            spec,
            _BAD_P,
            ints(7, 1, 9, 2),
            weight,
        )
    yield weight_case(
        "weight at the smallest normal number", spec_with(), _NAN_ROW, Y, f32(half, tiny, -tiny, 0)
    )
    wide = np.array([1, 2, 3, 4.0])[:, None] * X
    yield weight_case(
        "float32 weight beside float64",
        spec_with(**_MEAN),
        wide,
        Y,
        f32(half, 1, 2, 3),
        dtype="float64",
    )
    yield weight_case(
        "smallest float64 weight",
        spec_with(**_MEAN),
        wide,
        Y,
        np.array([1e-310, 1, 2e-308, 3]),
        dtype="float64",
    )


def _targets() -> Iterator[Case]:
    """Tiny class weights, targets and shares of smoothing."""
    half, tiny = F32_TINY / 2, F32_TINY
    for from_logits in (True, False):
        if from_logits:
            z = f32([-INF, 0, 1], [1, -INF, 0], [0, 1, -INF])
        else:
            z = f32([0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0])
        kind = source(from_logits)
        for small in (half, 1e-50, 1e-30):
            spec = spec_with(from_logits=from_logits, class_weights=(small, 1, 2))
            name = f"class weight {small:.3g}, {kind}"
            yield entry_case(f"{name}, index", spec, z, ints(0, 1, 2))
            yield entry_case(
                f"{name}, nonzero", spec.replace(divisor="nonzero", **_MEAN), z, ints(0, 2, 1)
            )
            yield entry_case(f"{name}, smoothed", spec.replace(label_smoothing=0.1), z[:1], ints(1))
            yield entry_case(f"{name}, dense", spec, z, np.eye(3, dtype=np.float32))
        for small in (half, -half, tiny):
            dense = f32([small, 1, 0], [1, small, 0], [0.5, 0.5, small])
            yield entry_case(
                f"dense target {small:.3g}, {kind}", spec_with(from_logits=from_logits), z, dense
            )
            if not from_logits:  # because from logits the gradient is a subnormal float32
                yield entry_case(
                    f"dense target {small:.3g} in float64",
                    spec_with(from_logits=False),
                    z,
                    dense.astype("d"),
                )
        deep = np.array([[1e-310, 1, 0]])
        wide = z[:1].astype(np.float64)
        yield entry_case(
            f"dense target 1e-310, {kind}",
            spec_with(from_logits=from_logits),
            wide,
            deep,
            dtype="float64",
        )
        for smoothing in (1e-38, 1e-9, 1e-6, 1e-50):
            spec = spec_with(from_logits=from_logits, label_smoothing=smoothing)
            yield smoothing_case(f"smoothing {smoothing}, {kind}, index", spec, z, ints(1, 1, 0))
            yield smoothing_case(
                f"smoothing {smoothing}, {kind}, dense",
                spec,
                z,
                np.eye(3, dtype=np.float32)[[1, 1, 0]],
            )
    p = f32([half, 0.5], [0.25, 0.75])
    yield wide_case(
        "float32 p beside float64 targets",
        spec_with(from_logits=False),
        p,
        np.array([[1.0, 0], [0.5, 0.5]]),
    )


def _products_of_weights() -> Iterator[Case]:
    """A product of two weights that count is not 0, however small it is."""
    weight = f32(1e-15, 1, 1e-15, 1)
    for targets in (Y, ONE_HOT):
        spec = spec_with(class_weights=(1e-30, 1, 0), divisor="nonzero", **_MEAN)
        yield product_case(
            f"underflowing product counts, {targets.dtype}", spec, X, targets, weight
        )
    yield product_case(
        "underflowing product, p 0",
        spec_with(from_logits=False, class_weights=(1e-30, 1)),
        f32([0, 1]),
        f32([1e-15, 1]),
    )


def _empty_means() -> Iterator[Case]:
    """An empty mean has the gradient 0."""
    for divisor in ("weights", "nonzero"):
        for on_empty in ("nan", "zero"):
            for smoothing in (0.0, 0.1):
                name = f"{divisor}, {on_empty}, smoothing {smoothing}"
                spec = spec_with(
                    class_weights=(0, 1, 1),
                    label_smoothing=smoothing,
                    divisor=divisor,
                    on_empty=on_empty,
                    **_MEAN,
                )
                zeros = np.zeros(4, np.int64)
                yield empty_case(f"empty by class weights, {name}", spec, X, zeros)
                yield empty_case(
                    f"empty by class weights, NaN logits, {name}",
                    spec,
                    _NAN_ROW,
                    zeros,
                    f32(1, 0, 2, 3),
                )
                yield empty_case(
                    f"empty by class weights, one-hot, {name}",
                    spec,
                    _NAN_ROW,
                    np.eye(3, dtype=np.float32)[zeros],
                )
                p = np.vstack([f32([NAN, 0, 0.5]), P[1:]])
                yield empty_case(
                    f"empty by class weights, p, {name}", spec.replace(from_logits=False), p, zeros
                )
                yield empty_case(
                    f"empty by class weights, bad p, {name}",
                    spec.replace(from_logits=False),
                    _BAD_P,
                    zeros,
                )
    spec = spec_with(class_weights=W, **_MEAN)
    yield empty_case("empty by targets", spec, _NAN_ROW, np.zeros((4, 3), np.float32))
    yield bad_label_case(
        "bad label where all weights are 0",
        spec_with(class_weights=(0, 0, 0), **_MEAN),
        X,
        ints(0, 3, 1, 2),
    )


def _nan_weights() -> Iterator[Case]:
    """A NaN weight or divisor makes every gradient element of its positions NaN, read or not."""
    for divisor in ("weights", "all", "nonzero"):
        fields = {"from_logits": False, "divisor": divisor} | _MEAN
        weight = f32(1, NAN, 0, 2)
        yield nan_case(f"NaN sample weight, p, {divisor}", spec_with(**fields), P, Y, weight)
        yield nan_case(
            f"NaN sample weight, p, dense, {divisor}", spec_with(**fields), P, ONE_HOT, weight
        )
        yield nan_case(
            f"NaN sample weight, class weights, {divisor}",
            spec_with(class_weights=(0, 1, 1), **fields),
            P,
            Y,
            weight,
        )
        yield nan_case(
            f"NaN sample weight, logits, {divisor}",
            spec_with(divisor=divisor, **_MEAN),
            X,
            Y,
            weight,
        )
        yield bad_label_case(
            f"bad label, p, weights, {divisor}",
            spec_with(class_weights=W, **fields),
            P,
            ints(0, 3, 1, 2),
            f32(1, 1, 0, 2),
        )
        nan_targets = np.vstack([f32([NAN, 0, 1]), ONE_HOT[1:]])
        yield nan_case(
            f"NaN dense target, p, {divisor}", spec_with(class_weights=W, **fields), P, nan_targets
        )
    yield nan_case(
        "NaN sample weight, p, clipped",
        spec_with(from_logits=False, epsilon=0.25),
        P,
        Y,
        f32(1, NAN, 1, 1),
    )
