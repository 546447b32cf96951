"""What a case is: a spec and NumPy arrays; and what a loss's folder says about its cases.

The oracle (`unifiedloss.reference`) computes a case's expected result, `tolerances` bounds the
deviation, and `checks` runs it in a backend.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import reference
from unifiedloss.floats import FORMATS
from unifiedloss.spec import Loss

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Made:
    """How a program makes the predictions of a case itself, before it computes their loss.

    Attributes:
        way: the key of `unifiedloss.conformance.fused.WAYS`.
        sources: the program's inputs from which it makes them, with their dtypes as in NumPy. The
            suite compares the gradient to the first.
    """

    way: str
    sources: tuple[Array, ...]


@dataclass(frozen=True)
class Fusible:
    """A call whose predictions a program can make itself; `fused.fused_cases` says how.

    Attributes:
        name: unique.
        spec: the loss.
        wanted: about the predictions that a program is to make, float32. Two axes.
        targets: the targets for the predictions that it makes.
        rules: as in `Case`.
        ways: the ways to make them; None for all.
    """

    name: str
    spec: Loss
    wanted: Array
    targets: Callable[[Array], Array]
    rules: tuple[str, ...]
    ways: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a loss, and the modes it runs in.

    Attributes:
        name: unique; "edge/...", "rules/...", "product/...", "random/..." or "fused/...".
        spec: the loss.
        predictions: values, already rounded to `dtype`.
        targets: values, in their own dtype.
        sample_weight: values or None.
        mask: values or None.
        dtype: the predictions' dtype. NumPy has no bfloat16, so a float32 array holds its values.
        upstream: the upstream gradient; None for ones.
        compiled: whether it also runs in compiled modes, where each case needs a compilation.
        representative: whether it also runs in the modes whose compilation is costly.
        of_backend: whether Keras may skip it in modes that compile, because Keras calls the same
            code as the backend below it, and that backend compiles the case itself.
        rules: the ids, on the page Rules, of the rules that it proves.
        made: how the program makes the predictions; None where they are inputs.
    """

    name: str
    spec: Loss
    predictions: Array
    targets: Array
    sample_weight: Array | None = None
    mask: Array | None = None
    dtype: str = "float32"
    upstream: float | Array | None = None
    compiled: bool = False
    representative: bool = False
    of_backend: bool = False
    rules: tuple[str, ...] = ()
    made: Made | None = None

    def dtypes(self) -> set[str]:
        """The floating dtypes that a backend needs for the case's tensors."""
        given = (self.targets, self.sample_weight)
        return {self.dtype, *(x.dtype.name for x in given if x is not None)} & FORMATS.keys()

    def is_wide(self) -> bool:
        """Whether an array of the case is float64, or the spec names that dtype."""
        return "float64" in {*self.dtypes(), getattr(self.spec, "dtype", None)}

    def rounded(self, rounding: str) -> Case:
        """The same call, with results rounded "native" or "exact"."""
        return dataclasses.replace(self, spec=self.spec.replace(rounding=rounding))

    def differentiated(self) -> list[str]:
        """The arguments to differentiate by: the floating ones.

        In exact mode the gradients to the others are native, so few cases repeat them.
        """
        others = {"targets": self.targets, "sample_weight": self.sample_weight}
        if self.spec.rounding == "exact" and not self.representative:
            return ["predictions"]
        return [
            "predictions",
            *(name for name, x in others.items() if x is not None and x.dtype.name in FORMATS),
        ]

    def expected(self) -> reference.Reference:
        """The oracle's result."""
        upstream: Any = self.upstream
        if isinstance(upstream, np.ndarray):
            upstream = upstream.ravel().tolist()
        return reference.evaluate(
            self.spec,
            _tensor(self.predictions, self.dtype),
            _tensor(self.targets, self.targets.dtype.name),
            None
            if self.sample_weight is None
            else _tensor(self.sample_weight, self.sample_weight.dtype.name),
            None if self.mask is None else _tensor(self.mask, "bool"),
            terms="rounded" if self.spec.rounding == "exact" else "real",
            upstream=upstream,
        )


@dataclass(frozen=True, eq=False)
class BadCall:
    """A call that must fail, with the same error class and message in every backend.

    Attributes:
        name: unique.
        spec: the loss.
        predictions: values.
        targets: values.
        sample_weight: values or None.
        mask: values or None.
        reads: whether the mistake is in a value and not in a shape or dtype. Tracing sees no
            values, so nothing is raised there.
        rules: as in `Case`.
    """

    name: str
    spec: Loss
    predictions: Array
    targets: Array
    sample_weight: Array | None = None
    mask: Array | None = None
    reads: bool = False
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SoftmaxCase:
    """One call of `unifiedloss.softmax`.

    Attributes:
        name: unique; begins with "softmax/".
        logits: values, already rounded to `dtype`.
        axis: the class axis as the caller passes it.
        dtype: the logits' dtype.
        compiled: as in `Case`.
        representative: as in `Case`.
        of_backend: as in `Case`.
        rules: as in `Case`.
    """

    name: str
    logits: Array
    axis: int | None = None
    dtype: str = "float32"
    compiled: bool = False
    representative: bool = False
    of_backend: bool = False
    rules: tuple[str, ...] = ()

    def dtypes(self) -> set[str]:
        """The floating dtype that a backend needs for the case's logits."""
        return {self.dtype}

    def is_wide(self) -> bool:
        """Whether the logits are float64."""
        return self.dtype == "float64"

    @property
    def upstream(self) -> Array:
        """The upstream gradient: random, because under ones a softmax has the gradient 0."""
        return round_to(rng_of(self.name).normal(size=self.logits.shape), self.dtype)

    def expected(self) -> reference.Softmax:
        """The oracle's result."""
        return reference.softmax(
            _tensor(self.logits, self.dtype), self.axis, upstream=self.upstream.ravel().tolist()
        )


def _tensor(x: Array, dtype: str) -> reference.Tensor:
    return reference.tensor(x.ravel().tolist(), x.shape, dtype)


def edge(
    name: str, spec: Loss, predictions: Array, targets: Array, *rest: Any, **options: Any
) -> Case:
    """A case chosen by hand; its name begins with "edge/"."""
    return Case(f"edge/{name}", spec, predictions, targets, *rest, **options)


def proving(*rules: str) -> partial[Case]:
    """The function `edge` for cases that prove these rules."""
    return partial(edge, rules=rules)


def refused(*rules: str) -> partial[BadCall]:
    """The class `BadCall` for calls that break these rules."""
    return partial(BadCall, rules=rules)


def rules_of(case: Case) -> tuple[str, ...]:
    """The rules that a case of a product or with random data proves: what its fields have."""
    rules = [case.spec.name]
    for name, declaration in case.spec.declarations.items():
        if getattr(case.spec, name) != declaration.default:
            rules.append(name)
    if case.sample_weight is not None:
        rules.append("leading_weights")
        if (case.sample_weight == 0).any():
            rules.append("zero_weighted")
    if case.mask is not None:
        rules.append("dropped")
    if case.upstream is not None:
        rules.append("upstream")
    if case.dtype in ("float16", "bfloat16"):
        rules.append("half_dtypes")
    return tuple(rule.replace("_", "-") for rule in rules)


def _nothing() -> tuple[()]:
    return ()


@dataclass(frozen=True)
class LossCases:
    """The cases of a loss: the value `CASES` of the module `cases` in its folder.

    Each attribute is a function that makes the cases, in a fixed order.

    Attributes:
        bad_calls: the calls that must fail.
        edge_cases: chosen by hand. Compiled modes run every fourth, so the variants of one rule are
            neighbours.
        marked_cases: chosen by hand, and marked by hand as compiled and representative.
        product_cases: pairwise products of its fields (see `product.product`). Compiled modes run
            as few as have every value of every field.
        rule_cases: pairs of fields that exist for other libraries' losses. Compiled modes run every
            fourth.
        random_cases: default fields on more varied data; not compiled.
        hard_cases: results that are hard to round correctly, for exact mode (see `hard`).
        fusible: calls whose predictions the compiled program makes itself. Compiled modes run all.
    """

    bad_calls: Callable[[], Iterable[BadCall]]
    edge_cases: Callable[[], Iterable[Case]] = _nothing
    marked_cases: Callable[[], Iterable[Case]] = _nothing
    product_cases: Callable[[], Iterable[Case]] = _nothing
    rule_cases: Callable[[], Iterable[Case]] = _nothing
    random_cases: Callable[[], Iterable[Case]] = _nothing
    hard_cases: Callable[[], Iterable[Case]] = _nothing
    fusible: Callable[[], Iterable[Fusible]] = _nothing


def rng_of(name: str) -> np.random.Generator:
    """The random numbers of a case, seeded by its name."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def round_to(x: Array, dtype: str) -> Array:
    """Values rounded to a dtype; bfloat16 in a float32 array."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
