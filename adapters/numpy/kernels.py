"""Loss kernels for NumPy, written with ``exp``, ``log1p`` and sums in cache-sized blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.plan import Plan

Array = NDArray[Any]

_BLOCK = 1 << 18
"""Elements per block of rows.

A block must fit into a cache (1 MiB of float32) and be large enough to hide the cost of the calls.
"""

_FLAT_BLOCK = 1 << 16
"""Elements per block of the elementwise losses, which use more arrays at once."""

# While e^{z_y} and the sum of all e^{z_c} lie within these bounds, nothing overflows, and a term
# that underflows is below every digit of the loss. So the pass that finds each row's maximum can be
# skipped.
_SAFE = {np.dtype(np.float32): (1e-30, 1e30), np.dtype(np.float64): (1e-280, 1e280)}


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    rows = np.moveaxis(logits, axis, -1)
    losses, _ = cross_entropy_rows(rows.reshape(-1, rows.shape[-1]), labels.reshape(-1))
    return losses.reshape(labels.shape)


def cross_entropy_rows(
    logits: Array, labels: Array, scale: Array | None = None
) -> tuple[Array, Array | None]:
    """The losses of the rows of an (N, K) array and, with a scale per row, a gradient.

    The gradient is that of sum scale_i l_i.

    l = log1p(sum_{c != y} e^{z_c} / e^{z_y}) keeps all digits of a confident row, for which
    log sum exp z - z_y cancels.
    """
    count, classes = logits.shape
    losses = np.empty(count, logits.dtype)
    gradient = None if scale is None else np.empty(logits.shape, logits.dtype)
    low, high = _SAFE[logits.dtype]
    spare = (
        None
        if gradient is not None
        else np.empty((min(count, _rows_per_block(classes)), classes), logits.dtype)
    )
    with np.errstate(all="ignore"):
        for block in _blocks(count, classes):
            z, y = logits[block], labels[block]
            e = gradient[block] if gradient is not None else spare[: len(z)]  # type: ignore[index]
            row = np.arange(len(z))
            np.exp(z, out=e)
            target = e[row, y]
            e[row, y] = 0.0
            others = np.add.reduce(e, axis=1)
            total = others + target
            if np.minimum.reduce(target) >= low and np.maximum.reduce(total) <= high:
                losses[block] = np.log1p(others / target)
            else:  # also if a value is NaN
                target, others, total = _shifted(z, y, row, e, losses[block])
            if scale is not None:
                factor = scale[block] / total
                np.multiply(e, factor[:, None], out=e)
                e[row, y] = -others * factor
    return losses, gradient


def _shifted(z: Array, y: Array, row: Array, e: Array, losses: Array) -> tuple[Array, Array, Array]:
    """Compute a block again, with each row shifted by its maximum.

    Fills `e` and `losses`. Returns e^{z_y}, the sum of the other exponentials, and the sum of all.
    """
    largest = z.max(axis=1)
    np.subtract(z, largest[:, None], out=e)
    gap = -e[row, y]
    np.exp(e, out=e)
    target = e[row, y]
    e[row, y] = 0.0
    others = e.sum(axis=1)
    total = others + target
    # Where e^{z_y} underflows, use its logarithm -gap.
    losses[...] = np.where(
        target > _SAFE[z.dtype][0], np.log1p(others / target), gap + np.log(total)
    )
    return target, others, total


def _rows_per_block(classes: int) -> int:
    return max(1, _BLOCK // max(1, classes))


def _blocks(count: int, classes: int) -> Iterator[slice]:
    step = _rows_per_block(classes)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _flat_blocks(*arrays: Array) -> Iterator[list[Array]]:
    """Arrays of one shape in flat blocks.

    An array that is written to must be contiguous, because only then its blocks are views.
    """
    flat = [x.reshape(-1) for x in arrays]
    return (
        [x[start : start + _FLAT_BLOCK] for x in flat]
        for start in range(0, flat[0].size, _FLAT_BLOCK)
    )


def log_softmax(logits: Array, axis: int) -> Array:
    shifted = logits - logits.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def softmax(logits: Array, axis: int) -> Array:
    rows = np.moveaxis(logits, axis, -1)
    shape, rows = rows.shape, rows.reshape(-1, rows.shape[-1])
    probabilities = np.empty(rows.shape, rows.dtype)
    for block in _blocks(*rows.shape):
        z, e = rows[block], probabilities[block]
        np.subtract(z, z.max(axis=1, keepdims=True), out=e)
        np.exp(e, out=e)
        e /= np.add.reduce(e, axis=1, keepdims=True)
    return np.moveaxis(probabilities.reshape(shape), -1, axis)


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    """q t softplus(-z) + (1 - t) softplus(z), with one exponential per logit."""
    if pos_weight is not None:
        tail = np.log1p(np.exp(-np.abs(logits)))
        return targets * pos_weight * (np.maximum(-logits, 0) + tail) + (1 - targets) * (
            np.maximum(logits, 0) + tail
        )
    losses = np.empty(logits.shape, logits.dtype)
    for z, t, into in _flat_blocks(logits, targets, losses):
        _binary_block(z, t, into, None)
    return losses


def squared_error(predictions: Array, targets: Array) -> Array:
    losses = np.subtract(predictions, targets, out=np.empty(predictions.shape, predictions.dtype))
    return np.multiply(losses, losses, out=losses)


def _binary_block(z: Array, t: Array, losses: Array, gradient: Array | None) -> None:
    """log(1 + e^-|z|) + |z| |[z > 0] - t| and its derivative.

    No term is negative, so nothing cancels.
    """
    size = np.abs(z)
    e = np.exp(np.negative(size, out=losses), out=losses)
    distance = np.subtract(z > 0, t, dtype=z.dtype)
    if gradient is not None:
        # (1 - t) sigma(z) - t sigma(-z), with sigma(|z|) = 1 / (1 + e), sigma(-|z|) = e / (1 + e).
        np.subtract(z <= 0, t, out=gradient)
        gradient *= e
        gradient += distance
        gradient /= 1 + e
    np.log1p(e, out=losses)
    size *= np.abs(distance, out=distance)
    losses += size


def _squared_block(p: Array, t: Array, losses: Array, gradient: Array | None) -> None:
    """(p - t)^2 and half its derivative, because 2 * (p - t) may overflow."""
    difference = np.subtract(p, t, out=losses)
    if gradient is not None:
        np.copyto(gradient, difference)
    np.multiply(difference, difference, out=losses)


_BLOCKS = {"binary_cross_entropy": (_binary_block, 1), "mean_squared_error": (_squared_block, 2)}
"""The function of each elementwise loss, and the unit of the derivatives that it computes."""


def fused_loss(
    plan: Plan, predictions: Array, targets: Array, upstream: Array | float | None = None
) -> tuple[Array, Array | None]:
    """The sum or the mean over all positions, each of which counts once.

    With an upstream gradient, also the gradient to the predictions. Each block of losses is summed
    while it is in the cache, so no array of all losses is allocated and written.
    """
    share = 1.0 / plan.count if plan.spec.reduction == "mean" and plan.count else 1.0
    block, unit = _BLOCKS.get(plan.spec.name, (None, 1))
    factor = (
        None
        if upstream is None
        else predictions.dtype.type(np.asarray(upstream, predictions.dtype) * (unit * share))
    )
    if plan.kind == "index":
        assert plan.axis is not None
        rows = np.moveaxis(predictions, plan.axis, -1)
        scale = None if factor is None else np.full(targets.size, factor)
        losses, slopes = cross_entropy_rows(
            rows.reshape(-1, rows.shape[-1]), targets.reshape(-1), scale
        )
        total = float(np.add.reduce(losses))
        gradient = (
            None if slopes is None else np.moveaxis(slopes.reshape(rows.shape), -1, plan.axis)
        )
    else:
        assert block is not None
        gradient = None if factor is None else np.empty(predictions.shape, predictions.dtype)
        spare = np.empty(min(predictions.size, _FLAT_BLOCK), predictions.dtype)
        total = 0.0
        for p, t, *slope in _flat_blocks(
            predictions, targets, *(() if gradient is None else (gradient,))
        ):
            losses = spare[: len(p)]
            block(p, t, losses, *(slope or (None,)))
            total += float(np.add.reduce(losses))
            if slope:
                slope[0] *= factor
    return predictions.dtype.type(total * share), gradient
