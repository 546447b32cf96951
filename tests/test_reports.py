"""Reports: the three formats, what a reviewer asks first, and how pages look in a browser."""

from __future__ import annotations

import dataclasses
import hashlib
import html.parser
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import markdown as markdown_reader
import numpy as np
import pytest
from typer.testing import CliRunner

import unifiedloss as ul
import unifiedloss.conformance
from tests import browser as browsers
from tests.browser import Browser
from tests.conftest import all_required
from unifiedloss import reports
from unifiedloss.cli import app
from unifiedloss.conformance import Report, Row
from unifiedloss.conformance.compare import Line, Truth
from unifiedloss.conformance.report import Failure, Tally
from unifiedloss.described import described
from unifiedloss.errors import MissingBackendError, ShapeError, SpecTypeError
from unifiedloss.evaluation import evaluate
from unifiedloss.evaluation.sums import Counts
from unifiedloss.interop.report import PortReport
from unifiedloss.readers.files import Files
from unifiedloss.reports import as_markdown, plots
from unifiedloss.reports import files as of_files
from unifiedloss.reports.distances import pictures
from unifiedloss.reports.model import Bars, Histogram, Map, Page, Picture, Scatter, Table, clean

ROOT = Path(__file__).resolve().parents[1]
EVIL = "<script>alert(1)</script>.npz"
GROUPS = (
    "</svg><script>alert(2)</script>",
    "$x$ & <b>y</b>",
    "a|b `c` \x01 *d* _e_",
    "https://x.y @z",
)

RIGHT = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)
WRONG = RIGHT.replace(label_smoothing=0.1, divisor="all")


def batch() -> tuple[Any, Any]:
    """Logits and labels, some of which are ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(7, size=300)
    labels[rng.random(300) < 0.2] = -100
    return (rng.normal(size=(300, 7)) * 3).astype(np.float32), labels


def port(b: Any = WRONG) -> PortReport:
    """A port report on this batch."""
    report: PortReport = ul.port_report(RIGHT, b, *batch())
    return report


def conformance() -> Report:
    """A report of the suite with a failed row, an error and an absent backend."""
    failure = Failure("a <b>case</b>", "huber", ("the loss is 1, not 2",), "import x\nx.y('<i>')\n")
    good = Row("numpy", "2.4", "eager", Tally(90, 120, 0, 0.5, 1.25), left_out=3, seconds=1.5)
    bad = Row("torch", "2.13", "eager", Tally(80, 100, 1, 40.5, float("inf")), failures=[failure])
    return Report([good, bad], {"jax": "it died"}, {"keras": "not installed"}, unifiedloss="0.1.0")


def evil_file(folder: Path) -> Path:
    """A file whose path is a script; "/" makes a folder of a part of it."""
    path = folder / EVIL
    path.parent.mkdir()
    logits, labels = batch()
    groups = np.array(GROUPS)[np.arange(300) % 4]
    np.savez(path, predictions=logits, targets=labels, group=groups)
    return path


def evaluation_page(folder: Path) -> Page:
    """The page of an evaluation by groups whose names are markup."""
    files = Files(evil_file(folder), by="group")
    with files.open() as source:
        data = reports.data_of(source)
    command = f"unifiedloss evaluate LOSS '{files.main}' --by group"
    return reports.evaluate_page(evaluate(RIGHT, files), data, command)


def comparison_page() -> Page:
    """The page of a comparison with a result that does not hold, and a missing backend."""
    lines = [
        Line("numpy", "native", 1.25, 0.0, 0.5, 0.4, within=True, milliseconds=0.1),
        Line("numpy", "exact", 1.25, 0.0, 1.0, 0.0, within=True, milliseconds=0.2),
        Line("torch", "native", 1.5, 2e6, 0.0, 3e6, within=False, milliseconds=0.3),
        Line("jax", error="jax is not installed", absent=True),
    ]
    data = reports.Data((described("predictions", batch()[0]),), Counts(300, 60))
    truth = Truth("oracle", np.zeros(1), np.zeros(1), 0.1)
    return reports.compare_page(RIGHT, data, {"native": truth}, lines, "unifiedloss compare")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """One page of each kind."""
    steps = np.exp(-np.arange(40) / 9)
    curves = {"torch": steps, "<i>jax</i>": steps * (1 + 1e-6), "numpy": steps}
    return {
        "port": reports.port_page(port(), curves=curves, command=f"unifiedloss why A B '{EVIL}'"),
        "right": reports.port_page(port(RIGHT)),
        "conform": reports.conform_page(conformance(), "unifiedloss conform"),
        "evaluate": evaluation_page(tmp_path_factory.mktemp("evaluate")),
        "compare": comparison_page(),
    }


KINDS = ("port", "right", "conform", "evaluate", "compare")


@pytest.fixture(scope="module")
def written(pages: dict[str, Page]) -> dict[str, str]:
    """The pages as HTML."""
    return {name: reports.html(page) for name, page in pages.items()}


def table(page: Page, section: str) -> list[dict[str, Any]]:
    """The first table of a section, as JSON has it."""
    read = json.loads(reports.json(page))
    (found,) = (each for each in read["sections"] if each["title"] == section)
    rows: list[dict[str, Any]]
    rows = next(each["rows"] for each in found["content"] if each["kind"] == "table")
    return rows


# ----------------------------------------------------------------------------------- what they say


def test_verdicts(pages: dict[str, Page]) -> None:
    """Each page says the result in one line, and whether it is good."""
    assert {name: (page.verdict, page.good) for name, page in pages.items()} == {
        "port": (
            (
                "The losses differ in several rules, which close the gap together: "
                "label_smoothing, divisor."
            ),
            False,
        ),
        "right": ("The losses are the same on these tensors: only rounding is left.", True),
        "conform": ("1 of 2 rows failed: torch, eager; not checked to the end: jax.", False),
        "evaluate": (pages["evaluate"].verdict, True),
        "compare": ("1 of 3 results does not hold: torch, native.", False),
    }
    loss = ul.cross_entropy_loss(*batch(), from_logits=True, ignore_index=-100)
    said = float(pages["evaluate"].verdict.split()[3])
    assert said == pytest.approx(float(loss), rel=1e-6)


def test_a_page_says_what_a_reviewer_asks(pages: dict[str, Page]) -> None:
    """Versions, the machine, positions, the data with their hashes, the date and the command."""
    read = json.loads(reports.json(pages["port"]))
    about = read["about"]
    assert about["unifiedloss"] == ul.__version__
    assert about["numpy"] == np.__version__
    labels = batch()[1]
    assert about["positions"] == f"300, of which {(labels == -100).sum()} dropped"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", about["date"])
    hashes = {each["name"]: each["sha256"] for each in read["data"]}
    lines = hashlib.sha256(b"int64 (300,)\n" + labels.tobytes()).hexdigest()
    assert hashes["targets"] == lines
    assert read["data"][0]["shape"] == [300, 7]
    assert read["command"] == f"unifiedloss why A B '{EVIL}'"


def test_positions_that_only_one_loss_drops() -> None:
    """The page tells the counts of both losses where they differ."""
    logits, labels = batch()
    report = ul.port_report(RIGHT, RIGHT.replace(ignore_index=3), logits, np.abs(labels) % 7)
    page = reports.port_page(report)
    assert page.about["positions of a"] == "300, of which none dropped"
    dropped = int((np.abs(labels) % 7 == 3).sum())
    assert page.about["positions of b"] == f"300, of which {dropped} dropped"


def test_versions_of_the_libraries_of_the_losses() -> None:
    """A loss of torch brings the version of torch, and no other."""
    report = dataclasses.replace(port(), a="torch.nn.CrossEntropyLoss()", b="tf.keras.losses.x")
    about = reports.port_page(report).about
    installed = importlib.metadata.packages_distributions()
    for module in ("torch", "keras"):
        for package in installed.get(module, ())[:1]:
            assert about[package] == importlib.metadata.version(package)
    assert "jax" not in about
    assert any("tensorflow" in name for name in about) == ("tensorflow" in installed)


def test_numbers_of_a_port_report() -> None:
    """JSON has the numbers of the report, with all their digits."""
    report = port()
    page = reports.port_page(report)
    assert [row["value"] for row in table(page, "The two losses")] == [
        float(str(report.value_a)), float(str(report.value_b)),
    ]  # fmt: skip
    distance = table(page, "The distance")
    assert distance[0]["distance in ulps of float32"] == report.gap.value
    assert distance[1]["distance in ulps of float32"] == report.gap.gradient
    rules = {row["rule"]: row["gap left, loss"] for row in table(page, "Which rule closes the gap")}
    assert rules == {each.rule: each.gap.value for each in report.attempts if each.seen}
    assert set(rules) == {"label_smoothing", "divisor"}


def test_numbers_of_the_other_pages(pages: dict[str, Page]) -> None:
    """JSON has the numbers of each; those that are not finite are text."""
    rows = table(pages["conform"], "The rows")
    assert [row["gradient, ulps"] for row in rows] == [1.25, "inf"]
    assert [row["compared"] for row in rows] == [120, 100]
    groups = table(pages["evaluate"], "By group")
    assert {row["group"] for row in groups} == set(GROUPS)
    assert sum(row["positions"] for row in groups) == 300
    assert [row["ulps"] for row in table(pages["compare"], "The backends")] == [0.0, 0.0, 2e6]


def test_two_errors_and_a_finite_loss_beside_one() -> None:
    """A page is made where a loss is an error, or both are."""
    logits, labels = batch()
    other = RIGHT.replace(ignore_index=None)
    one = reports.port_page(ul.port_report(RIGHT, other, logits, labels))
    assert not one.good
    assert one.about["positions of b"] == "300, of which none dropped"
    both = reports.port_page(ul.port_report(other, other, logits, labels))
    assert not both.good
    assert "Both losses are errors" in both.verdict
    for page in (one, both):
        assert balanced(reports.html(page))


def test_losses_on_tensors_of_their_own() -> None:
    """A second side with other numbers has hashes of its own, and the page is not good."""
    logits, labels = batch()
    page = reports.port_page(
        ul.port_report(RIGHT, RIGHT, logits, labels, predictions_b=logits * np.float32(1.01))
    )
    assert [each.name for each in page.arrays] == ["predictions", "targets", "predictions of b"]
    assert page.arrays[0].sha256 != page.arrays[2].sha256
    assert not page.good
    assert page.verdict.endswith("on the same tensors, but those of a and b differ.")
    assert "With its own tensors b differs: values differ by" in reports.markdown(page)


def test_bad_values_of_an_evaluation(tmp_path: Path) -> None:
    """The page of an evaluation without a loss says why."""
    np.savez(tmp_path / "bad.npz", predictions=np.zeros((3, 2)), targets=np.array([0, 5, 1]))
    page = reports.evaluate_page(evaluate(RIGHT, Files(tmp_path / "bad.npz")))
    assert not page.good
    assert page.verdict.startswith("There is no loss, because 1 value is bad.")
    assert json.loads(reports.json(page))["data"][0]["sha256"] is None
    assert "not computed" in reports.markdown(page)


def test_page_of_an_unknown_object() -> None:
    """Only results have a page."""
    with pytest.raises(SpecTypeError, match="no page"):
        reports.page_of(3)


# ------------------------------------------------------------------------------------------- hashes


def test_hash_depends_on_the_numbers_alone(tmp_path: Path) -> None:
    """The memory layout, the byte order, the file and its blocks do not change a hash."""
    logits, labels = batch()
    expected = described("", logits).sha256
    assert described("", logits.astype(">f4")).sha256 == expected
    assert described("", np.asfortranarray(logits)).sha256 == expected
    assert described("", logits.astype(np.float64)).sha256 != expected
    assert described("", logits.reshape(7, 300)).sha256 != expected
    assert described("", np.array([None])).sha256 is None
    np.savez(tmp_path / "a.npz", predictions=logits, targets=labels)
    with Files(tmp_path / "a.npz").open() as source:
        data = reports.data_of(source, RIGHT)
    assert data.arrays[0].sha256 == expected
    assert data.counts == Counts(300, int((labels == -100).sum()))


def test_large_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a hash the page says why there is none."""
    monkeypatch.setattr(of_files, "_READ", 1000)
    np.savez(tmp_path / "a.npz", predictions=batch()[0], targets=batch()[1])
    with Files(tmp_path / "a.npz").open() as source:
        data = reports.data_of(source, RIGHT)
    assert [each.sha256 for each in data.arrays] == [None, None]
    assert data.counts is None
    assert data.why_no_hash == "not computed: they have 10.8 kB"


# --------------------------------------------------------------------------------------------- HTML


class Tags(html.parser.HTMLParser):
    """Collects the elements of a page, and what is wrong with their nesting."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element of SVG that is closed at once."""
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def tags(text: str) -> Tags:
    """Read a page."""
    found = Tags()
    found.feed(text)
    found.close()
    return found


def balanced(text: str) -> bool:
    """Whether every element is closed where it must be."""
    found = tags(text)
    return not found.wrong and not found.open and len(found.seen) > 10


def test_imbalance_is_found() -> None:
    """The check of the nesting can fail."""
    row = "<p>a</p>" * 20
    assert balanced(row)
    assert not balanced(f"{row}<b>")
    assert not balanced(f"{row}<p><b></p></b>")


@pytest.mark.parametrize("kind", KINDS)
def test_html_stands_alone(kind: str, written: dict[str, str]) -> None:
    """A page is well-formed, has no script, and refers to nothing outside of it."""
    text = written[kind]
    assert balanced(text)
    found = tags(text)
    names = {tag for tag, _ in found.seen}
    assert not names & {"script", "link", "img", "iframe", "object", "b", "i"}
    for tag, attributes in found.seen:
        for name in ("src", "href", "xlink:href", "action", "data"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/png;")), (tag, address)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\((?!#)|@import", text)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_referred_to_exist(kind: str, written: dict[str, str]) -> None:
    """Clip paths and markers of the pictures are found."""
    ids = set(re.findall(r' id="([^"]*)"', written[kind]))
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', written[kind]))
    assert used <= ids


def test_pictures_take_the_colours_of_the_page(written: dict[str, str]) -> None:
    """No colour of matplotlib's is left in the pictures, and their text is text."""
    for text in written.values():
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            assert not re.search(r"#[0-9a-f]{6}", re.sub(r"data:[^\"]*", "", svg))
            assert "<text" in svg
            assert "DejaVu" not in svg


def test_names_stay_names(pages: dict[str, Page], written: dict[str, str]) -> None:
    """A file and groups whose names are markup stand in the page as text."""
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.npz" in written["port"]
    assert "&lt;/svg&gt;&lt;script&gt;alert(2)&lt;/script&gt;" in written["evaluate"]
    assert "$x$ &amp; &lt;b&gt;y&lt;/b&gt;" in written["evaluate"]
    assert "\x00" not in written["evaluate"] + reports.markdown(pages["evaluate"])
    assert clean("a\x00b\u202ec\n") == "a\\x00b\\u202ec\n"


@pytest.mark.parametrize("kind", KINDS)
def test_same_input_same_page(kind: str, pages: dict[str, Page], written: dict[str, str]) -> None:
    """The same page gives the same characters, and nothing but the date depends on the time."""
    later = {**pages[kind].about, "date": "2000-01-01 00:00 UTC"}
    text = reports.html(dataclasses.replace(pages[kind], about=later))
    assert text.replace(later["date"], pages[kind].about["date"]) == written[kind]


def test_same_report_made_again(pages: dict[str, Page]) -> None:
    """A second run of both losses gives the same page."""
    again = reports.port_page(port(RIGHT))
    fixed = {**again.about, "date": pages["right"].about["date"]}
    again = dataclasses.replace(again, about=fixed)
    assert reports.html(again) == reports.html(pages["right"])
    assert reports.json(again) == reports.json(pages["right"])


def test_settings_of_the_user_do_not_matter(pages: dict[str, Page]) -> None:
    """A style that the user has set for matplotlib changes no picture, and stays."""
    import matplotlib as mpl

    picture = next(
        each for section in pages["port"].sections for each in section.content
        if isinstance(each, Bars)
    )  # fmt: skip
    before = plots.svg(picture)
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30, "text.color": "green"}):
        assert plots.svg(picture) == before
        assert mpl.rcParams["font.size"] == 30


# --------------------------------------------------------------------------------------- notebooks


def test_notebooks_show_the_page() -> None:
    """Results have `_repr_html_`: the body of the page, with styles that stay inside it."""
    results: list[Any] = [port(RIGHT), conformance()]
    for result in results:
        text = result._repr_html_()
        assert text.startswith('<div class="ul-report">')
        assert balanced(text)
        assert reports.page_of(result).verdict in text
        style = re.sub(r"@media[^{]*", "", text[text.index("<style>") + 7 : text.index("</style>")])
        selectors = re.findall(r"([^{};]+)\{", style)
        assert selectors
        assert all(
            part.strip().startswith(".ul-report")
            for each in selectors if each.strip() for part in each.split(",")
        )  # fmt: skip


def test_without_the_extra(pages: dict[str, Page], monkeypatch: pytest.MonkeyPatch,
                           tmp_path: Path) -> None:  # fmt: skip
    """HTML names the extra; Markdown and JSON are written; notebooks show the text."""
    for module in ("jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingBackendError, match=rf"{module}.*'unifiedloss\[report\]'"):
            reports.html(pages["right"])
        monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert port(RIGHT)._repr_html_() is None
    assert reports.markdown(pages["right"])
    assert reports.json(pages["right"])
    # The command refuses before it reads the file, which does not exist.
    done = CliRunner().invoke(
        app, ["evaluate", "ul.MeanSquaredError()", str(tmp_path / "none.npz"),
              "--html", str(tmp_path / "a.html")]
    )  # fmt: skip
    assert done.exit_code == 2
    assert "unifiedloss[report]" in done.output.replace("\n", "")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = " ".join(extras["optional-dependencies"]["report"])
    assert "jinja2" in wanted
    assert "matplotlib" in wanted


# ----------------------------------------------------------------------------------------- Markdown


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_reads_as_the_page(kind: str, pages: dict[str, Page]) -> None:
    """A reader of Markdown finds the sections and tables, and no element that is not ours."""
    text = reports.markdown(pages[kind])
    read = tags(markdown_reader.markdown(text, extensions=["tables", "fenced_code"]))
    names = [tag for tag, _ in read.seen]
    contents = [each for section in pages[kind].sections for each in section.content]
    tables = sum(isinstance(each, Table | Histogram) for each in contents)
    assert names.count("table") == tables + 1 + bool(pages[kind].arrays)
    assert names.count("h2") == len(pages[kind].sections)
    allowed = {
        "h1",
        "h2",
        "p",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "code",
    }
    assert set(names) <= allowed
    assert "\n\n**" in text


@pytest.mark.parametrize("kind", KINDS)
def test_markdown_tables_are_aligned(kind: str, pages: dict[str, Page]) -> None:
    """All lines of a table have one width, and as many cells."""
    blocks = [
        block.splitlines()
        for block in reports.markdown(pages[kind]).split("\n\n")
        if block.startswith("|")
    ]
    assert blocks
    for lines in blocks:
        assert len({len(line) for line in lines}) == 1, lines
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, lines


def test_markdown_escapes() -> None:
    """What would be markup, a link or a mention is text."""
    for name in (*GROUPS, "- a", "1. b", "# c", "---", "[x](http://y)", "__all__", "<img src=x>"):
        made = as_markdown._paragraph(name)
        read = tags(markdown_reader.markdown(made, extensions=["tables"]))
        assert {tag for tag, _ in read.seen} <= {"p"}, (name, made)
    assert as_markdown.escaped("label_smoothing 0.1") == "label_smoothing 0.1"
    assert "@z" not in as_markdown.escaped("@z")
    fenced = as_markdown._fenced("```\n<script>", "python")
    assert fenced.startswith("````python\n")


# ----------------------------------------------------------------------------------------- pictures


def shown(a: Any, b: Any, ulps: Any) -> tuple[Scatter, Histogram, Map]:
    """The three pictures of two arrays."""
    scatter, histogram, positions = pictures(a, b, ulps, 64, "ulps of float32")
    assert isinstance(scatter, Scatter)
    assert isinstance(histogram, Histogram)
    assert isinstance(positions, Map)
    return scatter, histogram, positions


def test_pictures_of_many_positions() -> None:
    """Points are thinned and cells merged, and what is farthest stays."""
    rng = np.random.default_rng(1)
    a = rng.random((500, 300))
    ulps = np.zeros(a.shape)
    ulps[123, 45], ulps[400, 299], ulps[3, 3] = 1e9, np.inf, 64.0
    scatter, histogram, positions = shown(a, a + ulps.clip(0, 9), ulps)
    assert len(scatter.x) <= 800
    assert a[123, 45] in scatter.x
    assert sum(histogram.counts) == a.size
    counts = dict(zip(histogram.labels, histogram.counts, strict=True))
    assert counts["0"] == a.size - 3
    assert counts["≤64"] == 1
    assert counts["∞"] == 1
    assert histogram.labels[(histogram.limit or 0) - 1] == "≤64"
    assert len(histogram.labels) <= 14
    cells = np.array(positions.cells)
    assert cells.shape == (64, 96)
    assert sorted(cells[cells > 0]) == [64.0, 1e9, np.inf]
    assert (positions.x_extent, positions.y_extent) == (300, 500)


def test_pictures_of_few_positions() -> None:
    """One position, a strip, a long strip that is broken into lines, and none at all."""
    one = np.array(1.5)
    assert shown(one, one, np.zeros(()))[2].cells == ((0.0,),)
    strip = np.arange(5.0)
    assert shown(strip, strip, strip)[2].cells == ((0.0, 1.0, 2.0, 3.0, 4.0),)
    line = np.arange(1000.0)
    cells = np.array(shown(line, line, line)[2].cells)
    assert np.array_equal(cells.ravel()[:1000], line)
    assert np.isnan(cells.ravel()[1000:]).all()
    assert pictures(np.zeros(0), np.zeros(0), np.zeros(0), 64, "") == []
    infinite = np.full(3, np.inf)
    scatter, histogram, _ = shown(infinite, np.zeros(3), infinite)
    assert scatter.x == ()
    assert histogram.counts[-1] == 3


@pytest.mark.parametrize(
    "values", [(0.0, 0.0), (-1.5, 2.0), (float("inf"), 1.0), (float("nan"), 1e-300), (1e300, 1.0)]
)
@pytest.mark.parametrize("log", [False, True])
def test_bars_of_any_number(values: tuple[float, float], *, log: bool) -> None:
    """Zeros, negative, huge and infinite numbers are drawn, and each is written."""
    picture = Bars("t", "n", ("a", "b"), {"x": values}, "u", 64.0, "limit", log=log)
    text = plots.svg(picture)
    assert text.count("not finite") == sum(not np.isfinite(v) for v in values)
    assert ">a</text>" in text


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_the_numbers_of_pictures(kind: str, pages: dict[str, Page]) -> None:
    """JSON names each picture, and has what it shows."""
    read = json.loads(reports.json(pages[kind]))
    contents = [each for section in pages[kind].sections for each in section.content]
    titles = [each.title for each in contents if isinstance(each, Picture)]
    assert titles
    found = [each for section in read["sections"] for each in section["content"]]
    assert [each["title"] for each in found if "title" in each] == titles


def test_curves() -> None:
    """Equal curves are said to be; others have their distance; bad ones are refused."""
    steps = list(np.linspace(2, 1, 5000))
    same = reports.curves({"a": steps, "b": list(steps)})
    assert any("to the last bit" in getattr(each, "text", "") for each in same)
    other = [*steps]
    other[1234] += 0.25
    table_ = reports.curves({"a": steps, "b": other})[-1]
    assert isinstance(table_, Table)
    assert table_.rows[1][-2:] == (pytest.approx(0.25), 1234)
    shorter = reports.curves({"a": steps, "b": [float("nan")]})[-1]
    assert isinstance(shorter, Table)
    assert shorter.rows[1][-2] == float("inf")
    for bad in ([], [[1.0]]):
        with pytest.raises(ShapeError, match="'b'"):
            reports.curves({"a": steps, "b": bad})


# ------------------------------------------------------------------------------------- command line


def test_why_writes_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three formats are written, and nothing else; the statuses are those without a report."""
    path = evil_file(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/bin/unifiedloss", "why", "a b", str(path)])
    names = {"--html": "r.html", "--markdown": "r.md", "--json": "r.json"}
    options = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    a = "ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)"
    b = "ul.CrossEntropyLoss(from_logits=True, ignore_index=-100, label_smoothing=0.1)"
    done = CliRunner().invoke(app, ["why", a, b, str(path), *options])
    assert done.exit_code == 1, done.output
    assert CliRunner().invoke(app, ["why", a, a, str(path)]).exit_code == 0
    assert {each.name for each in tmp_path.iterdir()} == {*names.values(), path.parent.name}
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["verdict"] == "The losses differ, and one rule closes the gap: label_smoothing."
    assert read["command"] == f"unifiedloss why 'a b' '{path}'"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in (tmp_path / "r.html").read_text()
    assert read["verdict"] in (tmp_path / "r.md").read_text()


def test_evaluate_and_compare_write_reports(tmp_path: Path) -> None:
    """Their reports have the numbers that they print, and the JSON of evaluate stays as it was."""
    path = evil_file(tmp_path)
    loss = "ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)"
    given = ["--html", str(tmp_path / "e.html"), "--json", str(tmp_path / "e.json")]
    done = CliRunner().invoke(app, ["evaluate", loss, str(path), "--by", "group", *given])
    assert done.exit_code == 0, done.output
    read = json.loads((tmp_path / "e.json").read_text())
    assert "verdict" not in read
    assert read["spec"]["loss"] == "cross_entropy"
    assert f"The loss is {read['loss']:.9g}" in (tmp_path / "e.html").read_text()
    done = CliRunner().invoke(
        app, ["compare", str(path), "--spec", RIGHT.to_json(), "--backend", "numpy",
              "--json", str(tmp_path / "c.json"), "--markdown", str(tmp_path / "c.md")]
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    read = json.loads((tmp_path / "c.json").read_text())
    assert read["good"]
    assert read["about"]["positions"] == f"300, of which {(batch()[1] == -100).sum()} dropped"
    assert "| numpy" in (tmp_path / "c.md").read_text()


def test_conform_writes_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON of conform is still a report that can be read, and a failure has the status 1."""
    monkeypatch.setattr(unifiedloss.conformance, "run", lambda *_, **__: conformance())
    done = CliRunner().invoke(
        app, ["conform", "--backend", "numpy", "--json", str(tmp_path / "c.json"),
              "--html", str(tmp_path / "c.html"), "--markdown", str(tmp_path / "c.md")]
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    report = Report.from_dict(json.loads((tmp_path / "c.json").read_text()))
    page = reports.conform_page(report)
    assert page.verdict in (tmp_path / "c.html").read_text()
    assert page.verdict in (tmp_path / "c.md").read_text()


@pytest.mark.parametrize("option", ["--html", "--markdown", "--json"])
def test_reports_that_cannot_be_written(option: str, tmp_path: Path) -> None:
    """A folder that is not there is refused before the files are read."""
    target = str(tmp_path / "no" / "r")
    done = CliRunner().invoke(app, ["why", "a", "b", str(tmp_path / "none.npz"), option, target])
    assert done.exit_code == 2
    assert "there is no folder" in done.output.replace("\n", " ")


def test_help_loads_no_library_of_pages() -> None:
    """The command line imports jinja2 and matplotlib only to write HTML."""
    code = (
        "import sys; from unifiedloss import cli, reports; "
        "print([m for m in ('jinja2', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests."""
    program = browsers.found()
    if program is None:
        why = f"no browser is on the PATH ({', '.join(browsers.NAMES)}); make browser installs one"
        if all_required():
            pytest.fail(f"UNIFIEDLOSS_REQUIRE_ALL is set, and {why}", pytrace=False)
        pytest.skip(why)
    with Browser(program) as running:
        yield running


@pytest.fixture(scope="module")
def folder(written: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as files."""
    made = tmp_path_factory.mktemp("pages")
    for name, text in written.items():
        (made / f"{name}.html").write_text(text, encoding="utf-8")
    return made


OVERFLOW = """
(() => {
  const out = [];
  const clipped = e => e.closest('.table, pre') !== null;
  for (const e of document.querySelectorAll('body *')) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)
        && (!clipped(e) || e.matches('.table, pre')))
      out.push(e.tagName + '.' + (e.className.baseVal ?? e.className));
  }
  if (document.documentElement.scrollWidth > innerWidth) out.push('page');
  return out;
})()
"""
"""The elements that reach out of the window and do not scroll inside their own container."""

CONTRAST = """
(() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c) && c !== 'transparent') return c;
    }
    return 'rgb(255, 255, 255)';
  };
  const least = {};
  for (const e of document.querySelectorAll(
      'h1, h2, p, li, dt, dd, th, td, code, figcaption, .verdict span, svg text')) {
    const style = getComputedStyle(e);
    const name = e.ownerSVGElement ? 'svg text' : e.tagName;
    const colour = e.ownerSVGElement ? style.fill : style.color;
    if (e.ownerSVGElement && e.textContent === 'not finite') continue;  // it stands in a bar
    const [a, b] = [light(colour), light(behind(e))];
    const found = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    least[name] = Math.min(least[name] ?? 99, found);
  }
  return least;
})()
"""
"""The least contrast of the text of each kind of element."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_pages_in_a_browser(width: int, *, dark: bool, browser: Browser, folder: Path) -> None:
    """No error, no request, nothing beyond the window, and text that can be read."""
    browser.show(width=width, dark=dark)
    for name in KINDS:
        path = folder / f"{name}.html"
        did = browser.open(path)
        assert did.messages == []
        assert did.requests == [path.as_uri()]
        assert browser.run("innerWidth") == width
        assert browser.run(OVERFLOW) == [], name
        contrast = browser.run(CONTRAST)
        assert {"H1", "TD", "svg text"} <= contrast.keys()
        assert min(contrast.values()) >= 4.5, (name, contrast)
        back = browser.run("getComputedStyle(document.querySelector('main')).backgroundColor")
        assert (back == "rgb(255, 255, 255)") != dark
        # A name that was not escaped would be an element of its own.
        assert browser.run("document.querySelectorAll('script, b, i, main main').length") == 0
        assert browser.run("document.querySelectorAll('figure svg').length") >= 1


def test_the_browser_sees_names_as_text(browser: Browser, folder: Path) -> None:
    """The names of files and groups are read as they were given."""
    browser.show(width=1400)
    browser.open(folder / "port.html")
    assert EVIL in browser.run("document.querySelector('.command').textContent")
    browser.open(folder / "evaluate.html")
    seen = browser.run("[...document.querySelectorAll('svg text')].map(e => e.textContent)")
    assert {clean(name) for name in GROUPS} <= set(seen)


def test_pictures_fit_their_frames(browser: Browser, folder: Path) -> None:
    """No label of a picture is cut off, and pictures are neither tiny nor wider than the text."""
    for width in (400, 1400):
        browser.show(width=width)
        for name in KINDS:
            browser.open(folder / f"{name}.html")
            cut = browser.run("""
                [...document.querySelectorAll('svg text')].filter(e => {
                  const a = e.getBoundingClientRect();
                  const b = e.ownerSVGElement.getBoundingClientRect();
                  return a.left < b.left - 3 || a.right > b.right + 3 || a.top < b.top - 3
                    || a.bottom > b.bottom + 3;
                }).map(e => e.textContent)
            """)
            assert cut == [], (name, width)
            widths = browser.run(
                "[...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().width)"
            )
            assert all(300 <= each <= 560 for each in widths)


def test_pages_are_printed_in_light_colours(browser: Browser, folder: Path) -> None:
    """Paper is white, whichever colours the screen has."""
    browser.show(width=780, dark=True, media="print")
    browser.open(folder / "port.html")
    for element in ("body", "main"):
        style = f"getComputedStyle(document.querySelector('{element}')).backgroundColor"
        assert browser.run(style) == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('main')).color") == "rgb(0, 0, 0)"
    assert browser.pdf().startswith(b"%PDF")


def test_a_page_that_breaks_the_rules_is_caught(browser: Browser, tmp_path: Path) -> None:
    """The browser reports errors, requests and overflow, so the tests above can fail."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<main><p style='width: 2000px'>wide</p><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('said'); missing()</script></main>",
        encoding="utf-8",
    )
    browser.show(width=400)
    did = browser.open(path)
    assert any("said" in message for message in did.messages)
    assert any("missing" in message for message in did.messages)
    assert "http://127.0.0.1:9/x.png" in did.requests
    assert "P." in browser.run(OVERFLOW)
    guarded = re.sub(
        r"<title>", f"{path.read_text()}<title>", reports.html(Page("", "", None, {}, []))
    )
    path.write_text(guarded, encoding="utf-8")
    did = browser.open(path)
    assert did.blocked == ["http://127.0.0.1:9/x.png"]  # by the page's own policy
    assert not any("said" in message for message in did.messages)
