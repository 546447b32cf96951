"""What every importable loss says, and how a spec is said by it: one `Native` for each, found by name.

A table is plain Python on literals. No framework is needed to read a loss from text or to write one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NoReturn

from unifiedloss.errors import SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.spec import AnyLoss, Loss
from unifiedloss.suggestion import suggestion
from unifiedloss.text import shortened

LIBRARIES = ("torch", "keras", "tensorflow", "optax", "sklearn", "onnx")
"""The libraries losses are read from and written for."""

Arguments = Mapping[str, Any]
"""The arguments of a loss, by name."""

KERAS_BACKENDS = ("numpy", "torch", "tensorflow", "jax")

_DATA_ADVICE = "is given to the call, beside the other tensors; leave it out here."


@dataclass(frozen=True)
class Call:
    """A loss of another library, as it is written.

    Attributes:
        name: the canonical dotted name, such as "torch.nn.CrossEntropyLoss".
        arguments: those that differ from their defaults, by name, in the order the library has them. Arrays are nested tuples.
        backend: the framework that Keras runs on, where its numbers depend on it; None for every other library.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    backend: str | None = None

    @property
    def library(self) -> str:
        """The library, as `to_native` calls it."""
        root = self.name.partition(".")[0]
        return {"tf": "tensorflow"}.get(root, root)

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.arguments.items()), self.backend))

    def __str__(self) -> str:
        """The source line a person would write."""
        return find(self.name).source(self.arguments)


@dataclass(frozen=True, eq=False)
class LibraryLoss:
    """One loss of another library.

    Attributes:
        name: the canonical dotted name.
        loss: the class of the specs it is read as.
        parameters: what configures it, with the library's defaults, in the library's order.
        to_spec: the spec of the arguments, all of them given; `backend` is the framework Keras runs on, else None. It raises
            `UnsupportedError`, naming the rule, where no spec computes the same.
        from_spec: the arguments that come closest to a spec of class `loss`. What they then do not say is found by reading them back. It
            may raise `UnsupportedError` where there are none.
        aliases: other dotted names it goes by.
        data: parameters that hold the tensors of a call.
        tensors: parameters that are tensors there; the rest are Python values.
        reasons: why the library cannot say a field as the spec has it, by the field's name; put after what differs.
        exported: whether specs are written as it. A function beside a class that says the same is not.
        write: how the call is written, where that is not ``name(argument=value)``.
        adapt: how the arguments of `from_spec` are changed for the framework that Keras runs on, where that has a say.
    """

    name: str
    loss: type[Loss]
    parameters: Mapping[str, Any]
    to_spec: Callable[[Mapping[str, Any], str | None], AnyLoss]
    from_spec: Callable[[Any], Mapping[str, Any]]
    aliases: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    exported: bool = True
    write: Callable[[Mapping[str, Any]], str] | None = None
    adapt: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None

    @property
    def library(self) -> str:
        """The library it belongs to, as `to_native` calls it."""
        return Call(self.name).library

    @property
    def is_class(self) -> bool:
        """Whether it is constructed and then called; a function is called at once."""
        return self.name.rpartition(".")[2][:1].isupper()

    def bind(self, positional: list[Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, those that equal their defaults left out.

        Raises:
            SpecTypeError: there is no such argument, or it holds the tensors of a call.
        """
        if positional and not self.is_class:
            msg = f"{self.name}: the arguments that configure it are given by name; the tensors are given to the call."
            raise SpecTypeError(msg)
        if len(positional) > len(self.parameters):
            msg = f"{self.name} has {len(self.parameters)} parameters ({', '.join(self.parameters)}), got {len(positional)}."
            raise SpecTypeError(msg)
        given = dict(zip(self.parameters, positional, strict=False))
        for name, value in keywords.items():
            if name in given:
                msg = f"{self.name}: {name!r} is given twice."
                raise SpecTypeError(msg)
            if name in self.data:
                msg = f"{self.name}: {name} {_DATA_ADVICE}"
                raise SpecTypeError(msg)
            if name not in self.parameters:
                known = ", ".join(self.parameters)
                msg = f"{self.name} has no parameter {name!r}; it has {known}.{suggestion(name, self.parameters)}"
                raise SpecTypeError(msg)
            given[name] = value
        return {
            name: given[name]
            for name in self.parameters
            if name in given and not self._is_default(name, given)
        }

    def _is_default(self, name: str, given: Mapping[str, Any]) -> bool:
        default, value = self.parameters[name], given[name]
        return type(value) is type(default) and bool(value == default)

    def spec(self, arguments: Mapping[str, Any], backend: str | None = None) -> AnyLoss:
        """The spec that computes what the call with these arguments does.

        Raises:
            UnsupportedError: no spec does. The message names the rule.
        """
        return self.to_spec({**self.parameters, **arguments}, backend)

    def source(self, arguments: Mapping[str, Any]) -> str:
        """The source line a person would write."""
        if self.write is not None:
            return self.write(arguments)
        written = [f"{name}={self._written(name, value)}" for name, value in arguments.items()]
        if self.is_class:
            return f"{self.name}({', '.join(written)})"
        return f"functools.partial({', '.join([self.name, *written])})" if written else self.name

    def _written(self, name: str, value: Any) -> str:
        text = literal(value)
        array = {"torch": "torch.tensor", "tensorflow": "tf.constant"}.get(self.library)
        # TensorFlow makes a number a tensor of the predictions' dtype; torch takes none.
        tensor = isinstance(value, tuple) or (self.library == "torch" and value is not None)
        return f"{array}({text})" if array and name in self.tensors and tensor else text


def literal(value: Any) -> str:
    """A value as Python source: nested tuples as the lists people write, strings in double quotes."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(literal, value))}]"
    return f'"{value}"' if isinstance(value, str) and value.isidentifier() else repr(value)


def refuse(why: str) -> NoReturn:
    """Raise `UnsupportedError`: no spec, or no loss of the library, computes what is asked for."""
    raise UnsupportedError(why)


LIBRARY_LOSSES: dict[str, LibraryLoss] = {}
"""Every importable loss by its canonical name. The modules of this package fill it, in the order in which exports prefer them."""

_ALIASES: dict[str, str] = {}


def register(*library_losses: LibraryLoss) -> None:
    """Enter losses into `NATIVES`."""
    for library_loss in library_losses:
        LIBRARY_LOSSES[library_loss.name] = library_loss
        for alias in library_loss.aliases:
            _ALIASES[alias] = library_loss.name


def find(name: str) -> LibraryLoss:
    """The loss of a name or alias.

    Raises:
        SpecValueError: there is none.
    """
    library_loss = LIBRARY_LOSSES.get(_ALIASES.get(name, name))
    if library_loss is None:
        msg = (
            f"{shortened(name)} is no loss that is known here; known are the losses of {', '.join(LIBRARIES)}, by their full "
            f"names.{_suggested(name)}"
        )
        raise SpecValueError(msg)
    return library_loss


def _suggested(name: str) -> str:
    """The full names that end like this one, or nearly so, as the end of a message."""
    endings: dict[str, list[str]] = {}
    for known in LIBRARY_LOSSES:
        endings.setdefault(known.rpartition(".")[2].lower(), []).append(known)
    near = get_close_matches(name.rpartition(".")[2].lower(), endings, n=1)
    return f" Did you mean {' or '.join(endings[near[0]])}?" if near else ""


def spec_of(call: Call) -> AnyLoss:
    """The spec that computes what a call does. Raises `UnsupportedError`, naming the rule, where none does."""
    library_loss = find(call.name)
    if library_loss.library != "keras":
        if call.backend is not None:
            msg = f"{call.name} runs on no other framework; only keras[{call.backend}] says on which one."
            raise SpecValueError(msg)
        return library_loss.spec(call.arguments)
    backend = call.backend or "tensorflow"
    if backend not in KERAS_BACKENDS:
        msg = f"keras[{backend}]: Keras runs on {', '.join(KERAS_BACKENDS)}.{suggestion(backend, KERAS_BACKENDS)}"
        raise SpecValueError(msg)
    return library_loss.spec(call.arguments, backend)


@dataclass(frozen=True)
class Closest:
    """The call of a library that says most of a spec.

    Attributes:
        call: the call.
        spec: what it computes.
        changes: the fields in which `spec` differs from the spec that was asked for, with the values `spec` has.
    """

    call: Call
    spec: AnyLoss
    changes: dict[str, Any]


def closest(spec: AnyLoss, library: str, backend: str | None = None) -> Closest:
    """The call of a library that says most of a spec; `changes` is empty where it says all.

    Args:
        spec: the spec.
        library: one of `LIBRARIES`.
        backend: the framework Keras runs on; TensorFlow where it is not said.

    Raises:
        UnsupportedError: the library has no loss of this kind.
        SpecValueError: the library is unknown.
    """
    found: list[Closest] = []
    refusals: list[str] = []
    for library_loss in _candidates(spec, library):
        try:
            runs_on = (backend or "tensorflow") if library == "keras" else None
            arguments = library_loss.from_spec(spec)
            if library_loss.adapt is not None and runs_on is not None:
                arguments = library_loss.adapt(arguments, runs_on)
            call = Call(library_loss.name, library_loss.bind([], arguments), runs_on)
            said = spec_of(call)
        except UnsupportedError as error:
            refusals.append(str(error))
            continue
        found.append(Closest(call, said, _changes(said, spec)))
    if not found:
        if not refusals:
            refusals = [f"{library} has no loss that a {type(spec).__name__} is written as."]
        raise UnsupportedError(" ".join([*refusals, instead(library)]))
    return min(found, key=lambda candidate: len(candidate.changes))


def _candidates(spec: AnyLoss, library: str) -> list[LibraryLoss]:
    if library not in LIBRARIES:
        meant = suggestion(library, LIBRARIES)
        if library in ("jax", "numpy"):
            meant = f" {library} has no losses of its own; spec.to({library!r}) gives the spec as a function of it."
        msg = f"losses are written for {', '.join(LIBRARIES)}, got {library!r}.{meant}"
        raise SpecValueError(msg)
    return [
        library_loss
        for library_loss in LIBRARY_LOSSES.values()
        if library_loss.library == library
        and library_loss.loss is type(spec)
        and library_loss.exported
    ]


def _changes(said: AnyLoss, spec: AnyLoss) -> dict[str, Any]:
    averaged = "mean" in (said.reduction, spec.reduction)
    names = [x for x in spec.declarations if averaged or x not in ("divisor", "on_empty")]
    return {
        name: getattr(said, name) for name in names if getattr(said, name) != getattr(spec, name)
    }


def call_of(spec: AnyLoss, library: str, backend: str | None = None) -> Call:
    """The call of a library that says exactly what the spec does.

    Reading it back gives an equal spec, but for `divisor` and `on_empty` where nothing is averaged.

    Raises:
        UnsupportedError: the library cannot say one of the rules. The message names it, and what to use instead.
    """
    nearest = closest(spec, library, backend)
    if nearest.changes:
        library_loss = find(nearest.call.name)
        wanted = ", ".join(f"{name}={getattr(spec, name)!r}" for name in nearest.changes)
        has = ", ".join(f"{name}={value!r}" for name, value in nearest.changes.items())
        reasons = [
            library_loss.reasons[name] for name in nearest.changes if name in library_loss.reasons
        ]
        msg = " ".join(
            [
                f"{library_loss.name} cannot say {wanted}: the nearest it has is {has}.",
                *reasons,
                f"Where that is meant, say so with spec.replace({has}).",
                instead(library),
            ]
        )
        raise UnsupportedError(msg)
    return nearest.call


def instead(library: str) -> str:
    """What to use where a library cannot say a spec."""
    backend = {"optax": "jax", "sklearn": "numpy", "onnx": "numpy"}.get(library, library)
    return f"spec.to({backend!r}) computes the spec as it is."
