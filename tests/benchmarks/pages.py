"""Write the measured part of a page."""

from __future__ import annotations

import sys
from pathlib import Path


def write_between(file: Path, begin: str, end: str, text: str) -> None:
    """Replace the text between the two markers of a page.

    Raises:
        SystemExit: the page does not have each marker exactly once.
    """
    page = file.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        sys.exit(
            f"{file.name} needs the lines {begin} and {end}, "
            "once each, around what is to be replaced."
        )
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    file.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")
