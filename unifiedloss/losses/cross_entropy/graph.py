"""The categorical cross-entropy inside a compiled program: float64, and balls."""

from __future__ import annotations

from unifiedloss.exact.balls import U
from unifiedloss.exact.graph.balls import GraphBall
from unifiedloss.exact.graph.fast import EXP, LOG1P, exp64, in_order, scale64
from unifiedloss.exact.graph.form import Block, Form, Found, numbers, read
from unifiedloss.exact.graph.formulas import Parts, smoothing_constants
from unifiedloss.exact.graph.ops import Array
from unifiedloss.exact.graph.rounding import between, to_bits
from unifiedloss.exact.graph.sums import height, tree_sum


def float64(form: Form, c: Block) -> Found:
    """Compute rows in float64."""
    of_labels = form.plan.kind == "index" and not form.plan.label_smoothing
    return _index64(form, c) if of_labels else _dense64(form, c)


def balls(form: Form, c: Block) -> Parts:
    """Compute rows in balls."""
    of_labels = form.plan.kind == "index" and not form.plan.label_smoothing
    return _index_balls(form, c) if of_labels else _dense_balls(form, c)


def _index64(form: Form, c: Block) -> Found:
    """The cross-entropy of class indices: log(1 + S / e^z_y), without a shift.

    S is the sum of the other exponentials.
    """
    xp, k = form.xp, form.width
    exp = xp.barrier(exp64(xp, xp.float64(c.x)))
    own = xp.equal(xp.reshape(xp.arange(k), (1, k)), c.label)
    at_label = exp64(xp, c.at_label)
    others = tree_sum(xp, xp.where(own, 0.0, exp), k)
    total = others + at_label
    decided = (total > 1e-130) & (total < 1e130) & (at_label > 1e-130)
    weight = 1.0 if c.own_weight is None else c.own_weight
    own_scale = weight if c.weight is None else weight * c.weight
    sum_error = (height(k) + 1) * U + EXP
    loss = xp.log1p(others / at_label) * own_scale
    error = sum_error + EXP + LOG1P + 10 * U
    terms, differ = between(xp, loss * (1 - error), loss * (1 + error), form.term_dtype)
    undecided = differ | ~decided
    if not isinstance(own_scale, float):
        undecided = undecided | ~in_order(xp, own_scale)
    if not form.gradient:
        return Found(terms, None, undecided)
    scale = scale64(c) * weight
    error = sum_error + EXP + 14 * U
    ratio = scale / total
    label_slope = -others * ratio
    at, differ = between(xp, label_slope * (1 - error), label_slope * (1 + error), form.dtype)
    undecided = undecided | differ | ~in_order(xp, scale)
    # Exclude the label's element from the comparison. Otherwise the compiler would compute the
    # label's slope for every element.
    low, high = (xp.barrier(ratio * factor) for factor in (1 - error, 1 + error))
    slopes = to_bits(xp, exp * low, form.dtype)
    differ = xp.differs(to_bits(xp, exp * high, form.dtype), slopes) & ~own
    slopes = xp.where(own, xp.barrier(at), slopes)
    return Found(terms, slopes, undecided | xp.any(differ))


def _tau64(form: Form, c: Block) -> tuple[Array, float]:
    """The weighted, smoothed targets and their relative error."""
    xp, plan = form.xp, form.plan
    if plan.kind == "index":
        tau = xp.where(
            xp.equal(xp.reshape(xp.arange(form.width), (1, form.width)), c.label), 1.0, 0.0
        )
    else:
        tau = numbers(form, c)
    error = 0.0
    if plan.label_smoothing:
        tau = (1.0 - plan.label_smoothing) * tau + plan.label_smoothing / plan.shared_by
        error += 4 * U
    if c.class_weights is not None:
        tau = tau * c.class_weights
        error += U
    return tau, error


def _dense64(form: Form, c: Block) -> Found:
    """The cross-entropy of dense targets: sum_j tau_j (m - z_j) + T log(sum_j e^(z_j - m)).

    m is the largest logit.
    """
    xp, k = form.xp, form.width
    x = xp.float64(c.x)
    largest = xp.max(x)
    columns = xp.reshape(xp.arange(k), (1, k))
    top = xp.equal(columns, -xp.max(xp.where(xp.equal(x, largest), -columns, -k)))
    shifted = x - largest
    exp = xp.barrier(exp64(xp, shifted))
    tau, tau_error = _tau64(form, c)
    tau = xp.barrier(tau)
    sum_error = (height(k) + 1) * U
    # Rounding z - m errs by at most u |z - m|, and an exponential of less than -800 is 0.
    shift_error = xp.minimum(xp.max(-shifted), 800.0) * U
    others = tree_sum(xp, xp.where(top, 0.0, exp), k)
    apart = tree_sum(xp, xp.where(xp.differs(tau, 0), tau * -shifted, 0.0), k)
    weight = tree_sum(xp, tau, k)
    loss = apart + weight * xp.log1p(others)
    loss = loss if c.weight is None else loss * c.weight
    error = 2 * sum_error + tau_error + EXP + shift_error + LOG1P + 10 * U
    terms, undecided = between(xp, loss * (1 - error), loss * (1 + error), form.term_dtype)
    undecided = undecided | ~(abs(largest) < 1e300) | ~(abs(loss) < 1e300)
    if c.weight is not None:
        undecided = undecided | ~in_order(xp, c.weight)
    if not form.gradient:
        return Found(terms, None, undecided)
    scale = scale64(c)
    total = 1.0 + others
    error = 3 * sum_error + 2 * tau_error + EXP + shift_error + 18 * U
    # At the largest logit p is next to 1, so use (T - tau) - T s / (1 + s).
    rest = tree_sum(xp, xp.where(top, 0.0, tau), k)
    positive = xp.where(top, rest * scale, exp * (weight * scale / total))
    negative = xp.where(top, weight * scale * (others / total), tau * scale)
    middle = positive - negative
    spread = error * (abs(positive) + abs(negative))
    slopes, differ = between(xp, middle - spread, middle + spread, form.dtype)
    return Found(terms, slopes, undecided | ~in_order(xp, scale) | xp.any(differ))


def _softmax(form: Form, c: Block) -> tuple[GraphBall, Array, GraphBall, GraphBall]:
    """e^(z - m), the position of the largest logit m, the sum of the others, and z - m."""
    xp, f, k = form.xp, form.field, form.width
    z = read(xp, c.x, form.dtype)
    largest = xp.max(z)
    columns = xp.reshape(xp.arange(k), (1, k))
    top = xp.equal(columns, -xp.max(xp.where(xp.equal(z, largest), -columns, -k)))
    finite = xp.differs(z, -float("inf"))
    gap = GraphBall(f, *f.two_sum(xp.where(finite, z, largest), -largest))
    exp = gap.exp(z.shape).where(finite, 0.0).kept(z.shape)
    others = exp.where(~top, 0.0).sum(z.shape)
    # If the largest logit is not finite, leave the row undecided.
    undecided = ~(abs(largest) < float("inf"))
    radius = xp.where(undecided, float("inf"), others.radius)
    others = GraphBall(f, others.high, others.low, radius)
    return exp, top, others, gap


def _index_balls(form: Form, c: Block) -> Parts:
    """The cross-entropy of class indices."""
    xp, f = form.xp, form.field
    exp, top, others, gap = _softmax(form, c)
    own = xp.equal(xp.reshape(xp.arange(form.width), (1, form.width)), c.label)
    # Only one column is not 0, so the sum is exact in any order.
    apart = (-gap).where(own, 0.0).apply(xp.sum)
    # The loss is infinite where the label's logit is -inf. Balls cannot represent infinity.
    infinite = xp.any(own & xp.equal(read(xp, c.x, form.dtype), -float("inf")))
    total = GraphBall(f, 1.0) + others
    share = others.where(own & top, exp) / total
    one = GraphBall(f, xp.where(own & ~top, -1.0, 0.0))
    losses, slopes = (
        (apart, others.log1p(others.high.shape)),
        (one, (-share).where(own & top, share)),
    )
    if c.own_weight is None:
        return Parts(losses, slopes, infinite)
    weight = GraphBall(f, c.own_weight)
    infinite = infinite & xp.differs(c.own_weight, 0)
    return Parts(tuple(x * weight for x in losses), tuple(x * weight for x in slopes), infinite)


def _dense_balls(form: Form, c: Block) -> Parts:
    """The cross-entropy of targets for each class."""
    xp, f, plan = form.xp, form.field, form.plan
    exp, top, others, gap = _softmax(form, c)
    shape = exp.high.shape
    if plan.kind == "index":
        t = xp.where(
            xp.equal(xp.reshape(xp.arange(form.width), (1, form.width)), c.label), 1.0, 0.0
        )
    else:
        t = numbers(form, c)
    tau = GraphBall(f, t)
    if plan.label_smoothing:
        keep, share = smoothing_constants(f, plan.label_smoothing, plan.shared_by)
        tau = keep * tau + share
    if c.class_weights is not None:
        tau = GraphBall(f, c.class_weights) * tau
    finite = xp.differs(read(xp, c.x, form.dtype), -float("inf"))
    weight = tau.sum(shape)
    apart = (tau * -gap).sum(shape)
    # The loss is infinite where the target contains a class whose logit is -inf.
    infinite = xp.any(~finite & xp.differs(tau.high, 0))
    total = GraphBall(f, 1.0) + others
    exact = tau.where(~top, 0.0).sum(shape).where(top, -tau)
    rest = weight * ((-others).where(top, exp) / total)
    return Parts((apart, weight * others.log1p(others.high.shape)), (exact, rest), infinite)
