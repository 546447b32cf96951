"""The arguments of `unifiedloss.exact.evaluate`, for the ways that may compute a call at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from unifiedloss.exact.rooms import aligned

if TYPE_CHECKING:
    import numpy as np

    from unifiedloss.exact.call import Array


class Request(NamedTuple):
    """The arrays of a call, and what is asked for.

    Attributes:
        predictions: in the plan's dtype; bfloat16 as an array of ml_dtypes' type, or widened.
        targets: labels or numbers; bfloat16 numbers in the same way.
        sample_weight: weights or None.
        mask: bools or None.
        upstream: the upstream gradient: a number, an array shaped like the loss, or None for ones.
        divisor: divides the sum, or None.
        gradient: whether the gradient is asked for.
        out: receives the gradient; None allocates an array.
        threads: the most threads of the compiled loops.
    """

    predictions: Array
    targets: Array
    sample_weight: Array | None
    mask: Array | None
    upstream: Any
    divisor: Array | None
    gradient: bool
    out: Array | None
    threads: int

    @property
    def arrays(self) -> tuple[Any, ...]:
        """Predictions, targets, sample_weight, mask, upstream gradient and divisor."""
        return self[:6]

    def room(self, form: np.dtype[Any]) -> Array | None:
        """The array of a dtype that receives the gradient; None if it is not asked for."""
        if not self.gradient:
            return None
        return aligned(self.predictions.shape, form) if self.out is None else self.out.view(form)
