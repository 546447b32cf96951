"""How much of the suite a run takes: every case in every mode, each thing once, or a quick look.

A compiled mode takes a fraction of a second to minutes for what an eager one does in a millisecond. So a weaker run does not check fewer
things, but checks them in fewer compilers.
"""

from __future__ import annotations

import zlib
from enum import Enum
from typing import NamedTuple

from unifiedloss.adapter import Adapter
from unifiedloss.conformance.cases import Case, SoftmaxCase
from unifiedloss.errors import SpecValueError
from unifiedloss.suggestion import suggestion


class Strength(NamedTuple):
    """How much a run takes.

    Attributes:
        name: "full", "test" or "quick".
        grouped: whether a compiled mode's cases share programs (see `groups`).
        minutes: about how long a run over all backends takes on two cores.
    """

    name: str
    grouped: bool
    minutes: int


FULL = Strength("full", grouped=False, minutes=8)
"""Every case that an adapter marks as compiled in every compiled mode, each in a program of its own, and again through Keras."""

TEST = Strength("test", grouped=True, minutes=3)
"""All cases in every eager mode, most under JAX's jit, the compiled ones in one mode per compiler, representative ones elsewhere."""

QUICK = Strength("quick", grouped=True, minutes=1)
"""All cases in every eager mode, and representative ones in one compiled mode of each backend."""

STRENGTHS = {strength.name: strength for strength in (QUICK, TEST, FULL)}


def strength_named(name: str) -> Strength:
    """The strength of that name.

    Raises:
        SpecValueError: there is none.
    """
    if name not in STRENGTHS:
        msg = f"strength must be one of {', '.join(map(repr, STRENGTHS))}, got {name!r}.{suggestion(name, STRENGTHS)}"
        raise SpecValueError(msg)
    return STRENGTHS[name]


_SEED = 2026
"""Draws the sample. It stands here and does not follow the date: a change must not fail because of the day."""


def _is_drawn(name: str) -> bool:
    """Whether a case is in the half that the seed draws."""
    return zlib.crc32(f"{_SEED} {name}".encode()) % 2 == 0


class Share(Enum):
    """Which of the cases a mode runs."""

    EVERY = "every"
    NEW = "every, without what the backend below has compiled"
    DRAWN = "compiled, and half of the others"
    COMPILED = "compiled"
    REPRESENTATIVE = "representative"
    NOTHING = "nothing"

    def has(self, case: Case | SoftmaxCase) -> bool:
        """Whether a case belongs to it."""
        if self is Share.NEW:
            return case.compiled or not case.of_backend
        if self is Share.DRAWN:
            return case.compiled or _is_drawn(case.name)
        if self is Share.COMPILED:
            return case.compiled
        if self is Share.REPRESENTATIVE:
            return case.representative
        return self is Share.EVERY


def complete_mode(adapter: Adapter, *, exact: bool) -> str:
    """The mode in which all are run. Exact mode leaves the computing to the host, so nothing is saved by compiling it."""
    modes = adapter.modes()
    declared = [] if exact else [name for name, mode in modes.items() if mode.complete]
    return next(iter([*declared, *modes]))


def share(strength: Strength, adapter: Adapter, name: str, *, by_keras: bool, exact: bool) -> Share:
    """Which of the cases a mode runs.

    Args:
        strength: how much the run takes.
        adapter: the backend's adapter.
        name: the mode's name.
        by_keras: whether it is Keras on this backend, which has rows of its own.
        exact: whether the cases are of exact mode.
    """
    modes = adapter.modes()
    mode = modes[name]
    if name == complete_mode(adapter, exact=exact):
        if mode.complete and strength == QUICK:  # it compiles
            return Share.COMPILED
        if by_keras and (exact or mode.complete) and strength != FULL:
            return (
                Share.COMPILED
            )  # exact mode is the backend's own; in the other the backend's row compiles the rest
        if by_keras and not exact and mode.complete:
            return Share.NEW
        if mode.complete and strength == TEST:
            return Share.DRAWN
        return Share.EVERY
    if mode.costly:
        spared = strength == QUICK or (strength == TEST and by_keras)
        return Share.NOTHING if spared else Share.REPRESENTATIVE
    if strength == FULL:
        return Share.COMPILED
    if strength == QUICK:
        compiled = [other for other, mode in modes.items() if not mode.raises]
        return Share.REPRESENTATIVE if mode.raises or name == compiled[0] else Share.NOTHING
    # The backend's own rows have Keras' programs; the declared mode has those of the modes beside it; outside it exact mode is one
    # operator, whatever the case.
    declared = any(mode.complete for mode in modes.values())
    if by_keras or (declared and not mode.complete) or (exact and not mode.complete):
        return Share.REPRESENTATIVE
    return Share.COMPILED
