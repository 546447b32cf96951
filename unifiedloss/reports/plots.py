"""Draw the pictures of a report with matplotlib, as SVG that stands inside an HTML page.

The SVG takes its colours from the page, so it is readable in light and dark; its text is text; and
the same numbers give the same characters.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from unifiedloss.reports.model import Bars, Histogram, Lines, Map, Picture, Scatter, brief, clean

# matplotlib writes these colours, and the page's are put in their place.
INK, FAINT, BAD, BACK = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#01020{n}" for n in range(1, 7))
_OF_THE_PAGE = {
    INK: "currentColor",
    FAINT: "var(--line)",
    BAD: "var(--bad)",
    BACK: "var(--back)",
    **{colour: f"var(--series-{n})" for n, colour in enumerate(SERIES, 1)},
}
_MARKS = ("-", "--", "-.", ":")
_WIDTH = 4.6  # inches; at 72 points an inch the text is as large as that of the page
_LONGEST = 46  # characters of a name

_EQUAL, _ROUNDING = (0.55, 0.55, 0.55, 0.35), (0.23, 0.51, 0.85, 0.85)
_SLIGHT, _STRONG = (1.0, 0.72, 0.25), (0.85, 0.22, 0.05)

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "unifiedloss",
    "text.parse_math": False,  # "$" in a name is a dollar
    "font.size": 10,
    "axes.linewidth": 0.8,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw with matplotlib's defaults and ours, whatever the user has set."""
    defaults: dict[Any, Any] = {
        name: value
        for name, value in mpl.rcParamsDefault.items()
        if name.split(".")[0] in ("axes", "figure", "font", "grid", "hatch", "image", "legend",
                                  "lines", "markers", "patch", "path", "svg", "text", "xtick",
                                  "ytick")
    }  # fmt: skip
    with warnings.catch_warnings(), mpl.rc_context():
        # The browser has letters that matplotlib's font lacks.
        warnings.simplefilter("ignore")
        mpl.rcParams.update(defaults | _SETTINGS)
        yield


def svg(picture: Picture) -> str:
    """The picture as an ``<svg>`` element."""
    with _drawing():
        figure = Figure(figsize=(_WIDTH, 3.2))
        FigureCanvasSVG(figure)
        draw: Any = _DRAW[type(picture)]
        draw(figure, picture)
        out = io.StringIO()
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return _inline(out.getvalue(), picture.title)


def _inline(written: str, title: str) -> str:
    """Cut what belongs to a file of its own, and take the colours and the fonts of the page."""
    text = written[written.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*</defs>", "", text)
    for colour, of_the_page in _OF_THE_PAGE.items():
        text = text.replace(colour, of_the_page)
    # "font: 10px 'DejaVu Sans', ...": the family is the page's.
    text = re.sub(r"font: (?:[\w-]+ )*?([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    # Only names that something refers to, because a page holds several pictures. They are hashes of
    # what they name, so two pictures may share them.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(
        r' id="([^"]*)"', lambda found: found.group() if found.group(1) in used else "", text
    )
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    start = (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box.group(1)}" role="img" '
        f'aria-label="{title.translate(_QUOTED)}">'
    )
    text = start + text[text.index(">") + 1 :]
    return re.sub(r">\s*\n\s*<", ">\n<", text).strip()


_QUOTED = str.maketrans({"&": "&amp;", '"': "&quot;", "<": "&lt;", ">": "&gt;"})


def _short(name: str) -> str:
    name = clean(name).replace("\n", " ").replace("\t", " ")
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


# -------------------------------------------------------------------------- each kind of picture


def _scatter(figure: Figure, picture: Scatter) -> None:
    figure.set_size_inches(_WIDTH, 3.9)
    axes = figure.subplots()
    numbers = [*picture.x, *picture.y] or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    room = (high - low or abs(high) or 1.0) * 0.04
    ends = low - room, high + room
    axes.plot(ends, ends, color=INK, linewidth=0.9, alpha=0.55)
    axes.scatter(picture.x, picture.y, s=13, color=SERIES[0], alpha=0.6, linewidths=0)
    axes.set(xlim=ends, ylim=ends, xlabel=picture.x_label, ylabel=picture.y_label)
    axes.grid(visible=True, alpha=0.6)


def _histogram(figure: Figure, picture: Histogram) -> None:
    axes = figure.subplots()
    places = range(len(picture.counts))
    limit = len(picture.counts) if picture.limit is None else picture.limit
    colours = [SERIES[0] if place < limit else BAD for place in places]
    bars = axes.bar(places, picture.counts, color=colours, width=0.8)
    labels = [f"{count:,}" if count else "" for count in picture.counts]
    axes.bar_label(bars, labels, padding=2, fontsize=8.5, color=INK)
    if picture.limit is not None and picture.limit < len(picture.counts):
        axes.axvline(picture.limit - 0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    many = len(picture.labels) > 9
    axes.set_xticks(
        places, picture.labels, fontsize=8.5, rotation=45 if many else 0,
        ha="right" if many else "center", rotation_mode="anchor",
    )  # fmt: skip
    axes.set(xlabel=picture.x_label, ylabel="positions", ylim=(0, max(picture.counts) * 1.12 or 1))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=True, axis="y", alpha=0.6)


def _map(figure: Figure, picture: Map) -> None:
    ulps = np.asarray(picture.cells)
    down = len(ulps)
    figure.set_size_inches(_WIDTH, 1.25 if down == 1 else min(3.7, 1.5 + 2.2 * down / 24))
    colours = np.zeros((*ulps.shape, 4))
    colours[ulps == 0] = _EQUAL
    colours[(ulps > 0) & (ulps <= picture.limit)] = _ROUNDING
    beyond = ulps > picture.limit
    finite = np.isfinite(ulps)
    farthest = max(float(ulps[finite].max(initial=0.0)), picture.limit * 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.log(ulps / picture.limit) / math.log(farthest / picture.limit)
    share = np.clip(np.where(finite, share, 1.0), 0.0, 1.0)[..., None]
    colours[beyond, :3] = (np.array(_SLIGHT) * (1 - share) + np.array(_STRONG) * share)[beyond]
    colours[beyond, 3] = 1.0
    axes = figure.subplots()
    extent = (0.0, float(picture.x_extent), float(picture.y_extent), 0.0)
    axes.imshow(colours, aspect="auto", interpolation="none", extent=extent)
    axes.set(xlabel=picture.x_label, ylabel=picture.y_label)
    axes.spines[:].set_visible(True)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if not picture.y_label:
        axes.set_yticks([])


def _bars(figure: Figure, picture: Bars) -> None:
    names, series = [_short(name) for name in picture.names], list(picture.values.items())
    each = 0.34 + 0.19 * len(series)
    figure.set_size_inches(_WIDTH, 0.75 + each * len(names) + 0.28 * (len(series) > 1))
    axes = figure.subplots()
    begin, end = _ends(picture)
    height = 0.19 / each
    for number, (name, values) in enumerate(series):
        places = [place + (number - (len(series) - 1) / 2) * height * 1.05 + 0.13
                  for place in range(len(names))]  # fmt: skip
        start = begin if picture.log else 0.0
        # A bar that is not finite reaches to the end.
        stops = [end if v == math.inf else v if math.isfinite(v) else start for v in values]
        lengths = [max(stop - start, 0.0) if picture.log else stop - start for stop in stops]
        axes.barh(places, lengths, height, start, color=SERIES[number], label=name)
        for place, value, stop in zip(places, values, stops, strict=True):
            inside = value == math.inf
            axes.annotate(
                _number(value), (max(stop, start), place), xytext=(-4 if inside else 4, 0),
                textcoords="offset points", va="center", ha="right" if inside else "left",
                fontsize=8.5, color=BACK if inside else INK,
                bbox=None if inside else {"facecolor": BACK, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    top = 0.13 - (len(series) * height * 1.05) / 2
    for place, name in enumerate(names):
        axes.annotate(
            name, (0.0, place + top), xycoords=("axes fraction", "data"), xytext=(1, 2),
            textcoords="offset points", va="bottom", fontsize=9.5, annotation_clip=False,
        )  # fmt: skip
    if picture.log:
        axes.set_xscale("log")
        _name_powers(axes.xaxis, begin, end)
    axes.set(xlim=(begin, end), ylim=(len(names) - 0.45, -0.55), xlabel=picture.x_label, yticks=[])
    axes.grid(visible=True, axis="x", alpha=0.6)
    axes.spines["left"].set_visible(False)
    handles = list(axes.get_legend_handles_labels()[0])
    if picture.limit is not None:
        # Beside the bars only, because the names stand between them.
        tops = [place + top for place in range(len(names))]
        bottoms = [place + 0.26 - top for place in range(len(names))]
        handles.append(
            axes.vlines([picture.limit] * len(names), tops, bottoms, color=INK, linewidth=1.2,
                        label=f"{picture.limit_label}: {_number(picture.limit)}")
        )  # fmt: skip
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=9,
                      handlelength=1.3, columnspacing=1.2)  # fmt: skip


def _ends(picture: Bars) -> tuple[float, float]:
    """Where the axis begins and ends: beyond the smallest bar, and with room for a number."""
    limit = [] if picture.limit is None else [picture.limit]
    numbers = [v for each in picture.values.values() for v in each if math.isfinite(v)] + limit
    if not picture.log:
        least, longest = min([*numbers, 0.0]), max([*numbers, 0.0])
        room = 0.28 * (longest - least or 1.0)
        return least - (room if least < 0 else 0.0), longest + room
    powers = [math.log10(v) for v in numbers if v > 0] or [0.0]
    begin = max(-307, math.floor(min(powers) - 0.35))
    return 10.0**begin, 10.0 ** min(307.0, max(powers) + 0.28 * (max(powers) - begin))


def _name_powers(axis: Any, low: float, high: float) -> None:
    """Write the powers of ten on a logarithmic axis as numbers, at most six of them."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / 6))
    powers = [10.0**power for power in range(first, last + 1, step)]
    axis.set_major_locator(FixedLocator(powers))
    axis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
    axis.set_minor_locator(NullLocator())


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:.4g}" if abs(value) < 1e5 or not float(value).is_integer() else f"{value:.3g}"


def _lines(figure: Figure, picture: Lines) -> None:
    axes = figure.subplots()
    for number, (name, values) in enumerate(picture.values.items()):
        shown = np.asarray(values, np.float64)
        if picture.log:
            shown = np.where(shown > 0, shown, np.nan)
        shown = np.where(np.isfinite(shown), shown, np.nan)
        axes.plot(
            picture.steps[name], shown, color=SERIES[number % len(SERIES)],
            linewidth=max(1.1, 2.2 - 0.5 * number),
            linestyle=_MARKS[number % len(_MARKS)], label=_short(name),
            marker="o" if len(shown) <= 60 else None, markersize=2.6,
        )  # fmt: skip
    if picture.log:
        axes.set_yscale("log")
        positive = [v for values in picture.values.values() for v in values
                    if math.isfinite(v) and v > 0] or [1.0]  # fmt: skip
        low, high = min(positive) / 2, max(positive) * 2
        axes.set_ylim(low, high)
        _name_powers(axes.yaxis, low, high)
    axes.set(xlabel="step", ylabel=picture.y_label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(visible=True, alpha=0.6)
    figure.legend(loc="outside upper left", ncols=2, fontsize=9)


_DRAW = {Scatter: _scatter, Histogram: _histogram, Map: _map, Bars: _bars, Lines: _lines}
