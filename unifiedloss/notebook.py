"""How notebooks show a result that has a page."""

from __future__ import annotations

import importlib


class Shown:
    """A result that a notebook shows as its page."""

    def _repr_html_(self) -> str | None:
        """The page as HTML; None without the extra "report", so that notebooks show the text."""
        reports = importlib.import_module("unifiedloss.reports")
        made: str | None = reports.notebook(self)
        return made
