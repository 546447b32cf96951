"""How an adapter computes with the local parts of DTensors: the half that `TorchAdapter` lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from unifiedloss.adapter import Adapter
from unifiedloss.inputs import Signature
from unifiedloss.plan import Plan, resolve, resolve_divisor
from unifiedloss.spec import Loss

_MAX_PLANS = 4096


class LocalParts:
    """A mixin of `TorchAdapter` for one call, whose tensors are local parts.

    Its plans are made from the signatures that it is given, not from the tensors: those of the
    whole tensors, or those of the local positions with the whole class axis, as a piece.
    """

    def __init__(
        self, signatures: tuple[Signature | None, ...], operations: Any, kernels: Any
    ) -> None:
        super().__init__()
        self._signatures = signatures
        self.ops = operations
        self.kernels = kernels

    def readable(self, *tensors: Any) -> bool:
        """False, because a process that raises alone would leave the others waiting."""
        return False

    def plan(
        self, spec: Loss, predictions: Any, targets: Any, sample_weight: Any, mask: Any
    ) -> Plan:
        """The plan of the call."""
        return _resolved(resolve, spec, *self._signatures)

    def plan_of_divisor(
        self, spec: Loss, targets: Any, sample_weight: Any, mask: Any, dtype: str
    ) -> Plan:
        """The plan of the call's divisor."""
        return _resolved(resolve_divisor, spec, *self._signatures[1:], dtype=dtype)

    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Any:
        """The loss, without the short ways that `TorchAdapter` has for plain tensors."""
        this: Any = self
        return Adapter.loss(this, spec, predictions, targets, sample_weight, mask, divisor)


def _resolved(rule: Callable[..., Plan], *arguments: Any, **more: str) -> Plan:
    if torch.compiler.is_compiling():  # see `TorchAdapter.plan`
        return rule(*arguments, **more)
    return _known(rule, *arguments, **more)


@lru_cache(_MAX_PLANS)
def _known(rule: Callable[..., Plan], *arguments: Any, **more: str) -> Plan:
    return rule(*arguments, **more)
