"""Lenses: what an argument of another library's loss is in a spec, and the way back.

A table has an entry for each loss: its name, the fixed part of its spec, and a lens for each
argument. Reading the loss, writing a spec as the loss, and finding it in the library all follow
from the entry, so a new loss is one entry in the file of its library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from unifiedloss.checks import integer
from unifiedloss.errors import UnsupportedError
from unifiedloss.text import quoted

Arguments = Mapping[str, Any]
"""The arguments of a loss by name."""


@dataclass(frozen=True)
class Given:
    """A loss that is being read.

    Attributes:
        name: its canonical dotted name.
        arguments: all its arguments, defaults included.
        backend: the backend of Keras; None for other libraries.
    """

    name: str
    arguments: Arguments
    backend: str | None = None


@dataclass(frozen=True)
class Refusal:
    """Values of an argument that no spec expresses.

    Attributes:
        applies: whether a value is one of them.
        why: the message, in which ``{value}`` and ``{given.name}`` stand for what is refused.
    """

    applies: Callable[[Any, Given], bool]
    why: str


@dataclass(frozen=True)
class Lens:
    """One argument, and the fields of a spec that it stands for.

    Attributes:
        default: the argument's default.
        read: returns the fields for a value.
        write: returns the value that comes closest to a spec, on this backend of Keras. The caller
            reads it back to find what it does not express. May raise `UnsupportedError`.
        refusals: are raised before a value is read.
        tensor: whether the argument is a tensor in the library; otherwise it is a Python value.
        renamed: strings that older versions of the library took, and those that replaced them.
    """

    default: Any
    read: Callable[[Any, Given], Mapping[str, Any]]
    write: Callable[[Any, str | None], Any]
    refusals: tuple[Refusal, ...] = ()
    tensor: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)

    def fields(self, value: Any, given: Given) -> Mapping[str, Any]:
        """The fields for a value.

        Raises:
            UnsupportedError: a refusal applies.
        """
        for refusal in self.refusals:
            if refusal.applies(value, given):
                refuse(refusal.why.format(value=_Quoted(value), given=given))
        return self.read(value, given)


class _Quoted:
    """A value whose repr in a message is short."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __repr__(self) -> str:
        return quoted(self._value)


def refuse(why: str) -> NoReturn:
    """Raise `UnsupportedError` with this reason."""
    raise UnsupportedError(why)


def pair(
    name: str,
    default: Any,
    *refusals: Refusal,
    written: Callable[[Any], Any] = lambda value: value,
    tensor: bool = False,
    renamed: Mapping[str, str] | None = None,
) -> Lens:
    """An argument that is a field of this name; `written` turns its value into the argument's."""
    return Lens(
        default,
        lambda value, _: {name: value},
        lambda spec, _: written(getattr(spec, name)),
        refusals,
        tensor,
        renamed or {},
    )


def unused(default: Any, *refusals: Refusal) -> Lens:
    """An argument that changes no number, or whose other values are refused."""
    return Lens(default, lambda *_: {}, lambda *_: default, refusals)


def class_axis(*refusals: Refusal) -> Lens:
    """An argument `axis`, in which a number stands for the last axis."""
    return pair("axis", -1, *refusals, written=lambda axis: -1 if axis is None else axis)


def one_label(argument: str, default: int | None, several: str) -> Lens:
    """An argument that is the only ignored label, or None if that is the default.

    The text `several` refuses a spec with several labels, which replace its ``{}``.
    """

    def read(value: Any, _: Given) -> dict[str, Any]:
        ignored = None if value is default is None else integer(argument, value)
        return {"ignore_index": ignored}

    def write(spec: Any, _: str | None) -> int | None:
        labels: list[int | None] = list(spec.ignore_index or (default,))
        if len(labels) > 1:
            refuse(several.format(labels))
        return labels[0]

    return Lens(default, read, write)


def choice(
    options: Mapping[Any, Mapping[str, Any]],
    *refusals: Refusal,
    renamed: Mapping[str, str] | None = None,
) -> Lens:
    """An argument each of whose values stands for some fields; the first value is the default.

    A spec is written as the value that agrees with it in the first fields, in the order in which
    the options name them; of equal ones, as the first.
    """

    def write(spec: Any, _: str | None) -> Any:
        def agreement(value: Any) -> list[bool]:
            return [getattr(spec, name) == wanted for name, wanted in options[value].items()]

        return max(options, key=agreement)

    first = next(iter(options))
    return Lens(first, lambda value, _: options[value], write, refusals, renamed=renamed or {})
