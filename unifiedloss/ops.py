"""The protocols an adapter implements: array operations and loss kernels."""

from __future__ import annotations

from typing import Any, Protocol

from unifiedloss.plan import Plan

Array = Any
"""A tensor of the adapter's framework."""


class Ops(Protocol):
    """Array operations that an adapter provides, each differentiable and traceable.

    Besides these, tensors must understand ``+ - * /``, ``< <= > >=`` and, where they are bool,
    ``& | ~``. They must also do so with Python numbers, which never change a tensor's dtype.
    """

    def cast(self, x: Array, dtype: str) -> Array:
        """`x` in another dtype, rounded to nearest."""

    def cast_labels(self, x: Array) -> Array:
        """Integer labels as int64, or as the widest integer dtype that the framework has.

        A label that is no class index must not become one.
        """

    def where(self, condition: Array, x: Array, y: Array | float) -> Array:
        """`x` where the condition holds, else `y`, broadcast, in the dtype of `x`."""

    def equal(self, x: Array, value: float) -> Array:
        """Whether each element equals the Python number."""

    def log(self, x: Array) -> Array:
        """The natural logarithm."""

    def log1p(self, x: Array) -> Array:
        """log(1 + x), to full relative precision near 0."""

    def stop_gradient(self, x: Array) -> Array:
        """`x` as a constant: no gradient flows through it."""

    def finite(self, x: Array) -> Array:
        """`x` with infinities replaced by finite numbers of their sign, 2^100 or more in size.

        The derivative is 1 everywhere.
        """

    def sum(self, x: Array) -> Array:
        """The sum of all elements."""

    def sum_axis(self, x: Array, axis: int) -> Array:
        """The sums along an axis, which disappears."""

    def any_axis(self, x: Array, axis: int) -> Array:
        """Whether any element along an axis is True; the axis disappears."""

    def count(self, condition: Array, dtype: str) -> Array:
        """The number of True elements, counted in integers and then cast."""

    def size(self, x: Array, dtype: str) -> Array:
        """The number of elements as a scalar tensor; used if it is unknown under tracing."""

    def expand(self, x: Array, axis: int) -> Array:
        """`x` with an axis of length 1 inserted."""

    def align(self, x: Array, reference: Array) -> Array:
        """`x` with axes of length 1 appended until it has the rank of `reference`."""

    def broadcast_like(self, x: Array, reference: Array) -> Array:
        """`x` repeated to the shape of `reference`."""

    def take_class(self, x: Array, index: Array, axis: int) -> Array:
        """For each position, the entry along the class axis that `index` names.

        The class axis disappears.
        """

    def constant(self, values: tuple[float, ...] | float, dtype: str, reference: Array) -> Array:
        """A scalar or vector of Python numbers, on the device of `reference`."""

    def take(self, vector: Array, index: Array) -> Array:
        """The entries of a vector at these indices."""

    def along(self, vector: Array, reference: Array, axis: int) -> Array:
        """A vector shaped so that it broadcasts against `reference` along `axis`."""

    def extent(self, x: Array, axis: int, dtype: str) -> Array:
        """The length of an axis as a scalar tensor; used if it is unknown under tracing."""

    def shapes_agree(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> tuple[Array, tuple[Array, Array, Array | None, Array | None]]:
        """Compare the extents that were unknown when the plan was made.

        The rules and messages are those of `unifiedloss.shapes`. It is called only if
        `plan.unchecked`.

        Returns:
            A bool scalar, whether all extents fit, and the four tensors. If the framework can raise
            from inside a compiled program, the returned tensors depend on the comparison, so that
            it runs first.
        """
        raise NotImplementedError


class Kernels(Protocol):
    """Loss kernels that an adapter provides, for compute-dtype arguments and valid labels."""

    def cross_entropy(self, logits: Array, labels: Array, axis: int) -> Array:
        """log sum exp z - z_y per position."""

    def log_softmax(self, logits: Array, axis: int) -> Array:
        """z_c - log sum exp z."""

    def softmax(self, logits: Array, axis: int) -> Array:
        """e^{z_c} / sum_j e^{z_j}."""

    def binary_cross_entropy(
        self, logits: Array, targets: Array, pos_weight: Array | None
    ) -> Array:
        """-(q t log sigma(z) + (1 - t) log sigma(-z)) per element, for finite logits."""

    def squared_error(self, predictions: Array, targets: Array) -> Array:
        """(p - t)^2 per element."""
