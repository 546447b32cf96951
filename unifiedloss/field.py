"""Immutable values whose fields are declared once.

A `Record` is a frozen dataclass of keyword-only fields. Each field is declared by one call of
`field`, and everything else follows from the declaration: validation, serialization versions, the
signature, the arguments in the docstring, and the sentence that `explain` prints.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    dataclass_transform,
)

from unifiedloss.checks import Check
from unifiedloss.errors import SpecTypeError
from unifiedloss.suggestion import suggestion
from unifiedloss.text import Text, brief, quoted

Sentence = str | Mapping[Any, Text | str] | Callable[[Any], Text]
"""What a field means: one text, one text for each value, or a function of the record."""

_LONGEST_REPR = 400
"""The most characters of a repr that holds every number."""

_WIDTH = 92
"""Columns of the generated part of a docstring."""


class Declaration(NamedTuple):
    """The declaration of one field.

    Attributes:
        default: the value of the field if none is given.
        check: returns the canonical value of a given one, or raises.
        sentence: what the field means at its value, without a full stop.
        doc: what the field means, for the docstring. None: the sentence, or those of all values.
        since: the serialization version that added this field.
        late_values: values that a later serialization version added, with that version.
        group: "common", or "ported" for fields that only losses of other libraries need.
        fast_paths: whether the fused kernels, the closed-form gradients and the tiers of exact mode
            know the field. Until they do, only the pipeline and the oracle compute a loss that
            changes it.
    """

    default: Any
    check: Check
    sentence: Sentence
    doc: str | None
    since: int
    late_values: Mapping[str, int]
    group: Literal["common", "ported"]
    fast_paths: bool

    def described(self) -> str:
        """What the field means, for the docstring."""
        if self.doc is not None:
            return self.doc
        if isinstance(self.sentence, str):
            return f"{self.sentence}."
        assert isinstance(self.sentence, Mapping)
        return " ".join(
            f'"{value}": {meaning}.' if isinstance(value, str) else f"{value}: {meaning}."
            for value, meaning in self.sentence.items()
        )

    def meaning(self, record: Any, value: Any) -> Text:
        """What the field means at this value, as `explain` prints it."""
        if callable(self.sentence):
            return self.sentence(record)
        meaning = self.sentence if isinstance(self.sentence, str) else self.sentence[value]
        return Text.of(meaning)

    def version_of(self, value: Any) -> int:
        """The lowest serialization version that has the field and this value."""
        late = self.late_values.get(value, 1) if isinstance(value, str) else 1
        return max(self.since, late)


def field(
    *,
    default: Any,
    check: Check,
    sentence: Sentence,
    doc: str | None = None,
    since: int = 1,
    late_values: Mapping[str, int] | None = None,
    group: Literal["common", "ported"] = "common",
    fast_paths: bool = False,
) -> Any:
    """Declare a field of a `Record`. Arguments as for `Declaration`."""
    declaration = Declaration(
        default, check, sentence, doc, since, late_values or {}, group, fast_paths
    )
    return dataclasses.field(default=default, metadata={"declaration": declaration})


class _Doc:
    """Descriptor: the docstring of a record's class, with its fields filled in on access.

    It is not built at import, because describing the fields of all losses takes a millisecond.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, _: object, cls: type[Record]) -> str:
        arguments = f"Args:\n{described(cls.declarations)}"
        return inspect.cleandoc(self._text).replace("{fields}", arguments)


class _Signature:
    """Descriptor: the signature of a record's class.

    An instance has None here, so `inspect` reports the signature of its `__call__`.
    """

    def __get__(self, instance: object, cls: type[Record]) -> inspect.Signature | None:
        return None if instance is not None else inspect.Signature(parameters(cls))


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Record:
    """Base class of frozen values with declared fields.

    Two records are equal when they have the same class and all their canonical fields are equal. In
    the docstring of a subclass, ``{fields}`` stands for the descriptions of its fields.
    """

    declarations: ClassVar[Mapping[str, Declaration]] = {}
    """The declared fields by name. Fields of a class come before those of its bases, and ported
    fields last."""

    fast_fields: ClassVar[frozenset[str]] = frozenset()
    """The names of the fields with `fast_paths`."""

    written_order: ClassVar[tuple[str, ...]] = ()
    """`changed` lists these fields first, in this order. The others follow as they are declared."""

    if TYPE_CHECKING:  # an annotation would make it a field
        changed_names: tuple[str, ...]
        """The names of the fields that differ from their defaults."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True, init=False, repr=False, eq=False)(cls)
        cls.declarations = _ordered(cls)
        cls.fast_fields = frozenset(
            name for name, declaration in cls.declarations.items() if declaration.fast_paths
        )
        cls.__signature__ = _Signature()  # type: ignore[attr-defined]
        cls.__doc__ = _Doc(cls.__doc__ or "")  # type: ignore[assignment]

    def __init__(self, /, **given: Any) -> None:
        for name in given:
            if name not in self.declarations:
                known = fields_and_hint(type(self), name)
                msg = f"{quoted(name)} is not a field of {type(self).__name__}; {known}"
                raise SpecTypeError(msg)
        values, changed = [], []
        for name, declaration in self.declarations.items():
            value = declaration.default
            if name in given:
                value = declaration.check(name, given[name])
                if value != declaration.default:
                    changed.append(name)
            object.__setattr__(self, name, value)
            values.append(value)
        # Hash once, because every call looks the spec up in a cache, and hashing a tuple of 32,000
        # class weights takes 0.4 ms.
        object.__setattr__(self, "_values", tuple(values))
        object.__setattr__(self, "_hash", hash((type(self).__name__, tuple(values))))
        # Compare once, because torch.compile traces this comparison in each program otherwise.
        object.__setattr__(self, "changed_names", tuple(changed))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse fields that exclude each other. Override it in a class that has such fields."""

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined,no-any-return]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other):
            return NotImplemented
        return self._values == other._values  # type: ignore[attr-defined,no-any-return]

    def __repr__(self) -> str:
        """`source`, with most entries of long sequences left out if it is long."""
        source = self.source()
        return source if len(source) <= _LONGEST_REPR else self._call_with(brief)

    def source(self) -> str:
        """The call that makes this record, as source text with every number of every field."""
        return self._call_with(repr)

    def _call_with(self, text: Callable[[Any], str]) -> str:
        arguments = ", ".join(f"{name}={text(value)}" for name, value in self.changed().items())
        return f"{type(self).__name__}({arguments})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The hash of a string differs between processes, so the cached hash is not pickled.
        return rebuild, (type(self), self.changed())

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, by name."""
        first = [name for name in self.written_order if name in self.changed_names]
        return {name: getattr(self, name) for name in (*first, *self.changed_names)}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed. All fields are validated again.

        Args:
            changes: the fields, by name.

        Raises:
            SpecTypeError: there is no field of that name. The message lists the fields.
            SpecValueError: a field is out of range.
        """
        return type(self)(**(self.changed() | changes))


def rebuild(cls: type[Record], changed: dict[str, Any]) -> Record:
    """Make a record from its class and changed fields. Pickles name this function."""
    return cls(**changed)


def fields_and_hint(cls: type[Record], unknown: str) -> str:
    """List the fields of a record and a hint, for the message about an unknown field."""
    known = list(cls.declarations)
    if unknown in ("sample_weight", "mask"):
        hint = f" {unknown} is given to the call, beside the targets."
    else:
        hint = suggestion(unknown, known)
    return f"its fields are {', '.join(known)}.{hint}"


def _ordered(cls: type[Record]) -> dict[str, Declaration]:
    """Collect the declarations of a class and its bases, in the order of `Record.declarations`."""
    # A field that a subclass declares again keeps the place that its base gave it.
    places = {
        name: (depth, place)
        for depth, base in enumerate(cls.__mro__)
        for place, name in enumerate(vars(base).get("__annotations__", ()))
    }
    declarations = {
        declared.name: declared.metadata["declaration"]
        for declared in dataclasses.fields(cls)  # type: ignore[arg-type]
    }

    def order(name: str) -> tuple[bool, tuple[int, int]]:
        return declarations[name].group == "ported", places[name]

    return {name: declarations[name] for name in sorted(declarations, key=order)}


def parameters(cls: type[Record]) -> list[inspect.Parameter]:
    """The fields as keyword-only parameters."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(name, kind, default=declaration.default)
        for name, declaration in cls.declarations.items()
    ]


def annotations_of(cls: type[Record]) -> dict[str, str]:
    """The annotations of a record's fields, as source text."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= inspect.get_annotations(base)
    return {name: found[name] for name in cls.declarations}


def described(declarations: Mapping[str, Declaration]) -> str:
    """Describe the declared fields as entries of a docstring's section "Args:"."""
    return "\n".join(
        textwrap.fill(
            f"{name}: {declaration.described()}",
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="        ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, declaration in declarations.items()
    )
