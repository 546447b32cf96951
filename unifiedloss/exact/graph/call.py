"""A call inside a compiled program: its arrays as rows, and the rows' results as a loss."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import quotient64
from unifiedloss.exact.graph.form import PADDED, Block, Form, Found, read
from unifiedloss.exact.graph.ops import Array, Field, GraphOps, hidden_zero
from unifiedloss.exact.graph.rounding import from_bits, nan_bits, to_bits
from unifiedloss.exact.graph.sums import exact_sum
from unifiedloss.exact.graph.tiers import in_blocks, mended
from unifiedloss.plan import Plan


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


class Padded(NamedTuple):
    """The number of positions of a call in which it is known only when the program runs.

    The positions are padded with some that the mask drops, and all are along one axis.

    Attributes:
        count: the number of positions, an int32.
        real: how many of them are no padding.
    """

    count: Array
    real: Array


class GraphCall:
    """A call inside a program: converts its arrays to rows, and rows to results.

    Args:
        xp: the framework's operations.
        plan: the plan of each example; `why_not` must return None for it.
        given: the arrays.
        gradient: whether to compute the gradient.
        padded: the number of positions, if the plan does not have it.
    """

    def __init__(
        self,
        xp: GraphOps,
        plan: Plan,
        given: Given,
        *,
        gradient: bool,
        padded: Padded | None = None,
    ) -> None:
        self.xp, self.plan, self.given = xp, plan, given
        self.examples: int = given.predictions.shape[0]
        assert plan.shape is not None
        known: Any = plan.positions
        self.positions: tuple[Array, ...] = known
        self.count: Array = None
        width = plan.classes
        if padded is None:
            self.count = self.real = math.prod(self.positions)
            width = width or _width(self.count)
        else:
            self.positions = (padded.count,)
            self.count, self.real = padded
            width = width or PADDED_WIDTH
        field = Field(xp, hidden_zero(xp, given.predictions, given.targets))
        term_dtype = plan.result_dtype if plan.spec.reduction == "none" else "float32"
        each = self.count if plan.axis is not None else self.count // width
        self.rows = self.examples * each
        part = None if padded is None else padded_rows(width)
        self.form = Form(plan, field, width, term_dtype, gradient, self.rows, part)
        self.divisor: GraphBall | None = None
        self.block = self._block()

    def _positions(self, x: Array) -> Array:
        """Broadcast an array aligned to the leading axes to (examples, positions)."""
        xp = self.xp
        shape = (self.examples, *self.positions)
        if len(x.shape) < len(shape):
            x = xp.reshape(x, (*x.shape, *[1] * (len(shape) - len(x.shape))))
        return xp.reshape(xp.broadcast(x, (self.examples, *shape[1:])), (self.examples, self.count))

    def _per_row(self, x: Array) -> Array:
        """Reshape (examples, positions), (examples, 1) or (1, 1) to rows."""
        xp = self.xp
        if tuple(x.shape) == (1, 1):
            return x
        if x.shape[1] != 1 and self.form.elementwise:
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
        bad = nan = ~yes
        if plan.kind == "index":
            labels = xp.int64(self._positions(given.targets))
            for ignored in plan.ignored_labels:
                present = present & xp.differs(labels, ignored)
            bad = (labels < 0) | (labels >= form.width)
            safe = xp.int32(xp.where(bad, 0, labels))
            label = xp.reshape(safe, (self.rows, 1))
            at_label = xp.float64(xp.along(x, label))
            if given.class_weights is not None:
                own_weight = xp.take(given.class_weights[0], safe)
        else:
            t = self._matrix(given.targets)
            bad, nan = self._bad_targets(t)
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
        bad, nan = bad & kept, nan & kept
        divisor = self._divisor(present, kept, bad, own_weight, weight) if form.mean else None
        parts: dict[str, Array] = {}
        if divisor is not None:
            empty = xp.equal(divisor.high, 0)
            self.divisor, self.empty = divisor, empty
            high, low, radius = divisor.high, divisor.low, divisor.radius
            parts = {
                "empty": self._per_row(empty),
                "divisor": self._per_row(xp.where(empty, 1.0, high)),
                "divisor_low": self._per_row(low),
                "divisor_radius": self._per_row(radius),
            }
        if given.pos_weight is not None:
            shape = (self.examples, *self.positions)
            wide = xp.broadcast(given.pos_weight[0], shape)
            pos_weight = self._per_row(xp.reshape(wide, (self.examples, self.count)))
        return Block(
            x=x,
            kept=self._per_row(kept),
            bad=self._per_row(bad | nan),
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

    def _bad_targets(self, t: Array) -> tuple[Array, Array]:
        """The positions with a bad target, and those that are NaN without having one."""
        xp, plan = self.xp, self.plan
        t = xp.float64(t)
        if plan.kind == "real":
            # Errors that are NaN, and numbers so small that flushing may make them 0.
            tiny = xp.differs(xp.left(xp.bits(t), 1), 0) & (abs(t) < 1e-290)
            nan = tiny | xp.isnan(xp.float64(self._matrix(self.given.predictions)) - t)
            bad = nan & False
        else:
            bad, nan = (t <= -plan.tiny_target) | xp.equal(t, float("inf")), xp.isnan(t)
        if plan.kind == "dense":
            bad, nan = xp.any(bad), xp.any(nan)
        elif plan.kind == "binary":
            bad = bad | (t > 1)
        shape = (self.examples, self.count)
        return xp.reshape(bad, shape), xp.reshape(nan, shape)

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
            count = xp.reshape(xp.constant(self.real, "float64"), (1, 1))
            return GraphBall(f, count, zero, zero)
        if rule == "present" or (weight is None and own_weight is None):
            return self._counted(present)
        if rule == "nonzero":
            return self._counted(
                kept if own_weight is None else kept & (bad | xp.differs(own_weight, 0))
            )
        one = xp.constant(1.0, "float64")
        first = xp.where(kept & ~bad, one if own_weight is None else own_weight, 0.0)
        if weight is None:
            total = exact_sum(f, first, self.count)
        elif own_weight is None:
            total = exact_sum(f, xp.where(bad, 0.0, weight), self.count)
        else:
            product, error = f.two_prod(first, xp.where(bad, 0.0, weight))
            # `error` is not exact where it underflows, so the divisor is unknown then.
            lost = xp.any(xp.differs(product, 0) & (abs(product) < 2.0**-800))
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
            bits = xp.reshape(terms, (self.examples, *self.positions))
            return xp.of_bits(bits, plan.result_dtype), None
        values = from_bits(xp, xp.reshape(terms, (self.examples, self.count)), form.term_dtype)
        rough = xp.sum(values)
        finite = abs(rough) < float("inf")
        total = exact_sum(form.field, xp.where(finite, values, 0.0), self.count)
        divisor = None if self.divisor is None else self.divisor.where(~self.empty, 1.0)
        nan = nan_bits(plan.result_dtype)
        if careful and divisor is not None:
            bits, undecided = self._divided(total, divisor)
        elif careful:
            bits, undecided = total.kept((self.examples, 1)).rounded(plan.result_dtype)
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

    def _divided(self, total: GraphBall, divisor: GraphBall) -> tuple[Array, Array]:
        """Divide a sum by a divisor in balls, and round.

        A quotient too close to a tie for a ball is compared with the tie: the sum with the product
        of tie and divisor.
        """
        xp, dtype = self.xp, self.plan.result_dtype
        total, divisor = (x.kept((self.examples, 1)) for x in (total, divisor))
        first, last, known = (total / divisor).kept((self.examples, 1)).ends(dtype)
        # The ends are neighbours of the same sign, so float64 holds what is half way between them.
        neighbours = xp.equal(abs(first - last), 1)
        f = self.form.field
        tie = GraphBall(f, 0.5 * (from_bits(xp, first, dtype) + from_bits(xp, last, dtype)))
        # The high parts cancel without an error, which is why the low parts are apart.
        rest = GraphBall(f, total.high) - tie * GraphBall(f, divisor.high)
        rest = rest + GraphBall(f, total.low, 0.0, total.radius)
        rest = rest - tie * GraphBall(f, divisor.low, 0.0, divisor.radius)
        above = rest.high * (1 - 2.0**-40) > rest.radius
        below = -rest.high * (1 - 2.0**-40) > rest.radius
        exactly = xp.equal(rest.high, 0) & xp.equal(rest.low, 0) & xp.equal(rest.radius, 0)
        even = xp.where(xp.equal(first & 1, 0), first, last)
        bits = xp.where(above, last, xp.where(exactly, even, first))
        decided = neighbours & (above | below | exactly)
        return xp.where(known, first, bits), ~(known | decided)

    def known_loss(self, terms: Array) -> Array:
        """Reduce rounded terms to the loss, where no host can decide it; NaN if it is undecided."""
        loss, undecided = self.loss(terms, careful=True)
        if undecided is None:
            return loss
        return self.xp.where(undecided, self.xp.constant(math.nan, self.plan.result_dtype), loss)

    def gradient(self, slopes: Array) -> Array:
        """Reshape the slopes of the rows to the gradient, (examples, *shape)."""
        xp, plan = self.xp, self.plan
        assert plan.shape is not None
        if plan.axis is None:
            return xp.reshape(slopes, (self.examples, *self.positions))
        rows = xp.reshape(slopes, (self.examples, *self.positions, self.form.width))
        if plan.axis == len(plan.shape) - 1:
            return rows
        return xp.moved(rows, len(plan.shape), plan.axis + 1)


PADDED_WIDTH = 128
"""Elements per row of a loss without classes, where their number is unknown."""


def padded_rows(width: int) -> int:
    """To a multiple of how many rows a call is padded."""
    return max(1, PADDED // width)


def _width(count: int) -> int:
    """Elements per row: the largest divisor of the count from 32 to 1024.

    If there is none, all elements make one row up to 1024, and each makes its own row above.
    """
    for width in range(min(count, 1024), 31, -1):
        if count % width == 0:
            return width
    return count if count <= 1024 else 1
