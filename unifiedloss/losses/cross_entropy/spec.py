"""The spec of the categorical cross-entropy."""

from __future__ import annotations

from typing import Any

from unifiedloss.checks import boolean, clip_bound, one_of, optional, unit_interval
from unifiedloss.errors import SpecValueError
from unifiedloss.field import field
from unifiedloss.losses.probabilities import (
    epsilon_sentence,
    from_logits_sentence,
    label_smoothing_sentence,
    refuse_clipped_logits,
)
from unifiedloss.spec import Categorical, ClassWeighting, Epsilon, Renormalize, Scaled
from unifiedloss.text import Text


def _class_weighting(spec: Any) -> Text:
    without = "" if spec.class_weights is not None else "; there are none"
    if spec.class_weighting == "entries":
        return Text.of(f"class weights multiply the entries of the smoothed target{without}")
    return Text.of(f"class weights multiply the whole loss of a position{without}")


class CrossEntropyLoss(Categorical, Scaled):
    r"""Categorical cross-entropy of the target and the predicted distribution, in nats.

    $$\ell_i = \sum_c \tau_{ic}\,(-\log p_{ic}), \qquad
    \tau_{ic} = w_c\,t'_{ic}, \qquad t' = (1-\epsilon_s)\,t + \epsilon_s/K$$

    with $p = \mathrm{softmax}(z)$ when `from_logits`. A class index $y$ is the one-hot target
    $t_c = [c = y]$: same value, same gradient, same divisor. $0 \log 0 = 0$.

    Predictions are floating, shaped (..., K) or with the K classes on `axis`. Targets of an integer
    dtype are class indices, shaped like the predictions without the class axis; targets of a
    floating dtype are dense and shaped like the predictions. Only the dtype decides between the
    two. The per-position loss has the predictions' shape without the class axis.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.CrossEntropyLoss(from_logits=True)
        loss = spec(np.array([[2.0, 1.0, 0.0]]), np.array([0]))
        assert abs(loss - 0.4076059644443803) < 1e-15
        ```

    Source: where the frameworks differ, the rules are those of ``torch.nn.CrossEntropyLoss``,
    except that by default no label is ignored.
    """

    name = "cross_entropy"
    prediction_kind = "probabilities"

    from_logits: bool = field(
        default=False,
        fast_paths=True,
        check=boolean,
        doc="False: predictions are probabilities. True: softmax is part of the loss.",
        sentence=from_logits_sentence("softmax"),
    )
    epsilon: Epsilon = field(
        default=0.0,
        fast_paths=True,
        check=clip_bound("keras", "sklearn"),
        doc="probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the "
        'gradient is 0 where it clips. Only with ``from_logits=False``. "keras": 1e-7, with both '
        'bounds rounded to the predictions\' dtype, as in Keras. "sklearn": the distance from 1 to '
        "the next larger number of the predictions' dtype.",
        sentence=epsilon_sentence,
        late_values={"keras": 2, "sklearn": 2},
    )
    label_smoothing: float = field(
        default=0.0,
        fast_paths=True,
        check=unit_interval,
        doc=r"the amount $\epsilon_s$ in [0, 1], spread evenly over the K classes. Smoothing that "
        r"spreads $\epsilon$ over the K - 1 other classes, as in fairseq, is "
        r"$\epsilon_s = \epsilon K / (K - 1)$.",
        sentence=label_smoothing_sentence("K classes"),
    )
    renormalize: Renormalize | None = field(
        default=None,
        fast_paths=True,
        check=optional(one_of("before_clip", "after_clip")),
        doc="None, or predictions are non-negative numbers that are divided by their sum over the "
        'classes, "before_clip" or "after_clip". Under "after_clip" the predictions are clipped as '
        "they are, then divided by the sum of the clipped numbers. Only with an `epsilon`.",
        sentence={
            None: "predictions are not divided by their sum over the classes",
            "before_clip": "predictions are divided by their sum over the classes, then clipped",
            "after_clip": "predictions are clipped, then divided by their sum over the classes",
        },
        since=2,
        group="ported",
    )
    class_weighting: ClassWeighting = field(
        default="entries",
        fast_paths=True,
        check=one_of("entries", "position"),
        doc='what class weights multiply. "entries": the entries of the smoothed target, as above. '
        r'"position": the whole loss of a position, by $\sum_c w_c t_c$, so that '
        r"$\tau_{ic} = t'_{ic} \sum_k w_k t_{ik}$, as for ``class_weight`` of Keras' ``fit``. "
        "W_i is the same in both cases.",
        sentence=_class_weighting,
        since=2,
        group="ported",
    )

    def _check_together(self) -> None:
        super()._check_together()
        refuse_clipped_logits(self)
        if self.renormalize is not None and not self.epsilon:
            msg = (
                f"renormalize={self.renormalize!r} needs an epsilon to clip to: a probability of 0 "
                "would make the gradient of all others undefined; set one, as in epsilon='keras'."
            )
            raise SpecValueError(msg)

    def has_fused_kernel(self, kind: str, predictions: str, targets: str) -> bool:
        """See `Loss.has_fused_kernel`."""
        return self.from_logits and targets == ("int64" if kind == "index" else predictions)
