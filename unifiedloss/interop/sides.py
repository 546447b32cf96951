"""Run one side of a comparison: a spec, or a loss of another library if it is installed.

The result on an input is an `Outcome`: a value and a gradient, or an error.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import interop
from unifiedloss.errors import (
    MissingBackendError,
    SpecTypeError,
    SpecValueError,
    UnifiedLossError,
    UnsupportedError,
)
from unifiedloss.floats import FORMATS
from unifiedloss.interop.library_loss import LIBRARY_LOSSES, Call, literal
from unifiedloss.interop.unchanged import check_unchanged
from unifiedloss.shapes import loss_axis
from unifiedloss.spec import Categorical, Loss, bound_spec
from unifiedloss.text import brief

Array = NDArray[Any]

AS_GIVEN = "run_as_given"
"""The `way` of an input that must not be adapted: labels stay labels, dtypes stay as they are."""


@dataclass(frozen=True, eq=False)
class Input:
    """The tensors of one call.

    Attributes:
        predictions: an array.
        targets: an array of labels or of targets.
        sample_weight: an array of weights, or None.
        way: the name of the function of an adapter that runs the library's loss on this input;
            None for ``run``. If an adapter has no such function, the spec is run instead.
            `AS_GIVEN` passes the tensors on unchanged, without adapting them to the loss.
        origin: the array that `way` takes in place of the predictions, such as the logits that they
            were computed from.
        note: a description of `way`.
        mask: an array, True where a position counts, or None. Only specs take a mask.
        own: predictions, targets and sample weights as the user gave them, or None. A loss gets
            them, and not the arrays, if they are tensors of its own framework.
        converted: what was converted, and because of which rule.
    """

    predictions: Array
    targets: Array
    sample_weight: Array | None = None
    way: str | None = None
    origin: Array | None = None
    note: str | None = None
    mask: Array | None = None
    own: tuple[Any, Any, Any] = (None, None, None)
    converted: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"predictions {shown(self.predictions)}", f"targets {shown(self.targets)}"]
        if self.sample_weight is not None:
            parts.append(f"sample_weight {shown(self.sample_weight)}")
        if self.mask is not None:
            parts.append(f"mask {shown(self.mask)}")
        if self.note is not None:
            parts.append(self.note)
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a loss on an input.

    Attributes:
        value: the loss, in the shape and dtype it was returned in; None after an error.
        gradient: the gradient of the sum of `value` with respect to the predictions; None if there
            is none.
        error: the error that was raised, as "ErrorName: message", or None.
        ran: "native" if the other library computed the loss, "instead" if its spec was run in its
            place, "spec" for a spec.
        reason: why the spec of a library's loss was run in its place, or None.
        converted: which tensors were converted for this loss, and because of which rule.
    """

    value: Array | None = None
    gradient: Array | None = None
    error: str | None = None
    ran: str = "spec"
    reason: str | None = None
    converted: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value is None:
            return str(self.error)
        return shown(self.value, dtype=False)


@dataclass(frozen=True)
class Side:
    """One of two losses that are compared.

    Attributes:
        name: the loss as text.
        spec: the spec that computes the same; None if no spec does.
        call: the call that makes the loss in its library; None for a spec.
        refusal: why no spec computes the same.
        moved: the loss in its own layout, if the tensors have another; None if they have that.
        given: the object or function that the user passed, which is run unchanged; None for a spec,
            and for text, whose loss is built from the call.
    """

    name: str
    spec: Loss | None
    call: Call | None = None
    refusal: str | None = None
    given: Any = field(default=None, compare=False)
    moved: Moved | None = field(default=None, compare=False)
    _cache: dict[int, tuple[Input, Outcome]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def outcome(self, x: Input) -> Outcome:
        """Run the library's own loss on an input if that is possible here, else the spec."""
        cached = self._cache.get(id(x))
        if cached is None:
            # Keep the input alive, because a freed input's id can be reused by another input.
            cached = self._cache[id(x)] = (x, self._outcome(x))
        return cached[1]

    def _outcome(self, x: Input) -> Outcome:
        if self.moved is not None:
            return self.moved.outcome(x)
        if self.call is not None:
            try:
                return _run(self.call, self.adapted(x), self.given)
            except (MissingBackendError, UnsupportedError) as error:
                if self.spec is None:
                    raise
                return replace(run_spec(self.spec, x), ran="instead", reason=str(error))
        assert self.spec is not None
        return run_spec(self.spec, x)

    def adapted(self, x: Input) -> Input:
        """Return the input with one-hot targets for labels if the library's loss takes no labels.

        Raises:
            UnsupportedError: the loss takes labels only, and the targets are dense.
        """
        if self.call is None or self.call.name not in LIBRARY_LOSSES or x.way == AS_GIVEN:
            return x
        if not issubclass(LIBRARY_LOSSES[self.call.name].loss, Categorical):
            return x
        kinds = kinds_of(self.call.name)
        if (
            x.targets.ndim == x.predictions.ndim - 1
            and x.targets.dtype.kind in "iu"
            and "index" not in kinds
        ):
            targets = _one_hot(x, _class_axis(self, x.predictions), self.call.name)
            said = "labels were converted to one-hot rows (index_targets)"
            own = (x.own[0], None, x.own[2])
            return replace(x, targets=targets, own=own, converted=(*x.converted, said))
        if x.targets.shape == x.predictions.shape and "dense" not in kinds:
            msg = f"{self.call.name} takes class indices."
            raise UnsupportedError(msg)
        return x


@dataclass(frozen=True)
class Moved:
    """A loss whose class axis is another than that of the tensors.

    Attributes:
        side: the loss in its own layout.
        given: the class axis of the tensors, which may be counted from the end.
        axis: that of the loss, likewise. Tensors of any rank are moved, because quirks try some.
    """

    side: Side
    given: int
    axis: int

    def outcome(self, x: Input) -> Outcome:
        """Move the class axis of the tensors, run the loss, and move that of the gradient back."""
        found = self.side.outcome(with_axis_moved(x, self.given, self.axis))
        gradient = found.gradient
        if gradient is not None:
            gradient = _with_axis_moved(gradient, self.axis, self.given)
        return replace(found, gradient=gradient)


def with_axis_moved(x: Input, source: int, target: int) -> Input:
    """An input with its class axis elsewhere, that of dense targets too."""
    dense = x.targets.shape == x.predictions.shape
    targets = _with_axis_moved(x.targets, source, target) if dense else x.targets
    predictions = _with_axis_moved(x.predictions, source, target)
    return replace(x, predictions=predictions, targets=targets, own=(None, None, x.own[2]))


def _with_axis_moved(x: Array, source: int, target: int) -> Array:
    if x.ndim < 2:
        return x
    return np.ascontiguousarray(np.moveaxis(x, source, target))


def _one_hot(x: Input, axis: int, name: str) -> Array:
    k = x.predictions.shape[axis]
    if x.targets.size and not 0 <= x.targets.min() <= x.targets.max() < k:
        msg = f"{name} takes no class indices, and {shown(x.targets)} are not all classes."
        raise UnsupportedError(msg)
    one_hot = np.expand_dims(x.targets, axis) == np.arange(k).reshape((k,) + (1,) * (-1 - axis))
    return np.asarray(one_hot.astype(x.predictions.dtype))


def kinds_of(name: str) -> tuple[str, ...]:
    """Return the kinds of targets that a loss with classes takes: "index", "dense" or both."""
    last = name.rpartition(".")[2].lower()
    if name in ("torch.nn.CrossEntropyLoss", "torch.nn.functional.cross_entropy"):
        return ("index", "dense")
    if (
        name.startswith(("onnx.", "sklearn.", "torch."))
        or last.startswith("sparse")
        or "integer_labels" in last
    ):
        return ("index",)
    return ("dense",)


def _class_axis(side: Side, predictions: Array) -> int:
    """Return the class axis, counted from the end."""
    axis = getattr(side.spec, "axis", None)
    axis = -1 if axis is None else loss_axis(int(axis), predictions.shape)
    return axis if axis < 0 else axis - predictions.ndim


def side_of(loss: Any) -> Side:
    """Return the side of a spec, of another library's loss, or of the text of either.

    If no spec computes the loss, the side has no spec; `refusal` gives the reason.

    Raises:
        SpecTypeError, SpecValueError: `loss` is not a known loss.
    """
    if isinstance(loss, Side):
        return loss
    if isinstance(loss, Loss):
        return Side(repr(loss), loss)
    if isinstance(loss, str | Mapping):
        call = interop.call_in(loss)
        if isinstance(call, Loss) or call.name.startswith("unifiedloss."):
            spec = interop.from_native(loss)
            return Side(repr(spec), spec)
    elif isinstance(loss, Call):
        call = loss
    else:
        bound = bound_spec(loss)
        if bound is not None:
            check_unchanged(loss, interop.described(loss))
            return side_of(bound)
        return _of_call(interop.read(loss), loss)
    return _of_call(call, None)


def _of_call(call: Call, given: Any) -> Side:
    try:
        return Side(named(call), interop.spec_of(call), call, given=given)
    except (UnsupportedError, SpecValueError, SpecTypeError) as error:
        return Side(named(call), None, call, str(error), given)


def weight_dtype(side: Side) -> str | None:
    """Return the dtype of a loss's weight tensors; None if it has none or keeps plain numbers."""
    if side.call is None or not _runs_here(side.call):
        return None
    dtype_of = getattr(interop.adapter(side.call.library), "weight_dtype", None)
    return None if dtype_of is None else dtype_of(side.call, side.given)


def settings_of(*sides: Side) -> tuple[str, ...]:
    """List global settings of this process under which a text makes a different loss.

    They do not concern objects, which already exist and are run unchanged.
    """
    settings = []
    for side in sides:
        if side.call is not None and side.given is None and _runs_here(side.call):
            setting = getattr(interop.adapter(side.call.library), "setting", None)
            settings.append(None if setting is None else setting(side.call))
    return tuple(dict.fromkeys(sentence for sentence in settings if sentence is not None))


def _runs_here(call: Call) -> bool:
    """Tell whether the library of a loss is installed; for Keras, also on the right backend."""
    try:
        adapter = interop.adapter(call.library)
    except MissingBackendError:
        return False
    return call.library != "keras" or adapter.backend() == (call.backend or "tensorflow")


def unreduced(side: Side) -> Side:
    """Return the side without its reduction, which gives the loss of every position.

    If the side holds an object, copy the object.

    Raises:
        UnsupportedError, SpecTypeError, SpecValueError: the library has no unreduced loss.
    """
    if side.moved is not None:
        moved = replace(side.moved, side=unreduced(side.moved.side))
        return replace(side, moved=moved, _cache={})
    assert side.call is not None
    library_loss = interop.find(side.call.name)
    if "reduction" not in library_loss.parameters:
        return side
    no_reduction = _no_reduction(library_loss.parameters)
    arguments = library_loss.bind([], {**side.call.arguments, **no_reduction})
    call = Call(side.call.name, arguments, side.call.backend)
    return _of_call(call, _copy(side.given, no_reduction))


def _no_reduction(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that switch the reduction off.

    Reset torch's deprecated `size_average` and `reduce`, because they override `reduction`.
    """
    deprecated = [name for name in ("size_average", "reduce") if name in parameters]
    return {"reduction": "none"} | dict.fromkeys(deprecated)


def _copy(given: Any, arguments: dict[str, Any]) -> Any:
    """Copy a loss with other arguments.

    Return None if no copy can take them; the loss is then built from its call.
    """
    if given is None:
        return None
    if callable(given) and not hasattr(given, "reduction"):
        return functools.partial(given, **arguments)
    if not hasattr(given, "reduction"):
        return None
    # Do not use copy.copy: it would serialize a Keras loss the way Keras saves a model.
    changed = object.__new__(type(given))
    changed.__dict__.update(given.__dict__)
    changed.reduction = arguments["reduction"]
    return changed


def named(call: Call) -> str:
    """Return the code of a call, with the backend of Keras if it is not TensorFlow.

    In a long code, arrays are shortened.
    """
    text = str(call)
    if len(text) > _MOST_NAMED:
        for value in call.arguments.values():
            text = text.replace(literal(value), brief(value))
    if call.backend in (None, "tensorflow"):
        return text
    return text.replace("keras.", f"keras[{call.backend}].", 1)


_MOST_NAMED = 500
"""The code of a call with more characters is shortened."""


def run_spec(spec: Loss, x: Input) -> Outcome:
    """Run a spec on an input, with NumPy."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, gradient = spec.value_and_grad(
                x.predictions, x.targets, sample_weight=x.sample_weight, mask=x.mask
            )
    except UnifiedLossError as error:
        return Outcome(error=_described(error))
    return Outcome(np.asarray(value), np.asarray(gradient))


def _run(call: Call, x: Input, given: Any) -> Outcome:
    """Run the library's own loss on an input: the given object, or one built from the call."""
    if x.mask is not None:
        msg = f"{call.name} takes no mask; select the positions that count before it is called."
        raise UnsupportedError(msg)
    adapter = interop.adapter(call.library)
    if call.library == "keras" and adapter.backend() != (call.backend or "tensorflow"):
        msg = f"Keras runs on {adapter.backend()} here."
        raise UnsupportedError(msg)
    run = getattr(adapter, x.way or "run", adapter.run if x.way == AS_GIVEN else None)
    if run is None:
        msg = f"{call.library} has no {x.way}."
        raise UnsupportedError(msg)
    converted = x.converted
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            predictions, targets, sample_weight = _tensors(x, getattr(adapter, "TENSORS", ()))
            if x.way is None and hasattr(adapter, "accepted"):
                before = predictions, targets
                predictions, targets = adapter.accepted(call, predictions, targets)
                after = predictions, targets
                converted = *converted, *_conversions(call, before, after)
            value, gradient = run(call, predictions, targets, sample_weight, given)
    except UnsupportedError:
        raise
    except Exception as error:  # noqa: BLE001 - any error of a library is the outcome
        return Outcome(error=_described(error), ran="native", converted=converted)
    return Outcome(
        np.asarray(value),
        None if gradient is None else np.asarray(gradient),
        ran="native",
        converted=converted,
    )


def _tensors(x: Input, types: Any) -> list[Any]:
    """Return the tensors of a call: those of these types as they were given, others as arrays."""
    arrays = (x.predictions if x.origin is None else x.origin, x.targets, x.sample_weight)
    return [
        own if isinstance(own, types) else array for own, array in zip(x.own, arrays, strict=True)
    ]


def _conversions(call: Call, before: tuple[Any, Any], after: tuple[Any, Any]) -> list[str]:
    """Say which tensors got another dtype, unless only integers became narrower."""
    categorical = issubclass(interop.find(call.name).loss, Categorical)
    said = []
    for name, old, new in zip(("predictions", "targets"), before, after, strict=True):
        first, second = _dtype_name(old), _dtype_name(new)
        if first == second or (first, second) == ("int64", "int32"):
            continue
        if first in FORMATS:
            rule = "float64" if categorical else "float64_elements"
        else:
            rule = "label_types" if categorical else "integer_targets"
        said.append(f"{name} were converted from {first} to {second} ({rule})")
    return said


def _dtype_name(x: Any) -> str:
    """Return the name of the dtype of a tensor of any framework."""
    name = getattr(x.dtype, "name", None)
    return name if isinstance(name, str) else str(x.dtype).rpartition(".")[2]


def _described(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    first = lines[0] if len(lines[0]) <= 160 else f"{lines[0][:157]}..."
    return f"{type(error).__name__}: {first}"


# ---------------------------------------------------------------------------------------- comparing


def same(a: Outcome, b: Outcome, *, gradients: bool = True) -> bool:
    """Tell whether two outcomes are the same up to rounding. Two errors count as the same.

    Args:
        a: one outcome.
        b: the other.
        gradients: whether to compare the gradients too, if both outcomes have one.
    """
    if a.value is None or b.value is None:
        return a.value is None and b.value is None
    gradients = gradients and a.gradient is not None and b.gradient is not None
    # Take the coarser dtype of value and gradient: a float32 loss has a gradient with float32
    # accuracy, even if the gradient is returned in float64.
    tolerance = _tolerance(a.value, b.value, *([a.gradient, b.gradient] if gradients else []))
    if not close(a.value, b.value, tolerance):
        return False
    return not gradients or same_gradients(a, b)


def same_gradients(a: Outcome, b: Outcome) -> bool:
    """Tell whether two gradients are the same up to rounding, or one of them is missing."""
    if a.gradient is None or b.gradient is None:
        return True
    return close(a.gradient, b.gradient, _tolerance(a.value, b.value, a.gradient, b.gradient))


def _tolerance(*arrays: Array | None) -> float:
    """Return the tolerance for numbers of the coarsest of these dtypes."""
    return _ULPS * max(_epsilon(x) for x in arrays if x is not None)


_ULPS = 16
"""Tolerance in ulps of 1, because a loss is computed from numbers near 1 and inherits their errors.

The kernels of the frameworks differ by less on inputs as small as those of `diff`.
"""


def close(a: Array, b: Array, tolerance: float) -> bool:
    """Tell whether two arrays hold the same numbers up to a tolerance. Their shapes may differ."""
    if a.size != b.size:
        return False
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return bool(np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True))


def _epsilon(a: Array) -> float:
    return FORMATS[a.dtype.name].epsilon if a.dtype.name in FORMATS else FORMATS["float64"].epsilon


def shown(array: Array, *, dtype: bool = True) -> str:
    """Write an array as nested lists, and a large array as its shape and range."""
    suffix = f" {array.dtype}" if dtype and array.dtype.name not in ("float32", "int64") else ""
    if array.size > 24:
        low, high = array.astype(np.float64).min(), array.astype(np.float64).max()
        values = f"all {number(low)}" if low == high else f"from {number(low)} to {number(high)}"
        return f"of shape {array.shape}, {values}{suffix}"
    return f"{_written(array)}{suffix}"


def _written(array: Array) -> str:
    if array.ndim == 0:
        return number(array.item())
    if array.shape[0] == 0:
        return f"of shape {array.shape}" if array.ndim > 1 else "[]"
    return f"[{', '.join(map(_written, array))}]"


def number(x: float) -> str:
    """Write a number with 9 digits, enough to distinguish any two float32 numbers."""
    return f"{x:.9g}"
