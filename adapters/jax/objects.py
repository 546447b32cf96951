"""A spec as a pure function, made by ``spec.to("jax")``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unifiedloss import registry
from unifiedloss.spec import Loss

if TYPE_CHECKING:
    from jax import Array


class LossFunction:
    """A spec as a pure function of (predictions, targets).

    It works under ``jax.jit``, ``jax.grad`` and ``jax.vmap``. It hashes and compares by its spec,
    so it can be a static argument of a jitted function: two equal ones compile once.
    """

    def __init__(self, spec: Loss) -> None:
        self.spec = spec
        self.__name__ = self.__qualname__ = spec.name  # jax.jit names the compiled function so

    def __call__(
        self,
        predictions: Any,
        targets: Any,
        *,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Array:
        """The loss; arguments and errors as for calling the spec."""
        adapter = registry.adapter("jax")
        loss: Array = adapter.loss(self.spec, predictions, targets, sample_weight, mask, divisor)
        return loss

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LossFunction):
            return NotImplemented
        return self.spec == other.spec

    def __hash__(self) -> int:
        return hash((LossFunction, self.spec))

    def __repr__(self) -> str:
        return f"LossFunction({self.spec!r})"
