"""How the compiled loops read probabilities: what their plan says of them."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from unifiedloss import compiled
from unifiedloss.exact.balls import two_prod
from unifiedloss.exact.call import LARGEST_SHARE, Array
from unifiedloss.floats import TORCH_LEAST_SPREAD
from unifiedloss.plan import Plan


@lru_cache(4096)
def clip_of(plan: Plan, *, factor_is_exact: bool = False) -> Array:
    """The bytes of a `compiled.CLIP`.

    Args:
        plan: a plan of probabilities or their logarithms.
        factor_is_exact: whether the factors of the slopes have no error.
    """
    found = np.zeros((), compiled.CLIP)
    rule = "logarithms" if plan.log_probabilities else "unclipped"
    if plan.clip is not None and plan.bounds is not None:
        rule = "clipped"
        low, gap = plan.bounds
        # The largest float64 that is not above the real number 1 - gap.
        high = 1.0 - gap
        if Fraction(high) > 1 - Fraction(gap):
            high = math.nextafter(high, 0.0)
        found["bounds"], found["gap"] = (low, high), gap
        found["costs"], found["complements"] = plan.clip.costs, plan.clip.complement_costs
    elif plan.clamped:
        rule = "clamped"
        found["least"] = TORCH_LEAST_SPREAD
    elif plan.epsilon_added:
        rule = "added"
        found["added"] = plan.epsilon_added
    found["rule"] = compiled.CLIPS.index(rule)
    found["shares"] = compiled.SHARES.index(plan.renormalize)
    found["tiny"] = plan.tiny
    found["most"] = LARGEST_SHARE if plan.renormalize else plan.probability_limit
    found["factor_is_exact"] = factor_is_exact
    # Bytes, because the address of an array with fields takes longer to ask for.
    return found.reshape(1).view(np.uint8)


def soft_of(
    module: Any, plan: Plan, targets: Array, *, factor_is_exact: bool
) -> compiled.Soft | None:
    """What the targets of a cross-entropy are, where they are not single classes of logits."""
    soft: compiled.Soft | None = None if plan.classes is None else module.soft(plan, targets)
    if soft is None or plan.from_logits:
        return soft
    return soft._replace(clip=clip_of(plan, factor_is_exact=factor_is_exact))


def scaled(
    plan: Plan, soft: compiled.Soft | None, weight: Array | None, n: int
) -> tuple[compiled.Soft, Array | None] | None:
    """The class weights and the weights of n positions with the scale of a plan, or None.

    The loop takes class weights of log-probabilities as exact, because their products are often
    half way between two results. So it gets no scale whose products with them are rounded.
    """
    scale = np.float64(plan.scale)
    if soft is None or soft.clip is None:
        return None
    if not plan.log_probabilities:
        return soft, np.full(n, scale) if weight is None else weight * scale
    own = np.ones(plan.classes or 0) if soft.class_weights is None else soft.class_weights
    product, lost = two_prod(own, scale)
    return None if lost.any() else (soft._replace(class_weights=product), weight)
