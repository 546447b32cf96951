"""A `Quirk`: one rule of other libraries' losses that no field of a spec can express.

`unifiedloss.interop.quirks` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.sides import Array, Input, Outcome, kinds_of, same
from unifiedloss.spec import Elementwise, Loss

Of = Literal["value", "gradient", "digits", "gradient_digits", "sign", "dtype", "shape"]

ELEMENTS = (Elementwise,)
"""The spec classes without a class axis."""

When = Callable[[Loss, Call | None], bool]
"""Whether a quirk applies to a loss, by its spec and its call; a plain spec has no call."""


@dataclass(frozen=True, eq=False)
class Quirk:
    """One rule that no field of a spec can express.

    Attributes:
        name: the name of the rule in a difference.
        losses: the spec classes the rule applies to.
        spec: what a spec does, in a sentence.
        libraries: what the libraries with the quirk do, in a sentence. A key is the name of a loss
            or the beginning of several names.
        inputs: makes the inputs on which the two results differ, the smallest first.
        predictions: "logits" or "probabilities" if the rule applies only to such predictions.
        kind: "index" or "dense" if the rule applies only to losses that take such targets.
        of: what is compared: values ("value"), values and gradients ("gradient"), the leading
            digits of either, the sign of the values, their dtype, or their shape.
        digits: the relative difference up to which digits count as equal.
        when: which settings the rule applies to; None for all.
    """

    name: str
    losses: tuple[type[Loss], ...]
    spec: str
    libraries: Mapping[str, str]
    inputs: Callable[[Layout], Iterator[Input]]
    predictions: Literal["logits", "probabilities"] | None = None
    kind: Literal["index", "dense"] | None = None
    of: Of = "value"
    digits: float = 1e-3
    when: When | None = None

    def concerns(self, spec: Loss, call: Call | None) -> bool:
        """Whether the rule applies to this loss and its settings."""
        if not isinstance(spec, self.losses):
            return False
        if self.when is not None and not self.when(spec, call):
            return False
        if self.predictions is not None and getattr(spec, "from_logits", None) is not (
            self.predictions == "logits"
        ):
            return False
        return self.kind is None or call is None or self.kind in kinds_of(call.name)

    def sentence(self, call: Call | None) -> str:
        """What the loss of a call does, or a spec if `call` is None."""
        if call is not None:
            name = keyed(call)
            # One key may begin with another, so the longest match decides. An empty sentence
            # excludes a loss: it does what a spec does.
            prefix = max(filter(name.startswith, self.libraries), key=len, default=None)
            if prefix is not None and self.libraries[prefix]:
                return self.libraries[prefix]
        return self.spec

    def has(self, call: Call) -> bool:
        """Whether the loss of a call has this quirk."""
        return self.sentence(call) != self.spec

    def differ(self, a: Outcome, b: Outcome) -> bool:
        """Whether two outcomes differ in the quantity that `of` names."""
        if self.of in ("value", "gradient"):
            return not same(a, b, gradients=self.of == "gradient")
        if a.value is None or b.value is None:
            return False
        if self.of == "dtype":
            return bool(a.value.dtype != b.value.dtype)
        if self.of == "shape":
            return a.value.shape != b.value.shape
        pair: tuple[Array | None, Array | None] = (a.value, b.value)
        if self.of == "gradient_digits":
            pair = (a.gradient, b.gradient)
        first, second = pair
        if first is None or second is None or first.size != second.size:
            return False
        x, y = (np.asarray(each, np.float64).ravel() for each in (first, second))
        if self.of == "sign":
            return bool(np.any(np.signbit(x) != np.signbit(y)))
        digits = self.digits
        if first.dtype == second.dtype != np.float64:
            digits = max(digits, 1e-6)
        return not np.allclose(x, y, rtol=digits, atol=0.0, equal_nan=True)


def keyed(call: Call) -> str:
    """The name of a call, with the backend of Keras: "keras[torch].losses.MeanSquaredError"."""
    if call.library != "keras":
        return call.name
    return call.name.replace("keras", f"keras[{call.backend or 'tensorflow'}]", 1)
