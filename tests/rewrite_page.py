"""Write into a page what its code prints: ``python -m tests.rewrite_page docs/switching.md``.

For when tests/test_docs.py says that a page and its code differ, and it is the code that is right. The tables of the page on switching are
written anew as well. The page is then read, not trusted: what changed in it is what changed for its readers.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

from tests.test_docs import _FENCE, _RUN
from tests.test_switching_docs import PAGE, table_of_deviations, table_of_losses, table_of_refusals


def with_outputs(text: str) -> str:
    """A page with every output block as its code prints it, all blocks run in one process."""
    names: dict[str, Any] = {}
    printed = ""

    def written(match: re.Match[str]) -> str:
        nonlocal printed
        info = match["info"].strip()
        if _RUN.fullmatch(info):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(match["body"], names)  # noqa: S102 - the code of this repository's own page
            printed = out.getvalue().rstrip()
        elif info == "output":
            return f"```output\n{printed}\n```"
        return match[0]

    return _FENCE.sub(written, text)


def with_tables(text: str) -> str:
    """The page on switching with its tables as the code has them, each known by its first line."""
    for table in (table_of_losses(), table_of_refusals(), table_of_deviations()):
        head = re.escape(table.partition("\n")[0])
        text = re.sub(
            rf"^{head}\n(?:\|.*\n)*", lambda _, table=table: f"{table}\n", text, flags=re.MULTILINE
        )  # type: ignore[misc]
    return text


def main() -> None:
    """Rewrite the pages named on the command line."""
    for name in sys.argv[1:]:
        path = Path(name)
        text = with_outputs(path.read_text(encoding="utf-8"))
        path.write_text(with_tables(text) if path.resolve() == PAGE else text, encoding="utf-8")


if __name__ == "__main__":
    main()
