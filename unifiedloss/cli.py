"""The command line: check backends, compare a loss across them, and translate and explain losses.

The losses may be those of other libraries.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import unifiedloss
from unifiedloss import compiled
from unifiedloss.compiled import threads
from unifiedloss.errors import UnifiedLossError
from unifiedloss.spec import LOSSES
from unifiedloss.text import MOST_CHARACTERS, quoted, shortened_path, too_long

if TYPE_CHECKING:
    from unifiedloss.conformance import Report, Row
    from unifiedloss.conformance.compare import Line, Truth
    from unifiedloss.conformance.strength import Strength
    from unifiedloss.spec import Loss

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    # Installing the core also installs this command, but only the extra "cli" installs what it
    # imports. A traceback would not name the extra.
    sys.exit(
        f"The command line needs {missing.name}, which is not installed; "
        "install it with: pip install 'unifiedloss[cli]'"
    )

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# On a terminal its width applies. Elsewhere 160 columns are enough for every table.
_out = Console(width=None if sys.stdout.isatty() else 160)
_err = Console(stderr=True)


def main() -> None:
    """Run the command ``unifiedloss``."""
    # Keep TensorFlow's start-up messages out of the output.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app()


def _print(text: str, style: str | None = None, console: Console = _out) -> None:
    """Print text as it is: no markup, no highlighting, no line breaks added."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _fail(message: object) -> NoReturn:
    _print(f"Error: {message}", "red", _err)
    raise typer.Exit(2)


def _version(value: bool) -> None:
    if value:
        _out.print(f"unifiedloss {unifiedloss.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def unifiedloss_(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One loss, defined once, the same numbers in NumPy, PyTorch, TensorFlow, Keras and JAX."""


@app.command()
def conform(
    *,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="A backend ('torch', 'keras') or a row ('keras (jax)'); may be repeated. "
            "Default: all that are installed."
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="A loss ('cross_entropy', ...), or 'softmax'; may be repeated. Default: all."
        ),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="A mode ('eager', 'jit', ...); may be repeated. Default: all."),
    ] = None,
    rounding: Annotated[str, typer.Option(help="The rounding to check.")] = "native",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Run all cases in eager modes, and a few in one compiled mode of each backend.",
        ),
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write the report to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Check the installed backends against the oracle. The exit status is 1 if anything differs."""
    from unifiedloss import conformance
    from unifiedloss.conformance import workers
    from unifiedloss.conformance.strength import FULL, QUICK

    strength = QUICK if quick else FULL
    try:
        labels = [target.label for target in workers.choose(backend or None)[0]]
        with _progress(len(labels)) as (note, log_row):
            report = conformance.run(
                backend or None,
                loss or None,
                mode or None,
                rounding=rounding,
                strength=strength.name,
                progress=note,
                finished=log_row,
                started=partial(
                    _print_start, len(labels), strength, part=bool(backend or loss or mode)
                ),
            )
    except UnifiedLossError as error:
        _fail(error)
    if json is not None:
        try:
            json.write_text(report.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            _fail(f"cannot write {json}: {error.strerror}.")
    _print_report(report)
    raise typer.Exit(0 if report.ok else 1)


def _print_start(backends: int, strength: Strength, *, part: bool) -> None:
    """Print how much is run and how long it takes."""
    name = "" if strength.name == "full" else f", {strength.name}"
    limit = "at most" if part else "about"
    minutes = _count(strength.minutes, "minute")
    _print(
        f"Checking {_count(backends, 'backend')}{name}: {limit} {minutes} on two cores.",
        console=_err,
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _progress(backends: int) -> Any:
    """A context manager that gives two callbacks of `conformance.run`.

    The first draws a progress bar for each backend. The second logs each finished row when stderr
    is not a terminal, because the bars are not drawn then.
    """
    import contextlib

    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from unifiedloss import conformance

    @contextlib.contextmanager
    def drawn() -> Any:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bars:
            tasks: dict[str, TaskID] = {}
            places: dict[str, str] = {}

            def place(label: str) -> str:
                return places.setdefault(label, f"{len(places) + 1} of {backends}")

            def note(at: conformance.Progress) -> None:
                if at.backend not in tasks:
                    tasks[at.backend] = bars.add_task(at.backend, total=at.total)
                bars.update(
                    tasks[at.backend],
                    completed=at.done,
                    total=at.total,
                    description=f"{place(at.backend)}: {at.backend}, {at.mode}",
                )

            def log_row(row: Row) -> None:
                if not _err.is_terminal:
                    _log_row(place(row.backend), row)

            yield note, log_row

    return drawn()


def _log_row(place: str, row: Row) -> None:
    total = row.total
    _print(
        f"{place}: {row.backend}, {row.mode}: {_count(total.cases, 'case')}, "
        f"{_count(total.failed, 'failure')}, {row.seconds:.0f} s",
        console=_err,
    )


def _print_report(report: Report) -> None:
    from rich.table import Table

    for row, failure in report.failures:
        _out.print(
            f"{row.backend}, {row.mode}: {failure.case}", style="red", markup=False, highlight=False
        )
        for what in failure.what:
            _print(f"  {what}")
        _print(failure.snippet)
    versions = {row.backend: row.version for row in report.rows}
    for label, version in versions.items():
        _print(f"{label}: {version}")
    # The table has no frame and no versions, so that it fits a terminal of 80 columns.
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("backend", "mode"):
        table.add_column(column, no_wrap=True)
    counts = ("cases", "left\nout", "compared", "programs", "failed")
    for column in (*counts, "value\nulps", "grad\nulps", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report.rows:
        total = row.total
        table.add_row(
            row.backend, row.mode, str(total.cases), str(row.left_out), str(total.comparisons),
            str(row.programs), str(total.failed), f"{total.value_ulps:.2f}",
            f"{total.gradient_ulps:.2f}", f"{row.seconds:.0f}",
        )  # fmt: skip
    _out.print(table)
    for row in report.rows:
        for reason, count in row.not_held.items():
            _out.print(
                f"{row.backend}, {row.mode}: {_count(count, 'case')} not run: {reason}",
                markup=False,
                highlight=False,
            )
    for label, why in report.errors.items():
        _print(f"{label} was not checked to the end: {why}", "red")
    for label, why in report.absent.items():
        _print(f"{label} was not checked: {why}.")
    if report.ok:
        verdict = "nothing differs"
    elif report.failures:
        verdict = f"{_count(len(report.failures), 'case')} failed"
    else:
        verdict = "the run failed"
    _out.print(
        f"{_count(report.comparisons, 'comparison')} in {_count(len(report.rows), 'row')}, "
        f"{report.seconds:.0f} s: {verdict}.",
        highlight=False,
    )


def _numbers(text: str) -> list[float]:
    """Parse the value of an option such as ``1,2.5,4``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        _fail(f"{quoted(text)} is no list of numbers separated by commas.")


@app.command()
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="An .npz file with predictions and targets, and optionally sample_weight and "
            "mask; or two .npy files, predictions and targets, which are mapped and not loaded."
        ),
    ],
    *,
    sample_weight: Annotated[
        Path | None, typer.Option(help="An .npy file, beside two others.", dir_okay=False)
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="An .npy file, beside two others.", dir_okay=False)
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="cross_entropy, binary_cross_entropy, mean_squared_error or "
            "negative_log_likelihood. Default: cross_entropy."
        ),
    ] = None,
    from_logits: Annotated[
        bool, typer.Option("--from-logits", help="The predictions are logits.")
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="Clip probabilities to [epsilon, 1 - epsilon].")
    ] = None,
    axis: Annotated[int | None, typer.Option(help="The class axis.")] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(help="One number per class, separated by commas.", metavar="W,W,..."),
    ] = None,
    ignore_index: Annotated[
        list[int] | None, typer.Option(help="A label to ignore; may be repeated.")
    ] = None,
    pos_weight: Annotated[
        str | None,
        typer.Option(help="A number, or one per entry of the last axis.", metavar="Q[,Q...]"),
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="The amount of label smoothing.")
    ] = None,
    reduction: Annotated[str | None, typer.Option(help="mean, sum or none.")] = None,
    divisor: Annotated[
        str | None, typer.Option(help="weights, label_weights, present, nonzero or all.")
    ] = None,
    on_empty: Annotated[str | None, typer.Option(help="nan, zero or error.")] = None,
    rounding: Annotated[
        str | None, typer.Option(help="native or exact. Default: both, whatever the spec says.")
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
        typer.Option(help="A backend; may be repeated. Default: all that are installed."),
    ] = None,
) -> None:
    """Run one loss over saved predictions and targets in every installed backend, and compare.

    The exit status is 1 if a result lies outside the bound of the conformance suite, or if a
    result of exact mode is not exact.
    """
    from unifiedloss.conformance import compare as comparing

    weights = None if pos_weight is None else _numbers(pos_weight)
    # Options that are not given are left out, because not every loss has every field.
    options: dict[str, Any] = {
        "loss": loss, "from_logits": from_logits or None, "epsilon": epsilon, "axis": axis,
        "class_weights": None if class_weights is None else _numbers(class_weights),
        "ignore_index": ignore_index or None,
        "pos_weight": weights[0] if weights is not None and len(weights) == 1 else weights,
        "label_smoothing": label_smoothing, "reduction": reduction, "divisor": divisor,
        "on_empty": on_empty,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    try:
        if spec is None:
            _check_options(given, [*options, "rounding"])
            chosen = unifiedloss.from_dict({"loss": "cross_entropy", "version": 1, **given})
        else:
            chosen = _read_spec(spec, list(given))
        roundings = comparing.ROUNDINGS if rounding is None else (rounding,)
        chosen = chosen.replace(rounding=roundings[0])
        arrays = comparing.load_files(files, sample_weight, mask)
        _print(_size_of(arrays), console=_err)
        with _err.status("running"):
            truths, lines = comparing.compare(chosen, arrays, backend or None, roundings)
    except UnifiedLossError as error:
        _fail(error)
    _print_comparison(chosen, truths, lines)
    measured = [line for line in lines if not line.absent]
    raise typer.Exit(0 if measured and all(line.within for line in measured) else 1)


def _size_of(arrays: dict[str, Any]) -> str:
    """Say how large the arrays are, and how much memory a comparison of them takes."""
    from unifiedloss.conformance import compare as comparing
    from unifiedloss.readers.memory import size

    needs = comparing.needs(arrays)
    free = "" if needs.free is None else f"; {size(needs.free)} are free"
    return (
        f"{comparing.described(arrays)}: {size(needs.arrays)}. "
        f"Each backend takes about {size(needs.process)} of memory{free}."
    )


def _check_options(given: dict[str, Any], options: list[str]) -> None:
    """Refuse an option that the loss does not have.

    `from_dict` would name the field; this message names the option as the user typed it.
    """
    name = given.get("loss", "cross_entropy")
    if name not in LOSSES:
        return  # from_dict reports the unknown loss
    known = [field for field in LOSSES[name].declarations if field in options]
    for option in given:
        if option not in ("loss", *known):
            has = ", ".join(_option(field) for field in known)
            _fail(f"{_option(option)} does not apply to the loss {name}; its options are {has}.")


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _read_spec(text: str, options: list[str]) -> Loss:
    """Read a spec from JSON text or from a JSON file.

    Refuse other options, because the spec would override them.
    """
    if options:
        names = ", ".join(map(_option, options))
        _fail(f"--spec defines the whole loss; leave out {names}.")
    if text.lstrip().startswith("{"):
        return unifiedloss.from_json(text)
    read = _text_of(text)
    try:
        return unifiedloss.from_json(read)
    except UnifiedLossError as error:
        _fail(f"cannot read the spec in {shortened_path(text)}: {error}")


def _text_of(name: str) -> str:
    """Return the text of a file with a spec. No more is read than a text may have."""
    try:
        with Path(name).open("rb") as opened:
            read = opened.read(MOST_CHARACTERS + 1)
        if len(read) > MOST_CHARACTERS:
            _fail(f"cannot read the spec in {shortened_path(name)}: {too_long(read)}")
        return read.decode()
    # A name with a zero byte is a ValueError, and a UnicodeDecodeError is one too.
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        _fail(f"cannot read the spec in {shortened_path(name)}: {why}.")


def _print_comparison(spec: Loss, truths: dict[str, Truth], lines: list[Line]) -> None:
    from rich.table import Table

    sources = ", ".join(dict.fromkeys(truth.source for truth in truths.values()))
    seconds = sum(truth.seconds for truth in truths.values())
    _print(f"{spec!r}, measured against: {sources} ({seconds:.2g} s)")
    if sources != "oracle":
        _out.print("The oracle would take minutes for so many numbers.", highlight=False)
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
    _out.print(table)
    for line in lines:
        if line.error is not None:
            name = line.backend if line.rounding is None else f"{line.backend}, {line.rounding}"
            _print(f"{name}: {line.error}", None if line.absent else "red")


_LOSS = (
    "A loss as Python code ('torch.nn.CrossEntropyLoss(label_smoothing=0.1)'), a spec as Python "
    "code or JSON, or a JSON file."
)


def _loss_text(text: str) -> str:
    """Return the text of a loss, read from the file if it names a JSON file.

    The text is never evaluated.
    """
    return _text_of(text) if text.endswith(".json") else text


@app.command()
def translate(
    loss: Annotated[str, typer.Argument(help=_LOSS)],
    *,
    to: Annotated[
        str,
        typer.Option(
            help="torch, keras, tensorflow, optax, sklearn or onnx; "
            "unifiedloss or json for the spec."
        ),
    ],
) -> None:
    """Write a loss of one library as a loss of another.

    The output is the nearest loss that the other library has. If any rule differs, stderr names the
    rule and the exit status is 1. Stderr also names rules that are read back otherwise.
    """
    from unifiedloss.interop import closest, parse
    from unifiedloss.interop.sentences import sentence

    try:
        text = _loss_text(loss)
        spec = unifiedloss.from_native(text)
        if to in ("unifiedloss", "json"):
            _print(f"ul.{spec.source()}" if to == "unifiedloss" else spec.to_json())
            return
        backend = None if text.lstrip().startswith("{") else parse(text).backend
        nearest = closest(spec, to, backend)
    except UnifiedLossError as error:
        _fail(error)
    _print(str(nearest.call))
    for name in (*nearest.changes, *nearest.covered):
        said = "not the same" if name in nearest.changes else f"the same in every call of {to}"
        _err.print(f"{name} is {said}:", style="bold", markup=False, highlight=False)
        _print(f"  in {loss}: {sentence(spec, name)}", console=_err)
        _print(f"  as written: {sentence(nearest.spec, name)}", console=_err)
    raise typer.Exit(1 if nearest.changes else 0)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help=_LOSS)],
    b: Annotated[str, typer.Argument(help="Another loss.")],
) -> None:
    """List the rules in which two losses differ, each with the smallest input that shows it.

    The numbers come from the losses themselves if their libraries are installed. The exit status
    is 1 if anything differs.
    """
    try:
        with _err.status("running"):
            differences = unifiedloss.diff(_loss_text(a), _loss_text(b))
    except UnifiedLossError as error:
        _fail(error)
    _print(f"a: {differences.a}\nb: {differences.b}")
    for difference in differences:
        rule, _, rest = str(difference).partition("\n")
        _out.print(f"\n{rule}", style="bold", markup=False, highlight=False)
        _print(rest)
    if not differences:
        _out.print("\nThere is no difference: the rules are the same.", highlight=False)
    raise typer.Exit(1 if differences else 0)


@app.command()
def explain(
    loss: Annotated[str, typer.Argument(help=_LOSS)],
    *,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print a LaTeX fragment that needs the package amsmath.")
    ] = False,
) -> None:
    """Print what a loss computes: its formula, its rules and its special values."""
    try:
        explanation = unifiedloss.explain(_loss_text(loss))
    except UnifiedLossError as error:
        _fail(error)
    _print(explanation.latex if latex else str(explanation))


@app.command()
def backends() -> None:
    """List the installed backends with their versions, and the level of the compiled loops.

    The number of threads is that of the environment; for its tensors, PyTorch's own counts.
    """
    try:
        versions = unifiedloss.backends()
    except (UnifiedLossError, ImportError) as error:
        _fail(error)
    for name, version in versions.items():
        _out.print(f"{name} {version}", highlight=False)
    try:
        level, count = compiled.level(), threads.number()
    except UnifiedLossError as error:
        _fail(error)
    used = "1 thread" if count == 1 else f"{count} threads"
    _out.print(f"compiled loops: {level}, {used}", highlight=False)


if __name__ == "__main__":
    main()
