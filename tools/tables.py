"""Write the generated parts of the pages: ``make tables``.

These are the outputs of all examples, the tables of docs/switching.md, and the dated table of
docs/conformance.md, from a run of the whole conformance suite in both roundings. ``make bench``
writes the tables of docs/performance.md, because they take hours.
"""

from __future__ import annotations

import datetime as dt
import re
import sys
import textwrap
from pathlib import Path

from tests import rewrite_page
from unifiedloss.conformance import Report, run_roundings

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "conformance.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def section(native: Report, exact: Report, date: str) -> str:
    """The part of docs/conformance.md between its markers, as Markdown."""
    names = ("backend", "version", "mode", "cases", "comparisons", "failures")
    lines = [
        f"Measured on {date}, on {native.machine}, with Python {native.python}.",
        "",
        f"| {' | '.join((*names, 'value ulps', 'gradient ulps'))} |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in native.rows:
        total = row.total
        lines.append(
            f"| {row.backend} | {row.version} | {row.mode} | {total.cases} | {total.comparisons} | "
            f"{len(row.failures)} | {total.value_ulps:.2f} | {total.gradient_ulps:.2f} |"
        )
    value = max(row.total.value_ulps for row in native.rows)
    gradient = max(row.total.gradient_ulps for row in native.rows)
    verdict = (
        f"The {native.comparisons:,} comparisons found {len(native.failures)} failures. The "
        f"largest distance of a loss is {value:.1f} ulps of its magnitude, and that of a gradient "
        f"element {gradient:.1f}; the bound is 12 or more. In exact mode, {exact.comparisons:,} "
        f"comparisons found {len(exact.failures)} results whose bits differ."
    )
    lines += ["", textwrap.fill(verdict, 100)]
    return "\n".join(lines)


def with_section(text: str, new: str) -> str:
    """The page with this text between its markers."""
    found = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)
    if not found.search(text):
        msg = f"{PAGE.name} needs the lines {BEGIN} and {END}."
        raise ValueError(msg)
    return found.sub(lambda _: f"\n{new}\n\n", text)


def main() -> None:
    """Run the suite, and write the pages if nothing failed."""
    reports = run_roundings(("native", "exact"))
    native, exact = reports["native"], reports["exact"]
    if not (native.ok and exact.ok):
        sys.exit(f"{native.summary()}\n{exact.summary()}\nThe pages are as they were.")
    if native.absent:
        sys.exit(f"The table needs every backend; missing: {native.absent}.")
    text = PAGE.read_text(encoding="utf-8")
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    PAGE.write_text(with_section(text, section(native, exact, today)), encoding="utf-8")
    for page in sorted(DOCS.glob("*.md")):
        rewrite_page.rewrite(page)


if __name__ == "__main__":
    main()
