r"""Exact mode inside a compiled program, for JAX and for XLA in TensorFlow.

It runs the tiers of `unifiedloss.exact.kernel` as array operations. A call is a matrix: a row is a
position with its classes or, for losses without classes, a group of elements. All rows go through
float64 with bounds (`unifiedloss.exact.graph_fast`), in blocks, so that no float64 copy of all rows
exists. Rows with an undecided number are computed again, few at a time: by a host callback where
the caller has one, else in balls (`unifiedloss.exact.graph_formulas`). A number that balls leave
undecided is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from unifiedloss.exact.graph_balls import GraphBall
from unifiedloss.exact.graph_fast import binary64, dense64, index64, quotient64, regression64
from unifiedloss.exact.graph_form import Block, Form, Found, read
from unifiedloss.exact.graph_formulas import (
    Parts,
    binary_balls,
    dense_balls,
    index_balls,
    regression_balls,
    scaled_loss,
    scaled_slope,
)
from unifiedloss.exact.graph_ops import Array, Field, GraphOps, hidden_zero
from unifiedloss.exact.graph_rounding import from_bits, to_bits
from unifiedloss.exact.graph_sums import exact_sum
from unifiedloss.floats import FORMATS
from unifiedloss.plan import Plan

BLOCK = 1 << 15
"""Elements per block in float64, so that the block and its results fit the second-level cache."""

AGAIN = 1 << 15
"""Elements per block that balls compute again."""

skipped_tiers: set[str] = set()
"""Tiers that leave everything undecided, for tests: "float64", "balls". Read at tracing."""


# ------------------------------------------------------------------------------------ the two tiers


class Kind(NamedTuple):
    """The functions of both tiers for one kind of loss."""

    float64: Callable[[Form, Block], Found]
    balls: Callable[[Form, Block], Parts]


def kind_of(plan: Plan) -> Kind:
    """The functions of both tiers for a plan."""
    if plan.kind == "index" and not plan.label_smoothing:
        return Kind(index64, index_balls)
    if plan.kind in ("index", "dense"):
        return Kind(dense64, dense_balls)
    if plan.kind == "binary":
        return Kind(binary64, binary_balls)
    return Kind(regression64, regression_balls)


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
    found = _settled(form, c, kind_of(form.plan).float64(form, c))
    slopes = None if found.slopes is None else form.xp.of_bits(found.slopes, form.dtype)
    left = found.left
    if "float64" in skipped_tiers:
        left = left | (c.kept if not form.elementwise else form.xp.any(c.kept))
    return Found(found.terms, slopes, left)


def balls_tier(form: Form, c: Block) -> Found:
    """Compute rows in balls. Undecided numbers become NaN, and their rows stay left."""
    xp = form.xp
    losses, slopes_of, infinite = kind_of(form.plan).balls(form, c)
    wide = c.x.shape[0], form.width if form.elementwise else 1
    terms, undecided = scaled_loss(form, c, losses).kept(wide).rounded(form.term_dtype)
    shape = c.x.shape
    if infinite is not None:
        weight = 1.0 if c.weight is None else c.weight
        weight = weight if c.own_weight is None else weight * c.own_weight
        # Leave the row undecided where another number of it may be NaN, and for the weight 0,
        # because 0 * inf is undefined at this point.
        known = (losses[1].radius < float("inf")) & (xp.constant(weight, "float64") > 0)
        infinity = to_bits(xp, xp.constant(float("inf"), "float64"), form.term_dtype)
        terms = xp.where(infinite, infinity, terms)
        undecided = xp.where(infinite, ~known, undecided)
    if "balls" in skipped_tiers:
        undecided = undecided | True
    undecided = undecided | c.bad
    terms = xp.where(undecided, _nan(form.term_dtype), terms)
    undecided = undecided & c.kept
    left = xp.any(undecided) if form.elementwise else undecided
    slopes = None
    if form.gradient:
        slopes, doubtful = scaled_slope(form, c, slopes_of).kept(shape).rounded(form.dtype)
        if "balls" in skipped_tiers:
            doubtful = doubtful | True
        doubtful = xp.broadcast(doubtful | c.bad, shape)
        slopes = xp.where(doubtful, _nan(form.dtype), slopes)
        left = left | xp.any(doubtful & (c.kept if c.empty is None else c.kept & ~c.empty))
    found = _settled(form, c, Found(terms, slopes, left))
    slopes = None if found.slopes is None else xp.of_bits(found.slopes, form.dtype)
    return Found(xp.broadcast(found.terms, (shape[0], terms.shape[1])), slopes, left)


def _nan(dtype: str) -> int:
    """The bits of a NaN."""
    form = FORMATS[dtype]
    width = 32 if form.precision == 24 else 16
    return ((1 << (width - form.precision)) - 1) << (form.precision - 1) | 1 << (form.precision - 2)


def in_blocks(form: Form, c: Block) -> Found:
    """Compute all rows in float64, a block at a time."""
    xp = form.xp
    n, k = c.x.shape
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
    n = found.left.shape[0]
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


def _first(xp: GraphOps, flags: Array, n: int) -> Array:
    """The first row whose flag is set, a scalar int32; n if none is set."""
    return xp.reshape(-xp.max(xp.where(xp.reshape(flags, (n,)), -xp.arange(n), -n)), ())


def mended(form: Form, c: Block, found: Found) -> Found:
    """Compute the undecided rows again in balls, few at a time. Numbers still undecided are NaN."""
    xp = form.xp
    n, k = c.x.shape
    count = min(n, max(1, AGAIN // k))

    def again(start: Array, _: Array) -> Found:
        return balls_tier(form, _rows_of(xp, c, start, count))

    return windows(form, found, count, again)


# -------------------------------------------------------------------------------------- a full call


class Given(NamedTuple):
    """The arrays of a call, each with a leading axis of examples. Missing arrays are None.

    Each example is reduced separately. The weights of the spec are repeated for every example.
    They are not constants for JAX, because JAX would batch those too.
    """

    predictions: Array
    targets: Array
    sample_weight: Array | None
    mask: Array | None
    upstream: Array | None
    class_weights: Array | None
    pos_weight: Array | None


class GraphCall:
    """A call inside a program: converts its arrays to rows, and rows to results.

    Args:
        xp: the framework's operations.
        plan: the plan of each example; `why_not` must return None for it.
        given: the arrays.
        gradient: whether to compute the gradient.
    """

    def __init__(self, xp: GraphOps, plan: Plan, given: Given, *, gradient: bool) -> None:
        self.xp, self.plan, self.given = xp, plan, given
        self.examples: int = given.predictions.shape[0]
        assert plan.shape is not None
        assert plan.positions is not None
        self.count = math.prod(plan.positions)  # type: ignore[arg-type]
        width = _width(self.count) if plan.axis is None else plan.shape[plan.axis]
        assert width is not None
        field = Field(xp, hidden_zero(xp, given.predictions, given.targets))
        term_dtype = plan.result_dtype if plan.spec.reduction == "none" else "float32"
        self.form = Form(plan, field, width, term_dtype, gradient)
        self.rows = self.examples * math.prod(plan.shape) // width  # type: ignore[arg-type]
        self.divisor: GraphBall | None = None
        self.block = self._block()

    def _positions(self, x: Array) -> Array:
        """Broadcast an array aligned to the leading axes to (examples, positions)."""
        xp, plan = self.xp, self.plan
        shape = (self.examples, *plan.positions)  # type: ignore[misc]
        x = xp.reshape(x, (*x.shape, *[1] * (len(shape) - len(x.shape))))
        return xp.reshape(xp.broadcast(x, (self.examples, *shape[1:])), (self.examples, self.count))

    def _per_row(self, x: Array) -> Array:
        """Reshape (examples, positions), (examples, 1) or (1, 1) to rows."""
        xp = self.xp
        if tuple(x.shape) == (1, 1):
            return x
        if x.shape[1] == self.count and self.form.elementwise:
            return xp.reshape(x, (self.rows, self.form.width))
        each = self.rows // self.examples
        return xp.reshape(xp.broadcast(x, (self.examples, each)), (self.rows, 1))

    def _matrix(self, x: Array) -> Array:
        """Reshape (examples, *shape) to rows, with the classes along each row."""
        axis = self.plan.axis
        if axis is not None and axis != len(self.plan.shape) - 1:  # type: ignore[arg-type]
            x = self.xp.moved(x, axis + 1, len(x.shape) - 1)
        return self.xp.reshape(x, (self.rows, self.form.width))

    def _block(self) -> Block:
        xp, plan, given, form = self.xp, self.plan, self.given, self.form
        x = self._matrix(given.predictions)
        label = t = at_label = own_weight = weight = pos_weight = None
        yes = xp.broadcast(xp.constant(True, "bool"), (self.examples, self.count))  # noqa: FBT003
        present = yes if given.mask is None else self._positions(given.mask)
        bad = ~yes
        if plan.kind == "index":
            labels = xp.int64(self._positions(given.targets))
            for ignored in plan.ignored_labels:
                present = present & (labels != ignored)
            bad = (labels < 0) | (labels >= form.width)
            safe = xp.int32(xp.where(bad, 0, labels))
            label = xp.reshape(safe, (self.rows, 1))
            at_label = xp.float64(xp.along(x, label))
            if given.class_weights is not None:
                own_weight = xp.take(given.class_weights[0], safe)
        else:
            t = self._matrix(given.targets)
            bad = self._bad_targets(t, bad)
        kept = present
        if given.sample_weight is not None:
            weight = self._positions(xp.float64(given.sample_weight))
            size = abs(weight)
            # Compare as in the compute dtype, which rounds a weight half an ulp below its smallest
            # normal number up to that number.
            least = plan.tiny_weight * (1 - 2.0**-24 if plan.compute_dtype == "float32" else 1)
            kept = present & ~(size < least)
            bad = bad | ~(size < float("inf"))
            if form.mean and plan.divisor == "weights":
                bad = bad | (weight < 0)
            weight = xp.where(kept, weight, 0.0)
        bad = bad & kept
        divisor = self._divisor(present, kept, bad, own_weight, weight) if form.mean else None
        parts: dict[str, Array] = {}
        if divisor is not None:
            empty = divisor.high == 0
            self.divisor, self.empty = divisor, empty
            high, low, radius = divisor.high, divisor.low, divisor.radius
            parts = {
                "empty": self._per_row(empty),
                "divisor": self._per_row(xp.where(empty, 1.0, high)),
                "divisor_low": self._per_row(low),
                "divisor_radius": self._per_row(radius),
            }
        if given.pos_weight is not None:
            shape = (self.examples, *plan.positions)  # type: ignore[misc]
            wide = xp.broadcast(given.pos_weight[0], shape)
            pos_weight = self._per_row(xp.reshape(wide, (self.examples, self.count)))
        return Block(
            x=x,
            kept=self._per_row(kept),
            bad=self._per_row(bad),
            label=label,
            at_label=at_label,
            t=t,
            own_weight=None if own_weight is None else self._per_row(own_weight),
            weight=None if weight is None else self._per_row(weight),
            pos_weight=pos_weight,
            class_weights=None if given.class_weights is None else given.class_weights[:1],
            upstream=self._upstream() if form.gradient else None,
            **parts,
        )

    def _upstream(self) -> Array:
        u = self.given.upstream
        if u is None:
            return self.xp.constant([[1.0]], "float64")
        u = read(self.xp, u, u.dtype.name)
        if self.plan.spec.reduction == "none":
            return self._per_row(self._positions(u))
        return self._per_row(self.xp.reshape(u, (self.examples, 1)))

    def _bad_targets(self, t: Array, bad: Array) -> Array:
        xp, plan = self.xp, self.plan
        t = xp.float64(t)
        if plan.kind == "regression":
            # Numbers that are not finite, and numbers so small that flushing may make them 0.
            tiny = (xp.left(xp.bits(t), 1) != 0) & (abs(t) < 1e-290)
            predictions = xp.float64(self._matrix(self.given.predictions))
            flags = tiny | ~(abs(t) < float("inf")) | ~(abs(predictions) < float("inf"))
        else:
            flags = (t <= -plan.tiny_target) | ~(abs(t) < float("inf"))
        if plan.kind == "dense":
            flags = xp.any(flags)
        elif plan.kind == "binary":
            flags = flags | (t > 1)
        return bad | xp.reshape(flags, (self.examples, self.count))

    def _divisor(
        self,
        present: Array,
        kept: Array,
        bad: Array,
        own_weight: Array | None,
        weight: Array | None,
    ) -> GraphBall:
        xp, plan, f = self.xp, self.plan, self.form.field
        rule = plan.divisor
        if rule == "all":
            zero = xp.constant([[0.0]], "float64")
            return GraphBall(f, xp.constant([[float(self.count)]], "float64"), zero, zero)
        if rule == "present" or (weight is None and own_weight is None):
            return self._counted(present)
        if rule == "nonzero":
            return self._counted(kept if own_weight is None else kept & (bad | (own_weight != 0)))
        one = xp.constant(1.0, "float64")
        first = xp.where(kept & ~bad, one if own_weight is None else own_weight, 0.0)
        if weight is None:
            total = exact_sum(f, first, self.count)
        elif own_weight is None:
            total = exact_sum(f, xp.where(bad, 0.0, weight), self.count)
        else:
            product, error = f.two_prod(first, xp.where(bad, 0.0, weight))
            # `error` is not exact where it underflows, so the divisor is unknown then.
            lost = xp.any((product != 0) & (abs(product) < 2.0**-800))
            total = exact_sum(f, xp.concatenate([product, error]), 2 * self.count)
            total = total.where(~lost, float("nan"))
        known = total.radius <= abs(total.high) * 2.0**-60
        return total.where(~xp.any(bad) & known, float("nan"))

    def _counted(self, which: Array) -> GraphBall:
        xp = self.xp
        count = xp.sum(xp.float64(xp.where(which, 1.0, 0.0)))
        return GraphBall(self.form.field, count, 0.0 * count, 0.0 * count)

    def found(self) -> Found:
        """Compute all rows in float64."""
        return in_blocks(self.form, self.block)

    def mended(self, found: Found) -> Found:
        """Compute the rows that float64 left undecided in balls."""
        return mended(self.form, self.block, found)

    def loss(self, terms: Array, *, careful: bool) -> tuple[Array, Array | None]:
        """Reduce rounded terms to the loss.

        Args:
            terms: bits of the rounded losses of the rows.
            careful: whether to divide in balls. Otherwise float64 divides, which finds ties too.

        Returns:
            The loss, (examples, ...), and the examples for which it is undecided, or None under
            "none", where every loss is decided.
        """
        xp, plan, form = self.xp, self.plan, self.form
        if plan.spec.reduction == "none":
            bits = xp.reshape(terms, (self.examples, *plan.positions))  # type: ignore[misc]
            return xp.of_bits(bits, plan.result_dtype), None
        values = from_bits(xp, xp.reshape(terms, (self.examples, self.count)), form.term_dtype)
        rough = xp.sum(values)
        finite = abs(rough) < float("inf")
        total = exact_sum(form.field, xp.where(finite, values, 0.0), self.count)
        divisor = None if self.divisor is None else self.divisor.where(~self.empty, 1.0)
        nan = _nan(plan.result_dtype)
        if careful:
            mean = total if divisor is None else total / divisor
            bits, undecided = mean.kept((self.examples, 1)).rounded(plan.result_dtype)
        else:
            bits, undecided = quotient64(form, total, divisor)
        # Infinities and NaN among the terms sum as in float64. The sign of a NaN is unspecified.
        special = xp.where(xp.isnan(rough), nan, to_bits(xp, rough, plan.result_dtype))
        bits = xp.where(finite, bits, special)
        undecided = undecided & finite
        if self.divisor is not None:
            undecided = undecided | ~(self.divisor.high >= 0)
            bits = xp.where(self.empty, 0 if plan.spec.on_empty == "zero" else nan, bits)
            undecided = undecided & ~self.empty
        loss = xp.of_bits(xp.reshape(bits, (self.examples,)), plan.result_dtype)
        return loss, xp.reshape(undecided, (self.examples,))

    def gradient(self, slopes: Array) -> Array:
        """Reshape the slopes of the rows to the gradient, (examples, *shape)."""
        xp, plan = self.xp, self.plan
        assert plan.shape is not None
        if plan.axis is None or plan.axis == len(plan.shape) - 1:
            return xp.reshape(slopes, (self.examples, *plan.shape))  # type: ignore[arg-type]
        assert plan.positions is not None
        shape = (self.examples, *plan.positions, self.form.width)
        rows = xp.reshape(slopes, shape)  # type: ignore[arg-type]
        return xp.moved(rows, len(plan.shape), plan.axis + 1)


def _width(count: int) -> int:
    """Elements per row: the largest divisor of the count from 32 to 1024.

    If there is none, all elements make one row up to 1024, and each makes its own row above.
    """
    for width in range(min(count, 1024), 31, -1):
        if count % width == 0:
            return width
    return count if count <= 1024 else 1
