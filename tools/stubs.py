"""Write `unifiedloss/functional.pyi`, the signatures of the loss functions for type checkers.

`unifiedloss.functional` builds each function from a spec at run time, so type checkers find no
signature in its source. ``make stubs`` runs this module, and tests/test_stubs.py checks that the
file is up to date.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from unifiedloss import functional
from unifiedloss.field import annotations_of, described

PATH = Path(functional.__file__).with_suffix(".pyi")

_HEAD = '''\
"""Written by ``make stubs`` from the fields of the specs; do not edit."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

from unifiedloss.inputs import Numbers, TensorT
from unifiedloss.spec import (
    AnyLoss,
    ClassWeighting,
    ComputedIn,
    Divisor,
    Epsilon,
    OnEmpty,
    Reduction,
    Renormalize,
    Rounding,
)

'''

_OVERLOAD = """\
@overload
def {name}(
    predictions: {predictions},
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    {fields},
) -> {result}:
    {body}
"""


def stub() -> str:
    """Return the formatted text of the stub."""
    text = (
        _HEAD
        + "".join(map(_spec_function_stub, _spec_functions()))
        + "".join(_source_function_stubs())
    )
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PATH), "-"]
    formatted = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return formatted.stdout


def _spec_functions() -> list[Any]:
    return [function for function in vars(functional).values() if hasattr(function, "loss_class")]


def documentation(function: Any) -> str:
    """Return the docstring of a function built from a spec, with each field described."""
    cls = function.loss_class
    short = f"    {', '.join(cls.declarations)}: see `{cls.__name__}`."
    assert short in function.__doc__
    text: str = function.__doc__.replace(short, described(cls.declarations))
    return text


def _spec_function_stub(function: Any) -> str:
    """Return the overloads of a function built from a spec."""
    declarations = function.loss_class.declarations
    fields = ",\n    ".join(
        f"{name}: {annotation} = {declarations[name].default!r}"
        for name, annotation in annotations_of(function.loss_class).items()
    )
    doc = textwrap.indent(documentation(function), "    ").strip()
    return "".join(
        _OVERLOAD.format(
            name=function.__name__, predictions=predictions, fields=fields, result=result, body=body
        )
        for predictions, result, body in (
            ("TensorT", "TensorT", f'r"""{doc}\n    """'),
            ("Numbers", "Any", "..."),
        )
    )


def _source_function_stubs() -> list[str]:
    """Return the functions that the source defines, with docstrings instead of bodies."""
    nodes = ast.parse(inspect.getsource(functional)).body
    public = [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    stubs = []
    for name in dict.fromkeys(node.name for node in public):
        *overloads, implementation = [node for node in public if node.name == name]
        doc: list[ast.stmt] = implementation.body[:1]
        for node in overloads or [implementation]:
            node.decorator_list = [ast.Name("overload")] if overloads else []
            node.body = doc
            doc = [ast.Expr(ast.Constant(...))]
            stubs.append(f"{ast.unparse(node)}\n")
    return stubs


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
