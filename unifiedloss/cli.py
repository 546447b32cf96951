"""The command line: check the backends, compare one loss across them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import unifiedloss
from unifiedloss.errors import UnifiedLossError

if TYPE_CHECKING:
    from unifiedloss.conformance import Report

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    # The command is installed with the core, and what it needs with the extra: a traceback would not say so.
    sys.exit(f"The command line needs {missing.name}, which is not installed; install it with: pip install 'unifiedloss[cli]'")

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
# Where nobody looks at it, a table is as wide as it needs to be.
_out = Console(width=None if sys.stdout.isatty() else 160)
_err = Console(stderr=True)


def main() -> None:
    """The entry point of the command ``unifiedloss``."""
    app()


def _fail(message: object) -> NoReturn:
    _err.print(f"Error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def _version(value: bool) -> None:
    if value:
        _out.print(f"unifiedloss {unifiedloss.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def unifiedloss_(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False
) -> None:
    """One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX."""


@app.command()
def conform(
    *,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="A backend ('torch', 'keras') or a row ('keras (jax)'); may be repeated. Default: all that are installed."),
    ] = None,
    loss: Annotated[list[str] | None, typer.Option(help="A loss ('cross_entropy', ...); may be repeated. Default: all.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="A mode ('eager', 'jit', ...); may be repeated. Default: all.")] = None,
    rounding: Annotated[str, typer.Option(help="The rounding to check.")] = "native",
    json: Annotated[Path | None, typer.Option(help="Write the report to this file.", dir_okay=False)] = None,
) -> None:
    """Check the installed backends against the oracle. The exit status is 1 if anything differs."""
    from unifiedloss import conformance

    try:
        with _progress() as note:
            report = conformance.run(backend or None, loss or None, mode or None, rounding=rounding, progress=note)
    except UnifiedLossError as error:
        _fail(error)
    if json is not None:
        try:
            json.write_text(report.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            _fail(f"cannot write {json}: {error.strerror}.")
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def _progress() -> Any:
    """A context with the function that draws how far each backend has come."""
    import contextlib

    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from unifiedloss import conformance

    @contextlib.contextmanager
    def drawn() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
        with Progress(*columns, console=_err, transient=True) as bars:
            tasks: dict[str, TaskID] = {}

            def note(at: conformance.Progress) -> None:
                if at.backend not in tasks:
                    tasks[at.backend] = bars.add_task(at.backend, total=at.total)
                bars.update(tasks[at.backend], completed=at.done, total=at.total, description=f"{at.backend}, {at.mode}")

            yield note

    return drawn()


def _print_report(report: Report) -> None:
    from rich.table import Table

    for row, failure in report.failures:
        _out.print(f"{row.backend}, {row.mode}: {failure.case}", style="red", markup=False, highlight=False)
        for what in failure.what:
            _out.print(f"  {what}", markup=False, highlight=False, soft_wrap=True)
        _out.print(failure.snippet, markup=False, highlight=False, soft_wrap=True)
    table = Table()
    for column in ("backend", "version", "mode"):
        table.add_column(column)
    for column in ("cases", "left out", "not held", "comparisons", "failures", "value ulps", "gradient ulps", "seconds"):
        table.add_column(column, justify="right")
    for row in report.rows:
        total = row.total
        held = ", ".join(f"{count}: {reason}" for reason, count in row.not_held.items()) or "0"
        table.add_row(
            row.backend, row.version, row.mode, str(total.cases), str(row.left_out), held, str(total.comparisons), str(total.failed),
            f"{total.value_ulps:.2f}", f"{total.gradient_ulps:.2f}", f"{row.seconds:.0f}",
        )  # fmt: skip
    _out.print(table)
    for label, why in report.errors.items():
        _out.print(f"{label} was not checked to the end: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
    for label, why in report.absent.items():
        _out.print(f"{label} was not checked: {why}.", markup=False, highlight=False, soft_wrap=True)
    verdict = "nothing differs" if report.ok else f"{len(report.failures)} cases failed" if report.failures else "the run failed"
    _out.print(f"{report.comparisons} comparisons in {len(report.rows)} rows, {report.seconds:.0f} s: {verdict}.", highlight=False)


@app.command()
def backends() -> None:
    """List the installed backends with their versions."""
    try:
        found = unifiedloss.backends()
    except (UnifiedLossError, ImportError) as error:
        _fail(error)
    for name, version in found.items():
        _out.print(f"{name} {version}", highlight=False)
