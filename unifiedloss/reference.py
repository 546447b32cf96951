r"""The oracle: correctly rounded losses and gradients on Python's integers, fractions and decimals.

Every adapter is compared with it. `evaluate` computes the value and the closed-form gradients of a
loss, each *correctly rounded*: the number of the result's dtype nearest to the real number that the
spec defines, ties to even. It uses no framework and makes no floating-point rounding error.

`unifiedloss.oracle.reals` says how a number is rounded; the module `oracle` of each loss has its
formulas. If no number of digits decides a rounding, `evaluate` raises AssertionError; it never
guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unifiedloss.floats import FORMATS
from unifiedloss.oracle.extended import Extended, as_value, round_value
from unifiedloss.oracle.reduction import Reduction
from unifiedloss.oracle.softmax import Softmax, softmax
from unifiedloss.oracle.tensors import Tensor, tensor
from unifiedloss.spec import Loss

__all__ = ["Reference", "Softmax", "Tensor", "evaluate", "softmax", "tensor"]


@dataclass(frozen=True)
class Reference:
    """The expected results of a call.

    Attributes:
        loss: in the result dtype: one float under "sum" and "mean", a flat list in C order under
            "none".
        grad_predictions: flat, in the predictions' dtype. If the spec names a dtype, each number is
            rounded to that dtype first.
        grad_targets: flat, in the targets' dtype, rounded the same way; None for targets that are
            not floating.
        grad_sample_weight: flat, in the weights' dtype, or float64 for integer weights; None
            without weights.
        position_losses: sample_weight_i * l_i of every position, in float64: the terms of the sum,
            before any rounding to the result dtype.
        divisor: the divisor of the mean, in float64; None for other reductions.
        bad_positions: the positions that hold a bad value.
    """

    loss: float | list[float]
    grad_predictions: list[float] | None
    grad_targets: list[float] | None
    grad_sample_weight: list[float] | None
    position_losses: list[float]
    divisor: float | None
    bad_positions: tuple[int, ...]


def evaluate(
    spec: Loss,
    predictions: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    terms: Literal["real", "rounded"] = "real",
    upstream: float | Sequence[float] | None = None,
    divisor: Extended | None = None,
    gradients: bool | Literal["predictions"] = True,
) -> Reference:
    r"""Compute the loss and its gradients, each number correctly rounded to its dtype.

    N is the sum of s_i l_i over all kept positions, s_i the sample weight, and D the divisor. The
    mean is N / D and, for an upstream gradient u,

    $$\frac{\partial}{\partial x} = \frac{u\, s_i}{D} \frac{\partial \ell_i}{\partial x}, \qquad
    \frac{\partial}{\partial s_i}
    = u \Bigl(\frac{\ell_i}{D} - \frac{N \omega_i}{D^2}\Bigr), \qquad
    \frac{\partial}{\partial t_{ic}}
    = u s_i \Bigl(\frac{1}{D} \frac{\partial \ell_i}{\partial t_{ic}} - \frac{N w_c}{D^2}\Bigr)$$

    where the terms with N exist only under the divisor "weights", and
    $\omega_i = \sum_c w_c t_{ic}$ (1 without class weights). Under "sum" D is 1 and constant; under
    "none" u is one number per position. Bad values do not raise an error; they give NaN. With
    element weights $v_e$, $\ell_i = v_i \ell'_i$ and $\omega_i = v_i$. Where the m losses along the
    last axis are averaged, $\ell_i = \frac1m \sum_e v_e \ell_e$ and
    $\omega_i = \frac1m \sum_e v_e$.

    Args:
        spec: the loss.
        predictions: the predictions.
        targets: the targets.
        sample_weight: weights, aligned to the leading axes.
        mask: bools, aligned to the leading axes.
        terms: the terms of a reduction: the "real" per-position losses, or the losses "rounded" to
            float32 (float64 for float64 predictions), as in exact mode. In both cases the gradients
            are those of the real loss.
        upstream: the upstream gradient: a number, or under "none" a flat list. Default: ones.
        divisor: D, in place of the rule of the spec, whose reduction is "sum"; constant to all
            gradients.
        gradients: False computes no gradient, "predictions" only the gradient with respect to the
            predictions. The others are None.

    Raises:
        EmptyMeanError: the divisor is 0, and the spec says ``on_empty="error"``.
        ShapeError, DTypeError, SpecValueError: as `unifiedloss.plan.resolve`.
        AssertionError: the largest number of digits does not decide a rounding.
    """
    call = Reduction(spec, predictions, targets, sample_weight, mask, divisor)
    form = FORMATS[call.plan.result_dtype]
    by_predictions: list[float] | None = None
    by_targets: list[float] | None = None
    by_weight: list[float] | None = None
    if gradients:
        factors = call.factors(upstream)
        by_predictions = call.by_predictions(factors)
        if targets.dtype in FORMATS and gradients is True:
            by_targets = call.by_targets(factors)
        if sample_weight is not None and gradients is True:
            by_weight = call.by_sample_weight(factors)
    wide = FORMATS["float64"]
    mean = call.plan.spec.reduction == "mean"
    return Reference(
        loss=call.reduced(form, rounded=terms == "rounded"),
        grad_predictions=by_predictions,
        grad_targets=by_targets,
        grad_sample_weight=by_weight,
        position_losses=[round_value(loss, wide) for loss in call.losses],
        divisor=round_value(as_value(call.divisor), wide) if mean else None,
        bad_positions=call.bad_positions(),
    )
