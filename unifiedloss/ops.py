"""What an adapter brings: array operations and loss kernels, under one set of names."""

from __future__ import annotations

from typing import Any, Protocol

from unifiedloss.plan import Plan

Array = Any
"""A tensor of whichever framework the operations belong to."""


class Ops(Protocol):
    """Array operations an adapter brings, each differentiable and traceable.

    Besides these, tensors must understand ``+ - * /``, ``< <= > >=`` and, where they are bool,
    ``& | ~``. They must also do so with Python numbers, which never change a tensor's dtype.
    """

    def cast(self, x: Array, dtype: str) -> Array:
        """`x` in another dtype, rounded to nearest."""

    def cast_labels(self, x: Array) -> Array:
        """Integer labels as int64, or as the framework's widest signed integer.

        No label changes its meaning.
        """

    def where(self, condition: Array, x: Array, y: Array | float) -> Array:
        """`x` where the condition holds, else `y`, broadcast; the dtype of `x`."""

    def equal(self, x: Array, value: float) -> Array:
        """Whether each element equals the Python number."""

    def log(self, x: Array) -> Array:
        """The natural logarithm."""

    def log1p(self, x: Array) -> Array:
        """log(1 + x), to full relative precision near 0."""

    def stop_gradient(self, x: Array) -> Array:
        """`x`, constant to differentiation."""

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
        """How many elements are True: counted in integers, then cast."""

    def size(self, x: Array, dtype: str) -> Array:
        """How many elements `x` has, as a scalar tensor, where that is unknown under tracing."""

    def expand(self, x: Array, axis: int) -> Array:
        """`x` with an axis of length 1 inserted."""

    def align(self, x: Array, reference: Array) -> Array:
        """`x` with axes of length 1 appended until it has the rank of `reference`."""

    def broadcast_like(self, x: Array, reference: Array) -> Array:
        """`x` repeated to the shape of `reference`."""

    def take_class(self, x: Array, index: Array, axis: int) -> Array:
        """The entry of each position that the index names along the class axis.

        The class axis disappears.
        """

    def constant(self, values: tuple[float, ...] | float, dtype: str, reference: Array) -> Array:
        """A scalar or vector of Python numbers, on the device of `reference`."""

    def take(self, vector: Array, index: Array) -> Array:
        """The entries of a vector that the index names."""

    def along(self, vector: Array, reference: Array, axis: int) -> Array:
        """A vector shaped so that it broadcasts against `reference` along `axis`."""

    def extent(self, x: Array, axis: int, dtype: str) -> Array:
        """The length of an axis, as a scalar tensor, where it is unknown under tracing."""

    def shapes_agree(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> tuple[Array, tuple[Array, Array, Array | None, Array | None]]:
        """Compare extents the plan could not know.

        The rules and messages are those of `unifiedloss.shapes`. Only called where the plan says
        `unchecked`.

        Returns:
            Whether all extents fit, a bool scalar, and the four tensors. Where the framework can
            raise an error from inside a program, the tensors depend on the comparison.
        """
        raise NotImplementedError


class Kernels(Protocol):
    """Loss kernels an adapter brings. Arguments are in the compute dtype, and labels are valid."""

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
