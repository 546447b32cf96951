"""The spec of the binary cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unifiedloss.checks import (
    boolean,
    clip_bound,
    integer,
    optional,
    unit_interval,
    weight_or_weights,
)
from unifiedloss.errors import SpecValueError
from unifiedloss.field import field
from unifiedloss.losses.probabilities import (
    epsilon_sentence,
    from_logits_sentence,
    label_smoothing_sentence,
    refuse_clipped_logits,
)
from unifiedloss.spec import Elementwise, Epsilon
from unifiedloss.text import Text


def _pos_weight(spec: Any) -> Text:
    if spec.pos_weight is None:
        return Text.of("the positive term is not weighted")
    return Text.of("multiplies the positive term, and never counts in the divisor")


def _pos_weight_axis(spec: Any) -> Text:
    runs = "run" if isinstance(spec.pos_weight, tuple) else "would run"
    if spec.axis is None:
        return Text.of(
            f"several positive weights {runs} along the last axis of predictions with one axis or "
            "two; with more it must be named"
        )
    return Text.of(f"several positive weights {runs} along axis {spec.axis}")


class BinaryCrossEntropyLoss(Elementwise):
    r"""Binary cross-entropy, elementwise: every element is a classification of its own.

    $$\ell = -\bigl(q\,t' \log p + (1 - t') \log(1 - p)\bigr), \qquad
    t' = (1-\epsilon_s)\,t + \epsilon_s/2$$

    with $p = \sigma(z)$ when `from_logits`. $0 \log 0 = 0$ in both terms.

    Predictions are floating, of any shape; targets have the same shape, are bool, integer or
    floating, and lie in [0, 1]. The per-position loss has the predictions' shape.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.BinaryCrossEntropyLoss(from_logits=True)
        loss = spec(np.array([0.0]), np.array([1]))
        assert abs(loss - np.log(2)) < 1e-15
        ```

    Source: ``torch.nn.BCEWithLogitsLoss`` for `pos_weight`. Logarithms are not clamped unless
    ``epsilon="torch"``, unlike those of ``torch.nn.BCELoss``.
    """

    name = "binary_cross_entropy"
    prediction_kind = "probabilities"
    target_kind = "binary"

    from_logits: bool = field(
        default=False,
        fast_paths=True,
        check=boolean,
        doc="False: predictions are probabilities. True: the sigmoid is part of the loss.",
        sentence=from_logits_sentence("sigmoid"),
    )
    epsilon: Epsilon = field(
        default=0.0,
        fast_paths=True,
        check=clip_bound("keras", "sklearn", "torch"),
        doc="probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the "
        'gradient is 0 where it clips. Only with ``from_logits=False``. "keras" and "sklearn": as '
        'for `CrossEntropyLoss`. "torch": as in ``torch.nn.BCELoss``, logarithms are clamped at '
        r"-100, and the gradient is $(p - t') / \max(p (1 - p), 10^{-12})$, with $10^{-12}$ in "
        "float32; this is not the derivative of the clamped loss.",
        sentence=epsilon_sentence,
        late_values={"keras": 2, "sklearn": 2, "torch": 2},
    )
    pos_weight: float | Sequence[float] | None = field(
        default=None,
        fast_paths=True,
        check=optional(weight_or_weights),
        doc="the factor q of the positive term: a number, or one per entry of `axis`. It never "
        'counts in the divisor. Not with ``epsilon="torch"``.',
        sentence=_pos_weight,
    )
    axis: int | None = field(
        default=None,
        fast_paths=True,
        check=optional(integer),
        doc="the axis along which several numbers in `pos_weight` run. None: the last one where "
        "predictions have at most 2 axes; from 3 axes up it must be named, as for the "
        "cross-entropy.",
        sentence=_pos_weight_axis,
        since=2,
    )
    label_smoothing: float = field(
        default=0.0,
        fast_paths=True,
        check=unit_interval,
        doc=r"the amount $\epsilon_s$ in [0, 1], spread evenly over the 2 answers.",
        sentence=label_smoothing_sentence("2 answers"),
    )
    epsilon_added: bool = field(
        default=False,
        fast_paths=True,
        check=boolean,
        doc=r"whether epsilon is added inside the logarithms, $-\log(p + \epsilon)$ and "
        r"$-\log(1 - p + \epsilon)$, instead of being a bound. Only with a number as `epsilon`.",
        sentence={
            True: "epsilon is added inside the logarithms instead of clipping to it; the gradient "
            "never vanishes",
            False: "epsilon is a bound of probabilities, and is not added to them",
        },
        since=2,
        group="ported",
    )

    def _check_together(self) -> None:
        super()._check_together()
        refuse_clipped_logits(self)
        if self.epsilon_added and (isinstance(self.epsilon, str) or not self.epsilon):
            msg = (
                f"epsilon_added=True needs a positive number as epsilon, got {self.epsilon!r}; set "
                "one, as in epsilon=1e-7."
            )
            raise SpecValueError(msg)
        if self.epsilon == "torch" and self.pos_weight is not None:
            msg = (
                "epsilon='torch' follows torch.nn.BCELoss, which has no pos_weight; use "
                "from_logits=True, which has one."
            )
            raise SpecValueError(msg)

    def has_fused_kernel(self, kind: str, predictions: str, targets: str) -> bool:  # noqa: ARG002
        """See `Loss.has_fused_kernel`."""
        plain = not self.label_smoothing and self.pos_weight is None
        return self.from_logits and plain and targets == predictions
