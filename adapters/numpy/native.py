"""NumPy's loss kernels. NumPy has no losses of its own, so these are written from ``exp``, ``log1p`` and sums, in cache-sized blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BLOCK = 1 << 17
"""Elements per block: small enough to stay in the second-level cache, large enough to hide the cost of a call."""

# While e^{z_y} and the sum of all e^{z_c} lie within these bounds, what underflows is below every digit of the loss and nothing overflows,
# so the pass that finds each row's maximum can be saved.
_SAFE = {np.dtype(np.float32): (1e-30, 1e30), np.dtype(np.float64): (1e-280, 1e280)}


def cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    """log sum exp z - z_y per position."""
    rows = np.moveaxis(logits, axis, -1)
    losses, _ = cross_entropy_rows(rows.reshape(-1, rows.shape[-1]), labels.reshape(-1))
    return losses.reshape(labels.shape)


def cross_entropy_rows(
    logits: Array, labels: Array, scale: Array | None = None
) -> tuple[Array, Array | None]:
    """The losses of the rows of an (N, K) array and, with a scale per row, the gradient of sum scale_i l_i.

    l = log1p(sum_{c != y} e^{z_c} / e^{z_y}), which keeps all digits of a confident row, where log sum exp z - z_y cancels.
    """
    count, classes = logits.shape
    losses = np.empty(count, logits.dtype)
    gradient = None if scale is None else np.empty(logits.shape, logits.dtype)
    low, high = _SAFE[logits.dtype]
    spare = None if gradient is not None else np.empty((min(count, _rows_per_block(classes)), classes), logits.dtype)
    with np.errstate(all="ignore"):
        for block in _blocks(count, classes):
            z, y = logits[block], labels[block]
            e = gradient[block] if gradient is not None else spare[: len(z)]  # type: ignore[index]
            row = np.arange(len(z))
            np.exp(z, out=e)
            target = e[row, y]
            e[row, y] = 0.0
            others = e.sum(axis=1)
            total = others + target
            if target.min() >= low and total.max() <= high:
                losses[block] = np.log1p(others / target)
            else:  # also where a comparison meets NaN
                target, others, total = _shifted(z, y, row, e, losses[block])
            if scale is not None:
                factor = scale[block] / total
                np.multiply(e, factor[:, None], out=e)
                e[row, y] = -others * factor
    return losses, gradient


def _shifted(z: Array, y: Array, row: Array, e: Array, losses: Array) -> tuple[Array, Array, Array]:
    """A block of rows once more, each shifted by its maximum. Fills `e` and `losses`; returns e^{z_y}, the sum without it, and with it."""
    largest = z.max(axis=1)
    np.subtract(z, largest[:, None], out=e)
    gap = -e[row, y]
    np.exp(e, out=e)
    target = e[row, y]
    e[row, y] = 0.0
    others = e.sum(axis=1)
    total = others + target
    # Where e^{z_y} underflows, its logarithm is known all the same.
    losses[...] = np.where(target > _SAFE[z.dtype][0], np.log1p(others / target), gap + np.log(total))
    return target, others, total


def _rows_per_block(classes: int) -> int:
    return max(1, _BLOCK // max(1, classes))


def _blocks(count: int, classes: int) -> Iterator[slice]:
    step = _rows_per_block(classes)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def log_softmax(logits: Array, axis: int) -> Array:
    shifted = logits - logits.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def softmax(logits: Array, axis: int) -> Array:
    e = np.exp(logits - logits.max(axis, keepdims=True))
    e /= e.sum(axis, keepdims=True)
    return e


def binary_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None) -> Array:
    """q t softplus(-z) + (1 - t) softplus(z), with one exponential for both."""
    tail = np.log1p(np.exp(-np.abs(logits)))
    positive = targets if pos_weight is None else targets * pos_weight
    return positive * (np.maximum(-logits, 0) + tail) + (1 - targets) * (np.maximum(logits, 0) + tail)


def squared_error(predictions: Array, targets: Array) -> Array:
    difference = predictions - targets
    return difference * difference


def sigmoid(logits: Array) -> Array:
    """1 / (1 + e^-z), without overflow on either side."""
    e = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, e) / (1 + e)
