"""The command ``why``: which rule makes two losses differ on a saved batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import unifiedloss
from unifiedloss.cli.files import File, PredictionsKey, TargetsFile, TargetsKey, files_of
from unifiedloss.cli.output import app, err, example, fail, print_text
from unifiedloss.cli.reporting import Html, Json, Markdown, check_reports, write_reports
from unifiedloss.cli.specs import LOSS, loss_text
from unifiedloss.errors import UnifiedLossError

if TYPE_CHECKING:
    from unifiedloss.readers.files import Files


@app.command(
    epilog=example(
        'why "torch.nn.CrossEntropyLoss()" "torch.nn.CrossEntropyLoss(label_smoothing=0.1)" '
        "batch.npz"
    )
)
def why(
    a: Annotated[str, typer.Argument(metavar="A", help=LOSS)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another loss.")],
    file: File,
    file_b: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE_B",
            help="The predictions and targets of B, if it has its own: the same batch in another "
            "layout, or what the ported model computed.",
        ),
    ] = None,
    *,
    targets: TargetsFile = None,
    targets_b: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file of the targets of B, likewise.")
    ] = None,
    predictions_key: PredictionsKey = None,
    targets_key: TargetsKey = None,
    rows: Annotated[
        int | None,
        typer.Option(
            metavar="ROWS", help="Read so many rows. Default: 64 MiB of predictions.", min=1
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also tell the rules that this batch does not see.")
    ] = False,
    html: Html = None,
    markdown: Markdown = None,
    json: Json = None,
) -> None:
    """Tell which rule makes two losses differ on a batch.

    The exit status is 1 if they differ by more than rounding.
    """
    keys = (predictions_key, targets_key)
    check_reports(html, markdown, json)
    try:
        given = _arrays(files_of(file, (targets,), keys), rows)
        second: dict[str, Any] = {}
        if file_b is not None or targets_b is not None:
            second = _arrays(files_of(file_b or file, (targets_b,), keys), rows)
        with err.status("running"):
            report = unifiedloss.port_report(
                loss_text(a),
                loss_text(b),
                **given,
                predictions_b=second.get("predictions"),
                targets_b=second.get("targets"),
            )
    except UnifiedLossError as error:
        fail(error)
    print_text(f"{report.verdict}\n\n{report}" if every else report.brief)
    if html or markdown or json:
        from unifiedloss import reports

        page = reports.port_page(report, command=reports.command())
        write_reports(page, html, markdown, json)
    raise typer.Exit(0 if report.same else 1)


def _arrays(files: Files, rows: int | None) -> dict[str, Any]:
    """The arrays of a call: all rows, or the first."""
    with files.open() as source:
        arrays = source.first_rows(rows)
        most = len(arrays["predictions"])
        first = "" if most == source.rows else f" Of these the first {most} rows are read."
        print_text(f"{source}.{first}", console=err)
    return arrays
