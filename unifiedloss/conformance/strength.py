"""Define how much of the suite a run executes: "full", "test" or "quick".

A compiled mode takes from a fraction of a second to minutes for a case that takes a millisecond in
an eager mode. So a weaker run still runs all cases eagerly, and compiles fewer of them.
"""

from __future__ import annotations

import zlib
from enum import Enum
from typing import NamedTuple

from unifiedloss.adapter import Adapter
from unifiedloss.conformance.case import Case, SoftmaxCase
from unifiedloss.conformance.combine import CutCase
from unifiedloss.errors import SpecValueError
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted


class Strength(NamedTuple):
    """How much of the suite a run executes.

    Attributes:
        name: "full", "test" or "quick".
        grouped: whether a compiled mode's cases share programs (see `groups`).
        minutes: approximate time of a run over all backends on two cores.
    """

    name: str
    grouped: bool
    minutes: int


FULL = Strength("full", grouped=False, minutes=8)
"""Every compiled case in every compiled mode, each in its own program, and again through Keras."""

TEST = Strength("test", grouped=True, minutes=3)
"""All cases in eager modes, and a quarter of the compiled cases in one mode of each compiler.

The other modes run only representative cases. JAX compiles eager calls too, so it runs a quarter of
all cases, under `jit`. Each compiler runs another quarter, so together they run all of them, but
for the cases in pieces, of which each takes as long as a group of others. Representative cases run
in one mode of torch.compile, because its modes trace in the same way, which takes most of the time.
"""

QUICK = Strength("quick", grouped=True, minutes=1)
"""All cases in eager modes, and representative ones in one compiled mode of each backend.

JAX compiles eager calls too, so it runs the compiled cases, under `jit`.
"""

STRENGTHS = {strength.name: strength for strength in (QUICK, TEST, FULL)}


def strength_named(name: str) -> Strength:
    """The strength of that name.

    Raises:
        SpecValueError: there is no such strength.
    """
    if name not in STRENGTHS:
        names = ", ".join(map(repr, STRENGTHS))
        msg = f"strength must be one of {names}, got {quoted(name)}.{suggestion(name, STRENGTHS)}"
        raise SpecValueError(msg)
    return STRENGTHS[name]


_SEED = 2026
"""Seed of the samples. It is fixed, because a test run must not depend on the date."""


def _quarter(name: str) -> int:
    """The quarter, 0 to 3, of a case or a mode.

    The modes "aot_eager", "function", "xla" and "jit" have four different ones, so the compilers
    together run every case. Not every seed and not all bits of the hash have this property.
    """
    return zlib.crc32(f"{_SEED} {name}".encode()) >> 9 & 3


class Share(Enum):
    """The share of the cases that a mode runs."""

    EVERY = "every"
    NEW = "every, without what the backend below has compiled"
    QUARTER = "representative, and a quarter of the others"
    COMPILED = "compiled"
    QUARTER_OF_COMPILED = "representative, and a quarter of the other compiled ones"
    QUARTER_OF_OTHERS = "a quarter of the compiled ones that are not representative"
    REPRESENTATIVE = "representative"
    QUARTER_OF_REPRESENTATIVE = "a quarter of the representative ones"
    NOTHING = "nothing"

    def has(self, case: Case | SoftmaxCase, mode: str) -> bool:
        """Whether this share has a case in the mode of that name."""
        if self is Share.NEW:
            return case.compiled or not case.of_backend
        if self in (Share.QUARTER, Share.QUARTER_OF_COMPILED, Share.QUARTER_OF_OTHERS):
            in_pieces = isinstance(case, CutCase)
            if case.representative:
                # A costly mode does not run cases in pieces.
                return in_pieces or self is not Share.QUARTER_OF_OTHERS
            # A case in pieces compiles three programs, each with all pieces.
            admitted = self is Share.QUARTER or (case.compiled and not in_pieces)
            return admitted and _quarter(case.name) == _quarter(mode)
        if self is Share.QUARTER_OF_REPRESENTATIVE:
            return case.representative and _quarter(case.name) == _quarter(mode)
        if self is Share.COMPILED:
            return case.compiled
        if self is Share.REPRESENTATIVE:
            return case.representative
        return self is Share.EVERY


def complete_mode(adapter: Adapter, *, exact: bool) -> str:
    """The mode that runs all cases.

    Exact mode computes on the host, so compiling it saves nothing.
    """
    modes = adapter.modes()
    declared = [] if exact else [name for name, mode in modes.items() if mode.complete]
    return next(iter([*declared, *modes]))


def share(strength: Strength, adapter: Adapter, name: str, *, by_keras: bool, exact: bool) -> Share:
    """The share of the cases that a mode runs.

    Args:
        strength: how much of the suite the run executes.
        adapter: the backend's adapter.
        name: the mode's name.
        by_keras: whether the adapter is Keras; the framework below it has its own rows.
        exact: whether the cases have ``rounding="exact"``.
    """
    modes = adapter.modes()
    mode = modes[name]
    if name == complete_mode(adapter, exact=exact):
        if mode.complete and strength == QUICK:  # it compiles
            return Share.COMPILED
        if by_keras and (exact or mode.complete) and strength != FULL:
            # In exact mode Keras calls the framework below it; otherwise that framework's own row
            # compiles the remaining cases.
            return Share.COMPILED if strength == QUICK else Share.QUARTER_OF_COMPILED
        if by_keras and not exact and mode.complete:
            return Share.NEW
        if mode.complete and strength == TEST:
            return Share.QUARTER
        return Share.EVERY
    if mode.costly:
        left_out = strength == QUICK or (strength == TEST and by_keras)
        return Share.NOTHING if left_out else Share.REPRESENTATIVE
    if strength == FULL:
        return Share.COMPILED
    if strength == QUICK:
        compiled = [other for other, mode in modes.items() if not mode.raises]
        return Share.REPRESENTATIVE if mode.raises or name == compiled[0] else Share.NOTHING
    # Representative cases are enough where another row compiles the same programs. Beside a
    # complete mode, that mode does. In exact mode outside a complete mode, every case is the same
    # single operator. Through Keras, the framework's own rows compile all of them, and a case takes
    # a second, so each mode of each of Keras' backends runs a quarter.
    declared = any(mode.complete for mode in modes.values())
    if by_keras:
        return Share.QUARTER_OF_REPRESENTATIVE
    if (declared and not mode.complete) or (exact and not mode.complete):
        return Share.REPRESENTATIVE
    # The costly mode beside this one runs the representative cases, and traces in the same way.
    if any(other.costly and not other.missing for other in modes.values()):
        return Share.QUARTER_OF_OTHERS
    return Share.QUARTER_OF_COMPILED
