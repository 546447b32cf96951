"""Read specs from dictionaries and JSON."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, NoReturn

from unifiedloss.errors import SerializationError
from unifiedloss.field import fields_and_hint
from unifiedloss.spec import LOSSES, Loss
from unifiedloss.suggestion import suggestion
from unifiedloss.text import MOST_CHARACTERS, quoted, shortened, too_long

_MOST_DIGITS = 400
"""An integer with more digits fits in no float, and Python reads no more than 4,300 of them."""


def latest_version() -> int:
    """The latest version that `from_dict` reads: the last one that added a loss, field or value."""
    return max(
        version
        for cls in LOSSES.values()
        for declaration in cls.declarations.values()
        for version in (cls.since, declaration.since, *declaration.late_values.values())
    )


def from_dict(data: Mapping[str, Any] | Any) -> Loss:
    """Read a spec from a dictionary that `Loss.to_dict` wrote.

    Args:
        data: the mapping: "loss", "version", and the fields that differ from their defaults.

    Returns:
        The spec, validated as if its class had been called.

    Raises:
        SerializationError: the dictionary is no spec, is of a later version, or has a key that this
            loss does not know. The message names the key.
        SpecValueError, SpecTypeError: the class of the spec refuses the value of a field.
    """
    if not isinstance(data, Mapping):
        # JSON text may hold a list or a number, and not every caller uses a type checker.
        msg = f"A spec is a mapping with the keys 'loss' and 'version', got {type(data).__name__}."
        raise SerializationError(msg)
    rest = dict(data)
    for key in ("loss", "version"):
        if key not in rest:
            msg = (
                f"The key {key!r} is missing; a spec is written by to_dict() and has 'loss' and "
                "'version'."
            )
            raise SerializationError(msg)
    name, version = rest.pop("loss"), rest.pop("version")
    if not isinstance(name, str) or name not in LOSSES:
        msg = (
            f"The key 'loss' must be one of {', '.join(map(repr, sorted(LOSSES)))}, "
            f"got {quoted(name)}.{suggestion(name, LOSSES)}"
        )
        raise SerializationError(msg)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        msg = f"The key 'version' must be a positive int, got {quoted(version)}."
        raise SerializationError(msg)
    latest = latest_version()
    if version > latest:
        msg = (
            f"The key 'version' is {quoted(version)}, and this unifiedloss reads versions up to "
            f"{latest}; upgrade unifiedloss to read it."
        )
        raise SerializationError(msg)
    cls = LOSSES[name]
    for key in rest:
        if key not in cls.declarations:
            msg = f"The key {quoted(key)} is not a field of {name!r}; {fields_and_hint(cls, key)}"
            raise SerializationError(msg)
    return cls(**rest)


def from_json(text: str | bytes | Any) -> Loss:
    """Read a spec from JSON text that `Loss.to_json` wrote.

    Args:
        text: the JSON text.

    Returns:
        The spec, validated as if its class had been called.

    Raises:
        SerializationError: the text is not JSON, repeats a key, or is no spec.
    """
    return from_dict(read_json(text))


def read_json(text: str | bytes | Any) -> Any:
    """Read JSON text strictly, and return what it holds.

    Raises:
        SerializationError: the text is not JSON, repeats a key, or is too long.
    """
    import json  # here, because it would take a fifth of this package's import time

    if not isinstance(text, str | bytes):
        msg = f"from_json reads a str, got {type(text).__name__}; for a dictionary use from_dict."
        raise SerializationError(msg)
    if len(text) > MOST_CHARACTERS:
        raise SerializationError(too_long(text))

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = collections.Counter(key for key, _ in pairs)
            key = counts.most_common(1)[0][0]
            msg = f"The key {quoted(key)} stands twice in the JSON text."
            raise SerializationError(msg)
        return found

    def integer(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            msg = f"The number {shortened(digits)} has {len(digits)} digits, which no field needs."
            raise SerializationError(msg)
        return int(digits)

    def constant(name: str) -> NoReturn:
        msg = f"The text is not JSON: {name} is no number; leave the field out, or write a number."
        raise SerializationError(msg)

    try:
        return json.loads(
            text, object_pairs_hook=unique, parse_int=integer, parse_constant=constant
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"The text is not JSON: {error}."
        raise SerializationError(msg) from error
    except RecursionError as error:
        msg = "The JSON text is nested too deeply; a spec nests no deeper than its weights."
        raise SerializationError(msg) from error
