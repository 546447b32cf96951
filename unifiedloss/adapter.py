"""The contract an adapter fills, and what all adapters share.

An adapter carries plans out in one framework. It brings the framework's array operations (`unifiedloss.pipeline.Ops`), its loss
kernels (`unifiedloss.pipeline.Kernels`) and what is listed as abstract here; this class turns those into calls: it reads lists, tells
companions from strangers, caches plans, and looks for bad values where they can be read.

Third parties derive from `Adapter` and register the class under the entry-point group ``unifiedloss.adapters``; see the documentation page
on adding a backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from unifiedloss import pipeline, values
from unifiedloss.autograph import no_autograph
from unifiedloss.errors import (
    DTypeError,
    MixedBackendsError,
    ShapeError,
    UnknownTensorError,
    UnsupportedError,
)
from unifiedloss.evaluator import Evaluator
from unifiedloss.floats import FORMATS, HALF_TYPES, INTEGER_TYPES
from unifiedloss.inputs import Inputs
from unifiedloss.messages import Message, describe, foreign
from unifiedloss.owners import backend_of
from unifiedloss.plan import (
    Plan,
    Signature,
    check_predictions_dtype,
    check_upstream,
    class_axis,
    resolve,
)
from unifiedloss.spec import AnyLoss, Loss

Array = Any

# Tuples and not unions, which torch.compile does not understand.
_ARRAYS = (np.ndarray, np.generic)
_MASKED = np.ma.MaskedArray
_PLAIN_PYTHON = (list, tuple, int, float)
_IN_LISTS = (int, float, complex, str, bytes, *_ARRAYS)
"""What a list may hold besides lists: what numpy.asarray reads as it is. The dtype that comes out may still be refused."""

_NUMBERS = frozenset({int, float, bool})
_LISTS = frozenset({list, tuple})
_DTYPES = frozenset({*FORMATS, *INTEGER_TYPES, "bool"})

_ARGUMENTS = ("predictions", "targets", "sample_weight", "mask", "upstream")
_LOGITS = ("logits",)

_MAX_PLANS = 4096
"""Plans kept per adapter. A loop over ever new shapes must not grow memory without bound."""


class Mode(NamedTuple):
    """A way to run this framework, for the conformance suite.

    Attributes:
        run: ``run(function, *tensors)`` calls the function, compiled or not, and returns what it returns.
        raises: whether bad values raise in this mode; otherwise they give NaN.
        whole_step: whether a function that differentiates can be compiled as well. If not, the loss alone is, and its gradient is
            taken through the compiled function.
        costly: whether compiling takes so long that only a small part of the cases is run.
        exact: whether ``rounding="exact"`` is held for all losses in this mode. If not, there is no way to the host, and what
            `unifiedloss.exact.graph_form` has no form of is refused.
        complete: whether this is the mode in which every case is run, where that is not the adapter's first. For a framework that
            compiles eager calls too, the mode that compiles a call and its gradients as one program is the cheapest.
    """

    run: Callable[..., Any]
    raises: bool
    whole_step: bool = True
    costly: bool = False
    exact: bool = True
    complete: bool = False


class Adapter(ABC):
    """One framework's way to carry a loss out."""

    name: ClassVar[str]
    """The backend's name, as in ``spec.to(name)``."""

    tensor_type: ClassVar[Any]
    """The class of this framework's tensors, traced ones included (or a tuple of classes)."""

    ops: ClassVar[Any]
    """The framework's array operations, as `unifiedloss.pipeline.Ops` names them."""

    kernels: ClassVar[Any]
    """The framework's kernels, as `unifiedloss.pipeline.Kernels` names them."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Objects that hold an adapter pickle and copy it by name: a process has one of each.
        return Loss._registry.adapter, (self.name,)  # noqa: SLF001 - the registry imports this module

    @classmethod
    def contract_mismatch(cls, name: str) -> str | None:
        """What keeps this class from filling the contract; None where it does.

        Args:
            name: the name of the entry point that leads to the class.
        """
        if cls.__abstractmethods__:
            return f"the methods {', '.join(sorted(cls.__abstractmethods__))} are missing."
        for member in ("name", "tensor_type", "ops", "kernels"):
            if not hasattr(cls, member):
                return f"the attribute {member!r} is missing."
        if cls.name != name:
            return (
                f"its name is {cls.name!r}, and the entry point is called {name!r}; the two must "
                "be the same."
            )
        for member, protocol in (("ops", pipeline.Ops), ("kernels", pipeline.Kernels)):
            wanted = [function for function in vars(protocol) if not function.startswith("_")]
            brought = getattr(cls, member)
            missing = [
                function for function in wanted if not callable(getattr(brought, function, None))
            ]
            if missing:
                return f"{member!r} has no {', '.join(missing)}."
        return None

    # ----------------------------------------------------------------------------------------------- what an adapter brings

    @abstractmethod
    def version(self) -> str:
        """The framework's version."""

    @abstractmethod
    def dtype_name(self, dtype: Any) -> str:
        """The name of a dtype of this framework's tensors: "float32", "bfloat16", "int64", "bool", ..."""

    @abstractmethod
    def convert(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        """A NumPy array as a tensor of this framework, on the device of `reference` where there is one."""

    @abstractmethod
    def readable(self, *tensors: Array) -> bool:
        """Whether the values can be read now: neither traced nor on an accelerator that would have to be waited for."""

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values as NumPy array: a view where possible, from any device. bfloat16 may be widened to float32."""

    @abstractmethod
    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """``function(*tensors)`` and the gradients of its inner product with `upstream` (ones by default) with respect to each of them."""

    @abstractmethod
    def bind(self, spec: AnyLoss) -> Any:
        """The spec as an object of the framework's own kind: what ``spec.to(name)`` returns."""

    @abstractmethod
    def modes(self) -> Mapping[str, Mode]:
        """The ways to run this framework that conformance is claimed for, by name; "eager" first."""

    # -------------------------------------------------------------------------------------------------- what may be refined

    differentiates: bool = True
    """Whether `differentiate` works here. If not, `value_and_grad` is overridden with a closed form."""

    def dtypes(self) -> tuple[str, ...]:
        """The floating dtypes this framework can hold here and now."""
        return tuple(FORMATS)

    def tensor(self, x: np.ndarray[Any, Any], dtype: str | None = None) -> Array:
        """A NumPy array as a tensor of this framework, in the dtype named: also bfloat16, which NumPy has not."""
        made = self.convert(np.asarray(x), None)
        return made if dtype is None else self.ops.cast(made, dtype)

    def shape(self, x: Array) -> tuple[int | None, ...] | None:
        """A tensor's shape: None for an unknown rank, None entries for unknown extents."""
        return tuple(x.shape)

    def accepts(self, other: str) -> bool:
        """Whether tensors of the backend `other` may accompany this one's."""
        return other == "numpy"

    def keep_numpy(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        """A NumPy array that takes part in a call; may stay one where this framework's operations take it as it is."""
        return self.convert(x, reference)

    def compute(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        *,
        checked: bool,
    ) -> Array:
        """Carry a plan out. Overridden where a framework has a shorter way for the common case."""
        e = Evaluator(self.ops, self.kernels, plan, checked=checked)
        return pipeline.evaluate(e, Inputs(predictions, targets, sample_weight, mask))

    def exact(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> Array:
        """Carry out a plan with ``rounding="exact"``: the numbers of `unifiedloss.exact.evaluate`, differentiable once, by the predictions.

        Bad values give NaN; where they can be read, they were looked for before.
        """
        del plan, predictions, targets, sample_weight, mask
        msg = f'the backend {self.name!r} has no exact mode; use rounding="native".'
        raise UnsupportedError(msg)

    # ---------------------------------------------------------------------------------------------------- what is shared

    @no_autograph
    def loss(
        self,
        spec: AnyLoss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Array:
        """Evaluate a spec on tensors of this framework (and NumPy arrays and lists, which may accompany them)."""
        predictions, targets, sample_weight, mask = self.to_tensors(
            predictions, targets, sample_weight, mask
        )
        plan = self.plan(spec, predictions, targets, sample_weight, mask)
        checked = self.checked(plan, predictions, targets, sample_weight, mask)
        if plan.exact:
            return self.exact(plan, predictions, targets, sample_weight, mask)
        return self.compute(plan, predictions, targets, sample_weight, mask, checked=checked)

    @no_autograph
    def value_and_grad(
        self,
        spec: AnyLoss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        upstream: Any = None,
    ) -> tuple[Array, Array]:
        """The loss and its gradient with respect to the predictions."""
        tensors = self.to_tensors(predictions, targets, sample_weight, mask, upstream)
        predictions, targets, sample_weight, mask, upstream = tensors
        if upstream is not None:
            check_upstream(
                self.plan(spec, predictions, targets, sample_weight, mask), self.signature(upstream)
            )

        def function(p: Array) -> Array:
            return self.loss(spec, p, targets, sample_weight, mask)

        value, (gradient,) = self.differentiate(function, (predictions,), upstream)
        return value, gradient

    @no_autograph
    def check(
        self,
        spec: AnyLoss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> None:
        """Read the values, on whichever device they are, and raise for the first bad one."""
        tensors = self.to_tensors(predictions, targets, sample_weight, mask)
        plan = self.plan(spec, *tensors)
        self._check(plan, *tensors)

    @no_autograph
    def softmax(self, logits: Any, axis: int | None) -> Array:
        """Softmax, with 0 for results below the smallest normal number of the compute dtype."""
        (logits,) = self.to_tensors(logits)
        name = self.dtype_name(logits.dtype)
        if name not in FORMATS:
            msg = f"softmax needs floating logits ({', '.join(FORMATS)}), got {name}; cast them."
            raise DTypeError(msg)
        shape = self.shape(logits)
        axis = class_axis(axis, shape)
        if shape is not None and shape[axis] == 0:
            raise ShapeError(Message.NO_CLASSES.format(predictions=describe(shape), axis=axis))
        compute_dtype = "float32" if name in HALF_TYPES else name
        return pipeline.softmax(
            self.ops, self.kernels, logits, axis, name, compute_dtype, FORMATS[compute_dtype].tiny
        )

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        """Predictions and companions as tensors of this framework, lists and NumPy arrays converted, strangers refused."""
        names = _ARGUMENTS if companions else _LOGITS  # softmax has no companions
        for name, x in zip(names, (predictions, *companions), strict=False):
            if isinstance(x, _MASKED):
                msg = (
                    f"{name} is a {_class_of(x)}, whose mask no loss would see; pass its data, and as mask= the positions that count, "
                    "which are those its mask does not hide."
                )
                raise UnknownTensorError(msg)
        reference = self._as_tensor(names[0], predictions, None, np.float64)
        return reference, *(
            x
            if isinstance(x, self.tensor_type) or (x is None and name != "targets")
            else self._as_tensor(name, x, reference, None)
            for name, x in zip(names[1:], companions, strict=False)
        )

    def _as_tensor(self, name: str, x: Any, reference: Array | None, list_dtype: Any) -> Array:
        if isinstance(x, self.tensor_type):
            return x
        if not isinstance(x, _ARRAYS):
            x = self._parse_list(name, x, list_dtype)
        x = np.asarray(x)
        if self._is_numeric(x):
            return self.keep_numpy(x, reference)
        if reference is None:
            check_predictions_dtype(x.dtype.name)
        # No framework but NumPy has such tensors. The array stays as it is, so that `resolve` refuses it in the words it has for all.
        return x

    def _is_numeric(self, x: np.ndarray[Any, Any]) -> bool:
        """Whether an array's dtype is one that some rule admits."""
        return x.dtype.name in _DTYPES

    def _parse_list(self, name: str, x: Any, dtype: Any) -> np.ndarray[Any, Any]:
        """A Python number or (nested) list as a NumPy array."""
        if not isinstance(x, _PLAIN_PYTHON):
            self._refuse(name, x)
        if isinstance(x, list | tuple):
            stranger = _stranger(x)
            if stranger:
                _refuse_in_list(name, *stranger)
        try:
            return np.asarray(x, dtype=dtype)
        except (ValueError, TypeError, OverflowError) as error:
            msg = f"{name} cannot be read as an array of numbers: {error}."
            raise ShapeError(msg) from error

    def _refuse(self, name: str, x: Any) -> NoReturn:
        """Say of an argument that is neither this framework's tensor nor an array, a number or a list, what it is."""
        owner = backend_of(x, name)  # raises where nobody owns the type
        if owner in (self.name, "numpy"):
            msg = f"{name} is a {_class_of(x)}, which is no tensor; pass a tensor, a NumPy array, a number or a list."
            raise UnknownTensorError(msg)
        raise MixedBackendsError(foreign(name, owner, self.name))

    def plan(
        self,
        spec: AnyLoss,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> Plan:
        """The plan for these tensors, from the cache where one of these shapes and dtypes has been made before."""
        if sample_weight is None and mask is None:
            key: Any = (spec, predictions.shape, predictions.dtype, targets.shape, targets.dtype)
        else:
            tensors = (predictions, targets, sample_weight, mask)
            key = (spec, *((x.shape, x.dtype) if x is not None else None for x in tensors))
        try:
            return self._plans[key]
        except KeyError:
            pass
        except (
            TypeError,
            ValueError,
        ):  # a shape of unknown rank or extents does not hash: nothing to look up
            return self._resolve(spec, predictions, targets, sample_weight, mask)
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = self._plans[key] = self._resolve(spec, predictions, targets, sample_weight, mask)
        return plan

    def _resolve(self, spec: AnyLoss, *tensors: Array | None) -> Plan:
        return resolve(spec, *(None if x is None else self.signature(x) for x in tensors))  # type: ignore[arg-type]

    def signature(self, x: Array) -> Signature:
        """What can be known of a tensor without reading it."""
        if isinstance(x, np.ndarray):  # an array that is no tensor here, see `_as_tensor`
            return Signature(x.shape, x.dtype.name)
        return Signature(self.shape(x), self.dtype_name(x.dtype))

    def checked(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> bool:
        """Check the values if they can be read here and now, and tell whether they were."""
        if not self.readable(predictions, targets, sample_weight, mask):
            return False
        self._check(plan, predictions, targets, sample_weight, mask)
        return True

    def _check(self, plan: Plan, *tensors: Array | None) -> None:
        values.check(plan, *(None if x is None else self.to_numpy(x) for x in tensors))  # type: ignore[arg-type]


def _stranger(x: list[Any] | tuple[Any, ...]) -> tuple[Any] | tuple[()]:
    """The first element of a nested list that is no number, in a tuple.

    numpy.asarray would copy tensors from wherever they are and cut them off from their gradients, without a word.
    """
    # Level by level: several times as fast as looking at one element after the other, and most lists hold nothing but numbers.
    level: Any = x
    kinds = set(map(type, level))
    while kinds and kinds <= _LISTS:
        level = list(chain.from_iterable(level))
        kinds = set(map(type, level))
    if kinds <= _NUMBERS:
        return ()
    for element in x:
        if isinstance(element, list | tuple):
            found = _stranger(element)
            if found:
                return found
        elif not isinstance(element, _IN_LISTS):
            return (element,)
    return ()


def _refuse_in_list(name: str, element: Any) -> NoReturn:
    what = _class_of(element)
    try:
        owner = backend_of(element, name)
    except UnknownTensorError:
        msg = f"{name} is a list that holds a {what}, which is no number; pass numbers, or one array of them."
        raise UnknownTensorError(msg) from None
    msg = f"{name} is a list of tensors (a {what}, of {owner}); stack them into one tensor first."
    raise UnknownTensorError(msg)


def _class_of(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
