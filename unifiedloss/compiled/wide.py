"""The compiled loops of exact mode for float64 predictions; see `struct wide` in loops.h."""

from __future__ import annotations

from unifiedloss import compiled
from unifiedloss.compiled import Array, address


def run(
    loss: str,
    predictions: Array,
    targets: Array,
    constants: Array,
    *,
    losses: Array,
    left: Array,
    slopes: Array | None = None,
    todo: Array | None = None,
    weight: Array | None = None,
    own: Array | None = None,
    upstream: Array | float = 1.0,
    divisor: tuple[float, float, float] = (1.0, 0.0, 0.0),
    parameter: float = 1.0,
    threads: int = 1,
) -> int:
    """Compute losses and slopes of positions.

    All arrays are aligned, in native byte order, and in C order but for `predictions`.

    Args:
        loss: the name of the loop.
        predictions: float64 (n, K), with the numbers of a row next to each other.
        targets: labels (n,) of any integer type, or float64 numbers.
        constants: see pairs.h.
        losses: float64 (n,), receives the losses.
        left: bool (n,), False; receives the positions that are undecided.
        slopes: float64 (n, K), receives the gradient, or None.
        todo: bool (n,), the positions to compute, or None for all.
        weight: float64 (n,), a factor of each result, or None for 1.
        own: another one, for rows.
        upstream: the upstream gradient, one number, or float64 (n,).
        divisor: the divisor of the slopes: its high part, low part and relative error.
        parameter: delta of the Huber loss, pos_weight of the binary cross-entropy.
        threads: the most threads to use.

    Returns:
        The number of undecided positions.
    """
    each, shared = (None, upstream) if isinstance(upstream, float) else (upstream, 1.0)
    return compiled.run_wide(
        threads,
        compiled.LOSSES.index(loss),
        address(predictions),
        *predictions.shape,
        predictions.strides[0] // 8,
        address(targets),
        targets.itemsize,
        targets.dtype.kind == "i",
        address(todo),
        address(weight),
        address(own),
        address(each),
        shared,
        *divisor,
        parameter,
        address(constants),
        address(losses),
        address(slopes),
        address(left),
    )
