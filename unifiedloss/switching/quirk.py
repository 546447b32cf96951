"""One rule of other libraries' losses that no spec can say, as `unifiedloss.switching.quirks` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unifiedloss.spec import AnyLoss, Elementwise, Loss
from unifiedloss.switching.inputs import Layout
from unifiedloss.switching.library_loss import Call
from unifiedloss.switching.sides import Input, Outcome, kinds_of, same

Of = Literal["value", "gradient", "digits", "gradient_digits", "sign", "dtype", "shape"]

ELEMENTS = (Elementwise,)
"""The losses that have no classes."""

When = Callable[[AnyLoss, Call | None], bool]


@dataclass(frozen=True, eq=False)
class Quirk:
    """One rule that no spec can say.

    Attributes:
        name: what it is called in a difference.
        losses: the kinds of specs that it is about.
        spec: what a spec does, in a sentence.
        native: what the libraries do that have it, by the beginning of the names of their losses.
        inputs: what shows it, the smallest first.
        predictions: "logits" or "probabilities", where it is about such alone.
        kind: "index" or "dense", where it is about losses that take such targets.
        of: what is compared: values, values and gradients, the leading digits of either, the sign of values, their dtype, or their shape.
        digits: how many digits count, as a relative difference.
        when: which settings of a loss it is about, by its spec and its call, where not all; the call is None for a loss that has none.
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

    def concerns(self, spec: AnyLoss, call: Call | None) -> bool:
        """Whether a loss takes what this rule is about."""
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
        """What a side does: the loss of a call, or a spec."""
        if call is not None:
            name = keyed(call)
            # A name may begin with another: the longest that fits decides, and an empty text is what a spec does.
            found = max(
                (prefix for prefix in self.libraries if name.startswith(prefix)),
                key=len,
                default=None,
            )
            if found is not None and self.libraries[found]:
                return self.libraries[found]
        return self.spec

    def has(self, call: Call) -> bool:
        """Whether the loss of a call has this rule."""
        return self.sentence(call) != self.spec

    def differ(self, a: Outcome, b: Outcome) -> bool:
        """Whether two outcomes differ in what this rule is about."""
        if self.of in ("value", "gradient"):
            return not same(a, b, gradients=self.of == "gradient")
        if a.value is None or b.value is None:
            return False
        if self.of == "dtype":
            return bool(a.value.dtype != b.value.dtype)
        if self.of == "shape":
            return a.value.shape != b.value.shape
        first, second = (
            (a.gradient, b.gradient) if self.of == "gradient_digits" else (a.value, b.value)
        )
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
    """The name of a call, with the framework that Keras runs on: "keras[torch].losses.MeanSquaredError"."""
    if call.library != "keras":
        return call.name
    return call.name.replace("keras", f"keras[{call.backend or 'tensorflow'}]", 1)
