"""One side of a comparison: a spec, or another library's loss, which is run itself where its library is installed.

What comes of an input is an `Outcome`: a value and a gradient, or the error.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss import switching
from unifiedloss.errors import (
    MissingBackendError,
    SpecTypeError,
    SpecValueError,
    UnifiedLossError,
    UnsupportedError,
)
from unifiedloss.floats import FORMATS
from unifiedloss.spec import AnyLoss, Categorical, Loss, bound_spec
from unifiedloss.switching.library_loss import LIBRARY_LOSSES, Call

Array = NDArray[Any]


AS_GIVEN = "run_as_given"
"""The `way` of an input that is not to be adapted: labels stay labels, and dtypes what they are."""


@dataclass(frozen=True, eq=False)
class Input:
    """The tensors of one call.

    Attributes:
        predictions: as an array; so are `targets` and `sample_weight`.
        targets: what they are compared with.
        sample_weight: weights, or None.
        way: how another library computes it where that matters: the name of a function of its adapter. Of libraries whose adapter has
            none, the spec is evaluated. `AS_GIVEN` hands over the tensors as they are, where they would be made what the loss takes.
        origin: what `way` is given in place of the predictions, such as the logits behind them.
        note: what `way` does, in words.
        mask: which positions count, or None. Specs alone take one.
    """

    predictions: Array
    targets: Array
    sample_weight: Array | None = None
    way: str | None = None
    origin: Array | None = None
    note: str | None = None
    mask: Array | None = None

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
    """What came of an input.

    Attributes:
        value: the loss, in the shape and dtype it was returned in; None after an error.
        gradient: of its sum, with respect to the predictions; None where there is none.
        error: what was raised, as "ErrorName: message".
        ran: "native" where the other library itself computed it, "instead" where its spec did in its place, "spec" for a spec.
        reason: why the library itself was not asked, where it was not and could have been.
    """

    value: Array | None = None
    gradient: Array | None = None
    error: str | None = None
    ran: str = "spec"
    reason: str | None = None

    def __str__(self) -> str:
        return self.error if self.value is None else shown(self.value, dtype=False)  # type: ignore[return-value]


@dataclass(frozen=True)
class Side:
    """One of two losses that are compared.

    Attributes:
        name: how it is written.
        spec: what it computes; None where no spec does.
        call: what it is in its own library; None for a spec.
        refusal: why there is no spec.
        native: the object or function that was given, which is run as it is; None for a spec and for text, of which one is made.
    """

    name: str
    spec: AnyLoss | None
    call: Call | None = None
    refusal: str | None = None
    given: Any = field(default=None, compare=False)
    _seen: dict[int, tuple[Input, Outcome]] = field(default_factory=dict, compare=False, repr=False)

    def outcome(self, x: Input) -> Outcome:
        """What comes of an input: of the library's own loss where that can be run here, else of the spec."""
        found = self._seen.get(id(x))
        if found is None:  # the input is kept as well, so that its id is not given to another
            found = self._seen[id(x)] = (x, self._outcome(x))
        return found[1]

    def _outcome(self, x: Input) -> Outcome:
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
        """The input in the form this library's loss takes: one-hot rows in place of labels where it takes only those.

        Raises:
            UnsupportedError: it takes labels, and gets dense targets.
        """
        if (
            self.call is None
            or self.call.name not in LIBRARY_LOSSES
            or not issubclass(LIBRARY_LOSSES[self.call.name].loss, Categorical)
        ):
            return x
        if x.way == AS_GIVEN:
            return x
        kinds = kinds_of(self.call.name)
        if (
            x.targets.ndim == x.predictions.ndim - 1
            and x.targets.dtype.kind in "iu"
            and "index" not in kinds
        ):
            return replace(x, targets=_one_hot(x, _class_axis(self, x.predictions), self.call.name))
        if x.targets.shape == x.predictions.shape and "dense" not in kinds:
            msg = f"{self.call.name} takes class indices."
            raise UnsupportedError(msg)
        return x


def _one_hot(x: Input, axis: int, name: str) -> Array:
    k = x.predictions.shape[axis]
    if x.targets.size and not 0 <= x.targets.min() <= x.targets.max() < k:
        msg = f"{name} takes no class indices, and {shown(x.targets)} are not all classes."
        raise UnsupportedError(msg)
    one_hot = np.expand_dims(x.targets, axis) == np.arange(k).reshape((k,) + (1,) * (-1 - axis))
    return np.asarray(one_hot.astype(x.predictions.dtype))


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of targets that a library's loss with classes takes: "index", "dense", or both."""
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
    """The class axis, counted from the end."""
    axis = getattr(side.spec, "axis", None)
    axis = -1 if axis is None else int(axis)
    return axis if axis < 0 else axis - predictions.ndim


def side_of(loss: Any) -> Side:
    """A spec, another library's loss, or the text of one.

    A loss that no spec computes is a side as well, with the reason.

    Raises:
        SpecTypeError, SpecValueError: it is no loss, or the text is not one.
    """
    if isinstance(loss, Side):
        return loss
    if isinstance(loss, Loss):
        return Side(repr(loss), loss)  # type: ignore[arg-type]
    if isinstance(loss, str):
        if loss.lstrip().startswith("{"):
            spec = switching.from_native(loss)
            return Side(repr(spec), spec)
        call = switching.parse(loss)
        if call.name.startswith("unifiedloss."):
            spec = switching.from_native(loss)
            return Side(repr(spec), spec)
    elif isinstance(loss, Call):
        call = loss
    else:
        bound = bound_spec(loss)
        if bound is not None:
            return side_of(bound)
        return _of_call(switching.read(loss), loss)
    return _of_call(call, None)


def _of_call(call: Call, given: Any) -> Side:
    try:
        return Side(named(call), switching.spec_of(call), call, given=given)
    except (UnsupportedError, SpecValueError, SpecTypeError) as error:
        return Side(named(call), None, call, str(error), given)


def weight_dtype(side: Side) -> str | None:
    """The dtype of the tensors that a loss holds; None where it holds none, or where its library has numbers in their place."""
    if side.call is None or not _runs_here(side.call):
        return None
    dtype_of = getattr(switching.adapter(side.call.library), "weight_dtype", None)
    return None if dtype_of is None else dtype_of(side.call, side.given)


def settings_of(*sides: Side) -> tuple[str, ...]:
    """What this process has changed in the libraries of texts, so that their losses are others here. Objects are run as they are."""
    found = []
    for side in sides:
        if side.call is not None and side.given is None and _runs_here(side.call):
            setting = getattr(switching.adapter(side.call.library), "setting", None)
            found.append(None if setting is None else setting(side.call))
    return tuple(dict.fromkeys(sentence for sentence in found if sentence is not None))


def _runs_here(call: Call) -> bool:
    """Whether a loss is run by its own library."""
    try:
        adapter = switching.adapter(call.library)
    except MissingBackendError:
        return False
    return call.library != "keras" or adapter.backend() == (call.backend or "tensorflow")


def unreduced(side: Side) -> Side:
    """The side that gives the losses of all positions: of an object, a copy of it that reduces nothing.

    Raises:
        UnsupportedError, SpecTypeError, SpecValueError: its library does not give them.
    """
    assert side.call is not None
    given = switching.find(side.call.name)
    if "reduction" not in given.parameters:
        return side
    call = Call(
        side.call.name,
        given.bind([], {**side.call.arguments, **_unreduced(given.parameters)}),
        side.call.backend,
    )
    return _of_call(call, _copy(side.given, _unreduced(given.parameters)))


def _unreduced(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that reduce nothing; torch's old ones, which would win, as they are by default."""
    return {"reduction": "none"} | {
        name: None for name in ("size_average", "reduce") if name in parameters
    }


def _copy(given: Any, arguments: dict[str, Any]) -> Any:
    """A loss with other arguments; None, so that one is made from its call, where no copy takes them."""
    if given is None:
        return None
    if callable(given) and not hasattr(given, "reduction"):
        return functools.partial(given, **arguments)
    if not hasattr(given, "reduction"):
        return None
    changed = object.__new__(
        type(given)
    )  # copy.copy would save a loss of Keras as a model is saved
    changed.__dict__.update(given.__dict__)
    changed.reduction = arguments["reduction"]
    return changed


def named(call: Call) -> str:
    """The source line of a call, with the backend of Keras where it is not the usual one."""
    text = str(call)
    if call.backend in (None, "tensorflow"):
        return text
    return text.replace("keras.", f"keras[{call.backend}].", 1)


def run_spec(spec: AnyLoss, x: Input) -> Outcome:
    """What a spec makes of an input, on NumPy."""
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
    """What the library's own loss makes of an input: the object that was given, or one that is made from the call."""
    if x.mask is not None:
        msg = f"{call.name} takes no mask; select the positions that count before it is called."
        raise UnsupportedError(msg)
    adapter = switching.adapter(call.library)
    if call.library == "keras" and adapter.backend() != (call.backend or "tensorflow"):
        msg = f"Keras runs on {adapter.backend()} here."
        raise UnsupportedError(msg)
    run = getattr(adapter, x.way or "run", adapter.run if x.way == AS_GIVEN else None)
    if run is None:
        msg = f"{call.library} has no {x.way}."
        raise UnsupportedError(msg)
    predictions = x.predictions if x.origin is None else x.origin
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value, gradient = run(call, predictions, x.targets, x.sample_weight, given)
    except UnsupportedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a library raises is what comes of the input
        return Outcome(error=_described(error), ran="native")
    return Outcome(
        np.asarray(value), None if gradient is None else np.asarray(gradient), ran="native"
    )


def _described(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    first = lines[0] if len(lines[0]) <= 160 else f"{lines[0][:157]}..."
    return f"{type(error).__name__}: {first}"


# -------------------------------------------------------------------------------------------------------------- comparing


def same(a: Outcome, b: Outcome, *, gradients: bool = True) -> bool:
    """Whether two outcomes are the same up to rounding; two errors are.

    Args:
        a: one outcome.
        b: the other.
        gradients: whether gradients are compared too, where both have one.
    """
    if a.value is None or b.value is None:
        return a.value is None and b.value is None
    pairs = [(a.value, b.value)]
    if gradients and a.gradient is not None and b.gradient is not None:
        pairs.append((a.gradient, b.gradient))
    # A loss of float32 has a gradient of float32, in whichever dtype it is handed out.
    tolerance = _ULPS * max(_epsilon(x) for pair in pairs for x in pair)
    return all(close(x, y, tolerance) for x, y in pairs)


_ULPS = 16
"""More than the frameworks' kernels differ by on inputs as small as the ones here, in units in the last place of numbers near 1: a
loss comes from such numbers, whose last bits it inherits."""


def close(a: Array, b: Array, tolerance: float) -> bool:
    """Whether two arrays hold the same numbers up to a tolerance, whatever their shapes."""
    if a.size != b.size:
        return False
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return bool(np.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True))


def _epsilon(a: Array) -> float:
    return FORMATS[a.dtype.name].epsilon if a.dtype.name in FORMATS else FORMATS["float64"].epsilon


def shown(array: Array, *, dtype: bool = True) -> str:
    """An array as people write it; large ones by their shape and range."""
    suffix = f" {array.dtype}" if dtype and array.dtype.name not in ("float32", "int64") else ""
    if array.size > 24:
        low, high = array.astype(np.float64).min(), array.astype(np.float64).max()
        held = f"all {number(low)}" if low == high else f"from {number(low)} to {number(high)}"
        return f"of shape {array.shape}, {held}{suffix}"
    return f"{_written(array)}{suffix}"


def _written(array: Array) -> str:
    if array.ndim == 0:
        return number(array.item())
    if array.shape[0] == 0:
        return f"of shape {array.shape}" if array.ndim > 1 else "[]"
    return f"[{', '.join(map(_written, array))}]"


def number(x: float) -> str:
    """A number with 9 digits, enough to tell any two of float32."""
    return f"{x:.9g}"
