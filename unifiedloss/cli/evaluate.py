"""The command ``evaluate``: a loss over files of any size."""

from __future__ import annotations

import contextlib
import json as json_format
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import unifiedloss
from unifiedloss.cli.files import (
    File,
    MaskFile,
    MaskKey,
    PredictionsKey,
    TargetsFile,
    TargetsKey,
    WeightFile,
    WeightKey,
    files_of,
)
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
from unifiedloss.cli.specs import LOSS, loss_text
from unifiedloss.errors import UnifiedLossError
from unifiedloss.text import shortened

if TYPE_CHECKING:
    from unifiedloss.evaluation import Evaluation, Summary
    from unifiedloss.reports import Page

_SHOWN = 50
"""The groups that the table shows; a file has them all."""


@app.command(epilog=example('evaluate "torch.nn.CrossEntropyLoss()" batch.npz --rounding exact'))
def evaluate(
    spec: Annotated[str, typer.Argument(help=LOSS, metavar="LOSS")],
    file: File,
    *,
    targets: TargetsFile = None,
    sample_weight: WeightFile = None,
    mask: MaskFile = None,
    predictions_key: PredictionsKey = None,
    targets_key: TargetsKey = None,
    sample_weight_key: WeightKey = None,
    mask_key: MaskKey = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Also the loss of each group: an array of FILE, or an .npy file, with the group "
            "of each row.",
            metavar="COLUMN",
        ),
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(metavar="ROUNDING", help="native or exact. Default: what LOSS says."),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS",
            help="Rows that are read at a time. Default: 4 MiB of predictions.",
            min=1,
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            help="Hand the blocks to a running dask cluster, whose workers see the same files.",
            metavar="ADDRESS",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the result to this file.", dir_okay=False),
    ] = None,
    html: Html = None,
    markdown: Markdown = None,
) -> None:
    """Evaluate a loss over a file of any size.

    The exit status is 1 if a value is bad; the loss is NaN then.
    """
    # Imported here, because the help of other commands does not need NumPy's adapter.
    from unifiedloss import evaluation

    files = files_of(
        file,
        (targets, sample_weight, mask),
        (predictions_key, targets_key, sample_weight_key, mask_key),
        by,
    )
    check_reports(html, markdown, json)
    page: Page | None = None
    try:
        loss = unifiedloss.from_native(loss_text(spec))
        if rounding is not None:
            loss = loss.replace(rounding=rounding)
        with files.open() as source:
            print_text(f"{source}.", console=err)
            state = source.state()
        with _progress() as note:
            found = evaluation.evaluate(loss, files, rows=block, progress=note, cluster=dask)
        if html or markdown:
            from unifiedloss import reports

            with files.open() as source:
                source.check_unchanged(state)
                page = reports.evaluate_page(found, reports.data_of(source), reports.command())
    except UnifiedLossError as error:
        fail(error)
    _print(found)
    if json is not None:
        write_file(json, json_format.dumps(found.to_dict(), indent=1) + "\n")
    if page is not None:
        write_reports(page, html, markdown)
    raise typer.Exit(1 if found.total.bad else 0)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Draw a progress bar on a terminal; give the function that moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.completed} of {task.total} rows"),
        BarColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("rows", total=None)
        yield lambda done, rows: bars.update(task, completed=done, total=rows)


def _print(found: Evaluation) -> None:
    from rich.table import Table

    total = found.total
    print_text(repr(found.spec))
    for name, value in _cells(total).items():
        if value:
            print_text(f"{name:<12}{value}")
    if total.first_bad is not None:
        print_text(f"The first bad value: {total.first_bad}", "red")
    if found.groups is None:
        return
    print_text("")
    groups = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    groups.add_column("group")
    for name in _cells(total):
        groups.add_column(name, justify="right")
    for key, each in list(found.groups.items())[:_SHOWN]:
        groups.add_row(shortened(str(key)), *_cells(each).values())
    out.print(groups)
    left = len(found.groups) - _SHOWN
    if left > 0:
        print_text(f"{count(left, 'group')} more; --json FILE writes them all.")
    if found.spec.reduction == "mean":
        print_text(f"The mean of the groups' losses is {found.mean_of_groups:.9g}.")


def _cells(each: Summary) -> dict[str, str]:
    def number(x: float | None) -> str:
        return "" if x is None else f"{x:.9g}"

    return {
        "loss": number(each.loss),
        "perplexity": number(each.perplexity),
        "divisor": number(each.divisor),
        "positions": str(each.positions),
        "dropped": str(each.dropped),
        "bad": str(each.bad),
    }
