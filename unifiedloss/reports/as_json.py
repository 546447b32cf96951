"""Write a page as JSON, with all digits of its numbers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from unifiedloss.reports.model import Content, Page, Picture, Table, Text

VERSION = 1
"""The version that `document` writes."""


def document(page: Page) -> str:
    """The page as JSON text. Numbers that are not finite are text, as JSON has none."""
    written = {
        "version": VERSION,
        "title": page.title,
        "verdict": page.verdict,
        "good": page.good,
        "about": dict(page.about),
        "data": [each._asdict() for each in page.arrays],
        "command": page.command,
        "sections": [
            {"title": each.title, "content": [_content(one) for one in each.content]}
            for each in page.sections
        ],
    }
    return json.dumps(_plain(written), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _content(content: Content) -> dict[str, Any]:
    if isinstance(content, Text):
        return {"kind": "code" if content.code else "text", "text": content.text}
    if isinstance(content, Table):
        return {"kind": "table", "rows": _rows(content), "more": content.more}
    assert isinstance(content, Picture)
    return {"kind": type(content).__name__.lower(), **dataclasses.asdict(content)}


def _rows(table: Table) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
