"""The command ``compare``: one loss over saved arrays in every backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import unifiedloss
from unifiedloss.cli.files import (
    File,
    MaskFile,
    MaskKey,
    PredictionsKey,
    TargetsKey,
    WeightFile,
    WeightKey,
    files_of,
)
from unifiedloss.cli.output import app, err, example, fail, out, print_text
from unifiedloss.cli.reporting import Html, Json, Markdown, check_reports, write_reports
from unifiedloss.cli.specs import check_options, numbers, read_spec
from unifiedloss.errors import UnifiedLossError

if TYPE_CHECKING:
    from unifiedloss.conformance.compare import Line, Truth
    from unifiedloss.readers.files import Source
    from unifiedloss.reports import Page
    from unifiedloss.spec import Loss


@app.command(epilog=example("compare batch.npz --from-logits --backend numpy"))
def compare(
    file: File,
    targets: Annotated[
        Path | None,
        typer.Argument(metavar="TARGETS", help="A file of targets, if FILE does not hold them."),
    ] = None,
    *,
    sample_weight: WeightFile = None,
    mask: MaskFile = None,
    predictions_key: PredictionsKey = None,
    targets_key: TargetsKey = None,
    sample_weight_key: WeightKey = None,
    mask_key: MaskKey = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="LOSS",
            help="cross_entropy, binary_cross_entropy, mean_squared_error, huber or "
            "negative_log_likelihood. Default: cross_entropy.",
        ),
    ] = None,
    from_logits: Annotated[
        bool, typer.Option("--from-logits", help="The predictions are logits.")
    ] = False,
    epsilon: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Clip probabilities to [epsilon, 1 - epsilon]."),
    ] = None,
    axis: Annotated[int | None, typer.Option(metavar="AXIS", help="The class axis.")] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(help="One number per class, separated by commas.", metavar="W,W,..."),
    ] = None,
    ignore_index: Annotated[
        list[int] | None, typer.Option(metavar="LABEL", help="A label to ignore; may be repeated.")
    ] = None,
    pos_weight: Annotated[
        str | None,
        typer.Option(help="A number, or one per entry of the last axis.", metavar="Q[,Q...]"),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="The amount of label smoothing.")
    ] = None,
    reduction: Annotated[
        str | None, typer.Option(metavar="RULE", help="mean, sum or none.")
    ] = None,
    divisor: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="weights, label_weights, present, nonzero or all."),
    ] = None,
    on_empty: Annotated[
        str | None, typer.Option(metavar="RULE", help="nan, zero or error.")
    ] = None,
    rounding: Annotated[
        str | None,
        typer.Option(
            metavar="ROUNDING", help="native or exact. Default: both, whatever the spec says."
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            help="The spec as JSON, or a JSON file; replaces the loss and its options.",
            metavar="JSON",
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND", help="A backend; may be repeated. Default: all that are installed."
        ),
    ] = None,
    html: Html = None,
    markdown: Markdown = None,
    json: Json = None,
) -> None:
    """Run one loss on saved arrays in every backend.

    The exit status is 1 if a result lies outside the bound of the conformance suite, or if a
    result of exact mode is not exact.
    """
    from unifiedloss.conformance import compare as comparing
    from unifiedloss.conformance.compare_blocks import compare_files

    check_reports(html, markdown, json)
    page: Page | None = None
    weights = None if pos_weight is None else numbers(pos_weight)
    # Options that are not given are left out, because not every loss has every field.
    options: dict[str, Any] = {
        "loss": loss, "from_logits": from_logits or None, "epsilon": epsilon, "axis": axis,
        "class_weights": None if class_weights is None else numbers(class_weights),
        "ignore_index": ignore_index or None,
        "pos_weight": weights[0] if weights is not None and len(weights) == 1 else weights,
        "label_smoothing": label_smoothing, "reduction": reduction, "divisor": divisor,
        "on_empty": on_empty,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    try:
        if spec is None:
            check_options(given, [*options, "rounding"])
            chosen = unifiedloss.from_dict({"loss": "cross_entropy", "version": 1, **given})
        else:
            chosen = read_spec(spec, list(given))
        roundings = comparing.ROUNDINGS if rounding is None else (rounding,)
        chosen = chosen.replace(rounding=roundings[0])
        files = files_of(
            file,
            (targets, sample_weight, mask),
            (predictions_key, targets_key, sample_weight_key, mask_key),
        )
        with files.open() as source, err.status("running"):
            print_text(_size_of(source), console=err)
            truths, lines = compare_files(chosen, source, backend or None, roundings)
            if html or markdown or json:
                from unifiedloss import reports

                data = reports.data_of(source, chosen)
                page = reports.compare_page(chosen, data, truths, lines, reports.command())
    except UnifiedLossError as error:
        fail(error)
    _print_comparison(chosen, truths, lines)
    if page is not None:
        write_reports(page, html, markdown, json)
    measured = [line for line in lines if not line.absent]
    raise typer.Exit(0 if measured and all(line.within for line in measured) else 1)


def _size_of(source: Source) -> str:
    """Say what is read, and how much memory a comparison of it takes."""
    from unifiedloss.conformance import compare as comparing
    from unifiedloss.readers.memory import size

    needs = comparing.needs_of(source)
    free = "" if needs.free is None else f"; {size(needs.free)} are free"
    return f"{source}. Each backend takes about {size(needs.process)} of memory{free}."


def _print_comparison(spec: Loss, truths: dict[str, Truth], lines: list[Line]) -> None:
    from rich.table import Table

    sources = ", ".join(dict.fromkeys(truth.source for truth in truths.values()))
    seconds = sum(truth.seconds for truth in truths.values())
    print_text(f"{spec!r}, measured against: {sources} ({seconds:.2g} s)")
    if sources != "oracle":
        out.print("The oracle would take minutes for so many numbers.", highlight=False)
    table = Table()
    for column in ("backend", "rounding"):
        table.add_column(column, justify="left")
    for column in ("value", "ulps", "gradient equal", "gradient ulps", "within the bound", "ms"):
        table.add_column(column, justify="right")
    for line in lines:
        if line.error is None:
            table.add_row(
                line.backend, line.rounding, f"{line.value:.9g}", f"{line.value_ulps:.3g}",
                f"{100 * line.gradient_equal:.2f} %", f"{line.gradient_ulps:.3g}",
                "yes" if line.within else "NO", f"{line.milliseconds:.3g}",
            )  # fmt: skip
    out.print(table)
    for line in lines:
        if line.error is not None:
            name = line.backend if line.rounding is None else f"{line.backend}, {line.rounding}"
            print_text(f"{name}: {line.error}", None if line.absent else "red")
