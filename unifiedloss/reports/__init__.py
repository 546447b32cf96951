"""Reports that can be attached: one page in HTML, Markdown or JSON.

`page_of` makes the page of a result, and `html`, `markdown` and `json` write it. The page says what
a reviewer asks first: the verdict, the versions, the data with their hashes, and the command.
"""

from __future__ import annotations

from typing import Any

from unifiedloss.conformance.report import Report
from unifiedloss.errors import MissingBackendError, SpecTypeError
from unifiedloss.evaluation import Evaluation
from unifiedloss.interop.report import PortReport
from unifiedloss.reports.about import command
from unifiedloss.reports.as_html import check_installed, fragment
from unifiedloss.reports.as_html import document as html
from unifiedloss.reports.as_json import document as json
from unifiedloss.reports.as_markdown import document as markdown
from unifiedloss.reports.compare import compare_page
from unifiedloss.reports.conform import conform_page
from unifiedloss.reports.curves import curves
from unifiedloss.reports.evaluate import evaluate_page
from unifiedloss.reports.files import Data, data_of
from unifiedloss.reports.model import Page
from unifiedloss.reports.port import port_page
from unifiedloss.text import quoted

__all__ = [
    "Data",
    "Page",
    "check_installed",
    "command",
    "compare_page",
    "conform_page",
    "curves",
    "data_of",
    "evaluate_page",
    "fragment",
    "html",
    "json",
    "markdown",
    "page_of",
    "port_page",
]


def page_of(result: Any) -> Page:
    """The page of a port report, of a report of the conformance suite, or of an evaluation.

    Raises:
        SpecTypeError: the object is none of them.
    """
    if isinstance(result, PortReport):
        return port_page(result)
    if isinstance(result, Report):
        return conform_page(result)
    if isinstance(result, Evaluation):
        return evaluate_page(result)
    msg = f"There is no page of {quoted(result)}; pass a PortReport, a Report or an Evaluation."
    raise SpecTypeError(msg)


def notebook(result: Any) -> str | None:
    """The page of a result as notebooks show it; None where the extra "report" is missing."""
    try:
        return fragment(page_of(result))
    except MissingBackendError:
        return None
