"""Write a page as HTML: one file that needs nothing else, or a fragment for notebooks."""

from __future__ import annotations

import functools
from typing import Any

from unifiedloss.errors import MissingBackendError
from unifiedloss.reports.model import Content, Page, Picture, Section, Table, Text, clean


def check_installed() -> None:
    """Refuse to write HTML where what it needs is not installed.

    Raises:
        MissingBackendError: jinja2 or matplotlib is missing.
    """
    try:
        import jinja2  # noqa: F401 - only whether it is there
        import matplotlib as mpl  # noqa: F401
    except ModuleNotFoundError as error:
        msg = (
            f"a report in HTML needs the module {error.name!r}, which is not installed; install it "
            "with: pip install 'unifiedloss[report]'. Markdown and JSON need nothing."
        )
        raise MissingBackendError(msg) from error


def document(page: Page) -> str:
    """The page as an HTML file.

    Raises:
        MissingBackendError: jinja2 or matplotlib is missing.
    """
    return _rendered("page.html", page)


def fragment(page: Page) -> str:
    """The page as an element that can stand in another page.

    Raises:
        MissingBackendError: jinja2 or matplotlib is missing.
    """
    return _rendered("fragment.html", page)


def _rendered(template: str, page: Page) -> str:
    check_installed()
    written: str = _environment().get_template(template).render(page=page, blocks=_blocks)
    return written


@functools.cache
def _environment() -> Any:
    import jinja2
    from markupsafe import Markup

    from unifiedloss.reports import plots

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("unifiedloss.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["clean"] = clean
    made.filters["svg"] = lambda picture: Markup(plots.svg(picture))  # noqa: S704 - text is escaped
    return made


def _blocks(section: Section) -> list[tuple[str, list[Content]]]:
    """The content of a section by kinds: pictures in a row stand together, and so do paragraphs."""
    blocks: list[tuple[str, list[Content]]] = []
    for each in section.content:
        kind = _kind(each)
        if blocks and blocks[-1][0] == kind:
            blocks[-1][1].append(each)
        else:
            blocks.append((kind, [each]))
    return blocks


def _kind(content: Content) -> str:
    if isinstance(content, Picture):
        return "pictures"
    if isinstance(content, Table):
        return "tables"
    assert isinstance(content, Text)
    return "code" if content.code else "texts"
