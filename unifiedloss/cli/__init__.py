"""The command line: check backends, evaluate and compare losses, and translate and explain them.

Each module has the commands of one subject.
"""

from __future__ import annotations

import os
from typing import Annotated

# First, because it says which extra is missing.
from unifiedloss.cli.output import app, example, fail, out  # isort: skip

import typer

import unifiedloss
from unifiedloss import compiled
from unifiedloss.cli import compare, conform, evaluate, losses, why  # noqa: F401 - add commands
from unifiedloss.compiled import threads
from unifiedloss.errors import UnifiedLossError


def main() -> None:
    """Run the command ``unifiedloss``."""
    # Keep TensorFlow's start-up messages out of the output.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app()


def _version(value: bool) -> None:
    if value:
        out.print(f"unifiedloss {unifiedloss.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def unifiedloss_(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX.

    The exit status is 0 if all is well, 1 if something differs or is bad, and 2 after an error.
    """


@app.command(epilog=example("backends"))
def backends() -> None:
    """List the installed backends.

    With their versions, and the level of the compiled loops. The number of threads is that of the
    environment; for its tensors, PyTorch's own counts.
    """
    try:
        versions = unifiedloss.backends()
    except (UnifiedLossError, ImportError) as error:
        fail(error)
    for name, version in versions.items():
        out.print(f"{name} {version}", highlight=False)
    try:
        level, count = compiled.level(), threads.number()
    except UnifiedLossError as error:
        fail(error)
    used = "1 thread" if count == 1 else f"{count} threads"
    out.print(f"compiled loops: {level}, {used}", highlight=False)
