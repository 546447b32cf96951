"""The categorical cross-entropy of one row, and that of log-probabilities, in exact numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from unifiedloss.oracle.extended import (
    NAN,
    NOTHING,
    Extended,
    Value,
    as_value,
    combined,
    extended,
    scaled,
    times,
)
from unifiedloss.oracle.positions import Position, PositionRules, poisoned
from unifiedloss.oracle.reals import ONE, ZERO, Real
from unifiedloss.oracle.rounding import INFINITY
from unifiedloss.oracle.softmax import SoftmaxRow


def position(
    rules: PositionRules,
    predictions: Sequence[float],
    targets: Sequence[float],
    pos_weight: Fraction,  # noqa: ARG001 - only the binary cross-entropy has one
) -> Position:
    r"""One row of a cross-entropy.

    $$\ell = \sum_c \tau_c (-\log p_c), \qquad
    \frac{\partial \ell}{\partial z_c} = T p_c - \tau_c, \quad T = \sum_c \tau_c, \qquad
    \frac{\partial \ell}{\partial p_c} = -\frac{\tau_c}{p_c}, \qquad
    \frac{\partial \ell}{\partial t_c} = w_c (1 - \epsilon_s)(-\log p_c)$$

    Where class weights multiply positions, with $W = \sum_c w_c t_c$ and
    $\ell = W \sum_c t'_c (-\log p_c)$,

    $$\frac{\partial \ell}{\partial t_c}
    = w_c \sum_k t'_k (-\log p_k) + W (1 - \epsilon_s)(-\log p_c)$$
    """
    size = len(predictions)
    w = rules.class_weights
    if rules.plan.kind == "index":
        (label,) = targets
        if not 0 <= label < size:
            return poisoned(size)
        sparse = {int(label): ONE}
    else:
        if any(t <= -rules.tiny_target or math.isinf(t) for t in targets):
            return poisoned(size)
        if any(math.isnan(t) for t in targets):
            return poisoned(size, ONE if w is None else NAN, bad=False)
        sparse = {c: t for c, t in enumerate(map(rules.target, targets)) if t}
    weight = ONE if w is None else sum((w[c] * t for c, t in sparse.items()), ZERO)
    smoothed = {c: rules.kept_target * t for c, t in sparse.items()} if rules.kept_target else {}
    if rules.spread:
        smoothed = {c: smoothed.get(c, ZERO) + rules.spread for c in range(size)}
    # All entries with t'_c != 0 are read, also those with the class weight 0.
    tau = smoothed
    if rules.plan.class_weighting == "position":
        tau = {c: weight * t for c, t in smoothed.items()}
    elif w is not None:
        tau = {c: w[c] * t for c, t in smoothed.items()}
    if rules.plan.log_probabilities:
        return _from_log_probabilities(rules, predictions, tau, weight)
    if rules.plan.from_logits:
        position, costs = _from_logits(rules, predictions, tau, weight)
    elif rules.plan.renormalize:
        position, costs = _renormalized(rules, predictions, tau, weight)
    else:
        position, costs = _from_probabilities(rules, predictions, tau, weight)
    if rules.plan.kind == "index" or not costs:
        return position
    return position._replace(targets=_by_targets(rules, costs, smoothed, weight))


def _from_log_probabilities(
    rules: PositionRules, predictions: Sequence[float], tau: dict[int, Fraction], weight: Extended
) -> Position:
    r"""One row of any numbers: $\ell = \sum_c \tau_c (-x_c)$.

    An entry with $\tau_c = 0$ is not read.
    """
    costs = [as_value(extended(0.0 - x)) for x in predictions]
    loss = combined((t, costs[c]) for c, t in tau.items() if t)
    gradient: list[Value] = [Real(-tau.get(c, ZERO)) for c in range(len(predictions))]
    targets: list[Value] = []
    if rules.plan.kind == "dense":
        for c, cost in enumerate(costs):
            # The loss does not read an entry with tau_c = 0, but its derivative by t_c does,
            # unless the entry is infinite or NaN.
            read = tau.get(c) or isinstance(cost, Real)
            targets.append(_by_target(rules, c, cost if read else NOTHING))
    return Position(loss, gradient, targets, weight)


def _from_logits(
    rules: PositionRules, logits: Sequence[float], tau: dict[int, Fraction], weight: Extended
) -> tuple[Position, list[Value]]:
    """One row of logits.

    Returns:
        The position without its derivatives by the targets, and the costs -log p_c. The next
        two methods return the same.
    """
    size = len(logits)
    if any(z != z or z == INFINITY for z in logits) or max(logits) == -INFINITY:
        return poisoned(size, weight, bad=False), []
    row = SoftmaxRow(logits, rules.partitions)
    total = sum(tau.values(), ZERO)
    gradient: list[Value] = []
    for c, p in enumerate(row.probabilities):
        rational = total * p.rational - tau[c] if c in tau else total * p.rational
        gradient.append(
            Real(rational, tuple((total * b, node) for b, node in p.terms) if total else ())
        )
    loss: Value
    if any(t and logits[c] == -INFINITY for c, t in tau.items()):
        loss = INFINITY
    else:
        gaps = sum((t * row.gap(c) for c, t in tau.items() if t), ZERO)
        loss = Real(
            gaps, tuple((total * b, node) for b, node in row.log_sum.terms) if total else ()
        )
    costs: list[Value] = []
    if rules.plan.kind == "dense":
        for c, z in enumerate(logits):
            if z == -INFINITY:
                costs.append(INFINITY if tau.get(c) else NOTHING)
            else:
                costs.append(Real(row.gap(c), row.log_sum.terms))
    return Position(loss, gradient, [], weight), costs


def _from_probabilities(
    rules: PositionRules, predictions: Sequence[float], tau: dict[int, Fraction], weight: Extended
) -> tuple[Position, list[Value]]:
    """One row of probabilities."""
    size = len(predictions)
    if any(rules.is_bad_probability(predictions[c]) for c in tau):
        return poisoned(size), []
    gradient: list[Value] = [NOTHING] * size
    costs: list[Value] = [NOTHING] * size
    parts: list[tuple[Extended, Value]] = []
    for c, t in tau.items():
        if math.isnan(predictions[c]):
            gradient[c] = costs[c] = NAN
            parts.append((ONE, NAN))
            continue
        p, clipped = rules.probability(predictions[c])
        if t:
            gradient[c] = NOTHING if clipped else Real(-t / p) if p else -INFINITY
            costs[c] = rules.log(p)
            parts.append((t, costs[c]))
        elif p:
            costs[c] = rules.log(p)
    for c, number in enumerate(predictions if rules.plan.kind == "dense" else ()):
        # The loss does not read entries outside tau, but their derivatives by t_c do, unless
        # the entry is NaN or not a probability.
        if c not in tau and not math.isnan(number) and not rules.is_bad_probability(number):
            p, _ = rules.probability(number)
            costs[c] = rules.log(p) if p else NOTHING
    return Position(combined(parts), gradient, [], weight), costs


def _renormalized(
    rules: PositionRules, predictions: Sequence[float], tau: dict[int, Fraction], weight: Extended
) -> tuple[Position, list[Value]]:
    r"""One row of non-negative numbers, all of which are read.

    $$-\log q_c = -\log\mathrm{clip}(p_c / S) \quad\text{or}\quad
    -\log(\mathrm{clip}(p_c) / S), \qquad
    \frac{\partial \ell}{\partial p_k} = \frac{T}{S} - \frac{\tau_k}{p_k}$$

    For "before_clip" (the first form), S is the sum of p. T is the sum of $\tau_c$ over the
    unclipped classes, and only they have the term $\tau_k / p_k$. For "after_clip" (the second
    form), S is the sum of $\mathrm{clip}(p)$ and T the sum of all $\tau_c$. The derivative by a
    clipped class is 0, also in a row with a NaN.
    """
    size = len(predictions)
    if any(map(rules.is_bad_probability, predictions)):
        return poisoned(size), []
    first = rules.plan.renormalize == "before_clip"
    if any(map(math.isnan, predictions)):
        position = poisoned(size, weight, bad=False)
        if first:
            return position, []
        constant = [not math.isnan(p) and rules.clipped(rules.share(p))[1] for p in predictions]
        slopes: list[Value] = [NOTHING if clipped else NAN for clipped in constant]
        return position._replace(predictions=slopes), []
    shares = [rules.share(p) for p in predictions]
    if first:
        total = sum(shares, ZERO)
        if not total:
            return poisoned(size, weight, bad=False), []
        clips = [rules.clipped(p / total) for p in shares]
        probabilities = [q for q, _ in clips]
        moving = sum((t for c, t in tau.items() if not clips[c][1]), ZERO)
    else:
        clips = [rules.clipped(p) for p in shares]
        total = sum((p for p, _ in clips), ZERO)
        probabilities = [p / total for p, _ in clips]
        moving = sum(tau.values(), ZERO)
    gradient: list[Value] = []
    for k, (p, (_, clipped)) in enumerate(zip(shares, clips, strict=True)):
        if clipped:
            gradient.append(Real(moving / total if first else ZERO))
        else:
            gradient.append(Real(moving / total - tau.get(k, ZERO) / p))
    costs = [rules.log(q) for q in probabilities]
    loss = combined((t, costs[c]) for c, t in tau.items())
    return Position(loss, gradient, [], weight), costs


def _by_targets(
    rules: PositionRules, costs: list[Value], smoothed: dict[int, Fraction], weight: Extended
) -> list[Value]:
    """The derivatives by the targets. Every infinity in `costs` must be part of the loss."""
    if rules.plan.class_weighting == "entries":
        return [_by_target(rules, c, cost) for c, cost in enumerate(costs)]
    assert rules.class_weights is not None
    own = combined((t, costs[c]) for c, t in smoothed.items() if t)
    through = times(weight, rules.kept_target)
    return [
        combined((factor, x) for factor, x in ((w, own), (through, cost)) if factor)
        for w, cost in zip(rules.class_weights, costs, strict=True)
    ]


def _by_target(rules: PositionRules, c: int, cost: Value) -> Value:
    """w_c (1 - eps_s) (-log p_c); 0 where the factor is 0, even for p_c = 0."""
    factor = rules.kept_target
    if rules.class_weights is not None:
        factor = factor * rules.class_weights[c]
    return NOTHING if not factor and cost == INFINITY else scaled(factor, cost)
