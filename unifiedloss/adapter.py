"""The contract of an adapter, and the code that all adapters share.

An adapter evaluates plans in one framework. It provides the framework's array operations and loss
kernels (`unifiedloss.ops`), and implements the abstract methods of `Adapter`. The base class does
the rest of a call: it converts lists and NumPy arrays, refuses tensors of other frameworks, caches
plans, and looks for bad values where values can be read.

Other packages derive from `Adapter` and register the class under the entry-point group
``unifiedloss.adapters``; see the documentation page on adding a backend.
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
from unifiedloss.hints import hints
from unifiedloss.inputs import Inputs
from unifiedloss.messages import Message, describe, foreign
from unifiedloss.owners import backend_of, is_host_data
from unifiedloss.plan import (
    Plan,
    Signature,
    check_predictions_dtype,
    check_upstream,
    class_axis,
    resolve,
)
from unifiedloss.spec import Loss

Array = Any

# Tuples, because torch.compile does not understand unions.
_ARRAYS = (np.ndarray, np.generic)
_MASKED = np.ma.MaskedArray
_PLAIN_PYTHON = (list, tuple, int, float)
_IN_LISTS = (int, float, complex, str, bytes, *_ARRAYS)
"""The types of elements that numpy.asarray may read from a list.

The dtype of the resulting array may still be refused.
"""

_NUMBERS = frozenset({int, float, bool})
_LISTS = frozenset({list, tuple})
_DTYPES = frozenset({*FORMATS, *INTEGER_TYPES, "bool"})

_ARGUMENTS = ("predictions", "targets", "sample_weight", "mask", "upstream")
_LOGITS = ("logits",)

_MAX_PLANS = 4096
"""Plans kept per adapter. The limit bounds the memory of a loop in which every shape is new."""


class Mode(NamedTuple):
    """A way to run an adapter's framework, for the conformance suite.

    Attributes:
        run: ``run(function, *tensors)`` calls the function, compiled or not.
        raises: whether bad values raise in this mode. If not, they give NaN.
        whole_step: whether loss and gradient can be compiled as one function. If not, only the loss
            is compiled, and its gradient is taken through the compiled function.
        costly: whether compiling takes so long that only a small part of the cases is run.
        exact: whether every loss works with ``rounding="exact"`` in this mode. If not, the mode has
            no host callback, and a loss without a form in `unifiedloss.exact.graph.form` is
            refused.
        complete: whether the suite runs its complete set of cases in this mode, and not in the
            adapter's first one. Set it for a framework that compiles eager calls too: compiling a
            call and its gradient as one program is then the cheapest way to run them.
        missing: what this machine lacks for the mode, as a sentence without its full stop; None if
            the mode can run. The suite then reports the mode as not checked.
    """

    run: Callable[..., Any]
    raises: bool
    whole_step: bool = True
    costly: bool = False
    exact: bool = True
    complete: bool = False
    missing: str | None = None


class Adapter(ABC):
    """Base class of adapters: evaluates losses in one framework."""

    name: ClassVar[str]
    """The backend's name, as in ``spec.to(name)``."""

    tensor_type: ClassVar[Any]
    """The class of this framework's tensors, traced ones included (or a tuple of classes)."""

    ops: ClassVar[Any]
    """The framework's array operations, under the names of `unifiedloss.pipeline.Ops`."""

    kernels: ClassVar[Any]
    """The framework's loss kernels, under the names of `unifiedloss.pipeline.Kernels`."""

    def __init__(self) -> None:
        self._plans: dict[Any, Plan] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle and copy an adapter by its name, because a process has one instance of each.
        by_name = Loss._registry.adapter  # noqa: SLF001 - the registry imports this module
        return by_name, (self.name,)

    @classmethod
    def contract_mismatch(cls, name: str) -> str | None:
        """Return why this class does not fulfil the contract, or None if it does.

        Args:
            name: the name of the entry point that names the class.
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
            required = [op for op in vars(protocol) if not op.startswith("_")]
            given = getattr(cls, member)
            missing = [op for op in required if not callable(getattr(given, op, None))]
            if missing:
                return f"{member!r} has no {', '.join(missing)}."
        return None

    # --------------------------------------------------------- abstract: every adapter implements

    @abstractmethod
    def version(self) -> str:
        """The framework's version."""

    @abstractmethod
    def dtype_name(self, dtype: Any) -> str:
        """The name of a dtype of this framework: "float32", "bfloat16", "int64", "bool", ..."""

    @abstractmethod
    def convert(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        """Convert a NumPy array to a tensor, on the device of `reference` if one is given."""

    @abstractmethod
    def readable(self, *tensors: Array) -> bool:
        """Whether the values can be read now: they are neither traced nor on an accelerator."""

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray[Any, Any]:
        """The values as a NumPy array, from any device: a view where possible.

        bfloat16 may be widened to float32.
        """

    @abstractmethod
    def differentiate(
        self, function: Callable[..., Array], tensors: tuple[Array, ...], upstream: Array | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """Return ``function(*tensors)``, and its vector-Jacobian product for each tensor.

        `upstream` is the vector; None means ones.
        """

    @abstractmethod
    def bind(self, spec: Loss) -> Any:
        """Return the object that ``spec.to(name)`` gives: a module, a loss object or a function."""

    @abstractmethod
    def modes(self) -> Mapping[str, Mode]:
        """The modes that the conformance suite tests, by name; "eager" comes first."""

    # ------------------------------------------------------------- optional: defaults to override

    differentiates: bool = True
    """Whether `differentiate` works. If not, override `value_and_grad` with a closed form."""

    exact_reads_memory: bool = False
    """Whether `exact` needs no `stored`, because it reads the tensors from memory."""

    def dtypes(self) -> tuple[str, ...]:
        """The floating dtypes that this framework has here, under its current settings."""
        return tuple(FORMATS)

    def tensor(self, x: np.ndarray[Any, Any], dtype: str | None = None) -> Array:
        """Convert a NumPy array to a tensor of `dtype`, which may be bfloat16."""
        made = self.convert(np.asarray(x), None)
        return made if dtype is None else self.ops.cast(made, dtype)

    def shape(self, x: Array) -> tuple[int | None, ...] | None:
        """A tensor's shape: None for an unknown rank, entries of None for unknown extents."""
        return tuple(x.shape)

    def accepts(self, other: str) -> bool:
        """Whether a call may mix tensors of the backend `other` with tensors of this one."""
        return other == "numpy"

    def stored(self, *tensors: Array | None) -> tuple[Array | None, ...]:
        """The tensors as memory holds them: rounded to their dtypes.

        A compiler may keep the digits of a number that the same program computes: it contracts a
        product and the subtraction after it, or leaves out a cast to a half type. If one use has
        these digits and another has not, differences of equal numbers are not 0. Override it where
        a compiler does so. The result has the same values, and the gradient passes through.
        """
        return tensors

    def keep_numpy(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        """Convert a NumPy array that is an argument of a call.

        Override it to return the array as it is if the framework's operations take NumPy arrays.
        """
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
        """Evaluate a plan. Override it if the framework has a faster way for common plans."""
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
        """Evaluate a plan with ``rounding="exact"``, rounded as by `unifiedloss.exact.evaluate`.

        The result is differentiable once, with respect to the predictions. Bad values give NaN. If
        values can be read, `loss` has already raised for bad ones.
        """
        del plan, predictions, targets, sample_weight, mask
        msg = f'the backend {self.name!r} has no exact mode; use rounding="native".'
        raise UnsupportedError(msg)

    def exact_value_and_grad(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        upstream: Array,
    ) -> tuple[Array, Array]:
        """Evaluate a plan as `exact` does, with its gradient to the predictions.

        The upstream gradient may have another dtype than the loss, and is taken exactly. Override
        it if `differentiate` rounds the upstream gradient.
        """

        def function(p: Array) -> Array:
            return self.exact(plan, p, targets, sample_weight, mask)

        value, (gradient,) = self.differentiate(function, (predictions,), upstream)
        return value, gradient

    # -------------------------------------------------------------------- shared by all adapters

    @no_autograph
    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Array:
        """Evaluate a spec on tensors of this framework, NumPy arrays and lists."""
        tensors = self.to_tensors(predictions, targets, sample_weight, mask)
        plan = self.plan(spec, *tensors)
        if not (plan.exact and self.exact_reads_memory):
            tensors = self.stored(*tensors)
        predictions, targets, sample_weight, mask = tensors
        checked = self.checked(plan, predictions, targets, sample_weight, mask)
        if plan.exact:
            return self.exact(plan, predictions, targets, sample_weight, mask)
        return self.compute(plan, predictions, targets, sample_weight, mask, checked=checked)

    @no_autograph
    def value_and_grad(
        self,
        spec: Loss,
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
            plan = self.plan(spec, predictions, targets, sample_weight, mask)
            check_upstream(plan, self.signature(upstream))
            if plan.exact:
                self.checked(plan, predictions, targets, sample_weight, mask)
                return self.exact_value_and_grad(
                    plan, predictions, targets, sample_weight, mask, upstream
                )

        def function(p: Array) -> Array:
            return self.loss(spec, p, targets, sample_weight, mask)

        value, (gradient,) = self.differentiate(function, (predictions,), upstream)
        return value, gradient

    @no_autograph
    def check(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> tuple[str, ...]:
        """Read the values, on whichever device they are, and raise for the first bad one.

        Return what the others suggest, a sentence each.
        """
        tensors = self.to_tensors(predictions, targets, sample_weight, mask)
        plan = self.plan(spec, *tensors)
        self._check(plan, *tensors)
        return hints(spec, *(np.asarray(self.to_numpy(x)) for x in tensors[:2]))

    @no_autograph
    def softmax(self, logits: Any, axis: int | None) -> Array:
        """The softmax, with 0 for results below the smallest normal number of the compute dtype."""
        (logits,) = self.stored(*self.to_tensors(logits))
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
        """Convert lists and NumPy arrays, and refuse tensors of other frameworks.

        `companions` are the other arguments of the call, in the order of `_ARGUMENTS`.
        """
        names = _ARGUMENTS if companions else _LOGITS  # softmax has no companions
        for name, x in zip(names, (predictions, *companions), strict=False):
            if isinstance(x, _MASKED):
                msg = (
                    f"{name} is a {_class_of(x)}, whose mask would be ignored; pass its data, and "
                    "a mask= that is True where a position counts (a numpy.ma mask is False there)."
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
        # Only NumPy has tensors of this dtype. Leave the array as it is, so that `resolve` refuses
        # it with the message that all backends share.
        return x

    def _is_numeric(self, x: np.ndarray[Any, Any]) -> bool:
        """Whether some argument of a loss may have this array's dtype; bool counts."""
        return x.dtype.name in _DTYPES

    def _parse_list(self, name: str, x: Any, dtype: Any) -> np.ndarray[Any, Any]:
        """A Python number, a (nested) list, or a column of a table as a NumPy array."""
        if not isinstance(x, _PLAIN_PYTHON) and not _is_read_by_numpy(name, x):
            self._refuse(name, x)
        if isinstance(x, list | tuple):
            foreign_element = _foreign_element(x)
            if foreign_element:
                _refuse_in_list(name, *foreign_element)
        try:
            return np.asarray(x, dtype=dtype)
        except (ValueError, TypeError, OverflowError) as error:
            msg = f"{name} cannot be read as an array of numbers: {error}."
            raise ShapeError(msg) from error

    def _refuse(self, name: str, x: Any) -> NoReturn:
        """Refuse an argument that is no tensor of this framework and that NumPy does not read."""
        owner = backend_of(x, name)  # raises if no backend owns the type
        if owner in (self.name, "numpy"):
            msg = (
                f"{name} is a {_class_of(x)}, which is no tensor; pass a tensor, a NumPy array, a "
                "number or a list."
            )
            raise UnknownTensorError(msg)
        raise MixedBackendsError(foreign(name, owner, self.name))

    def plan(
        self,
        spec: Loss,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
    ) -> Plan:
        """The plan for these tensors, cached by the spec, the shapes and the dtypes."""
        if sample_weight is None and mask is None:
            key: Any = (spec, predictions.shape, predictions.dtype, targets.shape, targets.dtype)
        else:
            tensors = (predictions, targets, sample_weight, mask)
            key = (spec, *((x.shape, x.dtype) if x is not None else None for x in tensors))
        try:
            return self._plans[key]
        except KeyError:
            pass
        except (TypeError, ValueError):
            # A shape of unknown rank or extents has no hash, so its plan is not cached.
            return self._resolve(spec, predictions, targets, sample_weight, mask)
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = self._plans[key] = self._resolve(spec, predictions, targets, sample_weight, mask)
        return plan

    def _resolve(self, spec: Loss, *tensors: Array | None) -> Plan:
        signatures: Any = [None if x is None else self.signature(x) for x in tensors]
        return resolve(spec, *signatures)

    def signature(self, x: Array) -> Signature:
        """The shape and dtype of a tensor, known without reading its values."""
        if isinstance(x, np.ndarray):  # left as it is by `_as_tensor`
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
        """Check the values if they can be read now, and return whether that was so."""
        if not self.readable(predictions, targets, sample_weight, mask):
            return False
        self._check(plan, predictions, targets, sample_weight, mask)
        return True

    def _check(self, plan: Plan, *tensors: Array | None) -> None:
        arrays: Any = [None if x is None else self.to_numpy(x) for x in tensors]
        values.check(plan, *arrays)


def _is_read_by_numpy(name: str, x: Any) -> bool:
    """Whether an argument belongs to no framework and NumPy reads it."""
    return is_host_data(x, name) and backend_of(x, name) == "numpy"


def _foreign_element(x: list[Any] | tuple[Any, ...]) -> tuple[Any] | tuple[()]:
    """Return ``(element,)`` for the first element that NumPy must not read; () if there is none.

    The list may be nested. Without this check, numpy.asarray would silently copy tensors from any
    device and detach them from their gradients.
    """
    # Look at each level of nesting at once, because that is several times as fast as element by
    # element, and most lists hold only numbers.
    level: Any = x
    types = set(map(type, level))
    while types and types <= _LISTS:
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    if types <= _NUMBERS:
        return ()
    for element in x:
        if isinstance(element, list | tuple):
            inner = _foreign_element(element)
            if inner:
                return inner
        elif not isinstance(element, _IN_LISTS):
            return (element,)
    return ()


def _refuse_in_list(name: str, element: Any) -> NoReturn:
    class_name = _class_of(element)
    try:
        owner = backend_of(element, name)
    except UnknownTensorError:
        msg = (
            f"{name} is a list that holds a {class_name}, which is no number; pass numbers, or one "
            "array of them."
        )
        raise UnknownTensorError(msg) from None
    msg = (
        f"{name} is a list of tensors (a {class_name}, of {owner}); stack them into one tensor "
        "first."
    )
    raise UnknownTensorError(msg)


def _class_of(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
