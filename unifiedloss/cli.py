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
    sys.exit(
        f"The command line needs {missing.name}, which is not installed; install it with: pip install 'unifiedloss[cli]'"
    )

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX."""


@app.command()
def conform(
    *,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="A backend ('torch', 'keras') or a row ('keras (jax)'); may be repeated. Default: all that are installed."
        ),
    ] = None,
    loss: Annotated[
        list[str] | None, typer.Option(help="A loss ('cross_entropy', ...); may be repeated. Default: all.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="A mode ('eager', 'jit', ...); may be repeated. Default: all.")
    ] = None,
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
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=_err, transient=True) as bars:
            tasks: dict[str, TaskID] = {}

            def note(at: conformance.Progress) -> None:
                if at.backend not in tasks:
                    tasks[at.backend] = bars.add_task(at.backend, total=at.total)
                bars.update(
                    tasks[at.backend], completed=at.done, total=at.total, description=f"{at.backend}, {at.mode}"
                )

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
    for column in (
        "cases",
        "left out",
        "not held",
        "comparisons",
        "failures",
        "value ulps",
        "gradient ulps",
        "seconds",
    ):
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
        _out.print(
            f"{label} was not checked to the end: {why}", style="red", markup=False, highlight=False, soft_wrap=True
        )
    for label, why in report.absent.items():
        _out.print(f"{label} was not checked: {why}.", markup=False, highlight=False, soft_wrap=True)
    verdict = (
        "nothing differs"
        if report.ok
        else f"{len(report.failures)} cases failed"
        if report.failures
        else "the run failed"
    )
    _out.print(
        f"{report.comparisons} comparisons in {len(report.rows)} rows, {report.seconds:.0f} s: {verdict}.",
        highlight=False,
    )


@app.command()
def compare(
    file: Annotated[
        Path, typer.Argument(help="An .npz file with predictions and targets (sample_weight and mask if wanted).")
    ],
    *,
    loss: Annotated[
        str, typer.Option(help="cross_entropy, binary_cross_entropy or mean_squared_error.")
    ] = "cross_entropy",
    spec: Annotated[Path | None, typer.Option(help="A JSON file with the whole spec, in place of the options.")] = None,
    from_logits: Annotated[bool, typer.Option("--from-logits", help="The predictions are logits.")] = False,
    axis: Annotated[int | None, typer.Option(help="The class axis.")] = None,
    label_smoothing: Annotated[float, typer.Option(help="The amount of label smoothing.")] = 0.0,
    epsilon: Annotated[float, typer.Option(help="Where probabilities are clipped.")] = 0.0,
    ignore_index: Annotated[list[int] | None, typer.Option(help="A label to ignore; may be repeated.")] = None,
    reduction: Annotated[str, typer.Option(help="mean, sum or none.")] = "mean",
    divisor: Annotated[str, typer.Option(help="weights, present, nonzero or all.")] = "weights",
    backend: Annotated[list[str] | None, typer.Option(help="A backend; may be repeated. Default: all.")] = None,
) -> None:
    """Run one loss over saved predictions and targets in every installed backend, and compare what comes out."""
    from rich.table import Table

    from unifiedloss.conformance import compare as comparing

    fields = {
        "from_logits": from_logits, "axis": axis, "label_smoothing": label_smoothing, "epsilon": epsilon,
        "ignore_index": ignore_index or None, "reduction": reduction, "divisor": divisor,
    }  # fmt: skip
    # Options left alone stay out, as not every loss has every field.
    unset = {"from_logits": False, "axis": None, "label_smoothing": 0.0, "epsilon": 0.0, "ignore_index": None}
    given = {name: value for name, value in fields.items() if name not in unset or value != unset[name]}
    try:
        if spec is None:
            chosen = unifiedloss.from_dict({"loss": loss, "version": 1, **given})
        else:
            chosen = unifiedloss.from_json(spec.read_text(encoding="utf-8"))
        with _err.status("running"):
            truth, lines = comparing.compare(chosen, comparing.load(file), backend or None)
    except (UnifiedLossError, OSError) as error:
        _fail(error)
    _out.print(f"{chosen!r}, measured against: {truth.source}", markup=False, highlight=False)
    table = Table()
    for column in ("backend", "value", "ulps", "gradient equal", "gradient ulps", "within the bound", "ms"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for line in lines:
        if line.error is not None:
            table.add_row(line.backend, line.error)
            continue
        table.add_row(
            line.backend, f"{line.value:.9g}", f"{line.value_ulps:.3g}", f"{100 * line.gradient_equal:.2f} %",
            f"{line.gradient_ulps:.3g}", "yes" if line.within else "NO", f"{line.milliseconds:.3g}",
        )  # fmt: skip
    _out.print(table)
    good = bool(lines) and all(line.within for line in lines)
    raise typer.Exit(0 if good else 1)


@app.command()
def backends() -> None:
    """List the installed backends with their versions."""
    try:
        found = unifiedloss.backends()
    except (UnifiedLossError, ImportError) as error:
        _fail(error)
    for name, version in found.items():
        _out.print(f"{name} {version}", highlight=False)
