"""Read losses and their options from the arguments of a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import unifiedloss
from unifiedloss.cli.output import fail
from unifiedloss.errors import UnifiedLossError
from unifiedloss.spec import LOSSES
from unifiedloss.text import MOST_CHARACTERS, quoted, shortened_path, too_long

if TYPE_CHECKING:
    from unifiedloss.spec import Loss


def numbers(text: str) -> list[float]:
    """Parse the value of an option such as ``1,2.5,4``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        fail(f"{quoted(text)} is no list of numbers separated by commas.")


def check_options(given: dict[str, Any], options: list[str]) -> None:
    """Refuse an option that the loss does not have.

    `from_dict` would name the field; this message names the option as the user typed it.
    """
    name = given.get("loss", "cross_entropy")
    if name not in LOSSES:
        return  # from_dict reports the unknown loss
    known = [field for field in LOSSES[name].declarations if field in options]
    for name_of_field in given:
        if name_of_field not in ("loss", *known):
            has = ", ".join(option(field) for field in known)
            fail(
                f"{option(name_of_field)} does not apply to the loss {name}; its options are {has}."
            )


def option(field: str) -> str:
    """The option of a field."""
    return f"--{field.replace('_', '-')}"


def read_spec(text: str, options: list[str]) -> Loss:
    """Read a spec from JSON text or from a JSON file.

    Refuse other options, because the spec would override them.
    """
    if options:
        names = ", ".join(map(option, options))
        fail(f"--spec defines the whole loss; leave out {names}.")
    if text.lstrip().startswith("{"):
        return unifiedloss.from_json(text)
    read = _text_of(text)
    try:
        return unifiedloss.from_json(read)
    except UnifiedLossError as error:
        fail(f"cannot read the spec in {shortened_path(text)}: {error}")


def _text_of(name: str) -> str:
    """Return the text of a file with a spec. No more is read than a text may have."""
    try:
        with Path(name).open("rb") as opened:
            read = opened.read(MOST_CHARACTERS + 1)
        if len(read) > MOST_CHARACTERS:
            fail(f"cannot read the spec in {shortened_path(name)}: {too_long(read)}")
        return read.decode()
    # A name with a zero byte is a ValueError, and a UnicodeDecodeError is one too.
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        fail(f"cannot read the spec in {shortened_path(name)}: {why}.")


LOSS = (
    "A loss as Python code ('torch.nn.CrossEntropyLoss(label_smoothing=0.1)'), a spec as Python "
    "code or JSON, or a JSON file."
)


def loss_text(text: str) -> str:
    """Return the text of a loss, read from the file if it names a JSON file.

    The text is never evaluated.
    """
    return _text_of(text) if text.endswith(".json") else text
