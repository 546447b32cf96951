"""The spec of the squared error."""

from __future__ import annotations

from unifiedloss.spec import Elementwise


class MeanSquaredError(Elementwise):
    r"""Squared error, elementwise, then reduced.

    $$\ell = (p - t)^2$$

    without the factor 1/2 of some definitions. Predictions are floating, of any shape; targets
    have the same shape and are floating, integer (of magnitude at most 2^53) or bool. The
    per-position loss has the predictions' shape.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        assert ul.MeanSquaredError()(np.array([1.0, 2.0]), np.array([0.0, 4.0])) == 2.5
        ```

    Source: ``torch.nn.MSELoss`` without its broadcasting; ``optax.losses.l2_loss`` is half of it.
    """

    name = "mean_squared_error"

    def has_fused_kernel(self, kind: str, predictions: str, targets: str) -> bool:  # noqa: ARG002
        """See `Loss.has_fused_kernel`."""
        return targets == predictions
