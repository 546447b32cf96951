"""The contract of an adapter, and the code that all adapters share.

An adapter evaluates plans in one framework. It provides the framework's array operations and loss
kernels (`unifiedloss.ops`), and implements the abstract methods of `Adapter`. The base class does
the rest of a call: it converts lists and NumPy arrays, refuses tensors of other frameworks, caches
plans, and looks for bad values where values can be read.

Other packages derive from `Adapter` and register the class under the entry-point group
``unifiedloss.adapters``; see the documentation page on adding a backend.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np

from unifiedloss import auto_rounding, pipeline, totals, values
from unifiedloss.auto_rounding import Setting
from unifiedloss.autograph import no_autograph
from unifiedloss.errors import (
    DTypeError,
    ShapeError,
    UnsupportedError,
)
from unifiedloss.evaluator import Evaluator
from unifiedloss.floats import FORMATS, HALF_TYPES, INTEGER_TYPES
from unifiedloss.hints import hints
from unifiedloss.inputs import Inputs
from unifiedloss.lists import read_list, refuse_masked
from unifiedloss.messages import Message, describe
from unifiedloss.mode import Mode
from unifiedloss.plan import (
    Plan,
    Signature,
    check_predictions_dtype,
    check_upstream,
    class_axis,
    resolve,
    resolve_divisor,
)
from unifiedloss.spec import Loss

__all__ = ["Adapter", "Mode"]

Array = Any

# Tuples, because torch.compile does not understand unions.
_ARRAYS = (np.ndarray, np.generic)
_MASKED = np.ma.MaskedArray
_AS_IT_IS = nullcontext()

_DTYPES = frozenset({*FORMATS, *INTEGER_TYPES, "bool"})

_ARGUMENTS = ("predictions", "targets", "sample_weight", "mask", "upstream")
_LOGITS = ("logits",)

_MAX_PLANS = 4096
"""Plans kept per adapter. The limit bounds the memory of a loop in which every shape is new."""


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
        for method, arguments in (("loss", 6), ("value_and_grad", 7)):
            try:
                inspect.signature(getattr(cls, method)).bind(None, *[None] * arguments)
            except TypeError:
                return (
                    f"{method!r} takes no divisor; give it a last argument divisor=None, and where "
                    f"that is not None return super().{method}(...)."
                )
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

    def bind_global_mean(self, spec: Loss) -> Any:
        """As `bind`, for a trainer that gives each process or replica a part of the batch.

        Override it for a trainer that passes no divisor to its loss; the object then has to ask the
        others for theirs.
        """
        del spec
        msg = (
            f"global_mean is for the backend 'keras', whose fit passes no divisor, and this is "
            f"{self.name!r}: give each call divisor=, the sum of spec.divisor_of of all pieces."
        )
        raise UnsupportedError(msg)

    computes: bool = True
    """Whether this adapter computes losses. If not, it hands the pieces of a call to the adapters
    of their types, and the conformance suite runs the cases in pieces alone."""

    differentiates: bool = True
    """Whether `differentiate` works. If not, override `value_and_grad` with a closed form."""

    exact_reads_memory: bool = False
    """Whether `exact` needs no `stored`, because it reads the tensors from memory."""

    def dtypes(self) -> tuple[str, ...]:
        """The floating dtypes that this framework has here, under its current settings."""
        return tuple(FORMATS)

    def computes_in(self, dtype: str) -> bool:
        """Whether a spec may name this dtype, of those that the framework has."""
        return dtype in self.dtypes()

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

    def wide(self, x: Array) -> str:
        """The widest floating dtype that the framework has on the device of a tensor.

        Totals are added, and given divisors divided by, in it.
        """
        del x
        return "float64" if "float64" in self.dtypes() else "float32"

    def around(self, *tensors: Array | None) -> AbstractContextManager[Any]:
        """The context in which operations on these tensors keep their dtypes."""
        del tensors
        return _AS_IT_IS

    def keep_numpy(self, x: np.ndarray[Any, Any], reference: Array | None) -> Array:
        """Convert an argument that is a NumPy array; or keep it, if the operations take it."""
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

    def native_totals(self, plan: Plan, inputs: Inputs, *, mean: bool, checked: bool) -> Array:
        """The totals of a piece, of a plan with the reduction "sum".

        Override it for a context around the computation. The same holds for `native_divisor`.

        Args:
            plan: the plan.
            inputs: the tensors of the call.
            mean: whether the divisor belongs to the totals.
            checked: whether the values were checked.
        """
        return totals.native_totals(self, plan, inputs, mean=mean, checked=checked)

    def native_divisor(self, plan: Plan, inputs: Inputs, *, checked: bool) -> Array:
        """The divisor of a piece, of a plan of `plan_of_divisor`; there are no predictions."""
        return totals.native_divisor(self, plan, inputs, checked=checked)

    def exact(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        divisor: Array | None = None,
    ) -> Array:
        """Evaluate a plan with ``rounding="exact"``, rounded as by `unifiedloss.exact.evaluate`.

        A given divisor comes with a plan of the reduction "sum": an array of NumPy, or a tensor
        whose values cannot be read now. The first gradient to the predictions is exact in reverse
        mode, and every other derivative is native. Bad values give NaN. If values can be read,
        `loss` has already raised for bad ones.
        """
        del plan, predictions, targets, sample_weight, mask, divisor
        msg = f'the backend {self.name!r} has no exact mode; use rounding="native".'
        raise UnsupportedError(msg)

    def exact_value_and_grad(
        self,
        plan: Plan,
        predictions: Array,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        upstream: Array | None,
        divisor: Array | None = None,
    ) -> tuple[Array, Array]:
        """Evaluate a plan as `exact` does, with its gradient to the predictions.

        The upstream gradient, None for ones, may have another dtype than the loss, and is taken
        exactly. Override it if `differentiate` rounds the upstream gradient.
        """
        # An adapter that computes no totals may have an `exact` that knows no divisor.
        given = {} if divisor is None else {"divisor": divisor}

        def function(p: Array) -> Array:
            return self.exact(plan, p, targets, sample_weight, mask, **given)

        value, (gradient,) = self.differentiate(function, (predictions,), upstream)
        return value, gradient

    def exact_divisor(self, number: float) -> Array:
        """A Python number as a divisor of exact mode.

        Override it if a compiler cannot trace how this vector is made.
        """
        from unifiedloss.exact import limbs  # imported here because native mode does not need it

        return limbs.divisor_of_number(number)

    def on_host(self, job: Any, *tensors: Array | None) -> Array:
        """Run a `unifiedloss.exact.pieces.Job` on the values of tensors, without a derivative.

        Override it if the framework can call the host from a compiled program.
        """
        from unifiedloss import host  # imported here, because it starts a thread

        given = [x for x in tensors if x is not None]
        if not self.readable(*given):
            msg = (
                f"the backend {self.name!r} computes totals with rounding='exact' only where it "
                "can read the values; call it outside of compiled functions and on the CPU, or use "
                "rounding='native'."
            )
            raise UnsupportedError(msg)
        arrays = [None if x is None else self.to_numpy(x) for x in tensors]
        return self.convert(host.run(job.run, *arrays), given[0])

    # -------------------------------------------------------------------- shared by all adapters

    @no_autograph
    def loss(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        divisor: Any = None,
    ) -> Array:
        """Evaluate a spec on tensors of this framework, NumPy arrays and lists.

        With a divisor, the sum of the terms is divided by it.
        """
        if divisor is not None:
            return totals.loss(
                self, spec, predictions, targets, sample_weight, mask, divisor=divisor
            )
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
        divisor: Any = None,
    ) -> tuple[Array, Array]:
        """The loss and its gradient with respect to the predictions."""
        if divisor is not None:
            return totals.value_and_grad(
                self, spec, predictions, targets, sample_weight, mask,
                upstream=upstream, divisor=divisor,
            )  # fmt: skip
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
    def totals(
        self,
        spec: Loss,
        predictions: Any,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
    ) -> Array:
        """The totals of a piece; see `unifiedloss.evaluable.Evaluable.totals`."""
        return totals.totals(self, spec, predictions, targets, sample_weight, mask)

    @no_autograph
    def divisor_of(
        self,
        spec: Loss,
        targets: Any,
        sample_weight: Any = None,
        mask: Any = None,
        dtype: Any = "float32",
    ) -> Array:
        """The divisor of a piece; see `unifiedloss.evaluable.Evaluable.divisor_of`."""
        return totals.divisor_of(self, spec, targets, sample_weight, mask, dtype)

    @no_autograph
    def result(self, spec: Loss, summed: Any) -> Array:
        """The loss of summed totals; see `unifiedloss.evaluable.Evaluable.result`."""
        return totals.result(self, spec, summed)

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
        name, axis = self.softmax_of(logits, axis)
        compute_dtype = "float32" if name in HALF_TYPES else name
        return pipeline.softmax(
            self.ops, self.kernels, logits, axis, name, compute_dtype, FORMATS[compute_dtype].tiny
        )

    def softmax_of(self, logits: Array, axis: int | None) -> tuple[str, int]:
        """The dtype and the class axis of a softmax; refuse logits that have none."""
        shape, name = self.signature(logits)
        if name not in FORMATS:
            msg = f"softmax needs floating logits ({', '.join(FORMATS)}), got {name}; cast them."
            raise DTypeError(msg)
        axis = class_axis(axis, shape)
        if shape is not None and shape[axis] == 0:
            raise ShapeError(Message.NO_CLASSES.format(predictions=describe(shape), axis=axis))
        return name, axis

    def to_tensors(self, predictions: Any, *companions: Any) -> tuple[Any, ...]:
        """Convert lists and NumPy arrays, and refuse tensors of other frameworks.

        `companions` are the other arguments of the call, in the order of `_ARGUMENTS`.
        """
        names = _ARGUMENTS if companions else _LOGITS  # softmax has no companions
        for name, x in zip(names, (predictions, *companions), strict=False):
            if isinstance(x, _MASKED):
                refuse_masked(name, x)
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
            x = read_list(name, x, list_dtype, self.name)
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
        if spec.rounding == "auto":
            key = (*key, self.setting(predictions, targets, sample_weight, mask))
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
        auto_rounding.tell(spec, plan)
        return plan

    def plan_of_divisor(
        self,
        spec: Loss,
        targets: Array,
        sample_weight: Array | None,
        mask: Array | None,
        dtype: str,
    ) -> Plan:
        """The plan of a divisor for predictions of a dtype, cached like `plan`."""
        tensors = targets, sample_weight, mask
        signatures: Any = [None if x is None else self.signature(x) for x in tensors]
        key: Any = (spec, dtype, *signatures)
        if spec.rounding == "auto":
            key = (*key, self.setting(*tensors))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._planned(
                spec, tensors, lambda known: resolve_divisor(known, *signatures, dtype=dtype)
            )
        return plan

    def _resolve(self, spec: Loss, *tensors: Array | None) -> Plan:
        signatures: Any = [None if x is None else self.signature(x) for x in tensors]
        return self._planned(spec, tensors, lambda known: resolve(known, *signatures))

    def _planned(
        self, spec: Loss, tensors: Sequence[Array | None], plan_of: Callable[[Loss], Plan]
    ) -> Plan:
        setting = self.setting(*tensors) if spec.rounding == "auto" else None
        return auto_rounding.planned(spec, setting, plan_of, self.why_native)

    why_native = staticmethod(auto_rounding.why_native)
    """Override it if a compiler cannot trace it."""

    def setting(self, *tensors: Array | None) -> Setting:
        """Where a call runs, as far as ``rounding="auto"`` depends on it.

        Override it if calls run on several devices, or are compiled.
        """
        del tensors
        return Setting(self.name)

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
