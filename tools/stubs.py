"""Write `unifiedloss/functional.pyi`, which tells type checkers what the loss functions take.

`unifiedloss.functional` makes each function out of a spec, so its signature stands in no source
text. ``make stubs`` runs this module, and tests/test_stubs.py compares the file with what it writes.
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
from unifiedloss.field import described

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
    """The text of the stub, formatted."""
    text = _HEAD + "".join(map(_made, _functions_of_specs())) + "".join(_written())
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(PATH), "-"]
    formatted = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return formatted.stdout


def _functions_of_specs() -> list[Any]:
    return [function for function in vars(functional).values() if hasattr(function, "loss_class")]


def documentation(function: Any) -> str:
    """The docstring of a function that is made out of a spec, with each field described."""
    short = (
        f"    {', '.join(function.loss_class.declarations)}: see `{function.loss_class.__name__}`."
    )
    assert short in function.__doc__
    text: str = function.__doc__.replace(short, described(function.loss_class.declarations))
    return text


def _made(function: Any) -> str:
    """The overloads of a function that is made out of a spec."""
    types: dict[str, str] = {}
    for base in reversed(function.loss_class.__mro__):
        types |= inspect.get_annotations(base)
    fields = ",\n    ".join(
        f"{name}: {types[name]} = {declaration.default!r}"
        for name, declaration in function.loss_class.declarations.items()
    )
    doc = textwrap.indent(documentation(function), "    ").strip()
    return "".join(
        _OVERLOAD.format(
            name=function.__name__, predictions=taken, fields=fields, result=given, body=body
        )
        for taken, given, body in (
            ("TensorT", "TensorT", f'r"""{doc}\n    """'),
            ("Numbers", "Any", "..."),
        )
    )


def _written() -> list[str]:
    """The functions that stand in the source text, with their docstrings alone."""
    nodes = ast.parse(inspect.getsource(functional)).body
    public = [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    found = []
    for name in dict.fromkeys(node.name for node in public):
        *overloads, implementation = [node for node in public if node.name == name]
        doc: list[ast.stmt] = implementation.body[:1]
        for node in overloads or [implementation]:
            node.decorator_list = [ast.Name("overload")] if overloads else []
            node.body = doc
            doc = [ast.Expr(ast.Constant(...))]
            found.append(f"{ast.unparse(node)}\n")
    return found


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
