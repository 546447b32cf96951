"""What all commands share: the application, and where and how they print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    # Installing the core also installs this command, but only the extra "cli" installs what it
    # imports. A traceback would not name the extra.
    sys.exit(
        f"The command line needs {missing.name}, which is not installed; "
        "install it with: pip install 'unifiedloss[cli]'"
    )

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # brackets in help are brackets
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# On a terminal its width applies. Elsewhere 160 columns are enough for every table.
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)


def example(*commands: str) -> str:
    """The end of a command's help: lines that run as they stand beside a file batch.npz."""
    # The mark keeps the line breaks.
    return "\n".join(["\b", "Examples:", *(f"  unifiedloss {command}" for command in commands)])


def print_text(text: str, style: str | None = None, console: Console = out) -> None:
    """Print text as it is: no markup, no highlighting, no line breaks added."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def fail(message: object) -> NoReturn:
    """End the command with an error message and the status 2."""
    print_text(f"Error: {message}", "red", err)
    raise typer.Exit(2)


def count(n: int, noun: str) -> str:
    """A number with its noun: "1 case", "2 cases"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def check_folder(path: Path | None) -> None:
    """Refuse a file that cannot be written, before the work that is written to it."""
    if path is not None and not path.parent.is_dir():
        fail(f"cannot write {path}: there is no folder {path.parent}.")


def write_file(path: Path, text: str) -> None:
    """Write a file as a whole: whoever ends the command leaves the old file or the new one."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}.")
    finally:
        part.unlink(missing_ok=True)
