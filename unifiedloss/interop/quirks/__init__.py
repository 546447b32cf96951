"""The quirks: rules of other libraries' losses that no field of a spec can express.

A quirk changes the result only for certain tensors, so a loss with quirks is imported all the same.
`unifiedloss.interop.refusals` lists the arguments that keep a loss from being imported.

A `Quirk` has everything about one rule, except which losses have it: `recorded.json` says so.
``make quirks`` writes it by running every importable loss on the probes of every quirk. The tests
run the probes again and compare, so a library that changes a rule changes the record in a review.
"""

from __future__ import annotations

from collections.abc import Iterable

from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.quirks import batches, dtypes, labels, shapes, values
from unifiedloss.interop.quirks.quirk import Quirk, entry, keyed, recorded
from unifiedloss.spec import Loss
from unifiedloss.text import Text

__all__ = ["QUIRKS", "Quirk", "described", "entry", "joined", "keyed", "recorded", "rules_of"]

QUIRKS: tuple[Quirk, ...] = (
    *labels.QUIRKS,
    *values.QUIRKS,
    *shapes.QUIRKS,
    *batches.QUIRKS,
    *dtypes.QUIRKS,
)
"""All quirks, in the order in which `diff` lists differences."""


def rules_of(spec: Loss, call: Call) -> list[tuple[str, Text]]:
    """The quirks that the loss of a call has: their names, and sentences that say what it does.

    Each name is listed once, with the sentences of all quirks that share it.
    """
    found: dict[str, list[str]] = {}
    for quirk in QUIRKS:
        if quirk.concerns(spec, call) and quirk.has(call):
            found.setdefault(quirk.name, []).append(quirk.sentence(call))
    return [(name, Text.of(joined(sentences))) for name, sentences in found.items()]


def joined(sentences: Iterable[str]) -> str:
    """The sentences in one line, each once."""
    return " ".join(dict.fromkeys(sentences))


def described(name: str) -> list[str]:
    """What quirks of this name are: what specs do, and which losses do what instead, in lines."""
    quirks = [quirk for quirk in QUIRKS if quirk.name == name]
    if not quirks:
        return []
    found: dict[str, list[str]] = {}
    for quirk in quirks:
        for sentence, losses in quirk.recorded_answers().items():
            found.setdefault(sentence, []).extend(losses)
    return [
        f"{name}, a rule of other libraries that no field expresses",
        *dict.fromkeys(f"a spec: {quirk.spec}" for quirk in quirks),
        *(f"{said}\n  {', '.join(dict.fromkeys(losses))}" for said, losses in found.items()),
    ]
