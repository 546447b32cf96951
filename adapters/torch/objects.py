"""A spec as an ``nn.Module``, made by ``spec.to("torch")``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from unifiedloss.adapter import Adapter
from unifiedloss.spec import Loss


class LossModule(nn.Module):
    """A spec as an ``nn.Module``, called with (predictions, targets).

    It has no parameters and no buffers, so its ``state_dict`` is empty and any checkpoint loads
    with or without it. ``pickle`` and ``deepcopy`` keep the spec.
    """

    def __init__(self, spec: Loss, adapter: Adapter) -> None:
        super().__init__()
        self.spec = spec
        self._adapter = adapter

    __call__: Callable[..., Tensor]  # nn.Module declares that a call returns Any

    def forward(
        self,
        predictions: Tensor,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Tensor:
        """The loss; arguments and errors as for calling the spec."""
        return self._adapter.loss(self.spec, predictions, targets, sample_weight, mask, divisor)

    def extra_repr(self) -> str:
        """The spec, for the module's repr."""
        return repr(self.spec)
