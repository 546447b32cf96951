"""The importable losses: a `LibraryLoss` for each, found by name, and `Call`, a loss as written.

The modules beside this one, one for each library, register their losses here. They hold plain
Python values, so reading a loss from text and writing one need no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from unifiedloss.errors import SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.interop.constants import Constant
from unifiedloss.interop.lens import Arguments, Given, Lens, refuse
from unifiedloss.interop.others import what_it_is
from unifiedloss.spec import Loss
from unifiedloss.suggestion import suggestion
from unifiedloss.text import MOST_QUOTED, quoted, shortened

LIBRARIES = ("torch", "keras", "tensorflow", "optax", "sklearn", "onnx")
"""The libraries whose losses are read and written."""

KERAS_BACKENDS = ("numpy", "torch", "tensorflow", "jax")


@dataclass(frozen=True)
class Call:
    """A loss of another library, as it is written.

    Attributes:
        name: the canonical dotted name, such as "torch.nn.CrossEntropyLoss".
        arguments: the arguments that differ from their defaults, by name, in the library's order.
            Arrays are nested tuples.
        backend: the backend of Keras, because its numbers depend on it; None for other libraries.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None

    @property
    def library(self) -> str:
        """The name of the library, as `to_native` takes it."""
        root = self.name.partition(".")[0]
        return {"tf": "tensorflow"}.get(root, root)

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.arguments.items()), self.backend))

    def __str__(self) -> str:
        """The call as a line of source code."""
        return find(self.name).source(self.arguments)


@dataclass(frozen=True, eq=False)
class LibraryLoss:
    """One loss of another library.

    Attributes:
        name: the canonical dotted name.
        fixed: the part of its spec that does not depend on its arguments.
        lenses: the arguments that configure it, in the library's order.
        requires: fields in which a spec must equal `fixed`, each with the refusal of one that does
            not. A spec may differ in other fields; `closest` finds them by reading the call back.
        aliases: its other dotted names.
        data: parameters that hold the tensors of a call.
        reasons: why the library cannot express a field as the spec has it, by the field's name;
            without a final period.
        covers: values of fields with which the loss computes what a spec does in every call that
            the library takes, although it is read back with another value.
        exported: whether specs are written as this loss. False for a function if a class computes
            the same.
        write: writes the call if it is not written as ``name(argument=value)``.
    """

    name: str
    fixed: Loss
    lenses: Mapping[str, Lens] = field(default_factory=dict)
    requires: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    covers: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    exported: bool = True
    write: Callable[[Mapping[str, Any]], str] | None = None

    @property
    def loss(self) -> type[Loss]:
        """The class of the specs it is read as."""
        return type(self.fixed)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """The parameters that configure it and their defaults, in the library's order."""
        return {name: lens.default for name, lens in self.lenses.items()}

    @property
    def library(self) -> str:
        """The name of the library, as `to_native` takes it."""
        return Call(self.name).library

    @property
    def is_class(self) -> bool:
        """Whether the loss is a class; otherwise it is a function."""
        return self.name.rpartition(".")[2][:1].isupper()

    def bind(self, positional: list[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, without those that equal their defaults.

        Raises:
            SpecTypeError: an argument does not exist, is given twice, or holds tensors of a call.
        """
        if positional and not self.is_class:
            msg = (
                f"{self.name}: the arguments that configure it are given by name; the tensors are "
                "given to the call."
            )
            raise SpecTypeError(msg)
        if len(positional) > len(self.parameters):
            msg = (
                f"{self.name} has {len(self.parameters)} parameters "
                f"({', '.join(self.parameters)}), got {len(positional)}."
            )
            raise SpecTypeError(msg)
        given = dict(zip(self.parameters, positional, strict=False))
        for name, value in keywords.items():
            if name in given:
                msg = f"{self.name}: {quoted(name)} is given twice."
                raise SpecTypeError(msg)
            if name in self.data:
                msg = (
                    f"{self.name}: {name} is given to the call, beside the other tensors; leave it "
                    "out here."
                )
                raise SpecTypeError(msg)
            if name not in self.parameters:
                known = ", ".join(self.parameters)
                msg = (
                    f"{self.name} has no parameter {quoted(name)}; it has "
                    f"{known}.{suggestion(name, self.parameters)}"
                )
                raise SpecTypeError(msg)
            given[name] = value
        given = {name: self._current(name, value) for name, value in given.items()}
        return {
            name: given[name]
            for name in self.parameters
            if name in given and not self._is_default(name, given)
        }

    def _current(self, name: str, value: Any) -> Any:
        """The value that a constant of the library stands for, or that replaced an old one."""
        if isinstance(value, Constant):
            value = value.value(self.library)
        return self.lenses[name].renamed.get(value, value) if isinstance(value, str) else value

    def _is_default(self, name: str, given: Mapping[str, Any]) -> bool:
        default, value = self.parameters[name], given[name]
        return type(value) is type(default) and bool(value == default)

    def spec(self, arguments: Arguments, backend: str | None = None) -> Loss:
        """The spec that computes the same as the loss with these arguments.

        Raises:
            UnsupportedError: no spec computes the same. The message names the rule.
        """
        given = Given(self.name, self.parameters | dict(arguments), backend)
        fields: dict[str, Any] = {}
        for name, lens in self.lenses.items():
            fields |= lens.fields(given.arguments[name], given)
        return self.fixed.replace(**fields)

    def call(self, spec: Loss, backend: str | None = None) -> Call:
        """The call that comes closest to a spec of class `loss`.

        Raises:
            UnsupportedError: the spec is not one of this loss at all. Each reason has a line.
        """
        refusals = [
            why
            for name, why in self.requires.items()
            if getattr(spec, name) != getattr(self.fixed, name)
        ]
        arguments = {}
        for name, lens in self.lenses.items():
            try:
                arguments[name] = lens.write(spec, backend)
            except UnsupportedError as error:
                refusals.append(str(error))
        if refusals:
            refuse("\n".join(refusals))
        return Call(self.name, self.bind([], arguments), backend)

    def source(self, arguments: Mapping[str, Any]) -> str:
        """The loss with these arguments as a line of source code."""
        if self.write is not None:
            return self.write(arguments)
        written = [f"{name}={self._written(name, value)}" for name, value in arguments.items()]
        if self.is_class:
            return f"{self.name}({', '.join(written)})"
        return f"functools.partial({', '.join([self.name, *written])})" if written else self.name

    def _written(self, name: str, value: Any) -> str:
        text = literal(value)
        array = {"torch": "torch.tensor", "tensorflow": "tf.constant"}.get(self.library)
        # TensorFlow converts a number to a tensor of the predictions' dtype; torch does not.
        tensor = isinstance(value, tuple) or (self.library == "torch" and value is not None)
        return f"{array}({text})" if array and self.lenses[name].tensor and tensor else text


def literal(value: Any) -> str:
    """A value as Python source: nested tuples as lists, strings in double quotes."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(literal, value))}]"
    return f'"{value}"' if isinstance(value, str) and value.isidentifier() else repr(value)


LIBRARY_LOSSES: dict[str, LibraryLoss] = {}
"""The importable losses by canonical name, the one that `call_of` prefers first."""

_ALIASES: dict[str, str] = {}


def register(*library_losses: LibraryLoss) -> None:
    """Add losses to `LIBRARY_LOSSES`."""
    for library_loss in library_losses:
        LIBRARY_LOSSES[library_loss.name] = library_loss
        for alias in library_loss.aliases:
            _ALIASES[alias] = library_loss.name


_READ_ONLY: dict[str, LibraryLoss] = {}


def register_read(*library_losses: LibraryLoss) -> None:
    """Add losses that are read from objects alone, and have no name in their library.

    Their names here are no names that text may hold.
    """
    for library_loss in library_losses:
        _READ_ONLY[library_loss.name] = library_loss


def knows(name: str) -> bool:
    """Whether a loss has this name or alias."""
    return _ALIASES.get(name, name) in LIBRARY_LOSSES


def find(name: str) -> LibraryLoss:
    """The loss with this name or alias.

    Raises:
        SpecValueError: no loss has this name.
    """
    library_loss = LIBRARY_LOSSES.get(_ALIASES.get(name, name), _READ_ONLY.get(name))
    if library_loss is None:
        is_another = what_it_is(name)
        msg = (
            f"{shortened(name)} is no loss that is known here; known are the losses of "
            f"{', '.join(LIBRARIES)}, by their full names.{_suggested(name)}"
        )
        raise SpecValueError(is_another or msg)
    return library_loss


_CLOSE, _VERY_CLOSE = 0.8, 0.9
"""How alike the names of losses of one library must be for a suggestion, and any other two."""


def _suggested(name: str) -> str:
    """The full names whose last part is close to this name's, as the end of a message."""
    rest = name.partition(".")[2]
    library = Call(name).library
    of_library = rest != "" and library in LIBRARIES
    endings: dict[str, list[str]] = {}
    for known, library_loss in LIBRARY_LOSSES.items():
        if not of_library or library_loss.library == library:
            endings.setdefault(known.rpartition(".")[2].lower(), []).append(known)
    last = name.rpartition(".")[2].lower()
    cutoff = _CLOSE if of_library else _VERY_CLOSE
    if len(name) > MOST_QUOTED:  # comparing takes time, and no name is so long
        return ""
    near = get_close_matches(last, endings, n=1, cutoff=cutoff)
    return f" Did you mean {' or '.join(endings[near[0]])}?" if near else ""


def spec_of(call: Call) -> Loss:
    """The spec that computes the same as a call.

    Raises:
        UnsupportedError: no spec computes the same. The message names the rule.
        SpecValueError: the name, or the backend of Keras, is unknown.
    """
    library_loss, backend = find(call.name), call.backend
    if library_loss.library == "keras":
        backend = backend or "tensorflow"
        if backend not in KERAS_BACKENDS:
            msg = (
                f"keras[{shortened(backend)}]: Keras runs on "
                f"{', '.join(KERAS_BACKENDS)}.{suggestion(backend, KERAS_BACKENDS)}"
            )
            raise SpecValueError(msg)
    elif backend is not None:
        msg = (
            f"{call.name} runs on no other framework; "
            f"only keras[{shortened(backend)}] says on which one."
        )
        raise SpecValueError(msg)
    return library_loss.spec(call.arguments, backend)


@dataclass(frozen=True)
class Closest:
    """The call of a library that comes closest to a spec.

    Attributes:
        call: the call.
        spec: the spec that the call is read as.
        changes: the fields in which `spec` differs from the requested spec, with the values in
            `spec`.
        covered: likewise, but no call of the library shows the difference.
    """

    call: Call
    spec: Loss
    changes: dict[str, Any]
    covered: dict[str, Any]


def closest(spec: Loss, library: str, backend: str | None = None) -> Closest:
    """The call of a library that comes closest to a spec, with no `changes` if it is the same.

    Args:
        spec: the spec.
        library: one of `LIBRARIES`.
        backend: the backend of Keras; TensorFlow by default.

    Raises:
        UnsupportedError: the library has no loss of this kind.
        SpecValueError: the library is unknown.
    """
    runs_on = (backend or "tensorflow") if library == "keras" else None
    candidates: list[Closest] = []
    refusals: list[str] = []
    for library_loss in _candidates(spec, library):
        try:
            call = library_loss.call(spec, runs_on)
            read_back = spec_of(call)
        except UnsupportedError as error:
            refusals += str(error).splitlines()
            continue
        differing = _differing(read_back, spec)
        covered = {
            name: value
            for name, value in differing.items()
            if getattr(spec, name) in library_loss.covers.get(name, ())
        }
        changes = {name: value for name, value in differing.items() if name not in covered}
        candidates.append(Closest(call, read_back, changes, covered))
    if not candidates:
        kind = f"a {type(spec).__name__} is written as."
        title = f"{library} has no loss that {'computes this spec:' if refusals else kind}"
        lines = [f"  {refusal}" for refusal in dict.fromkeys(refusals)]
        raise UnsupportedError("\n".join([title, *lines, f"{_instead(library)}."]))
    return min(candidates, key=lambda candidate: len(candidate.changes))


def _candidates(spec: Loss, library: str) -> list[LibraryLoss]:
    if library not in LIBRARIES:
        meant = suggestion(library, LIBRARIES)
        if library in ("jax", "numpy"):
            meant = (
                f" {library} has no losses of its own; spec.to({library!r}) gives the spec as a "
                "function of it."
            )
        msg = f"losses are written for {', '.join(LIBRARIES)}, got {quoted(library)}.{meant}"
        raise SpecValueError(msg)
    return [
        library_loss
        for library_loss in LIBRARY_LOSSES.values()
        if library_loss.library == library
        and library_loss.loss is type(spec)
        and library_loss.exported
    ]


def _differing(nearest: Loss, spec: Loss) -> dict[str, Any]:
    """The fields in which two specs differ, with the values in the first."""
    # Without a mean, these two fields have no effect.
    unused = () if "mean" in (nearest.reduction, spec.reduction) else ("divisor", "on_empty")
    values = {name: getattr(nearest, name) for name in spec.declarations if name not in unused}
    return {name: value for name, value in values.items() if value != getattr(spec, name)}


def call_of(spec: Loss, library: str, backend: str | None = None) -> Call:
    """The call of a library that computes exactly the same as a spec.

    Reading it back gives an equal spec, except for `divisor` and `on_empty` without a mean, and for
    what the loss covers: the last axis of several positive weights, which is then named, and the
    divisor of torch's elementwise losses, which take no mask.

    Raises:
        UnsupportedError: the library cannot express some fields. The message lists them with the
            library's values and the reasons, and says what to use instead.
    """
    nearest = closest(spec, library, backend)
    if nearest.changes:
        raise UnsupportedError(_refusal(spec, nearest))
    return nearest.call


def _refusal(spec: Loss, nearest: Closest) -> str:
    """The message that a library cannot express a spec, with a line for each field that differs."""
    library_loss = find(nearest.call.name)
    library = library_loss.library
    rows = [
        (
            f"{name}={quoted(getattr(spec, name))}",
            library_loss.reasons.get(name, f"{library_loss.name} has {name}={quoted(value)}"),
        )
        for name, value in nearest.changes.items()
    ]
    # Weights can be long, so they do not set the width of the column.
    width = max((len(field) for field, _ in rows if len(field) <= 40), default=0)
    accepted = ", ".join(f"{name}={quoted(value)}" for name, value in nearest.changes.items())
    advice = f"{_instead(library)}, or accept {library}'s rules: spec.replace({accepted})"
    lines = [f"  {field:<{width}}    {reason}" for field, reason in rows]
    return "\n".join([f"{library_loss.name} cannot express this spec:", *lines, advice])


def _instead(library: str) -> str:
    """What to use if a library cannot express a spec; without a final period."""
    backend = {"optax": "jax", "sklearn": "numpy", "onnx": "numpy"}.get(library, library)
    return f"Use spec.to({backend!r}), which computes the spec as it is"
