"""The semantics: what number a loss is, before any framework is asked to compute it.

A *spec* is a frozen, hashable value: `CrossEntropyLoss`, `BinaryCrossEntropyLoss` or `MeanSquaredError`. Its fields are validated
once, here, when it is made. `resolve` joins a spec with the shapes and dtypes of one call and returns a `Plan`, which holds
everything an adapter has to know; all that can be said of a call without reading a value is checked there and nowhere else.

This module knows no framework and imports the standard library only.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from numbers import Integral, Real
from typing import (
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    dataclass_transform,
    overload,
)

from unifiedloss.errors import (
    DTypeError,
    SerializationError,
    ShapeError,
    SpecTypeError,
    SpecValueError,
)
from unifiedloss.floats import FORMATS, HALF_TYPES, INTEGER_TYPES, widest

Reduction = Literal["mean", "sum", "none"]
Divisor = Literal["weights", "label_weights", "present", "nonzero", "all"]
OnEmpty = Literal["nan", "zero", "error"]
Rounding = Literal["native", "exact"]
Epsilon = float | Literal["keras", "sklearn", "torch"]
Renormalize = Literal["before_clip", "after_clip"]
ClassWeighting = Literal["entries", "position"]
ComputedIn = Literal["float32", "float64"]
Shape = tuple[int | None, ...]

SERIALIZATION_VERSION = 2
"""The latest version `from_dict` reads. `to_dict` writes the lowest that knows every loss, field and value written."""

_SINCE_2 = frozenset(
    {
        "renormalize",
        "class_weighting",
        "epsilon_added",
        "element_weights",
        "average_last_axis",
        "scale",
        "dtype",
    }
)
"""Fields that version 1 does not know."""


MAX_INTEGER_TARGET = 2**53
"""The largest integer target of the squared error in size: up to it every integer is a float64."""


BEYOND_FLOAT64 = frozenset({"int64", "uint64"})
"""Integer dtypes with numbers past `MAX_INTEGER_TARGET`."""


class Tensor(Protocol):
    """What a tensor of any framework has. Bounds the type variable that lets the type that went in come out."""

    @property
    def shape(self) -> Any:
        """The extents of its axes."""

    @property
    def dtype(self) -> Any:
        """The type of its elements."""


TensorT = TypeVar("TensorT", bound=Tensor)
Numbers = float | Sequence[Any]
"""Python numbers and (nested) sequences of them, which are read as NumPy arrays."""

EntryT = TypeVar("EntryT", bound=Callable[..., Any])


def as_written(entry: EntryT) -> EntryT:
    """Mark a function, or a class whose objects are called, so that tf.function runs it, and all it calls, as they are written.

    Otherwise its autograph rewrites the source of every function it meets, which takes 0.3 s at the first call and warns of what it cannot
    rewrite. TensorFlow's own decorator cannot stand here, and costs 2 microseconds at each call. It leaves the same mark.
    """
    vars(entry)["autograph_info__"] = None
    return entry


# ---------------------------------------------------------------------------------------------------------------- validation


_ELSEWHERE = {
    "weight": "class_weights",
    "weights": "class_weights",
    "ignore_class": "ignore_index",
    "dim": "axis",
    "class_axis": "axis",
    "size_average": "reduction",
    "reduce": "reduction",
    "smoothing": "label_smoothing",
    "eps": "epsilon",
    "ce": "cross_entropy",
    "bce": "binary_cross_entropy",
    "mse": "mean_squared_error",
    "l2": "mean_squared_error",
    "nll": "negative_log_likelihood",
    "tf": "tensorflow",
    "np": "numpy",
}
"""What is called otherwise in other libraries, and too unlike for `suggestion` to find."""


def suggestion(name: object, known: Iterable[str]) -> str:
    """What may have been meant with an unknown name, as the end of a message: " Did you mean 'torch'?", or nothing."""
    from difflib import get_close_matches  # here and not above: only a mistake needs it

    known = list(known)
    lower = str(name).lower()
    found = [_ELSEWHERE.get(lower, lower)]
    if found[0] not in known:
        found = get_close_matches(lower, known, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, got {value!r} of type {type(value).__name__}."
        raise SpecTypeError(msg)
    return value


def _choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r} of type {type(value).__name__}."
        raise SpecTypeError(msg)
    if value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}."
        raise SpecValueError(msg)
    return str(value)


def _scalar(value: Any) -> object:
    """The Python number in a tensor without axes, whichever framework's; anything else as it is."""
    # TensorFlow's tensors have no item, but NumPy's arrays that they give do. What is traced has no value to give.
    try:
        if value.shape == ():
            return (value if hasattr(value, "item") else value.numpy()).item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        pass
    return value


def _number(name: str, value: object) -> float:
    value = value if isinstance(value, Real) else _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name} must be a number, got {value!r} of type {type(value).__name__}."
        raise SpecTypeError(msg)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        msg = f"{name} must be finite, got {value!r}."
        raise SpecValueError(msg)
    return number + 0.0  # -0.0 becomes 0.0: equal specs print alike


def as_integer(name: str, value: object) -> int:
    """A Python integer, out of any library's; `name` is what an error calls it."""
    value = value if isinstance(value, Integral) else _scalar(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        msg = f"{name} must be an int, got {value!r} of type {type(value).__name__}."
        raise SpecTypeError(msg)
    return operator.index(value)


def _sequence(name: str, value: object) -> list[object] | None:
    """The elements of a list, tuple, set or one-dimensional array; None for anything that is no sequence."""
    to_list = getattr(value, "tolist", None)
    to_numpy: Any = getattr(value, "numpy", None)
    if callable(to_list):  # NumPy arrays and scalars, torch and JAX tensors
        value = to_list()
    elif callable(to_numpy):  # TensorFlow's eager tensors
        value = to_numpy().tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return None
    elements = list(value)
    if any(isinstance(element, list | tuple) for element in elements):
        msg = f"{name} must have one axis, got nested sequences."
        raise SpecValueError(msg)
    return elements


def _non_negative(name: str, value: object) -> float:
    number = _number(name, value)
    if number < 0.0:
        msg = f"{name} must not be negative, got {value!r}."
        raise SpecValueError(msg)
    return number


def _weights(name: str, value: object) -> tuple[float, ...]:
    elements = _sequence(name, value)
    if elements is None:
        msg = f"{name} must be a sequence of numbers, one per class, got {value!r} of type {type(value).__name__}."
        raise SpecTypeError(msg)
    if not elements:
        msg = f"{name} must not be empty; leave it out for no weights."
        raise SpecValueError(msg)
    return tuple(_non_negative(f"{name}[{i}]", element) for i, element in enumerate(elements))


_INT64 = range(-(2**63), 2**63)


def _labels(name: str, value: object) -> tuple[int, ...]:
    elements = _sequence(name, value)
    elements = [value] if elements is None else elements
    labels = sorted({as_integer(name, element) for element in elements})
    for label in labels:
        if label not in _INT64:
            msg = f"{name} must fit in int64, as labels are compared as int64, got {label}."
            raise SpecValueError(msg)
    return tuple(labels)


def _unit_interval(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0.0 <= number <= 1.0:
        msg = f"{name} must lie in [0, 1], got {value!r}."
        raise SpecValueError(msg)
    return number


def _epsilon(name: str, value: object, presets: tuple[str, ...]) -> float | str:
    if isinstance(value, str):
        if value not in presets:
            msg = f"{name} must be a number in [0, 0.5) or one of {', '.join(map(repr, presets))}, got {value!r}."
            raise SpecValueError(msg)
        return str(value)
    number = _number(name, value)
    if not 0.0 <= number < 0.5:
        msg = f"{name} must lie in [0, 0.5), as probabilities are clipped to [{name}, 1 - {name}], got {value!r}."
        raise SpecValueError(msg)
    return number


def nested_weights(name: str, value: Any) -> float | tuple[Any, ...]:
    """Non-negative numbers in an array of any rank, as nested tuples of one shape."""
    to_list = getattr(value, "tolist", None)
    if callable(to_list):  # NumPy arrays, torch and JAX tensors
        value = to_list()
    elif callable(getattr(value, "numpy", None)):  # TensorFlow's eager tensors
        value = value.numpy().tolist()
    if not isinstance(value, list | tuple):
        return _non_negative(name, value)
    if not value:
        msg = f"{name} must not be empty; leave it out for no weights."
        raise SpecValueError(msg)
    nested = tuple(nested_weights(f"{name}[{i}]", element) for i, element in enumerate(value))
    if len({extents(element) for element in nested}) > 1:
        msg = f"{name} must be an array, got nested sequences of different lengths."
        raise SpecValueError(msg)
    return nested


def extents(nested: Any) -> tuple[int, ...]:
    """The shape of an array that is written as nested tuples."""
    return (
        (len(nested), *(extents(nested[0]) if nested else ())) if isinstance(nested, tuple) else ()
    )


_REDUCTIONS = ("mean", "sum", "none")
_DIVISORS = ("weights", "present", "nonzero", "all")
_LABEL_DIVISORS = ("weights", "label_weights", "present", "nonzero", "all")
_RENORMALIZE = ("before_clip", "after_clip")
_CLASS_WEIGHTINGS = ("entries", "position")
_DTYPES = ("float32", "float64")
_ON_EMPTY = ("nan", "zero", "error")
_ROUNDINGS = ("native", "exact")

_LEAST_ADDED = 2.0**-500
"""An added epsilon below it may be lost in pairs of float64."""


# --------------------------------------------------------------------------------------------------------------------- specs


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _spec(cls: type[Loss]) -> Any:
    """Make `cls` a frozen dataclass of keyword-only fields that hashes by its canonical fields, once."""
    made: Any = dataclass(frozen=True, kw_only=True, repr=False, eq=False)(cls)
    known = frozenset(field.name for field in fields(made))
    fill = made.__init__

    @wraps(fill)
    def __init__(self: Any, /, **given: Any) -> None:  # noqa: N807 - it takes the place of the one that is called so
        for name in given:  # which Python would refuse as well, without saying what there is
            if name not in known:
                msg = f"{name!r} is not a field of {made.__name__}; {_fields_of(made, name)}"
                raise SpecTypeError(msg)
        fill(self, **given)

    made.__init__ = __init__
    return made


class Loss:
    """What specs share: immutability, comparison, calling, conversion and serialization.

    Calling a spec evaluates the loss with the framework the tensors belong to. Two specs are equal when they are of one class and all their
    fields are equal after validation:

    ```python
    from unifiedloss import CrossEntropyLoss

    spec = CrossEntropyLoss(from_logits=True, ignore_index=3)
    loss = spec([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], [0, 3], sample_weight=[1, 2], mask=[True, True])
    assert spec == CrossEntropyLoss(from_logits=True, ignore_index=[3, 3])
    ```
    """

    name: ClassVar[str]
    """How the loss is called in dictionaries and on the command line."""

    _divisors: ClassVar[tuple[str, ...]] = _DIVISORS

    # Calling a spec: see `as_written`.
    autograph_info__: ClassVar[None] = None

    # unifiedloss.registry puts itself here when the package imports it: this module must not know it, and an import statement in
    # __call__ would cost a microsecond at every call.
    _registry: ClassVar[Any]

    reduction: Reduction
    divisor: Divisor
    on_empty: OnEmpty
    rounding: Rounding

    def __init_subclass__(cls) -> None:
        LOSSES[cls.name] = cls

    def _canonical(self, **canonical: object) -> None:
        """Store the validated fields and the hash of all of them."""
        canonical |= {
            "reduction": _choice("reduction", self.reduction, _REDUCTIONS),
            "divisor": _choice("divisor", self.divisor, self._divisors),
            "on_empty": _choice("on_empty", self.on_empty, _ON_EMPTY),
            "rounding": _choice("rounding", self.rounding, _ROUNDINGS),
        }
        for name, value in canonical.items():
            object.__setattr__(self, name, value)
        # A tuple of 32,000 class weights takes 0.4 ms to hash, and a spec is a cache key at every call: once is enough.
        values = tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_hash", hash((type(self).__name__, values)))

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined,no-any-return]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return self._values == other._values  # type: ignore[attr-defined,no-any-return]

    def _changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, in the order they are declared."""
        values = ((field, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return {field.name: value for field, value in values if value != field.default}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._changed().items())
        return f"{type(self).__name__}({arguments})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The cached hash holds only in this process (strings hash differently in each), so it is not pickled.
        return _rebuild, (type(self), self._changed())

    @overload
    def __call__(
        self,
        predictions: TensorT,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> TensorT: ...
    @overload
    def __call__(
        self,
        predictions: Numbers,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> Any: ...
    def __call__(
        self,
        predictions: Any,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> Any:
        """Evaluate the loss with the framework the tensors belong to.

        Args:
            predictions: floating tensor of any known framework. A Python number or list is read as a float64 NumPy array.
            targets: see the class; NumPy arrays and lists may accompany predictions of any framework.
            sample_weight: number per position, shaped like the per-position loss or a leading part of that shape.
            mask: bool per position, aligned the same way; False drops the position.

        Returns:
            The loss in nats (squared units for the squared error), a tensor of the predictions' framework and device: a scalar under
            "mean" and "sum", the shape of the per-position loss under "none".

        Raises:
            ShapeError, DTypeError, BadValueError, EmptyMeanError, UnknownTensorError, MixedBackendsError: see `unifiedloss.errors`.
        """
        adapter = self._registry.adapter_for(predictions, targets, sample_weight, mask)
        return adapter.loss(self, predictions, targets, sample_weight, mask)

    @as_written
    def value_and_grad(
        self,
        predictions: TensorT,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        upstream: object = None,
    ) -> tuple[TensorT, TensorT]:
        """The loss and its gradient with respect to the predictions, in every framework, NumPy included.

        Args:
            predictions: as for calling the spec; so are `targets`, `sample_weight` and `mask`.
            targets: see the class.
            sample_weight: number per position.
            mask: bool per position.
            upstream: the gradient that arrives from above, floating or integer, of exactly the loss's shape: a number where the loss is
                reduced, one per position under "none". Default: ones.

        Returns:
            ``(loss, gradient)``; the gradient has the shape and dtype of the predictions.

        Raises:
            ShapeError, DTypeError: `upstream` is not shaped like the loss, or holds no real numbers; else as for calling the spec.
        """
        adapter = self._registry.adapter_for(predictions, targets, sample_weight, mask)
        result: tuple[TensorT, TensorT] = adapter.value_and_grad(
            self, predictions, targets, sample_weight, mask, upstream
        )
        return result

    @as_written
    def to(self, backend: str) -> Any:
        """The loss as an object of one framework's own kind, with no lookup left in it.

        Args:
            backend: "torch" gives an ``nn.Module``, "keras" a ``keras.losses.Loss`` (which takes ``(y_true, y_pred)``, as Keras
                does, and is saved with the model), "tensorflow" a callable for ``tf.function``, "jax" a pure function for
                ``jit``, ``grad`` and ``vmap``, "numpy" a plain function. Or a registered third party's name.

        Raises:
            MissingBackendError: the framework is not installed, or the name is unknown.
        """
        return self._registry.adapter(backend).bind(self)

    def to_native(self, library: str, *, code: bool = False, rank: int | None = None) -> Any:
        """The loss as a library's own plain object or function, with nothing of unifiedloss in it, or as the line that makes it.

        Reading it back with `from_native` gives an equal spec, but for `divisor` and `on_empty` where nothing is averaged: with
        ``reduction="none"`` or ``"sum"`` they have no say, and are read as the library's mean would have them.

        Weights become tensors as a person's ``torch.tensor([0.1, 2.0])`` does, in torch's default dtype, and hold the digits that it has.
        Labels beside float64 predictions need class weights of float64: set ``torch.set_default_dtype(torch.float64)`` before, or call
        ``.double()`` on the module, which leaves the weights rounded to float32.

        Args:
            library: "torch", "keras", "tensorflow", "optax", "sklearn" or "onnx".
            code: whether to give the source line a person would write instead. It needs no framework.
            rank: the rank of the predictions, which an ONNX model has to name; 2 where nothing is said. For no other library.

        Returns:
            torch and Keras: the loss object, or, where there is only a function, a ``functools.partial`` of it, as for the other
            libraries; onnx: an ``onnx.ModelProto``.

        Raises:
            UnsupportedError: the library cannot say one of the rules. The message names it, and what to use instead.
            SpecValueError: the library is unknown.
            MissingBackendError: the library is not installed.
        """
        from unifiedloss.switching import to_native

        return to_native(self, library, code=code, rank=rank)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON values: the loss's name, the version, and the fields that differ from their defaults."""
        changed = self._changed()
        return {
            "loss": self.name,
            "version": self._version(changed),
            **{k: _plain(v) for k, v in changed.items()},
        }

    def _version(self, changed: dict[str, Any]) -> int:
        """The lowest version of the serialization that knows these fields and values."""
        late = (
            self.name == "negative_log_likelihood"
            or not _SINCE_2.isdisjoint(changed)
            or ("axis" in changed and self.name == "binary_cross_entropy")
            or isinstance(changed.get("epsilon"), str)
            or changed.get("divisor") == "label_weights"
        )
        return 2 if late else 1

    def to_json(self) -> str:
        """`to_dict` as JSON text, keys in declared order."""
        import json

        return json.dumps(self.to_dict(), allow_nan=False)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated anew.

        Args:
            changes: the fields, by name.

        Raises:
            SpecTypeError: there is no field of that name. The message names those there are.
            SpecValueError: a field is out of range.
        """
        return type(self)(**(self._changed() | changes))


LOSSES: dict[str, type[Loss]] = {}


def bound_spec(obj: object) -> Loss | None:
    """The spec of what `Loss.to` made; None for anything else."""
    bound = getattr(obj, "spec", None)
    return bound if isinstance(bound, Loss) else None


def _plain(value: Any) -> Any:
    """A canonical value as JSON has it: lists for tuples."""
    return [_plain(element) for element in value] if isinstance(value, tuple) else value


def _fields_of(cls: type[Loss], unknown: str) -> str:
    """The fields of a loss, for a message about a name that is none of them."""
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    if unknown in ("sample_weight", "mask"):
        hint = f" {unknown} is given to the call, beside the targets."
    else:
        hint = suggestion(unknown, known)
    return f"its fields are {', '.join(known)}.{hint}"


def _rebuild(cls: type[Loss], changed: dict[str, Any]) -> Loss:
    return cls(**changed)


@_spec
class CrossEntropyLoss(Loss):
    r"""Categorical cross-entropy: how many nats the predicted distribution spends on the target class.

    $$\ell_i = \sum_c \tau_{ic}\,(-\log p_{ic}), \qquad \tau_{ic} = w_c\,t'_{ic}, \qquad t' = (1-\epsilon_s)\,t + \epsilon_s/K$$

    with $p = \mathrm{softmax}(z)$ when `from_logits`. A class index $y$ is the one-hot target $t_c = [c = y]$: same value, same gradient,
    same divisor. $0 \log 0 = 0$.

    Predictions are floating, shaped (..., K) or with the K classes on `axis`. Targets of an integer dtype are class indices, shaped
    like the predictions without the class axis; targets of a floating dtype are dense and shaped like the predictions. The
    dtype alone tells which. The per-position loss has the predictions' shape without the class axis.

    Args:
        from_logits: False: predictions are probabilities. True: softmax is part of the loss.
        epsilon: probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the gradient is 0 where it clips. Only
            with ``from_logits=False``. "keras": 1e-7, both bounds rounded to the predictions' dtype, as Keras has them. "sklearn": the
            distance from 1 to the next larger number of the predictions' dtype.
        renormalize: None, or predictions are non-negative numbers that are divided by their sum over the classes: "before_clip" or
            "after_clip" (of the numbers as they are). Only with an `epsilon`.
        axis: the class axis. None: the last one where predictions have at most 2 axes; from 3 axes up it must be named, since
            torch uses 1 and the others -1, and a square shape would hide the mistake.
        class_weights: one non-negative number w_c per class. Numbers below the smallest normal one of the compute dtype count as 0, here
            and in `pos_weight`, shares of smoothing, target entries of the cross-entropies and sample weights.
        class_weighting: what class weights multiply. "entries": the entries of the smoothed target, as above. "position": the whole loss
            of a position, by $\sum_c w_c t_c$, so that $\tau_{ic} = t'_{ic} \sum_k w_k t_{ik}$; the class weights that ``fit`` of Keras
            takes. The weight W_i is the same in both.
        ignore_index: an int or several; positions with that label are dropped. Index targets only: with dense targets a negative
            one has no effect, and one in 0..K-1 is an error.
        label_smoothing: the amount $\epsilon_s$ in [0, 1], spread evenly over the K classes.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i, which are sample_weight_i, times
            $\sum_c w_c t_{ic}$ where class weights are given. "present": the number of positions not dropped. "nonzero": the number of
            those with W_i != 0. "all": the number of all positions. "label_weights": "weights" for class indices and "all" for dense
            targets, as torch divides.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under tracing). Its gradient is 0.
        rounding: "native" or "exact".
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights are read in this dtype, and so is the
            loss returned. Not with ``rounding="exact"``.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.CrossEntropyLoss(from_logits=True)
        loss = spec(np.array([[2.0, 1.0, 0.0]]), np.array([0]))
        assert abs(loss - 0.4076059644443803) < 1e-15
        ```

    Source: the rules follow ``torch.nn.CrossEntropyLoss`` where the frameworks differ, except that nothing is ignored unless asked for.
    """

    name = "cross_entropy"

    _divisors = _LABEL_DIVISORS

    from_logits: bool = False
    epsilon: Epsilon = 0.0
    renormalize: Renormalize | None = None
    axis: int | None = None
    class_weights: Sequence[float] | None = None
    class_weighting: ClassWeighting = "entries"
    ignore_index: int | Iterable[int] | None = None
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    divisor: Divisor = "weights"
    on_empty: OnEmpty = "nan"
    rounding: Rounding = "native"
    scale: float = 1.0
    dtype: ComputedIn | None = None

    def __post_init__(self) -> None:
        self._canonical(
            from_logits=_boolean("from_logits", self.from_logits),
            epsilon=_epsilon("epsilon", self.epsilon, ("keras", "sklearn")),
            renormalize=None
            if self.renormalize is None
            else _choice("renormalize", self.renormalize, _RENORMALIZE),
            axis=None if self.axis is None else as_integer("axis", self.axis),
            class_weights=None
            if self.class_weights is None
            else _weights("class_weights", self.class_weights),
            class_weighting=_choice("class_weighting", self.class_weighting, _CLASS_WEIGHTINGS),
            ignore_index=None
            if self.ignore_index is None
            else _labels("ignore_index", self.ignore_index) or None,
            label_smoothing=_unit_interval("label_smoothing", self.label_smoothing),
            scale=_scale("scale", self.scale),
            dtype=_dtype(self),
        )
        _refuse_clipped_logits(self)
        if self.renormalize is not None and not self.epsilon:
            msg = (
                f"renormalize={self.renormalize!r} needs an epsilon to clip to: a probability of 0 would make the gradient of "
                "all others undefined; set one, as in epsilon='keras'."
            )
            raise SpecValueError(msg)


@_spec
class BinaryCrossEntropyLoss(Loss):
    r"""Binary cross-entropy, elementwise: every element is its own yes-or-no question.

    $$\ell = -\bigl(q\,t' \log p + (1 - t') \log(1 - p)\bigr), \qquad t' = (1-\epsilon_s)\,t + \epsilon_s/2$$

    with $p = \sigma(z)$ when `from_logits`. $0 \log 0 = 0$, on whichever side the zero is.

    Predictions are floating, of any shape; targets have the same shape, are bool, integer or floating, and lie in [0, 1]. The
    per-position loss has the predictions' shape.

    Args:
        from_logits: False: predictions are probabilities. True: the sigmoid is part of the loss.
        epsilon: probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the gradient is 0 where it clips. Only
            with ``from_logits=False``. "keras" and "sklearn": as for `CrossEntropyLoss`. "torch": no probability is clipped, but no
            logarithm is below -100, and the gradient is $(p - t') / \max(p (1 - p), 10^{-12})$, with $10^{-12}$ as float32
            has it, which is not the derivative of that; it is what ``torch.nn.BCELoss`` has.
        epsilon_added: whether epsilon is added inside the logarithms, $-\log(p + \epsilon)$ and $-\log(1 - p + \epsilon)$, instead of
            clipping to it. Needs a number as `epsilon`.
        pos_weight: the factor q of the positive term: a number, or one per entry of `axis`. It never counts in the divisor. Not with
            ``epsilon="torch"``.
        axis: the axis that several pos_weight run along. None: the last one.
        element_weights: None, or non-negative numbers that multiply the losses of elements, an array of at most the predictions' rank,
            aligned to their *last* axes; an extent of 1 is repeated. They count in W_i, as sample weights do.
        label_smoothing: the amount $\epsilon_s$ in [0, 1], spread evenly over the 2 answers.
        average_last_axis: whether the losses along the last axis are averaged, weighted by `element_weights` and divided by their
            number, to one loss per position; positions are then the predictions' shape without it, of at least one axis.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i, products of sample and element
            weights. "present": the number of positions not dropped. "nonzero": the number of those
            whose weight is not 0. "all": the number of all positions.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under tracing). Its gradient is 0.
        rounding: "native" or "exact".
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights are read in this dtype, and so is the
            loss returned. Not with ``rounding="exact"``.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.BinaryCrossEntropyLoss(from_logits=True)
        loss = spec(np.array([0.0]), np.array([1]))
        assert abs(loss - np.log(2)) < 1e-15
        ```

    Source: ``torch.nn.BCEWithLogitsLoss`` for `pos_weight`; unlike ``torch.nn.BCELoss`` no logarithm is clamped.
    """

    name = "binary_cross_entropy"

    from_logits: bool = False
    epsilon: Epsilon = 0.0
    epsilon_added: bool = False
    pos_weight: float | Sequence[float] | None = None
    axis: int | None = None
    element_weights: float | Sequence[Any] | None = None
    label_smoothing: float = 0.0
    average_last_axis: bool = False
    reduction: Reduction = "mean"
    divisor: Divisor = "weights"
    on_empty: OnEmpty = "nan"
    rounding: Rounding = "native"
    scale: float = 1.0
    dtype: ComputedIn | None = None

    def __post_init__(self) -> None:
        weight: object = self.pos_weight
        if weight is not None:
            several = _sequence("pos_weight", weight)
            weight = (
                _non_negative("pos_weight", weight)
                if several is None
                else _weights("pos_weight", several)
            )
        self._canonical(
            from_logits=_boolean("from_logits", self.from_logits),
            epsilon=_epsilon("epsilon", self.epsilon, ("keras", "sklearn", "torch")),
            epsilon_added=_boolean("epsilon_added", self.epsilon_added),
            pos_weight=weight,
            axis=None
            if self.axis is None or as_integer("axis", self.axis) == -1
            else as_integer("axis", self.axis),
            element_weights=_element_weights(self),
            label_smoothing=_unit_interval("label_smoothing", self.label_smoothing),
            average_last_axis=_boolean("average_last_axis", self.average_last_axis),
            scale=_scale("scale", self.scale),
            dtype=_dtype(self),
        )
        _refuse_clipped_logits(self)
        if self.epsilon_added and (isinstance(self.epsilon, str) or not self.epsilon):
            msg = f"epsilon_added adds a number, and epsilon is {self.epsilon!r}; give it one, as in epsilon=1e-7."
            raise SpecValueError(msg)
        if self.epsilon == "torch" and self.pos_weight is not None:
            msg = "epsilon='torch' is what torch.nn.BCELoss does, which has no pos_weight; use from_logits=True for one."
            raise SpecValueError(msg)


@_spec
class MeanSquaredError(Loss):
    r"""Squared error, elementwise, then reduced.

    $$\ell = (p - t)^2$$

    without the factor 1/2 some texts put in front. Predictions are floating, of any shape; targets have the same shape and are
    floating, integer (at most 2^53 in size) or bool. The per-position loss has the predictions' shape.

    Args:
        element_weights: None, or non-negative numbers that multiply the losses of elements, an array of at most the predictions' rank,
            aligned to their *last* axes; an extent of 1 is repeated. They count in W_i, as sample weights do.
        average_last_axis: whether the losses along the last axis are averaged to one loss per position; positions are then the
            predictions' shape without it, of at least one axis.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by. "weights": the sum of the weights W_i, products of sample and element
            weights. "present": the number of positions not dropped. "nonzero": the number of those
            whose weight is not 0. "all": the number of all positions.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under tracing). Its gradient is 0.
        rounding: "native" or "exact".
        scale: a positive number that multiplies every loss, and no weight.
        dtype: None, or "float32" or "float64": predictions, floating targets and sample weights are read in this dtype, and so is the
            loss returned. Not with ``rounding="exact"``.

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        assert ul.MeanSquaredError()(np.array([1.0, 2.0]), np.array([0.0, 4.0])) == 2.5
        ```

    Source: ``torch.nn.MSELoss`` without its broadcasting; ``optax.losses.l2_loss`` is half of it.
    """

    name = "mean_squared_error"

    element_weights: float | Sequence[Any] | None = None
    average_last_axis: bool = False
    reduction: Reduction = "mean"
    divisor: Divisor = "weights"
    on_empty: OnEmpty = "nan"
    rounding: Rounding = "native"
    scale: float = 1.0
    dtype: ComputedIn | None = None

    def __post_init__(self) -> None:
        self._canonical(
            element_weights=_element_weights(self),
            average_last_axis=_boolean("average_last_axis", self.average_last_axis),
            scale=_scale("scale", self.scale),
            dtype=_dtype(self),
        )


@_spec
class NegativeLogLikelihoodLoss(Loss):
    r"""Negative log-likelihood: the cross-entropy of predictions that are log-probabilities already.

    $$\ell_i = \sum_c \tau_{ic}\,(-x_{ic}), \qquad \tau_{ic} = w_c\,t_{ic}$$

    A class index $y$ is the one-hot target $t_c = [c = y]$. Entries with $\tau_{ic} = 0$ are not read. Predictions are any numbers: whether
    they are logarithms of probabilities is not checked, as those of densities may be positive. Shapes, dtypes and kinds of targets are
    those of `CrossEntropyLoss`, which takes logits and is the safer choice where there are any.

    Args:
        axis: the class axis. None: the last one where predictions have at most 2 axes; from 3 axes up it must be named.
        class_weights: one non-negative number w_c per class.
        ignore_index: an int or several; positions with that label are dropped. Index targets only, as for `CrossEntropyLoss`.
        reduction: "mean", "sum", or "none" for the per-position losses.
        divisor: what the mean divides by, as for `CrossEntropyLoss`.
        on_empty: the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under tracing). Its gradient is 0.
        rounding: "native" or "exact".

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        assert ul.NegativeLogLikelihoodLoss()(np.array([[-0.5, -1.0], [-2.0, -0.25]]), np.array([0, 1])) == 0.375
        ```

    Source: ``torch.nn.NLLLoss``, except that nothing is ignored unless asked for.
    """

    name = "negative_log_likelihood"

    _divisors = _LABEL_DIVISORS

    axis: int | None = None
    class_weights: Sequence[float] | None = None
    ignore_index: int | Iterable[int] | None = None
    reduction: Reduction = "mean"
    divisor: Divisor = "weights"
    on_empty: OnEmpty = "nan"
    rounding: Rounding = "native"

    def __post_init__(self) -> None:
        self._canonical(
            axis=None if self.axis is None else as_integer("axis", self.axis),
            class_weights=None
            if self.class_weights is None
            else _weights("class_weights", self.class_weights),
            ignore_index=None
            if self.ignore_index is None
            else _labels("ignore_index", self.ignore_index) or None,
        )


AnyLoss = CrossEntropyLoss | BinaryCrossEntropyLoss | MeanSquaredError | NegativeLogLikelihoodLoss

WITH_CLASSES = (CrossEntropyLoss, NegativeLogLikelihoodLoss)
"""The losses with a class axis."""


def _scale(name: str, value: object) -> float:
    number = _number(name, value)
    if number <= 0.0:
        msg = f"{name} must be positive, got {value!r}."
        raise SpecValueError(msg)
    return number


def _dtype(spec: CrossEntropyLoss | BinaryCrossEntropyLoss | MeanSquaredError) -> str | None:
    if spec.dtype is None:
        return None
    name = _choice("dtype", spec.dtype, _DTYPES)
    if spec.rounding == "exact":
        msg = (
            f"dtype={name!r} rounds what it reads, and rounding='exact' rounds results alone; leave dtype out, and cast the "
            "predictions before the call if they have another one."
        )
        raise SpecValueError(msg)
    return name


def _element_weights(
    spec: BinaryCrossEntropyLoss | MeanSquaredError,
) -> float | tuple[Any, ...] | None:
    return (
        None
        if spec.element_weights is None
        else nested_weights("element_weights", spec.element_weights)
    )


def _refuse_clipped_logits(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> None:
    if spec.from_logits and spec.epsilon:
        msg = (
            f"epsilon={spec.epsilon!r} clips probabilities, and from_logits=True has none to clip; "
            "leave epsilon out, as logits need no clipping."
        )
        raise SpecValueError(msg)


# ------------------------------------------------------------------------------------------------------------- serialization


def from_dict(data: Mapping[str, Any] | Any) -> AnyLoss:
    """The spec that `Loss.to_dict` described.

    Args:
        data: the mapping: "loss", "version", and the fields that differ from their defaults.

    Returns:
        The spec, validated as if its class had been called.

    Raises:
        SerializationError: the dictionary is no spec, is of a later version, or has a key this loss does not know. The message
            names the key.
        SpecValueError, SpecTypeError: a field's value is refused, as if given to the class.
    """
    if not isinstance(data, Mapping):
        # JSON holds other things too, and not every caller has a type checker.
        msg = f"A spec is a mapping with the keys 'loss' and 'version', got {type(data).__name__}."
        raise SerializationError(msg)
    rest = dict(data)
    for key in ("loss", "version"):
        if key not in rest:
            msg = f"The key {key!r} is missing; a spec is written by to_dict() and has 'loss' and 'version'."
            raise SerializationError(msg)
    name, version = rest.pop("loss"), rest.pop("version")
    if not isinstance(name, str) or name not in LOSSES:
        msg = (
            f"The key 'loss' must be one of {', '.join(map(repr, sorted(LOSSES)))}, got {name!r}."
            f"{suggestion(name, LOSSES)}"
        )
        raise SerializationError(msg)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        msg = f"The key 'version' must be a positive int, got {version!r}."
        raise SerializationError(msg)
    if version > SERIALIZATION_VERSION:
        msg = (
            f"The key 'version' is {version}, and this unifiedloss reads versions up to {SERIALIZATION_VERSION}; "
            "upgrade unifiedloss to read it."
        )
        raise SerializationError(msg)
    cls = LOSSES[name]
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in rest:
        if key not in known:
            msg = f"The key {key!r} is not a field of {name!r}; {_fields_of(cls, key)}"
            raise SerializationError(msg)
    return cls(**rest)  # type: ignore[return-value]


def from_json(text: str | bytes | Any) -> AnyLoss:
    """The spec that `Loss.to_json` wrote.

    Args:
        text: the JSON text.

    Returns:
        The spec, validated as if its class had been called.

    Raises:
        SerializationError: the text is not JSON, repeats a key, or is no spec.
    """
    import json  # here and not above: it would take a fifth of this package's import

    if not isinstance(text, str | bytes):
        msg = f"from_json reads a str, got {type(text).__name__}; for a dictionary use from_dict."
        raise SerializationError(msg)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                msg = f"The key {key!r} stands twice in the JSON text."
                raise SerializationError(msg)
        return dict(pairs)

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"The text is not JSON: {error}."
        raise SerializationError(msg) from error
    return from_dict(data)


# ---------------------------------------------------------------------------------------------------------------------- plan


class Signature(NamedTuple):
    """What can be known of a tensor without reading it: its shape (None where unknown, under tracing) and its dtype's name."""

    shape: Shape | None
    dtype: str


class Clip(NamedTuple):
    """Where probabilities are clipped in the compute dtype, and what -log gives there.

    A probability p counts as clipped from below where ``p < low`` and from above where ``p > high``. Both bounds are rounded
    inwards (low up, high down), so that comparing in the compute dtype decides as comparing real numbers would.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        costs: -log p at the real bounds.
        complement_costs: -log(1 - p) there.
    """

    low: float
    high: float
    costs: tuple[float, float]
    complement_costs: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Plan:
    """A spec joined with the shapes and dtypes of one call: all that an adapter has to know, checked.

    Attributes:
        spec: the loss.
        kind: "index" or "dense" for the cross-entropy, "binary", or "regression".
        shape: the predictions' shape; None for an unknown rank, None entries for unknown extents.
        axis: the class axis, counted from the front where the rank is known (else -1); None for elementwise losses.
        classes: K, where it is known.
        positions: the shape of the per-position loss.
        predictions_dtype: the dtype's name; so are `targets_dtype`, `compute_dtype` and `result_dtype`.
        targets_dtype: the targets' dtype.
        compute_dtype: the widest of float32, the predictions' and floating targets' dtypes.
        result_dtype: the dtype of the returned loss.
        weight_rank: the number of leading axes `sample_weight` covers; None without one.
        mask_rank: the same for `mask`.
        unchecked: whether some extent is unknown, so that the adapter must compare shapes once they are known.
        count: the number of positions, where the shape is known.
        ignored_labels: the labels that drop their position; none with dense targets.
        largest_target: the largest target that is surely no bad value, where the smallest is 0; None for the squared error, and
            for an unknown K.
        plain: whether no position can be dropped, switched off or weighted: then all four divisors are the number of positions.
        class_weights: w_c, one per class, numbers that are too small to be told from 0 as 0; so are the next two.
        pos_weight: q.
        smoothing: the amount of label smoothing; 0 where the share of each class is too small.
        may_cancel: whether class weights can leave a mean of kept positions nothing to divide by.
        tiny: probabilities below it count as 0. Here and below it is the smallest normal number of the compute dtype, or the tensor's own
            where that is larger: JAX and TensorFlow read smaller numbers as 0, NumPy and torch do not.
        tiny_target: target entries of the cross-entropies below it count as 0.
        tiny_weight: sample weights below it in size, once they are rounded to the compute dtype, count as 0.
        divisor: the rule of the mean, told for this kind of target.
        scale: the factor of every loss.
        element_weights: the static weights of elements, numbers that are too small to be told from 0 as 0.
        averaged: whether the losses along the last axis are averaged; `positions` has no such axis then, `count` counts elements.
        log_probabilities: whether predictions are logarithms of probabilities.
        by_position: whether class weights multiply the loss of a position, not the entries of its target.
        bounds: (low, gap) where probabilities are clipped to the real numbers [low, 1 - gap], or None; so where logarithms are clamped.
        added: what is added to probabilities inside the logarithms.
        extended: whether rules are used that exact mode's kernel leaves to the oracle as a whole: two weights for one element, or an added
            epsilon that is next to nothing.
        whole: whether a framework's kernel with its own reduction computes this plan: it is plain, from logits (or the squared error),
            reduced, with nothing to cast. A native mean then divides by the number of positions as well.
    """

    # Plain fields and properties: torch.compile traces through here and cannot enter the lock in functools.cached_property.

    spec: AnyLoss
    kind: Literal["index", "dense", "binary", "regression"]
    shape: Shape | None
    axis: int | None
    classes: int | None
    positions: Shape | None
    predictions_dtype: str
    targets_dtype: str
    compute_dtype: str
    result_dtype: str
    weight_rank: int | None
    mask_rank: int | None
    unchecked: bool
    count: int | None
    ignored_labels: tuple[int, ...]
    largest_target: float | None
    plain: bool
    class_weights: tuple[float, ...] | None
    pos_weight: float | tuple[float, ...] | None
    smoothing: float
    may_cancel: bool
    tiny: float
    tiny_target: float
    tiny_weight: float
    divisor: Literal["weights", "present", "nonzero", "all"]
    scale: float
    element_weights: float | tuple[Any, ...] | None
    averaged: bool
    log_probabilities: bool
    by_position: bool
    bounds: tuple[float, float] | None
    added: float
    extended: bool
    whole: bool

    @property
    def probabilities(self) -> bool:
        """Whether predictions are probabilities, or what is to be made into some."""
        return self.kind != "regression" and not self.from_logits and not self.log_probabilities

    @property
    def reads_all(self) -> bool:
        """Whether a class index alone does not tell which predictions of its position are read."""
        return bool(self.smoothing) or self.renormalize is not None

    @property
    def renormalize(self) -> Renormalize | None:
        """When probabilities are divided by their sum."""
        return getattr(self.spec, "renormalize", None)

    @property
    def clamped(self) -> bool:
        """Whether logarithms are clamped at -100 and have torch's gradient."""
        return getattr(self.spec, "epsilon", 0.0) == "torch"

    @property
    def pos_weight_axis(self) -> int:
        """The axis that several pos_weight run along."""
        axis: int | None = getattr(self.spec, "axis", None)
        return -1 if axis is None else axis

    @property
    def from_logits(self) -> bool:
        """Whether the predictions are logits; False for the squared error."""
        return getattr(self.spec, "from_logits", False)

    @property
    def exact(self) -> bool:
        """Whether every number is to be the correctly rounded real one."""
        return self.spec.rounding == "exact"

    @property
    def probability_limit(self) -> float:
        """The largest number that is no bad value: 1 + 4 eps of float32, or 1 + eps of a half type, if nothing renormalizes.

        So large a number reads as the probability 1. Four eps is what a softmax or a sigmoid in float32 exceeds 1 by at most; a float64
        probability was often computed in float32, so it has the same limit.
        """
        if self.renormalize is not None:
            return FORMATS[self.predictions_dtype].largest
        if self.predictions_dtype in HALF_TYPES:
            return 1.0 + FORMATS[self.predictions_dtype].epsilon
        return 1.0 + 4.0 * FORMATS["float32"].epsilon

    @property
    def clip(self) -> Clip | None:
        """The clip of `epsilon`, or None where nothing is clipped."""
        if self.bounds is None:
            return None
        low, gap = self.bounds
        return Clip(
            low=max(FORMATS[self.compute_dtype].ceil(low), self.tiny),
            high=_floor_of_one_minus(gap, self.compute_dtype),
            costs=(-math.log(low), 0.0 - math.log1p(-gap)),
            complement_costs=(-math.log1p(-low), -math.log(gap) if gap else math.inf),
        )

    @property
    def shared_by(self) -> int:
        """Over how many answers smoothing spreads: K for the cross-entropy, 2 for the binary one."""
        if self.kind == "binary":
            return 2
        assert self.classes is not None
        return self.classes


def _bounds(epsilon: float | str, dtype: str) -> tuple[float, float] | None:
    """(low, gap) of the clip [low, 1 - gap] of probabilities of a dtype."""
    if epsilon == "sklearn":
        epsilon = FORMATS[dtype].epsilon
    elif epsilon == "keras":
        return FORMATS[dtype].nearest(1e-7), 1.0 - FORMATS[dtype].nearest(1.0 - 1e-7)
    if isinstance(epsilon, str) or not epsilon:
        return None
    return epsilon, epsilon


def _floor_of_one_minus(gap: float, dtype: str) -> float:
    """The largest number of the format that is at most the real number 1 - gap."""
    form = FORMATS[dtype]
    nearest = form.floor(1.0 - gap)
    # 1.0 - gap is rounded to float64, perhaps upwards past the real number. 1.0 - nearest is exact, by Sterbenz' lemma for
    # nearest >= 0.5, so the comparison is one of real numbers.
    if 1.0 - nearest < gap:
        nearest -= form.ulp(math.nextafter(nearest, 0.0))
    return nearest


def describe(shape: Shape | None) -> str:
    """A shape as messages print it."""
    return "of unknown rank" if shape is None else str(tuple(shape))


class Message:
    """What can be wrong with the shapes of a call. `resolve` says it of shapes it knows, a traced graph of those it learns when it runs."""

    NO_AXIS = "predictions need a class axis, got a scalar of shape ()."
    AXIS = "axis={axis} is out of range for predictions of shape {predictions}."
    NO_CLASSES = "predictions of shape {predictions} have no classes on axis {axis}."
    CLASS_WEIGHTS = "class_weights has {count} entries, and predictions of shape {predictions} have {classes} classes on axis {axis}."
    INDEX_TARGETS = (
        "class indices must have the predictions' shape without the class axis: predictions {predictions} with class axis {axis} "
        "need targets {positions}, got {targets}; {fix}"
    )
    DENSE_TARGETS = (
        "dense (floating) targets must have the shape of the predictions {predictions}, got {targets}; "
        "for class indices use an integer dtype and the shape {positions}."
    )
    DENSE_IGNORED = (
        "ignore_index={label} names a class, and dense targets have no label to compare it with; "
        "use a mask to drop positions, or index targets."
    )
    ELEMENTS = (
        "targets must have the shape of the predictions, nothing is broadcast or squeezed: predictions {predictions}, "
        "targets {targets}; {fix}"
    )
    POS_WEIGHT_SCALAR = "pos_weight has {count} entries, one per entry of the last axis, and the predictions are a scalar."
    POS_WEIGHT = "pos_weight has {count} entries, and axis {axis} of the predictions {predictions} has {extent}."
    ELEMENT_WEIGHTS = (
        "element_weights of shape {weights} do not fit the last axes of predictions {predictions}: "
        "each extent must be 1 or the same."
    )
    AVERAGED = (
        "average_last_axis leaves no position of predictions {predictions}: they need another axis, and at least one entry on the last; "
        "add an axis, or leave average_last_axis out."
    )
    UPSTREAM = "upstream must have the shape of the loss {loss}, got {got}; nothing is broadcast."
    LEADING = (
        "{name} must have the shape of the per-position loss {positions} or a leading part of it, "
        "got {got}; nothing is broadcast over leading axes."
    )

    FIX_INDEX_TARGETS = "one label per position."
    FIX_ELEMENTS = "make the shapes equal before the call."


def _same(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be the same, unknown extents taken as fitting."""
    return len(a) == len(b) and all(
        x is None or y is None or x == y for x, y in zip(a, b, strict=True)
    )


def _known(*shapes: Shape | None) -> bool:
    return all(shape is not None and None not in shape for shape in shapes)


def resolve(
    spec: AnyLoss,
    predictions: Signature,
    targets: Signature,
    sample_weight: Signature | None = None,
    mask: Signature | None = None,
) -> Plan:
    """Join a spec with the shapes and dtypes of one call.

    Every rule about shapes and dtypes is checked here, for all backends at once. Extents that are unknown under tracing are taken as
    fitting, and the plan says so in `unchecked`.

    Raises:
        ShapeError: the shapes do not fit; the message names them and the fix.
        DTypeError: a dtype is not admitted.
        SpecValueError: a field does not fit these shapes (`axis` missing or out of range, a wrong number of class weights, ...).
    """
    check_predictions_dtype(predictions.dtype)
    read_in: str | None = getattr(spec, "dtype", None)
    own_dtypes = (
        predictions.dtype,
        targets.dtype,
        None if sample_weight is None else sample_weight.dtype,
    )
    if read_in is not None:
        predictions, targets = _read_in(read_in, predictions), _read_in(read_in, targets)
        sample_weight = None if sample_weight is None else _read_in(read_in, sample_weight)
    if isinstance(spec, WITH_CLASSES):
        kind = _target_kind(targets.dtype)
        axis, classes, positions = _classes(spec, predictions, targets, kind)
    else:
        kind = "binary" if isinstance(spec, BinaryCrossEntropyLoss) else "regression"
        axis, classes, positions = None, None, _elements(spec, predictions, targets)
    _check_companions(positions, sample_weight, mask)
    elements = positions
    if getattr(spec, "average_last_axis", False):
        elements = predictions.shape
    floating_targets = targets.dtype if targets.dtype in FORMATS else "float32"
    compute_dtype = widest(predictions.dtype, floating_targets)
    reduced_half = spec.reduction != "none" and predictions.dtype in HALF_TYPES
    known = all(
        _known(s.shape) for s in (predictions, targets, sample_weight, mask) if s is not None
    )
    known_elements: Any = elements
    count = math.prod(known_elements) if known_elements is not None and known else None
    if not isinstance(count, int):
        # A symbol, as torch.export has, which no question may be asked of: the answer would be frozen.
        count = None
    ignored_labels = _ignored_labels(spec, kind, targets.dtype)
    class_weights = getattr(spec, "class_weights", None)
    pos_weight = getattr(spec, "pos_weight", None)
    element_weights = getattr(spec, "element_weights", None)
    unweighted = sample_weight is None and class_weights is None and element_weights is None
    tiny = FORMATS[compute_dtype].tiny
    plain = (
        unweighted and mask is None and len(ignored_labels) == 0
    )  # torch.compile cannot say "not" of a tuple
    divisor: Any = spec.divisor
    if divisor == "label_weights":
        divisor = "all" if kind == "dense" else "weights"
    epsilon: Any = getattr(spec, "epsilon", 0.0)
    added = epsilon if getattr(spec, "epsilon_added", False) else 0.0
    averaged = getattr(spec, "average_last_axis", False)
    return Plan(
        spec=spec,
        kind=kind,  # type: ignore[arg-type]
        shape=predictions.shape,
        axis=axis,
        classes=classes,
        positions=positions,
        predictions_dtype=predictions.dtype,
        targets_dtype=targets.dtype,
        compute_dtype=compute_dtype,
        result_dtype="float32" if reduced_half else predictions.dtype,
        weight_rank=_rank(sample_weight),
        mask_rank=_rank(mask),
        unchecked=not known,
        count=count,
        ignored_labels=ignored_labels,
        largest_target=_largest_target(kind, classes, targets.dtype),
        plain=plain,
        class_weights=class_weights
        if class_weights is None
        else _read_weights(class_weights, tiny),
        pos_weight=_read_weights(pos_weight, tiny)
        if isinstance(pos_weight, tuple)
        else _read_weight(pos_weight, tiny),
        smoothing=_read_smoothing(spec, kind, classes, tiny),
        may_cancel=_may_cancel(spec, divisor, kind, class_weights, tiny),
        tiny=_tiny(compute_dtype, own_dtypes[0]),
        tiny_target=_tiny(compute_dtype, own_dtypes[1]),
        tiny_weight=_tiny(compute_dtype, own_dtypes[2]),
        divisor=divisor,
        scale=getattr(spec, "scale", 1.0),
        element_weights=_read_nested(element_weights, tiny),
        averaged=averaged,
        log_probabilities=isinstance(spec, NegativeLogLikelihoodLoss),
        by_position=class_weights is not None
        and getattr(spec, "class_weighting", "entries") == "position",
        bounds=None if added else _bounds(epsilon, predictions.dtype),
        added=added,
        extended=(element_weights is not None and (averaged or sample_weight is not None))
        or 0 < added < _LEAST_ADDED,
        whole=plain
        and not averaged
        and getattr(spec, "scale", 1.0) == 1.0
        and read_in is None
        and bool(count)
        and _is_native(spec, kind, predictions.dtype, targets.dtype),
    )


def _read_in(dtype: str, x: Signature) -> Signature:
    return x._replace(dtype=dtype) if x.dtype in FORMATS else x


def _read_nested(weights: Any, tiny: float) -> Any:
    if isinstance(weights, tuple):
        return tuple(_read_nested(weight, tiny) for weight in weights)
    return _read_weight(weights, tiny)


def _tiny(compute: str, own: str | None) -> float:
    """Below which a tensor's numbers count as 0 where they are cast to the compute dtype.

    Casting float32 to float64, JAX and TensorFlow read what is subnormal as 0. Subnormal float16 numbers are ordinary in float32.
    """
    tiny = FORMATS[compute].tiny
    return tiny if own not in FORMATS or own == "float16" else max(tiny, FORMATS[own].tiny)


def _read_weight(weight: float | None, tiny: float) -> float | None:
    return 0.0 if weight is not None and weight < tiny else weight


def _read_weights(weights: tuple[float, ...], tiny: float) -> tuple[float, ...]:
    # min() runs through 32,000 weights in a tenth of the time a comprehension takes.
    return (
        weights
        if min(weights) >= tiny
        else tuple(0.0 if weight < tiny else weight for weight in weights)
    )


def _read_smoothing(spec: AnyLoss, kind: str, classes: int | None, tiny: float) -> float:
    """The amount of smoothing; 0 where what it gives each class, eps / K or eps / 2, counts as 0. An unknown K is taken for 1."""
    smoothing: float = getattr(spec, "label_smoothing", 0.0)
    return smoothing if smoothing / (2 if kind == "binary" else classes or 1) >= tiny else 0.0


def _may_cancel(
    spec: AnyLoss, divisor: str, kind: str, class_weights: tuple[float, ...] | None, tiny: float
) -> bool:
    if class_weights is None or spec.reduction != "mean" or divisor not in ("weights", "nonzero"):
        return False
    return kind == "dense" or min(class_weights) < tiny


def check_upstream(plan: Plan, upstream: Signature) -> None:
    """Raise where the gradient from above has not the loss's shape, or holds no real numbers."""
    if upstream.dtype not in FORMATS and upstream.dtype not in INTEGER_TYPES:
        msg = f"upstream must be floating or integer, got {upstream.dtype}; cast it."
        raise DTypeError(msg)
    loss = plan.positions if plan.spec.reduction == "none" else ()
    if loss is not None and upstream.shape is not None and not _same(loss, upstream.shape):
        raise ShapeError(Message.UPSTREAM.format(loss=describe(loss), got=describe(upstream.shape)))


def _ignored_labels(spec: AnyLoss, kind: str, dtype: str) -> tuple[int, ...]:
    labels: tuple[int, ...] = getattr(spec, "ignore_index", None) or ()
    if kind != "index":
        return ()
    # A uint8 label of 156 is not -100, though in torch, TensorFlow and JAX the two compare equal as uint8.
    return tuple(label for label in labels if label >= 0) if dtype.startswith("u") else labels


def _largest_target(kind: str, classes: int | None, dtype: str) -> float | None:
    if kind == "binary":
        return 1
    if kind == "dense":
        return FORMATS["float16"].largest  # any finite number that every format holds
    if kind == "regression" or classes is None:
        return None
    # A dtype too narrow for K - 1 holds no label past it.
    bits = int(dtype.lstrip("uint")) - (not dtype.startswith("u"))
    return min(classes, 1 << bits) - 1


def _is_native(spec: AnyLoss, kind: str, predictions: str, targets: str) -> bool:
    """Whether a framework's own kernels compute the reduced loss in the dtypes given, if every position counts once."""
    if spec.rounding == "exact" or spec.reduction == "none" or predictions in HALF_TYPES:
        return False
    if isinstance(spec, NegativeLogLikelihoodLoss):
        return False
    if isinstance(spec, MeanSquaredError):
        return targets == predictions
    if not spec.from_logits:
        return False
    if kind == "index":
        return targets == "int64"
    if isinstance(spec, BinaryCrossEntropyLoss) and (
        spec.label_smoothing or spec.pos_weight is not None
    ):
        return False
    return targets == predictions


def _rank(signature: Signature | None) -> int | None:
    return None if signature is None or signature.shape is None else len(signature.shape)


def check_predictions_dtype(dtype: str) -> None:
    """Refuse predictions of a dtype that is not floating."""
    if dtype not in FORMATS:
        msg = (
            f"predictions must be floating ({', '.join(FORMATS)}), got {dtype}; "
            "cast them, or check that predictions come first and targets second."
        )
        raise DTypeError(msg)


def _target_kind(dtype: str) -> str:
    if dtype in INTEGER_TYPES:
        return "index"
    if dtype in FORMATS:
        return "dense"
    if dtype == "bool":
        msg = "bool targets are not class indices; cast them to an integer dtype, or use the binary cross-entropy."
        raise DTypeError(msg)
    msg = f"targets must be integer class indices or floating ({', '.join(FORMATS)}), got {dtype}."
    raise DTypeError(msg)


def _normalized_axis(axis: int | None, rank: int, shape: Shape) -> int:
    if rank == 0:
        raise ShapeError(Message.NO_AXIS)
    if axis is None:
        if rank > 2:
            msg = (
                f"predictions have {rank} axes {describe(shape)}: name the class axis. torch uses axis=1, "
                "TensorFlow, Keras and JAX use axis=-1."
            )
            raise SpecValueError(msg)
        return rank - 1
    if not -rank <= axis < rank:
        raise SpecValueError(Message.AXIS.format(axis=axis, predictions=describe(shape)))
    return axis % rank


def checked_axis(axis: object) -> int | None:
    """An axis that came without a spec, which would have validated it."""
    return None if axis is None else as_integer("axis", axis)


def class_axis(axis: int | None, shape: Shape | None) -> int:
    """The class axis of predictions of this shape, counted from the front where the rank is known."""
    if shape is None:
        return -1 if axis is None else axis
    return _normalized_axis(axis, len(shape), shape)


def _classes(
    spec: CrossEntropyLoss | NegativeLogLikelihoodLoss,
    predictions: Signature,
    targets: Signature,
    kind: str,
) -> tuple[int, int | None, Shape | None]:
    shape = predictions.shape
    axis = class_axis(spec.axis, shape)
    if shape is None:
        classes, positions = None, None
    else:
        classes, positions = shape[axis], shape[:axis] + shape[axis + 1 :]
    if classes == 0:
        raise ShapeError(Message.NO_CLASSES.format(predictions=describe(shape), axis=axis))
    if (
        classes is not None
        and spec.class_weights is not None
        and len(spec.class_weights) != classes
    ):
        msg = Message.CLASS_WEIGHTS.format(
            count=len(spec.class_weights), predictions=describe(shape), classes=classes, axis=axis
        )
        raise SpecValueError(msg)
    if kind == "index":
        _check_index_shape(shape, axis, positions, targets.shape)
    else:
        if shape is not None and targets.shape is not None and not _same(shape, targets.shape):
            msg = Message.DENSE_TARGETS.format(
                predictions=describe(shape),
                targets=describe(targets.shape),
                positions=describe(positions),
            )
            raise ShapeError(msg)
        _check_dense_ignore(spec, classes)
    return axis, classes, positions


def _check_index_shape(
    shape: Shape | None, axis: int, positions: Shape | None, targets: Shape | None
) -> None:
    if shape is None or positions is None or targets is None or _same(positions, targets):
        return
    if _same(shape, targets):
        fix = "for one-hot or soft targets use a floating dtype."
    elif _same((*positions[:axis], 1, *positions[axis:]), targets):
        fix = f"remove the axis of length 1 with targets.reshape({describe(positions)})."
    else:
        fix = Message.FIX_INDEX_TARGETS
    msg = Message.INDEX_TARGETS.format(
        predictions=describe(shape),
        axis=axis,
        positions=describe(positions),
        targets=describe(targets),
        fix=fix,
    )
    raise ShapeError(msg)


def _check_dense_ignore(
    spec: CrossEntropyLoss | NegativeLogLikelihoodLoss, classes: int | None
) -> None:
    for label in spec.ignore_index or ():  # type: ignore[union-attr]
        if classes is not None and 0 <= label < classes:
            raise SpecValueError(Message.DENSE_IGNORED.format(label=label))


def _elements(
    spec: BinaryCrossEntropyLoss | MeanSquaredError, predictions: Signature, targets: Signature
) -> Shape | None:
    if (
        targets.dtype not in FORMATS
        and targets.dtype not in INTEGER_TYPES
        and targets.dtype != "bool"
    ):
        msg = f"targets must be bool, integer or floating ({', '.join(FORMATS)}), got {targets.dtype}."
        raise DTypeError(msg)
    shape = predictions.shape
    if shape is None:
        return None
    if targets.shape is not None and not _same(shape, targets.shape):
        fix = _elementwise_fix(shape, targets.shape)
        msg = Message.ELEMENTS.format(
            predictions=describe(shape), targets=describe(targets.shape), fix=fix
        )
        raise ShapeError(msg)
    if isinstance(spec, BinaryCrossEntropyLoss):
        _check_pos_weight(spec, shape)
    if spec.element_weights is not None:
        _check_element_weights(extents(spec.element_weights), shape)
    if not spec.average_last_axis:
        return shape
    if len(shape) < 2 or shape[-1] == 0:
        raise ShapeError(Message.AVERAGED.format(predictions=describe(shape)))
    return shape[:-1]


def _check_pos_weight(spec: BinaryCrossEntropyLoss, shape: Shape) -> None:
    weights = spec.pos_weight
    if not isinstance(weights, tuple):
        return
    if not shape:
        raise SpecValueError(Message.POS_WEIGHT_SCALAR.format(count=len(weights)))
    axis = -1 if spec.axis is None else spec.axis
    if not -len(shape) <= axis < len(shape):
        raise SpecValueError(Message.AXIS.format(axis=axis, predictions=describe(shape)))
    extent = shape[axis]
    if extent is not None and extent != len(weights):
        msg = Message.POS_WEIGHT.format(
            count=len(weights), axis=axis, predictions=describe(shape), extent=extent
        )
        raise SpecValueError(msg)


def _check_element_weights(weights: Shape, shape: Shape) -> None:
    last = shape[len(shape) - len(weights) :] if len(weights) <= len(shape) else None
    if last is None or any(
        n not in (1, m) and m is not None for n, m in zip(weights, last, strict=True)
    ):
        msg = Message.ELEMENT_WEIGHTS.format(weights=describe(weights), predictions=describe(shape))
        raise SpecValueError(msg)


def _elementwise_fix(predictions: Shape, targets: Shape) -> str:
    if [n for n in predictions if n != 1] == [n for n in targets if n != 1]:
        return f"reshape one of them, as in targets.reshape({describe(predictions)})."
    return Message.FIX_ELEMENTS


def _check_companions(
    positions: Shape | None, sample_weight: Signature | None, mask: Signature | None
) -> None:
    if mask is not None and mask.dtype != "bool":
        msg = f"mask must be bool, got {mask.dtype}; cast it, or pass numbers as sample_weight."
        raise DTypeError(msg)
    if (
        sample_weight is not None
        and sample_weight.dtype not in FORMATS
        and sample_weight.dtype not in INTEGER_TYPES
    ):
        hint = "pass a bool tensor as mask." if sample_weight.dtype == "bool" else "cast it."
        msg = f"sample_weight must be floating or integer, got {sample_weight.dtype}; {hint}"
        raise DTypeError(msg)
    for name, signature in (("sample_weight", sample_weight), ("mask", mask)):
        if signature is None or signature.shape is None or positions is None:
            continue
        leading = positions[: len(signature.shape)]
        if not _same(leading, signature.shape):
            msg = Message.LEADING.format(
                name=name, positions=describe(positions), got=describe(signature.shape)
            )
            raise ShapeError(msg)
