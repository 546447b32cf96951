"""Renew the golden files: ``python -m tests.golden.renew``.

Review the difference before you commit it. The bits of exact mode are promised never to
change, so this only adds new cases to them. It does not make the pickles, because they prove that
today's code reads what old code wrote; see `tests.golden.pickles`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from . import bits, messages, specs, texts

FOLDER = Path(__file__).parent

FILES: dict[str, Callable[[], str]] = {
    "specs.json": specs.make,
    "messages.json": messages.make,
    "explain.txt": texts.explanations,
    "names.json": texts.names,
}
"""The files that a deliberate change renews, each with the function that makes its text."""

BITS = FOLDER / "exact.json"


def known_bits() -> dict[str, list[str]]:
    """Return the bits on file."""
    found: dict[str, list[str]] = json.loads(BITS.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write every file, and print which ones changed."""
    for name, make in FILES.items():
        _write(FOLDER / name, make())
    known = known_bits() if BITS.exists() else {}
    _write(BITS, specs.lines(known | {k: v for k, v in bits.rows().items() if k not in known}))


def _write(path: Path, text: str) -> None:
    changed = not path.exists() or path.read_text(encoding="utf-8") != text
    if changed:
        path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{path.name}: {'written' if changed else 'as it was'}\n")


if __name__ == "__main__":
    main()
