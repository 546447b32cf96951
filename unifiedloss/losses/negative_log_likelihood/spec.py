"""The spec of the negative log-likelihood."""

from __future__ import annotations

from unifiedloss.spec import Categorical, scale_field


class NegativeLogLikelihoodLoss(Categorical):
    r"""Negative log-likelihood: the cross-entropy of log-probabilities.

    $$\ell_i = \sum_c \tau_{ic}\,(-x_{ic}), \qquad \tau_{ic} = w_c\,t_{ic}$$

    A class index $y$ is the one-hot target $t_c = [c = y]$. Entries with $\tau_{ic} = 0$ are not
    read. Predictions may be any numbers, because logarithms of densities may be positive; that they
    are log-probabilities is not checked. Shapes, dtypes and kinds of targets are those of
    `CrossEntropyLoss`. If you have logits, `CrossEntropyLoss` is the safer choice.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        log_probabilities = np.array([[-0.5, -1.0], [-2.0, -0.25]])
        assert ul.NegativeLogLikelihoodLoss()(log_probabilities, np.array([0, 1])) == 0.375
        ```

    Source: ``torch.nn.NLLLoss``, except that by default no label is ignored.
    """

    name = "negative_log_likelihood"
    since = 2
    prediction_kind = "log_probabilities"

    scale: float = scale_field(since=3)
