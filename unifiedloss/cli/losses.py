"""The commands about losses of other libraries: ``translate``, ``diff`` and ``explain``."""

from __future__ import annotations

from typing import Annotated

import typer

import unifiedloss
from unifiedloss.cli.output import app, err, fail, out, print_text
from unifiedloss.cli.specs import LOSS, loss_text
from unifiedloss.errors import UnifiedLossError


@app.command()
def translate(
    loss: Annotated[str, typer.Argument(help=LOSS)],
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


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help=LOSS)],
    b: Annotated[str, typer.Argument(help="Another loss.")],
) -> None:
    """List the rules in which two losses differ, each with the smallest input that shows it.

    The numbers come from the losses themselves if their libraries are installed. The exit status
    is 1 if anything differs.
    """
    try:
        with err.status("running"):
            differences = unifiedloss.diff(loss_text(a), loss_text(b))
    except UnifiedLossError as error:
        fail(error)
    print_text(f"a: {differences.a}\nb: {differences.b}")
    for difference in differences:
        rule, _, rest = str(difference).partition("\n")
        out.print(f"\n{rule}", style="bold", markup=False, highlight=False)
        print_text(rest)
    if not differences:
        out.print("\nThere is no difference: the rules are the same.", highlight=False)
    raise typer.Exit(1 if differences else 0)


@app.command()
def explain(
    loss: Annotated[str, typer.Argument(help=LOSS)],
    *,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print a LaTeX fragment that needs the package amsmath.")
    ] = False,
) -> None:
    """Print what a loss computes: its formula, its rules and its special values."""
    try:
        explanation = unifiedloss.explain(loss_text(loss))
    except UnifiedLossError as error:
        fail(error)
    print_text(explanation.latex if latex else str(explanation))
