"""The commands about losses of other libraries: ``translate``, ``diff`` and ``explain``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import unifiedloss
from unifiedloss.cli.output import app, count, err, example, fail, out, print_text
from unifiedloss.cli.specs import LOSS, loss_text
from unifiedloss.errors import UnifiedLossError
from unifiedloss.readers.files import Files
from unifiedloss.spec import LOSSES


@app.command(
    epilog=example('translate "torch.nn.CrossEntropyLoss(label_smoothing=0.1)" --to keras')
)
def translate(
    loss: Annotated[str, typer.Argument(metavar="LOSS", help=LOSS)],
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="LIBRARY",
            help="torch, keras, tensorflow, optax, sklearn or onnx; "
            "unifiedloss or json for the spec.",
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
        text = loss_text(loss)
        spec = unifiedloss.from_native(text)
        if to in ("unifiedloss", "json"):
            print_text(f"ul.{spec.source()}" if to == "unifiedloss" else spec.to_json())
            return
        backend = None if text.lstrip().startswith("{") else parse(text).backend
        nearest = closest(spec, to, backend)
    except UnifiedLossError as error:
        fail(error)
    print_text(str(nearest.call))
    for name in (*nearest.changes, *nearest.covered):
        said = "not the same" if name in nearest.changes else f"the same in every call of {to}"
        err.print(f"{name} is {said}:", style="bold", markup=False, highlight=False)
        print_text(f"  in {loss}: {sentence(spec, name)}", console=err)
        print_text(f"  as written: {sentence(nearest.spec, name)}", console=err)
    raise typer.Exit(1 if nearest.changes else 0)


@app.command(epilog=example('diff "torch.nn.MSELoss()" "keras.losses.MeanSquaredError()"'))
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help=LOSS)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another loss.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE",
            help="A file with predictions and targets: tell what this batch sees.",
        ),
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Tell every rule in full.")] = False,
) -> None:
    """List the rules in which two losses differ.

    Those come first that usual batches see. Each has the smallest input that shows it. The numbers
    come from the losses themselves if their libraries are installed. With a file, the rules come
    first that its batch sees, each with how far it moves the loss. The exit status is 1 if anything
    differs.
    """
    try:
        with err.status("running"):
            differences = unifiedloss.diff(loss_text(a), loss_text(b))
            seen = {} if file is None else _seen(loss_text(a), loss_text(b), file)
    except UnifiedLossError as error:
        fail(error)
    print_text(f"a: {differences.a}\nb: {differences.b}")
    if not differences:
        print_text("\nThere is no difference: the rules are the same.")
        raise typer.Exit(0)
    ranked = sorted(differences.ranked, key=lambda each: each.rule not in seen)
    told = len(seen) if file is not None else _TOLD
    count_ = len(ranked) if every else told
    for difference in ranked[:count_]:
        rule, _, rest = str(difference).partition("\n")
        out.print(f"\n{rule}", style="bold", markup=False, highlight=False)
        print_text(rest)
        if difference.rule in seen:
            print_text(f"  {seen[difference.rule]}")
    left = [difference.rule for difference in ranked[count_:]]
    if left:
        what = "that this batch does not see" if file is not None else "more, which fewer see"
        print_text(f"\n{count(len(left), 'rule')} {what}: {', '.join(left)}; --all tells them.")
    raise typer.Exit(1)


_TOLD = 3
"""The rules that are told in full without --all."""


def _seen(a: str, b: str, file: Path) -> dict[str, str]:
    """The rules that a batch sees, each with a sentence about what it does there."""
    with Files(file).open() as source:
        report = unifiedloss.port_report(a, b, **source.first_rows())
    said = {}
    for attempt in report.attempts:
        if not attempt.seen:
            continue
        for rule in attempt.rule.split(", "):
            said[rule] = f"on this batch: {attempt.effect}"
    return said


@app.command(epilog=example('explain "torch.nn.CrossEntropyLoss(label_smoothing=0.1)"'))
def explain(
    loss: Annotated[str, typer.Argument(metavar="LOSS", help=LOSS)],
    *,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print a LaTeX fragment that needs the package amsmath.")
    ] = False,
) -> None:
    """Print what a loss computes.

    Its formula, its rules and its special values; or what a rule of losses means, by its name.
    """
    from unifiedloss.interop.quirks import described

    name = loss.strip().lower()
    rule = _fields().get(name) or described(name)
    if rule:
        print_text("\n".join(rule))
        return
    try:
        explanation = unifiedloss.explain(loss_text(loss))
    except UnifiedLossError as error:
        fail(error)
    print_text(explanation.latex if latex else str(explanation))


def _fields() -> dict[str, list[str]]:
    """What each field of the losses means; more than one line where losses differ in it."""
    found: dict[str, list[str]] = {}
    for cls in LOSSES.values():
        for name, declaration in cls.declarations.items():
            # The text is that of the docstrings, whose formulas are LaTeX.
            text = re.sub(r"\$(.*?)\$", lambda found: _plain(found[1]), declaration.described())
            line = f"{name}: {text}"
            if line not in found.setdefault(name, []):
                found[name].append(line)
    return found


def _plain(formula: str) -> str:
    """A short LaTeX formula as plain text."""
    return re.sub(r"[{}\\]", "", formula)
