"""Random specs, from the declarations of the fields alone.

A field is drawn by its annotation and admitted by its own check, so a field that is new is fuzzed
without a change here. An annotation that nobody can draw is an error that says so.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from tests.fuzz.numbers import pick
from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.spec import Loss

_TRIES = 200

_MILD = (0.0, 0.1, 0.5, 1.0, 1e-7, 0.25, 0.3, 2.0, 3.0, 1e-3, 7.5)
_WILD = (
    1e-30,
    2.0**-126,
    2.0**-127,
    1e-40,
    1e-50,
    2.0**-1022,
    1e-310,
    1e-45,
    1e30,
    2.0**126,
    1e300,
)


@cache
def parts_of(cls: type[Loss], name: str) -> tuple[Any, ...]:
    """The members of a field's annotation; those of a `Literal` are its values."""
    return tuple(_members(typing.get_type_hints(cls)[name]))


def _members(hint: Any) -> Iterable[Any]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _members(part)
    elif origin is Literal:
        yield from typing.get_args(hint)
    elif hint is bool:
        yield from (False, True)
    else:
        yield None if hint is type(None) else hint


def draw(
    rng: np.random.Generator, cls: type[Loss], shape: tuple[int, ...], rounding: str, *, wild: bool
) -> Loss:
    """Draw a spec for predictions of a shape.

    Args:
        rng: the source.
        cls: the class of the spec.
        shape: the shape of the predictions; most specs fit it.
        rounding: "native" or "exact".
        wild: whether numbers may have any size.
    """
    rate = float(rng.choice([0.15, 0.35, 0.7]))
    given: dict[str, Any] = {"rounding": rounding}
    # The axis comes first, because vectors have its length.
    names = sorted(cls.declarations, key=lambda name: (parts_of(cls, name) != (int, None), name))
    for name in names:
        if name == "rounding":
            continue
        must = parts_of(cls, name) == (int, None) and len(shape) > 2
        if rng.random() < (0.97 if must else rate):
            given[name] = _value(rng, cls, name, shape, given, wild=wild)
    while True:
        try:
            return cls(**given)
        except SpecValueError:  # two fields exclude each other: leave one out
            del given[pick(rng, [name for name in given if name != "rounding"])]


def _value(
    rng: np.random.Generator,
    cls: type[Loss],
    name: str,
    shape: tuple[int, ...],
    given: dict[str, Any],
    *,
    wild: bool,
) -> Any:
    """Draw a value that the field's check admits."""
    check = cls.declarations[name].check
    axis = given.get("axis")
    axis = axis if isinstance(axis, int) and -len(shape) <= axis < len(shape) else -1
    length = shape[axis] if shape else 1
    parts = parts_of(cls, name)
    for _ in range(_TRIES):
        value = _candidate(rng, pick(rng, parts), parts, shape, length, wild=wild)
        try:
            check(name, value)
        except (SpecValueError, SpecTypeError):
            continue
        return value
    msg = f"no value of {cls.__name__}.{name} that was drawn passes its check; its parts: {parts}"
    raise AssertionError(msg)


def _candidate(
    rng: np.random.Generator,
    part: Any,
    parts: tuple[Any, ...],
    shape: tuple[int, ...],
    length: int,
    *,
    wild: bool,
) -> Any:
    if part is None or isinstance(part, str | bool):
        return part
    if part is float:
        return _number(rng, wild=wild)
    if part is int and Iterable[int] in parts:
        return _label(rng, length)
    if part is int:
        edge = int(rng.random() < 0.03)
        return int(rng.integers(-len(shape) - edge, len(shape) + edge)) if shape else 0
    if part == Iterable[int]:
        return [_label(rng, length) for _ in range(int(rng.integers(1, 4)))]
    if part == Sequence[float]:
        count = length if rng.random() < 0.97 else int(rng.integers(1, 5))
        return [_number(rng, wild=wild) for _ in range(count)]
    if part == Sequence[Any]:  # an array that broadcasts to the last axes
        last = shape[len(shape) - int(rng.integers(len(shape) + 1)) :]
        extents = tuple(1 if rng.random() < 0.2 else n for n in last)
        if rng.random() < 0.03:
            extents = (2, *extents)
        flat = [_number(rng, wild=wild) for _ in range(int(np.prod(extents, dtype=int)))]
        nested = np.array(flat, np.float64).reshape(extents).tolist()
        return nested if nested != [] else 1.0
    msg = (
        f"nobody can draw a field annotated with {part!r}: teach tests/fuzz/fields.py to, so that "
        "the field is fuzzed."
    )
    raise TypeError(msg)


def _number(rng: np.random.Generator, *, wild: bool) -> float:
    some = _MILD + _WILD if wild and rng.random() < 0.3 else _MILD
    return float(rng.random() * 2) if rng.random() < 0.4 else float(pick(rng, some))


def _label(rng: np.random.Generator, length: int) -> int:
    return int(pick(rng, (-100, -1, 0, max(length - 1, 0), 255, 156, 2**40, -(2**63))))
