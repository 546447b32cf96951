"""What users of PyTorch hold: an ``nn.Module``."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unifiedloss.spec import AnyLoss


class LossModule(nn.Module):
    """A spec as an ``nn.Module``, called with (predictions, targets).

    It has no parameters and no buffers, so its ``state_dict`` is empty and any checkpoint loads with or without it; the spec itself is
    kept by ``pickle`` and ``deepcopy``.
    """

    def __init__(self, spec: AnyLoss) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, predictions: Tensor, targets: Any, *, sample_weight: Any = None, mask: Any = None
    ) -> Tensor:
        """The loss; arguments and errors as for calling the spec."""
        # Looked up in the module, not bound in __init__: a module must survive pickling, and an adapter does not travel.
        from unifiedloss.adapters.torch import ADAPTER

        return ADAPTER.loss(self.spec, predictions, targets, sample_weight, mask)

    def extra_repr(self) -> str:
        """The spec, in what printing the module shows."""
        return repr(self.spec)
