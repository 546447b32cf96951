"""The command ``conform``: check backends against the oracle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unifiedloss.cli import own_loss
from unifiedloss.cli.output import (
    app,
    count,
    err,
    example,
    fail,
    out,
    print_text,
    write_file,
)
from unifiedloss.cli.reporting import Html, Markdown, check_reports, write_reports
from unifiedloss.cli.specs import LOSS
from unifiedloss.errors import UnifiedLossError

if TYPE_CHECKING:
    from unifiedloss.conformance import Report, Row
    from unifiedloss.conformance.strength import Strength


@app.command(epilog=example("conform --backend numpy --loss mean_squared_error"))
def conform(
    *,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND",
            help="A backend ('torch', 'keras') or a row ('keras (jax)'); may be repeated. "
            "Default: all that are installed.",
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS",
            help="A loss ('cross_entropy', ...), or 'softmax'; may be repeated. Default: all. "
            "Or a loss function of yours, as package.module:function, with --as and --backend.",
        ),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="LOSS", help=f"What a function of yours claims to compute. {LOSS}"
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="index or dense, if a function of yours takes only such targets."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE", help="A rule in which a function of yours may differ; may be repeated."
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE",
            help="A dtype of the predictions for a function of yours; may be repeated. "
            "Default: float32.",
        ),
    ] = None,
    failures: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many cases of a function of yours are shown. Default: 3.", min=0
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="How long a function of yours may take for a case. Default: 10."
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE", help="A mode ('eager', 'jit', ...); may be repeated. Default: all."
        ),
    ] = None,
    rounding: Annotated[
        str, typer.Option(metavar="ROUNDING", help="The rounding to check.")
    ] = "native",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Run all cases in eager modes, and a few in one compiled mode of each backend.",
        ),
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report to this file.", dir_okay=False),
    ] = None,
    html: Html = None,
    markdown: Markdown = None,
) -> None:
    """Check the installed backends against the oracle.

    The exit status is 1 if anything differs.

    With --loss package.module:function --as LOSS --backend torch, check a loss function of yours:
    function(predictions, targets), and sample_weight= and mask= if it has them.
    """
    own = {
        "as": as_, "targets": targets, "without": without, "dtype": dtype, "failures": failures,
        "seconds": seconds,
    }  # fmt: skip
    if own_loss.is_named(loss, own):
        others = {"rounding": rounding if rounding != "native" else None, "quick": quick or None}
        own_loss.check(loss or [], backend or [], mode or [], json, own, others, _progress)
    from unifiedloss import conformance
    from unifiedloss.conformance import workers
    from unifiedloss.conformance.strength import FULL, QUICK

    check_reports(html, markdown, json)
    strength = QUICK if quick else FULL
    try:
        labels = [target.label for target in workers.choose(backend or None, every=True)[0]]
        with _progress(len(labels)) as (note, log_row):
            report = conformance.run(
                backend or None,
                loss or None,
                mode or None,
                rounding=rounding,
                strength=strength.name,
                progress=note,
                finished=log_row,
                started=partial(
                    _print_start, len(labels), strength, part=bool(backend or loss or mode)
                ),
            )
    except UnifiedLossError as error:
        fail(error)
    if json is not None:
        write_file(json, report.to_json() + "\n")
    if html or markdown:
        from unifiedloss import reports

        write_reports(reports.conform_page(report, reports.command()), html, markdown)
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def _print_start(backends: int, strength: Strength, *, part: bool) -> None:
    """Print how much is run and how long it takes."""
    name = "" if strength.name == "full" else f", {strength.name}"
    limit = "at most" if part else "about"
    minutes = count(strength.minutes, "minute")
    print_text(
        f"Checking {count(backends, 'backend')}{name}: {limit} {minutes} on two cores.",
        console=err,
    )


def _progress(backends: int) -> Any:
    """A context manager that gives two callbacks of `conformance.run`.

    The first draws a progress bar for each backend. The second logs each finished row when stderr
    is not a terminal, because the bars are not drawn then.
    """
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
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
            tasks: dict[str, TaskID] = {}
            places: dict[str, str] = {}

            def place(label: str) -> str:
                return places.setdefault(label, f"{len(places) + 1} of {backends}")

            def note(at: conformance.Progress) -> None:
                if at.backend not in tasks:
                    tasks[at.backend] = bars.add_task(at.backend, total=at.total)
                bars.update(
                    tasks[at.backend],
                    completed=at.done,
                    total=at.total,
                    description=f"{place(at.backend)}: {at.backend}, {at.mode}",
                )

            def log_row(row: Row) -> None:
                if not err.is_terminal:
                    _log_row(place(row.backend), row)

            yield note, log_row

    return drawn()


def _log_row(place: str, row: Row) -> None:
    total = row.total
    print_text(
        f"{place}: {row.backend}, {row.mode}: {count(total.cases, 'case')}, "
        f"{count(total.failed, 'failure')}, {row.seconds:.0f} s",
        console=err,
    )


def _print_report(report: Report) -> None:
    from rich.table import Table

    for row, failure in report.failures:
        out.print(
            f"{row.backend}, {row.mode}: {failure.case}", style="red", markup=False, highlight=False
        )
        for what in failure.what:
            print_text(f"  {what}")
        print_text(failure.snippet)
    versions = {row.backend: row.version for row in report.rows}
    for label, version in versions.items():
        print_text(f"{label}: {version}")
    # The table has no frame and no versions, so that it fits a terminal of 80 columns.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("backend", "mode"):
        table.add_column(column, no_wrap=True)
    counts = ("cases", "left\nout", "compared", "programs", "failed")
    for column in (*counts, "value\nulps", "grad\nulps", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.rows:
        total = row.total
        table.add_row(
            row.backend, row.mode, str(total.cases), str(row.left_out), str(total.comparisons),
            str(row.programs), str(total.failed), f"{total.value_ulps:.2f}",
            f"{total.gradient_ulps:.2f}", f"{row.seconds:.0f}",
        )  # fmt: skip
    out.print(table)
    for row in report.rows:
        for reason, cases in row.not_held.items():
            out.print(
                f"{row.backend}, {row.mode}: {count(cases, 'case')} not run: {reason}",
                markup=False,
                highlight=False,
            )
    for label, why in report.errors.items():
        print_text(f"{label} was not checked to the end: {why}", "red")
    for label, why in report.absent.items():
        print_text(f"{label} was not checked: {why}.")
    if report.ok:
        verdict = "nothing differs"
    elif report.failures:
        verdict = f"{count(len(report.failures), 'case')} failed"
    else:
        verdict = "the run failed"
    out.print(
        f"{count(report.comparisons, 'comparison')} in {count(len(report.rows), 'row')}, "
        f"{report.seconds:.0f} s: {verdict}.",
        highlight=False,
    )
