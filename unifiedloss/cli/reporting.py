"""The options of commands that write a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unifiedloss.cli.output import check_folder, fail, write_file
from unifiedloss.errors import MissingBackendError

if TYPE_CHECKING:
    from unifiedloss.reports import Page

Html = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a report to attach, with pictures, to this HTML file.",
        dir_okay=False,
    ),
]
Markdown = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the report to this Markdown file.", dir_okay=False),
]
Json = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the report to this JSON file.", dir_okay=False),
]


def check_reports(html: Path | None, *others: Path | None) -> None:
    """Refuse reports that cannot be written, before the work that they tell of."""
    for path in (html, *others):
        check_folder(path)
    if html is not None:
        from unifiedloss.reports import check_installed

        try:
            check_installed()
        except MissingBackendError as error:
            fail(error)


def write_reports(
    page: Page, html: Path | None, markdown: Path | None, json: Path | None = None
) -> None:
    """Write a page to the files that are given."""
    from unifiedloss import reports

    for path, write in (
        (html, reports.html), (markdown, reports.markdown), (json, reports.json),
    ):  # fmt: skip
        if path is not None:
            write_file(path, write(page))
