"""The spec of the Huber loss."""

from __future__ import annotations

from typing import Any

from unifiedloss.checks import positive
from unifiedloss.errors import SpecValueError
from unifiedloss.field import field
from unifiedloss.spec import Elementwise
from unifiedloss.text import Text, number, quoted

_LEAST, _MOST = 2.0**-126, 2.0**126


def _threshold(name: str, value: object) -> float:
    """Check that float32 holds a threshold, and all that the loss computes from it."""
    found: float = positive(name, value)
    if not _LEAST <= found <= _MOST:
        msg = f"{name} must be a number from 2^-126 to 2^126, got {quoted(value)}."
        raise SpecValueError(msg)
    return found


def _delta(spec: Any) -> Text:
    return Text.of(f"errors above {number(spec.delta)} cost linearly, smaller ones quadratically")


class HuberLoss(Elementwise):
    r"""Huber loss, elementwise: quadratic near zero, linear beyond `delta`.

    $$\ell = \begin{cases} \tfrac12 e^2 & |e| \le \delta \\
    \delta\,(|e| - \tfrac12 \delta) & |e| > \delta \end{cases}, \qquad e = p - t$$

    Predictions are floating, of any shape; targets have the same shape and are floating, integer
    (of magnitude at most 2^53) or bool. The per-position loss has the predictions' shape. The
    gradient is $e$ clipped to $[-\delta, \delta]$.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.HuberLoss(delta=1.0, reduction="none")
        assert spec(np.array([0.5, 3.0]), np.array([0.0, 0.0])).tolist() == [0.125, 2.5]
        ```

    Source: ``torch.nn.HuberLoss`` without its broadcasting. ``torch.nn.SmoothL1Loss`` is this loss
    divided by `delta`, which torch calls beta.
    """

    name = "huber"
    since = 2

    delta: float = field(
        default=1.0,
        fast_paths=True,
        check=_threshold,
        doc=r"the threshold $\delta$ from which on the loss is linear, from 2^-126 to 2^126.",
        sentence=_delta,
    )
