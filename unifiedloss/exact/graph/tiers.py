"""The tiers of exact mode inside a program: float64 for all rows, then balls for a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unifiedloss import losses
from unifiedloss.exact.graph.form import Block, Form, Found
from unifiedloss.exact.graph.formulas import scaled_loss, scaled_slope
from unifiedloss.exact.graph.ops import Array, GraphOps
from unifiedloss.exact.graph.rounding import nan_bits, to_bits

BLOCK = 1 << 15
"""Elements per block in float64, so that the block and its results fit the second-level cache."""

AGAIN = 1 << 15
"""Elements per block that balls compute again."""

skipped_tiers: set[str] = set()
"""Tiers that leave everything undecided, for tests: "float64", "balls". Read at tracing."""


# ------------------------------------------------------------------------------------ the two tiers


def _module(form: Form) -> Any:
    """The module of the loss with both tiers."""
    return losses.part(form.plan.spec.name, "graph")


def _settled(form: Form, c: Block, found: Found) -> Found:
    """Write 0 at positions that are not kept and slopes of empty means; leave bad positions."""
    xp = form.xp
    left = found.left | (c.bad if not form.elementwise else xp.any(c.bad))
    terms = xp.where(c.kept, found.terms, 0)
    if not form.elementwise:
        left = left & c.kept
    slopes = found.slopes
    if slopes is not None:
        wanted = c.kept if c.empty is None else c.kept & ~c.empty
        slopes = xp.where(wanted, slopes, 0)
    return Found(terms, slopes, left)


def float64_tier(form: Form, c: Block) -> Found:
    """Compute rows in float64."""
    found = _settled(form, c, _module(form).float64(form, c))
    slopes = None if found.slopes is None else form.xp.of_bits(found.slopes, form.dtype)
    left = found.left
    if "float64" in skipped_tiers:
        left = left | (c.kept if not form.elementwise else form.xp.any(c.kept))
    return Found(found.terms, slopes, left)


def balls_tier(form: Form, c: Block) -> Found:
    """Compute rows in balls. Undecided numbers become NaN, and their rows stay left."""
    xp = form.xp
    values, slopes_of, infinite, steep = _module(form).balls(form, c)
    wide = c.x.shape[0], form.width if form.elementwise else 1
    terms, undecided = scaled_loss(form, c, values).kept(wide).rounded(form.term_dtype)
    shape = c.x.shape
    if infinite is not None:
        # Leave the row undecided where another number of it may be NaN.
        known = values[-1].radius < float("inf")
        infinity = xp.constant(float("inf"), "float64")
        if c.weight is not None:
            infinity = xp.where(c.weight < 0, -infinity, infinity)
        terms = xp.where(infinite, to_bits(xp, infinity, form.term_dtype), terms)
        undecided = xp.where(infinite, ~known, undecided)
    if "balls" in skipped_tiers:
        undecided = undecided | True
    undecided = undecided | c.bad
    terms = xp.where(undecided, nan_bits(form.term_dtype), terms)
    undecided = undecided & c.kept
    left = xp.any(undecided) if form.elementwise else undecided
    slopes = None
    if form.gradient:
        slopes, doubtful = scaled_slope(form, c, slopes_of).kept(shape).rounded(form.dtype)
        if steep is not None:
            # An upstream gradient of 0 times infinity is NaN.
            signs = steep if c.weight is None else xp.where(c.weight < 0, -steep, steep)
            vertical = xp.where(xp.differs(signs, 0), signs * c.upstream * float("inf"), 0.0)
            vertical = vertical if c.divisor is None else vertical / c.divisor
            bits = to_bits(xp, vertical, form.dtype)
            bits = xp.where(xp.isnan(vertical), nan_bits(form.dtype), bits)
            slopes = xp.where(xp.differs(signs, 0), bits, slopes)
            doubtful = doubtful & xp.equal(signs, 0)
        if "balls" in skipped_tiers:
            doubtful = doubtful | True
        doubtful = xp.broadcast(doubtful | c.bad, shape)
        slopes = xp.where(doubtful, nan_bits(form.dtype), slopes)
        left = left | xp.any(doubtful & (c.kept if c.empty is None else c.kept & ~c.empty))
    found = _settled(form, c, Found(terms, slopes, left))
    slopes = None if found.slopes is None else xp.of_bits(found.slopes, form.dtype)
    return Found(xp.broadcast(found.terms, (shape[0], terms.shape[1])), slopes, left)


def in_blocks(form: Form, c: Block) -> Found:
    """Compute all rows in float64, a block at a time."""
    xp = form.xp
    n, k = form.rows, form.width
    count = form.padded
    if count is None:
        count = min(n, max(1, BLOCK // k))
        if count == n:
            return float64_tier(form, c)
    wide = k if form.elementwise else 1
    start = [
        xp.broadcast(xp.constant(0, "int32"), (n, wide)),
        xp.broadcast(xp.constant(False, "bool"), (n, 1)),  # noqa: FBT003
    ]
    if form.gradient:
        start.append(xp.empty((n, k), form.dtype))

    def step(i: Array, terms: Array, left: Array, *slopes: Array) -> tuple[Array, ...]:
        first = xp.minimum(i * count, n - count)  # the last block may repeat some rows
        found = float64_tier(form, _rows_of(xp, c, first, count))
        written = xp.with_rows(terms, found.terms, first), xp.with_rows(left, found.left, first)
        return (i + 1, *written, *(xp.with_rows(x, found.slopes, first) for x in slopes))

    blocks = -(-n // count)
    _, terms, left, *slopes = xp.loop(
        lambda i, *_: i < blocks, step, (xp.constant(0, "int32"), *start)
    )
    return Found(terms, slopes[0] if slopes else None, left)


def _rows_of(xp: GraphOps, c: Block, start: Array, count: int) -> Block:
    """The block of `count` rows from `start` on. Arrays of one row are shared by all rows."""
    return Block(*(x if x is None or x.shape[0] == 1 else xp.rows(x, start, count) for x in c))


def windows(form: Form, found: Found, count: int, again: Callable[[Array, Array], Found]) -> Found:
    """Compute the rows that are left again, in windows, and keep all other rows.

    Each window begins at the first row that is still left.

    Args:
        form: the settings of the call.
        found: the results of all rows.
        count: the number of rows of a window.
        again: computes the rows of a window. It takes the index of the first row and the flags of
            the rows that are left.
    """
    xp = form.xp
    n = form.rows
    wide = found.terms.shape[1], form.width

    def step(todo: Array, left: Array, *results: Array) -> tuple[Array, ...]:
        start = xp.minimum(_first(xp, todo, n), n - count)
        which = xp.rows(todo, start, count)
        part = again(start, which)
        todo = xp.with_rows(todo, which & False, start)
        left = xp.with_rows(left, (which & part.left) | xp.rows(left, start, count), start)
        written = []
        for x, new, k in zip(results, (part.terms, part.slopes), wide, strict=False):
            kept = xp.where(xp.broadcast(which, (count, k)), new, xp.rows(x, start, count))
            written.append(xp.with_rows(x, kept, start))
        return todo, left, *written

    start = [found.left, found.left & False, found.terms]
    if found.slopes is not None:
        start.append(found.slopes)
    _, left, terms, *slopes = xp.loop(
        lambda todo, *_: xp.any(xp.reshape(todo, (n,))), step, tuple(start)
    )
    return Found(terms, slopes[0] if slopes else None, left)


def _first(xp: GraphOps, flags: Array, n: int | Array) -> Array:
    """The first row whose flag is set, a scalar int32; n if none is set."""
    return xp.reshape(-xp.max(xp.where(xp.reshape(flags, (n,)), -xp.arange(n), -n)), ())


def mended(form: Form, c: Block, found: Found) -> Found:
    """Compute the undecided rows again in balls, few at a time. Numbers still undecided are NaN."""
    xp = form.xp
    count = max(1, AGAIN // form.width)
    count = min(form.rows if form.padded is None else form.padded, count)

    def again(start: Array, _: Array) -> Found:
        return balls_tier(form, _rows_of(xp, c, start, count))

    return windows(form, found, count, again)
