"""Update the output blocks of a page: ``python -m tests.rewrite_page docs/switching.md``.

Use it when tests/test_docs.py reports that a page and its code differ, and the code is right. For
docs/switching.md it also updates the generated tables. Review the difference before you commit it,
because it is what changes for the readers of the page.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from tests import page_blocks
from tests.test_docs import _APART, _COMMANDS, _FENCE, _NEEDS, _RUN
from tests.test_interop_docs import PAGE, table_of_deviations, table_of_losses, table_of_refusals


def with_outputs(text: str) -> str:
    """Return the page with each output block as its code prints it.

    All blocks of the page run in one process, except those that name a number of processes. A block
    may be indented, as in a list: its code is dedented before it runs, and its output is indented
    like the block that it replaces.
    """
    names: dict[str, Any] = {}
    printed = ""

    def written(match: re.Match[str]) -> str:
        nonlocal printed
        info = match["info"].strip()
        if _RUN.fullmatch(info) or _NEEDS.fullmatch(info) or info == _COMMANDS:
            source = textwrap.dedent(match["body"])
            if info == _COMMANDS:
                source = page_blocks.of_commands(source)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                # The code is from a page of this repository.
                exec(source, names)  # noqa: S102
            printed = out.getvalue().rstrip()
        elif apart := _APART.fullmatch(info):
            source = textwrap.dedent(match["body"])
            (found,) = page_blocks.printed_by("page", [(source, 1)], int(apart["processes"]))
            printed = found.rstrip()
        elif info == "output":
            fence = match["fence"]
            return textwrap.indent(f"{fence}output\n{printed}\n{fence}", match["indent"])
        return match[0]

    return _FENCE.sub(written, text)


def with_tables(text: str) -> str:
    """Return docs/switching.md with its generated tables, each found by its first line."""
    for table in (table_of_losses(), table_of_refusals(), table_of_deviations()):
        head = re.escape(table.partition("\n")[0])
        # re.sub reads backslashes in its replacement, and the table may contain some.
        replacement = f"{table}\n".replace("\\", r"\\")
        text = re.sub(rf"^{head}\n(?:\|.*\n)*", replacement, text, flags=re.MULTILINE)
    return text


def rewrite(page: Path) -> None:
    """Rewrite one page."""
    page = page.resolve()
    # The code of a page may write files.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        text = with_outputs(page.read_text(encoding="utf-8"))
    page.write_text(with_tables(text) if page == PAGE else text, encoding="utf-8")


def main() -> None:
    """Rewrite the pages named on the command line."""
    for name in sys.argv[1:]:
        rewrite(Path(name))


if __name__ == "__main__":
    main()
