"""The site builds, each example prints what its page says, and each argument is described.

The tests run each block marked ``python`` in README.md, the pages and the docstrings; the blocks of
one page run in order in one module. A block marked ``output`` right after a ``python`` block holds
exactly what that block prints. A block marked ``python {.processes-2}`` is a program of its own; it
runs in so many processes, and the first of them prints the output. ``python {.needs-ray}`` marks
code for a package that only the slow tests need; it runs where the package is installed.
``python {.no-run}`` marks code that cannot run here. ``console {.run}`` marks commands of
unifiedloss that run in the folder of the page. Any other marking of Python code is an error, so
that a misspelling hides no example.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import griffe
import pytest

import unifiedloss
from tests import page_blocks
from tests.test_imports import RINGS
from unifiedloss.interop.library_loss import LIBRARIES
from unifiedloss.losses import ROWS
from unifiedloss.owners import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
FRAMEWORKS = ("numpy", "torch", "tensorflow", "keras", "jax", "dask")

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_APART = re.compile(r"python \{\.processes-(?P<processes>\d)\}")
_NEEDS = re.compile(r"python \{\.needs-(?P<package>\w+)\}")
_COMMANDS = "console {.run}"
_RUN = re.compile(r'python(?: (?:title|hl_lines|linenums)="[^"]*")*')

# Runs page after page in a child process. The blocks keep their line numbers, so that a traceback
# shows the line of the page, and tf.function, which reads the source of a function, finds it.
_RUNNER = """
import contextlib, io, json, os, sys, traceback, types
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for task in sys.stdin:
    page, blocks, folder = json.loads(task)
    os.chdir(folder)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    error = ""
    try:
        for source, line, expected in blocks:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile("\\n" * (line - 1) + source, page, "exec"), module.__dict__)
            if expected is not None and printed.getvalue().rstrip() != expected.rstrip():
                says = f"{page}, line {line}: the page says\\n{expected}"
                error = f"{says}\\nand the code prints\\n{printed.getvalue()}"
                break
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps(error), file=answers, flush=True)
"""


class Pages:
    """A process that runs pages one after the other, so that it loads frameworks only once.

    Each page has a module of its own.
    """

    def __init__(self, stderr: Path) -> None:
        self._stderr = stderr
        with stderr.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _RUNNER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=_environment(),
                text=True,
            )

    def run(self, page: str, blocks: list[Block], folder: Path) -> None:
        """Run blocks in order; fail if one raises, or prints other than expected."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = [page, [astuple(block)[:3] for block in blocks], str(folder)]
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            said = self._stderr.read_text(encoding="utf-8", errors="replace")
            pytest.fail(f"{page} ended the process:\n{said[-2000:]}", pytrace=False)
        if error := json.loads(answer):
            pytest.fail(error, pytrace=False)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Block:
    """One runnable block.

    Attributes:
        source: its code.
        line: its first line on the page.
        expected: its output, if the page has it.
        processes: in how many processes of its own it runs; 0 if in that of the page.
    """

    source: str
    line: int
    expected: str | None = None
    processes: int = 0


def runnable(text: str) -> list[Block]:
    """Return the blocks of a page that the tests run.

    Raises:
        ValueError: the marking of a block would hide it from the tests.
    """
    found: list[Block] = []
    end_of_last = -1
    for match in _FENCE.finditer(text):
        info = match["info"].strip()
        language = re.split(r"[ {]", info, maxsplit=1)[0]
        line = text.count("\n", 0, match.start("body")) + 1
        body = textwrap.dedent(match["body"])
        apart = _APART.fullmatch(info)
        needs = _NEEDS.fullmatch(info)
        if needs and importlib.util.find_spec(needs["package"]) is None:
            end_of_last = -2
        elif info == _COMMANDS:
            found.append(Block(page_blocks.of_commands(body), line))
            end_of_last = match.end()
        elif apart or needs or _RUN.fullmatch(info):
            found.append(Block(body, line, processes=int(apart["processes"]) if apart else 0))
            end_of_last = match.end()
        elif info == "output" and end_of_last == -2:
            end_of_last = -1  # its code is not run
        elif info == "output":
            if end_of_last < 0 or text[end_of_last : match.start()].strip():
                msg = (
                    f"line {line}: an output block follows the python block that prints it, "
                    "with nothing in between"
                )
                raise ValueError(msg)
            found[-1] = replace(found[-1], expected=body)
            end_of_last = -1
        elif language in ("python", "py", "python3", "pycon", "") and info != "python {.no-run}":
            msg = (
                f"line {line}: mark the block python, python {{.no-run}}, "
                f"python {{.processes-N}}, python {{.needs-PACKAGE}}, output, or another language; "
                f"it says {info!r}"
            )
            raise ValueError(msg)
    return found


@pytest.mark.slow("the blocks of packages that are installed")
def test_every_package_of_the_pages_is_installed() -> None:
    """With --strength all, no block is left out."""
    needed = {match["package"] for page in PAGES for match in _NEEDS.finditer(page.read_text())}
    assert needed == {"datasets", "ray"}
    for package in needed:
        assert importlib.util.find_spec(package) is not None, package


@pytest.fixture(scope="module")
def shared_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """One process for all pages."""
    with contextlib.closing(Pages(tmp_path_factory.mktemp("pages") / "stderr")) as pages:
        yield pages


@pytest.fixture
def pages(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pages]:
    """The process that runs a page: one for all pages, or one a page with --strength all."""
    if request.config.getoption("strength") != "all":
        yield request.getfixturevalue("shared_pages")
        return
    with contextlib.closing(Pages(tmp_path / "stderr")) as alone:
        yield alone


def _environment() -> dict[str, str]:
    """What a reader's process has: nothing of Python's, and the default backend of Keras.

    But it begins as every process of a test run does.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept.pop("KERAS_BACKEND", None)
    return kept | {"PYTHONPATH": str(ROOT / "tests" / "startup")}


def _run(*arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=_environment(),
        timeout=280,
    )
    if done.returncode:
        pytest.fail(f"{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


def frameworks(source: str) -> list[str]:
    """Return the frameworks that a piece of code imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    # Keras runs on TensorFlow by default.
    return [
        name for name in FRAMEWORKS if name in names or (name == "tensorflow" and "keras" in names)
    ]


def _docstrings() -> dict[str, tuple[Path, int, str]]:
    """Return each docstring with a fenced block: its file, its first line and its text, by name."""
    found = {}
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted([*(ROOT / "unifiedloss").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and "```" in (text := ast.get_docstring(node) or ""):
                line = node.body[0].lineno
                name = f"{path.relative_to(ROOT).as_posix()}:{getattr(node, 'name', '')}:{line}"
                found[name] = (path, line, text)
    return found


def _texts() -> dict[str, tuple[Path, int, str]]:
    """Return each page and docstring that may have blocks: its file, first line and text."""
    texts = {
        page.relative_to(ROOT).as_posix(): (page, 1, page.read_text(encoding="utf-8"))
        for page in PAGES
    }
    return texts | _docstrings()


def _parameters(*, apart: bool = False) -> list[object]:
    """Return a parameter per page or docstring with runnable blocks, marked with its frameworks.

    Args:
        apart: whether to return those that run in processes of their own, by their number.
    """
    parameters: list[object] = []
    for name, (path, line, text) in _texts().items():
        try:
            blocks = [replace(block, line=block.line + line - 1) for block in runnable(text)]
        except ValueError as error:
            # Fail in the test of this page, not in the collection of all tests.
            blocks = [] if apart else [Block(f"raise ValueError({str(error)!r})", line)]
        for number in sorted(
            {block.processes for block in blocks if bool(block.processes) == apart}
        ):
            chosen = [block for block in blocks if block.processes == number]
            try:
                needs = frameworks("".join(block.source for block in chosen))
            except SyntaxError as error:
                chosen, needs = [Block(f"raise SyntaxError({str(error)!r})", line)], []
            marks = [pytest.mark.framework(*needs)] if needs else []
            identifier = f"{name}-{number}" if apart else name
            parameters.append(pytest.param(path, chosen, id=identifier, marks=marks))
    return parameters


@pytest.mark.parametrize(("page", "blocks"), _parameters())
def test_page_runs(page: Path, blocks: list[Block], pages: Pages, tmp_path: Path) -> None:
    """The examples of a page run in order in a new folder, and print what the page says."""
    folder = tmp_path / "folder"
    folder.mkdir()
    pages.run(str(page), blocks, folder)


@pytest.mark.parametrize(("page", "blocks"), _parameters(apart=True))
def test_programs_of_a_page_run(page: Path, blocks: list[Block]) -> None:
    """The programs of a page run in several processes, and the first prints what the page says."""
    sources = [(block.source, block.line) for block in blocks]
    printed = page_blocks.printed_by(str(page), sources, blocks[0].processes)
    for block, text in zip(blocks, printed, strict=True):
        if block.expected is not None:
            assert text.rstrip() == block.expected.rstrip(), f"{page}, line {block.line}"


def test_pages_have_examples() -> None:
    """The parameters include the README, the first pages and the docstring of each spec."""
    names = [parameter.id for parameter in _parameters()]
    expected = [
        "README.md",
        "docs/index.md",
        "docs/quickstart.md",
        *(f"unifiedloss/losses/{row.name}/spec.py:{row.spec}:" for row in ROWS),
    ]
    assert [name for name in expected if not any(found.startswith(name) for found in names)] == []


_OF_KERAS = """
import keras, numpy as np
try:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    print(f"{float(loss(np.array(labels), np.array(logits, np.float32))):.6f}")
except Exception as error:
    print("an error" if "outside the valid range" in str(error) else repr(error))
"""

_OF_OTHERS = """
import jax.numpy as jnp, optax, torch
print(f"{torch.nn.CrossEntropyLoss()(torch.tensor(logits), torch.tensor(labels)):.6f}")
rows = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.array(labels))
print(str(rows.mean()).replace("nan", "NaN"))
"""


def _first_table() -> tuple[str, list[str]]:
    """The code of the first table's input, and the numbers of its first row."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^\| (\d.*) \|$", text, re.MULTILINE)[0].split(" | ")
    logits, labels = re.findall(r"^(?:logits|labels) = (\[.*\])", text, re.MULTILINE)[:2]
    assert f"the labels {labels}" in text
    return f"logits, labels = {logits}, {labels}\n", numbers


@pytest.mark.framework("torch", "tensorflow", "keras", "jax")
def test_first_table_of_the_readme(pages: Pages, tmp_path: Path) -> None:
    """The libraries' own losses, with their defaults, give the numbers of the first table."""
    given, numbers = _first_table()
    assert len(numbers) == 4
    blocks = [
        Block(given, 1),
        Block(_OF_OTHERS, 2, f"{numbers[0]}\n{numbers[3]}"),
        Block(_OF_KERAS, 3, numbers[2]),
        Block("print(keras.backend.backend())", 4, "tensorflow"),
    ]
    pages.run("the first table", blocks, tmp_path)


@pytest.mark.parametrize(
    "backend", [pytest.param(x, marks=pytest.mark.framework(x)) for x in ("torch", "jax", "numpy")]
)
@pytest.mark.framework("keras")
@pytest.mark.slow("the numbers of two backends", only=["jax", "numpy"])
def test_other_backends_of_keras_in_the_first_table(backend: str, tmp_path: Path) -> None:
    """Keras' own loss gives one number with each backend but TensorFlow."""
    given, numbers = _first_table()
    program = f"import os; os.environ['KERAS_BACKEND'] = {backend!r}\n{given}{_OF_KERAS}"
    assert _run("-c", program, folder=tmp_path).splitlines() == [numbers[1]]


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(
            path,
            id=path.name,
            marks=[pytest.mark.framework(*frameworks(path.read_text(encoding="utf-8")))],
        )
        for path in EXAMPLES
    ],
)
@pytest.mark.slow("tests/test_examples.py runs both scripts")
def test_example_runs(example: Path, tmp_path: Path) -> None:
    """Every script of docs/examples runs and prints something."""
    assert _run(str(example), folder=tmp_path).strip()


def test_run_target_has_the_examples() -> None:
    """The target "make run" runs exactly the scripts that are tested here."""
    recipe = (
        (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nrun:")[2].partition("\n\n")[0]
    )
    assert sorted(re.findall(r"docs/examples/(\S+)", recipe)) == [path.name for path in EXAMPLES]


_GUIDES = ("CONTRIBUTING.md", "docs/how-it-works.md", "docs/glossary.md")
"""The pages that say which file holds what."""

_PLACEHOLDERS = {
    "<loss>": [row.name for row in ROWS],
    "<backend>": list(BUILT_IN),
    "<library>": list(LIBRARIES),
}


def _files(named: str) -> list[Path]:
    """The files that a page means by a path with placeholders.

    Paths in prose may leave out the folder ``unifiedloss/``.
    """
    paths = [named]
    for placeholder, names in _PLACEHOLDERS.items():
        if placeholder in named:
            paths = [path.replace(placeholder, name) for path in paths for name in names]
    return [
        ROOT / path if (ROOT / path).exists() else ROOT / "unifiedloss" / path for path in paths
    ]


@pytest.mark.parametrize("guide", _GUIDES)
def test_named_files_exist(guide: str) -> None:
    """Each path on a guide exists, for some loss, backend or library if it names no one."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.<>-]+/[\w./<>-]*(?:/|\.\w+))`", text))
    missing = [name for name in sorted(named) if not any(path.exists() for path in _files(name))]
    assert missing == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page: str) -> None:
    """Links between files of the repository work; the site's build checks those of its pages."""
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert links


def test_rings_are_those_of_the_import_rules() -> None:
    """The table of rings in "How it works" has the modules of tests/test_imports.py."""
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \d+ \| (.*) \| .* \|$", text, re.MULTILINE)
    expected = [
        ", ".join(f"`{name.replace('.*.', '/<loss>/')}`" for name in ring) for ring in RINGS
    ]
    assert table == expected


def test_named_rules_are_where_the_table_says() -> None:
    """The file of each row of the table "Where is the rule for" contains the row's names."""
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| `(\S+\.py)` \| (.*) \|$", text, re.MULTILINE)
    assert len(rows) > 40
    wrong = []
    for path, names in rows:
        source = "".join(file.read_text("utf-8") for file in _files(path) if file.is_file())
        wrong += [
            f"{path}: {name}"
            for name in re.findall(r"`(\w+)`", names)
            if not re.search(rf"\b{name}\b", source)
        ]
    assert wrong == []


def test_workflow_only_calls_make() -> None:
    """Each command of the workflow is a target of the Makefile."""
    workflow = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^ *(?:- )?run: *(.*)$", workflow, re.MULTILINE)
    called = {re.sub(r" [A-Z]+=\S+", "", command) for command in commands if command}
    assert called == {"make check", "make test"}
    for command in called:
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE)


def test_site_builds(tmp_path: Path) -> None:
    """The site builds without warnings, and its pages need no formula script and no other host."""
    kept = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=kept, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8")
        for path in tmp_path.rglob("*.html")
    }
    # docs/site.py renders the formulas in the docstrings of specs, and their fields as arguments.
    assert "<math" in pages["api/index.html"]
    assert re.search(r"CrossEntropyLoss</span>\s*<span class=\"p\">\(", pages["api/index.html"])
    for name, html in pages.items():
        assert "arithmatex" not in html, name
        assert not re.findall(
            r'(?:src|data-src)="(?:https?:)?//[^"]*"|<link[^>]*href="(?:https?:)?//[^"]*"', html
        ), name
    assert not (tmp_path / "site.py").exists()


@pytest.mark.parametrize("name", sorted(set(unifiedloss.__all__) - {"__version__"}))
def test_every_argument_is_described(name: str) -> None:
    """A public docstring describes exactly the arguments of its signature, in order.

    One line may describe several arguments, separated by commas.
    """
    public = getattr(unifiedloss, name)
    text = inspect.getdoc(public)
    assert text, name
    if isinstance(public, type) and issubclass(public, Exception):
        return
    described = [
        argument
        for section in griffe.Docstring(text).parse("google", warnings=False)
        if section.kind is griffe.DocstringSectionKind.parameters
        for parameter in section.value
        for argument in parameter.name.split(", ")
    ]
    assert described == list(inspect.signature(public).parameters)


def test_blocks_run_in_order_and_share_names(pages: Pages, tmp_path: Path) -> None:
    """A page is one session: a later block sees the names that an earlier one defined."""
    text = (
        "# Title\n\n```python\nx = 1\n```\n\n"
        "1. step\n\n    ```python\n    print(x + 1)\n    ```\n\n    ```output\n    2\n    ```\n"
    )
    blocks = runnable(text)
    assert [(block.line, block.expected) for block in blocks] == [(4, None), (10, "2\n")]
    pages.run("page.md", blocks, tmp_path)
    with pytest.raises(pytest.fail.Exception, match="NameError"):
        pages.run("page.md", blocks[::-1], tmp_path)


def test_failing_example_is_caught(pages: Pages, tmp_path: Path) -> None:
    """An example that raises fails the test, with the page and the line in the traceback."""
    with pytest.raises(
        pytest.fail.Exception, match=r'File "page.md", line 3(.|\n)*ZeroDivisionError'
    ):
        pages.run("page.md", runnable("\n```python\n1 / 0\n```\n"), tmp_path)


def test_wrong_output_is_caught(pages: Pages, tmp_path: Path) -> None:
    """An example that prints something other than the page says fails the test."""
    with pytest.raises(pytest.fail.Exception, match="the page says\n3\n"):
        pages.run(
            "page.md", runnable("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n"), tmp_path
        )


def test_marked_blocks_are_not_run() -> None:
    """Blocks marked .no-run and blocks of other languages are not run."""
    assert (
        runnable("```python {.no-run}\n1 / 0\n```\n\n```console\n$ pip install unifiedloss\n```\n")
        == []
    )


@pytest.mark.parametrize(
    "text",
    [
        "```python no-run\n1 / 0\n```\n",
        "```py\n1 / 0\n```\n",
        "``` python{.norun}\n1 / 0\n```\n",
        "```\n1 / 0\n```\n",
        "```output\n1\n```\n",
        "```python\nprint(1)\n```\n\nwhich prints\n\n```output\n1\n```\n",
        "```python\nprint(1)\n```\n```output\n1\n```\n```output\n1\n```\n",
    ],
)
def test_misspelt_marking_is_an_error(text: str) -> None:
    """A marking that would hide code or output from the tests is an error."""
    with pytest.raises(ValueError, match="line"):
        runnable(text)
